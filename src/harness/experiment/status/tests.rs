//! Stories of `status`.

use std::fs;

use super::view::pace;
use super::*;
use crate::harness::experiment::state::{Cell, CellStatus, FILE, Keeper, Phase};

/// An experiment of three cells: one done, one being played, one planned.
fn state() -> State {
    let mut cells: Vec<Cell> = ["baseline_c8", "thunder_c8", "continuum_c8"]
        .iter()
        .map(|name| Cell::planned(*name, *name, 100))
        .collect();
    cells[0].status = CellStatus::Done;
    cells[0].ok = 100;
    (cells[0].started_s, cells[0].ended_s) = (Some(1_000.0), Some(1_600.0));
    cells[0].figures = Some("10.00 tasks/min".to_owned());
    cells[1].status = CellStatus::Running;
    (cells[1].ok, cells[1].failed, cells[1].over_before) = (38, 2, 20);
    cells[1].started_s = Some(1_600.0);
    let mut state = State::begin(1_000.0, cells).unwrap();
    state.phase = Phase::Playing;
    state.last_step_s = Some(1_798.0);
    state.last_task_s = Some(1_786.0);
    state
}

fn write(dir: &Path, state: State, now_s: f64) {
    assert_eq!(Keeper::new(dir, state).update(now_s, |_| {}), None);
}

fn shown(dir: &Path, now_s: f64) -> Shown {
    show(&[dir.to_owned()], now_s, false).unwrap()
}

#[test]
fn the_pace_is_that_of_this_run_and_not_of_tasks_played_before() {
    let pace = pace(&state(), 1_800.0).unwrap();
    // 20 tasks in 200 s, and 60 to go.
    assert!((pace.tasks_per_min - 6.0).abs() < 1e-9);
    assert!((pace.cell_eta_s - 600.0).abs() < 1e-9);
    // 120 tasks in 800 s, and 160 to go.
    assert!((pace.eta_s.unwrap() - 160.0 / 0.15).abs() < 1e-6);
}

#[test]
fn without_a_finished_task_or_a_known_total_there_is_no_guess() {
    let mut young = state();
    young.cells[1].over_before = 40;
    assert_eq!(pace(&young, 1_800.0), None);
    let mut unknown = state();
    unknown.cells[2].total = 0;
    assert_eq!(pace(&unknown, 1_800.0).unwrap().eta_s, None);
    let mut over = state();
    over.cells[1].status = CellStatus::Done;
    assert_eq!(pace(&over, 1_800.0), None);
}

#[test]
fn a_running_experiment_shows_who_how_far_how_fast_and_when_something_last_happened() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), state(), 1_800.0);
    let cell = dir.path().join("thunder_c8");
    fs::create_dir(&cell).unwrap();
    let sample = |ts: u32, usage: f64| {
        format!(
            r#"{{"ts":{ts},"backend":"http://b","kv_usage":{usage},"running":31,"waiting":0,"held":4,"policy":{{}}}}"#
        )
    };
    let samples = format!(
        "{}\n{}\n{}",
        sample(1, 0.1),
        sample(2, 0.819),
        sample(3, 0.9)
    );
    fs::write(cell.join("kv_samples.jsonl"), samples).unwrap();
    let alarm = r#"{"at_s":1740.0,"program":"tau2:retail:1","level":"warn","cause":"program_silent","since_s":1.0}"#;
    fs::write(cell.join("watch.jsonl"), format!("{alarm}\n")).unwrap();
    let shown = shown(dir.path(), 1_800.0);
    assert!(shown.runs && shown.code == 0);
    let pid = std::process::id();
    for part in [
        &format!("playing, by process {pid} for 13 min"),
        "cell 2 of 3, thunder_c8: 40/100 tasks, 6.00 tasks/min, ETA 10 min; everything in 17 min",
        "last step 2 s ago, last task 14 s ago",
        "KV 81.9 %, 31 running, 0 waiting, 4 held (http://b)",
        "watchdog, 60 s ago: tau2:retail:1 was served no step for 1739 s",
        "experiment.log",
        "| baseline_c8  | done    | 100/100 | 100 |      0 | 10 min | 10.00 tasks/min |",
        "| continuum_c8 | planned |",
    ] {
        assert!(
            shown.text.contains(part),
            "{part:?} is not in\n{}",
            shown.text
        );
    }
}

