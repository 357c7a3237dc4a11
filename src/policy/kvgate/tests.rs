//! The policy's stories, on one backend unless said otherwise.

use super::*;
use crate::policy::{SharedPrefix, ToolId};

const B: BackendId = BackendId(0);
const OTHER: BackendId = BackendId(1);
const LS: GapKind = GapKind::Tool(ToolId(1));

/// A gate on a virtual clock: what was decided last, and who runs.
struct Gate {
    policy: Kvgate,
    now: Time,
    out: Decisions,
    running: Vec<(u32, BackendId)>,
}

impl Gate {
    fn new(capacity: u64) -> Self {
        let mut gate = Self {
            policy: Kvgate::new(Config::default()),
            now: Time::ZERO,
            out: Decisions::new(),
            running: Vec::new(),
        };
        gate.up(B, Some(capacity));
        gate
    }

    fn up(&mut self, backend: BackendId, capacity: Option<u64>) {
        self.tell(&Event::BackendUp {
            backend,
            kv_capacity: capacity.map(Tokens),
        });
    }

    fn tell(&mut self, event: &Event) {
        self.policy.handle(self.now, event, &mut self.out);
        for decision in self.out.drain() {
            if let crate::policy::Decision::Admit {
                request, backend, ..
            } = decision
            {
                self.running.push((request.0, backend));
            }
        }
    }

    /// Program `id` sends a request of the same number.
    fn arrive(&mut self, id: u32, prompt: u64) -> bool {
        self.arrive_with(id, Some(ProgramId(id)), prompt, None)
    }

    fn arrive_with(
        &mut self,
        request: u32,
        program: Option<ProgramId>,
        prompt: u64,
        shared: Option<SharedPrefix>,
    ) -> bool {
        self.tell(&Event::Arrive(Arrival {
            request: RequestId(request),
            program,
            name_hash: 0,
            prompt: Tokens(prompt),
            shared,
            last_step: false,
        }));
        self.runs(request)
    }

    fn runs(&self, request: u32) -> bool {
        self.running.iter().any(|(id, _)| *id == request)
    }

    fn finish(&mut self, request: u32, prompt: u64, cached: Option<u64>) {
        self.running.retain(|(id, _)| *id != request);
        self.tell(&Event::FirstToken {
            request: RequestId(request),
        });
        self.tell(&Event::Finish {
            request: RequestId(request),
            outcome: Outcome::ToolCalls,
            usage: Some(Usage {
                prompt: Tokens(prompt),
                cached: cached.map(Tokens),
                output: Tokens(10),
            }),
        });
    }

    fn gap(&mut self, id: u32, kind: GapKind) {
        let program = ProgramId(id);
        self.tell(&Event::ToolGap { program, kind });
    }

    /// A whole step of program `id`, which then calls a tool.
    fn step(&mut self, id: u32, prompt: u64) {
        assert!(self.arrive(id, prompt), "there is room");
        self.finish(id, prompt, None);
        self.gap(id, LS);
    }

    fn wait(&mut self, secs: f64) {
        let end = self.now + settings::duration(secs);
        while let Some(wakeup) = self.policy.next_wakeup().filter(|w| w.at <= end) {
            self.now = self.now.max(wakeup.at);
            self.tell(&Event::Tick);
        }
        self.now = end;
    }

    fn value(&self, name: &str) -> f64 {
        let snapshot = self.policy.snapshot();
        let mut all = snapshot.values.iter().chain(&snapshot.estimates);
        all.find(|(key, _)| *key == name).unwrap().1
    }

    /// Teaches that a gap of this kind takes `secs`, with programs of their own.
    fn teach(&mut self, kind: GapKind, secs: f64) {
        for _ in 0..12 {
            assert!(self.arrive(90, 100));
            self.finish(90, 100, None);
            self.gap(90, kind);
            self.wait(secs);
        }
        assert!(self.arrive(90, 100));
        self.finish(90, 100, None);
        self.tell(&Event::Release {
            program: ProgramId(90),
        });
    }
}

/// 60,000 tokens run, so that prefilling them takes about two seconds.
fn busy() -> Gate {
    let mut gate = Gate::new(100_000);
    gate.teach(LS, 0.2);
    gate.teach(GapKind::UserTurn, 60.0);
    assert!(gate.arrive(50, 60_000));
    gate
}

