//! A run's records as batches of typed columns. Pure.

use super::{BATCH, Batch, Column};
use crate::harness::report::RunReport;
use crate::harness::report::metric::METRICS;
use crate::harness::run::{Call, LoadSample, Program, Request, Run, Step};
use crate::harness::rundir::Ending;
use crate::harness::window::KvSample;

/// The table `runs`.
pub fn runs(runs: &[RunReport]) -> Batch {
    let text = |of: fn(&RunReport) -> String| text(runs.iter().map(|run| Some(of(run))));
    let mut columns = vec![
        ("run", text(|run| run.label.clone())),
        ("policy", text(|run| run.measures.policy.clone())),
        ("dir", text(|run| run.dir.display().to_string())),
        ("workload", text(|run| run.measures.trace.clone())),
        (
            "concurrency",
            whole(
                runs.iter()
                    .map(|run| run.measures.concurrency.map(|c| c as u64)),
            ),
        ),
        (
            "complete",
            Column::Bool(runs.iter().map(|run| Some(run.complete)).collect()),
        ),
        (
            "steps_failed",
            whole(
                runs.iter()
                    .map(|run| Some(run.measures.steps_failed as u64)),
            ),
        ),
        (
            "programs_failed",
            whole(
                runs.iter()
                    .map(|run| Some(run.measures.programs_failed as u64)),
            ),
        ),
        (
            "programs_open",
            whole(
                runs.iter()
                    .map(|run| Some(run.measures.programs_open as u64)),
            ),
        ),
    ];
    for metric in &METRICS {
        let values = runs.iter().map(|run| (metric.of)(&run.measures).ok());
        columns.push((metric.key, Column::F64(values.collect())));
    }
    Batch {
        table: "runs",
        columns,
    }
}

/// Every other table of a run, batch by batch.
pub fn of(run: &Run) -> impl Iterator<Item = Batch> {
    let programs = chunks(run.programs.len()).map(|range| programs(run, &run.programs[range]));
    let steps = chunks(run.steps.len()).map(|range| {
        let requests = run.requests.get(range.clone()).unwrap_or_default();
        steps(run, &run.steps[range], requests)
    });
    let calls = chunks(run.calls.len()).map(|range| calls(run, &run.calls[range]));
    let samples = run.series.iter().flat_map(|series| {
        chunks(series.samples.len()).map(|range| samples(run, &series.name, &series.samples[range]))
    });
    let loads = chunks(run.loads.len()).map(|range| loads(run, &run.loads[range]));
    programs
        .chain(steps)
        .chain(calls)
        .chain(samples)
        .chain(loads)
}

/// Ranges of [`BATCH`] that cover `len`; an empty one if there is nothing, so that each table has its file.
fn chunks(len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = len.div_ceil(BATCH).max(1);
    (0..count).map(move |index| index * BATCH..((index + 1) * BATCH).min(len))
}

/// A column of texts.
pub fn text(values: impl Iterator<Item = Option<String>>) -> Column {
    Column::Text(values.collect())
}

/// A column of real numbers.
pub fn real(values: impl Iterator<Item = Option<f64>>) -> Column {
    Column::F64(values.collect())
}

/// A column of counts; what no `i64` holds is a null.
pub fn whole(values: impl Iterator<Item = Option<u64>>) -> Column {
    let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    Column::I64(values.map(signed).collect())
}

/// `run` and `policy`, the same in every row.
fn owner(run: &Run, rows: usize) -> Vec<(&'static str, Column)> {
    let same = |value: &String| Column::Text(vec![Some(value.clone()); rows]);
    vec![("run", same(&run.label)), ("policy", same(&run.policy))]
}

