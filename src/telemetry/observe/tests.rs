//! Recorded vLLM responses, cut at every kind of place: the same facts, and the same bytes less the hidden frame.

use proptest::prelude::*;

use super::*;
use crate::policy::{Outcome, Tokens, Usage};

/// The body of a recorded response.
macro_rules! golden {
    ($name:literal) => {
        body_of(include_bytes!(concat!(
            "../../../tests/fixtures/vllm/",
            $name,
            ".response.txt"
        )))
    };
}

fn body_of(response: &'static [u8]) -> &'static [u8] {
    let end_of_head = |gap: &[u8]| memchr::memmem::find(response, gap).map(|at| at + gap.len());
    let start = end_of_head(b"\r\n\r\n").or_else(|| end_of_head(b"\n\n"));
    &response[start.expect("a head and a body")..]
}

/// Every recorded stream.
fn streams() -> [&'static [u8]; 11] {
    [
        golden!("chat-stream"),
        golden!("chat-stream-usage"),
        golden!("chat-stream-continuous-usage"),
        golden!("chat-n2-stream"),
        golden!("completions-stream"),
        golden!("tool-auto-forced-stream"),
        golden!("tool-required-stream"),
        golden!("tool-named-stream"),
        golden!("messages-anthropic-stream"),
        golden!("rust-frontend/chat-stream-usage"),
        golden!("rust-frontend/tool-required-stream"),
    ]
}

/// What came of one stream.
#[derive(Debug, PartialEq)]
struct Watched {
    facts: ResponseFacts,
    passed: Vec<u8>,
    /// Chunks that were said to carry the first content.
    firsts: usize,
}

fn watch<'a>(hide_usage: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Watched {
    let mut observer = StreamObserver::new(hide_usage);
    let (mut passed, mut firsts) = (Vec::new(), 0);
    for piece in pieces {
        let chunk = Bytes::copy_from_slice(piece);
        firsts += usize::from(observer.push(chunk, &mut |bytes| passed.extend_from_slice(&bytes)));
    }
    observer.finish(&mut |bytes| passed.extend_from_slice(&bytes));
    Watched {
        facts: observer.facts().clone(),
        passed,
        firsts,
    }
}

fn facts_of(stream: &[u8]) -> ResponseFacts {
    watch(false, [stream]).facts
}

fn facts_of_body(body: &[u8]) -> ResponseFacts {
    let mut observer = BodyObserver::new();
    observer.push(body);
    observer.facts().clone()
}

fn usage(prompt: u64, cached: impl Into<Option<u64>>, output: u64) -> Usage {
    Usage {
        prompt: Tokens(prompt),
        cached: cached.into().map(Tokens),
        output: Tokens(output),
    }
}

/// A served response: content, an end, no error.
fn served(usage: impl Into<Option<Usage>>, finish: Finish, tool: Option<&str>) -> ResponseFacts {
    ResponseFacts {
        usage: usage.into(),
        finish: Some(finish),
        tool: tool.map(str::to_owned),
        content_seen: true,
        done: true,
        ..ResponseFacts::default()
    }
}

#[test]
fn a_chat_stream_tells_its_finish_and_its_usage_when_asked() {
    assert_eq!(
        facts_of(golden!("chat-stream")),
        served(None, Finish::Stop, None)
    );
    let with_usage = served(usage(15, 0, 3), Finish::Stop, None);
    assert_eq!(facts_of(golden!("chat-stream-usage")), with_usage);
    assert_eq!(
        facts_of(golden!("chat-stream-continuous-usage")),
        with_usage
    );
}

#[test]
fn the_rust_front_end_leaves_null_fields_out_and_is_understood() {
    let expected = served(usage(15, None, 3), Finish::Stop, None);
    assert_eq!(
        facts_of(golden!("rust-frontend/chat-stream-usage")),
        expected
    );
}

#[test]
fn completions_and_several_choices_end_at_their_length() {
    let completions = served(usage(2, 0, 4), Finish::Length, None);
    assert_eq!(facts_of(golden!("completions-stream")), completions);
    let two_choices = served(usage(15, 0, 6), Finish::Length, None);
    assert_eq!(facts_of(golden!("chat-n2-stream")), two_choices);
}

