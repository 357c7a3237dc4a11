//! Whether a run's files say what its figures claim: everything that was met, the worst first. Pure.
//!
//! | severity | meaning | exit status |
//! |---|---|---|
//! | [`Severity::Incomplete`] | work is missing or misplaced: the run's figures do not stand, and it cannot win | 3 |
//! | [`Severity::NoWindow`] | the active window is missing or wrong; whole-run figures stand | 3 |
//! | [`Severity::Note`] | worth knowing | 0 |

use serde::Serialize;

use super::{detail, zone};
use crate::harness::run::{DriverSummary, Ended, FileIntake, Run};
use crate::harness::rundir::Ending;
use crate::harness::window::{NoWindow, Window};
use crate::telemetry::kv_csv;
use crate::telemetry::recorder::STEPS_FILE;

/// Samples may begin this long after the first event, and end before the last, in seconds.
const UNSAMPLED_S: f64 = 60.0;
/// Share of the run that samples may miss at an end before the window is in doubt, fraction 0–1.
const UNSAMPLED_SHARE: f64 = 0.02;
/// Share of the run that a hole in the samples may take, fraction 0–1.
const HOLE_SHARE: f64 = 0.1;
/// Share of samples that may be no numbers, fraction 0–1.
const NAN_SHARE: f64 = 0.1;
/// Share of a file's lines that may be unreadable, fraction 0–1.
const UNPARSED_SHARE: f64 = 0.01;
/// A sampler that runs on for this long after the last event may have been forgotten, in seconds.
const FORGOTTEN_S: f64 = 600.0;
/// KV usage that no rounding explains, in percent.
const IMPOSSIBLE_PERCENT: f64 = 110.0;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The run's figures do not stand, and it cannot win.
    Incomplete,
    /// The active window is missing or wrong.
    NoWindow,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// Whether the command fails unless told to go on.
    pub const fn is_fatal(self) -> bool {
        !matches!(self, Self::Note)
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was met, and what mends it.
    pub text: String,
    /// A line of the data that shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
}

impl Finding {
    fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self {
            severity,
            text: text.into(),
            example: None,
        }
    }
}

/// Everything there is to say of a run, the worst first.
pub fn findings(run: &Run, threshold_percent: f64) -> Vec<Finding> {
    let mut found = Vec::new();
    missing(run, &mut found);
    ending(run, &mut found);
    results(run, &mut found);
    lost_records(run, &mut found);
    lost_steps(run, &mut found);
    for file in &run.intake.files {
        unparsed(file, &mut found);
    }
    if !wrong_zone(run, &mut found) {
        coverage(run, &mut found);
    }
    no_numbers(run, &mut found);
    impossible_usage(run, &mut found);
    window(run, threshold_percent, &mut found);
    remarks(run, &mut found);
    found.sort_by_key(|finding| finding.severity);
    found
}

fn missing(run: &Run, found: &mut Vec<Finding>) {
    for missing in &run.intake.missing {
        let severity = match (missing.fatal, missing.file) {
            (false, _) => Severity::Note,
            (true, kv_csv::FILE) => Severity::NoWindow,
            (true, _) => Severity::Incomplete,
        };
        let text = format!("{} is missing: {}", missing.file, missing.without);
        found.push(Finding::new(severity, text));
    }
    for damaged in &run.intake.damaged {
        let text = format!(
            "{} cannot be read ({}), as a killed run leaves it",
            damaged.file, damaged.why
        );
        found.push(Finding::new(Severity::Incomplete, text));
    }
    if run.steps.is_empty() && run.programs.is_empty() {
        let text = "no step and no program was recorded";
        found.push(Finding::new(Severity::Incomplete, text));
    }
}

fn ending(run: &Run, found: &mut Vec<Finding>) {
    if let Ended::Killed(summary) = run.intake.ended {
        let open = match detail::unended(run).count() {
            0 => String::new(),
            count => format!(", and {count} programs are without an end"),
        };
        let text = format!("the run was killed or is still running: {summary} is not there{open}");
        found.push(Finding::new(Severity::Incomplete, text));
    }
    let cancelled = run.ended_as(Ending::Cancelled).count();
    if cancelled > 0 {
        let text = format!("the run was interrupted: {cancelled} programs were cut off");
        found.push(Finding::new(Severity::Incomplete, text));
    }
}

/// Every program of the set should have come to an end, one way or the other.
fn results(run: &Run, found: &mut Vec<Finding>) {
    let ended = run.programs.len() - run.open().count();
    if let Some(expected) = run.expected
        && ended < expected
    {
        let text = format!("fewer results than tasks: {ended} of {expected} programs ended");
        found.push(Finding::new(Severity::Incomplete, text));
    }
    let Some(DriverSummary {
        ok, error, total, ..
    }) = run.intake.driver
    else {
        return;
    };
    let done = run.done().count() as u64;
    let recorded = run
        .intake
        .missing
        .iter()
        .all(|missing| !missing.tells_of_programs);
    if ok != done && recorded {
        let text = format!("the driver counts {ok} finished tasks, its log has {done}");
        found.push(Finding::new(Severity::Incomplete, text));
    }
    if run.expected.is_none() && ok + error < total {
        let text = format!("fewer results than tasks: {ok} ok and {error} failed of {total}");
        found.push(Finding::new(Severity::Incomplete, text));
    }
    if let Some(files) = run.intake.result_files
        && (files as u64) < ok + error
    {
        let text = format!("{files} result files for {ok} finished and {error} failed tasks");
        found.push(Finding::new(Severity::Note, text));
    }
}

