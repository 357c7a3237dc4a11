//! `kvgate simulate`: the command line around the pure [`simulate`].
//!
//! A cell takes milliseconds, so this is where ideas are tried first. What a simulation says is worth is in its
//! calibration: `kvgate simulate --calibration` holds the model against cells measured on a GPU.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{bail, ensure};
use clap::Args;

use super::simulate::calibration::{self, h100};
use super::simulate::{Cell, Measured, Shape, Workload, fixed_set};
use super::trace::Trace;
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

    /// What the programs look like: a shape, or `tau2` for the recorded trajectories in an order drawn from the seed
    #[arg(long, value_name = "NAME", default_value = "orch")]
    pub shape: String,

    /// Programs at once, one row each
    #[arg(long, value_name = "C", value_delimiter = ',', num_args = 1.., default_values_t = [32, 64])]
    pub concurrency: Vec<u32>,

    /// Programs in the set [default: 2C + 32]
    #[arg(long, value_name = "N")]
    pub programs: Option<usize>,

    /// KV capacity in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 84_800)]
    pub kv_tokens: u32,

    /// Seed of the programs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Runs the cells and prints one line each.
///
/// # Errors
/// An option that cannot work; standard output that cannot be written.
pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    let text = if args.calibration {
        calibration::render(&calibration::calibration_table())
    } else {
        table(args)?
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn table(args: &SimulateArgs) -> anyhow::Result<String> {
    let mut text = String::from(
        "shape, C              policy        makespan s  steps/s  hit rate  program s mean     p95  hold s  running  waiting  preempted\n",
    );
    for &concurrency in &args.concurrency {
        ensure!(
            concurrency > 0,
            "--concurrency: 0 programs do nothing; write 1 or more"
        );
        for name in &args.policy {
            let measured = cell(args, name, concurrency)?;
            let shape = format!("{}, {concurrency}", args.shape);
            line(&mut text, &shape, name, &measured);
        }
    }
    Ok(text)
}

fn workload(name: &str) -> anyhow::Result<Workload> {
    if let Some(shape) = Shape::by_name(name) {
        return Ok(Workload::Drawn(shape));
    }
    if name == "tau2" {
        return Ok(Workload::resampled(&Trace::load(name)?));
    }
    let shapes = Shape::ALL.map(Shape::name).join(", ");
    bail!("--shape: {name:?} is unknown; choose from tau2, {shapes}")
}

fn cell(args: &SimulateArgs, name: &str, concurrency: u32) -> anyhow::Result<Measured> {
    let Some(config) = policy::Config::by_name(name) else {
        bail!(
            "--policy: {name:?} is unknown; choose from {}",
            policy::Config::NAMES.join(", ")
        );
    };
    let mut engine = h100();
    let blocks = args.kv_tokens / engine.block_size;
    ensure!(
        blocks > 0,
        "--kv-tokens: {} is less than a block",
        args.kv_tokens
    );
    engine.blocks = blocks + 1;
    let mut cell = Cell::new(workload(&args.shape)?, concurrency, args.seed, engine);
    cell.programs = args.programs.unwrap_or(cell.programs).max(1);
    Ok(fixed_set(&cell, config.build_unchecked().as_mut()))
}

fn line(text: &mut String, shape: &str, name: &str, measured: &Measured) {
    let _infallible = writeln!(
        text,
        "{shape:<21} {name:<13} {:>10.1} {:>8.2} {:>9.3} {:>15.1} {:>7.1} {:>7.1} {:>8.1} {:>8.1} {:>10}",
        measured.makespan_s,
        measured.steps_per_s,
        measured.hit_true,
        measured.program_mean_s,
        measured.program_p95_s,
        measured.hold_max_s,
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
        let args = args("simulate --policy baseline,continuum --concurrency 4 --programs 8");
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
