//! What program inference costs a request that names no program: digesting its messages, then finding its
//! program among 100,000.
//!
//! `digest` reads histories of 1, 32 and 256 KiB; the figure to hold it against is `identity_scan` of the same
//! bodies. `escaped` is the same with tool results that are JSON inside JSON, a quote every few bytes. `step` is
//! one arrival, reply and end; it is what the table's lock is held for.
#![expect(
    clippy::expect_used,
    reason = "a measurement stops at the first surprise"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use kvgate::policy::Time;
use kvgate::proxy::infer::{Conversation, Inference, Limits, ReplyHasher};
use kvgate::proxy::scan;

#[path = "support/bodies.rs"]
mod bodies;

const PROGRAMS: usize = 100_000;

fn digest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("infer_digest");
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for kib in [1, 32, 256] {
        let body = bodies::chat_body(kib << 10);
        let messages = scan::find(body.as_bytes(), b"messages").expect("a chat body");
        let escaped = escaped(kib << 10);
        for (name, text) in [("plain", messages), ("escaped", escaped.as_bytes())] {
            group.throughput(Throughput::Bytes(text.len() as u64));
            let id = BenchmarkId::new(name, format!("{kib}KiB"));
            group.bench_with_input(id, text, |bencher, text| {
                bencher.iter(|| Conversation::read("m", black_box(text)));
            });
        }
    }
    group.finish();
}

/// Messages of about `bytes` bytes whose tool results are JSON, written into a string.
fn escaped(bytes: usize) -> String {
    let mut text = String::from(r#"[{"role":"user","content":"hello"}"#);
    let mut id = 0;
    while text.len() < bytes {
        id += 1;
        let _infallible = write!(
            text,
            r#",{{"role":"assistant","content":null,"tool_calls":[{{"id":"call_{id}","type":"function","function":{{"name":"get_order_details","arguments":"{{\"order_id\": \"W{id}\"}}"}}}}]}}"#
        );
        let _infallible = write!(
            text,
            r#",{{"role":"tool","tool_call_id":"call_{id}","content":""#
        );
        for item in 0..10 {
            let _infallible = write!(
                text,
                r#"{{\"item_id\": \"{id}{item}\", \"options\": {{\"color\": \"black\", \"size\": \"8 x 10\"}}, \"price\": 62.17}}, "#
            );
        }
        text += r#""}"#;
    }
    text + "]"
}

/// A step of program `program`: its first request, or its second, which repeats it and the reply.
fn conversation(program: usize, step: usize) -> Conversation {
    let mut text =
        format!(r#"[{{"role":"system","content":"s"}},{{"role":"user","content":"{program}"}}"#);
    for _ in 0..step {
        text += r#",{"role":"assistant","content":"ok"},{"role":"user","content":"next"}"#;
    }
    Conversation::read("m", (text + "]").as_bytes()).expect("messages")
}

fn step(criterion: &mut Criterion) {
    let mut hasher = ReplyHasher::whole();
    hasher.push(br#"{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"}}]}"#);
    let reply = hasher.digest().expect("a message");
    let mut infer = Inference::new(Limits {
        max_programs: 2 * PROGRAMS,
        idle: Duration::from_secs(3600),
    });
    let mut now = Time::ZERO;
    let mut play = |infer: &mut Inference, conversation: &Conversation| {
        now = now + Duration::from_nanos(1);
        let step = infer.arrive(now, conversation).expect("room").ticket;
        infer.replied(now, step, reply);
        infer.finished(now, step);
    };
    for program in 0..PROGRAMS {
        play(&mut infer, &conversation(program, 0));
    }
    // Each program in turn repeats its history, as one that asks again does, so that the table stays as it is.
    let seconds: Vec<_> = (0..PROGRAMS).map(|p| conversation(p, 1)).collect();
    let mut next = (0..PROGRAMS).cycle();
    criterion.bench_function("infer_step/100000_programs", |bencher| {
        bencher.iter(|| play(&mut infer, &seconds[next.next().expect("a cycle")]));
    });
    assert_eq!(infer.len(), PROGRAMS);
}

fn reply(criterion: &mut Criterion) {
    let frame = r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}]}

"#;
    let mut hasher = ReplyHasher::streamed();
    let mut group = criterion.benchmark_group("infer_reply");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("frame", |bencher| {
        bencher.iter(|| hasher.push(black_box(frame.as_bytes())));
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    digest(&mut criterion);
    step(&mut criterion);
    reply(&mut criterion);
    criterion.final_summary();
}
