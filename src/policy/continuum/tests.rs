//! Stories of one program keeping its room while others want it. One backend of 1,000 usable tokens.

use super::super::{Decision, HoldReason, SharedPrefix, ToolId};
use super::*;

const B: BackendId = BackendId(0);
const LS: GapKind = GapKind::Tool(ToolId(1));

/// A policy, what it decided so far, and the requests' ids as they were given out.
struct Scene {
    policy: Continuum,
    out: Decisions,
    now: Time,
}

impl Scene {
    fn new() -> Self {
        Self::with(Config::default())
    }

    /// `config`, except that tokens count exactly as the stories give them.
    fn with(mut config: Config) -> Self {
        config.headroom = 0.0;
        config.out_reserve_tokens = 0;
        config.block_tokens = 0;
        config.lru_guard = false;
        let policy = Continuum::new(config);
        let mut scene = Self {
            policy,
            out: Decisions::new(),
            now: Time::ZERO,
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
            kv_capacity: Some(Tokens(1000)),
        });
    }

    /// Moves the clock to `secs`, with every tick that the policy asks for on the way before that moment.
    fn at(&mut self, secs: f64) -> &mut Self {
        let until = Time::from_secs_f64(secs);
        while let Some(wakeup) = self.policy.next_wakeup()
            && wakeup.at < until
        {
            self.now = self.now.max(wakeup.at);
            self.tell(&Event::Tick);
        }
        self.now = until;
        self
    }

    /// A step of `program` with this prompt arrives; its request has the same number.
    fn arrive(&mut self, program: u32, prompt: u64) -> &mut Self {
        self.arrive_as(program, Some(program), prompt)
    }

    fn arrive_as(&mut self, request: u32, program: Option<u32>, prompt: u64) -> &mut Self {
        self.tell(&Event::Arrive(Arrival {
            request: RequestId(request),
            program: program.map(ProgramId),
            prompt: Tokens(prompt),
            shared: None,
            name_hash: 0,
            last_step: false,
        }));
        self
    }

    fn end(&mut self, request: u32, context: u64, outcome: Outcome) -> &mut Self {
        self.tell(&Event::Finish {
            request: RequestId(request),
            outcome,
            usage: Some(Usage {
                prompt: Tokens(context),
                cached: None,
                output: Tokens::ZERO,
            }),
        });
        self
    }

    /// The program's step ends with this context, and it runs a tool.
    fn finish(&mut self, program: u32, context: u64) -> &mut Self {
        self.end(program, context, Outcome::ToolCalls);
        self.tell(&Event::ToolGap {
            program: ProgramId(program),
            kind: LS,
        });
        self
    }

    /// The program's last step ends.
    fn release(&mut self, program: u32, context: u64) -> &mut Self {
        self.end(program, context, Outcome::Stop);
        self.tell(&Event::Release {
            program: ProgramId(program),
        });
        self
    }

    /// Decisions since the last look, in order, their priorities left out.
    fn decided(&mut self) -> Vec<Decision> {
        let mut decisions: Vec<_> = self.out.drain().collect();
        for decision in &mut decisions {
            if let Decision::Admit { priority, .. } = decision {
                *priority = None;
            }
        }
        decisions
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
fn a_request_that_does_not_fit_waits_for_the_next_finish() {
    let mut scene = Scene::new();
    scene.at(0.0).arrive(1, 700).at(1.0).arrive(2, 400);
    assert_eq!(scene.admitted(), [1]);
    scene.at(5.0).release(1, 700);
    assert_eq!(scene.admitted(), [2]);
}

#[test]
fn a_pin_keeps_a_newcomer_out_until_its_time_is_over() {
    let mut scene = Scene::new();
    scene.arrive(0, 100).arrive(1, 600).at(2.0).finish(1, 600);
    scene.at(2.5).arrive(2, 500);
    assert_eq!(scene.admitted(), [0, 1]);
    scene.at(3.999);
    assert_eq!(scene.admitted(), [0; 0]);
    scene.at(4.001);
    assert_eq!(scene.admitted(), [2]);
}

#[test]
fn a_pin_never_idles_the_backend() {
    let mut scene = Scene::new();
    scene.arrive(1, 600).at(2.0).finish(1, 600);
    scene.at(2.5).arrive(2, 500);
    assert_eq!(scene.admitted(), [1, 2]);
}

#[test]
fn a_return_in_time_goes_before_an_older_newcomer() {
    let mut scene = Scene::new();
    scene.arrive(0, 100).arrive(1, 600).at(2.0).finish(1, 600);
    scene.at(2.5).arrive(2, 500).at(3.0).arrive(1, 650);
    assert_eq!(scene.admitted(), [0, 1, 1]);
}

#[test]
fn a_return_in_the_moment_of_expiry_is_in_time_and_a_later_one_is_not() {
    for (back, admitted) in [(4.0, vec![0, 1, 1]), (4.001, vec![0, 1, 2])] {
        let mut scene = Scene::new();
        scene.arrive(0, 100).arrive(1, 600).at(2.0).finish(1, 600);
        scene.at(2.5).arrive(2, 500).at(back).arrive(1, 650);
        assert_eq!(scene.admitted(), admitted, "back at {back}");
    }
}

#[test]
fn a_pin_outlives_its_time_while_its_program_waits_and_nobody_passes() {
    let mut scene = Scene::new();
    scene.arrive(0, 300).arrive(1, 600).at(2.0).finish(1, 600);
    scene.at(3.5).arrive(1, 750).at(4.5).arrive(3, 100);
    assert_eq!(scene.admitted(), [0, 1]);
    scene.at(6.0).release(0, 300);
    assert_eq!(scene.admitted(), [1, 3]);
}

#[test]
fn a_cancelled_wait_gives_the_outlived_pin_back_at_once() {
    let mut scene = Scene::new();
    scene.arrive(0, 300).arrive(1, 600).at(2.0).finish(1, 600);
    scene.at(3.5).arrive(1, 750).at(4.6).arrive(3, 500);
    assert_eq!(scene.admitted(), [0, 1]);
    scene.at(5.0).end(1, 0, Outcome::Cancelled);
    assert_eq!(scene.admitted(), [3]);
}

#[test]
fn the_older_program_goes_first_whoever_asked_first() {
    let mut scene = Scene::new();
    scene.arrive(1, 50).at(1.0).arrive(2, 50);
    scene
        .end(1, 50, Outcome::Failed)
        .end(2, 50, Outcome::Failed);
    scene
        .arrive(9, 950)
        .at(10.0)
        .arrive(2, 600)
        .at(11.0)
        .arrive(1, 600);
    assert_eq!(scene.admitted(), [1, 2, 9]);
    scene.at(12.0).release(9, 950);
    assert_eq!(scene.admitted(), [1]);
    scene.at(20.0).release(1, 600);
    assert_eq!(scene.admitted(), [2]);
}

#[test]
fn the_youngest_program_gives_way_first_and_only_as_far_as_needed() {
    let mut scene = Scene::new();
    scene.arrive(1, 400).at(1.0).arrive(2, 400);
    scene
        .at(3.5)
        .finish(1, 400)
        .finish(2, 400)
        .at(3.6)
        .arrive(3, 500);
    assert_eq!(scene.admitted(), [1, 2, 3]);
    assert_eq!(scene.policy.pinned_on(ProgramId(1)), Some(B));
    assert_eq!(scene.policy.pinned_on(ProgramId(2)), None);
}

#[test]
fn a_request_larger_than_the_cache_runs_alone() {
    let mut scene = Scene::new();
    scene.arrive(1, 300).at(1.0).arrive(2, 1200);
    assert_eq!(scene.admitted(), [1]);
    scene.at(2.0).finish(1, 300).at(2.1).arrive(3, 10);
    assert_eq!(scene.admitted(), [2]);
    scene.at(9.0).release(2, 1200);
    assert_eq!(scene.admitted(), [3]);
}

#[test]
fn a_tool_that_is_slow_on_average_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.arrive(1, 100).finish(1, 100).at(14.0).arrive(1, 100);
    scene.finish(1, 100);
    assert_eq!(scene.policy.pins.len(), 0, "the mean gap is 14 s");
}

