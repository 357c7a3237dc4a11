//! `kvgate report` as a user runs it: what it finds wrong with run directories, and what it prints of good ones.
//!
//! The directories are copies of `tests/fixtures/reference/runs`, broken in one way each, and ones that
//! `reference_support` makes to the published counts.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use reference_support::PUBLISHED;

mod reference_support;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/reference/runs")
        .join(name)
}

fn report(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvgate"))
        .arg("report")
        .args(args)
        // Another zone than the logs': only what the report is told may count.
        .env("TZ", "America/Los_Angeles")
        .output()
        .expect("kvgate runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The whole of `from` at `to`.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

/// The line of a request that took 10 s and was served.
fn step(program: &str, index: u32, at: f64) -> String {
    format!(
        "{{\"program\":\"{program}\",\"step_index\":{index},\"policy\":\"continuum\",\"backend\":null,\
         \"path\":\"/v1/chat/completions\",\"model\":null,\"stream\":false,\"arrived_s\":{at},\"admitted_s\":null,\
         \"first_byte_s\":null,\"first_token_s\":null,\"finished_s\":{},\"hold_s\":1.5,\"hold_reason\":null,\
         \"ttft_s\":null,\"ttft_backend_s\":null,\"tpot_s\":null,\"prompt_tokens\":100,\"cached_tokens\":50,\
         \"output_tokens\":5,\"tool\":null,\"tool_gap_s\":null,\"outcome\":\"stop\",\"status\":200,\"retries\":0}}\n",
        at + 10.0
    )
}

/// What a gate leaves of ten programs of four steps each: records and samples.
fn gate_files(dir: &Path) {
    let steps: String = (0..40)
        .map(|n| step(&format!("p{}", n / 4), n % 4, f64::from(n) * 10.0))
        .collect();
    fs::write(dir.join("steps.jsonl"), steps).expect("a file");
    let row = |n: u32| format!("x,{},8000,vllm:kv_cache_usage_perc,0.9\n", n * 5);
    let samples: String = (0..=80).map(row).collect();
    let table = format!("h\n{samples}");
    fs::write(dir.join("kv_cache_timeseries.csv"), table).expect("a file");
}

/// What a replay adds to it.
fn replay_files(dir: &Path, policy: &str) {
    let manifest = format!(
        "{{\"kvgate\":\"1\",\"policy\":\"{policy}\",\"concurrency\":1,\"trace\":\"tau2\",\"programs\":10,\
         \"steps\":40,\"trace_repaired\":0,\"stream\":false,\"seed\":1,\"url\":\"u\",\"model\":\"m\",\
         \"time_scale\":1.0,\"epoch_unix\":0.0,\"engine\":null}}"
    );
    let program = |n: u32| {
        format!(
            "{{\"program\":\"p{n}\",\"kind\":\"k\",\"started_s\":{},\"finished_s\":{},\"steps\":4,\"errors\":0,\
             \"ending\":\"done\",\"cause\":null}}\n",
            n * 40,
            n * 40 + 40
        )
    };
    let programs: String = (0..10).map(program).collect();
    for (file, text) in [
        ("manifest.json", manifest.as_str()),
        ("programs.jsonl", &programs),
        ("summary.json", "{}"),
    ] {
        fs::write(dir.join(file), text).expect("a file");
    }
    fs::copy(dir.join("steps.jsonl"), dir.join("client_steps.jsonl")).expect("a copy");
}

/// A complete run, to be broken.
struct Broken {
    folder: tempfile::TempDir,
    name: &'static str,
}

impl Broken {
    /// The reference system's.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let name = "tr32";
        copy(&fixture(name), &folder.path().join(name));
        Self { folder, name }
    }

    /// A replay's, of this policy.
    fn replay(policy: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let run = Self {
            folder,
            name: "run",
        };
        fs::create_dir(run.dir()).expect("a folder");
        gate_files(&run.dir());
        replay_files(&run.dir(), policy);
        run
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.dir().join(file)).expect("a file");
    }

    fn edit(&self, file: &str, change: impl Fn(&str) -> String) {
        let path = self.dir().join(file);
        let old = fs::read_to_string(&path).expect("a file");
        let new = change(&old);
        assert_ne!(old, new, "the edit changes something");
        fs::write(path, new).expect("a file");
    }

    /// The report with further flags: exit status and both outputs.
    fn report(&self, flags: &[&str]) -> (Option<i32>, String) {
        let dir = self.dir().display().to_string();
        let output = report(&[&[dir.as_str()], flags].concat());
        (
            output.status.code(),
            text(&output.stdout) + &text(&output.stderr),
        )
    }

    /// Asserts that the run is refused with this sentence, and shown below it with --allow-incomplete.
    fn refused(&self, sentence: &str) {
        let (code, said) = self.report(&[]);
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains(sentence), "{said}");
        assert!(
            said.contains("--allow-incomplete") && !said.contains("## Figures"),
            "{said}"
        );
        let (code, said) = self.report(&["--allow-incomplete"]);
        assert_eq!(code, Some(0), "{said}");
        let (finding, figures) = (said.find(sentence), said.find("## Figures"));
        assert!(finding.is_some() && finding < figures, "{said}");
    }

    /// Asserts that the run is shown with this sentence above its figures.
    fn noted(&self, sentence: &str) {
        let (code, said) = self.report(&[]);
        assert_eq!(code, Some(0), "{said}");
        let (finding, figures) = (said.find(sentence), said.find("## Figures"));
        assert!(finding.is_some() && finding < figures, "{said}");
    }
}

