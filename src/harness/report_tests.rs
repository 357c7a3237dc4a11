//! The table on made-up figures.

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
