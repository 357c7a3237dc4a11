//! What would end the first cell is told before anything is played.

use std::fs;
use std::path::Path;

use crate::support::{kvgate, place, replay, said};

/// What `--check` of recorded programs says of an experiment file with this text; exit status and words.
fn checked(folder: &Path, text: &str) -> (Option<i32>, String) {
    let file = folder.join("mine.toml");
    fs::write(&file, text).expect("a file");
    let line = replay("matrix", 2, 60, &folder.join("run"));
    let line = format!("experiment {line} --check --config {}", file.display());
    // Settings of whoever runs it do not reach the gate of an experiment.
    let run = kvgate(&line).env("KVGATE_MAX_BODY", "0").output();
    let run = run.expect("kvgate runs");
    (run.status.code(), said(&run))
}

#[test]
fn what_the_gate_cannot_be_configured_by_is_told_in_the_words_of_kvgate_config() {
    let (temp, _dir) = place();
    for (text, words) in [
        ("[gate]\nprogram_idel = 5.0", "unknown field `program_idel`"),
        (
            "[gate]\nsample_interval = 0.01",
            "sample_interval: 0.01 is out of range; write seconds, from 0.1",
        ),
        ("[gate]\nmax_body = \"big\"", "invalid type: string \"big\""),
        // Of a policy that is not played, too.
        (
            "[gate.continuum]\nttl = 2.0",
            "policy continuum: unknown field `ttl`",
        ),
        (
            "[routes.m]\nurls = [\"x\"]",
            "routes.\"m\": urls, number 1: it is no URL",
        ),
        (
            "[routes.m]\nstand_in = \"nobody\"",
            "there is no preset \"nobody\"",
        ),
    ] {
        let (code, said) = checked(temp.path(), text);
        let line = said.lines().find(|line| line.contains(words));
        let line = line.unwrap_or_else(|| panic!("{words} is not in\n{said}"));
        assert!(line.contains("error") && line.contains("[gate]"), "{line}");
        assert!(!line.contains("stdin"), "{line}");
        assert_eq!(code, Some(1), "{said}");
    }
    assert!(!temp.path().join("run").exists(), "nothing is left behind");
}

#[test]
fn a_key_that_is_not_set_is_told_once_and_hides_nothing_else() {
    let (temp, _dir) = place();
    let text = "[gate]\nmax_programs = 0\n[routes.m]\nstand_in = \"user\"\n\
                [routes.n]\nurls = [\"http://127.0.0.1:9\"]\napi_key_env = \"NO_SUCH_KEY_OF_A_TEST\"";
    let (code, said) = checked(temp.path(), text);
    assert_eq!(said.matches("NO_SUCH_KEY_OF_A_TEST").count(), 1, "{said}");
    assert!(said.contains("max_programs: 0 would refuse"), "{said}");
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn a_gate_that_can_be_configured_is_no_problem_and_without_a_gate_nobody_asks() {
    let (temp, _dir) = place();
    let good = "[gate]\nprogram_idle = 3600\n[gate.continuum]\nttl_fixed_s = 2.0\n\
                [routes.\"gpt-5\"]\nstand_in = \"user\"";
    assert_eq!(checked(temp.path(), good).0, Some(0));
    let ungated = "policy = [\"direct\"]\n[gate]\nno_such_key = 1";
    let (code, said) = checked(temp.path(), ungated);
    assert_eq!(code, Some(0), "{said}");
}
