//! What the original keeps: programs, and sums over them by backend. They change only here.

use std::ops::{AddAssign, SubAssign};

use super::{Act, Entry, Original, ProgramState, Server};
use crate::policy::{BackendId, ProgramId, Time, Tokens};

impl Original {
    /// Notes every act from now on. The notes grow until [`Self::take_acts`] is called.
    pub fn note_acts(&mut self) {
        self.acts = Some(Vec::new());
    }

    /// The acts since the last call.
    pub fn take_acts(&mut self) -> Vec<Act> {
        self.acts.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Sets what is known of a program. A paused one enters the queue last.
    pub fn set_program(&mut self, id: ProgramId, state: ProgramState) {
        self.forget(id);
        self.update(id, |entry| entry.state = state);
        if let Some(home) = state.home.filter(|_| state.marked) {
            self.server(home).future += state.tokens;
        }
    }

    /// What is known of a program.
    pub fn state(&self, id: ProgramId) -> Option<&ProgramState> {
        Some(&self.programs.get(id.index())?.state)
    }

    /// Says whether the last scrape of `backend`, which is up, succeeded.
    pub fn set_healthy(&mut self, backend: BackendId, healthy: bool) {
        self.server(backend).healthy = healthy;
    }

    /// Tokens free on `backend`, less a buffer per program; `None` where the capacity is unknown.
    pub fn room(&self, backend: BackendId) -> Option<i64> {
        let server = self.servers.get(backend.index())?;
        let weighted = server.acting.as_f64() * self.config.acting_token_weight;
        self.left(server, server.reasoning.as_f64() + weighted)
    }

    /// Tokens free on `backend` when idle contexts fade; their weight is left out. O(programs).
    pub fn fading_room(&self, now: Time, backend: BackendId) -> Option<i64> {
        let server = self.servers.get(backend.index())?;
        let here = self.programs.iter().map(|(_, entry)| &entry.state);
        let here = here.filter(|p| p.registered && p.home == Some(backend));
        let faded = here.filter_map(|p| {
            let idle = now.since(p.acting_since?).as_secs_f64();
            let left = 2.0_f64.powf(-idle / self.config.half_life_s());
            Some(p.tokens.as_f64() * left)
        });
        self.left(server, server.reasoning.as_f64() + faded.sum::<f64>())
    }

    fn left(&self, server: &Server, active: f64) -> Option<i64> {
        let buffers = Tokens(u64::from(server.programs) * self.config.buffer_tokens);
        Some(signed(server.capacity?) - signed(Tokens::from_f64(active) + buffers))
    }

    /// Tokens that `backend` expects back from its marked programs.
    pub fn future_paused(&self, backend: BackendId) -> Tokens {
        let server = self.servers.get(backend.index());
        server.map_or(Tokens::ZERO, |server| server.future)
    }

    /// The queue, first in first. O(programs).
    pub fn queue(&self) -> Vec<ProgramId> {
        let paused = self.entries().filter(|(_, entry)| entry.state.paused);
        let mut queue: Vec<_> = paused.map(|(id, entry)| (entry.queue_seq, id)).collect();
        queue.sort_unstable();
        queue.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (ProgramId, &Entry)> {
        self.programs.iter().filter_map(|(index, entry)| {
            let id = u32::try_from(index).ok()?;
            Some((ProgramId(id), entry))
        })
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = BackendId> + use<> {
        (0..=u16::MAX).map(BackendId).take(self.servers.len())
    }

    pub(super) fn server(&mut self, backend: BackendId) -> &mut Server {
        if self.servers.len() <= backend.index() {
            let servers = backend.index() + 1;
            self.servers.resize_with(servers, Server::default);
        }
        &mut self.servers[backend.index()]
    }

    pub(super) fn healthy(&self) -> impl Iterator<Item = BackendId> {
        let servers = self.ids().zip(&self.servers);
        servers.filter(|(_, s)| s.up && s.healthy).map(|(id, _)| id)
    }

    pub(super) fn note(&mut self, act: impl FnOnce(&Self) -> Act) {
        if self.acts.is_some() {
            let act = act(self);
            self.acts.get_or_insert_default().push(act);
        }
    }

    /// Changes a program, new or known, and moves the sums with it. A program that becomes paused enters the queue.
    pub(super) fn update(&mut self, id: ProgramId, change: impl FnOnce(&mut Entry)) {
        let seq = self.next_seq;
        let before = self.programs.remove(id.index());
        self.next_seq += 1;
        let mut entry = before.unwrap_or_else(|| Entry {
            state: ProgramState::default(),
            seq,
            queue_seq: 0,
        });
        change(&mut entry);
        if entry.state.paused && before.is_none_or(|before| !before.state.paused) {
            entry.queue_seq = seq;
        }
        if let Some(before) = before {
            self.count(&before.state, Tokens::sub_assign, u32::wrapping_sub);
        }
        self.count(&entry.state, Tokens::add_assign, u32::wrapping_add);
        self.programs.insert(id.index(), entry);
    }

    pub(super) fn forget(&mut self, id: ProgramId) {
        if let Some(entry) = self.programs.remove(id.index()) {
            self.count(&entry.state, Tokens::sub_assign, u32::wrapping_sub);
        }
    }

    /// Adds a program to the sums, or takes it off.
    fn count(
        &mut self,
        program: &ProgramState,
        tokens: impl Fn(&mut Tokens, Tokens),
        number: impl Fn(u32, u32) -> u32,
    ) {
        self.paused = number(self.paused, u32::from(program.paused));
        let Some(home) = program.home.filter(|_| program.registered) else {
            return;
        };
        let server = self.server(home);
        server.programs = number(server.programs, 1);
        let sum = match program.acting_since {
            Some(_) => &mut server.acting,
            None => &mut server.reasoning,
        };
        tokens(sum, program.tokens);
    }
}

/// A token count that may be taken below zero.
pub(super) fn signed(tokens: Tokens) -> i64 {
    i64::try_from(tokens.0).unwrap_or(i64::MAX)
}
