//! Every policy of the registry obeys its laws on random legal event sequences; the ledger equals a naive twin;
//! and the wrapper that asserts the laws catches planted faults.
//!
//! A failing case is printed and its seed kept in `proptest-regressions/policy_laws.txt`.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may fail as loudly as the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use kvgate::policy::handover::{Handover, Idle, Running};
use kvgate::policy::ledger::{Footprint, Ledger, Sums};
use kvgate::policy::roster::Backend;
use kvgate::policy::{
    Adoption, Arrival, BackendId, BackendSample, Checked, Config, Decision, Decisions, Event,
    GapKind, HoldReason, Outcome, Policy, PolicySnapshot, ProgramId, Ratio, RequestId,
    SharedPrefix, Time, Tokens, ToolId, Usage, Wakeup, concurrency, continuum, kvgate as ours,
    thunderagent, thunderreact,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const BACKENDS: u16 = 3;
const PROGRAMS: u32 = 7;

/// One random move. Numbers that pick something are taken modulo what there is to pick from.
#[derive(Clone, Copy, Debug)]
enum Move {
    Arrive {
        program: Option<u32>,
        prompt: u64,
        shared: Option<u64>,
        last_step: bool,
    },
    FirstToken(usize),
    Finish {
        pick: usize,
        outcome: Outcome,
        output: Option<u64>,
        gap: GapKind,
    },
    Release(u32),
    Sample {
        backend: u16,
        usage: Option<f64>,
        running: u32,
        waiting: u32,
    },
    /// Full samples and ticks until a policy that looks at usage has acted several times.
    Squeeze(u16),
    Up(u16, Option<u64>),
    Down(u16),
    /// Time passes; a wakeup that falls due is missed until the next `Tick`.
    Wait(u64),
    /// A tick at the wakeup, or now if that is past.
    Tick,
    /// Another policy takes over.
    Switch(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Stop),
        4 => Just(Outcome::ToolCalls),
        1 => Just(Outcome::Length),
        1 => Just(Outcome::Cancelled),
        1 => Just(Outcome::Failed),
    ];
    let gap = prop_oneof![
        Just(GapKind::UserTurn),
        (0_u16..3).prop_map(|tool| GapKind::Tool(ToolId(tool)))
    ];
    let arrive = (
        prop::option::weighted(0.95, 0..PROGRAMS),
        1_u64..900,
        prop::option::of(0_u64..2),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(program, prompt, shared, last_step)| Move::Arrive {
            program,
            prompt,
            shared,
            last_step,
        });
    let finish = (
        any::<usize>(),
        outcome,
        prop::option::weighted(0.9, 0_u64..300),
        gap,
    )
        .prop_map(|(pick, outcome, output, gap)| Move::Finish {
            pick,
            outcome,
            output,
            gap,
        });
    let sample = (
        0..BACKENDS,
        prop::option::weighted(0.9, prop_oneof![1 => 0.0..1.0, 2 => 0.95..1.0]),
        0_u32..9,
        0_u32..9,
    )
        .prop_map(|(backend, usage, running, waiting)| Move::Sample {
            backend,
            usage,
            running,
            waiting,
        });
    let one = prop_oneof![
        10 => arrive,
        8 => finish,
        4 => sample,
        2 => (0..BACKENDS).prop_map(Move::Squeeze),
        1 => any::<usize>().prop_map(Move::FirstToken),
        1 => (0..PROGRAMS).prop_map(Move::Release),
        2 => (0..BACKENDS, prop::option::weighted(0.8, 500_u64..3000)).prop_map(|(b, c)| Move::Up(b, c)),
        1 => (0..BACKENDS).prop_map(Move::Down),
        4 => prop_oneof![0_u64..5, 0_u64..4000, 0_u64..30_000].prop_map(Move::Wait),
        6 => Just(Move::Tick),
        1 => any::<usize>().prop_map(Move::Switch),
    ];
    let moves = prop::collection::vec(one, 1..160);
    // Most cases begin with a backend, or nearly all arrivals would be refused.
    (prop::option::weighted(0.9, 500_u64..3000), moves).prop_map(|(capacity, mut moves)| {
        if capacity.is_some() {
            moves.insert(0, Move::Up(0, capacity));
        }
        moves
    })
}

