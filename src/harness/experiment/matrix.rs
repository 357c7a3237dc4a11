//! Policies × concurrencies × repeats: their order, and what is left of them.
//!
//! A cell's own directory says whether it is done: nothing else has to be kept in step with it. One that was cut short
//! goes on where its workload can, or begins anew and its first attempt is put aside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::spec::{Options, Place};

/// Cells of a matrix, one folder each.
pub const CELLS: &str = "cells";
/// Attempts that were cut short and cannot go on.
const INTERRUPTED: &str = "interrupted";

/// A cell and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Which cell.
    pub place: Place,
    /// Its run directory.
    pub dir: PathBuf,
}

/// The cells of an experiment in `dir`, in the order in which they are played. A single one has the directory for
/// itself, those of a matrix a folder each.
pub fn cells(options: &Options, dir: &Path, is_matrix: bool) -> Vec<Planned> {
    let planned = |place: Place| Planned {
        dir: if is_matrix {
            dir.join(CELLS).join(place.to_string())
        } else {
            dir.to_owned()
        },
        place,
    };
    options.places().into_iter().map(planned).collect()
}

/// Moves what an attempt left in `cell` to a folder of its own below `dir`; `keep` are the names that are the
/// experiment's, not the attempt's. Returns where it is now, or `None` if nothing was there.
///
/// # Errors
/// When something cannot be moved; the message names it.
pub fn put_aside(dir: &Path, cell: &Planned, keep: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    let left = match fs::read_dir(&cell.dir) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    };
    let left = left.with_context(|| format!("cannot read {}", cell.dir.display()))?;
    let ours = |name: &str| name == INTERRUPTED || keep.contains(&name);
    let left: Vec<_> = left
        .into_iter()
        .filter(|entry| !entry.file_name().to_str().is_some_and(ours))
        .collect();
    if left.is_empty() {
        return Ok(None);
    }
    let aside = free_name(&dir.join(INTERRUPTED), &cell.place.to_string());
    fs::create_dir_all(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
    for entry in left {
        let to = aside.join(entry.file_name());
        fs::rename(entry.path(), &to).with_context(|| {
            format!("cannot move {} to {}", entry.path().display(), to.display())
        })?;
    }
    Ok(Some(aside))
}

/// The first of `NAME-1`, `NAME-2`, … that is not there.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let mut number = 1_u32;
    loop {
        let path = folder.join(format!("{name}-{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(policies: &[&str], rows: &[usize], repeats: u32) -> Options {
        Options {
            policy: policies.iter().map(|&name| name.to_owned()).collect(),
            concurrency: rows.to_vec(),
            repeats: Some(repeats),
            ..Options::default()
        }
    }

    #[test]
    fn policies_take_turns_in_going_first() {
        let cells = cells(&options(&["a", "b"], &[8, 32], 2), Path::new("x"), true);
        let names: Vec<String> = cells.iter().map(|cell| cell.place.to_string()).collect();
        assert_eq!(
            names,
            [
                "a-c8", "b-c8", "b-c32", "a-c32", "a-c8-r2", "b-c8-r2", "b-c32-r2", "a-c32-r2"
            ]
        );
        assert_eq!(cells[3].dir, Path::new("x/cells/a-c32"));
    }

    #[test]
    fn a_single_cell_has_the_directory_for_itself() {
        let cells = cells(&options(&["a"], &[8], 1), Path::new("x"), false);
        assert_eq!(cells.len(), 1);
        assert_eq!(cells[0].dir, Path::new("x"));
    }

    #[test]
    fn an_attempt_that_cannot_go_on_is_put_aside_and_nothing_is_lost() {
        let temp = tempfile::tempdir().unwrap();
        let cell = Planned {
            place: options(&["a"], &[8], 1).places().remove(0),
            dir: temp.path().to_owned(),
        };
        for attempt in ["first", "second"] {
            fs::write(temp.path().join("steps.jsonl"), attempt).unwrap();
            fs::write(temp.path().join("experiment.toml"), "kept").unwrap();
            put_aside(temp.path(), &cell, &["experiment.toml"]).unwrap();
        }

        let nothing = put_aside(temp.path(), &cell, &["experiment.toml"]).unwrap();

        assert_eq!(nothing, None);
        let read = |name: &str| fs::read_to_string(temp.path().join(name)).unwrap();
        assert_eq!(read("interrupted/a-c8-1/steps.jsonl"), "first");
        assert_eq!(read("interrupted/a-c8-2/steps.jsonl"), "second");
        assert_eq!(read("experiment.toml"), "kept");
    }
}
