//! Engines of an experiment as real processes: started, waited for, watched, ended, and nothing left of them.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvgate::clock::Clock;
use kvgate::harness::experiment::engine::{Engine, EngineOptions, GAPS, Kind};
use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

const KVGATE: &str = env!("CARGO_BIN_EXE_kvgate");
/// How long anything here may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a test waits for, with a deadline instead of for ever.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(DEADLINE, future).await;
    result.expect(what)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn start(options: &EngineOptions, dir: &Path) -> anyhow::Result<Engine> {
    let plan = options
        .check()
        .map_err(|all| anyhow::anyhow!(all.join("\n")))?;
    let plan = plan.guarded_by(KVGATE.into());
    let cancel = CancellationToken::new();
    within(
        "the engine starts or fails",
        plan.start(dir, &Clock::real(), &cancel),
    )
    .await
}

/// An engine by a shell command; `{engine}` in it is one that works.
fn command(template: &str) -> EngineOptions {
    let engine = format!("'{KVGATE}' engine --listen 127.0.0.1:{{port}} --model {{model}}");
    EngineOptions {
        engine_cmd: Some(template.replace("{engine}", &engine)),
        engine_port: Some(0),
        served_model: Some("tiny".to_owned()),
        engine_stop_s: Some(1),
        ..EngineOptions::default()
    }
}

fn read(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name))
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
}

fn pid(text: &str) -> Pid {
    text.parse()
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id")
}

/// Parents of all processes that run, by process; one that has ended but was not waited for does not run.
fn parents() -> BTreeMap<i32, i32> {
    let parent = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let runs = fields.next() != Some("Z");
        runs.then_some((id, fields.next()?.parse().ok()?))
    };
    let entries = fs::read_dir("/proc").expect("processes");
    entries.flatten().filter_map(parent).collect()
}

fn runs(id: Pid) -> bool {
    parents().contains_key(&id.as_raw_nonzero().get())
}

/// An engine that runs already.
struct Running(Child, String);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn running() -> Running {
    let mut child = Command::new(KVGATE)
        .args(["engine", "--listen", "127.0.0.1:0", "--model", "tiny"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("an engine");
    let stdout = child.stdout.take().expect("its output");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("its address");
    let url = line.trim().trim_start_matches("listening on ").to_owned();
    Running(child, url)
}

#[tokio::test]
async fn an_engine_that_starts_slowly_is_waited_for_and_described() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command("until [ -e {run_dir}/go ]; do sleep 0.02; done; exec {engine}");
    let go = async {
        until("the engine is asked for", || {
            read(temp.path(), "engine.log").is_some()
        })
        .await;
        fs::write(temp.path().join("go"), "").expect("a file");
    };
    let (engine, ()) = tokio::join!(start(&options, temp.path()), go);
    let engine = engine.expect("an engine");
    assert_eq!(engine.model(), "tiny");
    let told = engine.describe();
    assert_eq!(told["kind"], "command");
    assert_eq!(told["max_model_len"], 40_960);
    assert_eq!(told["cache_config"]["num_gpu_blocks"], "5301");
    assert_eq!(told["argv"][0], "/bin/sh");
    engine.stop().await.expect("it ends, and its port is free");
}

#[tokio::test]
async fn an_engine_that_dies_at_its_start_is_told_with_the_end_of_its_log() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command(": {port}; echo 'no kernel for this GPU' >&2; exit 3");
    let error = start(&options, temp.path()).await.expect_err("it died");
    let text = format!("{error:#}");
    assert!(text.contains("exit status 3"), "{text}");
    assert!(text.contains("no kernel for this GPU"), "{text}");
}

