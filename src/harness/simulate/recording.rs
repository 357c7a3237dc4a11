//! A gate's journal as a set of programs: what real traffic asked for, to be played under other policies.
//!
//! Kept are each program's contexts, answers, gaps and what they were spent on. When a program began is not: a
//! simulation is a closed loop, so as many run at once as it has slots. Requests without a program are left out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::supply::Recorded;
use super::workload::{Program, Step};
use crate::policy::{Arrival, Event, GapKind, ProgramId, RequestId, Time, ToolId, Usage};
use crate::telemetry::journal::Line;

/// A program whose end has not been read yet.
#[derive(Debug)]
struct Open {
    program: Program,
    /// Tokens of the context before the step under way.
    before: u64,
    /// Its requests that are not over.
    flying: u32,
    /// When its last step ended.
    ended: Time,
}

/// What has been read of a journal.
#[derive(Debug, Default)]
pub struct Reader {
    open: BTreeMap<ProgramId, Open>,
    flights: BTreeMap<RequestId, ProgramId>,
    prefixes: Vec<u64>,
    done: Vec<Program>,
    begun: usize,
}

impl Reader {
    /// Takes the next line.
    pub fn take(&mut self, line: &Line) {
        let Line::Event { at, event, .. } = line else {
            return;
        };
        match event {
            Event::Arrive(arrival) => self.arrive(*at, arrival),
            Event::Finish { request, usage, .. } => self.finish(*at, *request, usage.as_ref()),
            Event::ToolGap { program, kind } => {
                if let Some(open) = self.open.get_mut(program)
                    && let Some(step) = open.program.steps.last_mut()
                {
                    step.kind = *kind;
                }
            }
            Event::Release { program } => {
                self.done
                    .extend(self.open.remove(program).map(|open| open.program));
            }
            // What a policy is told that takes over was told before.
            Event::Rearrive { .. }
            | Event::Adopt(_)
            | Event::FirstToken { .. }
            | Event::Sample(_)
            | Event::BackendUp { .. }
            | Event::BackendDown { .. }
            | Event::Tick => {}
        }
    }

    /// The programs, in the order in which they ended, those still running last; `None` if there are none.
    pub fn end(mut self, name: &str) -> Option<Recorded> {
        let running = std::mem::take(&mut self.open).into_values();
        self.done.extend(running.map(|open| open.program));
        let tools = self.done.iter().flat_map(|program| &program.steps);
        let tools = tools.filter_map(|step| match step.kind {
            GapKind::Tool(ToolId(tool)) => Some(usize::from(tool) + 1),
            GapKind::UserTurn => None,
        });
        let tools = tools.max().unwrap_or(0);
        (!self.done.is_empty()).then(|| Recorded {
            name: name.to_owned(),
            tools: (0..tools).map(|tool| format!("tool-{tool}")).collect(),
            groups: (0..self.prefixes.len())
                .map(|group| format!("prefix-{group}"))
                .collect(),
            programs: self.done,
        })
    }

    fn arrive(&mut self, at: Time, arrival: &Arrival) {
        let Some(id) = arrival.program else {
            return;
        };
        self.flights.insert(arrival.request, id);
        if !self.open.contains_key(&id) {
            let open = self.begin(at, arrival);
            self.open.insert(id, open);
        }
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        open.flying += 1;
        if open.flying > 1 {
            if let Some(step) = open.program.steps.last_mut() {
                step.branches += 1;
            }
            return;
        }
        if let Some(step) = open.program.steps.last_mut() {
            step.gap = at.since(open.ended);
        }
        open.program.steps.push(Step {
            added: tokens(arrival.prompt.0.saturating_sub(open.before)).max(1),
            output: 1,
            gap: Duration::ZERO,
            kind: GapKind::UserTurn,
            branches: 1,
        });
    }

    fn begin(&mut self, at: Time, arrival: &Arrival) -> Open {
        let shared = arrival.shared.map_or((0, 0), |shared| {
            (
                shared.fingerprint,
                shared.tokens.0.min(arrival.prompt.0.saturating_sub(1)),
            )
        });
        let known = self.prefixes.iter().position(|prefix| *prefix == shared.0);
        let group = known.unwrap_or_else(|| {
            self.prefixes.push(shared.0);
            self.prefixes.len() - 1
        });
        self.begun += 1;
        Open {
            program: Program {
                name: format!("program-{}", self.begun),
                group: u32::try_from(group).unwrap_or(u32::MAX),
                shared: tokens(shared.1),
                steps: Vec::new(),
            },
            before: shared.1,
            flying: 0,
            ended: at,
        }
    }

    fn finish(&mut self, at: Time, request: RequestId, usage: Option<&Usage>) {
        let Some(open) = self
            .flights
            .remove(&request)
            .and_then(|id| self.open.get_mut(&id))
        else {
            return;
        };
        open.flying = open.flying.saturating_sub(1);
        open.ended = at;
        let Some(step) = open.program.steps.last_mut() else {
            return;
        };
        if let Some(usage) = usage {
            step.added = tokens(usage.prompt.0.saturating_sub(open.before)).max(1);
            step.output = tokens(usage.output.0).max(1);
        }
        if open.flying == 0 {
            open.before += u64::from(step.added) + u64::from(step.output);
        }
    }
}

fn tokens(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::simulate::calibration::h100;
    use crate::harness::simulate::{Cell, Shape, Workload, fixed_set};
    use crate::policy::baseline::Baseline;
    use crate::policy::{Decisions, Policy, PolicySnapshot, Wakeup};

    /// Keeps what a policy is told as a gate's journal does.
    #[derive(Debug, Default)]
    struct Recorder(Baseline, Reader);

    impl Policy for Recorder {
        fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
            self.1.take(&Line::Event {
                at: now,
                event: event.clone(),
                decisions: Vec::new(),
            });
            self.0.handle(now, event, out);
        }

        fn next_wakeup(&self) -> Option<Wakeup> {
            None
        }

        fn snapshot(&self) -> PolicySnapshot {
            self.0.snapshot()
        }
    }

    /// What was simulated, read from its journal, is what was simulated: forks, kinds, gaps and all.
    #[test]
    fn a_journal_gives_back_the_programs_that_made_it() {
        let cell = Cell {
            programs: 6,
            ..Cell::new(Workload::Drawn(Shape::Forks), 3, 1, h100())
        };
        let mut scribe = Recorder::default();
        fixed_set(&cell, &mut scribe);
        let recorded = scribe.1.end("journal").unwrap();
        let key = |program: &Program| -> Vec<_> {
            let of = |step: &Step| (step.added, step.output, step.branches);
            program.steps.iter().map(of).collect()
        };
        let mut played: Vec<Program> = cell.fixed_programs().collect();
        let mut read = recorded.programs;
        for programs in [&mut played, &mut read] {
            programs.sort_by_key(key);
        }
        for (played, read) in played.iter().zip(&read) {
            assert_eq!((played.shared, key(played)), (read.shared, key(read)));
            // The last step has no gap.
            let inner = played.steps.len() - 1;
            for (a, b) in played.steps.iter().zip(&read.steps).take(inner) {
                assert_eq!((a.gap, a.kind), (b.gap, b.kind));
            }
        }
        assert_eq!(played.len(), read.len());
    }

    #[test]
    fn a_journal_without_programs_is_no_workload() {
        assert!(Reader::default().end("empty").is_none());
    }
}
