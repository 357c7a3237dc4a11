//! A policy's ranking reaches the backend where that is wanted, and nothing else of the request changes.

use kvgate::policy::Config as Policy;
use kvgate::proxy::Config;

use crate::support::{Ask, Call, Gate, Stub, config, fixture};

const HEADER: &str = "x-vllm-priority";

/// A gate whose policy ranks every step of a program.
async fn ranking(stub: &Stub, forward_priority: bool) -> Gate {
    let config = Config {
        policy: Policy::by_name("continuum").unwrap(),
        forward_priority,
        ..config(&[stub])
    };
    Gate::start(config).await.up().await
}

/// What the backend gets of `ask`.
async fn sent(stub: &mut Stub, ask: Ask) -> Received {
    let asking = ask.spawn();
    let call: Call = stub.call().await;
    let received = Received {
        header: call.request.header(HEADER).map(str::to_owned),
        body: String::from_utf8(call.request.body.clone()).unwrap(),
    };
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    received
}

#[derive(Debug, PartialEq, Eq)]
struct Received {
    header: Option<String>,
    body: String,
}

impl Received {
    fn unranked(body: &str) -> Self {
        Self {
            header: None,
            body: body.to_owned(),
        }
    }

    /// The priority that was put before the client's bytes, and these bytes.
    fn split(&self) -> (i64, String) {
        assert_eq!(self.header, None);
        let rest = self.body.strip_prefix("{\"priority\":").unwrap();
        let (priority, rest) = rest.split_once(',').unwrap();
        (priority.parse().unwrap(), format!("{{{rest}"))
    }
}

#[tokio::test]
async fn a_ranking_stands_before_the_clients_own_bytes() {
    let mut stub = Stub::start().await;
    let gate = ranking(&stub, true).await;
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses?a=b",
    ] {
        let body = r#"{"temperature" : 1.0, "model":"tiny","messages":[] ,"job_id":"p"}"#;
        let received = sent(&mut stub, gate.post(path, body)).await;
        let (priority, rest) = received.split();
        assert!(priority > 0, "{priority}");
        assert_eq!(rest, body);
    }
}

#[tokio::test]
async fn a_stream_is_ranked_and_asked_for_usage_at_once() {
    let mut stub = Stub::start().await;
    let gate = ranking(&stub, true).await;
    let body = r#"{"model":"tiny","stream":true,"stream_options":{"include_usage":false},"job_id":"p","messages":[]}"#;
    let (_, rest) = sent(&mut stub, gate.post("/v1/chat/completions", body))
        .await
        .split();
    assert_eq!(rest, body.replace("false", "true"));
}

#[tokio::test]
async fn the_messages_api_is_ranked_by_header_since_vllm_reads_no_priority_in_its_body() {
    let mut stub = Stub::start().await;
    let gate = ranking(&stub, true).await;
    let body = r#"{"model":"tiny","max_tokens":1,"messages":[],"job_id":"p"}"#;
    let received = sent(&mut stub, gate.post("/v1/messages", body)).await;
    let priority: i64 = received.header.unwrap().parse().unwrap();
    assert!(priority > 0, "{priority}");
    assert_eq!(received.body, body);
}

#[tokio::test]
async fn a_priority_of_the_clients_own_stays_and_none_is_added() {
    let mut stub = Stub::start().await;
    let gate = ranking(&stub, true).await;
    let own = r#"{"model":"tiny","messages":[],"job_id":"p","priority":3}"#;
    let plain = r#"{"model":"tiny","messages":[],"job_id":"p"}"#;
    for path in ["/v1/chat/completions", "/v1/responses", "/v1/messages"] {
        let received = sent(&mut stub, gate.post(path, own)).await;
        assert_eq!(received, Received::unranked(own));
        let ask = gate.post(path, plain).header(HEADER, "-4");
        let received = sent(&mut stub, ask).await;
        assert_eq!(received.header.as_deref(), Some("-4"));
        assert_eq!(received.body, plain);
    }
}

#[tokio::test]
async fn nothing_is_added_without_the_option_or_without_a_program() {
    let mut stub = Stub::start().await;
    let step = r#"{"model":"tiny","messages":[],"job_id":"p"}"#;
    let stranger = r#"{"model":"tiny","messages":[]}"#;
    for (forward, body) in [(false, step), (true, stranger)] {
        let gate = ranking(&stub, forward).await;
        for path in ["/v1/chat/completions", "/v1/messages"] {
            let received = sent(&mut stub, gate.post(path, body)).await;
            assert_eq!(received, Received::unranked(body));
        }
    }
}
