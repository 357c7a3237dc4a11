//! The command line of `kvgate engine`, and the checked configuration that it becomes.

use std::net::SocketAddr;

use anyhow::{bail, ensure};
use clap::{Args, FromArgMatches, ValueEnum};

use super::core::{Config, Lookups, Scheduling};

/// Requests that the engine takes at once. Far above what a gate sends: it only bounds the memory.
const MAX_REQUESTS: usize = 65_536;

/// Options of the embedded engine. They mean what vLLM's options of the same names mean.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// Address to serve the OpenAI API on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Name of the model; repeat it for aliases. Requests for another model get vLLM's 404.
    #[arg(long = "model", default_value = "qwen3-8b", value_name = "NAME")]
    pub models: Vec<String>,

    /// Size of the KV cache in blocks, of which one (the null block) holds nothing. This is the number that
    /// decides how many programs fit: the default is the 84,800 tokens that Qwen3-8B left on the H100 of the
    /// measurements; lower it to see KV pressure, raise it to see policies become equal.
    #[arg(long, default_value_t = 5_301, value_name = "N")]
    pub kv_blocks: u32,

    /// Tokens per KV block. Only full blocks are cached, so a hit is a multiple of it.
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    pub block_size: u32,

    /// Most sequences that run at once; the others wait inside the engine.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_num_seqs: u32,

    /// Most tokens computed in one iteration. A longer prompt is prefilled in chunks of this size; a smaller
    /// value keeps decodes smoother and prefills slower.
    #[arg(long, default_value_t = 8_192, value_name = "TOKENS")]
    pub max_num_batched_tokens: u32,

    /// Longest prompt and output together. Longer prompts are refused with vLLM's 400; a longer output is cut.
    /// It must fit into the KV cache, or one request could wait for ever.
    #[arg(long, default_value_t = 40_960, value_name = "TOKENS")]
    pub max_model_len: u32,

    /// Order of admission inside the engine: arrival, or the request's `priority` (lower first).
    #[arg(long, value_enum, default_value_t = SchedulingPolicy::Fcfs)]
    pub scheduling_policy: SchedulingPolicy,

    /// What an iteration costs. `h100-qwen3-8b` is fitted to measurements (3 % in steps/s), `rtx5090-qwen3-8b`
    /// extrapolates it to prefill three times as slow, `cpu-tiny` has the pace of a tiny model on a CPU; or a file
    /// that `kvgate calibrate` wrote.
    #[arg(long, default_value = "h100-qwen3-8b", value_name = "PRESET|FILE")]
    pub cost: String,

    /// Engine seconds per real second. Give the gate and the replay the same factor as `--time-scale`. When the
    /// machine cannot keep up, `kvgate_engine_lag_seconds` in `/metrics` says by how much.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub speedup: f64,

    /// Seed of the generated text and, without `ignore_eos`, of its length (120 tokens on average).
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,

    /// Play the models of tau2-bench where its prompts ask for them: the customer (`<scenario>` in the system
    /// message) states its case and ends the conversation after 3 to 7 turns, the agent (`<policy>`) calls tools that
    /// only read. Without it neither would ever come to an end.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub tau2: bool,
}

/// `--scheduling-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchedulingPolicy {
    /// First come, first served.
    Fcfs,
    /// Lower `priority` first, then first come.
    Priority,
}

/// What [`super::serve`] needs, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// The limits of the engine's core.
    pub core: Config,
    /// The model's names, at least one; the first is the one in responses.
    pub models: Vec<String>,
    /// Longest prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Engine seconds per real second, positive and finite.
    pub speedup: f64,
    /// Seed of text and lengths.
    pub seed: u64,
    /// Whether requests of tau2-bench are answered in their roles.
    pub tau2: bool,
    /// Most requests inside the engine at once, running and waiting; the next is answered with vLLM's 503.
    pub max_requests: usize,
}

impl EngineArgs {
    /// What a command line of these words, each `--flag=value`, would give.
    ///
    /// # Errors
    /// The first word that cannot be used.
    pub fn of_words(words: &[String]) -> anyhow::Result<Self> {
        let command = Self::augment_args(clap::Command::new("engine")).no_binary_name(true);
        let matches = command.try_get_matches_from(words)?;
        Ok(Self::from_arg_matches(&matches)?)
    }

    /// Checks the options against each other.
    ///
    /// # Errors
    /// The first option that cannot work, with what to do about it.
    pub fn into_config(self) -> anyhow::Result<EngineConfig> {
        let cost = crate::harness::cost_file::load(&self.cost)?;
        for (flag, value) in [
            ("--block-size", self.block_size),
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
            ("--max-model-len", self.max_model_len),
        ] {
            ensure!(value > 0, "{flag}: must be at least 1");
        }
        let usable = u64::from(self.kv_blocks.saturating_sub(1)) * u64::from(self.block_size);
        if usable < u64::from(self.max_model_len) {
            bail!(
                "--kv-blocks: {usable} usable tokens cannot hold one request of --max-model-len {}; \
                 raise the first or lower the second",
                self.max_model_len
            );
        }
        ensure!(
            self.speedup.is_finite() && self.speedup > 0.0,
            "--speedup: must be a positive number"
        );
        Ok(EngineConfig {
            core: Config {
                blocks: self.kv_blocks,
                block_size: self.block_size,
                max_num_seqs: self.max_num_seqs,
                max_num_batched_tokens: self.max_num_batched_tokens,
                scheduling: match self.scheduling_policy {
                    SchedulingPolicy::Fcfs => Scheduling::Fcfs,
                    SchedulingPolicy::Priority => Scheduling::Priority,
                },
                lookups: Lookups::Admission,
                cost,
            },
            models: self.models,
            max_model_len: self.max_model_len,
            speedup: self.speedup,
            seed: self.seed,
            tau2: self.tau2,
            max_requests: MAX_REQUESTS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn config(flags: &str) -> anyhow::Result<EngineConfig> {
        let words = std::iter::once("engine").chain(flags.split_whitespace());
        Cli::try_parse_from(words)?.engine.into_config()
    }

    #[test]
    fn the_defaults_are_the_measured_h100() {
        let config = config("").unwrap();
        assert_eq!(config.core.usable_blocks() * config.core.block_size, 84_800);
        assert_eq!(config.core.cost, super::super::core::cost::H100_QWEN3_8B);
    }

    #[test]
    fn a_cache_that_cannot_hold_one_request_is_refused_with_the_remedy() {
        let error = config("--kv-blocks 100").unwrap_err().to_string();
        assert!(error.contains("1584 usable tokens"), "{error}");
        assert!(error.contains("raise the first or lower the second"));
        assert!(config("--kv-blocks 100 --max-model-len 1584").is_ok());
    }

    #[test]
    fn an_unknown_preset_is_answered_with_the_known_ones() {
        let error = config("--cost abacus").unwrap_err().to_string();
        assert!(error.contains("h100-qwen3-8b, rtx5090-qwen3-8b"), "{error}");
    }

    #[test]
    fn a_standing_clock_is_refused() {
        assert!(config("--speedup 0").is_err());
        assert!(config("--speedup inf").is_err());
    }
}