#[tokio::test]
async fn an_engine_that_never_gets_ready_is_given_up_with_what_is_missing() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut options = command(": {port}; echo $$ > {run_dir}/pid; sleep 1000");
    options.engine_ready_s = Some(1);
    let error = start(&options, temp.path()).await.expect_err("not ready");
    let text = format!("{error:#}");
    assert!(
        text.contains("/health") && text.contains("--engine-ready-s"),
        "{text}"
    );
    let shell = pid(&read(temp.path(), "pid").expect("its process id"));
    until("it is gone", || !runs(shell)).await;
}

#[tokio::test]
async fn an_engine_that_dies_in_the_middle_is_noticed() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command("echo $$ > {run_dir}/pid; exec {engine}");
    let mut engine = start(&options, temp.path()).await.expect("an engine");
    let process = pid(&read(temp.path(), "pid").expect("its process id"));
    kill_process(process, Signal::KILL).expect("it runs");
    let why = within("its end is noticed", engine.ended()).await;
    assert!(why.contains("was killed by signal 9"), "{why}");
    engine.stop().await.expect("nothing is left to stop");
}

#[tokio::test]
async fn what_ignores_the_request_to_end_is_killed_with_all_that_it_started() {
    let temp = tempfile::tempdir().expect("a folder");
    let options =
        command("trap '' TERM; sleep 1000 & echo $! > {run_dir}/grandchild; {engine}; wait");
    let engine = start(&options, temp.path()).await.expect("an engine");
    let grandchild = pid(&read(temp.path(), "grandchild").expect("its process id"));
    assert!(runs(grandchild));
    within("it is killed", engine.stop())
        .await
        .expect("nothing is left");
    until("what it started is gone", || !runs(grandchild)).await;
}

#[tokio::test]
async fn what_an_engine_leaves_behind_is_ended_with_it() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command("sleep 1000 & echo $! > {run_dir}/left; exec {engine}");
    let engine = start(&options, temp.path()).await.expect("an engine");
    let left = pid(&read(temp.path(), "left").expect("its process id"));
    engine.stop().await.expect("it ends");
    until("what it left is gone", || !runs(left)).await;
}

#[tokio::test]
async fn an_engine_that_is_dropped_is_gone() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command("echo $$ > {run_dir}/pid; exec {engine}");
    let engine = start(&options, temp.path()).await.expect("an engine");
    let process = pid(&read(temp.path(), "pid").expect("its process id"));
    drop(engine);
    until("it is gone", || !runs(process)).await;
}

#[tokio::test]
async fn another_model_than_the_one_asked_for_is_an_error_that_lists_those_served() {
    let temp = tempfile::tempdir().expect("a folder");
    let server = running();
    let mut options = EngineOptions {
        backend: Some(server.1.clone()),
        served_model: Some("huge".to_owned()),
        ..EngineOptions::default()
    };
    let error = start(&options, temp.path())
        .await
        .expect_err("another model");
    let text = error.to_string();
    assert!(
        text.contains("does not serve \"huge\"") && text.contains("tiny"),
        "{text}"
    );
    options.served_model = None;
    let engine = start(&options, temp.path())
        .await
        .expect("any model will do");
    assert_eq!(engine.model(), "tiny");
    assert!(engine.expect_model("huge").is_err());
    engine.stop().await.expect("it is not ours to end");
    let health = reqwest::get(format!("{}/health", server.1)).await;
    assert!(health.is_ok_and(|answer| answer.status().is_success()));
}

#[tokio::test]
async fn the_embedded_engine_is_one_of_them() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = EngineOptions {
        kv_blocks: Some(4_000),
        speedup: Some(20.0),
        ..EngineOptions::default()
    };
    let engine = start(&options, temp.path()).await.expect("an engine");
    let told = engine.describe();
    assert_eq!(
        (&told["kind"], &told["cache_config"]["num_gpu_blocks"]),
        (&"embedded".into(), &"4000".into())
    );
    engine.stop().await.expect("it ends");
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_before_anything_starts() {
    let temp = tempfile::tempdir().expect("a folder");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut options = command("exec {engine}");
    options.engine_port = listener.local_addr().ok().map(|address| address.port());
    let error = start(&options, temp.path()).await.expect_err("taken");
    assert!(error.to_string().contains("is taken"), "{error:#}");
    assert!(!temp.path().join("engine.log").exists());
}

