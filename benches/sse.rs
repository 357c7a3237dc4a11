//! What watching a stream costs: the frame scanner and the stream observer over a stream of 128 frames as vLLM
//! sends them, in one piece, a frame at a time, and in fragments that keep to no boundary.
//!
//! Throughput is in bytes of the stream; a frame is about 220 bytes, so 220 MB/s is a microsecond a frame.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use kvgate::telemetry::observe::{BodyObserver, StreamObserver};
use kvgate::telemetry::sse::FrameScanner;

/// Content frames of the stream; a role, a finish, a usage and an end frame come on top.
const FRAMES: usize = 124;

/// A chat stream with usage, as vLLM 0.32 writes it.
fn stream() -> Bytes {
    let head = r#"data: {"id":"chatcmpl-a942d32a55a2dea9","object":"chat.completion.chunk","created":1795490503,"model":"tiny","choices":["#;
    let choice = |choice: String| format!("{head}{{\"index\":0,{choice}}}]}}\n\n");
    let content = |frame: usize| {
        let content = ["ber", " the", r#"\":"#, " executed", "\\n"][frame % 5];
        choice(format!(
            r#""delta":{{"content":"{content}"}},"logprobs":null,"finish_reason":null,"token_ids":null"#
        ))
    };
    let usage = r#"{"prompt_tokens":15,"total_tokens":139,"completion_tokens":124,"prompt_tokens_details":{"cached_tokens":0}}"#;
    let mut frames = vec![choice(
        r#""delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null"#
            .to_owned(),
    )];
    frames.extend((0..FRAMES).map(content));
    frames.push(choice(
        r#""delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null"#
            .to_owned(),
    ));
    frames.push(format!("{head}],\"usage\":{usage}}}\n\n"));
    frames.push("data: [DONE]\n\n".to_owned());
    Bytes::from(frames.concat())
}

/// The stream cut into frames.
fn by_frame(stream: &Bytes) -> Vec<Bytes> {
    let mut scanner = FrameScanner::new();
    let mut rest = stream.clone();
    let mut frames = Vec::new();
    while let Some(end) = scanner.next_end(&rest) {
        frames.push(rest.split_to(end));
    }
    frames
}

/// The stream cut into pieces of `len` bytes.
fn by_length(stream: &Bytes, len: usize) -> Vec<Bytes> {
    stream
        .chunks(len)
        .map(|piece| stream.slice_ref(piece))
        .collect()
}

fn scan(chunks: &[Bytes]) -> usize {
    let mut scanner = FrameScanner::new();
    let mut frames = 0;
    for chunk in chunks {
        let mut rest: &[u8] = chunk;
        while let Some(end) = scanner.next_end(rest) {
            frames += 1;
            rest = &rest[end..];
        }
    }
    frames
}

fn observe(chunks: &[Bytes], hide_usage: bool) -> bool {
    let mut observer = StreamObserver::new(hide_usage);
    for chunk in chunks {
        observer.push(chunk.clone(), &mut |bytes| {
            black_box(bytes);
        });
    }
    observer.finish(&mut |bytes| {
        black_box(bytes);
    });
    observer.facts().done
}

fn benches(criterion: &mut Criterion) {
    let stream = stream();
    let cuts = [
        ("whole", vec![stream.clone()]),
        ("frames", by_frame(&stream)),
        ("fragments of 100", by_length(&stream, 100)),
    ];
    let mut group = criterion.benchmark_group("sse");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    for (name, chunks) in &cuts {
        group.bench_with_input(BenchmarkId::new("scan", name), chunks, |b, chunks| {
            b.iter(|| scan(black_box(chunks)));
        });
        for (mode, hide_usage) in [("observe", false), ("observe and hide usage", true)] {
            group.bench_with_input(BenchmarkId::new(mode, name), chunks, |b, chunks| {
                b.iter(|| observe(black_box(chunks), hide_usage));
            });
        }
    }
    group.finish();
    body(criterion);
}

/// A whole JSON response with a long text, in the pieces that a socket gives.
fn body(criterion: &mut Criterion) {
    let body = format!(
        r#"{{"choices":[{{"message":{{"content":"{}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":1}}}}"#,
        r#"Some text, a line\n, and a \"quote\"."#.repeat(1000)
    );
    let mut group = criterion.benchmark_group("body");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("observe", |b| {
        b.iter(|| {
            let mut observer = BodyObserver::new();
            black_box(body.as_bytes())
                .chunks(8192)
                .for_each(|chunk| observer.push(chunk));
            observer.facts().done
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    benches(&mut criterion);
    criterion.final_summary();
}
