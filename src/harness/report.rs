//! The comparison of several runs: one group of rows per trace and concurrency, one row per run, and who won.
//!
//! Two winners are named, by programs per minute in the active window and over the whole run, because they need
//! not agree: a window favours small programs first, a whole run of a fixed set of programs cannot be flattered.
//! A cell without a figure says why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::measure::{Measures, Rates, RunData};
use super::rundir::RunDir;
use super::stats::Spread;
use super::window::THRESHOLD_PERCENT;

/// A window shorter than this is shown, but names no winner, in seconds of the run.
pub const MIN_WINDOW_S: f64 = 60.0;

/// Flags of `kvgate report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Run directories to compare
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// KV usage above which the active window counts, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = THRESHOLD_PERCENT)]
    pub threshold: f64,
    /// Folder for `report.md` and `report.json` [default: none]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Runs `kvgate report`: compares finished runs.
///
/// # Errors
/// When a run directory cannot be read or the report cannot be written.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let report = Report::read(&args.dirs, args.threshold)?;
    print!("{}", report.to_text());
    if let Some(out) = &args.out {
        report.write(RunDir::create(out)?.path())?;
    }
    Ok(())
}

/// A lead below this is within what repeating a run changes, in percent: four runs of one quickstart cell (C=64)
/// spread over 0.5 % of their tasks/min with the baseline, 7 % with ThunderReact and 6 % with Continuum.
pub const NOISE_PERCENT: f64 = 7.0;

/// The figures of several runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// One group per trace and concurrency, in that order.
    pub groups: Vec<Group>,
    /// What the reader must know to trust the figures.
    pub notes: Vec<String>,
}

/// Runs that differ in their policy only.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The trace.
    pub trace: String,
    /// Programs in flight.
    pub concurrency: usize,
    /// One entry per run, in the order given.
    pub runs: Vec<Row>,
    /// Most programs per minute in the active window; `Err` in words where the windows do not compare.
    pub window_winner: Verdict,
    /// Most programs per minute over the whole run.
    pub whole_winner: Verdict,
}

/// One run's figures and where they are from.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The run directory.
    pub dir: PathBuf,
    /// The figures.
    #[serde(flatten)]
    pub measures: Measures,
}

/// Who won a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This policy, by so many percent over the next.
    Winner {
        /// The policy.
        policy: String,
        /// Lead over the second, in percent of the second.
        lead_percent: f64,
    },
    /// Nobody, because of this.
    None {
        /// Why.
        why: String,
    },
}

impl Report {
    /// Reads and compares run directories.
    ///
    /// # Errors
    /// When one cannot be read; the message names it.
    pub fn read(dirs: &[PathBuf], threshold_percent: f64) -> anyhow::Result<Self> {
        let read = |dir: &PathBuf| -> anyhow::Result<Row> {
            let data = RunData::read(&RunDir::at(dir))?;
            Ok(Row {
                dir: dir.clone(),
                measures: data.measure(threshold_percent),
            })
        };
        Ok(Self::compare(
            dirs.iter().map(read).collect::<Result<_, _>>()?,
        ))
    }

    /// Groups rows and names the winners.
    pub fn compare(rows: Vec<Row>) -> Self {
        let mut groups: BTreeMap<(String, usize), Vec<Row>> = BTreeMap::new();
        for row in rows {
            let key = (row.measures.trace.clone(), row.measures.concurrency);
            groups.entry(key).or_default().push(row);
        }
        let group = |((trace, concurrency), runs): ((String, usize), Vec<Row>)| Group {
            trace,
            concurrency,
            window_winner: verdict(&runs, window_rate),
            whole_winner: verdict(&runs, whole_rate),
            runs,
        };
        Self {
            groups: groups.into_iter().map(group).collect(),
            notes: Vec::new(),
        }
    }

    /// The comparison as aligned text for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            let rows: Vec<Vec<String>> = group.runs.iter().map(cells).collect();
            let _ = writeln!(text, "{}", group.heading());
            text.push_str(&aligned(&rows));
            let _ = writeln!(text, "{}\n", group.verdicts());
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// The comparison as Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = "# Comparison of policies\n".to_owned();
        for group in &self.groups {
            let _ = writeln!(text, "\n## {}\n", group.heading());
            let _ = writeln!(text, "| {} |", HEADER.join(" | "));
            let _ = writeln!(text, "|:--{}|", "|--:".repeat(HEADER.len() - 1));
            for run in &group.runs {
                let _ = writeln!(text, "| {} |", cells(run).join(" | "));
            }
            let _ = writeln!(text, "\n{}", group.verdicts());
        }
        for note in self.notes.iter().map(String::as_str).chain(LEGEND) {
            let _ = write!(text, "\n* {note}");
        }
        text.push('\n');
        text
    }

    /// Writes `report.md` and `report.json` into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join("report.md");
        std::fs::write(&path, self.to_markdown())
            .with_context(|| format!("cannot write {}", path.display()))?;
        RunDir::at(dir).write_json("report.json", self)
    }
}

