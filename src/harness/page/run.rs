//! The section of one run: facts, plots on one time axis, tables, files.

use maud::{Markup, html};

use super::parts::{Caption, Key, Policies, anchor, cells, facts, figure, swatch, table};
use super::svg::{Ink, Tone};
use super::{Artifact, Column, Known, Lane, Latency, Page, Phase, Programs, Run, Table};
use super::{chart, gantt};

pub(super) fn runs(page: &Page, policies: &Policies<'_>) -> Markup {
    html! { @for run in &page.runs { (section(run, policies)) } }
}

fn section(run: &Run, policies: &Policies<'_>) -> Markup {
    let policy = policies.index(&run.policy);
    html! {
        section.run id=(anchor(&run.label)) {
            h2 { (swatch(Key::area(&run.policy, Ink::plain(Tone::Policy(policy))))) (run.label) }
            (facts(&run.facts))
            @if let Err(why) = &run.window { p.missing { "No active window: " (why) "." } }
            (kv(run, policy))
            (load(run))
            (step_rate(run, policy))
            (programs(run))
            div.tables {
                (table(&quantiles(&run.latencies)))
                @for more in &run.tables { (table(more)) }
            }
            (artifacts(&run.artifacts))
        }
    }
}

fn kv(run: &Run, policy: usize) -> Markup {
    let level = format!("threshold {} %", run.threshold_percent);
    let lines = chart::backends(run).iter().enumerate();
    let mut keys: Vec<Key<'_>> = lines
        .map(|(at, line)| Key::line(&line.name, chart::backend_ink(policy, at)))
        .collect();
    keys.push(Key::line(&level, Ink::plain(Tone::Threshold).dashed(1)));
    if run.window.is_ok() {
        keys.push(Key::area("active window", Ink::plain(Tone::Window)));
    }
    let label = format!("KV cache usage of {} in percent over time", run.label);
    let caption = Caption {
        plot: "kv",
        title: "KV cache usage",
        label: &label,
        keys: &keys,
    };
    figure(caption, chart::kv(run, policy))
}

fn load(run: &Run) -> Markup {
    let series = chart::load_series(run);
    let there = series.iter().filter(|(_, points, _)| points.is_ok());
    let keys: Vec<Key<'_>> = there.map(|(name, _, ink)| Key::line(name, *ink)).collect();
    let label = format!(
        "Requests of {} that run, wait and are held, over time",
        run.label
    );
    let caption = Caption {
        plot: "load",
        title: "Requests",
        label: &label,
        keys: &keys,
    };
    let whys: Vec<(&str, &String)> = series
        .iter()
        .filter_map(|(name, points, _)| Some((*name, points.as_ref().err()?)))
        .collect();
    html! {
        (figure(caption, chart::load(run)))
        // When none is known the figure itself says why.
        @if whys.len() < series.len() { @for (name, why) in whys { p.missing { "Not drawn, " (name) ": " (why) "." } } }
    }
}

fn step_rate(run: &Run, policy: usize) -> Markup {
    let width = run.steps_per_s.as_ref().map_or(0.0, |bins| bins.width_s);
    let title = format!("Steps per second, in bins of {width} s");
    let label = format!("Steps per second of {} over time", run.label);
    let caption = Caption {
        plot: "steps",
        title: if width > 0.0 {
            &title
        } else {
            "Steps per second"
        },
        label: &label,
        keys: &[],
    };
    figure(caption, chart::step_rate(run, policy))
}

fn programs(run: &Run) -> Markup {
    let keys = [
        Key::area("step", gantt::ink(Phase::Step)),
        Key::area("held", gantt::ink(Phase::Hold)),
        Key::line("tool gap", gantt::ink(Phase::Gap)),
        Key::line("never ended", Ink::plain(Tone::Alert)),
    ];
    let label = format!(
        "What the programs of {} did over time; the table below has their sums",
        run.label
    );
    let caption = Caption {
        plot: "programs",
        title: "Programs",
        label: &label,
        keys: &keys,
    };
    html! {
        (figure(caption, gantt::gantt(run)))
        @if let Ok(programs) = &run.programs {
            @if let Some(said) = gantt::left_out(programs) { p.note { (said) "." } }
            details { summary { "Programs drawn, as a table" } (cells(&lanes(programs))) }
        }
    }
}

