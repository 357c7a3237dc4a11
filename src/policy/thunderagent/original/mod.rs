//! The original scheduler, decision for decision (`mode = "compat"`): what a comparison with it is made against.
//!
//! Every `sweep_s`: resume what fits, by class and size against the pooled room, largest to the emptiest backend;
//! then, on each backend above its capacity, pause idle programs smallest first, and when none is left mark every
//! running one. Only the laws make a difference: nothing is sent to a backend that is down, the queue is bounded,
//! a request whose client left is gone. Lengths in tokens are the gate's estimates.

mod sweep;
mod table;

use std::time::Duration;

use super::{Config, NAME};
use crate::policy::slots::Slots;
use crate::policy::waiting::Waiting;
use crate::policy::{
    Adoption, Arrival, BackendId, Decisions, Event, HoldReason, Policy, PolicySnapshot, ProgramId,
    ProgramView, RejectReason, RequestId, Time, Tokens, Wakeup, settings,
};
use table::signed;

/// What the scheduler knows of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramState {
    /// Where it runs; `None` while it is paused or was never placed.
    pub home: Option<BackendId>,
    /// Where it ran before its pause.
    pub origin: Option<BackendId>,
    /// Its context, estimated while a request runs.
    pub tokens: Tokens,
    /// Its context when it was paused, by which the queue is ordered.
    pub queued: Tokens,
    /// Since when it is idle ("acting"); `None` while a request runs or waits ("reasoning").
    pub acting_since: Option<Time>,
    /// Requests that have arrived.
    pub steps: u32,
    /// It waits in the queue to be resumed, with or without a request.
    pub paused: bool,
    /// It is paused when its response ends.
    pub marked: bool,
    /// It counts on its home.
    pub registered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: ProgramState,
    /// Position by creation: ties fall in this order.
    seq: u64,
    /// Position in the queue, while paused.
    queue_seq: u64,
}

const _: () = assert!(
    size_of::<Option<Entry>>() <= 64,
    "100,000 programs must stay within a few MB"
);

/// One backend, and the sums over the programs that are registered there.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    up: bool,
    healthy: bool,
    /// As first reported, for good; `None` counts as endless.
    capacity: Option<Tokens>,
    /// Whether the first report has come.
    reported: bool,
    reasoning: Tokens,
    acting: Tokens,
    programs: u32,
    /// What its marked programs had when they were marked, less what they had when they were paused.
    future: Tokens,
}

/// Something the scheduler did, in its own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A program was paused, which left this room on its backend (`None`: endless).
    Pause(ProgramId, BackendId, Option<i64>),
    /// A running program will be paused; the room is as it was.
    Mark(ProgramId, BackendId, Option<i64>),
    /// A program was resumed, which left this room on its backend.
    Resume(ProgramId, BackendId, Option<i64>),
    /// A request has to wait.
    Wait(ProgramId),
    /// A request goes to a backend; `false`: its program has none, so it goes to the first.
    Forward(ProgramId, BackendId, bool),
}

/// The held requests of a program: those that found it new, then those that found it paused.
type Key = (ProgramId, bool);

/// The original scheduler.
#[derive(Debug)]
pub struct Original {
    config: Config,
    servers: Vec<Server>,
    programs: Slots<Entry>,
    paused: u32,
    waiting: Waiting<Key>,
    /// Programs whose waiting requests go on when the current event is done.
    woken: Vec<ProgramId>,
    flights: Slots<ProgramId>,
    next_seq: u64,
    next_sweep: Option<Time>,
    timed_out: u64,
    acts: Option<Vec<Act>>,
}

