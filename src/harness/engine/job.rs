//! What a request asks for, decided: the prompt, the tool call it will be, the length and end of its output.

use super::EngineConfig;
use super::body::{Body, StreamOptions, ToolChoice};
use super::core::output::mix;
use super::core::{Chain, Finish, Output, TokenId};
use super::error::ApiError;
use super::tau2::{self, Act};
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

/// Parses the body of `/v1/chat/completions`.
pub(super) fn chat(config: &EngineConfig, bytes: &[u8]) -> Result<Job, ApiError> {
    let body = Body::parse(bytes, "messages")?;
    let model = body.check(config)?;
    let mut prompt = body.empty_prompt(config);
    body.render_chat(bytes, &mut prompt)?;
    let tool = body.tool_call(prompt.fingerprint())?;
    let act = body.act(config, prompt.fingerprint());
    let script = match (&tool, &act) {
        (Some(tool), _) => Some(Script::around(tool)),
        (None, Some(act)) => Some(Script::of(act)),
        (None, None) => None,
    };
    let output = body.plan(config, &prompt, script, None)?;
    let tool = tool.or_else(|| act.and_then(called));
    Ok(body.job(true, model, prompt, output, tool))
}

/// What an output is to say: all of it, or how it begins and ends around filler.
struct Script {
    head: Vec<TokenId>,
    tail: Vec<TokenId>,
    is_whole: bool,
}

impl Script {
    /// A call whose arguments are filler.
    fn around(tool: &ToolCall) -> Self {
        let name = tokenizer::tokens(&tool.name);
        Self {
            head: name.chain(tokenizer::tokens(ARGUMENTS_HEAD)).collect(),
            tail: tokenizer::tokens(ARGUMENTS_TAIL).collect(),
            is_whole: false,
        }
    }

    fn of(act: &Act) -> Self {
        let head = match act {
            Act::Say(text) => tokenizer::tokens(text).collect(),
            Act::Call { name, arguments } => {
                let name = tokenizer::tokens(name);
                name.chain(tokenizer::tokens(arguments)).collect()
            }
        };
        Self {
            head,
            tail: Vec::new(),
            is_whole: true,
        }
    }
}

fn called(act: Act) -> Option<ToolCall> {
    match act {
        Act::Say(_) => None,
        Act::Call { name, .. } => Some(ToolCall {
            name,
            finish_reason: "tool_calls",
        }),
    }
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

impl Body<'_> {
    /// What tau2-bench's prompts prescribe, where the client leaves the answer to the model.
    fn act(&self, config: &EngineConfig, dice: u64) -> Option<Act> {
        let is_free = match &self.tool_choice {
            None => true,
            Some(ToolChoice::Mode(mode)) => mode == "auto",
            Some(ToolChoice::Named(_)) => false,
        };
        if !config.tau2 || !is_free || self.ignore_eos == Some(true) {
            return None;
        }
        tau2::act(self.messages.as_deref()?, self.tools, config.seed, dice)
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
        script: Option<Script>,
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
        let is_whole = script.as_ref().is_some_and(|script| script.is_whole);
        if let Some(script) = script {
            output.head = script.head;
            output.tail = script.tail;
        }
        if self.ignore_eos != Some(true) {
            // A turn that says nothing at all is refused by clients: the end mark follows a word, or a tool call.
            let said = (output.head.len() + output.tail.len()).max(1);
            let shortest = u32::try_from(said + 1).unwrap_or(u32::MAX);
            let drawn = geometric(seed).max(self.min_tokens.unwrap_or(0));
            let own = if is_whole {
                shortest
            } else {
                drawn.max(shortest)
            };
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
