//! The replay against a small server of the test's own, on a clock so fast that gaps take no time.

use std::sync::Mutex;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;
use crate::harness::rundir::ProgramRecord;
use crate::telemetry::StepRecord;

/// Every line of a file of records.
fn records<T: serde::de::DeserializeOwned>(dir: &RunDir, file: &str) -> Vec<T> {
    let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const TRACE: &str = r#"{"program":"a","kind":"k","shared_prefix":{"id":"s","tokens":100},"steps":[{"prompt_tokens":160,"output_tokens":9,"then":"tool:ls","gap_s":0.5},{"prompt_tokens":300,"output_tokens":5,"then":"user","gap_s":9},{"prompt_tokens":400,"output_tokens":5,"then":"end","gap_s":0}]}
{"program":"b","kind":"k","shared_prefix":{"id":"s","tokens":100},"steps":[{"prompt_tokens":170,"output_tokens":5,"then":"end","gap_s":0}]}"#;

/// What the server saw, in order, and which of its answers are errors.
#[derive(Default)]
struct Stub {
    steps: Mutex<Vec<Value>>,
    released: Mutex<Vec<String>>,
    /// The programs named in the steps' headers, in order.
    sessions: Mutex<Vec<Option<String>>>,
    /// Status for the n-th step request, instead of a reply.
    refusals: Mutex<Vec<(usize, StatusCode)>>,
}

async fn complete(
    State(stub): State<Arc<Stub>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let session = headers.get("x-session-id").and_then(|v| v.to_str().ok());
    stub.sessions
        .lock()
        .unwrap()
        .push(session.map(str::to_owned));
    let seen = {
        let mut steps = stub.steps.lock().unwrap();
        steps.push(body.clone());
        steps.len() - 1
    };
    let refusals = stub.refusals.lock().unwrap().clone();
    if let Some((_, status)) = refusals.iter().find(|(at, _)| *at == seen) {
        return (*status, "no room today").into_response();
    }
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 40}});
    let text = format!("reply {seen}");
    if body["stream"] == true {
        let frames = format!(
            "data: {}\n\ndata: {}\n\ndata: [DONE]\n\n",
            json!({"choices": [{"delta": {"content": text}}]}),
            json!({"choices": [], "usage": usage})
        );
        return ([("content-type", "text/event-stream")], frames).into_response();
    }
    Json(json!({"choices": [{"message": {"content": text}}], "usage": usage})).into_response()
}

async fn release(State(stub): State<Arc<Stub>>, Json(body): Json<Value>) -> StatusCode {
    let program = body["program_id"].as_str().unwrap().to_owned();
    stub.released.lock().unwrap().push(program);
    StatusCode::OK
}

struct Bench {
    stub: Arc<Stub>,
    url: String,
    temp: tempfile::TempDir,
}

impl Bench {
    async fn new(refusals: &[(usize, StatusCode)]) -> Self {
        let stub = Arc::new(Stub::default());
        *stub.refusals.lock().unwrap() = refusals.to_vec();
        let app = Router::new()
            .route(
                "/v1/models",
                get(|| async { Json(json!({"data": [{"id": "m"}]})) }),
            )
            .route("/v1/chat/completions", post(complete))
            .route("/programs/release", post(release))
            .with_state(Arc::clone(&stub));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let temp = tempfile::tempdir().unwrap();
        Self { stub, url, temp }
    }

    fn replay(&self, concurrency: usize, programs: usize, stream: bool) -> Replay {
        Replay {
            url: self.url.clone(),
            trace: Arc::new(Trace::parse("t", TRACE).unwrap()),
            concurrency,
            programs,
            stream,
            tools: true,
            stand_in: false,
            dir: RunDir::create(self.temp.path().join("run")).unwrap(),
            clock: Clock::scaled(1e6, None),
            model: None,
            seed: 1,
            timeout: Duration::from_secs(100_000_000),
            max_retries: 2,
            quiet: true,
            label: String::new(),
            policy: None,
            engine: None,
        }
    }

