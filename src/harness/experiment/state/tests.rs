//! Stories of `state.json`.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn keeper(dir: &Path) -> Keeper {
    let cells = vec![Cell::planned("a", "a", 4), Cell::planned("b", "b", 4)];
    Keeper::new(dir, State::begin(100.0, cells).unwrap())
}

fn read(dir: &Path) -> State {
    State::read(dir).unwrap().unwrap()
}

#[test]
fn what_counts_up_is_written_once_a_second_and_what_begins_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(dir.path());
    assert_eq!(keeper.update(100.0, |_| {}), None);
    let step = |at: f64| move |state: &mut State| state.last_step_s = Some(at);
    assert_eq!(keeper.update(100.9, step(100.9)), None);
    assert_eq!(read(dir.path()).last_step_s, None, "within the second");
    let begin = |state: &mut State| state.cells[0].status = CellStatus::Running;
    assert_eq!(keeper.update(100.95, begin), None);
    assert_eq!(read(dir.path()).last_step_s, Some(100.9), "a cell began");
    assert_eq!(read(dir.path()).current().unwrap().name, "a");
    keeper.update(101.0, |state| state.phase = Phase::Playing);
    assert_eq!(read(dir.path()).phase, Phase::Playing);
    keeper.update(101.9, step(101.9));
    assert_eq!(read(dir.path()).last_step_s, Some(100.9));
    keeper.update(102.0, step(102.0));
    assert_eq!(read(dir.path()).last_step_s, Some(102.0));
    assert_eq!(read(dir.path()), *keeper.state());
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_it() {
    assert!(is_due(None, 5.0));
    assert!(is_due(Some(5.0), 6.0) && !is_due(Some(5.0), 5.5));
    assert!(is_due(Some(5.0), 4.0));
}

#[test]
fn a_full_disk_is_said_once_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(dir.path());
    // Takes nothing: every write is refused with "no space left on device".
    let part = dir.path().join("state.part");
    symlink("/dev/full", &part).unwrap();
    let said = keeper.update(1.0, |_| {}).unwrap();
    assert!(
        said.contains("state.json") && said.contains("No space left"),
        "{said}"
    );
    assert_eq!(keeper.update(2.0, |_| {}), None, "said once");
    fs::remove_file(&part).unwrap();
    let said = keeper.update(3.0, |_| {}).unwrap();
    assert!(said.contains("written again"), "{said}");
    assert_eq!(keeper.update(4.0, |_| {}), None);
    assert!((read(dir.path()).updated_s - 4.0).abs() < 1e-9);
}

#[test]
fn a_damaged_state_is_an_error_with_a_remedy_and_a_missing_one_is_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(State::read(dir.path()).unwrap(), None);
    keeper(dir.path()).update(1.0, |_| {});
    let whole = fs::read_to_string(dir.path().join(FILE)).unwrap();
    for damaged in ["", "null", whole.split_once("cells").unwrap().0] {
        fs::write(dir.path().join(FILE), damaged).unwrap();
        let error = format!("{:#}", State::read(dir.path()).unwrap_err());
        assert!(
            error.contains("state.json is damaged") && error.contains("resume"),
            "{error}"
        );
    }
}

#[test]
fn a_state_of_an_older_kvgate_reads() {
    let text = r#"{"kvgate":"0.1.0","process":{"pid":1,"started_ticks":2,"boot":"b"},"began_s":1.0,
        "updated_s":2.0,"phase":"playing","log":"experiment.log","cells":[{"name":"a","status":"done"}]}"#;
    let state: State = serde_json::from_str(text).unwrap();
    assert_eq!(state.cells[0].over(), 0);
}
