//! The gate's own endpoints: what runs where, and what the samplers of a vLLM expect to find.

use std::collections::{BTreeMap, BTreeSet};

use kvgate::policy::{BackendId, Event, Tokens};
use kvgate::proxy::backend::FAILURES_TO_DOWN;
use serde_json::{Value, json};

use crate::support::valve::{Limits, Valve, valve};
use crate::support::{Gate, Stub, config, fixture, open};

#[tokio::test]
async fn health_says_how_many_backends_are() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let reply = gate.get("/health").send().await;
    assert_eq!(reply.status, 200);
    let expected = json!({"status": "healthy", "healthy_backends": 1, "total_backends": 1});
    assert_eq!(reply.json().await, expected);
}

#[tokio::test]
async fn health_turns_when_the_backend_does() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    stub.set_healthy(false);
    let unhealthy = |health: &Value| health["healthy_backends"] == 0;
    gate.until("/health", unhealthy).await;
    assert_eq!(gate.get("/health").send().await.status, 503);
    stub.set_healthy(true);
    gate.until("/health", |health| health["healthy_backends"] == 1)
        .await;
    assert_eq!(gate.get("/health").send().await.status, 200);
}

/// What a backend's metrics say when its cache holds `tokens` tokens.
fn cache_of(tokens: u64) -> String {
    format!("vllm:cache_config_info{{kv_cache_size_tokens=\"{tokens}\"}} 1\n")
}

/// Returns when the policy hears that `backend`'s cache holds `tokens` tokens.
async fn heard(valve: &Valve, backend: u16, tokens: u64) {
    let expected = Event::BackendUp {
        backend: BackendId(backend),
        kv_capacity: Some(Tokens(tokens)),
    };
    valve.told(|event| (*event == expected).then_some(())).await;
}

#[tokio::test]
async fn a_backend_is_down_only_after_several_failed_scrapes_in_a_row() {
    let (stub, _gate, valve) = open().await;
    let is_down = |event: &Event| matches!(event, Event::BackendDown { .. });
    for tokens in [100, 200] {
        stub.refuse_scrapes(FAILURES_TO_DOWN - 1, &cache_of(tokens));
        heard(&valve, 0, tokens).await;
        assert!(!valve.was_told(is_down));
    }
    stub.refuse_scrapes(FAILURES_TO_DOWN, &cache_of(300));
    heard(&valve, 0, 300).await;
    assert!(valve.was_told(is_down));
}

#[tokio::test]
async fn a_scrape_that_hangs_does_not_keep_another_backend_waiting() {
    let (quick, mut hung) = (Stub::start().await, Stub::start().await);
    let (policy, valve) = valve(Limits::default());
    let gate = Gate::start_with(config(&[&quick, &hung]), policy).await;
    hung.hand_over_scrapes();
    let scrape = hung.call().await;
    quick.set_metrics(&cache_of(100));
    heard(&valve, 0, 100).await;
    let failed = format!(
        "kvgate_scrape_failures_total{{backend=\"{}\"}} 0",
        hung.url()
    );
    let metrics = gate.metrics().await;
    assert!(metrics.lines().any(|line| line == failed), "{metrics}");
    drop(scrape);
}

#[tokio::test]
async fn programs_and_backends_have_the_reference_routers_shapes() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    assert_eq!(gate.json("/programs").await, json!({}));
    let asking = gate.chat("p", true).spawn();
    let call = stub.call().await;

    let programs = gate.json("/programs").await;
    let program = &programs["p"];
    let keys: BTreeSet<_> = program
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "backend",
        "context_len",
        "inflight",
        "pause_requested",
        "paused",
        "step",
    ];
    assert!(keys.is_superset(&BTreeSet::from(expected)), "{programs}");
    assert_eq!(program["backend"], stub.url());
    assert_eq!(program["inflight"], true);
    assert_eq!(program["paused"], false);

    let backends = gate.json("/backends").await;
    let backend = &backends[stub.url()];
    let keys: BTreeSet<_> = backend
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "healthy",
        "inflight",
        "paused_count",
        "program_count",
        "usage",
    ];
    assert!(keys.is_superset(&BTreeSet::from(expected)), "{backends}");
    assert_eq!(backend["inflight"], 1);
    assert_eq!(backend["program_count"], 1);

    call.answer(&fixture("chat-stream-usage")).await;
    asking.await.unwrap().bytes().await;
    gate.quiet().await;
    let programs = gate.json("/programs").await;
    // 15 prompt tokens and 3 generated ones, as the recorded usage says.
    assert_eq!(programs["p"]["context_len"], 18, "{programs}");
    assert_eq!(programs["p"]["step"], 1, "{programs}");
}

