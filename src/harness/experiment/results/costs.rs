//! What each program cost, summed over its requests.

use std::collections::BTreeMap;
use std::path::Path;

use super::tasks::Task;
use crate::harness::report::load::lines;
use crate::harness::run::build::is_served;
use crate::telemetry::StepRecord;
use crate::telemetry::recorder::STEPS_FILE;

/// The same as a replay saw it.
const CLIENT_STEPS: &str = "client_steps.jsonl";
/// What a program of tau2-bench is called, before its domain and task.
const TAU2: &str = "tau2:";

/// The sums of one program; `None` where no request told. Times are Unix seconds, durations seconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sums {
    pub(super) program: String,
    /// Its first request came.
    pub(super) began_s: f64,
    /// Its last one was over.
    pub(super) ended_s: f64,
    pub(super) requests: u64,
    /// Those that were not served to their end.
    pub(super) failed: u64,
    pub(super) prompt_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    /// Requests that were held.
    pub(super) held: Option<u64>,
    pub(super) held_s: Option<f64>,
    /// From admission to the first token: the backend's queue and prefill.
    pub(super) first_token_s: Option<f64>,
    /// From admission, or arrival where nothing admits, to the end.
    pub(super) served_s: f64,
    /// Tool gaps and users' turns before its requests.
    pub(super) gap_s: Option<f64>,
}

/// The sums by program.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    by_program: BTreeMap<String, Sums>,
    /// Programs by what they are called without the digits that tell attempts and trials apart; `None` for several.
    by_task: BTreeMap<String, Option<String>>,
}

impl Costs {
    /// Sums the requests recorded in `dir`.
    ///
    /// # Errors
    /// When the file is there and cannot be read; the message names it.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut costs = Self::default();
        let gated = lines::json(dir, STEPS_FILE, |record| costs.add(&record, true))?;
        if gated.is_none() {
            lines::json(dir, CLIENT_STEPS, |record| costs.add(&record, false))?;
        }
        for program in costs.by_program.keys() {
            if let Some((task, _)) = program
                .strip_prefix(TAU2)
                .and_then(|name| name.rsplit_once(':'))
            {
                let one = costs.by_task.entry(task.to_owned());
                one.and_modify(|one| *one = None)
                    .or_insert_with(|| Some(program.clone()));
            }
        }
        Ok(costs)
    }

    /// The sums of a task: of its program, or of the only one that bears its name.
    pub(super) fn of(&self, task: &Task) -> Option<&Sums> {
        if let Some(program) = &task.program {
            return self.by_program.get(program);
        }
        let name = format!("{}:{}", task.kind, task.id.as_ref()?);
        self.by_program.get(self.by_task.get(&name)?.as_ref()?)
    }

    fn add(&mut self, record: &StepRecord, is_gated: bool) {
        let Some(program) = &record.program else {
            return;
        };
        let known = self.by_program.entry(program.clone());
        let sums = known.or_insert_with(|| Sums::of(record, is_gated));
        sums.began_s = sums.began_s.min(record.arrived_s);
        sums.ended_s = sums.ended_s.max(record.finished_s);
        sums.requests += 1;
        sums.failed += u64::from(!is_served(record));
        add(&mut sums.prompt_tokens, record.prompt_tokens);
        add(&mut sums.cached_tokens, record.cached_tokens);
        add(&mut sums.output_tokens, record.output_tokens);
        add(&mut sums.first_token_s, record.ttft_backend_s);
        add(&mut sums.gap_s, record.tool_gap_s);
        if is_gated {
            add(
                &mut sums.held,
                Some(u64::from(record.hold_reason.is_some())),
            );
            add(&mut sums.held_s, Some(record.hold_s));
        }
        sums.served_s += match record.admitted_s {
            Some(admitted_s) => record.finished_s - admitted_s,
            None if is_gated => 0.0,
            None => record.finished_s - record.arrived_s,
        };
    }
}

impl Sums {
    /// Those of a program before its first request.
    fn of(record: &StepRecord, is_gated: bool) -> Self {
        Self {
            program: record.program.clone().unwrap_or_default(),
            began_s: record.arrived_s,
            ended_s: record.finished_s,
            requests: 0,
            failed: 0,
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: None,
            held: is_gated.then_some(0),
            held_s: is_gated.then_some(0.0),
            first_token_s: None,
            served_s: 0.0,
            gap_s: None,
        }
    }
}

fn add<T: std::ops::Add<Output = T> + Copy>(sum: &mut Option<T>, more: Option<T>) {
    *sum = match (*sum, more) {
        (Some(sum), Some(more)) => Some(sum + more),
        (sum, more) => sum.or(more),
    };
}
