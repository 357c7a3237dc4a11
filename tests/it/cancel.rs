//! A client that leaves takes its request with it, wherever it is.

use kvgate::policy::Outcome;

use crate::support::{Gate, Stub, begun_stream, fixture, open, shut};

#[tokio::test]
async fn a_client_that_leaves_while_held_never_reaches_the_backend() {
    let (mut stub, gate, valve) = shut().await;
    for stream in [true, false] {
        let asking = gate.chat("leaver", stream).spawn();
        valve.holds(1).await;
        asking.abort();
        valve.holds(0).await;
        assert_eq!(valve.finish().await, (Outcome::Cancelled, None));
    }
    // What comes after passes, so the ones that left are gone, not late.
    valve.open();
    let next = gate.chat("next", false).spawn();
    let call = stub.call().await;
    assert_eq!(call.request.json()["job_id"], "next");
    call.answer(&fixture("chat")).await;
    assert_eq!(next.await.unwrap().status, 200);
    stub.assert_idle();
    gate.quiet().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_closes_the_backends_connection() {
    let (mut stub, gate, valve) = open().await;
    for stream in [false, true] {
        let asking = gate.chat("p", stream).spawn();
        let call = stub.call().await;
        asking.abort();
        call.closed_by_peer().await;
    }
    assert_eq!(valve.finish().await.0, Outcome::Cancelled);
    gate.quiet().await;
    stub.assert_idle();
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_closes_the_backends_connection() {
    let (mut stub, gate, valve) = open().await;
    let (stream, reply) = begun_stream(&gate, &mut stub).await;

    drop(reply);
    stream.closed_by_peer().await;
    assert_eq!(valve.finish().await, (Outcome::Cancelled, None));
    gate.quiet().await;
}

#[tokio::test]
async fn a_client_that_leaves_within_a_long_whole_body_closes_the_backends_connection() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let asking = gate.chat("p", false).spawn();
    let mut answer = fixture("chat");
    answer.headers.retain(|(name, _)| name != "content-length");
    answer
        .headers
        .push(("transfer-encoding".into(), "chunked".into()));
    let mut stream = stub.call().await.stream(&answer).await;
    let mut reply = asking.await.unwrap();
    stream.frame(b"{\"id\":").await;
    reply.expect(b"{\"id\":").await;

    drop(reply);
    stream.closed_by_peer().await;
    gate.quiet().await;
}

#[tokio::test]
async fn one_of_two_requests_of_a_program_leaves_and_the_other_is_served() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let leaver = gate.chat("p", true).spawn();
    let dropped = stub.call().await;
    let stayer = gate.chat("p", true).spawn();
    let kept = stub.call().await;

    leaver.abort();
    dropped.closed_by_peer().await;
    kept.answer(&fixture("chat-stream-usage")).await;
    assert!(stayer.await.unwrap().bytes().await.ends_with(b"[DONE]\n\n"));
    gate.quiet().await;
    assert_eq!(gate.programs().await, ["p"]);
}
