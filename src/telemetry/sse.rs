//! Where one server-sent event ends and the next begins: bytes in, offsets out.
//!
//! Knows nothing of what a frame says; [`super::observe`] reads that. The gate and the load generator share it.

/// Finds the ends of SSE frames in a body that comes in pieces.
///
/// A frame ends with its blank line, whatever the line ends are: `\n\n`, `\r\n\r\n`, `\r\r`, or a mixture. Any
/// split of the same bytes yields the same frames, and no frame costs an allocation.
///
/// After a line that ended in `\r\n` or `\n`, a blank line's `\r` may be half of a `\r\n`: that frame is
/// reported when the next byte has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameScanner {
    state: State,
}

/// What the bytes of the current frame, so far, end with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing yet.
    #[default]
    Fresh,
    /// Nothing yet, and the frame before ended in a lone `\r`: a `\n` would still belong to that line end.
    FreshAfterCr,
    /// Inside a line.
    Line,
    /// A finished line.
    LineEnd,
    /// A line that ended in `\r`, the `\n` of which may follow.
    LineEndCr,
    /// A blank line that ended in `\r`, the `\n` of which may follow.
    BlankCr,
}

impl FrameScanner {
    /// A scanner at the start of a body.
    pub const fn new() -> Self {
        Self {
            state: State::Fresh,
        }
    }

    /// The offset just past the end of the first frame that ends in `bytes`, or `None` if all of `bytes` was
    /// scanned without one.
    ///
    /// After `Some(end)`, call again with `&bytes[end..]`; after `None`, with the bytes that come next. An
    /// `end` of 0 says that the frame was complete with the byte before `bytes`.
    pub fn next_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.state == State::Line {
                at += memchr::memchr2(b'\n', b'\r', &bytes[at..])?;
            }
            let (state, ended) = self.state.after(bytes[at]);
            self.state = state;
            match ended {
                Ended::No => at += 1,
                Ended::With => return Some(at + 1),
                Ended::Before => return Some(at),
            }
        }
        None
    }
}

/// Whether a byte ended the frame, and on which side of it the end lies.
#[derive(Clone, Copy)]
enum Ended {
    No,
    With,
    Before,
}

impl State {
    const fn after(self, byte: u8) -> (Self, Ended) {
        match (self, byte) {
            (Self::BlankCr | Self::LineEnd | Self::Fresh, b'\n') => (Self::Fresh, Ended::With),
            (Self::BlankCr, _) => (Self::Fresh, Ended::Before),
            (Self::LineEndCr, b'\r') => (Self::FreshAfterCr, Ended::With),
            (Self::LineEndCr | Self::Line, b'\n') => (Self::LineEnd, Ended::No),
            (Self::Line, b'\r') => (Self::LineEndCr, Ended::No),
            (Self::LineEnd | Self::Fresh | Self::FreshAfterCr, b'\r') => (Self::BlankCr, Ended::No),
            (Self::FreshAfterCr, b'\n') => (Self::Fresh, Ended::No),
            _ => (Self::Line, Ended::No),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The frames of `pieces`, each as its bytes; what is left at the end comes last.
    fn frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut scanner = FrameScanner::new();
        let (mut done, mut open) = (Vec::new(), Vec::new());
        for mut piece in pieces {
            while let Some(end) = scanner.next_end(piece) {
                open.extend_from_slice(&piece[..end]);
                done.push(std::mem::take(&mut open));
                piece = &piece[end..];
            }
            open.extend_from_slice(piece);
        }
        (done, open)
    }

    #[test]
    fn each_line_end_style_gives_the_same_frames() {
        for style in ["\n", "\r\n", "\r"] {
            let body = format!(
                "event: a{style}data: 1{style}{style}: keep-alive{style}{style}data: 2{style}{style}"
            );
            let (done, open) = frames([body.as_bytes()]);
            // A last blank `\r\n` is seen whole; a last blank `\r` follows another `\r`.
            assert_eq!(done.len(), 3, "{style:?}");
            assert_eq!(done.concat(), body.as_bytes(), "{style:?}");
            assert!(open.is_empty(), "{style:?}");
        }
    }

    #[test]
    fn a_crlf_that_is_cut_in_two_is_one_line_end() {
        let (done, open) = frames([b"data: 1\r".as_slice(), b"\n\r", b"\ndata: 2"]);
        assert_eq!(done, [b"data: 1\r\n\r\n"]);
        assert_eq!(open, b"data: 2");
    }

    #[test]
    fn line_ends_of_different_kinds_may_follow_each_other() {
        // The `\n` after `\r\r` is the other half of the blank line's end; a `\r` between `\n` and text is one.
        let (done, open) = frames([b"a\r\r\nb\n\rc\n\n".as_slice()]);
        assert_eq!(done, [b"a\r\r".as_slice(), b"\nb\n\r", b"c\n\n"]);
        assert!(open.is_empty());
    }

    #[test]
    fn a_line_feed_inside_a_value_is_no_end() {
        let (done, _) = frames([b"data: a\\n\\nb\ndata: c\n\n".as_slice()]);
        assert_eq!(done.len(), 1);
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_yields_the_same_frames(
            body in "[a:\n\r]{0,60}",
            cuts in proptest::collection::vec(0_usize..60, 0..12),
        ) {
            let body = body.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.sort_unstable();
            cuts.push(body.len());
            let mut from = 0;
            let pieces = cuts.iter().map(|&cut| {
                let piece = &body[from..cut];
                from = cut;
                piece
            });
            let (whole, split) = (frames([body]), frames(pieces));
            prop_assert_eq!(&whole, &split);
            let rejoined = [whole.0.concat(), whole.1].concat();
            prop_assert_eq!(rejoined, body);
        }
    }
}
