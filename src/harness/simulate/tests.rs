//! The closed loop, end to end.

use std::collections::BTreeSet;

use super::calibration::{h100, modelled, setting};
use super::shorten::Shorten;
use super::workload::Program;
use super::world::BACKEND;
use super::*;
use crate::harness::trace::Trace;
use crate::policy::baseline::Baseline;
use crate::policy::{Config as PolicyConfig, Decisions, Event, HoldReason, RequestId};

fn direct(cell: &Cell) -> Measured {
    fixed_set(cell, &mut Baseline::default())
}

/// A set that is small enough for a debug build.
fn small(shape: Shape) -> Cell {
    Cell {
        programs: 12,
        ..Cell::new(Workload::Drawn(shape), 4, 1, h100())
    }
}

#[test]
fn a_fixed_set_ends_with_every_program_and_every_step_of_it() {
    for shape in [Shape::Orch, Shape::Swe, Shape::Forks, Shape::Bursts] {
        let cell = small(shape);
        let (measured, programs) = fixed_set_by_program(&cell, &mut Baseline::default());
        let steps: usize = cell.fixed_programs().map(|p| p.steps.len()).sum();
        assert_eq!((measured.programs_done, measured.programs_failed), (12, 0));
        assert_eq!(measured.steps, steps, "{shape:?}");
        let names: BTreeSet<_> = programs.into_iter().map(|run| run.program).collect();
        assert_eq!(names, cell.fixed_programs().map(|p| p.name).collect());
    }
}

#[test]
fn the_same_seed_gives_the_same_numbers_under_every_policy() {
    let cell = small(Shape::Mix);
    for name in PolicyConfig::NAMES {
        let run = || fixed_set(&cell, PolicyConfig::by_name(name).unwrap().build().as_mut());
        assert_eq!(run(), run(), "{name}");
    }
    let other = Cell {
        seed: 2,
        ..cell.clone()
    };
    assert_ne!(direct(&cell), direct(&other));
}

/// Steps in the system follow from rate and time (Little's law): the loop loses and invents no request.
#[test]
fn what_runs_and_waits_is_the_rate_times_the_latency() {
    let cell = setting(Shape::Swe, 32, 1);
    let long = Duration::from_secs(300);
    let measured = window(&cell, long, long, &mut Baseline::default());
    let inside = measured.running + measured.waiting;
    let expected = measured.steps_per_s * measured.latency_mean_s;
    assert!((inside / expected - 1.0).abs() < 0.05, "{measured:?}");
}

/// The cells in which everything is crowded: there the draw of programs matters least.
#[test]
fn a_crowded_cell_is_near_the_measured_h100() {
    for (shape, concurrency, steps_per_s) in
        [(Shape::Tau2Lognormal, 128, 2.97), (Shape::Orch, 128, 7.76)]
    {
        let runs = [1, 2, 3].map(|seed| modelled(shape, concurrency, seed));
        let mean = runs.iter().map(|run| run.steps_per_s).sum::<f64>() / 3.0;
        assert!((mean / steps_per_s - 1.0).abs() < 0.15, "{shape:?}: {mean}");
    }
}

/// Answers whose blocks are hit again leave less to compute.
#[test]
fn history_that_reads_as_it_was_generated_hits_more() {
    let kept = small(Shape::Tau2Lognormal);
    let with = |history| {
        direct(&Cell {
            history,
            ..kept.clone()
        })
    };
    let (kept, recut) = (with(History::Kept), with(History::Recut(1.38)));
    assert!(kept.hit_true > recut.hit_true + 0.01);
}

