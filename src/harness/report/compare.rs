//! Runs in groups, repeats as medians with intervals, and who won. Pure.
//!
//! A group is one workload at one concurrency; within it, runs of one policy are repeats. A verdict needs the figure
//! of every policy that has a complete run. A policy with only incomplete runs never wins: where it leads, nobody
//! does. With repeats on both sides the intervals decide; with single runs a lead below [`NOISE_PERCENT`] is called
//! noise.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metric::{HEADLINE, METRICS, MIN_WINDOW_S, Metric, Wins};
use crate::harness::measure::{Measures, WindowRates};
use crate::harness::run::Run;
use crate::harness::stats::{median, median_interval};

/// A lead below this is within what repeating a run changes, in percent: four runs of one quickstart cell (C=64)
/// spread over 0.5 % of their tasks/min with the baseline, 7 % with ThunderReact and 6 % with Continuum.
pub const NOISE_PERCENT: f64 = 7.0;

/// Thresholds of KV usage at which the verdict is tried, in percent.
pub const THRESHOLDS: [f64; 10] = [50.0, 55.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0];

/// What the comparison takes of a run.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub label: String,
    /// Why its figures do not stand; it cannot win.
    pub incomplete: Option<String>,
    /// Why its active window is missing or wrong.
    pub no_window: Option<String>,
    /// Its figures.
    pub measures: Measures,
    /// Tasks/min in the window above each of [`THRESHOLDS`], or why there is none.
    pub by_threshold: Vec<Result<f64, String>>,
}

/// Tasks/min in the window of `run` above each of [`THRESHOLDS`].
pub fn by_threshold(run: &Run, measures: &Measures) -> Vec<Result<f64, String>> {
    let at = |threshold: &f64| match &measures.no_programs {
        Some(why) => Err(why.clone()),
        None => long_enough(&WindowRates::of(run, *threshold)),
    };
    THRESHOLDS.iter().map(at).collect()
}

/// Runs that differ in their policy only.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The workload.
    pub workload: String,
    /// Programs in flight; `None` if nothing says.
    pub concurrency: Option<usize>,
    /// KV blocks and tokens per block, where recorded.
    pub kv: Option<(u32, u32)>,
    /// One entry per policy, in the order given.
    pub cells: Vec<Cell>,
    /// Who won, by the key of the figure.
    pub verdicts: BTreeMap<&'static str, Verdict>,
    /// The headline's verdict at other thresholds.
    pub sensitivity: Vec<AtThreshold>,
}

/// One policy of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The policy.
    pub policy: String,
    /// Labels of its runs.
    pub runs: Vec<String>,
    /// Labels of those that are incomplete.
    pub incomplete: Vec<String>,
    /// Its figures by key.
    pub figures: BTreeMap<&'static str, Figure>,
    /// Failed requests and programs, summed over its runs.
    pub failed: (usize, usize),
    /// Whether a window is too short to name a winner.
    pub short_window: bool,
}

/// A figure over repeats, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Figure {
    /// The median of its runs.
    Known(Estimate),
    /// There is none.
    Missing {
        /// Why, in words.
        missing: String,
    },
}

/// A median of repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The median; of one run, its figure.
    pub median: f64,
    /// Both ends of its 95 % confidence interval; `None` for one run.
    pub interval: Option<(f64, f64)>,
    /// Runs it is made of.
    pub runs: usize,
}

/// The verdict above another threshold.
#[derive(Clone, Debug, Serialize)]
pub struct AtThreshold {
    /// The threshold of KV usage, in percent.
    pub threshold_percent: f64,
    /// Tasks/min of each policy, in the order of the cells.
    pub figures: Vec<Figure>,
    /// Who won.
    pub verdict: Verdict,
}

/// Who won a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// This policy, by so many percent over the next.
    Winner {
        /// The policy.
        policy: String,
        /// The next.
        over: String,
        /// Lead over the next, in percent of the next.
        lead_percent: f64,
        /// Whether repeats prove it; a lead of single runs may be noise.
        repeated: bool,
    },
    /// The intervals of the first two overlap.
    NoClearWinner {
        /// Which, in words.
        why: String,
    },
    /// There is nothing to compare.
    None {
        /// Why.
        why: String,
    },
}

/// Runs of one group, by policy in the order given.
type Policies<'a> = Vec<(&'a str, Vec<&'a Entry>)>;

