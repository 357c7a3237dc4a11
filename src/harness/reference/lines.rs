//! The lines of a log that hold one of a few texts, at the speed of the disk and in bounded memory.
//!
//! Reads large blocks and looks for the texts in the block; line ends are looked for only around a hit. A line of
//! up to [`MAX_LINE`] bytes is handed on whole. A longer one is cut there, both parts are lines of their own, and
//! [`Scanned::cut`] counts it.

use std::io::{self, ErrorKind, Read};

use aho_corasick::{AhoCorasick, BuildError};
use memchr::{memchr, memrchr};

/// The longest line that is handed on whole, in bytes.
pub const MAX_LINE: usize = 8 << 20;

/// How much is read at once, in bytes.
const BLOCK: usize = 1 << 20;

/// What a scan went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes read.
    pub bytes: u64,
    /// Cuts made in lines of more than [`MAX_LINE`] bytes.
    pub cut: u64,
}

/// Finds lines that hold at least one of some texts.
#[derive(Clone, Debug)]
pub struct Finder(AhoCorasick);

impl Finder {
    /// A finder of these texts.
    ///
    /// # Errors
    /// When there are too many of them.
    pub fn new(texts: &[&str]) -> Result<Self, BuildError> {
        AhoCorasick::new(texts).map(Self)
    }

    /// Calls `each` with every line that holds a text, in order, without its `\n`.
    ///
    /// # Errors
    /// When reading fails; `each` has then seen what came before.
    pub fn lines(&self, mut input: impl Read, mut each: impl FnMut(&[u8])) -> io::Result<Scanned> {
        let mut scanned = Scanned::default();
        let mut buffer = vec![0; BLOCK];
        let mut filled = 0;
        loop {
            let read = match input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            scanned.bytes += read as u64;
            let end = memrchr(b'\n', &buffer[filled..filled + read]).map(|at| filled + at + 1);
            filled += read;
            if let Some(end) = end {
                self.lines_of(&buffer[..end], &mut each);
                buffer.copy_within(end..filled, 0);
                filled -= end;
            } else if filled == MAX_LINE {
                self.lines_of(&buffer, &mut each);
                scanned.cut += 1;
                filled = 0;
            } else if filled == buffer.len() {
                buffer.resize((filled * 2).min(MAX_LINE), 0);
            }
        }
        self.lines_of(&buffer[..filled], &mut each);
        Ok(scanned)
    }

    fn lines_of(&self, block: &[u8], each: &mut impl FnMut(&[u8])) {
        let mut from = 0;
        while let Some(hit) = self.0.find(&block[from..]) {
            let at = from + hit.start();
            let start = memrchr(b'\n', &block[from..at]).map_or(from, |n| from + n + 1);
            let end = memchr(b'\n', &block[at..]).map_or(block.len(), |n| at + n);
            each(&block[start..end]);
            from = (end + 1).min(block.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most so many bytes at a time.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(into.len()).min(self.0.len());
            let (now, later) = self.0.split_at(len);
            into[..len].copy_from_slice(now);
            self.0 = later;
            Ok(len)
        }
    }

    fn found(text: &[u8], at_a_time: usize) -> (Vec<Vec<u8>>, Scanned) {
        let mut lines = Vec::new();
        let finder = Finder::new(&["needle", "pin"]).unwrap();
        let scanned = finder
            .lines(Drops(text, at_a_time), |line| lines.push(line.to_vec()))
            .unwrap();
        (lines, scanned)
    }

    #[test]
    fn a_line_is_handed_on_once_however_it_arrives() {
        let text = b"needle\nhay\n\nhay pin needle hay\nneedl\ne\npin";
        for at_a_time in [1, 2, 7, 1000] {
            let (lines, scanned) = found(text, at_a_time);
            assert_eq!(lines, [&b"needle"[..], b"hay pin needle hay", b"pin"]);
            assert_eq!(
                scanned,
                Scanned {
                    bytes: text.len() as u64,
                    cut: 0
                }
            );
        }
    }

    #[test]
    fn a_line_longer_than_the_bound_is_cut_and_counted() {
        let mut text = vec![b'.'; 2 * MAX_LINE + 5];
        text.extend(b"pin\nneedle\n");
        let (lines, scanned) = found(&text, usize::MAX);
        assert_eq!(scanned.cut, 2);
        assert_eq!(lines, [&b".....pin"[..], b"needle"]);
    }

    #[test]
    fn a_line_of_the_bound_is_whole() {
        let mut text = vec![b'.'; MAX_LINE - 5];
        text.extend(b"pin\n");
        let (lines, scanned) = found(&text, usize::MAX);
        assert_eq!((lines[0].len(), scanned.cut), (MAX_LINE - 2, 0));
    }
}
