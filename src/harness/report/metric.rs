//! The figures that are compared: name, unit, digits, and where each stands in a run's measures. Pure.
//!
//! A figure of the comparison is one entry of [`METRICS`]; every table, file and plot takes it from there.

use crate::harness::measure::{Measures, Rates, Rewards};
use crate::harness::stats::Spread;

/// A window shorter than this is shown, but names no winner, in seconds of the run.
pub const MIN_WINDOW_S: f64 = 60.0;

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its key in JSON and CSV.
    pub key: &'static str,
    /// Its heading in a table, where the columns before it give the context.
    pub name: &'static str,
    /// Its name by itself.
    pub long: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Digits behind the point.
    pub decimals: usize,
    /// Which table shows it.
    pub table: Table,
    /// Whether the most of it wins; `None`: it is only shown.
    pub wins: Option<Wins>,
    /// The figure of a run, or why it has none.
    pub of: fn(&Measures) -> Result<f64, String>,
}

/// Which table shows a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// How much work in which time.
    Rates,
    /// How long things took.
    Latencies,
    /// What came of the tasks.
    Rewards,
}

/// What a win by this figure rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wins {
    /// The active window.
    InWindow,
    /// All of the run.
    OverRun,
}

/// All of them, in the order of the columns.
pub const METRICS: [Metric; 25] = [
    rate(
        "window_tasks_per_min",
        "tasks/min*",
        "tasks/min in the active window",
        "tasks/min",
        Some(Wins::InWindow),
        |m| tasks(m, window(m)),
    ),
    rate(
        "window_steps_per_s",
        "steps/s*",
        "steps/s in the active window",
        "steps/s",
        Some(Wins::InWindow),
        |m| steps_rate(m, window(m)),
    ),
    seconds(
        "window_s",
        "window s",
        "length of the active window",
        Table::Rates,
        0,
        |m| {
            m.window
                .rates()
                .map(|r| r.seconds)
                .ok_or_else(|| no_window(m))
        },
    ),
    rate(
        "steady_tasks_per_min",
        "steady tasks/min",
        "tasks/min in the steady state",
        "tasks/min",
        Some(Wins::OverRun),
        |m| tasks(m, rates(m.steady.as_ref())),
    ),
    rate(
        "steady_steps_per_s",
        "steady steps/s",
        "steps/s in the steady state",
        "steps/s",
        None,
        |m| steps_rate(m, rates(m.steady.as_ref())),
    ),
    rate(
        "whole_tasks_per_min",
        "whole tasks/min",
        "tasks/min over the whole run",
        "tasks/min",
        Some(Wins::OverRun),
        |m| tasks(m, rates(m.whole.as_ref())),
    ),
    rate(
        "whole_steps_per_s",
        "whole steps/s",
        "steps/s over the whole run",
        "steps/s",
        None,
        |m| steps_rate(m, rates(m.whole.as_ref())),
    ),
    seconds(
        "makespan_s",
        "makespan s",
        "makespan",
        Table::Rates,
        0,
        |m| rates(m.whole.as_ref()).map(|r| r.seconds),
    ),
    Metric {
        key: "prefix_hit_rate",
        name: "hit rate",
        long: "prefix cache hit rate",
        unit: "",
        decimals: 3,
        table: Table::Rates,
        wins: None,
        of: |m| {
            m.prefix_hit_rate
                .ok_or_else(|| "no cached tokens reported".to_owned())
        },
    },
    seconds(
        "step_p50_s",
        "step p50 s",
        "step latency p50",
        Table::Latencies,
        1,
        |m| steps(m).map(|s| s.p50),
    ),
    seconds(
        "step_p95_s",
        "p95",
        "step latency p95",
        Table::Latencies,
        1,
        |m| steps(m).map(|s| s.p95),
    ),
    seconds(
        "step_p99_s",
        "p99",
        "step latency p99",
        Table::Latencies,
        1,
        |m| steps(m).map(|s| s.p99),
    ),
    seconds(
        "ttft_p50_s",
        "TTFT p50 s",
        "TTFT p50",
        Table::Latencies,
        1,
        |m| ttft(m).map(|s| s.p50),
    ),
    seconds("ttft_p95_s", "p95", "TTFT p95", Table::Latencies, 1, |m| {
        ttft(m).map(|s| s.p95)
    }),
    seconds(
        "hold_mean_s",
        "hold mean s",
        "hold mean",
        Table::Latencies,
        1,
        |m| hold(m).map(|s| s.mean),
    ),
    seconds("hold_p95_s", "p95", "hold p95", Table::Latencies, 1, |m| {
        hold(m).map(|s| s.p95)
    }),
    seconds(
        "hold_max_s",
        "max",
        "longest hold",
        Table::Latencies,
        0,
        |m| hold(m).map(|s| s.max),
    ),
    seconds(
        "program_mean_s",
        "program mean s",
        "program time mean",
        Table::Latencies,
        0,
        |m| programs(m).map(|s| s.mean),
    ),
    seconds(
        "program_p50_s",
        "p50",
        "program time p50",
        Table::Latencies,
        0,
        |m| programs(m).map(|s| s.p50),
    ),
    seconds(
        "program_p95_s",
        "p95",
        "program time p95",
        Table::Latencies,
        0,
        |m| programs(m).map(|s| s.p95),
    ),
    seconds(
        "program_p99_s",
        "p99",
        "program time p99",
        Table::Latencies,
        0,
        |m| programs(m).map(|s| s.p99),
    ),
    seconds(
        "program_max_s",
        "max",
        "longest program",
        Table::Latencies,
        0,
        |m| programs(m).map(|s| s.max),
    ),
    reward("reward_mean", "reward mean", "mean reward", 3, |m| {
        rewards(m).map(|r| r.mean)
    }),
    reward("tasks_solved", "reward 1", "tasks with reward 1", 0, |m| {
        rewards(m).map(|r| count(r.solved))
    }),
    reward("tasks_judged", "judged", "tasks with a reward", 0, |m| {
        rewards(m).map(|r| count(r.judged))
    }),
];

