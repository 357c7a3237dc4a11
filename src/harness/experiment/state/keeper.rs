//! Keeps `state.json` up to date while an experiment is played.

use std::path::{Path, PathBuf};

use super::State;
use crate::harness::rundir;

/// Seconds between two writings of what only counts up.
const EVERY_S: f64 = 1.0;

/// Writes an experiment's state, at most once a second unless something new began or ended.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    state: State,
    written: Option<(f64, Shape)>,
    /// The last attempt failed, and that was said.
    failing: bool,
}

/// What is written at once when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape(super::Phase, Vec<super::CellStatus>);

impl Shape {
    fn of(state: &State) -> Self {
        Self(
            state.phase,
            state.cells.iter().map(|cell| cell.status).collect(),
        )
    }
}

/// Whether it is time to write what was last written at `written_s`. Pure.
pub fn is_due(written_s: Option<f64>, now_s: f64) -> bool {
    // A clock that was set back must not silence it.
    written_s.is_none_or(|written_s| now_s >= written_s + EVERY_S || now_s < written_s)
}

impl Keeper {
    /// A keeper of `state` in the experiment's directory, which writes it at its first [`Self::update`].
    pub fn new(dir: &Path, state: State) -> Self {
        Self {
            path: dir.join(super::FILE),
            state,
            written: None,
            failing: false,
        }
    }

    /// What is known.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Changes what is known, and writes it if it is time: a phase or a cell's status at once, all else once a second.
    ///
    /// A run goes on when its state cannot be written, as on a full disk: its records are worth more. The answer is a
    /// line to say, when that begins and when it is over; the next attempt is a second later.
    pub fn update(&mut self, now_s: f64, change: impl FnOnce(&mut State)) -> Option<String> {
        change(&mut self.state);
        let shape = Shape::of(&self.state);
        let due = match &self.written {
            Some((written_s, written)) => *written != shape || is_due(Some(*written_s), now_s),
            None => true,
        };
        if !due {
            return None;
        }
        self.state.updated_s = now_s;
        self.written = Some((now_s, shape));
        let text = serde_json::to_string_pretty(&self.state).map_err(anyhow::Error::from);
        let saved =
            text.and_then(|text| rundir::replace(&self.path, format!("{text}\n").as_bytes()));
        match (saved, self.failing) {
            (Err(error), false) => {
                self.failing = true;
                Some(format!(
                    "{error:#}; the run goes on, but `status` no longer sees it"
                ))
            }
            (Ok(()), true) => {
                self.failing = false;
                Some(format!("{} is written again", self.path.display()))
            }
            _ => None,
        }
    }
}
