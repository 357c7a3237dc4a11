//! Reads the run directories of the reference experiment and finds in them what is known to be there.
//!
//! `tests/fixtures/reference/real-driver-run` was written by the experiment's own driver with mocked models: 18 tasks,
//! 15 of which ended and 3 failed, 206 steps.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvgate::harness::reference::driver_log::{Event, Parser};
use kvgate::harness::reference::files::{self, LogTally};
use kvgate::harness::reference::local_time::{LocalTime, Zone};
use kvgate::harness::reference::profile::Kind;

fn run(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/reference")
        .join(name)
}

/// How many events of each sort a driver.log has.
fn counted(name: &str) -> (BTreeMap<&'static str, u64>, LogTally) {
    let mut counts = BTreeMap::new();
    let tally = files::driver_events(&run(name), |event| {
        let sort = match event {
            Event::Loaded { .. } => "loaded",
            Event::Scheduled { .. } => "scheduled",
            Event::Started { .. } => "started",
            Event::Finished { .. } => "finished",
            Event::Left { .. } => "left",
            Event::Failed { .. } => "failed",
            Event::Complete { .. } => "complete",
            Event::Record(record) => match record.kind {
                Some(Kind::StepComplete) => "step",
                Some(_) => "call",
                None => "message",
            },
        };
        *counts.entry(sort).or_default() += 1;
    });
    (counts, tally.expect("a readable log").expect("a log"))
}

#[test]
fn every_event_of_a_real_driver_log_is_read_although_some_are_glued() {
    let (counts, tally) = counted("real-driver-run");
    let expected = [
        ("call", 273),
        ("complete", 1),
        ("failed", 3),
        ("finished", 15),
        ("left", 18),
        ("loaded", 3),
        ("message", 2),
        ("scheduled", 1),
        ("started", 18),
        ("step", 206),
    ];
    assert_eq!(counts, BTreeMap::from(expected));
    assert_eq!(
        (tally.unread, tally.scanned.cut),
        (0, 0),
        "{:?}",
        tally.example
    );
    assert_eq!(tally.scanned.bytes, 266_825);
}

#[test]
fn a_finished_task_glued_behind_a_debug_line_is_read() {
    let (counts, _) = counted("runs/bl128");
    assert_eq!(
        (counts["finished"], counts["failed"], counts["left"]),
        (42, 2, 44)
    );
}

#[test]
fn the_profile_log_holds_the_same_records_as_the_driver_log() {
    for name in ["real-driver-run", "runs/ct64"] {
        let mut in_driver = Vec::new();
        files::driver_events(&run(name), |event| {
            if let Event::Record(record) = event {
                in_driver.push((record.at, record.text.to_owned()));
            }
        })
        .unwrap();
        let mut alone = Vec::new();
        let tally = files::profile_records(&run(name), |record| {
            alone.push((record.at, record.text.to_owned()));
        })
        .unwrap();
        in_driver.sort();
        alone.sort();
        assert_eq!(tally.unwrap().unread, 0);
        assert!(
            in_driver == alone,
            "{name}: {} and {} records",
            in_driver.len(),
            alone.len()
        );
    }
}

#[test]
fn samples_tell_the_zone_of_the_run_and_cover_it() {
    let mut rows = Vec::new();
    let each = |row: &kvgate::harness::reference::kv::Row<'_>| {
        rows.push((row.sample.ts_s, row.offset_s()));
    };
    let tally = files::kv_rows(&run("real-driver-run/kv_cache_timeseries.csv"), each).unwrap();
    assert_eq!((tally.skipped, tally.samples), (0, rows.len() as u64));
    let zone = Zone::fixed(rows[0].1.unwrap()).unwrap();
    let mut first_and_last = (i64::MAX, 0);
    files::driver_events(&run("real-driver-run"), |event| {
        if let Event::Started { at, .. } | Event::Finished { at, .. } = event {
            let at = zone.unix_s(at);
            first_and_last = (first_and_last.0.min(at), first_and_last.1.max(at));
        }
    })
    .unwrap();
    assert!(rows[0].0 <= first_and_last.0 && first_and_last.1 <= rows[rows.len() - 1].0);
}