    fn steps(&self) -> Vec<Value> {
        self.stub.steps.lock().unwrap().clone()
    }

    fn released(&self) -> Vec<String> {
        self.stub.released.lock().unwrap().clone()
    }
}

fn messages(body: &Value) -> &Vec<Value> {
    body["messages"].as_array().unwrap()
}

#[tokio::test]
async fn one_slot_plays_each_program_to_its_end_and_releases_it() {
    let bench = Bench::new(&[]).await;
    let summary = bench
        .replay(1, 2, false)
        .play(CancellationToken::new())
        .await
        .unwrap();
    let steps = bench.steps();
    let order: Vec<&str> = steps
        .iter()
        .map(|s| s["program_id"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["a", "a", "a", "b"]);
    assert_eq!(bench.released(), ["a", "b"]);
    let sessions = bench.stub.sessions.lock().unwrap().clone();
    assert_eq!(sessions, ["a", "a", "a", "b"].map(|n| Some(n.to_owned())));
    let last: Vec<bool> = steps.iter().map(|s| s["is_last_step"] == true).collect();
    assert_eq!(last, [false, false, true, true]);
    assert!(summary.complete);
    assert_eq!(summary.gap_lag.gaps, 2);
}

#[tokio::test]
async fn histories_grow_by_the_replies_received() {
    let bench = Bench::new(&[]).await;
    let _summary = bench
        .replay(1, 1, true)
        .play(CancellationToken::new())
        .await
        .unwrap();
    let steps = bench.steps();
    for pair in steps.windows(2) {
        let (before, after) = (messages(&pair[0]), messages(&pair[1]));
        assert_eq!(after[..before.len()], before[..], "append-only");
        assert_eq!(after.len(), before.len() + 2);
    }
    assert_eq!(
        messages(&steps[1])[2],
        json!({"role": "assistant", "content": "reply 0"})
    );
    assert_eq!(steps[0]["max_tokens"], 9);
    assert_eq!(steps[0]["ignore_eos"], true);
}

#[tokio::test]
async fn a_set_larger_than_the_trace_starts_over_under_new_names_and_texts() {
    let bench = Bench::new(&[]).await;
    let _summary = bench
        .replay(3, 5, false)
        .play(CancellationToken::new())
        .await
        .unwrap();
    let mut released = bench.released();
    released.sort();
    assert_eq!(released, ["a", "a.1", "a.2", "b", "b.1"]);
    let firsts: Vec<Value> = bench
        .steps()
        .iter()
        .map(|s| messages(s)[1].clone())
        .collect();
    let of = |name: &str| {
        let at = bench
            .steps()
            .iter()
            .position(|s| s["program_id"] == name)
            .unwrap();
        firsts[at].clone()
    };
    assert_ne!(of("a"), of("a.1"));
}

#[tokio::test]
async fn a_refused_step_is_retried_and_counted() {
    let bench = Bench::new(&[(0, StatusCode::SERVICE_UNAVAILABLE)]).await;
    let replay = bench.replay(1, 1, false);
    let dir = replay.dir.clone();
    let summary = replay.play(CancellationToken::new()).await.unwrap();
    assert_eq!(bench.steps().len(), 4);
    assert_eq!(bench.steps()[0], bench.steps()[1], "the same bytes again");
    let program = &records::<ProgramRecord>(&dir, "programs.jsonl")[0];
    assert_eq!(
        (program.steps, program.errors, program.ending),
        (3, 1, Ending::Done)
    );
    assert_eq!(summary.measures.steps_failed, 1);
    assert!(
        summary
            .causes
            .keys()
            .next()
            .unwrap()
            .contains("no room today")
    );
}

#[tokio::test]
async fn a_program_fails_when_retries_run_out_or_cannot_help() {
    let gone = StatusCode::BAD_GATEWAY;
    let bench = Bench::new(&[(0, gone), (1, gone), (2, gone)]).await;
    let _summary = bench
        .replay(1, 2, false)
        .play(CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(
        bench.steps().len(),
        4,
        "three attempts for a, one step of b"
    );
    let bench = Bench::new(&[(0, StatusCode::BAD_REQUEST)]).await;
    let replay = bench.replay(1, 2, false);
    let dir = replay.dir.clone();
    let summary = replay.play(CancellationToken::new()).await.unwrap();
    assert_eq!(bench.steps().len(), 2, "a 400 is not tried again");
    assert_eq!(summary.measures.programs_failed, 1);
    let failed = &records::<ProgramRecord>(&dir, "programs.jsonl")[0];
    assert_eq!(failed.ending, Ending::Failed);
    assert!(failed.cause.as_ref().unwrap().contains("400"));
    assert_eq!(
        bench.released(),
        ["a", "b"],
        "a failed program is released too"
    );
}

#[tokio::test]
async fn an_interrupted_run_starts_nothing_more_and_still_writes_its_records() {
    let bench = Bench::new(&[]).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let replay = bench.replay(2, 4, false);
    let dir = replay.dir.clone();
    let summary = replay.play(cancel).await.unwrap();
    assert!(!summary.complete);
    assert_eq!(bench.steps().len(), 0);
    assert_eq!(records::<ProgramRecord>(&dir, "programs.jsonl"), []);
    assert_eq!(dir.manifest().unwrap().programs, 4);
}

#[tokio::test]
async fn the_records_hold_what_the_server_counted() {
    let bench = Bench::new(&[]).await;
    let replay = bench.replay(2, 2, true);
    let dir = replay.dir.clone();
    let summary = replay.play(CancellationToken::new()).await.unwrap();
    let steps: Vec<StepRecord> = records(&dir, "client_steps.jsonl");
    assert_eq!(
        (steps.len(), summary.measures.step_source),
        (4, StepSource::Client)
    );
    assert!(
        steps
            .iter()
            .all(|s| s.cached_tokens == Some(40) && s.ttft_s.is_some())
    );
    assert!((summary.measures.prefix_hit_rate.unwrap() - 0.4).abs() < 1e-9);
    assert_eq!(
        summary.measures.window.rates(),
        None,
        "nobody sampled the KV cache"
    );
}

#[tokio::test]
async fn a_gate_that_calls_a_release_the_end_of_a_session_is_told_so() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let finish = |State(told): State<Arc<Mutex<Vec<String>>>>, Query(query): Query<Value>| async move {
        let session = query["session_id"].as_str().unwrap().to_owned();
        told.lock().unwrap().push(session);
    };
    let app = Router::new()
        .route("/finish_session", post(finish))
        .with_state(Arc::clone(&told));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = Client::new(&url, Clock::real(), Duration::from_secs(10)).unwrap();
    client.release("a b").await.unwrap();
    assert_eq!(*told.lock().unwrap(), ["a b"]);
}

#[test]
fn wrong_flags_are_named() {
    let args = |change: fn(&mut ReplayArgs)| {
        let mut args = ReplayArgs {
            url: String::new(),
            trace: "tau2".to_owned(),
            concurrency: 1,
            programs: None,
            stream: false,
            no_stream: false,
            no_tools: false,
            stand_in: false,
            out: None,
            time_scale: 1.0,
            time_epoch: None,
            model: None,
            seed: 1,
            timeout_s: 1.0,
            max_retries: 0,
            quiet: true,
        };
        change(&mut args);
        Replay::new(args).unwrap_err().to_string()
    };
    assert!(args(|a| a.concurrency = 0).contains("--concurrency"));
    assert!(args(|a| a.time_scale = f64::NAN).contains("--time-scale"));
    assert!(args(|a| a.trace = "nowhere".to_owned()).contains("nowhere"));
}
