//! What a client sends reaches the backend byte for byte, and what the backend answers reaches the client.

use http::Method;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{Ask, Fixture, Gate, Stub, fixture};

/// Headers that belong to one connection, and `host`, which names whoever is asked.
const PER_HOP: [&str; 10] = [
    "connection",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn end_to_end(headers: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut kept: Vec<_> = headers
        .into_iter()
        .filter(|(name, _)| !PER_HOP.contains(&name.as_str()))
        .collect();
    // The order between different names carries no meaning; the order of one name's values does.
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    kept
}

fn received(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    end_to_end(headers.iter().map(pair))
}

/// JSON with everything that a re-serialising proxy would change: blanks, escapes, long numbers, twin keys.
fn random_value(rng: &mut ChaCha8Rng, depth: u32) -> String {
    let blanks = ["", "", " ", "\n", " \t "];
    let blank = *blanks.choose(rng).unwrap();
    let scalars = [
        "null",
        "true",
        "9007199254740993",
        "-0",
        "1.10",
        "1e5",
        "1E+05",
        "0.1e-07",
        "\"\"",
        "\"\\u00e9\\/\"",
        "\"\u{e9}\u{1f600}\"",
        "\"\\\"data: [DONE]\\n\\n\"",
        "[]",
        "{}",
        "\"}{][\\\\\"",
        "123456789012345678901234567890",
    ];
    match rng.random_range(0..6) {
        0 if depth > 0 => {
            let items: Vec<_> = (0..rng.random_range(0..4))
                .map(|_| random_value(rng, depth - 1))
                .collect();
            format!("[{blank}{}]", items.join(&format!("{blank},")))
        }
        1 | 2 if depth > 0 => format!("{{{blank}{}}}", random_members(rng, depth - 1)),
        _ => format!("{}{blank}", scalars.choose(rng).unwrap()),
    }
}

fn random_members(rng: &mut ChaCha8Rng, depth: u32) -> String {
    let keys = [
        "a",
        "a",
        "stream_options",
        "usage",
        "messages",
        "max_tokens",
        "\\u0061",
        "",
        "\u{fc}",
        "seed",
        "tools",
    ];
    let members: Vec<_> = (0..rng.random_range(0..5))
        .map(|_| {
            format!(
                "\"{}\" : {}",
                keys.choose(rng).unwrap(),
                random_value(rng, depth)
            )
        })
        .collect();
    members.join(" , ")
}

fn random_chat(rng: &mut ChaCha8Rng) -> String {
    let rest = random_members(rng, 4);
    let comma = if rest.is_empty() { "" } else { "," };
    if rng.random() {
        format!("{{ \"model\":\"tiny\"{comma}{rest}}}\n")
    } else {
        format!("{{{rest}{comma} \"model\" : \"tiny\" }}")
    }
}

fn random_answer(rng: &mut ChaCha8Rng) -> Fixture {
    let len = rng.random_range(0..5000);
    let body: Vec<u8> = (0..len).map(|_| rng.random()).collect();
    let mut headers = vec![
        ("content-length".to_owned(), body.len().to_string()),
        (
            "date".to_owned(),
            "Tue, 24 Nov 2026 03:21:41 GMT".to_owned(),
        ),
        ("server".to_owned(), "uvicorn".to_owned()),
        ("set-cookie".to_owned(), "b=2".to_owned()),
        ("set-cookie".to_owned(), "a=1".to_owned()),
        (
            "x-request-id".to_owned(),
            format!("{:x}", rng.random::<u64>()),
        ),
    ];
    if rng.random() {
        headers.push(("content-type".to_owned(), "application/json".to_owned()));
    }
    if rng.random() {
        // Its bytes are nobody's to decode but the client's.
        headers.push(("content-encoding".to_owned(), "gzip".to_owned()));
    }
    Fixture {
        status: *[200, 201, 400, 404, 422, 429, 500, 503]
            .choose(rng)
            .unwrap(),
        headers,
        body,
    }
}

#[tokio::test]
async fn random_json_headers_query_and_status_pass_untouched_both_ways() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let paths = [
        "/v1/chat/completions",
        "/v1/completions?api-version=2&x=%2F%20+&&",
        "/v1/embeddings",
        "/tokenize?a=b#",
        "/v1/responses",
        "/v1/messages?beta=true",
    ];
    for seed in 0..300 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let sent = random_chat(rng);
        let path = paths.choose(rng).unwrap().trim_end_matches('#');
        let asking = gate
            .post(path, sent.clone())
            .header("authorization", "Bearer sk-secret")
            .header("x-request-id", &seed.to_string())
            .header(
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            )
            .header("x-twice", "first")
            .header("x-twice", "second")
            .header("accept-encoding", "gzip, br")
            .spawn();

        let call = stub.call().await;
        let arrived = call.request.clone();
        assert_eq!(String::from_utf8_lossy(&arrived.body), sent, "seed {seed}");
        assert_eq!(arrived.target, path, "seed {seed}");
        assert_eq!(arrived.method, "POST");
        let expected = [
            ("accept-encoding", "gzip, br"),
            ("authorization", "Bearer sk-secret"),
            ("content-length", &sent.len().to_string()),
            ("content-type", "application/json"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("x-request-id", &seed.to_string()),
            ("x-twice", "first"),
            ("x-twice", "second"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(end_to_end(arrived.headers), expected, "seed {seed}");

        let answer = random_answer(rng);
        call.answer(&answer).await;
        let reply = asking.await.unwrap();
        assert_eq!(reply.status.as_u16(), answer.status, "seed {seed}");
        let headers = end_to_end(answer.headers.clone());
        assert_eq!(received(&reply.headers), headers, "seed {seed}");
        assert!(reply.bytes().await == answer.body, "seed {seed}: body");
    }
    gate.quiet().await;
}

#[tokio::test]
async fn every_method_and_path_is_forwarded() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for (method, path) in [
        (Method::GET, "/version"),
        (Method::DELETE, "/v1/responses/resp_1"),
        (Method::PUT, "/anything/at%20all?x=1"),
        (Method::PATCH, "/v1/x"),
        (Method::OPTIONS, "/v1/chat/completions"),
        (Method::GET, "/"),
    ] {
        let asking = Ask::new(gate.addr(), method.clone(), path).spawn();
        let call = stub.call().await;
        assert_eq!(call.request.method, method.as_str());
        assert_eq!(call.request.target, path);
        call.answer(&fixture("err-unknown-model")).await;
        assert_eq!(asking.await.unwrap().status, 404);
    }
}

#[tokio::test]
async fn headers_of_one_hop_stay_on_it_also_when_connection_names_them() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let asking = gate
        .chat("p", false)
        .header("connection", "keep-alive, x-mine")
        .header("x-mine", "private")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers")
        .header("proxy-connection", "keep-alive")
        .header("x-yours", "public")
        .spawn();
    let call = stub.call().await;
    for name in ["x-mine", "keep-alive", "te", "proxy-connection"] {
        assert_eq!(call.request.header(name), None, "{name}");
    }
    assert_eq!(call.request.header("x-yours"), Some("public"));

    let mut answer = fixture("chat");
    answer
        .headers
        .push(("connection".into(), "x-theirs".into()));
    answer.headers.push(("x-theirs".into(), "private".into()));
    call.answer(&answer).await;
    let reply = asking.await.unwrap();
    assert!(
        !reply.headers.contains_key("x-theirs"),
        "{:?}",
        reply.headers
    );
    assert_eq!(reply.bytes().await, answer.body);
}