#[test]
fn a_streamed_call_tells_its_tool_and_two_calls_are_multi_tool() {
    let one = served(usage(245, 224, 57), Finish::ToolCalls, Some("get_weather"));
    assert_eq!(facts_of(golden!("tool-auto-forced-stream")), one);
    // Two calls of one tool: told apart by their index, not their name.
    let two = served(usage(245, 224, 76), Finish::ToolCalls, Some(MULTI_TOOL));
    assert_eq!(facts_of(golden!("tool-required-stream")), two);
}

#[test]
fn a_named_call_ends_in_stop_and_still_counts_as_a_tool_call() {
    let facts = facts_of(golden!("tool-named-stream"));
    assert_eq!(
        facts,
        served(usage(245, 224, 40), Finish::Stop, Some("get_weather"))
    );
    assert_eq!(facts.outcome(), Outcome::ToolCalls);
    assert_eq!(facts_of_body(golden!("tool-named")), facts);
}

#[test]
fn anthropics_usage_is_merged_over_its_frames() {
    let expected = served(usage(11, 0, 4), Finish::Length, None);
    assert_eq!(facts_of(golden!("messages-anthropic-stream")), expected);
    assert_eq!(facts_of_body(golden!("messages-anthropic")), expected);
}

#[test]
fn anthropics_prompt_includes_what_the_cache_served() {
    let facts = facts_of_body(
        br#"{"content":[{"type":"tool_use","name":"grep"}],"stop_reason":"tool_use",
             "usage":{"cache_read_input_tokens":96,"input_tokens":4,"output_tokens":7}}"#,
    );
    assert_eq!(
        facts,
        served(usage(100, 96, 7), Finish::ToolCalls, Some("grep"))
    );
}

#[test]
fn whole_bodies_tell_the_same_as_streams() {
    let chat = served(usage(15, 0, 3), Finish::Stop, None);
    assert_eq!(facts_of_body(golden!("chat")), chat);
    let completions = served(usage(2, 0, 8), Finish::Length, None);
    assert_eq!(facts_of_body(golden!("completions")), completions);
    let responses = served(usage(11, 0, 4), Finish::Length, None);
    assert_eq!(facts_of_body(golden!("responses")), responses);
    let two_calls = served(usage(245, 224, 76), Finish::ToolCalls, Some(MULTI_TOOL));
    assert_eq!(facts_of_body(golden!("tool-required")), two_calls);
}

#[test]
fn a_streamed_responses_call_is_one_call_however_often_it_is_told() {
    let facts = facts_of(
        b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"status\":\"in_progress\",\
          \"tools\":[{\"name\":\"other\"}],\"output\":[],\"error\":null,\"usage\":null}}\n\n\
          data: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"function_call\",\"name\":\"ls\"}}\n\n\
          data: {\"type\":\"response.function_call_arguments.delta\",\"delta\":\"{}\"}\n\n\
          data: {\"type\":\"response.output_item.done\",\"item\":{\"name\":\"ls\",\"arguments\":\"{}\"}}\n\n\
          data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"usage\":{\
          \"input_tokens\":9,\"input_tokens_details\":{\"cached_tokens\":8},\"output_tokens\":5}}}\n\n",
    );
    assert_eq!(facts, served(usage(9, 8, 5), Finish::Stop, Some("ls")));
    assert_eq!(facts.outcome(), Outcome::ToolCalls);
}

#[test]
fn an_error_inside_a_good_status_is_a_failure() {
    let stream = facts_of(golden!("rust-frontend/tool-required-stream"));
    assert!(stream.error && stream.done && !stream.content_seen);
    assert_eq!(stream.outcome(), Outcome::Failed);
    assert!(facts_of_body(golden!("err-context-prompt")).error);
    let after_content = facts_of(
        b"data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n\
          data: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\"}\n\n",
    );
    assert!(after_content.content_seen && after_content.error);
}

#[test]
fn a_context_that_is_too_short_is_told_from_other_errors_in_every_dialect() {
    assert!(facts_of_body(golden!("err-context-prompt")).context_overflow);
    let overflows = |error: &str| facts_of_body(error.as_bytes()).context_overflow;
    for error in [
        r#"{"object":"error","message":"This model's maximum context length is 16 tokens.","code":400}"#,
        r#"{"error":{"message":"Too many tokens.","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
    ] {
        assert!(overflows(error), "{error}");
    }
    for other in [
        r#"{"error":{"message":"The model `m` does not exist.","code":404}}"#,
        r#"{"choices":[{"message":{"role":"assistant","content":"the maximum context length"}}]}"#,
    ] {
        assert!(!overflows(other), "{other}");
    }
}

