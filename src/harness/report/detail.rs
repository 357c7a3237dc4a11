//! What one run did where and when: work around the window, edges between roles, calls and their tails, what never
//! ended, and where it got stuck. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::harness::measure::Measures;
use crate::harness::run::{Call, CallKind, DriverSummary, Edge, Program, Run};
use crate::harness::stats::Spread;
use crate::harness::window::Window;

/// Calls longer than this make a tail, in seconds.
pub const TAIL_S: f64 = 300.0;
/// Calls longer than this outlast the time that OpenAI's clients wait twice, in seconds.
pub const LONG_TAIL_S: f64 = 1200.0;
/// Slowest calls that are listed.
const SLOWEST: usize = 10;
/// Programs that never ended that are listed.
const OPEN: usize = 50;
/// Programs without an end and silence for this long make a run stuck, in seconds.
const STUCK_S: f64 = 60.0;

/// How the gate begins the names of programs that it inferred.
const INFERRED: &str = "inferred:";

/// The details of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Detail {
    /// The run's first and last event, Unix seconds.
    pub span: Option<(f64, f64)>,
    /// Programs that finished before, in and after the window.
    pub tasks: Option<Split>,
    /// Steps that were served before, in and after the window.
    pub steps: Option<Split>,
    /// Steps by who acted and who is next; in the window, or over the whole run without one.
    pub edges: Vec<EdgeRate>,
    /// Distributions of what took time, by kind.
    pub calls: Vec<CallStats>,
    /// The slowest LLM calls of the run, the slowest first.
    pub slowest: Vec<SlowCall>,
    /// Programs that began and never ended, the longest silent first; at most 50.
    pub open: Vec<OpenProgram>,
    /// How many there are.
    pub open_total: usize,
    /// Where the run got stuck, if it did.
    pub stuck: Option<Stuck>,
    /// The reference driver's own figures.
    pub driver: Option<DriverSummary>,
}

/// Counts before, in and after the active window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Split {
    /// Before it.
    pub before: usize,
    /// In it.
    pub inside: usize,
    /// After it.
    pub after: usize,
}

/// How often one role handed over to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EdgeRate {
    /// `agent->env`.
    pub edge: String,
    /// Steps.
    pub steps: usize,
    /// Steps per second.
    pub per_s: f64,
}

/// The distribution of one kind of call.
#[derive(Clone, Debug, Serialize)]
pub struct CallStats {
    /// The kind.
    pub kind: CallKind,
    /// Those that ended in the window; `None` without a window or such calls.
    pub window: Option<Spread>,
    /// All of the run.
    pub run: Spread,
    /// Calls of the run over 300 s.
    pub over_300_s: usize,
    /// Calls of the run over 1200 s.
    pub over_1200_s: usize,
}

/// A call that took long.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowCall {
    /// How long, seconds.
    pub seconds: f64,
    /// When it ended, Unix seconds.
    pub ended_s: f64,
    /// Position in its program.
    pub step: u32,
    /// Its program; empty for a request without identity.
    pub program: String,
    /// Whether it ended in the active window.
    pub in_window: bool,
}

/// A program that never ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpenProgram {
    /// The program.
    pub program: String,
    /// It began, Unix seconds.
    pub started_s: f64,
    /// Its last event, Unix seconds; the call that never ended began then or later.
    pub last_s: f64,
    /// From there to the last sample or event of the run, seconds.
    pub silent_s: f64,
}

/// A run that did nothing more.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stuck {
    /// The last event, Unix seconds.
    pub since_s: f64,
    /// From there to the last sample, seconds.
    pub silent_s: f64,
    /// KV usage at the last sample before it, percent.
    pub kv_before: Option<f64>,
    /// KV usage in the silence, percent; `None` without samples.
    pub kv: Option<Spread>,
    /// The lowest KV usage in the silence, percent.
    pub kv_least: Option<f64>,
}

impl Detail {
    /// The details of `run`, whose figures are `measures`.
    pub fn of(run: &Run, measures: &Measures) -> Self {
        let window = measures.window.window();
        let mut open: Vec<&Program> = unended(run).collect();
        open.sort_by(|a, b| a.last_s.total_cmp(&b.last_s));
        let end_s = observed_until(run);
        Self {
            span: run.span(),
            tasks: window.map(|window| split(window, run.done().map(|program| program.last_s))),
            steps: window.map(|window| split(window, run.served().map(|step| step.finished_s))),
            edges: edges(run, window, measures.whole.map(|whole| whole.seconds)),
            calls: CallKind::ALL
                .iter()
                .filter_map(|kind| call_stats(run, *kind, window))
                .collect(),
            slowest: slowest(run, window),
            open_total: open.len(),
            open: open
                .iter()
                .take(OPEN)
                .map(|program| open_program(program, end_s))
                .collect(),
            stuck: stuck(run),
            driver: run.intake.driver,
        }
    }
}

