//! Replays recorded cases of the reference schedulers against this crate's policies: `kvgate check-vectors`.
//!
//! Here is what every kind of file shares, the [`Tally`]. Each kind's format has a module of its own.

pub mod continuum;

/// The outcome of checking one or more files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cases that came out as recorded.
    pub passed: usize,
    /// Cases that did not.
    pub failed: usize,
    /// One line per failed case: its name, what was expected and what came.
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

    /// Adds what `other` counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.lines.extend(other.lines);
    }
}
