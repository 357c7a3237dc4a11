//! What goes wrong in the middle of a run is seen, told once with its cause, and played again by `resume`.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::{
    Playing, cell_of, ended, experiment, json, kvgate, lines, log, logged, place, replay, said,
    send, until_gone,
};

const CELL: &str = "baseline-c2";

/// Plays a cell until its first task has ended, sends `signal` to the process that is a `role`, and waits for the end.
fn hit(dir: &Path, more: &str, role: &str, signal: Signal) {
    let line = replay("run", 8, 60, dir) + " --concurrency 2 " + more;
    let mut playing = Playing::start(&line, dir);
    playing.until_ended(CELL, 1);
    let children = playing.children();
    send(children[role], signal);
    assert_eq!(playing.end(), Some(1), "{}", log(dir));
    until_gone(children.into_values());
}

/// The cell ended with this cause: in its manifest, in the state and on the console; and `resume` plays it.
fn assert_failed_and_goes_on(dir: &Path, cause: &str) {
    let end = ended(dir);
    assert_eq!(end["outcome"], "failed", "{end}");
    let told = |value: &serde_json::Value| value.as_str().is_some_and(|text| text.contains(cause));
    assert!(told(&end["cause"]), "{end}");
    let state = json(&dir.join("state.json")).expect("a state");
    let cell = cell_of(&state, CELL).expect("the cell");
    assert_eq!(
        (&state["phase"], &cell["status"]),
        (&"failed".into(), &"failed".into())
    );
    assert!(told(&cell["cause"]), "{cell}");
    let lines = log(dir);
    let told = lines.lines().filter(|line| line.contains("[1/1]"));
    assert!(told.clone().any(|line| line.contains(cause)), "{lines}");
    assert_eq!(told.count(), 1, "{lines}");

    let resumed = experiment(&format!("resume {} --quiet", dir.display()));
    assert!(resumed.status.success(), "{}", said(&resumed));
    assert_eq!(ended(dir)["outcome"], "done");
}

#[test]
fn an_engine_that_stops_answering_is_seen_by_the_watchdog() {
    let (_temp, dir) = place();
    hit(&dir, "--cell-stop-s 240", "engine", Signal::STOP);
    let alarm = lines(&dir.join("watch.jsonl"));
    assert_eq!(alarm.len(), 1, "{alarm:?}");
    assert_failed_and_goes_on(&dir, "the watchdog: ");
}

#[test]
fn an_engine_that_dies_is_named() {
    let (_temp, dir) = place();
    hit(&dir, "", "engine", Signal::KILL);
    assert_failed_and_goes_on(&dir, "the engine: ");
}

#[test]
fn what_ends_one_cell_of_a_matrix_ends_no_other() {
    let (_temp, dir) = place();
    let line = replay("matrix", 4, 100, &dir) + " --concurrency 2 --policy baseline,thunderagent";
    let mut playing = Playing::start(&line, &dir);
    playing.until_ended(CELL, 1);
    send(playing.children()["engine"], Signal::KILL);

    assert_eq!(playing.end(), Some(1), "{}", log(&dir));

    let outcome = |cell: &str| ended(&dir.join("cells").join(cell))["outcome"].clone();
    assert_eq!(outcome(CELL), "failed");
    assert_eq!(outcome("thunderagent-c2"), "done");
    let left = format!("not played to the end: {CELL}; ");
    assert_eq!(logged(&dir, &left), 1, "{}", log(&dir));
}

#[test]
fn a_gate_that_dies_is_named() {
    let (_temp, dir) = place();
    hit(&dir, "", "serve", Signal::KILL);
    assert_failed_and_goes_on(&dir, "the gate: ");
}

#[test]
fn a_model_that_the_engine_does_not_serve_is_told_before_anything_is_played() {
    let (_temp, dir) = place();
    let shown = dir.display();
    let engine =
        crate::server::Server::start(&mut kvgate("engine --listen 127.0.0.1:0 --model tiny"));
    let run = experiment(&format!(
        "run --workload replay --tasks 2 --listen 127.0.0.1:0 --backend {} --served-model huge --out {shown}",
        engine.url
    ));
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    let line = "does not serve \"huge\" but [\"tiny\"]";
    assert_eq!(logged(&dir, line), 1, "{}", log(&dir));
    assert!(!dir.join("manifest.json").exists());
}

#[test]
fn a_trace_that_is_missing_is_told_in_one_line_and_nothing_is_made() {
    let (_temp, dir) = place();
    let line = replay("run", 2, 60, &dir) + " --trace missing.jsonl";
    let run = experiment(&line);
    assert_eq!(run.status.code(), Some(2));
    let complaint = said(&run);
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.contains("missing.jsonl"), "{complaint}");
    assert!(!dir.exists());
}

#[test]
fn a_port_that_is_taken_is_told_by_the_preflight() {
    let (_temp, dir) = place();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let run = experiment(&format!(
        "run --workload replay --tasks 2 --listen {address} --out {}",
        dir.display()
    ));
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(logged(&dir, &address.to_string()), 1, "{}", log(&dir));
}

/// A bound on the size of a file stands in for a full disk, which a test cannot have everywhere: the same write fails.
#[test]
fn a_disk_that_is_full_is_told_with_the_file_and_the_run_goes_on_later() {
    let (_temp, dir) = place();
    let line = replay("run", 8, 150, &dir) + " --concurrency 2";
    let bounded = format!(
        "trap '' XFSZ; ulimit -f 32; exec '{}' experiment {line}",
        env!("CARGO_BIN_EXE_kvgate")
    );
    let run = Command::new("sh").args(["-c", &bounded]).output();
    let run = run.expect("a shell");
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    assert_failed_and_goes_on(&dir, "client_steps.jsonl: File too large");
}
