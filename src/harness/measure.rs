//! The figures of one run: rates in the active window, steady state and over the whole run, hit rate, latencies.
//! Pure.
//!
//! Only served steps and finished programs count towards rates and latencies; failures are counted beside them,
//! so that a policy cannot win by failing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::run::{Missing, Run};
use super::rundir::{Ending, StepSource};
use super::stats::Spread;
use super::window::{NoWindow, Window};

/// The steady state begins when this share of the steps has ended, fraction 0–1.
pub const STEADY_FROM: f64 = 0.2;
/// The steady state ends when this share of the steps has ended, fraction 0–1.
pub const STEADY_TO: f64 = 0.8;

/// What happened in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Length, in seconds.
    pub seconds: f64,
    /// Programs that finished in it.
    pub programs: usize,
    /// Steps that were served in it.
    pub steps: usize,
    /// Programs per minute.
    pub tasks_per_min: f64,
    /// Steps per second.
    pub steps_per_s: f64,
}

impl Rates {
    /// The rates of `programs` and `steps` in `seconds`; `None` when no time passed.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn over(seconds: f64, programs: usize, steps: usize) -> Option<Self> {
        (seconds > 0.0).then(|| Self {
            seconds,
            programs,
            steps,
            tasks_per_min: programs as f64 * 60.0 / seconds,
            steps_per_s: steps as f64 / seconds,
        })
    }
}

/// What tau2's judge made of the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Tasks that were judged; one that failed was not.
    pub judged: usize,
    /// Those with reward 1, as tau2 counts success.
    pub solved: usize,
    /// The mean of their rewards, 0 to 1.
    pub mean: f64,
}

impl Rewards {
    /// How far from 1 tau2 takes a reward for 1.
    const ROUNDING: f64 = 1e-6;

    /// Of the rewards of each task that was judged; `None` without any.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn of(rewards: &[f64]) -> Option<Self> {
        let is_one = |reward: &&f64| (**reward - 1.0).abs() <= Self::ROUNDING;
        (!rewards.is_empty()).then(|| Self {
            judged: rewards.len(),
            solved: rewards.iter().filter(is_one).count(),
            mean: rewards.iter().sum::<f64>() / rewards.len() as f64,
        })
    }
}

/// The active window's rates, or why there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WindowRates {
    /// There is a window.
    Found {
        /// When it was.
        window: Window,
        /// What happened in it.
        rates: Rates,
    },
    /// There is none.
    Missing {
        /// Why, in words.
        missing: String,
    },
}

impl WindowRates {
    /// The rates in the window of `run` above `threshold_percent` of KV usage.
    pub fn of(run: &Run, threshold_percent: f64) -> Self {
        let window = match Window::active(run.samples(), threshold_percent) {
            Ok(window) => window,
            Err(missing) => return missing.into(),
        };
        let programs = run.done().filter(|p| window.contains(p.last_s)).count();
        let steps = run.served().filter(|s| window.contains(s.finished_s));
        match Rates::over(window.seconds(), programs, steps.count()) {
            Some(rates) => Self::Found { window, rates },
            None => NoWindow::OneMoment { threshold_percent }.into(),
        }
    }

    /// The rates, where there is a window.
    pub const fn rates(&self) -> Option<&Rates> {
        match self {
            Self::Found { rates, .. } => Some(rates),
            Self::Missing { .. } => None,
        }
    }

    /// The window, where there is one.
    pub const fn window(&self) -> Option<Window> {
        match self {
            Self::Found { window, .. } => Some(*window),
            Self::Missing { .. } => None,
        }
    }
}

/// Everything the comparison shows of one run; in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// The gate's policy; `unknown` if neither the manifest nor a step names it.
    pub policy: String,
    /// Programs in flight; `None` if nothing says.
    pub concurrency: Option<usize>,
    /// The trace, or the task domains of a reference run.
    pub trace: String,
    /// KV blocks and tokens per block of the engine, where recorded.
    pub kv: Option<(u32, u32)>,
    /// Rates in the active window.
    pub window: WindowRates,
    /// Rates from the first request to the end of the last program (the makespan); `None` for an empty run.
    pub whole: Option<Rates>,
    /// Rates from [`STEADY_FROM`] to [`STEADY_TO`] of the steps' ends: neither ramp-up nor tail.
    pub steady: Option<Rates>,
    /// Cached prompt tokens / prompt tokens over served steps, fraction 0–1; `None` where not reported.
    pub prefix_hit_rate: Option<f64>,
    /// Begin to end of a served step, seconds, hold included.
    pub step_s: Option<Spread>,
    /// Arrival to first token of a served streamed step, seconds, hold included.
    pub ttft_s: Option<Spread>,
    /// Hold of a served step, seconds; `None` where no gate recorded it.
    pub hold_s: Option<Spread>,
    /// First request to last reply of a finished program, seconds.
    pub program_s: Option<Spread>,
    /// Programs given up after an error.
    pub programs_failed: usize,
    /// Programs cut off by an interruption.
    pub programs_cancelled: usize,
    /// Programs that began and never ended.
    pub programs_open: usize,
    /// Rewards of the tasks that were judged; `None` where none was.
    pub rewards: Option<Rewards>,
    /// Requests that were not served.
    pub steps_failed: usize,
    /// Both of them by cause.
    pub errors: BTreeMap<String, usize>,
    /// Why nothing is known of finished programs, where that is so: their rates are not 0.
    pub no_programs: Option<String>,
    /// Why nothing is known of steps, where that is so.
    pub no_steps: Option<String>,
    /// Who timed the steps.
    pub step_source: StepSource,
}

