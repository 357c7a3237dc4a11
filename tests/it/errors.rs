//! Whatever goes wrong, the client gets an error it can read, nobody hangs, and nothing leaks.

use std::time::Duration;

use kvgate::policy::Outcome;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::gate::{config_for, set_max_body, set_stall_timeout};
use crate::support::{
    Call, Gate, Reply, Stub, begun_stream, config, fixture, open, within, without_probes,
};

/// Asserts an error in OpenAI's shape: a message that says something, a type, a param, a code.
async fn openai_error(reply: Reply, status: u16) -> Value {
    assert_eq!(reply.status.as_u16(), status);
    assert!(reply.header("content-type").starts_with("application/json"));
    let body = reply.json().await;
    assert_error_shape(&body);
    body["error"].clone()
}

fn assert_error_shape(body: &Value) {
    let error = body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("{body}"));
    let keys: Vec<_> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["code", "message", "param", "type"], "{body}");
    assert!(error["message"].as_str().unwrap().len() > 10, "{body}");
    assert!(error["type"].is_string(), "{body}");
    assert!(
        error["param"].is_string() || error["param"].is_null(),
        "{body}"
    );
    assert!(!error["code"].is_null(), "{body}");
}

/// A URL where nobody listens.
async fn refusing_url() -> String {
    Stub::start().await.refuse().await
}

#[tokio::test]
async fn bad_json_is_refused_without_asking_the_backend() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for body in [
        r#"{"model":"tiny","messages":["#,
        "",
        "{'a':1}",
        "{\"model\":\"tiny\"} x",
    ] {
        openai_error(gate.post("/v1/chat/completions", body).send().await, 400).await;
    }
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn json_that_is_not_an_object_is_refused_without_asking_the_backend() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for body in ["[1,2]", "\"text\"", "17", "null"] {
        openai_error(gate.post("/v1/chat/completions", body).send().await, 400).await;
    }
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn a_missing_model_is_refused_without_asking_the_backend() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for body in [r#"{"messages":[]}"#, r#"{"model":null}"#, r#"{"model":""}"#] {
        let reply = gate.post("/v1/chat/completions", body).send().await;
        let error = openai_error(reply, 400).await;
        assert_eq!(
            (&error["code"], &error["param"]),
            (&"missing_model".into(), &"model".into())
        );
    }
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn a_missing_model_is_the_backends_to_judge_where_the_gate_is_told_so() {
    // vLLM answers with its default model.
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    config.require_model = false;
    let gate = Gate::start(config).await.up().await;
    let body = r#"{"messages":[{"role":"user","content":"x"}],"job_id":"p"}"#;
    let asking = gate.post("/v1/chat/completions", body).spawn();
    let call = stub.call().await;
    assert_eq!(String::from_utf8_lossy(&call.request.body), body);
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
}

