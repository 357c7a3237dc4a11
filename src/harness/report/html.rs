//! The report as the plain data of a page, which [`super::super::page`] draws. Pure.

use super::compare::{self, Cell, Group};
use super::complete::{Finding, Severity};
use super::metric::{METRICS, Metric};
use super::view;
use super::{Report, RunReport};
use crate::harness::page::{self, Page, Points};
use crate::harness::run::{CallKind, LoadSample, Run, Step};
use crate::harness::rundir::StepSource;

/// Bins of the steps/s plot, about.
const BINS: f64 = 150.0;
/// Widths of a bin that read well, in seconds.
const WIDTHS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0];

/// The page of a report whose runs are `runs`.
pub fn page(report: &Report, runs: &[Run]) -> String {
    page::render(&data(report, runs))
}

/// What the page shows.
pub fn data(report: &Report, runs: &[Run]) -> Page {
    let labels: Vec<&str> = report.runs.iter().map(|run| run.label.as_str()).collect();
    Page {
        title: "Comparison of policies".to_owned(),
        subtitle: format!("{} runs: {}", labels.len(), labels.join(", ")),
        provenance: vec![
            ("kvgate".to_owned(), report.kvgate.to_owned()),
            (
                "active window".to_owned(),
                format!("KV usage above {} %", report.threshold_percent),
            ),
            ("times".to_owned(), "UTC".to_owned()),
        ],
        findings: report.runs.iter().flat_map(findings).collect(),
        groups: report.groups.iter().map(group).collect(),
        tables: report.groups.iter().filter_map(view::sensitivity).collect(),
        runs: report
            .runs
            .iter()
            .zip(runs)
            .map(|(report_of, run)| page_run(report, report_of, run))
            .collect(),
    }
}

fn findings(run: &RunReport) -> impl Iterator<Item = page::Finding> {
    run.findings.iter().map(|finding: &Finding| page::Finding {
        severity: match finding.severity {
            Severity::Incomplete => page::Severity::Error,
            Severity::NoWindow => page::Severity::Warning,
            Severity::Note => page::Severity::Note,
        },
        run: Some(run.label.clone()),
        text: finding.text.clone(),
        example: finding.example.clone(),
    })
}

fn group(group: &Group) -> page::Group {
    let known = |metric: &&Metric| {
        let mut figures = group
            .cells
            .iter()
            .filter_map(|cell| cell.figures.get(metric.key));
        metric.wins.is_some() || figures.any(|figure| figure.known().is_some())
    };
    page::Group {
        workload: [std::slice::from_ref(&group.workload), &group.apart]
            .concat()
            .join(", "),
        concurrency: group.concurrency.unwrap_or_default() as u64,
        metrics: METRICS
            .iter()
            .filter(known)
            .map(|metric| page_metric(group, metric))
            .collect(),
    }
}

fn page_metric(group: &Group, metric: &Metric) -> page::Metric {
    let estimate = |cell: &Cell| page::Estimate {
        policy: cell.policy.clone(),
        value: match cell.figures.get(metric.key) {
            Some(compare::Figure::Known(known)) => Ok(page::Interval {
                median: known.median,
                bounds: known.interval,
                runs: known.runs,
            }),
            Some(compare::Figure::Missing { missing }) => Err(missing.clone()),
            None => Err("not computed".to_owned()),
        },
    };
    page::Metric {
        name: metric.long.to_owned(),
        unit: metric.unit.to_owned(),
        decimals: metric.decimals,
        estimates: group.cells.iter().map(estimate).collect(),
        verdict: group
            .verdicts
            .get(metric.key)
            .map_or(page::Verdict::NotJudged, verdict),
    }
}

fn verdict(verdict: &compare::Verdict) -> page::Verdict {
    use compare::Verdict as From;
    match verdict {
        From::Winner { policy, .. } => page::Verdict::Winner {
            policy: policy.clone(),
            lead: verdict.lead().unwrap_or_default(),
        },
        From::NoClearWinner { why, .. } | From::None { why } => {
            page::Verdict::NoClearWinner { why: why.clone() }
        }
    }
}

/// A run's time axis: its zero, Unix seconds, and its length.
#[derive(Clone, Copy)]
struct Axis {
    zero_s: f64,
    length_s: f64,
}

