//! What a page shows, as plain data: filled by the analysis, drawn by [`render`](super::render).
//!
//! * Times are seconds since the run's start, the zero of its plots; durations are seconds; shares are percent.
//! * What may be missing is [`Known`]: the figure, or a sentence that says why it is not there. The sentence is shown
//!   where the figure would stand, so it begins small and ends without a full stop.
//! * A `NaN` in a series is a gap in its line.
//! * Every text is plain text; the page escapes it.
//! * Series may be as long as they are: the page thins what it draws and keeps the peaks.

use super::super::stats::percentile;

/// A figure, or why there is none.
pub type Known<T> = Result<T, String>;

/// Points of a line: (seconds since the run's start, value), times not falling.
pub type Points = Vec<(f64, f64)>;

/// One page.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The heading, and the title of the window.
    pub title: String,
    /// One sentence below it: what was compared over what.
    pub subtitle: String,
    /// Name and value of what the page was made from: version, command, threshold, time zone.
    pub provenance: Vec<(String, String)>,
    /// What is wrong with the data, the worst first.
    pub findings: Vec<Finding>,
    /// The comparison, one entry per workload and concurrency.
    pub groups: Vec<Group>,
    /// Tables that belong to all runs, such as the verdict at other thresholds.
    pub tables: Vec<Table>,
    /// The runs, in the order in which they are shown.
    pub runs: Vec<Run>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The verdict does not stand on these data.
    Error,
    /// Some figures are missing or doubtful.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that is wrong with the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Label of the run it is about; `None`: all of them.
    pub run: Option<String>,
    /// What is wrong, and what to do about it.
    pub text: String,
    /// A line of the data that shows it, as it is.
    pub example: Option<String>,
}

/// Runs that differ in their policy only.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The workload: a trace or a set of tasks.
    pub workload: String,
    /// Programs at once.
    pub concurrency: u64,
    /// The figures compared; the first one decides the verdict at the head of the page.
    pub metrics: Vec<Metric>,
}

/// One figure of every policy of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// What it is: `tasks/min in the active window`. Equal names of different groups are drawn side by side.
    pub name: String,
    /// Its unit, shown behind values: `tasks/min`.
    pub unit: String,
    /// Digits behind the point.
    pub decimals: usize,
    /// One entry per policy.
    pub estimates: Vec<Estimate>,
    /// Who won.
    pub verdict: Verdict,
}

/// A policy's figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The policy.
    pub policy: String,
    /// The figure.
    pub value: Known<Interval>,
}

/// A median of repeats and its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The median; of one run, its figure.
    pub median: f64,
    /// Both ends of the interval; `None` with too few runs for one.
    pub bounds: Option<(f64, f64)>,
    /// Runs it is made of, at least 1.
    pub runs: usize,
}

/// Who is best by one metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This policy, and by how much: `18 % over continuum`.
    Winner {
        /// The policy.
        policy: String,
        /// By how much, over whom.
        lead: String,
    },
    /// Nobody, and why: `the intervals of baseline and continuum overlap`.
    NoClearWinner {
        /// Why.
        why: String,
    },
    /// Nobody wins by this figure; it is shown beside the others.
    NotJudged,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its name on the page, unlike all others: `thunderreact C=64`, with `#2` for a repeat.
    pub label: String,
    /// Its policy, as in [`Estimate::policy`]; decides the colour.
    pub policy: String,
    /// Its workload and concurrency, as in [`Group::workload`] and [`Group::concurrency`].
    pub workload: String,
    /// Programs at once.
    pub concurrency: u64,
    /// Name and value of what is known about it: folder, start, model, KV capacity, seed, git state.
    pub facts: Vec<(String, String)>,
    /// How long it took: the end of its time axes, in seconds.
    pub length_s: f64,
    /// The active window.
    pub window: Known<Span>,
    /// KV usage above which the window counts, in percent.
    pub threshold_percent: f64,
    /// KV usage in percent, one line per backend.
    pub kv: Known<Vec<Line>>,
    /// Steps finished per second.
    pub steps_per_s: Known<Bins>,
    /// Requests that run in the backends, of all backends together.
    pub running: Known<Points>,
    /// Requests that wait in the backends.
    pub waiting: Known<Points>,
    /// Requests that the gate holds.
    pub held: Known<Points>,
    /// Latency distributions, one per kind: step, TTFT, hold, `llm_call`, `user_sim`, `expert_call`, tool gap.
    pub latencies: Vec<Latency>,
    /// What the programs did when.
    pub programs: Known<Programs>,
    /// Slowest calls, calls that never ended, work before, in and after the window, role edges.
    pub tables: Vec<Table>,
    /// Every file of the run directory.
    pub artifacts: Known<Vec<Artifact>>,
}

