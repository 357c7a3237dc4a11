//! Continuous batching: which sequences compute how many tokens in the next iteration.
//!
//! The order of vLLM's V1 scheduler: the running sequences first, in admission order, each with what is left
//! of it and of the token budget (chunked prefill); then, unless somebody was just preempted, the waiting
//! ones in queue order until budget, slots or blocks run out. A waiting request is admitted only if its
//! **whole** known sequence fits beside what is held, although it gets the blocks of its first chunk only. No
//! later request passes one that does not fit.

use super::blocks::{BlockId, BlockPool};
use super::cost::Work;
use super::sequence::{RequestId, Sequence};
use super::waiting::{Scheduling, WaitingQueue};
use super::{Config, Emitted, Lookups, Stats, StepReport};

/// The queues and the cache of one engine.
#[derive(Debug)]
pub(super) struct Scheduler {
    config: Config,
    pool: BlockPool,
    /// In order of admission.
    running: Vec<Sequence>,
    waiting: WaitingQueue,
    /// The front of the queue when it last did not fit, until something happens that can make it fit.
    blocked: Option<RequestId>,
    stats: Stats,
    /// Reused by every lookup.
    hits: Vec<BlockId>,
}

impl Scheduler {
    pub(super) fn new(config: Config) -> Self {
        Self {
            pool: BlockPool::new(config.blocks),
            running: Vec::new(),
            waiting: WaitingQueue::new(config.scheduling),
            blocked: None,
            stats: Stats::default(),
            hits: Vec::new(),
            config,
        }
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_usage: self.pool.usage(),
            ..self.stats
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.len() == 0
    }

    pub(super) fn push(&mut self, sequence: Sequence) {
        self.waiting.push(sequence);
    }

