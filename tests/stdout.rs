//! What commands write to `/dev/stdout` when a shell sends that to a file.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may fail as loudly as the test"
)]

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;

/// What stands in the file that standard output is sent to, and to which that of a second run is appended.
fn twice(arguments: &str) -> [String; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    File::create(&path).unwrap();
    [false, true].map(|append| {
        let out = OpenOptions::new().write(true).append(append).open(&path);
        let status = Command::new(env!("CARGO_BIN_EXE_kvgate"))
            .args(arguments.split_whitespace())
            .args(["--out", "/dev/stdout"])
            .stdout(out.unwrap())
            .status();
        assert!(status.unwrap().success());
        std::fs::read_to_string(&path).unwrap()
    })
}

/// The rows and the lines of the tables after them.
fn parts(text: &str) -> (usize, usize) {
    let rows = text.lines().take_while(|line| line.starts_with('{'));
    let rows = rows.count();
    (rows, text.lines().count() - rows)
}

#[test]
fn simulate_writes_its_rows_and_then_its_tables_and_reads_neither() {
    let cells = "simulate --policy baseline,continuum --concurrency 2 --programs 4 --kv-tokens 20000 --quiet";
    let [once, again] = twice(cells);
    let (rows, tables) = parts(&once);
    assert!(rows == 2 && tables > 2, "{once}");
    assert_eq!(again, once.repeat(2));
}

#[test]
fn calibrate_writes_the_preset_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let points = root.join("docs/experiments/h100-2026-11-24/h100.points.json");
    let [once, again] = twice(&format!("calibrate --points {}", points.display()));
    let preset: toml::Table = once.parse().unwrap();
    assert!(preset.contains_key("cost"), "{once}");
    assert_eq!(again, once.repeat(2));
}

#[test]
fn trace_writes_the_programs_alone() {
    let [once, again] = twice("trace orch --seed 1 --programs 2");
    assert!(once.lines().all(|line| line.starts_with('{')), "{once}");
    assert_eq!(again, once.repeat(2));
}