impl Measures {
    /// The figures of a run, with the active window above `threshold_percent` of KV usage.
    pub fn of(run: &Run, threshold_percent: f64) -> Self {
        let by_gate = run.step_source == StepSource::Gate;
        Self {
            policy: run.policy.clone(),
            concurrency: run.concurrency,
            trace: run.workload.clone(),
            kv: run.kv,
            window: WindowRates::of(run, threshold_percent),
            whole: whole(run),
            steady: steady(run),
            prefix_hit_rate: run.prefix.and_then(super::run::Prefix::hit_rate),
            step_s: spread(run.served().map(|s| s.finished_s - s.started_s)),
            ttft_s: spread(run.served_requests().filter_map(|(_, r)| r.ttft_s)),
            hold_s: spread(
                run.served_requests()
                    .filter(|_| by_gate)
                    .map(|(_, r)| r.hold_s),
            ),
            program_s: spread(run.program_times()),
            programs_failed: run.ended_as(Ending::Failed).count(),
            programs_cancelled: run.ended_as(Ending::Cancelled).count(),
            programs_open: run.open().count(),
            rewards: Rewards::of(&run.rewards),
            steps_failed: run.steps.iter().filter(|step| !step.served).count(),
            errors: run.errors.clone(),
            no_programs: unknown(run, |missing| missing.tells_of_programs),
            no_steps: unknown(run, |_| true).filter(|_| run.steps.is_empty()),
            step_source: run.step_source,
        }
    }
}

/// The first file that is missing and would have told.
fn unknown(run: &Run, of: fn(&Missing) -> bool) -> Option<String> {
    let mut missing = run
        .intake
        .missing
        .iter()
        .filter(|missing| missing.fatal && of(missing));
    missing
        .next()
        .map(|missing| format!("{} is missing", missing.file))
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    Spread::of(&mut values.collect::<Vec<f64>>())
}

/// From the first request to the end of the last program. Steps outside programs do not stretch it.
fn whole(run: &Run) -> Option<Rates> {
    let start = run.programs.iter().map(|p| p.started_s).reduce(f64::min)?;
    let end = run.programs.iter().map(|p| p.last_s).reduce(f64::max)?;
    Rates::over(end - start, run.done().count(), run.served().count())
}

/// From the end of the step at rank `STEADY_FROM` to that at `STEADY_TO`; the first one itself is not counted.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "ranks of samples far below 2^52"
)]
fn steady(run: &Run) -> Option<Rates> {
    let mut ends: Vec<f64> = run.served().map(|step| step.finished_s).collect();
    ends.sort_by(f64::total_cmp);
    let at = |share: f64| ends.get((share * ends.len() as f64) as usize).copied();
    let (from, to) = (at(STEADY_FROM)?, at(STEADY_TO)?);
    let inside = |at: f64| at > from && at <= to;
    let steps = ends.iter().filter(|&&end| inside(end)).count();
    let programs = run.done().filter(|program| inside(program.last_s)).count();
    Rates::over(to - from, programs, steps)
}