/// Programs that began and never ended. Where tasks were recorded, a program that the gate inferred is none of them, and
/// nothing would have told of its end.
pub fn unended(run: &Run) -> impl Iterator<Item = &Program> {
    let recorded = run.programs.iter().any(|program| program.ending.is_some());
    run.open()
        .filter(move |program| !recorded || !program.name.starts_with(INFERRED))
}

fn split(window: Window, ends: impl Iterator<Item = f64>) -> Split {
    let mut split = Split::default();
    for end in ends {
        if window.contains(end) {
            split.inside += 1;
        } else if window.is_after(end) {
            split.after += 1;
        } else {
            split.before += 1;
        }
    }
    split
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn edges(run: &Run, window: Option<Window>, whole_s: Option<f64>) -> Vec<EdgeRate> {
    let seconds = window.map(|window| window.seconds()).or(whole_s);
    let mut counts: BTreeMap<Edge, usize> = BTreeMap::new();
    for step in run.served() {
        if window.is_none_or(|window| window.contains(step.finished_s)) {
            *counts.entry(step.edge).or_default() += 1;
        }
    }
    let rate = |(edge, steps): (Edge, usize)| EdgeRate {
        edge: edge.to_string(),
        steps,
        per_s: seconds.map_or(0.0, |seconds| steps as f64 / seconds),
    };
    counts.into_iter().map(rate).collect()
}

fn call_stats(run: &Run, kind: CallKind, window: Option<Window>) -> Option<CallStats> {
    let of_kind = || run.calls.iter().filter(move |call| call.kind == kind);
    let over = |limit: f64| of_kind().filter(|call| call.seconds > limit).count();
    let inside = |call: &&Call| window.is_some_and(|window| window.contains(call.ended_s));
    let spread = |calls: &mut dyn Iterator<Item = &Call>| {
        Spread::of(&mut calls.map(|call| call.seconds).collect::<Vec<f64>>())
    };
    Some(CallStats {
        kind,
        window: spread(&mut of_kind().filter(inside)),
        run: spread(&mut of_kind())?,
        over_300_s: over(TAIL_S),
        over_1200_s: over(LONG_TAIL_S),
    })
}

fn slowest(run: &Run, window: Option<Window>) -> Vec<SlowCall> {
    // Of a million calls ten are kept; of equals the first.
    let mut longest: Vec<&Call> = Vec::new();
    let calls = run.calls.iter();
    for call in calls.filter(|call| call.kind == CallKind::LlmCall) {
        let place = longest.partition_point(|other| other.seconds >= call.seconds);
        if place < SLOWEST {
            longest.insert(place, call);
            longest.truncate(SLOWEST);
        }
    }
    let slow = |call: &&Call| SlowCall {
        seconds: call.seconds,
        ended_s: call.ended_s,
        step: call.step,
        program: run.program_name(call.program).to_owned(),
        in_window: window.is_some_and(|window| window.contains(call.ended_s)),
    };
    longest.iter().map(slow).collect()
}

fn open_program(program: &Program, end_s: f64) -> OpenProgram {
    OpenProgram {
        program: program.name.clone(),
        started_s: program.started_s,
        last_s: program.last_s,
        silent_s: end_s - program.last_s,
    }
}

/// Until when something was watched: the last sample or event.
#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
fn observed_until(run: &Run) -> f64 {
    let sampled = run
        .sampled()
        .map_or(f64::NEG_INFINITY, |(_, last)| last as f64);
    let happened = run.span().map_or(f64::NEG_INFINITY, |(_, last)| last);
    sampled.max(happened)
}

#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
fn stuck(run: &Run) -> Option<Stuck> {
    let (_, since_s) = run.span()?;
    let silent_s = observed_until(run) - since_s;
    // Without an end on record nobody knows of programs that did nothing yet: then the silence must do.
    let unfinished = unended(run).next().is_some() || run.intake.ended.is_killed();
    if !unfinished || silent_s < STUCK_S {
        return None;
    }
    let numbers = || {
        run.samples()
            .filter(|sample| !sample.usage_percent.is_nan())
    };
    let before = numbers()
        .filter(|s| s.ts_s as f64 <= since_s)
        .max_by_key(|s| s.ts_s);
    let silence = numbers().filter(|sample| sample.ts_s as f64 > since_s);
    let mut usages: Vec<f64> = silence.map(|sample| sample.usage_percent).collect();
    Some(Stuck {
        since_s,
        silent_s,
        kv_before: before.map(|sample| sample.usage_percent),
        kv: Spread::of(&mut usages),
        kv_least: usages.first().copied(),
    })
}
