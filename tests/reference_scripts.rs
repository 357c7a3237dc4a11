//! `kvgate reference` against what the reference experiment's scripts printed: every file of
//! `tests/fixtures/reference/expected`, to the byte, with exit status and the last line of standard error.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reference_support::{PUBLISHED, Shape};

mod reference_support;

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

/// The runs of a table, as flags.
const SIX: &str = "--tr32 runs/tr32 --tr64 runs/tr64 --tr128 runs/tr128 --ct32 runs/ct32 --ct64 runs/ct64 --ct128 runs/ct128";
const NINE: &str = "SIX --bl32 runs/bl32 --bl64 runs/bl64 --bl128 runs/bl128";

/// Every recorded output: its name and the arguments.
const CASES: &str = "
compare9: compare --threshold 70 NINE
compare9_t85: compare --threshold 85 NINE
compare9_wrong_tz: compare NINE
compare6: compare6 --threshold 70 SIX
compare6_t85: compare6 --threshold=85 SIX
outside_bl128: breakdown --threshold 70 --name BL128 --run-dir runs/bl128
outside_bl128_t85: breakdown --threshold 85 --name BL128 --run-dir runs/bl128
outside_real_t5: breakdown --threshold 5 --name REAL --run-dir real-driver-run
outside_no_tasks: breakdown --threshold 70 --name NONE --run-dir runs/edge_no_tasks
outside_never: breakdown --threshold 70 --name X --run-dir runs/edge_never_above
outside_never_t99_9: breakdown --threshold 99.9 --name X --run-dir runs/tr32
outside_single: breakdown --threshold 70 --name X --run-dir runs/edge_single_above
outside_no_driver: breakdown --threshold 70 --name X --run-dir runs/edge_no_logs
bottleneck3: bottleneck --run TR128=runs/tr128 --run CT128=runs/ct128 --run BL128=runs/bl128
bottleneck_real_t5: bottleneck --threshold 5 --run REAL=real-driver-run/
bottleneck_no_tasks: bottleneck --threshold 70 --run Z=runs/edge_no_tasks
bottleneck_no_log: bottleneck --threshold 70 --run Z=runs/edge_no_logs
bottleneck_norun: bottleneck
bottleneck_bad: bottleneck --run foo
stuck_tr128: stuck --run-dir runs/tr128 --expected-total 45
stuck_real: stuck --run-dir real-driver-run --expected-total 18
stuck_no_tasks: stuck --run-dir runs/edge_no_tasks
kvafter_hit: kv-after --kv-csv runs/bl128/kv_cache_timeseries.csv --cutoff '2026-01-05 08:05:00'
kvafter_none: kv-after --kv-csv runs/bl128/kv_cache_timeseries.csv --cutoff 1767600800
kvafter_t99_95: kv-after --kv-csv ./runs/tr32//kv_cache_timeseries.csv --cutoff '2026-1-5 8:1:0' --threshold 99.95
";

fn cases() -> impl Iterator<Item = (&'static str, String)> {
    let cases = CASES.lines().filter_map(|line| line.split_once(": "));
    let whole = |arguments: &str| arguments.replace("NINE", NINE).replace("SIX", SIX);
    cases.map(move |(name, arguments)| (name, whole(arguments)))
}

