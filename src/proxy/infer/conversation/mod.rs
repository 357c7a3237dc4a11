//! From the bytes of `messages` to a [`Conversation`]: one digest per prefix, no text kept.
//!
//! Two messages that mean the same digest the same: the order of keys, white space, escapes and the spelling of
//! a number do not count; a content that is missing, null or empty is the empty text; a text in a list of one
//! part is that text. What a client may change between two steps without changing the conversation, such as a
//! part's `cache_control` or a `name`, is not looked at. An object digests as the sum of its members, so
//! that their order falls out.

use xxhash_rust::xxh3::xxh3_64;

use super::super::scan;
use super::text::Decoder;

/// The most messages of a request that is looked at; a longer one belongs to no program. Bounds the memory of
/// a [`Conversation`] to 1.5 MiB.
pub const MAX_MESSAGES: usize = 65_536;

/// Stands between two parts of a content; no byte of a text.
const NEXT_PART: u8 = 0xff;

/// What a value is goes into its digest, so that `"1"` and `1` differ.
mod kind {
    pub(super) const STRING: u64 = 1;
    pub(super) const INTEGER: u64 = 2;
    pub(super) const NUMBER: u64 = 3;
    pub(super) const WORD: u64 = 4;
    pub(super) const ARRAY: u64 = 5;
    pub(super) const OBJECT: u64 = 6;
    pub(super) const MALFORMED: u64 = 7;
}

/// A digest of two, in order.
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let mut both = [0; 16];
    both[..8].copy_from_slice(&a.to_le_bytes());
    both[8..].copy_from_slice(&b.to_le_bytes());
    xxh3_64(&both)
}

/// Half as long a digest.
const fn folded(digest: u64) -> u32 {
    let [a, b, c, d, ..] = digest.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Everything about a request that tells its program: digests of its messages, of its model and of its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Digest of the model's name.
    pub(super) model: u64,
    /// Digest of the request's seed; 0 without one.
    pub(super) seed: u32,
    /// One per message, never empty.
    pub(super) links: Vec<Link>,
    /// The last message, if it is the user's: digest of its text.
    pub(super) heard: Option<u64>,
}

/// One message, as a link of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Digest of the messages up to and including this one.
    pub(super) chain: u64,
    /// What this message would be as a reply, if it is the assistant's; see [`answer`].
    pub(super) answer: Option<u64>,
}

/// A reply as it is recognised in the next request: by the ids of its tool calls, else by its text.
pub(super) const fn answer(ids: Option<u64>, text: u64) -> u64 {
    match ids {
        Some(ids) => ids,
        None => text,
    }
}

impl Conversation {
    /// Reads the value of `messages`; `None` for anything but a non-empty array of objects, and beyond
    /// [`MAX_MESSAGES`].
    pub fn read(model: &str, messages: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(messages);
        let mut chain = 0;
        let mut heard = None;
        let mut links = Vec::new();
        reader.items(|reader| {
            let message = reader.message()?;
            chain = fold(chain, message.digest);
            heard = message.is_user.then_some(message.text);
            let answer = message.is_assistant.then_some(message.answer);
            links.push(Link { chain, answer });
            (links.len() <= MAX_MESSAGES).then_some(())
        })?;
        if links.is_empty() {
            return None;
        }
        Some(Self {
            model: xxh3_64(model.as_bytes()),
            seed: 0,
            links,
            heard,
        })
    }

    /// The same with the request's `seed`, as it stands in the body.
    #[must_use]
    pub fn with_seed(mut self, seed: Option<&[u8]>) -> Self {
        let told = seed.filter(|seed| *seed != b"null");
        self.seed = told.map_or(0, |seed| folded(xxh3_64(seed)).max(1));
        self
    }

    /// Digest of all messages.
    pub(super) fn whole(&self) -> u64 {
        self.links.last().map_or(0, |link| link.chain)
    }
}

#[derive(Debug)]
struct Message {
    digest: u64,
    text: u64,
    answer: u64,
    is_assistant: bool,
    is_user: bool,
}

/// The digest of a message's calls, and of their ids alone.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    digest: u64,
    ids: Option<u64>,
}

