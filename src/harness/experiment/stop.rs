//! `kvgate experiment stop DIR`: ends whoever plays there, gently at first.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::process::Signal;

use super::process::{Life, Process};
use super::state::{Phase, State};
use super::status;
use crate::harness::stdout;

/// How often it is asked whether the process has ended.
const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to end that was told to do so at once, before it is killed.
const GRACE: Duration = Duration::from_secs(30);
/// How long the kernel may take to end a process that it was told to kill.
const KILL: Duration = Duration::from_secs(10);

/// End an experiment that runs, in this or another terminal.
///
/// It starts no more tasks, lets those that run end, writes its files and ends. `kvgate experiment resume DIR` goes on
/// from there. Waits until it has ended, and then returns 0; 3 if it had ended before without an end of its own, and 2 if
/// DIR is no experiment, or one of another machine.
#[derive(Clone, Debug, Args)]
pub struct StopArgs {
    /// The experiment's directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Do not wait for tasks that run: they are given up, and played again by `resume`
    #[arg(long)]
    pub now: bool,

    /// Seconds that tasks may take to end, before it goes on as with --now
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub stop_patience: u64,
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was asked, and its tasks ended.
    Drained,
    /// It was told to give up its tasks.
    AtOnce,
    /// It was killed, and all that it started.
    Killed,
}

/// How long to wait at each step.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// For tasks to end.
    pub drain: Duration,
    /// For the process to end that gave them up.
    pub grace: Duration,
}

/// Stops the experiment and waits for its end.
///
/// # Errors
/// When the process belongs to another user, or lives on although it was killed.
pub async fn run(args: StopArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.display();
    let state = match State::read(&args.dir) {
        Ok(Some(state)) => state,
        Ok(None) => {
            return say(
                &format!("{dir} is no experiment: it has no state.json"),
                status::NOT_ONE,
            );
        }
        Err(error) => return say(&format!("{error:#}"), status::NOT_ONE),
    };
    let process = &state.process;
    let pid = process.pid;
    match process.life() {
        Life::Alive => {}
        Life::Elsewhere => {
            let text = format!(
                "process {pid} ran on another machine, or before this one was restarted: stop it there"
            );
            return say(&text, status::NOT_ONE);
        }
        Life::Ended if state.phase.is_over() => return say(&ended(&state), 0),
        Life::Ended => {
            let text = format!(
                "process {pid} has ended without a word; `kvgate experiment resume {dir}` goes on"
            );
            return say(&text, status::BAD);
        }
    }
    let manner = Manner {
        drain: if args.now {
            Duration::ZERO
        } else {
            Duration::from_secs(args.stop_patience)
        },
        grace: GRACE,
    };
    if !args.now {
        stdout::say(&format!(
            "process {pid} is asked to end; it may take {} s (`kvgate experiment stop --now {dir}` ends it at once)\n",
            args.stop_patience
        ))?;
    }
    let how = stop(process, manner).await?;
    let word = match how {
        How::Drained => "it let its tasks end",
        How::AtOnce => "it gave up the tasks that ran",
        How::Killed => "it was killed with all it had started",
    };
    say(
        &format!("process {pid} has ended: {word}; `kvgate experiment resume {dir}` goes on"),
        0,
    )
}

fn say(text: &str, code: u8) -> anyhow::Result<ExitCode> {
    stdout::say(&format!("{text}\n"))?;
    Ok(ExitCode::from(code))
}

/// What there is to say of an experiment that is over.
fn ended(state: &State) -> String {
    let word = match state.phase {
        Phase::Done => "it was played to its end",
        Phase::Interrupted => "it was stopped before",
        Phase::Preflight | Phase::Starting | Phase::Playing | Phase::Draining | Phase::Failed => {
            "it failed before"
        }
    };
    format!("nothing to stop: {word}")
}

