//! What goes wrong in the middle of a run is seen, told once with its cause, and played again by `resume`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Playing, cell_of, ended, experiment, json, kvgate, lines, log, logged, place, replay, said,
    send, until_gone,
};

const CELL: &str = "kvgate-c2";

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
    let told = |value: &Value| value.as_str().is_some_and(|text| text.contains(cause));
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
    let line = replay("matrix", 4, 100, &dir) + " --concurrency 2 --policy kvgate,thunderagent";
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

/// A server that lists a model; it answers every second other request with status 500 and never answers the rest.
fn expert() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut unanswered = Vec::new();
        let mut asked = 0;
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let mut first = String::new();
            if reader.read_line(&mut first).is_err() {
                continue;
            }
            let mut answer = ("200 OK", r#"{"data":[{"id":"expert"}]}"#);
            if !first.starts_with("GET") {
                asked += 1;
                if asked % 2 == 0 {
                    unanswered.push(reader);
                    continue;
                }
                answer = ("500 Internal Server Error", r#"{"error":{"message":"no"}}"#);
            }
            let (status, body) = answer;
            read_the_rest(&mut reader);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: \
                 {length}\r\n\r\n{body}"
            );
            // The client may be gone.
            drop(reader.get_mut().write_all(answer.as_bytes()));
        }
    });
    format!("http://{address}/v1")
}

/// Headers, and the body that they announce.
fn read_the_rest(reader: &mut BufReader<TcpStream>) {
    let mut length = 0;
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok() && line.trim() != "" {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
}

#[test]
fn an_expert_that_fails_or_never_answers_is_counted_by_cause() {
    let (temp, dir) = place();
    let file = temp.path().join("experts.toml");
    let routes = format!(
        "[gate]\nfirst_byte_timeout = 0.5\n[routes.qwen3-8b]\nurls = [\"{}\"]\nrole = \"expert\"\n",
        expert()
    );
    fs::write(&file, routes).expect("a file");
    let line = replay("run", 2, 60, &dir) + " --concurrency 1 --config ";
    let run = experiment(&(line + &file.display().to_string()));
    assert!(run.status.success(), "{}", said(&run));
    assert_eq!(
        logged(&dir, "2 failed (504 Gateway Timeout 2)"),
        1,
        "{}",
        log(&dir)
    );
    let end = ended(&dir);
    assert_eq!(end["counts"]["failed_504 Gateway Timeout"], 2, "{end}");
    let steps = lines(&dir.join("steps.jsonl"));
    let with = |status: u64, outcome: &str| {
        let is = |step: &&Value| step["status"] == status && step["outcome"] == outcome;
        steps.iter().filter(is).count()
    };
    // Each of the two programs tries four times.
    assert_eq!(
        (with(500, "failed"), with(504, "backend_timeout")),
        (4, 4),
        "{steps:?}"
    );
    assert!(
        steps.iter().all(|step| step["role"] == "expert"),
        "{steps:?}"
    );
    let report = fs::read_to_string(dir.join("report.md")).expect("a report");
    for cause in [
        "route qwen3-8b: backend_timeout (504)",
        "route qwen3-8b: failed (500)",
    ] {
        let row = report.lines().find(|line| line.contains(cause));
        assert!(
            row.is_some_and(|row| row.ends_with("|     4 |")),
            "{report}"
        );
    }
}

#[test]
fn the_time_zone_of_the_machine_changes_no_figure() {
    let (temp, dir) = place();
    let far = ("TZ", "America/Los_Angeles");
    let run = kvgate(&format!(
        "experiment {}",
        replay("run", 4, 150, &dir) + " --kv-blocks 1700"
    ))
    .envs([far])
    .output();
    let run = run.expect("kvgate runs");
    assert!(run.status.success(), "{}", said(&run));
    let zone = json(&dir.join("manifest.json")).expect("a manifest");
    assert!(zone.to_string().contains("America/Los_Angeles"), "{zone}");

    let report = |zone: &str| {
        let out = temp.path().join(zone.replace('/', "-"));
        let line = format!(
            "report {} --allow-incomplete --out {}",
            dir.display(),
            out.display()
        );
        let run = kvgate(&line).env("TZ", zone).output();
        let run = run.expect("kvgate runs");
        assert!(run.status.success(), "{}", said(&run));
        let files = ["report.md", "report.json"].map(|file| fs::read(out.join(file)));
        files.map(|file| file.expect("a report"))
    };
    let here = report("UTC");
    assert_eq!(here, report(far.1));
    let own = fs::read(dir.join("report.md")).expect("its own");
    assert_eq!(here[0], own, "written in that zone");
}

#[test]
fn a_run_without_a_summary_is_whole_if_its_manifest_says_that_it_was_played_to_its_end() {
    let (_temp, dir) = place();
    let run = experiment(&replay("run", 2, 150, &dir));
    assert!(run.status.success(), "{}", said(&run));
    // As tau2-bench leaves it.
    fs::remove_file(dir.join("summary.json")).expect("a summary");
    let report = || {
        said(
            &kvgate(&format!("report {}", dir.display()))
                .output()
                .expect("kvgate runs"),
        )
    };
    assert!(!report().contains("was killed"), "{}", report());

    let manifest = dir.join("manifest.json");
    let mut killed = json(&manifest).expect("a manifest");
    killed["ended"] = Value::Null;
    fs::write(&manifest, killed.to_string()).expect("a manifest");
    assert!(report().contains("was killed"), "{}", report());
}
