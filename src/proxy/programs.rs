//! The programs the gate knows: names, steps, contexts, and which have been idle for how long.
//!
//! The table only keeps count. What its changes mean for the policy is for the sequencer to say.

use std::collections::BTreeSet;
use std::time::Duration;

use super::intern::ProgramNames;
use super::verdict::Ending;
use crate::policy::estimate::PromptHistory;
use crate::policy::handover::Idle;
use crate::policy::ids::name_hash;
use crate::policy::{
    Adoption, Arrival, BackendId, GapKind, Outcome, ProgramId, ProgramView, RequestId, Time,
    Tokens, Usage,
};

/// Bounds of the table.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// An idle program is released after this long without a request.
    pub program_idle: Duration,
    /// The most programs known at once. A newcomer then takes the place of the program that has been idle the
    /// longest; if none is idle, it is treated as a request without identity.
    pub max_programs: usize,
}

/// A program as `GET /programs` shows it.
#[derive(Clone, Debug)]
pub struct ProgramStatus {
    /// Its name.
    pub name: Box<str>,
    /// Where its last request went.
    pub backend: Option<BackendId>,
    /// Context after its last reported step.
    pub context: Tokens,
    /// Steps started.
    pub steps: u32,
    /// Requests held now.
    pub held: u32,
    /// Requests running now.
    pub running: u32,
    /// The policy's view.
    pub view: ProgramView,
}

/// One program.
#[derive(Debug)]
pub struct Program {
    name: Box<str>,
    name_hash: u64,
    backend: Option<BackendId>,
    context: Tokens,
    history: Option<PromptHistory>,
    last: Option<LastRun>,
    next_step: u32,
    held: u32,
    running: u32,
    /// When its last request ended; its key in the idle index while nothing is in flight.
    idle_since: Time,
    /// When it last finished a step: a tool gap begins there, whatever failed in between.
    finished_at: Option<Time>,
    /// Told to end while requests were in flight: it ends with the last of them.
    ending: bool,
}

/// The last request of a program that ran to its end.
#[derive(Clone, Copy, Debug)]
struct LastRun {
    arrival: Arrival,
    backend: BackendId,
    ended: Time,
    outcome: Outcome,
    usage: Option<Usage>,
    /// What the program does since; `None` until that is told.
    gap: Option<GapKind>,
}

/// A request that has ended, as its program sees it.
#[derive(Clone, Copy, Debug)]
pub struct StepEnd {
    /// Position of the step in its program.
    pub step_index: u32,
    /// Size of the request's body.
    pub body_bytes: u64,
    /// What the policy was told of it.
    pub arrival: Arrival,
    /// Where it ran, if it did.
    pub ran_on: Option<BackendId>,
}

/// What is left of a program after a request of it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Other requests of it are in flight.
    Busy,
    /// Nothing is in flight; it may come back.
    Idle,
    /// It is over, and the table has forgotten it.
    Over,
}

/// Every program the gate knows, by name and by id.
#[derive(Debug)]
pub struct Programs {
    limits: Limits,
    names: ProgramNames,
    table: Vec<Option<Program>>,
    /// Programs without a request in flight, longest idle first.
    idle: BTreeSet<(Time, ProgramId)>,
}

