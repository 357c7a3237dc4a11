//! Stories of programs that are paused and resumed. One backend of 10,000 tokens unless said.

use std::collections::BTreeMap;

use super::super::{BackendSample, Decision, GapKind, Ratio};
use super::*;

const B: BackendId = BackendId(0);

struct Scene {
    policy: ThunderReact,
    out: Decisions,
    now: Time,
    /// What each backend keeps telling as time passes.
    usages: BTreeMap<BackendId, f64>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let mut scene = Self {
            policy: ThunderReact::new(config),
            out: Decisions::new(),
            now: Time::ZERO,
            usages: BTreeMap::new(),
        };
        scene.up(B);
        scene
    }

    fn tell(&mut self, event: &Event) {
        self.policy.handle(self.now, event, &mut self.out);
    }

    fn up(&mut self, backend: BackendId) {
        self.tell(&Event::BackendUp {
            backend,
            kv_capacity: Some(Tokens(10_000)),
        });
    }

    fn usage(&mut self, backend: BackendId, usage: f64) -> &mut Self {
        self.usages.insert(backend, usage);
        self.tell(&Event::Sample(BackendSample {
            backend,
            kv_usage: Ratio::new(usage),
            running: 0,
            waiting: 0,
            preemptions: 0,
            prefix_hits: 0,
            prefix_queries: 0,
        }));
        self
    }

    /// Lets `secs` seconds pass, ticking as the policy asks.
    fn pass(&mut self, secs: f64) -> &mut Self {
        let until = self.now + settings::duration(secs);
        while let Some(wakeup) = self.policy.next_wakeup()
            && wakeup.at <= until
        {
            self.now = wakeup.at;
            for (backend, usage) in self.usages.clone() {
                self.usage(backend, usage);
            }
            self.tell(&Event::Tick);
        }
        self.now = until;
        self
    }

    fn arrive(&mut self, request: u32, program: u32) -> &mut Self {
        self.arrive_as(request, Some(program), false)
    }

    fn arrive_as(&mut self, request: u32, program: Option<u32>, last_step: bool) -> &mut Self {
        self.tell(&Event::Arrive(Arrival {
            request: RequestId(request),
            program: program.map(ProgramId),
            prompt: Tokens(100),
            shared: None,
            name_hash: 0,
            last_step,
        }));
        self
    }

    fn finish(&mut self, request: u32, context: u64) -> &mut Self {
        self.tell(&Event::Finish {
            request: RequestId(request),
            outcome: Outcome::ToolCalls,
            usage: Some(Usage {
                prompt: Tokens(context),
                cached: None,
                output: Tokens::ZERO,
            }),
        });
        self
    }

    /// The program makes `steps` whole steps that leave it with this context.
    fn live(&mut self, program: u32, steps: u32, context: u64) -> &mut Self {
        for _ in 0..steps {
            self.arrive(1000, program).finish(1000, context);
        }
        self.tell(&Event::ToolGap {
            program: ProgramId(program),
            kind: GapKind::UserTurn,
        });
        self
    }

    fn paused(&self) -> Vec<u32> {
        let known = self.policy.programs.iter();
        known
            .filter(|(_, p)| p.paused)
            .map(|(id, _)| id.0)
            .collect()
    }

    fn decided(&mut self) -> Vec<Decision> {
        self.out.drain().collect()
    }
}

const fn admit(request: u32, backend: BackendId) -> Decision {
    Decision::Admit {
        request: RequestId(request),
        backend,
        priority: None,
    }
}

const fn hold(request: u32) -> Decision {
    Decision::Hold {
        request: RequestId(request),
        reason: HoldReason::Paused,
    }
}

/// Programs 1, 2 and 3 with 5, 1 and 1 steps; program 9 keeps the backend busy with request 9.
fn under_pressure() -> Scene {
    let mut scene = Scene::new();
    scene.live(1, 5, 1000).live(2, 1, 300).live(3, 1, 800);
    scene.live(9, 50, 100).arrive(9, 9);
    scene.decided();
    scene
}

#[test]
fn the_youngest_and_largest_program_pauses_first() {
    let mut scene = under_pressure();
    // (1.0 − 0.9) × 10,000 × 0.2 = 200 tokens: one program is enough.
    scene.usage(B, 1.0).pass(0.5);
    assert_eq!(scene.paused(), [3]);
    scene.pass(2.0);
    assert_eq!(scene.paused(), [3], "the cooldown lasts 2.5 s");
    scene.pass(0.5);
    assert_eq!(scene.paused(), [2, 3]);
}

#[test]
fn a_running_program_pauses_when_its_last_request_ends() {
    let mut scene = Scene::new();
    scene.live(1, 5, 1000).arrive(0, 1).arrive(1, 1);
    scene.usage(B, 1.0).pass(0.5);
    let view = scene.policy.program(ProgramId(1));
    assert!(view.pause_requested && !view.paused);
    scene.finish(0, 1000);
    assert_eq!(scene.paused(), [0; 0], "request 1 still runs");
    scene.finish(1, 1000);
    assert_eq!(scene.paused(), [1]);
}

