//! What a run measured: sums while it goes on, figures at its end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::harness::engine::core::Stats;
use crate::harness::stats::{mean, percentile};
use crate::policy::{Time, Usage};

/// What a run measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// From the first arrival to the last end, in seconds; of a window, its length.
    pub makespan_s: f64,
    /// Programs played to their end.
    pub programs_done: usize,
    /// Programs that ended early: a step was longer than the cache, or the policy held it for ever.
    pub programs_failed: usize,
    /// Steps finished; a fork counts once.
    pub steps: usize,
    /// Mean time of a program, in seconds.
    pub program_mean_s: f64,
    /// Median of the same.
    pub program_p50_s: f64,
    /// 95th percentile of the same.
    pub program_p95_s: f64,
    /// 99th percentile of the same.
    pub program_p99_s: f64,
    /// Steps finished per second: of a fixed set, between the moments at which 20 % and 80 % were finished.
    pub steps_per_s: f64,
    /// Prefix cache hit rate by the engine's counters, 0–1.
    pub hit_counter: f64,
    /// Share of the finished requests' prompt tokens that came from the cache, 0–1.
    pub hit_true: f64,
    /// Mean time from a request's arrival at the gate to its end, in seconds.
    pub latency_mean_s: f64,
    /// 99th percentile of the same.
    pub latency_p99_s: f64,
    /// Mean time that a request was held, in seconds.
    pub hold_mean_s: f64,
    /// Longest time that a request was held, in seconds.
    pub hold_max_s: f64,
    /// Requests that ran, averaged over time.
    pub running: f64,
    /// Requests that waited inside the engine, averaged over time.
    pub waiting: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Requests that the policy refused; each is sent again.
    pub rejected: u64,
}

/// How one program fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramRun {
    /// Its name.
    pub program: String,
    /// When its first step arrived, in seconds of the run.
    pub started_s: f64,
    /// When its last step ended, in seconds of the run.
    pub finished_s: f64,
    /// Steps finished.
    pub steps: usize,
    /// Whether it came to its end.
    pub done: bool,
}

/// Sums of a run.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The engine's counters when it began.
    before: Stats,
    began: Time,
    latencies_s: Vec<f64>,
    holds_s: f64,
    hold_max: Duration,
    /// When each step ended, in order.
    pub(super) step_ends: Vec<Time>,
    pub(super) programs: Vec<ProgramRun>,
    prompt: u64,
    cached: u64,
    pub(super) rejected: u64,
    running_s: f64,
    waiting_s: f64,
}

impl Tally {
    pub(super) fn new(began: Time, before: Stats) -> Self {
        Self {
            before,
            began,
            ..Self::default()
        }
    }

    /// Time goes by with the engine in this state.
    #[expect(clippy::cast_precision_loss, reason = "request counts")]
    pub(super) fn pass(&mut self, time: Duration, stats: &Stats) {
        self.running_s += time.as_secs_f64() * stats.running as f64;
        self.waiting_s += time.as_secs_f64() * stats.waiting as f64;
    }

    /// A request was held for this long, and is now admitted.
    pub(super) fn admitted(&mut self, held: Duration) {
        self.holds_s += held.as_secs_f64();
        self.hold_max = self.hold_max.max(held);
    }

    /// A request was served.
    pub(super) fn served(&mut self, latency: Duration, usage: &Usage) {
        self.latencies_s.push(latency.as_secs_f64());
        self.prompt += usage.prompt.0;
        self.cached += usage.cached.unwrap_or_default().0;
    }

    /// The figures of a run that ended at `end`.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(super) fn measured(&mut self, end: Time, after: &Stats) -> Measured {
        let makespan_s = end.since(self.began).as_secs_f64();
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        self.latencies_s.sort_by(f64::total_cmp);
        let done = self.programs.iter().filter(|program| program.done);
        let mut times: Vec<f64> = done.map(|p| p.finished_s - p.started_s).collect();
        times.sort_by(f64::total_cmp);
        let at = |sample: &[f64], q| percentile(sample, q).unwrap_or(0.0);
        Measured {
            makespan_s,
            programs_done: times.len(),
            programs_failed: self.programs.len() - times.len(),
            steps: self.step_ends.len(),
            program_mean_s: mean(&times).unwrap_or(0.0),
            program_p50_s: at(&times, 0.50),
            program_p95_s: at(&times, 0.95),
            program_p99_s: at(&times, 0.99),
            steps_per_s: self.step_ends.len() as f64 / makespan_s.max(f64::MIN_POSITIVE),
            hit_counter: share(
                after.prefix_hits - self.before.prefix_hits,
                after.prefix_queries - self.before.prefix_queries,
            ),
            hit_true: share(self.cached, self.prompt),
            latency_mean_s: mean(&self.latencies_s).unwrap_or(0.0),
            latency_p99_s: at(&self.latencies_s, 0.99),
            hold_mean_s: self.holds_s / (self.latencies_s.len().max(1) as f64),
            hold_max_s: self.hold_max.as_secs_f64(),
            running: self.running_s / makespan_s.max(f64::MIN_POSITIVE),
            waiting: self.waiting_s / makespan_s.max(f64::MIN_POSITIVE),
            preemptions: after.preemptions - self.before.preemptions,
            rejected: self.rejected,
        }
    }

    /// [`middle_rate`] of the steps so far.
    pub(super) fn middle_steps_per_s(&self) -> Option<f64> {
        let ends: Vec<f64> = self.step_ends.iter().map(|end| end.as_secs_f64()).collect();
        middle_rate(&ends)
    }
}

/// Of ascending moments in seconds, how many a second there were between 20 % and 80 % of them: neither the filling
/// nor the emptying of the slots counts.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub fn middle_rate(ends_s: &[f64]) -> Option<f64> {
    let (from, to) = (ends_s.len() / 5, ends_s.len() * 4 / 5);
    let time = ends_s.get(to)? - ends_s.get(from)?;
    (time > 0.0).then(|| (to - from) as f64 / time)
}
