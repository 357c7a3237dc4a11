//! The figures of one run: rates in the active window and over the whole run, hit rate, latencies. Pure.
//!
//! Only served steps and finished programs count towards rates and latencies; failures are counted beside them,
//! so that a policy cannot win by failing. A step here is one LLM call; the reference scripts' `step_complete`
//! also counts the user's and the environment's transitions, so its steps/s are about five times these.

use serde::{Deserialize, Serialize};

use super::rundir::{Ending, Manifest, ProgramRecord, RunDir, StepSource};
use super::stats::Spread;
use super::window::{NoWindow, Window, parse_kv_csv};
use crate::telemetry::StepRecord;

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
    /// The rates, where there is a window.
    pub const fn rates(&self) -> Option<&Rates> {
        match self {
            Self::Found { rates, .. } => Some(rates),
            Self::Missing { .. } => None,
        }
    }
}

/// Everything the comparison shows of one run; `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// The gate's policy; `unknown` if neither the manifest nor a step names it.
    pub policy: String,
    /// Programs in flight.
    pub concurrency: usize,
    /// The trace.
    pub trace: String,
    /// KV blocks and tokens per block of the engine, where the harness started it.
    pub kv: Option<(u32, u32)>,
    /// Rates in the active window.
    pub window: WindowRates,
    /// Rates from the first request to the end of the last program (the makespan); `None` for an empty run.
    pub whole: Option<Rates>,
    /// Cached prompt tokens / prompt tokens over served steps, fraction 0–1; `None` where not reported.
    pub prefix_hit_rate: Option<f64>,
    /// Arrival to end of a served step, seconds, hold included.
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
    /// Requests that were not served.
    pub steps_failed: usize,
    /// Who timed the steps.
    pub step_source: StepSource,
}

/// The records of one run.
#[derive(Clone, Debug)]
pub struct RunData {
    /// What was run.
    pub manifest: Manifest,
    /// One record per program.
    pub programs: Vec<ProgramRecord>,
    /// One record per request.
    pub steps: Vec<StepRecord>,
    /// Who wrote `steps`.
    pub step_source: StepSource,
    /// `kv_cache_timeseries.csv`, where a gate wrote one.
    pub kv_csv: Option<String>,
}

impl RunData {
    /// Reads a run directory.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn read(dir: &RunDir) -> anyhow::Result<Self> {
        let (steps, step_source) = dir.steps()?;
        Ok(Self {
            manifest: dir.manifest()?,
            programs: dir.programs()?,
            steps,
            step_source,
            kv_csv: dir.kv_csv()?,
        })
    }

    /// The figures, with the active window above `threshold_percent` of KV usage.
    pub fn measure(&self, threshold_percent: f64) -> Measures {
        let served: Vec<&StepRecord> = self.steps.iter().filter(|s| is_served(s)).collect();
        let spread = |value: fn(&StepRecord) -> Option<f64>| {
            Spread::of(&mut served.iter().filter_map(|s| value(s)).collect::<Vec<f64>>())
        };
        let ended = |ending| self.programs.iter().filter(|p| p.ending == ending).count();
        Measures {
            policy: self.policy(),
            concurrency: self.manifest.concurrency,
            trace: self.manifest.trace.clone(),
            kv: self
                .manifest
                .engine
                .as_ref()
                .map(|e| (e.kv_blocks, e.block_size)),
            window: self.window(&served, threshold_percent),
            whole: self.whole(served.len()),
            prefix_hit_rate: hit_rate(&served),
            step_s: spread(|s| Some(s.finished_s - s.arrived_s)),
            ttft_s: spread(|s| s.ttft_s),
            hold_s: match self.step_source {
                StepSource::Gate => spread(|s| Some(s.hold_s)),
                StepSource::Client => None,
            },
            program_s: Spread::of(
                &mut self
                    .done()
                    .map(|p| p.finished_s - p.started_s)
                    .collect::<Vec<_>>(),
            ),
            programs_failed: ended(Ending::Failed),
            programs_cancelled: ended(Ending::Cancelled),
            steps_failed: self.steps.len() - served.len(),
            step_source: self.step_source,
        }
    }

    fn done(&self) -> impl Iterator<Item = &ProgramRecord> {
        self.programs.iter().filter(|p| p.ending == Ending::Done)
    }

    fn policy(&self) -> String {
        let recorded = || self.steps.iter().map(|s| &s.policy).find(|p| !p.is_empty());
        let policy = self.manifest.policy.as_ref().or_else(recorded);
        policy.map_or_else(|| "unknown".to_owned(), String::clone)
    }

    fn window(&self, served: &[&StepRecord], threshold_percent: f64) -> WindowRates {
        let samples = self.kv_csv.as_deref().map(parse_kv_csv).unwrap_or_default();
        let window = match Window::active(&samples, threshold_percent) {
            Ok(window) => window,
            Err(missing) => return missing.into(),
        };
        let programs = self
            .done()
            .filter(|p| window.contains(p.finished_s))
            .count();
        let steps = served
            .iter()
            .filter(|s| window.contains(s.finished_s))
            .count();
        match Rates::over(window.seconds(), programs, steps) {
            Some(rates) => WindowRates::Found { window, rates },
            None => NoWindow::OneMoment { threshold_percent }.into(),
        }
    }

    fn whole(&self, steps: usize) -> Option<Rates> {
        let start = self.programs.iter().map(|p| p.started_s).reduce(f64::min)?;
        let end = self
            .programs
            .iter()
            .map(|p| p.finished_s)
            .reduce(f64::max)?;
        Rates::over(end - start, self.done().count(), steps)
    }
}

