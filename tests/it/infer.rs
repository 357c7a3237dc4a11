//! A stock client, which sends no id, has its program recognised by its growing history.

use kvgate::proxy::Config;
use serde_json::{Value, json};

use crate::support::{Gate, Stub, config, fixture};

async fn gate(stub: &Stub, infer_programs: bool) -> Gate {
    let config = Config {
        infer_programs,
        ..config(&[stub])
    };
    Gate::start(config).await.up().await
}

/// A step of a client that holds `history`: asks, lets the stub answer with a recorded response, and appends
/// the reply.
async fn step(gate: &Gate, stub: &mut Stub, history: &mut Vec<Value>, answer: &str) {
    let stream = answer.ends_with("-stream");
    let body = json!({"model": "tiny", "messages": history, "stream": stream});
    let asking = gate.post("/v1/chat/completions", body.to_string()).spawn();
    let call = stub.call().await;
    call.answer(&fixture(answer)).await;
    let bytes = asking.await.unwrap().bytes().await;
    history.push(reply(&String::from_utf8(bytes).unwrap(), stream));
}

/// The message that a client makes of a response.
fn reply(body: &str, stream: bool) -> Value {
    if !stream {
        let body: Value = serde_json::from_str(body).unwrap();
        return body["choices"][0]["message"].clone();
    }
    let frames = body.lines().filter_map(|line| line.strip_prefix("data: "));
    let frames = frames.filter_map(|frame| serde_json::from_str::<Value>(frame).ok());
    let texts =
        frames.filter_map(|f| Some(f["choices"][0]["delta"]["content"].as_str()?.to_owned()));
    json!({"role": "assistant", "content": texts.collect::<String>()})
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

#[tokio::test]
async fn three_steps_of_a_growing_history_are_one_program() {
    let mut stub = Stub::start().await;
    let gate = gate(&stub, true).await;
    let mut history = vec![user("hello")];
    for answer in ["chat-stream", "tool-required", "chat"] {
        step(&gate, &mut stub, &mut history, answer).await;
        history.push(user("and then?"));
    }
    let programs = gate.programs().await;
    assert_eq!(programs.len(), 1, "{programs:?}");
    assert!(programs[0].starts_with("inferred:"), "{programs:?}");
    assert_eq!(gate.json("/programs").await[&programs[0]]["step"], 3);
}

#[tokio::test]
async fn equal_first_steps_are_two_programs_and_each_goes_on_by_its_own_reply() {
    let mut stub = Stub::start().await;
    let gate = gate(&stub, true).await;
    let (mut a, mut b) = (vec![user("hello")], vec![user("hello")]);
    step(&gate, &mut stub, &mut a, "chat").await;
    step(&gate, &mut stub, &mut b, "tool-required").await;
    let before = gate.programs().await;
    assert_eq!(before.len(), 2);
    for history in [&mut b, &mut a] {
        history.push(user("and then?"));
        step(&gate, &mut stub, history, "chat").await;
    }
    assert_eq!(gate.programs().await, before);
}

#[tokio::test]
async fn releasing_an_inferred_program_by_its_name_makes_its_next_step_a_new_one() {
    let mut stub = Stub::start().await;
    let gate = gate(&stub, true).await;
    let mut history = vec![user("hello")];
    step(&gate, &mut stub, &mut history, "chat").await;
    let first = gate.programs().await.remove(0);
    let release = json!({"program_id": first}).to_string();
    let answer = gate.post("/programs/release", release).send().await;
    let answer = answer.json().await;
    assert_eq!(answer, json!({"job_id": first, "released": true}));
    history.push(user("and then?"));
    step(&gate, &mut stub, &mut history, "chat").await;
    let programs = gate.programs().await;
    assert_eq!(programs.len(), 1);
    assert_ne!(programs[0], first, "a released history is not gone on from");
}

#[tokio::test]
async fn a_step_goes_on_from_the_equal_history_that_has_its_seed() {
    let mut stub = Stub::start().await;
    let gate = gate(&stub, true).await;
    let mut history = vec![user("hello")];
    step_with_seed(&gate, &mut stub, &history, 1).await;
    let first = gate.programs().await.remove(0);
    step_with_seed(&gate, &mut stub, &history, 2).await;
    let answer = String::from_utf8(fixture("chat").body).unwrap();
    history.extend([reply(&answer, false), user("and then?")]);
    // Without seeds it would be the first one's step, which has been idle for longer.
    step_with_seed(&gate, &mut stub, &history, 2).await;
    let programs = gate.json("/programs").await;
    assert_eq!(programs.as_object().unwrap().len(), 2);
    assert_eq!(programs[&first]["step"], 1, "{programs}");
}

async fn step_with_seed(gate: &Gate, stub: &mut Stub, history: &[Value], seed: u32) {
    let body = json!({"model": "tiny", "messages": history, "seed": seed});
    let asking = gate.post("/v1/chat/completions", body.to_string()).spawn();
    stub.call().await.answer(&fixture("chat")).await;
    drop(asking.await.unwrap().bytes().await);
}

#[tokio::test]
async fn a_client_that_left_and_asks_again_is_the_same_program() {
    let mut stub = Stub::start().await;
    let gate = gate(&stub, true).await;
    let mut history = vec![user("hello")];
    let body = json!({"model": "tiny", "messages": history});
    let asking = gate.post("/v1/chat/completions", body.to_string()).spawn();
    let call = stub.call().await;
    asking.abort();
    call.closed_by_peer().await;
    gate.quiet().await;
    step(&gate, &mut stub, &mut history, "chat").await;
    assert_eq!(gate.programs().await.len(), 1);
}

#[tokio::test]
async fn a_name_that_the_client_gives_is_kept_and_nothing_is_inferred_unless_asked_for() {
    let mut stub = Stub::start().await;
    for (infers, named, expected) in [(true, true, 1), (true, false, 1), (false, false, 0)] {
        let gate = gate(&stub, infers).await;
        let mut body = json!({"model": "tiny", "messages": [user("hello")]});
        if named {
            body["job_id"] = json!("mine");
        }
        let asking = gate.post("/v1/chat/completions", body.to_string()).spawn();
        stub.call().await.answer(&fixture("chat")).await;
        drop(asking.await.unwrap().bytes().await);
        let programs = gate.programs().await;
        assert_eq!(programs.len(), expected);
        assert_eq!(programs.contains(&"mine".to_owned()), named);
    }
}