#[tokio::test]
async fn a_port_that_stays_taken_after_the_end_is_an_error() {
    let temp = tempfile::tempdir().expect("a folder");
    // It leaves the process group, where nothing of ours reaches it.
    let options = command("setsid {engine} & echo $! > {run_dir}/away; wait");
    let engine = start(&options, temp.path()).await.expect("an engine");
    let away = pid(&read(temp.path(), "away").expect("its process id"));
    let stopped = within("the port is looked at", engine.stop()).await;
    kill_process(away, Signal::KILL).expect("it outlived its engine");
    let text = stopped.expect_err("the port is taken").to_string();
    assert!(text.contains("is still taken"), "{text}");
}

#[tokio::test]
async fn an_interruption_while_it_starts_ends_it() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command(": {port}; echo $$ > {run_dir}/pid; sleep 1000");
    let plan = options.check().expect("a plan").guarded_by(KVGATE.into());
    let cancel = CancellationToken::new();
    let interrupt = async {
        until("it starts", || read(temp.path(), "pid").is_some()).await;
        cancel.cancel();
    };
    let clock = Clock::real();
    let (engine, ()) = tokio::join!(plan.start(temp.path(), &clock, &cancel), interrupt);
    assert!(
        engine
            .expect_err("interrupted")
            .to_string()
            .contains("interrupted")
    );
    let process = pid(&read(temp.path(), "pid").expect("its process id"));
    until("it is gone", || !runs(process)).await;
}

#[tokio::test]
async fn what_loses_its_guard_is_ended_too() {
    let temp = tempfile::tempdir().expect("a folder");
    let options = command("echo $PPID > {run_dir}/guard; echo $$ > {run_dir}/pid; exec {engine}");
    let mut engine = start(&options, temp.path()).await.expect("an engine");
    let [guard, process] =
        ["guard", "pid"].map(|file| pid(&read(temp.path(), file).expect("an id")));
    kill_process(guard, Signal::KILL).expect("it runs");
    let why = within("its end is noticed", engine.ended()).await;
    assert!(why.contains("with its guard"), "{why}");
    until("the engine is gone", || !runs(process)).await;
}

#[test]
fn a_guard_without_a_pipe_to_its_parent_refuses() {
    let guard = Command::new(KVGATE)
        .args(["guard", "--", "true"])
        .stdin(Stdio::null())
        .output();
    let guard = guard.expect("it runs");
    assert!(!guard.status.success());
    let text = String::from_utf8_lossy(&guard.stderr);
    assert!(text.contains("must be a pipe"), "{text}");
}

#[tokio::test]
async fn nothing_outlives_a_parent_that_is_killed() {
    let temp = tempfile::tempdir().expect("a folder");
    let out = temp.path().join("runs");
    let mut parent = Command::new(KVGATE)
        .args([
            "quickstart",
            "--quiet",
            "--speedup",
            "1",
            "--policies",
            "baseline",
            "--out",
        ])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a parent");
    let root = i32::try_from(parent.id()).expect("a process id");
    let mut below = Vec::new();
    // An engine and a gate, each with its guard.
    until("its children run", || {
        below = descendants(root);
        below.len() >= 4
    })
    .await;
    parent.kill().expect("it runs");
    parent.wait().expect("it ends");
    until("all of them are gone", || {
        below.iter().all(|id| !parents().contains_key(id))
    })
    .await;
}

fn descendants(root: i32) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        let children = parents.iter().filter(|(_, parent)| **parent == of);
        found.extend(children.map(|(id, _)| *id));
        next += 1;
    }
    found.split_off(1)
}