#[test]
fn an_abort_is_a_failure_and_no_later_reason_covers_it() {
    let facts = facts_of(
        b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"abort\"}]}\n\n\
          data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    );
    assert_eq!(facts.finish, Some(Finish::Abort));
    assert_eq!(facts.outcome(), Outcome::Failed);
}

#[test]
fn a_stream_that_breaks_off_has_failed() {
    let whole = golden!("chat-stream-usage");
    let cut = watch(false, [&whole[..whole.len() / 2]]).facts;
    assert!(cut.content_seen && !cut.done);
    assert_eq!(cut.outcome(), Outcome::Failed);
}

#[test]
fn a_role_is_not_content_and_the_first_content_is_reported_once() {
    let frames: Vec<&[u8]> = golden!("chat-stream")
        .split_inclusive(|&b| b == b'\n')
        .collect();
    let mut observer = StreamObserver::new(false);
    let mut firsts = Vec::new();
    for (line, frame) in frames.into_iter().enumerate() {
        if observer.push(Bytes::from_static(frame), &mut |_| {}) {
            firsts.push(line);
        }
    }
    // Line 0 is the role, line 1 blank, line 2 the first token.
    assert_eq!(firsts, [2]);
}

#[test]
fn text_that_looks_like_a_fact_is_none() {
    let told = r#"{"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":9} [DONE] \"error\":{"},"finish_reason":null}]}"#;
    let stream = format!("data: {told}\n\ndata: {told}\n\n");
    let facts = facts_of(stream.as_bytes());
    let nothing_but_content = ResponseFacts {
        content_seen: true,
        ..ResponseFacts::default()
    };
    assert_eq!(facts, nothing_but_content);
}

#[test]
fn nested_keys_of_the_same_name_are_not_taken_for_facts() {
    let facts = facts_of_body(
        br#"{"metadata":{"usage":{"prompt_tokens":1},"error":{"x":1}},"choices":[{"message":{"content":"hi","tool_calls":[]},
             "logprobs":{"content":[{"finish_reason":"abort"}]},"finish_reason":"stop"}]}"#,
    );
    assert_eq!(facts, served(None, Finish::Stop, None));
}

/// The frames of a recorded stream that asked for usage, as they would be if it had not.
fn unasked(stream: &[u8]) -> String {
    const STAMP: &str = ",\"system_fingerprint\":\"vllm-0.32.0-c606691a\"";
    let text = String::from_utf8_lossy(stream);
    assert!(text.contains(STAMP));
    let kept = text
        .split_inclusive("\n\n")
        .filter(|frame| !frame.contains("\"choices\":[]"))
        .map(|frame| match frame.strip_suffix("}\n\n") {
            Some(open) if !frame.contains("\"finish_reason\":null") => {
                format!("{open}{STAMP}}}\n\n")
            }
            _ => frame.to_owned(),
        });
    kept.collect()
}

#[test]
fn the_usage_frame_is_taken_out_and_its_fingerprint_moved_to_the_ending() {
    let stream = golden!("chat-stream-usage");
    let hidden = watch(true, [stream]);
    assert_eq!(String::from_utf8_lossy(&hidden.passed), unasked(stream));
    assert_eq!(hidden.facts, facts_of(stream));
}

#[test]
fn an_ending_waits_for_one_frame_and_no_longer() {
    let ending = Bytes::from_static(b"data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n");
    let next = Bytes::from_static(b": keep-alive\n\n");
    let mut observer = StreamObserver::new(true);
    let mut forwarded = Vec::new();
    observer.push(ending.clone(), &mut |bytes| forwarded.push(bytes));
    assert!(forwarded.is_empty());
    observer.push(next.clone(), &mut |bytes| forwarded.push(bytes));
    assert_eq!(forwarded, [ending.clone(), next]);

    // Nor is it lost where the stream breaks off.
    let mut observer = StreamObserver::new(true);
    let mut forwarded = Vec::new();
    observer.push(ending.clone(), &mut |bytes| forwarded.push(bytes));
    observer.finish(&mut |bytes| forwarded.push(bytes));
    assert_eq!(forwarded, [ending]);
}