    /// Takes `id` out, wherever it is; `false` if it is over or was never here.
    pub(super) fn abort(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(at);
            self.release(&sequence);
            return true;
        }
        self.waiting.remove(id).is_some()
    }

    /// Gives every sequence of the next iteration its tokens and blocks. Preempted ones go into the report.
    pub(super) fn schedule(&mut self, report: &mut StepReport) -> Work {
        let budget = self.schedule_running(self.config.max_num_batched_tokens, report);
        if report.preempted.is_empty() {
            self.schedule_waiting(budget);
        }
        let mut work = Work::default();
        for sequence in self.running.iter().filter(|s| s.scheduled > 0) {
            work.add(sequence.computed, sequence.scheduled);
        }
        work
    }

    /// Ends the iteration: counts the tokens as computed, samples, frees what is finished.
    pub(super) fn complete(&mut self, report: &mut StepReport) {
        let mut finished = false;
        for sequence in self.running.iter_mut().filter(|s| s.scheduled > 0) {
            if !sequence.advance() {
                continue;
            }
            if sequence.produced == 1 {
                self.stats.prompt_tokens += u64::from(sequence.prompt);
            }
            self.stats.generation_tokens += 1;
            finished |= sequence.is_finished();
            report.emitted.push(Emitted {
                request: sequence.id,
                output: sequence.produced,
                cached: sequence.cached,
                finish: sequence.is_finished().then_some(sequence.output.finish),
            });
        }
        if finished {
            self.free_finished();
        }
    }

    fn free_finished(&mut self) {
        let mut running = std::mem::take(&mut self.running);
        running.retain(|sequence| {
            if sequence.is_finished() {
                self.release(sequence);
            }
            !sequence.is_finished()
        });
        self.running = running;
    }

    /// Returns the budget that is left.
    fn schedule_running(&mut self, mut budget: u32, report: &mut StepReport) -> u32 {
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let chunk = self.running[at].remaining().min(budget);
            while !self.grow(at, chunk) {
                let victim = self.victim();
                let sequence = self.running.remove(victim);
                budget += sequence.scheduled;
                self.preempt(sequence, report);
                if victim == at {
                    return budget;
                }
                at -= usize::from(victim < at);
            }
            self.running[at].scheduled = chunk;
            budget -= chunk;
            at += 1;
        }
        budget
    }

    /// Position of the running sequence that gives up its blocks first.
    fn victim(&self) -> usize {
        let last = self.running.len() - 1;
        if self.config.scheduling == Scheduling::Fcfs {
            return last;
        }
        let rank = |at: usize| (self.running[at].priority, self.running[at].arrival);
        (1..=last).fold(
            0,
            |worst, at| if rank(at) > rank(worst) { at } else { worst },
        )
    }

    fn preempt(&mut self, mut sequence: Sequence, report: &mut StepReport) {
        self.release(&sequence);
        sequence.reset();
        sequence.preemptions += 1;
        self.stats.preemptions += 1;
        report.preempted.push(sequence.id);
        self.waiting.push_preempted(sequence);
    }

    fn release(&mut self, sequence: &Sequence) {
        self.pool.free(&sequence.blocks);
        self.blocked = None;
    }

    /// Gives the running sequence blocks for `chunk` more tokens; `false` if there are not enough.
    fn grow(&mut self, at: usize, chunk: u32) -> bool {
        let sequence = &mut self.running[at];
        let end = sequence.computed + chunk;
        let wanted = end.div_ceil(self.config.block_size) as usize;
        let missing = wanted.saturating_sub(sequence.blocks.len());
        if missing > self.pool.free_blocks() {
            return false;
        }
        self.pool.allocate(missing, &mut sequence.blocks);
        self.register(at, end);
        true
    }

    /// Makes the full blocks of the first `end` tokens findable: already while they are being computed, so
    /// that requests of one iteration share them.
    fn register(&mut self, at: usize, end: u32) {
        let sequence = &mut self.running[at];
        let full = (end / self.config.block_size) as usize;
        let head = self.waiting.front().map(|head| head.chain.blocks());
        for index in sequence.registered..full {
            let hash = sequence.chain.blocks()[index];
            self.pool.register(sequence.blocks[index], hash);
            if head.is_some_and(|head| head.get(index) == Some(&hash)) {
                self.blocked = None;
            }
        }
        sequence.registered = sequence.registered.max(full);
    }

    fn schedule_waiting(&mut self, mut budget: u32) {
        while budget > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(mut sequence) = self.take_fitting() else {
                return;
            };
            self.pool.touch(&self.hits);
            // A shared block may leave the free queue without any being freed: let the front look again.
            self.blocked = None;
            sequence.blocks.extend_from_slice(&self.hits);
            sequence.registered = self.hits.len();
            sequence.computed = self.found();
            let chunk = sequence.remaining().min(budget);
            sequence.scheduled = chunk;
            budget -= chunk;
            self.running.push(sequence);
            let fits = self.grow(self.running.len() - 1, chunk);
            debug_assert!(fits, "the whole sequence was found to fit");
        }
    }

    /// Tokens in the blocks of the last lookup.
    fn found(&self) -> u32 {
        u32::try_from(self.hits.len()).unwrap_or(u32::MAX) * self.config.block_size
    }

    /// The front of the queue if it fits, with its cached prefix in `hits`.
    fn take_fitting(&mut self) -> Option<Sequence> {
        let front = self.waiting.front()?;
        let every_attempt = self.config.lookups == Lookups::EveryAttempt;
        if self.blocked == Some(front.id) && !every_attempt {
            return None;
        }
        let hashes = front.chain.blocks();
        // The last token is always computed: its output is what the sampler needs.
        let longest = ((front.tokens() - 1) / self.config.block_size) as usize;
        self.hits.clear();
        self.pool
            .cached_prefix(&hashes[..longest.min(hashes.len())], &mut self.hits);
        let whole = front.tokens().div_ceil(self.config.block_size) as usize;
        let needed = whole - self.hits.len() + self.pool.unheld(&self.hits);
        let fits = needed <= self.pool.free_blocks();
        let found = self.found();
        if front.preemptions == 0 && (fits || every_attempt) {
            self.stats.prefix_queries += u64::from(front.tokens());
            self.stats.prefix_hits += u64::from(found);
        }
        if !fits {
            self.blocked = Some(front.id);
            return None;
        }
        let mut sequence = self.waiting.pop()?;
        if sequence.preemptions == 0 {
            sequence.cached = found;
        }
        Some(sequence)
    }
}
