//! Stories of the pool, with `fake_worker.py`: what happens to a simulation is the name of its task.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::routing::post;
use kvgate::harness::tau2::environment::Environment;
use kvgate::harness::tau2::event::{Cause, Event, Failure, Finish, What};
use kvgate::harness::tau2::plan::{Rules, Workload};
use kvgate::harness::tau2::settings::{Patience, Settings};
use rustix::process::{Pid, test_kill_process};
use tempfile::TempDir;

use crate::python::there_is_a_python;
use crate::support::{Run, settings};

/// Short enough for a test to wait for it.
const SOON: Duration = Duration::from_millis(200);

/// A gate that is only told what is over.
struct Gate {
    url: String,
    released: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    async fn start() -> Self {
        let released = Arc::new(Mutex::new(Vec::new()));
        let note = |State(released): State<Arc<Mutex<Vec<String>>>>,
                    Json(body): Json<serde_json::Value>| async move {
            let job = body["job_id"].as_str().expect("a name").to_owned();
            released.lock().expect("no panic").push(job);
        };
        let router = axum::Router::new().route("/programs/release", post(note));
        let router = router.with_state(Arc::clone(&released));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, released }
    }
}

/// A folder, a gate, and the settings and plan of a run of these tasks.
struct Stage {
    temp: TempDir,
    gate: Gate,
    settings: Settings,
    workload: Workload,
    rules: Rules,
}