#[test]
fn a_shared_prefix_lets_more_programs_in() {
    let mut scene = Scene::new();
    for program in 0..3 {
        scene.tell(&Event::Arrive(Arrival {
            request: RequestId(program),
            program: Some(ProgramId(program)),
            prompt: Tokens(600),
            shared: Some(SharedPrefix {
                fingerprint: 7,
                tokens: Tokens(400),
            }),
            name_hash: 0,
            last_step: false,
        }));
    }
    assert_eq!(scene.admitted(), [0, 1, 2], "400 + 3 × 200 tokens");
}

#[test]
fn a_hold_ends_at_its_bound_whether_it_fits_or_not() {
    let mut scene = Scene::with(Config {
        hold_timeout_s: 30.0,
        ..Config::default()
    });
    scene.arrive(1, 900).at(1.0).arrive(2, 400).at(30.9);
    assert_eq!(scene.admitted(), [1]);
    scene.at(31.1);
    assert_eq!(scene.admitted(), [2]);
}

#[test]
fn a_full_queue_refuses_the_newcomer_but_not_a_return_that_fits() {
    let mut scene = Scene::with(Config {
        max_held: 1,
        ..Config::default()
    });
    scene.arrive(0, 100).arrive(1, 600).at(2.0).finish(1, 600);
    scene.arrive(2, 500).arrive(3, 500).arrive(1, 650);
    let last: Vec<_> = scene.decided().into_iter().rev().take(3).collect();
    assert_eq!(
        last,
        [
            Decision::Admit {
                request: RequestId(1),
                backend: B,
                priority: None,
            },
            Decision::Reject {
                request: RequestId(3),
                reason: RejectReason::QueueFull
            },
            Decision::Hold {
                request: RequestId(2),
                reason: HoldReason::NoRoom
            },
        ]
    );
}

