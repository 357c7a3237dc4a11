//! The real tau2-bench, four simulations over its three domains, through `kvgate serve` in front of a stand-in model or the
//! embedded engine.
//!
//! The benchmark is installed once, as a user's run does it, below Cargo's folder for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use kvgate::harness::reference::files;
use kvgate::harness::reference::profile::Kind;
use kvgate::harness::tau2::environment::Environment;
use kvgate::harness::tau2::event::{Event, Moment, Role, What};
use kvgate::harness::tau2::outputs;
use kvgate::harness::tau2::plan::{Rules, Workload};
use kvgate::telemetry::StepRecord;
use rustix::process::{Pid, Signal, kill_process};

use crate::python::there_is_a_python;
use crate::server::Server;
use crate::support::{Run, settings};

/// Asks a server to end, so that it writes what it has.
fn stop(mut server: Server) {
    let id = i32::try_from(server.child.id()).expect("an id");
    let id = Pid::from_raw(id).expect("an id");
    kill_process(id, Signal::TERM).expect("it runs");
    server.child.wait().expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_simulations_of_every_domain_are_played_through_the_gate_to_their_rewards() {
    let standin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tau2/standin.py");
    play_on(|python| {
        let mut command = Command::new(python);
        command.arg(standin);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_engine_plays_both_roles_to_the_same_end() {
    play_on(|_| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvgate"));
        command.args([
            "engine",
            "--listen",
            "127.0.0.1:0",
            "--model",
            "standin",
            "--speedup",
            "20",
        ]);
        command
    })
    .await;
}

/// Plays four simulations on a gate before the model that the command serves, given the benchmark's Python.
async fn play_on(model: impl FnOnce(&Path) -> Command) {
    if !there_is_a_python() {
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let environment = Environment::install(&cache, &mut |line| println!("{line}")).expect("tau2");
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("run");
    let model = Server::start(&mut model(&environment.python));
    let mut serve = Command::new(env!("CARGO_BIN_EXE_kvgate"));
    serve.args(["serve", "--listen", "127.0.0.1:0", "--backend", &model.url]);
    let gate = Server::start(serve.arg("--run-dir").arg(&dir));
    let workload = Workload {
        units: Some(4),
        ..Workload::default()
    };
    let rules = Rules {
        concurrency: 4,
        retries: 0,
        ..Rules::default()
    };

    let run = Run::start(settings(environment, &gate.url, &dir), &workload, rules);
    let (events, played) = run.end().await;
    played.expect("played");

    let programs = reqwest::get(format!("{}/programs", gate.url)).await;
    let programs = programs.expect("an answer").text().await.expect("a text");
    assert_eq!(programs, "{}", "every program was released");
    stop(gate);
    check_rewards(&dir);
    check_steps(&dir, &events);
}

fn check_rewards(dir: &Path) {
    let rewards = outputs::read_rewards(dir).expect("rewards");
    let domains: BTreeSet<&str> = rewards.iter().map(|r| r.unit.domain.as_str()).collect();
    assert_eq!(rewards.len(), 4, "{rewards:?}");
    assert_eq!(domains, BTreeSet::from(["airline", "retail", "telecom"]));
    for reward in &rewards {
        let finish = &reward.finish;
        assert_eq!(finish.failure, None, "{reward:?}");
        assert!(finish.reward.is_some() && finish.steps > 0, "{reward:?}");
        assert_eq!(finish.termination.as_deref(), Some("user_stop"));
        assert_eq!(reward.unit.seed, 626_729, "tau2's own seed of trial 0");
        let stem = reward.unit.file_stem();
        for folder in ["all_domains", "simulations"] {
            let file = dir.join(format!("outputs/{folder}/{stem}.json"));
            assert!(file.exists(), "{}", file.display());
        }
    }
    let metrics = dir.join("outputs/metrics_global.json");
    let metrics = fs::read_to_string(metrics).expect("the run's metrics");
    assert!(metrics.contains("\"ok\": 4"), "{metrics}");
}

/// What the gate recorded is what the clients saw: no request more or less, none failed, each of its program.
fn check_steps(dir: &Path, events: &[Event]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut tools = 0;
    for event in events {
        let gone_wrong = matches!(
            event.what,
            What::ReleaseFailed { .. } | What::WorkerDied { .. }
        );
        assert!(!gone_wrong, "{event:?}");
        let What::Moment(moment) = &event.what else {
            continue;
        };
        if let (Moment::Llm { role, error, .. }, Some(attempt)) = (moment, &event.attempt) {
            assert_eq!(*error, None);
            let user = if *role == Role::User { ":user" } else { "" };
            *seen.entry(format!("{}{user}", attempt.job_id)).or_default() += 1;
        }
        tools += usize::from(matches!(moment, Moment::Tool { .. }));
    }
    assert!(tools > 0, "the agents called tools");
    assert_eq!(seen.len(), 8, "an agent and a customer in each: {seen:?}");
    let steps = fs::read_to_string(dir.join("steps.jsonl")).expect("the gate's steps");
    let mut recorded: BTreeMap<String, usize> = BTreeMap::new();
    for line in steps.lines() {
        let step: StepRecord = serde_json::from_str(line).expect("a step");
        assert_eq!(step.status, 200, "{step:?}");
        let program = step.program.expect("a program");
        *recorded.entry(program).or_default() += 1;
    }
    assert_eq!(recorded, seen);
    let (mut agent, mut user) = (0, 0);
    let tally = files::profile_records(dir, |record| match record.kind {
        Some(Kind::LlmCall) => agent += 1,
        Some(Kind::UserSim) => user += 1,
        _ => {}
    });
    let tally = tally.expect("readable").expect("the log is there");
    assert_eq!(tally.unread, 0, "{:?}", tally.example);
    assert_eq!(agent + user, seen.values().sum::<usize>());
    assert!(agent > 0 && user > 0);
}
