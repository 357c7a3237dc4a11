//! The engine model beside the measured cells of a real vLLM on one H100.
//!
//! The cells: vLLM 0.25.1, Qwen3-8B shape with random weights, 84,800 tokens of KV cache, a closed loop of C
//! programs without a gate, a window of 30 s after 12 s. The programs are drawn from the description of the
//! measured ones, not copied from them, and it does not say how far along they were when the window began: here
//! each begins at a random one of its steps. In 42 s a program does two to four steps (`swe` with 8 programs:
//! forty), so that choice and the draw weigh more than the engine. The table averages over draws and shows their
//! spread.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Cell as Setting, History, Measured, RANDOM_WEIGHTS, Shape, Workload, window};
use crate::harness::engine::core::cost::H100_QWEN3_8B;
use crate::harness::engine::core::{Config, Lookups, Scheduling};
use crate::policy::baseline::Baseline;

/// One measured cell and what the model makes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// What the programs looked like.
    pub shape: Shape,
    /// Programs at once.
    pub concurrency: u32,
    /// Measured on the H100. What was not measured is zero.
    pub real: Measured,
    /// The model's mean over [`SEEDS`] draws of programs.
    pub model: Measured,
    /// Standard deviation of the model's steps/s from draw to draw: how much of a difference one draw explains.
    pub spread: f64,
}

/// Draws of programs that the model's numbers are averaged over.
pub const SEEDS: u64 = 20;

/// Shape, programs, steps/s, hit rate by the counter, latency mean and 99th percentile in s, running, waiting.
type Cell = (Shape, u32, f64, f64, f64, f64, f64, f64);

/// The cells without a gate.
const CELLS: [Cell; 8] = [
    (Shape::Tau2Lognormal, 32, 3.37, 0.39, 6.6, 15.8, 12.6, 7.8),
    (Shape::Tau2Lognormal, 64, 2.69, 0.34, 20.0, 30.4, 10.5, 42.0),
    (
        Shape::Tau2Lognormal,
        128,
        2.97,
        0.35,
        29.2,
        44.2,
        10.8,
        101.0,
    ),
    (Shape::Swe, 8, 8.03, 0.62, 0.66, 2.7, 4.3, 0.2),
    (Shape::Swe, 32, 2.18, 0.05, 14.5, 19.2, 6.2, 23.0),
    (Shape::Swe, 64, 2.32, 0.05, 22.6, 30.2, 6.1, 54.0),
    (Shape::Orch, 64, 8.20, 0.64, 4.7, 13.8, 24.1, 10.9),
    (Shape::Orch, 128, 7.76, 0.60, 14.2, 26.1, 23.0, 68.0),
];

/// The engine of the measurements.
pub fn h100() -> Config {
    Config {
        blocks: 84_800 / 16 + 1,
        block_size: 16,
        max_num_seqs: 256,
        max_num_batched_tokens: 8_192,
        scheduling: Scheduling::Fcfs,
        lookups: Lookups::EveryAttempt,
        cost: H100_QWEN3_8B,
    }
}

/// Time before the window of the measurements.
pub const WARM_UP: Duration = Duration::from_secs(12);
/// The window of the measurements.
pub const WINDOW: Duration = Duration::from_secs(30);

/// The setting of a measured cell, for one seed.
pub fn setting(shape: Shape, concurrency: u32, seed: u64) -> Setting {
    Setting {
        // Measured with random weights, by a client that did not correct for it.
        history: History::Recut(RANDOM_WEIGHTS),
        ..Setting::new(Workload::Drawn(shape), concurrency, seed, h100())
    }
}

/// What the model makes of a cell without a gate, for one seed.
pub fn modelled(shape: Shape, concurrency: u32, seed: u64) -> Measured {
    let mut policy = Baseline::default();
    window(
        &setting(shape, concurrency, seed),
        WARM_UP,
        WINDOW,
        &mut policy,
    )
}

/// Every cell without a gate, measured and modelled.
pub fn calibration_table() -> Vec<Row> {
    let rows = CELLS.iter().map(|cell| {
        let (shape, concurrency, ..) = *cell;
        let runs: Vec<_> = (1..=SEEDS)
            .map(|seed| modelled(shape, concurrency, seed))
            .collect();
        let model = mean(&runs);
        let square = |run: &Measured| (run.steps_per_s - model.steps_per_s).powi(2);
        Row {
            shape,
            concurrency,
            real: real(cell),
            model,
            spread: average(&runs, square).sqrt(),
        }
    });
    rows.collect()
}

fn real(cell: &Cell) -> Measured {
    let (_, _, steps, hit, mean, p99, running, waiting) = *cell;
    Measured {
        steps_per_s: steps,
        hit_counter: hit,
        latency_mean_s: mean,
        latency_p99_s: p99,
        running,
        waiting,
        ..Measured::default()
    }
}

fn mean(runs: &[Measured]) -> Measured {
    Measured {
        steps_per_s: average(runs, |run| run.steps_per_s),
        hit_counter: average(runs, |run| run.hit_counter),
        hit_true: average(runs, |run| run.hit_true),
        latency_mean_s: average(runs, |run| run.latency_mean_s),
        latency_p99_s: average(runs, |run| run.latency_p99_s),
        running: average(runs, |run| run.running),
        waiting: average(runs, |run| run.waiting),
        ..Measured::default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a handful of runs")]
fn average(runs: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    runs.iter().map(of).sum::<f64>() / runs.len() as f64
}

/// The table as text, one line a cell.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "                       steps/s                    hit rate           latency s     p99 s         running       waiting\n\
         shape, C               real  model (sd)     diff  real model (true)  real  model   real  model   real  model   real  model\n",
    );
    for row in rows {
        let (real, model) = (&row.real, &row.model);
        let name = format!("{}, {}", row.shape.name(), row.concurrency);
        let diff = 100.0 * (model.steps_per_s / real.steps_per_s - 1.0);
        let _ = writeln!(
            text,
            "{name:<21} {:>5.2} {:>6.2} ({:.2}) {diff:>+7.0}%  {:>4.2} {:>5.2} ({:.2})  {:>4.1} {:>6.1}  {:>5.1} {:>6.1}  {:>5.1} {:>6.1}  {:>5.1} {:>6.1}",
            real.steps_per_s,
            model.steps_per_s,
            row.spread,
            real.hit_counter,
            model.hit_counter,
            model.hit_true,
            real.latency_mean_s,
            model.latency_mean_s,
            real.latency_p99_s,
            model.latency_p99_s,
            real.running,
            model.running,
            real.waiting,
            model.waiting,
        );
    }
    text
}
