//! Stories of requests, programs and policies in the sequencer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::policy::Wakeup;
use crate::proxy::verdict::Answer;

/// Holds everything until a tick, and notes what it is told.
#[derive(Debug, Default)]
struct Valve {
    held: Vec<RequestId>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Policy for Valve {
    fn handle(&mut self, _now: Time, event: &Event, out: &mut Decisions) {
        let word = match event {
            Event::Arrive(arrival) | Event::Rearrive { arrival, .. } => {
                self.held.push(arrival.request);
                out.hold(arrival.request, HoldReason::NoRoom);
                "arrive"
            }
            Event::Tick => {
                for request in self.held.drain(..) {
                    out.admit_ranked(request, BackendId(0), Some(RANK));
                }
                "tick"
            }
            Event::Finish {
                request, outcome, ..
            } => {
                self.held.retain(|held| held != request);
                outcome.as_str()
            }
            Event::ToolGap {
                kind: GapKind::UserTurn,
                ..
            } => "user turn",
            Event::ToolGap { .. } => "tool gap",
            Event::Release { .. } => "release",
            Event::Adopt(_) => "adopt",
            Event::FirstToken { .. }
            | Event::Sample(_)
            | Event::BackendUp { .. }
            | Event::BackendDown { .. } => return,
        };
        self.told.lock().unwrap().push(word.to_owned());
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        (!self.held.is_empty()).then_some(Wakeup {
            at: Time::from_millis(100),
            why: "test",
        })
    }

    fn snapshot(&self) -> PolicySnapshot {
        PolicySnapshot::default()
    }
}

const RANK: i64 = 7;
const MS: fn(u64) -> Time = Time::from_millis;
const SERVED: Ending<'_> = Ending {
    outcome: Outcome::Stop,
    usage: None,
    tool: None,
};

fn sequencer(max_programs: usize) -> (Sequencer, impl Fn() -> Vec<String>) {
    let valve = Valve::default();
    let told = Arc::clone(&valve.told);
    let limits = Limits {
        program_idle: Duration::from_secs(60),
        max_programs,
    };
    (Sequencer::new(Box::new(valve), 1, limits), move || {
        std::mem::take(&mut *told.lock().unwrap())
    })
}

fn step(program: Option<&str>) -> Arriving<'_> {
    Arriving {
        program,
        body_bytes: 400,
        shared: None,
        last_step: false,
    }
}

fn admitted(priority: Option<i64>) -> Verdict {
    Verdict::Admit(Admission {
        backend: BackendId(0),
        priority,
    })
}

fn verdict(arrived: Arrived) -> oneshot::Receiver<Verdict> {
    match arrived.answer {
        Answer::Held(_, verdict) => verdict,
        Answer::Now(verdict) => panic!("not held: {verdict:?}"),
    }
}

#[test]
fn a_held_request_hears_of_its_admission_and_its_rank() {
    let (mut sequencer, told) = sequencer(10);
    let arrived = sequencer.arrive(MS(0), &step(Some("a")));
    let request = arrived.request;
    let mut waiting = verdict(arrived);
    assert!(waiting.try_recv().is_err());
    assert_eq!((sequencer.held(), sequencer.open()), (1, 1));
    sequencer.tick(MS(100));
    assert_eq!(waiting.try_recv(), Ok(admitted(Some(RANK))));
    assert_eq!((sequencer.held(), sequencer.in_flight()[0]), (0, 1));
    sequencer.finish(MS(200), request, &SERVED);
    assert_eq!((sequencer.open(), sequencer.in_flight()[0]), (0, 0));
    assert_eq!(told(), ["arrive", "tick", "stop", "user turn"]);
}

#[test]
fn a_client_that_leaves_while_held_is_never_admitted() {
    let (mut sequencer, told) = sequencer(10);
    let arrived = sequencer.arrive(MS(0), &step(Some("a")));
    sequencer.finish(MS(1), arrived.request, &Ending::CANCELLED);
    sequencer.tick(MS(100));
    assert_eq!(
        (sequencer.held(), sequencer.open(), sequencer.in_flight()[0]),
        (0, 0, 0)
    );
    assert_eq!(told(), ["arrive", "cancelled"]);
}

#[test]
fn a_retry_is_the_same_step_and_the_next_one_is_not() {
    let (mut sequencer, _) = sequencer(10);
    let mut run = |at: u64, ending: &Ending<'_>| {
        let arrived = sequencer.arrive(MS(at), &step(Some("a")));
        sequencer.tick(MS(at + 100));
        sequencer.finish(MS(at + 200), arrived.request, ending);
        (arrived.step_index, arrived.tool_gap)
    };
    assert_eq!(run(0, &Ending::CANCELLED), (0, None));
    assert_eq!(run(1000, &SERVED), (0, None));
    assert_eq!(run(3000, &SERVED), (1, Some(Duration::from_millis(1800))));
}

#[test]
fn a_release_with_a_request_in_flight_waits_for_it() {
    let (mut sequencer, told) = sequencer(10);
    let arrived = sequencer.arrive(MS(0), &step(Some("a")));
    assert!(sequencer.release(MS(1), "a"));
    assert_eq!(sequencer.program_count(), 1);
    sequencer.tick(MS(100));
    sequencer.finish(MS(200), arrived.request, &SERVED);
    assert_eq!(sequencer.program_count(), 0);
    assert_eq!(told(), ["arrive", "tick", "stop", "release"]);
    assert!(!sequencer.release(MS(201), "a"), "already gone");
}

