//! The text of a JSON string with its escapes decoded, read in pieces of any size.
//!
//! Requests come whole and replies in pieces; both must give the same bytes for the same text, however it is
//! escaped. A lone surrogate, which is no text, becomes the three bytes that its code point would have.

/// Decodes the inside of one JSON string after another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// The first half of a surrogate pair, while its second may follow.
    high: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Plain,
    Escape,
    /// In `\uXXXX`: how many digits have come, and their value.
    Hex(u8, u16),
}

impl Decoder {
    /// Reads on, the opening quote behind it, and hands the decoded text to `sink` piece by piece. Returns the
    /// offset behind the closing quote, or `None` if the string goes on after `bytes`.
    pub(super) fn read(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[u8])) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match self.state {
                State::Plain => {
                    let rest = &bytes[at - 1..];
                    let stop = memchr::memchr2(b'"', b'\\', rest);
                    let run = &rest[..stop.unwrap_or(rest.len())];
                    if !run.is_empty() {
                        self.flush(sink);
                        sink(run);
                    }
                    at += run.len();
                    match stop.map(|stop| rest[stop]) {
                        None => return None,
                        Some(b'"') => {
                            self.flush(sink);
                            return Some(at);
                        }
                        Some(_) => self.state = State::Escape,
                    }
                }
                State::Escape => self.escape(byte, sink),
                State::Hex(digits, value) => self.hex(digits, value, byte, sink),
            }
        }
        None
    }

    fn escape(&mut self, byte: u8, sink: &mut impl FnMut(&[u8])) {
        let plain = match byte {
            b'u' => {
                self.state = State::Hex(0, 0);
                return;
            }
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            other => other,
        };
        self.state = State::Plain;
        self.flush(sink);
        sink(&[plain]);
    }

    fn hex(&mut self, digits: u8, value: u16, byte: u8, sink: &mut impl FnMut(&[u8])) {
        // What is no digit counts as zero: the backend refuses such a body.
        let digit = char::from(byte).to_digit(16).unwrap_or(0);
        let value = (value << 4) | u16::try_from(digit).unwrap_or(0);
        if digits < 3 {
            self.state = State::Hex(digits + 1, value);
            return;
        }
        self.state = State::Plain;
        match (self.high.take(), value) {
            (Some(high), 0xdc00..=0xdfff) => {
                let code =
                    0x1_0000 + ((u32::from(high) - 0xd800) << 10) + u32::from(value) - 0xdc00;
                emit(code, sink);
            }
            (lone, unit) => {
                self.high = lone;
                self.flush(sink);
                if (0xd800..=0xdbff).contains(&unit) {
                    self.high = Some(unit);
                } else {
                    emit(u32::from(unit), sink);
                }
            }
        }
    }

    /// The pair stays without its second half.
    fn flush(&mut self, sink: &mut impl FnMut(&[u8])) {
        if let Some(high) = self.high.take() {
            emit(u32::from(high), sink);
        }
    }
}

fn emit(code: u32, sink: &mut impl FnMut(&[u8])) {
    if let Some(c) = char::from_u32(code) {
        sink(c.encode_utf8(&mut [0; 4]).as_bytes());
    } else {
        let [_, _, high, low] = code.to_be_bytes();
        sink(&[
            0xe0 | (high >> 4),
            0x80 | ((high & 15) << 2) | (low >> 6),
            0x80 | (low & 63),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Decodes the string after its opening quote, cut into pieces; its text and what was read of the last piece.
    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Option<usize>) {
        let (mut decoder, mut text, mut end) = (Decoder::default(), Vec::new(), None);
        for piece in pieces {
            end = decoder.read(piece, &mut |run| text.extend_from_slice(run));
        }
        (text, end)
    }

    #[test]
    fn a_lone_surrogate_is_kept_apart_from_a_pair() {
        let text = |inside: &str| decode([format!("{inside}\"").as_bytes()]).0;
        assert_eq!(text("\\ud83d\\ude00"), "\u{1f600}".as_bytes());
        assert_eq!(text("\\ud83dx"), b"\xed\xa0\xbdx");
        assert_eq!(
            text("\\ud83d\\ud83d\\ude00"),
            b"\xed\xa0\xbd\xf0\x9f\x98\x80"
        );
        assert_eq!(text("\\ud83d"), b"\xed\xa0\xbd");
        assert_eq!(text("\\ud83d\\n"), b"\xed\xa0\xbd\n");
    }

    proptest! {
        #[test]
        fn any_text_survives_any_escaping_and_any_split(text in ".{0,24}", mask in any::<u64>(), cut in 0_usize..200) {
            let mut inside = String::new();
            for (i, c) in text.chars().enumerate() {
                if mask >> (i % 64) & 1 == 1 || c < ' ' || matches!(c, '"' | '\\') {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(inside, "\\u{unit:04x}").unwrap();
                    }
                } else {
                    inside.push(c);
                }
            }
            inside.push('"');
            let (a, b) = inside.as_bytes().split_at(cut.min(inside.len()));
            prop_assert_eq!(decode([a, b]).0, text.as_bytes());
            let whole = decode([format!("{inside},").as_bytes()]);
            prop_assert_eq!(whole, (text.into_bytes(), Some(inside.len())));
        }
    }
}
