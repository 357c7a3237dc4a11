//! `compare` and `compare6`: rates in the active window, as tables. Also the layout of the handoff document.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::counted::{self, Counts, Ended};
use super::{Raised, float_flag, ratio, say, window};
use crate::harness::reference::local_time::Zone;
use crate::harness::reference::python::fixed;
use crate::harness::window::THRESHOLD_PERCENT;

/// Concurrencies of the tables' rows.
const ROWS: [&str; 3] = ["32", "64", "128"];

/// The policies' names in the handoff document.
const POLICIES: [&str; 3] = ["ThunderReact", "Continuum", "Baseline"];

/// Flags of `kvgate reference compare`.
#[derive(Args, Clone, Debug)]
#[command(infer_long_args = true, args_override_self = true)]
pub struct CompareArgs {
    /// The runs of ThunderReact and Continuum.
    #[command(flatten)]
    pub six: Compare6Args,
    /// Baseline, 32 tasks in flight
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub bl32: PathBuf,
    /// Baseline, 64
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub bl64: PathBuf,
    /// Baseline, 128
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub bl128: PathBuf,
    /// How the tables are laid out
    #[arg(long, value_enum, default_value_t = Layout::Script)]
    pub layout: Layout,
}

/// Flags of `kvgate reference compare6`.
#[derive(Args, Clone, Debug)]
#[command(infer_long_args = true, args_override_self = true)]
pub struct Compare6Args {
    /// KV usage above which the active window counts, in percent
    #[arg(long, value_name = "PERCENT", value_parser = float_flag, allow_negative_numbers = true, default_value_t = THRESHOLD_PERCENT)]
    pub threshold: f64,
    /// ThunderReact, 32 tasks in flight
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub tr32: PathBuf,
    /// ThunderReact, 64
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub tr64: PathBuf,
    /// ThunderReact, 128
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub tr128: PathBuf,
    /// Continuum, 32
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub ct32: PathBuf,
    /// Continuum, 64
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub ct64: PathBuf,
    /// Continuum, 128
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub ct128: PathBuf,
}

/// How tables are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// As the script printed them
    Script,
    /// As the handoff document shows them
    Handoff,
}

/// What the scripts count of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    window_s: i64,
    tasks: i64,
    steps: i64,
}

/// One of the two rates, and how the scripts call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Tasks,
    Steps,
}

impl Rate {
    const fn unit(self) -> &'static str {
        match self {
            Self::Tasks => "tasks/min",
            Self::Steps => "steps/s",
        }
    }

    fn of(self, run: &Run) -> f64 {
        match self {
            Self::Tasks => ratio(run.tasks, 1) / run.minutes(),
            Self::Steps => ratio(run.steps, run.window_s),
        }
    }
}

impl Run {
    fn read(dir: &Path, threshold: f64, zone: &Zone) -> Result<Self, Raised> {
        let window = window(dir, threshold)?;
        let (mut tasks, mut steps) = (Counts::default(), Counts::default());
        counted::ended(dir, zone, |what, at_s| match what {
            Ended::Task => tasks.add(at_s, &window),
            Ended::Step => steps.add(at_s, &window),
        });
        let window_s = window.end_s.saturating_sub(window.start_s);
        Ok(Self {
            window_s,
            tasks: tasks.inside,
            steps: steps.inside,
        })
    }

    fn minutes(&self) -> f64 {
        ratio(self.window_s, 1) / 60.0
    }
}

/// Reads the runs of one policy after another.
fn read(policies: &[[&PathBuf; 3]], threshold: f64, zone: &Zone) -> Result<Vec<[Run; 3]>, Raised> {
    let run = |dir: &PathBuf| Run::read(dir, threshold, zone);
    policies
        .iter()
        .map(|[low, mid, high]| Ok([run(low)?, run(mid)?, run(high)?]))
        .collect()
}

impl Compare6Args {
    const fn policies(&self) -> [[&PathBuf; 3]; 2] {
        [
            [&self.tr32, &self.tr64, &self.tr128],
            [&self.ct32, &self.ct64, &self.ct128],
        ]
    }
}