fn column(name: &str, numeric: bool) -> Column {
    Column {
        name: name.to_owned(),
        numeric,
    }
}

/// The programs that are drawn, by number, with the sum of each phase.
fn lanes(programs: &Programs) -> Table {
    let row = |(number, lane): (usize, &Lane)| {
        let sum = |wanted: Phase| -> String {
            let spans = lane.phases.iter().filter(|(phase, _)| *phase == wanted);
            format!(
                "{:.1}",
                spans
                    .map(|(_, span)| span.end_s - span.start_s)
                    .sum::<f64>()
            )
        };
        let start = lane
            .phases
            .first()
            .map_or_else(String::new, |(_, span)| format!("{:.1}", span.start_s));
        let end = lane
            .phases
            .last()
            .map_or_else(String::new, |(_, span)| format!("{:.1}", span.end_s));
        let end = if lane.ended {
            end
        } else {
            "never ended".to_owned()
        };
        vec![
            number.to_string(),
            lane.name.clone(),
            start,
            end,
            sum(Phase::Step),
            sum(Phase::Hold),
            sum(Phase::Gap),
        ]
    };
    let columns = [
        "no.",
        "program",
        "start, s",
        "end, s",
        "in steps, s",
        "held, s",
        "in tool gaps, s",
    ];
    Table {
        title: "Programs drawn".to_owned(),
        note: String::new(),
        columns: columns
            .iter()
            .map(|name| column(name, *name != "program"))
            .collect(),
        rows: Ok(gantt::chosen(programs).into_iter().map(row).collect()),
        left_out: 0,
    }
}

/// Percentiles of every kind of latency; a column for reasons where there are any.
fn quantiles(latencies: &[Latency]) -> Table {
    let names = [
        "kind", "count", "p50, s", "p90, s", "p95, s", "p99, s", "max, s",
    ];
    let mut columns: Vec<Column> = names
        .iter()
        .map(|name| column(name, *name != "kind"))
        .collect();
    if latencies
        .iter()
        .any(|latency| latency.distribution.is_err())
    {
        columns.push(column("missing because", false));
    }
    Table {
        title: "Latencies".to_owned(),
        note: String::new(),
        columns,
        rows: Ok(latencies.iter().map(quantile_cells).collect()),
        left_out: 0,
    }
}

fn quantile_cells(latency: &Latency) -> Vec<String> {
    let figures = match &latency.distribution {
        Ok(of) => {
            let seconds = |percent| of.quantile(percent).map(|seconds| format!("{seconds:.3}"));
            let dashed = |percent| seconds(percent).unwrap_or_else(|| "-".to_owned());
            let quantiles = [50.0, 90.0, 95.0, 99.0, 100.0].map(dashed);
            [of.count.to_string()]
                .into_iter()
                .chain(quantiles)
                .collect()
        }
        Err(_) => vec!["-".to_owned(); 6],
    };
    let why = latency
        .distribution
        .as_ref()
        .err()
        .cloned()
        .unwrap_or_default();
    [latency.kind.clone()]
        .into_iter()
        .chain(figures)
        .chain([why])
        .collect()
}

fn artifacts(artifacts: &Known<Vec<Artifact>>) -> Markup {
    let row = |file: &Artifact| {
        let sum = file.sha256.as_ref().unwrap_or_else(|why| why);
        vec![file.path.clone(), file.bytes.to_string(), sum.clone()]
    };
    let files = Table {
        title: "Files".to_owned(),
        note: String::new(),
        columns: vec![
            column("file", false),
            column("bytes", true),
            column("SHA-256", false),
        ],
        rows: artifacts
            .as_ref()
            .map(|files| files.iter().map(row).collect())
            .map_err(Clone::clone),
        left_out: 0,
    };
    html! { details.files { summary { "Files and their SHA-256" } (cells(&files)) } }
}
