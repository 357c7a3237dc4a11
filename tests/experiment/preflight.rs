//! What would end the first cell is told before anything is played.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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
                [routes.n]\nurls = [\"http://127.0.0.1:9\"]\napi_key_env = \"NO_SUCH_KEY_OF_A_TEST\"\n\
                ca_file = \"no-such.pem\"";
    let (code, said) = checked(temp.path(), text);
    assert!(said.contains("no-such.pem: no such file"), "{said}");
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

/// What `--check` of a run with these flags says.
fn checked_run(flags: &str) -> (Option<i32>, String) {
    let line = format!("experiment run --listen 127.0.0.1:0 --check {flags}");
    let run = kvgate(&line).output().expect("kvgate runs");
    (run.status.code(), said(&run))
}

#[test]
fn a_domain_that_does_not_exist_or_is_named_twice_is_refused_with_those_that_do() {
    let (code, said) = checked_run("--domains retail,reatil");
    let words = "kvgate: --domains: unknown domain \"reatil\"; there are retail, telecom, airline";
    assert_eq!((code, said.trim()), (Some(2), words));
    let (code, said) = checked_run("--domains retail,retail");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("\"retail\" is named twice"), "{said}");
}

#[test]
fn a_folder_that_is_no_checkout_of_tau2_or_of_the_fork_is_told() {
    let (temp, _dir) = place();
    let folder = temp.path().display();
    let (code, said) = checked_run(&format!("--tau2-path {folder}"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is no checkout of tau2-bench"), "{said}");
    let (code, said) = checked_run(&format!("--oss-path {folder} --domains airline,bank"));
    assert_eq!(code, Some(1), "{said}");
    for words in [
        "lacks evaluation/tau2-bench/run_oss.py",
        "lacks data/tau2/domains/airline/original_tasks.json",
        "run_oss.py has no domain bank",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (_, said) = checked_run(&format!("--tau2-path {folder}/none"));
    assert_eq!(said.matches("none").count(), 1, "told once: {said}");
}

/// An executable file with this script of the shell.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("a file");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).expect("its mode");
}

#[test]
fn a_python_without_tau2_is_told_but_where_a_checkout_brings_it() {
    let (temp, _dir) = place();
    let python = temp.path().join("python");
    script(
        &python,
        "for name; do [ \"$name\" = tau2 ] && echo tau2; done; exit 0",
    );
    let flags = format!("--tau2-python {}", python.display());
    let (code, said) = checked_run(&flags);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it lacks tau2"), "{said}");
    let checkout = temp.path().display();
    let (_, said) = checked_run(&format!("{flags} --tau2-path {checkout}"));
    assert!(!said.contains("it lacks"), "{said}");
}

#[test]
fn a_host_that_ssh_cannot_log_in_to_is_told_in_the_words_of_ssh() {
    let (temp, _dir) = place();
    let ssh = temp.path().join("ssh");
    let flags = format!(
        "--workload replay --tasks 2 --ssh far --ssh-arg=-Jgateway --ssh-program {}",
        ssh.display()
    );
    script(
        &ssh,
        "echo \"$@\" >>\"$0.asked\"; echo ssh: no route to far >&2; exit 255",
    );
    let (code, said) = checked_run(&flags);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ssh: no route to far"), "{said}");
    let asked = fs::read_to_string(temp.path().join("ssh.asked")).expect("it was asked");
    assert!(asked.starts_with("-Jgateway -o BatchMode=yes"), "{asked}");
    assert!(asked.ends_with("far true\n"), "{asked}");

    // Whoever may only open tunnels cannot run a command there, and is in all the same.
    script(&ssh, "echo no shell for you >&2; exit 1");
    let (code, said) = checked_run(&flags);
    assert_eq!(code, Some(0), "{said}");
}