#[test]
fn an_ending_that_has_a_fingerprint_or_whose_server_has_none_passes_as_it_is() {
    for (ending, usage) in [
        (
            r#"{"choices":[{"finish_reason":"stop"}],"system_fingerprint":"a"}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1},"system_fingerprint":"b"}"#,
        ),
        (
            r#"{"choices":[{"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1},"system_fingerprint":null}"#,
        ),
        (
            r#"{"choices":[{"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1}}"#,
        ),
    ] {
        let stream = format!("data: {ending}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
        let hidden = watch(true, [stream.as_bytes()]);
        let kept = format!("data: {ending}\n\ndata: [DONE]\n\n");
        assert_eq!(String::from_utf8_lossy(&hidden.passed), kept);
    }
}

#[test]
fn a_usage_frame_is_known_whatever_its_white_space_and_line_ends() {
    let hidden = watch(
        true,
        [b": keep-alive\r\n\r\ndata: { \"usage\" : { \"prompt_tokens\" : 7 , \"completion_tokens\" : 2 } ,\r\ndata:  \"choices\" : [ ] }\r\n\r\ndata: [DONE]\r\n\r\n"
            .as_slice()],
    );
    assert_eq!(hidden.passed, b": keep-alive\r\n\r\ndata: [DONE]\r\n\r\n");
    assert_eq!(hidden.facts.usage, Some(usage(7, None, 2)));
}

#[test]
fn usage_on_ordinary_chunks_is_not_hidden() {
    for body in [
        r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":null}"#,
        r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
        r#"data: {"choices":[],"usage":null}"#,
        r#"data: {"choices":[]}"#,
        r#"data: {"usage":{"input_tokens":1}}"#,
    ] {
        let stream = format!("{body}\n\n{body}\n\n");
        let hidden = watch(true, [stream.as_bytes()]);
        assert_eq!(String::from_utf8_lossy(&hidden.passed), stream);
    }
}

#[test]
fn a_chunk_of_whole_frames_is_forwarded_in_one_piece_without_a_copy() {
    let content =
        b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
    for (hide_usage, chunk) in [(false, golden!("chat-stream")), (true, &content.repeat(3))] {
        let chunk = Bytes::copy_from_slice(chunk);
        let mut forwarded = Vec::new();
        StreamObserver::new(hide_usage).push(chunk.clone(), &mut |bytes| forwarded.push(bytes));
        assert_eq!(forwarded.len(), 1);
        assert_eq!(forwarded[0].as_ptr(), chunk.as_ptr());
        assert_eq!(forwarded[0], chunk);
    }
}

#[test]
fn nothing_is_held_back_when_nothing_is_hidden() {
    let mut forwarded = Vec::new();
    StreamObserver::new(false).push(Bytes::from_static(b"data: {\"ch"), &mut |bytes| {
        forwarded.push(bytes);
    });
    assert_eq!(forwarded, [b"data: {\"ch".as_slice()]);
}

#[test]
fn a_frame_over_the_held_limit_passes_unfiltered_and_the_next_is_filtered_again() {
    let usage_frame = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
    let long = format!(
        "data: {{\"pad\":\"{}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":1}}}}\n\n",
        "x".repeat(HELD_FRAME_LIMIT + 1000)
    );
    let stream = format!("{long}{usage_frame}");
    let hidden = watch(true, stream.as_bytes().chunks(1000));
    assert_eq!(hidden.passed.len(), long.len());
    assert_eq!(hidden.passed, long.as_bytes());
}

#[test]
fn what_was_held_back_passes_when_the_stream_breaks_off() {
    let whole = golden!("chat-stream-usage");
    let cut = &whole[..300];
    assert_eq!(watch(true, cut.chunks(7)).passed, cut);
}

