//! The sections that set policies against each other: verdicts, figures with their intervals, latencies.

use maud::{Markup, html};

use super::bars::{Cluster, bars};
use super::curves::curves;
use super::parts::{Caption, Key, Policies, legend, small_figure, swatch, table};
use super::svg::{Ink, Tone};
use super::{Estimate, Group, Interval, Metric, Page, Run, Severity, Verdict};

/// One card for each group: who won, by the first metric.
pub(super) fn verdicts(page: &Page, policies: &Policies<'_>) -> Markup {
    let errors = page
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error);
    let errors = errors.count();
    html! {
        section #verdict {
            h2 { "Verdict" }
            @if errors > 0 {
                p.alarm {
                    "Before you trust this: "
                    a href="#findings" { (errors) @if errors == 1 { " error" } @else { " errors" } " in the data" } "."
                }
            }
            @if page.groups.is_empty() { p.missing { "Nothing was compared." } }
            div.cards { @for group in &page.groups { (card(group, policies)) } }
        }
    }
}

fn card(group: &Group, policies: &Policies<'_>) -> Markup {
    html! {
        article.card {
            h3 { (group.workload) ", C=" (group.concurrency) }
            @match group.metrics.first() {
                None => p.missing { "Nothing was measured." },
                Some(metric) => {
                    @match &metric.verdict {
                        Verdict::Winner { policy, lead } => {
                            p.winner { (chip(policies, policy)) (policy) }
                            p.lead { (lead) }
                        }
                        Verdict::NoClearWinner { why } => {
                            p.winner.none { "No clear winner" }
                            p.lead { (why) }
                        }
                        Verdict::NotJudged => {}
                    }
                    p.note { "By " (metric.name) "." }
                }
            }
        }
    }
}

fn chip(policies: &Policies<'_>, policy: &str) -> Markup {
    swatch(Key::area(policy, Ink::plain(policies.tone(policy))))
}

/// Bars of every metric, and the figures as tables.
pub(super) fn comparison(page: &Page, policies: &Policies<'_>) -> Markup {
    html! {
        section #comparison {
            h2 { "Comparison" }
            @for workload in workloads(page) {
                h3 { (workload) }
                p { (legend(&policies.keys())) }
                div.small { @for name in metric_names(page, workload) { (metric_bars(page, workload, name, policies)) } }
            }
            p.note { "Bars reach to the median, thin lines over the 95 % interval, of fewer than five runs over their range; ★ marks a clear winner. C: programs at once; n: runs." }
            div.tables {
                @for group in &page.groups { (figures(group, policies)) }
                @for extra in &page.tables { (table(extra)) }
            }
        }
    }
}

fn workloads(page: &Page) -> Vec<&str> {
    distinct(page.groups.iter().map(|group| group.workload.as_str()))
}

fn metric_names<'p>(page: &'p Page, workload: &str) -> Vec<&'p str> {
    let groups = page
        .groups
        .iter()
        .filter(|group| group.workload == workload);
    distinct(
        groups
            .flat_map(|group| &group.metrics)
            .map(|metric| metric.name.as_str()),
    )
}

fn distinct<'p>(names: impl Iterator<Item = &'p str>) -> Vec<&'p str> {
    let mut found: Vec<&str> = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// A group's bars of this metric, if it has it.
fn cluster<'p>(group: &'p Group, name: &str) -> Option<Cluster<'p>> {
    let metric = group.metrics.iter().find(|metric| metric.name == name)?;
    Some(Cluster {
        concurrency: group.concurrency,
        metric,
    })
}

fn metric_bars(page: &Page, workload: &str, name: &str, policies: &Policies<'_>) -> Markup {
    let groups = page
        .groups
        .iter()
        .filter(|group| group.workload == workload);
    let clusters: Vec<Cluster<'_>> = groups.filter_map(|group| cluster(group, name)).collect();
    let unit = clusters.first().map_or("", |cluster| &cluster.metric.unit);
    let title = if unit.is_empty() || name.contains(unit) {
        name.to_owned()
    } else {
        format!("{name}, {unit}")
    };
    let label = format!(
        "{title} by policy and concurrency, {workload}; the figures are in the tables below"
    );
    let caption = Caption {
        plot: "comparison",
        title: &title,
        label: &label,
        keys: &[],
    };
    small_figure(caption, bars(&clusters, |policy| policies.tone(policy)))
}

