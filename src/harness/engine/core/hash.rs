//! Identity of KV blocks: a hash of a block's token ids chained to the hash of the block before it.
//!
//! Two requests share a cached block exactly when their whole prompts agree up to and including it, so one
//! comparison of the last hash is a comparison of the whole prefix. Equal hashes are taken as equal prefixes:
//! 64 bits make an accidental match over a run of 10^6 blocks less likely than 10^-7.

use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The id of one token. Opaque to the engine: only equality matters to it.
pub type TokenId = u32;

/// The chained hash of one full block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(u64);

impl BlockHash {
    /// The parent of every first block. A salt separates prefixes that must not be shared (`cache_salt`).
    pub fn root(salt: &[u8]) -> Self {
        Self(xxh3_64_with_seed(salt, 0x6b76_6761_7465))
    }
}

/// Hashes a growing token sequence, block by block; keeps only the tokens of the unfinished block.
#[derive(Clone, Debug)]
pub struct Chain {
    block_size: usize,
    parent: BlockHash,
    /// Little-endian ids of the unfinished block's tokens.
    tail: Vec<u8>,
    blocks: Vec<BlockHash>,
}

impl Chain {
    /// An empty sequence of blocks of `block_size` tokens (≥ 1) below `root`.
    pub fn new(block_size: usize, root: BlockHash) -> Self {
        Self {
            block_size: block_size.max(1),
            parent: root,
            tail: Vec::with_capacity(block_size.max(1) * size_of::<TokenId>()),
            blocks: Vec::new(),
        }
    }

    /// Appends one token; hashes the block that it completes.
    pub fn push(&mut self, token: TokenId) {
        self.tail.extend_from_slice(&token.to_le_bytes());
        if self.tail.len() == self.block_size * size_of::<TokenId>() {
            self.parent = BlockHash(xxh3_64_with_seed(&self.tail, self.parent.0));
            self.blocks.push(self.parent);
            self.tail.clear();
        }
    }

    /// The hashes of the full blocks, first to last.
    pub fn blocks(&self) -> &[BlockHash] {
        &self.blocks
    }

    /// Tokens per block.
    pub const fn block_size(&self) -> usize {
        self.block_size
    }

    /// Tokens pushed so far.
    pub fn tokens(&self) -> usize {
        self.blocks.len() * self.block_size + self.tail.len() / size_of::<TokenId>()
    }

    /// A number that is equal for equal sequences of tokens.
    pub fn fingerprint(&self) -> u64 {
        xxh3_64_with_seed(&self.tail, self.parent.0)
    }
}

impl Extend<TokenId> for Chain {
    fn extend<I: IntoIterator<Item = TokenId>>(&mut self, tokens: I) {
        for token in tokens {
            self.push(token);
        }
    }
}

/// A hasher for keys that are hashes already: the lookup of a prefix is one table probe per block.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassThrough(u64);

impl Hasher for PassThrough {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Builds [`PassThrough`] hashers.
pub type BuildPassThrough = BuildHasherDefault<PassThrough>;

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(tokens: impl IntoIterator<Item = TokenId>) -> Chain {
        let mut chain = Chain::new(4, BlockHash::root(b""));
        chain.extend(tokens);
        chain
    }

    #[test]
    fn equal_tokens_after_a_different_start_are_a_different_block() {
        let a = chain([1, 2, 3, 4, 9, 9, 9, 9]);
        let b = chain([1, 2, 3, 5, 9, 9, 9, 9]);
        assert_ne!(a.blocks()[1], b.blocks()[1]);
        assert_eq!(a.blocks(), chain([1, 2, 3, 4, 9, 9, 9, 9]).blocks());
    }

    #[test]
    fn an_unfinished_block_has_no_hash_until_its_last_token() {
        let mut growing = chain([1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(growing.blocks().len(), 1);
        growing.push(8);
        assert_eq!(growing.blocks(), chain(1..=8).blocks());
    }

    #[test]
    fn a_salt_separates_equal_prompts() {
        let mut salted = Chain::new(4, BlockHash::root(b"tenant"));
        salted.extend(1..=4);
        assert_ne!(salted.blocks(), chain(1..=4).blocks());
    }
}
