//! A program's message history, kept as the JSON text it is sent as, so that a step costs what it adds.
//!
//! Lengths follow the trace: the text of each new message is as long as the next step's context needs, given
//! what the last reply's `usage` says the context is now. A tokeniser that counts otherwise than
//! [`super::text`] is thus corrected at every step instead of drifting.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::reply::{Reply, ToolCall};
use super::text::{BYTES_PER_TOKEN, push_text, text_seed};
use crate::harness::trace::{Program, Step, Then};

/// Tokens that a chat template puts around a message.
const FRAME_TOKENS: u64 = 4;
/// Tokens that open the reply, at the end of a prompt.
const OPENING_TOKENS: u64 = 4;
/// Tokens that close a reply once it is history.
const CLOSING_TOKENS: u64 = 2;
/// Tokens of a tool call besides what stands in its argument: the tags, the name, the JSON around it.
const CALL_TOKENS: u64 = 20;

/// Number of the text that stands in for the first reply: beyond those of the messages.
const STAND_IN: usize = 1 << 32;

/// The growing history of one program.
#[derive(Debug)]
pub struct History {
    /// The program's name in this run.
    program: String,
    seed: u64,
    /// Whether tools are offered.
    tools: bool,
    /// Whether words of ours stand in for replies.
    stand_in: bool,
    /// `{"model":…,"program_id":…,…` up to what differs between steps.
    head: Vec<u8>,
    /// `"messages":[…` without the closing bracket.
    messages: Vec<u8>,
    /// Messages of ours so far, each with a text of its own.
    parts: usize,
}

/// What all requests of one run have in common.
#[derive(Clone, Debug)]
pub struct RequestShape {
    /// The model asked for.
    pub model: String,
    /// Ask for streamed replies.
    pub stream: bool,
    /// The `tools` offered to the programs of each shared prefix; the trace's tool calls are then asked for by
    /// name. Empty to offer none.
    pub tools: BTreeMap<String, String>,
    /// Put words of ours, as many as a reply had tokens, into the history instead of the reply.
    pub stand_in: bool,
    /// Seed of the texts.
    pub seed: u64,
}

impl History {
    /// The history before the first step: the shared prefix and the first message.
    ///
    /// The prefix is the tools and the system message, the same text for every program with this prefix.
    pub fn new(shape: &RequestShape, name: &str, program: &Program) -> Self {
        let prefix = &program.shared_prefix;
        let tools = shape.tools.get(&prefix.id).map_or("", String::as_str);
        let mut history = Self {
            program: name.to_owned(),
            seed: shape.seed,
            tools: !tools.is_empty(),
            stand_in: shape.stand_in,
            head: head(shape, name, tools),
            messages: b"\"messages\":[".to_vec(),
            parts: 0,
        };
        let tool_tokens = match tools.len() as u64 {
            0 => 0,
            bytes => bytes.div_ceil(BYTES_PER_TOKEN) + FRAME_TOKENS,
        };
        let system = u64::from(prefix.tokens).saturating_sub(tool_tokens + FRAME_TOKENS);
        history.push_system(text_seed(shape.seed, &prefix.id, 0), system);
        let context = u64::from(prefix.tokens);
        let first = program.steps.first().map_or(0, |s| s.prompt_tokens);
        history.push_words(
            "user",
            None,
            u64::from(first)
                .saturating_sub(context + FRAME_TOKENS + OPENING_TOKENS)
                .max(1),
        );
        history
    }

    /// The body of the request for `step`.
    pub fn body(&self, step: &Step) -> Vec<u8> {
        let last = if step.then == Then::End {
            ",\"is_last_step\":true"
        } else {
            ""
        };
        let tool_choice = match &step.then {
            _ if !self.tools => String::new(),
            Then::Tool(name) => format!(",\"tool_choice\":{}", tool(name)),
            Then::User | Then::End => ",\"tool_choice\":\"none\"".to_owned(),
        };
        let middle = format!(",\"max_tokens\":{}{last}{tool_choice},", step.output_tokens);
        let mut body = Vec::with_capacity(self.head.len() + middle.len() + self.messages.len() + 2);
        body.extend_from_slice(&self.head);
        body.extend_from_slice(middle.as_bytes());
        body.extend_from_slice(&self.messages);
        body.extend_from_slice(b"]}");
        body
    }

