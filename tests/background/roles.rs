//! What the child processes do.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use kvgate::harness::experiment::console::Console;
use kvgate::harness::experiment::detach;
use kvgate::harness::experiment::manifest::{Inputs, Record};
use kvgate::harness::experiment::state::{Cell, Keeper, Lock, Phase, State};
use kvgate::harness::rundir::RunDir;
use tokio::signal::unix::{SignalKind, signal};

/// The variable that names the role; without it nothing is played.
pub(crate) const ROLE: &str = "KVGATE_TEST_ROLE";
/// The experiment's directory.
pub(crate) const DIR: &str = "KVGATE_TEST_DIR";
/// The terminal to play on.
pub(crate) const TERMINAL: &str = "KVGATE_TEST_TERMINAL";
/// Holds a key.
pub(crate) const KEY: &str = "KVGATE_TEST_API_KEY";

#[tokio::test]
async fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let dir = PathBuf::from(std::env::var_os(DIR).expect("a directory"));
    match role.as_str() {
        "background" => background(dir).await,
        "terminal" => terminal(dir).await,
        "reader" => reader(dir),
        "locked" => locked(dir),
        "manifest" => manifest(dir).await,
        other => panic!("no role {other}"),
    }
}

/// Plays until it is asked to end.
async fn background(dir: PathBuf) {
    detach::settle().expect("a session");
    let console = Console::open(&dir, true).expect("a log");
    let mut terminate = signal(SignalKind::terminate()).expect("a signal");
    let state = State::begin(1.0, vec![Cell::planned("a", "", 1)]).expect("a state");
    let mut keeper = Keeper::new(&dir, state);
    keeper.update(1.0, |_| {});
    console.say("preflight: all is well");
    keeper.update(2.0, |state| state.phase = Phase::Playing);
    terminate.recv().await;
    keeper.update(3.0, |state| state.phase = Phase::Interrupted);
}

/// Plays on a terminal, which goes away.
async fn terminal(dir: PathBuf) {
    detach::settle().expect("a session");
    // The first terminal that the leader of a session opens is that session's.
    let name = std::env::var_os(TERMINAL).expect("a terminal");
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(name)
        .expect("a terminal");
    rustix::stdio::dup2_stdout(&terminal).expect("standard output");
    rustix::stdio::dup2_stderr(&terminal).expect("standard error");
    drop(terminal);
    let console = Console::open(&dir, false).expect("a log");
    console.survive_hangup().expect("a signal");
    let bar = console.bar(4, "cell");
    bar.inc(1);
    console.say("before");
    console.hung_up().await;
    bar.inc(1);
    console.say("after");
    writeln!(std::io::stderr(), "straight to standard error").expect("a log");
}

/// Plays into a pipe that nobody reads.
fn reader(dir: PathBuf) {
    let console = Console::open(&dir, false).expect("a log");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a word to go on");
    console.say("to nobody");
    writeln!(std::io::stderr(), "straight to standard error").expect("a log");
    writeln!(std::io::stdout(), "went on").expect("a reader");
}

/// Holds a directory until it is killed.
fn locked(dir: PathBuf) {
    let _lock = Lock::take(&dir).expect("free");
    writeln!(std::io::stdout(), "locked").expect("a reader");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("an end");
}

/// Writes a manifest with a key in the environment and in what was asked for.
async fn manifest(dir: PathBuf) {
    let key = std::env::var(KEY).expect("a key");
    let inputs = Inputs {
        spec: format!("Bearer {key}").into(),
        ..Inputs::default()
    };
    let record = Record::begin(inputs, 1.0).await;
    record.write(&RunDir::at(dir)).expect("written");
}
