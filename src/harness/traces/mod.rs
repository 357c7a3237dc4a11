//! Makes the built-in traces from the source data: `kvgate trace tau2|swe --from PATH --out FILE --seed 1`.
//!
//! The source data are counts taken from published trajectories: tokens per step, tool seconds. What they lack,
//! mostly the time a gap takes, is drawn from measured distributions with a fixed seed, so that the same input
//! and seed give the same bytes. [`tau2`] and [`swe`] state their rules; to read a trace, see [`super::trace`].

pub mod draw;
pub mod swe;
pub mod tau2;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use super::trace::{Program, Trace};

/// Which trace to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Customer service: long shared prefix, few steps, users who think.
    Tau2,
    /// Software engineering: short shared prefix, many steps, fast tools.
    Swe,
}

impl Shape {
    /// The name of the built-in trace.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tau2 => "tau2",
            Self::Swe => "swe",
        }
    }
}

/// Flags of `kvgate trace`.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Which trace to make
    #[arg(value_enum)]
    pub shape: Shape,
    /// Folder with the source data: `tau2_steps.csv`, or `swe_prompt_lengths.json` and `swe_rounds.json`
    #[arg(long, value_name = "PATH")]
    pub from: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Makes one trace file and says what is in it.
///
/// # Errors
/// When a source file is missing or malformed, or the output cannot be written; the message names the file.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    let read = |name: &str| {
        let path = args.from.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let programs = match args.shape {
        Shape::Tau2 => tau2::make(&read("tau2_steps.csv")?, args.seed)?,
        Shape::Swe => swe::make(
            &read("swe_prompt_lengths.json")?,
            &read("swe_rounds.json")?,
            args.seed,
        )?,
    };
    let trace = checked(args.shape.name(), programs)?;
    std::fs::write(&args.out, trace.to_jsonl()?)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    println!(
        "{}: {} programs, {} steps",
        args.out.display(),
        trace.programs.len(),
        trace.steps()
    );
    Ok(())
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