#[test]
fn a_program_past_the_bound_passes_unscheduled() {
    let mut scene = Scene::with(Config {
        max_programs: 2,
        ..Config::default()
    });
    scene.arrive(0, 900).arrive(1, 900).arrive(2, 900);
    assert_eq!(scene.admitted(), [0, 2]);
    assert_eq!(scene.policy.notes.counts.untracked, 1);
}

#[test]
fn programs_spread_by_room_and_return_home() {
    let other = BackendId(1);
    let mut scene = Scene::new();
    scene.up(other);
    scene.arrive(1, 700).arrive(2, 200).finish(2, 200);
    scene.at(1.0).arrive(3, 300).arrive(2, 250);
    let backends = scene.decided();
    let on = |request, backend| Decision::Admit {
        request: RequestId(request),
        backend,
        priority: None,
    };
    assert_eq!(
        backends,
        [on(1, B), on(2, other), on(3, other), on(2, other)]
    );
}

#[test]
fn equal_room_goes_to_the_lowest_id_and_a_return_finds_its_pin() {
    let other = BackendId(1);
    let mut scene = Scene::new();
    scene.up(other);
    scene.arrive(1, 500).arrive(2, 500).at(1.0).finish(2, 500);
    scene
        .at(1.2)
        .arrive(4, 500)
        .at(1.5)
        .arrive(2, 900)
        .arrive(5, 400);
    let backends = scene.decided();
    let on = |request, backend| Decision::Admit {
        request: RequestId(request),
        backend,
        priority: None,
    };
    let last = Decision::Hold {
        request: RequestId(5),
        reason: HoldReason::NoRoom,
    };
    assert_eq!(
        backends,
        [on(1, B), on(2, other), on(4, B), on(2, other), last]
    );
}

#[test]
fn without_a_known_capacity_everything_fits() {
    let mut scene = Scene::new();
    let unknown = BackendId(1);
    scene.tell(&Event::BackendDown { backend: B });
    scene.tell(&Event::BackendUp {
        backend: unknown,
        kv_capacity: None,
    });
    scene.arrive(1, 1_000_000).arrive(2, 1_000_000);
    assert_eq!(scene.admitted(), [1, 2]);
}

#[test]
fn what_waits_for_a_lost_backend_moves_or_is_refused_at_its_bound() {
    let mut scene = Scene::new();
    scene.arrive(1, 900).arrive(2, 900);
    assert_eq!(scene.admitted(), [1]);
    scene.tell(&Event::BackendDown { backend: B });
    scene.at(1.0).up(BackendId(1));
    assert_eq!(scene.admitted(), [2]);

    let mut scene = Scene::new();
    scene.arrive(1, 900).arrive(2, 900);
    scene.tell(&Event::BackendDown { backend: B });
    scene.at(601.0);
    let last = scene.out.as_slice().last().copied();
    let refused = Decision::Reject {
        request: RequestId(2),
        reason: RejectReason::NoBackend,
    };
    assert_eq!(last, Some(refused));
}

#[test]
fn a_request_without_a_program_is_never_held() {
    let mut scene = Scene::new();
    scene.arrive(1, 900).arrive_as(2, None, 900);
    assert_eq!(scene.admitted(), [1, 2]);
}

/// Where vLLM's own queue was told to put the last admitted request: class, and milliseconds.
fn rank(scene: &mut Scene) -> (i64, i64) {
    let last = scene.out.drain().next_back();
    let Some(Decision::Admit {
        priority: Some(priority),
        ..
    }) = last
    else {
        panic!("no ranked admission: {last:?}");
    };
    (priority >> 40, priority & ((1 << 40) - 1))
}

#[test]
fn an_admission_ranks_retries_then_pinned_returns_then_others_by_first_arrival() {
    let mut scene = Scene::new();
    scene.at(1.5).arrive(1, 100);
    assert_eq!(rank(&mut scene), (2, 1500));
    scene.at(2.0).finish(1, 100).at(3.0).arrive(1, 150);
    assert_eq!(rank(&mut scene), (1, 1500));
    scene.at(4.0).end(1, 150, Outcome::Failed).arrive(1, 150);
    assert_eq!(rank(&mut scene), (0, 1500));
    scene.finish(1, 150).at(90.0).arrive(1, 200);
    assert_eq!(rank(&mut scene), (2, 1500), "its pin has expired");
}

