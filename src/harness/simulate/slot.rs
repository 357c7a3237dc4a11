//! One of the concurrent programs: where it is, and the prompt it has built up.

use super::History;
use super::workload::{Program, Step};
use crate::harness::engine::core::output::mix;
use crate::harness::engine::core::{Chain, Config, Finish, Output};
use crate::harness::trace::MIN_GROWTH_TOKENS;
use crate::policy::{Time, Tokens};

/// A program under way.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) program: Program,
    /// Index of the step that is next or under way.
    pub(super) step: usize,
    /// The prompt so far.
    pub(super) history: Chain,
    /// Distinguishes the private tokens of this program from those of all others.
    name: u64,
    /// [`crate::policy::ids::name_hash`] of the program's name.
    pub(super) name_hash: u64,
    /// Whether the policy sees no program.
    pub(super) anonymous: bool,
    /// Requests of the step under way that are not over.
    pub(super) open: u32,
    pub(super) started: Time,
    /// The prompt's length by the plan.
    planned: u32,
    /// The context's length as the server counted it last.
    counted: u32,
}

impl Slot {
    pub(super) fn new(program: Program, engine: &Config, started: Time) -> Self {
        let mut history = engine.chain(b"");
        // Prefixes of one number are the same text whatever the program.
        history.extend(fresh(u64::from(program.group), program.shared));
        let name_hash = crate::policy::ids::name_hash(&program.name);
        Self {
            step: 0,
            history,
            name: mix(name_hash),
            name_hash,
            anonymous: false,
            open: 0,
            started,
            planned: program.shared,
            counted: program.shared,
            program,
        }
    }

    pub(super) fn current(&self) -> Step {
        self.program.steps[self.step]
    }

    pub(super) fn is_last_step(&self) -> bool {
        self.step + 1 == self.program.steps.len()
    }

    pub(super) fn prompt(&self) -> u32 {
        u32::try_from(self.history.tokens()).unwrap_or(u32::MAX)
    }

    /// The user or the tool speaks.
    pub(super) fn begin_step(&mut self, history: History) {
        let said = mix(self.name ^ (2 * self.step as u64));
        let mut added = self.current().added;
        self.planned = self.planned.saturating_add(added);
        if matches!(history, History::Corrected(_)) {
            added = self
                .planned
                .saturating_sub(self.counted)
                .max(MIN_GROWTH_TOKENS);
        }
        self.history.extend(fresh(said, added));
    }

    /// The answer becomes history.
    pub(super) fn end_step(&mut self, history: History) {
        let length = self.current().output;
        self.planned = self.planned.saturating_add(length);
        self.counted = self.prompt().saturating_add(length);
        match history {
            History::Kept => {
                let output = self.output(0);
                self.history.extend((0..length).map(|i| output.token(i)));
            }
            History::Recut(factor) | History::Corrected(factor) => {
                let length = Tokens::from_f64(f64::from(length) * factor).0;
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                self.history.extend(fresh(mix(self.output_seed(0)), length));
            }
        }
        self.step += 1;
    }

    /// What the step's request number `branch` generates.
    pub(super) fn output(&self, branch: u32) -> Output {
        Output::filler(
            self.current().output,
            Finish::Stop,
            self.output_seed(branch),
        )
    }

    const fn output_seed(&self, branch: u32) -> u64 {
        mix(self.name ^ (2 * self.step as u64 + 1) ^ ((branch as u64) << 32))
    }
}

/// `count` tokens that occur nowhere else.
fn fresh(name: u64, count: u32) -> impl Iterator<Item = u32> {
    (0..u64::from(count)).map(move |index| low(mix(name.wrapping_add(index << 20))))
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low(value: u64) -> u32 {
    value as u32
}