/// Walks JSON text and digests on the way. `None` from any method: the text is malformed.
#[derive(Debug)]
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// The decoded string being read, if it holds escapes.
    scratch: Vec<u8>,
}

impl<'a> Reader<'a> {
    const fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            scratch: Vec::new(),
        }
    }

    fn message(&mut self) -> Option<Message> {
        let none = xxh3_64(b"");
        let (mut role, mut text, mut call_id) = (none, none, none);
        let mut calls = Calls::default();
        self.members(|reader, key| {
            match key {
                b"role" => role = reader.string(xxh3_64)?,
                b"content" => text = reader.content()?,
                b"tool_calls" => calls = reader.calls()?,
                b"tool_call_id" => call_id = reader.nullable()?,
                _ => reader.skip()?,
            }
            Some(())
        })?;
        let parts = [role, text, calls.digest, call_id];
        Some(Message {
            digest: parts.into_iter().fold(0, fold),
            text,
            answer: answer(calls.ids, text),
            is_assistant: role == xxh3_64(b"assistant"),
            is_user: role == xxh3_64(b"user"),
        })
    }

    /// A text, null, or a list of parts.
    fn content(&mut self) -> Option<u64> {
        if self.peek()? != b'[' {
            return self.nullable();
        }
        let mut parts: Vec<u8> = Vec::new();
        let mut first = true;
        self.items(|reader| {
            if !std::mem::replace(&mut first, false) {
                parts.push(NEXT_PART);
            }
            reader.part(&mut parts)
        })?;
        Some(xxh3_64(&parts))
    }

    /// A part with a text counts by its text alone; any other by all that it is.
    fn part(&mut self, parts: &mut Vec<u8>) -> Option<()> {
        let start = self.at;
        let mut is_text = false;
        if self.peek()? == b'{' {
            self.members(|reader, key| {
                if key == b"text" && reader.peek()? == b'"' {
                    is_text = true;
                    reader.string(|text| parts.extend_from_slice(text))
                } else {
                    reader.skip()
                }
            })?;
        }
        if !is_text {
            self.at = start;
            let digest = self.value(0)?;
            parts.push(NEXT_PART);
            parts.extend_from_slice(&digest.to_le_bytes());
        }
        Some(())
    }

    fn calls(&mut self) -> Option<Calls> {
        let mut calls = Calls::default();
        if self.peek()? != b'[' {
            self.skip()?;
            return Some(calls);
        }
        self.items(|reader| {
            let (id, call) = reader.call()?;
            calls.digest = fold(calls.digest, call);
            calls.ids = Some(fold(calls.ids.unwrap_or(0), id));
            Some(())
        })?;
        Some(calls)
    }

    /// One call: the digests of its id and of all of it.
    fn call(&mut self) -> Option<(u64, u64)> {
        let (mut id, mut function) = (0, 0);
        self.members(|reader, key| {
            match key {
                b"id" => id = reader.nullable()?,
                b"function" => function = reader.function()?,
                _ => reader.skip()?,
            }
            Some(())
        })?;
        Some((id, fold(id, function)))
    }

    fn function(&mut self) -> Option<u64> {
        let (mut name, mut arguments) = (0, 0);
        self.members(|reader, key| {
            match key {
                b"name" => name = reader.nullable()?,
                b"arguments" if reader.peek()? == b'"' => arguments = reader.string(parsed)?,
                b"arguments" => arguments = reader.value(0)?,
                _ => reader.skip()?,
            }
            Some(())
        })?;
        Some(fold(name, arguments))
    }

    /// The text of a string; of anything else, the empty text.
    fn nullable(&mut self) -> Option<u64> {
        if self.peek()? == b'"' {
            return self.string(xxh3_64);
        }
        self.skip()?;
        Some(xxh3_64(b""))
    }

    /// Any value, by what it means.
    fn value(&mut self, depth: u32) -> Option<u64> {
        if depth == scan::MAX_DEPTH {
            return None;
        }
        match self.peek()? {
            b'"' => self.string(|text| fold(kind::STRING, xxh3_64(text))),
            b'[' => {
                let mut digest = kind::ARRAY;
                self.items(|reader| {
                    digest = fold(digest, reader.value(depth + 1)?);
                    Some(())
                })?;
                Some(digest)
            }
            b'{' => {
                let mut sum = 0_u64;
                self.members(|reader, key| {
                    let member = fold(unescaped(key), reader.value(depth + 1)?);
                    sum = sum.wrapping_add(member);
                    Some(())
                })?;
                Some(fold(kind::OBJECT, sum))
            }
            _ => {
                let start = self.at;
                self.skip()?;
                Some(word(&self.text[start..self.at]))
            }
        }
    }

    /// Calls `each` with every key, as written, at its value; `each` reads the value. As in [`scan`], a key of
    /// the message itself that is spelt with escapes is not recognised: no serialiser does that to ASCII.
    fn members(&mut self, mut each: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.listed(b'{', b'}', |reader| {
            if reader.peek()? != b'"' {
                return None;
            }
            let end = scan::skip_string(reader.text, reader.at).ok()?;
            let key = &reader.text[reader.at + 1..end - 1];
            reader.at = end;
            reader.take(b':')?;
            reader.peek()?;
            each(reader, key)
        })
    }

    /// Calls `each` at every element of an array; `each` reads it.
    fn items(&mut self, each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.listed(b'[', b']', each)
    }

    fn listed(
        &mut self,
        open: u8,
        close: u8,
        mut each: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.take(open)?;
        if self.peek()? == close {
            return self.take(close);
        }
        loop {
            self.peek()?;
            each(self)?;
            if self.peek()? == close {
                return self.take(close);
            }
            self.take(b',')?;
        }
    }

    /// Reads a string and calls `with` on its text.
    fn string<T>(&mut self, with: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.take(b'"')?;
        let rest = &self.text[self.at..];
        let stop = memchr::memchr2(b'"', b'\\', rest)?;
        if rest[stop] == b'"' {
            self.at += stop + 1;
            return Some(with(&rest[..stop]));
        }
        let scratch = &mut self.scratch;
        scratch.clear();
        self.at += Decoder::default().read(rest, &mut |run| scratch.extend_from_slice(run))?;
        Some(with(scratch))
    }

    fn skip(&mut self) -> Option<()> {
        self.at = scan::skip_value(self.text, self.at).ok()?;
        Some(())
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Steps over white space to the next byte.
    fn peek(&mut self) -> Option<u8> {
        self.at = scan::skip_space(self.text, self.at);
        self.text.get(self.at).copied()
    }
}