impl Original {
    /// A scheduler that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s());
        Self {
            servers: Vec::new(),
            programs: Slots::new(),
            paused: 0,
            waiting: Waiting::new(config.max_held, hold),
            woken: Vec::new(),
            flights: Slots::new(),
            next_seq: 0,
            next_sweep: None,
            timed_out: 0,
            acts: None,
            config,
        }
    }

    fn arrive(&mut self, since: Time, arrival: Arrival, out: &mut Decisions) {
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            let first = self
                .healthy()
                .min_by_key(|id| self.servers[id.index()].programs);
            return match first {
                Some(backend) => out.admit(arrival.request, backend),
                None => out.reject(arrival.request, RejectReason::NoBackend),
            };
        };
        self.update(id, |entry| {
            entry.state.steps += 1;
            entry.state.tokens = arrival.prompt;
        });
        let Some(&program) = self.state(id) else {
            return;
        };
        if !self.config.scheduling {
            self.spread(id, &program);
            return self.forward(arrival.request, id, true, out);
        }
        if program.paused {
            return self.hold(since, id, true, arrival, out);
        }
        if program.steps == 1 && program.home.is_none() {
            return match self.place(program.tokens) {
                Some(backend) => {
                    self.settle(id, backend);
                    self.forward(arrival.request, id, true, out);
                }
                None => self.hold(since, id, false, arrival, out),
            };
        }
        self.go_on(arrival.request, id, out);
    }

    /// A request runs that was admitted elsewhere: its program is placed there.
    fn adopt(&mut self, adoption: &Adoption) {
        let arrival = adoption.arrival;
        let Some(id) = arrival.program.filter(|id| id.0 < self.config.max_programs) else {
            return;
        };
        self.update(id, |entry| {
            entry.state.steps = entry.state.steps.max(adoption.steps) + 1;
            entry.state.tokens = arrival.prompt;
        });
        self.settle(id, adoption.backend);
        self.flights.insert(arrival.request.index(), id);
    }

    /// Without scheduling: the backend with the fewest programs, for good.
    fn spread(&mut self, id: ProgramId, program: &ProgramState) {
        let mut counts = vec![0_u32; self.servers.len()];
        for home in self.entries().filter_map(|(_, entry)| entry.state.home) {
            counts[home.index()] += 1;
        }
        let fewest = self.healthy().min_by_key(|id| counts[id.index()]);
        let home = program.home.or(fewest).unwrap_or(BackendId(0));
        self.update(id, |entry| {
            entry.state.home = Some(home);
            entry.state.registered |= entry.state.steps == 1;
            entry.state.acting_since = None;
        });
    }

    /// Where a new program starts at once: nothing may be queued, and it has to fit.
    fn place(&self, tokens: Tokens) -> Option<BackendId> {
        if self.paused > 0 {
            return None;
        }
        let need = self.need(tokens);
        let fits = |id: &BackendId| self.room(*id).is_none_or(|room| room >= need);
        self.healthy().filter(fits).min_by_key(|id| {
            let server = self.servers[id.index()];
            let weighted = server.acting.as_f64() * self.config.acting_token_weight;
            Tokens::from_f64(server.reasoning.as_f64() + weighted)
        })
    }

    fn need(&self, tokens: Tokens) -> i64 {
        signed(tokens + Tokens(self.config.buffer_tokens))
    }

    fn settle(&mut self, id: ProgramId, home: BackendId) {
        self.update(id, |entry| {
            entry.state.home = Some(home);
            entry.state.registered = true;
            entry.state.acting_since = None;
        });
    }

    /// Keeps a request until its program is resumed; a program that is not paused becomes so.
    fn hold(
        &mut self,
        since: Time,
        id: ProgramId,
        was_paused: bool,
        arrival: Arrival,
        out: &mut Decisions,
    ) {
        if self.waiting.is_full() {
            return out.reject(arrival.request, RejectReason::QueueFull);
        }
        self.update(id, |entry| {
            entry.state.acting_since = None;
            if !entry.state.paused {
                entry.state.paused = true;
                entry.state.queued = entry.state.tokens;
            }
        });
        self.waiting.push(since, (id, was_paused), arrival);
        self.note(|_| Act::Wait(id));
        let reason = if was_paused {
            HoldReason::Paused
        } else {
            HoldReason::NoRoom
        };
        out.hold(arrival.request, reason);
    }

    /// A request of a program that has been placed before: it goes where the program is.
    fn go_on(&mut self, request: RequestId, id: ProgramId, out: &mut Decisions) {
        let known = self.state(id).is_some_and(|program| program.home.is_some());
        if known {
            self.update(id, |entry| entry.state.acting_since = None);
        }
        self.forward(request, id, known, out);
    }

    fn forward(&mut self, request: RequestId, id: ProgramId, known: bool, out: &mut Decisions) {
        let home = self.state(id).and_then(|program| program.home);
        let backend = home.unwrap_or(BackendId(0));
        if !self.servers.get(backend.index()).is_some_and(|s| s.up) {
            // The original sends it there, which fails, for ever.
            return out.reject(request, RejectReason::NoBackend);
        }
        self.note(|_| Act::Forward(id, backend, known));
        self.flights.insert(request.index(), id);
        out.admit(request, backend);
    }

    /// The requests of woken programs go on. A program may have been paused again, or be gone.
    fn wake(&mut self, out: &mut Decisions) {
        for id in std::mem::take(&mut self.woken) {
            while let Some(held) = self
                .waiting
                .first_from((id, false))
                .filter(|h| h.key.0 == id)
            {
                let (request, (_, was_paused)) = (held.arrival.request, held.key);
                self.waiting.remove(request);
                if was_paused {
                    self.go_on(request, id, out);
                } else {
                    self.forward(request, id, true, out);
                }
            }
        }
    }

    /// A response with a usage report ended: the only way in which a program becomes idle.
    pub fn answered(&mut self, now: Time, id: ProgramId, total: Tokens) {
        if self.state(id).is_none() {
            return;
        }
        self.update(id, |entry| {
            entry.state.acting_since = Some(now);
            entry.state.tokens = total;
        });
        let marked = self.state(id).filter(|p| p.marked).and_then(|p| p.home);
        if let Some(home) = marked {
            self.update(id, |entry| entry.state.marked = false);
            self.server(home).future -= total;
            self.pause(id, home);
        }
    }

    /// Counts tokens of a response that is under way.
    pub fn grew(&mut self, id: ProgramId, tokens: Tokens) {
        if self.state(id).is_some() {
            self.update(id, |entry| entry.state.tokens += tokens);
        }
    }

    /// Deletes a program; requests that wait for it go on, on nobody's books. False if it was not known.
    pub fn release(&mut self, id: ProgramId) -> bool {
        let Some(&program) = self.state(id) else {
            return false;
        };
        if let Some(home) = program.home.filter(|_| program.marked) {
            self.server(home).future -= program.tokens;
        }
        if program.paused {
            self.woken.push(id);
        }
        self.forget(id);
        true
    }
}