/// A request that the world has not seen the end of.
#[derive(Clone, Copy, Debug)]
struct Live {
    arrival: Arrival,
    since: Time,
    /// Where it runs and since when, if it does.
    running: Option<(BackendId, Time)>,
    first_token: Option<Time>,
}

impl Live {
    fn is_of(&self, program: ProgramId) -> bool {
        self.arrival.program == Some(program)
    }
}

/// The rest of the gate, as far as a policy can see it: makes random moves legal.
struct World {
    policy: Checked,
    now: Time,
    live: BTreeMap<u32, Live>,
    /// The last request of each program that ran.
    last: BTreeMap<u32, Idle>,
    backends: Vec<Backend>,
    out: Decisions,
    journal: String,
}

impl World {
    fn new(config: &Config) -> Self {
        Self {
            policy: Checked::new(config.build_unchecked()),
            now: Time::ZERO,
            live: BTreeMap::new(),
            last: BTreeMap::new(),
            backends: vec![Backend::default(); BACKENDS.into()],
            out: Decisions::new(),
            journal: String::new(),
        }
    }

    fn tell(&mut self, event: &Event) {
        self.told(event);
        self.check_count();
    }

    fn told(&mut self, event: &Event) {
        self.policy.handle(self.now, event, &mut self.out);
        let decisions = self.out.as_slice();
        writeln!(self.journal, "{:?} {event:?} {decisions:?}", self.now).unwrap();
        for decision in self.out.drain() {
            let request = decision.request().0;
            match decision {
                Decision::Admit { backend, .. } => {
                    self.live.get_mut(&request).unwrap().running = Some((backend, self.now));
                }
                Decision::Hold { .. } => {}
                Decision::Reject { .. } => {
                    self.live.remove(&request);
                }
            }
        }
    }

    fn check_count(&self) {
        let snapshot = self.policy.snapshot();
        assert_eq!(
            snapshot.held as usize,
            self.live.values().filter(|l| l.running.is_none()).count()
        );
    }

    /// Another policy takes over; of the past it decides nothing.
    fn switch(&mut self, config: &Config) {
        self.policy = Checked::new(config.build_unchecked());
        let handover = self.handover();
        for (at, event) in handover.past(self.now) {
            self.policy.handle(at, &event, &mut self.out);
            assert!(self.out.is_empty(), "decided by {event:?}: {:?}", self.out);
            writeln!(self.journal, "{at:?} {event:?}").unwrap();
        }
        for event in handover.present() {
            self.told(&event);
        }
        self.check_count();
    }

    fn handover(&self) -> Handover {
        let live = || self.live.values();
        let running = live().filter_map(|live| {
            let (backend, admitted) = live.running?;
            Some(Running {
                adoption: Adoption {
                    arrival: live.arrival,
                    backend,
                    steps: 1,
                },
                admitted,
                first_token: live.first_token,
            })
        });
        let rests = |id: u32| live().all(|l| l.running.is_none() || !l.is_of(ProgramId(id)));
        let idle = self.last.iter().filter(|(id, _)| rests(**id));
        let free = RequestId(self.live.keys().max().map_or(0, |id| id + 1));
        let idle = idle.map(|(_, idle)| {
            let mut idle = *idle;
            idle.adoption.arrival.request = free;
            idle
        });
        let held = live().filter(|live| live.running.is_none());
        let mut held: Vec<_> = held.map(|live| (live.since, live.arrival)).collect();
        held.sort_by_key(|(since, arrival)| (*since, arrival.request));
        Handover {
            backends: self.backends.clone(),
            running: running.collect(),
            idle: idle.collect(),
            held,
        }
    }

    fn arrive(&mut self, program: Option<u32>, prompt: u64, shared: Option<u64>, last_step: bool) {
        let id = (0..=u32::MAX)
            .find(|id| !self.live.contains_key(id))
            .unwrap();
        let shared = shared.map(|fingerprint| SharedPrefix {
            fingerprint,
            tokens: Tokens(prompt / 2),
        });
        let arrival = Arrival {
            request: RequestId(id),
            program: program.map(ProgramId),
            prompt: Tokens(prompt),
            shared,
            name_hash: 0,
            last_step,
        };
        let live = Live {
            arrival,
            since: self.now,
            running: None,
            first_token: None,
        };
        self.live.insert(id, live);
        self.tell(&Event::Arrive(arrival));
    }

