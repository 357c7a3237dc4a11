//! `results.parquet`: a row for each task of a run, whatever was played.
//!
//! What a task came to is read from the first of these that is there: `rewards.jsonl` (tau2-bench), `programs.jsonl`
//! (replay), `outputs/all_domains/` (the reference's driver); what it cost at the gate from `steps.jsonl`, or from
//! `client_steps.jsonl` where there was no gate. What nobody recorded is a null.

mod costs;
mod tasks;

use std::fs;
use std::path::Path;

use anyhow::Context;

use self::costs::{Costs, Sums};
use self::tasks::Task;
use crate::harness::report::export::rows::{real, text, whole};
use crate::harness::report::export::{BATCH, Batch, Column, Sink, parquet};

/// The table, and its file's name.
const TABLE: &str = "results";

/// Writes `results.parquet` into the run directory `dir`, anew; returns how many rows it has. Memory grows with the
/// tasks, not with their steps.
///
/// # Errors
/// When a file cannot be read or written, or nothing says which tasks there were; the message names it.
pub fn write(dir: &Path) -> anyhow::Result<usize> {
    let tasks = tasks::read(dir)?;
    let costs = Costs::read(dir)?;
    let name = format!("{TABLE}.parquet");
    // A reader never meets half of a file.
    let part = dir.join(".results.part");
    let mut sink = parquet::Files::create(&part)?;
    let mut batches = tasks.chunks(BATCH);
    sink.write(&batch(batches.next().unwrap_or_default(), &costs))?;
    for tasks in batches {
        sink.write(&batch(tasks, &costs))?;
    }
    sink.finish()?;
    fs::rename(part.join(&name), dir.join(&name))
        .and_then(|()| fs::remove_dir(&part))
        .with_context(|| format!("cannot write {}", dir.join(&name).display()))?;
    Ok(tasks.len())
}

fn batch(tasks: &[Task], costs: &Costs) -> Batch {
    let sums: Vec<Option<&Sums>> = tasks.iter().map(|task| costs.of(task)).collect();
    let mut columns = task_columns(tasks, &sums);
    let whole_of = |of: fn(&Sums) -> Option<u64>| whole(sums.iter().map(|sums| sums.and_then(of)));
    let real_of = |of: fn(&Sums) -> Option<f64>| real(sums.iter().map(|sums| sums.and_then(of)));
    columns.extend([
        ("requests", whole_of(|sums| Some(sums.requests))),
        ("requests_failed", whole_of(|sums| Some(sums.failed))),
        ("prompt_tokens", whole_of(|sums| sums.prompt_tokens)),
        ("cached_tokens", whole_of(|sums| sums.cached_tokens)),
        ("output_tokens", whole_of(|sums| sums.output_tokens)),
        ("held", whole_of(|sums| sums.held)),
        ("held_s", real_of(|sums| sums.held_s)),
        ("first_token_s", real_of(|sums| sums.first_token_s)),
        ("served_s", real_of(|sums| Some(sums.served_s))),
        ("gap_s", real_of(|sums| sums.gap_s)),
    ]);
    Batch {
        table: TABLE,
        columns,
    }
}

/// What a task came to. Where only a gate saw when, its times are those of the program's requests.
fn task_columns(tasks: &[Task], sums: &[Option<&Sums>]) -> Vec<(&'static str, Column)> {
    let text_of =
        |of: fn(&Task) -> Option<&str>| text(tasks.iter().map(|t| of(t).map(str::to_owned)));
    let whole_of = |of: fn(&Task) -> Option<u64>| whole(tasks.iter().map(of));
    let each = || tasks.iter().zip(sums.iter().copied());
    let started = each().map(|(task, sums)| task.started_s.or_else(|| Some(sums?.began_s)));
    let finished = each().map(|(task, sums)| task.finished_s.or_else(|| Some(sums?.ended_s)));
    let lasted = started
        .clone()
        .zip(finished.clone())
        .map(|(from, to)| Some(to? - from?));
    let program = each().map(|(task, sums)| {
        let program = task.program.as_ref().or_else(|| Some(&sums?.program));
        program.cloned()
    });
    vec![
        ("program", text(program)),
        ("kind", text_of(|task| Some(&task.kind))),
        ("task", text_of(|task| task.id.as_deref())),
        ("trial", whole_of(|task| task.trial.map(u64::from))),
        ("seed", whole_of(|task| task.seed.map(u64::from))),
        ("attempt", whole_of(|task| task.attempt.map(u64::from))),
        ("status", text_of(|task| Some(task.status.word()))),
        ("reward", real(tasks.iter().map(|task| task.reward))),
        ("cause", text_of(|task| task.cause.as_deref())),
        ("termination", text_of(|task| task.termination.as_deref())),
        ("started_s", real(started)),
        ("finished_s", real(finished)),
        ("duration_s", real(lasted)),
        ("steps", whole_of(|task| task.steps)),
        ("llm_calls", whole_of(|task| task.llm_calls)),
    ]
}

#[cfg(test)]
mod tests;
