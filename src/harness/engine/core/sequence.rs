//! One request inside the engine: how much of it is computed, which blocks hold it, what it will generate.

use super::blocks::BlockId;
use super::hash::Chain;
use super::output::Output;
use crate::policy::Time;

/// The name of a request inside one engine, given by whoever submits it. Unique among the unfinished ones;
/// breaks ties between arrivals of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request as it is submitted.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// The prompt, at least one token, hashed in blocks of the engine's size ([`super::Config::chain`]). Hashing
    /// is the only work that grows with the prompt, and the caller can do it on its own thread.
    pub prompt: Chain,
    /// Lower runs first, where the queue orders by priority.
    pub priority: i64,
    /// What it will generate.
    pub output: Output,
}

impl Request {
    /// Length of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt.tokens()).unwrap_or(u32::MAX)
    }
}

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) priority: i64,
    pub(super) arrival: Time,
    pub(super) prompt: u32,
    pub(super) output: Output,
    /// Output tokens sampled so far.
    pub(super) produced: u32,
    /// Block hashes of prompt and sampled output.
    pub(super) chain: Chain,
    /// Blocks held, first to last.
    pub(super) blocks: Vec<BlockId>,
    /// How many of `blocks`, from the first, are findable by their hash.
    pub(super) registered: usize,
    /// Tokens whose KV is in `blocks`.
    pub(super) computed: u32,
    /// Tokens that the iteration under way adds to `computed`.
    pub(super) scheduled: u32,
    /// Prompt tokens found in the cache when it was first admitted.
    pub(super) cached: u32,
    pub(super) preemptions: u32,
}

impl Sequence {
    pub(super) fn new(arrival: Time, request: Request) -> Self {
        Self {
            id: request.id,
            priority: request.priority,
            arrival,
            prompt: request.prompt_tokens(),
            output: request.output,
            produced: 0,
            chain: request.prompt,
            blocks: Vec::new(),
            registered: 0,
            computed: 0,
            scheduled: 0,
            cached: 0,
            preemptions: 0,
        }
    }

    /// Tokens known so far: prompt and sampled output.
    pub(super) const fn tokens(&self) -> u32 {
        self.prompt + self.produced
    }

    /// Tokens known but not computed. At least 1 while the sequence is alive.
    pub(super) const fn remaining(&self) -> u32 {
        self.tokens() - self.computed
    }

    /// Ends the iteration for this sequence. `true` if it sampled a token.
    pub(super) fn advance(&mut self) -> bool {
        self.computed += std::mem::take(&mut self.scheduled);
        if self.computed < self.tokens() {
            return false;
        }
        self.chain.push(self.output.token(self.produced));
        self.produced += 1;
        true
    }

    pub(super) const fn is_finished(&self) -> bool {
        self.produced >= self.output.length
    }

    /// Forgets everything computed; the sampled output stays and is computed again with the prompt.
    pub(super) fn reset(&mut self) {
        self.blocks.clear();
        self.registered = 0;
        self.computed = 0;
        self.scheduled = 0;
    }
}
