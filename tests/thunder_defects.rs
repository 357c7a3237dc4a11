//! Each scheduling defect of the two reference schedulers: the old behaviour in `compat`, the mended one in `fixed`.
//!
//! What an HTTP layer did wrong is not here: the gate has another one. Every policy runs inside the assertions of
//! its laws.
use std::collections::BTreeMap;

use kvgate::policy::{
    Arrival, BackendId, BackendSample, Checked, Config, Decision, Decisions, Event, Outcome,
    Policy, ProgramId, Ratio, RequestId, SharedPrefix, Time, Tokens, Usage, settings, thunderagent,
    thunderreact,
};

/// The rest of the gate, as a policy sees it.
struct Gate {
    policy: Checked,
    now: Time,
    out: Decisions,
    /// What each backend's scrapes say, as long as they succeed.
    usages: BTreeMap<u16, f64>,
    /// Requests that were admitted, in order, with their backends.
    sent: Vec<(u32, u16)>,
}

impl Gate {
    fn new(config: &Config) -> Self {
        Self {
            policy: Checked::new(config.build_unchecked()),
            now: Time::ZERO,
            out: Decisions::new(),
            usages: BTreeMap::new(),
            sent: Vec::new(),
        }
    }

    fn tell(&mut self, event: &Event) -> &mut Self {
        self.policy.handle(self.now, event, &mut self.out);
        for decision in self.out.drain() {
            if let Decision::Admit {
                request, backend, ..
            } = decision
            {
                self.sent.push((request.0, backend.0));
            }
        }
        self
    }

    fn up(&mut self, backend: u16, capacity: impl Into<Option<u64>>) -> &mut Self {
        self.tell(&Event::BackendUp {
            backend: BackendId(backend),
            kv_capacity: capacity.into().map(Tokens),
        })
    }

    fn down(&mut self, backend: u16) -> &mut Self {
        self.tell(&Event::BackendDown {
            backend: BackendId(backend),
        })
    }

    fn usage(&mut self, backend: u16, usage: f64) -> &mut Self {
        self.usages.insert(backend, usage);
        self.tell(&Event::Sample(BackendSample {
            backend: BackendId(backend),
            kv_usage: Ratio::new(usage),
            running: 0,
            waiting: 0,
            preemptions: 0,
            prefix_hits: 0,
            prefix_queries: 0,
        }))
    }

    /// Lets `secs` seconds pass, with ticks as the policy asks and a scrape before each.
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

    fn arrive(&mut self, request: u32, program: u32, prompt: u64) -> &mut Self {
        self.arrive_as(request, program, prompt, |_| ())
    }

    fn arrive_as(
        &mut self,
        request: u32,
        program: u32,
        prompt: u64,
        change: impl FnOnce(&mut Arrival),
    ) -> &mut Self {
        let mut arrival = Arrival {
            request: RequestId(request),
            program: Some(ProgramId(program)),
            name_hash: 0,
            prompt: Tokens(prompt),
            shared: None,
            last_step: false,
        };
        change(&mut arrival);
        self.tell(&Event::Arrive(arrival))
    }

    /// The request is answered, and leaves its program with this context.
    fn answer(&mut self, request: u32, context: u64) -> &mut Self {
        self.end(request, Outcome::ToolCalls, Some(context))
    }

    fn end(&mut self, request: u32, outcome: Outcome, context: Option<u64>) -> &mut Self {
        self.tell(&Event::Finish {
            request: RequestId(request),
            outcome,
            usage: context.map(|context| Usage {
                prompt: Tokens(context),
                cached: None,
                output: Tokens::ZERO,
            }),
        })
    }

    fn release(&mut self, program: u32) -> &mut Self {
        self.tell(&Event::Release {
            program: ProgramId(program),
        })
    }

    /// The program makes `steps` steps and is idle then, with this context.
    fn live(&mut self, program: u32, steps: u32, context: u64) -> &mut Self {
        for _ in 0..steps {
            self.arrive(1_000 + program, program, context);
            self.answer(1_000 + program, context);
        }
        self.sent.clear();
        self
    }