/// The longer answers are taken off the messages after them.
#[test]
fn a_corrected_history_is_as_long_as_planned() {
    let cell = small(Shape::Tau2Lognormal);
    let programs: Vec<_> = cell.fixed_programs().collect();
    let longest = |history| {
        let mut slot = slot::Slot::new(programs[0].clone(), &cell.engine, Time::ZERO);
        for _ in 1..programs[0].steps.len() {
            slot.begin_step(history);
            slot.end_step(history);
        }
        slot.begin_step(history);
        slot.prompt()
    };
    let planned = longest(History::Kept);
    let steps = &programs[0].steps;
    let excess = longest(History::Corrected(1.38)) - planned;
    // Only the last answer's excess is still there.
    let last = f64::from(steps[steps.len() - 2].output);
    assert!((f64::from(excess) - 0.38 * last).abs() < 2.0, "{excess}");
    assert!(longest(History::Recut(1.38)) > planned + 4 * excess);
}

#[test]
fn a_trace_is_played_program_by_program_and_says_so_again_as_a_trace() {
    let trace = Trace::load("tau2").unwrap();
    let count = trace.programs.len();
    let written = |workload: &Workload, count| {
        workload.to_trace(&workload.supply(1).take(count).collect::<Vec<_>>())
    };
    let in_order = written(&Workload::recorded(&trace), count + 1);
    assert_eq!(in_order[0].steps, trace.programs[0].steps);
    assert_eq!(in_order[count].steps, trace.programs[0].steps);
    assert_eq!(in_order[count].program, "retail-0.1");
    let shuffled = written(&Workload::resampled(&trace), count);
    let names = |programs: &[crate::harness::trace::Program]| {
        let names = programs.iter().map(|program| program.program.clone());
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&shuffled), names(&trace.programs));
    assert_ne!(shuffled[0].program, trace.programs[0].program);
}

/// What the simulation draws and what it reads from the file that `kvgate trace` writes of it.
#[test]
fn a_drawn_set_and_its_trace_are_the_same_programs() {
    let drawn = Workload::Drawn(Shape::Orch);
    let programs: Vec<_> = drawn.supply(3).take(5).collect();
    let trace = Trace {
        name: "orch".to_owned(),
        programs: drawn.to_trace(&programs),
        repaired: 0,
    };
    let read = Trace::parse("orch", &trace.to_jsonl().unwrap()).unwrap();
    assert_eq!(read.repaired, 0);
    for (program, again) in programs.iter().zip(Workload::recorded(&read).supply(1)) {
        assert_eq!((&program.name, program.shared), (&again.name, again.shared));
        let lengths = |p: &Program| {
            p.steps
                .iter()
                .map(|s| (s.added, s.output))
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(program), lengths(&again));
    }
}

#[test]
fn a_shortened_program_is_a_stretch_of_the_whole_one() {
    let programs: Vec<_> = Workload::Drawn(Shape::Swe).supply(1).take(20).collect();
    let shorten = Shorten {
        steps: 0.25,
        gaps: 0.5,
    };
    let contexts = |program: &Program| {
        let mut context = program.shared;
        let mut contexts = Vec::new();
        for step in &program.steps {
            contexts.push(context + step.added);
            context += step.added + step.output;
        }
        contexts
    };
    let mut late = 0;
    for whole in programs {
        let mut short = whole.clone();
        shorten.apply(&mut short, 7);
        assert_eq!(short.steps.len(), (whole.steps.len() + 2) / 4);
        let (short_contexts, whole_contexts) = (contexts(&short), contexts(&whole));
        let stretch = whole_contexts.windows(short.steps.len());
        let mut places = stretch.enumerate().filter(|(_, s)| *s == short_contexts);
        let (place, _) = places.next().unwrap();
        assert_eq!(short.steps[0].gap * 2, whole.steps[place].gap);
        late += usize::from(place > 0);
    }
    assert!(late > 10, "stretches begin anywhere");
}