impl From<NoWindow> for WindowRates {
    fn from(missing: NoWindow) -> Self {
        Self::Missing {
            missing: missing.to_string(),
        }
    }
}

/// Whether a backend served the step to its end.
pub fn is_served(step: &StepRecord) -> bool {
    step.status == 200 && matches!(step.outcome.as_str(), "stop" | "length" | "tool_calls")
}

/// Cached over prompt tokens; steps that do not report both are left out.
#[expect(clippy::cast_precision_loss, reason = "token sums below 2^52")]
fn hit_rate(served: &[&StepRecord]) -> Option<f64> {
    let counts = || {
        served
            .iter()
            .filter_map(|s| Some((s.cached_tokens?, s.prompt_tokens?)))
    };
    let (cached, prompt) = counts().fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
    (prompt > 0).then(|| cached as f64 / prompt as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            program: format!("p{started_s}"),
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
    fn run() -> RunData {
        RunData {
            manifest: Manifest {
                concurrency: 2,
                trace: "tau2".to_owned(),
                ..Manifest::default()
            },
            programs: vec![
                program(0.0, 20.0, Ending::Done),
                program(0.0, 60.0, Ending::Done),
                program(20.0, 30.0, Ending::Failed),
            ],
            steps: vec![
                step(0.0, 2.0, "length"),
                step(10.0, 20.0, "length"),
                step(20.0, 30.0, "failed"),
                step(50.0, 60.0, "stop"),
            ],
            step_source: StepSource::Gate,
            kv_csv: Some(
                "h\nx,10,1,vllm:kv_cache_usage_perc,0.8\nx,40,1,vllm:kv_cache_usage_perc,0.9\n"
                    .to_owned(),
            ),
        }
    }

    #[test]
    fn rates_count_finished_programs_and_served_steps_only() {
        let measures = run().measure(70.0);
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
    }

    #[test]
    fn latencies_and_hit_rate_are_of_served_steps() {
        let measures = run().measure(70.0);
        assert!((measures.step_s.unwrap().p50 - 10.0).abs() < 1e-9);
        assert!((measures.hold_s.unwrap().p95 - 0.5).abs() < 1e-9);
        assert!((measures.program_s.unwrap().p50 - 40.0).abs() < 1e-9);
        assert!((measures.prefix_hit_rate.unwrap() - 0.6).abs() < 1e-9);
    }

    #[test]
    fn without_pressure_or_gate_the_cells_say_so() {
        let mut data = run();
        data.step_source = StepSource::Client;
        let cold = data.measure(95.0);
        assert_eq!(
            cold.window,
            WindowRates::Missing {
                missing: "never above 95 % (highest 90 %)".to_owned()
            }
        );
        assert_eq!(cold.hold_s, None);
        data.kv_csv = None;
        data.steps.clear();
        let blind = data.measure(70.0);
        assert_eq!(blind.window.rates(), None);
        assert_eq!((blind.prefix_hit_rate, blind.step_s), (None, None));
    }

    #[test]
    fn a_summary_reads_back() {
        let measures = run().measure(70.0);
        let text = serde_json::to_string(&measures).unwrap();
        assert_eq!(serde_json::from_str::<Measures>(&text).unwrap(), measures);
    }
}
