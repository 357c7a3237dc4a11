//! ThunderAgent's books: which program occupies what, where, and who is paused when that is too much.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::Config;
use crate::policy::ledger::{Footprint, Ledger};
use crate::policy::roster::{Flight, Roster};
use crate::policy::slots::Slots;
use crate::policy::{
    Arrival, BackendId, Outcome, ProgramId, Ratio, RequestId, SharedPrefix, Time, Tokens, Usage,
};

/// What is known of one program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Where its context is, or was before its pause; `None` before its first placement and after a loss.
    pub(super) home: Option<BackendId>,
    /// Its context: as reported, or while a request runs as estimated, whichever is more.
    pub(super) tokens: Tokens,
    /// The part of it that other programs share.
    shared: Option<SharedPrefix>,
    /// Since when it is idle, if it is.
    idle_since: Time,
    /// Steps answered.
    pub(super) steps: u32,
    in_flight: u32,
    /// It counts on its home, and its next request goes there at once.
    pub(super) active: bool,
    /// It is paused when its last request in flight ends.
    pub(super) marked: bool,
}

const _: () = assert!(
    size_of::<Option<Program>>() <= 64,
    "100,000 programs must stay within a few MB"
);

/// One backend's running programs and fading contexts.
#[derive(Debug, Default)]
struct Server {
    /// Programs that count here.
    active: u32,
    /// Running programs that are not marked, smallest context first. Entries of programs that have changed since
    /// stay until they come first, or until they outnumber the others.
    running: BinaryHeap<Reverse<(Tokens, ProgramId)>>,
    /// Running programs that are, and the sum of their contexts.
    marked: BTreeSet<(Tokens, ProgramId)>,
    leaving: Tokens,
    /// What is left of the idle contexts, as of `faded_at`.
    fading: f64,
    faded_at: Time,
}

/// The books of all backends.
#[derive(Debug)]
pub(super) struct Books {
    config: Config,
    pub(super) roster: Roster,
    pub(super) ledger: Ledger,
    table: Slots<Program>,
    servers: Vec<Server>,
}

