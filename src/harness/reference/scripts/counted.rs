//! What the scripts took for ended tasks and steps: the lines that grep gave them, and the first time on each.

use std::fs::File;
use std::path::Path;

use memchr::memmem;

use crate::harness::reference::files::DRIVER_LOG;
use crate::harness::reference::lines::Finder;
use crate::harness::reference::local_time::{self, LocalTime, Zone};
use crate::harness::reference::python;

const TASK: &str = "FINISHED SIMULATION";
const STEP: &str = "type=step_complete";
const STEP_TIME: &str = "[PROFILE] ";

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Task,
    Step,
}

/// Where the scripts put what ended: before, inside and after the active window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub before: i64,
    pub inside: i64,
    pub after: i64,
}

impl Counts {
    pub(super) const fn add(&mut self, at_s: i64, window: &crate::harness::window::Window) {
        if at_s < window.start_s {
            self.before += 1;
        } else if at_s <= window.end_s {
            self.inside += 1;
        } else {
            self.after += 1;
        }
    }
}

/// Calls `each` with what ended and when, in Unix seconds, in the order of the log.
///
/// The scripts ignored that grep failed, so what cannot be read counts as empty.
pub(super) fn ended(run: &Path, zone: &Zone, mut each: impl FnMut(Ended, i64)) {
    let (Ok(file), Ok(finder)) = (File::open(run.join(DRIVER_LOG)), Finder::new(&[TASK, STEP]))
    else {
        return;
    };
    let mut each = |line: &[u8]| ended_in(line, |what, at| each(what, zone.unix_s(at)));
    let _unread = finder.lines(file, &mut each);
}

/// A line of the log is several to Python where it holds a character that ends one there. Each of those counts,
/// whether or not what grep looked for is on it.
fn ended_in(line: &[u8], mut each: impl FnMut(Ended, LocalTime)) {
    let (is_task, is_step) = (holds(line, TASK), holds(line, STEP));
    let text = String::from_utf8_lossy(line);
    for piece in text.split(python::is_line_end) {
        let task = is_task.then(|| first_time(piece.as_bytes())).flatten();
        let step = is_step.then(|| step_time(piece.as_bytes())).flatten();
        if let Some(at) = task {
            each(Ended::Task, at);
        }
        if let Some(at) = step {
            each(Ended::Step, at);
        }
    }
}

fn holds(line: &[u8], text: &str) -> bool {
    memmem::find(line, text.as_bytes()).is_some()
}

/// The first text of a time's shape, if it is a time.
pub(super) fn first_time(piece: &[u8]) -> Option<LocalTime> {
    local_time::find(piece).and_then(|at| LocalTime::parse(&piece[at..]))
}

/// The first time behind `[PROFILE] ` that has the step's mark behind it.
fn step_time(piece: &[u8]) -> Option<LocalTime> {
    let marks = memmem::find_iter(piece, STEP_TIME);
    let times = marks.map(|at| &piece[at + STEP_TIME.len()..]);
    let mut fitting = times.filter(|rest| local_time::find(rest) == Some(0) && holds(rest, STEP));
    fitting.next().and_then(LocalTime::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(line: &str) -> (Vec<i64>, Vec<i64>) {
        let (mut tasks, mut steps) = (Vec::new(), Vec::new());
        ended_in(line.as_bytes(), |what, at| match what {
            Ended::Task => tasks.push(at.seconds % 60),
            Ended::Step => steps.push(at.seconds % 60),
        });
        (tasks, steps)
    }

    #[test]
    fn a_line_counts_once_with_its_first_time() {
        let line = "DEBUG 2026-01-05 08:00:01 x 2026-01-05 08:00:02 | FINISHED SIMULATION FINISHED SIMULATION";
        assert_eq!(seconds(line), (vec![1], vec![]));
        assert_eq!(
            seconds("2026-13-05 08:00:01 2026-01-05 08:00:02 FINISHED SIMULATION"),
            (vec![], vec![])
        );
        assert_eq!(
            seconds("FINISHED SIMULATION without a time"),
            (vec![], vec![])
        );
    }

    #[test]
    fn a_step_takes_the_first_profile_time_before_its_mark() {
        let line = "[PROFILE] x 2026-01-05 08:00:00[PROFILE] 2026-01-05 08:00:01 type=llm_call\
            [PROFILE] 2026-01-05 08:00:02 type=step_complete [PROFILE] 2026-01-05 08:00:03";
        assert_eq!(seconds(line), (vec![], vec![1]));
        assert_eq!(
            seconds("type=step_complete [PROFILE] 2026-01-05 08:00:02"),
            (vec![], vec![])
        );
    }

    #[test]
    fn a_line_that_python_takes_for_two_counts_twice() {
        let line = "2026-01-05 08:00:01 a\r2026-01-05 08:00:02 FINISHED SIMULATION\u{2028}\u{85}2026-01-05 08:00:03";
        assert_eq!(seconds(line), (vec![1, 2, 3], vec![]));
        let line = "[PROFILE] 2026-01-05 08:00:01\x0btype=step_complete";
        assert_eq!(seconds(line), (vec![], vec![]));
    }
}
