//! The official OpenAI client for Python, directly at the embedded engine and through the gate: byte for byte
//! the same. The comparison itself is `tests/openai/differential.py`.
//!
//! The client is installed once, from a lock file, into `target/openai-venv`. Where there is no Python 3.10 the
//! test says so and passes; with `KVGATE_REQUIRE_PYTHON=1`, as in CI, it fails instead.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use server::Server;

#[path = "support/server.rs"]
mod server;

/// Names under which a Python may be found, newest first.
const PYTHONS: [&str; 5] = [
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
    "python3",
];
/// What the client needs of it.
const IS_NEW_ENOUGH: &str = "import sys, venv; sys.exit(sys.version_info < (3, 10))";

/// `kvgate` with these arguments.
fn kvgate(arguments: &[&str]) -> Server {
    Server::start(Command::new(env!("CARGO_BIN_EXE_kvgate")).args(arguments))
}

fn python() -> Option<&'static str> {
    PYTHONS.into_iter().find(|name| {
        let asked = Command::new(name)
            .args(["-c", IS_NEW_ENOUGH])
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    })
}

/// Runs a command to its end; its output is shown when it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

/// A virtual environment with exactly the packages of the lock file; made once.
fn client(python: &str, lock: &Path) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-venv");
    let (installed, wanted) = (
        target.join("installed.txt"),
        fs::read_to_string(lock).expect("the lock file is there"),
    );
    let interpreter = target.join("bin/python");
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return interpreter;
    }
    run(Command::new(python)
        .args(["-m", "venv", "--clear"])
        .arg(&target));
    run(Command::new(&interpreter)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--require-hashes", "-r"])
        .arg(lock));
    fs::write(installed, wanted).expect("the environment can be marked");
    interpreter
}

#[test]
fn the_official_client_sees_no_difference() {
    let Some(python) = python() else {
        let required = std::env::var_os("KVGATE_REQUIRE_PYTHON").is_some();
        assert!(!required, "no Python of 3.10 or later");
        println!("skipped: no Python of 3.10 or later");
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai");
    let interpreter = client(python, &folder.join("requirements.txt"));
    let engine = kvgate(&[
        "engine",
        "--listen",
        "127.0.0.1:0",
        "--cost",
        "cpu-tiny",
        "--speedup",
        "20",
    ]);
    let gate = kvgate(&["serve", "--listen", "127.0.0.1:0", "--backend", &engine.url]);

    let report = run(Command::new(interpreter)
        .arg(folder.join("differential.py"))
        .args([&engine.url, &gate.url]));
    println!("{report}");
}
