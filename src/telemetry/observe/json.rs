//! An incremental walk over JSON text: which value stands at which path, without building anything.
//!
//! Takes the text in pieces of any size, keeps a bounded path and one bounded token, and accepts anything: bytes
//! that are no JSON give events that mean nothing, never a panic. It knows the keys that [`super::facts`] and the
//! gate's program inference ask for; every other key is [`Key::Other`].

/// How many bytes of one key, string or number are kept; the rest is skipped.
const TOKEN_LIMIT: usize = 128;

/// How many levels of nesting are told apart; what lies deeper is skipped.
const DEPTH_LIMIT: usize = 12;

/// A step of a path: an array's item, or the member of an object under a known key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// An item of an array.
    Item,
    /// A key that nobody asks for, or an object before its first key.
    Other,
    Arguments,
    CacheCreationInputTokens,
    CacheReadInputTokens,
    CachedTokens,
    Choices,
    Code,
    CompletionTokens,
    Content,
    ContentBlock,
    Delta,
    Error,
    Expert,
    FinishReason,
    Function,
    FunctionCall,
    Id,
    Index,
    InputTokens,
    InputTokensDetails,
    Message,
    Name,
    Object,
    Output,
    OutputItem,
    OutputTokens,
    Parameters,
    PartialJson,
    PromptTokens,
    PromptTokensDetails,
    Reasoning,
    ReasoningContent,
    Refusal,
    Response,
    Status,
    StopReason,
    Text,
    Thinking,
    ToolCalls,
    Type,
    Usage,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"arguments" => Self::Arguments,
            b"cache_creation_input_tokens" => Self::CacheCreationInputTokens,
            b"cache_read_input_tokens" => Self::CacheReadInputTokens,
            b"cached_tokens" => Self::CachedTokens,
            b"choices" => Self::Choices,
            b"code" => Self::Code,
            b"completion_tokens" => Self::CompletionTokens,
            b"content" => Self::Content,
            b"content_block" => Self::ContentBlock,
            b"delta" => Self::Delta,
            b"error" => Self::Error,
            b"expert" => Self::Expert,
            b"finish_reason" => Self::FinishReason,
            b"function" => Self::Function,
            b"function_call" => Self::FunctionCall,
            b"id" => Self::Id,
            b"index" => Self::Index,
            b"input_tokens" => Self::InputTokens,
            b"input_tokens_details" => Self::InputTokensDetails,
            b"item" => Self::OutputItem,
            b"message" => Self::Message,
            b"name" => Self::Name,
            b"object" => Self::Object,
            b"output" => Self::Output,
            b"output_tokens" => Self::OutputTokens,
            b"parameters" => Self::Parameters,
            b"partial_json" => Self::PartialJson,
            b"prompt_tokens" => Self::PromptTokens,
            b"prompt_tokens_details" => Self::PromptTokensDetails,
            b"reasoning" => Self::Reasoning,
            b"reasoning_content" => Self::ReasoningContent,
            b"refusal" => Self::Refusal,
            b"response" => Self::Response,
            b"status" => Self::Status,
            b"stop_reason" => Self::StopReason,
            b"text" => Self::Text,
            b"thinking" => Self::Thinking,
            b"tool_calls" => Self::ToolCalls,
            b"type" => Self::Type,
            b"usage" => Self::Usage,
            _ => Self::Other,
        }
    }
}