impl Programs {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            names: ProgramNames::default(),
            table: Vec::new(),
            idle: BTreeSet::new(),
        }
    }

    /// The id of a known program.
    pub fn find(&self, name: &str) -> Option<ProgramId> {
        self.names.get(name)
    }

    /// Programs known now.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the table has no room for another program.
    pub fn is_full(&self) -> bool {
        self.names.len() >= self.limits.max_programs
    }

    /// Whether no program is known.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Makes a program, which must not be known.
    pub fn insert(&mut self, now: Time, name: &str) -> ProgramId {
        let id = self.names.insert(name);
        if self.table.len() <= id.index() {
            self.table.resize_with(id.index() + 1, || None);
        }
        self.table[id.index()] = Some(Program {
            name: name.into(),
            name_hash: name_hash(name),
            backend: None,
            context: Tokens::ZERO,
            history: None,
            last: None,
            next_step: 0,
            held: 0,
            running: 0,
            idle_since: now,
            finished_at: None,
            ending: false,
        });
        id
    }

    /// Counts a request in, as held until it is admitted. Returns the step's index, and the tool gap before it
    /// unless it is the first step or runs beside another.
    pub fn begin_step(&mut self, now: Time, id: ProgramId) -> (u32, Option<Duration>) {
        let Some(program) = self.table[id.index()].as_mut() else {
            return (0, None);
        };
        let alone = program.held + program.running == 0;
        if alone {
            self.idle.remove(&(program.idle_since, id));
        }
        let finished_at = program.finished_at.filter(|_| alone);
        let gap = finished_at.map(|finished| now.since(finished));
        let index = program.next_step;
        program.next_step += 1;
        program.held += 1;
        (index, gap)
    }

    /// A request of the program was admitted.
    pub fn admit(&mut self, id: ProgramId, backend: BackendId) {
        if let Some(program) = self.table[id.index()].as_mut() {
            program.held -= 1;
            program.running += 1;
            program.backend = Some(backend);
        }
    }

    /// A request of the program has ended.
    pub fn end_step(
        &mut self,
        now: Time,
        id: ProgramId,
        step: StepEnd,
        ending: &Ending<'_>,
    ) -> Rest {
        let Some(program) = self.table[id.index()].as_mut() else {
            return Rest::Over;
        };
        if let Some(backend) = step.ran_on {
            program.running -= 1;
            program.last = Some(LastRun {
                arrival: step.arrival,
                backend,
                ended: now,
                outcome: ending.outcome,
                usage: ending.usage,
                gap: None,
            });
        } else {
            program.held -= 1;
        }
        program.idle_since = now;
        if ending.outcome.is_success() {
            program.finished_at = Some(now);
            program.ending |= step.arrival.last_step;
            if let Some(usage) = ending.usage {
                program.context = usage.context();
                program.history = Some(PromptHistory {
                    prompt: usage.prompt,
                    body_bytes: step.body_bytes,
                });
            }
        } else if program.next_step == step.step_index + 1 {
            // The client's retry is the same step.
            program.next_step = step.step_index;
        }
        if program.held + program.running > 0 {
            return Rest::Busy;
        }
        if program.ending {
            self.remove(id);
            return Rest::Over;
        }
        self.idle.insert((now, id));
        Rest::Idle
    }

    /// The program's gap has begun.
    pub fn rests(&mut self, id: ProgramId, kind: GapKind) {
        let program = self.table.get_mut(id.index()).and_then(Option::as_mut);
        if let Some(last) = program.and_then(|program| program.last.as_mut()) {
            last.gap = Some(kind);
        }
    }

    /// Steps of the program that were begun before those that are in flight.
    pub fn steps_before(&self, id: ProgramId) -> u32 {
        let program = self.table.get(id.index()).and_then(Option::as_ref);
        program.map_or(0, |p| p.next_step.saturating_sub(p.held + p.running))
    }

    /// Every program that ran and of which nothing runs, as another policy has to know it; `free` is the id of no
    /// request. O(programs).
    pub fn idle(&self, free: RequestId) -> impl Iterator<Item = Idle> {
        let known = self.table.iter().flatten();
        known
            .filter(|program| program.running == 0)
            .filter_map(move |program| {
                let last = program.last?;
                let begun = program.next_step.saturating_sub(program.held);
                Some(Idle {
                    adoption: Adoption {
                        arrival: Arrival {
                            request: free,
                            ..last.arrival
                        },
                        backend: last.backend,
                        steps: begun.saturating_sub(u32::from(last.outcome.is_success())),
                    },
                    since: last.ended,
                    outcome: last.outcome,
                    usage: last.usage,
                    gap: last.gap,
                })
            })
    }

    /// Ends a program: at once if nothing of it is in flight, else with its last request.
    pub fn end(&mut self, id: ProgramId) -> Rest {
        let Some(program) = self.table[id.index()].as_mut() else {
            return Rest::Over;
        };
        if program.held + program.running > 0 {
            program.ending = true;
            return Rest::Busy;
        }
        let key = (program.idle_since, id);
        self.idle.remove(&key);
        self.remove(id);
        Rest::Over
    }

    /// Forgets the program that has been idle the longest, if it has been so since `before`.
    pub fn expire(&mut self, before: Time) -> Option<ProgramId> {
        let &(since, id) = self.idle.first()?;
        if since > before {
            return None;
        }
        self.idle.pop_first();
        self.remove(id);
        Some(id)
    }

    /// Forgets the longest idle program whose time is up at `now`.
    pub fn expire_idle(&mut self, now: Time) -> Option<ProgramId> {
        let due = self.next_expiry().is_some_and(|at| at <= now);
        due.then(|| self.expire(now)).flatten()
    }

    /// When the longest idle program's time is up.
    pub fn next_expiry(&self) -> Option<Time> {
        self.idle
            .first()
            .map(|&(since, _)| since + self.limits.program_idle)
    }

    /// The hash of the program's name, by which policies break ties; 0 for an unknown one.
    pub fn name_hash(&self, id: ProgramId) -> u64 {
        let program = self.table.get(id.index()).and_then(Option::as_ref);
        program.map_or(0, |program| program.name_hash)
    }

    /// What the estimator knows of the program's last prompt.
    pub fn history(&self, id: ProgramId) -> Option<PromptHistory> {
        self.table.get(id.index())?.as_ref()?.history
    }

    /// Every program, in id order, with the policy's view of each. O(programs).
    pub fn list(&self, view: impl Fn(ProgramId) -> ProgramView) -> Vec<ProgramStatus> {
        let known = self
            .table
            .iter()
            .zip(0..)
            .filter_map(|(program, id)| Some((program.as_ref()?, ProgramId(id))));
        let status = |(program, id): (&Program, ProgramId)| ProgramStatus {
            name: program.name.clone(),
            backend: program.backend,
            context: program.context,
            steps: program.next_step,
            held: program.held,
            running: program.running,
            view: view(id),
        };
        known.map(status).collect()
    }

    fn remove(&mut self, id: ProgramId) {
        if let Some(program) = self.table[id.index()].take() {
            self.names.remove(&program.name);
        }
    }
}
