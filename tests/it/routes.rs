//! Requests of some models go elsewhere: to other endpoints, to a stand-in, or to the backends by another name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvgate::proxy::Config;
use kvgate::proxy::routes::{ApiKey, Endpoints, Latency, Role, RouteConfig, StandIn, Target};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::gate::{route, set_stall_timeout, to_urls};
use crate::support::valve::{Limits, Valve, valve};
use crate::support::{Ask, Gate, Stub, config, fixture, within};

const CHAT: &str = "/v1/chat/completions";

/// What a client of `model` sends for program `p`.
fn body(model: &str) -> String {
    format!(
        r#"{{ "messages" : [{{"role":"user","content":"é \u00e9"}}], "model":{model:?} ,"n":1.0,"job_id":"p" }}"#
    )
}

fn ask(gate: &Gate, model: &str) -> Ask {
    gate.post(CHAT, body(model))
}

/// A gate with these routes whose policy holds every step.
async fn shut(routes: Vec<RouteConfig>, run_dir: Option<&Path>) -> (Stub, Gate, Valve) {
    let stub = Stub::start().await;
    let (policy, valve) = valve(Limits::default());
    let config = Config {
        routes,
        run_dir: run_dir.map(Path::to_owned),
        ..config(&[&stub])
    };
    let gate = Gate::start_with(config, policy).await.up().await;
    (stub, gate, valve)
}

/// The records of requests, once the gate that wrote them has drained.
async fn records(gate: Gate, dir: &Path) -> Vec<Value> {
    gate.drain().await;
    let text = std::fs::read_to_string(dir.join("steps.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
    records.collect()
}

/// The value of a series; empty if it is not there.
async fn series(gate: &Gate, series: &str) -> String {
    let text = gate.metrics().await;
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(name, _)| *name == series);
    found.map_or_else(String::new, |(_, value)| value.to_owned())
}

fn stand_in(median_s: f64, p90_s: f64) -> StandIn {
    StandIn {
        latency: Latency::fit(median_s, p90_s).unwrap(),
        seed: 3,
        text: "Yes.".to_owned(),
        stop_after: Some(2),
    }
}

#[tokio::test]
async fn a_routed_request_passes_while_the_policy_holds_everything_and_never_hears_of_it() {
    let mut expert = Stub::start().await;
    let routes = vec![to_urls("expert", &[expert.url()])];
    let (mut stub, gate, valve) = shut(routes, None).await;
    let held = ask(&gate, "tiny").spawn();
    valve.holds(1).await;

    let asking = ask(&gate, "expert")
        .header("authorization", "Bearer EMPTY")
        .spawn();
    let call = expert.call().await;
    let request = &call.request;
    assert_eq!(request.target, CHAT);
    assert_eq!(String::from_utf8_lossy(&request.body), body("expert"));
    assert_eq!(request.header("authorization"), Some("Bearer EMPTY"));
    let in_flight = "kvgate_route_in_flight{route=\"expert\"}";
    assert_eq!(series(&gate, in_flight).await, "1");
    call.answer(&fixture("chat")).await;
    let reply = asking.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.bytes().await, fixture("chat").body);

    assert_eq!(valve.arrivals().len(), 1, "the step alone");
    let program = gate.json("/programs").await["p"].clone();
    assert_eq!(
        (&program["step"], &program["paused"]),
        (&json!(1), &json!(true))
    );
    for (name, value) in [
        (in_flight, "0"),
        (
            "kvgate_route_requests_total{outcome=\"stop\",route=\"expert\"}",
            "1",
        ),
        ("kvgate_route_seconds_count{route=\"expert\"}", "1"),
        ("kvgate_requests_total{outcome=\"stop\"}", "0"),
    ] {
        assert_eq!(series(&gate, name).await, value, "{name}");
    }
    stub.assert_idle();
    held.abort();
}

