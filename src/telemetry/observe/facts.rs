//! What a response says about itself: [`ResponseFacts`], and at which path of which API each fact stands.
//!
//! Four dialects: OpenAI chat and completions (`choices`), OpenAI Responses (`output`, `response`), and
//! Anthropic Messages (`content`, `content_block`), each streamed and whole.

use super::json::{Event, Key};
use super::tools::Calls;
use crate::policy::{Outcome, Tokens, Usage};

/// The tool name given when a response makes several calls.
pub const MULTI_TOOL: &str = "multi_tool";

/// Why the model stopped, in OpenAI's words; the other dialects are mapped to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// `stop`: the model ended its turn, or met a stop string.
    Stop,
    /// `length`: the output limit was reached.
    Length,
    /// `tool_calls`: the model called tools.
    ToolCalls,
    /// `abort`: vLLM gave the request up, as it does when it is shut down.
    Abort,
    /// `error`: generation failed inside vLLM.
    Error,
    /// Any other word.
    Other,
}

impl Finish {
    /// Whether the step was not served to its end.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Abort | Self::Error)
    }

    fn of_finish_reason(word: &[u8]) -> Self {
        match word {
            b"stop" | b"end_turn" | b"stop_sequence" => Self::Stop,
            b"length" | b"max_tokens" => Self::Length,
            b"tool_calls" | b"function_call" | b"tool_use" => Self::ToolCalls,
            b"abort" => Self::Abort,
            b"error" => Self::Error,
            _ => Self::Other,
        }
    }

    /// The `status` of a Responses object; `None` while it is not over.
    fn of_status(word: &[u8]) -> Option<Self> {
        match word {
            b"completed" => Some(Self::Stop),
            b"incomplete" => Some(Self::Length),
            b"failed" => Some(Self::Error),
            b"cancelled" => Some(Self::Abort),
            _ => None,
        }
    }
}

/// What the gate knows of a response by what has passed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that hold independently of each other"
)]
pub struct ResponseFacts {
    /// Token counts, the latest report; `None` before the first.
    pub usage: Option<Usage>,
    /// Why the model stopped; with several choices the last one's reason, a failure before all others.
    pub finish: Option<Finish>,
    /// The tool called, [`MULTI_TOOL`] for several calls, `None` for text. At most 128 bytes of the name. Where the
    /// API's own fields name none, a call written into the text counts, and an expert goes by its own name.
    pub tool: Option<String>,
    /// Something that the model generated has passed; a chunk with nothing but a role is not that.
    pub content_seen: bool,
    /// The response's own end has passed: `[DONE]`, `message_stop`, `response.completed`, or the last brace.
    pub done: bool,
    /// The body reports an error, whatever the HTTP status said.
    pub error: bool,
    /// That error says that the prompt, or prompt and output, do not fit the model's context.
    pub context_overflow: bool,
}

impl ResponseFacts {
    /// How the request ended, if its connection ended here and the HTTP status was a success.
    ///
    /// A named `tool_choice` ends in `stop` although it calls a tool: a call counts as
    /// [`Outcome::ToolCalls`]. A response without reason or end broke off.
    pub const fn outcome(&self) -> Outcome {
        match self.finish {
            _ if self.error => Outcome::Failed,
            Some(Finish::Abort | Finish::Error) => Outcome::Failed,
            None if !self.done => Outcome::Failed,
            Some(Finish::Length) => Outcome::Length,
            Some(Finish::ToolCalls) => Outcome::ToolCalls,
            Some(Finish::Stop | Finish::Other) | None if self.tool.is_some() => Outcome::ToolCalls,
            Some(Finish::Stop | Finish::Other) | None => Outcome::Stop,
        }
    }
}

/// Collects [`ResponseFacts`] from the values of one JSON text after another.
#[derive(Clone, Debug, Default)]
pub(super) struct Collector {
    pub(super) facts: ResponseFacts,
    usage: UsageParts,
    call: CallParts,
    /// Calls in the answer's text.
    calls: Calls,
    text: TextParts,
}

/// Facts about the JSON text being read.
#[derive(Clone, Copy, Debug, Default)]
struct TextParts {
    choices: Choices,
    has_usage: bool,
    closed: bool,
}

/// What is known of `choices`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Choices {
    #[default]
    Absent,
    Empty,
    Some,
}

/// The counts of `usage`, as they come: in any order, and spread over several frames by Anthropic's dialect.
#[derive(Clone, Copy, Debug, Default)]
struct UsageParts {
    prompt: Option<u64>,
    cached: Option<u64>,
    output: Option<u64>,
    /// Anthropic's `input_tokens` leaves out what the cache served or took; OpenAI's does not.
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_written: Option<u64>,
}

impl UsageParts {
    fn usage(self) -> Option<Usage> {
        let beside = self
            .cache_read
            .unwrap_or(0)
            .saturating_add(self.cache_written.unwrap_or(0));
        let input = self.input.map(|input| input.saturating_add(beside));
        Some(Usage {
            prompt: Tokens(self.prompt.or(input)?),
            cached: self.cached.or(self.cache_read).map(Tokens),
            output: Tokens(self.output.unwrap_or(0)),
        })
    }
}