#[test]
fn the_last_step_ends_its_program_only_if_it_was_served() {
    let (mut sequencer, _) = sequencer(10);
    let last = Arriving {
        last_step: true,
        ..step(Some("a"))
    };
    for (ending, left) in [(Ending::CANCELLED, 1), (SERVED, 0)] {
        let arrived = sequencer.arrive(MS(0), &last);
        sequencer.tick(MS(100));
        sequencer.finish(MS(200), arrived.request, &ending);
        assert_eq!(sequencer.program_count(), left);
    }
}

#[test]
fn an_idle_program_expires_and_a_busy_one_does_not() {
    let (mut sequencer, _) = sequencer(10);
    let idle = sequencer.arrive(MS(0), &step(Some("idle")));
    sequencer.tick(MS(100));
    sequencer.finish(MS(200), idle.request, &SERVED);
    sequencer.arrive(MS(300), &step(Some("busy")));
    sequencer.tick(MS(60_199));
    assert_eq!(sequencer.program_count(), 2);
    sequencer.tick(MS(60_200));
    assert_eq!(sequencer.program_count(), 1);
}

#[test]
fn a_full_table_forgets_the_longest_idle_program_and_never_a_busy_one() {
    let (mut sequencer, _) = sequencer(1);
    let first = sequencer.arrive(MS(0), &step(Some("a")));
    let second = sequencer.arrive(MS(1), &step(Some("b")));
    assert_eq!(sequencer.program_count(), 1, "b passes without a place");
    for request in [first.request, second.request] {
        sequencer.finish(MS(2), request, &Ending::CANCELLED);
    }
    sequencer.arrive(MS(3), &step(Some("c")));
    let names: Vec<_> = sequencer.programs().into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["c".into()]);
}

#[test]
fn requests_without_identity_are_not_pooled_into_one_program() {
    let (mut sequencer, _) = sequencer(10);
    sequencer.arrive(MS(0), &step(None));
    sequencer.arrive(MS(0), &step(None));
    assert_eq!((sequencer.open(), sequencer.program_count()), (2, 0));
}

#[test]
fn another_policy_takes_over_what_is_held_and_lets_what_runs_finish() {
    let (mut sequencer, _) = sequencer(10);
    let running = sequencer.arrive(MS(0), &step(Some("running")));
    sequencer.backend_up(MS(0), BackendId(0), None);
    sequencer.tick(MS(100));
    let first = sequencer.arrive(MS(101), &step(Some("first")));
    let second = sequencer.arrive(MS(102), &step(Some("second")));
    let (first, second) = (
        (first.request, verdict(first)),
        (second.request, verdict(second)),
    );
    let config = crate::policy::Config::by_name("baseline").unwrap();
    sequencer.switch(MS(103), config.build());
    assert_eq!((sequencer.held(), sequencer.in_flight()[0]), (0, 3));
    for (request, mut verdict) in [first, second] {
        assert_eq!(verdict.try_recv(), Ok(admitted(None)));
        sequencer.finish(MS(200), request, &SERVED);
    }
    sequencer.finish(MS(201), running.request, &SERVED);
    assert!(sequencer.release(MS(202), "running"));
    assert_eq!((sequencer.open(), sequencer.in_flight()[0]), (0, 0));
}

#[test]
fn another_policy_is_told_of_what_runs_and_is_idle_and_hears_how_it_ends() {
    let (mut sequencer, _) = sequencer(10);
    sequencer.backend_up(MS(0), BackendId(0), None);
    let idle = sequencer.arrive(MS(0), &step(Some("idle")));
    let running = sequencer.arrive(MS(0), &step(Some("running")));
    sequencer.tick(MS(100));
    sequencer.first_token(MS(150), running.request);
    sequencer.finish(MS(200), idle.request, &SERVED);
    let held = sequencer.arrive(MS(300), &step(Some("held")));
    let valve = Valve::default();
    let told = Arc::clone(&valve.told);
    sequencer.switch(MS(400), Box::new(valve));
    let told = || std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(told(), ["adopt", "adopt", "stop", "user turn", "arrive"]);
    sequencer.finish(MS(500), running.request, &SERVED);
    sequencer.finish(MS(500), held.request, &Ending::CANCELLED);
    assert!(sequencer.release(MS(600), "idle"));
    assert_eq!(told(), ["stop", "user turn", "cancelled", "release"]);
}

#[test]
fn a_held_request_stays_held_and_waits_on_under_another_policy() {
    let (mut one, _) = sequencer(10);
    let arrived = one.arrive(MS(0), &step(Some("a")));
    let mut waiting = verdict(arrived);
    one.switch(MS(1), Box::new(Valve::default()));
    assert_eq!(one.held(), 1);
    assert!(waiting.try_recv().is_err());
    one.tick(MS(100));
    assert_eq!(waiting.try_recv(), Ok(admitted(Some(RANK))));
}

#[test]
fn a_drain_refuses_newcomers_at_once_and_the_held_when_told() {
    let (mut sequencer, told) = sequencer(10);
    let arrived = sequencer.arrive(MS(0), &step(Some("a")));
    let request = arrived.request;
    let mut waiting = verdict(arrived);
    sequencer.start_draining();
    let late = sequencer.arrive(MS(1), &step(Some("b")));
    assert!(matches!(
        late.answer,
        Answer::Now(Verdict::Refuse(Refusal::Draining))
    ));
    assert!(
        waiting.try_recv().is_err(),
        "a held request keeps its place"
    );
    assert_eq!(sequencer.refuse_held(MS(2)), 1);
    assert_eq!(waiting.try_recv(), Ok(Verdict::Refuse(Refusal::Draining)));
    for request in [request, late.request] {
        sequencer.finish(MS(3), request, &Ending::CANCELLED);
    }
    assert_eq!((sequencer.open(), sequencer.held()), (0, 0));
    assert_eq!(
        told(),
        ["arrive", "failed"],
        "the policy hears of each request once"
    );
}