/// The figure whose verdict stands at the head of a report.
pub const HEADLINE: &Metric = &METRICS[0];

const fn rate(
    key: &'static str,
    name: &'static str,
    long: &'static str,
    unit: &'static str,
    wins: Option<Wins>,
    of: fn(&Measures) -> Result<f64, String>,
) -> Metric {
    Metric {
        key,
        name,
        long,
        unit,
        decimals: 2,
        table: Table::Rates,
        wins,
        of,
    }
}

const fn seconds(
    key: &'static str,
    name: &'static str,
    long: &'static str,
    table: Table,
    decimals: usize,
    of: fn(&Measures) -> Result<f64, String>,
) -> Metric {
    Metric {
        key,
        name,
        long,
        unit: "s",
        decimals,
        table,
        wins: None,
        of,
    }
}

const fn reward(
    key: &'static str,
    name: &'static str,
    long: &'static str,
    decimals: usize,
    of: fn(&Measures) -> Result<f64, String>,
) -> Metric {
    Metric {
        key,
        name,
        long,
        unit: "",
        decimals,
        table: Table::Rewards,
        wins: None,
        of,
    }
}

fn no_window(measures: &Measures) -> String {
    match &measures.window {
        crate::harness::measure::WindowRates::Missing { missing } => missing.clone(),
        crate::harness::measure::WindowRates::Found { .. } => String::new(),
    }
}

fn window(measures: &Measures) -> Result<&Rates, String> {
    measures.window.rates().ok_or_else(|| no_window(measures))
}

/// Tasks/min, unless nothing says which tasks finished.
fn tasks(measures: &Measures, rates: Result<&Rates, String>) -> Result<f64, String> {
    match &measures.no_programs {
        Some(why) => Err(why.clone()),
        None => rates.map(|rates| rates.tasks_per_min),
    }
}

/// Steps/s, unless nothing says which steps ended.
fn steps_rate(measures: &Measures, rates: Result<&Rates, String>) -> Result<f64, String> {
    match &measures.no_steps {
        Some(why) => Err(why.clone()),
        None if measures.step_s.is_none() && measures.steps_failed == 0 => {
            Err("no step was recorded".to_owned())
        }
        None => rates.map(|rates| rates.steps_per_s),
    }
}

fn rates(rates: Option<&Rates>) -> Result<&Rates, String> {
    rates.ok_or_else(|| "nothing ended".to_owned())
}

fn spread(spread: Option<&Spread>, why: &str) -> Result<Spread, String> {
    spread.copied().ok_or_else(|| why.to_owned())
}

fn steps(measures: &Measures) -> Result<Spread, String> {
    spread(measures.step_s.as_ref(), "no step was served")
}

fn ttft(measures: &Measures) -> Result<Spread, String> {
    spread(measures.ttft_s.as_ref(), "no streams")
}

fn hold(measures: &Measures) -> Result<Spread, String> {
    spread(measures.hold_s.as_ref(), "no gate recorded it")
}

fn programs(measures: &Measures) -> Result<Spread, String> {
    spread(measures.program_s.as_ref(), "no program finished")
}

fn rewards(measures: &Measures) -> Result<Rewards, String> {
    measures
        .rewards
        .ok_or_else(|| "no task was judged".to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
const fn count(number: usize) -> f64 {
    number as f64
}
