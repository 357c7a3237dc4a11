//! Reads the players' notes: writes the records, keeps the sums, moves the progress bar.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::player::Note;
use crate::clock::Clock;
use crate::harness::rundir::{Ending, Lines, ProgramRecord, RunDir};
use crate::policy::Time;
use crate::telemetry::StepRecord;

/// A gap that the machine keeps for less than this says nothing about its load: timers count in milliseconds, and
/// one or two of them are 20 % of a shorter gap.
const TIMER: Duration = Duration::from_millis(10);
/// Most causes of errors that are told apart; others are counted as one.
const MAX_CAUSES: usize = 20;

/// How well the machine kept the gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GapLag {
    /// Gaps waited for.
    pub gaps: usize,
    /// What they should have taken together, in seconds of the run.
    pub planned_s: f64,
    /// What they took beyond that, in seconds of the run.
    pub late_s: f64,
    /// Gaps of at least 10 ms of the machine's time, which a timer can keep.
    pub timed: usize,
    /// Those of them that took over 20 % longer.
    pub timed_late: usize,
}

impl GapLag {
    fn add(&mut self, planned: Duration, late: Duration, machine: Duration) {
        self.gaps += 1;
        self.planned_s += planned.as_secs_f64();
        self.late_s += late.as_secs_f64();
        if machine >= TIMER {
            self.timed += 1;
            self.timed_late += usize::from(late > planned / 5);
        }
    }

    /// Share of the timed gaps that were late, fraction 0–1; 0 without any.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn late_share(&self) -> f64 {
        self.timed_late as f64 / self.timed.max(1) as f64
    }
}

/// What a replay counted.
#[derive(Debug, Default)]
pub struct Tally {
    /// Every program that was started, in the order they ended.
    pub programs: Vec<ProgramRecord>,
    /// Every request, in the order they ended.
    pub steps: Vec<StepRecord>,
    /// How well gaps were kept.
    pub gap_lag: GapLag,
    /// Failed requests by cause.
    pub causes: BTreeMap<String, usize>,
    /// Programs that the gate could not be told are over.
    pub releases_failed: usize,
}

/// Takes notes until every player is gone.
///
/// # Errors
/// When a record cannot be written.
pub async fn collect(
    mut notes: mpsc::Receiver<Note>,
    dir: &RunDir,
    clock: Clock,
    bar: ProgressBar,
    ended: Option<mpsc::UnboundedSender<ProgramRecord>>,
) -> anyhow::Result<Tally> {
    let mut programs = dir.lines("programs.jsonl")?;
    let mut steps = dir.lines("client_steps.jsonl")?;
    let mut tally = Tally::default();
    let started = clock.now();
    while let Some(note) = notes.recv().await {
        if let (Note::Program(record), Some(ended)) = (&note, &ended) {
            // Fails only when nobody looks on any more.
            let _gone = ended.send(record.clone());
        }
        tally.take(note, clock, &mut programs, &mut steps)?;
        bar.set_position(tally.programs.len() as u64);
        bar.set_message(pace(tally.steps.len(), clock.now(), started));
    }
    bar.finish_and_clear();
    programs.finish()?;
    steps.finish()?;
    Ok(tally)
}

impl Tally {
    fn take(
        &mut self,
        note: Note,
        clock: Clock,
        programs: &mut Lines,
        steps: &mut Lines,
    ) -> anyhow::Result<()> {
        match note {
            Note::Step(record) => {
                steps.push(&record)?;
                if record.status != 200
                    || !matches!(record.outcome.as_str(), "length" | "tool_calls")
                {
                    self.count(&record.outcome);
                }
                self.steps.push(*record);
            }
            Note::Gap { planned, late } => {
                self.gap_lag.add(planned, late, clock.machine(planned));
            }
            Note::Program(record) => {
                programs.push(&record)?;
                // A program takes minutes, and its line may be all that is left of it.
                programs.flush()?;
                self.programs.push(record);
            }
            Note::ReleaseFailed(_) => self.releases_failed += 1,
        }
        Ok(())
    }

    fn count(&mut self, cause: &str) {
        let known = self.causes.len() < MAX_CAUSES || self.causes.contains_key(cause);
        let cause = if known { cause } else { "other causes" };
        *self.causes.entry(cause.to_owned()).or_default() += 1;
    }

    /// Programs with this ending.
    pub fn ended(&self, ending: Ending) -> usize {
        self.programs.iter().filter(|p| p.ending == ending).count()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn pace(steps: usize, now: Time, started: Time) -> String {
    let seconds = now.since(started).as_secs_f64().max(1e-9);
    format!("{steps} steps, {:.1} steps/s", steps as f64 / seconds)
}

/// A bar of programs, drawn on a terminal only, and not when `quiet`.
pub fn progress_bar(programs: usize, label: &str, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(programs as u64);
    let template = "{prefix} {bar:30} {pos}/{len} programs, {msg}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(label.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gaps_that_a_timer_can_keep_tell_of_load() {
        let mut lag = GapLag::default();
        let ms = Duration::from_millis;
        lag.add(ms(50), ms(50), ms(1));
        lag.add(ms(1_000), ms(100), ms(20));
        lag.add(ms(1_000), ms(300), ms(20));
        assert_eq!((lag.gaps, lag.timed, lag.timed_late), (3, 2, 1));
        assert!((lag.late_share() - 0.5).abs() < 1e-9);
        assert!((lag.late_s - 0.45).abs() < 1e-9);
    }

    #[test]
    fn causes_are_bounded() {
        let mut tally = Tally::default();
        for i in 0..100 {
            tally.count(&format!("cause {i}"));
        }
        assert_eq!(tally.causes.len(), MAX_CAUSES + 1);
        assert_eq!(tally.causes["other causes"], 100 - MAX_CAUSES);
    }
}
