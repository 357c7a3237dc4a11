//! Programs of clients that send no id, recognised by their growing message history.
//!
//! An agent's request repeats the one before, then the reply to it, then what is new. So the state of a program
//! is the digest of all messages of its last request, and a request belongs to the program whose state is the
//! longest of its own prefixes. Of several such programs, twins with equal histories, the one takes it whose
//! reply is the message that follows the prefix; of several of those, the one that asked with the same `seed`,
//! which many benchmarks set once for a whole run of a task; else the one that has been idle the longest. A
//! program with a
//! request that was not answered yet cannot be gone on from, so two continuations of one history are two
//! programs. No match is a new program.
//!
//! When it is wrong: a client that edits its history (drops the middle to save tokens, say) begins a new program
//! with each edit; twins whose replies and seeds were equal too may be swapped, which moves a label and no cached
//! token.
//!
//! [`Conversation`] digests a request and [`ReplyHasher`] a response, both outside of any lock. [`Inference`]
//! is pure: it is told the time and does no I/O.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod conversation;
mod reply;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

pub use conversation::{Conversation, MAX_MESSAGES};
pub use reply::{END_MARKS, ReplyDigest, ReplyHasher};

use crate::policy::Time;
use conversation::fold;

/// The most messages that one step may add. A request that goes further beyond a known history is a new
/// program; this bounds the look-ups of a request.
pub const MAX_NEW_MESSAGES: usize = 1024;

/// The most programs looked at for a request that repeats a whole history.
const MAX_REPEATS: usize = 16;

/// The most twins looked at for one with the request's seed; beyond, the longest idle one is taken.
const MAX_TWINS: usize = 64;

/// The most programs that expire with one request.
const EXPIRED_PER_ARRIVAL: usize = 16;

/// Bounds of the table.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most programs known at once. A new one then takes the place of the one that has been idle the
    /// longest; if every program has a request in flight, the request belongs to none.
    pub max_programs: usize,
    /// A program is forgotten after this long without a request; its next one is a new program's first.
    pub idle: Duration,
}

/// The identity of an inferred program; the same traffic in the same order gives the same ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InferredId(u64);

impl InferredId {
    const PREFIX: &str = "inferred:";

    /// The identity that is written like this, if one is.
    pub fn named(name: &str) -> Option<Self> {
        let digits = name.strip_prefix(Self::PREFIX)?;
        let id = Self(u64::from_str_radix(digits, 16).ok()?);
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for InferredId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:016x}", Self::PREFIX, self.0)
    }
}

/// One step of an inferred program, for [`Inference::replied`] and [`Inference::finished`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The program.
    pub program: InferredId,
    slot: u32,
    step: u32,
}

/// How a request found its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// It begins a new one.
    New,
    /// It goes on from a reply that only this program got.
    Reply,
    /// It goes on from a history that only this program has, though not from the reply that the gate saw.
    History,
    /// It goes on from what several programs have in common, with the seed of this one.
    Seed,
    /// It goes on from what several programs have in common; the one idle longest was taken.
    Twins,
    /// It repeats a request that was not answered.
    Retry,
    /// It asks again what was answered: another model, or the same in the middle of a program.
    Repeat,
}

/// The program of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inferred {
    /// Its program and step.
    pub ticket: Ticket,
    /// How the program was found.
    pub by: Match,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Its request has no reply yet.
    Asked,
    /// Nothing to wait for; the reply to the last request, if it was answered.
    Idle(Option<ReplyDigest>),
    /// The reply said that the program is over.
    Ending,
}

#[derive(Clone, Copy, Debug)]
struct Program {
    id: InferredId,
    /// Digest of all messages of its last request.
    chain: u64,
    model: u64,
    /// What its last request heard from the user; see [`Conversation`].
    heard: Option<u64>,
    seed: u32,
    step: u32,
    /// It went on from a reply of its own.
    has_grown: bool,
    since: Time,
    phase: Phase,
}

/// What the index is asked for; each kind of question has keys of its own.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// Every idle program, longest idle first.
    Idle,
    /// Programs whose last request held these messages.
    Chain(u64),
    /// As above, and the reply was this one.
    Reply(u64, u64),
    /// Programs whose last request held these messages and was not answered.
    Unanswered(u64),
    /// Programs whose last reply was this text.
    Said(u64),
}

impl Ask {
    fn key(self) -> u64 {
        match self {
            Self::Idle => 0,
            Self::Chain(chain) => fold(chain, 1),
            Self::Reply(chain, answer) => fold(fold(chain, answer), 2),
            Self::Unanswered(chain) => fold(chain, 3),
            Self::Said(text) => fold(text, 4),
        }
    }
}

