//! What a request asks for: its body, parsed, checked and turned into a prompt and a planned output.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::EngineConfig;
use super::core::output::mix;
use super::core::{Chain, Finish, Output, TokenId};
use super::error::ApiError;
use super::tokenizer;

/// Mean output length, in tokens, of a request that may stop by itself.
const MEAN_OUTPUT: f64 = 120.0;
/// Output limit of `/v1/completions` where the request has none, as in the OpenAI API.
const COMPLETION_MAX_TOKENS: i64 = 16;
/// What a tool call's arguments begin and end with: whole tokens, so that filler fits between.
const ARGUMENTS_HEAD: &str = r#"{"arg":""#;
const ARGUMENTS_TAIL: &str = r#"ok"}"#;

/// A request that can be submitted.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) chat: bool,
    pub(super) prompt: Chain,
    pub(super) priority: i64,
    pub(super) output: Output,
    pub(super) tool: Option<ToolCall>,
    /// `None` for an answer in one piece.
    pub(super) stream: Option<StreamOptions>,
    /// The name to answer under.
    pub(super) model: String,
}

/// The tool call that the output will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub(super) name: String,
    /// What the response says when the call is complete: `tool_calls` where the model chose the tool, `stop`
    /// where the client named it, as vLLM does.
    pub(super) finish_reason: &'static str,
}

impl ToolCall {
    /// Tokens of the name, at the start of the output; the arguments follow.
    pub(super) fn name_tokens(&self) -> u32 {
        u32::try_from(self.name.len().div_ceil(4)).unwrap_or(u32::MAX)
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
    pub(super) continuous_usage_stats: bool,
}

/// The fields that are honoured, of both endpoints; others are accepted and ignored.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body<'a> {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    prompt: Option<Prompt>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    tool_choice: Option<ToolChoice>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    min_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    priority: Option<i64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<i64>,
    seed: Option<i64>,
    temperature: Option<f64>,
    cache_salt: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

/// A tool as it is offered (`tools`), chosen (`tool_choice`) or was called (`tool_calls`).
#[derive(Deserialize)]
struct Call {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ToolChoice {
    Mode(String),
    Named(Call),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<TokenId>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<TokenId>>),
}

/// Parses the body of `/v1/chat/completions`.
pub(super) fn chat(config: &EngineConfig, bytes: &[u8]) -> Result<Job, ApiError> {
    let body = Body::parse(bytes, "messages")?;
    let model = body.check(config)?;
    let mut prompt = body.empty_prompt(config);
    body.render_chat(bytes, &mut prompt)?;
    let tool = body.tool_call(prompt.fingerprint())?;
    let output = body.plan(config, &prompt, tool.as_ref(), None)?;
    Ok(body.job(true, model, prompt, output, tool))
}

/// Parses the body of `/v1/completions`.
pub(super) fn completion(config: &EngineConfig, bytes: &[u8]) -> Result<Job, ApiError> {
    let body = Body::parse(bytes, "prompt")?;
    let model = body.check(config)?;
    let mut prompt = body.empty_prompt(config);
    body.push_prompt(bytes, &mut prompt)?;
    let output = body.plan(config, &prompt, None, Some(COMPLETION_MAX_TOKENS))?;
    Ok(body.job(false, model, prompt, output, None))
}

/// Parses the body of `/tokenize`: a prompt, or messages as the chat endpoint would render them.
pub(super) fn tokenize(config: &EngineConfig, bytes: &[u8]) -> Result<Vec<TokenId>, ApiError> {
    let body = Body::parse(bytes, "prompt")?;
    body.check(config)?;
    let mut ids = Vec::new();
    if body.messages.is_some() {
        body.render_chat(bytes, &mut ids)?;
    } else {
        body.push_prompt(bytes, &mut ids)?;
    }
    Ok(ids)
}

impl<'a> Body<'a> {
    fn parse(bytes: &'a [u8], required: &str) -> Result<Self, ApiError> {
        serde_json::from_slice(bytes)
            .map_err(|error| ApiError::invalid(bytes, &error.to_string(), required))
    }

