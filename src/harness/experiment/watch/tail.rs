//! The lines that a file gains while it is looked at.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

/// The longest line that is told; a longer one is left out.
const LONGEST_LINE: usize = 1 << 20;
/// Read at once.
const BUFFER: usize = 1 << 16;

/// Follows one file, which need not be there yet.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// Bytes read.
    offset: u64,
    /// A line whose end has not been written yet.
    part: Vec<u8>,
    /// The rest of a line that is too long is being left out.
    skipping: bool,
}

impl Tail {
    /// Follows the file at `path` from its present end.
    pub(super) fn of(path: PathBuf) -> Self {
        let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self {
            path,
            file: None,
            offset: length,
            part: Vec::new(),
            skipping: false,
        }
    }

    /// Hands every whole line that is new to `take`, without its end. A file that cannot be read has none; one that
    /// got shorter is read from its beginning.
    pub(super) fn read(&mut self, take: &mut impl FnMut(&str)) {
        // What fails here is looked at again, and whoever writes the file says why.
        let _unread = self.try_read(take);
    }

    fn try_read(&mut self, take: &mut impl FnMut(&str)) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => File::open(&self.path)?,
        };
        if file.metadata()?.len() < self.offset {
            self.offset = 0;
            self.part.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            self.offset += length as u64;
            self.split(&buffer[..length], take);
        }
        self.file = Some(file);
        Ok(())
    }

    fn split(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&str)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            self.part.extend_from_slice(line);
            take(&String::from_utf8_lossy(&self.part));
            self.part.clear();
        }
        if self.skipping {
            return;
        }
        self.part.extend_from_slice(bytes);
        if self.part.len() > LONGEST_LINE {
            self.part = Vec::new();
            self.skipping = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn read(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        tail.read(&mut |line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_are_told_once_and_whole_and_only_those_that_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "old\n").unwrap();
        let mut tail = Tail::of(path.clone());
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"a\nb").unwrap();
        assert_eq!(read(&mut tail), ["a"]);
        assert_eq!(read(&mut tail), [""; 0]);
        file.write_all(b"c\n\n").unwrap();
        assert_eq!(read(&mut tail), ["bc", ""]);
    }

    #[test]
    fn a_file_may_come_late_and_may_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut tail = Tail::of(path.clone());
        assert_eq!(read(&mut tail), [""; 0]);
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(read(&mut tail), ["one", "two"]);
        fs::write(&path, "1\n").unwrap();
        assert_eq!(read(&mut tail), ["1"]);
    }

    #[test]
    fn a_line_without_end_is_left_out_and_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut tail = Tail::of(path.clone());
        let long = "x".repeat(3 * LONGEST_LINE);
        fs::write(&path, format!("{long}{long}")).unwrap();
        assert_eq!(read(&mut tail), [""; 0]);
        assert!(tail.part.capacity() <= LONGEST_LINE);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"rest\nnext\n").unwrap();
        assert_eq!(read(&mut tail), ["next"]);
    }
}
