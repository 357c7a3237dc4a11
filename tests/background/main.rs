//! Experiments and their processes: in the background, without their terminal, stopped, killed, told apart.
//!
//! The processes are this test program once more: [`child`] plays the role that the environment names.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

mod roles;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use kvgate::harness::experiment::detach::Launch;
use kvgate::harness::experiment::process::{Life, Process};
use kvgate::harness::experiment::state::{LOG, Lock, Phase, State};
use kvgate::harness::experiment::stop::{self, StopArgs};
use rustix::process::{Pid, getsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Arguments with which this program plays a role and does nothing else.
const ARGS: [&str; 3] = ["roles::child", "--exact", "--nocapture"];

/// This program in a role.
fn role(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(ARGS)
        .env(roles::ROLE, name)
        .env(roles::DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Waits until the child says this line.
fn hear(child: &mut Child, expected: &str) -> BufReader<std::process::ChildStdout> {
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while line.trim_end() != expected {
        line.clear();
        let read = output.read_line(&mut line).expect("a child that speaks");
        assert!(read > 0, "it ended before it said {expected:?}");
    }
    output
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join(LOG)).expect("a log")
}

fn same(code: ExitCode, expected: u8) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(expected))
}

#[tokio::test]
async fn in_the_background_it_has_a_session_of_its_own_and_can_be_stopped_from_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let exe = std::env::current_exe().expect("this program");
    let variables = [
        format!("{}=background", roles::ROLE),
        format!("{}={}", roles::DIR, dir.path().display()),
    ];
    let launch = Launch {
        program: "env".into(),
        args: variables
            .into_iter()
            .map(Into::into)
            .chain([exe.into()])
            .chain(ARGS.map(Into::into))
            .collect(),
        dir: dir.path().to_owned(),
    };
    let mut said = Vec::new();
    let code = launch.start(&mut said).await.expect("a child");
    let said = String::from_utf8(said).expect("text");
    assert!(same(code, 0), "{said}");
    let state = State::read(dir.path()).expect("readable").expect("a state");
    assert_eq!(state.phase, Phase::Playing);
    let pid = state.process.pid;
    for part in [
        "preflight: all is well",
        &format!("process {pid} plays"),
        "experiment status",
        "experiment stop",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    assert_eq!(
        getsid(pid).expect("a session"),
        pid.expect("a pid"),
        "its own"
    );

    let args = StopArgs {
        dir: dir.path().to_owned(),
        now: false,
        stop_patience: 60,
    };
    assert!(same(stop::run(args).await.expect("stopped"), 0));
    assert_eq!(state.process.life(), Life::Ended);
    let state = State::read(dir.path()).expect("readable").expect("a state");
    assert_eq!(
        state.phase,
        Phase::Interrupted,
        "it wrote its end\n{}",
        log(dir.path())
    );
}

#[tokio::test]
async fn a_preflight_that_fails_in_the_background_is_told_in_front_with_its_status() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join(LOG), "of an earlier run\n").expect("a log");
    let launch = Launch {
        program: "sh".into(),
        args: ["-c", "echo 'preflight: 1 error' >&2; exit 2"]
            .map(Into::into)
            .to_vec(),
        dir: dir.path().to_owned(),
    };
    let mut said = Vec::new();
    let code = launch.start(&mut said).await.expect("a child");
    assert_eq!(String::from_utf8_lossy(&said), "preflight: 1 error\n");
    assert!(same(code, 2));
}

#[test]
fn a_terminal_that_goes_away_does_not_take_the_experiment_along() {
    let dir = tempfile::tempdir().expect("a folder");
    let terminal =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&terminal).expect("ours");
    unlockpt(&terminal).expect("open");
    let name = ptsname(&terminal, Vec::new()).expect("a name");
    let name = name.to_str().expect("text");
    let mut child = role("terminal", dir.path())
        .env(roles::TERMINAL, name)
        .spawn()
        .expect("a child");

    let mut screen = BufReader::new(File::from(terminal));
    let mut line = String::new();
    while !line.trim_end().ends_with("before") {
        line.clear();
        let read = screen.read_line(&mut line).expect("a terminal that shows");
        assert!(read > 0, "it did not say a word");
    }
    drop(screen);

    assert!(
        child.wait().expect("an end").success(),
        "{}",
        log(dir.path())
    );
    let log = log(dir.path());
    let at = [
        "before",
        "the terminal is gone",
        "after",
        "straight to standard error",
    ]
    .map(|part| log.find(part));
    assert!(
        at.iter().all(Option::is_some) && at.is_sorted(),
        "{at:?}\n{log}"
    );
    assert_eq!(
        log.matches(" after\n").count(),
        1,
        "once, not once for each stream\n{log}"
    );
}

#[test]
fn a_reader_that_left_does_not_take_the_experiment_along() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut child = role("reader", dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child");
    drop(child.stderr.take());
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"go\n").expect("a child that reads");
    // Its standard output goes on being read.
    let _output = hear(&mut child, "went on");
    assert!(child.wait().expect("an end").success());
    let log = log(dir.path());
    for part in [
        " to nobody\n",
        "the terminal is gone",
        "straight to standard error",
    ] {
        assert!(log.contains(part), "{part:?} is not in\n{log}");
    }
}

#[test]
fn a_killed_run_gives_its_directory_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut child = role("locked", dir.path()).spawn().expect("a child");
    let _output = hear(&mut child, "locked");
    let error = Lock::take(dir.path()).expect_err("taken").to_string();
    assert!(
        error.contains(&format!("process {}", child.id())),
        "{error}"
    );
    child.kill().expect("a child to kill");
    child.wait().expect("an end");
    Lock::take(dir.path()).expect("free");
}

#[test]
fn a_process_is_no_longer_alive_once_it_has_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut child = role("locked", dir.path()).spawn().expect("a child");
    let process = Process::of(child.id()).expect("a process");
    assert_eq!(process.life(), Life::Alive);
    child.kill().expect("a child to kill");
    child.wait().expect("an end");
    assert_eq!(process.life(), Life::Ended);
}

#[test]
fn a_key_in_the_environment_is_never_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = "sk-from-the-environment";
    let ended = role("manifest", dir.path())
        .env(roles::KEY, key)
        .env("KVGATE_TEST_LISTED", "shown")
        .output()
        .expect("a child");
    assert!(ended.status.success(), "{ended:?}");
    let text = fs::read_to_string(dir.path().join("manifest.json")).expect("a manifest");
    assert!(text.contains(r#""KVGATE_TEST_LISTED": "shown""#), "{text}");
    assert!(text.contains("Bearer ***"), "{text}");
    assert!(!text.contains(key), "{text}");
}
