//! Plays an experiment: preflight, cell after cell, comparison; and says on the way how far it is.
//!
//! `begin` leads here from the command line, `checked` is what was asked for, `tell` what is heard of a cell.

mod begin;
mod checked;
mod tell;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

pub use self::begin::{begin, resume};
use self::checked::Checked;
use self::tell::{Pace, told_of};
use super::cell::{self, End, Setting};
use super::console::Console;
use super::manifest::{self, Record};
use super::matrix::{self, Planned};
use super::spec::{self, Options};
use super::state::{self, CellStatus, Keeper, Phase, State};
use super::workload::{Bench, Hands, Told, Workload};
use super::{Manner, asking, preflight};
use crate::clock::Clock;

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
    /// The command line by which it goes on, until its preflight has passed; none where it begins.
    goes_on_by: Option<Vec<String>>,
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
        // A damaged state is written anew; the cells' own directories say what is done.
        let before = State::read(&dir).ok().flatten();
        let (before, commands) = before
            .map(|state| (state.cells, state.commands))
            .unwrap_or_default();
        let mut commands = commands_before(commands, &cells);
        let mut goes_on_by = Some(manifest::command_line());
        if commands.is_empty() {
            commands.extend(goes_on_by.take());
        }
        let known = |cell: &Planned| {
            let place = cell.dir.strip_prefix(&dir).unwrap_or(&cell.dir);
            let name = cell.place.to_string();
            let known = before.iter().find(|known| known.name == name).cloned();
            let mut known =
                known.unwrap_or_else(|| state::Cell::planned(name, place.display().to_string(), 0));
            if known.status == CellStatus::Running {
                known.status = CellStatus::Interrupted;
            }
            known
        };
        let mut state = State::begin(now_s(), cells.iter().map(known).collect())?;
        state.commands = commands;
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
            goes_on_by,
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
        if self.cells.iter().all(cell::is_done) {
            for cell in self.cells.clone() {
                self.pass_over(&cell);
            }
            self.compare()?;
            return Ok(Vec::new());
        }
        self.ask(&checked).await?;
        // Not earlier: what fails in its preflight has not gone on.
        let goes_on_by = self.goes_on_by.take();
        self.update(|state| {
            state.commands.extend(goes_on_by);
            state.phase = Phase::Starting;
        });
        let (told, mut inbox) = mpsc::channel(TOLD);
        let bench = self.prepare(&checked.workload, &told, &mut inbox).await?;
        let tasks = checked.workload.tasks(&bench)?;
        let setting = Setting {
            options: self.options.clone(),
            workload: checked.workload,
            versions: bench.versions().await,
            commands: self.keeper.state().commands.clone(),
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
                self.pass_over(cell);
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

    fn pass_over(&mut self, cell: &Planned) {
        let name = cell.place.to_string();
        self.console.say(&format!("{name}: done before"));
        self.mark(&name, |cell| cell.status = CellStatus::Done);
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
        let goes_on = setting.workload.goes_on();
        self.mark(&name, |cell| {
            if !goes_on {
                (cell.ok, cell.failed) = (0, 0);
            }
            cell.over_before = cell.over();
            cell.status = CellStatus::Running;
            (cell.cause, cell.figures) = (None, None);
            (cell.started_s, cell.ended_s) = (Some(now_s()), None);
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
        let out = if self.is_matrix {
            self.dir.join("report")
        } else {
            self.dir.clone()
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

/// The command lines before this one: those that the state `told`, or where it is damaged or older than they are, those
/// that a cell's manifest has.
fn commands_before(told: Vec<Vec<String>>, cells: &[Planned]) -> Vec<Vec<String>> {
    if !told.is_empty() {
        return told;
    }
    let records = cells.iter().filter_map(|cell| Record::read(&cell.dir).ok());
    let commands = records.map(Record::commands);
    commands.max_by_key(Vec::len).unwrap_or_default()
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
