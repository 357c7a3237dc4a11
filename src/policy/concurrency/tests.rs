//! Stories of programs that wait for a slot.

use std::time::Duration;

use super::super::{Decision, GapKind, Outcome, Tokens};
use super::*;

const B: BackendId = BackendId(0);

/// A policy, what it decided so far, and the counters of backend B.
struct Scene {
    policy: Concurrency,
    out: Decisions,
    now: Time,
    sample: BackendSample,
}

impl Scene {
    fn new(config: Config) -> Self {
        let mut scene = Self {
            policy: Concurrency::new(config),
            out: Decisions::new(),
            now: Time::ZERO,
            sample: BackendSample {
                backend: B,
                kv_usage: None,
                running: 0,
                waiting: 0,
                preemptions: 0,
                prefix_hits: 0,
                prefix_queries: 0,
            },
        };
        scene.up(B);
        scene
    }

    fn fixed(cap: u32) -> Self {
        Self::new(Config {
            mode: Mode::Fixed,
            cap,
            ..Config::default()
        })
    }

    fn tell(&mut self, event: &Event) -> &mut Self {
        self.policy.handle(self.now, event, &mut self.out);
        self
    }

    fn up(&mut self, backend: BackendId) {
        self.tell(&Event::BackendUp {
            backend,
            kv_capacity: None,
        });
    }

    /// Moves the clock to `secs`, with every tick that the policy asks for on the way.
    fn at(&mut self, secs: f64) -> &mut Self {
        let until = Time::from_secs_f64(secs);
        while let Some(wakeup) = self.policy.next_wakeup()
            && wakeup.at <= until
        {
            self.now = self.now.max(wakeup.at);
            self.tell(&Event::Tick);
        }
        self.now = until;
        self
    }

    fn arrive(&mut self, request: u32, program: u32) -> &mut Self {
        self.tell(&Event::Arrive(Arrival {
            name_hash: 0,
            request: RequestId(request),
            program: Some(ProgramId(program)),
            prompt: Tokens(1000),
            shared: None,
            last_step: false,
        }))
    }

    fn finish(&mut self, request: u32, program: u32) -> &mut Self {
        self.tell(&Event::Finish {
            request: RequestId(request),
            outcome: Outcome::ToolCalls,
            usage: None,
        });
        self.tell(&Event::ToolGap {
            program: ProgramId(program),
            kind: GapKind::UserTurn,
        })
    }

    fn release(&mut self, program: u32) -> &mut Self {
        self.tell(&Event::Release {
            program: ProgramId(program),
        })
    }

    /// An interval of looked-up tokens, some of which hit, and preemptions.
    fn interval(&mut self, queries: u64, hits: u64, preemptions: u64) -> &mut Self {
        self.sample.prefix_queries += queries;
        self.sample.prefix_hits += hits;
        self.sample.preemptions += preemptions;
        let interval = settings::duration(self.policy.config.interval_s);
        self.at((self.now + interval).as_secs_f64());
        self.tell(&Event::Sample(self.sample))
    }

    fn cap(&self) -> u32 {
        self.policy.caps[B.index()].limit
    }

    /// Requests admitted since the last look, in order.
    fn admitted(&mut self) -> Vec<u32> {
        let admits = self.out.drain().filter_map(|decision| match decision {
            Decision::Admit { request, .. } => Some(request.0),
            Decision::Hold { .. } | Decision::Reject { .. } => None,
        });
        admits.collect()
    }
}

#[test]
fn a_program_keeps_its_slot_through_its_gaps_until_its_release() {
    let mut scene = Scene::fixed(1);
    scene.arrive(1, 1).arrive(2, 2).at(1.0).finish(1, 1);
    scene.at(2.0).arrive(3, 1);
    assert_eq!(scene.admitted(), [1, 3]);
    scene.finish(3, 1).release(1);
    assert_eq!(scene.admitted(), [2]);
}

#[test]
fn an_idle_program_yields_its_slot_and_comes_back_before_younger_ones() {
    let mut scene = Scene::fixed(1);
    scene.arrive(1, 1).arrive(2, 2).at(1.0).finish(1, 1);
    scene.at(30.9);
    assert_eq!(scene.admitted(), [1]);
    scene.at(31.0);
    assert_eq!(scene.admitted(), [2]);
    scene.arrive(3, 3).at(32.0).arrive(4, 1);
    scene.finish(2, 2).release(2);
    assert_eq!(scene.admitted(), [4], "program 1 is older than 3");
}