    fn finish(&mut self, id: u32, outcome: Outcome, output: Option<u64>, gap: GapKind) {
        let live = self.live.remove(&id).unwrap();
        let prompt = live.arrival.prompt;
        let outcome = if live.running.is_some() {
            outcome
        } else {
            Outcome::Cancelled
        };
        let usage = output.filter(|_| live.running.is_some());
        let usage = usage.map(|output| Usage {
            prompt,
            cached: (output % 2 == 0).then(|| Tokens(output.min(prompt.0))),
            output: Tokens(output),
        });
        self.tell(&Event::Finish {
            request: RequestId(id),
            outcome,
            usage,
        });
        let Some(program) = live.arrival.program else {
            return;
        };
        let Some((backend, _)) = live.running else {
            return;
        };
        let idle = Idle {
            adoption: Adoption {
                arrival: live.arrival,
                backend,
                steps: 0,
            },
            since: self.now,
            outcome,
            usage,
            gap: None,
        };
        self.last.insert(program.0, idle);
        let mut rest = self.live.values().filter(|l| l.is_of(program));
        if rest.all(|l| l.running.is_none()) {
            if live.arrival.last_step && self.is_quiet(program) {
                self.release(program);
            } else {
                self.last.get_mut(&program.0).unwrap().gap = Some(gap);
                self.tell(&Event::ToolGap { program, kind: gap });
            }
        }
    }

    fn release(&mut self, program: ProgramId) {
        self.last.remove(&program.0);
        self.tell(&Event::Release { program });
    }

    fn is_quiet(&self, program: ProgramId) -> bool {
        self.live.values().all(|l| !l.is_of(program))
    }

    fn tick(&mut self) {
        if let Some(wakeup) = self.policy.next_wakeup() {
            self.now = self.now.max(wakeup.at);
            self.tell(&Event::Tick);
        }
    }

    fn sample(&mut self, backend: u16, usage: Option<f64>, running: u32, waiting: u32) {
        self.tell(&Event::Sample(BackendSample {
            backend: BackendId(backend),
            kv_usage: usage.and_then(Ratio::new),
            running,
            waiting,
            preemptions: u64::from(waiting > 6),
            prefix_hits: u64::from(running) * 100,
            prefix_queries: self.now.as_nanos() / 1_000_000,
        }));
    }

    fn make(&mut self, one: Move) {
        match one {
            Move::Arrive {
                program,
                prompt,
                shared,
                last_step,
            } => self.arrive(program, prompt, shared, last_step),
            Move::FirstToken(pick) => {
                let running = self.live.iter_mut().filter(|(_, l)| l.running.is_some());
                let mut running: Vec<_> = running.collect();
                let pick = pick % running.len().max(1);
                if let Some((id, live)) = running.get_mut(pick) {
                    live.first_token.get_or_insert(self.now);
                    let request = RequestId(**id);
                    self.tell(&Event::FirstToken { request });
                }
            }
            Move::Finish {
                pick,
                outcome,
                output,
                gap,
            } => {
                let pick = pick % self.live.len().max(1);
                if let Some(id) = self.live.keys().nth(pick).copied() {
                    self.finish(id, outcome, output, gap);
                }
            }
            Move::Release(id) => {
                if self.is_quiet(ProgramId(id)) {
                    self.release(ProgramId(id));
                }
            }
            Move::Sample {
                backend,
                usage,
                running,
                waiting,
            } => self.sample(backend, usage, running, waiting),
            Move::Squeeze(backend) => {
                for _ in 0..12 {
                    self.sample(backend, Some(1.0), 4, 4);
                    self.tick();
                }
            }
            Move::Up(backend, capacity) => {
                let known = &mut self.backends[usize::from(backend)];
                known.up = true;
                known.kv_capacity = capacity.map(Tokens);
                self.tell(&Event::BackendUp {
                    backend: BackendId(backend),
                    kv_capacity: capacity.map(Tokens),
                });
            }
            Move::Down(backend) => {
                self.backends[usize::from(backend)].up = false;
                self.tell(&Event::BackendDown {
                    backend: BackendId(backend),
                });
            }
            Move::Wait(millis) => self.now = self.now + Duration::from_millis(millis),
            Move::Tick => self.tick(),
            Move::Switch(pick) => {
                let others = &*TIGHT;
                self.switch(&others[pick % others.len()]);
            }
        }
    }

