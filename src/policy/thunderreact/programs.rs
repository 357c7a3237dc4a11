//! ThunderReact's table of programs. Counts and sums that depend on a program move only here, with it.

use std::cmp::Reverse;

use crate::policy::slots::Slots;
use crate::policy::{BackendId, ProgramId, Tokens};

/// What is known of one program.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that hold independently of each other"
)]
pub(super) struct Program {
    /// Prompt and output of its last step; 0 before the first answer.
    pub(super) context: Tokens,
    /// Position among the programs by first arrival.
    pub(super) seq: u64,
    /// Steps answered so far; tries of one step count once.
    pub(super) steps: u32,
    pub(super) in_flight: u32,
    pub(super) held: u32,
    pub(super) backend: BackendId,
    /// Where its next step is to go instead.
    pub(super) transfer: Option<BackendId>,
    pub(super) paused: bool,
    /// Paused as soon as its last request in flight ends; stays set until the program is resumed.
    pub(super) pause_requested: bool,
    /// One of the requests in flight, or of those beside it, was answered.
    pub(super) answered: bool,
    /// Its last step waits.
    pub(super) leaving: bool,
}

const _: () = assert!(
    size_of::<Option<Program>>() <= 64,
    "100,000 programs must stay within a few MB"
);

impl Program {
    pub(super) const fn new(seq: u64, backend: BackendId) -> Self {
        Self {
            context: Tokens::ZERO,
            seq,
            steps: 0,
            in_flight: 0,
            held: 0,
            backend,
            transfer: None,
            paused: false,
            pause_requested: false,
            answered: false,
            leaving: false,
        }
    }
}

impl Program {
    /// Steps begun: those answered, and the one that runs.
    pub(super) const fn depth(&self) -> u32 {
        self.steps.saturating_add((self.in_flight > 0) as u32)
    }
}

/// The order in which held requests are resumed on a backend: programs that leave, then most steps first, then the
/// smallest context, then the oldest program.
pub(super) type ResumeKey = (BackendId, Reverse<bool>, Reverse<u32>, Tokens, u64);

/// All programs, and what is summed over them.
#[derive(Debug, Default)]
pub(super) struct Programs {
    table: Slots<Program>,
    next_seq: u64,
    /// Paused programs by backend.
    paused: Vec<u32>,
    /// Paused programs over all backends.
    paused_total: u32,
    /// Estimated tokens of the programs that are not paused.
    resident: Tokens,
    /// Output allowance per program.
    output: Tokens,
}

impl Programs {
    pub(super) const fn new(output: Tokens) -> Self {
        Self {
            table: Slots::new(),
            next_seq: 0,
            paused: Vec::new(),
            paused_total: 0,
            resident: Tokens::ZERO,
            output,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) const fn paused_total(&self) -> u32 {
        self.paused_total
    }

    pub(super) const fn resident(&self) -> Tokens {
        self.resident
    }

    /// Paused programs on `backend`.
    pub(super) fn paused_on(&self, backend: BackendId) -> u32 {
        self.paused.get(backend.index()).copied().unwrap_or(0)
    }

    pub(super) fn get(&self, id: ProgramId) -> Option<&Program> {
        self.table.get(id.index())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ProgramId, &Program)> {
        self.table.iter().filter_map(|(index, program)| {
            let id = u32::try_from(index).ok()?;
            Some((ProgramId(id), program))
        })
    }

    /// Adds a program that was not known.
    pub(super) fn add(&mut self, id: ProgramId, backend: BackendId) {
        let program = Program::new(self.next_seq, backend);
        self.next_seq += 1;
        self.table.insert(id.index(), program);
        self.count(&program);
    }

    /// Forgets a program.
    pub(super) fn remove(&mut self, id: ProgramId) {
        if let Some(program) = self.table.remove(id.index()) {
            self.uncount(&program);
        }
    }

    /// Changes a program and moves the sums with it; without effect for an unknown one.
    pub(super) fn update(&mut self, id: ProgramId, change: impl FnOnce(&mut Program)) {
        let Some(program) = self.table.get_mut(id.index()) else {
            return;
        };
        let before = *program;
        change(program);
        let after = *program;
        self.uncount(&before);
        self.count(&after);
    }

    /// What the program's next step is expected to occupy.
    pub(super) fn estimate(&self, program: &Program) -> Tokens {
        program.context + self.output
    }

    /// The program's place in the resume order. Constant while it is paused: neither its steps nor its context
    /// change before it runs again.
    pub(super) fn resume_key(&self, program: &Program) -> ResumeKey {
        let tokens = self.estimate(program);
        let leaving = Reverse(program.leaving);
        (
            program.backend,
            leaving,
            Reverse(program.steps),
            tokens,
            program.seq,
        )
    }

    fn count(&mut self, program: &Program) {
        if program.paused {
            *self.paused_entry(program.backend) += 1;
            self.paused_total += 1;
        } else {
            self.resident += self.estimate(program);
        }
    }

    fn uncount(&mut self, program: &Program) {
        if program.paused {
            *self.paused_entry(program.backend) -= 1;
            self.paused_total -= 1;
        } else {
            self.resident -= self.estimate(program);
        }
    }

    fn paused_entry(&mut self, backend: BackendId) -> &mut u32 {
        if self.paused.len() <= backend.index() {
            self.paused.resize(backend.index() + 1, 0);
        }
        &mut self.paused[backend.index()]
    }
}
