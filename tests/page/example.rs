//! A page such as an experiment of three policies at three concurrencies gives, with one further run that lost most
//! of its files. The data are made up, from a seed, in the proportions of the reference experiment.

use kvgate::harness::page::{
    Artifact, Bins, Column, Distribution, Estimate, Finding, Group, Interval, Known, Lane, Latency,
    Line, Metric, Page, Phase, Points, Programs, Run, Severity, Span, Table, Verdict,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) const POLICIES: [&str; 3] = ["thunderreact", "continuum", "baseline"];
const CONCURRENCIES: [u64; 3] = [32, 64, 128];
/// Tasks per minute in the active window, by concurrency and policy.
const TASKS_PER_MIN: [[f64; 3]; 3] = [[3.77, 3.55, 3.36], [4.13, 2.50, 3.52], [3.24, 2.41, 3.51]];
const STEPS_PER_S: [[f64; 3]; 3] = [[0.47, 0.43, 0.44], [0.50, 0.36, 0.43], [0.44, 0.33, 0.42]];
/// What a hostile client may name its program.
pub(crate) const HOSTILE: &str = "<script>alert('a program')</script>";

/// The whole page.
pub(crate) fn page() -> Page {
    let groups = (0..CONCURRENCIES.len()).map(group).collect();
    let mut runs = Vec::new();
    for (row, concurrency) in CONCURRENCIES.into_iter().enumerate() {
        for (column, policy) in POLICIES.into_iter().enumerate() {
            let seed = (10 * row + column) as u64;
            runs.push(run(policy, concurrency, STEPS_PER_S[row][column], seed));
        }
    }
    runs.push(broken_run());
    Page {
        title: "Three policies before one vLLM".to_owned(),
        subtitle: "278 tau2 tasks at 32, 64 and 128 programs at once, three seeds each; one run lost its files."
            .to_owned(),
        provenance: pairs(&[
            ("made by", "kvgate 0.1.0 report --threshold 70"),
            ("runs", "10"),
            ("active window", "first to last KV usage above 70 %"),
            ("time zone of the logs", "UTC"),
            ("intervals", "95 %, bootstrap of 2000 resamples, seed 1"),
        ]),
        findings: findings(),
        groups,
        tables: vec![sensitivity()],
        runs,
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn findings() -> Vec<Finding> {
    let broken = Some("baseline C=128 #2".to_owned());
    vec![
        Finding {
            severity: Severity::Error,
            run: broken.clone(),
            text: "kv_cache_timeseries.csv is missing: the run has no active window and is left out of the \
                   comparison. Copy the file back, or name the other repeats only."
                .to_owned(),
            example: None,
        },
        Finding {
            severity: Severity::Warning,
            run: broken,
            text: "2 of 41,022 lines of driver.log were not understood; the first is line 3,181:".to_owned(),
            example: Some(
                "[PROFILE] 2026-11-24 02:57:52.9 task=retail:5 thread=14017[PROFILE] 2026-11-24 02:57:53.114 task=telecom:2 type=step_complete step=4 total_duration_ms=<script>"
                    .to_owned(),
            ),
        },
        Finding {
            severity: Severity::Note,
            run: None,
            text: "Three repeats a cell: an interval of three runs is wide.".to_owned(),
            example: None,
        },
    ]
}

fn group(row: usize) -> Group {
    let load = 1.0 + row as f64;
    let hit = [0.81, 0.78, 0.55].map(|rate: f64| rate - 0.06 * load);
    let makespan = TASKS_PER_MIN[row].map(|rate| 278.0 / rate * 66.0);
    let program = [610.0, 702.0, 655.0].map(|seconds| seconds * load);
    let held = [Some(9.0 * load), Some(7.5 * load), None];
    let ahead = |percent: u32| match row {
        2 => none("the intervals of baseline and thunderreact overlap"),
        _ => winner(0, &format!("{percent} % over the next")),
    };
    let rows = [
        (
            "tasks/min in the active window",
            "tasks/min",
            2,
            TASKS_PER_MIN[row].map(Some),
            ahead(6),
        ),
        (
            "steps/s in the active window",
            "steps/s",
            2,
            STEPS_PER_S[row].map(Some),
            ahead(7),
        ),
        (
            "makespan",
            "s",
            0,
            makespan.map(Some),
            winner(0, "5 % under continuum"),
        ),
        (
            "prefix hit rate",
            "",
            3,
            hit.map(Some),
            winner(0, "4 % over continuum"),
        ),
        (
            "program time p95",
            "s",
            0,
            program.map(Some),
            none("the intervals overlap"),
        ),
        (
            "hold time p95",
            "s",
            1,
            held,
            winner(1, "of those that hold"),
        ),
    ];
    Group {
        workload: "tau2".to_owned(),
        concurrency: CONCURRENCIES[row],
        metrics: rows.into_iter().map(metric).collect(),
    }
}

fn winner(policy: usize, lead: &str) -> Verdict {
    Verdict::Winner {
        policy: POLICIES[policy].to_owned(),
        lead: lead.to_owned(),
    }
}

fn none(why: &str) -> Verdict {
    Verdict::NoClearWinner {
        why: why.to_owned(),
    }
}

type Figures<'a> = (&'a str, &'a str, usize, [Option<f64>; 3], Verdict);

fn metric((name, unit, decimals, medians, verdict): Figures<'_>) -> Metric {
    let estimate = |(policy, median): (&str, Option<f64>)| Estimate {
        policy: policy.to_owned(),
        value: median
            .map(interval)
            .ok_or_else(|| "it holds nothing".to_owned()),
    };
    Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        decimals,
        estimates: POLICIES.into_iter().zip(medians).map(estimate).collect(),
        verdict,
    }
}

pub(crate) fn interval(median: f64) -> Interval {
    Interval {
        median,
        bounds: Some((median * 0.965, median * 1.04)),
        runs: 3,
    }
}

fn sensitivity() -> Table {
    let rows = [
        "50;thunderreact +5 %;thunderreact +15 %;no clear winner",
        "60;thunderreact +6 %;thunderreact +16 %;no clear winner",
        "70;thunderreact +6 %;thunderreact +17 %;no clear winner",
        "80;no clear winner;thunderreact +17 %;baseline +8 %",
    ];
    let note = "Who has most tasks per minute when the window is cut at another KV usage.";
    Table {
        note: note.to_owned(),
        ..table(
            "The verdict at other thresholds",
            "#threshold, %;C=32;C=64;C=128",
            Ok(&rows),
        )
    }
}

/// A run with everything there is.
fn run(policy: &str, concurrency: u64, steps_per_s: f64, seed: u64) -> Run {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let length_s = 4300.0 + 500.0 * rng.random::<f64>();
    let programs = programs(&mut rng, concurrency, length_s, policy);
    let samples = (length_s / 5.0) as usize;
    let level = if policy == "baseline" { 97.0 } else { 88.0 };
    let kv = (0..samples).map(|n| kv_sample(&mut rng, n as f64 * 5.0, length_s, level));
    let kv: Points = kv.collect();
    Run {
        label: format!("{policy} C={concurrency}"),
        policy: policy.to_owned(),
        workload: "tau2".to_owned(),
        concurrency,
        facts: run_facts(policy, concurrency, length_s),
        length_s,
        window: Ok(Span {
            start_s: length_s * 0.07,
            end_s: length_s * 0.86,
        }),
        threshold_percent: 70.0,
        steps_per_s: Ok(rate(&mut rng, length_s, steps_per_s)),
        running: Ok(counted(&mut rng, &kv, 14.0)),
        waiting: Ok(counted(
            &mut rng,
            &kv,
            if policy == "baseline" {
                concurrency as f64 * 0.4
            } else {
                2.0
            },
        )),
        held: if policy == "baseline" {
            Err("baseline holds nothing".to_owned())
        } else {
            Ok(counted(&mut rng, &kv, concurrency as f64 * 0.35))
        },
        kv: Ok(backends(kv, concurrency)),
        latencies: latencies(&mut rng, policy, concurrency),
        programs: Ok(programs),
        tables: tables(concurrency),
        artifacts: Ok(artifacts()),
    }
}

fn run_facts(policy: &str, concurrency: u64, length_s: f64) -> Vec<(String, String)> {
    pairs(&[
        (
            "folder",
            &format!("outputs/{policy}_c{concurrency}_20251224_080110"),
        ),
        ("started", "2025-12-24 08:01:10 UTC"),
        ("length", &format!("{length_s:.0} s")),
        ("programs", "278"),
        ("KV capacity", "187,568 tokens"),
        ("seed", "300"),
        ("git", "b301358, clean"),
        ("vLLM", "0.12.0"),
    ])
}

/// Rises, stays high with waves, falls at the end; the sampler lost half a minute.
fn kv_sample(rng: &mut ChaCha8Rng, time: f64, length_s: f64, level: f64) -> (f64, f64) {
    if (0.5..0.507).contains(&(time / length_s)) {
        return (time, f64::NAN);
    }
    let rise = (time / (length_s * 0.08)).min(1.0);
    let fall = ((length_s - time) / (length_s * 0.15)).clamp(0.0, 1.0);
    let wave = (time / 130.0).sin() * 5.0 + rng.random_range(-4.0..4.0);
    (time, (level * rise * fall + wave).clamp(0.0, 100.0))
}

fn backends(kv: Points, concurrency: u64) -> Vec<Line> {
    let line = |name: &str, points: Points| Line {
        name: name.to_owned(),
        points,
    };
    if concurrency < 128 {
        return vec![line("127.0.0.1:8100", kv)];
    }
    let other = kv
        .iter()
        .map(|(time, usage)| (*time, usage * 0.8))
        .collect();
    vec![line("10.0.0.1:8100", kv), line("10.0.0.2:8100", other)]
}

fn rate(rng: &mut ChaCha8Rng, length_s: f64, mean: f64) -> Bins {
    let bins = (length_s / 30.0) as usize;
    let value = |n: usize| {
        let edge = if n < 6 || n + 16 > bins { 0.5 } else { 1.0 };
        let steps = (mean * 30.0 * edge * rng.random_range(0.6..1.4)).round();
        steps / 30.0
    };
    Bins {
        width_s: 30.0,
        values: (0..bins).map(value).collect(),
    }
}

fn counted(rng: &mut ChaCha8Rng, kv: &Points, mean: f64) -> Points {
    let there = kv.iter().filter(|(_, usage)| !usage.is_nan());
    let value = |(time, usage): &(f64, f64)| {
        let noise = rng.random_range(0.7..1.3);
        (*time, (mean * usage / 80.0 * noise).round())
    };
    there.map(value).collect()
}

fn programs(rng: &mut ChaCha8Rng, concurrency: u64, length_s: f64, policy: &str) -> Programs {
    let mut free: Vec<f64> = (0..concurrency).map(|n| n as f64 * 0.5).collect();
    let mut lanes = Vec::new();
    for task in 0..278 {
        let slot = (0..free.len())
            .min_by(|a, b| free[*a].total_cmp(&free[*b]))
            .expect("at least one program at once");
        let stuck = task % 131 == 77;
        let mut time = free[slot];
        let mut phases = Vec::new();
        for _ in 0..rng.random_range(4..30) {
            for (phase, mean) in [(Phase::Hold, 14.0), (Phase::Step, 22.0), (Phase::Gap, 9.0)] {
                let mean = mean * concurrency as f64 / 64.0;
                if phase == Phase::Hold && (policy == "baseline" || rng.random_bool(0.6)) {
                    continue;
                }
                let end_s = (time + mean * rng.random_range(0.1..2.0)).min(length_s);
                if end_s > time {
                    phases.push((
                        phase,
                        Span {
                            start_s: time,
                            end_s,
                        },
                    ));
                }
                time = end_s;
            }
        }
        if phases.is_empty() {
            break;
        }
        free[slot] = if stuck { length_s } else { time };
        let name = match task {
            3 => HOSTILE.to_owned(),
            n if n % 3 == 0 => format!("retail:{n}"),
            n if n % 3 == 1 => format!(
                "telecom:[mobile_data_issue]data_mode_off|data_usage_exceeded[PERSONA:None]#{n}"
            ),
            n => format!("airline:{n}"),
        };
        lanes.push(Lane {
            name,
            ended: !stuck,
            phases,
        });
    }
    Programs { total: 278, lanes }
}

fn latencies(rng: &mut ChaCha8Rng, policy: &str, concurrency: u64) -> Vec<Latency> {
    let load = concurrency as f64 / 32.0 * if policy == "baseline" { 1.3 } else { 1.0 };
    let kinds = [
        ("step", 14.0 * load, 1.0),
        ("TTFT", 1.1 * load, 1.5),
        ("hold", 3.0 * load, 2.0),
        ("llm_call", 9.0 * load, 1.1),
        ("user_sim", 2.2, 0.5),
        ("expert_call", 31.0, 0.8),
        ("tool gap", 0.02, 2.2),
    ];
    let latency = |(kind, median, spread): (&str, f64, f64)| {
        let durations = (0..3000)
            .map(|_| median * (spread * normal(rng)).exp())
            .collect();
        let distribution = match kind {
            "hold" if policy == "baseline" => Err("baseline holds nothing".to_owned()),
            "expert_call" => Err("no expert was called".to_owned()),
            _ => Distribution::of(durations, ""),
        };
        Latency {
            kind: kind.to_owned(),
            distribution,
        }
    };
    kinds.into_iter().map(latency).collect()
}

/// Near enough to a normal distribution.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

fn tables(concurrency: u64) -> Vec<Table> {
    let hostile = format!("{HOSTILE};4;llm_call;2210.0;702.114");
    let slowest = [
        "telecom:[mobile_data_issue]data_mode_off|data_usage_exceeded[PERSONA:None];17;llm_call;3011.2;1411.802",
        &hostile,
        "retail:96;9;expert_call;1804.7;388.020",
    ];
    let never = match concurrency {
        128 => Ok(["retail:77;6;2025-12-24 08:40:02;2332.0;91.2 %"].as_slice()),
        _ => no("every call ended"),
    };
    vec![
        table(
            "Work before, in and after the window",
            ";#before;#in;#after",
            Ok(&["tasks;0;251;27", "steps;42;1,702;164"]),
        ),
        table(
            "Role edges in the window",
            "edge;#steps;#steps/s",
            Ok(&[
                "agent → env;618;0.17",
                "user → agent;522;0.15",
                "env → agent;562;0.15",
            ]),
        ),
        Table {
            left_out: 1301,
            ..table(
                "Slowest calls in the window",
                "program;#step;kind;#ended at, s;#took, s",
                Ok(&slowest),
            )
        },
        table(
            "Calls that never ended",
            "program;#step;since;#for, s;KV then",
            never,
        ),
    ]
}

/// A table of cells between semicolons; `#` marks a column of figures.
fn table(title: &str, columns: &str, rows: Known<&[&str]>) -> Table {
    let column = |name: &str| Column {
        name: name.trim_start_matches('#').to_owned(),
        numeric: name.starts_with('#'),
    };
    let row = |cells: &&str| cells.split(';').map(str::to_owned).collect();
    Table {
        title: title.to_owned(),
        note: String::new(),
        columns: columns.split(';').map(column).collect(),
        rows: rows.map(|rows| rows.iter().map(row).collect()),
        left_out: 0,
    }
}

fn artifacts() -> Vec<Artifact> {
    let file = |path: &str, bytes, digit: &str| Artifact {
        path: path.to_owned(),
        bytes,
        sha256: Ok(digit.repeat(64)),
    };
    let mut files = vec![
        file("driver.log", 41_022_118, "a"),
        file("kv_cache_timeseries.csv", 340_640, "3"),
        file("outputs/metrics_global.json", 512, "7"),
    ];
    files.push(Artifact {
        path: "logs/tau2_global.log".to_owned(),
        bytes: 0,
        sha256: Err("permission denied".to_owned()),
    });
    files
}

/// No figure, and why.
pub(crate) fn no<T>(why: &str) -> Known<T> {
    Err(why.to_owned())
}

/// A run of which nothing but its log's head was saved: every figure says why it is not there.
fn broken_run() -> Run {
    let csv = "kv_cache_timeseries.csv is missing";
    let log = "driver.log ends before the first step";
    let kinds = [
        "step",
        "TTFT",
        "hold",
        "llm_call",
        "user_sim",
        "expert_call",
        "tool gap",
    ];
    let latency = |kind: &&str| Latency {
        kind: (*kind).to_owned(),
        distribution: no(log),
    };
    Run {
        label: "baseline C=128 #2".to_owned(),
        policy: "baseline".to_owned(),
        workload: "tau2".to_owned(),
        concurrency: 128,
        facts: pairs(&[
            ("folder", "outputs/baseline_c128_20251225_101500"),
            ("started", "unknown"),
        ]),
        length_s: 0.0,
        window: no(csv),
        threshold_percent: 70.0,
        kv: no(csv),
        steps_per_s: no(log),
        running: no("the reference's sampler does not record it"),
        waiting: no("the reference's sampler does not record it"),
        held: no("baseline holds nothing"),
        latencies: kinds.iter().map(latency).collect(),
        programs: no(log),
        tables: Vec::new(),
        artifacts: no("the folder cannot be listed: permission denied"),
    }
}
