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
fn is_served(step: &StepRecord) -> bool {
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
#[path = "measure_tests.rs"]
mod tests;