impl Group {
    fn heading(&self) -> String {
        let kv = self.runs.first().and_then(|run| run.measures.kv);
        let kv = kv.map_or_else(String::new, |(blocks, size)| {
            format!(", KV {} tokens", u64::from(blocks) * u64::from(size))
        });
        format!("{}, C={}{kv}", self.trace, self.concurrency)
    }

    fn verdicts(&self) -> String {
        format!(
            "winner in the window: {}; over the whole run: {}",
            self.window_winner, self.whole_winner
        )
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Winner {
                policy,
                lead_percent,
            } if *lead_percent < NOISE_PERCENT => {
                write!(f, "{policy} (+{lead_percent:.1} %, within noise)")
            }
            Self::Winner {
                policy,
                lead_percent,
            } => write!(f, "{policy} (+{lead_percent:.0} %)"),
            Self::None { why } => write!(f, "none ({why})"),
        }
    }
}

fn window_rate(measures: &Measures) -> Result<f64, String> {
    match measures.window.rates() {
        None => Err("no window".to_owned()),
        Some(rates) if rates.seconds < MIN_WINDOW_S => {
            Err(format!("a window of {:.0} s", rates.seconds))
        }
        Some(rates) => Ok(rates.tasks_per_min),
    }
}

fn whole_rate(measures: &Measures) -> Result<f64, String> {
    let whole = measures.whole.as_ref();
    whole
        .map(|rates| rates.tasks_per_min)
        .ok_or_else(|| "no programs".to_owned())
}

