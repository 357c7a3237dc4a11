//! Size and SHA-256 of a file, read as a stream.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Read at once.
const BUFFER: usize = 1 << 17;

/// What a file's content is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
}

impl Digest {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read; the message names it.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let read = || format!("cannot read {}", path.display());
        let mut file = BufReader::with_capacity(BUFFER, File::open(path).with_context(read)?);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut buffer).with_context(read)?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
                break;
            };
            hasher.update(chunk);
            bytes += chunk.len() as u64;
        }
        Ok(Self {
            bytes,
            sha256: hex(&hasher.finalize()),
        })
    }
}

/// SHA-256 of `content`, in hexadecimal digits.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('?');
    let both = |byte: &u8| [digit(byte >> 4), digit(byte & 15)];
    bytes.iter().flat_map(both).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_content_have_one_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "abc").unwrap();
        // The digest of "abc": FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::of_file(file.path()).unwrap();
        assert_eq!((digest.bytes, digest.sha256.as_str()), (3, expected));
        assert_eq!(sha256(b"abc"), expected);
    }
}
