//! The event loop: programs arrive, the policy decides, the engine iterates.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::workload::{Generator, Program};
use super::{Experiment, History, Tally};
use crate::harness::engine::core::output::mix;
use crate::harness::engine::core::{
    Chain, Emitted, Engine, Finish, Output, Request, RequestId as EngineId, StepReport,
};
use crate::policy::{
    Arrival, BackendId, BackendSample, Decision, Decisions, Event, Outcome, Policy, ProgramId,
    Ratio, RequestId, SharedPrefix, Time, Tokens, Usage,
};

/// The only backend of a simulation.
pub(super) const BACKEND: BackendId = BackendId(0);
/// Time between two samples of the engine's gauges, as a gate scrapes them.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// What happens next, in order of time, then of cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// The program in this slot sends its next step.
    Arrive(usize),
    /// The admitted step of this slot reaches the engine's queue.
    Reach(usize),
    /// The engine's iteration ends.
    IterationEnd,
    /// The gate scrapes the engine.
    Sample,
    /// The policy asked to be woken.
    Tick,
}

/// One of the concurrent programs.
#[derive(Debug)]
struct Slot {
    program: Program,
    /// Index of the step that is next or under way.
    step: usize,
    /// The prompt so far.
    history: Chain,
    /// Distinguishes the private tokens of this program from those of all others.
    name: u64,
    arrived: Time,
}

impl Slot {
    /// The user or the tool speaks.
    fn begin_step(&mut self) {
        let said = mix(self.name ^ (2 * self.step as u64));
        let added = self.program.steps[self.step].added;
        self.history.extend(fresh(said, added));
    }

    /// The answer becomes history.
    fn end_step(&mut self, history: History) {
        let length = self.program.steps[self.step].output;
        match history {
            History::Kept => {
                let output = Output::filler(length, Finish::Stop, self.output_seed());
                self.history.extend((0..length).map(|i| output.token(i)));
            }
            History::Recut(factor) => {
                let length = Tokens::from_f64(f64::from(length) * factor).0;
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                self.history.extend(fresh(mix(self.output_seed()), length));
            }
        }
        self.step += 1;
    }

    const fn output_seed(&self) -> u64 {
        mix(self.name ^ (2 * self.step as u64 + 1))
    }
}

/// A run under way.
pub(super) struct World<'a> {
    experiment: &'a Experiment,
    policy: &'a mut dyn Policy,
    pub(super) engine: Engine,
    report: StepReport,
    iterating: bool,
    programs: Generator,
    slots: Vec<Slot>,
    agenda: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    planned: u64,
    now: Time,
    /// The tick that is on the agenda; later ones are stale.
    tick: Option<Time>,
    decisions: Decisions,
    /// What has been measured since it was last replaced.
    pub(super) tally: Tally,
}

impl<'a> World<'a> {
    pub(super) fn new(experiment: &'a Experiment, policy: &'a mut dyn Policy) -> Self {
        Self {
            experiment,
            policy,
            engine: Engine::new(experiment.engine.clone()),
            report: StepReport::default(),
            iterating: false,
            programs: Generator::new(experiment.shape, experiment.seed),
            slots: Vec::new(),
            agenda: BinaryHeap::new(),
            planned: 0,
            now: Time::ZERO,
            tick: None,
            decisions: Decisions::new(),
            tally: Tally::default(),
        }
    }

    /// Fills the slots with programs in mid-life: in a window of seconds, programs that all began together
    /// would all be young.
    pub(super) fn start(&mut self) {
        let capacity = u64::from(self.experiment.engine.usable_blocks())
            * u64::from(self.experiment.engine.block_size);
        self.tell(&Event::BackendUp {
            backend: BACKEND,
            kv_capacity: Some(Tokens(capacity)),
        });
        for at in 0..self.experiment.concurrency.max(1) as usize {
            let (program, past, left) = self.programs.in_mid_life();
            let mut slot = self.slot(program);
            for _ in 0..past {
                slot.begin_step();
                slot.end_step(self.experiment.history);
            }
            self.slots.push(slot);
            self.plan(self.now + left, Happening::Arrive(at));
        }
        self.plan(self.now + SAMPLE_EVERY, Happening::Sample);
    }

    pub(super) fn run_until(&mut self, end: Time) {
        while let Some(Reverse((at, _, happening))) = self.agenda.pop() {
            if at > end {
                // Not due: back on the agenda for the next call.
                self.plan(at, happening);
                return;
            }
            self.tally.pass(at.since(self.now), &self.engine.stats());
            self.now = at;
            self.happen(happening);
            self.plan_tick();
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive(at) => self.arrive(at),
            Happening::Reach(at) => self.reach(at),
            Happening::IterationEnd => self.iteration_end(),
            Happening::Sample => self.sample(),
            Happening::Tick => {
                if self.tick == Some(self.now) {
                    self.tick = None;
                    self.tell(&Event::Tick);
                }
            }
        }
    }

    fn arrive(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        slot.begin_step();
        slot.arrived = self.now;
        let arrival = Arrival {
            name_hash: 0,
            request: RequestId(dense(at)),
            program: Some(ProgramId(dense(at))),
            prompt: Tokens(slot.history.tokens() as u64),
            shared: Some(SharedPrefix {
                fingerprint: u64::from(slot.program.group),
                tokens: Tokens(u64::from(slot.program.shared)),
            }),
            last_step: slot.step + 1 == slot.program.steps.len(),
        };
        self.tell(&Event::Arrive(arrival));
    }