/// Groups runs and names the winners.
pub fn groups(entries: &[Entry]) -> Vec<Group> {
    let mut keyed: BTreeMap<(&str, Option<usize>), Policies<'_>> = BTreeMap::new();
    for entry in entries {
        let measures = &entry.measures;
        let policies = keyed
            .entry((&measures.trace, measures.concurrency))
            .or_default();
        match policies
            .iter_mut()
            .find(|(name, _)| *name == measures.policy)
        {
            Some((_, runs)) => runs.push(entry),
            None => policies.push((&measures.policy, vec![entry])),
        }
    }
    let groups = keyed.into_iter();
    groups
        .map(|((workload, concurrency), policies)| group(workload, concurrency, &policies))
        .collect()
}

fn group(workload: &str, concurrency: Option<usize>, policies: &Policies<'_>) -> Group {
    let deciding = METRICS.iter().filter(|metric| metric.wins.is_some());
    let runs = || policies.iter().flat_map(|(_, runs)| runs);
    Group {
        workload: workload.to_owned(),
        concurrency,
        kv: runs().find_map(|run| run.measures.kv),
        cells: policies
            .iter()
            .map(|(name, runs)| cell(name, runs))
            .collect(),
        verdicts: deciding
            .map(|metric| {
                (
                    metric.key,
                    verdict(policies, |run| deciding_value(metric, run)),
                )
            })
            .collect(),
        sensitivity: (0..THRESHOLDS.len())
            .map(|index| at_threshold(index, policies))
            .collect(),
    }
}

fn cell(policy: &str, runs: &[&Entry]) -> Cell {
    let figure = |metric: &Metric| {
        let values = runs.iter().map(|run| (metric.of)(&run.measures));
        (metric.key, Figure::of(values))
    };
    let sum = |count: fn(&Measures) -> usize| runs.iter().map(|run| count(&run.measures)).sum();
    let short = |run: &&Entry| {
        let rates = run.measures.window.rates();
        rates.is_some_and(|rates| rates.seconds < MIN_WINDOW_S)
    };
    Cell {
        policy: policy.to_owned(),
        runs: runs.iter().map(|run| run.label.clone()).collect(),
        incomplete: runs
            .iter()
            .filter(|run| run.incomplete.is_some())
            .map(|run| run.label.clone())
            .collect(),
        figures: METRICS.iter().map(figure).collect(),
        failed: (sum(|m| m.steps_failed), sum(|m| m.programs_failed)),
        short_window: runs.iter().any(short),
    }
}

fn at_threshold(index: usize, policies: &Policies<'_>) -> AtThreshold {
    let value = |run: &Entry| {
        let rate = run.by_threshold.get(index).cloned();
        rate.unwrap_or_else(|| Err("no window".to_owned()))
    };
    let figures = policies
        .iter()
        .map(|(_, runs)| Figure::of(runs.iter().map(|run| value(run))));
    AtThreshold {
        threshold_percent: THRESHOLDS[index],
        figures: figures.collect(),
        verdict: verdict(policies, value),
    }
}

/// A run's figure where it may decide: a doubtful or short window may not.
fn deciding_value(metric: &Metric, run: &Entry) -> Result<f64, String> {
    if metric.wins == Some(Wins::InWindow) {
        if let Some(why) = &run.no_window {
            return Err(why.clone());
        }
        long_enough(&run.measures.window)?;
    }
    (metric.of)(&run.measures)
}

fn long_enough(window: &WindowRates) -> Result<f64, String> {
    match window.rates() {
        None => Err("no window".to_owned()),
        Some(rates) if rates.seconds < MIN_WINDOW_S => {
            Err(format!("a window of {:.0} s", rates.seconds))
        }
        Some(rates) => Ok(rates.tasks_per_min),
    }
}

impl Figure {
    /// The median of the runs that have the figure; the first reason if none has.
    fn of(values: impl Iterator<Item = Result<f64, String>>) -> Self {
        let (mut known, mut missing) = (Vec::new(), None);
        for value in values {
            match value {
                Ok(value) => known.push(value),
                Err(why) => {
                    missing.get_or_insert(why);
                }
            }
        }
        match Estimate::of(&known) {
            Some(estimate) => Self::Known(estimate),
            None => Self::Missing {
                missing: missing.unwrap_or_else(|| "no run".to_owned()),
            },
        }
    }

    /// The figure, where there is one.
    pub const fn known(&self) -> Option<&Estimate> {
        match self {
            Self::Known(estimate) => Some(estimate),
            Self::Missing { .. } => None,
        }
    }
}

