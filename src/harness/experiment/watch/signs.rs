//! What the lines of a run's files, and the events of its workload, say of life. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::harness::experiment::watchdog::Sign;
use crate::harness::reference::driver_log::{self, Parser};
use crate::harness::run::build::{USER_SUFFIX, is_served};
use crate::harness::rundir::{Ending, ProgramRecord};
use crate::harness::tau2::event::{Event, Moment, What};
use crate::telemetry::StepRecord;
use crate::telemetry::step::CONTEXT_OVERFLOW;

/// A sign and when it was given, Unix seconds of the run.
pub(super) type Told = (f64, Sign);

/// The files that tell of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The gate's `steps.jsonl`.
    Steps,
    /// A replay's `programs.jsonl`.
    Programs,
    /// The reference driver's `driver.log`.
    DriverLog,
}

/// Reads their lines.
#[derive(Debug)]
pub(super) struct Signs {
    parser: Parser,
    /// Programs that the driver has not taken leave of, and when each was seen first; empty without a driver.
    driven: BTreeMap<String, f64>,
    is_driven: bool,
}

impl Signs {
    /// A reader of a run with the reference's driver, or of another.
    pub(super) fn new(is_driven: bool) -> anyhow::Result<Self> {
        Ok(Self {
            parser: Parser::new()?,
            driven: BTreeMap::new(),
            is_driven,
        })
    }

    /// What a line says that was read at `now_s`; one that is no record says nothing.
    pub(super) fn of(&mut self, source: Source, now_s: f64, line: &str) -> Vec<Told> {
        match source {
            Source::Steps => parsed(line, |record| self.step(record)),
            Source::Programs => parsed(line, of_program),
            Source::DriverLog => self.driver(now_s, line),
        }
    }

    /// The gate served a request, or did not.
    fn step(&mut self, record: StepRecord) -> Vec<Told> {
        let served = is_served(&record);
        let overflowed = record.outcome == CONTEXT_OVERFLOW;
        let program = record
            .program
            .map(|name| match name.strip_suffix(USER_SUFFIX) {
                Some(name) => name.to_owned(),
                None => name,
            });
        let Some(program) = program else {
            let step = Sign::Step { program: None };
            return Vec::from_iter(served.then_some((record.finished_s, step)));
        };
        if self.is_driven && !self.driven.contains_key(&program) {
            self.driven.insert(program.clone(), record.arrived_s);
        }
        let began = Sign::Began {
            program: program.clone(),
        };
        let then = match (served, overflowed) {
            (true, _) => Some(Sign::Step {
                program: Some(program),
            }),
            (false, true) => Some(Sign::Overflow { program }),
            (false, false) => None,
        };
        let then = then.map(|sign| (record.finished_s, sign));
        std::iter::once((record.arrived_s, began))
            .chain(then)
            .collect()
    }

    /// The driver's word for a task that has left the run; its programs are those that bear its name.
    fn driver(&mut self, now_s: f64, line: &str) -> Vec<Told> {
        let mut told = Vec::new();
        let driven = &mut self.driven;
        self.parser.events(line, |event| {
            let Ok(driver_log::Event::Left {
                domain,
                task,
                status,
                ..
            }) = event
            else {
                return;
            };
            let prefix = format!("tau2:{domain}:{task}:");
            let mut began_s = None;
            while let Some((program, at_s)) = take_first(driven, &prefix) {
                began_s = Some(began_s.map_or(at_s, |began_s: f64| began_s.min(at_s)));
                told.push((now_s, Sign::Ended { program }));
            }
            let took_s = began_s
                .filter(|_| status == "ok")
                .map(|began_s| now_s - began_s);
            told.push((now_s, Sign::Task { took_s }));
        });
        told
    }
}

/// Takes out the first entry whose name begins so.
fn take_first(named: &mut BTreeMap<String, f64>, prefix: &str) -> Option<(String, f64)> {
    let (name, _) = named.range(prefix.to_owned()..).next()?;
    let name = Some(name).filter(|name| name.starts_with(prefix))?.clone();
    named.remove_entry(&name)
}

/// What `of` makes of a line of JSON.
fn parsed<T: for<'de> Deserialize<'de>>(line: &str, of: impl FnOnce(T) -> Vec<Told>) -> Vec<Told> {
    serde_json::from_str(line).map(of).unwrap_or_default()
}

fn of_program(record: ProgramRecord) -> Vec<Told> {
    let at_s = record.finished_s;
    let took_s = (record.ending == Ending::Done).then_some(at_s - record.started_s);
    let program = record.program;
    vec![
        (at_s, Sign::Ended { program }),
        (at_s, Sign::Task { took_s }),
    ]
}

/// What an event of tau2-bench says.
pub(super) fn of_tau2(event: &Event) -> Vec<Told> {
    let Some(attempt) = &event.attempt else {
        return Vec::new();
    };
    let program = attempt.job_id.clone();
    let signs = match &event.what {
        What::Started => vec![Sign::Began { program }],
        What::Moment(moment) if !is_failure(moment) => vec![Sign::Step {
            program: Some(program),
        }],
        What::Finished(finish) => {
            let failure = finish.failure.as_ref();
            let took_s = failure.is_none().then_some(finish.duration_ms / 1e3);
            let task = finish.last_word.then_some(Sign::Task { took_s });
            std::iter::once(Sign::Ended { program })
                .chain(task)
                .collect()
        }
        What::Moment(_)
        | What::WorkerReady { .. }
        | What::Began { .. }
        | What::WorkerDied { .. }
        | What::Cpu { .. }
        | What::ReleaseFailed { .. } => Vec::new(),
    };
    signs.into_iter().map(|sign| (event.at_s, sign)).collect()
}