#[test]
fn a_usage_frame_without_its_blank_line_stays_hidden() {
    let hidden = watch(
        true,
        [b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n".as_slice()],
    );
    assert!(hidden.passed.is_empty());
}

#[test]
fn a_body_observer_is_small_whatever_the_body() {
    assert!(size_of::<BodyObserver>() <= 640);
    let mut observer = BodyObserver::new();
    observer.push(b"{\"choices\":[{\"message\":{\"content\":\"");
    for _ in 0..1000 {
        observer.push(&[b'x'; 1000]);
    }
    observer.push(b"\"},\"finish_reason\":\"length\"}]}");
    assert_eq!(observer.facts(), &served(None, Finish::Length, None));
}

#[test]
fn facts_after_nesting_without_end_are_still_found() {
    let deep = "[{\"a\":".repeat(50_000);
    let shut = "}]".repeat(50_000);
    let body = format!(
        "{{\"x\":{deep}1{shut},\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":4}}}}"
    );
    let facts = facts_of_body(body.as_bytes());
    assert_eq!(facts.usage, Some(usage(3, None, 4)));
    assert!(facts.done);
}

#[test]
fn an_escaped_tool_name_is_read_as_the_client_reads_it() {
    let facts = facts_of_body(
        br#"{"choices":[{"message":{"tool_calls":[{"function":{"arguments":"{}","name":"caf\u00e9 \"x\""}}]}}]}"#,
    );
    assert_eq!(facts.tool.as_deref(), Some("café \"x\""));
}

/// A chat stream of these deltas, each the inside of a JSON object.
fn stream_of<T: AsRef<str>>(deltas: impl IntoIterator<Item = T>) -> String {
    let frame = |stream: String, delta: T| {
        let delta = delta.as_ref();
        stream + &format!("data: {{\"choices\":[{{\"delta\":{{{delta}}}}}]}}\n\n")
    };
    deltas.into_iter().fold(String::new(), frame)
}