/// What was read at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// `{` or `[`.
    Open,
    /// `}` or `]`; the path is that of the value that closed.
    Close,
    /// The next bytes of a string, all of them, without the backslashes of its escapes. Pieces come before the
    /// [`Self::String`] that they make.
    Piece(&'a [u8]),
    /// The byte after a backslash of a string.
    Escaped(u8),
    /// A string: the text between its quotes, escapes as they stand, at most [`TOKEN_LIMIT`] bytes of it.
    String(&'a [u8]),
    /// A number, `true`, `false`, `null`, or another bare word.
    Word(&'a [u8]),
}

/// What the last byte was part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Between,
    Text,
    Escape,
    Word,
}

/// The walk, at some byte of the text.
#[derive(Clone, Debug)]
pub(crate) struct Walker {
    state: State,
    /// One entry per open container, outermost first: the key of the member that is being read.
    path: [Key; DEPTH_LIMIT],
    depth: usize,
    /// Containers open beyond [`DEPTH_LIMIT`].
    deeper: usize,
    /// In an object, and the next string is a key.
    key_next: bool,
    token: [u8; TOKEN_LIMIT],
    token_len: usize,
}

impl Walker {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Between,
            path: [Key::Other; DEPTH_LIMIT],
            depth: 0,
            deeper: 0,
            key_next: false,
            token: [0; TOKEN_LIMIT],
            token_len: 0,
        }
    }

    /// Starts over for another text.
    pub(crate) const fn reset(&mut self) {
        self.state = State::Between;
        self.depth = 0;
        self.deeper = 0;
        self.key_next = false;
    }

    /// Reads on; calls `sink` with the path of each value and what it is, in the order of the text.
    pub(crate) fn feed(&mut self, text: &[u8], sink: &mut impl FnMut(&[Key], Event<'_>)) {
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            match self.state {
                State::Between => {
                    self.between(byte, sink);
                    at += 1;
                }
                State::Text => at = self.text(text, at, sink),
                State::Escape => {
                    self.keep(&[byte]);
                    self.emit_part(Event::Escaped(byte), sink);
                    self.state = State::Text;
                    at += 1;
                }
                // A delimiter ends the word and is then read for itself.
                State::Word if is_delimiter(byte) => {
                    self.state = State::Between;
                    self.emit(Event::Word(&self.token[..self.token_len]), sink);
                }
                State::Word => {
                    self.keep(&[byte]);
                    at += 1;
                }
            }
        }
    }

    fn between(&mut self, byte: u8, sink: &mut impl FnMut(&[Key], Event<'_>)) {
        match byte {
            b'"' => self.start(State::Text),
            b'{' => self.open(Key::Other, sink),
            b'[' => self.open(Key::Item, sink),
            b'}' | b']' => self.close(sink),
            b',' => self.key_next = self.deeper == 0 && self.in_object(),
            b':' => self.key_next = false,
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => {
                self.start(State::Word);
                self.keep(&[byte]);
            }
        }
    }

    /// Reads the string at `at` up to its closing quote, a backslash, or the end of the text.
    fn text(&mut self, text: &[u8], at: usize, sink: &mut impl FnMut(&[Key], Event<'_>)) -> usize {
        let rest = &text[at..];
        let stop = memchr::memchr2(b'"', b'\\', rest);
        let piece = &rest[..stop.unwrap_or(rest.len())];
        self.keep(piece);
        if !piece.is_empty() {
            self.emit_part(Event::Piece(piece), sink);
        }
        let Some(stop) = stop else {
            return text.len();
        };
        if rest[stop] == b'\\' {
            self.keep(b"\\");
            self.state = State::Escape;
        } else {
            self.state = State::Between;
            self.string(sink);
        }
        at + stop + 1
    }

    fn string(&mut self, sink: &mut impl FnMut(&[Key], Event<'_>)) {
        if self.key_next && self.deeper == 0 {
            if let Some(top) = self.depth.checked_sub(1) {
                self.path[top] = Key::of(&self.token[..self.token_len]);
            }
        } else {
            self.emit(Event::String(&self.token[..self.token_len]), sink);
        }
    }

    fn open(&mut self, first: Key, sink: &mut impl FnMut(&[Key], Event<'_>)) {
        self.emit(Event::Open, sink);
        if self.depth == DEPTH_LIMIT {
            self.deeper += 1;
            return;
        }
        self.path[self.depth] = first;
        self.depth += 1;
        self.key_next = first != Key::Item;
    }

    fn close(&mut self, sink: &mut impl FnMut(&[Key], Event<'_>)) {
        if self.deeper > 0 {
            self.deeper -= 1;
            return;
        }
        self.depth = self.depth.saturating_sub(1);
        self.emit(Event::Close, sink);
    }

    fn emit(&self, event: Event<'_>, sink: &mut impl FnMut(&[Key], Event<'_>)) {
        if self.deeper == 0 {
            sink(&self.path[..self.depth], event);
        }
    }

    /// Emits a part of a string, unless that is a key.
    fn emit_part(&self, event: Event<'_>, sink: &mut impl FnMut(&[Key], Event<'_>)) {
        if !self.key_next {
            self.emit(event, sink);
        }
    }

    const fn start(&mut self, state: State) {
        self.state = state;
        self.token_len = 0;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = TOKEN_LIMIT - self.token_len;
        let kept = bytes.len().min(room);
        self.token[self.token_len..self.token_len + kept].copy_from_slice(&bytes[..kept]);
        self.token_len += kept;
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.path[self.depth - 1] != Key::Item
    }
}

const fn is_delimiter(byte: u8) -> bool {
    matches!(
        byte,
        b',' | b':' | b'{' | b'}' | b'[' | b']' | b'"' | b' ' | b'\n' | b'\r' | b'\t'
    )
}
