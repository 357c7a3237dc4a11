//! The real tau2-bench by one command, on the embedded engine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::python::there_is_a_python;
use crate::support::{Playing, ended, json, kvgate, lines, log, place, said, until_gone};

const CELL: &str = "baseline-c8";

/// `kvgate experiment LINE`, with the benchmark installed once for all tests.
fn command(line: &str) -> Command {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let mut command = kvgate(&format!("experiment {line} --quiet"));
    command.env("KVGATE_CACHE", cache);
    command
}

fn run(dir: &Path) -> Command {
    command(&format!(
        "run --workload tau2 --engine embedded --tasks 4 --concurrency 8 --policy baseline --cost cpu-tiny --listen \
         127.0.0.1:0 --out {}",
        dir.display()
    ))
}

/// Four rewards over three domains, steps, a table and a report without complaint.
fn assert_played(dir: &Path) {
    let end = ended(dir);
    assert_eq!(end["outcome"], "done", "{end}");
    let rewards = lines(&dir.join("rewards.jsonl"));
    let last = rewards.iter().filter(|row| row["last_word"] == true);
    let last: Vec<_> = last.filter(|row| row["reward"].is_number()).collect();
    let of =
        |key: &str| -> BTreeSet<String> { last.iter().map(|row| row[key].to_string()).collect() };
    assert_eq!(last.len(), 4, "{rewards:?}");
    assert_eq!(of("job_id").len(), 4, "{rewards:?}");
    assert_eq!(of("domain").len(), 3, "{rewards:?}");
    let versions = json(&dir.join("manifest.json")).expect("a manifest")["versions"].clone();
    for program in ["kvgate", "litellm", "python", "tau2"] {
        assert!(versions[program].is_string(), "{versions}");
    }
    let steps = lines(&dir.join("steps.jsonl"));
    assert!(!steps.is_empty());
    for file in [
        "results.parquet",
        "driver.log",
        "model_config_5090_baseline.json",
        "outputs/metrics_global.json",
    ] {
        assert!(dir.join(file).exists(), "{file}\n{}", log(dir));
    }
    let report = fs::read_to_string(dir.join("report.md")).expect("a report");
    assert!(!report.contains("was killed"), "{report}");
    assert!(report.contains("| reward mean |"), "{report}");
}

#[test]
fn tau2_of_every_domain_on_the_embedded_engine_ends_with_rewards_steps_and_a_report() {
    if !there_is_a_python() {
        return;
    }
    let (_temp, dir) = place();
    let run = run(&dir).output().expect("kvgate runs");
    assert!(run.status.success(), "{}", said(&run));
    assert_played(&dir);
    let steps = lines(&dir.join("steps.jsonl"));
    assert!(steps.iter().all(|step| step["status"] == 200), "{steps:?}");
}

#[test]
fn tau2_that_is_killed_goes_on_where_it_was() {
    if !there_is_a_python() {
        return;
    }
    let (_temp, dir) = place();
    let mut playing = Playing::of(&mut run(&dir), &dir);
    playing.until_ended(CELL, 1);
    let children = playing.children();
    playing.signal(Signal::KILL);
    assert_eq!(playing.end(), None, "killed");
    until_gone(children.into_values());
    let before = lines(&dir.join("rewards.jsonl"));
    let steps = lines(&dir.join("steps.jsonl"));
    assert!((1..4).contains(&before.len()), "{before:?}");

    let resumed = command(&format!("resume {}", dir.display())).output();

    let resumed = resumed.expect("kvgate runs");
    assert!(resumed.status.success(), "{}", said(&resumed));
    assert_played(&dir);
    let report = fs::read_to_string(dir.join("report.md")).expect("a report");
    assert!(report.contains("| baseline (resumed) |"), "{report}");
    assert!(
        lines(&dir.join("rewards.jsonl")).starts_with(&before),
        "what was played is kept"
    );
    assert!(
        lines(&dir.join("steps.jsonl")).starts_with(&steps),
        "and its steps"
    );
}
