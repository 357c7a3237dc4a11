//! What a reply will look like in the next request: [`ReplyHasher`] takes a response's bytes as they pass and
//! gives a [`ReplyDigest`].
//!
//! It keeps no text: two running hashes, a short path and a few counters, about 1.5 KiB for a response of any
//! length. Only the first choice counts, which is the one a client goes on from.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use super::conversation::{answer, fold};
use super::text::Decoder;
use crate::telemetry::observe::json::{Event, Key, Walker};

/// A user simulator of tau2 says one of these when its program is over.
pub const END_MARKS: [&str; 3] = ["###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"];

/// A reply, as far as it matters for whose step the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyDigest {
    /// The ids of its tool calls, else its text: what the next request is recognised by.
    pub(super) answer: u64,
    /// Its text, if it has one and calls no tool: what another program may hear next.
    pub(super) said: Option<u64>,
    /// It holds one of [`END_MARKS`]: the program is over.
    pub(super) ends: bool,
}

impl ReplyDigest {
    /// Whether the reply calls a tool.
    pub(super) const fn calls(&self) -> bool {
        self.said.is_none()
    }

    /// Whether the reply says that its program is over.
    pub const fn ends(&self) -> bool {
        self.ends
    }
}

/// Hashes the reply out of a response, streamed or whole, while its bytes pass.
#[derive(Clone, Debug)]
pub struct ReplyHasher {
    /// Where in a line of server-sent events the reader is; `None` for a whole JSON body.
    line: Option<Line>,
    walker: Walker,
    message: Message,
}

const DATA: &[u8] = b"data:";

#[derive(Clone, Copy, Debug)]
enum Line {
    /// After so many bytes, all of which match [`DATA`]; `true` if the line before ended in `\r`.
    Field(usize, bool),
    /// In the value of a `data` field.
    Data,
    /// In anything else.
    Skip,
}

impl ReplyHasher {
    /// For a response of server-sent events.
    pub fn streamed() -> Self {
        Self::new(Some(Line::Field(0, false)))
    }

    /// For a response that is one JSON body.
    pub fn whole() -> Self {
        Self::new(None)
    }

    fn new(line: Option<Line>) -> Self {
        Self {
            line,
            walker: Walker::new(),
            message: Message::default(),
        }
    }

    /// Reads the next bytes of the response's body.
    pub fn push(&mut self, bytes: &[u8]) {
        let Some(mut line) = self.line else {
            return self.feed(bytes);
        };
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let used = match line {
                Line::Field(matched, after_cr) => {
                    line = self.field(matched, after_cr, byte);
                    1
                }
                Line::Data | Line::Skip => {
                    let end = memchr::memchr2(b'\n', b'\r', rest);
                    let value = &rest[..end.unwrap_or(rest.len())];
                    if matches!(line, Line::Data) {
                        self.feed(value);
                    }
                    if let Some(end) = end {
                        // White space to JSON; it ends a word that the line ends with.
                        self.feed(b"\n");
                        line = Line::Field(0, rest[end] == b'\r');
                        end + 1
                    } else {
                        rest.len()
                    }
                }
            };
            rest = &rest[used..];
        }
        self.line = Some(line);
    }

    fn field(&mut self, matched: usize, after_cr: bool, byte: u8) -> Line {
        match byte {
            // The other half of the line end before.
            b'\n' if after_cr && matched == 0 => Line::Field(0, false),
            b'\n' | b'\r' => {
                if matched == 0 {
                    // A blank line: the next frame is another JSON text.
                    self.walker.reset();
                }
                Line::Field(0, byte == b'\r')
            }
            _ if byte != DATA[matched] => Line::Skip,
            _ if matched + 1 == DATA.len() => Line::Data,
            _ => Line::Field(matched + 1, false),
        }
    }

    fn feed(&mut self, text: &[u8]) {
        let message = &mut self.message;
        self.walker
            .feed(text, &mut |path, event| message.on(path, event));
    }

    /// Whether the response's own end has passed: `[DONE]`, or the last brace of a whole body.
    pub const fn is_done(&self) -> bool {
        self.message.done || (self.line.is_none() && self.message.closed)
    }

    /// The reply so far; `None` if there was no message, as in an error.
    pub fn digest(&self) -> Option<ReplyDigest> {
        let message = &self.message;
        message.seen.then(|| {
            let text = message.text.digest();
            ReplyDigest {
                answer: answer(message.ids, text),
                said: message.ids.is_none().then_some(text),
                ends: message.marks.met,
            }
        })
    }
}

