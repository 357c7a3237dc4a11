//! Makes trace files: the built-in ones from the source data, and sets drawn from a shape.
//!
//! `kvgate trace tau2|swe --from PATH` reads counts taken from published trajectories: tokens per step, tool seconds.
//! What they lack, mostly the time a gap takes, is drawn from measured distributions. [`tau2`] and [`swe`] state
//! their rules. Without `--from`, the programs are those of `kvgate simulate --shape` with that seed: a live server
//! and the simulation then play the same set. The same input and seed give the same bytes; to read a trace, see
//! [`super::trace`].

pub mod draw;
pub mod swe;
pub mod tau2;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::simulate::shorten::Shorten;
use super::simulate::{Shape, Workload};
use super::stdout;
use super::trace::{Program, Trace};
use crate::policy;

/// Flags of `kvgate trace`.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Shape to draw from (orch, tau2-lognormal, swe, mix, slow, res, cod, blend, review, desk), or tau2 for the recorded
    /// trajectories in another order; with --from, the built-in trace to make (tau2 or swe)
    #[arg(value_name = "SHAPE")]
    pub shape: String,
    /// Folder with the source data of a built-in trace: `tau2_steps.csv`, or `swe_prompt_lengths.json` and
    /// `swe_rounds.json`
    #[arg(long, value_name = "PATH", conflicts_with_all = ["programs", "steps_scale", "gap_scale", "gap_limit"])]
    pub from: Option<PathBuf>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Programs to draw
    #[arg(long, value_name = "N", default_value_t = 96)]
    pub programs: usize,
    /// Share of each program's steps to keep, above 0: a stretch from a place drawn at random, what came before it
    /// being the first message
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub steps_scale: f64,
    /// Factor on every gap
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub gap_scale: f64,
    /// Longest gap: in a short set one straggler would be the makespan of every policy
    #[arg(long, value_name = "S")]
    pub gap_limit: Option<f64>,
}

/// Makes one trace file and says what is in it.
///
/// # Errors
/// When a source file is missing or malformed, or the output cannot be written; the message names the file.
pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    let programs = match &args.from {
        Some(folder) => recorded(&args.shape, folder, args.seed)?,
        None => drawn(args)?,
    };
    let trace = checked(&args.shape, programs)?;
    let about = format!(
        "{}: {} programs, {} steps\n",
        args.out.display(),
        trace.programs.len(),
        trace.steps()
    );
    stdout::write(&args.out, &trace.to_jsonl()?, &about)
}

/// A built-in trace from its source data.
fn recorded(name: &str, folder: &Path, seed: u64) -> anyhow::Result<Vec<Program>> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    match name {
        "tau2" => tau2::make(&read("tau2_steps.csv")?, seed),
        "swe" => swe::make(
            &read("swe_prompt_lengths.json")?,
            &read("swe_rounds.json")?,
            seed,
        ),
        _ => bail!("{name:?} is not made --from source data; choose tau2 or swe"),
    }
}

/// A set drawn from a shape.
fn drawn(args: &TraceArgs) -> anyhow::Result<Vec<Program>> {
    ensure!(args.programs > 0, "--programs: write 1 or more");
    for (flag, value) in [
        ("--steps-scale", args.steps_scale),
        ("--gap-scale", args.gap_scale),
        ("--gap-limit", args.gap_limit.unwrap_or(1.0)),
    ] {
        ensure!(
            value.is_finite() && value > 0.0,
            "{flag}: {value}: write a number above 0"
        );
    }
    let workload = Workload::by_name(&args.shape)?;
    if matches!(workload, Workload::Drawn(Shape::Bursts | Shape::Forks)) {
        bail!(
            "{}: a trace has no forks and no common clock; choose another shape, or simulate it",
            args.shape
        );
    }
    let shorten = Shorten {
        steps: args.steps_scale,
        gaps: args.gap_scale,
        longest_gap: args
            .gap_limit
            .map_or(Duration::MAX, policy::settings::duration),
    };
    let mut programs: Vec<_> = workload.supply(args.seed).take(args.programs).collect();
    for program in &mut programs {
        shorten.apply(program, args.seed);
    }
    Ok(workload.to_trace(&programs))
}

/// Passes programs through the loader, which must have nothing to repair.
fn checked(name: &str, programs: Vec<Program>) -> anyhow::Result<Trace> {
    let made = Trace {
        name: name.to_owned(),
        programs,
        repaired: 0,
    };
    let read = Trace::parse(name, &made.to_jsonl()?)?;
    ensure!(
        read.repaired == 0,
        "{} steps of the made trace shrink their history",
        read.repaired
    );
    Ok(read)
}

#[cfg(test)]
mod tests;
