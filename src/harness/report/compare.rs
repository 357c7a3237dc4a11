//! Runs in groups, repeats as medians with intervals, and who won. Pure.
//!
//! A group is one workload at one concurrency on one [`Setup`]; within it, runs of one policy are repeats. Figures
//! and verdicts are of a policy's complete runs, or of all where none is complete. A verdict needs the figure of every
//! policy that has a complete run. A policy with only incomplete runs never wins: where it leads, nobody does. Where
//! intervals of repeats overlap nobody wins, and unless every policy has [`ENOUGH_REPEATS`] nobody wins by less than
//! [`NOISE_PERCENT`].

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use super::metric::{HEADLINE, METRICS, MIN_WINDOW_S, Metric, Wins};
use crate::harness::measure::{Measures, WindowRates};
use crate::harness::run::Run;
use crate::harness::stats::{ENOUGH_REPEATS, median, median_interval};

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
    /// Whether it was cut short and went on: its makespan holds the pause.
    pub resumed: bool,
    /// What else must be the same for another run to be compared with it.
    pub setup: Setup,
    /// Its figures.
    pub measures: Measures,
    /// Tasks/min in the window above each of [`THRESHOLDS`], or why there is none.
    pub by_threshold: Vec<Result<f64, String>>,
}

/// What runs must share to be compared, besides workload and concurrency; `None` where nothing says.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Setup {
    /// Size of the set of programs.
    pub programs: Option<usize>,
    /// KV blocks and tokens per block of the engine.
    pub kv: Option<(u32, u32)>,
    /// Cost preset of the engine.
    pub cost: Option<String>,
    /// The model asked for.
    pub model: Option<String>,
}

impl Setup {
    /// What is recorded of `run`.
    pub fn of(run: &Run) -> Self {
        Self {
            programs: run.expected,
            kv: run.kv,
            cost: run.cost.clone(),
            model: run.model.clone(),
        }
    }

    /// Each fact in words, where known.
    fn words(&self) -> [Option<String>; 4] {
        let tokens = |(blocks, size)| u64::from(blocks) * u64::from(size);
        [
            self.programs.map(|programs| format!("{programs} programs")),
            self.kv.map(|kv| format!("KV {} tokens", tokens(kv))),
            self.cost.as_ref().map(|cost| format!("cost {cost}")),
            self.model.as_ref().map(|model| format!("model {model}")),
        ]
    }

    /// Whether nothing known of both differs.
    fn fits(&self, other: &Self) -> bool {
        let pairs = self.words().into_iter().zip(other.words());
        pairs
            .filter_map(|(ours, theirs)| Some((ours?, theirs?)))
            .all(|(ours, theirs)| ours == theirs)
    }

    /// Learns what the other knows.
    fn learn(&mut self, other: &Self) {
        self.programs = self.programs.or(other.programs);
        self.kv = self.kv.or(other.kv);
        self.cost = self.cost.take().or_else(|| other.cost.clone());
        self.model = self.model.take().or_else(|| other.model.clone());
    }

    /// The setups of these runs. A run that knows less is of the only setup that it fits; where several do, nothing
    /// says which, and it is none of theirs.
    fn all_of(runs: &[&Entry]) -> Vec<Self> {
        let mut setups: Vec<Self> = runs.iter().map(|run| run.setup.clone()).collect();
        setups.sort_by_key(|setup| Reverse(setup.words().iter().flatten().count()));
        let mut found: Vec<Self> = Vec::new();
        for setup in setups {
            let fitting = (0..found.len()).filter(|&at| found[at].fits(&setup));
            match *fitting.collect::<Vec<_>>() {
                [only] => found[only].learn(&setup),
                _ if found.contains(&setup) => {}
                _ => found.push(setup),
            }
        }
        found.sort();
        found
    }

    /// Which of `setups` this run's is.
    fn place(&self, setups: &[Self]) -> Option<usize> {
        let same = setups.iter().position(|setup| setup == self);
        same.or_else(|| setups.iter().position(|setup| setup.fits(self)))
    }
}

/// Tasks/min in the window of `run` above each of [`THRESHOLDS`].
pub fn by_threshold(run: &Run, measures: &Measures) -> Vec<Result<f64, String>> {
    let at = |threshold: &f64| match &measures.no_programs {
        Some(why) => Err(why.clone()),
        None => long_enough(&WindowRates::of(run, *threshold)),
    };
    THRESHOLDS.iter().map(at).collect()
}

