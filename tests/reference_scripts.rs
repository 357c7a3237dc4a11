//! `kvgate reference` against what the reference experiment's scripts printed: every file of
//! `tests/fixtures/reference/expected`, to the byte, with exit status and the last line of standard error.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference")
}

/// Runs `kvgate reference` in a folder, with the zone that the log's times are read in.
fn reference(folder: &Path, zone: &str, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvgate"));
    command.current_dir(folder).env("TZ", zone).arg("reference");
    // A text in single quotes is one argument.
    for (index, part) in arguments.split('\'').enumerate() {
        if index % 2 == 1 {
            command.arg(part);
        } else {
            command.args(part.split_whitespace());
        }
    }
    command.output().expect("kvgate runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

const SIX: &str = "--tr32 runs/tr32 --tr64 runs/tr64 --tr128 runs/tr128 --ct32 runs/ct32 --ct64 runs/ct64 --ct128 runs/ct128";
const BASELINES: &str = "--bl32 runs/bl32 --bl64 runs/bl64 --bl128 runs/bl128";
const BL128: &str = "--kv-csv runs/bl128/kv_cache_timeseries.csv";

/// Every recorded output: its name, the zone and the arguments.
fn cases() -> Vec<(&'static str, &'static str, String)> {
    let utc = [
        (
            "compare9",
            format!("compare --threshold 70 {SIX} {BASELINES}"),
        ),
        ("compare6", format!("compare6 --threshold 70 {SIX}")),
        (
            "outside_bl128",
            "breakdown --threshold 70 --name BL128 --run-dir runs/bl128".into(),
        ),
        (
            "outside_no_tasks",
            "breakdown --threshold 70 --name NONE --run-dir runs/edge_no_tasks".into(),
        ),
        (
            "outside_never",
            "breakdown --threshold 70 --name X --run-dir runs/edge_never_above".into(),
        ),
        (
            "outside_single",
            "breakdown --threshold 70 --name X --run-dir runs/edge_single_above".into(),
        ),
        (
            "outside_no_driver",
            "breakdown --threshold 70 --name X --run-dir runs/edge_no_logs".into(),
        ),
        (
            "bottleneck_no_tasks",
            "bottleneck --threshold 70 --run Z=runs/edge_no_tasks".into(),
        ),
        (
            "bottleneck_no_log",
            "bottleneck --threshold 70 --run Z=runs/edge_no_logs".into(),
        ),
        ("bottleneck_norun", "bottleneck".into()),
        ("bottleneck_bad", "bottleneck --run foo".into()),
        (
            "stuck_tr128",
            "stuck --run-dir runs/tr128 --expected-total 45".into(),
        ),
        (
            "stuck_no_tasks",
            "stuck --run-dir runs/edge_no_tasks".into(),
        ),
        (
            "kvafter_hit",
            format!("kv-after {BL128} --cutoff '2026-01-05 08:05:00'"),
        ),
        (
            "kvafter_none",
            format!("kv-after {BL128} --cutoff 1767600800"),
        ),
    ];
    let elsewhere = (
        "compare9_wrong_tz",
        "America/Los_Angeles",
        format!("compare {SIX} {BASELINES}"),
    );
    utc.into_iter()
        .map(|(name, arguments)| (name, "UTC", arguments))
        .chain([elsewhere])
        .collect()
}

#[test]
fn every_recorded_output_is_printed_to_the_byte() {
    let expected = fixtures().join("expected");
    let codes = fs::read_to_string(expected.join("exit_codes.txt")).expect("the exit codes");
    let codes: BTreeMap<_, _> = codes
        .lines()
        .filter_map(|line| line.split_once(" rc="))
        .collect();
    for (name, zone, arguments) in cases() {
        let printed = reference(&fixtures(), zone, &arguments);
        let stdout = fs::read(expected.join(format!("{name}.stdout"))).expect("a recorded output");
        assert_eq!(text(&printed.stdout), text(&stdout), "{name}");
        assert_eq!(
            printed
                .status
                .code()
                .map(|code| code.to_string())
                .as_deref(),
            Some(codes[name]),
            "{name}"
        );
        if let Ok(last) = fs::read_to_string(expected.join(format!("{name}.err1"))) {
            assert_eq!(
                text(&printed.stderr).lines().last(),
                last.lines().last(),
                "{name}"
            );
        } else {
            assert_eq!(text(&printed.stderr), "", "{name}");
        }
    }
}

#[test]
fn no_recorded_output_is_left_out() {
    let recorded = fs::read_dir(fixtures().join("expected")).expect("a folder");
    let names = recorded.map(|entry| entry.expect("an entry").path());
    let outputs = names.filter(|path| path.extension().is_some_and(|end| end == "stdout"));
    let mut recorded: Vec<_> = outputs
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    recorded.sort();
    let mut run: Vec<_> = cases()
        .into_iter()
        .map(|(name, _, _)| name.to_owned())
        .collect();
    run.sort();
    assert_eq!(run, recorded);
}