#[test]
fn a_log_in_another_zone_is_refused_with_the_zone_that_mends_it() {
    let run = Broken::new();
    let eight_hours_back = |log: &str| log.replace("2026-01-05 08:", "2026-01-05 00:");
    run.edit("driver.log", eight_hours_back);
    run.edit("logs/tau2_global.log", eight_hours_back);
    run.refused(
        "wrong time zone: none of 341 events falls into the KV samples, 341 would 8 h later",
    );
    run.refused("the log's zone seems to be -08:00: add --log-tz=-08:00");
    for zone in ["--log-tz=-08:00", "--log-tz=America/Los_Angeles"] {
        let (code, said) = run.report(&[zone]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("36 tasks and 234 steps in it"), "{said}");
    }
}

#[test]
fn without_driver_log_no_task_rate_is_shown_as_zero() {
    let run = Broken::new();
    fs::remove_file(run.dir().join("driver.log")).expect("a file");
    run.refused("incomplete: driver.log is missing: nothing says which tasks finished");
    let (_, said) = run.report(&["--allow-incomplete"]);
    let row = said
        .lines()
        .find(|line| line.starts_with("| thunderreact (incomplete)"));
    let row = row.expect("a row of figures");
    assert!(
        row.contains("|          - |     0.43 |"),
        "no tasks/min, and steps/s: {row}"
    );
}

#[test]
fn many_samples_without_a_number_put_the_window_in_doubt() {
    let run = Broken::new();
    run.noted("2 of 150 KV samples are NaN");
    run.edit("kv_cache_timeseries.csv", |csv| {
        let lines = csv
            .lines()
            .enumerate()
            .map(|(index, line)| match line.rsplit_once(',') {
                Some((row, _)) if index % 5 == 4 => format!("{row},NaN\n"),
                _ => format!("{line}\n"),
            });
        lines.collect()
    });
    run.refused(
        "no window: 32 of 150 KV samples are NaN: the backend did not answer the sampler (21 %)",
    );
}

#[test]
fn samples_of_which_none_is_a_number_are_called_so_and_no_threshold_is_advised() {
    let run = Broken::new();
    run.edit("kv_cache_timeseries.csv", |csv| {
        let rows = csv.lines().skip(1);
        let rows = rows.filter_map(|row| row.rsplit_once(','));
        std::iter::once("ts_iso,ts_unix,port,metric,value\n".to_owned())
            .chain(rows.map(|(row, _)| format!("{row},NaN\n")))
            .collect()
    });
    run.refused("no window: no active window: none of 150 KV samples is a number\n");
    let (_, said) = run.report(&["--allow-incomplete"]);
    assert!(
        !said.contains("highest 0 %") && !said.contains("another --threshold"),
        "{said}"
    );
}

#[test]
fn a_table_without_samples_is_named_even_where_another_file_is_missing() {
    let run = Broken::new();
    run.edit("kv_cache_timeseries.csv", |_| {
        "ts_iso,ts_unix,port,metric,value\n".to_owned()
    });
    run.remove("logs/tau2_global.log");
    run.refused("no window: no active window: no KV samples");
}