/// The entry of `tool_calls` being read, and what tells it from those before.
#[derive(Clone, Debug, Default)]
struct CallParts {
    name: Option<String>,
    index: Option<u64>,
    /// Position of the entry in its array, for dialects that give no index.
    position: u64,
    /// The first call's name, as it was told, and its index.
    told: Option<String>,
    first: Option<u64>,
}

impl Collector {
    /// Starts another JSON text of the same response.
    pub(super) fn next_text(&mut self) {
        self.text = TextParts::default();
        self.calls.next_text();
    }

    /// The text being read is the extra chunk of `stream_options.include_usage`: a usage report, no choices.
    pub(super) const fn is_usage_only(&self) -> bool {
        self.text.has_usage && matches!(self.text.choices, Choices::Empty)
    }

    /// The text being read is complete.
    pub(super) const fn is_closed(&self) -> bool {
        self.text.closed
    }

    pub(super) fn on(&mut self, path: &[Key], event: Event<'_>) {
        match event {
            Event::Open => self.on_open(path),
            Event::Close => self.on_close(path),
            Event::Piece(bytes) => self.on_piece(path, bytes),
            Event::Escaped(byte) => self.on_escaped(path, byte),
            Event::String(text) => self.on_string(path, text),
            Event::Word(word) => self.on_word(path, word),
        }
    }

    fn on_open(&mut self, path: &[Key]) {
        match path {
            [Key::Choices] => self.text.choices = Choices::Empty,
            [Key::Choices, Key::Item] => self.text.choices = Choices::Some,
            [Key::Usage] => self.text.has_usage = true,
            [Key::Error] | [Key::Response, Key::Error] => self.facts.error = true,
            [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::ToolCalls,
            ] => self.call.position = 0,
            _ => {}
        }
    }

    fn on_close(&mut self, path: &[Key]) {
        match path {
            [] => self.text.closed = true,
            [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::ToolCalls,
                Key::Item,
            ] => {
                let index = self.call.index.take().or(Some(self.call.position));
                self.call.position += 1;
                if let Some(name) = self.call.name.take() {
                    self.called(name, index);
                }
            }
            _ => {}
        }
    }

    /// Whether the frame has to be read for the tool that it may call.
    pub(super) fn needs(&self, frame: &[u8]) -> bool {
        self.calls.needs(frame)
    }

