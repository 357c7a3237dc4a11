//! Plays an experiment: preflight, cell after cell, comparison; and says on the way how far it is.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use jiff::Zoned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::cell::{self, End, Setting};
use super::console::Console;
use super::detach::{self, Launch};
use super::engine::{self, Plan};
use super::matrix::{self, Planned};
use super::spec::{self, Options};
use super::state::{self, CellStatus, Keeper, Lock, Phase, State};
use super::watchdog::{Level, Rules};
use super::workload::{Bench, Hands, Played, Told, Workload};
use super::{Manner, ResumeArgs, RunArgs, asking, preflight};
use crate::clock::Clock;
use crate::harness::stdout;

/// Exit status for flags that cannot be used, as clap uses it.
const USAGE: u8 = 2;
/// What is told and not heard yet; at the bound the cell waits.
const TOLD: usize = 1_024;
/// How often the state is looked after while nothing happens.
const BEAT: Duration = Duration::from_secs(1);
/// Cells that fail in a row, after which the others would too.
const FAILURES: usize = 2;
/// What of an experiment's directory is not an attempt's.
const OURS: [&str; 6] = [
    spec::FILE,
    state::FILE,
    state::LOG,
    state::LOCK,
    "cells",
    "report",
];
/// Files that show that a folder holds a run already.
const RUN_FILES: [&str; 3] = ["manifest.json", "steps.jsonl", "driver.log"];

/// Everything that was asked for, checked.
struct Checked {
    workload: Workload,
    engine: Plan,
    rules: Rules,
}

impl Checked {
    /// Checks it all; every problem at once.
    fn of(options: &Options) -> Result<Self, Vec<String>> {
        let mut problems = options.problems();
        let workload = options
            .workload
            .check()
            .map_err(|more| problems.extend(more));
        let mut engine = options.engine.clone();
        if let (Ok(workload), engine::Kind::Embedded) = (&workload, engine.kind()) {
            fit(&mut engine, workload);
        }
        let engine = engine.check().map_err(|more| problems.extend(more));
        let rules = options
            .watchdog
            .rules()
            .map_err(|problem| problems.push(problem));
        if options.matrix != Some(true) && options.places().len() > 1 {
            problems.push(
                "`run` plays one cell: name one --policy and one --concurrency, or use `matrix`"
                    .to_owned(),
            );
        }
        if let (Ok(workload), Ok(engine)) = (&workload, &engine)
            && engine.speedup() > 1.0
            && !matches!(workload, Workload::Recorded(_))
        {
            problems.push(
                "--speedup is for --workload replay: tau2's own Python runs at its own pace"
                    .to_owned(),
            );
        }
        match (workload, engine, rules) {
            (Ok(workload), Ok(engine), Ok(rules)) if problems.is_empty() => Ok(Self {
                workload,
                engine,
                rules,
            }),
            _ => Err(problems),
        }
    }
}

/// Lets the embedded engine hold the longest context of recorded programs, unless it was told its size.
fn fit(engine: &mut engine::EngineOptions, workload: &Workload) {
    if let Some(longest) = workload.longest_context() {
        // A template and a tokenizer of another make may add a twentieth.
        engine.max_model_len.get_or_insert(longest + longest / 20);
    }
}

/// `kvgate experiment run` and `matrix`.
///
/// # Errors
/// What kept the experiment from being played.
pub async fn begin(args: RunArgs, is_matrix: bool) -> anyhow::Result<ExitCode> {
    let options = Options {
        matrix: Some(is_matrix),
        ..args.options.over(args.config.as_deref())?
    };
    let checked = match Checked::of(&options) {
        Ok(checked) => checked,
        Err(problems) => return complain(&problems),
    };
    if args.manner.check {
        let findings = preflight::check(&asking::of(
            &options,
            &checked.workload,
            &checked.engine,
            Path::new("."),
        ))
        .await;
        stdout::say(&format!("{}\n", preflight::to_text(&findings)))?;
        return Ok(ExitCode::from(u8::from(preflight::is_fatal(&findings))));
    }
    let dir = match &args.manner.background.detached {
        Some(dir) => dir.clone(),
        None => make(args.out.as_deref(), &options)?,
    };
    play_or_leave(dir, options, checked, &args.manner).await
}