#[test]
fn rewards_of_tau2_are_shown_by_the_last_attempt_at_each_task_and_nowhere_else() {
    let run = Broken::replay("continuum");
    let (_, said) = run.report(&[]);
    assert!(!said.contains("reward mean"), "nobody judged: {said}");
    let attempt = |task: &str, number: u32, reward: &str| {
        let failure = match reward {
            "null" => "{\"cause\":\"timeout\",\"error\":\"late\"}",
            _ => "null",
        };
        format!(
            "{{\"domain\":\"retail\",\"task_id\":\"{task}\",\"trial\":0,\"seed\":1,\"attempt\":{number},\
             \"job_id\":\"p{number}\",\"started_s\":0.0,\"finished_s\":9.0,\"elapsed_s\":9.0,\"reward\":{reward},\
             \"termination\":null,\"failure\":{failure},\"steps\":4,\"llm_calls\":4,\"duration_ms\":9.0,\
             \"last_word\":true}}\n"
        )
    };
    let attempts = [
        attempt("0", 1, "null"),
        attempt("0", 2, "1.0"),
        attempt("1", 1, "0.0"),
        attempt("2", 1, "0.8"),
        attempt("3", 1, "null"),
    ];
    fs::write(run.dir().join("rewards.jsonl"), attempts.concat()).expect("a file");
    let csv = run.folder.path().join("csv");
    let (code, said) = run.report(&["--csv", &csv.display().to_string()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("| policy    | reward mean | reward 1 | judged |"),
        "{said}"
    );
    assert!(
        said.contains("| continuum |       0.600 |        1 |      3 |"),
        "{said}"
    );
    let runs = fs::read_to_string(csv.join("runs.csv")).expect("a table");
    assert!(
        runs.contains("reward_mean,tasks_solved,tasks_judged"),
        "{runs}"
    );
    assert!(!said.contains("could not be read"), "{said}");
}

#[test]
fn a_run_that_was_cut_short_and_went_on_is_marked_as_resumed() {
    let run = Broken::replay("continuum");
    let row = |said: &str, name: &str| {
        said.lines()
            .any(|line| line.starts_with(&format!("| {name} |")))
    };
    let (_, said) = run.report(&[]);
    assert!(row(&said, "continuum"), "{said}");
    run.edit("manifest.json", |manifest| {
        manifest.replace(
            "{\"kvgate\"",
            "{\"resumed\":[{\"unix_s\":200.0,\"time\":\"1970-01-01T00:03:20+00:00\"}],\"kvgate\"",
        )
    });
    run.noted("note: the run was cut short and went on at 1970-01-01T00:03:20+00:00: makespan");
    let (_, said) = run.report(&[]);
    assert!(row(&said, "continuum (resumed)"), "{said}");
}

#[test]
fn the_folder_of_a_matrix_is_its_cells_and_one_that_holds_no_run_is_left_out_and_told() {
    let matrix = tempfile::tempdir().expect("a folder");
    for policy in ["continuum", "baseline"] {
        let cell = matrix.path().join(format!("cells/{policy}-c1"));
        copy(&Broken::replay(policy).dir(), &cell);
    }
    let failed = matrix.path().join("cells/kvgate-c1");
    fs::create_dir(&failed).expect("a folder");
    fs::write(failed.join("engine.log"), "no GPU").expect("a file");
    let folder = matrix.path().display().to_string();

    let output = report(&[&folder]);

    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for words in ["### baseline C=1", "### continuum C=1"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let left_out = format!("note: {} holds no run and is left out", failed.display());
    assert!(said.contains(&left_out), "{said}");

    fs::remove_dir_all(matrix.path().join("cells")).expect("gone");
    fs::create_dir(matrix.path().join("cells")).expect("a folder");
    let output = report(&[&folder]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no cell of"));
}

#[test]
fn glued_lines_are_read_and_counted() {
    let run = Broken::new();
    run.noted("7 log records stood behind other text on their line, and were read");
    run.edit("driver.log", |log| {
        log.replacen("\n[PROFILE]", "DEBUG: done[PROFILE]", 5)
    });
    run.noted("log records stood behind other text on their line, and were read");
    let (_, said) = run.report(&[]);
    assert!(said.contains("36 tasks and 234 steps in it"), "{said}");
}

#[test]
fn markers_that_python_printed_as_tuples_are_read_and_counted() {
    let run = Broken::new();
    run.noted("45 completion markers were printed as a Python tuple, and were read");
    run.edit("driver.log", |log| {
        log.replace("('[TAU2_TASK_COMPLETE]", "[TAU2_TASK_COMPLETE]")
    });
    let (code, said) = run.report(&[]);
    assert_eq!(code, Some(0));
    assert!(!said.contains("tuple"), "{said}");
}

#[test]
fn a_killed_run_is_refused() {
    let run = Broken::new();
    run.edit("driver.log", |log| {
        let lines = log
            .lines()
            .filter(|line| !line.contains("Global evaluation complete"));
        lines.take(600).flat_map(|line| [line, "\n"]).collect()
    });
    fs::remove_file(run.dir().join("outputs/metrics_global.json")).expect("a file");
    run.refused("incomplete: the run was killed or is still running: the driver's summary line is not there");
    run.refused("incomplete: fewer results than tasks:");
}

#[test]
fn a_run_that_was_never_under_pressure_has_no_window() {
    let dir = fixture("edge_never_above").display().to_string();
    let output = report(&[&dir]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(
        said.contains("no window: no active window: never above 70 % (highest 59 %); choose another --threshold"),
        "{said}"
    );
}

#[test]
fn unreadable_lines_are_counted_with_an_example() {
    let run = Broken::new();
    run.edit("logs/tau2_global.log", |log| {
        log.replacen("thread=", "thre", 30)
    });
    run.refused("incomplete: logs/tau2_global.log: 30 of");
    let (_, said) = run.report(&[]);
    assert!(said.contains("e.g. [") && said.contains("thre14"), "{said}");
}

#[test]
fn a_profile_log_that_is_cut_short_is_refused_and_the_steps_of_driver_log_are_taken() {
    for (left, steps) in [(0, 0), (120, 57)] {
        let run = Broken::new();
        run.edit("logs/tau2_global.log", |log| {
            log.lines()
                .take(left)
                .flat_map(|line| [line, "\n"])
                .collect()
        });
        run.refused(&format!(
            "incomplete: logs/tau2_global.log is cut short: it has {steps} steps, driver.log 296, which were taken"
        ));
        let (_, said) = run.report(&["--allow-incomplete"]);
        assert!(said.contains("36 tasks and 234 steps in it"), "{said}");
    }
}

#[test]
fn finished_programs_without_any_step_are_refused() {
    let run = Broken::new();
    let forget = |log: &str| log.replace("type=step_complete", "type=other");
    run.edit("driver.log", forget);
    run.edit("logs/tau2_global.log", forget);
    run.refused("incomplete: 45 programs finished, and no step was recorded");
}

#[test]
fn a_duration_that_is_no_number_is_an_unread_line_and_not_zero() {
    let run = Broken::new();
    run.edit("logs/tau2_global.log", |log| {
        log.replacen("duration_ms=", "duration_ms=?", 30)
    });
    run.refused("incomplete: logs/tau2_global.log: 30 of");
    let (_, said) = run.report(&[]);
    assert!(
        said.contains("e.g. task=retail:0 type=user_sim step=0") && said.contains("_ms=?"),
        "{said}"
    );
    assert!(
        !said.contains("cut short"),
        "both logs have as many steps: {said}"
    );
}

#[test]
fn a_program_of_which_only_the_end_is_known_has_no_time() {
    let run = Broken::new();
    fs::write(run.dir().join("logs/tau2_global.log"), "").expect("a file");
    run.edit("driver.log", |log| {
        let ends = |line: &&str| line.contains("_COMPLETE]") || !line.contains("task=");
        let lines = log.lines().filter(ends);
        lines.flat_map(|line| [line, "\n"]).collect()
    });
    run.refused("nothing says when 45 of the finished programs began");
}

#[test]
fn samples_that_end_early_put_the_window_in_doubt() {
    let run = Broken::new();
    run.edit("kv_cache_timeseries.csv", |csv| {
        csv.lines().take(80).flat_map(|line| [line, "\n"]).collect()
    });
    run.refused("no window: the KV samples do not cover the run: they end");
}

#[test]
fn the_published_tables_come_out_of_runs_with_the_published_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let dirs = PUBLISHED.map(|shape| shape.write(folder.path()).display().to_string());
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    let output = report(&[&dirs[..], &["--allow-incomplete"]].concat());
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    for row in [
        "| Scenario |",
        "| C=32     |  3.77 tasks/min |  3.55 tasks/min | 3.36 tasks/min | no clear winner",
        "| C=64     |  4.13 tasks/min |  2.50 tasks/min | 3.52 tasks/min | ThunderReact (+17 % over baseline)",
        "| C=128    | 3.24 tasks/min† | 2.41 tasks/min† | 3.51 tasks/min | Baseline (+8 % over thunderreact)",
        "| C=32     |  2.97 steps/s |  2.83 steps/s | 2.95 steps/s | no clear winner",
        "| C=64     |  3.37 steps/s |  1.89 steps/s | 2.82 steps/s | ThunderReact (+20 % over baseline)",
        "| C=128    | 2.52 steps/s† | 1.97 steps/s† | 2.83 steps/s | Baseline (+12 % over thunderreact)",
        "* C=32: no clear winner (thunderreact leads continuum by 6.3 %, within noise)",
        "* C=32: no clear winner (thunderreact leads baseline by 0.7 %, within noise)",
        "| tasks |      1 |   262 |    12 |",
        "| steps |    432 | 12658 |   330 |",
    ] {
        assert!(said.contains(row), "{row}\n{said}");
    }
    let output = report(&[&dirs[..], &["--allow-incomplete", "--lang", "zh"]].concat());
    let said = text(&output.stdout);
    let expected = "\
### TABLE 1: Tasks done / minute (active window)

| 场景  | TR             | CT             | Baseline        | Winner |
| :---- | :------------- | :------------- | :-------------- | :----- |
| C=32  | 3.77 tasks/min | 3.55 tasks/min | 3.36 tasks/min | TR |
| C=64  | 4.13 tasks/min | 2.50 tasks/min | 3.52 tasks/min | TR |
| C=128  | 3.24 tasks/min† | 2.41 tasks/min† | 3.51 tasks/min | Baseline |

### TABLE 2: Steps / second (active window)

| 场景  | TR           | CT           | Baseline      | Winner |
| :---- | :----------- | :----------- | :------------ | :----- |
| C=32  | 2.97 steps/s | 2.83 steps/s | 2.95 steps/s | TR |
| C=64  | 3.37 steps/s | 1.89 steps/s | 2.82 steps/s | TR |
| C=128  | 2.52 steps/s† | 1.97 steps/s† | 2.83 steps/s | Baseline |

* tasks/min: C=32: no clear winner (thunderreact leads continuum by 6.3 %, within noise)
* tasks/min: † of incomplete runs, which cannot win

* steps/s: C=32: no clear winner (thunderreact leads baseline by 0.7 %, within noise)
* steps/s: † of incomplete runs, which cannot win
";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn every_output_is_written_and_the_same_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let runs = ["tr32", "ct32"].map(|name| fixture(name).display().to_string());
    let (json, html, csv, parquet, out) = (
        at("r.json"),
        at("r.html"),
        at("csv"),
        at("parquet"),
        at("out"),
    );
    let flags = [
        "--json",
        &json,
        "--html",
        &html,
        "--csv",
        &csv,
        "--parquet",
        &parquet,
        "--out",
        &out,
        "--manifest",
    ];
    let output = report(&[&[runs[0].as_str(), &runs[1]][..], &flags].concat());
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    let read = |path: &str| fs::read_to_string(path).expect(path);
    let value: serde_json::Value = serde_json::from_str(&read(&json)).expect("JSON");
    assert_eq!(value["runs"][0]["window"]["rates"]["programs"], 36);
    let digest = value["runs"][0]["artifacts"]["files"][0]["sha256"].as_str();
    let digest = digest.expect("a digest");
    assert!(
        digest.len() == 64 && said.contains(digest),
        "--manifest prints it too"
    );
    assert!(read(&html).starts_with("<!DOCTYPE html>"));
    for table in ["runs", "programs", "steps", "calls", "samples", "loads"] {
        assert!(
            read(&format!("{csv}/{table}.csv")).starts_with("run,policy,"),
            "{table}"
        );
        let bytes = fs::read(format!("{parquet}/{table}.parquet")).expect(table);
        assert!(
            bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"),
            "{table}"
        );
    }
    // A line for the names and one for each of both runs' steps.
    assert_eq!(
        read(&format!("{csv}/steps.csv")).lines().count(),
        1 + 296 + 288
    );
    let first = (read(&json), read(&html));
    report(&[&[runs[0].as_str(), &runs[1]][..], &flags].concat());
    assert_eq!(first, (read(&json), read(&html)));
}

#[test]
fn a_gates_directory_alone_is_reported_from_its_steps() {
    let folder = tempfile::tempdir().expect("a folder");
    gate_files(folder.path());
    let output = report(&[&folder.path().display().to_string()]);
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    for sentence in [
        "programs are derived from steps",
        "manifest.json is missing",
        "10 tasks and 40 steps in it",
        "| continuum |       1.50 |     0.10 |",
        "0.500",
    ] {
        assert!(said.contains(sentence), "{sentence}\n{said}");
    }
}

#[test]
fn without_the_gates_steps_a_gates_run_is_refused_and_one_without_a_gate_is_not() {
    let gated = Broken::replay("continuum");
    gated.noted("## Completeness");
    gated.remove("steps.jsonl");
    gated.refused("incomplete: steps.jsonl is missing: the gate's holds and policy are unknown");
    let direct = Broken::replay("direct");
    direct.remove("steps.jsonl");
    let (code, said) = direct.report(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("steps.jsonl"), "{said}");
    // As a driver leaves it that records no requests.
    direct.remove("client_steps.jsonl");
    direct.remove("summary.json");
    direct.refused("incomplete: steps.jsonl is missing: there are no steps to count");
    direct.edit("manifest.json", |manifest| {
        manifest.replacen('{', "{\"ended\":{\"outcome\":\"done\"},", 1)
    });
    direct.noted("note: steps.jsonl is missing: steps are unknown without a gate");
    let (_, said) = direct.report(&[]);
    assert!(
        said.contains("| direct |       1.50 |        - |"),
        "{said}"
    );
}

#[test]
fn neither_users_nor_inferred_programs_beside_recorded_tasks_never_ended() {
    let run = Broken::replay("continuum");
    run.edit("steps.jsonl", |steps| {
        [
            &step("p0:user", 0, 1.0),
            steps,
            &step("inferred:1a", 0, 2.0),
        ]
        .concat()
    });
    let (code, said) = run.report(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("Programs that never ended"), "{said}");
    assert!(said.contains("| user_sim |"), "{said}");
    run.edit("programs.jsonl", |programs| {
        programs.split_inclusive('\n').skip(1).collect()
    });
    let (_, said) = run.report(&["--allow-incomplete"]);
    let (_, open) = said
        .split_once("Programs that never ended")
        .expect("a table");
    assert!(
        open.contains("| p0 ") && !open.contains("inferred"),
        "{said}"
    );
}

#[test]
fn a_file_that_a_killed_run_left_half_written_is_named_and_other_runs_still_show() {
    let other = fixture("ct32").display().to_string();
    let of_a_reference_run = ["outputs/metrics_global.json", "scheduler_timestamps"];
    let of_a_replay = ["manifest.json", "summary.json"];
    for file in of_a_reference_run.iter().chain(&of_a_replay) {
        for left in ["", "{"] {
            let run = if of_a_replay.contains(file) {
                Broken::replay("continuum")
            } else {
                Broken::new()
            };
            fs::write(run.dir().join(file), left).expect("a file");
            run.refused(&format!(
                "incomplete: {file} cannot be read (EOF while parsing"
            ));
            let (code, said) = run.report(&[&other, "--allow-incomplete", "--manifest"]);
            assert_eq!(code, Some(0), "{said}");
            assert!(said.contains("continuum C=32"), "{said}");
        }
    }
}

#[test]
fn a_driver_log_of_other_bytes_is_named() {
    let run = Broken::new();
    let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(run.dir().join("driver.log"), bytes).expect("a file");
    run.refused("incomplete: nothing in driver.log could be read");
}

#[test]
fn a_killed_run_without_open_programs_does_not_count_them() {
    let run = Broken::replay("continuum");
    run.remove("summary.json");
    run.refused("killed or is still running: summary.json is not there\n");
}

#[test]
fn kv_usage_above_the_possible_is_noted() {
    let run = Broken::replay("continuum");
    run.edit("kv_cache_timeseries.csv", |csv| {
        csv.replace(",0.9\n", ",90\n")
    });
    run.noted("note: KV usage reaches 9000 %: the samples' values should be fractions");
}

#[test]
fn results_that_are_missing_after_completed_tasks_are_noted() {
    let run = Broken::new();
    fs::remove_dir_all(run.dir().join("outputs")).expect("a folder");
    run.noted("note: outputs is missing: driver.log says that tasks completed");
}

#[test]
fn flags_are_checked_before_anything_is_read() {
    for (flags, named) in [
        (["--label", "TR32"], "NAME=DIR"),
        (["--threshold", "170"], "--threshold"),
        (["--log-tz", "Nowhere"], "--log-tz"),
    ] {
        let dir = fixture("tr32").display().to_string();
        let output = report(&[&[dir.as_str()], &flags[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains(named),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn one_directory_under_two_names_is_refused() {
    let plain = fixture("tr32").display().to_string();
    let spelt = format!("{plain}/../tr32");
    let label = format!("A={spelt}");
    for flags in [&[plain.as_str(), &spelt][..], &[&plain, "--label", &label]] {
        let output = report(flags);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        let expected = format!("{plain} and {spelt} are the same run directory");
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn a_refusal_replaces_older_files_and_has_no_figures() {
    let run = Broken::new();
    fs::remove_file(run.dir().join("driver.log")).expect("a file");
    let at = |name: &str| run.folder.path().join(name).display().to_string();
    let (json, html, csv, out) = (at("r.json"), at("r.html"), at("csv"), at("out"));
    fs::write(&json, "old").expect("a file");
    let (code, said) = run.report(&[
        "--json", &json, "--html", &html, "--csv", &csv, "--out", &out,
    ]);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains(&format!("no tables are written to {csv}")),
        "{said}"
    );
    assert!(!Path::new(&csv).exists());
    let read = |path: &str| fs::read_to_string(path).expect(path);
    let (json, html) = (read(&json), read(&html));
    assert_eq!(json, read(&format!("{out}/report.json")));
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(value["refused"], "1 of 1 runs cannot be trusted");
    let finding = value["runs"][0]["findings"][0]["text"].as_str();
    let finding = finding.expect("a finding");
    assert!(finding.contains("driver.log is missing"), "{finding}");
    for text in [&html, &read(&format!("{out}/report.md"))] {
        assert!(text.contains(finding), "{text}");
    }
    for figure in ["tasks_per_min", "verdict", "\"window\""] {
        assert!(!json.contains(figure), "{json}");
    }
    assert!(!html.contains("tasks/min"), "no figures on the page");
}

#[test]
fn output_that_cannot_be_written_is_one_line_and_a_closed_pipe_is_none() {
    let runs = fixture("tr32").display().to_string();
    let kv = fixture("tr32")
        .join("kv_cache_timeseries.csv")
        .display()
        .to_string();
    let commands = [
        &["report", runs.as_str()][..],
        &["reference", "breakdown", "--name", "X", "--run-dir", &runs],
        &["reference", "kv-after", "--cutoff", "0", "--kv-csv", &kv],
    ];
    for command in commands {
        let kvgate = |out: Stdio| {
            let mut kvgate = Command::new(env!("CARGO_BIN_EXE_kvgate"));
            kvgate
                .args(command)
                .env("TZ", "UTC")
                .stdout(out)
                .stderr(Stdio::piped());
            let output = kvgate.output().expect("kvgate runs");
            (output.status.code(), text(&output.stderr))
        };
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let (code, said) = kvgate(full.expect("a full device").into());
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.starts_with("kvgate: cannot write to standard output: "),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (code, said) = kvgate(writer.into());
        assert_eq!(said, "");
        // kv-after says 2 where it finds samples.
        assert_eq!(code, Some(if command[1] == "kv-after" { 2 } else { 0 }));
    }
}

#[test]
fn a_negative_threshold_is_told_its_range() {
    let output = report(&[&fixture("tr32").display().to_string(), "--threshold", "-5"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("--threshold is a percentage"), "{said}");
}
