//! The real tau2-bench by one command, on the embedded engine.

use std::collections::BTreeSet;
use std::path::Path;

use crate::python::there_is_a_python;
use crate::support::{ended, kvgate, lines, log, place, said};

#[test]
fn tau2_of_every_domain_on_the_embedded_engine_ends_with_rewards_steps_and_a_report() {
    if !there_is_a_python() {
        return;
    }
    let (_temp, dir) = place();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let line = format!(
        "experiment run --workload tau2 --engine embedded --tasks 4 --concurrency 8 --policy baseline --cost cpu-tiny \
         --listen 127.0.0.1:0 --quiet --out {}",
        dir.display()
    );

    let run = kvgate(&line).env("KVGATE_CACHE", cache).output();

    let run = run.expect("kvgate runs");
    assert!(run.status.success(), "{}", said(&run));
    let end = ended(&dir);
    assert_eq!(end["outcome"], "done", "{end}");
    let rewards = lines(&dir.join("rewards.jsonl"));
    let domains: BTreeSet<&str> = rewards
        .iter()
        .filter_map(|row| row["domain"].as_str())
        .collect();
    assert_eq!(domains, BTreeSet::from(["airline", "retail", "telecom"]));
    assert_eq!(rewards.len(), 4, "{rewards:?}");
    let steps = lines(&dir.join("steps.jsonl"));
    assert!(steps.iter().all(|step| step["status"] == 200));
    for file in ["results.parquet", "report.md", "driver.log"] {
        assert!(dir.join(file).exists(), "{file}\n{}", log(&dir));
    }
    let report = std::fs::read_to_string(dir.join("report.md")).expect("a report");
    assert!(!report.contains("was killed"), "{report}");
}
