//! The reference fork's driver as a black box, with a driver that only pretends, through a real `kvgate serve`.
//!
//! Where there is no Python 3.10 the tests say so and pass; with `KVGATE_REQUIRE_PYTHON=1`, as in CI, they fail instead.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at the first surprise, and says when it is skipped"
)]

#[path = "../support/python.rs"]
mod python;
#[path = "../support/server.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use kvgate::harness::experiment::oss::{self, Progress, Python, Settings, Verdict, What};
use kvgate::harness::reference::files;
use kvgate::harness::tau2::environment::Environment;
use parking_lot::Mutex;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::python::there_is_a_python;
use crate::server::Server;

/// Requests as a model's server got them.
type Requests = Arc<Mutex<Vec<Value>>>;

/// A model that answers anything but what is too long for it.
async fn answer(
    State(requests): State<Requests>,
    Json(body): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let too_long = body["messages"].to_string().contains("overflow");
    requests.lock().push(body);
    if too_long {
        let message = "This model's maximum context length is 8 tokens.";
        let error =
            json!({"object": "error", "message": message, "type": "BadRequestError", "code": 400});
        return (StatusCode::BAD_REQUEST, Json(error));
    }
    let message = json!({"role": "assistant", "content": "yes"});
    let usage = json!({"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let answer =
        json!({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage});
    (StatusCode::OK, Json(answer))
}

async fn model() -> (String, Requests) {
    let requests = Requests::default();
    let router = axum::Router::new().route("/v1/chat/completions", post(answer));
    let router = router.with_state(Arc::clone(&requests));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, requests)
}

/// A checkout of the pretending driver with these tasks of retail and airline.
fn checkout(root: &Path, retail: &[&str], airline: &[&str]) -> PathBuf {
    let bench = root.join("evaluation/tau2-bench");
    fs::create_dir_all(&bench).expect("a folder");
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oss/run_oss.py");
    fs::copy(driver, bench.join("run_oss.py")).expect("copied");
    let domains = [
        ("retail", "tasks.json", retail),
        ("airline", "original_tasks.json", airline),
    ];
    for (domain, file, tasks) in domains {
        let folder = root.join("data/tau2/domains").join(domain);
        fs::create_dir_all(&folder).expect("a folder");
        let tasks: Vec<Value> = tasks.iter().map(|id| json!({"id": id})).collect();
        fs::write(folder.join(file), Value::from(tasks).to_string()).expect("written");
    }
    root.to_owned()
}

/// A gate before a model, and settings of a run through it.
struct Stage {
    _temp: TempDir,
    gate: Server,
    requests: Requests,
    settings: Settings,
}

impl Stage {
    /// `None` where there is no Python.
    async fn of(retail: &[&str], airline: &[&str]) -> Option<Self> {
        if !there_is_a_python() {
            return None;
        }
        let temp = tempfile::tempdir().expect("a folder");
        let (model, requests) = model().await;
        let mut serve = Command::new(env!("CARGO_BIN_EXE_kvgate"));
        let gate = Server::start(
            serve
                .args(["serve", "--listen", "127.0.0.1:0", "--policy", "baseline"])
                .args(["--backend", &model]),
        );
        let settings = Settings {
            checkout: checkout(&temp.path().join("fork"), retail, airline),
            python: Python {
                interpreter: "python3".into(),
                data: None,
            },
            kvgate: env!("CARGO_BIN_EXE_kvgate").into(),
            dir: temp.path().join("run"),
            gate: gate.url.clone(),
            policy: "baseline".to_owned(),
            user: "gpt-5".to_owned(),
            domains: vec!["retail".to_owned(), "airline".to_owned()],
            tasks: None,
            trials: 1,
            concurrency: 4,
            max_steps: 200,
            patience: Duration::from_millis(100),
        };
        Some(Self {
            _temp: temp,
            gate,
            requests,
            settings,
        })
    }

    /// Plays to the end; returns all that was told, and the verdict.
    async fn play(&self) -> (Vec<Progress>, Verdict) {
        let (watch, mut told) = mpsc::channel(oss::PROGRESS);
        let play = oss::play(&self.settings, watch, CancellationToken::new());
        let listen = async {
            let mut all = Vec::new();
            while let Some(progress) = told.recv().await {
                all.push(progress);
            }
            all
        };
        let (verdict, told) = tokio::join!(play, listen);
        (told, verdict.expect("a verdict"))
    }

    async fn programs(&self) -> String {
        let programs = reqwest::get(format!("{}/programs", self.gate.url)).await;
        programs.expect("an answer").text().await.expect("a text")
    }
}

/// Files below a folder, sorted.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_of(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn every_task_is_played_through_the_gate_and_every_program_is_over_in_the_end() {
    let Some(stage) = Stage::of(&["plain-1", "plain-2"], &["plain-1"]).await else {
        return;
    };
    let before = files_of(&stage.settings.checkout);

    let (told, verdict) = stage.play().await;

    let played = Verdict {
        ok: 3,
        error: 0,
        total: 3,
        why: None,
    };
    assert_eq!(verdict, played);
    assert_eq!(stage.programs().await, "{}", "every program was released");
    assert_eq!(
        files_of(&stage.settings.checkout),
        before,
        "nothing was left in the checkout"
    );
    let last = told.last().expect("progress");
    assert_eq!(
        (last.total, last.done, last.failed, last.steps),
        (3, 3, 0, 9)
    );
    assert!(matches!(last.what, What::Left(_)), "{last:?}");
    assert!(
        told.iter()
            .any(|p| p.what == What::Started("airline:plain-1".to_owned()))
    );
    let requests = stage.requests.lock();
    let names = stage.settings.names();
    let of = |model: &str| {
        requests
            .iter()
            .filter(|r| r["model"] == model)
            .collect::<Vec<_>>()
    };
    let agent = of(&names.agent);
    assert_eq!(
        (
            agent.len(),
            of(&names.user).len(),
            of(&names.experts[0]).len()
        ),
        (3, 3, 3)
    );
    for request in agent {
        assert!(request["tools"].is_array(), "tools are sent: {request}");
        let job = request["job_id"].as_str().expect("a program");
        assert!(job.starts_with("tau2:"), "{job}");
    }
}

