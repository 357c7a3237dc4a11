//! How a run ended, whatever the driver's exit status says.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitStatus;

use super::follow::Seen;
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
        "run_oss.py ended {far} ({status}); its log ends:\n{}",
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
