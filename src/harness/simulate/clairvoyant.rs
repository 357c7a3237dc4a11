//! The policy `kvgate`, told of every idle program when it returns: what perfect guesses of gaps are worth to its rules.
//!
//! Of ends every policy is told. No bound: knowing one thing exactly can make another guess worse, and in some settings
//! `kvgate` is ahead of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Cell, Workload};
use crate::policy::ids::name_hash;
use crate::policy::kvgate::{Config, Kvgate};
use crate::policy::slots::Slots;
use crate::policy::{
    Decisions, Event, Policy, PolicySnapshot, ProgramId, ProgramView, Time, Wakeup,
};

/// `kvgate` with default settings that knows the gaps of a fixed set.
#[derive(Debug)]
pub struct Clairvoyant {
    inner: Kvgate,
    workload: Workload,
    /// The gaps of each program, one after each step, by [`name_hash`] of its name.
    gaps: BTreeMap<u64, Vec<Duration>>,
    alive: Slots<Alive>,
}

/// Where a program of the set is.
#[derive(Clone, Copy, Debug)]
struct Alive {
    /// Its name's hash.
    name: u64,
    /// How many of its gaps have begun.
    begun: usize,
    /// When the last of them ends.
    returns_at: Option<Time>,
}

impl Clairvoyant {
    /// A policy that knows the programs of `cell`'s fixed set. O(steps of the set).
    pub fn new(cell: &Cell) -> Self {
        let gaps = cell.fixed_programs().map(|program| {
            let gaps = program.steps.iter().map(|step| step.gap).collect();
            (name_hash(&program.name), gaps)
        });
        Self {
            inner: Kvgate::new(Config::default()),
            workload: cell.workload.clone(),
            gaps: gaps.collect(),
            alive: Slots::new(),
        }
    }

    /// When `program`, which goes idle at `now`, returns; `None` if it is not of the set.
    fn next_return(&mut self, now: Time, program: ProgramId) -> Option<Time> {
        let alive = self.alive.get_mut(program.index())?;
        let gap = *self.gaps.get(&alive.name)?.get(alive.begun)?;
        alive.begun += 1;
        alive.returns_at = Some(self.workload.returns_at(now, gap));
        alive.returns_at
    }

    /// Looks ahead, at an event that the policy is told next.
    fn foresee(&mut self, now: Time, event: &Event) {
        match *event {
            // A step may be several requests, and a refused one comes again: only the first begins the program.
            Event::Arrive(arrival) => {
                let is_new = |id: &ProgramId| self.alive.get(id.index()).is_none();
                if let Some(id) = arrival.program.filter(is_new) {
                    let alive = Alive {
                        name: arrival.name_hash,
                        begun: 0,
                        returns_at: None,
                    };
                    self.alive.insert(id.index(), alive);
                }
            }
            Event::ToolGap { program, .. } => {
                if let Some(returns_at) = self.next_return(now, program) {
                    self.inner.foretell(program, returns_at);
                }
            }
            Event::Release { program } => {
                self.alive.remove(program.index());
            }
            Event::Rearrive { .. }
            | Event::Adopt(_)
            | Event::FirstToken { .. }
            | Event::Finish { .. }
            | Event::Sample(_)
            | Event::BackendUp { .. }
            | Event::BackendDown { .. }
            | Event::Tick => {}
        }
    }
}

