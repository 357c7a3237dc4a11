//! `kvgate simulate`: the command line around the pure [`simulate`].
//!
//! A cell takes milliseconds, so this is where ideas are tried first. What a simulation says is worth is in its
//! calibration: `kvgate simulate --calibration` holds the model against cells measured on a GPU.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};

use super::simulate::workload::Shape;
use super::simulate::{Experiment, History, Measured, calibration, run as simulate};
use crate::policy;

/// Options of `kvgate simulate`.
#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// Print the model beside the cells measured on an H100, and nothing else
    #[arg(long)]
    pub calibration: bool,

    /// Policies to compare
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1.., default_values_t = policy::Config::NAMES.map(str::to_owned))]
    pub policy: Vec<String>,

    /// What the programs look like
    #[arg(long, value_enum, default_value_t = ShapeName::Orch)]
    pub shape: ShapeName,

    /// Programs at once, one row each
    #[arg(long, value_name = "C", value_delimiter = ',', num_args = 1.., default_values_t = [32, 64])]
    pub concurrency: Vec<u32>,

    /// KV capacity in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 84_800)]
    pub kv_tokens: u32,

    /// Seed of the programs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Seconds before the window
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub warm_up: f64,

    /// Seconds measured
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    pub window: f64,
}

/// The shapes, as named on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ShapeName {
    /// Customer service with long policies, medium gaps
    Tau2Lognormal,
    /// Software engineering: long private contexts, short gaps
    Swe,
    /// An orchestrator with tools, experts and a simulated user
    Orch,
}

impl From<ShapeName> for Shape {
    fn from(name: ShapeName) -> Self {
        match name {
            ShapeName::Tau2Lognormal => Self::Tau2Lognormal,
            ShapeName::Swe => Self::Swe,
            ShapeName::Orch => Self::Orch,
        }
    }
}

/// Runs the cells and prints one line each.
///
/// # Errors
/// An option that cannot work; standard output that cannot be written.
pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    if args.calibration {
        return Ok(calibration::print_calibration()?);
    }
    let text = table(args)?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn table(args: &SimulateArgs) -> anyhow::Result<String> {
    let mut text = String::from(
        "shape, C              policy        steps/s  hit rate  latency s (p99)  running  waiting  preempted\n",
    );
    for &concurrency in &args.concurrency {
        ensure!(
            concurrency > 0,
            "--concurrency: 0 programs do nothing; write 1 or more"
        );
        for name in &args.policy {
            let measured = cell(args, name, concurrency)?;
            let shape = format!("{}, {concurrency}", Shape::from(args.shape).name());
            line(&mut text, &shape, name, &measured);
        }
    }
    Ok(text)
}

fn cell(args: &SimulateArgs, name: &str, concurrency: u32) -> anyhow::Result<Measured> {
    let Some(config) = policy::Config::by_name(name) else {
        bail!(
            "--policy: {name:?} is unknown; choose from {}",
            policy::Config::NAMES.join(", ")
        );
    };
    let seconds = |flag, value| {
        Duration::try_from_secs_f64(value)
            .map_err(|error| anyhow::anyhow!("{flag}: {value}: {error}"))
    };
    let mut experiment = calibration::experiment(args.shape.into(), concurrency, args.seed);
    let blocks = args.kv_tokens / experiment.engine.block_size;
    ensure!(
        blocks > 0,
        "--kv-tokens: {} is less than a block",
        args.kv_tokens
    );
    experiment.engine.blocks = blocks + 1;
    // A trained model's text is cut as it was generated.
    let experiment = Experiment {
        history: History::Kept,
        warm_up: seconds("--warm-up", args.warm_up)?,
        window: seconds("--window", args.window)?,
        ..experiment
    };
    Ok(simulate(&experiment, config.build_unchecked().as_mut()))
}

fn line(text: &mut String, shape: &str, name: &str, measured: &Measured) {
    let _infallible = writeln!(
        text,
        "{shape:<21} {name:<13} {:>7.2} {:>9.3} {:>8.1} ({:>5.1}) {:>8.1} {:>8.1} {:>10}",
        measured.steps_per_s,
        measured.hit_true,
        measured.latency_mean_s,
        measured.latency_p99_s,
        measured.running,
        measured.waiting,
        measured.preemptions,
    );
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(line: &str) -> SimulateArgs {
        Line::parse_from(line.split(' ')).args
    }

    #[test]
    fn one_line_a_cell_and_the_same_bytes_each_time() {
        let args =
            args("simulate --policy baseline,continuum --concurrency 4 --warm-up 5 --window 20");
        let text = table(&args).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(table(&args).unwrap(), text);
    }

    #[test]
    fn an_unknown_policy_lists_the_known() {
        let error = table(&args("simulate --policy fifo"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("baseline, "), "{error}");
    }
}
