//! Groups, repeats, verdicts and thresholds, on runs made up for the purpose.

use super::*;
use crate::harness::run::build::Builder;
use crate::harness::run::{Ended, Run, Series};
use crate::harness::rundir::{Ending, Manifest, ProgramRecord, StepSource};
use crate::harness::window::KvSample;
use crate::telemetry::StepRecord;

/// A run of `tasks` programs of one step each, evenly over 600 s, with the KV cache at 80 % for the first `hot_s`.
fn run(policy: &str, concurrency: usize, tasks: usize, hot_s: u32) -> Run {
    let manifest = Manifest {
        policy: Some(policy.to_owned()),
        concurrency,
        trace: "tau2".to_owned(),
        programs: tasks,
        ..Manifest::default()
    };
    let mut builder = Builder::new(Some(&manifest), StepSource::Gate);
    for task in 0..tasks {
        #[expect(clippy::cast_precision_loss, reason = "a few tasks")]
        let finished_s = 600.0 * (task + 1) as f64 / tasks as f64;
        let program = format!("p{task}");
        builder.step(&StepRecord {
            program: Some(program.clone()),
            arrived_s: 0.0,
            finished_s,
            outcome: "stop".to_owned(),
            status: 200,
            ..StepRecord::default()
        });
        builder.program(&ProgramRecord {
            program,
            kind: "k".to_owned(),
            started_s: 0.0,
            finished_s,
            steps: 1,
            errors: 0,
            ending: Ending::Done,
            cause: None,
        });
    }
    let mut run = builder.finish(true);
    run.intake.ended = Ended::Summary;
    // In 600 s more tasks are a higher rate; as sets of another size they would not be compared.
    run.expected = None;
    let sample = |at: u32| KvSample {
        ts_s: i64::from(at),
        usage_percent: if at <= hot_s { 80.0 } else { 10.0 },
    };
    run.series = vec![Series {
        name: "port 1".to_owned(),
        samples: (0..=600).step_by(5).map(sample).collect(),
    }];
    run.label = policy.to_owned();
    run
}

fn verdict(runs: &[Run], key: &str) -> String {
    Report::of(runs, 70.0).groups[0].verdicts[key].to_string()
}

#[test]
fn the_most_tasks_per_minute_win_and_a_small_lead_is_noise() {
    let runs = [run("baseline", 8, 100, 300), run("continuum", 8, 150, 300)];
    assert_eq!(
        verdict(&runs, "window_tasks_per_min"),
        "continuum (+50 % over baseline)"
    );
    let runs = [run("baseline", 8, 100, 300), run("continuum", 8, 101, 300)];
    assert_eq!(
        verdict(&runs, "whole_tasks_per_min"),
        "no clear winner (continuum leads baseline by 1.0 %, within noise)"
    );
    let runs = [run("baseline", 8, 100, 300), run("continuum", 8, 100, 300)];
    assert_eq!(verdict(&runs, "whole_tasks_per_min"), "none (a tie)");
    assert_eq!(
        verdict(&runs[..1], "whole_tasks_per_min"),
        "none (nothing to compare with)"
    );
}

#[test]
fn repeats_whose_intervals_overlap_have_no_clear_winner() {
    let repeats = |policy: &str, tasks: [usize; 3]| tasks.map(|n| run(policy, 8, n, 300));
    let apart = [
        repeats("baseline", [100, 101, 99]),
        repeats("continuum", [120, 118, 121]),
    ]
    .concat();
    assert_eq!(
        verdict(&apart, "whole_tasks_per_min"),
        "continuum (+20 % over baseline)"
    );
    let close = [
        repeats("baseline", [100, 104, 99]),
        repeats("continuum", [103, 106, 101]),
    ]
    .concat();
    let said = verdict(&close, "whole_tasks_per_min");
    assert!(
        said.starts_with("no clear winner (the range of continuum [10.10, 10.60] and the range of baseline [9.90, 10.40] overlap"),
        "{said}"
    );
    let report = Report::of(&close, 70.0);
    let cell = &report.groups[0].cells[0];
    let figure = cell.figures["whole_tasks_per_min"].known().unwrap();
    assert_eq!(figure.runs, 3);
    assert!(
        (figure.median - 10.0).abs() < 1e-9,
        "the median of 9.9, 10.0 and 10.4"
    );
    assert!(text::comparison(&report).contains("10.00 [9.90, 10.40]"));
}

