//! A run directory that kvgate wrote: gate, replay or both.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{kv, lines};
use crate::harness::run::build::{Builder, is_served};
use crate::harness::run::{Ended, FileIntake, Intake, LoadSample, Missing, Names, Run};
use crate::harness::rundir::{DIRECT, Manifest, ProgramRecord, RunDir, StepSource};
use crate::harness::tau2::outputs::{REWARDS, Reward};
use crate::harness::tau2::plan::Unit;
use crate::telemetry::recorder::{KV_SAMPLES_FILE, STEPS_FILE};
use crate::telemetry::{StepRecord, kv_csv};

/// Written by the replay.
const PROGRAMS: &str = "programs.jsonl";
const CLIENT_STEPS: &str = "client_steps.jsonl";
const MANIFEST: &str = "manifest.json";
const SUMMARY: &str = "summary.json";

/// Whether the directory holds a run of kvgate.
pub fn is_there(dir: &Path) -> bool {
    [STEPS_FILE, CLIENT_STEPS, PROGRAMS, MANIFEST]
        .iter()
        .any(|file| dir.join(file).is_file())
}

/// Reads it.
///
/// # Errors
/// When a file is there and cannot be read; the message names it.
pub fn read(dir: &Path) -> anyhow::Result<Run> {
    let replayed = dir.join(MANIFEST).is_file();
    let mut intake = Intake::default();
    let manifest = replayed.then(|| RunDir::at(dir).manifest());
    let manifest = manifest.and_then(|read| intake.read(MANIFEST, read));
    let by_gate = dir.join(STEPS_FILE).is_file();
    let source = if by_gate {
        StepSource::Gate
    } else {
        StepSource::Client
    };
    let mut builder = Builder::new(manifest.as_ref(), source);
    let mut files = Vec::new();
    let steps = if by_gate { STEPS_FILE } else { CLIENT_STEPS };
    files.extend(lines::json(dir, steps, |record| builder.step(&record))?);
    let mut missing = missing(dir, replayed, by_gate);
    // The driver of tau2-bench records no requests, and without a gate nothing else does.
    let ungated = manifest.as_ref().and_then(|it| it.policy.as_deref()) == Some(DIRECT);
    let unrecorded = files.is_empty() && ungated && is_played_to_its_end(dir);
    let gated = manifest.as_ref().is_some_and(Manifest::is_gated);
    let without = match (files.is_empty(), gated && !by_gate) {
        (true, _) if unrecorded => Some("steps are unknown without a gate"),
        (true, _) => Some("there are no steps to count"),
        (_, true) => Some(
            "the gate's holds and policy are unknown, and steps are taken from client_steps.jsonl",
        ),
        _ => None,
    };
    missing.extend(without.map(|without| Missing {
        file: STEPS_FILE,
        without,
        fatal: !unrecorded,
        tells_of_programs: false,
    }));
    files.extend(lines::json(dir, PROGRAMS, |record: ProgramRecord| {
        builder.program(&record);
    })?);
    let (rewards, judged) = rewards(dir)?;
    files.extend(judged);
    let mut run = builder.finish(replayed);
    run.rewards = rewards;
    run.intake.files = files;
    run.intake.missing = missing;
    run.intake.damaged = intake.damaged;
    run.intake.resumed = resumed(dir);
    run.intake.ended = ended(dir, replayed, &mut run.intake);
    if by_gate {
        run.intake.client_served = client_served(dir)?;
    }
    kv::read(dir, &mut run)?;
    loads(dir, &mut run)?;
    Ok(run)
}

fn missing(dir: &Path, replayed: bool, by_gate: bool) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut note = |file, without, fatal| {
        if !dir.join(file).is_file() {
            missing.push(Missing {
                file,
                without,
                fatal,
                tells_of_programs: file == PROGRAMS,
            });
        }
    };
    if replayed {
        note(PROGRAMS, "nothing says which programs finished", true);
    } else {
        note(
            MANIFEST,
            "nothing says what was played at which concurrency",
            false,
        );
    }
    if by_gate {
        note(
            KV_SAMPLES_FILE,
            "running, waiting and held requests are unknown",
            false,
        );
    }
    note(kv_csv::FILE, "there is no active window", true);
    missing
}

/// A replay writes its summary last; an experiment says in its manifest how it ended, and has no summary if tau2-bench
/// was played.
fn ended(dir: &Path, replayed: bool, intake: &mut Intake) -> Ended {
    match json_of(&dir.join(SUMMARY)).transpose() {
        Some(read) => intake
            .read(SUMMARY, read)
            .map_or(Ended::Unknown, |_| Ended::Summary),
        None if is_played_to_its_end(dir) => Ended::Summary,
        None if replayed => Ended::Killed(SUMMARY),
        None => Ended::Unknown,
    }
}

fn is_played_to_its_end(dir: &Path) -> bool {
    manifest_json(dir).is_some_and(|manifest| manifest["ended"]["outcome"] == "done")
}

/// When an experiment went on with this run.
fn resumed(dir: &Path) -> Vec<String> {
    let manifest = manifest_json(dir).unwrap_or_default();
    let moments = manifest["resumed"].as_array().into_iter().flatten();
    moments
        .filter_map(|moment| moment["time"].as_str())
        .map(str::to_owned)
        .collect()
}

/// Steps that the client saw served, to hold the gate's records against.
fn client_served(dir: &Path) -> anyhow::Result<Option<usize>> {
    let mut served = 0;
    let count = |record: StepRecord| served += usize::from(is_served(&record));
    let intake = lines::json(dir, CLIENT_STEPS, count)?;
    Ok(intake.map(|_| served))
}

/// What each unit of tau2 came to: its last attempt, if that was judged.
fn rewards(dir: &Path) -> anyhow::Result<(Vec<f64>, Option<FileIntake>)> {
    let mut last: BTreeMap<Unit, Option<f64>> = BTreeMap::new();
    let intake = lines::json(dir, REWARDS, |attempt: Reward| {
        last.insert(attempt.unit, attempt.finish.reward);
    })?;
    Ok((last.into_values().flatten().collect(), intake))
}

/// What the report reads of a wide sample.
#[derive(Deserialize)]
struct WideLine {
    ts: f64,
    backend: String,
    kv_usage: Option<f64>,
    running: Option<u32>,
    waiting: Option<u32>,
    held: u32,
    /// Absent in runs of older gates.
    #[serde(default)]
    records_dropped: u64,
}

fn loads(dir: &Path, run: &mut Run) -> anyhow::Result<()> {
    let mut backends = Names::default();
    let take = |wide: WideLine| {
        run.intake.dropped = run.intake.dropped.max(wide.records_dropped);
        run.loads.push(LoadSample {
            ts_s: wide.ts,
            backend: backends.number(&wide.backend),
            kv_usage: wide.kv_usage,
            running: wide.running,
            waiting: wide.waiting,
            held: wide.held,
        });
    };
    let intake = lines::json(dir, KV_SAMPLES_FILE, take)?;
    run.intake.files.extend(intake);
    Ok(())
}

/// The manifest as it is, for the artifact section; `None` without one, or where it is no JSON, which [`read`] tells.
pub fn manifest_json(dir: &Path) -> Option<serde_json::Value> {
    json_of(&dir.join(MANIFEST)).ok().flatten()
}

/// A whole file of JSON; `None` if there is no such file.
fn json_of(path: &Path) -> anyhow::Result<Option<serde_json::Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path)?;
    Ok(Some(serde_json::from_str(&text)?))
}