pub(super) fn compare(args: &CompareArgs, zone: &Zone, out: &mut String) -> Result<u8, Raised> {
    let [tr, ct] = args.six.policies();
    let bl = [&args.bl32, &args.bl64, &args.bl128];
    let runs = read(&[tr, ct, bl], args.six.threshold, zone)?;
    match args.layout {
        Layout::Script => {
            let heads = [
                (
                    Rate::Tasks,
                    "TR             | CT             | Baseline        |",
                    ":------------- | :------------- | :-------------- |",
                ),
                (
                    Rate::Steps,
                    "TR           | CT           | Baseline      |",
                    ":----------- | :----------- | :------------ |",
                ),
            ];
            let winner = |rates: &[f64]| {
                Ok(["TR", "CT", "Baseline"][first_of_the_highest(rates)].to_owned())
            };
            tables(&runs, heads, winner, out)?;
            appendix(&runs, out);
        }
        Layout::Handoff => handoff(&runs, args.six.threshold, out),
    }
    Ok(0)
}

pub(super) fn compare6(args: &Compare6Args, zone: &Zone, out: &mut String) -> Result<u8, Raised> {
    let runs = read(&args.policies(), args.threshold, zone)?;
    let heads = [
        (
            Rate::Tasks,
            "TR             | CT             |",
            ":------------- | :------------- |",
        ),
        (
            Rate::Steps,
            "TR           | CT           |",
            ":----------- | :----------- |",
        ),
    ];
    tables(&runs, heads, |rates| lead(rates[0], rates[1]), out)?;
    appendix(&runs, out);
    Ok(0)
}

/// Python's `max`: a tie goes to the first.
fn first_of_the_highest(rates: &[f64]) -> usize {
    let mut best = 0;
    for (index, rate) in rates.iter().enumerate() {
        if *rate > rates[best] {
            best = index;
        }
    }
    best
}

/// Who leads by more than 5 %, and by how much.
fn lead(tr: f64, ct: f64) -> Result<String, Raised> {
    let percent = |ratio: f64| fixed((ratio - 1.0) * 100.0, 0);
    if ct <= 0.0 {
        return Ok("TR".to_owned());
    }
    let ratio = tr / ct;
    if ratio > 1.05 {
        Ok(format!("TR +{}%", percent(ratio)))
    } else if ratio <= 0.0 {
        Err(Raised(
            "ZeroDivisionError: float division by zero".to_owned(),
        ))
    } else if ratio < 0.95 {
        Ok(format!("CT +{}%", percent(1.0 / ratio)))
    } else {
        Ok("相当".to_owned())
    }
}

fn tables(
    runs: &[[Run; 3]],
    heads: [(Rate, &str, &str); 2],
    winner: impl Fn(&[f64]) -> Result<String, Raised>,
    out: &mut String,
) -> Result<(), Raised> {
    for (rate, names, rules) in heads {
        let title = match rate {
            Rate::Tasks => "TABLE 1: Tasks done / minute",
            Rate::Steps => "TABLE 2: Steps / second",
        };
        say!(out, "\n### {title} (active window)\n");
        say!(out, "| 场景  | {names} Winner |");
        say!(out, "| :---- | {rules} :----- |");
        for (row, concurrency) in ROWS.iter().enumerate() {
            let rates: Vec<_> = runs.iter().map(|policy| rate.of(&policy[row])).collect();
            let cell = |value: &f64| format!("{} {}", fixed(*value, 2), rate.unit());
            let cells: Vec<_> = rates.iter().map(cell).collect();
            say!(
                out,
                "| C={concurrency}  | {} | {} |",
                cells.join(" | "),
                winner(&rates)?
            );
        }
    }
    Ok(())
}

fn appendix(runs: &[[Run; 3]], out: &mut String) {
    say!(out, "\n### Appendix: raw window stats\n");
    say!(
        out,
        "| Run | window(min) | tasks_in_window | steps_in_window | tasks/min | steps/s |"
    );
    say!(
        out,
        "| :-- | ----------: | -------------: | -------------: | --------: | ------: |"
    );
    for (row, concurrency) in ROWS.iter().enumerate() {
        for (policy, name) in runs.iter().zip(["TR", "CT", "BL"]) {
            let run = &policy[row];
            let minutes = fixed(run.minutes(), 1);
            let rates = [Rate::Tasks, Rate::Steps].map(|rate| fixed(rate.of(run), 2));
            let (tasks, steps) = (run.tasks, run.steps);
            say!(
                out,
                "| {name}{concurrency} | {minutes} | {tasks} | {steps} | {} | {} |",
                rates[0],
                rates[1]
            );
        }
    }
}

