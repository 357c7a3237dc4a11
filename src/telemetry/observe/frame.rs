//! Reads the JSON of SSE frames, and passes over frames that cannot say anything new.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::facts::{Collector, ResponseFacts};
use super::json::Walker;

/// The field whose value is JSON.
const DATA: &[u8] = b"data:";

/// Collects facts from SSE frames, in pieces of any size.
#[derive(Debug)]
pub(super) struct FrameReader {
    line: Line,
    walker: Walker,
    collector: Collector,
    /// Nothing of the current frame has been read.
    at_start: bool,
}

/// Where in a line the reader is.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// After this many bytes, all of which match [`DATA`].
    Field(usize),
    /// In the value of a `data` field.
    Data,
    /// In a comment or a field that nobody asks for.
    Skip,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self {
            line: Line::Field(0),
            walker: Walker::new(),
            collector: Collector::default(),
            at_start: true,
        }
    }

    /// Reads the last bytes of a frame. A whole frame after the first content is only read when it holds a key
    /// of interest, or text that may be a call.
    pub(super) fn read_to_end(&mut self, bytes: &[u8]) {
        if self.at_start
            && self.facts().content_seen
            && is_ordinary(bytes)
            && !self.collector.needs(bytes)
        {
            return;
        }
        self.read(bytes);
    }

    /// Reads some bytes of a frame, but not its last ones.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            self.at_start = false;
            let used = match self.line {
                Line::Field(matched) => {
                    self.line = Self::after_field_byte(matched, first);
                    1
                }
                Line::Data | Line::Skip => self.line_rest(rest),
            };
            rest = &rest[used..];
        }
    }

    const fn after_field_byte(matched: usize, byte: u8) -> Line {
        match byte {
            b'\n' | b'\r' => Line::Field(0),
            _ if byte != DATA[matched] => Line::Skip,
            _ if matched + 1 == DATA.len() => Line::Data,
            _ => Line::Field(matched + 1),
        }
    }

    /// Reads up to the end of the line or of the bytes; returns how many were read.
    fn line_rest(&mut self, bytes: &[u8]) -> usize {
        let end = memchr::memchr2(b'\n', b'\r', bytes);
        let used = end.map_or(bytes.len(), |end| end + 1);
        if matches!(self.line, Line::Data) {
            let Self {
                walker, collector, ..
            } = self;
            // The line end goes along: it is white space to JSON, and separates the lines of one value.
            walker.feed(&bytes[..used], &mut |path, event| collector.on(path, event));
        }
        if end.is_some() {
            self.line = Line::Field(0);
        }
        used
    }

    /// Starts the next frame.
    pub(super) fn next_frame(&mut self) {
        self.line = Line::Field(0);
        self.walker.reset();
        self.collector.next_text();
        self.at_start = true;
    }

    /// Nothing of the current frame has been read.
    pub(super) const fn is_at_start(&self) -> bool {
        self.at_start
    }

    /// The frame being read is the extra chunk of `stream_options.include_usage`.
    pub(super) const fn is_usage_only(&self) -> bool {
        self.collector.is_usage_only()
    }

    pub(super) const fn facts(&self) -> &ResponseFacts {
        &self.collector.facts
    }
}

/// Whether a frame that comes after the first content has nothing new to say.
///
/// None of these byte sequences can stand inside a JSON string, whose quotes are escaped: a frame that holds a
/// key holds it as a key. A frame that only looks interesting costs a walk, nothing else.
fn is_ordinary(frame: &[u8]) -> bool {
    !KEYS.iter().any(|key| has_value(frame, key))
        && !MARKS.iter().any(|mark| mark.find(frame).is_some())
}

/// Keys that matter when their value is not `null`.
static KEYS: LazyLock<[Finder<'static>; 6]> = LazyLock::new(|| {
    [
        r#""usage""#,
        r#""finish_reason""#,
        r#""stop_reason""#,
        r#""name""#,
        r#""status""#,
        r#""error""#,
    ]
    .map(Finder::new)
});

/// What else ends a stream or tells how it ended.
static MARKS: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| ["[DONE]", "message_stop"].map(Finder::new));

/// Whether `key` stands in the frame with a value that is not `null`, as far as the bytes show.
fn has_value(frame: &[u8], key: &Finder<'_>) -> bool {
    key.find_iter(frame).any(|at| {
        let after = &frame[at + key.needle().len()..];
        let value = after
            .iter()
            .find(|byte| !matches!(byte, b' ' | b'\t' | b':'));
        value.is_some_and(|&byte| byte != b'n')
    })
}
