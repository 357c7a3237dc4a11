//! A recorded day under KV pressure, for the policy bench and the allocation test.
//!
//! Programs run in a closed loop against a crude backend: a step runs a few seconds, a tool gap follows, and
//! the next step has a longer prompt. About four times as many programs want to run as fit. The recording is
//! made with the policy that will replay it, so the replayed events are legal for it and give the same
//! decisions (law P3), while the replay costs nothing but the policy itself.
#![expect(
    clippy::expect_used,
    reason = "a broken recording should stop the measurement"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use kvgate::policy::{
    Arrival, BackendId, BackendSample, Config, Decision, Decisions, Event, GapKind, Outcome,
    Policy, ProgramId, Ratio, RequestId, SharedPrefix, Time, Tokens, ToolId, Usage, concurrency,
    continuum, kvgate as ours, thunderagent, thunderreact,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BACKENDS: u16 = 4;
const SHARED: Tokens = Tokens(1_000);
const FIRST_PROMPT: Tokens = Tokens(2_000);
const GROWTH: Tokens = Tokens(200);

/// Events of one run, and how many of them only fill the policy.
pub(crate) struct Recording {
    events: Vec<(Time, Event)>,
    warm_up: usize,
    /// Requests held at the end.
    pub(crate) held: u32,
}

impl Recording {
    /// Records `measured` events after the first 30 seconds of `programs` programs.
    pub(crate) fn make(config: &Config, programs: u32, measured: usize) -> Self {
        let mut world = World::new(config, programs);
        while world.now < Time::from_secs_f64(30.0) {
            world.step();
        }
        let warm_up = world.events.len();
        while world.events.len() < warm_up + measured {
            world.step();
        }
        Self {
            held: world.policy.snapshot().held,
            events: world.events,
            warm_up,
        }
    }

    /// A policy in the state that the first 30 seconds leave it in.
    pub(crate) fn warmed_up(&self, config: &Config) -> Box<dyn Policy> {
        let mut policy = config.build_unchecked();
        replay(&mut *policy, &self.events[..self.warm_up]);
        policy
    }

    /// The events after that.
    pub(crate) fn measured(&self) -> &[(Time, Event)] {
        &self.events[self.warm_up..]
    }
}

/// Tells `policy` every event and returns how many decisions it made.
pub(crate) fn replay(policy: &mut dyn Policy, events: &[(Time, Event)]) -> usize {
    let mut out = Decisions::new();
    let mut decisions = 0;
    for (now, event) in events {
        policy.handle(*now, event, &mut out);
        decisions += out.len();
        out.clear();
    }
    decisions
}

/// The policy called `name`, with bounds that `programs` programs do not reach.
fn config(name: &str, programs: u32) -> Config {
    match Config::by_name(name).expect("a name of the registry") {
        Config::Baseline(config) => Config::Baseline(config),
        Config::ThunderReact(config) => Config::ThunderReact(thunderreact::Config {
            max_held: programs,
            // Pauses large steps, so that the overload of the start is gone after the warm-up.
            kv_budget_tokens: Some(20 * capacity(programs).0),
            ..config
        }),
        Config::ThunderAgent(config) => Config::ThunderAgent(thunderagent::Config {
            max_held: programs,
            ..config
        }),
        Config::Continuum(config) => Config::Continuum(continuum::Config {
            max_held: programs,
            ..config
        }),
        Config::Kvgate(config) => Config::Kvgate(ours::Config {
            max_held: programs,
            ..config
        }),
        Config::Concurrency(config) => Config::Concurrency(concurrency::Config {
            max_held: programs,
            // A quarter of the programs.
            cap: programs / u32::from(BACKENDS) / 4,
            ..config
        }),
    }
}

/// Every policy of the registry, and the modes that follow a reference, each with a label.
pub(crate) fn all(programs: u32) -> Vec<(String, Config)> {
    let mut all = Vec::new();
    for name in Config::NAMES {
        let fixed = config(name, programs);
        let compat = match fixed.clone() {
            Config::Baseline(_)
            | Config::Continuum(_)
            | Config::Concurrency(_)
            | Config::Kvgate(_) => None,
            Config::ThunderReact(config) => Some(Config::ThunderReact(thunderreact::Config {
                mode: thunderreact::Mode::Compat,
                ..config
            })),
            Config::ThunderAgent(config) => Some(Config::ThunderAgent(thunderagent::Config {
                mode: thunderagent::Mode::Compat,
                ..config
            })),
        };
        all.push((name.to_owned(), fixed));
        all.extend(compat.map(|compat| (format!("{name}-compat"), compat)));
    }
    all
}

/// One backend's KV cache: a quarter of what its programs want.
fn capacity(programs: u32) -> Tokens {
    Tokens(u64::from(programs) * 3_000 / u64::from(BACKENDS) / 4)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Todo {
    Arrive(ProgramId),
    Finish(RequestId),
    Sample,
}

#[derive(Clone, Copy)]
struct Live {
    program: ProgramId,
    prompt: Tokens,
    backend: Option<BackendId>,
}

struct World {
    policy: Box<dyn Policy>,
    now: Time,
    agenda: BinaryHeap<Reverse<(Time, u64, Todo)>>,
    seq: u64,
    steps: Vec<u64>,
    live: Vec<Option<Live>>,
    free: Vec<RequestId>,
    occupied: [u64; BACKENDS as usize],
    capacity: Tokens,
    events: Vec<(Time, Event)>,
    out: Decisions,
    rng: ChaCha8Rng,
}

impl World {
    fn new(config: &Config, programs: u32) -> Self {
        let mut world = Self {
            policy: config.build_unchecked(),
            now: Time::ZERO,
            agenda: BinaryHeap::new(),
            seq: 0,
            steps: vec![0; programs as usize],
            live: vec![None; programs as usize],
            free: (0..programs).rev().map(RequestId).collect(),
            occupied: [0; BACKENDS as usize],
            capacity: capacity(programs),
            events: Vec::new(),
            out: Decisions::new(),
            rng: ChaCha8Rng::seed_from_u64(1),
        };
        for backend in 0..BACKENDS {
            world.tell(Event::BackendUp {
                backend: BackendId(backend),
                kv_capacity: Some(world.capacity),
            });
        }
        for program in 0..programs {
            world.later(5_000, Todo::Arrive(ProgramId(program)));
        }
        world.later(1, Todo::Sample);
        world
    }

    /// Does the next thing, with the ticks that are due before it.
    fn step(&mut self) {
        let Some(Reverse((at, _, todo))) = self.agenda.pop() else {
            return;
        };
        while let Some(wakeup) = self.policy.next_wakeup()
            && wakeup.at <= at
        {
            self.now = self.now.max(wakeup.at);
            self.tell(Event::Tick);
        }
        self.now = self.now.max(at);
        match todo {
            Todo::Arrive(program) => self.arrive(program),
            Todo::Finish(request) => self.finish(request),
            Todo::Sample => self.sample(),
        }
    }

    /// Plans `todo` within the next `millis` milliseconds.
    fn later(&mut self, millis: u64, todo: Todo) {
        let wait = Duration::from_micros(self.rng.random_range(0..millis * 1000));
        self.seq += 1;
        self.agenda.push(Reverse((self.now + wait, self.seq, todo)));
    }

    fn tell(&mut self, event: Event) {
        self.policy.handle(self.now, &event, &mut self.out);
        self.events.push((self.now, event));
        for decision in std::mem::take(&mut self.out).drain() {
            if let Decision::Admit {
                request, backend, ..
            } = decision
            {
                let live = self.live[request.index()].as_mut().expect("it waits");
                live.backend = Some(backend);
                self.occupied[backend.index()] += live.prompt.0;
                self.later(6_000, Todo::Finish(request));
            }
        }
    }

    fn arrive(&mut self, program: ProgramId) {
        let step = self.steps[program.index()];
        let prompt = FIRST_PROMPT + Tokens(step * GROWTH.0);
        let request = self.free.pop().expect("one request per program");
        self.live[request.index()] = Some(Live {
            program,
            prompt,
            backend: None,
        });
        self.tell(Event::Arrive(Arrival {
            request,
            program: Some(program),
            prompt,
            shared: Some(SharedPrefix {
                fingerprint: u64::from(program.0 % 4),
                tokens: SHARED,
            }),
            name_hash: 0,
            last_step: step >= 11,
        }));
    }

    fn finish(&mut self, request: RequestId) {
        let live = self.live[request.index()].take().expect("it runs");
        if let Some(backend) = live.backend {
            self.occupied[backend.index()] -= live.prompt.0;
        }
        self.free.push(request);
        self.tell(Event::Finish {
            request,
            outcome: Outcome::ToolCalls,
            usage: Some(Usage {
                prompt: live.prompt,
                cached: None,
                output: GROWTH,
            }),
        });
        let program = live.program;
        let step = &mut self.steps[program.index()];
        *step = (*step + 1) % 12;
        if *step == 0 {
            self.tell(Event::Release { program });
        } else {
            let kind = GapKind::Tool(ToolId(self.rng.random_range(0..5)));
            self.tell(Event::ToolGap { program, kind });
        }
        self.later(4_000, Todo::Arrive(program));
    }

    fn sample(&mut self) {
        for backend in 0..BACKENDS {
            let occupied = Tokens(self.occupied[usize::from(backend)]);
            self.tell(Event::Sample(BackendSample {
                backend: BackendId(backend),
                kv_usage: Ratio::new(occupied.as_f64() / self.capacity.as_f64()),
                running: 0,
                waiting: 0,
                preemptions: 0,
                prefix_hits: 0,
                prefix_queries: 0,
            }));
        }
        self.later(1_000, Todo::Sample);
    }
}
