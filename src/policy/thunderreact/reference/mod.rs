//! The reference router, decision for decision (`mode = "compat"`): what a comparison with it is made against.
//!
//! Each backend keeps its own table of programs, and a program that moves because its backend failed leaves its
//! old entry behind; one flag says whether a program is in flight; resuming spends its budget on every paused
//! program, waiting or not. Only laws P1 and P4 make a difference: requests without a program are never held,
//! nothing is sent to a backend that is down, and a request whose client left is gone. The queue has a bound.

mod pressure;
mod table;

use std::time::Duration;

use super::{Config, NAME};
use crate::policy::slots::Slots;
use crate::policy::waiting::Waiting;
use crate::policy::{
    Adoption, Arrival, BackendId, BackendSample, Decisions, Event, HoldReason, Policy,
    PolicySnapshot, ProgramId, ProgramView, Ratio, RejectReason, RequestId, Time, Tokens, Usage,
    Wakeup,
};

/// What the router knows of a program on one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramState {
    /// Prompt and output of the last answer; 0 before the first.
    pub context: Tokens,
    /// Requests admitted.
    pub steps: u32,
    /// A request was admitted and none has been answered since.
    pub in_flight: bool,
    /// Its next request is held.
    pub paused: bool,
    /// It is paused when its answer comes; stays set until it is resumed.
    pub pause_requested: bool,
    /// Where its next step is to go instead.
    pub transfer: Option<BackendId>,
}

impl ProgramState {
    /// Whether it may be paused or moved.
    const fn is_free(&self) -> bool {
        !self.paused && !self.pause_requested && self.transfer.is_none()
    }
}

/// When each kind of act last happened on one backend; `None` for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastActs {
    /// Programs were paused, or there was nothing to pause.
    pub pause: Option<Time>,
    /// Programs were resumed, or there was nothing to resume.
    pub resume: Option<Time>,
    /// Programs were marked to move elsewhere.
    pub transfer: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: ProgramState,
    /// Position among all entries by creation: ties fall in this order.
    seq: u64,
}

const _: () = assert!(
    size_of::<Option<Entry>>() <= 64,
    "see the fixed mode's table"
);

/// One backend: its last readings, which survive a failed scrape, and its programs.
#[derive(Debug, Default)]
struct Server {
    up: bool,
    usage: f64,
    running: f64,
    waiting: f64,
    programs: Slots<Entry>,
    paused: u32,
    last: LastActs,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    backend: BackendId,
    program: Option<ProgramId>,
    last_step: bool,
    /// The router takes the start of an answer for its end.
    answered: bool,
}

/// The held requests of one entry share a key, and go in order of arrival.
type Key = (BackendId, u64);

/// The reference router.
#[derive(Debug)]
pub struct Reference {
    config: Config,
    servers: Vec<Server>,
    affinity: Slots<BackendId>,
    flights: Slots<Flight>,
    waiting: Waiting<Key>,
    next_seq: u64,
    /// Where the next search for a transfer target starts.
    turn: usize,
    next_look: Option<Time>,
    resident: Tokens,
}