    /// Lets everything that runs finish and time pass, until nothing is left, for at most `ticks`. Returns whether
    /// nothing is.
    fn drain(&mut self, ticks: u32) -> bool {
        for _ in 0..ticks {
            while let Some((&id, _)) = self.live.iter().find(|(_, live)| live.running.is_some()) {
                self.finish(id, Outcome::Stop, Some(10), GapKind::UserTurn);
            }
            if self.live.is_empty() {
                return true;
            }
            self.tick();
        }
        false
    }
}

fn run(config: &Config, moves: &[Move]) -> String {
    let mut world = World::new(config);
    for one in moves {
        world.make(*one);
    }
    let bounds_holds = is_bound_on_holds(config);
    let is_done = world.drain(if bounds_holds { 5_000 } else { 100 });
    assert!(
        is_done || !bounds_holds,
        "wedged: {:?} is still held at {:?}",
        world.live,
        world.now
    );
    for id in world.live.keys().copied().collect::<Vec<_>>() {
        world.finish(id, Outcome::Cancelled, None, GapKind::UserTurn);
    }
    world.journal
}

/// Every policy bounds its holds but one: the reference router holds a request until usage falls, for ever if it
/// does not. `thunderreact`'s `compat` mode has this defect because it has all of them; it is exempt from the
/// bound in time (law P7) and from draining, and from nothing else.
const fn is_bound_on_holds(config: &Config) -> bool {
    !matches!(
        config,
        Config::ThunderReact(thunderreact::Config {
            mode: thunderreact::Mode::Compat,
            ..
        })
    )
}

/// The policy called `name`, in every mode that it has.
fn modes(name: &str) -> Vec<Config> {
    let fixed = Config::by_name(name).unwrap();
    let other = match fixed.clone() {
        Config::Baseline(_) | Config::Kvgate(_) => Vec::new(),
        Config::Continuum(config) => continuum_modes(&config),
        Config::Concurrency(config) => vec![Config::Concurrency(concurrency::Config {
            mode: concurrency::Mode::Fixed,
            ..config
        })],
        Config::ThunderReact(config) => vec![Config::ThunderReact(thunderreact::Config {
            mode: thunderreact::Mode::Compat,
            ..config
        })],
        Config::ThunderAgent(config) => vec![Config::ThunderAgent(thunderagent::Config {
            mode: thunderagent::Mode::Compat,
            ..config
        })],
    };
    std::iter::once(fixed).chain(other).collect()
}

/// Every policy that bounds its holds, in every mode, with bounds that are soon reached.
static TIGHT: LazyLock<Vec<Config>> = LazyLock::new(|| {
    let all = Config::NAMES.into_iter().flat_map(modes);
    all.filter(is_bound_on_holds).map(tight).collect()
});

/// Each pressure mode once, and the other settings that decide who runs.
fn continuum_modes(config: &continuum::Config) -> Vec<Config> {
    let config = continuum::Config {
        few_gaps: 2,
        max_in_flight: Some(2),
        ..config.clone()
    };
    let modes = [
        continuum::Config {
            pressure: continuum::Pressure::Seniority,
            cold_start: continuum::ColdStart::Exponential,
            ..config.clone()
        },
        continuum::Config {
            pressure: continuum::Pressure::Any,
            backfill: true,
            ..config.clone()
        },
        continuum::Config {
            ttl_mode: continuum::TtlMode::Fixed,
            lru_guard: false,
            max_in_flight: None,
            ..config
        },
    ];
    modes.map(Config::Continuum).to_vec()
}

/// The policy with bounds so low that random moves reach them.
fn tight(config: Config) -> Config {
    match config {
        Config::Baseline(config) => Config::Baseline(config),
        Config::ThunderReact(config) => Config::ThunderReact(thunderreact::Config {
            max_held: 3,
            hold_timeout_s: 5.0,
            max_programs: PROGRAMS - 2,
            resume_cooldown_s: 1.0,
            kv_budget_tokens: Some(20_000),
            ..config
        }),
        Config::Concurrency(config) => Config::Concurrency(concurrency::Config {
            cap: 2,
            cap_max: 3,
            interval_s: 1.0,
            idle_s: 4.0,
            max_held: 3,
            hold_timeout_s: 5.0,
            max_programs: PROGRAMS - 2,
            ..config
        }),
        Config::Kvgate(config) => Config::Kvgate(ours::Config {
            age_s: 1.0,
            turn_loads: 0.0,
            affinity_s: 0.5,
            max_held: 3,
            hold_timeout_s: 5.0,
            max_programs: PROGRAMS - 2,
            ..config
        }),
        Config::ThunderAgent(config) => Config::ThunderAgent(thunderagent::Config {
            max_held: 3,
            hold_timeout_s: Some(5.0),
            max_programs: PROGRAMS - 2,
            home_wait_s: 2.0,
            patience_s: 3.0,
            ..config
        }),
        Config::Continuum(config) => Config::Continuum(continuum::Config {
            max_held: 3,
            hold_timeout_s: 5.0,
            max_programs: PROGRAMS - 2,
            out_reserve_tokens: 32,
            ..config
        }),
    }
}