#[tokio::test]
async fn an_error_of_the_backend_passes_untouched_and_is_a_failed_step() {
    let (mut stub, gate, valve) = open().await;
    let answer = fixture("err-context-prompt");
    let asking = gate.chat("p", true).spawn();
    stub.call().await.answer(&answer).await;
    let reply = asking.await.unwrap();
    assert_eq!(reply.status, 400);
    assert_eq!(reply.bytes().await, answer.body);
    assert_eq!(valve.finish().await, (Outcome::Failed, None));
    gate.quiet().await;
    let timeline = gate.json("/programs/p").await;
    let past = &timeline["past"][0];
    assert_eq!(past["outcome"], "context_overflow", "{timeline}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_passes() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    set_max_body(&mut config, 1000);
    let gate = Gate::start(config).await.up().await;
    let body_of = |len: usize| {
        let fill = "x".repeat(len - r#"{"model":""}"#.len());
        format!(r#"{{"model":"{fill}"}}"#)
    };
    openai_error(
        gate.post("/v1/chat/completions", body_of(1001))
            .send()
            .await,
        413,
    )
    .await;
    stub.assert_idle();

    let asking = gate.post("/v1/chat/completions", body_of(1000)).spawn();
    stub.call().await.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
}

/// What the gate answers to bytes that no well-behaved client sends.
async fn raw(gate: &Gate, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(gate.addr()).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    within(socket.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused_even_if_it_is_one_chunk() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    set_max_body(&mut config, 100);
    let gate = Gate::start(config).await.up().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = format!(r#"{{"model":"{}"}}"#, "x".repeat(1000));
    let request = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let answer = raw(&gate, request.as_bytes()).await;
    assert!(answer.contains("body_too_large"), "{answer}");
    stub.assert_idle();
}

#[tokio::test]
async fn a_client_that_stops_within_its_body_is_not_waited_for_without_end() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    config.client_idle = Duration::from_millis(100);
    let gate = Gate::start(config).await.up().await;
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 100\r\n\r\n{";
    let answer = raw(&gate, request).await;
    assert!(
        answer.contains("408") && answer.contains("body_stalled"),
        "{answer}"
    );
    stub.assert_idle();
}

#[tokio::test]
async fn without_a_healthy_backend_the_gate_says_so_and_is_not_ready() {
    let gate = Gate::start(config_for(&[refusing_url().await])).await;
    for stream in [false, true] {
        let error = openai_error(gate.chat("p", stream).send().await, 503).await;
        assert_eq!(error["code"], "no_backend", "{error}");
    }
    assert_eq!(gate.get("/health").send().await.status, 503);
    gate.quiet().await;
}

#[tokio::test]
async fn a_backend_that_is_not_configured_is_refused_by_name() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let ask = gate
        .get("/version")
        .header("x-kvgate-backend", "http://nobody:1");
    let error = openai_error(ask.send().await, 400).await;
    assert_eq!(error["code"], "unknown_backend");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("http://nobody:1") && message.contains(&stub.url()),
        "{message}"
    );

    let asking = gate
        .get("/version")
        .header("x-kvgate-backend", &stub.url())
        .spawn();
    let call = stub.call().await;
    assert_eq!(call.request.header("x-kvgate-backend"), None);
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_backend_that_begins_to_refuse_gives_an_error() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    stub.refuse().await;
    for stream in [false, true] {
        let reply = gate.chat("p", stream).send().await;
        // 502 while the gate still believes in it, 503 once it has noticed.
        let status = reply.status.as_u16();
        assert!(status == 502 || status == 503, "{status}");
        openai_error(reply, status).await;
    }
    gate.quiet().await;
}

#[tokio::test]
async fn a_backend_that_never_answers_is_given_up() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    set_stall_timeout(&mut config, Duration::from_millis(50));
    let gate = Gate::start(config).await.up().await;
    let asking = gate.chat("p", false).spawn();
    let stalled = stub.call().await;
    openai_error(asking.await.unwrap(), 504).await;
    stalled.closed_by_peer().await;
    gate.quiet().await;
    stub.assert_idle();
}

#[tokio::test]
async fn a_stream_that_stalls_is_given_up() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    set_stall_timeout(&mut config, Duration::from_millis(50));
    let gate = Gate::start(config).await.up().await;
    let asking = gate.chat("p", true).spawn();
    let answer = fixture("chat-stream-usage");
    let mut stream = stub.call().await.stream(&answer).await;
    stream.frame(&answer.frames()[0]).await;
    let (body, broken) = asking.await.unwrap().until_end_or_break().await;
    assert_stream_failed(&body, broken);
    stream.closed_by_peer().await;
    gate.quiet().await;
}

#[tokio::test]
async fn a_backend_that_dies_before_its_first_byte_gives_an_error_and_no_second_try() {
    let (mut stub, gate) = without_probes().await;
    let mut died_on_a_new_connection = 0;
    for stream in [false, true, false, true] {
        let asking = gate.chat("p", stream).spawn();
        let call = stub.call().await;
        // A probe may have left a connection behind: its failure is not the backend's last word.
        if call.request.reused > 0 {
            drop(call);
            drop(stub.call().await);
        } else {
            drop(call);
            died_on_a_new_connection += 1;
        }
        let error = openai_error(asking.await.unwrap(), 502).await;
        assert_eq!(error["code"], "backend_closed", "{error}");
        stub.assert_idle();
    }
    assert!(died_on_a_new_connection > 0);
    gate.quiet().await;
}

#[tokio::test]
async fn a_backend_that_dies_in_mid_stream_is_told_to_the_client() {
    let (mut stub, gate, valve) = open().await;
    let (stream, reply) = begun_stream(&gate, &mut stub).await;

    drop(stream);
    let (rest, broken) = reply.until_end_or_break().await;
    assert_stream_failed(&rest, broken);
    assert_eq!(valve.finish().await.0, Outcome::Failed);
    gate.quiet().await;
    assert_eq!(gate.programs().await, ["p"]);
}

/// A stream that failed carries an error frame in OpenAI's shape and never looks complete.
fn assert_stream_failed(body: &[u8], broken: bool) {
    let text = String::from_utf8_lossy(body);
    assert!(!text.contains("[DONE]"), "{text}");
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_error_shape(&error);
    assert!(!broken, "the error frame is delivered, then the body ends");
}

#[tokio::test]
async fn a_frame_that_breaks_off_does_not_swallow_the_error() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let (mut stream, reply) = begun_stream(&gate, &mut stub).await;
    stream.frame(b"data: {\"choices\":[{\"del").await;
    drop(stream);
    let (rest, broken) = reply.until_end_or_break().await;
    assert_stream_failed(&rest, broken);
    let text = String::from_utf8(rest).unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\""), "{text}");
}

