//! kvgate's own records, one after another, into a [`Run`]. Pure.

use std::collections::HashMap;

use super::{Call, CallKind, Edge, Prefix, Program, Request, Role, Run, Step};
use crate::harness::rundir::{Ending, Manifest, ProgramRecord, StepSource};
use crate::telemetry::StepRecord;

/// Takes records in any order; [`Builder::finish`] gives the run.
#[derive(Debug)]
pub struct Builder {
    run: Run,
    programs: HashMap<String, u32>,
    /// Whether anything recorded how programs ended.
    recorded: bool,
}

impl Builder {
    /// A run made so; without a manifest its policy comes from the steps and its workload is unknown.
    pub fn new(manifest: Option<&Manifest>, step_source: StepSource) -> Self {
        let mut run = Run {
            step_source,
            workload: "unknown workload".to_owned(),
            ..Run::default()
        };
        if let Some(manifest) = manifest {
            run.policy = manifest.policy.clone().unwrap_or_default();
            run.workload.clone_from(&manifest.trace);
            run.concurrency = Some(manifest.concurrency);
            run.expected = Some(manifest.programs);
            let engine = manifest.engine.as_ref();
            run.kv = engine.map(|engine| (engine.kv_blocks, engine.block_size));
            run.cost = engine.map(|engine| engine.cost.clone());
            run.model = Some(manifest.model.clone()).filter(|model| !model.is_empty());
        }
        Self {
            run,
            programs: HashMap::new(),
            recorded: false,
        }
    }

    /// Adds a request.
    pub fn step(&mut self, record: &StepRecord) {
        let run = &mut self.run;
        if run.policy.is_empty() {
            run.policy.clone_from(&record.policy);
        }
        let step = Step {
            program: self.program_of(record),
            index: record.step_index,
            edge: edge(record),
            served: is_served(record),
            started_s: record.arrived_s,
            finished_s: record.finished_s,
        };
        if !step.served {
            self.run.count_error(&cause(record));
        }
        self.calls(&step, record);
        let request = self.request(record);
        if step.served {
            self.prefix(&request);
        }
        self.run.steps.push(step);
        self.run.requests.push(request);
    }

    /// Adds a program's record, which says more than its steps do.
    pub fn program(&mut self, record: &ProgramRecord) {
        self.recorded = true;
        let index = self.index_of(&record.program, record.started_s);
        if let Some(program) = self.run.programs.get_mut(index as usize) {
            program.kind.clone_from(&record.kind);
            program.started_s = record.started_s;
            program.last_s = record.finished_s;
            program.ending = Some(record.ending);
        }
        if record.ending == Ending::Failed {
            let cause = record.cause.as_deref().unwrap_or("no cause recorded");
            self.run.count_error(&format!("program given up: {cause}"));
        }
    }

    /// The run. Where nothing recorded programs, one whose last request was served counts as done.
    pub fn finish(mut self, programs_expected: bool) -> Run {
        self.run.intake.programs_derived = !self.recorded && !programs_expected;
        if self.run.intake.programs_derived {
            self.derive_endings();
        }
        if self.run.policy.is_empty() {
            "unknown".clone_into(&mut self.run.policy);
        }
        self.run
    }

    fn derive_endings(&mut self) {
        let mut last = vec![(f64::NEG_INFINITY, false); self.run.programs.len()];
        for step in &self.run.steps {
            let slot = step.program.and_then(|index| last.get_mut(index as usize));
            if let Some(slot) = slot
                && step.finished_s >= slot.0
            {
                *slot = (step.finished_s, step.served);
            }
        }
        for (program, (_, served)) in self.run.programs.iter_mut().zip(last) {
            program.ending = Some(if served { Ending::Done } else { Ending::Failed });
        }
    }

    fn program_of(&mut self, record: &StepRecord) -> Option<u32> {
        let name = record.program.as_ref()?;
        let index = self.index_of(name, record.arrived_s);
        if let Some(program) = self.run.programs.get_mut(index as usize)
            && program.ending.is_none()
        {
            program.started_s = program.started_s.min(record.arrived_s);
            program.last_s = program.last_s.max(record.finished_s);
        }
        Some(index)
    }

    fn index_of(&mut self, name: &str, started_s: f64) -> u32 {
        if let Some(&known) = self.programs.get(name) {
            return known;
        }
        let index = u32::try_from(self.run.programs.len()).unwrap_or(u32::MAX);
        self.programs.insert(name.to_owned(), index);
        self.run.programs.push(Program {
            name: name.to_owned(),
            started_s,
            begin_known: true,
            last_s: started_s,
            ..Program::default()
        });
        index
    }

    fn calls(&mut self, step: &Step, record: &StepRecord) {
        let call = |kind, ended_s, seconds| Call {
            kind,
            program: step.program,
            step: step.index,
            ended_s,
            seconds,
        };
        if let Some(gap_s) = record.tool_gap_s {
            let gap = call(CallKind::ToolGap, record.arrived_s, gap_s);
            self.run.calls.push(gap);
        }
        if step.served {
            let seconds = record.finished_s - record.arrived_s;
            let call = call(CallKind::LlmCall, record.finished_s, seconds);
            self.run.calls.push(call);
        }
    }

    fn request(&mut self, record: &StepRecord) -> Request {
        let count = |tokens: Option<u64>| tokens.and_then(|tokens| u32::try_from(tokens).ok());
        let names = &mut self.run.names;
        Request {
            admitted_s: record.admitted_s,
            first_token_s: record.first_token_s,
            hold_s: record.hold_s,
            ttft_s: record.ttft_s.filter(|_| record.stream),
            tpot_s: record.tpot_s,
            tool_gap_s: record.tool_gap_s,
            prompt_tokens: count(record.prompt_tokens),
            cached_tokens: count(record.cached_tokens),
            output_tokens: count(record.output_tokens),
            tool: record.tool.as_deref().map(|tool| names.number(tool)),
            outcome: names.number(&record.outcome),
            status: record.status,
        }
    }

    /// Steps that do not report both counts are left out.
    fn prefix(&mut self, request: &Request) {
        if let (Some(cached), Some(prompt)) = (request.cached_tokens, request.prompt_tokens) {
            let sum = self.run.prefix.get_or_insert_with(Prefix::default);
            sum.cached += u64::from(cached);
            sum.prompt += u64::from(prompt);
        }
    }
}

/// Whether a backend served the step to its end.
pub fn is_served(step: &StepRecord) -> bool {
    step.status == 200 && matches!(step.outcome.as_str(), "stop" | "length" | "tool_calls")
}

/// A step that calls a tool hands over to the environment, another to the user.
fn edge(record: &StepRecord) -> Edge {
    let calls = record.tool.is_some() || record.outcome == "tool_calls";
    Edge {
        from: Role::Agent,
        to: if calls { Role::Env } else { Role::User },
    }
}

/// Why a step was not served: outcome and status.
fn cause(record: &StepRecord) -> String {
    match (record.outcome.as_str(), record.status) {
        ("", 0) => "no outcome recorded".to_owned(),
        (outcome, 0 | 200) => outcome.to_owned(),
        (outcome, status) => format!("{outcome} ({status})"),
    }
}