/// Runs that differ in nothing recorded but their policy.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The workload.
    pub workload: String,
    /// Programs in flight; `None` if nothing says.
    pub concurrency: Option<usize>,
    /// On what.
    #[serde(flatten)]
    pub setup: Setup,
    /// What of it sets the group apart from others of the same workload and concurrency, in words.
    pub apart: Vec<String>,
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
    /// Labels of those that were cut short and went on: their makespans hold the pauses.
    pub resumed: Vec<String>,
    /// Runs that its figures are of: those that are complete, or all where none is.
    pub counted: usize,
    /// Its figures by key.
    pub figures: BTreeMap<&'static str, Figure>,
    /// Failed requests and programs, summed over the runs that count.
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
    /// Both ends of its 95 % confidence interval, or of the range of fewer than five runs; `None` for one run.
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
        /// Lead over the next, in percent of the next; `None` where the next has 0.
        lead_percent: Option<f64>,
        /// Whether every policy has five repeats or more.
        repeated: bool,
    },
    /// Intervals overlap, or the lead is within what repeating a run changes.
    NoClearWinner {
        /// Which, in words.
        why: String,
        /// Who leads by less than the noise; `None` where intervals overlap.
        leader: Option<String>,
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
    let mut keyed: BTreeMap<(&str, Option<usize>), Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        let measures = &entry.measures;
        let key = (&*measures.trace, measures.concurrency);
        keyed.entry(key).or_default().push(entry);
    }
    keyed.values().flat_map(|runs| split(runs)).collect()
}

/// Runs of one workload and concurrency, by setup.
fn split(runs: &[&Entry]) -> Vec<Group> {
    let setups = Setup::all_of(runs);
    let words: Vec<_> = setups.iter().map(Setup::words).collect();
    let differs = |index: usize| words.iter().any(|one| one[index] != words[0][index]);
    let of = |(at, setup): (usize, &Setup)| {
        let own = runs
            .iter()
            .copied()
            .filter(|run| run.setup.place(&setups) == Some(at));
        let apart = words[at].iter().enumerate();
        let apart = apart.filter(|(index, _)| differs(*index));
        let apart = apart.filter_map(|(_, word)| word.clone());
        group(setup, apart.collect(), &own.collect::<Vec<_>>())
    };
    setups.iter().enumerate().filter_map(of).collect()
}

fn by_policy<'a>(runs: &[&'a Entry]) -> Policies<'a> {
    let mut policies: Policies<'_> = Vec::new();
    for run in runs {
        let policy = &*run.measures.policy;
        match policies.iter_mut().find(|(name, _)| *name == policy) {
            Some((_, runs)) => runs.push(run),
            None => policies.push((policy, vec![run])),
        }
    }
    policies
}

/// The runs that figures and verdicts are of. Repeats that broke off say nothing where others did not.
fn counted<'a>(runs: &[&'a Entry]) -> Vec<&'a Entry> {
    let complete = runs.iter().copied().filter(|run| run.incomplete.is_none());
    let complete: Vec<&Entry> = complete.collect();
    if complete.is_empty() {
        return runs.to_vec();
    }
    complete
}

fn group(setup: &Setup, apart: Vec<String>, runs: &[&Entry]) -> Option<Group> {
    let measures = &runs.first()?.measures;
    let all = by_policy(runs);
    let policies = all.iter().map(|(name, runs)| (*name, counted(runs)));
    let policies: Policies<'_> = policies.collect();
    let deciding = METRICS.iter().filter(|metric| metric.wins.is_some());
    let verdict = |metric: &Metric| {
        let verdict = verdict(&policies, |run| deciding_value(metric, run));
        (metric.key, verdict)
    };
    let cells = all.iter().zip(&policies);
    Some(Group {
        workload: measures.trace.clone(),
        concurrency: measures.concurrency,
        setup: setup.clone(),
        apart,
        cells: cells
            .map(|((name, all), (_, counted))| cell(name, all, counted))
            .collect(),
        verdicts: deciding.map(verdict).collect(),
        sensitivity: (0..THRESHOLDS.len())
            .map(|index| at_threshold(index, &policies))
            .collect(),
    })
}

