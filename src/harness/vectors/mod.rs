//! Replays recorded cases of the reference schedulers against this crate's policies: `kvgate check-vectors`.
//!
//! Here is what every kind of file shares: the command and the [`Tally`]. Each kind's format has a module of its
//! own, and drives the code that `kvgate serve` runs.

pub mod continuum;
pub mod thunderagent;
pub mod thunderreact;

mod entries;
mod python;

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;

use clap::ValueEnum;

/// Options of `kvgate check-vectors`.
#[derive(Clone, Debug, clap::Args)]
pub struct VectorsArgs {
    /// Whose decisions the files record
    pub kind: Kind,

    /// The files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Whose decisions a file records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The reference experiment's router
    Thunderreact,
    /// The original ThunderAgent scheduler
    Thunderagent,
    /// Continuum, as its oracle decides
    Continuum,
}

/// Checks every file, and writes one line per failed case and the sums on the last. A file that cannot be read or
/// is not of its kind's format counts as one failed case.
///
/// # Errors
/// `out` cannot be written.
pub fn check(args: &VectorsArgs, out: &mut impl Write) -> anyhow::Result<Tally> {
    let mut sum = Tally::default();
    for file in &args.files {
        let tally = match args.kind {
            Kind::Thunderreact => thunderreact::check(file),
            Kind::Thunderagent => thunderagent::check(file),
            Kind::Continuum => continuum::check(file),
        };
        match tally {
            Ok(tally) if tally == Tally::default() => {
                sum.case(&file.display().to_string(), Err("holds no case".to_owned()));
            }
            Ok(tally) => sum.add(tally),
            Err(error) => sum.case(&file.display().to_string(), Err(format!("{error:#}"))),
        }
    }
    sum.write(out)?;
    Ok(sum)
}

/// The outcome of checking one or more files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cases that came out as recorded.
    pub passed: usize,
    /// Cases that did not.
    pub failed: usize,
    /// One line per failed case: its name, what was expected and what came; and one per file passed over.
    pub lines: Vec<String>,
}

impl Tally {
    /// Counts one case; `outcome` says what differed.
    pub fn case(&mut self, name: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(difference) => {
                self.failed += 1;
                self.lines.push(format!("{name}: {difference}"));
            }
        }
    }

    /// Checks one case and counts it. A case so absurd that the code under test panics has failed, and the others
    /// are checked all the same.
    pub fn attempt(&mut self, name: &str, check: impl FnOnce() -> Result<(), String>) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(check));
        self.case(name, outcome.unwrap_or_else(|_| Err("panicked".to_owned())));
    }

    /// Notes a file without cases of this kind.
    pub fn pass_over(&mut self, why: &str) {
        self.lines.push(format!("passed over: {why}"));
    }

    /// Writes one line per failed case, and the sums on the last.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for line in &self.lines {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{} passed, {} failed", self.passed, self.failed)
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.lines.extend(other.lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_fails_and_the_others_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("good.json");
        std::fs::write(
            &good,
            r#"{"program_id": [{"payload": {}, "program_id": "default"}]}"#,
        )
        .unwrap();
        let args = VectorsArgs {
            kind: Kind::Thunderreact,
            files: vec![folder.path().join("missing.json"), good],
        };
        let mut out = Vec::new();
        let tally = check(&args, &mut out).unwrap();
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert!(
            String::from_utf8(out)
                .unwrap()
                .ends_with("1 passed, 1 failed\n")
        );
    }

    #[test]
    fn a_file_without_a_case_fails() {
        let folder = tempfile::tempdir().unwrap();
        for (kind, text) in [
            (Kind::Thunderreact, "{}"),
            (Kind::Thunderagent, "[]"),
            (Kind::Continuum, "[]"),
            (Kind::Thunderagent, r#"{"cases": [{}]}"#),
        ] {
            let file = folder.path().join("file.json");
            std::fs::write(&file, text).unwrap();
            let files = vec![file];
            let tally = check(&VectorsArgs { kind, files }, &mut Vec::new()).unwrap();
            assert_eq!((tally.passed, tally.failed), (0, 1), "{kind:?} {text}");
        }
    }

    #[test]
    fn a_case_that_panics_fails_and_the_others_are_checked() {
        let mut tally = Tally::default();
        tally.attempt("absurd", || panic!("a sum overflows"));
        tally.attempt("sound", || Ok(()));
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert_eq!(tally.lines, ["absurd: panicked"]);
    }

    #[test]
    fn the_last_line_has_the_sums() {
        let mut tally = Tally::default();
        tally.case("a", Ok(()));
        tally.case("b", Err("expected 1, came 2".to_owned()));
        let mut out = Vec::new();
        tally.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "b: expected 1, came 2\n1 passed, 1 failed\n");
    }
}
