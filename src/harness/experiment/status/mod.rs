//! `kvgate experiment status`: who plays an experiment, how far it is, and whether it still moves.
//!
//! Read from files alone, by another process, from anywhere.

mod text;
mod view;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

pub use text::to_text;
pub use view::{Kv, Pace, Verdict, View};

use super::state::State;
use crate::clock::Clock;
use crate::harness::stdout;

/// Exit status for what failed, was interrupted, or ended without a word.
pub const BAD: u8 = 3;
/// Exit status for what is no experiment.
pub const NOT_ONE: u8 = 2;
/// Where experiments lie unless another place is named.
const RUNS: &str = "runs";
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Tell how far experiments are, from their files: who plays them, cells, pace, and when something last happened.
///
/// Exit status: 0 if all run or were played to their ends; 3 if one failed, was interrupted, or its process ended without
/// a word; 2 if one of the directories is no experiment.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Experiments' directories [default: the newest in runs/]
    #[arg(value_name = "DIR")]
    pub dirs: Vec<PathBuf>,

    /// Print one JSON array instead
    #[arg(long)]
    pub json: bool,

    /// Print it again every so many seconds, until nothing runs any more
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
}

/// Prints the state of the experiments.
///
/// # Errors
/// When it cannot be printed.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let dirs = if args.dirs.is_empty() {
        let Some(dir) = newest(Path::new(RUNS))? else {
            stdout::say(&format!(
                "there is no experiment in {RUNS}/: name a directory\n"
            ))?;
            return Ok(ExitCode::from(NOT_ONE));
        };
        vec![dir]
    } else {
        args.dirs.clone()
    };
    let clear = args.watch.is_some() && !args.json && std::io::stdout().is_terminal();
    loop {
        let clock = Clock::real();
        let shown = show(&dirs, clock.unix(clock.now()), args.json)?;
        stdout::say(&format!("{}{}", if clear { CLEAR } else { "" }, shown.text))?;
        match args.watch {
            Some(seconds) if shown.runs => tokio::time::sleep(Duration::from_secs(seconds)).await,
            _ => return Ok(ExitCode::from(shown.code)),
        }
    }
}

/// What is printed once.
struct Shown {
    text: String,
    code: u8,
    /// Whether any of them runs.
    runs: bool,
}

fn show(dirs: &[PathBuf], now_s: f64, json: bool) -> anyhow::Result<Shown> {
    let mut code = 0;
    let mut views = Vec::new();
    let mut texts = Vec::new();
    for dir in dirs {
        match View::of(dir, now_s) {
            Ok(Some(view)) => {
                if code != NOT_ONE {
                    code = code.max(view.verdict.exit());
                }
                texts.push(to_text(&view));
                views.push(view);
            }
            Ok(None) => {
                code = NOT_ONE;
                texts.push(format!(
                    "{} is no experiment: it has no state.json\n",
                    dir.display()
                ));
            }
            Err(error) => {
                code = NOT_ONE;
                texts.push(format!("{error:#}\n"));
            }
        }
    }
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(&views)?)
    } else {
        texts.join("\n")
    };
    Ok(Shown {
        text,
        code,
        runs: views.iter().any(|view| view.verdict == Verdict::Running),
    })
}

/// The experiment in `folder` that began last; `None` if there is none.
fn newest(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    let began = |dir: PathBuf| Some((State::read(&dir).ok()??.began_s, dir));
    let experiments = entries.flatten().filter_map(|entry| began(entry.path()));
    let newest = experiments.max_by(|a, b| a.0.total_cmp(&b.0));
    Ok(newest.map(|(_, dir)| dir))
}

#[cfg(test)]
mod tests;