#[test]
fn a_small_lead_is_noise_until_five_repeats_of_each_prove_it() {
    let repeats = |policy: &str, tasks: usize, count: usize| {
        let runs = (0..count).map(|more| run(policy, 8, tasks + more, 300));
        runs.collect::<Vec<_>>()
    };
    let few = [repeats("baseline", 1000, 5), repeats("continuum", 1020, 4)].concat();
    let said = verdict(&few, "whole_tasks_per_min");
    assert!(
        said.starts_with("no clear winner (continuum leads baseline by 1.9 %"),
        "{said}"
    );
    let runs = [repeats("baseline", 1000, 5), repeats("continuum", 1020, 5)].concat();
    assert_eq!(
        verdict(&runs, "whole_tasks_per_min"),
        "continuum (+2 % over baseline)"
    );
}

#[test]
fn an_incomplete_run_never_wins_and_its_repeats_do() {
    let mut broken = run("continuum", 8, 150, 300);
    broken.intake.ended = Ended::Killed("summary.json");
    let runs = [run("baseline", 8, 100, 300), broken.clone()];
    assert_eq!(
        verdict(&runs, "whole_tasks_per_min"),
        "none (continuum leads and is incomplete)"
    );
    let runs = [run("baseline", 8, 200, 300), broken.clone()];
    assert_eq!(
        verdict(&runs, "whole_tasks_per_min"),
        "baseline (+33 % over continuum)"
    );
    let runs = [
        run("baseline", 8, 100, 300),
        broken,
        run("continuum", 8, 120, 300),
    ];
    assert_eq!(
        verdict(&runs, "whole_tasks_per_min"),
        "continuum (+20 % over baseline)"
    );
    assert!(
        text::comparison(&Report::of(&runs, 70.0)).contains("continuum (1 incomplete, left out)")
    );
}

#[test]
fn a_run_that_was_resumed_decides_nothing_about_the_whole_run() {
    let mut paused = run("baseline", 8, 100, 300);
    paused.intake.resumed = vec!["1970-01-01T00:03:20+00:00".to_owned()];
    let runs = [paused, run("continuum", 8, 150, 300)];
    assert_eq!(
        verdict(&runs, "whole_tasks_per_min"),
        "none (baseline has a run that was resumed: its pause counts)"
    );
}

#[test]
fn a_missing_or_short_window_is_shown_and_names_no_winner() {
    let mut cold = run("continuum", 8, 100, 300);
    cold.series[0]
        .samples
        .iter_mut()
        .for_each(|sample| sample.usage_percent = 12.0);
    let missing = Report::of(&[run("baseline", 8, 100, 300), cold], 70.0);
    assert_eq!(
        missing.groups[0].verdicts["window_tasks_per_min"].to_string(),
        "none (continuum has no window)"
    );
    assert!(text::comparison(&missing).contains("never above 70 % (highest 12 %)"));
    assert_eq!(missing.fatal(), 1);
    let short = Report::of(
        &[run("baseline", 8, 100, 300), run("continuum", 8, 100, 20)],
        70.0,
    );
    assert_eq!(
        short.groups[0].verdicts["window_tasks_per_min"].to_string(),
        "none (continuum has a window of 20 s)"
    );
    assert!(text::comparison(&short).contains("20 short"));
}

#[test]
fn groups_are_by_workload_and_concurrency() {
    let mut other = run("baseline", 8, 100, 300);
    "swe".clone_into(&mut other.workload);
    let runs = [
        run("baseline", 64, 100, 300),
        run("continuum", 8, 100, 300),
        other,
    ];
    let report = Report::of(&runs, 70.0);
    let order: Vec<String> = report.groups.iter().map(Group::heading).collect();
    assert_eq!(order, ["swe, C=8", "tau2, C=8", "tau2, C=64"]);
}