/// The arguments of a call are JSON inside a string; what is none counts as it stands.
fn parsed(text: &[u8]) -> u64 {
    let mut reader = Reader::new(text);
    let value = reader.value(0);
    match value {
        Some(digest) if reader.peek().is_none() => digest,
        _ => fold(kind::MALFORMED, xxh3_64(text)),
    }
}

/// Digest of a key, as written between its quotes.
fn unescaped(raw: &[u8]) -> u64 {
    if memchr::memchr(b'\\', raw).is_none() {
        return xxh3_64(raw);
    }
    let mut text = Vec::with_capacity(raw.len());
    let open = Decoder::default().read(raw, &mut |run| text.extend_from_slice(run));
    debug_assert!(open.is_none(), "a key holds no bare quote");
    xxh3_64(&text)
}

/// A number by its value, any other word as it stands.
fn word(word: &[u8]) -> u64 {
    let text = std::str::from_utf8(word).unwrap_or("");
    if let Ok(integer) = text.parse::<i64>() {
        return fold(kind::INTEGER, integer.cast_unsigned());
    }
    match text.parse::<f64>() {
        Ok(number)
            if word
                .first()
                .is_some_and(|&b| b == b'-' || b.is_ascii_digit()) =>
        {
            match whole(number) {
                Some(integer) => fold(kind::INTEGER, integer.cast_unsigned()),
                None => fold(kind::NUMBER, number.to_bits()),
            }
        }
        _ => fold(kind::WORD, xxh3_64(word)),
    }
}

/// The integer that a number spelt as a fraction or with an exponent equals.
#[expect(
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    reason = "within 2^53 the cast is exact for a number without fraction, and exactness is the question"
)]
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.abs() <= EXACT && number.trunc() == number).then_some(number as i64)
}

#[cfg(test)]
mod tests;
