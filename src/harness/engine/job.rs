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
    body.push_prompt(&mut prompt)?;
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
        body.push_prompt(&mut ids)?;
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

    fn push_prompt(&self, out: &mut impl Extend<TokenId>) -> Result<(), ApiError> {
        let one = |message: &str| Err(ApiError::bad_request(message, None));
        match self.prompt.as_ref() {
            Some(Prompt::Text(text)) if !text.is_empty() => out.extend(tokenizer::tokens(text)),
            Some(Prompt::Ids(ids)) if !ids.is_empty() => out.extend(ids.iter().copied()),
            Some(Prompt::Texts(texts)) if texts.len() == 1 => {
                out.extend(tokenizer::tokens(&texts[0]));
            }
            Some(Prompt::IdLists(lists)) if lists.len() == 1 && !lists[0].is_empty() => {
                out.extend(lists[0].iter().copied());
            }
            Some(Prompt::Ids(_)) => return one("You must pass at least one prompt"),
            Some(Prompt::Texts(_) | Prompt::IdLists(_)) => {
                return one("this engine model takes exactly one prompt per request");
            }
            None | Some(Prompt::Text(_)) => {
                let message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)";
                return Err(ApiError::bad_request(message, Some("prompt")));
            }
        }
        Ok(())
    }

    /// The tools offered; `None` if the field is absent.
    fn offered(&self) -> Result<Option<Vec<Call>>, ApiError> {
        let Some(tools) = self.tools else {
            return Ok(None);
        };
        let tools: Vec<Call> = serde_json::from_str(tools.get())
            .map_err(|error| ApiError::bad_request(format!("tools: {error}"), Some("tools")))?;
        if tools.is_empty() {
            let message = "`tools` must not be an empty array. Either provide at least one tool or omit the \
                           field entirely. (parameter=tools)";
            return Err(ApiError::bad_request(message, Some("tools")));
        }
        Ok(Some(tools))
    }

    /// The call to make: only where the client insists on one.
    fn tool_call(&self, dice: u64) -> Result<Option<ToolCall>, ApiError> {
        let refuse = |message: &str| {
            let message = format!("{message} (parameter=tool_choice)");
            Err(ApiError::bad_request(message, Some("tool_choice")))
        };
        let tools = self.offered()?;
        let choice = match &self.tool_choice {
            None => return Ok(None),
            Some(ToolChoice::Mode(mode)) if mode == "none" => return Ok(None),
            Some(choice) => choice,
        };
        let Some(tools) = tools else {
            return refuse("When using `tool_choice`, `tools` must be set.");
        };
        let (name, finish_reason) = match choice {
            ToolChoice::Mode(mode) if mode == "auto" => return Ok(None),
            ToolChoice::Mode(mode) if mode == "required" => {
                let any = usize::try_from(dice % tools.len() as u64).unwrap_or(0);
                (&tools[any].function.name, "tool_calls")
            }
            ToolChoice::Mode(mode) => {
                return refuse(&format!(
                    "Invalid value for `tool_choice`: {mode}! Only named tools, \"none\", \"auto\" or \
                     \"required\" are supported."
                ));
            }
            ToolChoice::Named(call) => (&call.function.name, "stop"),
        };
        if !tools.iter().any(|tool| tool.function.name == *name) {
            return refuse(
                "The tool specified in `tool_choice` does not match any of the specified `tools`",
            );
        }
        Ok(Some(ToolCall {
            name: name.clone(),
            finish_reason,
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
        if room < 0 {
            return Err(ApiError::context_length(config.max_model_len));
        }
        let limit = self.output_limit(config)?.or(default_limit);
        if room == 0 {
            return Err(too_few(0));
        }
        let limit = u32::try_from(limit.map_or(room, |limit| limit.min(room))).unwrap_or(u32::MAX);
        if let Some(least) = self.min_tokens.filter(|least| *least > limit) {
            return Err(ApiError::bad_request(
                format!(
                    "min_tokens must be less than or equal to max_tokens={limit}, got {least}."
                ),
                None,
            ));
        }
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
            return Err(too_few(limit));
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

fn too_few(limit: i64) -> ApiError {
    let sentence = format!("max_tokens must be at least 1, got {limit}.");
    ApiError::parameter(&sentence, "max_tokens", limit)
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