#[test]
fn a_call_written_into_the_text_is_found_however_the_tokens_fall() {
    for (texts, tool) in [
        (
            &[
                "Hm. ",
                "<",
                "tool_call",
                ">\\n{",
                r#"\"name\": \"g"#,
                r#"rep\", \"arguments\": {}}"#,
            ][..],
            Some("grep"),
        ),
        (
            &["{", r#"\"name\":\"ls\",\"parameters\":{}"#, "}"],
            Some("ls"),
        ),
        (&["Look:\\n``", "`bash\\n", "cat x | wc"], Some("cat")),
        (&["a ", "< b and ", "`code`", " and so on"], None),
    ] {
        let content = |text: &&str| format!("\"content\":\"{text}\"");
        let stream = stream_of(texts.iter().map(content));
        let facts = facts_of(stream.as_bytes());
        assert_eq!(facts.tool.as_deref(), tool, "{stream}");
        let body = format!(
            r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#,
            texts.concat()
        );
        assert_eq!(
            facts_of_body(body.as_bytes()).tool.as_deref(),
            tool,
            "{body}"
        );
    }
}

#[test]
fn an_expert_called_through_the_api_is_known_by_its_own_name() {
    let name = r#"{"index":0,"function":{"name":"call_expert","arguments":""}}"#;
    let piece = |text: &str| format!(r#"{{"index":0,"function":{{"arguments":"{text}"}}}}"#);
    let calls = [
        name.to_owned(),
        piece(r#"{\"exp"#),
        piece(r#"ert\": \"expert-3\"}"#),
    ];
    let stream = stream_of(calls.map(|call| format!("\"tool_calls\":[{call}]")));
    assert_eq!(
        facts_of(stream.as_bytes()).tool.as_deref(),
        Some("expert-3")
    );
    for function in [
        r#""name":"call_expert","arguments":"{\"expert\":\"expert-3\"}""#,
        r#""arguments":"{\"expert\":\"expert-3\"}","name":"call_expert""#,
    ] {
        let body = format!(
            r#"{{"choices":[{{"message":{{"content":"<tool_call>{{}}","tool_calls":[{{"function":{{{function}}}}}]}}}}]}}"#
        );
        let tool = facts_of_body(body.as_bytes()).tool;
        assert_eq!(tool.as_deref(), Some("expert-3"), "{body}");
    }
}

/// `bytes` cut at `cuts`, which are taken modulo its length.
fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut from = 0;
    let cut = |&to: &usize| {
        let piece = &bytes[from..to];
        from = to;
        piece
    };
    cuts.iter().map(cut).collect()
}

/// Byte by byte no frame is ever seen whole, so this also holds skipping ordinary frames against reading them.
#[test]
fn single_bytes_tell_the_same_as_the_whole() {
    for stream in streams() {
        for hide_usage in [false, true] {
            assert_eq!(
                watch(hide_usage, stream.chunks(1)),
                watch(hide_usage, [stream])
            );
        }
    }
}

/// Frames of every kind, without their blank line, and whether they are to be hidden.
const KINDS: [(&str, bool); 26] = [
    (
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"index":0,"delta":{"content":"b"}}],"usage":null}"#,
        false,
    ),
    (
        r#"data: {"choices": [{"delta": {}, "finish_reason": "length"}]}"#,
        false,
    ),
    (
        r#"data:{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":2}}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":""},"index":0}]}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"name":"f"}}]}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"content":" <tool"}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"content":"_call>"}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"content":"<tool_call>\n{\"name\": \"ls"}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"content":"{\"name\":\"f\u00e9\",\"parameters\":{"}}]}"#,
        false,
    ),
    (r#"data: {"choices":[{"delta":{"content":"\"}}"}}]}"#, false),
    (
        r#"data: {"choices":[{"delta":{"content":"```bash\nls"}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"call_expert","arguments":""}}]}}]}"#,
        false,
    ),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"expert\":\"expert-1\"}"}}]}}]}"#,
        false,
    ),
    (r#"data: {"error":{"message":"m","code":500}}"#, false),
    (r#"data: {"error":null,"choices":[]}"#, false),
    (": keep-alive", false),
    ("event: message_stop", false),
    (
        r#"data: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"input_tokens":1,"output_tokens":5}}"#,
        false,
    ),
    (r#"data: {"type" : "message_stop"}"#, false),
    ("data: [DONE]", false),
    (
        r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        false,
    ),
    (r#"data: {"response":{"status":"cancelled"}}"#, false),
    (
        r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
        true,
    ),
    (
        r#"data: { "usage" : { "completion_tokens" : 6, "prompt_tokens" : 5 }, "choices" : [ ] }"#,
        true,
    ),
];

proptest! {
    /// Byte by byte no frame is seen whole: this holds skipping ordinary frames against reading every one.
    #[test]
    fn any_frames_lose_only_the_usage_frames_and_tell_the_same_in_any_split(
        frames in proptest::collection::vec((0..KINDS.len(), proptest::sample::select(&["\n", "\r\n", "\r"][..])), 0..12),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let (mut stream, mut kept) = (String::new(), String::new());
        for (kind, line_end) in frames {
            let (frame, hidden) = KINDS[kind];
            let frame = format!("{frame}{line_end}{line_end}");
            stream += &frame;
            kept += if hidden { "" } else { &frame };
        }
        let hidden = watch(true, pieces(stream.as_bytes(), &cuts));
        prop_assert_eq!(String::from_utf8_lossy(&hidden.passed), kept);
        let bytewise = watch(false, stream.as_bytes().chunks(1));
        prop_assert_eq!(bytewise.passed, stream.as_bytes());
        prop_assert_eq!(&hidden.facts, &bytewise.facts);
        prop_assert_eq!(&facts_of(stream.as_bytes()), &bytewise.facts);
    }

    #[test]
    fn any_split_of_a_stream_gives_the_same_facts_and_bytes(
        stream in 0_usize..11,
        hide_usage: bool,
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let stream = streams()[stream];
        let whole = watch(hide_usage, [stream]);
        prop_assert_eq!(watch(hide_usage, pieces(stream, &cuts)), whole);
    }

    #[test]
    fn any_split_of_a_body_gives_the_same_facts(cuts in proptest::collection::vec(any::<usize>(), 0..20)) {
        for body in [golden!("chat"), golden!("tool-required"), golden!("responses"), golden!("err-context-prompt")] {
            let mut observer = BodyObserver::new();
            for piece in pieces(body, &cuts) {
                observer.push(piece);
            }
            prop_assert_eq!(observer.facts(), &facts_of_body(body));
        }
    }

    #[test]
    fn no_bytes_make_an_observer_panic_or_lose_a_byte(
        body in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"{}[]\",:\\\n data"[..])], 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..5),
    ) {
        let _facts = facts_of_body(&body);
        prop_assert_eq!(watch(false, pieces(&body, &cuts)).passed, &body[..]);
        prop_assert_eq!(watch(true, pieces(&body, &cuts)).passed, &body[..]);
    }
}