#[test]
fn room_is_kept_through_a_short_gap_and_not_through_a_long_one() {
    for (kind, kept) in [(LS, true), (GapKind::UserTurn, false)] {
        let mut gate = busy();
        assert!(gate.arrive(0, 20_000));
        gate.finish(0, 20_000, None);
        gate.gap(0, kind);
        assert_eq!(gate.arrive(1, 30_000), !kept, "{kind:?}");
        assert!(gate.arrive(0, 20_500) || !kept, "its context is there");
    }
}

#[test]
fn room_is_kept_no_longer_than_a_gap_of_its_kind_can_still_be_short() {
    let mut gate = busy();
    gate.step(0, 20_000);
    assert!(!gate.arrive(1, 30_000));
    gate.wait(3.0);
    assert!(gate.runs(1), "the tool should have answered long ago");
}

#[test]
fn a_request_that_starts_from_nothing_waits_for_room_and_goes_when_some_is_free() {
    let mut gate = busy();
    assert!(!gate.arrive(1, 50_000));
    assert!(!gate.arrive(2, 45_000), "there is no room for it either");
    gate.finish(50, 60_000, None);
    gate.tell(&Event::Release {
        program: ProgramId(50),
    });
    assert!(gate.runs(1) && gate.runs(2));
}

#[test]
fn a_small_request_passes_a_large_one_but_none_that_came_long_before() {
    let mut gate = busy();
    assert!(!gate.arrive(1, 50_000));
    assert!(gate.arrive(2, 1_000), "it is served at once, and gone");
    gate.wait(100.0);
    assert!(
        !gate.arrive(3, 1_000),
        "the first has been passed for long enough"
    );
}

#[test]
fn of_two_alike_the_one_that_was_served_longer_ago_goes_first() {
    let mut gate = Gate::new(50_000);
    gate.step(1, 30_000);
    gate.wait(20.0);
    assert!(gate.arrive(50, 45_000));
    assert!(!gate.arrive(2, 30_000));
    gate.wait(5.0);
    assert!(!gate.arrive(1, 30_000), "its context has been pushed out");
    gate.finish(50, 45_000, None);
    gate.tell(&Event::Release {
        program: ProgramId(50),
    });
    assert!(gate.runs(1) && !gate.runs(2));
}

#[test]
fn an_idle_engine_holds_nothing_however_large() {
    let mut gate = Gate::new(10_000);
    assert!(gate.arrive(0, 50_000), "vLLM will say what it thinks of it");
    assert!(!gate.arrive(1, 5_000));
    gate.finish(0, 50_000, None);
    gate.gap(0, LS);
    assert!(gate.runs(1));
}

#[test]
fn a_prefix_in_use_costs_nothing_again_and_its_programs_may_pass_for_a_while() {
    let mut gate = Gate::new(20_000);
    let prefix = |fingerprint| {
        Some(SharedPrefix {
            fingerprint,
            tokens: Tokens(8_000),
        })
    };
    assert!(gate.arrive_with(0, Some(ProgramId(0)), 11_000, prefix(1)));
    assert!(!gate.arrive_with(1, Some(ProgramId(1)), 12_000, prefix(2)));
    assert!(gate.arrive_with(2, Some(ProgramId(2)), 11_000, prefix(1)));
    gate.wait(61.0);
    let passes = gate.arrive_with(3, Some(ProgramId(3)), 9_000, prefix(1));
    assert!(!passes, "the first in line has been passed for long enough");
}

#[test]
fn without_an_identity_or_a_known_capacity_everything_passes_at_once() {
    let mut gate = busy();
    assert!(gate.arrive_with(7, None, 90_000, None));
    let mut gate = Gate::new(1_000);
    gate.up(OTHER, None);
    for id in 0..20 {
        assert!(gate.arrive(id, 900));
    }
    assert!(gate.running.iter().filter(|(_, on)| *on == OTHER).count() >= 19);
}

#[test]
fn a_reply_in_one_piece_says_nothing_of_the_engines_speed_and_a_streamed_one_does() {
    let mut gate = Gate::new(100_000);
    let learnt = |gate: &Gate| (gate.value("phi"), gate.value("prefill_us_per_token"));
    let before = learnt(&gate);
    let mut serve = |prompt: u64, decode_s: f64| {
        assert!(gate.arrive(0, prompt));
        gate.wait(Tokens(prompt).as_f64() * 1e-4);
        gate.tell(&Event::FirstToken {
            request: RequestId(0),
        });
        gate.wait(decode_s);
        gate.finish(0, prompt, Some(0));
        gate.gap(0, LS);
        learnt(&gate)
    };
    for n in 0..200_u32 {
        // It came with a jitter of the network, of a part that differs.
        assert_eq!(
            serve(500 + u64::from(n % 10) * 100, 1e-6 * f64::from(1 + n % 7)),
            before
        );
    }
    let mut after = before;
    for n in 0..200_u32 {
        after = serve(500 + u64::from(n % 10) * 100, 0.02);
    }
    assert!(after.0 > 0.7 && after.1 > 60.0, "{after:?}");
}

