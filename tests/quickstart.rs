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
    for policy in ["baseline", "thunderagent", "kvgate"] {
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

/// Runs a command line whose words hold no blanks; what it printed, if it succeeded.
fn printed(line: &str) -> String {
    let run = kvgate(&line.split_whitespace().collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{line}\n{text}{complaint}");
    text
}

#[test]
fn a_live_server_is_played_on_with_and_without_a_gate_and_compared_with_the_simulation() {
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().display();
    printed(&format!(
        "trace orch --programs 3 --steps-scale 0.2 --gap-scale 0.01 --out {dir}/orch.jsonl"
    ));
    let engine = engine();
    let live = format!(
        "quickstart --backend {} --trace {dir}/orch.jsonl --policies direct,baseline --concurrency 2 \
         --stand-in --quiet --out {dir}",
        engine.1
    );
    let text = printed(&format!("{live}/runs"));
    assert!(text.contains("orch C=2 direct: "), "{text}");

    // Nothing is begun once the time is spent, and what is there is kept.
    let kept = printed(&format!("{live}/runs --budget-s 0 --keep"));
    assert_eq!(kept.matches(": kept").count(), 2, "{kept}");
    let none = printed(&format!("{live}/others --budget-s 0"));
    assert!(none.contains("2 cells are left"), "{none}");

    let beside = printed(&format!(
        "simulate --cost cpu-tiny --history stand-in --against {dir}/runs/c2-direct {dir}/runs/c2-baseline"
    ));
    assert!(beside.contains("of 2 runs: steps/s within"), "{beside}");
}
