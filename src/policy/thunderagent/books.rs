//! ThunderAgent's books: which program occupies what, where, and who is paused when that is too much.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::Config;
use crate::policy::ledger::{Footprint, Ledger};
use crate::policy::roster::{Flight, Roster};
use crate::policy::slots::Slots;
use crate::policy::{
    Adoption, Arrival, BackendId, Outcome, ProgramId, RequestId, SharedPrefix, Time, Tokens, Usage,
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
    pub(super) idle_since: Time,
    /// Steps answered.
    pub(super) steps: u32,
    pub(super) in_flight: u32,
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
pub(super) struct Server {
    /// Programs that count here.
    pub(super) active: u32,
    /// Running programs that are not marked, smallest context first. Entries of programs that have changed since
    /// stay until they come first, or until they outnumber the others.
    pub(super) running: BinaryHeap<Reverse<(Tokens, ProgramId)>>,
    /// Running programs that are, and the sum of their contexts.
    pub(super) marked: BTreeSet<(Tokens, ProgramId)>,
    pub(super) leaving: Tokens,
    /// What is left of the idle contexts, as of `faded_at`.
    pub(super) fading: f64,
    pub(super) faded_at: Time,
}

/// The books of all backends.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) config: Config,
    pub(super) roster: Roster,
    pub(super) ledger: Ledger,
    pub(super) table: Slots<Program>,
    pub(super) servers: Vec<Server>,
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

    pub(super) fn server(&mut self, backend: BackendId) -> &mut Server {
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

    /// Counts a request that runs already, whether it fits or not.
    pub(super) fn adopt(&mut self, now: Time, adoption: &Adoption) {
        let mut arrival = adoption.arrival;
        arrival.program = arrival.program.filter(|id| id.0 < self.config.max_programs);
        if let Some(id) = arrival.program {
            self.meet(id);
            self.update(id, |program| {
                program.steps = program.steps.max(adoption.steps);
            });
        }
        self.start(now, &arrival, adoption.backend);
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
    pub(super) fn pop_running(&mut self, backend: BackendId) -> Option<ProgramId> {
        loop {
            let Reverse(key) = self.server(backend).running.pop()?;
            if self.is_running(backend, key) {
                return Some(key.1);
            }
        }
    }

    /// Changes a program and moves it to the set that it belongs to then.
    pub(super) fn update(&mut self, id: ProgramId, change: impl FnOnce(&mut Program)) {
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
    pub(super) fn deactivate(&mut self, now: Time, id: ProgramId) {
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
}

pub(super) fn footprint(arrival: &Arrival) -> Footprint {
    Footprint {
        tokens: arrival.prompt,
        shared: arrival.shared,
    }
}