/// Whether a model did not answer.
const fn is_failure(moment: &Moment) -> bool {
    matches!(moment, Moment::Llm { error: Some(_), .. })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::harness::tau2::event::{Cause, Failure, Finish};
    use crate::harness::tau2::plan::{Attempt, Unit};

    fn step(program: Option<&str>, status: u16, outcome: &str) -> String {
        let record = StepRecord {
            program: program.map(str::to_owned),
            arrived_s: 1.0,
            finished_s: 2.0,
            status,
            outcome: outcome.to_owned(),
            ..StepRecord::default()
        };
        serde_json::to_string(&record).unwrap()
    }

    fn of(source: Source, line: &str) -> Vec<Told> {
        let mut signs = Signs::new(true).unwrap();
        signs.of(source, 9.0, line)
    }

    fn a() -> String {
        "a".to_owned()
    }

    #[test]
    fn only_a_step_that_was_served_is_progress() {
        let began = (1.0, Sign::Began { program: a() });
        let step_of = |outcome, status| of(Source::Steps, &step(Some("a"), status, outcome));
        let served = (2.0, Sign::Step { program: Some(a()) });
        assert_eq!(step_of("tool_calls", 200), [began.clone(), served]);
        assert_eq!(step_of("failed", 502), std::slice::from_ref(&began));
        assert_eq!(step_of("cancelled", 200), std::slice::from_ref(&began));
        let overflow = (2.0, Sign::Overflow { program: a() });
        assert_eq!(step_of("context_overflow", 400), [began, overflow]);
    }

    #[test]
    fn a_request_without_identity_keeps_the_cell_alive() {
        let served = (2.0, Sign::Step { program: None });
        assert_eq!(of(Source::Steps, &step(None, 200, "stop")), [served]);
        assert_eq!(of(Source::Steps, &step(None, 500, "failed")), []);
    }

    #[test]
    fn the_customers_model_is_its_program() {
        let told = of(Source::Steps, &step(Some("a:user"), 200, "stop"));
        assert_eq!(told[1].1, Sign::Step { program: Some(a()) });
    }

    #[test]
    fn a_line_that_is_no_record_says_nothing() {
        for source in [Source::Steps, Source::Programs, Source::DriverLog] {
            assert_eq!(of(source, "{\"program\": 1"), []);
        }
    }

    #[test]
    fn a_replayed_program_that_ends_is_a_task_and_only_a_whole_one_has_a_length() {
        let mut record = ProgramRecord {
            program: a(),
            kind: String::new(),
            started_s: 1.0,
            finished_s: 5.0,
            steps: 1,
            errors: 0,
            ending: Ending::Done,
            cause: None,
        };
        for (ending, took_s) in [(Ending::Done, Some(4.0)), (Ending::Failed, None)] {
            record.ending = ending;
            let told = of(Source::Programs, &serde_json::to_string(&record).unwrap());
            let ended = (5.0, Sign::Ended { program: a() });
            assert_eq!(told, [ended, (5.0, Sign::Task { took_s })]);
        }
    }

    #[test]
    fn the_drivers_word_ends_the_programs_of_its_task() {
        let mut signs = Signs::new(true).unwrap();
        for program in ["tau2:retail:1:aa", "tau2:retail:11:bb"] {
            signs.of(Source::Steps, 2.0, &step(Some(program), 200, "stop"));
        }
        let line = "('[TAU2_TASK_COMPLETE] domain=retail trial=0 task_id=1 status=ok completed_global=1 total_global=2',)";
        let told = signs.of(Source::DriverLog, 9.0, line);
        let program = "tau2:retail:1:aa".to_owned();
        let took_s = Some(8.0);
        assert_eq!(
            told,
            [(9.0, Sign::Ended { program }), (9.0, Sign::Task { took_s })]
        );
        assert_eq!(signs.driven.len(), 1, "the other goes on");
    }

    #[test]
    fn a_simulation_is_a_task_only_with_its_last_word() {
        let unit = Unit {
            domain: "retail".to_owned(),
            task_id: "1".to_owned(),
            trial: 0,
            seed: 0,
        };
        let attempt = Attempt {
            unit,
            number: 1,
            job_id: a(),
            retries_left: 1,
        };
        let mut finish = Finish {
            reward: None,
            termination: None,
            failure: Some(Failure {
                cause: Cause::Llm,
                error: String::new(),
            }),
            steps: 1,
            llm_calls: 1,
            duration_ms: 4_000.0,
            last_word: false,
        };
        let event = |what| Event {
            at_s: 5.0,
            worker: None,
            attempt: Some(Arc::new(attempt.clone())),
            what,
        };
        let told = |finish: &Finish| of_tau2(&event(What::Finished(finish.clone())));
        let ended = (5.0, Sign::Ended { program: a() });
        assert_eq!(told(&finish), std::slice::from_ref(&ended));
        finish.last_word = true;
        assert_eq!(told(&finish)[1], (5.0, Sign::Task { took_s: None }));
        finish.failure = None;
        let took_s = Some(4.0);
        assert_eq!(told(&finish), [ended, (5.0, Sign::Task { took_s })]);
        let began = (5.0, Sign::Began { program: a() });
        assert_eq!(of_tau2(&event(What::Started)), [began]);
    }
}