    fn sent(&mut self) -> Vec<u32> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|(request, _)| request).collect()
    }

    /// Where the request went, if it was sent.
    fn place(&self, request: u32) -> Option<u16> {
        let place = self.sent.iter().find(|(sent, _)| *sent == request);
        place.map(|(_, backend)| *backend)
    }

    fn is_paused(&self, program: u32) -> bool {
        self.policy.program(ProgramId(program)).paused
    }

    fn is_marked(&self, program: u32) -> bool {
        self.policy.program(ProgramId(program)).pause_requested
    }
}

mod reacting {
    use super::*;
    use thunderreact::Mode::{Compat, Fixed};

    /// Two backends of 10,000 tokens, the second far away; one pause step wants 200 tokens, so one program.
    fn gate(mode: thunderreact::Mode) -> Gate {
        let mut gate = Gate::new(&Config::ThunderReact(thunderreact::Config {
            mode,
            kv_budget_tokens: Some(10_000),
            ..thunderreact::Config::default()
        }));
        gate.up(0, 10_000);
        gate
    }

    /// Program 1 is paused, and program 9 keeps the backend busy with request 9.
    fn one_paused(mode: thunderreact::Mode) -> Gate {
        let mut gate = gate(mode);
        gate.live(1, 1, 900).live(9, 9, 100).arrive(9, 9, 100);
        gate.usage(0, 1.0).pass(1.0);
        assert!(gate.is_paused(1));
        gate.sent.clear();
        gate
    }

    /// 3.5: the budget is another GPU's.
    #[test]
    fn the_size_of_the_cache_is_the_backends_own() {
        for (mode, paused) in [(Compat, 8), (Fixed, 1)] {
            let mut gate = Gate::new(&Config::ThunderReact(thunderreact::Config {
                mode,
                ..thunderreact::Config::default()
            }));
            gate.up(0, 10_000);
            (1..=8).fold(&mut gate, |gate, program| gate.live(program, 1, 500));
            gate.usage(0, 1.0).pass(1.0);
            let count = (1..=8).filter(|program| gate.is_paused(*program)).count();
            assert_eq!(count, paused, "{mode:?}");
        }
    }

    /// 1: a request whose client is gone was sent after all. Law P1 keeps that out of `compat` too.
    #[test]
    fn a_cancelled_request_is_never_sent() {
        for mode in [Compat, Fixed] {
            let mut gate = one_paused(mode);
            gate.arrive(1, 1, 900).end(1, Outcome::Cancelled, None);
            gate.usage(0, 0.1).pass(60.0);
            assert_eq!(gate.sent(), [0; 0], "{mode:?}");
        }
    }

