//! The recorded decisions of the two reference schedulers, all of them, against the `compat` modes.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may fail as loudly as the test"
)]

use std::path::{Path, PathBuf};

use kvgate::harness::vectors::{Tally, thunderagent, thunderreact};

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn check(folder: &str, check: impl Fn(&Path) -> anyhow::Result<Tally>) -> Tally {
    let mut sum = Tally::default();
    for file in fixtures(folder) {
        sum.add(check(&file).unwrap());
    }
    assert!(sum.lines.is_empty(), "{}", sum.lines.join("\n"));
    sum
}

#[test]
fn thunderreact_decides_as_recorded() {
    let tally = check("thunderreact", thunderreact::check);
    // 14 constants, 78 looks, 8 transfers, 28 placements, 5 metric texts, 4 names.
    assert_eq!((tally.passed, tally.failed), (137, 0));
}

#[test]
fn thunderagent_decides_as_recorded() {
    let tally = check("thunderagent", thunderagent::check);
    assert_eq!((tally.passed, tally.failed), (81, 0));
}