fn settings() -> ProptestConfig {
    let file = "proptest-regressions/policy_laws.txt";
    ProptestConfig {
        // PROPTEST_CASES=10000 makes more of them.
        cases: ProptestConfig::default().cases.max(400),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn every_policy_obeys_the_laws_drains_and_repeats_itself(moves in moves()) {
        for name in Config::NAMES {
            for config in modes(name).into_iter().flat_map(|mode| [tight(mode.clone()), mode]) {
                config.validate().unwrap();
                let first = run(&config, &moves);
                prop_assert_eq!(first, run(&config, &moves), "P3: {} differs from itself", name);
            }
        }
    }

    #[test]
    fn the_ledger_equals_its_naive_twin(moves in ledger_moves()) {
        let mut ledger = Ledger::new();
        let mut twin = Twin::default();
        for one in moves {
            let asked = match one {
                LedgerMove::Start(request, program, backend, footprint) => {
                    ledger.finish(RequestId(request));
                    let program = ProgramId(program);
                    let asked = ledger.total_if_started(BackendId(backend), Some(program), footprint);
                    if ledger.parked(program).is_some_and(|(on, _)| on.0 == backend) {
                        ledger.unpark(program);
                        twin.parked.remove(&program.0);
                    }
                    ledger.start(RequestId(request), BackendId(backend), footprint);
                    twin.running.remove(&request);
                    let user = twin.user(backend, footprint);
                    twin.running.insert(request, user);
                    Some((backend, asked))
                }
                LedgerMove::Finish(request) => {
                    let tokens = ledger.finish(RequestId(request));
                    prop_assert_eq!(tokens, twin.running.remove(&request).map(User::whole));
                    None
                }
                LedgerMove::Park(program, backend, footprint) => {
                    ledger.park(ProgramId(program), BackendId(backend), footprint, rank(program));
                    twin.parked.remove(&program);
                    let user = twin.user(backend, footprint);
                    twin.parked.insert(program, user);
                    None
                }
                LedgerMove::Unpark(program) => {
                    let backend = ledger.unpark(ProgramId(program));
                    prop_assert_eq!(backend, twin.parked.remove(&program).map(|u| BackendId(u.backend)));
                    None
                }
            };
            for backend in 0..2 {
                prop_assert_eq!(ledger.sums(BackendId(backend)), twin.sums(backend));
                let order: Vec<_> = ledger.idle(BackendId(backend)).collect();
                prop_assert_eq!(order, twin.idle(backend));
            }
            if let Some((backend, asked)) = asked {
                prop_assert_eq!(asked, ledger.sums(BackendId(backend)).total());
            }
        }
    }
}

/// One program that is paused while a backend is full, and waits while it stays at 90 %.
fn waits_between_the_triggers(mode: thunderreact::Mode) -> (World, bool) {
    let config = Config::ThunderReact(thunderreact::Config {
        mode,
        ..thunderreact::Config::default()
    });
    let mut world = World::new(&config);
    world.make(Move::Up(0, Some(1_000)));
    world.arrive(Some(0), 900, None, false);
    world.finish(0, Outcome::Stop, Some(10), GapKind::UserTurn);
    world.arrive(Some(1), 90, None, false);
    world.make(Move::Squeeze(0));
    world.arrive(Some(0), 900, None, false);
    let held = world
        .live
        .values()
        .filter(|live| live.running.is_none())
        .count();
    assert_eq!(held, 1, "the program was paused");
    for _ in 0..3_000 {
        world.sample(0, Some(0.9), 1, 0);
        world.tick();
    }
    let is_served = world.live.values().all(|live| live.running.is_some());
    (world, is_served)
}

#[test]
fn the_reference_router_holds_for_ever_and_is_exempt_for_that() {
    let (compat, is_served) = waits_between_the_triggers(thunderreact::Mode::Compat);
    assert!(!is_served, "1500 s, and still held");
    assert!(compat.policy.next_wakeup().is_some(), "P6 in letter only");
    let (_, is_served) = waits_between_the_triggers(thunderreact::Mode::Fixed);
    assert!(is_served);
}

#[derive(Clone, Copy, Debug)]
enum LedgerMove {
    Start(u32, u32, u16, Footprint),
    Finish(u32),
    Park(u32, u16, Footprint),
    Unpark(u32),
}

fn ledger_moves() -> impl Strategy<Value = Vec<LedgerMove>> {
    let footprint = (0_u64..500, prop::option::of((0_u64..3, 0_u64..200)));
    let footprint = footprint.prop_map(|(tokens, shared)| Footprint {
        tokens: Tokens(tokens),
        shared: shared.map(|(fingerprint, tokens)| SharedPrefix {
            fingerprint,
            tokens: Tokens(tokens),
        }),
    });
    let one = prop_oneof![
        3 => (0_u32..6, 0_u32..6, 0_u16..2, footprint.clone())
            .prop_map(|(r, p, b, f)| LedgerMove::Start(r, p, b, f)),
        2 => (0_u32..6).prop_map(LedgerMove::Finish),
        2 => (0_u32..6, 0_u16..2, footprint).prop_map(|(p, b, f)| LedgerMove::Park(p, b, f)),
        1 => (0_u32..6).prop_map(LedgerMove::Unpark),
    ];
    prop::collection::vec(one, 0..80)
}

/// One footprint, with the prefix length that was in force when it came.
#[derive(Clone, Copy, Debug)]
struct User {
    backend: u16,
    tokens: Tokens,
    prefix: Option<SharedPrefix>,
}

impl User {
    fn private(self) -> Tokens {
        self.tokens - self.prefix.map_or(Tokens::ZERO, |prefix| prefix.tokens)
    }

    fn whole(self) -> Tokens {
        self.private() + self.prefix.map_or(Tokens::ZERO, |prefix| prefix.tokens)
    }
}

/// The ledger without any sum: everything is recomputed from the footprints whenever it is asked for.
#[derive(Default)]
struct Twin {
    running: BTreeMap<u32, User>,
    parked: BTreeMap<u32, User>,
}

impl Twin {
    fn on(&self, backend: u16) -> impl Iterator<Item = &User> {
        let users = self.running.values().chain(self.parked.values());
        users.filter(move |user| user.backend == backend)
    }

    fn user(&self, backend: u16, footprint: Footprint) -> User {
        let prefix = footprint.shared.map(|shared| {
            let mut known = self.on(backend).filter_map(|user| user.prefix);
            known
                .find(|prefix| prefix.fingerprint == shared.fingerprint)
                .unwrap_or(shared)
        });
        User {
            backend,
            tokens: footprint.tokens,
            prefix,
        }
    }

    fn sums(&self, backend: u16) -> Sums {
        let private = |users: &BTreeMap<u32, User>| {
            let here = users.values().filter(|user| user.backend == backend);
            here.map(|user| user.private()).sum()
        };
        let prefixes = self.on(backend).filter_map(|user| user.prefix);
        let once: BTreeSet<_> = prefixes.map(|p| (p.fingerprint, p.tokens)).collect();
        Sums {
            running: private(&self.running),
            idle: private(&self.parked),
            shared: once.iter().map(|(_, tokens)| *tokens).sum(),
        }
    }

    fn idle(&self, backend: u16) -> Vec<ProgramId> {
        let here = self
            .parked
            .iter()
            .filter(|(_, user)| user.backend == backend);
        let mut order: Vec<_> = here.map(|(id, _)| ProgramId(*id)).collect();
        order.sort_unstable_by_key(|id| rank(id.0));
        order
    }
}

/// An order that differs from the ids'.
const fn rank(program: u32) -> u64 {
    (program as u64 * 5) % 7
}

/// Ways to break a law on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    AdmitTwice,
    NoDecision,
    HoldWithoutProgram,
    ForgottenHold,
    AdmitToDown,
    Spin,
    HoldTooLong,
    HoldTooMany,
}