impl Program {
    /// The keys an idle program is found by.
    fn keys(&self) -> [Option<u64>; 4] {
        let Phase::Idle(reply) = self.phase else {
            return [None; 4];
        };
        let found = match reply {
            Some(reply) => Ask::Reply(self.chain, reply.answer),
            None => Ask::Unanswered(self.chain),
        };
        let said = reply.and_then(|reply| reply.said);
        [
            Some(Ask::Idle.key()),
            Some(Ask::Chain(self.chain).key()),
            Some(found.key()),
            said.map(|text| Ask::Said(text).key()),
        ]
    }

    /// Whether a request that repeats this program's whole history is the program's own.
    ///
    /// Of a first request it is only when another model is asked after a tool call: an agent that hands its
    /// history to an expert. Programs of one kind may all begin with the same first request.
    fn is_repeated_by(&self, conversation: &Conversation) -> bool {
        match self.phase {
            Phase::Idle(Some(reply)) => {
                self.has_grown || (reply.calls() && self.model != conversation.model)
            }
            Phase::Idle(None) | Phase::Asked | Phase::Ending => false,
        }
    }
}

/// The table of inferred programs.
#[derive(Debug)]
pub struct Inference {
    limits: Limits,
    programs: Vec<Option<Program>>,
    free: Vec<u32>,
    /// Idle programs by each of their keys, longest idle first.
    index: BTreeSet<(u64, Time, u32)>,
    /// Programs begun so far, which sets the ids of programs with equal first requests apart.
    begun: u64,
}

