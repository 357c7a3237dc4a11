//! Shorter programs of the same kind, so that a set ends within a minute of a real GPU.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::workload::Program;

/// How programs are shortened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shorten {
    /// Share of each program's steps that is kept, above 0; at least one step.
    pub steps: f64,
    /// Factor on every gap.
    pub gaps: f64,
}

impl Shorten {
    /// Keeps a stretch of the program's steps, from a place drawn from `seed`: what was said before it is the first
    /// message, so contexts are those of the whole program's life.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "step counts"
    )]
    pub fn apply(self, program: &mut Program, seed: u64) {
        let count = program.steps.len();
        let kept = (count as f64 * self.steps).round() as usize;
        let kept = kept.clamp(1, count.max(1));
        let mut dice =
            ChaCha8Rng::seed_from_u64(seed ^ crate::policy::ids::name_hash(&program.name));
        let from = dice.random_range(0..=count - kept);
        let before: u32 = program
            .steps
            .drain(..from)
            .map(|s| s.added + s.output)
            .sum();
        program.steps.truncate(kept);
        if let Some(first) = program.steps.first_mut() {
            first.added += before;
        }
        for step in &mut program.steps {
            step.gap = step.gap.mul_f64(self.gaps);
        }
    }
}