#[test]
fn parallel_requests_of_one_program_take_one_slot() {
    let mut scene = Scene::fixed(1);
    scene.arrive(1, 1).arrive(2, 2).arrive(3, 2).arrive(4, 1);
    assert_eq!(scene.admitted(), [1, 4]);
    scene.finish(1, 1).finish(4, 1).release(1);
    assert_eq!(scene.admitted(), [2, 3]);
}

#[test]
fn the_cap_grows_by_steps_only_while_it_is_reached_and_the_cache_hits() {
    let mut scene = Scene::new(Config {
        cap: 2,
        ..Config::default()
    });
    scene.interval(0, 0, 0).arrive(1, 1);
    scene.interval(1000, 0, 0).interval(1000, 900, 0);
    assert_eq!(scene.cap(), 2, "one program does not reach it");
    scene.arrive(2, 2).arrive(3, 3).interval(2000, 900, 0);
    assert_eq!(scene.cap(), 3, "the first step of 2 could not hit");
    assert_eq!(scene.admitted(), [1, 2, 3]);
}

#[test]
fn a_miss_of_those_who_return_halves_the_cap_and_so_does_a_preemption() {
    for (hits, preemptions) in [(100, 0), (900, 1)] {
        let mut scene = Scene::new(Config {
            cap: 4,
            ..Config::default()
        });
        for id in 1..=5 {
            scene.arrive(id, id);
        }
        scene.interval(0, 0, 0).interval(1000, hits, preemptions);
        assert_eq!(scene.cap(), 2, "{hits} hits, {preemptions} preemptions");
        scene.finish(1, 1).finish(2, 2).arrive(6, 1);
        assert_eq!(scene.admitted(), [1, 2, 3, 4], "two slots were taken back");
        scene.finish(3, 3).release(3);
        assert_eq!(scene.admitted(), [6], "the oldest program is the next");
    }
}

#[test]
fn idle_programs_give_their_slots_back_at_once_when_the_cap_shrinks() {
    let mut scene = Scene::new(Config {
        cap: 2,
        ..Config::default()
    });
    scene.arrive(1, 1).arrive(2, 2).interval(0, 0, 0);
    scene.finish(1, 1).interval(1000, 0, 0).arrive(3, 1);
    assert_eq!(scene.admitted(), [1, 2]);
    assert_eq!((scene.cap(), scene.policy.caps[0].active), (1, 1));
}

#[test]
fn the_cap_stays_in_its_bounds_and_a_restarted_backend_begins_a_new_interval() {
    let mut scene = Scene::new(Config {
        cap: 2,
        cap_min: 2,
        cap_max: 2,
        ..Config::default()
    });
    scene.arrive(1, 1).arrive(2, 2).interval(0, 0, 0);
    scene.interval(9000, 0, 3);
    assert_eq!(scene.cap(), 2);
    scene.sample.preemptions = 0;
    scene.sample.prefix_queries = 10;
    scene.interval(0, 0, 0);
    assert_eq!(scene.cap(), 2);
}

#[test]
fn slots_on_a_lost_backend_are_gone_and_its_programs_move() {
    let mut scene = Scene::fixed(1);
    scene.arrive(1, 1).arrive(2, 2);
    scene.tell(&Event::BackendDown { backend: B });
    scene.up(BackendId(1));
    assert_eq!(scene.admitted(), [1, 2]);
    scene.finish(1, 1);
    scene.up(B);
    scene.arrive(3, 1);
    assert_eq!(scene.admitted(), [3]);
}

#[test]
fn a_hold_ends_at_its_bound_and_a_full_queue_refuses() {
    let mut scene = Scene::new(Config {
        mode: Mode::Fixed,
        cap: 1,
        max_held: 1,
        hold_timeout_s: 5.0,
        ..Config::default()
    });
    scene.arrive(1, 1).arrive(2, 2).arrive(3, 3);
    let refused = Decision::Reject {
        request: RequestId(3),
        reason: RejectReason::QueueFull,
    };
    assert_eq!(scene.out.as_slice().last(), Some(&refused));
    scene.at(4.9);
    assert_eq!(scene.admitted(), [1]);
    scene.at(5.0);
    assert_eq!(scene.admitted(), [2]);
    assert_eq!(scene.now.since(Time::ZERO), Duration::from_secs(5));
}