#[test]
fn runs_of_another_setup_are_neither_repeats_nor_rivals() {
    let mut small = run("baseline", 8, 100, 300);
    (small.expected, small.kv) = (Some(100), Some((10, 16)));
    let mut large = run("continuum", 8, 150, 300);
    (large.expected, large.kv) = (Some(150), Some((10, 16)));
    let mut other_model = large.clone();
    other_model.model = Some("b".to_owned());
    large.model = Some("a".to_owned());
    large.cost = Some("h100".to_owned());
    // Nothing says on what it ran: any of them.
    let unknown = run("baseline", 8, 120, 300);
    let report = Report::of(&[small.clone(), large, other_model, unknown], 70.0);
    let order: Vec<String> = report.groups.iter().map(Group::heading).collect();
    assert_eq!(
        order,
        [
            "tau2, C=8",
            "tau2, C=8, 100 programs, KV 160 tokens",
            "tau2, C=8, 150 programs, KV 160 tokens, model b",
            "tau2, C=8, 150 programs, KV 160 tokens, cost h100, model a",
        ]
    );
    let unnamed = run("continuum", 8, 120, 300);
    let pair = Report::of(&[unnamed, small], 70.0);
    assert_eq!(
        (pair.groups.len(), pair.groups[0].heading().as_str()),
        (1, "tau2, C=8, KV 160 tokens"),
        "what is not recorded is no difference where only one setup is"
    );
    let page = html::data(&report, &[]);
    assert_eq!(page.groups[1].workload, "tau2, 100 programs, KV 160 tokens");
}

#[test]
fn figures_and_verdicts_are_of_the_same_runs() {
    let mut broken = run("continuum", 8, 900, 300);
    broken.intake.ended = Ended::Killed("summary.json");
    let mut cold = run("continuum", 8, 120, 300);
    cold.series.clear();
    let runs = [
        run("baseline", 8, 100, 300),
        broken,
        run("continuum", 8, 120, 300),
        cold,
    ];
    let report = Report::of(&runs, 70.0);
    let cell = &report.groups[0].cells[1];
    let whole = cell.figures["whole_tasks_per_min"].known().unwrap();
    assert_eq!((cell.runs.len(), cell.counted, whole.runs), (3, 2, 2));
    assert!((whole.median - 12.0).abs() < 1e-9, "without the broken one");
    let text = text::comparison(&report);
    let row = text.lines().find(|line| line.starts_with("| continuum"));
    let row = row.expect("a row");
    assert!(row.contains("left out) |    2 |"), "{row}");
    assert!(row.contains("12.00 (1 of 2 runs)"), "the window's: {row}");
    assert_eq!(
        report.groups[0].sensitivity[4].figures[1]
            .known()
            .unwrap()
            .runs,
        1
    );
}

#[test]
fn nobody_leads_by_a_share_of_nothing() {
    let mut none = run("baseline", 8, 100, 300);
    none.programs
        .iter_mut()
        .for_each(|one| one.ending = Some(Ending::Failed));
    let said = verdict(
        &[none, run("continuum", 8, 100, 300)],
        "whole_tasks_per_min",
    );
    assert_eq!(said, "continuum (baseline has 0)");
}

#[test]
fn a_lead_within_noise_is_told_alike_in_text_and_page() {
    let runs = [run("baseline", 8, 100, 300), run("continuum", 8, 101, 300)];
    let report = Report::of(&runs, 70.0);
    let why = "continuum leads baseline by 1.0 %, within noise";
    let text = text::whole(&report, Language::En);
    assert!(
        text.contains(&format!(
            "winner over the whole run: no clear winner ({why})"
        )),
        "{text}"
    );
    let page = html::data(&report, &runs);
    let metrics = &page.groups[0].metrics;
    let whole = metrics
        .iter()
        .find(|metric| metric.name.contains("tasks/min over the whole"));
    let expected = crate::harness::page::Verdict::NoClearWinner {
        why: why.to_owned(),
    };
    assert_eq!(whole.unwrap().verdict, expected);
}

#[test]
fn headline_tables_mark_incomplete_runs_and_say_why_nobody_won() {
    let mut broken = run("continuum", 8, 150, 300);
    broken.intake.ended = Ended::Killed("summary.json");
    let report = Report::of(&[run("baseline", 8, 100, 300), broken], 70.0);
    for language in [Language::En, Language::Zh] {
        let text = text::whole(&report, language);
        for sentence in [
            "15.00 tasks/min† |",
            "C=8: none (continuum leads and is incomplete)",
            "† of incomplete runs, which cannot win",
        ] {
            assert!(text.contains(sentence), "{language:?}: {sentence}\n{text}");
        }
    }
    let report = Report::of(
        &[run("baseline", 8, 100, 300), run("continuum", 8, 150, 300)],
        70.0,
    );
    assert!(!text::whole(&report, Language::En).contains('†'));
}

