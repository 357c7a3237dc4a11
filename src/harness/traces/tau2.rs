//! The `tau2` trace: 164 customer-service programs of Nemotron-Orchestrator-8B, retail 114 and airline 50.
//!
//! Real: the agent's steps with their prompt and output tokens (recounted with the Qwen vocabulary), and whether
//! a tool result or a user's message came before each. Drawn, since the source has no times:
//!
//! * a tool result takes 20–80 ms, uniform;
//! * 32.5 % of the gaps after a tool call are an expert model's answer instead, so that they are 22 % of all
//!   gaps: lognormal with median 1.8 s and p90 5.6 s (gpt-oss-20b, 963 of 1,365) or 4.6 s and 8.9 s (Qwen3-32B);
//! * a user's turn is lognormal with median 9.6 s and p90 23.4 s, at most 43.5 s (gpt-5 as the user).
//!
//! The shared prefix of a domain is its shortest first prompt less [`USER_TOKENS`] for the user's first words.
//! Programs alternate between the domains in the order of the reference driver until one has no more.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::draw::{Lognormal, to_millis};
use crate::harness::trace::{Program, SharedPrefix, Step, Then};

/// Tokens of the shortest first prompt that are taken for the user's own.
pub const USER_TOKENS: u32 = 24;
/// Domains in the order of the reference driver, and the source data's name for them.
const DOMAINS: [(&str, &str); 2] = [("retail", "orch8b_retail"), ("airline", "orch8b_airline")];
/// Share of the gaps after a tool call that are an expert's answer.
const EXPERT_SHARE: f64 = 0.325;
/// Share of the expert answers that the faster model gives.
const FAST_EXPERT_SHARE: f64 = 963.0 / 1365.0;

/// Makes the programs from the text of `tau2_steps.csv`.
///
/// # Errors
/// When a column is missing or a row does not parse; the message names the row.
pub fn make(csv: &str, seed: u64) -> anyhow::Result<Vec<Program>> {
    let rows = parse(csv)?;
    let mut queues = Vec::new();
    for (domain, source) in DOMAINS {
        let of_domain: Vec<&Row<'_>> = rows.iter().filter(|row| row.source == source).collect();
        ensure!(
            !of_domain.is_empty(),
            "tau2_steps.csv has no rows of {source}"
        );
        queues.push(programs_of(domain, &of_domain)?.into_iter());
    }
    let mut gaps = Gaps::new(seed)?;
    let mut programs = Vec::new();
    loop {
        let before = programs.len();
        programs.extend(queues.iter_mut().filter_map(Iterator::next));
        if programs.len() == before {
            break;
        }
    }
    for step in programs.iter_mut().flat_map(|p| &mut p.steps) {
        gaps.fill(step);
    }
    Ok(programs)
}

/// One agent step of the source data.
#[derive(Debug)]
struct Row<'a> {
    source: &'a str,
    program: &'a str,
    prompt_tokens: u32,
    output_tokens: u32,
    after_tool: bool,
}

fn parse(csv: &str) -> anyhow::Result<Vec<Row<'_>>> {
    let mut lines = csv.lines().enumerate();
    let (_, header) = lines.next().context("tau2_steps.csv is empty")?;
    let names: Vec<&str> = header.split(',').collect();
    let column = |name: &str| {
        names
            .iter()
            .position(|n| *n == name)
            .with_context(|| format!("tau2_steps.csv has no column {name:?}"))
    };
    let (source, program, role) = (column("source")?, column("program")?, column("role")?);
    let (prompt, output) = (column("prompt_tokens")?, column("completion_tokens")?);
    let after = column("after")?;
    let mut rows = Vec::new();
    for (index, line) in lines {
        let cells: Vec<&str> = line.split(',').collect();
        ensure!(
            cells.len() == names.len(),
            "tau2_steps.csv line {}: {} cells, not {}",
            index + 1,
            cells.len(),
            names.len()
        );
        if cells[role] != "agent" || !cells[source].starts_with("orch8b_") {
            continue;
        }
        let number = |cell: &str| {
            cell.parse::<u32>()
                .with_context(|| format!("tau2_steps.csv line {}: {cell:?}", index + 1))
        };
        rows.push(Row {
            source: cells[source],
            program: cells[program],
            prompt_tokens: number(cells[prompt])?,
            output_tokens: number(cells[output])?,
            after_tool: cells[after] == "tool",
        });
    }
    Ok(rows)
}

/// The programs of one domain, in source order, with gaps still to fill.
fn programs_of(domain: &str, rows: &[&Row<'_>]) -> anyhow::Result<Vec<Program>> {
    let mut order: Vec<&str> = Vec::new();
    let mut steps: BTreeMap<&str, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows {
        steps
            .entry(row.program)
            .or_insert_with(|| {
                order.push(row.program);
                Vec::new()
            })
            .push(row);
    }
    let shortest = steps.values().filter_map(|s| s.first());
    let shortest = shortest.map(|row| row.prompt_tokens).min();
    let tokens = shortest
        .and_then(|n| n.checked_sub(USER_TOKENS))
        .with_context(|| format!("a first prompt of {domain} is shorter than {USER_TOKENS}"))?;
    let program = |(index, name): (usize, &&str)| Program {
        program: format!("{domain}-{index}"),
        kind: domain.to_owned(),
        shared_prefix: SharedPrefix {
            id: format!("tau2-{domain}"),
            tokens,
        },
        steps: chain(&steps[name]),
    };
    Ok(order.iter().enumerate().map(program).collect())
}

/// Steps of one program: what follows a step is what came before the next.
fn chain(rows: &[&Row<'_>]) -> Vec<Step> {
    let then = |next: Option<&&Row<'_>>| match next {
        Some(next) if next.after_tool => Then::Tool("environment".to_owned()),
        Some(_) => Then::User,
        None => Then::End,
    };
    rows.iter()
        .enumerate()
        .map(|(index, row)| Step {
            prompt_tokens: row.prompt_tokens,
            output_tokens: row.output_tokens,
            then: then(rows.get(index + 1)),
            gap_s: 0.0,
        })
        .collect()
}

/// The distributions of the three kinds of gap, and their generator.
#[derive(Debug)]
struct Gaps {
    rng: ChaCha8Rng,
    user: Lognormal,
    fast_expert: Lognormal,
    slow_expert: Lognormal,
}

impl Gaps {
    fn new(seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            user: Lognormal::fit(9.6, 23.4, 43.5)?,
            fast_expert: Lognormal::fit(1.8, 5.6, f64::INFINITY)?,
            slow_expert: Lognormal::fit(4.6, 8.9, f64::INFINITY)?,
        })
    }

    /// Draws the gap after `step`, and which tool it is.
    fn fill(&mut self, step: &mut Step) {
        let gap_s = match step.then {
            Then::End => 0.0,
            Then::User => self.user.draw(&mut self.rng),
            Then::Tool(_) if self.rng.random_bool(EXPERT_SHARE) => {
                step.then = Then::Tool("call_expert".to_owned());
                let fast = self.rng.random_bool(FAST_EXPERT_SHARE);
                let expert = if fast {
                    self.fast_expert
                } else {
                    self.slow_expert
                };
                expert.draw(&mut self.rng)
            }
            Then::Tool(_) => self.rng.random_range(0.02..0.08),
        };
        step.gap_s = to_millis(gap_s);
    }
}
