//! The comparison under the headings of the reference's script, for whoever compares it with old tables. Pure.
//!
//! Its layout: cells are not padded, window lengths in minutes, one appendix row per run. What the script did not
//! know is added where its columns end: policies besides its three. Its winner is whoever has more. Ours is the
//! verdict: `相当` where intervals overlap, `-` where there is none; a leader by less than the noise stands there too,
//! and a line below the tables says that it is no clear winner.

use std::fmt::Write as _;

use super::compare::{Cell, Figure, Group, Verdict};
use super::metric::{METRICS, Metric};
use super::view;
use super::{Report, RunReport};

/// Widths of the rules below the reference's headings, per table.
const WIDTHS: [usize; 2] = [14, 12];

/// Both tables and the appendix.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    let titles = [
        "TABLE 1: Tasks done / minute (active window)",
        "TABLE 2: Steps / second (active window)",
    ];
    for ((metric, title), width) in METRICS.iter().zip(titles).zip(WIDTHS) {
        let _ = writeln!(text, "### {title}\n");
        table(&mut text, &report.groups, metric, width);
        text.push('\n');
    }
    for metric in METRICS.iter().take(titles.len()) {
        let notes = view::scenario_notes(&report.groups, metric);
        let named = notes.iter().map(|note| format!("{}: {note}", metric.unit));
        super::text::listed(&mut text, &named.collect::<Vec<_>>());
    }
    text.push_str("### Appendix: raw window stats\n\n");
    text.push_str(
        "| Run | window(min) | tasks_in_window | steps_in_window | tasks/min | steps/s |\n",
    );
    text.push_str(
        "| :-- | ----------: | -------------: | -------------: | --------: | ------: |\n",
    );
    for run in &report.runs {
        appendix_row(&mut text, run);
    }
    text.push('\n');
    text
}

/// The script's word for a policy.
fn short(policy: &str) -> &str {
    match policy {
        "thunderreact" => "TR",
        "continuum" => "CT",
        "baseline" => "Baseline",
        other => other,
    }
}

fn table(text: &mut String, groups: &[Group], metric: &Metric, width: usize) {
    let policies = view::policies(groups);
    let (mut heads, mut rules) = ("| 场景  |".to_owned(), "| :---- |".to_owned());
    for policy in &policies {
        let width = width + usize::from(*policy == "baseline");
        let _ = write!(heads, " {:<width$} |", short(policy));
        let _ = write!(rules, " :{} |", "-".repeat(width - 1));
    }
    let _ = writeln!(text, "{heads} Winner |\n{rules} :----- |");
    for group in groups {
        let _ = write!(text, "| {}  |", group.scenario());
        for policy in &policies {
            let cell = group.cells.iter().find(|cell| cell.policy == *policy);
            let _ = write!(text, " {} |", rate(cell, metric));
        }
        let verdict = group.verdicts.get(metric.key);
        let _ = writeln!(text, " {} |", verdict.map_or("-", winner));
    }
}

fn rate(cell: Option<&Cell>, metric: &Metric) -> String {
    let figure = cell.and_then(|cell| cell.figures.get(metric.key));
    let mark = cell.map_or("", view::mark);
    match figure.and_then(Figure::known) {
        Some(estimate) => format!("{:.2} {}{mark}", estimate.median, metric.unit),
        None => format!("-{mark}"),
    }
}

fn winner(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Winner { policy, .. }
        | Verdict::NoClearWinner {
            leader: Some(policy),
            ..
        } => short(policy),
        Verdict::NoClearWinner { leader: None, .. } => "相当",
        Verdict::None { .. } => "-",
    }
}

fn appendix_row(text: &mut String, run: &RunReport) {
    let _ = match run.measures.window.rates() {
        Some(rates) => writeln!(
            text,
            "| {} | {:.1} | {} | {} | {:.2} | {:.2} |",
            run.label,
            rates.seconds / 60.0,
            rates.programs,
            rates.steps,
            rates.tasks_per_min,
            rates.steps_per_s
        ),
        None => writeln!(text, "| {} | - | - | - | - | - |", run.label),
    };
}