fn batch(
    table: &'static str,
    run: &Run,
    rows: usize,
    columns: impl IntoIterator<Item = (&'static str, Column)>,
) -> Batch {
    let mut all = owner(run, rows);
    all.extend(columns);
    Batch {
        table,
        columns: all,
    }
}

fn programs(run: &Run, rows: &[Program]) -> Batch {
    let ending = |program: &Program| {
        let word = match program.ending? {
            Ending::Done => "done",
            Ending::Failed => "failed",
            Ending::Cancelled => "cancelled",
        };
        Some(word.to_owned())
    };
    let columns = [
        ("program", text(rows.iter().map(|p| Some(p.name.clone())))),
        ("kind", text(rows.iter().map(|p| Some(p.kind.clone())))),
        (
            "started_s",
            real(rows.iter().map(|p| p.begin_known.then_some(p.started_s))),
        ),
        ("finished_s", real(rows.iter().map(|p| Some(p.last_s)))),
        ("ending", text(rows.iter().map(ending))),
    ];
    batch("programs", run, rows.len(), columns)
}

fn program_names(run: &Run, programs: impl Iterator<Item = Option<u32>>) -> Column {
    let name = |program: Option<u32>| program.map(|_| run.program_name(program).to_owned());
    text(programs.map(name))
}

fn steps(run: &Run, rows: &[Step], requests: &[Request]) -> Batch {
    let mut columns = vec![
        (
            "program",
            program_names(run, rows.iter().map(|s| s.program)),
        ),
        (
            "step_index",
            whole(rows.iter().map(|s| Some(u64::from(s.index)))),
        ),
        (
            "from_role",
            text(rows.iter().map(|s| Some(s.edge.from.word().to_owned()))),
        ),
        (
            "to_role",
            text(rows.iter().map(|s| Some(s.edge.to.word().to_owned()))),
        ),
        (
            "served",
            Column::Bool(rows.iter().map(|s| Some(s.served)).collect()),
        ),
        ("started_s", real(rows.iter().map(|s| Some(s.started_s)))),
        ("finished_s", real(rows.iter().map(|s| Some(s.finished_s)))),
    ];
    columns.extend(request_columns(run, rows.len(), requests));
    batch("steps", run, rows.len(), columns)
}

/// Columns of what only a gate or client knows: `rows` nulls each where `requests` is empty.
fn request_columns(run: &Run, rows: usize, requests: &[Request]) -> Vec<(&'static str, Column)> {
    let each = || (0..rows).map(|row| requests.get(row));
    let real_of = |of: fn(&Request) -> Option<f64>| real(each().map(|r| r.and_then(of)));
    let whole_of =
        |of: fn(&Request) -> Option<u32>| whole(each().map(|r| r.and_then(of).map(u64::from)));
    let name = |number: u32| run.names.name(number).to_owned();
    vec![
        ("admitted_s", real_of(|r| r.admitted_s)),
        ("first_token_s", real_of(|r| r.first_token_s)),
        ("hold_s", real_of(|r| Some(r.hold_s))),
        ("ttft_s", real_of(|r| r.ttft_s)),
        ("tpot_s", real_of(|r| r.tpot_s)),
        ("tool_gap_s", real_of(|r| r.tool_gap_s)),
        ("prompt_tokens", whole_of(|r| r.prompt_tokens)),
        ("cached_tokens", whole_of(|r| r.cached_tokens)),
        ("output_tokens", whole_of(|r| r.output_tokens)),
        (
            "tool",
            text(each().map(|r| r.and_then(|r| r.tool).map(name))),
        ),
        ("outcome", text(each().map(|r| r.map(|r| name(r.outcome))))),
        ("status", whole_of(|r| Some(u32::from(r.status)))),
    ]
}

fn calls(run: &Run, rows: &[Call]) -> Batch {
    let columns = [
        (
            "program",
            program_names(run, rows.iter().map(|c| c.program)),
        ),
        (
            "step_index",
            whole(rows.iter().map(|c| Some(u64::from(c.step)))),
        ),
        (
            "kind",
            text(rows.iter().map(|c| Some(c.kind.word().to_owned()))),
        ),
        ("ended_s", real(rows.iter().map(|c| Some(c.ended_s)))),
        ("duration_s", real(rows.iter().map(|c| Some(c.seconds)))),
    ];
    batch("calls", run, rows.len(), columns)
}

fn samples(run: &Run, series: &str, rows: &[KvSample]) -> Batch {
    let columns = [
        (
            "ts_s",
            Column::I64(rows.iter().map(|s| Some(s.ts_s)).collect()),
        ),
        (
            "series",
            Column::Text(vec![Some(series.to_owned()); rows.len()]),
        ),
        (
            "kv_usage_percent",
            // A backend that did not answer is a null, which sums and maxima leave out.
            real(
                rows.iter()
                    .map(|s| Some(s.usage_percent).filter(|usage| !usage.is_nan())),
            ),
        ),
    ];
    batch("samples", run, rows.len(), columns)
}

fn loads(run: &Run, rows: &[LoadSample]) -> Batch {
    let columns = [
        ("ts_s", real(rows.iter().map(|l| Some(l.ts_s)))),
        (
            "backend",
            whole(rows.iter().map(|l| Some(u64::from(l.backend)))),
        ),
        ("kv_usage", real(rows.iter().map(|l| l.kv_usage))),
        (
            "running",
            whole(rows.iter().map(|l| l.running.map(u64::from))),
        ),
        (
            "waiting",
            whole(rows.iter().map(|l| l.waiting.map(u64::from))),
        ),
        ("held", whole(rows.iter().map(|l| Some(u64::from(l.held))))),
    ];
    batch("loads", run, rows.len(), columns)
}
