//! Request bodies: the fields that are honoured, their checks, and the prompt they render to.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::EngineConfig;
use super::core::{Chain, TokenId};
use super::error::ApiError;
use super::tokenizer;

/// The fields that are honoured, of both endpoints; others are accepted and ignored.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Body<'a> {
    pub(super) model: Option<String>,
    pub(super) messages: Option<Vec<Message>>,
    pub(super) prompt: Option<Prompt>,
    #[serde(borrow)]
    pub(super) tools: Option<&'a RawValue>,
    pub(super) tool_choice: Option<ToolChoice>,
    pub(super) max_tokens: Option<i64>,
    pub(super) max_completion_tokens: Option<i64>,
    pub(super) min_tokens: Option<u32>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) priority: Option<i64>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) cache_salt: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) role: String,
    content: Option<Content>,
    pub(super) tool_calls: Option<Vec<Call>>,
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
pub(super) struct Call {
    pub(super) function: Function,
}

#[derive(Deserialize)]
pub(super) struct Function {
    pub(super) name: String,
    #[serde(default)]
    arguments: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ToolChoice {
    Mode(String),
    Named(Call),
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<TokenId>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<TokenId>>),
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
    pub(super) continuous_usage_stats: bool,
}

impl<'a> Body<'a> {
    pub(super) fn parse(bytes: &'a [u8], required: &str) -> Result<Self, ApiError> {
        serde_json::from_slice(bytes)
            .map_err(|error| ApiError::invalid(bytes, &error.to_string(), required))
    }

    /// Checks what does not depend on the prompt; returns the model's name.
    pub(super) fn check(&self, config: &EngineConfig) -> Result<String, ApiError> {
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

    pub(super) fn empty_prompt(&self, config: &EngineConfig) -> Chain {
        let salt = self.cache_salt.as_deref().unwrap_or_default();
        config.core.chain(salt.as_bytes())
    }

    /// Tools first, then the messages, then the opening of the answer. A tool list or a message that stays
    /// the same keeps its tokens.
    pub(super) fn render_chat(
        &self,
        bytes: &[u8],
        out: &mut impl Extend<TokenId>,
    ) -> Result<(), ApiError> {
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

    pub(super) fn push_prompt(&self, out: &mut impl Extend<TokenId>) -> Result<(), ApiError> {
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
    pub(super) fn offered(&self) -> Result<Option<Vec<Call>>, ApiError> {
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
}

/// The text of a message, its parts put together.
pub(super) fn text_of(message: &Message) -> Cow<'_, str> {
    match &message.content {
        None => Cow::Borrowed(""),
        Some(Content::Text(text)) => Cow::Borrowed(text),
        Some(Content::Parts(parts)) => parts.iter().map(|part| part.text.as_str()).collect(),
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
