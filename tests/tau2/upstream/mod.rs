//! The way of an upstream checkout: its environment, and the worker's calls of it, with a package that has upstream's
//! shape where they touch it. The real checkout needs a network.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvgate::harness::tau2::environment::Environment;
use kvgate::harness::tau2::plan::{Rules, Workload};
use serde_json::Value;

use crate::python::there_is_a_python;
use crate::support::{Run, settings};

fn make(dir: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tau2/upstream/make.py");
    let made = Command::new("python3").arg(script).arg(dir).status();
    assert!(made.expect("a Python").success());
}

fn files_of(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_of(&path));
        }
        found.insert(path);
    }
    found
}

#[tokio::test]
async fn an_upstream_checkout_is_played_with_many_connections_and_left_as_it_was() {
    if !there_is_a_python() {
        return;
    }
    let temp = tempfile::tempdir().expect("a folder");
    let checkout = temp.path().join("tau2-bench");
    make(&checkout);
    let before = files_of(&checkout);
    let python = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let python = String::from_utf8(python.expect("a Python").stdout).expect("a path");
    let cache = temp.path().join("cache");
    let own = Some(Path::new(python.trim()));
    let environment = Environment::upstream(&checkout, own, &cache, &mut |line| println!("{line}"));
    let environment = environment.expect("loaded");
    assert_eq!(environment.tau2, "tau2 1.0.1");
    assert_eq!(environment.catalogue["telecom"], ["telecom-0"]);

    let dir = temp.path().join("run");
    let mut settings = settings(environment, "http://127.0.0.1:9", &dir);
    settings.release_url = None;
    let run = Run::start(settings, &Workload::default(), Rules::default());
    let (_, played) = run.end().await;

    played.expect("played");
    let saved = files_of(&dir.join("outputs/simulations"));
    assert_eq!(saved.len(), 3, "{saved:?}");
    for path in saved {
        let text = fs::read_to_string(path).expect("a simulation");
        let seen: Value = serde_json::from_str(&text).expect("a simulation");
        assert_eq!(seen["connections"], 256, "{seen}");
        assert_eq!(seen["seed"], 626_729);
        assert!(
            seen["job_id"]
                .as_str()
                .expect("a program")
                .starts_with("tau2:"),
            "{seen}"
        );
    }
    assert_eq!(
        files_of(&checkout),
        before,
        "nothing was left in the checkout"
    );
}

#[test]
fn an_environment_for_a_checkout_is_made_once_from_what_it_says_it_needs() {
    let new_enough = "import sys; sys.exit(sys.version_info < (3, 12))";
    let fits = |python: &&str| {
        let asked = Command::new(python).args(["-c", new_enough]).status();
        asked.is_ok_and(|status| status.success())
    };
    if !["python3.12", "python3.13", "python3.14", "python3"]
        .iter()
        .any(|p| fits(&p))
    {
        println!("skipped: no Python of 3.12 or later");
        return;
    }
    let temp = tempfile::tempdir().expect("a folder");
    let (checkout, cache) = (temp.path().join("tau2-bench"), temp.path().join("cache"));
    make(&checkout);
    let before = files_of(&checkout);
    let mut said = Vec::new();
    let mut open = || {
        Environment::upstream(&checkout, None, &cache, &mut |line| {
            said.push(line.to_owned());
        })
    };
    let first = open().expect("made");
    assert!(
        first.python.starts_with(&cache),
        "{}",
        first.python.display()
    );
    assert_eq!(open().expect("there"), first);
    let made = said
        .iter()
        .filter(|line| line.starts_with("installing"))
        .count();
    assert_eq!(made, 1, "{said:?}");
    assert_eq!(
        files_of(&checkout),
        before,
        "nothing was left in the checkout"
    );
}