#[tokio::test]
async fn a_tunnel_is_refused() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let answer = raw(
        &gate,
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    stub.assert_idle();
}

#[tokio::test]
async fn an_error_inside_a_stream_is_a_failed_step() {
    let (mut stub, gate, valve) = open().await;
    let asking = gate.chat("p", true).spawn();
    let body = "data: {\"error\":{\"message\":\"EngineCore encountered an issue\",\
        \"type\":\"InternalServerError\",\"param\":null,\"code\":500}}\n\ndata: [DONE]\n\n";
    let mut stream = stub
        .call()
        .await
        .stream(&fixture("chat-stream-usage"))
        .await;
    stream.frame(body.as_bytes()).await;
    stream.end().await;
    let bytes = asking.await.unwrap().bytes().await;
    assert_eq!(String::from_utf8_lossy(&bytes), body);
    assert_eq!(valve.finish().await.0, Outcome::Failed);
}

/// Asks until the request travels on a connection that has carried one before; `stream` as in [`Gate::chat`].
async fn ask_on_a_used_connection(
    gate: &Gate,
    stub: &mut Stub,
    stream: bool,
) -> (JoinHandle<Reply>, Call) {
    loop {
        let asking = gate.chat("p", stream).spawn();
        let call = stub.call().await;
        if call.request.reused > 0 {
            return (asking, call);
        }
        call.answer(&fixture("chat")).await;
        asking.await.unwrap().bytes().await;
    }
}

#[tokio::test]
async fn a_stale_connection_is_retried_once_and_the_client_notices_nothing() {
    let (mut stub, gate) = without_probes().await;
    // The backend closes the idle connection just as the next request is on its way.
    let (asking, stale) = ask_on_a_used_connection(&gate, &mut stub, false).await;
    let sent = stale.request.body.clone();
    drop(stale);

    let retry = stub.call().await;
    assert_eq!(retry.request.reused, 0);
    assert_eq!(retry.request.body, sent);
    retry.answer(&fixture("chat")).await;
    let reply = asking.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.bytes().await, fixture("chat").body);
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn a_retry_that_fails_too_is_an_error_and_the_last_try() {
    let (mut stub, gate) = without_probes().await;
    let (asking, stale) = ask_on_a_used_connection(&gate, &mut stub, false).await;
    drop(stale);
    let retry = stub.call().await;
    assert_eq!(retry.request.reused, 0);
    drop(retry);
    openai_error(asking.await.unwrap(), 502).await;
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn an_answer_that_has_begun_is_never_retried() {
    let (mut stub, gate) = without_probes().await;
    let (asking, call) = ask_on_a_used_connection(&gate, &mut stub, true).await;
    let stream = call.stream(&fixture("chat-stream-usage")).await;
    let reply = asking.await.unwrap();
    drop(stream);
    let (body, broken) = reply.until_end_or_break().await;
    assert_stream_failed(&body, broken);
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn a_response_head_that_breaks_off_or_cannot_be_read_is_never_retried() {
    let (mut stub, gate) = without_probes().await;
    let too_many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-h: y\r\n".repeat(120));
    for head in ["HTTP/1.1 200 OK\r\nconte", &too_many_headers] {
        let (asking, call) = ask_on_a_used_connection(&gate, &mut stub, false).await;
        call.break_off_after(head.as_bytes()).await;
        let error = openai_error(asking.await.unwrap(), 502).await;
        assert_eq!(error["code"], "backend_closed", "{error}");
        stub.assert_idle();
    }
    gate.quiet().await;
}

/// Answers uploads before it has read them, and never reads them; serves everything else.
async fn serve_hastily(listener: TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = vec![0; 1024];
            loop {
                let len = socket.read(&mut head).await.unwrap_or(0);
                if len == 0 {
                    return;
                }
                let hasty = head.starts_with(b"POST /upload");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                drop(socket.write_all(answer).await);
                if hasty {
                    std::future::pending::<()>().await;
                }
            }
        });
    }
}

#[tokio::test]
async fn a_connection_whose_request_was_answered_before_it_was_sent_serves_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let _backend = tokio::spawn(serve_hastily(listener));
    let mut config = config_for(&[url]);
    config.scrape_interval = Duration::from_secs(3600);
    let gate = Gate::start(config).await.up().await;
    let upload = gate.post("/upload", vec![b'x'; 30 << 20]).send().await;
    assert_eq!(upload.bytes().await, b"{}");
    assert_eq!(gate.chat("p", false).send().await.status, 200);
}
