//! The engine without sockets: submit requests, step, read what each iteration produced.
//!
//! Pure: time is an argument, nothing is random, no hash map is iterated, so the same calls give the same
//! reports. The HTTP server ([`super::serve`]) drives it in scaled real time, the simulator
//! ([`crate::harness::simulate`]) on a virtual clock. What it leaves out is listed in [`super`].
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod blocks;
pub mod cost;
pub mod hash;
pub mod output;
mod scheduler;
pub mod sequence;
pub mod waiting;

use std::time::Duration;

use thiserror::Error;

pub use cost::CostModel;
pub use hash::{Chain, TokenId};
pub use output::{Finish, Output};
pub use sequence::{Request, RequestId};
pub use waiting::Scheduling;

use crate::policy::Time;
use hash::BlockHash;
use scheduler::Scheduler;
use sequence::Sequence;

/// When a prefix cache lookup is counted in [`Stats::prefix_queries`] and [`Stats::prefix_hits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lookups {
    /// Once, when the request is admitted (vLLM 0.32).
    #[default]
    Admission,
    /// Each time the request is looked at, admitted or not (vLLM 0.25): under pressure the front of the queue
    /// is counted once per iteration, and the hit rate is biased towards it.
    EveryAttempt,
}

/// The limits of one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// KV blocks, the null block included, ≥ 2 (`--kv-blocks`, vLLM's `num_gpu_blocks`).
    pub blocks: u32,
    /// Tokens per block, ≥ 1.
    pub block_size: u32,
    /// Sequences that run at once, ≥ 1.
    pub max_num_seqs: u32,
    /// Tokens computed per iteration, ≥ 1.
    pub max_num_batched_tokens: u32,
    /// Who goes first.
    pub scheduling: Scheduling,
    /// How the prefix cache counters count.
    pub lookups: Lookups,
    /// How long an iteration takes.
    pub cost: CostModel,
}

/// A request that this engine could never finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// There is nothing to compute.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt was hashed in blocks of another size.
    #[error("the prompt is hashed in blocks of another size than the cache's")]
    BlockSize,
    /// Prompt and output together need more blocks than the cache has.
    #[error("prompt and output need {needed} KV blocks, the cache has {usable}")]
    TooLong {
        /// Blocks for the last token.
        needed: u32,
        /// Blocks that exist besides the null block.
        usable: u32,
    },
}

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Whose.
    pub request: RequestId,
    /// Output tokens sampled so far, this one included.
    pub output: u32,
    /// Prompt tokens that came from the prefix cache when the request was first admitted.
    pub cached: u32,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// What one iteration did. The tokens exist when `duration` has passed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// How long the iteration takes.
    pub duration: Duration,
    /// At most one token for each running request, in the order of admission.
    pub emitted: Vec<Emitted>,
    /// Who lost its blocks before the iteration began, in order.
    pub preempted: Vec<RequestId>,
    /// Tokens computed, prefill and decode.
    pub tokens: u32,
}

/// Metrics and counters since the engine began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Blocks held by requests, 0–1. Free blocks that still cache a prefix do not count.
    pub kv_usage: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache; a resumed request's second lookup does not count.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Prompt tokens of the requests that have their first token.
    pub prompt_tokens: u64,
    /// Tokens sampled.
    pub generation_tokens: u64,
}

/// A model of one vLLM engine.
#[derive(Debug)]
pub struct Engine {
    scheduler: Scheduler,
}

impl Engine {
    /// An engine with an empty cache.
    pub fn new(config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(config),
        }
    }

    /// The limits it was made with.
    pub const fn config(&self) -> &Config {
        self.scheduler.config()
    }

    /// Queues `request`, which arrived at `now`.
    ///
    /// # Errors
    /// A request that could never finish here; anything accepted does finish.
    pub fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        let config = self.scheduler.config();
        if request.prompt_tokens() == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.prompt.block_size() != config.block_size as usize {
            return Err(SubmitError::BlockSize);
        }
        let (needed, usable) = (config.blocks_for(&request), config.usable_blocks());
        if needed > usable {
            return Err(SubmitError::TooLong { needed, usable });
        }
        self.scheduler.push(Sequence::new(now, request));
        Ok(())
    }

    /// Takes a request out and frees its blocks; `false` if it is over already.
    pub fn abort(&mut self, id: RequestId) -> bool {
        self.scheduler.abort(id)
    }

    /// Runs one iteration and writes what it did into `report`, over what was there.
    ///
    /// The state afterwards is that at the iteration's end: submit what arrives meanwhile before the next call.
    pub fn step(&mut self, report: &mut StepReport) {
        report.emitted.clear();
        report.preempted.clear();
        let work = self.scheduler.schedule(report);
        report.tokens = work.tokens;
        report.duration = self.scheduler.config().cost.iteration(&work);
        self.scheduler.complete(report);
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Metrics and counters, O(1).
    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }
}

impl Config {
    /// An empty prompt to push tokens into. Prompts with different salts share nothing (`cache_salt`).
    pub fn chain(&self, salt: &[u8]) -> Chain {
        Chain::new(self.block_size as usize, BlockHash::root(salt))
    }

    /// Blocks that requests can hold: all but the null block.
    pub fn usable_blocks(&self) -> u32 {
        self.blocks.max(2) - 1
    }

    /// Blocks that `request` holds just before its last token is sampled.
    fn blocks_for(&self, request: &Request) -> u32 {
        let sampled = request.output.length.saturating_sub(1);
        let tokens = request.prompt_tokens().saturating_add(sampled);
        tokens.div_ceil(self.block_size)
    }
}

#[cfg(test)]
mod tests;
