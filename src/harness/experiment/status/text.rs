//! What `status` prints. Pure.

use std::fmt::Write as _;

use super::view::{Kv, Verdict, View};
use crate::harness::experiment::process::Life;
use crate::harness::experiment::state::{Cell, CellStatus};
use crate::harness::report::text::aligned;

/// A state of a running experiment that is older is worth a word: it is written every second while something happens.
const OLD_S: f64 = 60.0;

/// An experiment, for people.
pub fn to_text(view: &View) -> String {
    let mut text = headline(view);
    if let Some(cell) = view
        .state
        .current()
        .filter(|_| view.verdict == Verdict::Running)
    {
        text.push_str(&progress(view, cell));
    }
    if view.verdict == Verdict::Running {
        let ages = [
            ("step", view.last_step_age_s),
            ("task", view.last_task_age_s),
        ];
        let said = ages.map(|(what, age)| match age {
            Some(age) => format!("last {what} {} ago", span(age)),
            None => format!("no {what} yet"),
        });
        let _ = writeln!(text, "  {}", said.join(", "));
        view.kv.iter().for_each(|kv| text.push_str(&memory(kv)));
    }
    for alarm in &view.alarms {
        let age = span(view.now_s - alarm.at_s);
        let _ = writeln!(text, "  watchdog, {age} ago: {alarm}");
    }
    let _ = writeln!(text, "  log {}\n", view.log.display());
    text.push_str(&table(view));
    text
}

fn headline(view: &View) -> String {
    let (dir, state) = (view.dir.display(), &view.state);
    let pid = state.process.pid;
    let since = span(view.now_s - state.began_s);
    let cause = state
        .cause
        .as_ref()
        .map_or_else(String::new, |cause| format!(": {cause}"));
    let took = span(state.updated_s - state.began_s);
    match view.verdict {
        Verdict::Running => {
            let mut line = format!(
                "{dir}: {}, by process {pid} for {since}\n",
                state.phase.word()
            );
            if view.age_s > OLD_S {
                let _ = writeln!(line, "  its state was written {} ago", span(view.age_s));
            }
            line
        }
        Verdict::Finished => format!("{dir}: done in {took}, {} ago\n", span(view.age_s)),
        Verdict::Failed => format!("{dir}: failed after {took}{cause}\n"),
        Verdict::Interrupted => {
            format!(
                "{dir}: interrupted after {took}{cause}\n  `kvgate experiment resume {dir}` goes on\n"
            )
        }
        Verdict::Dead => {
            let why = match view.life {
                Life::Elsewhere => "ran on another machine, or before this one was restarted",
                Life::Alive | Life::Ended => "has ended without a word",
            };
            let age = span(view.age_s);
            format!(
                "{dir}: dead: process {pid} {why}; last heard of {age} ago, {}\n  `kvgate experiment resume {dir}` goes on\n",
                state.phase.word()
            )
        }
    }
}

fn progress(view: &View, cell: &Cell) -> String {
    let cells = &view.state.cells;
    let at = cells
        .iter()
        .position(|other| other.name == cell.name)
        .unwrap_or(0)
        + 1;
    let mut line = format!(
        "  cell {at} of {}, {}: {}",
        cells.len(),
        cell.name,
        tasks(cell)
    );
    if let Some(pace) = &view.pace {
        let _ = write!(
            line,
            ", {:.2} tasks/min, ETA {}",
            pace.tasks_per_min,
            span(pace.cell_eta_s)
        );
        if let Some(eta_s) = pace.eta_s.filter(|_| cells.len() > 1) {
            let _ = write!(line, "; everything in {}", span(eta_s));
        }
    }
    line.push('\n');
    line
}

fn tasks(cell: &Cell) -> String {
    match cell.total {
        0 => format!("{} tasks", cell.over()),
        total => format!("{}/{total} tasks", cell.over()),
    }
}

fn memory(kv: &Kv) -> String {
    let usage = kv.usage.map_or_else(
        || "unknown".to_owned(),
        |share| format!("{:.1} %", share * 100.0),
    );
    let count =
        |count: Option<u32>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let (running, waiting) = (count(kv.running), count(kv.waiting));
    format!(
        "  KV {usage}, {running} running, {waiting} waiting, {} held ({})\n",
        kv.held, kv.backend
    )
}

fn table(view: &View) -> String {
    let rows = view.state.cells.iter().map(|cell| {
        let status = match (cell.status, view.verdict) {
            (CellStatus::Running, Verdict::Dead) => "cut off",
            (status, _) => status.word(),
        };
        let end_s = cell.ended_s.unwrap_or(view.state.updated_s);
        let took = cell
            .started_s
            .map_or_else(String::new, |started_s| span(end_s - started_s));
        let said = cell.cause.as_ref().or(cell.figures.as_ref());
        vec![
            cell.name.clone(),
            status.to_owned(),
            tasks(cell).trim_end_matches(" tasks").to_owned(),
            cell.ok.to_string(),
            cell.failed.to_string(),
            took,
            said.cloned().unwrap_or_default(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    aligned(
        &["cell", "status", "tasks", "ok", "failed", "took", "figures"],
        &[false, false, true, true, true, true, false],
        &rows,
    )
}

/// `14 s`, `12 min`, `5 h 12 min`, `3 d 4 h`. Pure.
pub(super) fn span(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and whole seconds will do"
    )]
    let seconds = seconds.max(0.0).round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}