#[tokio::test]
async fn a_routed_request_is_recorded_with_its_route_and_its_program() {
    let dir = tempfile::tempdir().unwrap();
    let mut expert = Stub::start().await;
    let routes = vec![to_urls("gpt-*", &[expert.url()])];
    let (_stub, gate, _valve) = shut(routes, Some(dir.path())).await;
    let asking = ask(&gate, "gpt-5").spawn();
    expert.call().await.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);

    let record = records(gate, dir.path()).await.remove(0);
    let expected = json!({
        "route": "gpt-*", "role": "expert", "model": "gpt-5", "program": "p", "policy": "",
        "backend": expert.url(), "outcome": "stop", "status": 200, "retries": 0,
        "prompt_tokens": 15, "output_tokens": 3, "hold_s": 0.0, "tool_gap_s": null,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(record[key], *value, "{key}");
    }
}

#[tokio::test]
async fn an_exact_name_beats_a_glob_and_the_longest_glob_beats_the_others() {
    let (mut exact, mut long, mut short) = (
        Stub::start().await,
        Stub::start().await,
        Stub::start().await,
    );
    let routes = vec![
        to_urls("gpt-*", &[short.url()]),
        to_urls("gpt-5", &[exact.url()]),
        to_urls("gpt-5*", &[long.url()]),
    ];
    let (mut stub, gate, valve) = shut(routes, None).await;
    valve.open();
    for (model, server) in [
        ("gpt-5", &mut exact),
        ("gpt-5-mini", &mut long),
        ("gpt-4.1-2025-04-14", &mut short),
        ("openai/gpt-5", &mut stub),
    ] {
        let asking = ask(&gate, model).spawn();
        server.call().await.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200, "{model}");
    }
}