/// An ssh that forwards its first `-L` until there is a file `drop` in `dir`, which it takes away; fails at once while
/// there is a file `refuse`.
fn fake_ssh(dir: &Path) -> PathBuf {
    let path = dir.join("ssh");
    let script = format!(
        r#"#!/usr/bin/env python3
import os, socket, sys, threading, time
folder = {dir:?}
if os.path.exists(folder + "/refuse"):
    sys.exit("ssh: connect to host there port 22: Connection refused")
_, port, host, remote = sys.argv[sys.argv.index("-L") + 1].split(":")
def copy(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
def watch():
    while not os.path.exists(folder + "/drop"):
        time.sleep(0.01)
    os.remove(folder + "/drop")
    print("Connection reset by peer", file=sys.stderr, flush=True)
    os._exit(255)
threading.Thread(target=watch, daemon=True).start()
server = socket.create_server(("127.0.0.1", int(port)))
while True:
    near, _ = server.accept()
    far = socket.create_connection((host, int(remote)))
    for pair in (near, far), (far, near):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"#,
        dir = dir.display().to_string()
    );
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

fn remote(server: &Running, dir: &Path) -> EngineOptions {
    EngineOptions {
        ssh: Some("there".to_owned()),
        ssh_program: Some(fake_ssh(dir)),
        ssh_remote: Some(server.1.trim_start_matches("http://").to_owned()),
        engine_port: Some(0),
        ..EngineOptions::default()
    }
}

#[tokio::test]
async fn a_tunnel_that_breaks_is_made_again_and_the_gap_is_recorded() {
    let temp = tempfile::tempdir().expect("a folder");
    let server = running();
    let options = remote(&server, temp.path());
    assert_eq!(options.kind(), Kind::Ssh);
    let engine = start(&options, temp.path()).await.expect("a remote engine");
    assert_eq!((engine.model(), engine.gaps()), ("tiny", 0));

    fs::write(temp.path().join("drop"), "").expect("a file");
    until("the gap is over", || read(temp.path(), GAPS).is_some()).await;

    assert_eq!(engine.gaps(), 1);
    let health = reqwest::get(format!("{}/health", engine.url())).await;
    assert!(health.is_ok_and(|answer| answer.status().is_success()));
    let told = engine.describe();
    assert_eq!(
        (&told["kind"], &told["tunnel"]["gaps"]),
        (&"ssh".into(), &1.into())
    );
    engine.stop().await.expect("the tunnel ends");
    let text = read(temp.path(), GAPS).expect("gaps");
    let gap: serde_json::Value = serde_json::from_str(&text).expect("one line");
    assert!(gap["ended_s"].as_f64() > gap["began_s"].as_f64(), "{gap}");
    assert!(
        gap["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("Connection reset by peer")),
        "{gap}"
    );
}

#[tokio::test]
async fn a_tunnel_that_stays_broken_is_given_up() {
    let temp = tempfile::tempdir().expect("a folder");
    let server = running();
    let mut options = remote(&server, temp.path());
    options.ssh_patience_s = Some(2);
    let mut engine = start(&options, temp.path()).await.expect("a remote engine");
    fs::write(temp.path().join("refuse"), "").expect("a file");
    fs::write(temp.path().join("drop"), "").expect("a file");
    let why = within("it is given up", engine.ended()).await;
    assert!(why.contains("--ssh-patience-s"), "{why}");
    engine.stop().await.expect("nothing is left to stop");
    let text = read(temp.path(), GAPS).expect("gaps");
    let gap: serde_json::Value = serde_json::from_str(&text).expect("one line");
    assert!(gap["ended_s"].is_null(), "{gap}");
}

#[tokio::test]
async fn a_host_that_refuses_is_told_at_once() {
    let temp = tempfile::tempdir().expect("a folder");
    let server = running();
    fs::write(temp.path().join("refuse"), "").expect("a file");
    let error = start(&remote(&server, temp.path()), temp.path())
        .await
        .expect_err("refused");
    assert!(
        error.to_string().contains("Connection refused"),
        "{error:#}"
    );
}
