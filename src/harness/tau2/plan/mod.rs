//! Which simulations are played, in which order and when; pure.
//!
//! [`Workload::units`] lists the simulations: round-robin over the domains, trial after trial, as the reference
//! driver's global mode does. A [`Schedule`] hands them out: at most C at a time, each at its arrival, failed ones
//! again within their bound, and what an earlier run finished not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_mt::Mt;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::event::Cause;

/// The tasks of each domain, in the order of the benchmark's files.
pub type Catalogue = BTreeMap<String, Vec<String>>;

/// One simulation of the plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unit {
    /// `retail`, `telecom`, `airline`.
    pub domain: String,
    /// The benchmark's name of the task; no blanks, up to 215 bytes.
    pub task_id: String,
    /// Which repetition, from 0.
    pub trial: u32,
    /// The seed that tau2 gives to the models of this trial.
    pub seed: u32,
}

/// One try at a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What is played.
    pub unit: Unit,
    /// Which try, from 1; goes on counting over resumed runs.
    pub number: u32,
    /// The program's name at the gate, `tau2:DOMAIN:TASK:8 hex digits`: another for every attempt.
    pub job_id: String,
    /// Further attempts, should this one fail.
    pub retries_left: u32,
}

/// What to play.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Domains, in the order in which they take turns.
    pub domains: Vec<String>,
    /// The first so many tasks of each domain; all if absent.
    pub tasks_per_domain: Option<usize>,
    /// The first so many units of the whole plan; all if absent.
    pub units: Option<usize>,
    /// Repetitions of every task.
    pub trials: u32,
    /// The run's seed, from which tau2's seed of each trial is drawn.
    pub seed: u32,
}

impl Default for Workload {
    /// The reference experiment's 278 simulations.
    fn default() -> Self {
        Self {
            domains: ["retail", "telecom", "airline"].map(str::to_owned).to_vec(),
            tasks_per_domain: None,
            units: None,
            trials: 1,
            seed: 300,
        }
    }
}

/// When units may begin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// As soon as one of the C places is free.
    #[default]
    Closed,
    /// A Poisson process; a unit that finds no place free waits for one.
    Poisson {
        /// Mean rate.
        per_minute: f64,
        /// Seed of the gaps.
        seed: u64,
    },
    /// Unit `i` at the `i`-th time, in seconds from the start; finds no place, waits.
    Recorded(Vec<f64>),
}

/// A plan that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No such domain in the installed benchmark.
    #[error("unknown domain {name:?}; there are {known}")]
    UnknownDomain {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A domain twice, which would play its tasks twice.
    #[error("domain {0:?} is named twice")]
    DomainTwice(String),
    /// The plan has no unit.
    #[error("nothing to play: domains, tasks and trials must each be at least 1")]
    Empty,
    /// A rate that is not one.
    #[error("the arrival rate must be a positive number of simulations a minute")]
    BadRate,
    /// Recorded times that do not fit the plan.
    #[error("recorded arrivals need {units} times, ascending and not negative; there are {times}")]
    BadTimes {
        /// Units of the plan.
        units: usize,
        /// Times given.
        times: usize,
    },
    /// No place to play in.
    #[error("the concurrency must be at least 1")]
    NoPlace,
}

impl Workload {
    /// Whether every domain is one of `known`, and named once.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_domains<'a>(
        &self,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), PlanError> {
        let mut seen = BTreeSet::new();
        for name in &self.domains {
            if !known.clone().any(|there| there == name) {
                return Err(PlanError::UnknownDomain {
                    name: name.clone(),
                    known: known.collect::<Vec<_>>().join(", "),
                });
            }
            if !seen.insert(name) {
                return Err(PlanError::DomainTwice(name.clone()));
            }
        }
        Ok(())
    }

    /// The units in the order in which they are handed out.
    ///
    /// # Errors
    /// When a domain is unknown or named twice, or nothing is left to play.
    pub fn list(&self, catalogue: &Catalogue) -> Result<Vec<Unit>, PlanError> {
        self.check_domains(catalogue.keys().map(String::as_str))?;
        let mut queues = Vec::new();
        for name in &self.domains {
            let Some(tasks) = catalogue.get(name) else {
                continue;
            };
            let count = self.tasks_per_domain.unwrap_or(tasks.len());
            queues.push((name, tasks.get(..count).unwrap_or(tasks)));
        }
        let longest = queues.iter().map(|(_, tasks)| tasks.len()).max();
        let mut units = Vec::new();
        for (trial, seed) in (0..self.trials).zip(trial_seeds(self.seed)) {
            for index in 0..longest.unwrap_or(0) {
                units.extend(queues.iter().filter_map(|(domain, tasks)| {
                    Some(Unit {
                        domain: (*domain).clone(),
                        task_id: tasks.get(index)?.clone(),
                        trial,
                        seed,
                    })
                }));
            }
        }
        units.truncate(self.units.unwrap_or(usize::MAX));
        if units.is_empty() {
            return Err(PlanError::Empty);
        }
        Ok(units)
    }
}