#[tokio::test]
async fn an_alias_changes_the_models_value_and_no_other_byte() {
    let mut endpoint = Stub::start().await;
    let alias = |model: &str, target: Target| RouteConfig {
        model: Some("/ckpt/Orchestrator-8B".to_owned()),
        ..route(model, target)
    };
    let to_endpoint = to_urls("", &[format!("{}/api/v1", endpoint.url())]).target;
    let routes = vec![
        alias("gpt-5", to_endpoint),
        RouteConfig {
            role: Role::User,
            ..alias("gpt-4.1-*", Target::Scheduled)
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    let (mut stub, gate, valve) = shut(routes, Some(dir.path())).await;

    let asking = gate
        .post("/v1/chat/completions?a=%20", body("gpt-5"))
        .spawn();
    let call = endpoint.call().await;
    assert_eq!(call.request.target, "/api/v1/chat/completions?a=%20");
    let sent = body("/ckpt/Orchestrator-8B");
    assert_eq!(String::from_utf8_lossy(&call.request.body), sent);
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().bytes().await, fixture("chat").body);

    // The policy decides on the other one, and it is no step for the report all the same.
    let asking = ask(&gate, "gpt-4.1-2025-04-14").spawn();
    valve.holds(1).await;
    valve.open();
    let call = stub.call().await;
    assert_eq!(String::from_utf8_lossy(&call.request.body), sent);
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
    let records = records(gate, dir.path()).await;
    assert_eq!(records[1]["route"], "gpt-4.1-*");
    assert_eq!(
        (&records[1]["role"], &records[1]["model"]),
        (&json!("user"), &json!("gpt-4.1-2025-04-14"))
    );
    assert_eq!(records[1]["hold_reason"], "no_room");
}

#[tokio::test]
async fn an_endpoint_gets_the_routes_key_and_not_the_fields_it_would_refuse() {
    let mut endpoint = Stub::start().await;
    let target = Target::Endpoints(Endpoints {
        urls: vec![endpoint.url().parse().unwrap()],
        key: ApiKey::new("OPENAI_API_KEY".to_owned(), "sk-secret"),
        ca_file: None,
    });
    let routes = vec![RouteConfig {
        drop_fields: vec!["job_id".to_owned()],
        ..route("gpt-5", target)
    }];
    let dir = tempfile::tempdir().unwrap();
    let (_stub, gate, _valve) = shut(routes, Some(dir.path())).await;

    let asking = ask(&gate, "gpt-5")
        .header("authorization", "Bearer client")
        .header("accept-encoding", "gzip")
        .spawn();
    let call = endpoint.call().await;
    let keys = call
        .request
        .headers
        .iter()
        .filter(|(name, _)| name == "authorization");
    assert_eq!(
        keys.map(|(_, value)| value.as_str()).collect::<Vec<_>>(),
        ["Bearer sk-secret"]
    );
    assert_eq!(call.request.header("accept-encoding"), None);
    assert_eq!(
        String::from_utf8_lossy(&call.request.body),
        body("gpt-5").replace(",\"job_id\":\"p\"", "")
    );
    drop(call);
    let refused = asking.await.unwrap().bytes().await;
    let metrics = gate.metrics().await;
    let records = records(gate, dir.path()).await;
    assert_eq!(
        records[0]["program"], "p",
        "it is told by what does not go along"
    );
    for text in [
        String::from_utf8(refused).unwrap(),
        metrics,
        json!(records).to_string(),
    ] {
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn requests_go_to_the_endpoint_with_the_fewest_in_flight() {
    let (mut one, mut other) = (Stub::start().await, Stub::start().await);
    let routes = vec![to_urls("expert", &[one.url(), other.url()])];
    let (_stub, gate, _valve) = shut(routes, None).await;
    let first = ask(&gate, "expert").spawn();
    let busy = one.call().await;
    for _ in 0..2 {
        let next = ask(&gate, "expert").spawn();
        other.call().await.answer(&fixture("chat")).await;
        assert_eq!(next.await.unwrap().bytes().await, fixture("chat").body);
    }
    busy.answer(&fixture("chat")).await;
    assert_eq!(first.await.unwrap().bytes().await, fixture("chat").body);
    let last = ask(&gate, "expert").spawn();
    one.call().await.answer(&fixture("chat")).await;
    assert_eq!(last.await.unwrap().status, 200);
    other.assert_idle();
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_connected_to_is_passed_over() {
    let (gone, mut there) = (Stub::start().await, Stub::start().await);
    let gone = gone.refuse().await;
    let dir = tempfile::tempdir().unwrap();
    let routes = vec![to_urls("expert", &[gone, there.url()])];
    let (_stub, gate, _valve) = shut(routes, Some(dir.path())).await;
    for _ in 0..2 {
        let asking = ask(&gate, "expert").spawn();
        there.call().await.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
    }
    let records = records(gate, dir.path()).await;
    assert_eq!(
        (&records[0]["retries"], &records[1]["retries"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(records[0]["backend"], there.url());
}

#[tokio::test]
async fn failures_of_a_route_are_told_and_counted_by_cause() {
    let (mut broken, gone) = (Stub::start().await, Stub::start().await);
    let gone = gone.refuse().await;
    let stub = Stub::start().await;
    let mut config = Config {
        routes: vec![
            to_urls("broken", &[broken.url()]),
            to_urls("gone", std::slice::from_ref(&gone)),
        ],
        ..config(&[&stub])
    };
    set_stall_timeout(&mut config, Duration::from_millis(50));
    let gate = Gate::start(config).await.up().await;
    let counted = async |route: &str, outcome: &str| {
        let name =
            format!("kvgate_route_requests_total{{outcome=\"{outcome}\",route=\"{route}\"}}");
        assert_eq!(series(&gate, &name).await, "1", "{name}");
    };

    let reply = ask(&gate, "gone").send().await;
    assert_eq!(reply.status, 502);
    let error = reply.json().await["error"]["message"].to_string();
    assert!(
        error.contains(&format!("endpoint {gone} of route")),
        "{error}"
    );
    counted("gone", "backend_unreachable").await;

    let asking = ask(&gate, "broken").spawn();
    let mut failure = fixture("chat");
    failure.status = 500;
    broken.call().await.answer(&failure).await;
    let reply = asking.await.unwrap();
    assert_eq!(reply.status, 500);
    assert_eq!(
        reply.bytes().await,
        failure.body,
        "an endpoint's error passes as it is"
    );
    counted("broken", "http_500").await;

    let asking = ask(&gate, "broken").spawn();
    let overflow = fixture("err-context-prompt");
    broken.call().await.answer(&overflow).await;
    assert_eq!(asking.await.unwrap().bytes().await, overflow.body);
    counted("broken", "context_overflow").await;

    let asking = ask(&gate, "broken").spawn();
    let hung = broken.call().await;
    assert_eq!(asking.await.unwrap().status, 504);
    hung.closed_by_peer().await;
    counted("broken", "backend_timeout").await;

    let asking = ask(&gate, "broken").spawn();
    drop(broken.call().await);
    assert_eq!(asking.await.unwrap().status, 502);
    counted("broken", "backend_closed").await;
    for code in ["backend_unreachable", "backend_timeout", "backend_closed"] {
        let name = format!("kvgate_requests_total{{outcome=\"{code}\"}}");
        assert_eq!(
            series(&gate, &name).await,
            "",
            "{name} counts scheduled requests alone"
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_routed_request_with_it() {
    let mut endpoint = Stub::start().await;
    let slow = Target::StandIn(stand_in(3600.0, 3600.0));
    let routes = vec![to_urls("expert", &[endpoint.url()]), route("user", slow)];
    let dir = tempfile::tempdir().unwrap();
    let (_stub, gate, valve) = shut(routes, Some(dir.path())).await;

    let asking = ask(&gate, "expert").spawn();
    let call = endpoint.call().await;
    asking.abort();
    call.closed_by_peer().await;

    let asking = ask(&gate, "user").spawn();
    let in_flight = "kvgate_route_in_flight{route=\"user\"}";
    within(async { while series(&gate, in_flight).await != "1" {} }).await;
    asking.abort();
    within(async { while series(&gate, in_flight).await != "0" {} }).await;

    assert!(valve.arrivals().is_empty());
    for record in records(gate, dir.path()).await {
        assert_eq!(
            (&record["outcome"], &record["status"]),
            (&json!("cancelled"), &json!(0))
        );
    }
}

/// What a simulated user is asked after `turns` of its own.
fn question(turns: usize, extra: &str) -> String {
    let turn = r#",{"role":"assistant","content":"a"},{"role":"user","content":"b"}"#;
    format!(
        r#"{{"model":"gpt-5","messages":[{{"role":"system","content":"s"}}{}],"job_id":"p:user"{extra}}}"#,
        turn.repeat(turns)
    )
}

/// Answers of a stand-in to `questions`, and how long each took by the run's clock.
async fn answers(questions: &[String]) -> Vec<(String, f64)> {
    let stub = Stub::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        routes: vec![route("gpt-5", Target::StandIn(stand_in(9.6, 23.4)))],
        time_scale: 10_000.0,
        run_dir: Some(dir.path().to_owned()),
        ..config(&[&stub])
    };
    let gate = Gate::start(config).await.up().await;
    let mut texts = Vec::new();
    for question in questions {
        let reply = gate.post(CHAT, question.clone()).send().await;
        assert_eq!(reply.status, 200);
        texts.push(String::from_utf8(reply.bytes().await).unwrap());
    }
    let took = |record: &Value| {
        let moment = |key: &str| record[key].as_f64().unwrap();
        moment("finished_s") - moment("arrived_s")
    };
    let records = records(gate, dir.path()).await;
    texts.into_iter().zip(records.iter().map(took)).collect()
}

#[tokio::test]
async fn a_stand_in_answers_by_itself_after_a_latency_that_the_question_decides() {
    let questions = [question(0, ""), question(1, ""), question(2, "")];
    let forth = answers(&questions).await;
    let back: Vec<String> = questions.iter().rev().cloned().collect();
    let mut back = answers(&back).await;
    back.reverse();
    let texts = ["Yes.", "Yes.", "###STOP###"];
    for (turn, ((said, took), (again, _))) in forth.iter().zip(&back).enumerate() {
        let answer: Value = serde_json::from_str(said).unwrap();
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["model"], "gpt-5");
        let choice = &answer["choices"][0];
        assert_eq!(
            choice["message"],
            json!({"role": "assistant", "content": texts[turn]})
        );
        assert_eq!(choice["finish_reason"], "stop");
        assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 0);
        let other: Value = serde_json::from_str(again).unwrap();
        assert_eq!(
            (&other["id"], &other["choices"]),
            (&answer["id"], &answer["choices"])
        );

        let asked: Value = serde_json::from_str(&questions[turn]).unwrap();
        let messages = serde_json::to_vec(&asked["messages"]).unwrap();
        let asked = question(turn, "");
        let at = asked.find("[{").unwrap();
        let drawn = stand_in(9.6, 23.4).latency.of(
            3,
            Some("p:user"),
            &asked.as_bytes()[at..at + messages.len()],
        );
        assert!(*took >= drawn.as_secs_f64() - 0.001, "{took} {drawn:?}");
    }
}

#[tokio::test]
async fn a_stand_in_streams_for_a_client_that_wants_a_stream() {
    for (extra, with_usage) in [
        (r#","stream":true"#, false),
        (
            r#","stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
    ] {
        let answer = answers(&[question(0, extra)]).await.remove(0).0;
        let mut events: Vec<&str> = answer.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let chunks: Vec<Value> = events
            .iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect();
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["object"] == "chat.completion.chunk")
        );
        assert_eq!(chunks[0]["choices"][0]["delta"]["content"], "Yes.");
        assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
        let told = chunks
            .iter()
            .any(|chunk| chunk["usage"]["total_tokens"].is_u64());
        assert_eq!(
            (told, chunks.len()),
            (with_usage, 2 + usize::from(with_usage))
        );
    }
}

#[tokio::test]
async fn a_stand_in_has_no_answer_to_anything_but_chat() {
    let routes = vec![route("gpt-5", Target::StandIn(stand_in(0.001, 0.001)))];
    let (_stub, gate, _valve) = shut(routes, None).await;
    let reply = gate.post("/v1/responses", body("gpt-5")).send().await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json().await["error"]["code"], "stand_in_path");
}

#[tokio::test]
async fn models_of_routes_are_listed_behind_those_of_the_backends() {
    let routes = vec![
        to_urls("gpt-5", &["http://127.0.0.1:9".to_owned()]),
        to_urls("gpt-*", &["http://127.0.0.1:9".to_owned()]),
        to_urls("tiny", &["http://127.0.0.1:9".to_owned()]),
    ];
    let (stub, gate, _valve) = shut(routes, None).await;
    stub.set_models(
        r#"{"object":"list","data":[{"id":"tiny","object":"model","max_model_len":64}]}"#,
    );
    let models = gate.json("/v1/models").await;
    let data = models["data"].as_array().unwrap();
    let ids: Vec<_> = data
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["tiny", "gpt-5"]);
    assert_eq!(data[0]["max_model_len"], 64, "a backend's own words stay");
}

/// A TLS server with a certificate of its own making before `stub`; gives its port and the certificate as PEM.
async fn encrypted(stub: &Stub) -> (u16, String) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certified.cert.der().clone()],
            PrivateKeyDer::Pkcs8(key),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = stub.url().replace("http://", "");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                if let Ok(mut outer) = acceptor.accept(socket).await {
                    let mut inner = TcpStream::connect(behind).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut outer, &mut inner).await);
                }
            });
        }
    });
    (port, certified.cert.pem())
}

