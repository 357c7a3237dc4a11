//! The `swe` trace: 100 software-engineering programs of SWE-agent.
//!
//! Real: how the context grows from turn to turn, and the seconds that tools take. A program's turns are its
//! ascending prompt lengths up to [`MAX_CONTEXT`]; turns that add less than [`MIN_TURN_TOKENS`] hold no reply
//! and tool result and are left out, and so are programs of fewer than [`MIN_STEPS`] turns. Of the 266 programs,
//! [`PROGRAMS`] are drawn without repetition. Drawn for each turn, from the other file's rounds:
//!
//! * the reply's length, from the real ones, but no longer than the growth to the next turn allows;
//! * the tool's seconds, from the real ones above zero; 2 % are replaced by 10–40 s, uniform, the long tail that
//!   the published rounds are too few to show.
//!
//! The shared prefix is the shortest first prompt less [`TASK_TOKENS`] for the task's own words.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::draw::to_millis;
use crate::harness::trace::{MIN_GROWTH_TOKENS, Program, SharedPrefix, Step, Then};

/// Programs in the trace.
pub const PROGRAMS: usize = 100;
/// Longest context, in tokens: later turns are cut off.
pub const MAX_CONTEXT: u32 = 40_000;
/// Least growth of a turn, in tokens.
pub const MIN_TURN_TOKENS: u32 = MIN_GROWTH_TOKENS + 14;
/// Fewest turns of a program.
pub const MIN_STEPS: usize = 4;
/// Tokens of the shortest first prompt that are taken for the task's own.
pub const TASK_TOKENS: u32 = 24;
/// Share of the tools that take very long.
const TAIL_SHARE: f64 = 0.02;

#[derive(Debug, Deserialize)]
struct Lengths {
    programs: BTreeMap<String, Vec<u32>>,
}

#[derive(Debug, Deserialize)]
struct Rounds {
    programs: BTreeMap<String, Vec<Round>>,
}

/// Round, tool seconds after it, prompt tokens, output tokens.
type Round = (u32, f64, Option<u32>, Option<u32>);

/// Makes the programs from the text of `swe_prompt_lengths.json` and `swe_rounds.json`.
///
/// # Errors
/// When a file does not parse or has too little in it.
pub fn make(lengths: &str, rounds: &str, seed: u64) -> anyhow::Result<Vec<Program>> {
    let lengths: Lengths = serde_json::from_str(lengths).context("swe_prompt_lengths.json")?;
    let rounds: Rounds = serde_json::from_str(rounds).context("swe_rounds.json")?;
    let mut draws = Draws::new(&rounds, seed)?;
    let mut turns: Vec<Vec<u32>> = lengths.programs.values().map(|l| thin(l)).collect();
    turns.retain(|turns| turns.len() >= MIN_STEPS);
    turns.shuffle(&mut draws.rng);
    turns.truncate(PROGRAMS);
    let shortest = turns.iter().filter_map(|turns| turns.first()).min();
    let tokens = shortest
        .and_then(|n| n.checked_sub(TASK_TOKENS))
        .context("swe_prompt_lengths.json has no program with a first prompt")?;
    let program = |(index, turns): (usize, &Vec<u32>)| Program {
        program: format!("swe-{index}"),
        kind: "swe".to_owned(),
        shared_prefix: SharedPrefix {
            id: "swe".to_owned(),
            tokens,
        },
        steps: draws.steps(turns),
    };
    Ok(turns.iter().enumerate().map(program).collect())
}

/// Ascending prompt lengths without those too long or too close to the one before.
fn thin(lengths: &[u32]) -> Vec<u32> {
    let mut kept: Vec<u32> = Vec::new();
    for &length in lengths.iter().take_while(|length| **length <= MAX_CONTEXT) {
        if kept
            .last()
            .is_none_or(|last| length >= last + MIN_TURN_TOKENS)
        {
            kept.push(length);
        }
    }
    kept
}

/// The real replies and tool times, and the generator that picks from them.
#[derive(Debug)]
struct Draws {
    rng: ChaCha8Rng,
    output_tokens: Vec<u32>,
    tool_s: Vec<f64>,
}

impl Draws {
    fn new(rounds: &Rounds, seed: u64) -> anyhow::Result<Self> {
        let all = || rounds.programs.values().flatten();
        let draws = Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            output_tokens: all()
                .filter_map(|round| round.3)
                .filter(|n| *n > 0)
                .collect(),
            tool_s: all().map(|round| round.1).filter(|s| *s > 0.0).collect(),
        };
        ensure!(
            !draws.output_tokens.is_empty() && !draws.tool_s.is_empty(),
            "swe_rounds.json has no rounds with output tokens and tool seconds"
        );
        Ok(draws)
    }

    fn steps(&mut self, turns: &[u32]) -> Vec<Step> {
        let step = |(index, prompt_tokens): (usize, &u32)| {
            let next = turns.get(index + 1);
            let room = next.map_or(u32::MAX, |next| next - prompt_tokens - MIN_GROWTH_TOKENS);
            let output = self.output_tokens[self.rng.random_range(0..self.output_tokens.len())];
            Step {
                prompt_tokens: *prompt_tokens,
                output_tokens: output.min(room),
                then: next.map_or(Then::End, |_| Then::Tool("shell".to_owned())),
                gap_s: next.map_or(0.0, |_| self.gap_s()),
            }
        };
        turns.iter().enumerate().map(step).collect()
    }

    fn gap_s(&mut self) -> f64 {
        if self.rng.random_bool(TAIL_SHARE) {
            return to_millis(self.rng.random_range(10.0..40.0));
        }
        to_millis(self.tool_s[self.rng.random_range(0..self.tool_s.len())])
    }
}