/// The best of `runs`, when all of them have the figure.
fn verdict(runs: &[Row], rate: fn(&Measures) -> Result<f64, String>) -> Verdict {
    let mut ranked = Vec::new();
    for run in runs {
        match rate(&run.measures) {
            Ok(rate) => ranked.push((rate, &run.measures.policy)),
            Err(why) => {
                return Verdict::None {
                    why: format!("{} has {why}", run.measures.policy),
                };
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    match ranked.as_slice() {
        [(first, policy), (second, _), ..] if first > second => Verdict::Winner {
            policy: (*policy).clone(),
            lead_percent: (first / second - 1.0) * 100.0,
        },
        [_, _, ..] => Verdict::None {
            why: "a tie".to_owned(),
        },
        _ => Verdict::None {
            why: "nothing to compare with".to_owned(),
        },
    }
}

const HEADER: [&str; 12] = [
    "policy",
    "tasks/min*",
    "steps/s*",
    "window s",
    "tasks/min",
    "steps/s",
    "makespan s",
    "hit rate",
    "step p50/p95 s",
    "program p50/p95 s",
    "hold p95/max s",
    "errors",
];

/// What the columns mean.
const LEGEND: [&str; 3] = [
    "tasks/min* and steps/s*: in the active window, from the first to the last sample of KV usage above 70 %; tasks/min and steps/s: over the whole run, to the end of a fixed set of programs. A step is one LLM call.",
    "hit rate: cached prompt tokens / prompt tokens of the served steps. Step latency counts from arrival at the gate, hold included. Percentiles are interpolated linearly.",
    "errors: requests not served + programs given up. One run a cell: repeats of a cell differ by up to 7 %.",
];

/// The cells of one row, in the order of [`HEADER`].
fn cells(row: &Row) -> Vec<String> {
    let measures = &row.measures;
    let (tasks, steps, seconds) = match &measures.window {
        super::measure::WindowRates::Found { rates, .. } => {
            let short = if rates.seconds < MIN_WINDOW_S {
                " short"
            } else {
                ""
            };
            let (tasks, steps) = rate_cells(Some(rates));
            (tasks, steps, format!("{:.0}{short}", rates.seconds))
        }
        super::measure::WindowRates::Missing { missing } => {
            ("-".to_owned(), "-".to_owned(), missing.clone())
        }
    };
    let (whole_tasks, whole_steps) = rate_cells(measures.whole.as_ref());
    vec![
        measures.policy.clone(),
        tasks,
        steps,
        seconds,
        whole_tasks,
        whole_steps,
        or_dash(measures.whole.map(|w| format!("{:.0}", w.seconds))),
        or_dash(measures.prefix_hit_rate.map(|rate| format!("{rate:.3}"))),
        spread_cell(measures.step_s),
        spread_cell(measures.program_s),
        or_dash(
            measures
                .hold_s
                .map(|hold| format!("{:.1} / {:.0}", hold.p95, hold.max)),
        ),
        format!("{}+{}", measures.steps_failed, measures.programs_failed),
    ]
}

fn rate_cells(rates: Option<&Rates>) -> (String, String) {
    (
        or_dash(rates.map(|r| format!("{:.2}", r.tasks_per_min))),
        or_dash(rates.map(|r| format!("{:.2}", r.steps_per_s))),
    )
}

fn spread_cell(spread: Option<Spread>) -> String {
    or_dash(spread.map(|s| format!("{:.1} / {:.1}", s.p50, s.p95)))
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

/// Header and rows with each column as wide as its widest cell; the first to the left, the rest to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let header: Vec<String> = HEADER.iter().map(|&h| h.to_owned()).collect();
    let all = || std::iter::once(&header).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADER.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in all() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::measure::WindowRates;
    use super::super::rundir::StepSource;
    use super::super::window::Window;
    use super::*;

    fn row(policy: &str, concurrency: usize, window: Option<(f64, usize)>, whole: usize) -> Row {
        let window = match window {
            Some((seconds, programs)) => WindowRates::Found {
                window: Window {
                    start_s: 0,
                    end_s: 1,
                },
                rates: Rates::over(seconds, programs, 10).unwrap(),
            },
            None => WindowRates::Missing {
                missing: "never above 70 % (highest 12 %)".to_owned(),
            },
        };
        let measures = Measures {
            policy: policy.to_owned(),
            concurrency,
            trace: "tau2".to_owned(),
            kv: Some((100, 16)),
            window,
            whole: Rates::over(600.0, whole, 100),
            prefix_hit_rate: Some(0.5),
            step_s: None,
            ttft_s: None,
            hold_s: None,
            program_s: None,
            programs_failed: 0,
            programs_cancelled: 0,
            steps_failed: 2,
            step_source: StepSource::Gate,
        };
        Row {
            dir: PathBuf::from(policy),
            measures,
        }
    }

    #[test]
    fn window_and_whole_run_may_have_different_winners() {
        let rows = vec![
            row("baseline", 8, Some((300.0, 20)), 50),
            row("continuum", 8, Some((300.0, 30)), 40),
        ];
        let report = Report::compare(rows);
        let group = &report.groups[0];
        assert_eq!(group.window_winner.to_string(), "continuum (+50 %)");
        assert_eq!(group.whole_winner.to_string(), "baseline (+25 %)");
        assert!(report.to_text().contains("tau2, C=8, KV 1600 tokens"));
    }

    #[test]
    fn a_lead_that_a_repeat_could_turn_is_called_so() {
        let rows = vec![
            row("baseline", 8, None, 100),
            row("continuum", 8, None, 101),
        ];
        let winner = &Report::compare(rows).groups[0].whole_winner;
        assert_eq!(winner.to_string(), "continuum (+1.0 %, within noise)");
    }

    #[test]
    fn a_missing_or_short_window_is_shown_and_names_no_winner() {
        let missing = Report::compare(vec![
            row("baseline", 8, Some((300.0, 20)), 50),
            row("continuum", 8, None, 40),
        ]);
        assert_eq!(
            missing.groups[0].window_winner.to_string(),
            "none (continuum has no window)"
        );
        assert!(
            missing
                .to_text()
                .contains("never above 70 % (highest 12 %)")
        );
        let short = Report::compare(vec![
            row("baseline", 8, Some((300.0, 20)), 50),
            row("continuum", 8, Some((20.0, 9)), 40),
        ]);
        assert!(
            short.groups[0]
                .window_winner
                .to_string()
                .contains("a window of 20 s")
        );
        assert!(short.to_markdown().contains("20 short"));
    }

    #[test]
    fn groups_come_by_concurrency_and_ties_have_no_winner() {
        let rows = vec![
            row("baseline", 64, None, 50),
            row("baseline", 8, None, 50),
            row("continuum", 64, None, 50),
        ];
        let report = Report::compare(rows);
        let order: Vec<usize> = report.groups.iter().map(|g| g.concurrency).collect();
        assert_eq!(order, [8, 64]);
        assert_eq!(
            report.groups[0].whole_winner.to_string(),
            "none (nothing to compare with)"
        );
        assert_eq!(report.groups[1].whole_winner.to_string(), "none (a tie)");
    }

    #[test]
    fn every_line_of_the_text_table_is_equally_wide() {
        let rows = vec![
            row("baseline", 8, None, 50),
            row("thunderreact", 8, Some((99.0, 5)), 5),
        ];
        let text = Report::compare(rows).to_text();
        let widths: Vec<usize> = text
            .lines()
            .skip(1)
            .take(3)
            .map(|l| l.chars().count())
            .collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }

    #[test]
    fn both_files_are_written() {
        let temp = tempfile::tempdir().unwrap();
        Report::compare(vec![row("baseline", 8, None, 5)])
            .write(temp.path())
            .unwrap();
        let json = std::fs::read_to_string(temp.path().join("report.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["groups"][0]["runs"][0]["policy"], "baseline");
        assert!(temp.path().join("report.md").exists());
    }
}
