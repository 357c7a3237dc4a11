//! Makes a stream in which the gate asked for usage look as if nobody had.
//!
//! Asking changes two frames of vLLM's. The extra one with the usage is taken out. And the fingerprint of the
//! server, which otherwise stands in the frame that ends the model's turn, is moved back there from the frame
//! that was taken out; so that one frame waits for the next, which vLLM writes at once. A stream of several
//! choices, in which turns end apart, gets no fingerprint back.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memrchr};

/// How many bytes of an incomplete frame are held back while the usage frame is to be hidden. A frame that
/// outgrows it passes unfiltered.
pub const HELD_FRAME_LIMIT: usize = 1 << 20;

/// The key that vLLM moves, as it stands in a frame; within a JSON string its quotes would be escaped.
const FINGERPRINT: &[u8] = b"\"system_fingerprint\"";

/// What a complete frame is to the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It passes as it is.
    Ordinary,
    /// The model's turn ends with it.
    Ending,
    /// Nothing but usage: it is taken out.
    Usage,
}

/// Takes usage frames out of a stream, and passes the frames between them in one piece.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// The beginning of a frame, from earlier chunks.
    held: BytesMut,
    /// Some of the frame has passed, because it outgrew [`HELD_FRAME_LIMIT`]; the rest passes as it comes.
    overflowed: bool,
    /// Where, in this chunk, the bytes begin that have neither passed nor been taken out.
    pending: usize,
    /// The frame that ended the model's turn, until the next one is there.
    ending: Option<Bytes>,
}

impl Filter {
    /// A frame is complete; its last bytes are `frame` of `chunk`.
    pub(super) fn frame(
        &mut self,
        chunk: &Bytes,
        frame: Range<usize>,
        kind: Kind,
        forward: &mut impl FnMut(Bytes),
    ) {
        if std::mem::take(&mut self.overflowed) {
            return;
        }
        if kind == Kind::Ordinary {
            self.release(None, forward);
            if !self.held.is_empty() {
                forward(self.held.split().freeze());
            }
            return;
        }
        pass(chunk, self.pending..frame.start, forward);
        self.pending = frame.end;
        let whole = self.whole(chunk, frame);
        if kind == Kind::Usage {
            self.release(Some(&whole), forward);
        } else {
            self.release(None, forward);
            self.ending = Some(whole);
        }
    }

    /// The chunk is over; an incomplete frame begins at `open`.
    pub(super) fn end_of_chunk(
        &mut self,
        chunk: &Bytes,
        open: usize,
        forward: &mut impl FnMut(Bytes),
    ) {
        pass(chunk, self.pending..open, forward);
        self.pending = 0;
        let open = open..chunk.len();
        if !self.overflowed && self.held.len() + open.len() > HELD_FRAME_LIMIT {
            self.overflowed = true;
            self.release(None, forward);
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

    /// Nothing follows: what still waits passes.
    pub(super) fn finish(&mut self, forward: &mut impl FnMut(Bytes)) {
        self.release(None, forward);
    }

    /// The frame from its beginning; copies only what came with earlier chunks.
    fn whole(&mut self, chunk: &Bytes, frame: Range<usize>) -> Bytes {
        if self.held.is_empty() {
            return chunk.slice(frame);
        }
        self.held.extend_from_slice(&chunk[frame]);
        self.held.split().freeze()
    }

    /// Passes the ending that waits, with the fingerprint of `usage` where it has none.
    fn release(&mut self, usage: Option<&Bytes>, forward: &mut impl FnMut(Bytes)) {
        let Some(ending) = self.ending.take() else {
            return;
        };
        let stamp = usage.and_then(fingerprint);
        match (stamp, memrchr(b'}', &ending)) {
            (Some(stamp), Some(brace)) if fingerprint(&ending).is_none() => {
                forward(ending.slice(..brace));
                forward(Bytes::from_static(b","));
                forward(stamp);
                forward(ending.slice(brace..));
            }
            _ => forward(ending),
        }
    }
}

/// The member with the server's fingerprint, key and string, as it stands in a frame.
fn fingerprint(frame: &Bytes) -> Option<Bytes> {
    let start = memchr::memmem::find(frame, FINGERPRINT)?;
    let value = start + FINGERPRINT.len() + memchr(b'"', &frame[start + FINGERPRINT.len()..])?;
    let between = &frame[start + FINGERPRINT.len()..value];
    if !between.iter().all(|byte| matches!(byte, b':' | b' ')) {
        return None;
    }
    let end = value + 1 + memchr(b'"', &frame[value + 1..])?;
    Some(frame.slice(start..=end))
}

fn pass(chunk: &Bytes, range: Range<usize>, forward: &mut impl FnMut(Bytes)) {
    if !range.is_empty() {
        forward(chunk.slice(range));
    }
}