impl Axis {
    #[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
    fn of(run: &Run) -> Self {
        let sampled = run
            .sampled()
            .map(|(first, last)| (first as f64, last as f64));
        let both = [run.span(), sampled];
        let spans = || both.into_iter().flatten();
        let zero_s = spans()
            .map(|span| span.0)
            .reduce(f64::min)
            .unwrap_or_default();
        let end_s = spans()
            .map(|span| span.1)
            .reduce(f64::max)
            .unwrap_or_default();
        Self {
            zero_s,
            length_s: end_s - zero_s,
        }
    }

    fn at(self, unix_s: f64) -> f64 {
        unix_s - self.zero_s
    }
}

fn page_run(report: &Report, of: &RunReport, run: &Run) -> page::Run {
    let axis = Axis::of(run);
    let none = "no gate sampled it";
    page::Run {
        label: of.label.clone(),
        policy: of.measures.policy.clone(),
        workload: of.measures.trace.clone(),
        concurrency: of.measures.concurrency.unwrap_or_default() as u64,
        facts: facts(of),
        length_s: axis.length_s,
        window: window(of, axis),
        threshold_percent: report.threshold_percent,
        kv: kv(run, axis),
        steps_per_s: steps_per_s(run, axis),
        running: loads(run, axis, |load| load.running, Sum::Backends)
            .ok_or_else(|| none.to_owned()),
        waiting: loads(run, axis, |load| load.waiting, Sum::Backends)
            .ok_or_else(|| none.to_owned()),
        held: loads(run, axis, |load| Some(load.held), Sum::Once).ok_or_else(|| none.to_owned()),
        latencies: latencies(run),
        programs: programs(run, axis),
        tables: view::run_tables(of),
        artifacts: artifacts(of),
    }
}

fn facts(of: &RunReport) -> Vec<(String, String)> {
    let mut facts = vec![
        ("folder".to_owned(), of.dir.display().to_string()),
        ("when".to_owned(), view::window_line(of)),
    ];
    facts.extend(of.artifacts.iter().flat_map(super::Artifacts::facts));
    facts
}