impl Reference {
    /// A router that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        Self {
            servers: Vec::new(),
            affinity: Slots::new(),
            flights: Slots::new(),
            waiting: Waiting::new(config.max_held, Duration::MAX),
            next_seq: 0,
            turn: 0,
            next_look: None,
            resident: Tokens::ZERO,
            config,
        }
    }

    /// Sets what is known of `program` on `backend`, which need not be known; `backend` becomes its home.
    pub fn set_program(&mut self, backend: BackendId, program: ProgramId, state: ProgramState) {
        self.server(backend);
        self.affinity.insert(program.index(), backend);
        self.insert(backend, program, state);
    }

    /// What is known of `program` on `backend`.
    pub fn program_on(&self, backend: BackendId, program: ProgramId) -> Option<ProgramState> {
        Some(self.entry(backend, program)?.state)
    }

    /// When each kind of act last happened on `backend`, to be read or set.
    pub fn last_acts(&mut self, backend: BackendId) -> &mut LastActs {
        &mut self.server(backend).last
    }

    /// Sets where the next search for a transfer target starts, counted in searches made.
    pub const fn set_turn(&mut self, turn: usize) {
        self.turn = turn;
    }

    fn arrive(&mut self, since: Time, arrival: Arrival, out: &mut Decisions) {
        let Some(placed) = self.place(arrival.name_hash) else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            return self.start(placed, None, arrival, out);
        };
        let home = self.affinity.get(id.index()).copied();
        let home = home.filter(|home| self.is_up(*home)).unwrap_or(placed);
        let backend = self.transferred(id, home, arrival.last_step);
        self.affinity.insert(id.index(), backend);
        if self.entry(backend, id).is_none() {
            self.insert(backend, id, ProgramState::default());
        }
        let paused = self.entry(backend, id).is_some_and(|e| e.state.paused);
        if paused && !arrival.last_step {
            return self.hold(since, backend, id, arrival, out);
        }
        self.start(backend, Some(id), arrival, out);
        if paused {
            self.resume(backend, id, out);
        }
    }

    /// A request runs that was admitted elsewhere; its program lives where it runs.
    fn adopt(&mut self, adoption: &Adoption) {
        let Adoption {
            arrival,
            backend,
            steps,
        } = *adoption;
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        if let Some(id) = tracked {
            let state = ProgramState {
                context: if steps > 0 {
                    arrival.prompt
                } else {
                    Tokens::ZERO
                },
                steps,
                ..self.program_on(backend, id).unwrap_or_default()
            };
            self.set_program(backend, id, state);
        }
        self.start(backend, tracked, arrival, &mut Decisions::new());
    }

    /// The backend for a program without one, if any is up: those without paused programs first, then the least
    /// load, and among equals the one that the program's name picks.
    fn place(&self, name_hash: u64) -> Option<BackendId> {
        let score = |s: &Server| (s.paused > 0, s.running + s.waiting * 4.0);
        let calm = self.up().any(|(_, server)| server.paused == 0);
        let candidates = || self.up().filter(|(_, s)| !calm || s.paused == 0);
        let least = candidates().map(|(_, s)| score(s).1).reduce(f64::min)?;
        let best = || candidates().filter(|(_, s)| score(s).1 <= least);
        let ties = u64::try_from(best().count()).ok()?;
        let pick = usize::try_from(name_hash.checked_rem(ties)?).ok()?;
        best().nth(pick).map(|(id, _)| id)
    }

    /// Carries out the move that was scheduled for the program, if it still can be; returns where it is then.
    fn transferred(&mut self, id: ProgramId, home: BackendId, last_step: bool) -> BackendId {
        let Some(&Entry { state, .. }) = self.entry(home, id) else {
            return home;
        };
        let Some(target) = state.transfer else {
            return home;
        };
        if last_step || target == home || !self.is_up(target) {
            self.update(home, id, |p| p.transfer = None);
            return home;
        }
        if state.in_flight || state.paused {
            return home;
        }
        if let Some(mut state) = self.remove(home, id) {
            state.transfer = None;
            self.insert(target, id, state);
        }
        target
    }

    fn hold(
        &mut self,
        since: Time,
        backend: BackendId,
        id: ProgramId,
        arrival: Arrival,
        out: &mut Decisions,
    ) {
        if self.waiting.is_full() {
            return out.reject(arrival.request, RejectReason::QueueFull);
        }
        let seq = self.entry(backend, id).map_or(0, |entry| entry.seq);
        self.waiting.push(since, (backend, seq), arrival);
        out.hold(arrival.request, HoldReason::Paused);
    }

    fn start(
        &mut self,
        backend: BackendId,
        program: Option<ProgramId>,
        arrival: Arrival,
        out: &mut Decisions,
    ) {
        if let Some(id) = program {
            self.update(backend, id, |p| {
                p.in_flight = true;
                p.steps += 1;
            });
        }
        let flight = Flight {
            backend,
            program,
            last_step: arrival.last_step,
            answered: false,
        };
        self.flights.insert(arrival.request.index(), flight);
        out.admit(arrival.request, backend);
    }

    /// Ends the program's pause and admits what it has waiting.
    fn resume(&mut self, backend: BackendId, id: ProgramId, out: &mut Decisions) {
        let Some(seq) = self.entry(backend, id).map(|entry| entry.seq) else {
            return;
        };
        self.update(backend, id, |p| {
            p.paused = false;
            p.pause_requested = false;
        });
        let key = (backend, seq);
        while let Some(held) = self.waiting.first_from(key).filter(|h| h.key == key) {
            let arrival = held.arrival;
            self.waiting.remove(arrival.request);
            self.start(backend, Some(id), arrival, out);
        }
    }

    /// The answer begins, or the request failed: the router takes it to be over.
    fn answer(&mut self, request: RequestId) {
        let Some(flight) = self.flights.get_mut(request.index()) else {
            return;
        };
        let first = !std::mem::replace(&mut flight.answered, true);
        let Flight {
            backend,
            program,
            last_step,
            ..
        } = *flight;
        let Some(id) = program.filter(|_| first) else {
            return;
        };
        if last_step {
            self.remove(backend, id);
            self.affinity.remove(id.index());
        } else {
            self.update(backend, id, |p| {
                p.in_flight = false;
                p.paused |= p.pause_requested;
            });
        }
    }

    fn finish(&mut self, request: RequestId, usage: Option<Usage>) {
        if self.waiting.remove(request).is_some() {
            return;
        }
        self.answer(request);
        let Some(flight) = self.flights.remove(request.index()) else {
            return;
        };
        if let (Some(id), Some(usage)) = (flight.program, usage) {
            self.update(flight.backend, id, |p| p.context = usage.context());
        }
    }

    /// Deletes the program wherever it is. Requests that wait for it wait on.
    fn release(&mut self, id: ProgramId) {
        for backend in self.ids() {
            self.remove(backend, id);
        }
        self.affinity.remove(id.index());
    }

    fn sample(&mut self, sample: BackendSample) {
        let server = self.server(sample.backend);
        server.usage = sample.kv_usage.map_or(server.usage, Ratio::get);
        server.running = sample.running.into();
        server.waiting = sample.waiting.into();
    }
}