#[test]
fn every_recorded_output_is_printed_to_the_byte() {
    let expected = fixtures().join("expected");
    let codes = fs::read_to_string(expected.join("exit_codes.txt")).expect("the exit codes");
    let codes: BTreeMap<_, _> = codes
        .lines()
        .filter_map(|line| line.split_once(" rc="))
        .collect();
    for (name, arguments) in cases() {
        let elsewhere = name.ends_with("wrong_tz");
        let zone = if elsewhere {
            "America/Los_Angeles"
        } else {
            "UTC"
        };
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
    let mut run: Vec<_> = cases().map(|(name, _)| name.to_owned()).collect();
    run.sort();
    assert_eq!(run, recorded);
}

/// The flags of `compare` for the nine published runs, written below `folder`.
fn published(folder: &Path) -> String {
    let flag = |shape: &Shape| {
        let dir = shape.write(folder);
        let policy = match shape.policy {
            "thunderreact" => "tr",
            "continuum" => "ct",
            _ => "bl",
        };
        format!("--{policy}{} {}", shape.concurrency, dir.display())
    };
    PUBLISHED.iter().map(flag).collect::<Vec<_>>().join(" ")
}

// Source: the tables 5.4 of the experiment's handoff document.
#[test]
fn the_published_tables_are_printed_as_the_handoff_document_shows_them() {
    let temp = tempfile::tempdir().expect("a folder");
    let flags = published(temp.path());
    let printed = text(
        &reference(
            temp.path(),
            "UTC",
            &format!("compare {flags} --layout handoff"),
        )
        .stdout,
    );
    let expected = "\
Active window: **first KV>70% → last KV>70%**.

| Scenario | ThunderReact | Continuum | Baseline | Winner |
|----------|--------------|-----------|----------|--------|
| C=32 | 3.77 tasks/min | 3.55 tasks/min | 3.36 tasks/min | ThunderReact |
| C=64 | 4.13 tasks/min | 2.50 tasks/min | 3.52 tasks/min | ThunderReact |
| C=128 | 3.24 tasks/min | 2.41 tasks/min | 3.51 tasks/min | Baseline |

Steps/s, in the same active window:

| Scenario | ThunderReact | Continuum | Baseline | Winner |
|----------|--------------|-----------|----------|--------|
| C=32 | 2.97 steps/s | 2.83 steps/s | 2.95 steps/s | ThunderReact |
| C=64 | 3.37 steps/s | 1.89 steps/s | 2.82 steps/s | ThunderReact |
| C=128 | 2.52 steps/s | 1.97 steps/s | 2.83 steps/s | Baseline |
";
    assert_eq!(printed, expected);

    let printed = text(&reference(temp.path(), "UTC", &format!("compare {flags}")).stdout);
    assert!(
        printed
            .contains("| C=128  | 3.24 tasks/min | 2.41 tasks/min | 3.51 tasks/min | Baseline |\n"),
        "{printed}"
    );
    assert!(
        printed.ends_with("| BL128 | 74.5 | 262 | 12658 | 3.51 | 2.83 |\n"),
        "{printed}"
    );
}

// Source: section 6.3 of the experiment's description: BL128's events before, in and after its window.
#[test]
fn the_published_breakdown_is_printed() {
    let temp = tempfile::tempdir().expect("a folder");
    let dir = PUBLISHED[8].write(temp.path());
    let printed = text(
        &reference(
            temp.path(),
            "UTC",
            &format!("breakdown --name BL128 --run-dir {}", dir.display()),
        )
        .stdout,
    );
    let lines: Vec<_> = printed.lines().collect();
    assert!(
        lines[2].contains("win_start=10:14:23  win_end=11:28:56"),
        "{printed}"
    );
    assert!(
        lines[3].ends_with("gap(win_end->last_task)=16.6 min"),
        "{printed}"
    );
    assert_eq!(
        lines[4..],
        [
            "tasks: before/in/after = 1/262/12",
            "steps: before/in/after = 432/12658/330"
        ]
    );
}

#[test]
fn flags_are_taken_as_argparse_takes_them() {
    let breakdown = |flags: &str| {
        let printed = reference(
            &fixtures(),
            "UTC",
            &format!("breakdown --run-dir runs/tr32 --name X {flags}"),
        );
        (printed.status.code(), text(&printed.stdout))
    };
    let plain = breakdown("--threshold 60");
    assert_eq!(plain.0, Some(0));
    for flags in [
        "--threshold=60",
        "--thr 6_0.0",
        "--threshold abc --threshold '\n6e1 '",
        "--threshold 1 --threshold 60",
    ] {
        let wanted = if flags.contains("abc") {
            (Some(2), String::new())
        } else {
            plain.clone()
        };
        assert_eq!(breakdown(flags), wanted, "{flags}");
    }
    assert_eq!(breakdown("--threshold -5").0, Some(0));
    let missing = reference(&fixtures(), "UTC", "compare --tr32 runs/tr32");
    assert_eq!(
        (missing.status.code(), text(&missing.stdout)),
        (Some(2), String::new())
    );
}

/// One run of its own: a log and samples.
fn small_run(log: &str, samples: &[(i64, &str)]) -> tempfile::TempDir {
    let temp = tempfile::tempdir().expect("a folder");
    let row = |(at_s, usage): &(i64, &str)| format!("t,{at_s},1,vllm:kv_cache_usage_perc,{usage}");
    let rows: Vec<_> = ["h".to_owned()]
        .into_iter()
        .chain(samples.iter().map(row))
        .collect();
    fs::create_dir(temp.path().join("run")).expect("a folder");
    fs::write(temp.path().join("run/driver.log"), log).expect("a log");
    fs::write(
        temp.path().join("run/kv_cache_timeseries.csv"),
        rows.join("\n"),
    )
    .expect("samples");
    temp
}

const FINISHED: &str = "2026-01-05 08:00:10.500 | INFO | FINISHED SIMULATION: Domain: a\n";

// Expected texts: the scripts' own, run by CPython 3.11.
#[test]
fn what_was_printed_before_an_exception_stays_printed() {
    let run = small_run(FINISHED, &[(1_767_600_000, "0.9"), (1_767_600_005, "NaN")]);
    let printed = reference(run.path(), "UTC", "stuck --run-dir run");
    assert!(
        text(&printed.stdout).ends_with("samples: 0\n"),
        "{}",
        text(&printed.stdout)
    );
    assert_eq!(
        text(&printed.stderr),
        "ValueError: min() arg is an empty sequence\n"
    );
    assert_eq!(printed.status.code(), Some(1));

    let idle = small_run("", &[(1_767_600_000, "0.9"), (1_767_600_060, "0.9")]);
    let busy = small_run(FINISHED, &[(1_767_600_000, "0.9"), (1_767_600_060, "0.9")]);
    let (idle, busy) = (idle.path().join("run"), busy.path().join("run"));
    let flags = ["--tr32", "--tr64", "--tr128"]
        .map(|flag| format!("{flag} {}", idle.display()))
        .join(" ");
    let others = ["--ct32", "--ct64", "--ct128"]
        .map(|flag| format!("{flag} {}", busy.display()))
        .join(" ");
    let printed = reference(&idle, "UTC", &format!("compare6 {flags} {others}"));
    assert!(
        text(&printed.stdout).ends_with("| :---- | :------------- | :------------- | :----- |\n")
    );
    assert_eq!(
        text(&printed.stderr),
        "ZeroDivisionError: float division by zero\n"
    );
}

#[test]
fn a_sample_that_is_no_number_is_shown_as_one_and_takes_part_as_python_lets_it() {
    let run = small_run(
        FINISHED,
        &[
            (1_767_600_010, "NaN"),
            (1_767_600_015, "0.5"),
            (1_767_600_020, "inf"),
        ],
    );
    let printed =
        text(&reference(run.path(), "UTC", "stuck --run-dir run/ --expected-total 1").stdout);
    let lines = [
        "run_dir: run\n",
        "   +0  08:00:10     nan%  <==\n",
        "  +10  08:00:20     inf%\n",
        "min: nan%\nmax: nan%\navg: nan%\n",
        "    30-70  %:     1 ( 33.3%)\n",
    ];
    for line in lines {
        assert!(printed.contains(line), "{line:?} in\n{printed}");
    }
}

#[test]
fn a_table_that_is_missing_or_no_file_is_told_as_python_tells_it() {
    let told = |flags: &str| {
        let printed = reference(
            &fixtures(),
            "UTC",
            &format!("kv-after --cutoff 1 --kv-csv {flags}"),
        );
        (printed.status.code(), text(&printed.stderr))
    };
    let missing = "FileNotFoundError: [Errno 2] No such file or directory: 'runs/x.csv'\n";
    assert_eq!(told("./runs//x.csv"), (Some(1), missing.to_owned()));
    assert_eq!(
        told("runs"),
        (
            Some(1),
            "IsADirectoryError: [Errno 21] Is a directory: 'runs'\n".to_owned()
        )
    );
}

#[test]
fn a_negative_number_is_a_flags_value_as_it_is_to_the_scripts() {
    let folder = fixtures();
    let kv = "kv-after --cutoff -1 --kv-csv runs/tr32/kv_cache_timeseries.csv";
    let output = reference(&folder, "UTC", kv);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("ValueError: time data '-1' does not match"),
        "{said}"
    );
    let named = reference(&folder, "UTC", "breakdown --name -5 --run-dir runs/tr32");
    let plain = reference(&folder, "UTC", "breakdown --name X --run-dir runs/tr32");
    assert_eq!(named.status.code(), Some(0), "{}", text(&named.stderr));
    let (named, plain) = (text(&named.stdout), text(&plain.stdout));
    assert!(named.contains("-5"), "{named}");
    assert_eq!(named.replacen("-5", "X", 1), plain);
}