#[tokio::test]
async fn models_of_all_backends_are_listed_once_each() {
    let (one, other) = (Stub::start().await, Stub::start().await);
    let model =
        |id: &str| format!(r#"{{"id":"{id}","object":"model","created":1,"owned_by":"vllm"}}"#);
    let list = |models: &[String]| format!(r#"{{"object":"list","data":[{}]}}"#, models.join(","));
    one.set_models(&list(&[model("shared"), model("left")]));
    other.set_models(&list(&[model("shared"), model("right")]));
    let gate = Gate::start(config(&[&one, &other])).await.up().await;
    gate.until("/backends", |b| {
        b.as_object()
            .unwrap()
            .values()
            .all(|b| b["healthy"] == true)
    })
    .await;

    let models = gate.json("/v1/models").await;
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["shared", "left", "right"]);
}

#[tokio::test]
async fn a_client_lists_the_models_of_a_backend_that_wants_a_key() {
    let stub = Stub::start().await;
    stub.set_key("Bearer k");
    let gate = Gate::before(&stub).await;
    let ask = gate.get("/v1/models");
    assert_eq!(ask.clone().send().await.status, 401);
    let ask = ask.header("authorization", "Bearer k");
    assert_eq!(ask.send().await.status, 200);
}

#[tokio::test]
async fn models_of_one_backend_pass_as_they_are() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let expected: Value = serde_json::from_slice(&fixture("get-v1-models").body).unwrap();
    assert_eq!(gate.json("/v1/models").await, expected);
}

/// Samples by series name: every value, sorted.
fn samples(text: &str, prefix: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with(prefix)) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        found
            .entry(name.to_owned())
            .or_default()
            .push(value.to_owned());
    }
    for values in found.values_mut() {
        values.sort();
    }
    found
}

#[tokio::test]
async fn the_backends_own_metrics_are_among_the_gates() {
    let stub = Stub::start().await;
    let odd = "# HELP vllm:odd Odd values.\n# TYPE vllm:odd gauge\n\
        vllm:odd{engine=\"0\"} 1e-05\nvllm:odd{engine=\"1\"} NaN\n";
    let text = format!("{}{odd}", fixture::read("metrics.txt"));
    stub.set_metrics(&text);
    let gate = Gate::before(&stub).await;
    let (ours, theirs) = (gate.metrics().await, samples(&text, "vllm:"));
    assert!(theirs.len() > 80, "{}", theirs.len());
    assert_eq!(samples(&ours, "vllm:"), theirs);
}

#[tokio::test]
async fn the_exposition_of_two_backends_is_one_exposition() {
    let (one, other) = (Stub::start().await, Stub::start().await);
    let gate = Gate::start(config(&[&one, &other])).await.up().await;
    gate.until("/backends", |b| {
        b.as_object()
            .unwrap()
            .values()
            .all(|b| b["healthy"] == true)
    })
    .await;
    let text = gate.metrics().await;
    let mut types = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(
                types.insert(rest.split(' ').next().unwrap()),
                "twice: {line}"
            );
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(name), "twice: {line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(
        types.iter().any(|name| name.starts_with("kvgate_")),
        "{types:?}"
    );
    assert!(types.contains("vllm:kv_cache_usage_perc"), "{types:?}");
}

#[tokio::test]
async fn held_and_running_requests_are_gauges() {
    use crate::support::gate::{HELD_GAUGE, IN_FLIGHT_GAUGE, request_gauges};
    use crate::support::valve::Limits;

    let mut stub = Stub::start().await;
    let (policy, valve) = valve(Limits::default());
    let gate = Gate::start_with(config(&[&stub]), policy).await.up().await;
    let sum = |text: &str, gauge: &str| -> u32 {
        let found = request_gauges(text).filter(|(series, _)| series.starts_with(gauge));
        found.map(|(_, value)| value.parse::<u32>().unwrap()).sum()
    };
    let asking = gate.chat("p", false).spawn();
    valve.holds(1).await;
    let text = gate.metrics().await;
    assert_eq!(
        (sum(&text, HELD_GAUGE), sum(&text, IN_FLIGHT_GAUGE)),
        (1, 0)
    );

    valve.open();
    let call = stub.call().await;
    let text = gate.metrics().await;
    assert_eq!(
        (sum(&text, HELD_GAUGE), sum(&text, IN_FLIGHT_GAUGE)),
        (0, 1)
    );
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
}