impl Books {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            roster: Roster::new(),
            ledger: Ledger::new(),
            table: Slots::new(),
            servers: Vec::new(),
        }
    }

    pub(super) fn program(&self, id: ProgramId) -> Option<&Program> {
        self.table.get(id.index())
    }

    pub(super) fn programs(&self) -> u32 {
        u32::try_from(self.table.len()).unwrap_or(u32::MAX)
    }

    /// Programs that count nowhere.
    pub(super) fn inactive(&self) -> u32 {
        self.programs() - self.servers.iter().map(|s| s.active).sum::<u32>()
    }

    pub(super) fn marked(&self) -> u32 {
        let marked: usize = self.servers.iter().map(|s| s.marked.len()).sum();
        u32::try_from(marked).unwrap_or(u32::MAX)
    }

    /// The program, new or known.
    pub(super) fn meet(&mut self, id: ProgramId) -> Program {
        if let Some(program) = self.program(id) {
            return *program;
        }
        let program = Program {
            home: None,
            tokens: Tokens::ZERO,
            shared: None,
            idle_since: Time::ZERO,
            steps: 0,
            in_flight: 0,
            active: false,
            marked: false,
        };
        self.table.insert(id.index(), program);
        program
    }

    /// Whether starting on `backend` takes the program away from its home.
    pub(super) fn is_move(&self, arrival: &Arrival, backend: BackendId) -> bool {
        let home = arrival.program.and_then(|id| self.program(id)?.home);
        home.is_some_and(|home| home != backend)
    }

    /// Whether the request's context fits on `backend` beside what counts there. A backend with nothing in flight
    /// takes any.
    pub(super) fn fits(&self, now: Time, backend: BackendId, arrival: &Arrival) -> bool {
        if self.roster.get_up(backend).is_none() {
            return false;
        }
        let Some(room) = self.fading_room(now, backend) else {
            return true;
        };
        let total = self.ledger.sums(backend).total();
        let after = self
            .ledger
            .total_if_started(backend, None, footprint(arrival));
        let need = (after - total) + Tokens(self.config.buffer_tokens);
        need.as_f64() <= room || self.roster.in_flight(backend) == 0
    }

    /// The backend with the most room, the lowest id among equals; a backend of unknown capacity counts by its
    /// requests in flight alone, after those that are known.
    pub(super) fn roomiest(&self, now: Time, arrival: &Arrival) -> Option<BackendId> {
        let key = |id: BackendId| {
            let room = self.fading_room(now, id);
            let load = -f64::from(self.roster.in_flight(id));
            (self.fits(now, id, arrival), room.unwrap_or(load))
        };
        let more = |best: (BackendId, (bool, f64)), id: BackendId| {
            let other = key(id);
            if other > best.1 { (id, other) } else { best }
        };
        let mut up = self.roster.up().map(|(id, _)| id);
        let first = up.next()?;
        Some(up.fold((first, key(first)), more).0)
    }

    /// Tokens free on `backend`; negative when too much counts there. `None`: the capacity is unknown, which 0 is
    /// taken for too.
    fn room(&self, backend: BackendId) -> Option<f64> {
        let idle = self.ledger.sums(backend).idle;
        self.room_beside(backend, idle.as_f64())
    }

    /// The same, with idle contexts faded.
    fn fading_room(&self, now: Time, backend: BackendId) -> Option<f64> {
        if !self.config.decays() {
            return self.room(backend);
        }
        let server = self.servers.get(backend.index());
        let fading = server.map_or(0.0, |s| s.fading * self.left(now, s.faded_at));
        self.room_beside(backend, fading)
    }

    fn room_beside(&self, backend: BackendId, idle: f64) -> Option<f64> {
        let capacity = self.roster.get_up(backend)?.kv_capacity?;
        if capacity == Tokens::ZERO {
            return None;
        }
        let sums = self.ledger.sums(backend);
        let active = self.servers.get(backend.index()).map_or(0, |s| s.active);
        let buffers = Tokens(u64::from(active) * self.config.buffer_tokens);
        let counted = (sums.running + sums.shared + buffers).as_f64();
        Some(capacity.as_f64() - counted - idle * self.config.acting_token_weight)
    }

    /// The part of an idle context that is left at `now`, 0–1.
    fn left(&self, now: Time, since: Time) -> f64 {
        (-now.since(since).as_secs_f64() / self.config.half_life_s()).exp2()
    }

    fn server(&mut self, backend: BackendId) -> &mut Server {
        if self.servers.len() <= backend.index() {
            let servers = backend.index() + 1;
            self.servers.resize_with(servers, Server::default);
        }
        &mut self.servers[backend.index()]
    }

    /// Adds `tokens` to what fades on `backend`, or takes them off.
    fn fade(&mut self, now: Time, backend: BackendId, tokens: f64) {
        let server = self.server(backend);
        let (fading, faded_at) = (server.fading, server.faded_at);
        let fading = fading * self.left(now, faded_at) + tokens;
        let none = self.ledger.sums(backend).idle == Tokens::ZERO;
        let server = self.server(backend);
        // Rounding must not outlive the last idle program.
        server.fading = if none { 0.0 } else { fading.max(0.0) };
        server.faded_at = now;
    }

    /// Counts a request that starts on `backend`, and its program with it.
    pub(super) fn start(&mut self, now: Time, arrival: &Arrival, backend: BackendId) {
        let flight = Flight {
            backend,
            program: arrival.program,
        };
        self.roster.start(arrival.request, flight);
        if let Some(id) = arrival.program {
            self.run(now, id, arrival, backend);
        }
        self.ledger
            .start(arrival.request, backend, footprint(arrival));
    }

    fn run(&mut self, now: Time, id: ProgramId, arrival: &Arrival, backend: BackendId) {
        let mut program = self.meet(id);
        if program.active && program.home == Some(backend) {
            self.unpark(now, id);
        } else {
            self.deactivate(now, id);
            self.server(backend).active += 1;
            program.in_flight = 0;
        }
        self.set_running(id, false);
        program.home = Some(backend);
        program.active = true;
        program.marked = false;
        program.tokens = program.tokens.max(arrival.prompt);
        program.shared = arrival.shared;
        program.in_flight += 1;
        self.table.insert(id.index(), program);
        self.set_running(id, true);
    }

    /// Notes a running program among those of its home, or takes it out.
    fn set_running(&mut self, id: ProgramId, is_running: bool) {
        let Some(&program) = self.program(id) else {
            return;
        };
        let Some(home) = program
            .home
            .filter(|_| program.active && program.in_flight > 0)
        else {
            return;
        };
        let key = (program.tokens, id);
        if program.marked {
            let server = self.server(home);
            if is_running && server.marked.insert(key) {
                server.leaving += program.tokens;
            } else if !is_running && server.marked.remove(&key) {
                server.leaving -= program.tokens;
            }
        } else if is_running {
            self.server(home).running.push(Reverse(key));
            self.tidy(home);
        }
    }

    /// Keeps the running programs' heap no longer than twice their number.
    fn tidy(&mut self, backend: BackendId) {
        let server = self.server(backend);
        if server.running.len() > 2 * server.active as usize + 64 {
            let mut running = std::mem::take(&mut server.running).into_vec();
            running.retain(|Reverse(key)| self.is_running(backend, *key));
            running.sort_unstable();
            running.dedup();
            self.server(backend).running = running.into();
        }
    }

    fn is_running(&self, backend: BackendId, (tokens, id): (Tokens, ProgramId)) -> bool {
        self.program(id).is_some_and(|p| {
            let runs = p.active && p.in_flight > 0 && p.home == Some(backend);
            runs && !p.marked && p.tokens == tokens
        })
    }

    /// Takes out the smallest running program that is not marked.
    fn pop_running(&mut self, backend: BackendId) -> Option<ProgramId> {
        loop {
            let Reverse(key) = self.server(backend).running.pop()?;
            if self.is_running(backend, key) {
                return Some(key.1);
            }
        }
    }

    /// Changes a program and moves it to the set that it belongs to then.
    fn update(&mut self, id: ProgramId, change: impl FnOnce(&mut Program)) {
        self.set_running(id, false);
        if let Some(program) = self.table.get_mut(id.index()) {
            change(program);
        }
        self.set_running(id, true);
    }

    /// Takes a request off that has ended. Whatever the outcome, its program is idle when it was the last one in
    /// flight there. Returns the backend; `None` if the request was not running.
    pub(super) fn finish(
        &mut self,
        now: Time,
        request: RequestId,
        outcome: Outcome,
        usage: Option<Usage>,
    ) -> Option<BackendId> {
        let flight = self.roster.finish(request)?;
        self.ledger.finish(request);
        let here = |p: &Program| p.active && p.home == Some(flight.backend) && p.in_flight > 0;
        let Some(id) = flight.program else {
            return Some(flight.backend);
        };
        if !self.program(id).is_some_and(here) {
            return Some(flight.backend);
        }
        self.update(id, |p| {
            p.in_flight -= 1;
            p.steps += u32::from(outcome.is_success());
            p.tokens = usage.map_or(p.tokens, Usage::context);
        });
        let program = self.meet(id);
        if program.in_flight > 0 {
            return Some(flight.backend);
        }
        if program.marked || program.steps == 0 {
            self.deactivate(now, id);
        } else {
            self.park(now, id, flight.backend);
        }
        Some(flight.backend)
    }

    fn park(&mut self, now: Time, id: ProgramId, home: BackendId) {
        let Some(program) = self.table.get_mut(id.index()) else {
            return;
        };
        program.idle_since = now;
        let footprint = Footprint {
            tokens: program.tokens,
            shared: program.shared,
        };
        self.ledger.park(id, home, footprint, footprint.tokens.0);
        let private = self
            .ledger
            .parked(id)
            .map_or(Tokens::ZERO, |parked| parked.1);
        self.fade(now, home, private.as_f64());
    }

    fn unpark(&mut self, now: Time, id: ProgramId) {
        let since = self.program(id).map_or(now, |program| program.idle_since);
        if let Some((home, private)) = self.ledger.parked(id) {
            self.ledger.unpark(id);
            let left = private.as_f64() * self.left(now, since);
            self.fade(now, home, -left);
        }
    }

    /// Stops counting a program: it is paused.
    fn deactivate(&mut self, now: Time, id: ProgramId) {
        self.unpark(now, id);
        self.set_running(id, false);
        let Some(program) = self.table.get_mut(id.index()) else {
            return;
        };
        let counted = program.home.filter(|_| program.active);
        program.active = false;
        program.marked = false;
        if let Some(home) = counted {
            self.server(home).active -= 1;
        }
    }

    /// Forgets a program; returns the backend that it leaves.
    pub(super) fn release(&mut self, now: Time, id: ProgramId) -> Option<BackendId> {
        self.deactivate(now, id);
        self.table.remove(id.index())?.home
    }

    /// Forgets every context on a backend that is down. O(programs).
    pub(super) fn lose(&mut self, now: Time, backend: BackendId) {
        let lost: Vec<_> = self
            .table
            .iter()
            .filter(|(_, program)| program.home == Some(backend))
            .filter_map(|(index, _)| u32::try_from(index).ok())
            .collect();
        for id in lost.into_iter().map(ProgramId) {
            self.deactivate(now, id);
            if let Some(program) = self.table.get_mut(id.index()) {
                program.home = None;
                program.in_flight = 0;
            }
        }
    }

    /// While more counts on `backend` than it holds: pauses idle programs, then marks running ones, smallest first.
    /// A mark counts as room at once, and is taken back when it is not needed any more.
    pub(super) fn relieve(&mut self, now: Time, backend: BackendId) {
        while self.lacks(backend) {
            let smallest = self.ledger.idle(backend).next();
            if let Some(id) = smallest {
                self.deactivate(now, id);
                continue;
            }
            if !self.is_full(backend) {
                break;
            }
            let Some(id) = self.pop_running(backend) else {
                break;
            };
            self.update(id, |p| p.marked = true);
        }
        while let Some((tokens, id)) = self.server(backend).marked.last().copied() {
            let leaving = self.server(backend).leaving - tokens;
            if self.is_full(backend) && self.lacks_beside(backend, leaving) {
                break;
            }
            self.update(id, |p| p.marked = false);
        }
    }

    /// Whether more counts on `backend` than it holds, marked programs left out.
    fn lacks(&self, backend: BackendId) -> bool {
        let server = self.servers.get(backend.index());
        self.lacks_beside(backend, server.map_or(Tokens::ZERO, |s| s.leaving))
    }

    fn lacks_beside(&self, backend: BackendId, leaving: Tokens) -> bool {
        let room = self.room(backend);
        room.is_some_and(|room| room + leaving.as_f64() < 0.0)
    }

    /// Whether the engine itself is near its capacity. Books that say so alone overcount, such as by a prefix that
    /// is shared unseen.
    fn is_full(&self, backend: BackendId) -> bool {
        let sample = self.roster.get_up(backend).and_then(|b| b.sample);
        let usage = sample.and_then(|sample| sample.kv_usage).map(Ratio::get);
        usage.is_none_or(|usage| usage >= self.config.mark_usage)
    }
}

fn footprint(arrival: &Arrival) -> Footprint {
    Footprint {
        tokens: arrival.prompt,
        shared: arrival.shared,
    }
}