/// The seeds that tau2 draws for its trials: Python's `random.seed(seed)`, then `random.randint(0, 1000000)`.
fn trial_seeds(seed: u32) -> impl Iterator<Item = u32> {
    let mut twister = Mt::new_with_key([seed]);
    // Python takes 20 bits at a time until the number is in range.
    std::iter::repeat_with(move || twister.next_u32() >> 12).filter(|n| *n <= 1_000_000)
}

/// How a schedule hands its units out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Simulations in flight at most.
    pub concurrency: usize,
    /// When units may begin.
    pub arrivals: Arrivals,
    /// Further attempts after a failed one.
    pub retries: u32,
    /// Whether units that failed for good in an earlier run are played again.
    pub redo_errors: bool,
    /// Told apart by it are the job ids of runs that play the same units through one gate.
    pub id_seed: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            concurrency: 10,
            arrivals: Arrivals::Closed,
            retries: 2,
            redo_errors: false,
            id_seed: 0,
        }
    }
}

/// The last word of an earlier run on a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Which.
    pub unit: Unit,
    /// Attempts so far.
    pub attempts: u32,
    /// How it ended; `None` if it has not.
    pub ended: Option<PastEnd>,
}

impl Past {
    /// That nothing is known of a unit.
    pub fn of(unit: &Unit) -> Self {
        Self {
            unit: unit.clone(),
            attempts: 0,
            ended: None,
        }
    }
}

/// How a unit ended in an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PastEnd {
    /// Played and judged.
    Done,
    /// Failed, with no attempt left.
    Failed,
}

/// What a schedule says to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Play this now.
    Play(Attempt),
    /// Ask again at this time, in seconds from the start, or when one has ended.
    At(f64),
    /// Ask again when one has ended.
    Wait,
    /// Nothing runs, and nothing is left to hand out.
    Over,
}

/// Hands out attempts.
#[derive(Clone, Debug)]
pub struct Schedule {
    rules: Rules,
    /// Attempts not yet handed out, each with its arrival in seconds from the start.
    arriving: VecDeque<(f64, Attempt)>,
    /// Failed ones, to be played as soon as there is a place.
    again: VecDeque<Attempt>,
    running: usize,
    stopped: bool,
}

impl Schedule {
    /// A schedule of `units`, less those that `past` knows to be over.
    ///
    /// # Errors
    /// When the rules are wrong.
    pub fn new(units: Vec<Unit>, rules: Rules, past: &[Past]) -> Result<Self, PlanError> {
        if rules.concurrency == 0 {
            return Err(PlanError::NoPlace);
        }
        let times = rules.arrivals.times(units.len())?;
        let past: BTreeMap<&Unit, &Past> = past.iter().map(|past| (&past.unit, past)).collect();
        let mut arriving = VecDeque::new();
        for (at_s, unit) in times.into_iter().zip(units) {
            let past = past.get(&unit);
            let over = match past.and_then(|past| past.ended) {
                None => false,
                Some(PastEnd::Done) => true,
                Some(PastEnd::Failed) => !rules.redo_errors,
            };
            if !over {
                let attempts = past.map_or(0, |past| past.attempts);
                let attempt = Attempt::new(unit, attempts + 1, rules.retries, rules.id_seed);
                arriving.push_back((at_s, attempt));
            }
        }
        // A resumed run begins with the first unit that is left.
        let first = arriving.front().map_or(0.0, |(at_s, _)| *at_s);
        for (at_s, _) in &mut arriving {
            *at_s -= first;
        }
        Ok(Self {
            rules,
            arriving,
            again: VecDeque::new(),
            running: 0,
            stopped: false,
        })
    }