#[test]
fn a_paused_program_waits_for_its_share_of_the_budget() {
    let mut scene = under_pressure();
    scene.usage(B, 1.0).pass(3.0);
    assert_eq!(scene.paused(), [2, 3]);
    scene.arrive(2, 2).arrive(3, 3);
    assert_eq!(scene.decided(), [hold(2), hold(3)]);
    scene.usage(B, 0.88).pass(5.0);
    assert_eq!(
        scene.decided(),
        [],
        "between the triggers nothing happens at first"
    );
    // (0.9 − 0.84) × 10,000 × 0.2 = 120 tokens: one program, the smaller of two with equal steps.
    scene.usage(B, 0.84).pass(0.5);
    assert_eq!(scene.decided(), [admit(2, B)]);
    scene.pass(9.5);
    assert_eq!(scene.decided(), [], "the cooldown lasts 10 s");
    scene.pass(0.5);
    assert_eq!(scene.decided(), [admit(3, B)]);
}

#[test]
fn an_idle_backend_takes_the_waiting_request_at_once() {
    let mut scene = under_pressure();
    scene.usage(B, 1.0).pass(3.0).arrive(3, 3).arrive(2, 2);
    assert_eq!(scene.decided(), [hold(3), hold(2)]);
    scene.finish(9, 100);
    assert_eq!(scene.decided(), [admit(2, B)], "one, not all");
    scene.finish(2, 300);
    assert_eq!(scene.decided(), [admit(3, B)]);
}

#[test]
fn the_last_step_of_a_paused_program_goes_first() {
    let mut scene = under_pressure();
    scene.usage(B, 1.0).pass(3.0);
    scene.arrive(2, 2).arrive(4, 3).arrive_as(3, Some(3), true);
    assert_eq!(scene.decided(), [hold(2), hold(4), hold(3)]);
    scene.finish(9, 100);
    assert_eq!(scene.decided(), [admit(4, B), admit(3, B)]);
}

#[test]
fn a_hold_ends_at_its_bound() {
    let mut scene = under_pressure();
    scene.usage(B, 1.0).pass(0.5).arrive(3, 3);
    scene.policy.config.dead_band_s = 1e9;
    scene.decided();
    scene.pass(599.9);
    assert_eq!(scene.decided(), []);
    scene.pass(0.2);
    assert_eq!(scene.decided(), [admit(3, B)]);
}

#[test]
fn a_full_queue_refuses() {
    let mut scene = under_pressure();
    scene.policy.waiting = Waiting::new(1, settings::duration(600.0));
    scene.usage(B, 1.0).pass(3.0).arrive(2, 2).arrive(3, 3);
    let refused = Decision::Reject {
        request: RequestId(3),
        reason: RejectReason::QueueFull,
    };
    assert_eq!(scene.decided(), [hold(2), refused]);
}

#[test]
fn a_new_program_goes_to_the_least_load_without_paused_programs() {
    let other = BackendId(1);
    let mut scene = under_pressure();
    scene.up(other);
    scene.arrive(20, 20).arrive(21, 21);
    assert_eq!(scene.decided(), [admit(20, other), admit(21, B)]);
    scene.usage(B, 1.0).usage(other, 0.99).pass(0.5);
    assert!(!scene.paused().is_empty());
    scene.arrive(22, 22).arrive(23, 23);
    assert_eq!(scene.decided(), [admit(22, other), admit(23, other)]);
}

#[test]
fn a_backend_with_room_takes_programs_over() {
    let other = BackendId(1);
    let mut scene = under_pressure();
    scene.up(other);
    scene.usage(B, 1.0).usage(other, 0.1).pass(0.5);
    assert_eq!(scene.paused(), [0; 0], "the transfers were enough");
    scene.arrive(2, 2);
    assert_eq!(scene.decided(), [admit(2, other)]);
}

#[test]
fn what_waits_for_a_lost_backend_moves_or_is_refused_at_its_bound() {
    let other = BackendId(1);
    let refused = Decision::Reject {
        request: RequestId(3),
        reason: RejectReason::NoBackend,
    };
    for (rescue, end) in [(true, admit(3, other)), (false, refused)] {
        let mut scene = under_pressure();
        scene.usage(B, 1.0).pass(0.5).arrive(3, 3);
        scene.tell(&Event::BackendDown { backend: B });
        assert_eq!(scene.decided(), [hold(3)]);
        if rescue {
            scene.up(other);
        }
        scene.pass(600.0);
        assert_eq!(scene.decided(), [end]);
    }
}

#[test]
fn a_released_program_leaves_nothing_behind() {
    let mut scene = under_pressure();
    scene.usage(B, 1.0).pass(3.0).finish(9, 100);
    for program in [1, 2, 3, 9] {
        scene.tell(&Event::Release {
            program: ProgramId(program),
        });
    }
    let snapshot = scene.policy.snapshot();
    assert_eq!((snapshot.programs, snapshot.paused), (0, 0));
    assert_eq!(snapshot.resident, Tokens::ZERO);
    scene.pass(1.0);
    assert_eq!(scene.policy.next_wakeup(), None, "nothing left to look at");
}
