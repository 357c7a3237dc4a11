//! The event loop: programs arrive, the policy decides, the engine iterates.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::Cell;
use super::slot::Slot;
use super::supply::Supply;
use super::tally::{Measured, ProgramRun, Tally};
use super::workload::Program;
use crate::harness::engine::core::output::mix;
use crate::harness::engine::core::{
    Emitted, Engine, Finish, Request, RequestId as EngineId, StepReport,
};
use crate::policy::{
    Arrival, BackendId, BackendSample, Decision, Decisions, Event, GapKind, Outcome, Policy,
    ProgramId, Ratio, RequestId, SharedPrefix, Time, Tokens, Usage,
};

/// The only backend of a simulation.
pub(super) const BACKEND: BackendId = BackendId(0);
/// Time between two samples of the engine's gauges, as a gate scrapes them.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// After this long a client sends a refused request again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// With nothing but held requests left, a run ends after this long: the policy will not let them go.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Bits of an engine's request id that tell the request here.
const REQUEST_BITS: u32 = 24;

/// What happens next, in order of time, then of cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// The program in this slot begins its next step.
    Begin(usize),
    /// This request comes to the gate.
    Arrive(usize),
    /// This request, admitted, reaches the engine's queue.
    Reach(usize),
    /// The engine's iteration ends.
    IterationEnd,
    /// The gate scrapes the engine.
    Sample,
    /// The policy asked to be woken.
    Tick,
}

impl Happening {
    /// Whether the world goes on by itself with it; samples and ticks only look.
    const fn is_work(self) -> bool {
        !matches!(self, Self::Sample | Self::Tick)
    }
}

/// One request on its way: a step, or one branch of a step.
#[derive(Clone, Copy, Debug)]
struct Flight {
    slot: usize,
    branch: u32,
    arrived: Time,
}

/// A run under way.
pub(super) struct World<'a> {
    cell: &'a Cell,
    policy: &'a mut dyn Policy,
    engine: Engine,
    report: StepReport,
    iterating: bool,
    supply: Supply,
    /// Programs that may still be taken from the supply.
    left: usize,
    /// Programs under way.
    live: usize,
    taken: u64,
    slots: Vec<Slot>,
    /// By request id; ids of requests that are over are in `free`.
    flights: Vec<Flight>,
    free: Vec<usize>,
    agenda: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    planned: u64,
    /// Entries on the agenda that are work.
    work: usize,
    now: Time,
    /// When something last went on.
    moved: Time,
    /// The tick that is on the agenda; later ones are stale.
    tick: Option<Time>,
    decisions: Decisions,
    tally: Tally,
}

impl<'a> World<'a> {
    pub(super) fn new(cell: &'a Cell, policy: &'a mut dyn Policy, programs: usize) -> Self {
        Self {
            cell,
            policy,
            engine: Engine::new(cell.engine.clone()),
            report: StepReport::default(),
            iterating: false,
            supply: cell.workload.supply(cell.seed),
            left: programs,
            live: 0,
            taken: 0,
            slots: Vec::new(),
            flights: Vec::new(),
            free: Vec::new(),
            agenda: BinaryHeap::new(),
            planned: 0,
            work: 0,
            now: Time::ZERO,
            moved: Time::ZERO,
            tick: None,
            decisions: Decisions::new(),
            tally: Tally::default(),
        }
    }

    /// Fills the slots with programs at their beginning.
    pub(super) fn start(&mut self) {
        self.bring_up();
        for at in 0..self.cell.concurrency.max(1) as usize {
            let Some(program) = self.next_program() else {
                return;
            };
            let slot = self.slot(program);
            self.slots.push(slot);
            self.live += 1;
            self.plan(self.now, Happening::Begin(at));
        }
    }

    /// Fills the slots with programs in mid-life: in a window of seconds, programs that all began together
    /// would all be young.
    pub(super) fn start_in_mid_life(&mut self) {
        self.bring_up();
        for at in 0..self.cell.concurrency.max(1) as usize {
            let Some((program, past, left)) = self.supply.in_mid_life() else {
                return;
            };
            let mut slot = self.slot(program);
            for _ in 0..past {
                slot.begin_step(self.cell.history);
                slot.end_step(self.cell.history);
            }
            self.slots.push(slot);
            self.live += 1;
            self.plan(self.now + left, Happening::Begin(at));
        }
    }

