//! The paged KV cache: blocks with reference counts, the table of cached prefixes, and the free queue that
//! is at the same time the eviction order.
//!
//! Everything here follows the order of vLLM 0.32's block pool, because that order decides who loses its
//! prefix: blocks are handed out from the front; a freed block with a hash goes to the back (least recently
//! used first), one without goes to the front (it can never be hit); a request's blocks are freed from its
//! tail, so that the start of a prompt, which others may share, outlives its end. Block 0 is the null block:
//! it exists and is never handed out.

use std::collections::HashMap;

use super::hash::{BlockHash, BuildPassThrough};

/// One block of the cache, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId(u32);

impl BlockId {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The blocks that hold one hash, oldest first. More than one when equal prompts were computed side by side.
#[derive(Clone, Debug)]
enum Holders {
    One(BlockId),
    Many(Vec<BlockId>),
}

/// Neighbours in the free queue; a block that is in use has none.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    prev: u32,
    next: u32,
}

/// All blocks of one engine.
#[derive(Debug)]
pub struct BlockPool {
    /// Position in `links` of the queue's fixed end, which joins front and back to a ring.
    end: u32,
    /// One link per block, and one for the end.
    links: Vec<Link>,
    refs: Vec<u32>,
    hashes: Vec<Option<BlockHash>>,
    cached: HashMap<BlockHash, Holders, BuildPassThrough>,
    free: usize,
}

impl BlockPool {
    /// A pool of `blocks` blocks (≥ 2, the null block included), all free in order of their number.
    pub fn new(blocks: u32) -> Self {
        let end = blocks.max(2);
        let size = end as usize;
        let mut pool = Self {
            end,
            links: vec![Link::default(); size + 1],
            refs: vec![0; size],
            hashes: vec![None; size],
            cached: HashMap::default(),
            free: 0,
        };
        pool.links[size] = Link {
            prev: end,
            next: end,
        };
        for block in 1..end {
            pool.insert_before(end, BlockId(block));
        }
        pool
    }

    /// Blocks that can be handed out, cached or not.
    pub const fn free_blocks(&self) -> usize {
        self.free
    }

    /// Blocks that exist besides the null block.
    pub fn usable_blocks(&self) -> usize {
        self.refs.len() - 1
    }