/// A policy with one planted fault.
#[derive(Debug)]
struct Faulty(Fault);

impl Policy for Faulty {
    fn handle(&mut self, _now: Time, event: &Event, out: &mut Decisions) {
        let Event::Arrive(Arrival { request, .. }) = *event else {
            return;
        };
        match self.0 {
            Fault::AdmitTwice => {
                out.admit(request, BackendId(0));
                out.admit(request, BackendId(0));
            }
            Fault::NoDecision => {}
            Fault::AdmitToDown => out.admit(request, BackendId(1)),
            Fault::Spin => out.admit(request, BackendId(0)),
            Fault::HoldWithoutProgram
            | Fault::ForgottenHold
            | Fault::HoldTooLong
            | Fault::HoldTooMany => out.hold(request, HoldReason::NoRoom),
        }
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        if self.0 == Fault::ForgottenHold {
            return None;
        }
        let secs = if self.0 == Fault::Spin { 0.001 } else { 1e6 };
        let at = Time::from_secs_f64(secs);
        Some(Wakeup { at, why: "fault" })
    }

    fn snapshot(&self) -> PolicySnapshot {
        PolicySnapshot {
            values: vec![("max_held", 1.0), ("hold_timeout_s", 5.0)],
            ..PolicySnapshot::default()
        }
    }
}

