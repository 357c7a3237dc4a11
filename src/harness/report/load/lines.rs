//! Files line by line, in bounded memory, with what could not be read counted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::harness::run::FileIntake;

/// The longest line read as one; no record comes near it.
const LONGEST_LINE: u64 = 1 << 20;
/// Read at once.
const BUFFER: usize = 1 << 16;

/// Hands every line of `path` to `take`, without its end, and with its number from 1; `false` says that it could
/// not be read. `None` if there is no such file.
///
/// # Errors
/// When the file cannot be read; the message names it.
pub fn each(
    dir: &Path,
    file: &str,
    mut take: impl FnMut(u64, &str) -> bool,
) -> anyhow::Result<Option<FileIntake>> {
    let path = dir.join(file);
    let read = || format!("cannot read {}", path.display());
    let open = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        open => open.with_context(read)?,
    };
    let mut reader = BufReader::with_capacity(BUFFER, open);
    let mut intake = FileIntake::of(file);
    let (mut line, mut number) = (Vec::new(), 0);
    while next(&mut reader, &mut line).with_context(read)? {
        number += 1;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            continue;
        }
        if take(number, text) {
            intake.records += 1;
        } else {
            intake.bad(Some(number), text);
        }
    }
    Ok(Some(intake))
}

/// Hands every record of a file of JSON lines to `take`; `None` if there is no such file.
///
/// # Errors
/// When the file cannot be read; the message names it.
pub fn json<T: DeserializeOwned>(
    dir: &Path,
    file: &str,
    mut take: impl FnMut(T),
) -> anyhow::Result<Option<FileIntake>> {
    each(dir, file, |_, line| {
        let record = serde_json::from_str(line);
        record.map(&mut take).is_ok()
    })
}

fn next(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    Ok(reader.take(LONGEST_LINE).read_until(b'\n', line)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_records_are_counted_and_the_first_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"1\nx\xff\n\n2\n{\"cut of").unwrap();
        let mut seen = Vec::new();
        let intake = json::<u32>(dir.path(), "f", |n| seen.push(n)).unwrap();
        let intake = intake.unwrap();
        assert_eq!(seen, [1, 2]);
        assert_eq!((intake.records, intake.unparsed), (2, 2));
        assert_eq!(intake.example, Some((Some(2), "x\u{fffd}".to_owned())));
        assert_eq!(json::<u32>(dir.path(), "g", |_| ()).unwrap(), None);
    }

    #[test]
    fn a_line_without_end_is_read_in_pieces() {
        let mut reader = BufReader::new(io::repeat(b'x').take(LONGEST_LINE + 5));
        let mut line = Vec::new();
        assert!(next(&mut reader, &mut line).unwrap());
        assert_eq!(line.len() as u64, LONGEST_LINE);
        assert!(next(&mut reader, &mut line).unwrap());
        assert_eq!(line.len(), 5);
        assert!(!next(&mut reader, &mut line).unwrap());
    }
}
