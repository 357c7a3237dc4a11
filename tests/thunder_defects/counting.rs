//! The original of ThunderAgent.

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

/// Over-marking: a mark does not count as room, so one token too many marks every running program.
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

/// Phantoms: a program whose request fails counts as running for ever.
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

/// Nothing is forgotten: what is counted for programs that never return adds up until nobody else starts. The gate
/// forgets them in time, in either mode; until then `fixed` still uses a backend that is idle.
#[test]
fn programs_that_never_return_do_not_add_up() {
    for (mode, started) in [(Compat, 5), (Fixed, 20)] {
        let mut gate = gate(mode);
        gate.up(0, 1_000);
        for program in 1..=20 {
            gate.arrive(program, program, 100).pass(60.0);
            if gate.place(program).is_some() {
                gate.answer(program, 100);
            }
        }
        assert_eq!(gate.sent().len(), started, "{mode:?}");
    }
}

/// Idle for ever: a program that never returns keeps its room, as shipped.
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

/// Starved giants: as long as small ones come, a large one waits.
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

/// Dead home: a program of a dead backend fails for ever.
#[test]
fn a_program_survives_its_backend() {
    for (mode, place) in [(Compat, None), (Fixed, Some(1))] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).live(1, 1, 300).up(1, 1_000).down(0);
        gate.arrive(1, 1, 300).pass(SWEEP);
        assert_eq!(gate.place(1), place, "{mode:?}");
    }
}

/// Abandoned requests: one whose client left was sent after all, and counted. Law P1 keeps it from being sent in
/// `compat` too, but it counts for ever.
#[test]
fn a_cancelled_request_is_never_sent_and_takes_no_room() {
    for (mode, sent) in [(Compat, vec![1]), (Fixed, vec![1, 3])] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).arrive(1, 1, 800).arrive(2, 2, 800);
        gate.end(2, Outcome::Cancelled, None)
            .answer(1, 800)
            .release(1)
            .pass(60.0);
        gate.arrive(3, 3, 800).pass(60.0);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// Released while held: a release wakes what waits, which goes to the first backend on nobody's books.
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

/// Two at once: the first of several answers makes a program idle, and an idle one may be paused.
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

/// Queue jumping: a second request of a waiting new program makes it a returning one, which goes first.
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

/// Zero capacity: 0, which is how "not told" reads, stops everything.
#[test]
fn a_capacity_of_zero_is_an_unknown_one() {
    for (mode, sent) in [(Compat, vec![]), (Fixed, vec![1, 2])] {
        let mut gate = gate(mode);
        gate.up(0, 0).arrive(1, 1, 500).arrive(2, 2, 500).pass(60.0);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// Capacity read once: a backend that was not up then is endless.
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

/// Books alone: running programs are marked although the engine is nearly empty.
#[test]
fn the_engine_itself_is_asked_before_a_mark() {
    for (mode, marked) in [(Compat, true), (Fixed, false)] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).live(1, 1, 100).arrive(1, 1, 1_200);
        gate.usage(0, 0.1).pass(SWEEP);
        assert_eq!(gate.is_marked(1), marked, "{mode:?}");
    }
}

/// Shared prefix: what all programs begin with is counted once for each.
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

/// Marks for ever: a mark outlives the pressure that it was made for.
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

/// Priority inversion: a program that was picked first loses its place to a larger one of a lower class.
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

/// Stale size: the queue is ordered by what a program had when it was paused, not by what it asks for.
#[test]
fn a_program_queues_by_what_it_asks_for() {
    for (mode, first) in [(Compat, 11), (Fixed, 12)] {
        let mut gate = gate(mode);
        gate.up(0, 1_900)
            .live(1, 1, 300)
            .live(2, 1, 400)
            .live(3, 1, 10);
        gate.arrive(3, 3, 1_500).pass(SWEEP);
        assert!(gate.is_paused(1) && gate.is_paused(2), "{mode:?}");
        gate.sent.clear();
        gate.arrive(11, 1, 800).arrive(12, 2, 400);
        gate.answer(3, 500).pass(SWEEP);
        assert_eq!(gate.sent().first(), Some(&first), "{mode:?}");
    }
}

/// Idle as new: a program that is idle after its first step counts as a new one, and may go before those that wait.
#[test]
fn an_idle_program_is_never_taken_for_a_new_one() {
    for (mode, steps, sent) in [
        (Compat, 1, vec![]),
        (Compat, 2, vec![2]),
        (Fixed, 1, vec![2]),
        (Fixed, 2, vec![2]),
    ] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).live(1, steps, 300).live(3, 1, 10);
        gate.arrive(3, 3, 900).pass(SWEEP);
        assert!(gate.is_paused(1), "{mode:?}");
        gate.sent.clear();
        gate.arrive(2, 2, 400).answer(3, 400).pass(SWEEP);
        assert_eq!(gate.sent(), sent, "{mode:?} after {steps} steps");
    }
}

