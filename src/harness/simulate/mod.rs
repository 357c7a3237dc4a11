//! A closed loop of programs, a policy and the engine on a virtual clock: a minute of a GPU in milliseconds.
//!
//! Pure: the engine's core, any [`Policy`] and [generated programs](workload) advance from event to event, with
//! no socket, thread or clock, so a seed gives the same numbers on every machine. What is compared with
//! measurements is in [`calibration`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod calibration;
pub mod workload;
mod world;

use std::time::Duration;

use super::engine::core::{Config, Stats};
use crate::policy::{Policy, Time};
use workload::Shape;
use world::World;

pub use calibration::{calibration_table, print_calibration};

/// How an answer reads when it comes back as history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum History {
    /// As it was generated: its blocks are in the cache.
    Kept,
    /// As other tokens, this many times as long: what a model with random weights writes is cut differently.
    Recut(f64),
}

/// One cell of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// What the programs look like.
    pub shape: Shape,
    /// Programs at once, at least 1; each that ends is followed by a new one.
    pub concurrency: u32,
    /// Seed of the programs.
    pub seed: u64,
    /// The engine.
    pub engine: Config,
    /// How answers come back.
    pub history: History,
    /// Time before the window.
    pub warm_up: Duration,
    /// Time that is measured.
    pub window: Duration,
}

/// What a cell measured in its window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Steps finished per second.
    pub steps_per_s: f64,
    /// Prefix cache hit rate by the engine's counters, 0–1.
    pub hit_counter: f64,
    /// Share of the finished steps' prompt tokens that came from the cache, 0–1.
    pub hit_true: f64,
    /// Mean time from a step's arrival at the gate to its end, in seconds.
    pub latency_mean_s: f64,
    /// 99th percentile of the same.
    pub latency_p99_s: f64,
    /// Requests that ran, averaged over time.
    pub running: f64,
    /// Requests that waited inside the engine, averaged over time.
    pub waiting: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Steps that the policy refused.
    pub rejected: u64,
}

/// Runs one cell.
pub fn run(experiment: &Experiment, policy: &mut dyn Policy) -> Measured {
    let mut world = World::new(experiment, policy);
    world.start();
    let (begin, end) = (
        Time::ZERO + experiment.warm_up,
        Time::ZERO + experiment.warm_up + experiment.window,
    );
    world.run_until(begin);
    world.tally = Tally {
        before: world.engine.stats(),
        ..Tally::default()
    };
    world.run_until(end);
    world.tally.measured(experiment, &world.engine.stats())
}

/// Sums over a window.
#[derive(Debug, Default)]
struct Tally {
    /// The engine's counters when the window began.
    before: Stats,
    latencies_s: Vec<f64>,
    prompt: u64,
    cached: u64,
    rejected: u64,
    running_s: f64,
    waiting_s: f64,
}

impl Tally {
    /// Time goes by with the engine in this state.
    #[expect(clippy::cast_precision_loss, reason = "request counts")]
    fn pass(&mut self, time: Duration, stats: &Stats) {
        self.running_s += time.as_secs_f64() * stats.running as f64;
        self.waiting_s += time.as_secs_f64() * stats.waiting as f64;
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn measured(&mut self, experiment: &Experiment, after: &Stats) -> Measured {
        let window = experiment.window.as_secs_f64();
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let steps = self.latencies_s.len();
        self.latencies_s.sort_by(f64::total_cmp);
        let rank = (steps * 99).div_ceil(100).saturating_sub(1);
        Measured {
            steps_per_s: steps as f64 / window,
            hit_counter: share(
                after.prefix_hits - self.before.prefix_hits,
                after.prefix_queries - self.before.prefix_queries,
            ),
            hit_true: share(self.cached, self.prompt),
            latency_mean_s: self.latencies_s.iter().sum::<f64>() / steps.max(1) as f64,
            latency_p99_s: self.latencies_s.get(rank).copied().unwrap_or(0.0),
            running: self.running_s / window,
            waiting: self.waiting_s / window,
            preemptions: after.preemptions - self.before.preemptions,
            rejected: self.rejected,
        }
    }
}

#[cfg(test)]
mod tests;