/// Ends a process: SIGTERM, for which it lets its tasks end; then SIGINT, for which it gives them up; then SIGKILL, to
/// it and to all that it started. Returns when it has ended.
///
/// The second signal is another one because two of a kind, sent fast, arrive as one.
///
/// # Errors
/// When the process belongs to another user, or lives on although it was killed.
pub async fn stop(process: &Process, manner: Manner) -> anyhow::Result<How> {
    process.signal(Signal::TERM)?;
    if has_ended(process, manner.drain).await {
        return Ok(How::Drained);
    }
    process.signal(Signal::INT)?;
    if has_ended(process, manner.grace).await {
        return Ok(How::AtOnce);
    }
    let descendants = process.descendants();
    for process in std::iter::once(process).chain(&descendants) {
        process.signal(Signal::KILL)?;
    }
    for process in std::iter::once(process).chain(&descendants) {
        let gone = has_ended(process, KILL).await;
        anyhow::ensure!(
            gone,
            "process {} lives on although it was killed",
            process.pid
        );
    }
    Ok(How::Killed)
}

/// Waits until it has ended, or for so long.
async fn has_ended(process: &Process, patience: Duration) -> bool {
    let ends = async {
        while process.life() == Life::Alive {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(patience, ends).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::harness::experiment::state::{Cell, Keeper};

    const LONG: Duration = Duration::from_secs(60);

    /// A shell that says "ready" and then waits.
    fn shell(script: &str) -> (Child, Process) {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let process = Process::of(child.id()).unwrap();
        (child, process)
    }

    fn manner(drain: Duration, grace: Duration) -> Manner {
        Manner { drain, grace }
    }

    #[tokio::test]
    async fn who_heeds_the_first_signal_is_sent_no_other() {
        let (mut child, process) =
            shell("trap 'exit 7' TERM; trap 'exit 9' INT; echo ready; read x");
        let how = stop(&process, manner(LONG, LONG)).await.unwrap();
        assert_eq!(how, How::Drained);
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[tokio::test]
    async fn who_drains_too_long_is_told_to_give_up_its_tasks() {
        let (mut child, process) = shell("trap '' TERM; trap 'exit 9' INT; echo ready; read x");
        let how = stop(&process, manner(Duration::ZERO, LONG)).await.unwrap();
        assert_eq!(how, How::AtOnce);
        assert_eq!(child.wait().unwrap().code(), Some(9));
    }

    #[tokio::test]
    async fn who_heeds_nothing_is_killed_with_all_it_started() {
        let (mut child, process) = shell("trap '' TERM INT; tail -f /dev/null & echo ready; wait");
        let started = process.descendants();
        assert_eq!(started.len(), 1, "{started:?}");
        let how = stop(&process, manner(Duration::ZERO, Duration::ZERO))
            .await
            .unwrap();
        assert_eq!(how, How::Killed);
        assert_eq!(started[0].life(), Life::Ended);
        assert!(!child.wait().unwrap().success());
    }

    /// What `stop` answers for an experiment in this phase whose process is the one `change` makes of ours.
    async fn code(phase: Phase, change: impl FnOnce(&mut Process)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::begin(1.0, vec![Cell::planned("a", "", 1)]).unwrap();
        state.phase = phase;
        change(&mut state.process);
        Keeper::new(dir.path(), state).update(1.0, |_| {});
        asked(dir.path().to_owned()).await
    }

    async fn asked(dir: PathBuf) -> String {
        let args = StopArgs {
            dir,
            now: false,
            stop_patience: 60,
        };
        format!("{:?}", run(args).await.unwrap())
    }

    #[tokio::test]
    async fn what_is_over_dead_elsewhere_or_no_experiment_is_told_apart_and_nobody_is_signalled() {
        let shown = |code: u8| format!("{:?}", ExitCode::from(code));
        let recycled = |process: &mut Process| process.started_ticks += 1;
        assert_eq!(code(Phase::Done, recycled).await, shown(0));
        assert_eq!(code(Phase::Playing, recycled).await, shown(status::BAD));
        let elsewhere = |process: &mut Process| "another".clone_into(&mut process.boot);
        assert_eq!(
            code(Phase::Playing, elsewhere).await,
            shown(status::NOT_ONE)
        );
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(asked(dir.path().to_owned()).await, shown(status::NOT_ONE));
    }
}