/// `kvgate experiment resume`.
///
/// # Errors
/// What kept the experiment from being played.
pub async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    let options = Options::of(&args.dir)?;
    let checked = match Checked::of(&options) {
        Ok(checked) => checked,
        Err(problems) => return complain(&problems),
    };
    play_or_leave(args.dir, options, checked, &args.manner).await
}

async fn play_or_leave(
    dir: PathBuf,
    options: Options,
    checked: Checked,
    manner: &Manner,
) -> anyhow::Result<ExitCode> {
    if manner.background.detach && manner.background.detached.is_none() {
        return Launch::again(&dir)?.start(&mut std::io::stdout()).await;
    }
    let detached = manner.background.detached.is_some();
    if detached {
        detach::settle()?;
    }
    let _held = Lock::take(&dir)?;
    let console = Console::open(&dir, detached)?;
    console.survive_hangup()?;
    let played = Box::pin(Runner::new(dir, options, checked, manner, &console)?.play()).await;
    if let Err(error) = &played {
        console.say(&format!("failed: {error:#}"));
        return Ok(ExitCode::FAILURE);
    }
    played
}

fn complain(problems: &[String]) -> anyhow::Result<ExitCode> {
    for problem in problems {
        // A terminal that is gone has nobody to tell.
        let _gone = writeln!(std::io::stderr(), "kvgate: {problem}");
    }
    Ok(ExitCode::from(USAGE))
}