impl Policy for Clairvoyant {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.foresee(now, event);
        self.inner.handle(now, event, out);
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        self.inner.next_wakeup()
    }

    fn snapshot(&self) -> PolicySnapshot {
        self.inner.snapshot()
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        self.inner.program(program)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::calibration::h100;
    use super::super::supply::Recorded;
    use super::super::workload::{Program, Step, TOOL};
    use super::super::{Measured, Shape, fixed_set};
    use super::*;
    use crate::policy::{Arrival, GapKind, RequestId, Tokens};

    fn program(name: &str, gaps_s: &[u64]) -> Program {
        let step = |gap_s: &u64| Step {
            added: 100,
            output: 10,
            gap: Duration::from_secs(*gap_s),
            kind: GapKind::Tool(TOOL),
            branches: 1,
        };
        Program {
            name: name.to_owned(),
            group: 0,
            shared: 0,
            steps: gaps_s.iter().map(step).collect(),
        }
    }

    /// What is foretold to a policy that knows programs `a` and `b`.
    struct Told(Clairvoyant);

    impl Told {
        fn tell(&mut self, at_s: u64, event: &Event) {
            let at = Time::ZERO + Duration::from_secs(at_s);
            self.0.handle(at, event, &mut Decisions::new());
        }

        fn arrive(&mut self, at_s: u64, id: u32, name: &str) {
            let arrival = Arrival {
                request: RequestId(id),
                program: Some(ProgramId(id)),
                name_hash: name_hash(name),
                prompt: Tokens(100),
                shared: None,
                last_step: false,
            };
            self.tell(at_s, &Event::Arrive(arrival));
        }

        /// The second of the return that is foretold of a gap that begins now.
        fn gap(&mut self, at_s: u64, id: u32) -> Option<f64> {
            let (program, kind) = (ProgramId(id), GapKind::Tool(TOOL));
            self.tell(at_s, &Event::ToolGap { program, kind });
            let alive = self.0.alive.get(program.index())?;
            alive.returns_at.map(Time::as_secs_f64)
        }
    }

    #[test]
    fn two_programs_are_foretold_gap_by_gap_whatever_their_ids() {
        let recorded = Recorded {
            name: "two".to_owned(),
            programs: vec![program("a", &[5, 7, 0]), program("b", &[11, 13, 0])],
            tools: Vec::new(),
            groups: Vec::new(),
        };
        let workload = Workload::Recorded(Arc::new(recorded));
        let cell = Cell {
            programs: 2,
            ..Cell::new(workload, 2, 1, h100())
        };
        let mut told = Told(Clairvoyant::new(&cell));
        told.arrive(0, 1, "a");
        assert_eq!(told.gap(1, 1), Some(6.0));
        told.arrive(2, 0, "b");
        told.arrive(6, 1, "a");
        assert_eq!(told.gap(8, 1), Some(15.0), "its second gap");
        assert_eq!(told.gap(9, 0), Some(20.0), "the first of the other");
        let program = ProgramId(1);
        told.tell(15, &Event::Release { program });
        told.arrive(16, 1, "b");
        assert_eq!(told.gap(17, 1), Some(28.0), "the id is used again");
        told.arrive(20, 2, "stranger");
        assert_eq!(told.gap(21, 2), None);
    }

    /// Counts the returns, and asserts that each is at its time.
    #[derive(Debug)]
    struct Watched(Clairvoyant, usize);

    impl Policy for Watched {
        fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
            if let Event::Arrive(Arrival {
                program: Some(program),
                ..
            }) = *event
                && let Some(alive) = self.0.alive.get(program.index())
                && let Some(returns_at) = alive.returns_at
            {
                assert_eq!(returns_at, now, "{program:?}");
                self.1 += 1;
            }
            self.0.handle(now, event, out);
        }

        fn next_wakeup(&self) -> Option<Wakeup> {
            self.0.next_wakeup()
        }

        fn snapshot(&self) -> PolicySnapshot {
            self.0.snapshot()
        }
    }

    /// A set with more programs than fit, some of them without identity.
    fn crowded(shape: Shape) -> Cell {
        let mut cell = Cell {
            programs: 24,
            ..Cell::new(Workload::Drawn(shape), 12, 1, h100())
        };
        cell.engine.blocks = 2_000;
        cell
    }

    #[test]
    fn every_return_of_a_set_is_foretold() {
        for shape in [Shape::Forks, Shape::Bursts] {
            let mut cell = crowded(shape);
            cell.beliefs.anonymous = 0.05;
            let mut watched = Watched(Clairvoyant::new(&cell), 0);
            let measured = fixed_set(&cell, &mut watched);
            assert_eq!(measured.programs_done, 24);
            assert!(watched.1 > 100, "{shape:?}: {} returns", watched.1);
        }
    }

    #[test]
    fn the_future_changes_what_is_decided_and_is_the_same_every_time() {
        let cell = crowded(Shape::Orch);
        let run = || -> Measured { fixed_set(&cell, &mut Clairvoyant::new(&cell)) };
        assert_eq!(run(), run());
        let ignorant = fixed_set(&cell, &mut Kvgate::new(Config::default()));
        assert_ne!(run(), ignorant);
    }
}
