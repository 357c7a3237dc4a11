//! The watchdog of a running cell: follows the run directory's files and the clock, and hands alarms on.
//!
//! Whatever is played, the gate writes `steps.jsonl`, so that every workload is watched alike; what a workload knows
//! besides, such as that a program has begun, it says through [`Watch::sign`]. Alarms are appended to [`FILE`] and
//! sent to whoever started the watch.

mod signs;
mod tail;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::signs::{Signs, Source, Told};
use self::tail::Tail;
use super::watchdog::{Alarm, Rules, Sign, Watchdog};
use crate::clock::Clock;
use crate::harness::tau2::event::Event;
use crate::policy::Time;
use crate::telemetry::recorder::STEPS_FILE;

/// Alarms, one a line, in the run directory.
pub const FILE: &str = "watch.jsonl";
/// The machine's time between two looks at the files.
const LOOK: Duration = Duration::from_millis(250);
/// Alarms that wait for their reader; at the bound the watch waits too.
const ALARMS: usize = 256;

/// What else than the gate's records tells of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    /// Nothing, or what [`Watch::sign`] is told.
    Nothing,
    /// `programs.jsonl`, as a replay writes it.
    Programs,
    /// `driver.log`, as the reference's driver writes it.
    DriverLog,
}

/// A watch that is kept; dropped, it ends.
#[derive(Debug)]
pub struct Watch {
    signs: mpsc::UnboundedSender<Told>,
    stop: CancellationToken,
    keeping: JoinHandle<anyhow::Result<usize>>,
}

impl Watch {
    /// Watches the cell in `dir` from here on; what its files hold already is not looked at. Alarms come over the
    /// channel, in order; a reader that is gone is not missed.
    ///
    /// # Errors
    /// When [`FILE`] cannot be written.
    pub fn start(
        rules: Rules,
        dir: &Path,
        besides: Besides,
        clock: Clock,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Alarm>)> {
        let (signs, inbox) = mpsc::unbounded_channel();
        let (alarms, receiver) = mpsc::channel(ALARMS);
        let stop = CancellationToken::new();
        let keeper = Keeper::new(rules, dir, besides, clock, alarms)?;
        let watch = Self {
            signs,
            stop: stop.clone(),
            keeping: tokio::spawn(keeper.keep(inbox, stop)),
        };
        Ok((watch, receiver))
    }

    /// Tells of a sign of life at `at_s`, Unix seconds of the run.
    pub fn sign(&self, at_s: f64, sign: Sign) {
        // Fails only when the watch is over.
        let _over = self.signs.send((at_s, sign));
    }

    /// Tells of what happens to simulations of tau2-bench.
    pub fn tau2(&self, event: &Event) {
        for (at_s, sign) in signs::of_tau2(event) {
            self.sign(at_s, sign);
        }
    }

    /// Ends the watch; returns how many alarms it gave.
    ///
    /// # Errors
    /// When one of them could not be written.
    pub async fn end(self) -> anyhow::Result<usize> {
        self.stop.cancel();
        self.keeping.await.context("the watch")?
    }
}

/// The task behind a [`Watch`].
struct Keeper {
    dog: Watchdog,
    clock: Clock,
    files: Vec<(Tail, Source)>,
    signs: Signs,
    path: PathBuf,
    out: File,
    alarms: mpsc::Sender<Alarm>,
    given: usize,
    /// The first alarm that could not be written.
    failed: Option<anyhow::Error>,
}

impl Keeper {
    fn new(
        rules: Rules,
        dir: &Path,
        besides: Besides,
        clock: Clock,
        alarms: mpsc::Sender<Alarm>,
    ) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let open = File::options().append(true).create(true).open(&path);
        let out = open.with_context(|| format!("cannot write {}", path.display()))?;
        let mut files = vec![(Tail::of(dir.join(STEPS_FILE)), Source::Steps)];
        files.extend(match besides {
            Besides::Nothing => None,
            Besides::Programs => Some((Tail::of(dir.join("programs.jsonl")), Source::Programs)),
            Besides::DriverLog => Some((Tail::of(dir.join("driver.log")), Source::DriverLog)),
        });
        Ok(Self {
            dog: Watchdog::new(rules, clock.unix(clock.now())),
            clock,
            files,
            signs: Signs::new(besides == Besides::DriverLog)?,
            path,
            out,
            alarms,
            given: 0,
            failed: None,
        })
    }

    async fn keep(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Told>,
        stop: CancellationToken,
    ) -> anyhow::Result<usize> {
        loop {
            // Once more after the end was asked for: what was told before counts.
            let is_last = stop.is_cancelled();
            self.look();
            while let Ok((at_s, sign)) = inbox.try_recv() {
                self.dog.observe(at_s, sign);
            }
            for alarm in self.dog.tick(self.clock.unix(self.clock.now())) {
                self.give(alarm).await;
            }
            if is_last {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.nap()) => {}
            }
        }
        self.failed.map_or(Ok(self.given), Err)
    }

    /// Reads what the files have gained.
    fn look(&mut self) {
        let now_s = self.clock.unix(self.clock.now());
        let Self {
            dog, files, signs, ..
        } = self;
        for (tail, source) in files {
            tail.read(&mut |line| {
                for (at_s, sign) in signs.of(*source, now_s, line) {
                    dog.observe(at_s, sign);
                }
            });
        }
    }

    /// The machine's time until the files are looked at again, or something is due.
    fn nap(&self) -> Duration {
        let due_s = self.dog.next_s() - self.clock.epoch_unix();
        if !due_s.is_finite() {
            return LOOK;
        }
        let due = self.clock.instant(Time::from_secs_f64(due_s));
        let left = due.saturating_duration_since(self.clock.instant(self.clock.now()));
        left.min(LOOK)
    }

    async fn give(&mut self, alarm: Alarm) {
        self.given += 1;
        let written = serde_json::to_vec(&alarm).map_err(anyhow::Error::from);
        let written = written.and_then(|mut line| {
            line.push(b'\n');
            Ok(self.out.write_all(&line)?)
        });
        if let Err(error) = written {
            let name = format!("cannot write {}", self.path.display());
            self.failed.get_or_insert_with(|| error.context(name));
        }
        // Fails only when nobody listens any more.
        let _gone = self.alarms.send(alarm).await;
    }
}

#[cfg(test)]
mod tests;
