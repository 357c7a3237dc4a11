//! The closed loop, end to end.

use super::calibration::experiment;
use super::world::BACKEND;
use super::*;
use crate::policy::baseline::Baseline;
use crate::policy::{Decisions, Event, RequestId};

fn direct(experiment: &Experiment) -> Measured {
    run(experiment, &mut Baseline::default())
}

#[test]
fn the_same_seed_gives_the_same_numbers() {
    let cell = experiment(Shape::Swe, 8, 1);
    assert_eq!(direct(&cell), direct(&cell));
}

/// Steps in the system follow from rate and time (Little's law): the loop loses and invents no request.
#[test]
fn what_runs_and_waits_is_the_rate_times_the_latency() {
    let mut cell = experiment(Shape::Swe, 32, 1);
    cell.window = Duration::from_secs(300);
    let measured = direct(&cell);
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
        let runs = [1, 2, 3].map(|seed| direct(&experiment(shape, concurrency, seed)));
        let mean = runs.iter().map(|run| run.steps_per_s).sum::<f64>() / 3.0;
        assert!((mean / steps_per_s - 1.0).abs() < 0.15, "{shape:?}: {mean}");
    }
}

/// Answers whose blocks are hit again leave less to compute.
#[test]
fn history_that_reads_as_it_was_generated_hits_more() {
    let recut = experiment(Shape::Tau2Lognormal, 8, 1);
    let kept = Experiment {
        history: History::Kept,
        ..recut.clone()
    };
    assert!(direct(&kept).hit_true > direct(&recut).hit_true);
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
            out.hold(arrival.request, crate::policy::HoldReason::ConcurrencyLimit);
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
    let measured = run(&experiment(Shape::Swe, 8, 1), &mut OneByOne::default());
    assert!(measured.steps_per_s > 1.0);
    assert!(
        measured.running <= 1.0 && measured.waiting < 0.01,
        "{measured:?}"
    );
}