#[test]
fn bursts_come_back_together() {
    #[derive(Debug, Default)]
    struct Arrivals(Baseline, Vec<Time>);
    impl Policy for Arrivals {
        fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
            if matches!(event, Event::Arrive(_)) && now > Time::ZERO {
                self.1.push(now);
            }
            self.0.handle(now, event, out);
        }
        fn next_wakeup(&self) -> Option<crate::policy::Wakeup> {
            None
        }
        fn snapshot(&self) -> crate::policy::PolicySnapshot {
            self.0.snapshot()
        }
    }
    let mut arrivals = Arrivals::default();
    // Everybody at once: no program is followed by another between two bursts.
    let cell = Cell {
        concurrency: 12,
        ..small(Shape::Bursts)
    };
    fixed_set(&cell, &mut arrivals);
    let burst = u64::try_from(workload::BURST.as_nanos()).unwrap();
    assert!(arrivals.1.iter().all(|at| at.as_nanos() % burst == 0));
}

#[test]
fn a_policy_that_sees_no_programs_holds_nobody() {
    let mut cell = small(Shape::Swe);
    cell.engine.blocks = 1_501;
    let held = |anonymous| {
        let mut cell = cell.clone();
        cell.beliefs.anonymous = anonymous;
        let mut policy = PolicyConfig::by_name("continuum").unwrap().build();
        fixed_set(&cell, policy.as_mut()).hold_max_s
    };
    assert!(held(0.0) > 0.0);
    assert!(held(0.5) > 0.0);
    assert!(held(1.0).abs() < 1e-9);
}

#[test]
fn a_program_longer_than_the_cache_fails_and_the_others_go_on() {
    let mut cell = small(Shape::Swe);
    cell.engine.blocks = 901;
    let measured = direct(&cell);
    assert!(
        measured.programs_failed > 0 && measured.programs_done > 0,
        "{measured:?}"
    );
    assert_eq!(measured.programs_done + measured.programs_failed, 12);
}

/// A policy that lets nobody go.
#[derive(Debug)]
struct Never;

impl Policy for Never {
    fn handle(&mut self, _: Time, event: &Event, out: &mut Decisions) {
        if let Event::Arrive(arrival) = event {
            out.hold(arrival.request, HoldReason::NoRoom);
        }
    }

    fn next_wakeup(&self) -> Option<crate::policy::Wakeup> {
        None
    }

    fn snapshot(&self) -> crate::policy::PolicySnapshot {
        crate::policy::PolicySnapshot::default()
    }
}

#[test]
fn a_policy_that_lets_nobody_go_ends_the_run_instead_of_hanging_it() {
    let measured = fixed_set(&small(Shape::Swe), &mut Never);
    assert_eq!((measured.programs_done, measured.programs_failed), (0, 4));
}

/// A policy that holds everything until a tick releases it, one request at a time.
#[derive(Debug, Default)]
struct OneByOne {
    held: Vec<RequestId>,
    busy: bool,
    at: Option<Time>,
}

impl Policy for OneByOne {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        if let Event::Arrive(arrival) = event {
            self.held.push(arrival.request);
            out.hold(arrival.request, HoldReason::ConcurrencyLimit);
        }
        if matches!(event, Event::Finish { .. }) {
            self.busy = false;
        }
        if matches!(event, Event::Tick) && !self.busy && !self.held.is_empty() {
            self.busy = true;
            out.admit(self.held.remove(0), BACKEND);
        }
        let idle = !self.busy && !self.held.is_empty();
        self.at = idle.then(|| now + Duration::from_millis(10));
    }

    fn next_wakeup(&self) -> Option<crate::policy::Wakeup> {
        self.at.map(|at| crate::policy::Wakeup { at, why: "admit" })
    }

    fn snapshot(&self) -> crate::policy::PolicySnapshot {
        crate::policy::PolicySnapshot::default()
    }
}

#[test]
fn holds_and_ticks_reach_the_policy_and_bind_the_engine() {
    let measured = fixed_set(&small(Shape::Swe), &mut OneByOne::default());
    assert_eq!(measured.programs_done, 12);
    assert!(measured.hold_max_s > 0.1, "{measured:?}");
    assert!(
        measured.running <= 1.0 && measured.waiting < 0.01,
        "{measured:?}"
    );
}
