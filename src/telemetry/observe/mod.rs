//! What the gate learns from a response while its bytes pass: [`StreamObserver`] for SSE, [`BodyObserver`] for
//! a whole JSON body.
//!
//! Neither keeps the body, changes a byte of it, or builds a value from it. `facts` says at which path each
//! fact stands, `tools` finds calls in the answer's text, `json` walks the text, `frame` takes JSON out of SSE. What is done with the facts is the
//! proxy's business.

mod facts;
mod frame;
mod json;
mod tools;

use std::ops::Range;

use bytes::{Bytes, BytesMut};

pub use facts::{Finish, MULTI_TOOL, ResponseFacts};

use super::sse::FrameScanner;
use facts::Collector;
use frame::FrameReader;
use json::Walker;

/// How many bytes of an incomplete frame are held back while the usage frame is to be hidden. A frame that
/// outgrows it passes unfiltered.
pub const HELD_FRAME_LIMIT: usize = 1 << 20;

/// Watches a streamed response pass.
///
/// With `hide_usage` the gate asked for the usage report on the client's behalf: the frame that has `choices`
/// empty and a usage object is taken out, every other byte passes. An incomplete frame at a chunk's end waits
/// for its rest, up to [`HELD_FRAME_LIMIT`]. Without `hide_usage` every chunk passes at once.
#[derive(Debug)]
pub struct StreamObserver {
    scanner: FrameScanner,
    reader: FrameReader,
    filter: Option<Filter>,
}

impl StreamObserver {
    /// An observer at the start of a response.
    pub fn new(hide_usage: bool) -> Self {
        Self {
            scanner: FrameScanner::new(),
            reader: FrameReader::new(),
            filter: hide_usage.then(Filter::default),
        }
    }

    /// Takes one chunk and calls `forward` with the bytes to pass on, in order: slices of the chunk, except for
    /// the beginning of a frame that was held back. Returns whether the first content came with this chunk.
    ///
    /// Allocates nothing when frames lie inside one chunk.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a chunk is handed over, not lent"
    )]
    pub fn push(&mut self, chunk: Bytes, forward: &mut impl FnMut(Bytes)) -> bool {
        let seen = self.facts().content_seen;
        if self.filter.is_none() {
            forward(chunk.clone());
        }
        let mut start = 0;
        while let Some(len) = self.scanner.next_end(&chunk[start..]) {
            let frame = start..start + len;
            start = frame.end;
            self.reader.read_to_end(&chunk[frame.clone()]);
            if let Some(filter) = &mut self.filter {
                filter.frame(&chunk, frame, self.reader.is_usage_only(), forward);
            }
            self.reader.next_frame();
        }
        self.reader.read(&chunk[start..]);
        if let Some(filter) = &mut self.filter {
            filter.end_of_chunk(&chunk, start, forward);
        }
        !seen && self.facts().content_seen
    }

    /// Ends the response: an incomplete frame that was held back passes, unless it is the usage frame without
    /// its blank line.
    pub fn finish(&mut self, forward: &mut impl FnMut(Bytes)) {
        if let Some(filter) = &mut self.filter {
            filter.frame(&Bytes::new(), 0..0, self.reader.is_usage_only(), forward);
        }
        self.reader.next_frame();
    }

    /// What has been learnt so far.
    pub fn facts(&self) -> &ResponseFacts {
        self.reader.facts()
    }
}

/// Takes usage frames out of a stream, and passes the frames between them in one piece.
#[derive(Debug, Default)]
struct Filter {
    /// The beginning of a frame, from earlier chunks.
    held: BytesMut,
    /// Some of the frame has passed, because it outgrew [`HELD_FRAME_LIMIT`]; the rest passes as it comes.
    overflowed: bool,
    /// Where, in this chunk, the bytes begin that have neither passed nor been taken out.
    pending: usize,
}

impl Filter {
    /// A frame is complete; its last bytes are `frame` of `chunk`.
    fn frame(
        &mut self,
        chunk: &Bytes,
        frame: Range<usize>,
        hide: bool,
        forward: &mut impl FnMut(Bytes),
    ) {
        if hide && !self.overflowed {
            pass(chunk, self.pending..frame.start, forward);
            self.pending = frame.end;
            self.held.clear();
        } else if !self.held.is_empty() {
            forward(self.held.split().freeze());
        }
        self.overflowed = false;
    }

    /// The chunk is over; an incomplete frame begins at `open`.
    fn end_of_chunk(&mut self, chunk: &Bytes, open: usize, forward: &mut impl FnMut(Bytes)) {
        pass(chunk, self.pending..open, forward);
        self.pending = 0;
        let open = open..chunk.len();
        if !self.overflowed && self.held.len() + open.len() > HELD_FRAME_LIMIT {
            self.overflowed = true;
            if !self.held.is_empty() {
                forward(self.held.split().freeze());
            }
        }
        if self.overflowed {
            pass(chunk, open, forward);
        } else {
            self.held.extend_from_slice(&chunk[open]);
        }
    }
}

fn pass(chunk: &Bytes, range: Range<usize>, forward: &mut impl FnMut(Bytes)) {
    if !range.is_empty() {
        forward(chunk.slice(range));
    }
}

/// Watches a whole JSON response pass, in pieces of any size. Needs the same few hundred bytes for any body.
#[derive(Debug)]
pub struct BodyObserver {
    walker: Walker,
    collector: Collector,
}

impl BodyObserver {
    /// An observer at the start of a body.
    pub fn new() -> Self {
        Self {
            walker: Walker::new(),
            collector: Collector::default(),
        }
    }

    /// Reads the next piece of the body.
    pub fn push(&mut self, chunk: &[u8]) {
        let Self { walker, collector } = self;
        walker.feed(chunk, &mut |path, event| collector.on(path, event));
        collector.facts.done |= collector.is_closed();
    }

    /// What has been learnt so far.
    pub const fn facts(&self) -> &ResponseFacts {
        &self.collector.facts
    }
}

impl Default for BodyObserver {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