    /// Units still to be handed out.
    pub fn left(&self) -> usize {
        self.arriving.len() + self.again.len()
    }

    /// The domains of what is left.
    pub fn domains(&self) -> Vec<String> {
        let left = self.arriving.iter().map(|(_, attempt)| attempt);
        let left = left.chain(&self.again).map(|a| a.unit.domain.clone());
        left.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Simulations in flight at most.
    pub const fn concurrency(&self) -> usize {
        self.rules.concurrency
    }

    /// What to do at `now_s`, in seconds from the start. A [`Next::Play`] takes a place until [`Self::ended`].
    pub fn next(&mut self, now_s: f64) -> Next {
        if self.stopped || self.left() == 0 {
            return match self.running {
                0 => Next::Over,
                _ => Next::Wait,
            };
        }
        if self.running >= self.rules.concurrency {
            return Next::Wait;
        }
        let attempt = match self.arriving.front() {
            _ if !self.again.is_empty() => self.again.pop_front(),
            Some((at_s, _)) if *at_s > now_s => return Next::At(*at_s),
            _ => self.arriving.pop_front().map(|(_, attempt)| attempt),
        };
        attempt.map_or(Next::Wait, |attempt| {
            self.running += 1;
            Next::Play(attempt)
        })
    }

    /// An attempt ended, with `cause` if it failed. Returns whether that was the unit's last word: if not, it is
    /// played again, now or by a later run.
    pub fn ended(&mut self, attempt: &Attempt, cause: Option<Cause>) -> bool {
        self.running = self.running.saturating_sub(1);
        let Some(cause) = cause else {
            return true;
        };
        if cause == Cause::Stopped {
            return false;
        }
        if attempt.retries_left == 0 || !cause.may_pass() {
            return true;
        }
        let (unit, attempts) = (attempt.unit.clone(), attempt.number);
        let left = attempt.retries_left - 1;
        let next = Attempt::new(unit, attempts + 1, left, self.rules.id_seed);
        self.again.push_back(next);
        false
    }

    /// Hands out nothing more.
    pub const fn stop(&mut self) {
        self.stopped = true;
    }
}

impl Attempt {
    fn new(unit: Unit, number: u32, retries_left: u32, id_seed: u64) -> Self {
        let (domain, task) = (&unit.domain, &unit.task_id);
        let told_apart = format!("{id_seed} {domain} {task} {} {number}", unit.trial);
        let hash = xxh3_64(told_apart.as_bytes()) >> 32;
        Self {
            job_id: format!("tau2:{domain}:{task}:{hash:08x}"),
            unit,
            number,
            retries_left,
        }
    }
}

impl Arrivals {
    /// The arrival of each of so many units, in seconds from the start.
    fn times(&self, units: usize) -> Result<Vec<f64>, PlanError> {
        match self {
            Self::Closed => Ok(vec![0.0; units]),
            Self::Poisson { per_minute, seed } => {
                if !(per_minute.is_finite() && *per_minute > 0.0) {
                    return Err(PlanError::BadRate);
                }
                let mut random = ChaCha8Rng::seed_from_u64(*seed);
                let mut at_s = 0.0;
                let gaps = std::iter::repeat_with(|| {
                    // An exponential gap; 1 - u is never 0.
                    at_s -= (1.0 - random.random::<f64>()).ln() * 60.0 / per_minute;
                    at_s
                });
                Ok(gaps.take(units).collect())
            }
            Self::Recorded(times) => {
                let good = times.first().is_none_or(|first| *first >= 0.0)
                    && times.is_sorted()
                    && times.iter().all(|at_s| at_s.is_finite());
                if !good || times.len() < units {
                    return Err(PlanError::BadTimes {
                        units,
                        times: times.len(),
                    });
                }
                Ok(times.clone())
            }
        }
    }
}

impl Unit {
    /// The reference's name of the unit's files, without their ending; distinct for every task there is.
    pub fn file_stem(&self) -> String {
        let safe = |text: &str| -> String {
            let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            text.chars()
                .map(|c| if keep(c) { c } else { '_' })
                .collect()
        };
        let (domain, task) = (safe(&self.domain), safe(&self.task_id));
        format!("{domain}__{task}__trial{}", self.trial)
    }
}

#[cfg(test)]
mod tests;