impl Stage {
    /// `None` where there is no Python.
    async fn of(tasks: &[String], concurrency: usize) -> Option<Self> {
        if !there_is_a_python() {
            return None;
        }
        let temp = tempfile::tempdir().expect("a folder");
        let gate = Gate::start().await;
        let environment = Environment {
            python: "python3".into(),
            data: temp.path().to_owned(),
            tau2: "none".to_owned(),
            catalogue: BTreeMap::from([("retail".to_owned(), tasks.to_vec())]),
            source: None,
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tau2/fake_worker.py");
        let settings = Settings {
            script: Some(script),
            ..settings(environment, &gate.url, &temp.path().join("run"))
        };
        let workload = Workload {
            domains: vec!["retail".to_owned()],
            ..Workload::default()
        };
        let rules = Rules {
            concurrency,
            retries: 0,
            ..Rules::default()
        };
        Some(Self {
            temp,
            gate,
            settings,
            workload,
            rules,
        })
    }

    fn start(&self) -> Run {
        Run::start(self.settings.clone(), &self.workload, self.rules.clone())
    }

    fn released(&self) -> Vec<String> {
        let mut released = self.gate.released.lock().expect("no panic").clone();
        released.sort();
        released.dedup();
        released
    }
}

fn tasks(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// How each attempt ended, in the order of their ends: task, attempt, cause.
fn ends(events: &[Event]) -> Vec<(String, u32, Option<Cause>)> {
    let end = |event: &Event| {
        let attempt = event.attempt.as_ref()?;
        let cause = finish(event)?.failure.as_ref().map(|failure| failure.cause);
        Some((attempt.unit.task_id.clone(), attempt.number, cause))
    };
    events.iter().filter_map(end).collect()
}

fn finish(event: &Event) -> Option<&Finish> {
    if let What::Finished(finish) = &event.what {
        Some(finish)
    } else {
        None
    }
}

/// Why the first attempt that ended failed.
fn failure(events: &[Event]) -> Failure {
    let first = events.iter().find_map(finish).expect("it ended");
    first.failure.clone().expect("it failed")
}

fn is_started(event: &Event) -> bool {
    event.what == What::Started
}

#[tokio::test]
async fn every_simulation_is_answered_and_no_more_run_than_there_are_places() {
    let names: Vec<String> = (0..12).map(|n| format!("answer:{n}")).collect();
    let Some(stage) = Stage::of(&names, 4).await else {
        return;
    };
    let (events, played) = stage.start().end().await;
    played.expect("played");
    let mut running = BTreeMap::new();
    for event in &events {
        let in_flight = running.entry(event.worker).or_insert(0_i32);
        if is_started(event) {
            *in_flight += 1;
        }
        if let Some(finish) = finish(event) {
            *in_flight -= 1;
            assert_eq!(finish.reward, Some(1.0));
            assert_eq!((finish.steps, finish.llm_calls), (0, 1));
        }
        assert!(
            *in_flight <= 2,
            "four places are two for each of two workers"
        );
    }
    let mut ended: Vec<String> = ends(&events).into_iter().map(|(task, ..)| task).collect();
    ended.sort();
    let mut wanted = names;
    wanted.sort();
    assert_eq!(ended, wanted);
    assert_eq!(stage.released().len(), 24, "each program and its customer");
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_and_what_it_played_is_played_again() {
    let Some(mut stage) = Stage::of(&[], 2).await else {
        return;
    };
    let once = format!("die-once:{}", stage.temp.path().join("dead").display());
    let names = tasks(&[&once, "answer:1"]);
    stage.settings.environment.catalogue = BTreeMap::from([("retail".to_owned(), names)]);
    stage.settings.restarts = 1;
    stage.rules.retries = 1;
    let (events, played) = stage.start().end().await;
    played.expect("played");
    let died = events.iter().find_map(|event| {
        let What::WorkerDied {
            error, restarted, ..
        } = &event.what
        else {
            return None;
        };
        Some((error.clone(), *restarted))
    });
    let (error, restarted) = died.expect("it died");
    assert!(error.contains("exit status: 3") && restarted, "{error}");
    let ends = ends(&events);
    assert!(
        ends.contains(&(once.clone(), 1, Some(Cause::WorkerDied))),
        "{ends:?}"
    );
    assert!(ends.contains(&(once, 2, None)), "{ends:?}");
    let started = events.iter().filter(|event| is_started(event));
    let programs = started.filter_map(|event| Some(event.attempt.as_ref()?.job_id.clone()));
    for program in programs {
        assert!(
            stage.released().contains(&program),
            "{program}: dead or not"
        );
    }
}

#[tokio::test]
async fn when_no_worker_is_left_the_run_ends_with_the_last_words_of_the_last_one() {
    let Some(mut stage) = Stage::of(&tasks(&["die", "answer"]), 1).await else {
        return;
    };
    stage.rules.retries = 9;
    stage.settings.restarts = 1;
    let (events, played) = stage.start().end().await;
    let error = played.expect_err("nobody plays").to_string();
    for words in ["no tau2 worker process is left", "these are its last words"] {
        assert!(error.contains(words), "{error}");
    }
    let died = ("die".to_owned(), Some(Cause::WorkerDied));
    for (task, _, cause) in ends(&events) {
        assert!(
            (task.clone(), cause) == died || task == "answer",
            "{task} {cause:?}"
        );
    }
}

#[tokio::test]
async fn a_line_that_is_none_of_ours_ends_the_worker_and_is_shown() {
    let Some(stage) = Stage::of(&tasks(&["nonsense"]), 1).await else {
        return;
    };
    let (events, played) = stage.start().end().await;
    played.expect("nothing was left to play");
    let error = failure(&events).error;
    assert!(error.contains("Hello from a library!"), "{error}");
}

#[tokio::test]
async fn a_simulation_that_is_silent_for_too_long_is_given_up_and_told_so() {
    let Some(mut stage) = Stage::of(&tasks(&["silent"]), 1).await else {
        return;
    };
    stage.settings.patience.simulation = SOON;
    let (events, played) = stage.start().end().await;
    played.expect("played");
    let last = [("silent".to_owned(), 1, Some(Cause::Silent))];
    assert_eq!(ends(&events), last);
    assert_eq!(stage.released().len(), 2);
}

#[tokio::test]
async fn a_worker_that_is_silent_for_too_long_is_killed() {
    let Some(mut stage) = Stage::of(&tasks(&["hang"]), 1).await else {
        return;
    };
    stage.settings.patience.worker = SOON;
    let (events, played) = stage.start().end().await;
    played.expect("nothing was left to play");
    let failure = failure(&events);
    assert_eq!(failure.cause, Cause::WorkerDied);
    assert!(
        failure.error.contains("it said nothing for 200ms"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_watchdog_gives_a_simulation_up_for_its_cause_for_good_and_the_worker_is_told() {
    let Some(mut stage) = Stage::of(&tasks(&["silent", "answer"]), 1).await else {
        return;
    };
    stage.rules.retries = 3;
    let mut run = stage.start();
    let started = run.until(is_started).await.attempt.expect("a simulation");
    let failure = Failure {
        cause: Cause::ContextOverflow,
        error: "again and again".to_owned(),
    };
    run.remote.give_up(started.job_id.clone(), failure);
    let (events, played) = run.end().await;
    played.expect("played");
    let wanted = [
        ("silent".to_owned(), 1, Some(Cause::ContextOverflow)),
        ("answer".to_owned(), 1, None),
    ];
    assert_eq!(ends(&events), wanted);
    let told = format!("run/outputs/simulations/{}.json", started.unit.file_stem());
    let told = std::fs::read_to_string(stage.temp.path().join(told)).expect("it was told");
    let told: serde_json::Value = serde_json::from_str(&told).expect("its settings");
    assert_eq!(told["agent"]["model"], "openai/standin");
    assert_eq!(told["identity"], "explicit");
}

#[tokio::test]
async fn draining_lets_what_runs_end_and_starts_nothing_more() {
    let Some(mut stage) = Stage::of(&[], 1).await else {
        return;
    };
    let file = stage.temp.path().join("go");
    let names = tasks(&[&format!("wait:{}", file.display()), "answer"]);
    stage.settings.environment.catalogue = BTreeMap::from([("retail".to_owned(), names)]);
    let mut run = stage.start();
    run.until(is_started).await;
    run.remote.drain();
    std::fs::write(&file, "").expect("a file");
    let (events, played) = run.end().await;
    played.expect("drained");
    assert_eq!(events.iter().filter(|event| is_started(event)).count(), 1);
    let last = events.iter().find_map(finish).expect("it ended");
    assert!(last.failure.is_none() && last.last_word);
}

#[tokio::test]
async fn killing_ends_every_process_of_a_worker_even_one_that_does_not_listen() {
    let Some(mut stage) = Stage::of(&tasks(&["stubborn", "silent", "answer"]), 3).await else {
        return;
    };
    stage.settings.per_worker = 3;
    stage.settings.patience = Patience {
        end: SOON,
        ..Patience::default()
    };
    let mut run = stage.start();
    let first = run.until(|event| finish(event).is_some()).await;
    run.remote.kill();
    let (events, played) = run.end().await;
    played.expect("stopped");
    let cut_off = events.iter().filter_map(finish).skip(1);
    for finish in cut_off {
        let cause = finish.failure.as_ref().map(|failure| failure.cause);
        assert_eq!((cause, finish.last_word), (Some(Cause::Stopped), false));
    }
    let unit = &first.attempt.expect("a simulation").unit;
    let child = format!("run/outputs/simulations/{}.json", unit.file_stem());
    let child = std::fs::read_to_string(stage.temp.path().join(child)).expect("an id");
    let child = Pid::from_raw(child.parse().expect("a number")).expect("an id");
    // The signal is sent; the kernel ends the process when it next runs it.
    let gone = async {
        while test_kill_process(child).is_ok() && !is_zombie(child) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), gone).await;
    assert!(waited.is_ok(), "it lives");
}

/// Whether a process has ended and only waits for its parent to notice.
fn is_zombie(process: Pid) -> bool {
    let stat = format!("/proc/{}/stat", process.as_raw_nonzero());
    std::fs::read_to_string(stat).map_or(true, |stat| stat.contains(") Z "))
}

#[tokio::test]
async fn a_run_that_nobody_records_ends_at_once_and_says_so() {
    let Some(stage) = Stage::of(&tasks(&["silent", "answer"]), 2).await else {
        return;
    };
    let run = stage.start();
    let error = run.forget().await.expect_err("not recorded").to_string();
    assert!(error.contains("nobody takes the events"), "{error}");
}

#[tokio::test]
async fn a_worker_that_takes_most_of_a_core_is_called_busy() {
    let Some(stage) = Stage::of(&tasks(&["busy"]), 1).await else {
        return;
    };
    let (events, _) = stage.start().end().await;
    let shares = events.iter().filter_map(|event| {
        let What::Cpu {
            core_share, busy, ..
        } = event.what
        else {
            return None;
        };
        Some((core_share, busy))
    });
    let shares: Vec<_> = shares.collect();
    assert!(shares.len() == 1 && shares[0].1, "{shares:?}");
    assert!((shares[0].0 - 0.9).abs() < 1e-9, "{shares:?}");
}

#[tokio::test]
async fn causes_that_may_pass_are_tried_again_and_others_are_not() {
    let names = tasks(&["fail:llm", "fail:context_overflow"]);
    let Some(mut stage) = Stage::of(&names, 1).await else {
        return;
    };
    stage.rules.retries = 1;
    let (events, played) = stage.start().end().await;
    played.expect("played");
    let llm = |attempt| ("fail:llm".to_owned(), attempt, Some(Cause::Llm));
    let mut ends = ends(&events);
    ends.sort();
    let overflow = (
        "fail:context_overflow".to_owned(),
        1,
        Some(Cause::ContextOverflow),
    );
    assert_eq!(ends, [overflow, llm(1), llm(2)]);
}
