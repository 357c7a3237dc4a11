//! kvgate's own records, one after another, into a [`Run`]. Pure.

use std::collections::HashMap;

use super::{Call, CallKind, Edge, Prefix, Program, Request, Role as Speaker, Run, Step};
use crate::harness::rundir::{Ending, Manifest, ProgramRecord, StepSource};
use crate::telemetry::StepRecord;
use crate::telemetry::step::Role;

/// Takes records in any order; [`Builder::finish`] gives the run.
#[derive(Debug)]
pub struct Builder {
    run: Run,
    programs: HashMap<String, u32>,
    /// Calls past the policy, with the program they name: it is looked for in the end, since its first step may be
    /// recorded after them.
    routed: Vec<(Option<String>, Call)>,
    /// Requests under the name of a program's user that the policy scheduled: whether there is such a program is known
    /// in the end.
    scheduled_users: Vec<StepRecord>,
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
            routed: Vec::new(),
            scheduled_users: Vec::new(),
            recorded: false,
        }
    }

    /// Adds a request: a step, or a call that took a route past the policy.
    pub fn step(&mut self, record: &StepRecord) {
        if let Some(kind) = record.role.and_then(call_kind) {
            let route = record.route.as_deref().unwrap_or_default();
            self.call_beside(kind, record, &format!("route {route}"));
            return;
        }
        if user_of(record).is_some() {
            self.scheduled_users.push(record.clone());
            return;
        }
        self.own_step(record);
    }

    /// Adds what is surely a step.
    fn own_step(&mut self, record: &StepRecord) {
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
        self.place_scheduled_users();
        self.place_routed_calls();
        self.run.intake.programs_derived = !self.recorded && !programs_expected;
        if self.run.intake.programs_derived {
            self.derive_endings();
        }
        if self.run.policy.is_empty() {
            "unknown".clone_into(&mut self.run.policy);
        }
        self.run
    }

    /// A scheduled request under the name of a program's user is a call of that user, unless a program of that name was
    /// played itself, or there is none whose user it is.
    fn place_scheduled_users(&mut self) {
        for record in std::mem::take(&mut self.scheduled_users) {
            let knows =
                |name: Option<&str>| name.is_some_and(|name| self.programs.contains_key(name));
            if knows(user_of(&record)) && !knows(record.program.as_deref()) {
                self.call_beside(CallKind::UserSim, &record, "user");
            } else {
                self.own_step(&record);
            }
        }
    }

    /// A call of an expert, a user or a judge, whom failures name by `whom`.
    fn call_beside(&mut self, kind: CallKind, record: &StepRecord, whom: &str) {
        if !is_served(record) {
            self.run.count_error(&format!("{whom}: {}", cause(record)));
            return;
        }
        let call = Call {
            kind,
            program: None,
            step: 0,
            ended_s: record.finished_s,
            seconds: record.finished_s - record.arrived_s,
        };
        self.routed.push((record.program.clone(), call));
    }

    /// Gives the calls past the policy their programs, and the step that each was made in or after.
    fn place_routed_calls(&mut self) {
        if self.routed.is_empty() {
            return;
        }
        let mut begins: Vec<Vec<(f64, u32)>> = vec![Vec::new(); self.run.programs.len()];
        for step in &self.run.steps {
            let own = step
                .program
                .and_then(|program| begins.get_mut(program as usize));
            if let Some(own) = own {
                own.push((step.started_s, step.index));
            }
        }
        for begins in &mut begins {
            begins.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        for (name, mut call) in std::mem::take(&mut self.routed) {
            let program = name.and_then(|name| self.known(&name));
            if let Some(begins) = program.and_then(|program| begins.get(program as usize)) {
                let began_s = call.ended_s - call.seconds;
                let before = begins.partition_point(|(started_s, _)| *started_s <= began_s);
                call.step = before.checked_sub(1).map_or(0, |last| begins[last].1);
            }
            call.program = program;
            self.run.calls.push(call);
        }
    }

    /// The program called `name`, or whose user is.
    fn known(&self, name: &str) -> Option<u32> {
        let known = self.programs.get(name);
        let of_user = || self.programs.get(name.strip_suffix(USER_SUFFIX)?);
        known.or_else(of_user).copied()
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

/// What the simulated user of a program is called, behind the program's name; to reports and watchdogs the two are one.
pub const USER_SUFFIX: &str = ":user";

/// The program whose user, by its name, made the request.
fn user_of(record: &StepRecord) -> Option<&str> {
    record.program.as_deref()?.strip_suffix(USER_SUFFIX)
}

/// What sort of call a role makes; `None` for steps.
const fn call_kind(role: Role) -> Option<CallKind> {
    match role {
        Role::Agent => None,
        Role::Expert => Some(CallKind::ExpertCall),
        Role::User => Some(CallKind::UserSim),
        Role::Judge => Some(CallKind::Evaluator),
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
        from: Speaker::Agent,
        to: if calls { Speaker::Env } else { Speaker::User },
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(program: &str, arrived_s: f64, role: Option<Role>) -> StepRecord {
        StepRecord {
            program: Some(program.to_owned()),
            route: role.map(|_| "gpt-*".to_owned()),
            role,
            arrived_s,
            finished_s: arrived_s + 1.0,
            outcome: "stop".to_owned(),
            status: 200,
            ..StepRecord::default()
        }
    }

    #[test]
    fn a_call_past_the_policy_is_no_step_and_belongs_to_its_program() {
        let mut builder = Builder::new(None, StepSource::Gate);
        // The user speaks before the agent does, under a name of its own; nobody else has it.
        builder.step(&record("p:user", 1.0, Some(Role::User)));
        for (index, arrived_s) in [(0, 2.0), (1, 4.0)] {
            builder.step(&StepRecord {
                step_index: index,
                ..record("p", arrived_s, None)
            });
        }
        builder.step(&record("p", 3.5, Some(Role::Expert)));
        builder.step(&record("p", 9.0, Some(Role::Judge)));
        builder.step(&StepRecord {
            step_index: 2,
            ..record("p", 9.5, Some(Role::Agent))
        });
        builder.step(&StepRecord {
            outcome: "failed".to_owned(),
            status: 500,
            ..record("p", 9.0, Some(Role::Expert))
        });

        let run = builder.finish(false);
        assert_eq!((run.steps.len(), run.programs.len()), (3, 1));
        assert_eq!(run.programs[0].ending, Some(Ending::Done));
        let beside: Vec<_> = run
            .calls
            .iter()
            .filter(|call| call.kind != CallKind::LlmCall)
            .map(|call| (call.kind, call.program, call.step))
            .collect();
        assert_eq!(
            beside,
            [
                (CallKind::UserSim, Some(0), 0),
                (CallKind::ExpertCall, Some(0), 0),
                (CallKind::Evaluator, Some(0), 1),
            ]
        );
        assert_eq!(run.errors["route gpt-*: failed (500)"], 1);
    }

    #[test]
    fn a_user_that_the_policy_schedules_is_no_program_beside_its_own() {
        let mut builder = Builder::new(None, StepSource::Gate);
        builder.step(&record("p:user", 1.0, None));
        builder.step(&record("p", 2.0, None));
        builder.step(&record("p:user", 3.5, Some(Role::Agent)));
        builder.step(&StepRecord {
            outcome: "failed".to_owned(),
            status: 500,
            ..record("p:user", 5.0, None)
        });
        // Nobody's user, and a program that was played under such a name.
        builder.step(&record("q:user", 6.0, None));
        builder.step(&record("r", 6.0, None));
        builder.step(&record("r:user", 6.0, None));
        builder.program(&ProgramRecord {
            program: "r:user".to_owned(),
            kind: "k".to_owned(),
            started_s: 6.0,
            finished_s: 7.0,
            steps: 1,
            errors: 0,
            ending: Ending::Done,
            cause: None,
        });

        let run = builder.finish(true);
        let programs: Vec<_> = run.programs.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(programs, ["p", "r", "r:user", "q:user"]);
        assert_eq!(run.steps.len(), 4);
        let users: Vec<_> = run
            .calls
            .iter()
            .filter(|call| call.kind == CallKind::UserSim)
            .map(|call| (run.program_name(call.program), call.ended_s))
            .collect();
        assert_eq!(users, [("p", 2.0), ("p", 4.5)]);
        assert_eq!(run.errors["user: failed (500)"], 1);
    }
}
