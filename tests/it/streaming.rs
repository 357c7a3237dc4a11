//! Streams flow frame by frame, and the usage that the gate asks for stays the gate's.

use std::time::Duration;

use kvgate::policy::{Event, Outcome, Tokens};
use serde_json::{Value, json};

use crate::support::fixture::request;
use crate::support::{Gate, Stub, config, fixture, open};

/// Whether `longer` is `shorter` with bytes inserted in one place.
fn is_splice(shorter: &[u8], longer: &[u8]) -> bool {
    let front = shorter
        .iter()
        .zip(longer)
        .take_while(|(a, b)| a == b)
        .count();
    let back = shorter
        .iter()
        .rev()
        .zip(longer.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    longer.len() >= shorter.len() && front + back >= shorter.len()
}

#[tokio::test]
async fn each_frame_arrives_before_the_next_is_sent() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for name in [
        "chat-stream-usage",
        "tool-required-stream",
        "messages-anthropic-stream",
    ] {
        let (path, body) = request(name);
        let asking = gate.post(&path, body).spawn();
        let answer = fixture(name);
        let mut stream = stub.call().await.stream(&answer).await;
        let mut reply = asking.await.unwrap();
        for frame in answer.frames() {
            stream.frame(&frame).await;
            reply.expect(&frame).await;
        }
        stream.end().await;
        assert!(reply.bytes().await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn half_a_frame_is_not_kept_back() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let (path, body) = request("chat-stream-usage");
    let asking = gate.post(&path, body).spawn();
    let mut stream = stub
        .call()
        .await
        .stream(&fixture("chat-stream-usage"))
        .await;
    let mut reply = asking.await.unwrap();
    for piece in [
        ": keep-alive\n",
        "\n",
        "data: {\"choices\":[{\"delta\"",
        ":{}}]}\r\n\r\nda",
    ] {
        stream.frame(piece.as_bytes()).await;
        reply.expect(piece.as_bytes()).await;
    }
    stream.frame(b"ta: [DONE]\n\n").await;
    stream.end().await;
    assert_eq!(reply.bytes().await, b"ta: [DONE]\n\n");
}

#[tokio::test]
async fn usage_is_asked_for_in_a_stream_and_hidden_from_a_client_that_did_not_ask() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let (path, sent) = request("chat-stream");
    let asking = gate.post(&path, sent.clone()).spawn();
    let call = stub.call().await;

    let arrived: Value = call.request.json();
    assert_eq!(arrived["stream_options"], json!({"include_usage": true}));
    assert!(
        is_splice(&sent, &call.request.body),
        "only bytes were inserted"
    );

    let answer = fixture("chat-stream-usage");
    call.answer(&answer).await;
    let body = asking.await.unwrap().bytes().await;
    let body = String::from_utf8(body).unwrap();
    let expected = answer.frames_without_usage().concat();
    assert_eq!(body, String::from_utf8(expected).unwrap());
}

#[tokio::test]
async fn the_usage_frame_is_hidden_wherever_the_network_cuts_it() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let (path, sent) = request("chat-stream");
    let answer = fixture("chat-stream-usage");
    let expected = answer.frames_without_usage().concat();
    for size in [1, 7, 64, 333, 1000] {
        let asking = gate.post(&path, sent.clone()).spawn();
        let mut stream = stub.call().await.stream(&answer).await;
        for piece in answer.body.chunks(size) {
            stream.frame(piece).await;
        }
        stream.end().await;
        let body = asking.await.unwrap().bytes().await;
        assert_eq!(
            String::from_utf8(body).unwrap(),
            String::from_utf8_lossy(&expected),
            "pieces of {size} bytes"
        );
    }
}

#[tokio::test]
async fn a_client_that_asked_for_usage_gets_it_and_its_body_is_not_touched() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let (path, sent) = request("chat-stream-usage");
    let asking = gate.post(&path, sent.clone()).spawn();
    let call = stub.call().await;
    assert_eq!(call.request.body, sent);
    let answer = fixture("chat-stream-usage");
    call.answer(&answer).await;
    assert_eq!(asking.await.unwrap().bytes().await, answer.body);
}

#[tokio::test]
async fn a_client_that_declined_usage_does_not_get_it_either() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let answer = fixture("chat-stream-usage");
    for options in [r#"{"include_usage":false}"#, "null", "{}"] {
        let sent =
            format!(r#"{{"stream_options":{options},"model":"tiny","messages":[],"stream":true}}"#);
        let asking = gate.post("/v1/chat/completions", sent).spawn();
        let call = stub.call().await;
        assert_eq!(
            call.request.json()["stream_options"]["include_usage"],
            true,
            "{options}"
        );
        call.answer(&answer).await;
        let body = asking.await.unwrap().bytes().await;
        assert!(
            !String::from_utf8(body).unwrap().contains("usage"),
            "{options}"
        );
    }
}

#[tokio::test]
async fn usage_is_not_asked_for_where_the_api_does_not_know_it() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let stream = r#"{"model":"tiny","input":"x","messages":[],"max_tokens":1,"stream":true}"#;
    let whole = r#"{"model":"tiny","messages":[]}"#;
    for (path, sent) in [
        ("/v1/messages", stream),
        ("/v1/responses", stream),
        ("/v1/chat/completions", whole),
        (
            "/v1/completions",
            r#"{"model":"tiny","prompt":"x","stream":false}"#,
        ),
    ] {
        let asking = gate.post(path, sent).spawn();
        let call = stub.call().await;
        assert_eq!(String::from_utf8_lossy(&call.request.body), sent, "{path}");
        call.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn the_policy_learns_the_usage_and_the_end_of_a_stream_nobody_asked_usage_of() {
    let (mut stub, gate, valve) = open().await;
    let asking = gate.chat("p", true).spawn();
    stub.call()
        .await
        .answer(&fixture("chat-stream-usage"))
        .await;
    asking.await.unwrap().bytes().await;

    let (outcome, usage) = valve.finish().await;
    assert_eq!(outcome, Outcome::Stop);
    let usage = usage.unwrap();
    assert_eq!((usage.prompt, usage.output), (Tokens(15), Tokens(3)));
    assert_eq!(usage.cached, Some(Tokens(0)));
    valve
        .told(|event| matches!(event, Event::FirstToken { .. }).then_some(()))
        .await;
}

#[tokio::test]
async fn tool_calls_are_the_outcome_of_a_stream_that_calls_tools() {
    let (mut stub, gate, valve) = open().await;
    let asking = gate.chat("p", true).spawn();
    stub.call()
        .await
        .answer(&fixture("tool-required-stream"))
        .await;
    asking.await.unwrap().bytes().await;
    assert_eq!(valve.finish().await.0, Outcome::ToolCalls);
    valve
        .told(|event| matches!(event, Event::ToolGap { .. }).then_some(()))
        .await;
}

#[tokio::test]
async fn a_stream_may_wait_for_its_first_token_as_long_as_any_request_for_its_first_byte() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    config.idle_timeout = Duration::from_millis(20);
    let gate = Gate::start(config).await.up().await;
    let asking = gate.chat("p", true).spawn();
    let answer = fixture("chat-stream-usage");
    // vLLM sends the head at once; what follows waits in its queue.
    let mut stream = stub.call().await.stream(&answer).await;
    let mut reply = asking.await.unwrap();
    // Nothing may come meanwhile, and an error would.
    let silence = tokio::time::timeout(Duration::from_millis(100), reply.expect(b"data: "));
    assert!(silence.await.is_err());
    stream.frame(&answer.body).await;
    stream.end().await;
    assert!(reply.bytes().await.ends_with(b"data: [DONE]\n\n"));
}
