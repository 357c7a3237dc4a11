//! By which command lines an experiment was played, as its manifest has them.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Playing, experiment, json, place, replay, said};

/// Resumes; whether it was played to its end.
fn resume(dir: &Path) -> bool {
    let resumed = experiment(&format!("resume {} --quiet", dir.display()));
    let done = resumed.status.success();
    assert!(done || said(&resumed).contains("preflight found errors"));
    done
}

/// Changes the text of a file.
fn edit(path: &Path, change: impl FnOnce(&str) -> String) {
    let text = fs::read_to_string(path).expect("a file");
    fs::write(path, change(&text)).expect("written");
}

/// What each of these command lines told the experiment to do.
fn verbs(lines: &Value) -> Vec<&str> {
    let lines = lines.as_array().expect("a list");
    lines
        .iter()
        .map(|line| line[2].as_str().expect("a word"))
        .collect()
}

#[test]
fn the_first_command_outlives_an_older_state_and_a_resume_that_its_preflight_ends_is_not_noted() {
    let (_temp, dir) = place();
    let line = replay("run", 8, 60, &dir) + " --concurrency 2";
    let mut playing = Playing::start(&line, &dir);
    playing.until_ended("kvgate-c2", 1);
    playing.signal(Signal::INT);
    assert_eq!(playing.end(), Some(1));
    let (spec, state) = (dir.join("experiment.toml"), dir.join("state.json"));

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("an address").to_string();
    edit(&spec, |text| text.replace("127.0.0.1:0", &at));
    assert!(!resume(&dir), "the port is taken");
    assert_eq!(verbs(&json(&state).expect("a state")["commands"]), ["run"]);

    edit(&spec, |text| text.replace(&at, "127.0.0.1:0"));
    edit(&state, |text| {
        let mut state: Value = serde_json::from_str(text).expect("JSON");
        let commands = state.as_object_mut().expect("a state").remove("commands");
        assert!(commands.is_some(), "an older kvgate wrote none");
        state.to_string()
    });
    assert!(resume(&dir));

    let manifest = json(&dir.join("manifest.json")).expect("a manifest");
    assert_eq!(manifest["command"][2], "run", "{manifest}");
    assert_eq!(verbs(&manifest["resumed_by"]), ["resume"]);
    let commands = &json(&state).expect("a state")["commands"];
    assert_eq!(verbs(commands), ["run", "resume"]);
}
