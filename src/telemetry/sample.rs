//! vLLM's metrics as numbers: one [`Scrape`] per `/metrics` text. The only file that knows vLLM's names.
//!
//! | fact | names, newest first |
//! |---|---|
//! | KV cache usage | `vllm:kv_cache_usage_perc`, `vllm:gpu_cache_usage_perc` |
//! | running, waiting | `vllm:num_requests_running`, `vllm:num_requests_waiting` |
//! | preemptions | `vllm:num_preemptions_total`, without `_total` |
//! | prefix cache, in tokens | `vllm:prefix_cache_{hits,queries}_total`, `vllm:gpu_prefix_cache_…`, both without `_total` |
//! | KV capacity | labels of `vllm:cache_config_info` |

use super::exposition::{self, Sample};
use crate::policy::{BackendId, BackendSample, Ratio, Tokens};

/// The metric that names KV cache usage in rows written for a scrape that failed.
pub const KV_USAGE_METRIC: &str = "vllm:kv_cache_usage_perc";

/// The prefix of every series of vLLM's own.
pub const VLLM_PREFIX: &str = "vllm:";

/// What one `/metrics` text says, over all engines of the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// KV cache usage, 0–1, the highest of the engines; `None` when absent or NaN.
    pub kv_usage: Option<Ratio>,
    /// Requests that run, summed over the engines.
    pub running: u32,
    /// Requests that wait inside vLLM, summed over the engines.
    pub waiting: u32,
    /// Preemptions since the server started, summed over the engines.
    pub preemptions: u64,
    /// Prefix cache hits since the server started, in tokens, summed over the engines.
    pub prefix_hits: u64,
    /// Prefix cache look-ups since the server started, in tokens, summed over the engines.
    pub prefix_queries: u64,
    /// Tokens that the KV caches of all engines hold; `None` where the server does not say.
    pub kv_capacity: Option<Tokens>,
    /// Tokens per KV block; `None` where the server does not say.
    pub block_size: Option<u64>,
    /// The lines that tell KV cache usage, as they stand, in the text's order: old and new name, every engine.
    pub usage_lines: Vec<UsageLine>,
}

/// One line that tells KV cache usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageLine {
    /// Name and labels, as in the text.
    pub metric: String,
    /// The value, as in the text.
    pub value: String,
}

impl Scrape {
    /// Reads a `/metrics` text. Lines that are no samples, and series of others, are passed over.
    pub fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        let mut counters = Counters::default();
        for sample in exposition::samples(text).flatten() {
            scrape.take(&sample, &mut counters);
        }
        scrape.prefix_hits = counters.hits.total();
        scrape.prefix_queries = counters.queries.total();
        scrape.preemptions = counters.preemptions.total();
        scrape
    }

    /// The numbers a policy is told.
    pub const fn sample(&self, backend: BackendId) -> BackendSample {
        BackendSample {
            backend,
            kv_usage: self.kv_usage,
            running: self.running,
            waiting: self.waiting,
            preemptions: self.preemptions,
            prefix_hits: self.prefix_hits,
            prefix_queries: self.prefix_queries,
        }
    }

    fn take(&mut self, sample: &Sample<'_>, counters: &mut Counters) {
        let Some(name) = sample.name.strip_prefix(VLLM_PREFIX) else {
            return;
        };
        let value = sample.value;
        match name {
            "kv_cache_usage_perc" | "gpu_cache_usage_perc" => self.take_usage(sample),
            "num_requests_running" => self.running = self.running.saturating_add(count(value)),
            "num_requests_waiting" => self.waiting = self.waiting.saturating_add(count(value)),
            "num_preemptions_total" => counters.preemptions.new += value,
            "num_preemptions" => counters.preemptions.old += value,
            "prefix_cache_hits_total" | "prefix_cache_hits" => counters.hits.new += value,
            "gpu_prefix_cache_hits_total" | "gpu_prefix_cache_hits" => counters.hits.old += value,
            "prefix_cache_queries_total" | "prefix_cache_queries" => counters.queries.new += value,
            "gpu_prefix_cache_queries_total" | "gpu_prefix_cache_queries" => {
                counters.queries.old += value;
            }
            "cache_config_info" => self.take_cache_config(sample),
            _ => {}
        }
    }

    fn take_usage(&mut self, sample: &Sample<'_>) {
        // Some servers report percent under this name: no fraction is above 1.
        let value = if sample.value > 1.0 {
            sample.value / 100.0
        } else {
            sample.value
        };
        let usage = Ratio::new(value);
        if usage > self.kv_usage {
            self.kv_usage = usage;
        }
        self.usage_lines.push(UsageLine {
            metric: sample.series.to_owned(),
            value: sample.raw_value.to_owned(),
        });
    }

    fn take_cache_config(&mut self, sample: &Sample<'_>) {
        let number = |label| {
            sample
                .label(label)
                .and_then(|text| text.parse::<u64>().ok())
        };
        let block_size = number("block_size");
        let from_blocks = || {
            // vLLM keeps one block for padding; usage, too, is counted without it.
            let blocks = number("num_gpu_blocks")?.checked_sub(1)?;
            blocks.checked_mul(block_size?)
        };
        self.block_size = self.block_size.or(block_size);
        if let Some(capacity) = number("kv_cache_size_tokens").or_else(from_blocks) {
            self.kv_capacity = Some(self.kv_capacity.unwrap_or_default() + Tokens(capacity));
        }
    }
}

/// The counters that a server may report under an old and a new name at once.
#[derive(Default)]
struct Counters {
    preemptions: Counter,
    hits: Counter,
    queries: Counter,
}

/// One counter, summed over the engines, apart for its two names.
#[derive(Default)]
struct Counter {
    new: f64,
    old: f64,
}

impl Counter {
    fn total(&self) -> u64 {
        // A server that has both names counts the same thing twice.
        Tokens::from_f64(self.new.max(self.old)).0
    }
}

/// A gauge that counts, as a count: NaN and negative values read as 0.
fn count(value: f64) -> u32 {
    u32::try_from(Tokens::from_f64(value).0).unwrap_or(u32::MAX)
}