/// A row of a table in the handoff document's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct HandoffRow {
    /// What the runs of the row have in common: `C=32`.
    pub scenario: String,
    /// A rate for each policy; `None` where there is no run.
    pub rates: Vec<Option<f64>>,
    /// Who won, or why nobody did.
    pub winner: String,
}

/// A table in the handoff document's layout: `Scenario | ThunderReact | Continuum | Baseline | Winner`, with the
/// unit in every cell.
pub fn handoff_table(policies: &[&str], unit: &str, rows: &[HandoffRow]) -> String {
    let mut out = String::new();
    let heads: Vec<_> = ["Scenario"]
        .iter()
        .chain(policies)
        .chain(&["Winner"])
        .copied()
        .collect();
    let rules: Vec<_> = heads
        .iter()
        .map(|head| "-".repeat(head.chars().count() + 2))
        .collect();
    say!(out, "| {} |", heads.join(" | "));
    say!(out, "|{}|", rules.join("|"));
    for row in rows {
        let rate = |rate: &Option<f64>| {
            rate.map_or_else(
                || "—".to_owned(),
                |rate| format!("{} {unit}", fixed(rate, 2)),
            )
        };
        let cells: Vec<_> = row.rates.iter().map(rate).collect();
        say!(
            out,
            "| {} | {} | {} |",
            row.scenario,
            cells.join(" | "),
            row.winner
        );
    }
    out
}

fn handoff(runs: &[[Run; 3]], threshold: f64, out: &mut String) {
    let table = |rate: Rate| {
        let row = |(row, concurrency): (usize, &&str)| {
            let rates: Vec<_> = runs.iter().map(|policy| rate.of(&policy[row])).collect();
            HandoffRow {
                scenario: format!("C={concurrency}"),
                winner: POLICIES[first_of_the_highest(&rates)].to_owned(),
                rates: rates.into_iter().map(Some).collect(),
            }
        };
        let rows: Vec<_> = ROWS.iter().enumerate().map(row).collect();
        handoff_table(&POLICIES, rate.unit(), &rows)
    };
    say!(
        out,
        "Active window: **first KV>{threshold}% → last KV>{threshold}%**.\n"
    );
    say!(out, "{}", table(Rate::Tasks));
    say!(out, "Steps/s, in the same active window:\n");
    out.push_str(&table(Rate::Steps));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_within_five_percent_is_none_and_nothing_cannot_be_led() {
        let cases = [
            (1.05, 1.0, "相当"),
            (1.051, 1.0, "TR +5%"),
            (0.95, 1.0, "相当"),
            (3.55, 3.77, "CT +6%"),
            (0.0, 0.0, "TR"),
        ];
        for (tr, ct, shown) in cases {
            assert_eq!(lead(tr, ct).unwrap(), shown, "{tr} {ct}");
        }
        let Raised(text) = lead(0.0, 1.0).unwrap_err();
        assert_eq!(text, "ZeroDivisionError: float division by zero");
    }

    #[test]
    fn a_tie_goes_to_the_first() {
        assert_eq!(first_of_the_highest(&[1.0, 2.0, 2.0]), 1);
        assert_eq!(first_of_the_highest(&[0.0, 0.0, 0.0]), 0);
    }

    #[test]
    fn the_handoff_layout_has_the_unit_in_every_cell() {
        let row = HandoffRow {
            scenario: "C=32".into(),
            rates: vec![Some(3.7699), None],
            winner: "a".into(),
        };
        let shown = "| Scenario | a | bc | Winner |\n|----------|---|----|--------|\n| C=32 | 3.77 tasks/min | — | a |\n";
        assert_eq!(handoff_table(&["a", "bc"], "tasks/min", &[row]), shown);
    }
}
