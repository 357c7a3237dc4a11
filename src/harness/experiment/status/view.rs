//! What is known of an experiment at a moment.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::harness::experiment::process::Life;
use crate::harness::experiment::state::{Cell, CellStatus, Phase, State};
use crate::harness::experiment::watch;
use crate::harness::experiment::watchdog::Alarm;
use crate::telemetry::recorder::KV_SAMPLES_FILE;

/// Alarms that are shown: the last ones.
const ALARMS: usize = 5;
/// Bytes of a file's end that are read for its last lines.
const TAIL: u64 = 64 * 1024;

/// An experiment as its files tell it. Times are Unix seconds, ages and durations seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Its directory.
    pub dir: PathBuf,
    /// How it stands.
    pub verdict: Verdict,
    /// Whether its process lives.
    pub life: Life,
    /// Its state as written.
    pub state: State,
    /// When this was looked at.
    pub now_s: f64,
    /// Since the state was written.
    pub age_s: f64,
    /// Since the last step was served.
    pub last_step_age_s: Option<f64>,
    /// Since the last task ended.
    pub last_task_age_s: Option<f64>,
    /// How fast it goes; absent unless a cell is played and a task of it is over.
    pub pace: Option<Pace>,
    /// The engines' memory at the last sample, one per backend.
    pub kv: Vec<Kv>,
    /// The watchdog's last alarms, the newest last.
    pub alarms: Vec<Alarm>,
    /// Where everything it said stands.
    pub log: PathBuf,
}

/// How an experiment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is being played.
    Running,
    /// It was played to its end.
    Finished,
    /// It could not go on.
    Failed,
    /// Somebody stopped it.
    Interrupted,
    /// Its process ended without a word: killed, or the machine was restarted.
    Dead,
}

impl Verdict {
    /// The exit status of `status`.
    pub const fn exit(self) -> u8 {
        match self {
            Self::Running | Self::Finished => 0,
            Self::Failed | Self::Interrupted | Self::Dead => super::BAD,
        }
    }

    /// Of what the state says, and whether its process lives.
    pub const fn of(phase: Phase, life: Life) -> Self {
        match (phase, life) {
            (Phase::Done, _) => Self::Finished,
            (Phase::Failed, _) => Self::Failed,
            (Phase::Interrupted, _) => Self::Interrupted,
            (_, Life::Alive) => Self::Running,
            _ => Self::Dead,
        }
    }
}

/// How fast an experiment goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Tasks that end in a minute, in the cell that is played.
    pub tasks_per_min: f64,
    /// Seconds until that cell is over, at this pace.
    pub cell_eta_s: f64,
    /// Seconds until the whole is over, at the pace of all cells that this process has played; absent as long as
    /// somebody does not know how many tasks there are.
    pub eta_s: Option<f64>,
}

/// A backend's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kv {
    /// The backend.
    pub backend: String,
    /// When, in Unix seconds of the run's clock.
    pub ts: f64,
    /// The share of its KV blocks that is in use.
    #[serde(rename = "kv_usage")]
    pub usage: Option<f64>,
    /// Requests that it runs.
    pub running: Option<u32>,
    /// Requests that wait in it.
    pub waiting: Option<u32>,
    /// Requests that the gate holds.
    pub held: u32,
}

impl View {
    /// Looks at the experiment in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// When its `state.json` cannot be read.
    pub fn of(dir: &Path, now_s: f64) -> anyhow::Result<Option<Self>> {
        let Some(state) = State::read(dir)? else {
            return Ok(None);
        };
        let life = state.process.life();
        let age = |at_s: f64| now_s - at_s;
        let cell = state.current().map(|cell| dir.join(&cell.dir));
        Ok(Some(Self {
            dir: dir.to_owned(),
            verdict: Verdict::of(state.phase, life),
            life,
            now_s,
            age_s: age(state.updated_s),
            last_step_age_s: state.last_step_s.map(age),
            last_task_age_s: state.last_task_s.map(age),
            pace: pace(&state, now_s),
            kv: cell.as_deref().map(kv).unwrap_or_default(),
            alarms: cell.as_deref().map(alarms).unwrap_or_default(),
            log: dir.join(&state.log),
            state,
        }))
    }
}

/// How fast it goes. Pure.
#[expect(clippy::cast_precision_loss, reason = "counts of tasks")]
pub(super) fn pace(state: &State, now_s: f64) -> Option<Pace> {
    let per_s = |cells: &mut dyn Iterator<Item = &Cell>| {
        let (mut tasks, mut seconds) = (0, 0.0);
        for cell in cells {
            let Some(started_s) = cell.started_s else {
                continue;
            };
            tasks += cell.over().saturating_sub(cell.over_before);
            seconds += cell.ended_s.unwrap_or(now_s) - started_s;
        }
        (tasks > 0 && seconds > 0.0).then(|| tasks as f64 / seconds)
    };
    let left = |cell: &Cell| cell.total.saturating_sub(cell.over());
    let current = state.current()?;
    let in_cell = per_s(&mut std::iter::once(current))?;
    let overall = per_s(&mut state.cells.iter())?;
    let to_play = || {
        let is_left =
            |cell: &&Cell| matches!(cell.status, CellStatus::Planned | CellStatus::Running);
        state.cells.iter().filter(is_left)
    };
    let known = to_play().all(|cell| cell.total > 0);
    let all_left: usize = to_play().map(left).sum();
    Some(Pace {
        tasks_per_min: in_cell * 60.0,
        cell_eta_s: left(current) as f64 / in_cell,
        eta_s: known.then_some(all_left as f64 / overall),
    })
}

/// The last sample of every backend.
fn kv(cell: &Path) -> Vec<Kv> {
    let mut latest: Vec<Kv> = Vec::new();
    for line in last_lines(&cell.join(KV_SAMPLES_FILE)) {
        let Ok(sample) = serde_json::from_str::<Kv>(&line) else {
            continue;
        };
        match latest
            .iter_mut()
            .find(|known| known.backend == sample.backend)
        {
            Some(known) => *known = sample,
            None => latest.push(sample),
        }
    }
    latest
}

fn alarms(cell: &Path) -> Vec<Alarm> {
    let lines = last_lines(&cell.join(watch::FILE));
    let mut alarms: Vec<Alarm> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let shown = alarms.len().saturating_sub(ALARMS);
    alarms.split_off(shown)
}

/// The whole lines at the end of a file; none if there is none.
fn last_lines(path: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let from = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut bytes)?;
        Ok(from)
    });
    let text = String::from_utf8_lossy(&bytes);
    // The first line is cut wherever reading began; the last one may be half written.
    let skipped = usize::from(read.is_ok_and(|from| from > 0));
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole.skip(skipped).map(str::to_owned).collect()
}