    /// Checks what does not depend on the prompt; returns the model's name.
    fn check(&self, config: &EngineConfig) -> Result<String, ApiError> {
        let served = config.models.first().cloned().unwrap_or_default();
        if let Some(model) = &self.model
            && !config.models.contains(model)
        {
            return Err(ApiError::unknown_model(model, &config.models));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            return Err(ApiError::bad_request(
                "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
                Some("stream_options"),
            ));
        }
        if let Some(n @ ..1) = self.n {
            let message = format!("n must be at least 1, got {n}.");
            return Err(ApiError::bad_request(message, None));
        }
        if let Some(n @ 2..) = self.n {
            let sentence = "this engine model generates one choice per request";
            return Err(ApiError::parameter(sentence, "n", n));
        }
        if let Some(t) = self.temperature.filter(|t| *t < 0.0) {
            let sentence = format!("temperature must be non-negative, got {t:?}.");
            return Err(ApiError::parameter(
                &sentence,
                "temperature",
                format!("{t:?}"),
            ));
        }
        Ok(self.model.clone().unwrap_or(served))
    }

    fn empty_prompt(&self, config: &EngineConfig) -> Chain {
        let salt = self.cache_salt.as_deref().unwrap_or_default();
        config.core.chain(salt.as_bytes())
    }

    /// Tools first, then the messages, then the opening of the answer. A tool list or a message that stays
    /// the same keeps its tokens.
    fn render_chat(&self, bytes: &[u8], out: &mut impl Extend<TokenId>) -> Result<(), ApiError> {
        let Some(messages) = &self.messages else {
            return Err(ApiError::invalid(
                bytes,
                "messages must be a list",
                "messages",
            ));
        };
        if messages.is_empty() {
            return Err(ApiError::bad_request(
                "Cannot apply chat template to an empty conversation. Provide at least one message.",
                None,
            ));
        }
        if let Some(tools) = self.tools {
            tokenizer::begin("tools", out);
            out.extend(tokenizer::tokens(tools.get()));
            tokenizer::end(out);
        }
        for message in messages {
            message.render(out);
        }
        tokenizer::begin("assistant", out);
        Ok(())
    }

    fn push_prompt(&self, bytes: &[u8], out: &mut impl Extend<TokenId>) -> Result<(), ApiError> {
        let one = || ApiError::bad_request("prompt must hold exactly one prompt", Some("prompt"));
        match self.prompt.as_ref() {
            None => {
                return Err(ApiError::invalid(
                    bytes,
                    "prompt must be text or ids",
                    "prompt",
                ));
            }
            Some(Prompt::Text(text)) => out.extend(tokenizer::tokens(text)),
            Some(Prompt::Ids(ids)) => out.extend(ids.iter().copied()),
            Some(Prompt::Texts(texts)) => match texts.as_slice() {
                [text] => out.extend(tokenizer::tokens(text)),
                _ => return Err(one()),
            },
            Some(Prompt::IdLists(lists)) => match lists.as_slice() {
                [ids] => out.extend(ids.iter().copied()),
                _ => return Err(one()),
            },
        }
        Ok(())
    }

    /// The call to make: only where the client insists on one.
    fn tool_call(&self, choice: u64) -> Result<Option<ToolCall>, ApiError> {
        let named = match &self.tool_choice {
            None => return Ok(None),
            Some(ToolChoice::Mode(mode)) if mode != "required" => return Ok(None),
            Some(ToolChoice::Mode(_)) => None,
            Some(ToolChoice::Named(call)) => Some(call.function.name.clone()),
        };
        let unset = || {
            let message = "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)";
            ApiError::bad_request(message, Some("tool_choice"))
        };
        let tools = self.tools.ok_or_else(unset)?;
        let tools: Vec<Call> = serde_json::from_str(tools.get())
            .map_err(|error| ApiError::bad_request(format!("tools: {error}"), Some("tools")))?;
        if tools.is_empty() {
            return Err(unset());
        }
        let any = usize::try_from(choice % tools.len() as u64).unwrap_or(0);
        Ok(Some(match named {
            Some(name) => ToolCall {
                name,
                finish_reason: "stop",
            },
            None => ToolCall {
                name: tools[any].function.name.clone(),
                finish_reason: "tool_calls",
            },
        }))
    }