/// The figures of a group: a row per metric, a column per policy.
fn figures(group: &Group, policies: &Policies<'_>) -> Markup {
    let names = distinct(
        group
            .metrics
            .iter()
            .flat_map(|m| &m.estimates)
            .map(|e| e.policy.as_str()),
    );
    let title = format!("{}, C={}", group.workload, group.concurrency);
    html! {
        div.block {
            h4 { (title) }
            div.scroll tabindex="0" role="region" aria-label=(title) {
                table {
                    thead { tr {
                        th scope="col" { "Figure" }
                        @for name in &names { th.number scope="col" { (chip(policies, name)) (name) } }
                        th scope="col" { "Winner" }
                    } }
                    tbody { @for metric in &group.metrics { tr {
                        th scope="row" { (metric.name) }
                        @for name in &names { td.number { (cell(metric, name)) } }
                        td { (winner(&metric.verdict)) }
                    } } }
                }
            }
        }
    }
}

fn cell(metric: &Metric, policy: &str) -> Markup {
    let estimate = metric
        .estimates
        .iter()
        .find(|estimate| estimate.policy == policy);
    match estimate {
        None => html! { span.muted { "not run" } },
        Some(Estimate {
            value: Err(why), ..
        }) => html! { span.muted { (why) } },
        Some(Estimate {
            value: Ok(interval),
            ..
        }) => interval_text(metric, interval),
    }
}

fn interval_text(metric: &Metric, interval: &Interval) -> Markup {
    let digits = metric.decimals;
    let bounds = interval.bounds.map_or_else(String::new, |(low, high)| {
        format!("{low:.digits$} to {high:.digits$}, ")
    });
    html! {
        (format!("{:.digits$}", interval.median)) " " span.muted { (metric.unit) }
        br; span.muted { (bounds) "n=" (interval.runs) }
    }
}

fn winner(verdict: &Verdict) -> Markup {
    match verdict {
        Verdict::Winner { policy, lead } => html! { b { (policy) } br; span.muted { (lead) } },
        Verdict::NoClearWinner { why } => html! { "no clear winner" br; span.muted { (why) } },
        Verdict::NotJudged => html! {},
    }
}

/// Latency distributions of the runs of each group over each other.
pub(super) fn latencies(page: &Page, policies: &Policies<'_>) -> Markup {
    let mut cells: Vec<(&str, u64)> = Vec::new();
    for run in &page.runs {
        if !cells.contains(&(&run.workload, run.concurrency)) {
            cells.push((&run.workload, run.concurrency));
        }
    }
    html! {
        section #latencies {
            h2 { "Latencies" }
            p.note { "The share of all durations that were at most so long; the scale of time is logarithmic. A curve further left is faster. The tables of the runs have the figures." }
            @for (workload, concurrency) in cells {
                @let runs = page.runs.iter().filter(|run| run.workload == workload && run.concurrency == concurrency);
                h3 { (workload) ", C=" (concurrency) }
                (cell_latencies(&runs.collect::<Vec<_>>(), policies))
            }
        }
    }
}

fn cell_latencies(runs: &[&Run], policies: &Policies<'_>) -> Markup {
    let kinds = distinct(
        runs.iter()
            .flat_map(|run| &run.latencies)
            .map(|latency| latency.kind.as_str()),
    );
    let inks = inks(runs, policies);
    let keys: Vec<Key<'_>> = runs
        .iter()
        .zip(&inks)
        .map(|(run, ink)| Key::line(&run.label, *ink))
        .collect();
    html! {
        p { (legend(&keys)) }
        div.small { @for kind in kinds {
            (overlaid(runs, &inks, kind))
        } }
    }
}

/// A policy's colour for every run; its repeats differ in their dashes.
fn inks(runs: &[&Run], policies: &Policies<'_>) -> Vec<Ink> {
    let before = |at: usize, run: &Run| {
        runs.iter()
            .take(at)
            .filter(|other| other.policy == run.policy)
            .count()
    };
    let ink = |(at, run): (usize, &&Run)| {
        Ink::data(Tone::Policy(policies.index(&run.policy))).dashed(before(at, run))
    };
    runs.iter().enumerate().map(ink).collect()
}

/// The distributions of one kind over each other, and below them which runs have none and why.
fn overlaid(runs: &[&Run], inks: &[Ink], kind: &str) -> Markup {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for (run, ink) in runs.iter().zip(inks) {
        let latency = run.latencies.iter().find(|latency| latency.kind == kind);
        match latency.map(|latency| &latency.distribution) {
            Some(Ok(distribution)) => found.push((distribution, *ink)),
            Some(Err(why)) => missing.push((&run.label, why.as_str())),
            None => missing.push((&run.label, "it was not looked for")),
        }
    }
    let label =
        format!("Distribution of {kind} durations; the figures are in the tables of the runs");
    let caption = Caption {
        plot: "latency",
        title: kind,
        label: &label,
        keys: &[],
    };
    if found.is_empty() {
        let whys = distinct(missing.iter().map(|(_, why)| *why)).join("; ");
        return small_figure(caption, Err(whys));
    }
    html! {
        div {
            (small_figure(caption, curves(&found)))
            @for (run, why) in missing { p.note { "Not drawn, " (run) ": " (why) "." } }
        }
    }
}