fn faulty(fault: Fault) -> World {
    let mut world = World::new(&Config::by_name("baseline").unwrap());
    world.policy = Checked::new(Box::new(Faulty(fault)));
    let event = Event::BackendUp {
        backend: BackendId(0),
        kv_capacity: None,
    };
    world.policy.handle(world.now, &event, &mut world.out);
    world
}

/// Tells the policy about an arrival, without the world's own bookkeeping.
fn arrive(world: &mut World, request: u32, program: Option<u32>) {
    let event = Event::Arrive(Arrival {
        request: RequestId(request),
        program: program.map(ProgramId),
        prompt: Tokens(10),
        shared: None,
        name_hash: 0,
        last_step: false,
    });
    world.policy.handle(world.now, &event, &mut world.out);
}

fn tick_at(world: &mut World, secs: f64) {
    let now = Time::from_secs_f64(secs);
    world.policy.handle(now, &Event::Tick, &mut world.out);
}

#[test]
#[should_panic(expected = "P1: Admit")]
fn a_second_admission_is_caught() {
    arrive(&mut faulty(Fault::AdmitTwice), 0, Some(0));
}

#[test]
#[should_panic(expected = "P1: r0 arrived and got no decision")]
fn a_missing_decision_is_caught() {
    arrive(&mut faulty(Fault::NoDecision), 0, Some(0));
}

#[test]
#[should_panic(expected = "may not be held")]
fn a_held_request_without_a_program_is_caught() {
    arrive(&mut faulty(Fault::HoldWithoutProgram), 0, None);
}

#[test]
#[should_panic(expected = "P2: time went back")]
fn a_caller_whose_clock_runs_backwards_is_caught() {
    let mut world = faulty(Fault::HoldTooLong);
    tick_at(&mut world, 2.0);
    tick_at(&mut world, 1.0);
}

#[test]
#[should_panic(expected = "P4:")]
fn an_admission_to_a_backend_that_is_down_is_caught() {
    arrive(&mut faulty(Fault::AdmitToDown), 0, Some(0));
}

#[test]
#[should_panic(expected = "P5: after a tick")]
fn a_spin_is_caught() {
    tick_at(&mut faulty(Fault::Spin), 1.0);
}

#[test]
#[should_panic(expected = "P6: 1 held")]
fn a_forgotten_hold_is_caught() {
    arrive(&mut faulty(Fault::ForgottenHold), 0, Some(0));
}

#[test]
#[should_panic(expected = "P7: r0 is held for 5")]
fn a_hold_past_its_bound_is_caught() {
    let mut world = faulty(Fault::HoldTooLong);
    arrive(&mut world, 0, Some(0));
    tick_at(&mut world, 5.0);
}

#[test]
#[should_panic(expected = "P7: 2 held, allowed are 1")]
fn a_queue_past_its_bound_is_caught() {
    let mut world = faulty(Fault::HoldTooMany);
    arrive(&mut world, 0, Some(0));
    arrive(&mut world, 1, Some(1));
}
