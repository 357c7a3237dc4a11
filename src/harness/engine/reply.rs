//! Response bodies in vLLM 0.32's shape, field by field in its order.
//!
//! Written as text, not through a serialiser: the order and the nulls are part of the shape, and a streamed
//! chunk is built once per token.

use std::fmt::Write;

use super::body::StreamOptions;
use super::core::{Finish, Output};
use super::job::{Job, ToolCall};
use super::tokenizer;

/// Identifies the software that answered, where vLLM puts its version and a hash of its configuration.
const FINGERPRINT: &str = concat!("kvgate-engine-", env!("CARGO_PKG_VERSION"));

/// How much of an output exists, and what it was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Output tokens sampled.
    pub(super) output: u32,
    /// Prompt tokens from the prefix cache; known with the first token.
    pub(super) cached: u32,
    /// Set when there will be no more.
    pub(super) finish: Option<Finish>,
}

/// Everything about one response that does not change while it is generated.
#[derive(Debug)]
pub(super) struct Reply {
    id: String,
    created: u64,
    model: String,
    chat: bool,
    prompt: u32,
    output: Output,
    tool: Option<ToolCall>,
    usage: StreamOptions,
}

impl Reply {
    pub(super) fn new(job: &Job, id: &str, created: u64) -> Self {
        let kind = if job.chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: json(&format!("{kind}-{id}")),
            created,
            model: json(&job.model),
            chat: job.chat,
            prompt: u32::try_from(job.prompt.tokens()).unwrap_or(u32::MAX),
            output: job.output.clone(),
            tool: job.tool.clone(),
            usage: job.stream.unwrap_or_default(),
        }
    }

    /// The whole response, when `progress` is final.
    pub(super) fn full(&self, progress: Progress) -> String {
        let (object, choice, created_cache, rest) = if self.chat {
            (
                "chat.completion",
                self.message(progress),
                "0",
                r#""prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"#,
            )
        } else {
            ("text_completion", self.plain(progress), "null", "")
        };
        format!(
            r#"{{"id":{},"object":"{object}","created":{},"model":{},"choices":[{{"index":0,{choice}}}],"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{{{},"prompt_tokens_details":{{"cached_tokens":{},"created_cache_tokens":{created_cache},"multimodal_tokens":null}},"completion_tokens_details":null}},{rest}"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
            self.id,
            self.created,
            self.model,
            self.counts(progress.output),
            progress.cached,
        )
    }

    fn message(&self, progress: Progress) -> String {
        let text = json(&self.text(0, progress.output));
        let finish = self.finish_reason(progress);
        let (content, call) = match &self.tool {
            None => (text, String::new()),
            Some(tool) => ("\"\"".to_owned(), self.tool_calls(tool, &text)),
        };
        format!(
            r#""message":{{"role":"assistant","content":{content},"refusal":null,"annotations":null,"audio":null,"function_call":null{call},"reasoning":null}},"logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":null,"routed_experts":null"#
        )
    }

    fn plain(&self, progress: Progress) -> String {
        let text = json(&self.text(0, progress.output));
        let finish = self.finish_reason(progress);
        format!(
            r#""text":{text},"logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null"#
        )
    }

    /// Appends the frames that lead from `before` to `now`: the role or the tool's name with the first token,
    /// then what was generated, and the finish reason if that is `over`.
    pub(super) fn push_frames(
        &self,
        before: Progress,
        now: Progress,
        over: bool,
        out: &mut String,
    ) {
        if before.output == 0 {
            self.push_opening(now, out);
        }
        let text = self.text(before.output, now.output);
        let finish = over.then(|| self.finish_reason(now));
        if self.tool.is_some() {
            if !text.is_empty() {
                let arguments = json(&text);
                let call = format!(r#"{{"index":0,"function":{{"arguments":{arguments}}}}}"#);
                self.push_call(&call, now, out);
            }
            if finish.is_some() {
                self.push_delta("", finish, now, out);
            }
        } else if self.chat {
            let content = match text.as_str() {
                "" => String::new(),
                text => format!(r#""content":{}"#, json(text)),
            };
            self.push_delta(&content, finish, now, out);
        } else {
            let choice = format!(
                r#""text":{},"logprobs":null,"finish_reason":{},"stop_reason":null,"prompt_token_ids":null,"token_ids":null"#,
                json(&text),
                quoted(finish)
            );
            self.push_chunk(&choice, now.output, self.signature(finish), out);
        }
    }

    /// What comes with the first token: the role, the tool's name.
    fn push_opening(&self, now: Progress, out: &mut String) {
        if self.chat {
            let delta =
                r#""delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null"#;
            let rest = r#","prompt_token_ids":null,"prompt_text":null"#;
            self.push_chunk(delta, 0, rest, out);
        }
        if let Some(tool) = &self.tool {
            let call = format!(
                r#"{{"id":"{}","type":"function","index":0,"function":{{"name":{}}}}}"#,
                self.call_id(),
                json(&tool.name)
            );
            self.push_call(&call, now, out);
        }
    }

    /// The last frame names the software, unless a frame with the usage follows and does.
    fn signature(&self, finish: Option<&str>) -> &'static str {
        if finish.is_some() && !self.usage.include_usage {
            concat!(
                r#","system_fingerprint":"kvgate-engine-"#,
                env!("CARGO_PKG_VERSION"),
                "\""
            )
        } else {
            ""
        }
    }

    /// The frame with the final usage, for clients that asked for it.
    pub(super) fn push_usage(&self, progress: Progress, out: &mut String) {
        let created_cache = if self.chat {
            r#","created_cache_tokens":0"#
        } else {
            ""
        };
        self.push_head(out);
        let _ = write!(
            out,
            r#","choices":[],"usage":{{{},"prompt_tokens_details":{{"cached_tokens":{}{created_cache}}}}},"system_fingerprint":"{FINGERPRINT}"}}"#,
            self.counts(progress.output),
            progress.cached
        );
        out.push_str("\n\n");
    }

    fn push_call(&self, call: &str, now: Progress, out: &mut String) {
        self.push_delta(
            &format!(r#""content":null,"tool_calls":[{call}]"#),
            None,
            now,
            out,
        );
    }

    fn push_delta(&self, delta: &str, finish: Option<&str>, now: Progress, out: &mut String) {
        let stop = if finish.is_some() {
            r#""stop_reason":null,"#
        } else {
            ""
        };
        let choice = format!(
            r#""delta":{{{delta}}},"logprobs":null,"finish_reason":{},{stop}"token_ids":null"#,
            quoted(finish)
        );
        self.push_chunk(&choice, now.output, self.signature(finish), out);
    }

    fn push_chunk(&self, choice: &str, output: u32, rest: &str, out: &mut String) {
        self.push_head(out);
        let _ = write!(out, r#","choices":[{{"index":0,{choice}}}]"#);
        if self.usage.include_usage && self.usage.continuous_usage_stats {
            let counts = self.counts(output);
            let _ = write!(
                out,
                r#","usage":{{{counts},"completion_tokens_details":null}}"#
            );
        }
        out.push_str(rest);
        out.push_str("}\n\n");
    }

    fn push_head(&self, out: &mut String) {
        let object = if self.chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let _ = write!(
            out,
            r#"data: {{"id":{},"object":"{object}","created":{},"model":{}"#,
            self.id, self.created, self.model
        );
    }

    fn counts(&self, output: u32) -> String {
        format!(
            r#""prompt_tokens":{},"total_tokens":{},"completion_tokens":{output}"#,
            self.prompt,
            self.prompt + output
        )
    }

    fn tool_calls(&self, tool: &ToolCall, arguments: &str) -> String {
        format!(
            r#","tool_calls":[{{"id":"{}","type":"function","function":{{"name":{},"arguments":{arguments}}}}}]"#,
            self.call_id(),
            json(&tool.name)
        )
    }

    fn call_id(&self) -> String {
        format!("chatcmpl-tool-{:016x}", self.output.seed)
    }

    /// Text of the output tokens `from..to`; of a tool call, the arguments only.
    fn text(&self, from: u32, to: u32) -> String {
        let name = self.tool.as_ref().map_or(0, ToolCall::name_tokens);
        let mut text = String::with_capacity(4 * to.saturating_sub(from) as usize);
        for index in from.max(name)..to {
            tokenizer::push_text(self.output.token(index), &mut text);
        }
        text
    }

    /// A call that the limit cut short says so; one that closed its JSON ends as a call.
    fn finish_reason(&self, progress: Progress) -> &'static str {
        let framed = self.output.head.len() + self.output.tail.len();
        match (progress.finish, &self.tool) {
            (None, _) => "abort",
            (Some(_), Some(tool)) if framed <= progress.output as usize => tool.finish_reason,
            (Some(Finish::Stop), _) => "stop",
            (Some(Finish::Length), _) => "length",
        }
    }
}

fn json(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

fn quoted(word: Option<&str>) -> String {
    word.map_or_else(|| "null".to_owned(), |word| format!("\"{word}\""))
}
