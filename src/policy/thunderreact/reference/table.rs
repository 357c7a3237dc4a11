//! What the reference router keeps: backends, each with its programs. They change only here.

use super::{Entry, ProgramState, Reference, Server};
use crate::policy::{BackendId, ProgramId, Tokens};

impl Reference {
    pub(super) fn server(&mut self, backend: BackendId) -> &mut Server {
        if self.servers.len() <= backend.index() {
            let servers = backend.index() + 1;
            self.servers.resize_with(servers, Server::default);
        }
        &mut self.servers[backend.index()]
    }

    pub(super) fn is_up(&self, backend: BackendId) -> bool {
        self.servers.get(backend.index()).is_some_and(|s| s.up)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = BackendId> + use<> {
        (0..=u16::MAX).map(BackendId).take(self.servers.len())
    }

    pub(super) fn up(&self) -> impl Iterator<Item = (BackendId, &Server)> {
        self.ids().zip(&self.servers).filter(|(_, s)| s.up)
    }

    pub(super) fn entry(&self, backend: BackendId, program: ProgramId) -> Option<&Entry> {
        self.servers
            .get(backend.index())?
            .programs
            .get(program.index())
    }

    pub(super) fn estimate(&self, state: &ProgramState) -> Tokens {
        state.context + Tokens(self.config.output_estimate_tokens)
    }

    pub(super) fn insert(&mut self, backend: BackendId, program: ProgramId, state: ProgramState) {
        self.remove(backend, program);
        let seq = self.next_seq;
        self.next_seq += 1;
        let server = &mut self.servers[backend.index()];
        server
            .programs
            .insert(program.index(), Entry { state, seq });
        server.paused += u32::from(state.paused);
        self.resident += self.resident_part(&state);
    }

    pub(super) fn remove(
        &mut self,
        backend: BackendId,
        program: ProgramId,
    ) -> Option<ProgramState> {
        let server = &mut self.servers[backend.index()];
        let state = server.programs.remove(program.index())?.state;
        server.paused -= u32::from(state.paused);
        self.resident -= self.resident_part(&state);
        Some(state)
    }

    pub(super) fn update(
        &mut self,
        backend: BackendId,
        program: ProgramId,
        change: impl FnOnce(&mut ProgramState),
    ) {
        let server = &mut self.servers[backend.index()];
        let Some(entry) = server.programs.get_mut(program.index()) else {
            return;
        };
        let before = entry.state;
        change(&mut entry.state);
        let after = entry.state;
        server.paused = server.paused + u32::from(after.paused) - u32::from(before.paused);
        let (before, after) = (self.resident_part(&before), self.resident_part(&after));
        self.resident = self.resident + after - before;
    }

    fn resident_part(&self, state: &ProgramState) -> Tokens {
        if state.paused {
            Tokens::ZERO
        } else {
            self.estimate(state)
        }
    }
}
