//! Recorded vLLM responses, cut at every kind of place, against what their clients send back.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::conversation::Conversation;
use super::*;

/// The body of a recorded vLLM response.
macro_rules! recorded {
    ($name:literal) => {{
        let text = include_str!(concat!(
            "../../../../tests/fixtures/vllm/",
            $name,
            ".response.txt"
        ));
        text.split_once("\r\n\r\n").unwrap().1
    }};
}

fn digest(mut hasher: ReplyHasher, pieces: &[&[u8]]) -> (Option<ReplyDigest>, bool) {
    for piece in pieces {
        hasher.push(piece);
    }
    (hasher.digest(), hasher.is_done())
}

fn whole(body: &str) -> Option<ReplyDigest> {
    digest(ReplyHasher::whole(), &[body.as_bytes()]).0
}

fn streamed(body: &str) -> Option<ReplyDigest> {
    digest(ReplyHasher::streamed(), &[body.as_bytes()]).0
}

/// What a request's digest calls the answer, for a client that sends `message` back.
fn sent_back(message: &Value) -> u64 {
    let messages = json!([message]).to_string();
    let conversation = Conversation::read("", messages.as_bytes()).unwrap();
    conversation.links[0].answer.unwrap()
}

/// The first choice's message, as a client puts it together from a stream.
fn assembled(stream: &str) -> Value {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for frame in stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        let frame: Value = serde_json::from_str(frame).unwrap_or_default();
        let choices = frame["choices"].as_array().cloned().unwrap_or_default();
        for choice in choices.iter().filter(|choice| choice["index"] == 0) {
            text += choice["delta"]["content"].as_str().unwrap_or("");
            let deltas = choice["delta"]["tool_calls"].as_array();
            let new = deltas.into_iter().flatten();
            calls.extend(new.filter(|call| call["id"].is_string()).cloned());
        }
    }
    json!({"role": "assistant", "content": text, "tool_calls": calls})
}

#[test]
fn a_recorded_reply_is_recognised_when_its_client_sends_it_back() {
    for body in [
        recorded!("chat"),
        recorded!("tool-named"),
        recorded!("tool-required"),
    ] {
        let message = serde_json::from_str::<Value>(body).unwrap()["choices"][0]["message"].clone();
        assert_eq!(whole(body).unwrap().answer, sent_back(&message));
    }
    for body in [
        recorded!("chat-stream"),
        recorded!("chat-stream-usage"),
        recorded!("chat-n2-stream"),
        recorded!("tool-named-stream"),
        recorded!("tool-required-stream"),
        recorded!("tool-auto-forced-stream"),
        recorded!("rust-frontend/tool-required-stream"),
    ] {
        assert_eq!(streamed(body).unwrap().answer, sent_back(&assembled(body)));
    }
}

#[test]
fn a_call_is_known_by_its_ids_and_a_text_by_its_words() {
    assert!(whole(recorded!("tool-required")).unwrap().calls());
    assert!(!whole(recorded!("chat")).unwrap().calls());
    let call = |id: &str, text: &str| {
        let message = json!({"content": text, "tool_calls": [{"id": id}]});
        whole(&json!({"choices": [{"index": 0, "message": message}]}).to_string()).unwrap()
    };
    assert_eq!(call("a", "x"), call("a", "y"));
    assert_ne!(call("a", "x"), call("b", "x"));
}

#[test]
fn an_id_told_again_with_every_piece_is_one_call() {
    let frame = |call: Value| {
        let delta = json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
        format!("data: {delta}\n\n")
    };
    let once = frame(json!({"index": 0, "id": "a"})) + &frame(json!({"index": 0}));
    let again = frame(json!({"index": 0, "id": "a"})) + &frame(json!({"index": 0, "id": "a"}));
    let empty = frame(json!({"index": 0, "id": "a"})) + &frame(json!({"index": 0, "id": ""}));
    assert_eq!(streamed(&once), streamed(&again));
    assert_eq!(streamed(&once), streamed(&empty));
    let two = frame(json!({"index": 0, "id": "a"})) + &frame(json!({"index": 1, "id": "b"}));
    assert_ne!(streamed(&once), streamed(&two));
}

#[test]
fn an_error_is_no_reply() {
    assert_eq!(whole(recorded!("err-unknown-model")), None);
    assert_eq!(
        streamed("data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n"),
        None
    );
    assert_eq!(whole(""), None);
}

#[test]
fn the_end_of_a_stream_is_told_by_its_last_frame() {
    let body = recorded!("chat-stream");
    let (before, last) = body.split_at(body.find("data: [DONE]").unwrap());
    let mut hasher = ReplyHasher::streamed();
    hasher.push(before.as_bytes());
    assert!(!hasher.is_done());
    hasher.push(last.as_bytes());
    assert!(hasher.is_done());
}

#[test]
fn a_mark_ends_the_program_and_nothing_like_it_does() {
    let ends = |text: &str| {
        let body = json!({"choices": [{"message": {"content": text}}]});
        whole(&body.to_string()).unwrap().ends()
    };
    for mark in END_MARKS {
        assert!(ends(mark) && ends(&format!("bye #{mark}#, #")), "{mark}");
    }
    assert!(ends("### ###ST###STOP###"));
    for text in [
        "",
        "###STOP##",
        "##STOP###",
        "### STOP ###",
        "###stop###",
        "###TRANSFERS###",
    ] {
        assert!(!ends(text), "{text}");
    }
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_reply(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12), which in 0_usize..4) {
        let crlf = recorded!("tool-required-stream").replace('\n', "\r\n");
        let (hasher, body) = [
            (ReplyHasher::streamed(), recorded!("chat-stream")),
            (ReplyHasher::streamed(), crlf.as_str()),
            (ReplyHasher::whole(), recorded!("tool-required")),
            (ReplyHasher::whole(), r#"{"choices":[{"index":0,"message":{"content":"a\ud83d\ude00\n###STOP###"}}]}"#),
        ][which].clone();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).collect();
        cuts.sort_unstable();
        cuts.push(body.len());
        let mut from = 0;
        let pieces: Vec<&[u8]> = cuts.iter().map(|&cut| {
            let piece = &body.as_bytes()[from..cut];
            from = cut;
            piece
        }).collect();
        let one = digest(hasher.clone(), &[body.as_bytes()]);
        prop_assert!(one.0.is_some() && one.1);
        prop_assert_eq!(one, digest(hasher, &pieces));
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(prop::sample::select(b"data: {}[]\",:\\ud8\r\nchoices#".to_vec()), 0..120)) {
        let _ = digest(ReplyHasher::streamed(), &[&bytes]);
        let _ = digest(ReplyHasher::whole(), &[&bytes]);
    }
}