    fn bring_up(&mut self) {
        let engine = &self.cell.engine;
        let capacity = u64::from(engine.usable_blocks()) * u64::from(engine.block_size);
        let told = Tokens(capacity).as_f64() * self.cell.beliefs.capacity;
        self.tell(&Event::BackendUp {
            backend: BACKEND,
            kv_capacity: Some(Tokens::from_f64(told)),
        });
        self.plan(self.now + SAMPLE_EVERY, Happening::Sample);
    }

    pub(super) fn run_until(&mut self, end: Time) {
        while self
            .agenda
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= end)
        {
            self.advance();
        }
        self.pass(end);
    }

    /// Runs until the last program is over, or only held requests are left that the policy does not let go.
    pub(super) fn run_to_end(&mut self) {
        while self.live > 0 {
            if self.work == 0 && self.now.since(self.moved) > PATIENCE {
                self.give_up();
            }
            self.advance();
        }
    }

    fn advance(&mut self) {
        let Some(Reverse((at, _, happening))) = self.agenda.pop() else {
            return;
        };
        self.pass(at);
        if happening.is_work() {
            self.work -= 1;
            self.moved = at;
        }
        self.happen(happening);
        self.plan_tick();
    }

    /// Time goes by until `at`.
    fn pass(&mut self, at: Time) {
        self.tally.pass(at.since(self.now), &self.engine.stats());
        self.now = at;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Begin(at) => self.begin(at),
            Happening::Arrive(request) => self.arrive(request),
            Happening::Reach(request) => self.reach(request),
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

    fn begin(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        slot.begin_step(self.cell.history);
        slot.open = slot.current().branches.max(1);
        for branch in 0..slot.open {
            let request = self.flight(Flight {
                slot: at,
                branch,
                arrived: self.now,
            });
            self.arrive(request);
        }
    }

    /// A free request id for `flight`.
    fn flight(&mut self, flight: Flight) -> usize {
        if let Some(request) = self.free.pop() {
            self.flights[request] = flight;
            return request;
        }
        self.flights.push(flight);
        self.flights.len() - 1
    }

    fn arrive(&mut self, request: usize) {
        let at = self.flights[request].slot;
        let slot = &self.slots[at];
        let arrival = Arrival {
            name_hash: slot.name_hash,
            request: RequestId(dense(request)),
            program: (!slot.anonymous).then(|| ProgramId(dense(at))),
            prompt: Tokens(u64::from(slot.prompt())),
            shared: Some(SharedPrefix {
                fingerprint: u64::from(slot.program.group),
                tokens: Tokens(u64::from(slot.program.shared)),
            }),
            last_step: slot.is_last_step(),
        };
        self.tell(&Event::Arrive(arrival));
    }

    /// Hands `event` to the policy and does what it decides.
    fn tell(&mut self, event: &Event) {
        let mut decisions = std::mem::take(&mut self.decisions);
        self.policy.handle(self.now, event, &mut decisions);
        for decision in decisions.drain() {
            let request = decision.request().index();
            match decision {
                Decision::Hold { .. } => {}
                Decision::Admit { .. } => {
                    let flight = self.flights[request];
                    self.tally.admitted(self.now.since(flight.arrived));
                    let prompt = self.slots[flight.slot].prompt();
                    let http = self.cell.engine.cost.http(prompt);
                    self.plan(self.now + http, Happening::Reach(request));
                }
                Decision::Reject { .. } => {
                    self.tally.rejected += 1;
                    self.plan(self.now + RETRY_AFTER, Happening::Arrive(request));
                }
            }
        }
        self.decisions = decisions;
    }

    fn reach(&mut self, request: usize) {
        let flight = self.flights[request];
        let slot = &self.slots[flight.slot];
        self.planned += 1;
        let submitted = Request {
            id: EngineId(self.planned << REQUEST_BITS | request as u64),
            prompt: slot.history.clone(),
            priority: 0,
            output: slot.output(flight.branch),
        };
        if self.engine.submit(self.now, submitted).is_err() {
            // Longer than the cache: the program ends here, as its client would give up.
            let slot = &mut self.slots[flight.slot];
            slot.program.steps.truncate(slot.step + 1);
            self.finish(request, Outcome::Failed, None);
        }
        self.iterate();
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
            if emitted.output != 1 && emitted.finish.is_none() {
                continue;
            }
            let request = emitted.request.0 & ((1 << REQUEST_BITS) - 1);
            let request = usize::try_from(request).unwrap_or(0);
            if emitted.output == 1 {
                let request = RequestId(dense(request));
                self.tell(&Event::FirstToken { request });
            }
            if emitted.finish == Some(Finish::Stop) {
                let slot = &self.slots[self.flights[request].slot];
                let outcome = match slot.current().kind {
                    GapKind::Tool(_) if !slot.is_last_step() => Outcome::ToolCalls,
                    GapKind::Tool(_) | GapKind::UserTurn => Outcome::Stop,
                };
                self.finish(request, outcome, Some(emitted));
            }
        }
        self.report = report;
        self.iterate();
    }

    fn finish(&mut self, request: usize, outcome: Outcome, last: Option<&Emitted>) {
        let flight = self.flights[request];
        let usage = last.map(|last| Usage {
            prompt: Tokens(u64::from(self.slots[flight.slot].prompt())),
            cached: Some(Tokens(u64::from(last.cached))),
            output: Tokens(u64::from(last.output)),
        });
        if let Some(usage) = &usage {
            self.tally.served(self.now.since(flight.arrived), usage);
        }
        self.tell(&Event::Finish {
            request: RequestId(dense(request)),
            outcome,
            usage,
        });
        self.free.push(request);
        let slot = &mut self.slots[flight.slot];
        slot.open -= 1;
        if slot.open == 0 {
            self.end_step(flight.slot, outcome);
        }
    }

    fn end_step(&mut self, at: usize, outcome: Outcome) {
        if outcome.is_success() {
            self.tally.step_ends.push(self.now);
        }
        let slot = &mut self.slots[at];
        let program = ProgramId(dense(at));
        if slot.is_last_step() {
            let done = outcome.is_success();
            let steps = slot.step + usize::from(done);
            if !slot.anonymous {
                self.tell(&Event::Release { program });
            }
            self.end_program(at, steps, done);
            return;
        }
        let step = slot.current();
        slot.end_step(self.cell.history);
        if !slot.anonymous {
            let kind = step.kind;
            self.tell(&Event::ToolGap { program, kind });
        }
        let back = self.cell.workload.returns_at(self.now, step.gap);
        self.plan(back, Happening::Begin(at));
    }

    /// Notes how the program in slot `at` ended and begins the next one there.
    fn end_program(&mut self, at: usize, steps: usize, done: bool) {
        let slot = &mut self.slots[at];
        self.tally.programs.push(ProgramRun {
            program: std::mem::take(&mut slot.program.name),
            started_s: slot.started.as_secs_f64(),
            finished_s: self.now.as_secs_f64(),
            steps,
            done,
        });
        match self.next_program() {
            Some(next) => {
                self.slots[at] = self.slot(next);
                self.plan(self.now, Happening::Begin(at));
            }
            None => self.live -= 1,
        }
    }

    /// Ends every program: the policy holds on to all that is left.
    fn give_up(&mut self) {
        self.left = 0;
        for at in 0..self.slots.len() {
            if self.slots[at].open > 0 {
                let steps = self.slots[at].step;
                self.end_program(at, steps, false);
            }
        }
        self.live = 0;
    }

    fn next_program(&mut self) -> Option<Program> {
        self.left = self.left.checked_sub(1)?;
        self.supply.next()
    }

    fn slot(&mut self, program: Program) -> Slot {
        self.taken += 1;
        let mut slot = Slot::new(program, &self.cell.engine, self.now);
        slot.anonymous = unit(mix(mix(self.taken) ^ self.cell.seed)) < self.cell.beliefs.anonymous;
        slot
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
        self.work += usize::from(happening.is_work());
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

    /// Measures anew from now on.
    pub(super) fn forget(&mut self) {
        self.tally = Tally::new(self.now, self.engine.stats());
    }

    /// The figures since the last [`Self::forget`], until `end`.
    pub(super) fn measured(&mut self, end: Time) -> Measured {
        self.tally.measured(end, &self.engine.stats())
    }

    /// The figures of a set that was played to its end.
    pub(super) fn fixed_set(mut self) -> (Measured, Vec<ProgramRun>) {
        let mut measured = self.measured(self.now);
        if let Some(middle) = self.tally.middle_steps_per_s() {
            measured.steps_per_s = middle;
        }
        (measured, self.tally.programs)
    }
}

/// A number from 0 to 1, from evenly spread bits.
#[expect(clippy::cast_precision_loss, reason = "53 bits")]
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn dense(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
