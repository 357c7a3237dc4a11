//! A closed loop of programs, a policy and the engine on a virtual clock: an hour of a GPU in a second.
//!
//! Pure: the engine's core, any [`Policy`] and [programs](supply) advance from event to event, with no socket,
//! thread or clock, so a seed gives the same numbers on every machine. [`fixed_set`] plays a set of programs to the
//! end, which is how policies are compared; [`window`] looks at a stretch of an endless run, which is how the model
//! was held against measurements ([`calibration`]). A window favours a policy that serves small programs first: it
//! never sees when the large ones are done.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod bound;
pub mod calibration;
pub mod clairvoyant;
pub mod recording;
pub mod shorten;
mod slot;
pub mod supply;
mod tally;
pub mod workload;
mod world;

use std::time::Duration;

use super::engine::core::Config;
use crate::policy::{Policy, Time};
use world::World;

pub use calibration::calibration_table;
pub use supply::Workload;
pub use tally::{Measured, ProgramRun};
pub use workload::Shape;

/// How an answer reads when it comes back as history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum History {
    /// As it was generated: its blocks are in the cache.
    Kept,
    /// As other tokens, this many times as long: what a model with random weights writes is cut differently.
    Recut(f64),
    /// The same, and the next message is shortened by what the server counted too much, as `kvgate replay` does.
    Corrected(f64),
}

/// How much longer the text of a model with random weights is when it comes back (measured; Qwen vocabulary).
pub const RANDOM_WEIGHTS: f64 = 1.38;

/// Bound on the blocks of a cache that is to hold everything: 64 million tokens.
pub const MOST_BLOCKS: u32 = 4_000_000;

/// What the policy is told that is not so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beliefs {
    /// Factor on the KV capacity that the policy is told.
    pub capacity: f64,
    /// Share of the programs that the policy sees no program of, 0–1.
    pub anonymous: f64,
    /// Factor on the gaps that the policy believes in, above 0; only `kvgate` heeds it.
    pub gaps: f64,
}

impl Default for Beliefs {
    fn default() -> Self {
        Self {
            capacity: 1.0,
            anonymous: 0.0,
            gaps: 1.0,
        }
    }
}

/// One cell of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// What the programs look like.
    pub workload: Workload,
    /// Programs at once, at least 1; each that ends is followed by the next.
    pub concurrency: u32,
    /// Programs in the fixed set, at least 1.
    pub programs: usize,
    /// Seed of the programs.
    pub seed: u64,
    /// The engine.
    pub engine: Config,
    /// How answers come back.
    pub history: History,
    /// What the policy is told wrong.
    pub beliefs: Beliefs,
}

impl Cell {
    /// The size of a fixed set that fills `concurrency` slots more than twice.
    pub const fn programs_for(concurrency: u32) -> usize {
        2 * concurrency as usize + 32
    }

    /// `workload` on `engine`: a set of [`Self::programs_for`] the slots, a trained model, no wrong beliefs.
    pub fn new(workload: Workload, concurrency: u32, seed: u64, engine: Config) -> Self {
        Self {
            workload,
            concurrency,
            programs: Self::programs_for(concurrency),
            seed,
            engine,
            history: History::Kept,
            beliefs: Beliefs::default(),
        }
    }

    /// The same cell with a cache so large that nothing is ever evicted, up to [`MOST_BLOCKS`].
    #[must_use]
    pub fn with_everything_cached(&self) -> Self {
        let blocks = |program: workload::Program| -> u64 {
            let mut tokens = u64::from(program.shared);
            let mut unfinished = 0;
            for step in &program.steps {
                let branches = u64::from(step.branches.max(1));
                // An answer is cached as it was generated, and again as it was cut anew.
                tokens += u64::from(step.added) + 2 * branches * u64::from(step.output);
                unfinished += 2 * branches;
            }
            tokens.div_ceil(u64::from(self.engine.block_size)) + unfinished
        };
        let total: u64 = self.fixed_programs().map(blocks).sum();
        let mut cell = self.clone();
        cell.engine.blocks = u32::try_from(total)
            .unwrap_or(u32::MAX)
            .clamp(2, MOST_BLOCKS);
        cell
    }

    /// The programs of the set, in order: what a policy that knows the future would be given.
    pub fn fixed_programs(&self) -> impl Iterator<Item = workload::Program> {
        self.workload.supply(self.seed).take(self.programs)
    }
}

/// Plays the cell's set of programs to its end.
pub fn fixed_set(cell: &Cell, policy: &mut dyn Policy) -> Measured {
    fixed_set_by_program(cell, policy).0
}

/// The same, with how each program fared, in the order in which they ended.
pub fn fixed_set_by_program(cell: &Cell, policy: &mut dyn Policy) -> (Measured, Vec<ProgramRun>) {
    let mut world = World::new(cell, policy, cell.programs);
    world.start();
    world.run_to_end();
    world.fixed_set()
}

/// Runs an endless succession of programs, the first ones in mid-life, and measures `window` after `warm_up`.
pub fn window(
    cell: &Cell,
    warm_up: Duration,
    window: Duration,
    policy: &mut dyn Policy,
) -> Measured {
    let mut world = World::new(cell, policy, usize::MAX);
    world.start_in_mid_life();
    let begin = Time::ZERO + warm_up;
    world.run_until(begin);
    world.forget();
    world.run_until(begin + window);
    world.measured(begin + window)
}

#[cfg(test)]
mod tests;