impl Policy for Original {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        match *event {
            Event::Arrive(arrival) => self.arrive(now, arrival, out),
            Event::Rearrive { arrival, since } => self.arrive(since, arrival, out),
            Event::Adopt(adoption) => self.adopt(&adoption),
            Event::Finish { request, usage, .. } => {
                self.waiting.remove(request);
                let program = self.flights.remove(request.index());
                if let (Some(id), Some(usage)) = (program, usage) {
                    self.answered(now, id, usage.context());
                }
            }
            Event::Release { program } => {
                self.release(program);
            }
            Event::BackendUp {
                backend,
                kv_capacity,
            } => {
                let server = self.server(backend);
                (server.up, server.healthy) = (true, true);
                if !std::mem::replace(&mut server.reported, true) {
                    server.capacity = kv_capacity;
                }
            }
            Event::BackendDown { backend } => {
                let server = self.server(backend);
                (server.up, server.healthy) = (false, false);
            }
            Event::Tick => {
                self.time_out(now, out);
                if self.next_sweep.is_none_or(|due| due <= now) {
                    self.sweep(now, out);
                    self.next_sweep = Some(now + self.interval());
                }
            }
            Event::FirstToken { .. } | Event::ToolGap { .. } | Event::Sample(_) => {}
        }
        self.wake(out);
        self.next_sweep = Some(self.next_sweep.unwrap_or_else(|| now + self.interval()));
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = |at, why| Wakeup { at, why };
        Wakeup::earliest(
            self.next_sweep.map(|time| at(time, "sweep")),
            self.waiting.deadline().map(|time| at(time, "hold timeout")),
        )
    }

    fn snapshot(&self) -> PolicySnapshot {
        let sums = self.servers.iter().map(|s| s.reasoning + s.acting);
        PolicySnapshot {
            policy: NAME,
            held: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            programs: u32::try_from(self.programs.len()).unwrap_or(u32::MAX),
            paused: self.paused,
            resident: sums.sum(),
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s()),
                ("timed_out", Tokens(self.timed_out).as_f64()),
            ],
            ..PolicySnapshot::default()
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let state = self.state(program);
        state.map_or_else(ProgramView::default, |state| ProgramView {
            paused: state.paused,
            pause_requested: state.marked,
        })
    }
}

impl Original {
    fn interval(&self) -> Duration {
        settings::duration(self.config.sweep_s()).max(Duration::from_millis(1))
    }
}