    /// Hands `event` to the policy and does what it decides.
    fn tell(&mut self, event: &Event) {
        let mut decisions = std::mem::take(&mut self.decisions);
        self.policy.handle(self.now, event, &mut decisions);
        for decision in decisions.drain() {
            match decision {
                Decision::Hold { .. } => {}
                Decision::Admit { request, .. } => {
                    let slot = &self.slots[request.index()];
                    let prompt = u32::try_from(slot.history.tokens()).unwrap_or(u32::MAX);
                    let http = self.experiment.engine.cost.http(prompt);
                    self.plan(self.now + http, Happening::Reach(request.index()));
                }
                Decision::Reject { request, .. } => {
                    self.tally.rejected += 1;
                    self.plan(self.now + SAMPLE_EVERY, Happening::Arrive(request.index()));
                }
            }
        }
        self.decisions = decisions;
    }

    fn reach(&mut self, at: usize) {
        let id = self.engine_id(at);
        let slot = &self.slots[at];
        let step = slot.program.steps[slot.step];
        let request = Request {
            id,
            prompt: slot.history.clone(),
            priority: 0,
            output: Output::filler(step.output, Finish::Stop, slot.output_seed()),
        };
        if self.engine.submit(self.now, request).is_err() {
            // Longer than the cache: the program ends here, as its client would give up.
            self.slots[at].step = self.slots[at].program.steps.len() - 1;
            self.finish(at, Outcome::Failed, None);
        }
        self.iterate();
    }

    /// Unique, in order of submission, and telling the slot.
    fn engine_id(&mut self, at: usize) -> EngineId {
        self.planned += 1;
        EngineId(self.planned * self.slots.len() as u64 + at as u64)
    }

    fn iterate(&mut self) {
        if !self.iterating && !self.engine.is_idle() {
            self.engine.step(&mut self.report);
            self.iterating = true;
            let end = self.now + self.report.duration;
            self.plan(end, Happening::IterationEnd);
        }
    }

    fn iteration_end(&mut self) {
        self.iterating = false;
        let report = std::mem::take(&mut self.report);
        for emitted in &report.emitted {
            let at = usize::try_from(emitted.request.0 % self.slots.len() as u64).unwrap_or(0);
            if emitted.output == 1 {
                let request = RequestId(dense(at));
                self.tell(&Event::FirstToken { request });
            }
            if emitted.finish.is_some() {
                self.finish(at, Outcome::ToolCalls, Some(emitted));
            }
        }
        self.report = report;
        self.iterate();
    }

    fn finish(&mut self, at: usize, outcome: Outcome, last: Option<&Emitted>) {
        let slot = &self.slots[at];
        let usage = last.map(|last| Usage {
            prompt: Tokens(slot.history.tokens() as u64),
            cached: Some(Tokens(u64::from(last.cached))),
            output: Tokens(u64::from(last.output)),
        });
        if let Some(usage) = usage {
            let latency = self.now.since(slot.arrived);
            self.tally.latencies_s.push(latency.as_secs_f64());
            self.tally.prompt += usage.prompt.0;
            self.tally.cached += usage.cached.unwrap_or_default().0;
        }
        let step = slot.program.steps[slot.step];
        let request = RequestId(dense(at));
        self.tell(&Event::Finish {
            request,
            outcome,
            usage,
        });
        let program = ProgramId(dense(at));
        if self.slots[at].step + 1 == self.slots[at].program.steps.len() {
            self.tell(&Event::Release { program });
            let next = self.programs.program();
            self.slots[at] = self.slot(next);
            self.plan(self.now, Happening::Arrive(at));
            return;
        }
        self.slots[at].end_step(self.experiment.history);
        self.tell(&Event::ToolGap {
            program,
            kind: step.kind,
        });
        self.plan(self.now + step.gap, Happening::Arrive(at));
    }

    fn slot(&mut self, program: Program) -> Slot {
        self.planned += 1;
        let mut history = self.experiment.engine.chain(b"");
        history.extend(fresh(u64::from(program.group), program.shared));
        Slot {
            program,
            step: 0,
            history,
            name: mix(self.planned),
            arrived: self.now,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "gauges below 2^32")]
    fn sample(&mut self) {
        let stats = self.engine.stats();
        self.tell(&Event::Sample(BackendSample {
            backend: BACKEND,
            kv_usage: Ratio::new(stats.kv_usage),
            running: stats.running as u32,
            waiting: stats.waiting as u32,
            preemptions: stats.preemptions,
            prefix_hits: stats.prefix_hits,
            prefix_queries: stats.prefix_queries,
        }));
        self.plan(self.now + SAMPLE_EVERY, Happening::Sample);
    }

    fn plan(&mut self, at: Time, happening: Happening) {
        self.planned += 1;
        self.agenda.push(Reverse((at, self.planned, happening)));
    }

    fn plan_tick(&mut self) {
        let wanted = self
            .policy
            .next_wakeup()
            .map(|wakeup| wakeup.at.max(self.now));
        if wanted != self.tick {
            self.tick = wanted;
            if let Some(at) = wanted {
                self.plan(at, Happening::Tick);
            }
        }
    }
}

/// `count` tokens that occur nowhere else.
fn fresh(name: u64, count: u32) -> impl Iterator<Item = u32> {
    (0..u64::from(count)).map(move |index| low(mix(name.wrapping_add(index << 20))))
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low(value: u64) -> u32 {
    value as u32
}

fn dense(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
