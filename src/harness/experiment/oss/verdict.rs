//! How a run ended, whatever the driver's exit status says.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitStatus;

use super::follow::Seen;
use crate::harness::child::ending;
use crate::harness::reference::files;
use crate::harness::reference::outputs::Metrics;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Tasks that were played to their end.
    pub ok: u64,
    /// Tasks that failed.
    pub error: u64,
    /// Tasks, times trials; 0 where the driver did not get so far. What is neither `ok` nor `error` is missing.
    pub total: u64,
    /// What is wrong, as one line and, where it helps, the log's last lines; `None` if every task was played.
    pub why: Option<String>,
}

/// How the driver ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It was ended.
    Stopped,
}

/// Judges the run in `dir`.
pub(super) fn of(dir: &Path, end: End, seen: &Seen) -> anyhow::Result<Verdict> {
    let metrics = files::metrics(dir)?;
    let results = files::task_results(dir, |_| {})?;
    Ok(judge(end, seen, metrics.as_ref(), results))
}

/// `results` is the number of the tasks' files.
fn judge(end: End, seen: &Seen, metrics: Option<&Metrics>, results: u64) -> Verdict {
    let (ok, error, total) = metrics.map_or((seen.ok, seen.error, seen.total), |metrics| {
        (metrics.ok, metrics.error, metrics.total)
    });
    let mut verdict = Verdict {
        ok,
        error,
        total,
        why: None,
    };
    let done = ok + error;
    verdict.why = match end {
        End::Stopped => Some(format!("it was stopped: {done} of {total} tasks were done")),
        End::Exited(status) if !status.success() || metrics.is_none() => {
            Some(cut_short(status, &verdict, seen))
        }
        End::Exited(_) if error > 0 => Some(failed(&verdict, seen)),
        End::Exited(_) if done < total || results < total => Some(format!(
            "{} of {total} tasks left no result",
            total - done.min(results)
        )),
        End::Exited(_) => None,
    };
    verdict
}

fn cut_short(status: ExitStatus, verdict: &Verdict, seen: &Seen) -> String {
    let Verdict {
        ok, error, total, ..
    } = verdict;
    let far = match total {
        0 => "before its first task".to_owned(),
        _ => format!("with {} of {total} tasks done", ok + error),
    };
    format!(
        "run_oss.py {}, {far}; its log ends:\n{}",
        ending(status),
        seen.last.join("\n")
    )
}

fn failed(verdict: &Verdict, seen: &Seen) -> String {
    let mut text = format!("{} of {} tasks failed", verdict.error, verdict.total);
    let mut before = ": ";
    for (cause, count) in &seen.causes {
        // Writing to a string cannot fail.
        let _written = write!(text, "{before}{count} by {cause}");
        before = ", ";
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn seen(total: u64, ok: u64, error: u64) -> Seen {
        let mut seen = Seen::default();
        (seen.total, seen.ok, seen.error) = (total, ok, error);
        seen.last = vec!["Traceback".to_owned(), "KeyError: 'x'".to_owned()];
        seen
    }

    fn metrics(total: u64, ok: u64, error: u64) -> Metrics {
        Metrics {
            domains: Vec::new(),
            total,
            ok,
            error,
            elapsed_s: 1.0,
            tasks_per_min: 1.0,
        }
    }

    fn success() -> End {
        End::Exited(ExitStatus::from_raw(0))
    }

    #[test]
    fn only_a_run_whose_every_task_has_its_result_is_whole() {
        let whole = judge(success(), &seen(3, 3, 0), Some(&metrics(3, 3, 0)), 3);
        assert_eq!(whole.why, None);
        let unwritten = judge(success(), &seen(3, 3, 0), Some(&metrics(3, 3, 0)), 1);
        assert_eq!(unwritten.why.unwrap(), "2 of 3 tasks left no result");
    }

    #[test]
    fn a_run_without_its_summary_did_not_come_to_its_end_whatever_the_status() {
        let verdict = judge(success(), &seen(9, 4, 1), None, 5);
        assert_eq!((verdict.ok, verdict.error, verdict.total), (4, 1, 9));
        let why = verdict.why.unwrap();
        assert!(why.contains("with 5 of 9 tasks done"), "{why}");
        assert!(why.contains("KeyError"), "{why}");
    }

    #[test]
    fn a_driver_that_was_killed_is_told_by_its_signal() {
        // As its guard tells it: 128 and the signal.
        let killed = End::Exited(ExitStatus::from_raw((128 + 9) << 8));
        let why = judge(killed, &seen(9, 4, 0), None, 4).why.unwrap();
        assert!(why.contains("killed by signal 9"), "{why}");
    }

    #[test]
    fn causes_are_counted_in_one_line() {
        let mut seen = seen(5, 2, 3);
        seen.causes.insert("LLMTimeoutError".to_owned(), 2);
        seen.causes.insert("ValueError".to_owned(), 1);
        let why = judge(success(), &seen, Some(&metrics(5, 2, 3)), 5)
            .why
            .unwrap();
        assert_eq!(
            why,
            "3 of 5 tasks failed: 2 by LLMTimeoutError, 1 by ValueError"
        );
    }
}