/// The first choice's message.
#[derive(Clone, Default)]
struct Message {
    /// Index of the choice being read. It stands before the message in every server's JSON.
    choice: u64,
    seen: bool,
    /// Of the string being read: the text or an id.
    decoder: Decoder,
    text: Xxh3,
    marks: Marks,
    ids: Option<u64>,
    /// The id being read, and the one before, which some servers repeat with every piece of the call.
    id: Xxh3,
    id_len: usize,
    last_id: Option<u64>,
    done: bool,
    closed: bool,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("seen", &self.seen)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl Message {
    fn on(&mut self, path: &[Key], event: Event<'_>) {
        match path {
            [] => self.closed |= event == Event::Close,
            [Key::Item] => self.done |= event == Event::Word(b"DONE"),
            [Key::Choices, Key::Item, rest @ ..] => self.on_choice(rest, event),
            _ => {}
        }
    }

    fn on_choice(&mut self, path: &[Key], event: Event<'_>) {
        match (path, event) {
            ([], Event::Open) => self.choice = 0,
            ([Key::Index], Event::Word(word)) => {
                let index = std::str::from_utf8(word).ok().and_then(|w| w.parse().ok());
                self.choice = index.unwrap_or(0);
            }
            _ if self.choice != 0 => {}
            ([Key::Message | Key::Delta, rest @ ..], event) => self.on_message(rest, event),
            _ => {}
        }
    }

    fn on_message(&mut self, path: &[Key], event: Event<'_>) {
        match path {
            [] => self.seen |= event == Event::Open,
            [Key::Content] => {
                let (text, marks) = (&mut self.text, &mut self.marks);
                decode(&mut self.decoder, event, &mut |run| {
                    text.update(run);
                    marks.read(run);
                });
            }
            [Key::ToolCalls, Key::Item, Key::Id] => {
                let (id, len) = (&mut self.id, &mut self.id_len);
                decode(&mut self.decoder, event, &mut |run| {
                    id.update(run);
                    *len += run.len();
                });
                if matches!(event, Event::String(_)) {
                    self.end_id();
                }
            }
            _ => {}
        }
    }

    fn end_id(&mut self) {
        let id = self.id.digest();
        self.id.reset();
        if std::mem::take(&mut self.id_len) > 0 && self.last_id != Some(id) {
            self.last_id = Some(id);
            self.ids = Some(fold(self.ids.unwrap_or(0), id));
        }
    }
}

/// Hands what `event` tells of a string's text to `sink`, escapes decoded.
fn decode(decoder: &mut Decoder, event: Event<'_>, sink: &mut impl FnMut(&[u8])) {
    match event {
        Event::Piece(piece) => _ = decoder.read(piece, sink),
        Event::Escaped(byte) => _ = decoder.read(&[b'\\', byte], sink),
        Event::String(_) => {
            decoder.read(b"\"", sink);
            *decoder = Decoder::default();
        }
        Event::Open | Event::Close | Event::Word(_) => {}
    }
}

/// Looks for [`END_MARKS`] in a text that comes in pieces.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// How many bytes of each mark the text ends with.
    matched: [usize; END_MARKS.len()],
    met: bool,
}

impl Marks {
    fn read(&mut self, text: &[u8]) {
        let mut at = 0;
        while at < text.len() {
            // Between marks, only a `#` is of interest.
            if self.matched == [0; END_MARKS.len()] {
                let Some(found) = memchr::memchr(b'#', &text[at..]) else {
                    return;
                };
                at += found;
            }
            for (mark, matched) in END_MARKS.iter().zip(&mut self.matched) {
                *matched = after(mark.as_bytes(), *matched, text[at]);
                self.met |= *matched == mark.len();
            }
            at += 1;
        }
    }
}

/// How many bytes of `mark` the text ends with after another byte. Marks begin with `###` and hold no other `#`
/// but their last three.
fn after(mark: &[u8], matched: usize, byte: u8) -> usize {
    match mark.get(matched) {
        Some(&expected) if expected == byte => matched + 1,
        _ if byte != b'#' => 0,
        // A fourth `#` in a row: the last three still are a beginning; so are those that end a whole mark.
        _ if matched == 3 || matched == mark.len() => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
