//! Deterministic message texts whose length in tokens is known.
//!
//! A text of *n* tokens is *n* English words of three letters, each with its blank: exactly four bytes a token,
//! which is how the embedded engine counts, and one token a word with the vocabularies of current models.

use std::fmt::Write as _;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Common words, so that a real tokeniser knows each of them with a blank before it.
const WORDS: [&str; 64] = [
    "the ", "and ", "for ", "you ", "not ", "are ", "but ", "all ", "can ", "one ", "our ", "out ",
    "was ", "has ", "new ", "use ", "may ", "any ", "who ", "now ", "get ", "how ", "see ", "two ",
    "way ", "day ", "did ", "its ", "say ", "she ", "too ", "own ", "old ", "man ", "big ", "set ",
    "end ", "put ", "add ", "run ", "key ", "top ", "air ", "box ", "red ", "car ", "low ", "far ",
    "few ", "let ", "try ", "ask ", "men ", "law ", "war ", "bit ", "eye ", "job ", "cut ", "buy ",
    "act ", "age ", "arm ", "art ",
];

/// Bytes of a token of text.
pub const BYTES_PER_TOKEN: u64 = 4;

/// A number for the text that belongs to `name`'s part `part` in a run with `seed`; equal only for equal inputs.
pub fn text_seed(seed: u64, name: &str, part: usize) -> u64 {
    let mut key = String::with_capacity(name.len() + 8);
    let _ = write!(key, "{name}#{part}");
    xxh3_64_with_seed(key.as_bytes(), seed)
}

/// Appends a text of `tokens` tokens, which needs no escaping in JSON.
pub fn push_text(out: &mut Vec<u8>, seed: u64, tokens: u64) {
    let mut state = seed;
    let mut bits = 0;
    for index in 0..tokens {
        // Ten words of six bits from each number.
        if index % 10 == 0 {
            bits = next(&mut state);
        }
        out.extend_from_slice(WORDS[(bits & 63) as usize].as_bytes());
        bits >>= 6;
    }
}

/// The splitmix64 generator.
const fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, tokens: u64) -> String {
        let mut out = Vec::new();
        push_text(&mut out, seed, tokens);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_text_has_four_bytes_a_token_and_needs_no_escapes() {
        let text = text(7, 1234);
        assert_eq!(text.len() as u64, 1234 * BYTES_PER_TOKEN);
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b' '));
        assert_eq!(text.split_whitespace().count(), 1234);
    }

    #[test]
    fn texts_are_equal_for_equal_seeds_and_differ_early_otherwise() {
        let (a, b) = (text_seed(1, "p", 0), text_seed(1, "p", 1));
        assert_eq!(text(a, 99), text(a, 99));
        assert_ne!(text(a, 8), text(b, 8));
        assert_ne!(a, text_seed(2, "p", 0));
        assert!(text(a, 99).starts_with(&text(a, 8)));
    }
}