impl From<NoWindow> for WindowRates {
    fn from(missing: NoWindow) -> Self {
        Self::Missing {
            missing: missing.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::Series;
    use super::super::run::build::Builder;
    use super::super::rundir::{Manifest, ProgramRecord};
    use super::super::window::KvSample;
    use super::*;
    use crate::telemetry::StepRecord;

    fn step(arrived_s: f64, finished_s: f64, outcome: &str) -> StepRecord {
        StepRecord {
            policy: "baseline".to_owned(),
            arrived_s,
            finished_s,
            hold_s: 0.5,
            prompt_tokens: Some(100),
            cached_tokens: Some(60),
            outcome: outcome.to_owned(),
            status: 200,
            ..StepRecord::default()
        }
    }

    fn program(started_s: f64, finished_s: f64, ending: Ending) -> ProgramRecord {
        ProgramRecord {
            program: format!("p{started_s}-{finished_s}"),
            kind: "k".to_owned(),
            started_s,
            finished_s,
            steps: 1,
            errors: 0,
            ending,
            cause: None,
        }
    }

    /// 60 s long; the cache is hot from 10 s to 40 s.
    fn run(source: StepSource) -> Run {
        let manifest = Manifest {
            concurrency: 2,
            trace: "tau2".to_owned(),
            ..Manifest::default()
        };
        let mut builder = Builder::new(Some(&manifest), source);
        for (arrived_s, finished_s, outcome) in [
            (0.0, 2.0, "length"),
            (10.0, 20.0, "length"),
            (20.0, 30.0, "failed"),
            (50.0, 60.0, "stop"),
        ] {
            builder.step(&step(arrived_s, finished_s, outcome));
        }
        builder.program(&program(0.0, 20.0, Ending::Done));
        builder.program(&program(0.0, 60.0, Ending::Done));
        builder.program(&program(20.0, 30.0, Ending::Failed));
        let mut run = builder.finish(true);
        let hot = |(ts_s, usage_percent)| KvSample {
            ts_s,
            usage_percent,
        };
        run.series = vec![Series {
            name: "port 1".to_owned(),
            samples: [(10, 80.0), (40, 90.0)].map(hot).to_vec(),
        }];
        run
    }

    #[test]
    fn rates_count_finished_programs_and_served_steps_only() {
        let measures = Measures::of(&run(StepSource::Gate), 70.0);
        let whole = measures.whole.unwrap();
        assert_eq!((whole.programs, whole.steps), (2, 3));
        assert!(
            (whole.tasks_per_min - 2.0).abs() < 1e-9 && (whole.steps_per_s - 0.05).abs() < 1e-9
        );
        let window = *measures.window.rates().unwrap();
        assert_eq!(
            (window.programs, window.steps),
            (1, 1),
            "the failed step is in the window"
        );
        assert!((window.tasks_per_min - 2.0).abs() < 1e-9);
        assert_eq!((measures.programs_failed, measures.steps_failed), (1, 1));
        assert_eq!(measures.policy, "baseline", "from the steps");
        let causes: Vec<_> = measures.errors.into_iter().collect();
        let expected = [("failed", 1), ("program given up: no cause recorded", 1)];
        assert_eq!(causes, expected.map(|(cause, n)| (cause.to_owned(), n)));
    }

    #[test]
    fn latencies_and_hit_rate_are_of_served_steps() {
        let measures = Measures::of(&run(StepSource::Gate), 70.0);
        assert!((measures.step_s.unwrap().p50 - 10.0).abs() < 1e-9);
        assert!((measures.hold_s.unwrap().p95 - 0.5).abs() < 1e-9);
        assert!((measures.program_s.unwrap().p50 - 40.0).abs() < 1e-9);
        assert!((measures.prefix_hit_rate.unwrap() - 0.6).abs() < 1e-9);
    }

    #[test]
    fn the_steady_state_leaves_out_ramp_up_and_tail() {
        let mut builder = Builder::new(None, StepSource::Gate);
        // A slow start, ten steps a second apart, a slow end.
        for end in [
            0.0, 90.0, 100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0, 500.0,
        ] {
            builder.step(&step(end - 1.0, end, "stop"));
        }
        let steady = steady(&builder.finish(true)).unwrap();
        assert_eq!(
            steady.steps, 6,
            "of ten, those after the third up to the ninth"
        );
        assert!((steady.seconds - 6.0).abs() < 1e-9 && (steady.steps_per_s - 1.0).abs() < 1e-9);
    }

    #[test]
    fn without_pressure_or_gate_the_cells_say_so() {
        let mut data = run(StepSource::Client);
        let cold = Measures::of(&data, 95.0);
        assert_eq!(
            cold.window,
            WindowRates::Missing {
                missing: "never above 95 % (highest 90 %)".to_owned()
            }
        );
        assert_eq!(cold.hold_s, None);
        data.series.clear();
        data.steps.clear();
        let blind = Measures::of(&data, 70.0);
        assert_eq!(blind.window.rates(), None);
        assert_eq!((blind.step_s, blind.steady), (None, None));
    }

    #[test]
    fn a_summary_reads_back() {
        let mut measures = Measures::of(&run(StepSource::Gate), 70.0);
        // Its rates are no short decimals, which serde_json reads back but for their last digit.
        measures.steady = measures.whole;
        let text = serde_json::to_string(&measures).unwrap();
        assert_eq!(serde_json::from_str::<Measures>(&text).unwrap(), measures);
    }
}