#[test]
fn a_process_that_ended_without_a_word_is_dead_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let mut dead = state();
    dead.process.started_ticks += 1;
    write(dir.path(), dead.clone(), 1_800.0);
    let told = shown(dir.path(), 5_400.0);
    assert_eq!((told.code, told.runs), (BAD, false));
    assert!(
        told.text
            .contains("has ended without a word; last heard of 60 min ago, playing"),
        "{}",
        told.text
    );
    assert!(
        told.text.contains("experiment resume") && told.text.contains("cut off"),
        "{}",
        told.text
    );
    assert!(!told.text.contains("ETA"), "{}", told.text);
    dead.process.boot = "another".to_owned();
    write(dir.path(), dead, 1_800.0);
    assert!(shown(dir.path(), 5_400.0).text.contains("restarted"));
}

#[test]
fn how_it_ended_is_the_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    for (phase, code, word) in [
        (Phase::Done, 0, "done in 13 min"),
        (Phase::Failed, BAD, "failed after 13 min: the engine died"),
        (Phase::Interrupted, BAD, "interrupted after 13 min"),
    ] {
        let mut state = state();
        state.phase = phase;
        state.cause = (phase == Phase::Failed).then(|| "the engine died".to_owned());
        write(dir.path(), state, 1_800.0);
        let shown = shown(dir.path(), 1_900.0);
        assert_eq!((shown.code, shown.runs), (code, false), "{word}");
        assert!(
            shown.text.contains(word),
            "{word:?} is not in\n{}",
            shown.text
        );
    }
}

#[test]
fn what_is_no_experiment_or_damaged_is_said_and_the_others_are_shown() {
    let (good, bad, damaged) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    write(good.path(), state(), 1_800.0);
    fs::write(damaged.path().join(FILE), "{\"kvg").unwrap();
    let dirs = [bad.path(), damaged.path(), good.path()].map(Path::to_owned);
    let text = show(&dirs, 1_800.0, false).unwrap();
    assert_eq!(text.code, NOT_ONE);
    for part in ["is no experiment", "state.json is damaged", "thunder_c8"] {
        assert!(text.text.contains(part), "{}", text.text);
    }
    let json = show(&dirs, 1_800.0, true).unwrap();
    let views: serde_json::Value = serde_json::from_str(&json.text).unwrap();
    assert_eq!(views.as_array().unwrap().len(), 1);
    assert_eq!(views[0]["verdict"], "running");
    assert_eq!(views[0]["state"]["cells"][1]["ok"], 38);
}

#[test]
fn the_newest_experiment_is_the_one_that_began_last() {
    let runs = tempfile::tempdir().unwrap();
    assert_eq!(newest(&runs.path().join("none")).unwrap(), None);
    assert_eq!(newest(runs.path()).unwrap(), None);
    for (name, began_s) in [("a", 2.0), ("b", 1.0)] {
        let dir = runs.path().join(name);
        fs::create_dir(&dir).unwrap();
        let mut state = state();
        state.began_s = began_s;
        write(&dir, state, 3.0);
    }
    fs::create_dir(runs.path().join("a run of another kind")).unwrap();
    assert_eq!(newest(runs.path()).unwrap(), Some(runs.path().join("a")));
}

#[test]
fn spans_have_the_unit_that_fits() {
    let spans = [-3.0, 14.4, 119.0, 720.0, 18_720.0, 273_600.0].map(text::span);
    assert_eq!(
        spans,
        ["0 s", "14 s", "119 s", "12 min", "5 h 12 min", "3 d 4 h"]
    );
}