impl Inference {
    /// An empty table.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            programs: Vec::new(),
            free: Vec::new(),
            index: BTreeSet::new(),
            begun: 0,
        }
    }

    /// A request arrives. `None` if the table is full of programs with requests in flight.
    ///
    /// The program counts as busy until [`Inference::replied`] or [`Inference::finished`] says otherwise: one of
    /// them must follow.
    pub fn arrive(&mut self, now: Time, conversation: &Conversation) -> Option<Inferred> {
        self.expire(now);
        let found = self.find(conversation);
        let (slot, by) = found.or_else(|| Some((self.begin(now, conversation)?, Match::New)))?;
        self.leave_index(slot);
        let program = self.programs[slot as usize].as_mut()?;
        program.chain = conversation.whole();
        program.model = conversation.model;
        program.heard = conversation.heard;
        program.seed = conversation.seed;
        program.step = program.step.wrapping_add(1);
        program.has_grown |= !matches!(by, Match::New | Match::Retry | Match::Repeat);
        program.since = now;
        program.phase = Phase::Asked;
        let ticket = Ticket {
            program: program.id,
            slot,
            step: program.step,
        };
        Some(Inferred { ticket, by })
    }

    /// The whole reply to a request has passed: from here on, its program's next request may come.
    pub fn replied(&mut self, now: Time, ticket: Ticket, reply: ReplyDigest) {
        let phase = if reply.ends {
            Phase::Ending
        } else {
            Phase::Idle(Some(reply))
        };
        self.end_step(now, ticket, phase);
    }

    /// A request is over, answered or not. Returns the programs that are over with it: its own, if the reply
    /// said so, and the one that it talked to, if only one program's last reply was what it heard last.
    pub fn finished(&mut self, now: Time, ticket: Ticket) -> [Option<InferredId>; 2] {
        self.end_step(now, ticket, Phase::Idle(None));
        let Some(program) = self.current(ticket).copied() else {
            return [None; 2];
        };
        if !matches!(program.phase, Phase::Ending) {
            return [None; 2];
        }
        self.forget(ticket.slot);
        let partner = program.heard.and_then(|text| self.only(Ask::Said(text)));
        let partner = partner.and_then(|slot| self.forget(slot));
        [Some(program.id), partner.map(|program| program.id)]
    }

    /// Forgets a program before its time; returns whether it was known. O(programs).
    pub fn release(&mut self, program: InferredId) -> bool {
        let is_it = |known: &Option<Program>| known.is_some_and(|known| known.id == program);
        let slot = self.programs.iter().position(is_it);
        let slot = slot.and_then(|slot| u32::try_from(slot).ok());
        slot.and_then(|slot| self.forget(slot)).is_some()
    }

    /// Programs known.
    pub fn len(&self) -> usize {
        self.programs.len() - self.free.len()
    }

    /// Whether no program is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first of the rules that finds a program.
    fn find(&self, conversation: &Conversation) -> Option<(u32, Match)> {
        let whole = conversation.whole();
        if let Some((slot, _)) = self.pick(Ask::Unanswered(whole), conversation.seed) {
            return Some((slot, Match::Retry));
        }
        self.continued(conversation).or_else(|| {
            let asked_before = self.each(Ask::Chain(whole)).take(MAX_REPEATS);
            let slot = asked_before
                .into_iter()
                .find(|&slot| self.is_repeated(slot, conversation))?;
            Some((slot, Match::Repeat))
        })
    }

    /// The program whose history is the longest prefix that an assistant's message follows.
    fn continued(&self, conversation: &Conversation) -> Option<(u32, Match)> {
        let links = conversation.links.windows(2).rev();
        for link in links.take(MAX_NEW_MESSAGES) {
            let (chain, Some(answer)) = (link[0].chain, link[1].answer) else {
                continue;
            };
            for (ask, by) in [
                (Ask::Reply(chain, answer), Match::Reply),
                (Ask::Chain(chain), Match::History),
            ] {
                if let Some((slot, among_twins)) = self.pick(ask, conversation.seed) {
                    return Some((slot, among_twins.unwrap_or(by)));
                }
            }
        }
        None
    }

    /// Of the programs with this key the one with the same seed, else the one idle longest; and by what it was
    /// told from the others, if there are any.
    fn pick(&self, ask: Ask, seed: u32) -> Option<(u32, Option<Match>)> {
        let first = self.first(ask)?;
        if self.only(ask).is_some() {
            return Some((first, None));
        }
        let seed_of = |slot: u32| self.programs[slot as usize].map(|program| program.seed);
        let mut twins = self.each(ask).take(MAX_TWINS);
        let own = twins.find(|&slot| seed != 0 && seed_of(slot) == Some(seed));
        Some(own.map_or((first, Some(Match::Twins)), |own| (own, Some(Match::Seed))))
    }

    fn is_repeated(&self, slot: u32, conversation: &Conversation) -> bool {
        self.programs[slot as usize]
            .as_ref()
            .is_some_and(|program| program.is_repeated_by(conversation))
    }

    /// Idle programs with this key, longest idle first.
    fn each(&self, ask: Ask) -> impl Iterator<Item = u32> {
        let key = ask.key();
        let end = Time::from_nanos(u64::MAX);
        let range = self
            .index
            .range((key, Time::ZERO, 0)..=(key, end, u32::MAX));
        range.map(|&(_, _, slot)| slot)
    }

    fn first(&self, ask: Ask) -> Option<u32> {
        self.each(ask).next()
    }

    /// The program with this key, if there is just one.
    fn only(&self, ask: Ask) -> Option<u32> {
        let mut each = self.each(ask);
        each.next().filter(|_| each.next().is_none())
    }

    /// A slot for a new program, that of another one if need be.
    fn begin(&mut self, now: Time, conversation: &Conversation) -> Option<u32> {
        if self.len() >= self.limits.max_programs {
            let longest_idle = self.first(Ask::Idle)?;
            self.forget(longest_idle);
        }
        let slot = if let Some(slot) = self.free.pop() {
            slot
        } else {
            self.programs.push(None);
            u32::try_from(self.programs.len() - 1).ok()?
        };
        self.begun += 1;
        self.programs[slot as usize] = Some(Program {
            id: InferredId(fold(conversation.whole(), self.begun)),
            chain: 0,
            model: 0,
            heard: None,
            seed: 0,
            step: 0,
            has_grown: false,
            since: now,
            phase: Phase::Asked,
        });
        Some(slot)
    }

    /// Moves the program from "asked" to `phase`, if this step is still its last.
    fn end_step(&mut self, now: Time, ticket: Ticket, phase: Phase) {
        let Some(program) = self.current(ticket) else {
            return;
        };
        if matches!(program.phase, Phase::Asked) {
            program.phase = phase;
            program.since = now;
            self.enter_index(ticket.slot);
        }
    }

    fn current(&mut self, ticket: Ticket) -> Option<&mut Program> {
        let program = self.programs.get_mut(ticket.slot as usize)?.as_mut()?;
        (program.id == ticket.program && program.step == ticket.step).then_some(program)
    }

    fn forget(&mut self, slot: u32) -> Option<Program> {
        self.leave_index(slot);
        let program = self.programs[slot as usize].take()?;
        self.free.push(slot);
        Some(program)
    }

    /// Forgets programs that have been idle for too long, a few at a time.
    fn expire(&mut self, now: Time) {
        for _ in 0..EXPIRED_PER_ARRIVAL {
            let Some(slot) = self.first(Ask::Idle) else {
                return;
            };
            let since = self.programs[slot as usize].map(|program| program.since);
            if since.is_none_or(|since| now.since(since) <= self.limits.idle) {
                return;
            }
            self.forget(slot);
        }
    }

    fn enter_index(&mut self, slot: u32) {
        if let Some(program) = self.programs[slot as usize] {
            let keys = program.keys().into_iter().flatten();
            self.index
                .extend(keys.map(|key| (key, program.since, slot)));
        }
    }

    fn leave_index(&mut self, slot: u32) {
        if let Some(program) = self.programs[slot as usize] {
            for key in program.keys().into_iter().flatten() {
                self.index.remove(&(key, program.since, slot));
            }
        }
    }
}

#[cfg(test)]
mod tests;