/// Makes the directory of a new experiment and writes what was asked for into it.
fn make(out: Option<&Path>, options: &Options) -> anyhow::Result<PathBuf> {
    let dir = out.map_or_else(
        || {
            let time = Zoned::now().strftime("%Y%m%d_%H%M%S");
            PathBuf::from(format!("runs/experiment_{time}"))
        },
        Path::to_owned,
    );
    if dir.join(spec::FILE).exists() {
        bail!(
            "{} holds an experiment already: `kvgate experiment resume {}` goes on with it, another --out begins a new one",
            dir.display(),
            dir.display()
        );
    }
    if RUN_FILES.iter().any(|file| dir.join(file).exists()) {
        bail!(
            "{} holds another run already: name another --out",
            dir.display()
        );
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let file = dir.join(spec::FILE);
    std::fs::write(&file, options.to_toml()?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(dir)
}

/// The machine's time, Unix seconds.
fn now_s() -> f64 {
    let clock = Clock::real();
    clock.unix(clock.now())
}

/// An experiment that is being played.
struct Runner {
    dir: PathBuf,
    is_matrix: bool,
    force: bool,
    quiet: bool,
    cells: Vec<Planned>,
    options: Options,
    checked: Option<Checked>,
    console: Arc<Console>,
    keeper: Keeper,
    hands: Hands,
}

impl Runner {
    fn new(
        dir: PathBuf,
        options: Options,
        checked: Checked,
        manner: &Manner,
        console: &Arc<Console>,
    ) -> anyhow::Result<Self> {
        let is_matrix = options.matrix == Some(true);
        let cells = matrix::cells(&options, &dir, is_matrix);
        let known = |cell: &Planned| {
            let place = cell.dir.strip_prefix(&dir).unwrap_or(&cell.dir);
            state::Cell::planned(cell.place.to_string(), place.display().to_string(), 0)
        };
        let state = State::begin(now_s(), cells.iter().map(known).collect())?;
        Ok(Self {
            keeper: Keeper::new(&dir, state),
            dir,
            is_matrix,
            force: manner.force,
            quiet: manner.quiet,
            cells,
            options,
            checked: Some(checked),
            console: Arc::clone(console),
            hands: Hands::default(),
        })
    }

    fn update(&mut self, change: impl FnOnce(&mut State)) {
        if let Some(line) = self.keeper.update(now_s(), change) {
            self.console.say(&line);
        }
    }

    async fn play(mut self) -> anyhow::Result<ExitCode> {
        self.update(|_| ());
        obey_signals(&self.hands, &self.console)?;
        let played = self.play_cells().await;
        let (phase, cause) = match &played {
            Ok(left) if left.is_empty() => (Phase::Done, None),
            Ok(_) if self.hands.drain.is_cancelled() => (Phase::Interrupted, None),
            Ok(left) => (Phase::Failed, Some(left.join(", "))),
            Err(error) => (Phase::Failed, Some(format!("{error:#}"))),
        };
        self.update(|state| {
            state.phase = phase;
            state.cause = cause;
        });
        let left = played?;
        if left.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        self.console.say(&format!(
            "not played to the end: {}; `kvgate experiment resume {}` goes on",
            left.join(", "),
            self.dir.display()
        ));
        Ok(ExitCode::FAILURE)
    }

    /// Plays what is left; the names of the cells that are still not done.
    async fn play_cells(&mut self) -> anyhow::Result<Vec<String>> {
        let Some(checked) = self.checked.take() else {
            bail!("played twice");
        };
        self.ask(&checked).await?;
        self.update(|state| state.phase = Phase::Starting);
        let (told, mut inbox) = mpsc::channel(TOLD);
        let bench = self.prepare(&checked.workload, &told, &mut inbox).await?;
        let tasks = checked.workload.tasks(&bench)?;
        let setting = Setting {
            options: self.options.clone(),
            workload: checked.workload,
            bench,
            engine: checked.engine,
            rules: checked.rules,
            hands: self.hands.clone(),
            told,
        };
        self.update(|state| {
            state.phase = Phase::Playing;
            state.cells.iter_mut().for_each(|cell| cell.total = tasks);
        });
        let left = self.each(&setting, &mut inbox).await?;
        self.compare()?;
        Ok(left)
    }

    /// The preflight.
    async fn ask(&self, checked: &Checked) -> anyhow::Result<()> {
        let asked = asking::of(&self.options, &checked.workload, &checked.engine, &self.dir);
        let findings = preflight::check(&asked).await;
        if !findings.is_empty() {
            self.console.say(&preflight::to_text(&findings));
        }
        if preflight::is_fatal(&findings) && !self.force {
            bail!("the preflight found errors; --force starts in spite of them");
        }
        Ok(())
    }

    /// Looks for what plays the workload.
    async fn prepare(
        &mut self,
        workload: &Workload,
        told: &mpsc::Sender<Told>,
        inbox: &mut mpsc::Receiver<Told>,
    ) -> anyhow::Result<Bench> {
        let mut looking = Box::pin(workload.bench(told));
        loop {
            tokio::select! {
                bench = &mut looking => return bench,
                Some(Told::Doing(what)) = inbox.recv() => self.console.say(&what),
                () = self.hands.drain.cancelled() => bail!("stopped while the benchmark was installed"),
            }
        }
    }

    async fn each(
        &mut self,
        setting: &Setting,
        inbox: &mut mpsc::Receiver<Told>,
    ) -> anyhow::Result<Vec<String>> {
        let cells = self.cells.clone();
        let mut left = Vec::new();
        let mut failures = 0;
        let mut pace = Pace::default();
        for (index, cell) in cells.iter().enumerate() {
            let name = cell.place.to_string();
            if cell::is_done(cell) {
                self.console.say(&format!("{name}: done before"));
                self.mark(&name, |cell| cell.status = CellStatus::Done);
                continue;
            }
            if self.hands.drain.is_cancelled() || failures == FAILURES {
                left.push(name);
                continue;
            }
            let began = now_s();
            let ended = self.one(cell, setting, inbox).await;
            pace.add(now_s() - began);
            let to_come = cells[index + 1..]
                .iter()
                .filter(|cell| !cell::is_done(cell))
                .count();
            self.console.say(&format!(
                "[{}/{}] {name}: {}{}",
                index + 1,
                cells.len(),
                told_of(&ended),
                pace.eta(to_come)
            ));
            failures = match &ended {
                Ok(end) if end.is_complete() || end.interrupted => 0,
                _ => failures + 1,
            };
            if !ended.is_ok_and(|end| end.is_complete()) {
                left.push(name);
            }
        }
        if failures == FAILURES && !left.is_empty() {
            self.console.say(&format!(
                "{FAILURES} cells failed one after the other: the rest is not tried"
            ));
        }
        Ok(left)
    }

    fn mark(&mut self, name: &str, change: impl FnOnce(&mut state::Cell)) {
        self.update(|state| {
            if let Some(cell) = state.cell_mut(name) {
                change(cell);
            }
        });
    }

    /// Plays one cell, and keeps the state up to date meanwhile.
    async fn one(
        &mut self,
        cell: &Planned,
        setting: &Setting,
        inbox: &mut mpsc::Receiver<Told>,
    ) -> anyhow::Result<End> {
        if !setting.workload.goes_on()
            && let Some(aside) = matrix::put_aside(&self.dir, cell, &OURS)?
        {
            self.console.say(&format!(
                "{}: begins anew; the attempt that was cut short is in {}",
                cell.place,
                aside.display()
            ));
        }
        let name = cell.place.to_string();
        self.mark(&name, |cell| {
            cell.status = CellStatus::Running;
            cell.started_s = Some(now_s());
        });
        let bar = self.bar(&name);
        let mut playing = Box::pin(cell::play(cell, setting));
        let mut beat = tokio::time::interval(BEAT);
        let ended = loop {
            tokio::select! {
                ended = &mut playing => break ended,
                Some(news) = inbox.recv() => self.hear(&name, news, &bar),
                _ = beat.tick() => self.look(cell),
            }
        };
        drop(playing);
        while let Ok(news) = inbox.try_recv() {
            self.hear(&name, news, &bar);
        }
        bar.finish_and_clear();
        self.note_end(&name, &ended);
        if ended.is_ok() {
            self.write_results(cell);
        }
        ended
    }

    fn bar(&self, name: &str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let total = self
            .keeper
            .state()
            .cells
            .first()
            .map_or(0, |cell| cell.total);
        self.console.bar(total as u64, name)
    }

    fn hear(&mut self, name: &str, news: Told, bar: &ProgressBar) {
        match news {
            Told::Doing(what) => bar.set_message(what),
            Told::Warning(what) => self.console.say(&format!("{name}: {what}")),
            Told::Alarm(alarm) => {
                let then = match alarm.level {
                    Level::Warn => "",
                    Level::FailTask => ": given up",
                    Level::StopCell => ": the cell is stopped",
                };
                self.console.say(&format!("{name}: {alarm}{then}"));
            }
            Told::Simulation(_) => {}
            Told::TaskEnded { at_s, played, .. } => {
                bar.set_length(played.total as u64);
                bar.set_position((played.ok + played.failed) as u64);
                bar.set_message(played.figures.clone());
                self.update(|state| {
                    state.last_task_s = Some(at_s);
                    if let Some(cell) = state.cell_mut(name) {
                        note(cell, &played);
                    }
                });
            }
        }
    }

    /// Looks when the gate last recorded a step.
    fn look(&mut self, cell: &Planned) {
        let file = cell.dir.join(crate::telemetry::recorder::STEPS_FILE);
        let written = file.metadata().and_then(|meta| meta.modified()).ok();
        let since = written.and_then(|time| time.elapsed().ok());
        self.update(|state| {
            if let Some(since) = since {
                state.last_step_s = Some(now_s() - since.as_secs_f64());
            }
        });
    }

    fn note_end(&mut self, name: &str, ended: &anyhow::Result<End>) {
        self.mark(name, |cell| {
            cell.ended_s = Some(now_s());
            match ended {
                Ok(end) => {
                    note(cell, &end.played);
                    cell.cause.clone_from(&end.cause);
                    cell.status = match (end.is_complete(), end.interrupted) {
                        (true, _) => CellStatus::Done,
                        (false, true) => CellStatus::Interrupted,
                        (false, false) => CellStatus::Failed,
                    };
                }
                Err(error) => {
                    cell.status = CellStatus::Failed;
                    cell.cause = Some(format!("{error:#}"));
                }
            }
        });
    }

    /// Writes what can be made of a cell's records again at any time; a failure to is said and no more.
    fn write_results(&self, cell: &Planned) {
        let results = super::results::write(&cell.dir).map(|_| ());
        let report = cell::report(std::slice::from_ref(&cell.dir), &cell.dir).map(|_| ());
        for (what, written) in [("results.parquet", results), ("the report", report)] {
            if let Err(error) = written {
                self.console
                    .say(&format!("{}: {what}: {error:#}", cell.place));
            }
        }
    }

    /// Compares the cells that are done.
    fn compare(&self) -> anyhow::Result<()> {
        let done = self.cells.iter().filter(|cell| cell::is_done(cell));
        let dirs: Vec<PathBuf> = done.map(|cell| cell.dir.clone()).collect();
        if dirs.is_empty() {
            return Ok(());
        }
        let out = match self.is_matrix {
            true => self.dir.join("report"),
            false => self.dir.clone(),
        };
        std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        let text = cell::report(&dirs, &out)?;
        self.console.say(&format!(
            "\n{text}\nreport: {}",
            out.join("report.md").display()
        ));
        Ok(())
    }
}

fn note(cell: &mut state::Cell, played: &Played) {
    cell.total = played.total.max(cell.total);
    (cell.ok, cell.failed) = (played.ok, played.failed);
    cell.figures = Some(played.figures.clone());
}

/// How a cell ended, in words.
fn told_of(ended: &anyhow::Result<End>) -> String {
    let end = match ended {
        Ok(end) => end,
        Err(error) => return format!("failed: {error:#}"),
    };
    let played = &end.played;
    let mut text = format!("{} of {} tasks", played.ok, played.total);
    if played.failed > 0 {
        let causes: Vec<String> = played
            .causes
            .iter()
            .map(|(cause, count)| format!("{cause} {count}"))
            .collect();
        text += &format!(", {} failed ({})", played.failed, causes.join(", "));
    }
    if !played.figures.is_empty() {
        text += &format!(", {}", played.figures);
    }
    if let Some(cause) = &end.cause {
        text += &format!("; cut short: {cause}");
    }
    text
}

/// How long cells took.
#[derive(Debug, Default)]
struct Pace {
    seconds: f64,
    cells: u32,
}

impl Pace {
    fn add(&mut self, seconds: f64) {
        self.seconds += seconds;
        self.cells += 1;
    }

    /// How long the rest will take, for the end of a line.
    fn eta(&self, left: usize) -> String {
        if left == 0 || self.cells == 0 {
            return String::new();
        }
        let left_s = self.seconds / f64::from(self.cells)
            * f64::from(u32::try_from(left).unwrap_or(u32::MAX));
        format!("; {left} to go, about {:.0} min", (left_s / 60.0).ceil())
    }
}

/// The first Ctrl-C or SIGTERM lets what runs end and starts nothing more; the second ends it now.
fn obey_signals(hands: &Hands, console: &Arc<Console>) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (hands, console) = (hands.clone(), Arc::clone(console));
    tokio::spawn(async move {
        for (token, says) in [
            (
                &hands.drain,
                "stopping: what runs may end; once more ends it now",
            ),
            (&hands.kill, "stopping now"),
        ] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            console.say(says);
            token.cancel();
        }
    });
    Ok(())
}
