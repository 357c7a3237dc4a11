//! An incremental walk over the JSON of a chat completion: decoded text at its path, in pieces of any size.
//!
//! It knows the few keys that lead to a reply's message. What it is fed may be no JSON at all: it then reports
//! things that mean nothing, keeps its few bytes, and does not panic.

use super::text::Decoder;

/// How many levels of nesting are told apart; what lies deeper is passed over.
const DEPTH: usize = 8;

/// How much of a key or of a bare word is kept: more than the longest that is asked for.
const TOKEN: usize = 16;

/// A step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// An element of an array.
    Item,
    /// Any key that is not listed.
    Other,
    Choices,
    Content,
    Id,
    Index,
    /// `message`, or `delta` in a stream.
    Message,
    ToolCalls,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"choices" => Self::Choices,
            b"content" => Self::Content,
            b"id" => Self::Id,
            b"index" => Self::Index,
            b"message" | b"delta" => Self::Message,
            b"tool_calls" => Self::ToolCalls,
            _ => Self::Other,
        }
    }
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// `{` or `[`.
    Open,
    /// `}` or `]`.
    Close,
    /// Some of a string's text.
    Text(&'a [u8]),
    /// The string is over.
    TextEnd,
    /// A number or another bare word, its first bytes.
    Word(&'a [u8]),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Between,
    Key,
    Text,
    Word,
}

/// The walk, at some byte of the text.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    state: State,
    decoder: Decoder,
    /// One entry per open container, outermost first: where in it the walk is.
    path: [Key; DEPTH],
    depth: usize,
    /// Containers open beyond [`DEPTH`].
    deeper: usize,
    /// The next string is a key.
    key_next: bool,
    token: [u8; TOKEN],
    token_len: usize,
}

impl Walk {
    pub(super) fn new() -> Self {
        Self {
            state: State::Between,
            decoder: Decoder::default(),
            path: [Key::Other; DEPTH],
            depth: 0,
            deeper: 0,
            key_next: false,
            token: [0; TOKEN],
            token_len: 0,
        }
    }

    /// Reads on, and tells `sink` what stands where, in the order of the text.
    pub(super) fn feed(&mut self, text: &[u8], sink: &mut impl FnMut(&[Key], Piece<'_>)) {
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            match self.state {
                State::Between => {
                    self.between(byte, sink);
                    at += 1;
                }
                State::Key => at += self.key(&text[at..]),
                State::Text => at += self.text(&text[at..], sink),
                // A delimiter ends the word and is then read for itself.
                State::Word if is_delimiter(byte) => {
                    self.state = State::Between;
                    self.emit(Piece::Word(&self.token[..self.token_len]), sink);
                }
                State::Word => {
                    keep(&mut self.token, &mut self.token_len, &[byte]);
                    at += 1;
                }
            }
        }
    }

    fn between(&mut self, byte: u8, sink: &mut impl FnMut(&[Key], Piece<'_>)) {
        match byte {
            b'"' => {
                self.decoder = Decoder::default();
                self.token_len = 0;
                let is_key = self.key_next && self.deeper == 0;
                self.state = if is_key { State::Key } else { State::Text };
            }
            b'{' => self.open(Key::Other, sink),
            b'[' => self.open(Key::Item, sink),
            b'}' | b']' => self.close(sink),
            b',' => self.key_next = self.deeper == 0 && self.in_object(),
            b':' => self.key_next = false,
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => {
                self.state = State::Word;
                self.token = [0; TOKEN];
                self.token[0] = byte;
                self.token_len = 1;
            }
        }
    }

    /// Reads a key on; returns how many bytes.
    fn key(&mut self, rest: &[u8]) -> usize {
        let (token, len) = (&mut self.token, &mut self.token_len);
        let end = self.decoder.read(rest, &mut |run| keep(token, len, run));
        let Some(end) = end else { return rest.len() };
        self.state = State::Between;
        if let Some(top) = self.depth.checked_sub(1) {
            self.path[top] = Key::of(&self.token[..self.token_len]);
        }
        end
    }

    /// Reads a text on; returns how many bytes.
    fn text(&mut self, rest: &[u8], sink: &mut impl FnMut(&[Key], Piece<'_>)) -> usize {
        let path = &self.path[..self.depth];
        let is_seen = self.deeper == 0;
        let end = self.decoder.read(rest, &mut |run| {
            if is_seen {
                sink(path, Piece::Text(run));
            }
        });
        let Some(end) = end else { return rest.len() };
        self.state = State::Between;
        self.emit(Piece::TextEnd, sink);
        end
    }

    fn open(&mut self, first: Key, sink: &mut impl FnMut(&[Key], Piece<'_>)) {
        self.emit(Piece::Open, sink);
        if self.depth == DEPTH {
            self.deeper += 1;
            return;
        }
        self.path[self.depth] = first;
        self.depth += 1;
        self.key_next = first != Key::Item;
    }

    fn close(&mut self, sink: &mut impl FnMut(&[Key], Piece<'_>)) {
        if self.deeper > 0 {
            self.deeper -= 1;
            return;
        }
        self.depth = self.depth.saturating_sub(1);
        self.emit(Piece::Close, sink);
    }

    fn emit(&self, piece: Piece<'_>, sink: &mut impl FnMut(&[Key], Piece<'_>)) {
        if self.deeper == 0 {
            sink(&self.path[..self.depth], piece);
        }
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.path[self.depth - 1] != Key::Item
    }
}

/// Appends as much of `run` as there is room for. A token that fills its room is none of those asked for.
fn keep(token: &mut [u8; TOKEN], len: &mut usize, run: &[u8]) {
    let kept = run.len().min(TOKEN - *len);
    token[*len..*len + kept].copy_from_slice(&run[..kept]);
    *len += kept;
}

const fn is_delimiter(byte: u8) -> bool {
    matches!(
        byte,
        b',' | b':' | b'{' | b'}' | b'[' | b']' | b'"' | b' ' | b'\n' | b'\r' | b'\t'
    )
}
