//! An experiment as a process of its own, and what it leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const KVGATE: &str = env!("CARGO_BIN_EXE_kvgate");
/// How long anything here may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// A command of kvgate's that reads no setting of whoever runs the tests.
pub(crate) fn kvgate(line: &str) -> Command {
    let mut command = Command::new(KVGATE);
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

/// Runs `kvgate experiment LINE` to its end.
pub(crate) fn experiment(line: &str) -> Output {
    let run = kvgate(&format!("experiment {line}")).output();
    run.expect("kvgate runs")
}

/// What it printed, on either stream.
pub(crate) fn said(run: &Output) -> String {
    let [out, err] = [&run.stdout, &run.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

/// Looks again and again until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(POLL);
    }
}

/// An experiment that is being played; it is killed when the test is over.
pub(crate) struct Playing {
    child: Child,
    dir: PathBuf,
}

impl Drop for Playing {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Playing {
    /// Starts `kvgate experiment LINE`, whose directory is `dir`.
    pub(crate) fn start(line: &str, dir: &Path) -> Self {
        Self::of(&mut kvgate(&format!("experiment {line}")), dir)
    }

    /// Starts a command, whose directory is `dir`.
    pub(crate) fn of(command: &mut Command, dir: &Path) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self {
            child: child.expect("kvgate starts"),
            dir: dir.to_owned(),
        }
    }

    /// Waits until the cell of this name has seen so many tasks end.
    pub(crate) fn until_ended(&mut self, cell: &str, tasks: u64) {
        until(&format!("{tasks} tasks of {cell}"), || {
            let over = self.child.try_wait().expect("it can be waited for");
            assert_eq!(over, None, "{}", log(&self.dir));
            let state = json(&self.dir.join("state.json"))?;
            let cell = cell_of(&state, cell)?;
            let ended = cell["ok"].as_u64()? + cell["failed"].as_u64()?;
            (ended >= tasks).then_some(())
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// The processes that it has started and that run, by what they are: `engine`, `serve`.
    pub(crate) fn children(&self) -> BTreeMap<String, u32> {
        descendants(self.child.id())
            .into_iter()
            .filter_map(|id| Some((role(id)?, id)))
            .collect()
    }

    /// Waits for its end; its exit status.
    pub(crate) fn end(mut self) -> Option<i32> {
        let status = until("its end", || self.child.try_wait().expect("its status"));
        status.code()
    }
}

pub(crate) fn send(id: u32, signal: Signal) {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    kill_process(id.expect("an id"), signal).expect("it runs");
}

/// What kvgate was started as; `None` if it is no kvgate, guards another process or is gone.
fn role(id: u32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
    let mut words = line.split('\0');
    let program = words.next()?;
    let role = words.next().filter(|role| *role != "guard")?;
    program.ends_with("kvgate").then(|| role.to_owned())
}

fn descendants(of: u32) -> Vec<u32> {
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found.split_off(1)
}

/// Waits until none of these processes runs.
pub(crate) fn until_gone(ids: impl IntoIterator<Item = u32>) {
    for id in ids {
        until(&format!("the end of process {id}"), || {
            role(id).is_none().then_some(())
        });
    }
}

/// Whether somebody listens at an address such as `http://127.0.0.1:1900`.
pub(crate) fn listens(url: &str) -> bool {
    TcpStream::connect(url.trim_start_matches("http://")).is_ok()
}

/// A file of JSON; `None` if it is not there.
pub(crate) fn json(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// A file of JSON lines.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a file of lines");
    let values = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    values.collect()
}

pub(crate) fn cell_of<'a>(state: &'a Value, name: &str) -> Option<&'a Value> {
    let cells = state["cells"].as_array()?;
    cells.iter().find(|cell| cell["name"] == name)
}

/// What the experiment's log has.
pub(crate) fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("experiment.log")).unwrap_or_default()
}

/// The log's lines with this in them.
pub(crate) fn logged(dir: &Path, text: &str) -> usize {
    log(dir).lines().filter(|line| line.contains(text)).count()
}

/// How the manifest says that the cell in `dir` ended.
pub(crate) fn ended(dir: &Path) -> Value {
    let manifest = json(&dir.join("manifest.json")).expect("a manifest");
    manifest["ended"].clone()
}

/// A folder for an experiment, and the words that every one of these has in common: small, sped up, on a free port.
pub(crate) fn place() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("run");
    (temp, dir)
}

/// `run` or `matrix` of recorded programs on the embedded engine.
pub(crate) fn replay(command: &str, tasks: usize, speedup: u32, dir: &Path) -> String {
    format!(
        "{command} --workload replay --tasks {tasks} --speedup {speedup} --listen 127.0.0.1:0 --quiet --out {}",
        dir.display()
    )
}