fn lost_records(run: &Run, found: &mut Vec<Finding>) {
    if run.intake.dropped > 0 {
        let text = format!(
            "the gate's recorder dropped {} records because its disk was too slow",
            run.intake.dropped
        );
        found.push(Finding::new(Severity::Incomplete, text));
    }
    let recorded = run.served().count();
    if let Some(client) = run.intake.client_served
        && client > recorded
    {
        let text = format!(
            "steps.jsonl lacks {} of the {client} steps that the client saw served: the gate dropped them, or was killed",
            client - recorded
        );
        found.push(Finding::new(Severity::Incomplete, text));
    }
}

/// Work that a log should tell of and does not.
fn lost_steps(run: &Run, found: &mut Vec<Finding>) {
    let mut files = run.intake.files.iter();
    if files.any(|file| file.file == "driver.log" && file.records == 0) {
        let text = "nothing in driver.log could be read: it has no line of the reference driver";
        found.push(Finding::new(Severity::Incomplete, text));
    }
    if let Some((driver, profile)) = run.intake.steps_in_logs
        && profile < driver
    {
        let text = format!(
            "logs/tau2_global.log is cut short: it has {profile} steps, driver.log {driver}, which were taken"
        );
        found.push(Finding::new(Severity::Incomplete, text));
    }
    let done = run.done().count();
    let mut missing = run.intake.missing.iter();
    let unrecorded = missing.any(|missing| missing.file == STEPS_FILE && !missing.fatal);
    if run.steps.is_empty() && done > 0 && !unrecorded {
        let text = format!("{done} programs finished, and no step was recorded");
        found.push(Finding::new(Severity::Incomplete, text));
    }
}

#[expect(clippy::cast_precision_loss, reason = "line counts below 2^52")]
fn unparsed(file: &FileIntake, found: &mut Vec<Finding>) {
    let Some((number, line)) = &file.example else {
        return;
    };
    let all = file.records + file.unparsed;
    let severity = match file.unparsed as f64 / all.max(1) as f64 {
        share if share > UNPARSED_SHARE => Severity::Incomplete,
        _ => Severity::Note,
    };
    let text = format!(
        "{}: {} of {all} lines could not be read",
        file.file, file.unparsed
    );
    found.push(Finding {
        example: Some(match number {
            Some(number) => format!("line {number}: {line}"),
            None => line.clone(),
        }),
        ..Finding::new(severity, text)
    });
}

/// Whether the events lie outside the samples, all of them.
fn wrong_zone(run: &Run, found: &mut Vec<Finding>) -> bool {
    let Some(sampled) = run.sampled() else {
        return false;
    };
    let events = zone::events(run);
    if events.is_empty() || zone::inside(&events, sampled, 0) > 0 {
        return false;
    }
    let count = events.len();
    let shift = zone::shift(&events, sampled);
    let text = match run.intake.zone.as_ref().zip(shift) {
        Some((read_as, shift)) => {
            let moved = zone::inside(&events, sampled, shift);
            let remedy = zone::meant(shift, &read_as.name).map_or_else(
                || "add the right --log-tz".to_owned(),
                |zone| format!("the log's zone seems to be {zone}: add --log-tz={zone}"),
            );
            format!(
                "wrong time zone: none of {count} events falls into the KV samples, {moved} would {}; \
                 log times were read as {}, {}; {remedy}",
                zone::hours(shift),
                read_as.name,
                read_as.source
            )
        }
        None => {
            format!("none of {count} events falls into the KV samples: they are of another run")
        }
    };
    found.push(Finding::new(Severity::Incomplete, text));
    true
}

fn coverage(run: &Run, found: &mut Vec<Finding>) {
    let events = zone::events(run);
    let span = events.first().zip(events.last());
    let (Some((&start_s, &end_s)), Some(times)) = (span, sample_times(run)) else {
        return;
    };
    let length_s = (end_s - start_s).max(f64::MIN_POSITIVE);
    let uncovered = [
        (
            "begin",
            "after the run's first event",
            times.first_s - start_s,
        ),
        ("end", "before the run's last event", end_s - times.last_s),
    ];
    for (verb, place, lack_s) in uncovered {
        if lack_s > UNSAMPLED_S {
            let severity = doubt(lack_s / length_s > UNSAMPLED_SHARE);
            let text =
                format!("the KV samples do not cover the run: they {verb} {lack_s:.0} s {place}");
            found.push(Finding::new(severity, text));
        }
    }
    if let Some((at_s, hole_s)) = times.hole.filter(|(_, hole_s)| *hole_s > UNSAMPLED_S) {
        let severity = doubt(hole_s / length_s > HOLE_SHARE);
        let after_s = at_s - start_s;
        let text = format!("no KV sample for {hole_s:.0} s, from {after_s:.0} s into the run");
        found.push(Finding::new(severity, text));
    }
    if times.last_s - end_s > FORGOTTEN_S {
        let text = format!(
            "the KV sampler ran on for {:.1} h after the last event: {} of its samples are of no work",
            (times.last_s - end_s) / 3600.0,
            run.samples().filter(|s| s.ts_s > floor(end_s)).count()
        );
        found.push(Finding::new(Severity::Note, text));
    }
}