impl Estimate {
    fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(values)?,
            interval: median_interval(values),
            runs: values.len(),
        })
    }
}

/// A policy that takes part in a verdict.
struct Contender<'a> {
    policy: &'a str,
    estimate: Estimate,
    complete: bool,
}

fn verdict(policies: &Policies<'_>, value: impl Fn(&Entry) -> Result<f64, String>) -> Verdict {
    let mut contenders = Vec::new();
    for (policy, runs) in policies {
        let complete = runs.iter().any(|run| run.incomplete.is_none());
        // Repeats that broke off say nothing where others did not.
        let counted = runs
            .iter()
            .filter(|run| !complete || run.incomplete.is_none());
        match counted
            .map(|run| value(run))
            .collect::<Result<Vec<f64>, _>>()
        {
            Ok(values) => contenders.extend(Estimate::of(&values).map(|estimate| Contender {
                policy,
                estimate,
                complete,
            })),
            Err(why) if complete => return none(&format!("{policy} has {why}")),
            Err(_) => {}
        }
    }
    contenders.sort_by(|a, b| b.estimate.median.total_cmp(&a.estimate.median));
    match contenders.as_slice() {
        [first, _, ..] if !first.complete => {
            none(&format!("{} leads and is incomplete", first.policy))
        }
        [first, second, ..] => decide(first, second, &contenders),
        _ => none("nothing to compare with"),
    }
}

fn decide(first: &Contender<'_>, second: &Contender<'_>, all: &[Contender<'_>]) -> Verdict {
    let (best, next) = (first.estimate.median, second.estimate.median);
    if best <= next {
        return none("a tie");
    }
    let mut others = all.iter().skip(1);
    if let Some((ours, other, theirs)) = others.find_map(|other| overlap(first, other)) {
        return Verdict::NoClearWinner {
            why: format!(
                "the intervals of {} [{:.2}, {:.2}] and {other} [{:.2}, {:.2}] overlap",
                first.policy, ours.0, ours.1, theirs.0, theirs.1
            ),
        };
    }
    Verdict::Winner {
        policy: first.policy.to_owned(),
        over: second.policy.to_owned(),
        lead_percent: (best / next - 1.0) * 100.0,
        repeated: all.iter().all(|one| one.estimate.interval.is_some()),
    }
}

type Ends = (f64, f64);

/// The first's interval, the other's name and interval, where both have one and they share a value.
fn overlap<'a>(first: &Contender<'_>, other: &Contender<'a>) -> Option<(Ends, &'a str, Ends)> {
    let (ours, theirs) = (first.estimate.interval?, other.estimate.interval?);
    (ours.0 <= theirs.1).then_some((ours, other.policy, theirs))
}

fn none(why: &str) -> Verdict {
    Verdict::None {
        why: why.to_owned(),
    }
}

impl Verdict {
    /// Whether a lead of single runs is as small as what a repeat changes.
    pub fn is_noise(&self) -> bool {
        matches!(self, Self::Winner { lead_percent, repeated: false, .. } if *lead_percent < NOISE_PERCENT)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Winner {
                policy,
                lead_percent,
                ..
            } if self.is_noise() => write!(f, "{policy} (+{lead_percent:.1} %, within noise)"),
            Self::Winner {
                policy,
                lead_percent,
                ..
            } => write!(f, "{policy} (+{lead_percent:.0} %)"),
            Self::NoClearWinner { why } => write!(f, "no clear winner ({why})"),
            Self::None { why } => write!(f, "none ({why})"),
        }
    }
}

impl Group {
    /// The workload, the concurrency and the KV cache in a few words.
    pub fn heading(&self) -> String {
        let kv = self.kv.map_or_else(String::new, |(blocks, size)| {
            format!(", KV {} tokens", u64::from(blocks) * u64::from(size))
        });
        format!("{}, {}{kv}", self.workload, self.scenario())
    }

    /// `C=32`.
    pub fn scenario(&self) -> String {
        self.concurrency
            .map_or_else(|| "C unknown".to_owned(), |c| format!("C={c}"))
    }

    /// The verdict of the headline.
    pub fn headline(&self) -> Option<&Verdict> {
        self.verdicts.get(HEADLINE.key)
    }

    /// Whether any policy has repeats.
    pub fn has_repeats(&self) -> bool {
        self.cells.iter().any(|cell| cell.runs.len() > 1)
    }
}