/// Pooled room: a program that fits only into the room of two backends together keeps out one that fits on either.
#[test]
fn room_on_two_backends_is_not_one_room() {
    for (mode, place) in [(Compat, None), (Fixed, Some(1))] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).live(1, 1, 400).live(3, 1, 10);
        gate.up(1, 1_000).live(4, 1, 10).arrive(4, 4, 600);
        gate.arrive(3, 3, 900).pass(SWEEP);
        assert!(gate.is_paused(1), "{mode:?}");
        assert_eq!((gate.place(4), gate.place(3)), (Some(1), Some(0)));
        gate.arrive(11, 1, 400).arrive(2, 2, 150);
        gate.answer(3, 600).pass(SWEEP);
        assert_eq!(gate.place(2), place, "{mode:?}");
    }
}

/// Lost locality: a resumed program goes wherever there is most room, and leaves its cache behind.
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

/// Lost locality, the other way: nobody waits for home longer than for the cache there to be gone.
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

/// Idle resumes: an idle program is resumed into room that it does not use, and paused again.
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

/// Blocked by the idle: an idle program in the queue keeps every new one out until the next sweep.
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

/// Late sweeps: room is noticed at the next sweep only.
#[test]
fn room_is_used_when_it_appears() {
    for (mode, sent) in [(Compat, vec![1]), (Fixed, vec![1, 2])] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).arrive(1, 1, 800).arrive(2, 2, 800);
        gate.answer(1, 800).release(1);
        assert_eq!(gate.sent(), sent, "{mode:?}");
    }
}

/// Relieved while down: a backend that does not answer goes on being relieved.
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

/// Lost count: an estimate replaces what the backend has counted.
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

/// Broken sweep: in a copy of the original the first resume ended the sweep, so that nobody was resumed or paused.
/// The one that `compat` reproduces does not have it.
#[test]
fn one_sweep_resumes_and_relieves() {
    for mode in [Compat, Fixed] {
        let mut gate = gate(mode);
        gate.up(0, 1_000).live(1, 1, 300).live(2, 1, 10);
        gate.up(1, 1_000).live(3, 1, 300).live(4, 1, 10);
        gate.arrive(2, 2, 900).pass(SWEEP);
        assert!(gate.is_paused(1) && !gate.is_paused(3), "{mode:?}");
        gate.arrive(11, 1, 300).arrive(4, 4, 900);
        gate.answer(2, 100).pass(SWEEP);
        assert_eq!(gate.place(11), Some(0), "{mode:?}: resumed");
        assert!(gate.is_paused(3), "{mode:?}: relieved");
    }
}

/// Wall clock: one that is set back made idle contexts heavier than they are. No policy here has such a clock, so
/// `compat` cannot show it: a time before that of a program's last answer reads as that time, in either mode.
#[test]
fn no_context_weighs_more_than_itself() {
    let mut original = thunderagent::Original::new(fading(Compat));
    original.handle(secs(100.0), &up(1_200), &mut Decisions::new());
    let idle = thunderagent::ProgramState {
        home: Some(BackendId(0)),
        tokens: Tokens(400),
        acting_since: Some(secs(100.0)),
        registered: true,
        ..thunderagent::ProgramState::default()
    };
    original.set_program(ProgramId(1), idle);
    for (at, room) in [(40.0, 700), (100.0, 700), (101.0, 900)] {
        let left = original.fading_room(secs(at), BackendId(0));
        assert_eq!(left, Some(room), "at {at} s");
    }
}

/// The same in `fixed`, outside the laws, which forbid that time goes back.
#[test]
fn no_context_weighs_more_than_itself_when_room_is_sought() {
    // 400 run, 400 are idle, and 200 are kept free: 100 and their buffer fit, and no token more.
    for (prompt, fits) in [(100, true), (101, false)] {
        let mut policy = Config::ThunderAgent(fading(Fixed)).build_unchecked();
        let mut out = Decisions::new();
        for event in [
            up(1_200),
            Event::Arrive(arrival(1, 1, 400)),
            Event::Arrive(arrival(2, 2, 400)),
            end(1, Outcome::ToolCalls, Some(400)),
        ] {
            policy.handle(secs(100.0), &event, &mut out);
        }
        out.clear();
        policy.handle(secs(40.0), &Event::Arrive(arrival(3, 3, prompt)), &mut out);
        let admitted = matches!(out.as_slice(), [Decision::Admit { .. }]);
        assert_eq!(admitted, fits, "{prompt}: {out:?}");
    }
}

fn fading(mode: thunderagent::Mode) -> thunderagent::Config {
    thunderagent::Config {
        mode,
        decay: Some(true),
        ..thunderagent::Config::default()
    }
}

fn secs(secs: f64) -> Time {
    Time::from_secs_f64(secs)
}

fn up(capacity: u64) -> Event {
    Event::BackendUp {
        backend: BackendId(0),
        kv_capacity: Some(Tokens(capacity)),
    }
}

/// Blind spreading: without scheduling programs are counted, whatever their size, and stay where they were placed.
#[test]
fn programs_are_spread_by_what_they_occupy() {
    for (mode, place, after_loss) in [(Compat, 0, None), (Fixed, 1, Some(0))] {
        let mut gate = gate_with(thunderagent::Config {
            mode,
            scheduling: false,
            ..thunderagent::Config::default()
        });
        gate.up(0, 1_000).live(1, 1, 850);
        gate.up(1, 1_000).live(2, 1, 10).arrive(3, 3, 100);
        assert_eq!(gate.place(3), Some(place), "{mode:?}");
        gate.down(1).arrive(12, 2, 10);
        assert_eq!(gate.place(12), after_loss, "{mode:?}");
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
