//! One cell: engine, gate and workload from start to report.
//!
//! A cell leaves nothing running and one run directory, whatever ends it: its workload's end, a signal, the watchdog,
//! or the death of engine or gate.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, Plan};
use super::manifest::{Finish, Inputs, Outcome, Record};
use super::matrix::Planned;
use super::oss::model_config::{Endpoint, ModelConfig};
use super::spec::Options;
use super::watch::Watch;
use super::watchdog::{self, Alarm, Level, Rules};
use super::workload::{Bench, Hands, Played, Stage, Told, Workload};
use crate::clock::Clock;
use crate::harness::child::server::Server;
use crate::harness::rundir::{DIRECT, RunDir};
use crate::harness::tau2::event::{Cause, Failure};

/// Run seconds between KV samples, as in the reference experiment.
const SAMPLE_INTERVAL_S: f64 = 5.0;
/// The gate's part of an experiment's options, as the gate reads it.
const GATE_FILE: &str = "gate.toml";
/// What is told and not heard yet; at the bound the workload waits.
const TOLD: usize = 1_024;

/// What every cell of an experiment has in common.
#[derive(Debug)]
pub struct Setting {
    /// As asked for.
    pub options: Options,
    /// What is played.
    pub workload: Workload,
    /// What plays it, where that is not kvgate itself.
    pub bench: Bench,
    /// What serves the model.
    pub engine: Plan,
    /// When to stop waiting.
    pub rules: Rules,
    /// Ends the cell.
    pub hands: Hands,
    /// Told what happens.
    pub told: mpsc::Sender<Told>,
    /// The command lines by which the experiment was played, the first first.
    pub commands: Vec<Vec<String>>,
    /// Versions of what plays the workload, by program.
    pub versions: BTreeMap<String, String>,
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// How far it came.
    pub played: Played,
    /// Why it ended before its end, if it did.
    pub cause: Option<String>,
    /// Whether somebody wanted that.
    pub interrupted: bool,
}

impl End {
    /// Whether every task has its last word.
    pub fn is_complete(&self) -> bool {
        self.cause.is_none() && self.played.is_complete()
    }

    fn outcome(&self) -> Outcome {
        match (self.is_complete(), self.interrupted) {
            (true, _) => Outcome::Done,
            (false, true) => Outcome::Interrupted,
            (false, false) => Outcome::Failed,
        }
    }
}

/// Whether the cell was played to its end, which its manifest says.
pub fn is_done(cell: &Planned) -> bool {
    let ended = Record::read(&cell.dir).ok().and_then(|record| record.ended);
    ended.is_some_and(|end| end.outcome == Outcome::Done)
}

/// Plays a cell. What is left of an earlier attempt must have been put aside, unless the workload goes on from it.
///
/// # Errors
/// When engine, gate or workload cannot be started, or a record cannot be written.
pub async fn play(cell: &Planned, setting: &Setting) -> anyhow::Result<End> {
    let dir = RunDir::create(&cell.dir)?;
    let clock = Clock::scaled(setting.engine.speedup(), None);
    let drain = &setting.hands.drain;
    let mut engine = setting.engine.start(dir.path(), &clock, drain).await?;
    let played = with_engine(cell, setting, &mut engine, clock).await;
    let stopped = engine.stop().await;
    let mut end = played?;
    match (stopped.context("the engine"), &mut end.cause) {
        (Ok(()), _) => {}
        (Err(error), None) => return Err(error),
        // An engine that hangs cannot be asked to end either; what ended the cell comes first.
        (Err(error), Some(cause)) => *cause = format!("{cause}; then {error:#}"),
    }
    Ok(end)
}

async fn with_engine(
    cell: &Planned,
    setting: &Setting,
    engine: &mut Engine,
    clock: Clock,
) -> anyhow::Result<End> {
    let policy = &cell.place.policy;
    let mut gate = if policy == DIRECT {
        None
    } else {
        Some(start_gate(cell, setting, engine, clock).await?)
    };
    let url = gate.as_ref().map_or_else(|| engine.url(), Server::url);
    let stage = Stage {
        url: url.to_owned(),
        model: engine.model().to_owned(),
        dir: cell.dir.clone(),
        concurrency: cell.place.concurrency,
        repeat: cell.place.repeat,
        clock,
        policy: policy.clone(),
        engine: setting.engine.manifest().cloned(),
        label: cell.place.to_string(),
    };
    let mut record = begin_record(setting, &stage, engine, gate.as_ref()).await?;
    write_model_config(&setting.workload, &stage)?;
    let played = play_stage(setting, &stage, engine, gate.as_mut()).await;
    // Stopped before the figures are judged: the gate writes its last records as it ends.
    let stopped = match gate {
        Some(gate) => gate.stop().await.context("the gate"),
        None => Ok(()),
    };
    let end = match (played, stopped) {
        (Ok(end), Err(error)) if end.cause.is_none() => Err(error),
        (played, _) => played,
    };
    let finish = finish(&end, engine);
    record.end(finish, now_s()).await;
    let written = record.write(&RunDir::at(&stage.dir));
    let end = end?;
    written?;
    Ok(end)
}