#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
fn window(of: &RunReport, axis: Axis) -> page::Known<page::Span> {
    match &of.measures.window {
        crate::harness::measure::WindowRates::Found { window, .. } => Ok(page::Span {
            start_s: axis.at(window.start_s as f64),
            end_s: axis.at(window.end_s as f64),
        }),
        crate::harness::measure::WindowRates::Missing { missing } => Err(missing.clone()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
fn kv(run: &Run, axis: Axis) -> page::Known<Vec<page::Line>> {
    if run.series.is_empty() {
        return Err("the KV cache was not sampled".to_owned());
    }
    let line = |series: &crate::harness::run::Series| {
        let mut points: Points = series
            .samples
            .iter()
            .map(|sample| (axis.at(sample.ts_s as f64), sample.usage_percent))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        page::Line {
            name: series.name.clone(),
            points,
        }
    };
    Ok(run.series.iter().map(line).collect())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates; bins are few"
)]
fn steps_per_s(run: &Run, axis: Axis) -> page::Known<page::Bins> {
    if run.steps.is_empty() {
        return Err("no step was recorded".to_owned());
    }
    let wanted = axis.length_s / BINS;
    let width_s = WIDTHS
        .into_iter()
        .find(|&width| width >= wanted)
        .unwrap_or(wanted);
    let mut values = vec![0.0; (axis.length_s / width_s) as usize + 1];
    for step in run.served() {
        if let Some(bin) = values.get_mut((axis.at(step.finished_s) / width_s) as usize) {
            *bin += 1.0 / width_s;
        }
    }
    Ok(page::Bins { width_s, values })
}

/// Whether a sample's rows of several backends add up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    /// Each backend has its own.
    Backends,
    /// All rows tell the same.
    Once,
}

fn loads(run: &Run, axis: Axis, of: fn(&LoadSample) -> Option<u32>, sum: Sum) -> Option<Points> {
    let mut points: Points = Vec::new();
    for load in &run.loads {
        let value = of(load).map_or(f64::NAN, f64::from);
        let at_s = axis.at(load.ts_s);
        match points.last_mut() {
            Some(last) if last.0.total_cmp(&at_s).is_eq() => {
                if sum == Sum::Backends {
                    last.1 += value;
                }
            }
            _ => points.push((at_s, value)),
        }
    }
    (!points.is_empty()).then_some(points)
}

fn latencies(run: &Run) -> Vec<page::Latency> {
    let latency = |kind: &str, seconds: Vec<f64>| page::Latency {
        kind: kind.to_owned(),
        distribution: page::Distribution::of(seconds, "none was recorded"),
    };
    let steps = run.served().map(|step| step.finished_s - step.started_s);
    let mut all = vec![latency("step", steps.collect())];
    if !run.requests.is_empty() {
        let ttfts = run
            .served_requests()
            .filter_map(|(_, request)| request.ttft_s);
        all.push(latency("TTFT", ttfts.collect()));
    }
    if run.step_source == StepSource::Gate {
        let holds = run.served_requests().map(|(_, request)| request.hold_s);
        all.push(latency("hold", holds.collect()));
    }
    for kind in CallKind::ALL {
        let own_step = kind == CallKind::LlmCall && !run.requests.is_empty();
        let calls = run.calls.iter().filter(|call| call.kind == kind);
        let seconds: Vec<f64> = calls.map(|call| call.seconds).collect();
        if !own_step && !seconds.is_empty() {
            all.push(latency(kind.word(), seconds));
        }
    }
    all
}

/// A step of a program, Unix seconds.
struct Work {
    arrived: f64,
    admitted: f64,
    ended: f64,
}

fn programs(run: &Run, axis: Axis) -> page::Known<page::Programs> {
    if run.programs.is_empty() {
        return Err("no program was recorded".to_owned());
    }
    let mut work: Vec<Vec<Work>> = run.programs.iter().map(|_| Vec::new()).collect();
    for (program, item) in works(run) {
        if let Some(list) = work.get_mut(program as usize) {
            list.push(item);
        }
    }
    let mut lanes: Vec<page::Lane> = Vec::new();
    let mut order: Vec<_> = run.programs.iter().zip(work).collect();
    order.sort_by(|a, b| a.0.started_s.total_cmp(&b.0.started_s));
    for (program, work) in order {
        lanes.push(page::Lane {
            name: program.name.clone(),
            ended: program.ending.is_some(),
            phases: phases(work, axis),
        });
    }
    Ok(page::Programs {
        total: run.programs.len(),
        lanes,
    })
}

/// LLM calls by program: of a kvgate run with their hold, of a reference run without.
fn works(run: &Run) -> Vec<(u32, Work)> {
    if run.requests.is_empty() {
        let calls = run
            .calls
            .iter()
            .filter(|call| call.kind == CallKind::LlmCall);
        let work = calls.filter_map(|call| {
            let arrived = call.ended_s - call.seconds;
            let work = Work {
                arrived,
                admitted: arrived,
                ended: call.ended_s,
            };
            Some((call.program?, work))
        });
        return work.collect();
    }
    let pairs = run.steps.iter().zip(&run.requests);
    let work = pairs.filter_map(|(step, request): (&Step, _)| {
        let work = Work {
            arrived: step.started_s,
            admitted: step.started_s + request.hold_s,
            ended: step.finished_s,
        };
        Some((step.program?, work))
    });
    work.collect()
}

/// A program's phases by start, without overlaps: what lies between two works is a gap.
fn phases(mut work: Vec<Work>, axis: Axis) -> Vec<(page::Phase, page::Span)> {
    work.sort_by(|a, b| a.arrived.total_cmp(&b.arrived));
    let mut phases = Vec::new();
    let mut push = |phase, from: f64, to: f64| {
        if to > from {
            let span = page::Span {
                start_s: axis.at(from),
                end_s: axis.at(to),
            };
            phases.push((phase, span));
        }
    };
    let mut over: Option<f64> = None;
    for step in work {
        let begin = over.map_or(step.arrived, |over| step.arrived.max(over));
        push(page::Phase::Gap, over.unwrap_or(begin), begin);
        let end = step.ended.max(begin);
        let admitted = step.admitted.clamp(begin, end);
        push(page::Phase::Hold, begin, admitted);
        push(page::Phase::Step, admitted, end);
        over = Some(end);
    }
    phases
}

fn artifacts(of: &RunReport) -> page::Known<Vec<page::Artifact>> {
    let artifacts = of.artifacts.as_ref().ok_or("files were not read")?;
    let files = artifacts.files.iter().map(|file| page::Artifact {
        path: file.path.clone(),
        bytes: file.bytes,
        sha256: Ok(file.sha256.clone()),
    });
    Ok(files.collect())
}