    /// Decides the output: its length from the limits and, without `ignore_eos`, from the seed.
    fn plan(
        &self,
        config: &EngineConfig,
        prompt: &Chain,
        tool: Option<&ToolCall>,
        default_limit: Option<i64>,
    ) -> Result<Output, ApiError> {
        let room =
            i64::from(config.max_model_len) - i64::try_from(prompt.tokens()).unwrap_or(i64::MAX);
        if room < 1 {
            return Err(ApiError::context_length(config.max_model_len));
        }
        let limit = self.output_limit(config)?.or(default_limit);
        let limit = u32::try_from(limit.map_or(room, |limit| limit.min(room))).unwrap_or(u32::MAX);
        let own = self.seed.map_or(0, i64::cast_unsigned);
        let seed = mix(config.seed ^ mix(own) ^ prompt.fingerprint());
        let mut output = Output::filler(limit, Finish::Length, seed);
        if let Some(tool) = tool {
            output.head = tokenizer::tokens(&tool.name)
                .chain(tokenizer::tokens(ARGUMENTS_HEAD))
                .collect();
            output.tail = tokenizer::tokens(ARGUMENTS_TAIL).collect();
        }
        if self.ignore_eos != Some(true) {
            let shortest = output.head.len() + output.tail.len() + 1;
            let shortest = u32::try_from(shortest).unwrap_or(u32::MAX);
            let own = geometric(seed)
                .max(self.min_tokens.unwrap_or(0))
                .max(shortest);
            if own <= limit {
                output.length = own;
                output.finish = Finish::Stop;
                output.tail.push(tokenizer::END);
            }
        }
        Ok(output)
    }

    /// The client's own limit. `max_completion_tokens` goes before the older `max_tokens` and may exceed the
    /// context, as in vLLM.
    fn output_limit(&self, config: &EngineConfig) -> Result<Option<i64>, ApiError> {
        let (name, limit) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(limit), _) => ("max_completion_tokens", limit),
            (None, Some(limit)) => ("max_tokens", limit),
            (None, None) => return Ok(None),
        };
        if limit < 1 {
            let sentence = format!("max_tokens must be at least 1, got {limit}.");
            return Err(ApiError::parameter(&sentence, "max_tokens", limit));
        }
        if name == "max_tokens" && limit > i64::from(config.max_model_len) {
            let sentence = format!(
                "max_tokens={limit} cannot be greater than max_model_len={}. Please request fewer output \
                 tokens.",
                config.max_model_len
            );
            return Err(ApiError::parameter(&sentence, name, limit));
        }
        Ok(Some(limit))
    }

    fn job(
        self,
        chat: bool,
        model: String,
        prompt: Chain,
        output: Output,
        tool: Option<ToolCall>,
    ) -> Job {
        let options = self.stream_options.unwrap_or_default();
        Job {
            chat,
            prompt,
            priority: self.priority.unwrap_or(0),
            output,
            tool,
            stream: (self.stream == Some(true)).then_some(options),
            model,
        }
    }
}

impl Message {
    fn render(&self, out: &mut impl Extend<TokenId>) {
        tokenizer::begin(&self.role, out);
        match &self.content {
            None => {}
            Some(Content::Text(text)) => out.extend(tokenizer::tokens(text)),
            Some(Content::Parts(parts)) => {
                for part in parts {
                    out.extend(tokenizer::tokens(&part.text));
                }
            }
        }
        for call in self.tool_calls.iter().flatten() {
            out.extend(tokenizer::tokens(&call.function.name));
            out.extend(tokenizer::tokens(&call.function.arguments));
        }
        tokenizer::end(out);
    }
}

/// A length with the chance 1/[`MEAN_OUTPUT`] of ending at each token.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "at most about 37 times the mean"
)]
fn geometric(seed: u64) -> u32 {
    // In (0, 1]: the upper 53 bits, never zero.
    let uniform = ((mix(seed) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    1 + (uniform.ln() / (1.0 - 1.0 / MEAN_OUTPUT).ln()) as u32
}