    /// Takes up the reply to `step`, and the message that makes the context as long as `next` wants it.
    pub fn advance(&mut self, step: &Step, reply: &Reply, next: &Step) {
        if self.stand_in {
            let tokens = reply
                .usage
                .map_or_else(|| u64::from(step.output_tokens), |usage| usage.output);
            self.push_reply(&self.stand_in_for(reply, tokens));
        } else {
            self.push_reply(reply);
        }
        let context = match reply.usage {
            Some(usage) => usage.prompt + usage.output,
            None => u64::from(step.prompt_tokens) + u64::from(step.output_tokens),
        };
        let others = reply.tool_calls.len().saturating_sub(1) as u64;
        let overhead = CLOSING_TOKENS + FRAME_TOKENS + OPENING_TOKENS + others * (FRAME_TOKENS + 1);
        let tokens = u64::from(next.prompt_tokens)
            .saturating_sub(context + overhead)
            .max(1);
        match reply.tool_calls.split_first() {
            None => self.push_words("user", None, tokens),
            Some((first, others)) => {
                self.push_words("tool", Some(&first.id), tokens);
                for call in others {
                    self.push_words("tool", Some(&call.id), 1);
                }
            }
        }
    }

    fn push_system(&mut self, seed: u64, tokens: u64) {
        self.messages
            .extend_from_slice(b"{\"role\":\"system\",\"content\":\"");
        push_text(&mut self.messages, seed, tokens);
        self.messages.extend_from_slice(b"\"}");
    }

    fn push_words(&mut self, role: &str, tool_call: Option<&str>, tokens: u64) {
        self.parts += 1;
        let id = tool_call.map_or_else(String::new, |id| {
            format!("\"tool_call_id\":{},", quoted(id))
        });
        let open = format!(",{{\"role\":\"{role}\",{id}\"content\":\"");
        self.messages.extend_from_slice(open.as_bytes());
        let seed = text_seed(self.seed, &self.program, self.parts);
        push_text(&mut self.messages, seed, tokens);
        self.messages.extend_from_slice(b"\"}");
    }

    /// The reply with `tokens` words of ours in place of its text.
    fn stand_in_for(&self, reply: &Reply, tokens: u64) -> Reply {
        let seed = text_seed(self.seed, &self.program, STAND_IN + self.parts);
        let words = |tokens: u64| {
            let mut text = Vec::new();
            push_text(&mut text, seed, tokens.max(1));
            String::from_utf8_lossy(&text).into_owned()
        };
        let mut calls: Vec<_> = reply.tool_calls.clone();
        let own = tokens.saturating_sub(CALL_TOKENS * calls.len() as u64);
        for (index, call) in calls.iter_mut().enumerate() {
            let words = if index == 0 {
                words(own)
            } else {
                String::new()
            };
            let arguments = format!("{{\"arg\":{}}}", quoted(&words));
            *call = ToolCall::new(&call.id, &call.function.name, &arguments);
        }
        Reply {
            content: calls.is_empty().then(|| words(tokens)),
            tool_calls: calls,
            usage: reply.usage,
        }
    }

    fn push_reply(&mut self, reply: &Reply) {
        let message = Assistant {
            role: "assistant",
            content: reply.content.as_deref(),
            tool_calls: &reply.tool_calls.iter().map(sound).collect::<Vec<_>>(),
        };
        self.messages.push(b',');
        self.messages.extend_from_slice(json(&message).as_bytes());
    }
}

/// The call as a server takes it back: arguments that are no JSON object become a string in one. A server reads
/// them to render the history, and what a model wrote may be anything.
fn sound(call: &ToolCall) -> ToolCall {
    let arguments = &call.function.arguments;
    if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(arguments).is_ok() {
        return call.clone();
    }
    let wrapped = format!("{{\"text\":{}}}", quoted(arguments));
    ToolCall::new(&call.id, &call.function.name, &wrapped)
}

#[derive(Serialize)]
struct Assistant<'a> {
    role: &'static str,
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "<[ToolCall]>::is_empty")]
    tool_calls: &'a [ToolCall],
}

