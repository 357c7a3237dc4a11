//! The reference router behind ThunderReact.

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

/// Foreign budget: the cache is taken to be another GPU's.
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

/// Abandoned requests: one whose client is gone was sent after all, in the turn of one whose client waits. Law P1
/// keeps it from being sent in `compat` too, but its turn is spent.
#[test]
fn a_cancelled_request_is_never_sent_and_takes_no_turn() {
    for (mode, sent) in [(Compat, vec![]), (Fixed, vec![2])] {
        let mut gate = gate(mode);
        gate.live(1, 2, 900).live(2, 1, 900).live(9, 9, 100);
        gate.arrive(9, 9, 100).usage(0, 1.0).pass(5.0);
        assert!(gate.is_paused(1) && gate.is_paused(2));
        gate.sent.clear();
        gate.arrive(1, 1, 900).arrive(2, 2, 900);
        gate.end(1, Outcome::Cancelled, None);
        gate.usage(0, 0.84).pass(5.0);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// Stranded by a release: it deletes the state, and nobody wakes what waits for it.
#[test]
fn a_release_does_not_strand_what_waits() {
    for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1])] {
        let mut gate = one_paused(mode);
        gate.arrive(1, 1, 900).release(1);
        gate.usage(0, 0.1).pass(900.0);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// In flight as a flag: two requests are one, so the first answer of two clears it.
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

/// Retries as steps: each try of a step counts as a step, and steps decide who is paused.
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

/// Streams over at their start: the start of a streamed answer is taken for its end.
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

/// Dead band: between the triggers nobody is ever resumed.
#[test]
fn the_band_between_the_triggers_ends() {
    for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1])] {
        let mut gate = one_paused(mode);
        gate.arrive(1, 1, 900).usage(0, 0.9).pass(45.0);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// Idle backend: a lone request waits for its turn on an idle backend, even behind a turn that was spent on nobody.
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

/// Turns for nobody: the turn goes to programs that have nothing to send, and may never have.
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

/// Ghosts: programs that never return are never forgotten, and the longer their list the longer a wait. The gate
/// forgets them in time, in either mode; `fixed` does not need it to.
#[test]
fn programs_that_never_return_delay_nobody() {
    for (mode, sent) in [(Compat, vec![]), (Fixed, vec![50])] {
        let mut gate = gate(mode);
        (1..=20).fold(&mut gate, |gate, ghost| gate.live(ghost, 2, 900));
        gate.live(50, 1, 900).live(99, 9, 100);
        gate.arrive(99, 99, 100).usage(0, 1.0).pass(60.0);
        assert!([1, 20, 50].map(|program| gate.is_paused(program)) == [true; 3]);
        gate.sent.clear();
        gate.arrive(50, 50, 900).usage(0, 0.84).pass(150.0);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// Paused twin: a program that moves leaves a paused twin behind, which keeps others away for ever.
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

/// Stale usage: the last usage before the scrapes began to fail drives pauses for ever.
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

/// Last step: it passes every pause.
#[test]
fn a_last_step_waits_at_the_head() {
    for (mode, sent) in [(Compat, vec![1]), (Fixed, vec![])] {
        let mut gate = one_paused(mode);
        gate.arrive_as(1, 1, 900, |arrival| arrival.last_step = true);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}
