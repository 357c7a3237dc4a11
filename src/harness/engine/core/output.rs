//! What a request will generate, decided when it is submitted.
//!
//! The model has no weights: the length of an answer, and every token in it, is known in advance. Tokens are
//! computed from a seed when they are needed, so a long answer costs no memory.

use super::hash::TokenId;

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// The output limit or the context limit was reached.
    Length,
}

/// The planned output of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Tokens that will be generated, ≥ 1.
    pub length: u32,
    /// Why it ends then.
    pub finish: Finish,
    /// The first tokens, where they are prescribed (a tool call's name); the rest is filler.
    pub head: Vec<TokenId>,
    /// The last tokens, where they are prescribed (the end of a tool call's JSON).
    pub tail: Vec<TokenId>,
    /// Seed of the filler between head and tail.
    pub seed: u64,
}

impl Output {
    /// `length` (at least 1) tokens of filler that end for `finish`.
    pub fn filler(length: u32, finish: Finish, seed: u64) -> Self {
        Self {
            length: length.max(1),
            finish,
            head: Vec::new(),
            tail: Vec::new(),
            seed,
        }
    }

    /// The token at `index` (from 0). The tail gives way to the head where both would not fit.
    pub fn token(&self, index: u32) -> TokenId {
        let index = index as usize;
        let tail_starts = (self.length as usize).saturating_sub(self.tail.len());
        self.head
            .get(index)
            .or_else(|| self.tail.get(index.checked_sub(tail_starts)?))
            .copied()
            .unwrap_or_else(|| filler(self.seed, index as u64))
    }
}

/// Sixty-four characters that need no escape in JSON. Spaces come often enough to look like words.
const ALPHABET: &[u8; 64] = b"etaoinshrdlu cmfwypvbgkjqxz etaoinshrdluETAOINSHRDLU etaoin.eta ";

/// Filler token `index` of `seed`: four printable ASCII characters, read as a little-endian number.
pub fn filler(seed: u64, index: u64) -> TokenId {
    let mixed = mix(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bytes = mixed.to_le_bytes();
    TokenId::from_le_bytes([0, 1, 2, 3].map(|at| ALPHABET[usize::from(bytes[at] & 63)]))
}

/// A bijection of 64-bit numbers that spreads every input bit over the whole output.
pub const fn mix(mut value: u64) -> u64 {
    value ^= value >> 30;
    value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^= value >> 27;
    value = value.wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_another() {
        let text = |seed| (0..50).map(|i| filler(seed, i)).collect::<Vec<_>>();
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn filler_is_printable_ascii_without_json_escapes() {
        for index in 0..1000 {
            for byte in filler(3, index).to_le_bytes() {
                assert!((b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\');
            }
        }
    }

    #[test]
    fn head_and_tail_frame_the_filler() {
        let output = Output {
            head: vec![1, 2],
            tail: vec![9],
            ..Output::filler(4, Finish::Stop, 5)
        };
        assert_eq!([output.token(0), output.token(1)], [1, 2]);
        assert_eq!(output.token(2), filler(5, 2));
        assert_eq!(output.token(3), 9);
    }
}