#[test]
fn a_label_names_a_policy_that_nothing_else_names() {
    let source = |label: Option<&str>| Source {
        dir: PathBuf::from("d"),
        label: label.map(str::to_owned),
    };
    let sources = [
        source(Some("A")),
        source(Some("A")),
        source(Some("B")),
        source(None),
    ];
    let mut runs =
        ["unknown", "unknown", "baseline", "unknown"].map(|policy| run(policy, 8, 10, 300));
    name_policies(&mut runs, &sources);
    assert_eq!(
        runs.map(|run| run.policy),
        ["A", "A", "baseline", "unknown"]
    );
}

#[test]
fn the_verdict_is_tried_at_other_thresholds() {
    // Above 70 % the baseline's window is its first half; above 85 % nothing is.
    let report = Report::of(
        &[run("baseline", 8, 100, 300), run("continuum", 8, 150, 300)],
        70.0,
    );
    let said: Vec<(f64, String)> = report.groups[0]
        .sensitivity
        .iter()
        .map(|at| (at.threshold_percent, at.verdict.to_string()))
        .collect();
    assert_eq!(said.len(), 10);
    assert_eq!(
        said[4],
        (70.0, "continuum (+50 % over baseline)".to_owned())
    );
    assert_eq!(said[7], (85.0, "none (baseline has no window)".to_owned()));
}

#[test]
fn both_files_are_written() {
    let temp = tempfile::tempdir().unwrap();
    let report = Report::of(&[run("baseline", 8, 10, 300)], 70.0);
    report.write(temp.path()).unwrap();
    let json = std::fs::read_to_string(temp.path().join("report.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["runs"][0]["policy"], "baseline");
    assert_eq!(
        value["groups"][0]["cells"][0]["figures"]["whole_tasks_per_min"]["median"],
        1.0
    );
    assert!(temp.path().join("report.md").exists());
}

#[test]
fn the_same_runs_give_the_same_report() {
    let runs = [run("baseline", 8, 100, 300), run("baseline", 8, 110, 300)];
    let once = serde_json::to_string(&Report::of(&runs, 70.0)).unwrap();
    assert_eq!(
        once,
        serde_json::to_string(&Report::of(&runs, 70.0)).unwrap()
    );
}

#[test]
fn work_is_split_around_the_window_and_open_programs_are_found() {
    let mut data = run("baseline", 8, 60, 300);
    data.programs[59].ending = None;
    data.programs[59].last_s = 400.0;
    for sample in 0..60 {
        data.series[0].samples.push(KvSample {
            ts_s: 600 + sample * 60,
            usage_percent: 3.0,
        });
    }
    let report = Report::of(&[data], 70.0);
    let detail = &report.runs[0].detail;
    let tasks = detail.tasks.unwrap();
    assert_eq!((tasks.before, tasks.inside, tasks.after), (0, 30, 29));
    assert_eq!(
        (detail.open_total, detail.open[0].program.as_str()),
        (1, "p59")
    );
    let stuck = detail.stuck.as_ref().unwrap();
    assert!((stuck.since_s - 600.0).abs() < 1e-9 && (stuck.silent_s - 3540.0).abs() < 1e-9);
    assert!((stuck.kv.unwrap().max - 3.0).abs() < 1e-9);
    let text = text::whole(&report, Language::En);
    assert!(
        text.contains("Programs that never ended") && text.contains("#### Stuck"),
        "{text}"
    );
}

#[test]
fn records_that_the_gate_dropped_or_the_client_alone_saw_make_a_run_incomplete() {
    let mut data = run("baseline", 8, 100, 300);
    data.intake.dropped = 3;
    data.intake.client_served = Some(104);
    let report = Report::of(&[data], 70.0);
    let said = text::completeness(&report);
    assert!(
        said.contains("incomplete: the gate's recorder dropped 3 records"),
        "{said}"
    );
    assert!(
        said.contains("incomplete: steps.jsonl lacks 4 of the 104 steps"),
        "{said}"
    );
    assert!(!report.runs[0].complete);
}
