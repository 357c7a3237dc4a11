//! On SIGTERM the gate stops being ready, finishes what it has, and ends in bounded time.

use std::time::Duration;

use crate::support::gate::{set_drain_settle, set_drain_timeout};
use crate::support::valve::Limits;
use crate::support::{Gate, Stub, config, fixture, shut, valve, within};

#[tokio::test]
async fn a_gate_with_nothing_to_do_drains_and_closes_its_port() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let late = gate.get("/health");
    let report = within(gate.drain()).await;
    assert!(report.quiet && report.refused == 0, "{report:?}");
    assert!(late.try_send().await.is_err());
}

#[tokio::test]
async fn programs_that_nobody_released_are_counted_at_the_end() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for program in ["released", "forgotten"] {
        let asking = gate.chat(program, false).spawn();
        stub.call().await.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
    }
    let release = gate.post("/programs/release", r#"{"job_id":"released"}"#);
    assert_eq!(release.send().await.status, 200);
    assert_eq!(within(gate.drain()).await.programs, 1);
}

#[tokio::test]
async fn a_running_stream_is_finished_and_readiness_is_off_meanwhile() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    set_drain_settle(&mut config, Duration::from_millis(200));
    let gate = Gate::start(config).await.up().await;
    let asking = gate.chat("p", true).spawn();
    let answer = fixture("chat-stream-usage");
    let mut stream = stub.call().await.stream(&answer).await;
    let mut reply = asking.await.unwrap();
    let frames = answer.frames();
    stream.frame(&frames[0]).await;
    reply.expect(&frames[0]).await;

    let probe = gate.get("/health");
    let draining = tokio::spawn(gate.drain());
    // While it settles the port is open, and says that no new work should come.
    within(async { while probe.clone().send().await.status != 503 {} }).await;
    assert!(!draining.is_finished(), "a stream is still running");

    for frame in &frames[1..] {
        stream.frame(frame).await;
    }
    stream.end().await;
    assert!(reply.bytes().await.ends_with(b"data: [DONE]\n\n"));
    let report = within(draining).await.unwrap();
    assert!(report.quiet && report.refused == 0, "{report:?}");
}

#[tokio::test]
async fn held_requests_are_served_when_the_policy_admits_them_in_time() {
    let (stub, gate, valve) = shut().await;
    let _answering = stub.answer_all(fixture("chat-stream-usage"));
    let asking: Vec<_> = (0..20)
        .map(|n| gate.chat(&format!("p{n}"), true).spawn())
        .collect();
    valve.holds(20).await;

    let draining = tokio::spawn(gate.drain());
    valve.open();
    for ask in asking {
        let reply = ask.await.unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.bytes().await.ends_with(b"data: [DONE]\n\n"));
    }
    within(draining).await.unwrap();
}

#[tokio::test]
async fn held_requests_do_not_keep_the_gate_from_ending() {
    let mut stub = Stub::start().await;
    let (policy, valve) = valve(Limits::default());
    let mut config = config(&[&stub]);
    set_drain_timeout(&mut config, Duration::from_millis(50));
    let gate = Gate::start_with(config, policy).await.up().await;
    let asking = [gate.chat("a", true).spawn(), gate.chat("b", false).spawn()];
    valve.holds(2).await;

    let report = within(gate.drain()).await;
    assert_eq!(report.refused, 2);
    for ask in asking {
        let reply = ask.await.unwrap();
        assert_eq!(reply.status, 503);
        assert_eq!(reply.json().await["error"]["code"], "shutting_down");
    }
    stub.assert_idle();
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_cut_at_the_drain_timeout() {
    let mut stub = Stub::start().await;
    let mut config = config(&[&stub]);
    set_drain_timeout(&mut config, Duration::from_millis(50));
    let gate = Gate::start(config).await.up().await;
    let asking = gate.chat("p", true).spawn();
    let answer = fixture("chat-stream-usage");
    let mut stream = stub.call().await.stream(&answer).await;
    let reply = asking.await.unwrap();
    stream.frame(&answer.frames()[0]).await;

    let report = within(gate.drain()).await;
    assert!(!report.quiet, "{report:?}");
    stream.closed_by_peer().await;
    let (body, _) = reply.until_end_or_break().await;
    assert!(
        !body.ends_with(b"[DONE]\n\n"),
        "a cut stream does not look complete"
    );
}
