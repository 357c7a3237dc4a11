//! A held request waits at the gate, not at the backend; programs begin, overlap and end.

use kvgate::policy::{Event, Outcome};
use serde_json::json;

use crate::support::valve::Limits;
use crate::support::{Gate, Stub, config, fixture, shut, valve};

#[tokio::test]
async fn a_held_request_reaches_the_backend_only_when_admitted() {
    let (mut stub, gate, valve) = shut().await;
    let asking = gate.chat("p", true).spawn();
    valve.holds(1).await;
    stub.assert_idle();
    let held = gate.json("/programs").await["p"].clone();
    assert_eq!(
        (&held["paused"], &held["inflight"]),
        (&json!(true), &json!(false))
    );

    valve.open();
    stub.call()
        .await
        .answer(&fixture("chat-stream-usage"))
        .await;
    let reply = asking.await.unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.bytes().await.ends_with(b"data: [DONE]\n\n"));
    gate.quiet().await;
}

#[tokio::test]
async fn a_request_without_a_program_is_never_held_nor_pooled() {
    let (mut stub, gate, valve) = shut().await;
    for identity in [
        "",
        r#","job_id":null"#,
        r#","job_id":"""#,
        r#","program_id":null,"session_id":"""#,
    ] {
        let body = format!(r#"{{"model":"tiny","messages":[]{identity}}}"#);
        let asking = gate.post("/v1/chat/completions", body.clone()).spawn();
        let call = stub.call().await;
        assert_eq!(String::from_utf8_lossy(&call.request.body), body);
        call.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
    }
    assert!(gate.programs().await.is_empty());
    assert!(
        valve
            .arrivals()
            .iter()
            .all(|arrival| arrival.program.is_none())
    );
    assert_eq!(valve.arrivals().len(), 4);
}

#[tokio::test]
async fn two_requests_of_one_program_run_at_once_and_are_one_program() {
    let (mut stub, gate, valve) = shut().await;
    let first = gate.chat("p", false).spawn();
    let second = gate.chat("p", true).spawn();
    valve.holds(2).await;
    valve.open();
    let (one, other) = (stub.call().await, stub.call().await);
    assert_eq!(gate.programs().await, ["p"]);
    let (whole, streamed) = if one.request.json()["stream"] == json!(true) {
        (other, one)
    } else {
        (one, other)
    };

    whole.answer(&fixture("chat")).await;
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(gate.json("/programs").await["p"]["inflight"], true);

    streamed.answer(&fixture("chat-stream-usage")).await;
    second.await.unwrap().bytes().await;
    gate.quiet().await;
    let ids: Vec<_> = valve.arrivals().iter().map(|a| a.program).collect();
    assert_eq!(ids[0], ids[1]);
    let programs = gate.json("/programs").await;
    assert_eq!(programs["p"]["step"], 2);
}

#[tokio::test]
async fn a_released_program_is_forgotten_and_a_second_release_says_so() {
    let (mut stub, gate, valve) = shut().await;
    valve.open();
    for key in ["job_id", "program_id"] {
        let asking = gate.chat("p:[x]|1", false).spawn();
        stub.call().await.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
        gate.quiet().await;
        assert_eq!(gate.programs().await, ["p:[x]|1"]);

        let body = format!(r#"{{"{key}":"p:[x]|1"}}"#);
        for released in [true, false] {
            let reply = gate.post("/programs/release", body.clone()).send().await;
            assert_eq!(reply.status, 200);
            let expected = json!({"job_id": "p:[x]|1", "released": released});
            assert_eq!(reply.json().await, expected);
        }
        assert!(gate.programs().await.is_empty());
    }
    valve
        .told(|event| matches!(event, Event::Release { .. }).then_some(()))
        .await;
}

#[tokio::test]
async fn a_release_without_a_name_or_without_json_is_refused() {
    let (_stub, gate, _valve) = shut().await;
    for body in ["{}", r#"{"job_id":null}"#, "[]", "{", ""] {
        let reply = gate.post("/programs/release", body).send().await;
        assert_eq!(reply.status, 400, "{body}");
        assert!(reply.json().await.is_object(), "{body}");
    }
}

#[tokio::test]
async fn the_last_step_ends_its_program() {
    let (mut stub, gate, valve) = shut().await;
    valve.open();
    let body = r#"{"model":"tiny","messages":[],"job_id":"p","is_last_step":true}"#;
    let asking = gate.post("/v1/chat/completions", body).spawn();
    let call = stub.call().await;
    assert_eq!(String::from_utf8_lossy(&call.request.body), body);
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);

    let program = valve
        .told(|event| {
            let Event::Release { program } = event else {
                return None;
            };
            Some(*program)
        })
        .await;
    let arrival = valve.arrivals()[0];
    assert!(arrival.last_step);
    assert_eq!(arrival.program, Some(program));
    gate.until("/programs", |programs| programs == &json!({}))
        .await;
}

#[tokio::test]
async fn a_release_while_a_request_runs_takes_effect_when_it_ends() {
    let (mut stub, gate, valve) = shut().await;
    valve.open();
    let asking = gate.chat("p", false).spawn();
    let call = stub.call().await;
    let reply = gate
        .post("/programs/release", r#"{"job_id":"p"}"#)
        .send()
        .await;
    assert_eq!(reply.status, 200);

    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    valve
        .told(|event| matches!(event, Event::Release { .. }).then_some(()))
        .await;
    gate.until("/programs", |programs| programs == &json!({}))
        .await;
    assert_eq!(valve.finish().await.0, Outcome::Stop);
}

#[tokio::test]
async fn a_request_past_the_bound_of_held_ones_is_told_to_come_back_later() {
    let stub = Stub::start().await;
    let (policy, valve) = valve(Limits {
        held: 1,
        ..Limits::default()
    });
    let gate = Gate::start_with(config(&[&stub]), policy).await.up().await;
    let held = gate.chat("first", false).spawn();
    valve.holds(1).await;

    let refused = gate.chat("second", true).send().await;
    assert_eq!(refused.status, 429);
    let after: u64 = refused.header("retry-after").parse().unwrap();
    assert!(after > 0);
    let error = refused.json().await;
    assert_eq!(error["error"]["code"], "queue_full", "{error}");
    held.abort();
    gate.quiet().await;
}
