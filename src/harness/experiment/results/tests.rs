use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use serde_json::json;

use super::*;
use crate::harness::rundir::{Ending, ProgramRecord};
use crate::telemetry::StepRecord;

type Row = BTreeMap<String, Field>;

/// The table that a run directory leads to.
fn table(dir: &Path) -> Vec<Row> {
    let rows = write(dir).unwrap();
    let file = File::open(dir.join("results.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let read: Vec<Row> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().into_columns().into_iter().collect())
        .collect();
    assert_eq!(rows, read.len());
    assert!(!dir.join(".results.part").exists());
    read
}

fn text(value: &str) -> Field {
    Field::Str(value.to_owned())
}

#[track_caller]
fn assert_row(row: &Row, expected: &[(&str, Field)]) {
    for (name, value) in expected {
        assert_eq!(&row[*name], value, "{name}");
    }
}

fn lines(dir: &Path, file: &str, lines: &[serde_json::Value]) {
    let mut out = File::create(dir.join(file)).unwrap();
    for line in lines {
        writeln!(out, "{line}").unwrap();
    }
}

/// A request of `program` that was held for a second and served for two.
fn step(program: &str, at_s: f64) -> StepRecord {
    StepRecord {
        program: Some(program.to_owned()),
        arrived_s: at_s,
        admitted_s: Some(at_s + 1.0),
        finished_s: at_s + 3.0,
        hold_s: 1.0,
        hold_reason: Some("no_room".to_owned()),
        ttft_backend_s: Some(0.5),
        prompt_tokens: Some(100),
        output_tokens: Some(10),
        outcome: "stop".to_owned(),
        status: 200,
        ..StepRecord::default()
    }
}

fn steps(dir: &Path, file: &str, steps: &[StepRecord]) {
    let values: Vec<_> = steps.iter().map(|step| json!(step)).collect();
    lines(dir, file, &values);
}

fn reward(task: &str, attempt: u32, failure: Option<&str>, last_word: bool) -> serde_json::Value {
    json!({
        "domain": "retail", "task_id": task, "trial": 0, "seed": 7, "attempt": attempt,
        "job_id": format!("tau2:retail:{task}:{attempt}"), "started_s": 10.0, "finished_s": 40.0, "elapsed_s": 30.0,
        "reward": failure.is_none().then_some(1.0), "termination": failure.is_none().then_some("user_stop"),
        "failure": failure.map(|cause| json!({"cause": cause, "error": "e"})),
        "steps": 12, "llm_calls": 9, "duration_ms": 30000.0, "last_word": last_word,
    })
}

/// Three units: one played at the second attempt, one failed, one stopped.
fn tau2_run() -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let rewards = [
        reward("0", 1, Some("llm"), false),
        reward("1", 1, Some("context_overflow"), true),
        reward("2", 1, Some("stopped"), false),
        reward("0", 2, None, true),
    ];
    lines(dir.path(), "rewards.jsonl", &rewards);
    let failed = StepRecord {
        outcome: "context_overflow".to_owned(),
        status: 400,
        prompt_tokens: None,
        output_tokens: None,
        ..step("tau2:retail:1:1", 11.0)
    };
    let requests = [
        step("tau2:retail:0:1", 11.0),
        step("tau2:retail:0:2", 20.0),
        step("tau2:retail:0:2", 30.0),
        failed,
    ];
    steps(dir.path(), "steps.jsonl", &requests);
    table(dir.path())
}

#[test]
fn a_unit_of_tau2_is_one_row_its_last_attempt_with_what_that_cost() {
    let rows = tau2_run();
    assert_eq!(rows.len(), 3);
    assert_row(
        &rows[0],
        &[
            ("program", text("tau2:retail:0:2")),
            ("kind", text("retail")),
            ("task", text("0")),
            ("trial", Field::Long(0)),
            ("seed", Field::Long(7)),
            ("attempt", Field::Long(2)),
            ("status", text("ok")),
            ("reward", Field::Double(1.0)),
            ("cause", Field::Null),
            ("termination", text("user_stop")),
            ("started_s", Field::Double(10.0)),
            ("duration_s", Field::Double(30.0)),
            ("steps", Field::Long(12)),
            ("llm_calls", Field::Long(9)),
            ("requests", Field::Long(2)),
            ("requests_failed", Field::Long(0)),
            ("prompt_tokens", Field::Long(200)),
            ("cached_tokens", Field::Null),
            ("output_tokens", Field::Long(20)),
            ("held", Field::Long(2)),
            ("held_s", Field::Double(2.0)),
            ("first_token_s", Field::Double(1.0)),
            ("served_s", Field::Double(4.0)),
            ("gap_s", Field::Null),
        ],
    );
    assert_row(
        &rows[1],
        &[
            ("status", text("error")),
            ("reward", Field::Null),
            ("cause", text("context_overflow")),
            ("requests_failed", Field::Long(1)),
            ("prompt_tokens", Field::Null),
        ],
    );
    assert_row(
        &rows[2],
        &[
            ("status", text("unfinished")),
            ("requests", Field::Null),
            ("held_s", Field::Null),
        ],
    );
}

#[test]
fn a_replay_without_a_gate_knows_nothing_of_holds() {
    let dir = tempfile::tempdir().unwrap();
    let record = |program: &str, ending| ProgramRecord {
        program: program.to_owned(),
        kind: "swe".to_owned(),
        started_s: 1.0,
        finished_s: 5.0,
        steps: 1,
        errors: 0,
        ending,
        cause: (ending == Ending::Failed).then(|| "500".to_owned()),
    };
    let endings = [Ending::Done, Ending::Failed, Ending::Cancelled];
    let records: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .zip(endings)
        .map(|(program, ending)| json!(record(program, ending)))
        .collect();
    lines(dir.path(), "programs.jsonl", &records);
    let request = StepRecord {
        admitted_s: None,
        tool_gap_s: Some(0.25),
        ..step("a", 1.0)
    };
    steps(dir.path(), "client_steps.jsonl", &[request]);
    let rows = table(dir.path());
    let statuses: Vec<_> = rows.iter().map(|row| row["status"].clone()).collect();
    assert_eq!(statuses, [text("ok"), text("error"), text("unfinished")]);
    assert_row(
        &rows[0],
        &[
            ("program", text("a")),
            ("task", Field::Null),
            ("reward", Field::Null),
            ("steps", Field::Long(1)),
            ("held_s", Field::Null),
            ("served_s", Field::Double(3.0)),
            ("gap_s", Field::Double(0.25)),
        ],
    );
    assert_eq!(rows[1]["cause"], text("500"));
}

#[test]
fn the_references_driver_names_its_tasks_and_the_gate_what_they_cost() {
    let fixture =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/real-driver-run");
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("outputs/all_domains");
    fs::create_dir_all(&results).unwrap();
    for entry in fs::read_dir(fixture.join("outputs/all_domains")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, results.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(fixture.join("driver.log"), dir.path().join("driver.log")).unwrap();
    let requests = [
        step("tau2:retail:0:0a", 11.0),
        step("tau2:retail:1:0a", 11.0),
        step("tau2:retail:1:0b", 11.0),
    ];
    steps(dir.path(), "steps.jsonl", &requests);
    let rows = table(dir.path());
    assert_eq!(rows.len(), fs::read_dir(&results).unwrap().count());
    let row = |kind: &str, task: &str| {
        let of = |row: &&Row| row["kind"] == text(kind) && row["task"] == text(task);
        rows.iter().find(of).unwrap()
    };
    assert_row(
        row("retail", "0"),
        &[
            ("program", text("tau2:retail:0:0a")),
            ("seed", Field::Null),
            ("started_s", Field::Double(11.0)),
            ("duration_s", Field::Double(3.0)),
            ("prompt_tokens", Field::Long(100)),
        ],
    );
    let several = row("retail", "1");
    assert_eq!(several["program"], Field::Null, "two bear its name");
    let failed = rows.iter().filter(|row| row["status"] == text("error"));
    for row in failed {
        assert!(matches!(row["cause"], Field::Str(_)), "{row:?}");
        assert_eq!(row["reward"], Field::Null);
    }
    let played = |row: &&Row| matches!(row["steps"], Field::Long(steps) if steps > 0);
    assert!(
        rows.iter()
            .any(|row| row["status"] == text("ok") && played(&row))
    );
}

#[test]
fn a_directory_without_tasks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = write(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("nothing says which tasks were played"),
        "{error}"
    );
    fs::write(dir.path().join("programs.jsonl"), "").unwrap();
    assert_eq!(
        table(dir.path()),
        [] as [Row; 0],
        "a run with none has an empty table"
    );
}
