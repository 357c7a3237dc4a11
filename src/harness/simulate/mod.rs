//! A closed loop of programs, a policy and the engine on a virtual clock: a minute of a GPU in milliseconds.
//!
//! Pure: the engine's core, any [`Policy`] and [generated programs](workload) advance from event to event, with
//! no socket, thread or clock, so a seed gives the same numbers on every machine. What is compared with
//! measurements is in [`calibration`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod calibration;
pub mod workload;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::engine::core::output::mix;
use super::engine::core::{
    Chain, Config, Emitted, Engine, Finish, Output, Request, RequestId as EngineId, Stats,
    StepReport,
};
use crate::policy::{
    Arrival, BackendId, BackendSample, Decision, Decisions, Event, Outcome, Policy, ProgramId,
    Ratio, RequestId, SharedPrefix, Time, Tokens, Usage,
};
use workload::{Generator, Program, Shape};

pub use calibration::{calibration_table, print_calibration};

/// The only backend of a simulation.
const BACKEND: BackendId = BackendId(0);
/// Time between two samples of the engine's gauges, as a gate scrapes them.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// How an answer reads when it comes back as history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum History {
    /// As it was generated: its blocks are in the cache.
    Kept,
    /// As other tokens, this many times as long: what a model with random weights writes is cut differently.
    Recut(f64),
}

/// One cell of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// What the programs look like.
    pub shape: Shape,
    /// Programs at once, at least 1; each that ends is followed by a new one.
    pub concurrency: u32,
    /// Seed of the programs.
    pub seed: u64,
    /// The engine.
    pub engine: Config,
    /// How answers come back.
    pub history: History,
    /// Time before the window.
    pub warm_up: Duration,
    /// Time that is measured.
    pub window: Duration,
}

/// What a cell measured in its window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Steps finished per second.
    pub steps_per_s: f64,
    /// Prefix cache hit rate by the engine's counters, 0–1.
    pub hit_counter: f64,
    /// Share of the finished steps' prompt tokens that came from the cache, 0–1.
    pub hit_true: f64,
    /// Mean time from a step's arrival at the gate to its end, in seconds.
    pub latency_mean_s: f64,
    /// 99th percentile of the same.
    pub latency_p99_s: f64,
    /// Requests that ran, averaged over time.
    pub running: f64,
    /// Requests that waited inside the engine, averaged over time.
    pub waiting: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Steps that the policy refused.
    pub rejected: u64,
}

/// Runs one cell.
pub fn run(experiment: &Experiment, policy: &mut dyn Policy) -> Measured {
    let mut world = World::new(experiment, policy);
    world.start();
    let (begin, end) = (
        Time::ZERO + experiment.warm_up,
        Time::ZERO + experiment.warm_up + experiment.window,
    );
    world.run_until(begin);
    world.tally = Tally {
        before: world.engine.stats(),
        ..Tally::default()
    };
    world.run_until(end);
    world.tally.measured(experiment, &world.engine.stats())
}

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

#[derive(Debug, Default)]
struct Tally {
    before: Stats,
    latencies_s: Vec<f64>,
    prompt: u64,
    cached: u64,
    rejected: u64,
    running_s: f64,
    waiting_s: f64,
}

struct World<'a> {
    experiment: &'a Experiment,
    policy: &'a mut dyn Policy,
    engine: Engine,
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
    tally: Tally,
}

impl<'a> World<'a> {
    fn new(experiment: &'a Experiment, policy: &'a mut dyn Policy) -> Self {
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
    fn start(&mut self) {
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

    fn run_until(&mut self, end: Time) {
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

impl Tally {
    /// Time goes by with the engine in this state.
    #[expect(clippy::cast_precision_loss, reason = "request counts")]
    fn pass(&mut self, time: Duration, stats: &Stats) {
        self.running_s += time.as_secs_f64() * stats.running as f64;
        self.waiting_s += time.as_secs_f64() * stats.waiting as f64;
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn measured(&mut self, experiment: &Experiment, after: &Stats) -> Measured {
        let window = experiment.window.as_secs_f64();
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let steps = self.latencies_s.len();
        self.latencies_s.sort_by(f64::total_cmp);
        let rank = (steps * 99).div_ceil(100).saturating_sub(1);
        Measured {
            steps_per_s: steps as f64 / window,
            hit_counter: share(
                after.prefix_hits - self.before.prefix_hits,
                after.prefix_queries - self.before.prefix_queries,
            ),
            hit_true: share(self.cached, self.prompt),
            latency_mean_s: self.latencies_s.iter().sum::<f64>() / steps.max(1) as f64,
            latency_p99_s: self.latencies_s.get(rank).copied().unwrap_or(0.0),
            running: self.running_s / window,
            waiting: self.waiting_s / window,
            preemptions: after.preemptions - self.before.preemptions,
            rejected: self.rejected,
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

#[cfg(test)]
mod tests;