#[tokio::test]
async fn an_https_endpoint_is_spoken_to_in_tls_if_its_certificate_is_trusted() {
    let mut endpoint = Stub::start().await;
    let (port, pem) = encrypted(&endpoint).await;
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let target = |ca_file| {
        Target::Endpoints(Endpoints {
            urls: vec![format!("https://localhost:{port}/v1").parse().unwrap()],
            key: None,
            ca_file,
        })
    };
    let routes = vec![
        route("trusted", target(Some(ca_file))),
        route("unknown", target(None)),
    ];
    let (_stub, gate, _valve) = shut(routes, None).await;

    for reused in [0, 1] {
        let asking = ask(&gate, "trusted").spawn();
        let call = endpoint.call().await;
        assert_eq!(
            call.request.header("host"),
            Some(&*format!("localhost:{port}"))
        );
        assert_eq!(
            call.request.reused, reused,
            "connections are kept as others are"
        );
        call.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().bytes().await, fixture("chat").body);
    }

    let reply = ask(&gate, "unknown").send().await;
    assert_eq!(reply.status, 502);
    let error = reply.json().await["error"]["message"].to_string();
    assert!(
        error.contains("UnknownIssuer; a certificate of your own"),
        "{error}"
    );
    endpoint.assert_idle();
}
