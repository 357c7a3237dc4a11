//! Text to tokens and back: a token is four bytes, and its id is those bytes as a little-endian number.
//!
//! Crude, but with the one property that matters to a KV cache: a conversation that grows keeps its token ids.
//! Each message is cut on its own, between marks that no text can produce (bytes that UTF-8 never uses), so a
//! later message does not move the cuts of an earlier one. Generated text is exactly four bytes a token, so an
//! answer that a client sends back as history is cut where it was generated and hits the same blocks. A tool
//! call is generated as name, then arguments, and rendered into history in that order, with the same effect.
//!
//! English has about four bytes a token with current vocabularies; other languages and code differ.

use super::core::TokenId;

/// Fills up a last piece shorter than four bytes; never part of UTF-8.
const PAD: u8 = 0xff;

/// Begins a message.
const BEGIN: TokenId = TokenId::from_le_bytes([PAD, PAD, PAD, 0x00]);
/// Ends a message; also the token with which the model ends its turn.
pub(super) const END: TokenId = TokenId::from_le_bytes([PAD, PAD, PAD, 0x01]);
/// Separates messages.
const NEWLINE: TokenId = TokenId::from_le_bytes([PAD, PAD, PAD, 0x02]);

/// The tokens of `text`, cut from its start.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = TokenId> + '_ {
    text.as_bytes().chunks(4).map(|piece| {
        let mut bytes = [PAD; 4];
        bytes[..piece.len()].copy_from_slice(piece);
        TokenId::from_le_bytes(bytes)
    })
}

/// Appends the text of a generated token: printable ASCII, or nothing for an end mark.
pub(super) fn push_text(token: TokenId, out: &mut String) {
    let printable = token.to_le_bytes().into_iter().filter(u8::is_ascii);
    out.extend(printable.map(char::from).filter(|c| !c.is_control()));
}

/// Opens a message of `role`.
pub(super) fn begin(role: &str, prompt: &mut impl Extend<TokenId>) {
    prompt.extend([BEGIN]);
    prompt.extend(tokens(role));
}

/// Closes the message that [`begin`] opened.
pub(super) fn end(prompt: &mut impl Extend<TokenId>) {
    prompt.extend([END, NEWLINE]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::engine::core::Chain;
    use crate::harness::engine::core::hash::BlockHash;
    use crate::harness::engine::core::output::filler;

    fn chain() -> Chain {
        Chain::new(4, BlockHash::root(b""))
    }

    #[test]
    fn generated_text_is_cut_back_into_the_tokens_it_came_from() {
        let generated: Vec<_> = (0..100).map(|i| filler(1, i)).collect();
        let mut text = String::new();
        for token in &generated {
            push_text(*token, &mut text);
        }
        assert_eq!(text.len(), 400);
        assert_eq!(tokens(&text).collect::<Vec<_>>(), generated);
    }

    #[test]
    fn a_later_message_leaves_the_blocks_of_earlier_ones_as_they_were() {
        let mut short = chain();
        begin("user", &mut short);
        short.extend(tokens("hello, you"));
        end(&mut short);
        let mut long = short.clone();
        begin("assistant", &mut long);
        long.extend(tokens("hm"));
        end(&mut long);
        assert!(long.blocks().starts_with(short.blocks()));
        assert!(long.tokens() > short.tokens());
    }

    #[test]
    fn the_end_mark_has_no_text_and_no_text_makes_it() {
        let mut text = String::new();
        push_text(END, &mut text);
        assert_eq!(text, "");
        assert!(tokens("é\u{1}\u{10ffff}ab").all(|token| token != END));
    }
}