#[tokio::test]
async fn every_recorded_response_of_vllm_passes_untouched() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for name in [
        "chat",
        "chat-stream-usage",
        "chat-stream-continuous-usage",
        "completions",
        "tool-required",
        "tool-required-stream",
        "err-unknown-model",
        "messages-anthropic-stream",
        "responses",
        "tokenize-chat",
    ] {
        let (path, body) = fixture::request(name);
        let asking = gate.post(&path, body.clone()).spawn();
        let call = stub.call().await;
        assert_eq!(call.request.body, body, "{name}");
        let answer = fixture(name);
        call.answer(&answer).await;
        let reply = asking.await.unwrap();
        assert_eq!(reply.status.as_u16(), answer.status, "{name}");
        assert_eq!(
            received(&reply.headers),
            end_to_end(answer.headers),
            "{name}"
        );
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&reply.bytes().await), text(&answer.body), "{name}");
    }
}

#[tokio::test]
async fn a_large_body_passes_untouched() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let long = "\u{e9}\\n".repeat(2 << 20);
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}],"model":"tiny"}}"#);
    let asking = gate.post("/v1/chat/completions", body.clone()).spawn();
    let call = stub.call().await;
    assert!(call.request.body == body.as_bytes(), "{} bytes", body.len());
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
}
