//! The whole path in small: real processes, one program per slot, the table and the files it promises.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::process::{Command, Output};

fn kvgate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvgate"))
        .args(args)
        .env("KVGATE_POLICY", "nonsense that must not reach the children")
        .output()
        .expect("kvgate runs")
}

#[test]
fn one_command_plays_every_policy_and_prints_the_table() {
    let temp = tempfile::tempdir().expect("a folder");
    let out = temp.path().join("runs").display().to_string();
    let matrix = [
        "quickstart",
        "--concurrency",
        "2",
        "--programs",
        "3",
        "--speedup",
        "300",
    ];
    let run = kvgate(&[&matrix[..], &["--quiet", "--out", &out]].concat());
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&run.stderr)
    );
    for policy in ["baseline", "thunderreact", "continuum"] {
        assert!(text.contains(&format!("tau2 C=2 {policy}: ")), "{text}");
        let cell = temp.path().join(format!("runs/c2-{policy}"));
        for file in [
            "manifest.json",
            "programs.jsonl",
            "client_steps.jsonl",
            "summary.json",
            "steps.jsonl",
            "kv_cache_timeseries.csv",
        ] {
            let size = cell.join(file).metadata().map(|data| data.len());
            assert!(size.is_ok_and(|size| size > 0), "{policy}: {file}");
        }
    }
    assert!(text.contains("winner in the window"), "{text}");

    let kept = kvgate(&[&matrix[..], &["--quiet", "--out", &out, "--keep"]].concat());
    let text = String::from_utf8_lossy(&kept.stdout);
    assert_eq!(text.matches(": kept").count(), 3, "{text}");
}

#[test]
fn a_used_folder_is_not_overwritten() {
    let temp = tempfile::tempdir().expect("a folder");
    std::fs::write(temp.path().join("mine"), "x").expect("a file");
    let run = kvgate(&["quickstart", "--out", &temp.path().display().to_string()]);
    assert!(!run.status.success());
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(
        text.contains("not empty") && text.contains("--keep"),
        "{text}"
    );
}

/// An engine of its own process, ended with the test.
struct Engine(std::process::Child, String);

impl Drop for Engine {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn engine() -> Engine {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvgate"))
        .args(["engine", "--listen", "127.0.0.1:0", "--cost", "cpu-tiny"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("an engine");
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("its output");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    let url = line.trim().trim_start_matches("listening on ").to_owned();
    Engine(child, url)
}

#[test]
fn a_live_server_is_played_on_with_and_without_a_gate_and_compared_with_the_simulation() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = |name: &str| temp.path().join(name).display().to_string();
    let (trace, out) = (path("orch.jsonl"), path("runs"));
    let drawn = [
        "trace",
        "orch",
        "--programs",
        "3",
        "--steps-scale",
        "0.2",
        "--gap-scale",
        "0.01",
        "--out",
        &trace,
    ];
    assert!(kvgate(&drawn).status.success());
    let engine = engine();
    let live = [
        "quickstart",
        "--backend",
        &engine.1,
        "--trace",
        &trace,
        "--policies",
        "direct,baseline",
        "--concurrency",
        "2",
        "--stand-in",
        "--quiet",
        "--out",
        &out,
    ];
    let text = |run: &Output| String::from_utf8_lossy(&run.stdout).into_owned();
    let run = kvgate(&live);
    assert!(
        run.status.success(),
        "{}{}",
        text(&run),
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(text(&run).contains("orch C=2 direct: "), "{}", text(&run));

    // Nothing is begun once the time is spent, and what is there is kept.
    let later = kvgate(&[&live[..], &["--budget-s", "0", "--keep"]].concat());
    assert_eq!(
        text(&later).matches(": kept").count(),
        2,
        "{}",
        text(&later)
    );
    let others = path("others");
    let other = kvgate(&[&live[..live.len() - 1], &[&others, "--budget-s", "0"]].concat());
    assert!(
        text(&other).contains("2 cells are left"),
        "{}",
        text(&other)
    );

    let (direct, gated) = (path("runs/c2-direct"), path("runs/c2-baseline"));
    let against = [
        "simulate",
        "--cost",
        "cpu-tiny",
        "--history",
        "stand-in",
        "--against",
        &direct,
        &gated,
    ];
    let beside = kvgate(&against);
    assert!(
        beside.status.success(),
        "{}",
        String::from_utf8_lossy(&beside.stderr)
    );
    assert!(
        text(&beside).contains("of 2 runs: steps/s within"),
        "{}",
        text(&beside)
    );
}