/// From one moment to a later one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Its beginning.
    pub start_s: f64,
    /// Its end.
    pub end_s: f64,
}

/// A named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name: a backend's address.
    pub name: String,
    /// Its points.
    pub points: Points,
}

/// Equally wide bins, the first from second 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    /// Width of each, in seconds, above 0.
    pub width_s: f64,
    /// Their values.
    pub values: Vec<f64>,
}

/// The distribution of one kind of duration.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// What was measured: `step`, `user_sim`.
    pub kind: String,
    /// Its distribution; missing when nothing of the kind was recorded.
    pub distribution: Known<Distribution>,
}

/// An empirical distribution of durations, by its quantiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Durations it is made of.
    pub count: u64,
    /// (share in percent, seconds), both rising from 0 % to 100 %.
    pub quantiles: Vec<(f64, f64)>,
}

/// What programs did when.
#[derive(Clone, Debug, PartialEq)]
pub struct Programs {
    /// Programs of the run, those not in `lanes` included.
    pub total: usize,
    /// One entry per program, by start. The page draws a bounded number and says which.
    pub lanes: Vec<Lane>,
}

/// One program.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// The program.
    pub name: String,
    /// Whether it came to an end.
    pub ended: bool,
    /// What it did, by start, without overlaps.
    pub phases: Vec<(Phase, Span)>,
}

/// What a program does at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// A step runs in a backend.
    Step,
    /// The gate holds its step.
    Hold,
    /// A tool or a user works.
    Gap,
}

/// Any table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its heading.
    pub title: String,
    /// What the reader should know about it; may be empty.
    pub note: String,
    /// Headings of its columns.
    pub columns: Vec<Column>,
    /// Its cells, as many in each row as columns; or why it has none: `every call ended`.
    pub rows: Known<Vec<Vec<String>>>,
    /// Further rows that are not listed.
    pub left_out: usize,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its heading, with the unit.
    pub name: String,
    /// Figures stand to the right, text to the left.
    pub numeric: bool,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Path in the run directory.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal digits; or why it was not read.
    pub sha256: Known<String>,
}

impl Distribution {
    /// Steps between the quantiles of [`Distribution::of`], so that 50, 90, 95 and 99 % are among them.
    const STEPS: u32 = 200;

    /// The distribution of these durations, in any order; values that are no numbers are left out.
    /// Between two ranks the quantile is interpolated linearly.
    ///
    /// # Errors
    /// Without a duration; `why` is the reason given then.
    pub fn of(mut seconds: Vec<f64>, why: &str) -> Known<Self> {
        seconds.retain(|value| value.is_finite());
        seconds.sort_by(f64::total_cmp);
        let quantile = |step| {
            let share = f64::from(step) / f64::from(Self::STEPS);
            Some((share * 100.0, percentile(&seconds, share)?))
        };
        let quantiles: Option<Vec<_>> = (0..=Self::STEPS).map(quantile).collect();
        Ok(Self {
            count: seconds.len() as u64,
            quantiles: quantiles.ok_or_else(|| why.to_owned())?,
        })
    }

    /// The duration that `percent` of all stay below, interpolated between the quantiles kept.
    pub fn quantile(&self, percent: f64) -> Option<f64> {
        let after = self
            .quantiles
            .partition_point(|(share, _)| *share < percent);
        let (share, value) = *self.quantiles.get(after)?;
        let before = after.checked_sub(1).and_then(|at| self.quantiles.get(at));
        let Some((low_share, low)) = before.filter(|(low, _)| *low < share) else {
            return Some(value);
        };
        Some(low + (value - low) * (percent - low_share) / (share - low_share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_keeps_the_percentiles_that_are_quoted() {
        let seconds = (0..=1000).rev().map(f64::from).collect();
        let distribution = Distribution::of(seconds, "").unwrap();
        assert_eq!(distribution.count, 1001);
        for (percent, expected) in [(0.0, 0.0), (50.0, 500.0), (99.0, 990.0), (100.0, 1000.0)] {
            let found = distribution.quantile(percent).unwrap();
            assert!((found - expected).abs() < 1e-9, "{percent}: {found}");
        }
        let between = distribution.quantile(99.9).unwrap();
        assert!((between - 999.0).abs() < 1e-9, "{between}");
    }

    #[test]
    fn no_duration_is_no_distribution_but_a_reason() {
        let none = Distribution::of(vec![f64::NAN], "no expert was called");
        assert_eq!(none, Err("no expert was called".to_owned()));
    }
}