#[test]
fn a_step_that_its_backend_failed_goes_before_a_pinned_return() {
    let mut scene = Scene::new();
    scene.arrive(0, 300).arrive(1, 600).at(2.0).finish(1, 600);
    scene.arrive(2, 100).end(2, 100, Outcome::Failed);
    scene.arrive(1, 800).arrive(2, 200);
    assert_eq!(scene.admitted(), [0, 1, 2]);
    scene.release(0, 300);
    assert_eq!(scene.admitted(), [2, 1]);
}

#[test]
fn the_guard_holds_back_what_would_overwrite_a_pinned_context() {
    for (lru_guard, admitted) in [(false, vec![3]), (true, vec![])] {
        let mut scene = Scene::new();
        scene.policy.config.lru_guard = lru_guard;
        scene.arrive(0, 50).arrive(1, 400).at(1.0).finish(1, 400);
        scene.arrive(2, 450).at(1.3).end(2, 450, Outcome::Failed);
        scene.admitted();
        scene.at(1.5).arrive(3, 500);
        assert_eq!(scene.admitted(), admitted);
        assert_eq!(scene.policy.notes.counts.guarded, u64::from(lru_guard));
        let overwritten = scene.policy.notes.counts.overwritten;
        assert_eq!(overwritten, u64::from(!lru_guard));
    }
}

#[test]
fn a_return_that_missed_its_pinned_context_takes_the_older_pins_with_it() {
    let mut scene = Scene::new();
    scene
        .arrive(0, 50)
        .arrive(1, 200)
        .arrive(2, 200)
        .arrive(3, 200);
    scene.at(1.0).finish(1, 200).finish(2, 200).finish(3, 200);
    scene.at(1.5).arrive(2, 250);
    scene.tell(&Event::Finish {
        request: RequestId(2),
        outcome: Outcome::Stop,
        usage: Some(Usage {
            prompt: Tokens(250),
            cached: Some(Tokens(16)),
            output: Tokens::ZERO,
        }),
    });
    assert_eq!(
        scene.policy.pinned_on(ProgramId(1)),
        None,
        "idle for longer"
    );
    assert_eq!(scene.policy.pinned_on(ProgramId(3)), Some(B));
    assert_eq!(scene.policy.notes.counts.lost, 1);
}

#[test]
fn what_the_cache_did_not_serve_teaches_the_cost_of_a_reload() {
    let mut scene = Scene::new();
    for step in 0..64_u32 {
        let uncached = u64::from(step % 8) * 100;
        scene.at(f64::from(step)).arrive(1, 800);
        scene.at(f64::from(step) + 0.1 + 0.0001 * Tokens(uncached).as_f64());
        scene.tell(&Event::FirstToken {
            request: RequestId(1),
        });
        scene.tell(&Event::Finish {
            request: RequestId(1),
            outcome: Outcome::Failed,
            usage: Some(Usage {
                prompt: Tokens(800),
                cached: Some(Tokens(800 - uncached)),
                output: Tokens::ZERO,
            }),
        });
    }
    let cost = scene.policy.estimates.reload.estimate_s(Tokens(10_000));
    assert!((cost - 1.1).abs() < 1e-3, "{cost}");
}

#[test]
fn a_gap_longer_than_an_hour_and_a_program_that_never_returns_teach_nothing() {
    let mut scene = Scene::new();
    scene
        .arrive(1, 100)
        .finish(1, 100)
        .at(3601.0)
        .arrive(1, 100);
    scene.arrive(2, 100).finish(2, 100).at(4000.0);
    scene.tell(&Event::Release {
        program: ProgramId(2),
    });
    assert!(scene.policy.estimates.gaps.is_empty());
}

#[test]
fn a_lost_context_teaches_how_long_its_program_queued() {
    let mut scene = Scene::new();
    scene.arrive(1, 100).finish(1, 100).at(10.0).arrive(0, 950);
    scene.at(11.0).arrive(1, 100).at(17.0).release(0, 950);
    assert_eq!(scene.admitted(), [1, 0, 1]);
    let delay = scene.policy.estimates.delay.mean_s();
    assert!((delay - 6.0).abs() < 1e-9, "{delay}");
}

#[test]
fn a_limit_of_requests_holds_what_would_fit() {
    let mut scene = Scene::with(Config {
        max_in_flight: Some(1),
        ..Config::default()
    });
    scene.arrive(1, 10).arrive(2, 10);
    let last = scene.out.as_slice().last().copied();
    let held = Decision::Hold {
        request: RequestId(2),
        reason: HoldReason::ConcurrencyLimit,
    };
    assert_eq!(last, Some(held));
}