    fn on_piece(&mut self, path: &[Key], bytes: &[u8]) {
        let Some(text) = Text::at(path) else {
            return;
        };
        let (rest, char) = self.calls.hex(bytes);
        if let Some(char) = char {
            self.read(text, char.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.read(text, rest);
    }

    fn on_escaped(&mut self, path: &[Key], byte: u8) {
        if let Some(text) = Text::at(path)
            && let Some(byte) = self.calls.unescape(byte)
        {
            self.read(text, &[byte]);
        }
    }

    fn read(&mut self, text: Text, bytes: &[u8]) {
        match text {
            Text::Answer => {
                if self.calls.text(bytes) {
                    self.facts.tool = self.calls.tool();
                }
            }
            Text::Arguments => {
                if let Some(expert) = self.calls.arguments(bytes) {
                    self.facts.tool = Some(expert);
                }
            }
        }
    }

    fn on_string(&mut self, path: &[Key], text: &[u8]) {
        if is_content(path) && !text.is_empty() {
            self.facts.content_seen = true;
        }
        match path {
            [Key::Choices, Key::Item, Key::FinishReason]
            | [Key::StopReason]
            | [Key::Delta | Key::Message, Key::StopReason] => {
                self.finished(Finish::of_finish_reason(text));
            }
            [Key::Status] | [Key::Response, Key::Status] => {
                if let Some(finish) = Finish::of_status(text) {
                    self.finished(finish);
                }
            }
            [Key::Type] => {
                self.facts.done |= is_last_type(text);
                self.facts.error |= text == b"error";
            }
            [Key::Error] => self.facts.error = true,
            [Key::Error, Key::Message | Key::Code] | [Key::Message] => {
                self.facts.context_overflow |= is_context_overflow(text);
            }
            [Key::Object] => self.facts.error |= text == b"error",
            _ => self.on_name(path, text),
        }
    }

    /// Takes the name of a called tool, where each dialect has it.
    fn on_name(&mut self, path: &[Key], text: &[u8]) {
        match path {
            [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::ToolCalls,
                Key::Item,
                Key::Function,
                Key::Name,
            ] => {
                self.call.name = Some(unescaped(text));
            }
            [Key::ContentBlock, Key::Name] | [Key::Content, Key::Item, Key::Name] => {
                let index = self.call.position;
                self.call.position += 1;
                self.called(unescaped(text), Some(index));
            }
            [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::FunctionCall,
                Key::Name,
            ]
            | [Key::OutputItem, Key::Name]
            | [Key::Output, Key::Item, Key::Name] => self.called(unescaped(text), None),
            _ => {}
        }
    }

    fn on_word(&mut self, path: &[Key], word: &[u8]) {
        match path {
            [Key::Item] => self.facts.done |= word == b"DONE",
            [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::ToolCalls,
                Key::Item,
                Key::Index,
            ] => {
                self.call.index = number(word);
            }
            [Key::Usage, count @ ..] | [Key::Message | Key::Response, Key::Usage, count @ ..] => {
                self.on_count(count, number(word));
            }
            _ => {}
        }
    }

    fn on_count(&mut self, path: &[Key], count: Option<u64>) {
        let part = match path {
            [Key::PromptTokens] => &mut self.usage.prompt,
            [Key::InputTokens] => &mut self.usage.input,
            [Key::CompletionTokens | Key::OutputTokens] => &mut self.usage.output,
            [
                Key::PromptTokensDetails | Key::InputTokensDetails,
                Key::CachedTokens,
            ] => &mut self.usage.cached,
            [Key::CacheReadInputTokens] => &mut self.usage.cache_read,
            [Key::CacheCreationInputTokens] => &mut self.usage.cache_written,
            _ => return,
        };
        if count.is_some() {
            *part = count;
            self.facts.usage = self.usage.usage();
        }
    }

    fn finished(&mut self, finish: Finish) {
        if !self.facts.finish.is_some_and(Finish::is_failure) {
            self.facts.finish = Some(finish);
        }
    }

    /// Notes a call. The same name under the same index is the same call told again, as some servers do.
    fn called(&mut self, name: String, index: Option<u64>) {
        match &self.call.told {
            None => {
                let expert = self.calls.told(&name);
                self.facts.tool = Some(expert.unwrap_or_else(|| name.clone()));
                self.call.told = Some(name);
                self.call.first = index;
            }
            Some(first) if *first != name || self.call.first != index => {
                self.calls.told(MULTI_TOOL);
                self.facts.tool = Some(MULTI_TOOL.to_owned());
            }
            Some(_) => {}
        }
    }
}

/// Strings whose whole text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// What the model says to its caller.
    Answer,
    /// The arguments of a call, JSON in a string.
    Arguments,
}

impl Text {
    const fn at(path: &[Key]) -> Option<Self> {
        match path {
            [Key::Choices, Key::Item, Key::Text]
            | [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::Content,
            ] => Some(Self::Answer),
            [
                Key::Choices,
                Key::Item,
                Key::Delta | Key::Message,
                Key::ToolCalls,
                Key::Item,
                Key::Function,
                Key::Arguments,
            ] => Some(Self::Arguments),
            _ => None,
        }
    }
}

/// Whether a string at `path` is something that the model generated.
const fn is_content(path: &[Key]) -> bool {
    match path {
        [Key::Choices, Key::Item, Key::Delta | Key::Message, field] => matches!(
            field,
            Key::Content | Key::Reasoning | Key::ReasoningContent | Key::Refusal
        ),
        [
            Key::Choices,
            Key::Item,
            Key::Delta | Key::Message,
            Key::ToolCalls,
            Key::Item,
            Key::Function,
            field,
        ]
        | [
            Key::Choices,
            Key::Item,
            Key::Delta | Key::Message,
            Key::FunctionCall,
            field,
        ]
        | [Key::OutputItem, field]
        | [Key::Output, Key::Item, field] => matches!(field, Key::Name | Key::Arguments),
        [Key::Choices, Key::Item, field]
        | [Key::Output, Key::Item, Key::Content, Key::Item, field] => matches!(field, Key::Text),
        [Key::Delta] => true,
        [Key::Delta, field] => matches!(field, Key::Text | Key::Thinking | Key::PartialJson),
        [Key::ContentBlock, field] | [Key::Content, Key::Item, field] => {
            matches!(field, Key::Text | Key::Thinking | Key::Name)
        }
        _ => false,
    }
}

/// Whether an event of this `type` is the last of its stream.
fn is_last_type(name: &[u8]) -> bool {
    matches!(
        name,
        b"message_stop" | b"response.completed" | b"response.incomplete" | b"response.failed"
    )
}

/// Whether an error's message or code says that the model's context is too short: vLLM's and OpenAI's words, and
/// Anthropic's.
fn is_context_overflow(text: &[u8]) -> bool {
    let words: [&[u8]; 3] = [
        b"context length",
        b"context_length_exceeded",
        b"prompt is too long",
    ];
    let mut words = words.iter();
    words.any(|word| memchr::memmem::find(text, word).is_some())
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// The text of a JSON string's inside; as it stands where it is cut or malformed.
pub(super) fn unescaped(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    if !raw.contains(&b'\\') {
        return text.into_owned();
    }
    serde_json::from_str(&format!("\"{text}\"")).unwrap_or_else(|_| text.into_owned())
}
