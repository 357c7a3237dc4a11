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