/// The machine's time, Unix seconds.
fn now_s() -> f64 {
    let clock = Clock::real();
    clock.unix(clock.now())
}

/// A gate for this cell alone, at the address that every cell has.
async fn start_gate(
    cell: &Planned,
    setting: &Setting,
    engine: &Engine,
    clock: Clock,
) -> anyhow::Result<Server> {
    let options = &setting.options;
    let workload = &setting.workload;
    let table = workload.gate_table(&options.gate, &options.routes, &cell.dir, engine.model());
    let file = cell.dir.join(GATE_FILE);
    std::fs::write(&file, toml::to_string_pretty(&table)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut args: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
    flag("--config", file.display().to_string());
    flag("--backend", engine.url().to_owned());
    flag("--policy", cell.place.policy.clone());
    flag("--run-dir", cell.dir.display().to_string());
    flag("--time-scale", clock.scale().to_string());
    flag("--time-epoch", clock.epoch_unix().to_string());
    for (key, value) in defaults(clock.scale()) {
        if !options.gate.contains_key(key) {
            flag(&format!("--{}", key.replace('_', "-")), value);
        }
    }
    Server::start("serve", options.listen(), &args, &cell.dir)
        .await
        .context("the gate")
}

/// Keys of the gate's configuration that an experiment sets unless it is told otherwise.
fn defaults(scale: f64) -> [(&'static str, String); 4] {
    // Scrapes cost a sped-up run more than they tell.
    let scrape_s = if scale > 1.0 { 2.5 } else { 0.5 };
    [
        ("sample_interval", SAMPLE_INTERVAL_S.to_string()),
        ("scrape_interval", scrape_s.to_string()),
        ("drain_settle", "0".to_owned()),
        ("drain_timeout", "5".to_owned()),
    ]
}

/// Writes `manifest.json` as far as it is known at the start.
async fn begin_record(
    setting: &Setting,
    stage: &Stage,
    engine: &Engine,
    gate: Option<&Server>,
) -> anyhow::Result<Record> {
    let run = setting.workload.manifest(stage, &setting.bench)?;
    let seeds = BTreeMap::from([("workload".to_owned(), run.seed)]);
    let policy = match gate {
        Some(gate) => policy_settings(gate).await?,
        None => Value::Null,
    };
    let inputs = Inputs {
        run,
        commands: setting.commands.clone(),
        spec: serde_json::to_value(&setting.options)?,
        seeds,
        versions: setting.versions.clone(),
        checkouts: setting.workload.checkouts(),
        files: setting.workload.files(),
        engine: engine.describe(),
        policy,
        secrets: Vec::new(),
    };
    let before = Record::read(&stage.dir).ok();
    let mut record = Record::begin(inputs, now_s()).await;
    // What began anew was put aside with its manifest.
    if let Some(before) = before {
        record.go_on(before);
    }
    record.write(&RunDir::at(&stage.dir))?;
    Ok(record)
}

/// All settings of the policy that decides, defaults included, which only the gate knows.
async fn policy_settings(gate: &Server) -> anyhow::Result<Value> {
    settings_in(gate.get("/policy").await.context("the gate")?)
}

/// The settings in an answer to `GET /policy`.
fn settings_in(mut policy: Value) -> anyhow::Result<Value> {
    let settings = policy.get_mut("settings").map(Value::take);
    settings.context("the gate: GET /policy does not say what settings its policy has")
}

/// Writes where the models are as the reference's driver is told it, so that a run of ours has that file too.
fn write_model_config(workload: &Workload, stage: &Stage) -> anyhow::Result<()> {
    if !matches!(workload, Workload::Tau2(_)) {
        return Ok(());
    }
    let path = stage.dir.join(ModelConfig::file_name(&stage.policy));
    let server = Endpoint::of_url(&stage.url)?;
    let text = ModelConfig::behind(&server, &stage.model, &path.display().to_string()).text();
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What the manifest says of the end.
fn finish(end: &anyhow::Result<End>, engine: &Engine) -> Finish {
    let counts = |played: &Played| {
        let mut counts = BTreeMap::from([
            ("tasks".to_owned(), played.total as u64),
            ("ok".to_owned(), played.ok as u64),
            ("failed".to_owned(), played.failed as u64),
            ("tunnel_gaps".to_owned(), engine.gaps() as u64),
        ]);
        for (cause, count) in &played.causes {
            counts.insert(format!("failed_{cause}"), *count as u64);
        }
        counts
    };
    match end {
        Ok(end) => Finish {
            outcome: end.outcome(),
            cause: end.cause.clone(),
            exit: u8::from(!end.is_complete()),
            counts: counts(&end.played),
            engine: Some(engine.describe()),
        },
        Err(error) => Finish {
            outcome: Outcome::Failed,
            cause: Some(format!("{error:#}")),
            exit: 1,
            counts: BTreeMap::new(),
            engine: None,
        },
    }
}

/// What may end a cell before its workload does.
struct Ending<'a> {
    hands: &'a Hands,
    give_up: mpsc::UnboundedSender<(String, Failure)>,
    cause: Option<String>,
}

impl Ending<'_> {
    fn now(&mut self, why: String) {
        self.cause.get_or_insert(why);
        self.hands.kill.cancel();
    }

    fn obey(&mut self, alarm: &Alarm) {
        match (alarm.level, &alarm.program) {
            (Level::Warn, _) => {}
            (Level::FailTask, Some(program)) => {
                let failure = Failure {
                    cause: match alarm.cause {
                        watchdog::Cause::ContextOverflow => Cause::ContextOverflow,
                        watchdog::Cause::ProgramSilent
                        | watchdog::Cause::NoTask
                        | watchdog::Cause::NoStep => Cause::GivenUp,
                    },
                    error: alarm.to_string(),
                };
                // Fails only when the workload is over.
                let _over = self.give_up.send((program.clone(), failure));
            }
            (Level::FailTask | Level::StopCell, _) => self.now(format!("the watchdog: {alarm}")),
        }
    }
}

/// Plays the workload until it, a signal, the watchdog, the engine or the gate ends it.
async fn play_stage(
    setting: &Setting,
    stage: &Stage,
    engine: &mut Engine,
    gate: Option<&mut Server>,
) -> anyhow::Result<End> {
    let (give_up, failing) = mpsc::unbounded_channel();
    let (sender, mut told) = mpsc::channel(TOLD);
    let besides = setting.workload.besides();
    let (watch, mut alarms) =
        Watch::start(setting.rules.clone(), &stage.dir, besides, stage.clock)?;
    let hands = Hands {
        drain: setting.hands.drain.clone(),
        kill: setting.hands.kill.child_token(),
    };
    let mut ending = Ending {
        hands: &hands,
        give_up,
        cause: None,
    };
    let workload = &setting.workload;
    let playing = workload.play(stage, &setting.bench, &hands, failing, sender);
    let mut playing = Box::pin(playing);
    let mut gone = Box::pin(first_gone(engine, gate));
    let played = loop {
        tokio::select! {
            played = &mut playing => break played,
            Some(news) = told.recv() => pass_on(news, &watch, setting).await,
            Some(alarm) = alarms.recv() => {
                ending.obey(&alarm);
                pass_on(Told::Alarm(alarm), &watch, setting).await;
            }
            why = &mut gone, if ending.cause.is_none() => ending.now(why),
        }
    };
    drop((playing, gone));
    while let Ok(news) = told.try_recv() {
        pass_on(news, &watch, setting).await;
    }
    watch.end().await?;
    conclude(played, ending.cause, &setting.hands.drain)
}

/// Who serves and is gone first, and why; never, while all is well.
async fn first_gone(engine: &mut Engine, gate: Option<&mut Server>) -> String {
    let gate = async {
        match gate {
            Some(gate) => gate.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        why = engine.ended() => format!("the engine: {why}"),
        why = gate => format!("the gate: {why}"),
    }
}

async fn pass_on(news: Told, watch: &Watch, setting: &Setting) {
    if let Told::Simulation(event) = &news {
        watch.tau2(event);
        return;
    }
    // Fails only when nobody listens any more.
    let _gone = setting.told.send(news).await;
}

fn conclude(
    played: anyhow::Result<Played>,
    cause: Option<String>,
    drain: &CancellationToken,
) -> anyhow::Result<End> {
    let interrupted = cause.is_none() && drain.is_cancelled();
    let cause = cause.or_else(|| interrupted.then(|| "stopped".to_owned()));
    match (played, cause) {
        (Ok(played), cause) => Ok(End {
            cause: cause.filter(|_| !played.is_complete()),
            played,
            interrupted,
        }),
        // What ended the cell explains what the workload then met.
        (Err(error), Some(cause)) => Err(error.context(cause)),
        (Err(error), None) => Err(error),
    }
}

/// The cell's own report.
///
/// # Errors
/// When its records cannot be read or the report not be written.
pub fn report(dirs: &[PathBuf], out: &std::path::Path) -> anyhow::Result<String> {
    use crate::harness::report::load::{self, Source};
    use crate::harness::report::{Report, text};
    let sources: Vec<Source> = dirs.iter().map(|dir| Source::at(dir)).collect();
    let runs = load::all(&sources, None)?;
    let report = Report::of(&runs, crate::harness::window::THRESHOLD_PERCENT);
    report.write(out)?;
    Ok(text::comparison(&report))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gate_that_does_not_say_its_settings_is_an_error() {
        let said = settings_in(json!({"policy": "kvgate", "settings": {"a": 1}}));
        assert_eq!(said.unwrap(), json!({"a": 1}));
        let error = settings_in(json!({"policy": "kvgate"})).unwrap_err();
        assert!(error.to_string().contains("GET /policy"), "{error}");
    }
}