#[tokio::test]
async fn tasks_that_fail_are_seen_although_the_driver_ends_with_success() {
    let Some(stage) = Stage::of(&["plain-1", "overflow-1"], &["overflow-1"]).await else {
        return;
    };

    let (told, verdict) = stage.play().await;

    assert_eq!((verdict.ok, verdict.error, verdict.total), (1, 2, 3));
    let why = verdict.why.expect("a cause");
    assert_eq!(why, "2 of 3 tasks failed: 2 by ContextLengthExceededError");
    assert_eq!(told.last().expect("progress").failed, 2);
    assert_eq!(stage.programs().await, "{}", "failed programs are over too");
}

#[tokio::test]
async fn a_driver_that_hangs_is_ended_with_all_it_started_and_what_it_wrote_stays() {
    let Some(stage) = Stage::of(&["plain-1", "hang"], &[]).await else {
        return;
    };
    let (watch, mut told) = mpsc::channel(oss::PROGRESS);
    let cancel = CancellationToken::new();
    let play = oss::play(&stage.settings, watch, cancel.clone());
    let hangs = stage.settings.dir.join("oss/hangs");
    let stop = async {
        while let Some(progress) = told.recv().await {
            if progress.done == 1 && progress.steps == 6 {
                break;
            }
        }
        // The child's id is written before nothing more is said.
        while !hangs.exists() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };

    let (verdict, ()) = tokio::join!(play, stop);

    let verdict = verdict.expect("a verdict");
    assert_eq!((verdict.ok, verdict.error, verdict.total), (1, 0, 2));
    assert_eq!(
        verdict.why.expect("a cause"),
        "it was stopped: 1 of 2 tasks were done"
    );
    let child = fs::read_to_string(&hangs)
        .expect("an id")
        .parse()
        .expect("an id");
    let child = Pid::from_raw(child).expect("an id");
    while test_kill_process(child).is_ok() && !is_a_zombie(child) {
        tokio::task::yield_now().await;
    }
    let mut results = 0;
    files::task_results(&stage.settings.dir, |_| results += 1).expect("readable");
    assert_eq!(results, 1, "what was played stays");
}

/// Whether a process is dead and only waits to be noticed.
fn is_a_zombie(process: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    status.is_ok_and(|status| status.contains(") Z "))
}

#[tokio::test]
async fn a_driver_that_cannot_begin_is_quoted() {
    let Some(mut stage) = Stage::of(&["plain-1"], &[]).await else {
        return;
    };
    stage.settings.domains.push("telecom".to_owned());

    let (_, verdict) = stage.play().await;

    assert_eq!((verdict.ok, verdict.error, verdict.total), (0, 0, 0));
    let why = verdict.why.expect("a cause");
    for words in [
        "before its first task",
        "ended with exit status 1",
        "FileNotFoundError",
        "telecom",
    ] {
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[tokio::test]
async fn a_directory_that_holds_a_run_is_refused() {
    let Some(stage) = Stage::of(&["plain-1"], &[]).await else {
        return;
    };
    stage.play().await;
    let (watch, _told) = mpsc::channel(oss::PROGRESS);
    let again = oss::play(&stage.settings, watch, CancellationToken::new()).await;
    let error = again.expect_err("a second run").to_string();
    assert!(error.contains("holds a run already"), "{error}");
    let mut results = 0;
    files::task_results(&stage.settings.dir, |_| results += 1).expect("readable");
    assert_eq!(results, 1);
}

/// What a Python with the stand-in's folder on its path says of a text: tokens, and whether they make it up again.
fn tokens(python: &Path, text: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/harness/experiment/oss/python");
    let script = "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained('x'); \
        ids = t(sys.argv[1])['input_ids']; print(len(ids), ''.join(t.batch_decode(ids)) == sys.argv[1])";
    let mut command = Command::new(python);
    command.args(["-c", script, text]).env("PYTHONPATH", folder);
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output();
    String::from_utf8(output.expect("an answer").stdout).expect("a text")
}

#[test]
fn the_tokenizer_stands_in_with_qwens_tokens_or_with_four_characters_each() {
    if !there_is_a_python() {
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let environment = Environment::install(&cache, &mut |line| println!("{line}")).expect("tau2");
    let text = "The quick brown fox, 12 times";
    assert_eq!(tokens(&environment.python, text), "9 True\n");
    // Apart from its packages, the same interpreter.
    let bare = fs::canonicalize(&environment.python).expect("an interpreter");
    assert_eq!(tokens(&bare, text), "8 True\n");
}

#[test]
fn a_checkout_without_the_airline_database_gets_an_installed_one_and_a_whole_one_its_own() {
    if !there_is_a_python() {
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let temp = tempfile::tempdir().expect("a folder");
    let root = checkout(temp.path(), &[], &[]);
    let domains = ["retail".to_owned(), "airline".to_owned()];
    let find = || {
        Python::find(&root, &domains, None, &cache, &mut |line| {
            println!("{line}");
        })
    };
    let lacking = find().expect("a Python");
    let data = lacking.data.expect("installed data");
    assert!(
        data.join("tau2/domains/airline/db.json").exists(),
        "{}",
        data.display()
    );
    fs::write(root.join("data/tau2/domains/airline/db.json"), "{}").expect("written");
    assert_eq!(find().expect("a Python").data, None);
}