impl Policy for Reference {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        match *event {
            Event::Arrive(arrival) => self.arrive(now, arrival, out),
            Event::Rearrive { arrival, since } => self.arrive(since, arrival, out),
            Event::Adopt(adoption) => self.adopt(&adoption),
            Event::FirstToken { request } => self.answer(request),
            Event::Finish { request, usage, .. } => self.finish(request, usage),
            Event::Release { program } => self.release(program),
            Event::Sample(sample) => self.sample(sample),
            Event::BackendUp { backend, .. } => self.server(backend).up = true,
            Event::BackendDown { backend } => self.server(backend).up = false,
            Event::Tick => self.look(now, out),
            Event::ToolGap { .. } => {}
        }
        self.next_look = Some(self.next_look.unwrap_or_else(|| now + self.interval()));
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let why = "look at the pressure";
        self.next_look.map(|at| Wakeup { at, why })
    }

    fn snapshot(&self) -> PolicySnapshot {
        let programs: usize = self.servers.iter().map(|s| s.programs.len()).sum();
        PolicySnapshot {
            policy: NAME,
            held: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            programs: u32::try_from(programs).unwrap_or(u32::MAX),
            paused: self.servers.iter().map(|s| s.paused).sum(),
            resident: self.resident,
            values: vec![("max_held", self.config.max_held.into())],
            ..PolicySnapshot::default()
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let home = self.affinity.get(program.index());
        let state = home.and_then(|home| self.program_on(*home, program));
        state.map_or_else(ProgramView::default, |state| ProgramView {
            paused: state.paused,
            pause_requested: state.pause_requested,
        })
    }
}
