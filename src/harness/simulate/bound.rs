//! A makespan that no policy can beat: what is left between the best one and this is memory, packing, or a better
//! policy.
//!
//! Every step computes only what it adds (each shared prefix once in the run), no token of history ever again.
//! Decoding one token of a step holds the step's private context for an iteration, and an iteration has room for
//! the cache less the smallest shared prefix, so the decodes need at least (Σ private context over decoded tokens) /
//! room iterations, and at least one for each token of the slots' widest steps. Beside the GPU's time stand the slots:
//! each program takes at least the time it would take alone. The bound is loose: it knows nothing of the room that
//! programs take through their gaps, nor of packing.

use std::collections::BTreeSet;

use super::Cell;
use super::slot::Slot;
use super::workload::Program;
use crate::harness::engine::core::CostModel;
use crate::policy::Time;

/// Sums over all programs of a cell.
#[derive(Debug, Default)]
struct Sums {
    prefilled: f64,
    pairs: f64,
    decoded: f64,
    context: f64,
    private: f64,
    alone_s: f64,
    longest_s: f64,
    widest: u32,
}

/// The lower bound of the cell's makespan, in seconds.
pub fn makespan_s(cell: &Cell) -> f64 {
    let cost = cell.engine.cost;
    let mut sums = Sums::default();
    let mut groups = BTreeSet::new();
    for program in cell.fixed_programs() {
        if groups.insert((program.group, program.shared)) {
            let shared = f64::from(program.shared);
            sums.prefilled += shared;
            sums.pairs += shared * shared / 2.0;
        }
        sums.add(cell, program);
    }
    let smallest = groups.iter().map(|(_, shared)| *shared).min().unwrap_or(0);
    let capacity = f64::from(cell.engine.usable_blocks()) * f64::from(cell.engine.block_size);
    let room = (capacity - f64::from(smallest)).max(1.0);
    let concurrency = cell.concurrency.max(1);
    let seats = concurrency
        .saturating_mul(sums.widest)
        .min(cell.engine.max_num_seqs);
    let iterations = (sums.private / room).max(sums.decoded / f64::from(seats.max(1)));
    let slots_s = sums.alone_s / f64::from(concurrency);
    sums.gpu_s(&cost, iterations)
        .max(slots_s)
        .max(sums.longest_s)
}

impl Sums {
    fn add(&mut self, cell: &Cell, program: Program) {
        let cost = cell.engine.cost;
        let count = program.steps.len();
        let shared = program.shared;
        let mut slot = Slot::new(program, &cell.engine, Time::ZERO);
        let mut known = slot.prompt();
        let mut alone_s = 0.0;
        for index in 0..count {
            let step = slot.current();
            slot.begin_step(cell.history);
            let prompt = slot.prompt();
            let new = f64::from(prompt.saturating_sub(known));
            let pairs = new * (f64::from(known) + new / 2.0);
            // The first token comes with the prompt.
            let decodes = f64::from(step.output.saturating_sub(1));
            let context = decodes * f64::from(prompt) + decodes * (decodes + 1.0) / 2.0;
            let branches = f64::from(step.branches.max(1));
            self.prefilled += new;
            self.pairs += pairs;
            self.decoded += branches * decodes;
            self.context += branches * context;
            // Branches share their prompt's blocks.
            self.private += context - decodes * f64::from(shared);
            self.widest = self.widest.max(step.branches.max(1));
            alone_s += cost.http(prompt).as_secs_f64()
                + cost.iteration_s
                + cost.weights_s.max(cost.token_s * new)
                + cost.prefill_pair_s * pairs
                + decodes * (cost.iteration_s + cost.weights_s.max(cost.token_s) + cost.decode_s)
                + cost.decode_context_s * context;
            if index + 1 < count {
                alone_s += step.gap.as_secs_f64();
                slot.end_step(cell.history);
                known = match cell.history {
                    super::History::Kept => slot.prompt(),
                    super::History::Recut(_) | super::History::Corrected(_) => prompt,
                };
            }
        }
        self.alone_s += alone_s;
        self.longest_s = self.longest_s.max(alone_s);
    }

    /// The least time that the engine iterates.
    fn gpu_s(&self, cost: &CostModel, iterations: f64) -> f64 {
        let compute = cost.token_s * (self.prefilled + self.decoded);
        iterations * cost.iteration_s
            + (iterations * cost.weights_s).max(compute)
            + cost.decode_context_s * self.context
            + cost.prefill_pair_s * self.pairs
            + cost.decode_s * self.decoded
    }
}
