//! A watch over files that grow, on a clock that runs fast.

use std::io::Write;

use super::*;
use crate::harness::experiment::watchdog::{Bounds, Cause, Level};
use crate::telemetry::StepRecord;

/// A program is given up after 60 s of the run, a cell stopped after an hour.
fn rules() -> Rules {
    let never = f64::INFINITY;
    let bounds = |act_s, action| Bounds {
        warn_s: never,
        act_s,
        action,
    };
    Rules {
        step: bounds(60.0, Level::FailTask),
        task: bounds(never, Level::StopCell),
        cell: bounds(3_600.0, Level::StopCell),
        ..Rules::default()
    }
}

fn step(clock: &Clock, program: &str) -> StepRecord {
    let now_s = clock.unix(clock.now());
    StepRecord {
        program: Some(program.to_owned()),
        arrived_s: now_s,
        finished_s: now_s,
        status: 200,
        outcome: "stop".to_owned(),
        ..StepRecord::default()
    }
}

/// A run that passes so fast that an hour takes seconds.
fn fast() -> Clock {
    Clock::scaled(10_000.0, None)
}

#[tokio::test]
async fn a_program_that_a_gate_served_and_that_then_hangs_is_noticed_and_then_the_cell() {
    let dir = tempfile::tempdir().unwrap();
    let clock = fast();
    let (watch, mut alarms) = Watch::start(rules(), dir.path(), Besides::Nothing, clock).unwrap();
    let record = step(&clock, "a");
    let mut steps = File::create(dir.path().join(STEPS_FILE)).unwrap();
    writeln!(steps, "{}", serde_json::to_string(&record).unwrap()).unwrap();
    let first = alarms.recv().await.unwrap();
    assert_eq!(first.program.as_deref(), Some("a"));
    assert_eq!(
        (first.level, first.cause),
        (Level::FailTask, Cause::ProgramSilent)
    );
    assert!(first.at_s - first.since_s >= 60.0);
    assert!((first.since_s - record.finished_s).abs() < 1e-6);
    let second = alarms.recv().await.unwrap();
    assert_eq!(
        (second.level, second.cause),
        (Level::StopCell, Cause::NoStep)
    );
    assert_eq!(watch.end().await.unwrap(), 2);
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    let written: Vec<Alarm> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(written, [first, second]);
}

#[tokio::test]
async fn what_an_earlier_run_left_in_the_files_is_no_sign_of_life() {
    let dir = tempfile::tempdir().unwrap();
    let clock = fast();
    let old = serde_json::to_string(&step(&clock, "old")).unwrap();
    std::fs::write(dir.path().join(STEPS_FILE), format!("{old}\n")).unwrap();
    let (watch, mut alarms) = Watch::start(rules(), dir.path(), Besides::Programs, clock).unwrap();
    let now_s = clock.unix(clock.now());
    let program = "begun".to_owned();
    watch.sign(now_s, Sign::Began { program });
    let alarm = alarms.recv().await.unwrap();
    assert_eq!(alarm.program.as_deref(), Some("begun"));
    watch.end().await.unwrap();
}

#[tokio::test]
async fn a_watch_whose_alarms_nobody_takes_still_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules {
        on_overflow: Level::Warn,
        ..rules()
    };
    let clock = Clock::real();
    let (watch, alarms) = Watch::start(rules, dir.path(), Besides::DriverLog, clock).unwrap();
    drop(alarms);
    let now_s = clock.unix(clock.now());
    for _ in 0..2 {
        let program = "a".to_owned();
        watch.sign(now_s, Sign::Overflow { program });
    }
    let given = watch.end().await.unwrap();
    assert_eq!(given, 1, "what was told before the end is looked at");
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    assert!(text.contains("\"cause\":\"context_overflow\""), "{text}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let error = Watch::start(rules(), &gone, Besides::Nothing, fast()).unwrap_err();
    assert!(
        format!("{error:#}").contains("gone/watch.jsonl"),
        "{error:#}"
    );
}