const fn doubt(doubtful: bool) -> Severity {
    if doubtful {
        Severity::NoWindow
    } else {
        Severity::Note
    }
}

/// When the KV cache was sampled, in seconds.
struct SampleTimes {
    first_s: f64,
    last_s: f64,
    /// The longest stretch without a sample: its beginning and length.
    hole: Option<(f64, f64)>,
}

#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
fn sample_times(run: &Run) -> Option<SampleTimes> {
    let mut times: Vec<i64> = run.samples().map(|sample| sample.ts_s).collect();
    times.sort_unstable();
    let holes = times
        .windows(2)
        .map(|pair| (pair[0] as f64, (pair[1] - pair[0]) as f64));
    Some(SampleTimes {
        first_s: *times.first()? as f64,
        last_s: *times.last()? as f64,
        hole: holes.reduce(|a, b| if b.1 > a.1 { b } else { a }),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
const fn floor(at_s: f64) -> i64 {
    at_s.floor() as i64
}

#[expect(clippy::cast_precision_loss, reason = "sample counts below 2^52")]
fn no_numbers(run: &Run, found: &mut Vec<Finding>) {
    let all = run.samples().count();
    let bad = run.samples().filter(|s| s.usage_percent.is_nan());
    let bad = bad.count();
    if bad > 0 {
        let share = bad as f64 / all as f64;
        let text = format!(
            "{bad} of {all} KV samples are NaN: the backend did not answer the sampler ({:.0} %)",
            share * 100.0
        );
        found.push(Finding::new(doubt(share > NAN_SHARE), text));
    }
}

/// Usage is recorded as a fraction; a file of percentages reads a hundred times too high.
fn impossible_usage(run: &Run, found: &mut Vec<Finding>) {
    let usages = run.samples().map(|sample| sample.usage_percent);
    let highest = usages.fold(0.0, f64::max);
    if highest > IMPOSSIBLE_PERCENT {
        let text = format!(
            "KV usage reaches {highest:.0} %: the samples' values should be fractions from 0 to 1, and seem not to be"
        );
        found.push(Finding::new(Severity::Note, text));
    }
}

fn window(run: &Run, threshold_percent: f64, found: &mut Vec<Finding>) {
    match Window::active(run.samples(), threshold_percent) {
        Ok(window) => {
            let inside = zone::events(run).iter().any(|&at| window.contains(at));
            if !inside && run.span().is_some() {
                let text = "no event falls into the active window";
                found.push(Finding::new(Severity::NoWindow, text));
            }
        }
        // Said already.
        Err(NoWindow::NoSamples) if run.intake.is_missing(kv_csv::FILE) => {}
        Err(why) => {
            let text = match why {
                NoWindow::NoSamples | NoWindow::NoNumbers { .. } => {
                    format!("no active window: {why}")
                }
                NoWindow::NeverAbove { .. } | NoWindow::OneMoment { .. } => format!(
                    "no active window: {why}; choose another --threshold, or a run under pressure"
                ),
            };
            found.push(Finding::new(Severity::NoWindow, text));
        }
    }
}

fn remarks(run: &Run, found: &mut Vec<Finding>) {
    let intake = &run.intake;
    let mut note = |text: String| found.push(Finding::new(Severity::Note, text));
    if !intake.resumed.is_empty() {
        note(format!(
            "the run was cut short and went on at {}: makespan, whole-run rates and whatever lasted over a pause hold it",
            intake.resumed.join(" and ")
        ));
    }
    if intake.glued > 0 {
        note(format!(
            "{} log records stood behind other text on their line, and were read",
            intake.glued
        ));
    }
    if intake.tuple_markers > 0 {
        note(format!(
            "{} completion markers were printed as a Python tuple, and were read",
            intake.tuple_markers
        ));
    }
    if let Some((driver, profile)) = intake.steps_in_logs
        && driver < profile
    {
        note(format!(
            "driver.log has {driver} steps, logs/tau2_global.log {profile}, which were taken"
        ));
    }
    let untimed = run.done().filter(|program| !program.begin_known).count();
    if untimed > 0 {
        note(format!(
            "nothing says when {untimed} of the finished programs began: they are not in the program times"
        ));
    }
    if intake.programs_derived {
        note(
            "programs are derived from steps: one whose last request was served counts as finished"
                .to_owned(),
        );
    }
    if let Some(zone) = &intake.zone {
        note(format!(
            "log times were read as {}, {}",
            zone.name, zone.source
        ));
    }
}
