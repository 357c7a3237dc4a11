//! Pages that no experiment gives: every text a hostile one, every figure an impossible one.

use kvgate::harness::page::{
    Artifact, Bins, Column, Distribution, Estimate, Finding, Group, Interval, Known, Lane, Latency,
    Line, Metric, Page, Phase, Points, Programs, Run, Severity, Span, Table, Verdict,
};

use crate::example::{interval, no};

/// A page that says `word` wherever a page can say anything, with one of everything.
pub(crate) fn worded(word: &str) -> Page {
    let text = || word.to_owned();
    let winner = Verdict::Winner {
        policy: text(),
        lead: text(),
    };
    let nobody = Verdict::NoClearWinner { why: text() };
    Page {
        title: text(),
        subtitle: text(),
        provenance: vec![(text(), text())],
        findings: vec![Finding {
            severity: Severity::Error,
            run: Some(text()),
            text: text(),
            example: Some(text()),
        }],
        groups: vec![group(word, 1, winner), group(word, 2, nobody)],
        tables: vec![table(word, no(word))],
        runs: vec![run(word)],
    }
}

fn group(word: &str, concurrency: u64, verdict: Verdict) -> Group {
    let estimate = |policy, value| Estimate { policy, value };
    Group {
        workload: word.to_owned(),
        concurrency,
        metrics: vec![Metric {
            name: word.to_owned(),
            unit: word.to_owned(),
            decimals: 1,
            estimates: vec![
                estimate(word.to_owned(), Ok(interval(1.0))),
                estimate(format!("{word}2"), no(word)),
            ],
            verdict,
        }],
    }
}

fn table(word: &str, rows: Known<Vec<Vec<String>>>) -> Table {
    Table {
        title: word.to_owned(),
        note: word.to_owned(),
        columns: vec![Column {
            name: word.to_owned(),
            numeric: false,
        }],
        rows,
        left_out: 1,
    }
}

fn run(word: &str) -> Run {
    let text = || word.to_owned();
    let phase = (
        Phase::Step,
        Span {
            start_s: 1.0,
            end_s: 9.0,
        },
    );
    let lane = Lane {
        name: text(),
        ended: false,
        phases: vec![phase],
    };
    let latency = |kind, distribution| Latency { kind, distribution };
    Run {
        label: text(),
        policy: text(),
        workload: text(),
        concurrency: 1,
        facts: vec![(text(), text())],
        length_s: 10.0,
        window: no(word),
        threshold_percent: 70.0,
        kv: Ok(vec![Line {
            name: text(),
            points: vec![(0.0, 1.0), (9.0, 2.0)],
        }]),
        steps_per_s: no(word),
        running: no(word),
        waiting: Ok(vec![(0.0, 1.0)]),
        held: no(word),
        latencies: vec![
            latency(text(), Distribution::of(vec![1.0, 2.0], "")),
            latency(format!("{word}2"), no(word)),
        ],
        programs: Ok(Programs {
            total: 9,
            lanes: vec![lane],
        }),
        tables: vec![table(word, Ok(vec![vec![text()]])), table(word, no(word))],
        artifacts: Ok(vec![Artifact {
            path: text(),
            bytes: 1,
            sha256: no(word),
        }]),
    }
}

/// A page of figures that no run has, in every place that takes one.
pub(crate) fn odd() -> Page {
    let odd = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1.0,
        0.0,
        1e300,
        f64::MIN_POSITIVE,
    ];
    let points: Points = odd
        .iter()
        .flat_map(|a| odd.iter().map(|b| (*a, *b)))
        .collect();
    let spans = || {
        odd.iter().flat_map(|a| {
            odd.iter().map(|b| Span {
                start_s: *a,
                end_s: *b,
            })
        })
    };
    let mut page = worded("x");
    page.groups[0].metrics[0].estimates = odd
        .iter()
        .map(|value| Estimate {
            policy: "x".to_owned(),
            value: Ok(Interval {
                median: *value,
                bounds: Some((*value, f64::NAN)),
                runs: 1,
            }),
        })
        .collect();
    let base = page.runs.remove(0);
    page.runs = odd
        .iter()
        .zip(spans())
        .map(|(value, window)| Run {
            length_s: *value,
            window: Ok(window),
            threshold_percent: *value,
            kv: Ok(vec![Line {
                name: String::new(),
                points: points.clone(),
            }]),
            steps_per_s: Ok(Bins {
                width_s: *value,
                values: odd.to_vec(),
            }),
            running: Ok(points.clone()),
            held: Ok(Vec::new()),
            latencies: vec![Latency {
                kind: String::new(),
                distribution: Ok(Distribution {
                    count: 0,
                    quantiles: points.clone(),
                }),
            }],
            programs: Ok(Programs {
                total: 0,
                lanes: vec![Lane {
                    name: String::new(),
                    ended: false,
                    phases: spans().map(|span| (Phase::Hold, span)).collect(),
                }],
            }),
            ..base.clone()
        })
        .collect();
    page
}
