//! From the command line to a directory that is held and played.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use jiff::Zoned;

use super::Runner;
use super::checked::Checked;
use crate::harness::experiment::console::Console;
use crate::harness::experiment::detach::{self, Launch};
use crate::harness::experiment::spec::{self, Options};
use crate::harness::experiment::state::{self, Lock};
use crate::harness::experiment::{Manner, ResumeArgs, RunArgs, asking, preflight};
use crate::harness::stdout;

/// Exit status for flags that cannot be used, as clap uses it.
const USAGE: u8 = 2;

/// All that a failed preflight leaves in a folder.
const UNTOUCHED: [&str; 4] = [spec::FILE, state::FILE, state::LOG, state::LOCK];

/// `kvgate experiment run` and `matrix`.
///
/// # Errors
/// What kept the experiment from being played.
pub async fn begin(args: RunArgs, is_matrix: bool) -> anyhow::Result<ExitCode> {
    let options = Options {
        matrix: Some(is_matrix),
        ..args.options.over(args.config.as_deref())?
    };
    let checked = match Checked::of(&options) {
        Ok(checked) => checked,
        Err(problems) => return Ok(complain(&problems)),
    };
    if args.manner.check {
        let findings = preflight::check(&asking::of(
            &options,
            &checked.workload,
            &checked.engine,
            Path::new("."),
        ))
        .await;
        stdout::say(&format!("{}\n", preflight::to_text(&findings)))?;
        return Ok(ExitCode::from(u8::from(preflight::is_fatal(&findings))));
    }
    let dir = match &args.manner.background.detached {
        Some(dir) => dir.clone(),
        None => make(args.out.as_deref(), &options)?,
    };
    play_or_leave(dir, options, checked, &args.manner).await
}

/// `kvgate experiment resume`.
///
/// # Errors
/// What kept the experiment from being played.
pub async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    let options = Options::of(&args.dir)?;
    let checked = match Checked::of(&options) {
        Ok(checked) => checked,
        Err(problems) => return Ok(complain(&problems)),
    };
    play_or_leave(args.dir, options, checked, &args.manner).await
}

async fn play_or_leave(
    dir: PathBuf,
    options: Options,
    checked: Checked,
    manner: &Manner,
) -> anyhow::Result<ExitCode> {
    if manner.background.detach && manner.background.detached.is_none() {
        return Launch::again(&dir)?.start(&mut std::io::stdout()).await;
    }
    let detached = manner.background.detached.is_some();
    if detached {
        detach::settle()?;
    }
    let _held = Lock::take(&dir)?;
    let console = Console::open(&dir, detached)?;
    console.survive_hangup()?;
    let played = Box::pin(Runner::new(dir, options, checked, manner, &console)?.play()).await;
    if let Err(error) = &played {
        console.say(&format!("failed: {error:#}"));
        return Ok(ExitCode::FAILURE);
    }
    played
}

fn complain(problems: &[String]) -> ExitCode {
    for problem in problems {
        // A terminal that is gone has nobody to tell.
        let _gone = writeln!(std::io::stderr(), "kvgate: {problem}");
    }
    ExitCode::from(USAGE)
}

/// Makes the directory of a new experiment and writes what was asked for into it.
fn make(out: Option<&Path>, options: &Options) -> anyhow::Result<PathBuf> {
    let dir = out.map_or_else(
        || {
            let time = Zoned::now().strftime("%Y%m%d_%H%M%S");
            PathBuf::from(format!("runs/experiment_{time}"))
        },
        Path::to_owned,
    );
    refuse_used(&dir)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Of the experiment whose preflight failed here; this is another. Fails only where there is none.
    let _none = std::fs::remove_file(dir.join(state::FILE));
    let file = dir.join(spec::FILE);
    std::fs::write(&file, options.to_toml()?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(dir)
}

/// A folder that holds anything is not ours to play in: an attempt's leavings are moved about in it. One that only a
/// failed preflight has touched is as good as new.
fn refuse_used(dir: &Path) -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    let names: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot read {}", dir.display()))?;
    let is_untouched = |name: &std::ffi::OsString| UNTOUCHED.iter().any(|ours| name == ours);
    if names.iter().all(is_untouched) {
        // Held by whoever is in its preflight right now.
        return if names.is_empty() {
            Ok(())
        } else {
            Lock::take(dir).map(drop)
        };
    }
    let at = dir.display();
    if dir.join(spec::FILE).exists() {
        bail!(
            "{at} holds an experiment already: `kvgate experiment resume {at}` goes on with it, another --out begins a \
             new one"
        );
    }
    bail!("{at} is not empty: name a new folder with --out")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dir: &Path) -> String {
        match make(Some(dir), &Options::default()) {
            Ok(_) => "made".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_folder_with_anything_in_it_is_refused_and_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("notes.txt"), "mine").unwrap();
        assert!(made(temp.path()).contains("is not empty"));
        assert!(!temp.path().join(spec::FILE).exists());
    }

    #[test]
    fn what_a_failed_preflight_left_may_be_begun_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("x");
        assert_eq!(made(&dir), "made");
        std::fs::write(dir.join(state::FILE), "of another command").unwrap();
        assert_eq!(made(&dir), "made");
        assert!(!dir.join(state::FILE).exists(), "it begins anew");
        std::fs::write(dir.join("steps.jsonl"), "").unwrap();
        assert!(made(&dir).contains("resume"), "it has been played");
    }
}