#[test]
fn reports_that_contradict_the_gate_open_it() {
    let mut gate = Gate::new(100_000);
    for _ in 0..100 {
        assert!(gate.arrive(0, 20_000));
        gate.finish(0, 20_000, Some(0));
        gate.gap(0, LS);
    }
    assert!(gate.value("distrusted") > 0.0);
    assert!(gate.arrive(1, 90_000) && gate.arrive(2, 90_000));
}

#[test]
fn a_smaller_cache_than_reported_is_noticed_by_its_usage() {
    let mut gate = Gate::new(100_000);
    assert!(gate.arrive(0, 40_000));
    for _ in 0..40 {
        gate.tell(&Event::Sample(BackendSample {
            backend: B,
            kv_usage: crate::policy::Ratio::new(0.5),
            running: 1,
            waiting: 0,
            preemptions: 0,
            prefix_hits: 0,
            prefix_queries: 0,
        }));
    }
    let believed = gate.value("capacity");
    assert!((75_000.0..90_000.0).contains(&believed), "{believed}");
}

#[test]
fn a_lost_backend_takes_its_contexts_along_and_its_programs_go_elsewhere() {
    let mut gate = Gate::new(100_000);
    gate.step(0, 20_000);
    gate.up(OTHER, Some(100_000));
    gate.tell(&Event::BackendDown { backend: B });
    assert!(gate.arrive(0, 20_500));
    assert_eq!(gate.running, [(0, OTHER)]);
    gate.finish(0, 20_500, None);
    gate.gap(0, LS);
    gate.up(B, None);
    assert!(gate.arrive(0, 21_000));
    assert_eq!(gate.running, [(0, OTHER)], "where its context is now");
}

#[test]
fn a_program_goes_where_its_context_is_until_waiting_costs_more_than_moving() {
    let mut gate = busy();
    gate.step(0, 30_000);
    assert!(gate.arrive_with(70, None, 20_000, None), "past the gate");
    gate.up(OTHER, Some(100_000));
    gate.running.clear();
    assert!(!gate.arrive(0, 30_500), "no room at home");
    gate.wait(0.5);
    assert!(!gate.runs(0), "a reload takes a second");
    gate.wait(1.0);
    assert_eq!(gate.running, [(0, OTHER)]);
    assert!(gate.value("moved") > 0.0);
}

/// The bound of the README: with programs that keep their contexts warm for ever, a newcomer waits for `age_s`, a
/// turn, and a step.
#[test]
fn a_newcomer_waits_no_longer_than_the_bound_although_warm_programs_never_pause() {
    let mut gate = Gate::new(100_000);
    gate.teach(LS, 0.1);
    for id in 0..4 {
        assert!(gate.arrive(id, 24_000));
    }
    assert!(!gate.arrive(9, 24_000));
    let turn_s = gate.policy.config.turn_loads * 30e-6 * 100_000.0;
    let stretch_s = gate.policy.config.stretch * 30e-6 * 24_060.0;
    let (mut waited, step_s) = (0.0, 1.0);
    while !gate.runs(9) {
        for id in 0..4 {
            if gate.runs(id) {
                gate.finish(id, 24_000, None);
                gate.gap(id, LS);
                gate.arrive(id, 24_000);
            }
        }
        gate.wait(step_s);
        waited += step_s;
        assert!(waited < 400.0, "it waits for ever");
    }
    assert!(waited >= 300.0, "warm ones go first: {waited}");
    let most_s = 300.0 + stretch_s + turn_s + 2.0 * step_s;
    assert!(waited <= most_s, "{waited}");
}

#[test]
fn a_full_queue_refuses_and_the_longest_hold_ends() {
    let mut gate = busy();
    gate.policy.config.hold_timeout_s = 600.0;
    assert!(!gate.arrive(1, 90_000));
    gate.wait(600.0);
    assert!(gate.runs(1));
    assert!((gate.value("timed_out") - 1.0).abs() < 1e-9);
}
