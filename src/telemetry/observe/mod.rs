//! What the gate learns from a response while its bytes pass: [`StreamObserver`] for SSE, [`BodyObserver`] for
//! a whole JSON body.
//!
//! Neither keeps the body, changes a byte of it, or builds a value from it. `facts` says at which path each
//! fact stands, `tools` finds calls in the answer's text, `json` walks the text, `frame` takes JSON out of SSE. What is done with the facts is the
//! proxy's business.

mod facts;
mod frame;
mod hide_usage;
pub(crate) mod json;
mod tools;

use bytes::Bytes;

pub use facts::{Finish, MULTI_TOOL, ResponseFacts};
pub use hide_usage::HELD_FRAME_LIMIT;

use super::sse::FrameScanner;
use facts::Collector;
use frame::FrameReader;
use hide_usage::{Filter, Kind};
use json::Walker;

/// Watches a streamed response pass.
///
/// With `hide_usage` the gate asked for the usage report on the client's behalf: the frame that has `choices`
/// empty and a usage object is taken out, and its `system_fingerprint` goes back to the frame that ended the
/// model's turn, where vLLM puts it when nobody asks for usage; every other byte passes. That frame waits for the
/// one after it, and an incomplete frame at a chunk's end for its rest, up to [`HELD_FRAME_LIMIT`]. Without
/// `hide_usage` every chunk passes at once.
#[derive(Debug)]
pub struct StreamObserver {
    scanner: FrameScanner,
    reader: FrameReader,
    filter: Option<Filter>,
    /// The model's turn ended with a frame before this one.
    ended: bool,
}

impl StreamObserver {
    /// An observer at the start of a response.
    pub fn new(hide_usage: bool) -> Self {
        Self {
            scanner: FrameScanner::new(),
            reader: FrameReader::new(),
            filter: hide_usage.then(Filter::default),
            ended: false,
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
            let kind = self.kind();
            if let Some(filter) = &mut self.filter {
                filter.frame(&chunk, frame, kind, forward);
            }
            self.next_frame();
        }
        self.reader.read(&chunk[start..]);
        if let Some(filter) = &mut self.filter {
            filter.end_of_chunk(&chunk, start, forward);
        }
        !seen && self.facts().content_seen
    }

    /// Whether the bytes so far end within a frame.
    pub const fn is_mid_frame(&self) -> bool {
        !self.reader.is_at_start()
    }

    /// Ends the response: an incomplete frame that was held back passes, unless it is the usage frame without
    /// its blank line.
    pub fn finish(&mut self, forward: &mut impl FnMut(Bytes)) {
        let kind = self.kind();
        if let Some(filter) = &mut self.filter {
            filter.frame(&Bytes::new(), 0..0, kind, forward);
            filter.finish(forward);
        }
        self.next_frame();
    }

    /// What the frame that was just read is to the filter.
    fn kind(&self) -> Kind {
        if self.reader.is_usage_only() {
            Kind::Usage
        } else if self.facts().finish.is_some() && !self.ended {
            Kind::Ending
        } else {
            Kind::Ordinary
        }
    }

    fn next_frame(&mut self) {
        self.ended = self.facts().finish.is_some();
        self.reader.next_frame();
    }

    /// What has been learnt so far.
    pub fn facts(&self) -> &ResponseFacts {
        self.reader.facts()
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
