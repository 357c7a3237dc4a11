//! How much is measured, and how much of it a server has room for. Pure.

use anyhow::ensure;

/// With a cache and requests of so many blocks, any server can be measured.
const ENOUGH: u32 = 64;
/// Room for what a chat template adds to a prompt, in tokens.
const TEMPLATE: u64 = 64;
/// No prompt is shorter, in blocks: of less than one nothing is found in the cache.
const SHORTEST: u32 = 2;
/// Prompt lengths that a small server is measured with.
const PROMPTS: usize = 5;
/// Contexts that a small server is measured with.
const CONTEXTS: usize = 3;

/// How much is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Prompt lengths, in tokens.
    pub prompts: Vec<u32>,
    /// Contexts in which decoding is timed, in tokens.
    pub contexts: Vec<u32>,
    /// Sequences that decode side by side.
    pub batches: Vec<u32>,
    /// Tokens that each of them generates.
    pub output: u32,
    /// How often each is measured; the median counts.
    pub rounds: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            prompts: vec![256, 512, 1_024, 2_048, 4_096, 8_192, 16_384],
            contexts: vec![1_024, 4_096, 16_384],
            batches: vec![1, 2, 4, 8, 16, 32],
            output: 96,
            rounds: 5,
        }
    }
}

/// The server's cache, from its `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// KV capacity in tokens, the null block left out.
    pub tokens: u64,
    /// Tokens of a block.
    pub block: u32,
}

impl Plan {
    /// The plan for a server with this cache, whose requests may have `max_model_len` tokens if it says so: lengths that
    /// it has no room for make way for shorter ones.
    ///
    /// # Errors
    /// A server without room for what tells the constants apart.
    pub fn within(self, cache: Cache, max_model_len: Option<u64>) -> anyhow::Result<Self> {
        let room = max_model_len.map_or(cache.tokens, |len| len.min(cache.tokens));
        let most = |output: u32| {
            let most = room.saturating_sub(TEMPLATE + u64::from(output));
            u32::try_from(most).unwrap_or(u32::MAX)
        };
        let shortest = SHORTEST * cache.block;
        let plan = Self {
            prompts: fitting(&self.prompts, (shortest, most(1)), PROMPTS, 2),
            contexts: fitting(&self.contexts, (shortest, most(self.output)), CONTEXTS, 4),
            ..self
        };
        let is_enough = plan.prompts.len() >= 3
            && plan.contexts.len() >= 2
            && plan.batches_within(plan.contexts[0], cache).count() >= 2;
        ensure!(
            is_enough,
            "the server has too little room to be measured: its KV cache holds {} tokens{}; {} of each are enough",
            cache.tokens,
            max_model_len.map_or_else(String::new, |len| format!(
                ", a request {len} (max_model_len)"
            )),
            ENOUGH * cache.block
        );
        Ok(plan)
    }

    /// The batches of this context that decode side by side without a sequence being preempted.
    pub fn batches_within(&self, context: u32, cache: Cache) -> impl Iterator<Item = u32> {
        let each = u64::from(context) + TEMPLATE + u64::from(self.output) + u64::from(cache.block);
        let batches = self.batches.iter().copied();
        batches.filter(move |batch| u64::from(*batch) <= cache.tokens / each)
    }

    /// How many steps the progress bar has.
    pub const fn steps(&self) -> usize {
        self.prompts.len() + self.contexts.len() * self.batches.len()
    }
}

/// Those of the ascending `lengths` that are at most `most`; where that leaves fewer than `count`, shorter ones before
/// them, each `divisor` times as short as the next, down to `least`.
fn fitting(lengths: &[u32], (least, most): (u32, u32), count: usize, divisor: u32) -> Vec<u32> {
    let fit = lengths.iter().copied().filter(|length| *length <= most);
    let mut kept: Vec<u32> = fit.collect();
    while kept.len() < count.min(lengths.len()) {
        let next = kept.first().map_or(most, |shortest| shortest / divisor);
        if next < least {
            break;
        }
        kept.insert(0, next);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cache(tokens: u64) -> Cache {
        Cache { tokens, block: 16 }
    }

    /// The lengths for a server with this cache and `max_model_len`.
    fn lengths(tokens: u64, max_model_len: Option<u64>) -> (Vec<u32>, Vec<u32>) {
        let plan = Plan::default().within(cache(tokens), max_model_len);
        let plan = plan.unwrap();
        (plan.prompts, plan.contexts)
    }

    #[test]
    fn a_server_with_room_is_measured_as_planned() {
        let plan = Plan::default();
        for max_model_len in [Some(40_960), None] {
            let within = Plan::default().within(cache(95_472), max_model_len);
            assert_eq!(within.unwrap(), plan);
        }
    }

    #[test]
    fn a_small_server_is_measured_with_shorter_prompts() {
        let small = (vec![128, 256, 512, 1_024, 2_048], vec![64, 256, 1_024]);
        assert_eq!(lengths(3_168, Some(3_072)), small);
        assert_eq!(lengths(95_472, Some(3_072)), small);
        assert_eq!(lengths(3_168, None), small);
        let smaller = (vec![32, 64, 128, 256, 512], vec![54, 216, 864]);
        assert_eq!(lengths(1_024, Some(1_024)), smaller);
    }

    /// A prompt of one block is never found in a cache.
    #[test]
    fn large_blocks_need_longer_prompts() {
        let large = |tokens| Cache { tokens, block: 128 };
        let plan = Plan::default().within(large(3_168), Some(3_072)).unwrap();
        assert_eq!(plan.prompts, [256, 512, 1_024, 2_048]);
        assert_eq!(plan.contexts, [256, 1_024]);
        let refused = Plan::default().within(large(1_024), None).unwrap_err();
        assert!(
            refused.to_string().contains("8192 of each are enough"),
            "{refused}"
        );
        for block in [16, 32, 64, 128] {
            let enough = Cache {
                tokens: (ENOUGH * block).into(),
                block,
            };
            Plan::default().within(enough, Some(enough.tokens)).unwrap();
        }
    }

    #[test]
    fn one_size_of_batch_tells_nothing() {
        let plan = Plan {
            batches: vec![1, 4],
            ..Plan::default()
        };
        let three = Cache {
            tokens: 3 * (64 + 64 + 96 + 16),
            block: 16,
        };
        assert!(plan.within(three, None).is_err());
    }

    #[test]
    fn a_server_without_room_is_refused_with_what_it_has() {
        let refused = |tokens, max_model_len| {
            let plan = Plan::default().within(cache(tokens), max_model_len);
            plan.unwrap_err().to_string()
        };
        let both = refused(95_472, Some(256));
        for words in ["95472 tokens", "a request 256 (max_model_len)"] {
            assert!(both.contains(words), "{words}: {both}");
        }
        let unsaid = refused(352, None);
        assert!(
            unsaid.contains("352 tokens; 1024 of each are enough"),
            "{unsaid}"
        );
    }
}