/// The fields that every request of a program starts with.
fn head(shape: &RequestShape, program: &str, tools: &str) -> Vec<u8> {
    let stream = if shape.stream {
        "true,\"stream_options\":{\"include_usage\":true}"
    } else {
        "false"
    };
    let tools = if tools.is_empty() {
        String::new()
    } else {
        format!(",\"tools\":{tools}")
    };
    format!(
        "{{\"model\":{},\"program_id\":{},\"stream\":{stream},\"ignore_eos\":true{tools}",
        quoted(&shape.model),
        quoted(program),
    )
    .into_bytes()
}

/// The `tools` to offer to each prefix's programs: the names its programs call, in order. They must not depend
/// on the program, or no prefix would be shared. Prefixes without tools have no entry.
pub fn tool_lists(programs: &[Program]) -> BTreeMap<String, String> {
    let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for program in programs {
        for step in &program.steps {
            if let Then::Tool(name) = &step.then {
                names
                    .entry(&program.shared_prefix.id)
                    .or_default()
                    .insert(name);
            }
        }
    }
    let list = |(prefix, names): (&str, BTreeSet<&str>)| {
        let tools: Vec<String> = names.into_iter().map(offer).collect();
        (prefix.to_owned(), format!("[{}]", tools.join(",")))
    };
    names.into_iter().map(list).collect()
}

/// A tool as it is chosen.
fn tool(name: &str) -> String {
    format!(
        "{{\"type\":\"function\",\"function\":{{\"name\":{}}}}}",
        quoted(name)
    )
}

/// A tool as it is offered. Its parameters are null: vllm-router refuses a tool that does not mention them, and any
/// schema would have vLLM hold the call to a grammar, which ends before the reply is as long as the trace says.
fn offer(name: &str) -> String {
    format!(
        "{{\"type\":\"function\",\"function\":{{\"name\":{},\"parameters\":null}}}}",
        quoted(name)
    )
}

fn quoted(text: &str) -> String {
    json(&text)
}

