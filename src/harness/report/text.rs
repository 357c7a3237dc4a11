//! The report as Markdown that is aligned enough to be read in a terminal. Pure.

use std::fmt::Write as _;

use super::complete::Severity;
use super::layout;
use super::view;
use super::{Language, Report, RunReport};
use crate::harness::page::Table;

/// The comparison alone: tables and winners of every group, and the notes.
pub fn comparison(report: &Report) -> String {
    let mut text = String::new();
    for group in &report.groups {
        let _ = writeln!(text, "### {}\n", group.heading());
        for table in view::group_tables(group) {
            text.push_str(&markdown(&table));
            text.push('\n');
        }
        let _ = writeln!(text, "{}", view::verdicts(group));
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// All of it.
pub fn whole(report: &Report, language: Language) -> String {
    let mut text = "# Comparison of policies\n\n".to_owned();
    text.push_str(&completeness(report));
    match language {
        Language::Zh => text.push_str(&layout::tables(report)),
        Language::En => {
            for (table, notes) in view::scenarios(&report.groups) {
                titled(&mut text, "##", &table);
                listed(&mut text, &notes);
            }
        }
    }
    text.push_str("## Figures\n\n");
    text.push_str(&comparison(report));
    text.push('\n');
    for table in report.groups.iter().filter_map(view::sensitivity) {
        titled(&mut text, "##", &table);
    }
    text.push_str("## Runs\n\n");
    for run in &report.runs {
        text.push_str(&run_section(run));
    }
    for line in view::LEGEND {
        let _ = writeln!(text, "* {line}");
    }
    text
}

/// What is wrong with the runs; empty if nothing is.
pub fn completeness(report: &Report) -> String {
    let mut text = String::new();
    for run in report.runs.iter().filter(|run| !run.findings.is_empty()) {
        let _ = writeln!(text, "{} ({})", run.label, run.dir.display());
        for finding in &run.findings {
            let mark = match finding.severity {
                Severity::Incomplete => "incomplete",
                Severity::NoWindow => "no window",
                Severity::Note => "note",
            };
            let _ = writeln!(text, "* {mark}: {}", finding.text);
            if let Some(example) = &finding.example {
                let _ = writeln!(text, "  e.g. {example}");
            }
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("## Completeness\n\n{text}\n")
}

/// Files, digests and what the manifests say, of every run.
pub fn manifest(report: &Report) -> String {
    let mut text = format!("## Artifacts\n\nread by kvgate {}\n", report.kvgate);
    for run in &report.runs {
        let _ = writeln!(text, "\n### {} ({})\n", run.label, run.dir.display());
        let Some(artifacts) = &run.artifacts else {
            continue;
        };
        for (name, value) in artifacts.facts() {
            let _ = writeln!(text, "* {name}: {value}");
        }
        let rows = artifacts.files.iter().map(|file| {
            vec![
                file.path.clone(),
                file.bytes.to_string(),
                file.sha256.clone(),
            ]
        });
        let rows = rows.collect::<Vec<_>>();
        text.push('\n');
        text.push_str(&aligned(
            &["file", "bytes", "sha256"],
            &[false, true, false],
            &rows,
        ));
    }
    text
}

fn run_section(run: &RunReport) -> String {
    let mut text = format!("### {}\n\n{}\n\n", run.label, view::window_line(run));
    if let Some(driver) = run.detail.driver {
        let _ = writeln!(
            text,
            "the driver says: ok={} error={} total={} elapsed_s={:.1} tasks_per_min={:.2}\n",
            driver.ok, driver.error, driver.total, driver.elapsed_s, driver.tasks_per_min
        );
    }
    for table in view::run_tables(run) {
        titled(&mut text, "####", &table);
    }
    text
}

fn titled(text: &mut String, level: &str, table: &Table) {
    let _ = writeln!(text, "{level} {}\n", table.title);
    if !table.note.is_empty() {
        let _ = writeln!(text, "{}\n", table.note);
    }
    text.push_str(&markdown(table));
    text.push('\n');
}

/// One line each, and an empty one behind them.
pub fn listed(text: &mut String, notes: &[String]) {
    for note in notes {
        let _ = writeln!(text, "* {note}");
    }
    if !notes.is_empty() {
        text.push('\n');
    }
}

fn markdown(table: &Table) -> String {
    let names: Vec<&str> = table
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    let numeric: Vec<bool> = table.columns.iter().map(|column| column.numeric).collect();
    match &table.rows {
        Err(why) => format!("none: {why}\n"),
        Ok(rows) => {
            let mut text = aligned(&names, &numeric, rows);
            if table.left_out > 0 {
                let _ = writeln!(text, "\nand {} more", table.left_out);
            }
            text
        }
    }
}

/// A Markdown table with each column as wide as its widest cell; figures to the right, text to the left.
pub fn aligned(names: &[&str], numeric: &[bool], rows: &[Vec<String>]) -> String {
    let wide = |index: usize, name: &str| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        let cells = cells.map(|cell| escaped(cell).chars().count());
        cells.max().unwrap_or(0).max(name.chars().count()).max(3)
    };
    let widths: Vec<usize> = names
        .iter()
        .enumerate()
        .map(|(at, name)| wide(at, name))
        .collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        text.push('|');
        for ((cell, width), numeric) in cells.zip(&widths).zip(numeric) {
            let _ = match numeric {
                true => write!(text, " {cell:>width$} |"),
                false => write!(text, " {cell:<width$} |"),
            };
        }
        text.push('\n');
    };
    line(&mut names.iter().map(|name| (*name).to_owned()));
    let rule = |(width, numeric): (&usize, &bool)| match numeric {
        true => format!("{}:", "-".repeat(width - 1)),
        false => format!(":{}", "-".repeat(width - 1)),
    };
    line(&mut widths.iter().zip(numeric).map(rule));
    for row in rows {
        line(&mut row.iter().map(|cell| escaped(cell)));
    }
    text
}

/// A bar would end the cell.
fn escaped(cell: &str) -> String {
    cell.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_a_table_is_equally_wide() {
        let rows = vec![
            vec!["a|b".to_owned(), "1".to_owned()],
            vec!["c".to_owned(), "123.45".to_owned()],
        ];
        let text = aligned(&["policy", "n"], &[false, true], &rows);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [19, 19, 19, 19], "{text}");
        assert!(text.contains("| a\\|b   |      1 |"), "{text}");
    }
}
