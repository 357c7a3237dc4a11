//! A run directory, whichever system wrote it, into one plain [`Run`].

pub mod kv;
pub mod lines;
pub mod naming;
pub mod own;
pub mod reference;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use self::naming::Named;
use super::zone::LogZone;
use crate::harness::experiment::matrix::CELLS;
use crate::harness::run::Run;

/// One directory to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The directory.
    pub dir: PathBuf,
    /// What to call it; from its metadata if `None`.
    pub label: Option<String>,
}

impl Source {
    /// This directory, called what its metadata say.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            label: None,
        }
    }

    /// This directory, or, if it is no run but a matrix of `kvgate experiment`, each of its cells that was begun, in the
    /// order of their names; what is left out is told to `notes`.
    ///
    /// # Errors
    /// When a folder of cells cannot be read, or none holds a run; the message names it.
    pub fn all_at(dir: &Path, notes: &mut Vec<String>) -> anyhow::Result<Vec<Self>> {
        let folder = dir.join(CELLS);
        if is_run(dir) || !folder.is_dir() {
            return Ok(vec![Self::at(dir)]);
        }
        let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.with_context(|| format!("cannot read {}", folder.display()))?;
        let mut cells: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        cells.sort();
        let (runs, others): (Vec<_>, Vec<_>) = cells.into_iter().partition(|cell| is_run(cell));
        ensure!(
            !runs.is_empty(),
            "no cell of {} was begun: there is nothing to report",
            dir.display()
        );
        notes.extend(
            others
                .iter()
                .map(|cell| format!("{} holds no run and is left out", cell.display())),
        );
        Ok(runs.iter().map(|run| Self::at(run)).collect())
    }

    /// Reads `NAME=DIR`.
    ///
    /// # Errors
    /// Says what is expected.
    pub fn labelled(text: &str) -> anyhow::Result<Self> {
        match text.split_once('=') {
            Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok(Self {
                dir: PathBuf::from(dir),
                label: Some(name.to_owned()),
            }),
            _ => bail!("--label takes NAME=DIR, not {text:?}"),
        }
    }
}

/// Reads every directory; labels are made unique.
///
/// # Errors
/// When one is no run directory or cannot be read; the message names it.
pub fn all(sources: &[Source], log_zone: Option<&LogZone>) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for source in sources {
        let mut run = one(&source.dir, log_zone)?;
        name(&mut run, source);
        runs.push(run);
    }
    number_repeats(&mut runs);
    Ok(runs)
}

fn is_run(dir: &Path) -> bool {
    own::is_there(dir) || reference::is_there(dir)
}

fn one(dir: &Path, log_zone: Option<&LogZone>) -> anyhow::Result<Run> {
    ensure!(dir.is_dir(), "{} is no directory", dir.display());
    let mut run = if own::is_there(dir) {
        own::read(dir)?
    } else if reference::is_there(dir) {
        reference::read(dir, log_zone)?
    } else {
        bail!(
            "{} is no run directory: it has neither steps.jsonl or client_steps.jsonl (kvgate) nor driver.log, \
             logs/ or outputs/ (reference system)",
            dir.display()
        );
    };
    dir.clone_into(&mut run.dir);
    Ok(run)
}

/// Names a run by its flag or its metadata. Where the metadata lack policy or concurrency, a flag such as
/// `TR32` gives them.
fn name(run: &mut Run, source: &Source) {
    let folder = source.dir.file_name().unwrap_or_default().to_string_lossy();
    let label = source.label.as_deref();
    let given = [label, Some(&*folder)]
        .into_iter()
        .flatten()
        .filter_map(Named::parse);
    for named in given {
        if run.policy.is_empty() || run.policy == "unknown" {
            named.policy.clone_into(&mut run.policy);
        }
        run.concurrency = run.concurrency.or(Some(named.concurrency));
    }
    if run.policy.is_empty() {
        "unknown".clone_into(&mut run.policy);
    }
    run.label = match (label, run.concurrency) {
        (Some(label), _) => label.to_owned(),
        (None, Some(concurrency)) => format!("{} C={concurrency}", run.policy),
        (None, None) => run.policy.clone(),
    };
}

/// `baseline C=8`, `baseline C=8 #2`, ...
fn number_repeats(runs: &mut [Run]) {
    let mut seen: Vec<(String, usize)> = Vec::new();
    for run in runs {
        match seen.iter_mut().find(|(label, _)| *label == run.label) {
            Some((_, count)) => {
                *count += 1;
                run.label = format!("{} #{count}", run.label);
            }
            None => seen.push((run.label.clone(), 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_numbered_and_flags_fill_what_is_unknown() {
        let mut runs = Vec::new();
        for (dir, label) in [("a/x", Some("TR32")), ("a/bl64", None), ("b/bl64", None)] {
            let mut run = Run::default();
            let source = Source {
                dir: dir.into(),
                label: label.map(str::to_owned),
            };
            name(&mut run, &source);
            runs.push(run);
        }
        number_repeats(&mut runs);
        let named: Vec<_> = runs
            .iter()
            .map(|run| (run.label.as_str(), run.policy.as_str()))
            .collect();
        assert_eq!(
            named,
            [
                ("TR32", "thunderreact"),
                ("baseline C=64", "baseline"),
                ("baseline C=64 #2", "baseline")
            ]
        );
        assert_eq!(runs[0].concurrency, Some(32));
    }

    #[test]
    fn what_is_no_run_directory_is_named_with_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = one(dir.path(), None).unwrap_err().to_string();
        assert!(
            error.contains("steps.jsonl") && error.contains("driver.log"),
            "{error}"
        );
        assert!(Source::labelled("nodir").is_err());
    }
}