fn cell(policy: &str, all: &[&Entry], counted: &[&Entry]) -> Cell {
    let figure = |metric: &Metric| {
        let values = counted.iter().map(|run| (metric.of)(&run.measures));
        (metric.key, Figure::of(values))
    };
    let sum = |count: fn(&Measures) -> usize| counted.iter().map(|run| count(&run.measures)).sum();
    let short = |run: &&Entry| {
        let rates = run.measures.window.rates();
        rates.is_some_and(|rates| rates.seconds < MIN_WINDOW_S)
    };
    let labels = |of: fn(&Entry) -> bool| {
        let runs = all.iter().filter(|run| of(run));
        runs.map(|run| run.label.clone()).collect()
    };
    Cell {
        policy: policy.to_owned(),
        runs: all.iter().map(|run| run.label.clone()).collect(),
        incomplete: labels(|run| run.incomplete.is_some()),
        resumed: labels(|run| run.resumed),
        counted: counted.len(),
        figures: METRICS.iter().map(figure).collect(),
        failed: (sum(|m| m.steps_failed), sum(|m| m.programs_failed)),
        short_window: counted.iter().any(short),
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

/// A run's figure where it may decide: a doubtful or short window may not, nor a whole run that holds a pause.
fn deciding_value(metric: &Metric, run: &Entry) -> Result<f64, String> {
    if metric.wins == Some(Wins::InWindow) {
        if let Some(why) = &run.no_window {
            return Err(why.clone());
        }
        long_enough(&run.measures.window)?;
    }
    if metric.wins == Some(Wins::OverRun) && run.resumed {
        return Err("a run that was resumed: its pause counts".to_owned());
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

impl Cell {
    /// Whether its figures are of incomplete runs.
    pub const fn is_incomplete(&self) -> bool {
        self.incomplete.len() == self.runs.len()
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
        let values = runs.iter().map(|run| value(run));
        match values.collect::<Result<Vec<f64>, _>>() {
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
    if let Some(why) = others.find_map(|other| overlap(first, other)) {
        return Verdict::NoClearWinner { why, leader: None };
    }
    let enough = |one: &Contender<'_>| one.estimate.runs >= ENOUGH_REPEATS;
    let repeated = all.iter().all(enough);
    let lead_percent = (next > 0.0).then(|| (best / next - 1.0) * 100.0);
    match lead_percent {
        Some(lead) if !repeated && lead < NOISE_PERCENT => Verdict::NoClearWinner {
            why: format!(
                "{} leads {} by {lead:.1} %, within noise",
                first.policy, second.policy
            ),
            leader: Some(first.policy.to_owned()),
        },
        _ => Verdict::Winner {
            policy: first.policy.to_owned(),
            over: second.policy.to_owned(),
            lead_percent,
            repeated,
        },
    }
}

/// That both have intervals which share a value, where they do.
fn overlap(first: &Contender<'_>, other: &Contender<'_>) -> Option<String> {
    let (ours, theirs) = (first.estimate.interval?, other.estimate.interval?);
    let said = |one: &Contender<'_>, ends: (f64, f64)| {
        let what = match one.estimate.runs {
            ..ENOUGH_REPEATS => "range",
            _ => "95 % interval",
        };
        format!(
            "the {what} of {} [{:.2}, {:.2}]",
            one.policy, ends.0, ends.1
        )
    };
    let shared = ours.0 <= theirs.1;
    shared.then(|| format!("{} and {} overlap", said(first, ours), said(other, theirs)))
}

fn none(why: &str) -> Verdict {
    Verdict::None {
        why: why.to_owned(),
    }
}

impl Verdict {
    /// By how much over whom, of a winner.
    pub fn lead(&self) -> Option<String> {
        let Self::Winner {
            over, lead_percent, ..
        } = self
        else {
            return None;
        };
        Some(match lead_percent {
            None => format!("{over} has 0"),
            Some(lead) if *lead < 1.0 => format!("+{lead:.1} % over {over}"),
            Some(lead) => format!("+{lead:.0} % over {over}"),
        })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Winner { policy, .. } => {
                write!(f, "{policy} ({})", self.lead().unwrap_or_default())
            }
            Self::NoClearWinner { why, .. } => write!(f, "no clear winner ({why})"),
            Self::None { why } => write!(f, "none ({why})"),
        }
    }
}

impl Group {
    /// The workload, the concurrency, the KV cache and what sets it apart, in a few words.
    pub fn heading(&self) -> String {
        let [_, kv, ..] = self.setup.words();
        let kv = kv.filter(|kv| !self.apart.contains(kv));
        let kv = kv.map_or_else(String::new, |kv| format!(", {kv}"));
        format!("{}, {}{kv}", self.workload, self.scenario())
    }

    /// `C=32`, and what sets it apart.
    pub fn scenario(&self) -> String {
        let concurrency = self
            .concurrency
            .map_or_else(|| "C unknown".to_owned(), |c| format!("C={c}"));
        let apart = self.apart.iter().cloned();
        let words: Vec<String> = std::iter::once(concurrency).chain(apart).collect();
        words.join(", ")
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