    /// Blocks held by requests, 0–1. Free blocks that still cache a prefix count as free.
    #[expect(
        clippy::cast_precision_loss,
        reason = "block counts are far below 2^52"
    )]
    pub fn usage(&self) -> f64 {
        1.0 - self.free as f64 / self.usable_blocks() as f64
    }

    /// Appends the blocks that cache the longest leading run of `hashes` to `out`.
    pub fn cached_prefix(&self, hashes: &[BlockHash], out: &mut Vec<BlockId>) {
        out.extend(hashes.iter().map_while(|hash| self.cached_block(*hash)));
    }

    fn cached_block(&self, hash: BlockHash) -> Option<BlockId> {
        match self.cached.get(&hash)? {
            Holders::One(block) => Some(*block),
            Holders::Many(blocks) => blocks.first().copied(),
        }
    }

    /// How many of `blocks` nobody holds: taking them shrinks the free queue.
    pub fn unheld(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|b| self.refs[b.index()] == 0).count()
    }

    /// Takes one more reference on each cached block, out of the free queue if need be.
    pub fn touch(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            if self.refs[block.index()] == 0 {
                self.unlink(block);
            }
            self.refs[block.index()] += 1;
        }
    }

    /// Hands out the `count` blocks at the front of the free queue, evicting what they cached.
    ///
    /// The caller has checked [`Self::free_blocks`]; fewer blocks come out of a queue that is shorter.
    pub fn allocate(&mut self, count: usize, out: &mut Vec<BlockId>) {
        for _ in 0..count.min(self.free) {
            let block = BlockId(self.front());
            self.unlink(block);
            self.evict(block);
            self.refs[block.index()] = 1;
            out.push(block);
        }
    }

    /// Makes `block` findable under `hash`. A block keeps the first hash it gets until it is evicted.
    pub fn register(&mut self, block: BlockId, hash: BlockHash) {
        let slot = &mut self.hashes[block.index()];
        debug_assert!(slot.is_none(), "a full block is registered once");
        if slot.is_some() {
            return;
        }
        *slot = Some(hash);
        self.cached
            .entry(hash)
            .and_modify(|holders| match holders {
                Holders::One(first) => *holders = Holders::Many(vec![*first, block]),
                Holders::Many(blocks) => blocks.push(block),
            })
            .or_insert(Holders::One(block));
    }

    /// Drops one reference on each block of a request, from its tail to its head.
    ///
    /// Blocks that nobody holds any more join the free queue: with a hash at the back, without at the front,
    /// each group in that same order.
    pub fn free(&mut self, blocks: &[BlockId]) {
        let mut front = self.front();
        for &block in blocks.iter().rev() {
            let refs = &mut self.refs[block.index()];
            debug_assert!(*refs > 0, "freed a block that nobody holds");
            *refs = refs.saturating_sub(1);
            if *refs > 0 {
                continue;
            }
            if self.hashes[block.index()].is_some() {
                self.insert_before(self.end, block);
                // The old front was the end of an empty queue: the first hashed block is the front now.
                if front == self.end {
                    front = block.0;
                }
            } else {
                self.insert_before(front, block);
            }
        }
    }

    /// The block that is handed out next, or the end.
    fn front(&self) -> u32 {
        self.links[self.end as usize].next
    }

    fn insert_before(&mut self, next: u32, block: BlockId) {
        let prev = self.links[next as usize].prev;
        self.links[block.index()] = Link { prev, next };
        self.links[prev as usize].next = block.0;
        self.links[next as usize].prev = block.0;
        self.free += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Link { prev, next } = self.links[block.index()];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.free -= 1;
    }

    fn evict(&mut self, block: BlockId) {
        let Some(hash) = self.hashes[block.index()].take() else {
            return;
        };
        let gone = match self.cached.get_mut(&hash) {
            Some(Holders::Many(blocks)) => {
                blocks.retain(|held| *held != block);
                blocks.is_empty()
            }
            Some(Holders::One(_)) => true,
            None => false,
        };
        if gone {
            self.cached.remove(&hash);
        }
    }

    /// The free queue, front to back.
    #[cfg(test)]
    fn free_queue(&self) -> Vec<u32> {
        let next = |at: u32| Some(self.links[at as usize].next).filter(|next| *next != self.end);
        std::iter::successors(next(self.end), |at| next(*at)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::engine::core::hash::Chain;

    fn hashes(first_token: u32, blocks: usize) -> Vec<BlockHash> {
        let mut chain = Chain::new(1, BlockHash::root(b""));
        chain.extend((first_token..).take(blocks));
        chain.blocks().to_vec()
    }

    fn hits(pool: &BlockPool, hashes: &[BlockHash]) -> usize {
        let mut blocks = Vec::new();
        pool.cached_prefix(hashes, &mut blocks);
        blocks.len()
    }

    fn run(pool: &mut BlockPool, hashes: &[BlockHash]) -> Vec<BlockId> {
        let mut blocks = Vec::new();
        pool.cached_prefix(hashes, &mut blocks);
        pool.touch(&blocks);
        let cached = blocks.len();
        pool.allocate(hashes.len() - cached, &mut blocks);
        for (block, hash) in blocks.iter().zip(hashes).skip(cached) {
            pool.register(*block, *hash);
        }
        blocks
    }

    #[test]
    fn the_null_block_is_never_handed_out() {
        let mut pool = BlockPool::new(4);
        let mut all = Vec::new();
        pool.allocate(9, &mut all);
        assert_eq!(all, [BlockId(1), BlockId(2), BlockId(3)]);
        assert_eq!(pool.free_blocks(), 0);
        assert!((pool.usage() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn freed_blocks_queue_tail_first_and_those_without_a_hash_go_to_the_front() {
        let mut pool = BlockPool::new(7);
        let mut blocks = Vec::new();
        pool.allocate(4, &mut blocks);
        for (block, hash) in blocks.iter().zip(hashes(10, 2)) {
            pool.register(*block, hash);
        }
        pool.free(&blocks);
        assert_eq!(pool.free_queue(), [4, 3, 5, 6, 2, 1]);
    }

    #[test]
    fn an_empty_free_queue_takes_both_kinds_in_the_right_order() {
        let mut pool = BlockPool::new(5);
        let mut blocks = Vec::new();
        pool.allocate(4, &mut blocks);
        // Hashes in the middle of the request only, so that both kinds alternate from the tail.
        pool.register(blocks[1], hashes(10, 1)[0]);
        pool.register(blocks[3], hashes(20, 1)[0]);
        pool.free(&blocks);
        assert_eq!(pool.free_queue(), [3, 1, 4, 2]);
    }

    #[test]
    fn a_shared_block_stays_in_use_until_its_last_holder_leaves() {
        let mut pool = BlockPool::new(6);
        let prompt = hashes(1, 2);
        let first = run(&mut pool, &prompt);
        let second = run(&mut pool, &prompt);
        assert_eq!(first, second);
        pool.free(&first);
        assert_eq!(pool.free_blocks(), 3);
        pool.free(&second);
        assert_eq!(pool.free_blocks(), 5);
        assert_eq!(hits(&pool, &prompt), 2, "free blocks still cache");
    }

    #[test]
    fn a_duplicate_of_a_cached_block_survives_the_eviction_of_the_first() {
        let mut pool = BlockPool::new(4);
        let hash = hashes(1, 1)[0];
        let mut blocks = Vec::new();
        pool.allocate(3, &mut blocks);
        pool.register(blocks[0], hash);
        pool.register(blocks[1], hash);
        pool.free(&blocks[..1]);
        assert_eq!(hits(&pool, &[hash]), 1);
        pool.allocate(1, &mut Vec::new());
        assert_eq!(hits(&pool, &[hash]), 1, "the second copy is found now");
        pool.free(&blocks[1..2]);
        pool.allocate(1, &mut Vec::new());
        assert_eq!(hits(&pool, &[hash]), 0);
    }

    /// 100 blocks: 5 running, P1 (40) goes idle, P2 (45) comes and goes, P3 needs 50. By tokens P1 and P3 fit
    /// side by side, yet P1 is the one evicted, because it went idle before P2 did.
    #[test]
    fn an_idle_prefix_is_evicted_before_younger_garbage() {
        let mut pool = BlockPool::new(101);
        let (p1, p2) = (hashes(1000, 40), hashes(2000, 45));
        let _running = run(&mut pool, &hashes(1, 5));
        let held = run(&mut pool, &p1);
        pool.free(&held);
        let held = run(&mut pool, &p2);
        pool.free(&held);
        let _p3 = run(&mut pool, &hashes(3000, 50));
        assert_eq!((hits(&pool, &p1), hits(&pool, &p2)), (0, 45));
    }

    #[test]
    fn a_smaller_newcomer_takes_only_the_tail_of_the_oldest_idle_prefix() {
        let mut pool = BlockPool::new(101);
        let (p1, p2) = (hashes(1000, 40), hashes(2000, 45));
        let _running = run(&mut pool, &hashes(1, 5));
        for prompt in [&p1, &p2] {
            let held = run(&mut pool, prompt);
            pool.free(&held);
        }
        let _p3 = run(&mut pool, &hashes(3000, 20));
        assert_eq!((hits(&pool, &p1), hits(&pool, &p2)), (30, 45));
    }

    #[test]
    fn touching_an_idle_prefix_moves_it_behind_younger_garbage() {
        let mut pool = BlockPool::new(101);
        let (p1, p2) = (hashes(1000, 40), hashes(2000, 45));
        let _running = run(&mut pool, &hashes(1, 5));
        for prompt in [&p1, &p2, &p1] {
            let held = run(&mut pool, prompt);
            pool.free(&held);
        }
        let _p3 = run(&mut pool, &hashes(3000, 50));
        assert_eq!((hits(&pool, &p1), hits(&pool, &p2)), (40, 5));
    }
}
