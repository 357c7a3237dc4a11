//! The API over real sockets, on port 0. The engine runs a thousand times faster than the GPU it models.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::core::cost::CPU_TINY;
use super::core::{Config, Lookups, Scheduling};
use super::*;

struct Server {
    url: String,
    client: reqwest::Client,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    /// Serves with 99 usable blocks of 16 tokens and a context of 1,024.
    fn start() -> Self {
        Self::at_speed(1000.0)
    }

    fn at_speed(speedup: f64) -> Self {
        let config = EngineConfig {
            core: Config {
                blocks: 100,
                block_size: 16,
                max_num_seqs: 8,
                max_num_batched_tokens: 512,
                scheduling: Scheduling::Fcfs,
                lookups: Lookups::Admission,
                cost: CPU_TINY,
            },
            models: vec!["tiny".to_owned(), "alias".to_owned()],
            max_model_len: 1024,
            speedup,
            seed: 7,
            tau2: true,
            max_requests: 3,
        };
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(config, listener, async {
            drop(stopped.await);
        }));
        Self {
            url,
            client: reqwest::Client::new(),
            stop,
            serving,
        }
    }

    async fn send(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self.client.post(format!("{}{path}", self.url)).body(body);
        request.send().await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let response = self.send(path, body.to_string()).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn chat(&self, body: &Value) -> Value {
        let (status, text) = self.post("/v1/chat/completions", body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn metric(&self, series: &str) -> f64 {
        let response = self.client.get(format!("{}/metrics", self.url)).send();
        let page = response.await.unwrap().text().await.unwrap();
        let line = page.lines().find(|line| line.starts_with(series));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value
            .unwrap_or_else(|| panic!("no {series} in {page}"))
            .parse()
            .unwrap()
    }

    /// Asks until nothing runs and nothing waits.
    async fn idle(&self) -> bool {
        for _ in 0..10_000 {
            let busy = self.metric("vllm:num_requests_running").await
                + self.metric("vllm:num_requests_waiting").await;
            if busy < 0.5 {
                return true;
            }
        }
        false
    }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// The events of a stream, without `data: ` and the end mark, which must be there.
fn events(stream: &str) -> Vec<Value> {
    let (events, end) = stream.rsplit_once("data: [DONE]\n\n").unwrap();
    assert_eq!(end, "");
    let frames = events.split_terminator("\n\n");
    let json = frames.map(|frame| frame.strip_prefix("data: ").unwrap());
    json.map(|json| serde_json::from_str(json).unwrap())
        .collect()
}

#[tokio::test]
async fn a_chat_completion_has_every_field_of_vllm_in_its_order() {
    let server = Server::start();
    let body = json!({"messages": [user("hello world")], "max_tokens": 2, "ignore_eos": true});
    let (_, text) = server.post("/v1/chat/completions", &body).await;
    let reply: Value = serde_json::from_str(&text).unwrap();
    let (id, created) = (&reply["id"], &reply["created"]);
    let content = &reply["choices"][0]["message"]["content"];
    assert_eq!(content.as_str().map(str::len), Some(8));
    let expected = format!(
        r#"{{"id":{id},"object":"chat.completion","created":{created},"model":"tiny","choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null}}],"service_tier":null,"system_fingerprint":"kvgate-engine-{version}","usage":{{"prompt_tokens":11,"total_tokens":13,"completion_tokens":2,"prompt_tokens_details":{{"cached_tokens":0,"created_cache_tokens":0,"multimodal_tokens":null}},"completion_tokens_details":null}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        version = env!("CARGO_PKG_VERSION"),
    );
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_stream_says_the_same_as_the_whole_answer() {
    let server = Server::start();
    let mut body =
        json!({"messages": [user("hello world")], "max_tokens": 400, "ignore_eos": true});
    let whole = server.chat(&body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (_, stream) = server.post("/v1/chat/completions", &body).await;
    let events = events(&stream);
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    let deltas = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(
        deltas.collect::<String>(),
        whole["choices"][0]["message"]["content"].as_str().unwrap()
    );
    let reasons: Vec<_> = events
        .iter()
        .filter_map(|e| e["choices"][0]["finish_reason"].as_str())
        .collect();
    assert_eq!(reasons, ["length"]);
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(last["system_fingerprint"].is_string());
    assert_eq!(last["usage"]["completion_tokens"], 400);
}

#[tokio::test]
async fn usage_is_on_every_chunk_or_on_none() {
    let server = Server::start();
    let mut body = json!({"prompt": [5, 6, 7], "max_tokens": 3, "stream": true});
    let (_, stream) = server.post("/v1/completions", &body).await;
    let plain = events(&stream);
    assert!(plain.iter().all(|event| event.get("usage").is_none()));
    let signed = plain
        .iter()
        .filter(|event| event.get("system_fingerprint").is_some());
    assert_eq!(signed.count(), 1);
    assert!(plain.last().unwrap()["system_fingerprint"].is_string());
    body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let (_, stream) = server.post("/v1/completions", &body).await;
    assert!(
        events(&stream)
            .iter()
            .all(|event| event["usage"]["prompt_tokens"] == 3)
    );
}

#[tokio::test]
async fn an_answer_sent_back_as_history_is_in_the_cache() {
    let server = Server::start();
    let mut messages = vec![user("what is the weather like in the town over there?")];
    let mut body = json!({"messages": messages, "max_tokens": 100, "ignore_eos": true});
    let first = server.chat(&body).await;
    messages.push(first["choices"][0]["message"].clone());
    messages.push(user("and tomorrow?"));
    body["messages"] = json!(messages);
    let second = server.chat(&body).await;
    let known = first["usage"]["total_tokens"].as_u64().unwrap() - 1;
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(cached.as_u64(), Some(known / 16 * 16));
}

#[tokio::test]
async fn a_tool_call_sent_back_as_history_is_in_the_cache() {
    let server = Server::start();
    let tools =
        json!([{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]);
    let mut messages = vec![user("what is the weather like in the town over there?")];
    let mut body = json!({"messages": messages, "tools": tools, "tool_choice": "required", "max_tokens": 60,
                          "ignore_eos": true});
    let first = server.chat(&body).await;
    let choice = &first["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(first["usage"]["completion_tokens"], 60);
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(arguments).unwrap()["arg"].is_string());
    messages.push(choice["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "rain"}));
    body["messages"] = json!(messages);
    let second = server.chat(&body).await;
    let known = first["usage"]["total_tokens"].as_u64().unwrap() - 1;
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(cached.as_u64(), Some(known / 16 * 16));
}

#[tokio::test]
async fn a_conversation_of_tau2_bench_is_played_in_both_roles() {
    let server = Server::start();
    let tool = json!({"type": "function", "function": {"name": "get_order", "parameters": {"required": ["order_id"]}}});
    let mut agent = json!({
        "messages": [{"role": "system", "content": "<policy>"}, user("Where is #W0000042?")],
        "tools": [tool], "tool_choice": "auto", "temperature": 0.0,
    });
    let answer = server.chat(&agent).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function["name"], "get_order");
    assert_eq!(function["arguments"], r##"{"order_id":"#W0000042"}"##);
    agent["tool_choice"] = "none".into();
    let answer = server.chat(&agent).await;
    assert!(answer["choices"][0]["message"]["tool_calls"].is_null());

    let mut messages =
        vec![json!({"role": "system", "content": "<scenario>I am Yara.</scenario>"})];
    let mut said = Vec::new();
    while said.last().is_none_or(|last| last != "###STOP###") && said.len() < 20 {
        messages.push(user("yes?"));
        let answer = server.chat(&json!({"messages": messages})).await;
        let message = &answer["choices"][0]["message"];
        said.push(message["content"].as_str().unwrap_or_default().to_owned());
        messages.push(json!({"role": "assistant", "content": said.last()}));
    }
    assert_eq!(said[0], "I am Yara.");
    assert!((4..=8).contains(&said.len()), "{said:?}");
}

#[tokio::test]
async fn a_named_tool_streams_its_name_then_its_arguments_and_ends_with_stop() {
    let server = Server::start();
    let named = json!({"type": "function", "function": {"name": "cook"}});
    let body = json!({"messages": [user("dinner?")], "tools": [named], "tool_choice": named, "max_tokens": 20,
                      "ignore_eos": true, "stream": true});
    let (_, stream) = server.post("/v1/chat/completions", &body).await;
    let events = events(&stream);
    let call = &events[1]["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!(
        (&call["index"], &call["function"]),
        (&json!(0), &json!({"name": "cook"}))
    );
    let fragments = events.iter().filter_map(|event| {
        event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
    });
    let arguments: Value = serde_json::from_str(&fragments.collect::<String>()).unwrap();
    assert!(arguments["arg"].is_string());
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "stop"
    );
}

#[tokio::test]
async fn without_ignore_eos_the_length_comes_from_the_seed_and_min_tokens_holds() {
    let server = Server::start();
    let mut body = json!({"messages": [user("hello world")]});
    let free = server.chat(&body).await;
    assert_eq!(free["choices"][0]["finish_reason"], "stop");
    let length = free["usage"]["completion_tokens"].as_u64().unwrap();
    let text = free["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(
        text.len() as u64,
        4 * (length - 1),
        "the end mark has no text"
    );
    assert_eq!(
        server.chat(&body).await["usage"]["completion_tokens"],
        length
    );
    body["min_tokens"] = json!(length + 50);
    assert_eq!(
        server.chat(&body).await["usage"]["completion_tokens"],
        length + 50
    );
}

#[tokio::test]
async fn malformed_requests_are_refused_in_the_words_of_vllm() {
    check_refusals(&[
        (
            r#"{"model":"nope","messages":[{"role":"user","content":"x"}]}"#.to_owned(),
            r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny, alias.","type":"NotFoundError","param":"model","code":404}}"#,
        ),
        (
            r#"{"model":"tiny","messages": oops}"#.to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.28', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}","type":"Bad Request","param":"body.28","code":400}}"#,
        ),
        (
            r#"{"messages":[{"role":"user","content":"x"}],}"#.to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.44', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}","type":"Bad Request","param":"body.44","code":400}}"#,
        ),
        (
            "{\"messages\":\n[{\"role\":\"user\",\"content\":\"x\"}".to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.43', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': \"Expecting ',' delimiter\"}}","type":"Bad Request","param":"body.43","code":400}}"#,
        ),
        (
            "nope".to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.0', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}","type":"Bad Request","param":"body.0","code":400}}"#,
        ),
        (
            "[1,2]".to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract fields from', 'input': '<list of 2 items>'}","type":"Bad Request","param":"body","code":400}}"#,
        ),
        (
            String::new(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body","code":400}}"#,
        ),
        (
            r#"{"model":"tiny"}"#.to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.messages","code":400}}"#,
        ),
        (
            r#"{"messages":"hi"}"#.to_owned(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', 'input': 'hi'}","type":"Bad Request","param":"body.messages","code":400}}"#,
        ),
        (
            r#"{"messages":[]}"#.to_owned(),
            r#"{"error":{"message":"Cannot apply chat template to an empty conversation. Provide at least one message.","type":"BadRequestError","param":null,"code":400}}"#,
        ),
    ])
    .await;
}

#[tokio::test]
async fn limits_are_refused_in_the_words_of_vllm() {
    let long = "word ".repeat(1000);
    check_refusals(&[
        (
            json!({"messages": [user(&long)]}).to_string(),
            r#"{"error":{"message":"This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=1025)","type":"BadRequestError","param":"input_tokens","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "max_tokens": 2000}).to_string(),
            r#"{"error":{"message":"max_tokens=2000 cannot be greater than max_model_len=1024. Please request fewer output tokens. (parameter=max_tokens, value=2000)","type":"BadRequestError","param":"max_tokens","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "max_tokens": 0}).to_string(),
            r#"{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "max_tokens": "abc"}).to_string(),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'abc'}","type":"Bad Request","param":"body.max_tokens","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "temperature": -1}).to_string(),
            r#"{"error":{"message":"temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)","type":"BadRequestError","param":"temperature","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "n": 0}).to_string(),
            r#"{"error":{"message":"n must be at least 1, got 0.","type":"BadRequestError","param":null,"code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "stream_options": {"include_usage": true}}).to_string(),
            r#"{"error":{"message":"Stream options can only be defined when `stream=True`. (parameter=stream_options)","type":"BadRequestError","param":"stream_options","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "tool_choice": "required"}).to_string(),
            r#"{"error":{"message":"When using `tool_choice`, `tools` must be set. (parameter=tool_choice)","type":"BadRequestError","param":"tool_choice","code":400}}"#,
        ),
    ])
    .await;
}

#[tokio::test]
async fn tool_choices_are_refused_in_the_words_of_vllm() {
    let tools = r#""messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"a"}}]"#;
    check_refusals(&[
        (
            json!({"messages": [user("x")], "tool_choice": "auto"}).to_string(),
            r#"{"error":{"message":"When using `tool_choice`, `tools` must be set. (parameter=tool_choice)","type":"BadRequestError","param":"tool_choice","code":400}}"#,
        ),
        (
            json!({"messages": [user("x")], "tools": []}).to_string(),
            r#"{"error":{"message":"`tools` must not be an empty array. Either provide at least one tool or omit the field entirely. (parameter=tools)","type":"BadRequestError","param":"tools","code":400}}"#,
        ),
        (
            format!(r#"{{{tools},"tool_choice":"bogus"}}"#),
            r#"{"error":{"message":"Invalid value for `tool_choice`: bogus! Only named tools, \"none\", \"auto\" or \"required\" are supported. (parameter=tool_choice)","type":"BadRequestError","param":"tool_choice","code":400}}"#,
        ),
        (
            format!(r#"{{{tools},"tool_choice":{{"type":"function","function":{{"name":"b"}}}}}}"#),
            r#"{"error":{"message":"The tool specified in `tool_choice` does not match any of the specified `tools` (parameter=tool_choice)","type":"BadRequestError","param":"tool_choice","code":400}}"#,
        ),
    ])
    .await;
}

#[tokio::test]
async fn completions_are_refused_in_the_words_of_vllm() {
    let server = Server::start();
    let whole: Vec<u32> = (0..1024).collect();
    for (body, message) in [
        (json!({"prompt": []}), "You must pass at least one prompt"),
        (
            json!({"prompt": ""}),
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
        ),
        (
            json!({}),
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
        ),
        (
            json!({"prompt": [5], "min_tokens": 20, "max_tokens": 10}),
            "min_tokens must be less than or equal to max_tokens=10, got 20.",
        ),
        (
            json!({"prompt": whole, "max_tokens": 1}),
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        ),
        (
            json!({"prompt": [5], "max_tokens": 1.5}),
            "1 validation error:\n  {'type': 'int_from_float', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, got a number with a fractional part', 'input': '1.5'}",
        ),
    ] {
        let (status, text) = server.post("/v1/completions", &body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &error["error"]["message"]), (400, &json!(message)));
    }
}

async fn check_refusals(cases: &[(String, &str)]) {
    let server = Server::start();
    for (body, expected) in cases {
        let response = server.send("/v1/chat/completions", body.clone()).await;
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        assert_eq!(text, *expected, "{body}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["error"]["code"], status);
    }
}

#[tokio::test]
async fn an_output_past_the_context_is_cut_without_a_word() {
    let server = Server::start();
    let ids: Vec<u32> = (0..1000).collect();
    let body = json!({"prompt": ids, "max_tokens": 1000, "ignore_eos": true});
    let (status, text) = server.post("/v1/completions", &body).await;
    let reply: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &reply["usage"]["completion_tokens"]),
        (200, &json!(24))
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_as_the_web_framework_does() {
    let server = Server::start();
    let (status, text) = server.post("/v1/nothing", &json!({})).await;
    assert_eq!((status, text.as_str()), (404, r#"{"detail":"Not Found"}"#));
    let (status, text) = server.post("/health", &json!({})).await;
    assert_eq!(
        (status, text.as_str()),
        (405, r#"{"detail":"Method Not Allowed"}"#)
    );
}

#[tokio::test]
async fn the_small_endpoints_answer() {
    let server = Server::start();
    let get = async |path: &str| {
        let response = server.client.get(format!("{}{path}", server.url)).send();
        response.await.unwrap().text().await.unwrap()
    };
    assert_eq!(get("/health").await, "");
    assert_eq!(get("/version").await, r#"{"version":"0.32.0"}"#);
    let models: Value = serde_json::from_str(&get("/v1/models").await).unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][1]["id"]),
        (&json!("tiny"), &json!("alias"))
    );
    assert_eq!(models["data"][0]["max_model_len"], 1024);
    let (_, tokens) = server
        .post("/tokenize", &json!({"prompt": "import os"}))
        .await;
    let tokens: Value = serde_json::from_str(&tokens).unwrap();
    assert_eq!(
        (&tokens["count"], &tokens["max_model_len"]),
        (&json!(3), &json!(1024))
    );
}

#[tokio::test]
async fn a_request_id_given_by_the_client_names_the_response() {
    let server = Server::start();
    let body = json!({"messages": [user("x")], "max_tokens": 1}).to_string();
    let url = format!("{}/v1/chat/completions", server.url);
    let request = server
        .client
        .post(url)
        .header("x-request-id", "abc-123")
        .body(body);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text.starts_with(r#"{"id":"chatcmpl-abc-123","#), "{text}");
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let server = Server::start();
    let body =
        json!({"prompt": (0..40).collect::<Vec<u32>>(), "max_tokens": 5, "ignore_eos": true});
    server.post("/v1/completions", &body).await;
    server.post("/v1/completions", &body).await;
    assert!(server.idle().await);
    for (series, value) in [
        ("vllm:prefix_cache_queries_total{", 80.0),
        ("vllm:prefix_cache_hits_total{", 32.0),
        ("vllm:prompt_tokens_total{", 80.0),
        ("vllm:generation_tokens_total{", 10.0),
        (
            "vllm:request_success_total{engine=\"0\",finished_reason=\"length\"",
            2.0,
        ),
        ("vllm:kv_cache_usage_perc{", 0.0),
        ("vllm:e2e_request_latency_seconds_count", 2.0),
    ] {
        let shown = server.metric(series).await;
        assert!((shown - value).abs() < 1e-12, "{series} {shown}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks_streaming_or_not() {
    // Slow enough that nothing ends by itself while the test looks.
    let server = Server::at_speed(0.01);
    let ids: Vec<u32> = (0..100).collect();
    for stream in [true, false] {
        let body = json!({"prompt": ids, "max_tokens": 900, "ignore_eos": true, "stream": stream});
        let send = server.send("/v1/completions", body.to_string());
        let gone = tokio::select! {
            response = send => response.status() == 200,
            () = async { while server.metric("vllm:num_requests_running").await < 0.5 {} } => !stream,
        };
        assert!(
            gone,
            "a stream's headers come at once, a whole answer's do not"
        );
        assert!(server.idle().await, "stream: {stream}");
    }
}

#[tokio::test]
async fn one_request_too_many_is_told_that_the_engine_is_busy() {
    let server = Server::at_speed(0.01);
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 900, "ignore_eos": true, "stream": true});
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(server.send("/v1/completions", body.to_string()).await);
    }
    let (status, text) = server.post("/v1/completions", &body).await;
    let busy = r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#;
    assert_eq!((status, text.as_str()), (503, busy));
    drop(open);
    assert!(server.idle().await, "those that were taken left in peace");
}

#[tokio::test]
async fn stopping_the_engine_ends_its_streams_as_aborted() {
    let server = Server::at_speed(0.01);
    let body =
        json!({"messages": [user("x")], "max_tokens": 900, "ignore_eos": true, "stream": true});
    let response = server.send("/v1/chat/completions", body.to_string()).await;
    drop(server.stop);
    let stream = response.text().await.unwrap();
    let events = events(&stream);
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "abort"
    );
    server.serving.await.unwrap().unwrap();
}