#[test]
fn the_json_files_are_read() {
    let metrics = files::metrics(&run("real-driver-run")).unwrap().unwrap();
    assert_eq!((metrics.ok, metrics.error, metrics.total), (15, 3, 18));
    assert_eq!(metrics.domains, ["mock", "retail", "telecom"]);
    assert_eq!(
        files::metrics(&run("runs/tr128")).unwrap(),
        None,
        "it was killed"
    );

    let mut failed = 0;
    let count = files::task_results(&run("real-driver-run"), |result| {
        failed += u32::from(result.reward.is_none());
    });
    assert_eq!((count.unwrap(), failed), (18, 3));

    let mut jobs = Vec::new();
    assert!(
        files::scheduler_timestamps(&run("runs/ct32"), |job, events| jobs
            .push((job, events.len())))
        .unwrap()
    );
    assert_eq!(jobs, [("tau2:retail:0:00000000".to_owned(), 5)]);
    assert!(!files::scheduler_timestamps(&run("runs/tr32"), |_, _| {}).unwrap());
}

#[test]
fn a_file_that_is_not_there_is_none_and_one_that_is_malformed_is_named() {
    assert_eq!(
        files::driver_events(&run("runs/edge_no_logs"), |_| {}).unwrap(),
        None
    );
    assert_eq!(
        files::profile_records(&run("runs/edge_no_logs"), |_| {}).unwrap(),
        None
    );
    assert_eq!(
        files::task_results(&run("runs/nowhere"), |_| {}).unwrap(),
        0
    );
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("outputs")).unwrap();
    std::fs::write(temp.path().join("outputs/metrics_global.json"), "{").unwrap();
    let error = format!("{:#}", files::metrics(temp.path()).unwrap_err());
    assert!(error.contains("metrics_global.json"), "{error}");
}

/// What the driver prints between its records, by how it begins.
const CHATTER: [&str; 8] = [
    "Load tasks from ",
    "Total tasks: ",
    "Tasks to run: ",
    "DEBUG: Calling ",
    "DEBUG: vLLM ",
    "DEBUG: OpenAI ",
    "[2026-",
    "=====",
];

/// Lines of a log that are no event, nothing that is known to be said between them, and no part of a message that
/// the debug log holds.
fn unknown_lines(path: &Path) -> (usize, Vec<String>) {
    let parser = Parser::new().expect("a parser");
    let text = std::fs::read_to_string(path).expect("a log");
    let mut unknown = Vec::new();
    let mut in_message = false;
    for line in text.lines() {
        let (mut events, mut unread) = (0, 0);
        parser.events(line, |event| match event {
            Ok(_) => events += 1,
            Err(_) => unread += 1,
        });
        let logged = LocalTime::parse(line.as_bytes()).is_some() && line.contains(" | ");
        let known = events > 0 || logged || CHATTER.iter().any(|begin| line.starts_with(begin));
        // A message goes on until something else begins.
        in_message = if known {
            line.contains("| DEBUG ")
        } else {
            in_message
        };
        if unread > 0 || !(known || in_message || line.trim().is_empty()) {
            unknown.push(line.to_owned());
        }
    }
    (text.lines().count(), unknown)
}

#[test]
fn both_runs_of_the_driver_are_read_without_an_unknown_line() {
    let logs = [
        ("oss-run/debug/driver.log", 1_591),
        ("oss-run/debug/logs/tau2_global.log", 247),
        ("oss-run/debug/logs/eval_global.log", 7),
        ("oss-run/stream-profile/driver.log", 456),
        ("oss-run/stream-profile/logs/tau2_global.log", 227),
        ("oss-run/stream-profile/logs/eval_global.log", 7),
    ];
    for (name, lines) in logs {
        assert_eq!(unknown_lines(&run(name)), (lines, Vec::new()), "{name}");
    }
    for name in ["oss-run/debug", "oss-run/stream-profile"] {
        let (counts, tally) = counted(name);
        let of = |sort| counts.get(sort).copied();
        let all = [of("started"), of("finished"), of("left"), of("complete")];
        assert_eq!(
            all,
            [Some(6), Some(6), Some(6), Some(1)],
            "{name}: {counts:?}"
        );
        assert_eq!((tally.unread, tally.tuples), (0, 6), "{:?}", tally.example);
        let metrics = files::metrics(&run(name)).unwrap().unwrap();
        assert_eq!((metrics.ok, metrics.error, metrics.total), (6, 0, 6));
    }
}