#[expect(
    clippy::expect_used,
    reason = "strings and structs of strings always serialise"
)]
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings serialise")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::harness::replay::reply::Usage;
    use crate::harness::trace::Trace;

    const TRACE: &str = r#"{"program":"a","kind":"k","shared_prefix":{"id":"s","tokens":100},"steps":[{"prompt_tokens":160,"output_tokens":9,"then":"tool:ls","gap_s":0},{"prompt_tokens":300,"output_tokens":5,"then":"end","gap_s":0}]}
{"program":"b","kind":"k","shared_prefix":{"id":"s","tokens":100},"steps":[{"prompt_tokens":170,"output_tokens":5,"then":"end","gap_s":0}]}"#;

    fn shape(trace: &Trace) -> RequestShape {
        RequestShape {
            model: "m\"x".to_owned(),
            stream: false,
            tools: tool_lists(&trace.programs),
            stand_in: false,
            seed: 1,
        }
    }

    fn parsed(history: &History, step: &Step) -> Value {
        serde_json::from_slice(&history.body(step)).unwrap()
    }

    /// As the embedded engine counts: a frame around tools and each message, a token per four bytes.
    fn count(body: &Value) -> u64 {
        let tools = body["tools"].to_string().len() as u64;
        let messages = body["messages"].as_array().unwrap();
        let content = |m: &Value| m["content"].as_str().unwrap_or_default().len() as u64;
        let text: u64 = messages.iter().map(|m| content(m).div_ceil(4) + 4).sum();
        text + tools.div_ceil(4) + 4 + OPENING_TOKENS
    }

    fn reply(tool: bool) -> Reply {
        let call = ToolCall::new("call-1", "ls", "{\"arg\":\"\"}");
        Reply {
            content: (!tool).then(|| "some\ntext".to_owned()),
            tool_calls: if tool { vec![call] } else { Vec::new() },
            usage: Some(Usage {
                prompt: 170,
                output: 9,
                cached: None,
            }),
        }
    }

    #[test]
    fn the_first_prompt_is_as_long_as_the_trace_says() {
        let trace = Trace::parse("t", TRACE).unwrap();
        let history = History::new(&shape(&trace), "a", &trace.programs[0]);
        let body = parsed(&history, &trace.programs[0].steps[0]);
        assert_eq!(count(&body), 160);
        assert_eq!(body["model"], "m\"x");
        assert_eq!(body["program_id"], "a");
        assert_eq!(body["max_tokens"], 9);
        assert_eq!(body["tool_choice"]["function"]["name"], "ls");
        let offered = json!({"name": "ls", "parameters": null});
        assert_eq!(body["tools"][0]["function"], offered);
        assert_eq!(body.get("is_last_step"), None);
    }

    #[test]
    fn programs_of_one_kind_share_their_prefix_and_nothing_more() {
        let trace = Trace::parse("t", TRACE).unwrap();
        let first = |i: usize, name: &str| {
            let history = History::new(&shape(&trace), name, &trace.programs[i]);
            parsed(&history, &trace.programs[i].steps[0])
        };
        let (a, b) = (first(0, "a"), first(1, "b"));
        assert_eq!(a["messages"][0], b["messages"][0]);
        assert_eq!(a["tools"], b["tools"]);
        assert_ne!(a["messages"][1], b["messages"][1]);
    }

    #[test]
    fn the_history_only_grows_and_follows_what_the_server_counted() {
        let trace = Trace::parse("t", TRACE).unwrap();
        let steps = &trace.programs[0].steps;
        let mut history = History::new(&shape(&trace), "a", &trace.programs[0]);
        let before = history.messages.clone();
        history.advance(&steps[0], &reply(true), &steps[1]);
        assert!(history.messages.starts_with(&before));
        let body = parsed(&history, &steps[1]);
        assert_eq!(body["messages"][2]["tool_calls"][0]["id"], "call-1");
        assert_eq!(body["messages"][3]["role"], "tool");
        assert_eq!(body["messages"][3]["tool_call_id"], "call-1");
        assert_eq!(body["is_last_step"], true);
        // 170 + 9 counted by the server and 10 of frames leave 111 of 300.
        let text = body["messages"][3]["content"].as_str().unwrap();
        assert_eq!(text.len(), 111 * 4);
    }

    #[test]
    fn a_reply_in_text_is_answered_by_the_user() {
        let trace = Trace::parse("t", TRACE).unwrap();
        let steps = &trace.programs[0].steps;
        let mut history = History::new(&shape(&trace), "a", &trace.programs[0]);
        history.advance(&steps[0], &reply(false), &steps[1]);
        let body = parsed(&history, &steps[1]);
        assert_eq!(body["messages"][2]["content"], "some\ntext");
        assert_eq!(body["messages"][3]["role"], "user");
    }

    #[test]
    fn arguments_that_are_no_json_come_back_as_a_string_in_an_object() {
        let trace = Trace::parse("t", TRACE).unwrap();
        let steps = &trace.programs[0].steps;
        let mut history = History::new(&shape(&trace), "a", &trace.programs[0]);
        let garbled = Reply {
            tool_calls: vec![ToolCall::new("call-1", "ls", "{\"x\": \u{fffd}")],
            ..reply(true)
        };
        history.advance(&steps[0], &garbled, &steps[1]);
        let body = parsed(&history, &steps[1]);
        let arguments = &body["messages"][2]["tool_calls"][0]["function"]["arguments"];
        let arguments: Value = serde_json::from_str(arguments.as_str().unwrap()).unwrap();
        assert_eq!(arguments["text"], "{\"x\": \u{fffd}");
    }

    #[test]
    fn words_stand_in_for_a_reply_of_random_weights() {
        let trace = Trace::parse("t", TRACE).unwrap();
        let steps = &trace.programs[0].steps;
        let shape = RequestShape {
            stand_in: true,
            ..shape(&trace)
        };
        let message = |reply: &Reply| {
            let mut history = History::new(&shape, "a", &trace.programs[0]);
            history.advance(&steps[0], reply, &steps[1]);
            parsed(&history, &steps[1])["messages"][2].clone()
        };
        let text = message(&reply(false));
        // 9 tokens were generated.
        assert_eq!(text["content"].as_str().unwrap().len(), 9 * 4);
        assert_eq!(text, message(&reply(false)), "the same words each time");
        let call = message(&reply(true))["tool_calls"][0].clone();
        assert_eq!(
            (&call["id"], &call["function"]["name"]),
            (&"call-1".into(), &"ls".into())
        );
        let arguments: Value =
            serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(arguments["arg"].as_str().unwrap().len(), 4);
    }
}