    /// 2: a release deletes the state, and nobody wakes what waits for it.
    #[test]
    fn a_release_does_not_strand_what_waits() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1])] {
            let mut gate = one_paused(mode);
            gate.arrive(1, 1, 900).release(1);
            gate.usage(0, 0.1).pass(900.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// 3: in flight is a flag, so the first answer of two clears it.
    #[test]
    fn a_program_pauses_after_its_last_request_in_flight() {
        for (mode, early) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.live(1, 1, 900).arrive(1, 1, 900).arrive(2, 1, 900);
            gate.usage(0, 1.0).pass(1.0).answer(1, 900);
            assert_eq!(gate.is_paused(1), early, "{mode:?}: request 2 runs");
            gate.answer(2, 900);
            assert!(gate.is_paused(1), "{mode:?}");
        }
    }

    /// 3: each try of a step counts as a step, and steps decide who is paused.
    #[test]
    fn tries_of_one_step_are_one_step() {
        for (mode, paused) in [(Compat, 2), (Fixed, 1)] {
            let mut gate = gate(mode);
            gate.arrive(1, 1, 900).end(1, Outcome::Failed, None);
            gate.arrive(1, 1, 900).end(1, Outcome::Failed, None);
            gate.live(1, 1, 900).live(2, 2, 900);
            gate.usage(0, 1.0).pass(1.0);
            assert!(gate.is_paused(paused), "{mode:?}");
            assert!(!gate.is_paused(3 - paused), "{mode:?}");
        }
    }

    /// 4: the start of a streamed answer is taken for its end.
    #[test]
    fn a_stream_runs_until_its_end() {
        for (mode, early) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.live(1, 1, 900).arrive(1, 1, 900);
            gate.usage(0, 1.0).pass(1.0);
            let request = RequestId(1);
            gate.tell(&Event::FirstToken { request });
            assert_eq!(gate.is_paused(1), early, "{mode:?}");
        }
    }

    /// 5: between the triggers nobody is ever resumed.
    #[test]
    fn the_band_between_the_triggers_ends() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1])] {
            let mut gate = one_paused(mode);
            gate.arrive(1, 1, 900).usage(0, 0.9).pass(45.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// 6: a lone request waits for its turn on an idle backend, even behind a turn that was spent on nobody.
    #[test]
    fn an_idle_backend_holds_nothing() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1])] {
            let mut gate = gate(mode);
            gate.live(1, 1, 900).usage(0, 0.1).pass(1.0);
            gate.usage(0, 1.0).pass(1.0);
            assert!(gate.is_paused(1));
            gate.usage(0, 0.0).pass(1.0).arrive(1, 1, 900).pass(5.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// 6, 8: the turn goes to programs that have nothing to send, and may never have.
    #[test]
    fn room_is_given_to_those_who_wait() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![2])] {
            let mut gate = gate(mode);
            gate.live(1, 2, 900).live(2, 1, 900).live(9, 9, 100);
            gate.arrive(9, 9, 100).usage(0, 1.0).pass(5.0);
            assert!(gate.is_paused(1) && gate.is_paused(2));
            gate.sent.clear();
            // 0.06 of the budget and a fifth of that: one program.
            gate.arrive(2, 2, 900).usage(0, 0.84).pass(5.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// 7: a program that moves leaves a paused twin behind, which keeps others away for ever.
    #[test]
    fn a_backend_that_returns_is_as_good_as_another() {
        for (mode, place) in [(Compat, 1), (Fixed, 0)] {
            let mut gate = one_paused(mode);
            gate.up(1, 10_000)
                .usage(1, 0.9)
                .end(9, Outcome::Failed, None);
            gate.down(0).arrive(1, 1, 900);
            assert_eq!(gate.place(1), Some(1), "{mode:?}");
            gate.up(0, 10_000).usage(0, 0.9).arrive(5, 5, 100);
            assert_eq!(gate.place(5), Some(place), "{mode:?}");
        }
    }

    /// 9: the last usage before the scrapes began to fail drives pauses for ever.
    #[test]
    fn an_old_sample_says_nothing() {
        for (mode, paused) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.usage(0, 1.0).arrive(9, 9, 100).pass(1.0);
            gate.usages.clear();
            gate.pass(30.0).live(1, 1, 900).pass(60.0);
            assert_eq!(gate.is_paused(1), paused, "{mode:?}");
        }
    }

    /// 10: a last step passes every pause.
    #[test]
    fn a_last_step_waits_at_the_head() {
        for (mode, sent) in [(Compat, vec![1]), (Fixed, vec![])] {
            let mut gate = one_paused(mode);
            gate.arrive_as(1, 1, 900, |arrival| arrival.last_step = true);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }
}

mod counting {
    use super::*;
    use thunderagent::Mode::{Compat, Fixed};

    fn gate(mode: thunderagent::Mode) -> Gate {
        gate_with(thunderagent::Config {
            mode,
            ..thunderagent::Config::default()
        })
    }

    fn gate_with(config: thunderagent::Config) -> Gate {
        Gate::new(&Config::ThunderAgent(config))
    }

    /// Long enough for a sweep of either mode.
    const SWEEP: f64 = 6.0;

    /// W2: a mark does not count as room, so one token too many marks every running program.
    #[test]
    fn only_as_many_running_programs_are_marked_as_needed() {
        for (mode, marked) in [(Compat, 3), (Fixed, 1)] {
            let mut gate = gate(mode);
            gate.up(0, 2_000);
            for program in 1..=3 {
                gate.live(program, 1, 100).arrive(program, program, 600);
            }
            gate.pass(SWEEP);
            let count = (1..=3).filter(|program| gate.is_marked(*program)).count();
            assert_eq!(count, marked, "{mode:?}");
        }
    }

    /// W3: a program whose request fails counts as running for ever.
    #[test]
    fn a_failed_request_is_over() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![2])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).live(1, 1, 700).arrive(1, 1, 700);
            gate.end(1, Outcome::Failed, None).pass(60.0);
            gate.sent.clear();
            gate.arrive(2, 2, 700).pass(60.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W5: a program that never returns keeps its room, as shipped.
    #[test]
    fn an_idle_context_fades() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![2])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000)
                .live(1, 1, 700)
                .live(3, 1, 50)
                .arrive(3, 3, 50);
            gate.sent.clear();
            gate.arrive(2, 2, 500).pass(60.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W6: as long as small ones come, a large one waits.
    #[test]
    fn a_large_program_is_not_passed_for_ever() {
        for (mode, is_sent) in [(Compat, false), (Fixed, true)] {
            let mut gate = gate(mode);
            gate.up(0, 2_000).arrive(0, 0, 1_000).arrive(1, 1, 1_500);
            for round in 0..60 {
                let (last, next) = (round % 2, (round + 1) % 2);
                gate.arrive(10 + next, 10 + round, 1_000).pass(3.0);
                let running = if round == 0 { 0 } else { 10 + last };
                gate.end(running, Outcome::Stop, Some(1_000));
                gate.release(if round == 0 { 0 } else { 9 + round })
                    .pass(3.0);
                if gate.place(1).is_some() {
                    break;
                }
            }
            assert_eq!(gate.place(1).is_some(), is_sent, "{mode:?}");
        }
    }

    /// W7: a program of a dead backend fails for ever.
    #[test]
    fn a_program_survives_its_backend() {
        for (mode, place) in [(Compat, None), (Fixed, Some(1))] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).live(1, 1, 300).up(1, 1_000).down(0);
            gate.arrive(1, 1, 300).pass(SWEEP);
            assert_eq!(gate.place(1), place, "{mode:?}");
        }
    }

    /// W8: a request whose client left was sent after all. Law P1 keeps that out of `compat` too.
    #[test]
    fn a_cancelled_request_is_never_sent() {
        for mode in [Compat, Fixed] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).arrive(1, 1, 800).arrive(2, 2, 800);
            gate.end(2, Outcome::Cancelled, None)
                .answer(1, 800)
                .release(1)
                .pass(60.0);
            assert_eq!(gate.sent(), [1], "{mode:?}");
        }
    }

    /// W9: a release wakes what waits, which goes to the first backend on nobody's books.
    #[test]
    fn a_release_leaves_what_waits_in_the_books() {
        for (mode, sent) in [(Compat, vec![1, 2]), (Fixed, vec![1])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000)
                .arrive(1, 1, 800)
                .arrive(2, 2, 800)
                .release(2);
            assert_eq!(gate.sent(), sent, "{mode:?}: there is no room");
            gate.answer(1, 800).release(1).pass(SWEEP);
            gate.answer(2, 800);
        }
    }

    /// W10: the first of several answers makes a program idle, and an idle one may be paused.
    #[test]
    fn a_program_is_idle_after_its_last_request() {
        for (mode, early) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.up(0, 1_000)
                .live(1, 1, 300)
                .arrive(1, 1, 300)
                .arrive(2, 1, 300);
            gate.answer(1, 950).pass(SWEEP);
            assert_eq!(gate.is_paused(1), early, "{mode:?}: request 2 runs");
        }
    }

    /// W10: a second request of a waiting new program makes it a returning one, which goes first.
    #[test]
    fn a_second_request_does_not_jump_the_queue() {
        for (mode, first) in [(Compat, 3), (Fixed, 2)] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).arrive(1, 1, 800);
            gate.arrive(2, 2, 500).arrive(3, 3, 600).arrive(4, 3, 600);
            gate.sent.clear();
            gate.answer(1, 800).release(1).pass(SWEEP);
            assert_eq!(gate.sent().first(), Some(&first), "{mode:?}");
        }
    }

    /// W11: a capacity of 0, which is how "not told" reads, stops everything.
    #[test]
    fn a_capacity_of_zero_is_an_unknown_one() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1, 2])] {
            let mut gate = gate(mode);
            gate.up(0, 0).arrive(1, 1, 500).arrive(2, 2, 500).pass(60.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W11: the capacity is read once; a backend that was not up then is endless.
    #[test]
    fn a_capacity_that_is_told_later_counts() {
        for (mode, sent) in [(Compat, vec![1, 2]), (Fixed, vec![1])] {
            let mut gate = gate(mode);
            gate.up(0, None)
                .arrive(1, 1, 800)
                .up(0, 1_000)
                .arrive(2, 2, 800);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W12: running programs are marked although the engine is nearly empty.
    #[test]
    fn the_engine_itself_is_asked_before_a_mark() {
        for (mode, marked) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).live(1, 1, 100).arrive(1, 1, 1_200);
            gate.usage(0, 0.1).pass(SWEEP);
            assert_eq!(gate.is_marked(1), marked, "{mode:?}");
        }
    }

    /// W12: a prefix that all programs share is counted once for each.
    #[test]
    fn a_shared_prefix_counts_once() {
        for (mode, sent) in [(Compat, vec![1, 2]), (Fixed, vec![1, 2, 3])] {
            let mut gate = gate(mode);
            gate.up(0, 1_500);
            let prefix = SharedPrefix {
                fingerprint: 7,
                tokens: Tokens(400),
            };
            for request in 1..=3 {
                gate.arrive_as(request, request, 500, |a| a.shared = Some(prefix));
            }
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W13: a mark outlives the pressure that it was made for.
    #[test]
    fn a_mark_ends_with_the_pressure() {
        for (mode, marked) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).live(1, 1, 100).live(2, 1, 100);
            gate.arrive(1, 1, 400).arrive(2, 2, 600).pass(SWEEP);
            assert!(gate.is_marked(1), "{mode:?}");
            gate.answer(2, 300).release(2);
            assert_eq!(gate.is_marked(1), marked, "{mode:?}");
        }
    }

    /// W14: a program that was picked first loses its place to a larger one of a lower class.
    #[test]
    fn a_waiting_request_goes_before_an_idle_program() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![5])] {
            let mut gate = gate(mode);
            gate.up(0, 3_000)
                .live(1, 1, 600)
                .live(2, 1, 350)
                .live(3, 1, 10);
            // The third makes the backend too full: both idle programs are paused.
            gate.arrive(3, 3, 2_800).pass(SWEEP);
            assert!(gate.is_paused(1) && gate.is_paused(2), "{mode:?}");
            gate.sent.clear();
            gate.up(1, 300).arrive(5, 2, 350).answer(3, 1_900).pass(5.0);
            // The idle program is larger, and so is placed first.
            assert_eq!(gate.is_paused(1), mode == Fixed);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W15: a resumed program goes wherever there is most room, and leaves its cache behind.
    #[test]
    fn a_resumed_program_goes_home() {
        for (mode, place) in [(Compat, 1), (Fixed, 0)] {
            let mut gate = gate(mode);
            gate.up(0, 1_000)
                .live(1, 1, 300)
                .live(2, 1, 10)
                .arrive(2, 2, 900)
                .pass(SWEEP);
            assert!(gate.is_paused(1), "{mode:?}");
            gate.arrive(1, 1, 300).up(1, 1_001);
            gate.answer(2, 500).pass(SWEEP);
            assert_eq!(gate.place(1), Some(place), "{mode:?}");
        }
    }

    /// W15, capped: nobody waits for home longer than for the cache there to be gone.
    #[test]
    fn a_program_does_not_wait_for_its_home_for_long() {
        let mut gate = gate(Fixed);
        gate.up(0, 1_000)
            .live(1, 1, 300)
            .live(2, 1, 10)
            .arrive(2, 2, 900)
            .up(1, 1_000);
        gate.arrive(1, 1, 300).pass(7.0);
        assert_eq!(gate.place(1), None);
        gate.pass(2.5);
        assert_eq!(gate.place(1), Some(1));
    }

    /// W16: an idle program is resumed into room that it does not use, and paused again.
    #[test]
    fn an_idle_program_stays_where_it_is() {
        for (mode, resumed) in [(Compat, true), (Fixed, false)] {
            let mut gate = gate(mode);
            gate.up(0, 1_000)
                .live(1, 1, 300)
                .live(2, 1, 10)
                .arrive(2, 2, 900)
                .pass(SWEEP);
            assert!(gate.is_paused(1), "{mode:?}");
            gate.answer(2, 100).pass(SWEEP);
            assert_eq!(!gate.is_paused(1), resumed, "{mode:?}");
        }
    }

    /// W17: an idle program in the queue keeps every new one out until the next sweep.
    #[test]
    fn a_new_program_does_not_wait_behind_idle_ones() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![3])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000)
                .live(1, 1, 300)
                .live(2, 1, 10)
                .arrive(2, 2, 900)
                .pass(SWEEP);
            assert!(gate.is_paused(1), "{mode:?}");
            gate.answer(2, 100).sent.clear();
            gate.arrive(3, 3, 200);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W17: room is noticed at the next sweep only.
    #[test]
    fn room_is_used_when_it_appears() {
        for (mode, sent) in [(Compat, vec![1]), (Fixed, vec![1, 2])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).arrive(1, 1, 800).arrive(2, 2, 800);
            gate.answer(1, 800).release(1);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// W19: a backend that does not answer goes on being relieved.
    #[test]
    fn a_backend_that_is_down_holds_nothing() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![3])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).live(1, 1, 850).down(0).up(0, 1_000);
            gate.sent.clear();
            gate.arrive(3, 3, 800);
            assert_eq!(
                gate.sent(),
                sent,
                "{mode:?}: the cache was lost with the backend"
            );
        }
    }

    /// W20: an estimate replaces what the backend has counted.
    #[test]
    fn a_count_is_not_replaced_by_a_smaller_estimate() {
        for (mode, sent) in [(Compat, vec![2]), (Fixed, vec![])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).live(1, 1, 700).arrive(1, 1, 100);
            gate.sent.clear();
            gate.arrive(2, 2, 500);
            assert_eq!(gate.sent(), sent, "{mode:?}");
        }
    }

    /// A program larger than any backend waits for the bound on holding, however idle the backend is.
    #[test]
    fn a_program_larger_than_the_cache_runs_alone() {
        for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1])] {
            let mut gate = gate(mode);
            gate.up(0, 1_000).arrive(1, 1, 5_000).pass(600.0);
            assert_eq!(gate.sent(), sent, "{mode:?}");
            assert!(gate.policy.next_wakeup().is_some() || mode == Fixed);
        }
    }
}

#[test]
fn the_modes_are_settings() {
    let parse = serde_json::from_str::<thunderagent::Config>;
    assert_eq!(
        parse(r#"{"mode": "compat"}"#).unwrap().mode,
        thunderagent::Mode::Compat
    );
    assert_eq!(parse("{}").unwrap().mode, thunderagent::Mode::Fixed);
    let parse = serde_json::from_str::<thunderreact::Config>;
    assert_eq!(
        parse(r#"{"mode": "compat"}"#).unwrap().mode,
        thunderreact::Mode::Compat
    );
    assert!(parse(r#"{"mode": "best"}"#).is_err());
}
