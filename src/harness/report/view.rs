//! The report's tables, as plain cells that text and page show alike. Pure.

use jiff::Timestamp;

use super::RunReport;
use super::compare::{Cell, Estimate, Figure, Group, Verdict};
use super::detail::{CallStats, Detail, Split};
use super::metric::{METRICS, Metric, Table as Place};
use crate::harness::page::{Column, Table};
use crate::harness::stats::Spread;

/// What the columns mean.
pub const LEGEND: [&str; 5] = [
    "tasks/min* and steps/s*: in the active window, from the first to the last sample of KV usage above the threshold, whatever lies between. steady: from the end of the first fifth of the steps to the end of the fourth. whole: over the makespan, from the first request to the end of the last program.",
    "A step of a kvgate run is one LLM call; of the reference system one transition between roles, about four times as many. hit rate: cached prompt tokens / prompt tokens of served steps. Latencies count from arrival at the gate, hold included; percentiles are interpolated linearly.",
    "errors: requests not served + programs given up; neither counts towards rates.",
    "reward: tau2's, of the last attempt at each task that was judged; a task that failed was not. reward 1: tasks that were solved.",
    "With repeats of a cell the figures are medians: in brackets the range of up to four runs, the 95 % bootstrap interval of five and more; where these overlap there is no clear winner. With fewer than five runs a cell neither is there one with a lead below 7 %, which is within what a repeat changes, and a larger lead proves little. Incomplete repeats are left out where others are complete.",
];

/// A policy as people write it.
pub fn proper_name(policy: &str) -> &str {
    match policy {
        "thunderreact" => "ThunderReact",
        "thunderagent" => "ThunderAgent",
        "continuum" => "Continuum",
        "baseline" => "Baseline",
        other => other,
    }
}

/// `08:01:10`, UTC.
pub fn clock(unix_s: f64) -> String {
    shown(unix_s, "%H:%M:%S")
}

/// `2026-01-05 08:01:10`, UTC.
pub fn date(unix_s: f64) -> String {
    shown(unix_s, "%Y-%m-%d %H:%M:%S")
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
fn shown(unix_s: f64, pattern: &str) -> String {
    let at = Timestamp::from_second(unix_s.floor() as i64).unwrap_or_default();
    at.strftime(pattern).to_string()
}

fn column(name: impl Into<String>, numeric: bool) -> Column {
    Column {
        name: name.into(),
        numeric,
    }
}

/// Columns whose first is text and whose others are figures.
fn figures(names: &[&str]) -> Vec<Column> {
    let column = |(index, name): (usize, &&str)| column(*name, index > 0);
    names.iter().enumerate().map(column).collect()
}

fn table(title: &str, columns: Vec<Column>, rows: Result<Vec<Vec<String>>, String>) -> Table {
    Table {
        title: title.to_owned(),
        note: String::new(),
        columns,
        rows,
        left_out: 0,
    }
}

/// Every scenario by policy, one table per headline rate, `Scenario | ThunderReact | ... | Winner`, and what stands
/// below it.
pub fn scenarios(groups: &[Group]) -> Vec<(Table, Vec<String>)> {
    let several = groups.iter().any(|group| group.cells.len() > 1);
    let headline = METRICS.iter().take(2);
    let named = |(metric, what): (&'static Metric, &str)| {
        (
            scenario_table(groups, metric, what),
            scenario_notes(groups, metric),
        )
    };
    let what = [
        "Tasks done / minute (active window)",
        "Steps / second (active window)",
    ];
    headline.zip(what).filter(|_| several).map(named).collect()
}

/// Policies of all groups, in the order in which the reference lists its own, then as they come.
pub fn policies(groups: &[Group]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for cell in groups.iter().flat_map(|group| &group.cells) {
        if !names.contains(&cell.policy.as_str()) {
            names.push(&cell.policy);
        }
    }
    let rank = |name: &str| match name {
        "thunderreact" => 0,
        "continuum" => 1,
        "baseline" => 2,
        _ => 3,
    };
    names.sort_by_key(|name| rank(name));
    names
}

fn scenario_table(groups: &[Group], metric: &Metric, title: &str) -> Table {
    let policies = policies(groups);
    let mut columns = vec![column("Scenario", false)];
    columns.extend(
        policies
            .iter()
            .map(|policy| column(proper_name(policy), true)),
    );
    columns.push(column("Winner", false));
    let row = |group: &Group| {
        let name = scenario_name(groups, group);
        let cell = |policy: &&str| {
            let cell = group.cells.iter().find(|cell| cell.policy == *policy);
            cell.map_or_else(|| "-".to_owned(), |cell| with_unit(cell, metric))
        };
        let winner = group
            .verdicts
            .get(metric.key)
            .map_or_else(String::new, winner);
        let cells = policies.iter().map(cell);
        std::iter::once(name).chain(cells).chain([winner]).collect()
    };
    table(title, columns, Ok(groups.iter().map(row).collect()))
}

fn scenario_name(groups: &[Group], group: &Group) -> String {
    if groups.iter().any(|other| other.workload != group.workload) {
        group.heading()
    } else {
        group.scenario()
    }
}

/// Why scenarios have no winner by this figure, and what a mark at a figure means.
pub fn scenario_notes(groups: &[Group], metric: &Metric) -> Vec<String> {
    let undecided = groups.iter().filter_map(|group| {
        let verdict = group.verdicts.get(metric.key)?;
        let name = scenario_name(groups, group);
        (verdict.lead().is_none()).then(|| format!("{name}: {verdict}"))
    });
    let mut notes: Vec<String> = undecided.collect();
    let mut cells = groups.iter().flat_map(|group| &group.cells);
    if cells.any(|cell| !mark(cell).is_empty()) {
        notes.push(format!("{INCOMPLETE} of incomplete runs, which cannot win"));
    }
    notes
}

/// Stands behind a figure of incomplete runs.
const INCOMPLETE: &str = "†";

/// `†` for a cell whose figures are of incomplete runs.
pub const fn mark(cell: &Cell) -> &'static str {
    if cell.is_incomplete() { INCOMPLETE } else { "" }
}

fn with_unit(cell: &Cell, metric: &Metric) -> String {
    match known(cell, metric) {
        Some(_) => format!("{} {}{}", figure(cell, metric), metric.unit, mark(cell)),
        None => format!("-{}", mark(cell)),
    }
}

fn winner(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Winner { policy, .. } => {
            let lead = verdict.lead().unwrap_or_default();
            format!("{} ({lead})", proper_name(policy))
        }
        Verdict::NoClearWinner { .. } => "no clear winner".to_owned(),
        Verdict::None { .. } => "-".to_owned(),
    }
}

fn known<'a>(cell: &'a Cell, metric: &Metric) -> Option<&'a Estimate> {
    cell.figures.get(metric.key).and_then(Figure::known)
}

/// A figure's cell: its median, where it decides its interval, and how many runs have it where some have not.
fn figure(cell: &Cell, metric: &Metric) -> String {
    let Some(estimate) = known(cell, metric) else {
        return "-".to_owned();
    };
    let decimals = metric.decimals;
    let median = format!("{:.decimals$}", estimate.median);
    let interval = match estimate.interval.filter(|_| metric.wins.is_some()) {
        Some((low, high)) => format!(" [{low:.decimals$}, {high:.decimals$}]"),
        None => String::new(),
    };
    let of = match estimate.runs {
        runs if runs == cell.counted => String::new(),
        runs => format!(" ({runs} of {} runs)", cell.counted),
    };
    format!("{median}{interval}{of}")
}

/// The figures of a group, one row per policy: rates, latencies, rewards.
pub fn group_tables(group: &Group) -> impl Iterator<Item = Table> {
    let tables =
        [Place::Rates, Place::Latencies, Place::Rewards].map(|place| group_table(group, place));
    // The policies alone are no table: nothing has latencies where nothing was served, nor rewards where nobody judged.
    tables.into_iter().filter(|table| table.columns.len() > 2)
}

fn group_table(group: &Group, place: Place) -> Table {
    let metrics = METRICS.iter().filter(|metric| metric.table == place);
    let shown = |metric: &&Metric| {
        place == Place::Rates || group.cells.iter().any(|cell| known(cell, metric).is_some())
    };
    let metrics: Vec<&Metric> = metrics.filter(shown).collect();
    let mut columns = vec![column("policy", false)];
    if group.has_repeats() {
        columns.push(column("runs", true));
    }
    columns.extend(metrics.iter().map(|metric| column(metric.name, true)));
    if place == Place::Rates {
        columns.push(column("errors", true));
    }
    let row = |cell: &Cell| {
        let mut cells = vec![marked(cell)];
        if group.has_repeats() {
            cells.push(cell.counted.to_string());
        }
        cells.extend(metrics.iter().map(|metric| metric_cell(cell, metric)));
        if place == Place::Rates {
            cells.push(format!("{}+{}", cell.failed.0, cell.failed.1));
        }
        cells
    };
    let title = match place {
        Place::Rates => "Rates",
        Place::Latencies => "Latencies",
        Place::Rewards => "Rewards",
    };
    table(title, columns, Ok(group.cells.iter().map(row).collect()))
}

/// The policy, with how many of its runs do not stand, and how many hold a pause.
fn marked(cell: &Cell) -> String {
    let all = cell.runs.len();
    let incomplete = match cell.incomplete.len() {
        0 => String::new(),
        bad if bad == all => " (incomplete)".to_owned(),
        bad => format!(" ({bad} incomplete, left out)"),
    };
    let resumed = match cell.resumed.len() {
        0 => String::new(),
        1 if all == 1 => " (resumed)".to_owned(),
        some => format!(" ({some} resumed)"),
    };
    format!("{}{incomplete}{resumed}", cell.policy)
}

/// A figure's cell; that of the window's length says what is wrong with the window.
fn metric_cell(cell: &Cell, metric: &Metric) -> String {
    let plain = figure(cell, metric);
    if metric.key != "window_s" {
        return plain;
    }
    match cell.figures.get(metric.key) {
        Some(Figure::Missing { missing }) => missing.clone(),
        _ if cell.short_window => format!("{plain} short"),
        _ => plain,
    }
}

/// Who won, a line for each figure that decides.
pub fn verdicts(group: &Group) -> String {
    if group.cells.len() < 2 {
        return "* winner: none (nothing to compare with)\n".to_owned();
    }
    let deciding = METRICS.iter().filter(|metric| metric.wins.is_some());
    let said = deciding.filter_map(|metric| {
        let verdict = group.verdicts.get(metric.key)?;
        let words = match metric.key {
            "window_tasks_per_min" => "winner in the window",
            "window_steps_per_s" => "the same by steps/s",
            "steady_tasks_per_min" => "winner in the steady state",
            _ => "winner over the whole run",
        };
        Some(format!("* {words}: {verdict}\n"))
    });
    said.collect()
}

/// The headline's verdict at other thresholds; nothing where there is nothing to compare.
pub fn sensitivity(group: &Group) -> Option<Table> {
    if group.cells.len() < 2 {
        return None;
    }
    let mut columns = vec![column("KV above", true)];
    columns.extend(
        group
            .cells
            .iter()
            .map(|cell| column(cell.policy.clone(), true)),
    );
    columns.push(column("winner", false));
    let rows = group.sensitivity.iter().map(|at| {
        let mut cells = vec![format!("{:.0} %", at.threshold_percent)];
        cells.extend(at.figures.iter().map(|figure| match figure.known() {
            Some(estimate) => format!("{:.2}", estimate.median),
            None => "-".to_owned(),
        }));
        cells.push(at.verdict.to_string());
        cells
    });
    Some(Table {
        note: "Tasks/min in the active window above other thresholds of KV usage.".to_owned(),
        ..table(
            &format!("Verdict by threshold, {}", group.scenario()),
            columns,
            Ok(rows.collect()),
        )
    })
}

/// The tables of one run.
pub fn run_tables(run: &RunReport) -> Vec<Table> {
    let detail = &run.detail;
    let mut tables = vec![around(run), edges(detail), calls(detail), slowest(detail)];
    tables.extend(open(detail));
    tables.extend(stuck(detail));
    tables.extend(errors(run));
    tables
}

fn around(run: &RunReport) -> Table {
    let columns = figures(&["", "before", "in", "after"]);
    let row = |name: &str, split: Split| {
        let counts = [split.before, split.inside, split.after];
        std::iter::once(name.to_owned())
            .chain(counts.map(|count| count.to_string()))
            .collect()
    };
    let rows = match (run.detail.tasks, run.detail.steps) {
        (Some(tasks), Some(steps)) => Ok(vec![row("tasks", tasks), row("steps", steps)]),
        _ => Err("no active window".to_owned()),
    };
    table("Work before, in and after the window", columns, rows)
}

fn edges(detail: &Detail) -> Table {
    let columns = figures(&["edge", "steps", "steps/s"]);
    let rows = detail.edges.iter().map(|edge| {
        vec![
            edge.edge.clone(),
            edge.steps.to_string(),
            format!("{:.3}", edge.per_s),
        ]
    });
    let place = if detail.steps.is_some() {
        "in the window"
    } else {
        "over the whole run"
    };
    table(
        &format!("Steps by role {place}"),
        columns,
        some(rows.collect(), "no step was served"),
    )
}

fn calls(detail: &Detail) -> Table {
    let columns = figures(&[
        "kind",
        "n in window",
        "p50 s",
        "p90 s",
        "p99 s",
        "max s",
        "n in run",
        "p50 s",
        "p99 s",
        "max s",
        ">300 s",
        ">1200 s",
    ]);
    let row = |stats: &CallStats| {
        let mut cells = vec![stats.kind.word().to_owned()];
        cells.extend(spread_cells(
            stats.window.as_ref(),
            &[|s| s.p50, |s| s.p90, |s| s.p99, |s| s.max],
        ));
        cells.extend(spread_cells(
            Some(&stats.run),
            &[|s| s.p50, |s| s.p99, |s| s.max],
        ));
        cells.extend([stats.over_300_s.to_string(), stats.over_1200_s.to_string()]);
        cells
    };
    let rows = detail.calls.iter().map(row).collect();
    table(
        "Latency distributions",
        columns,
        some(rows, "no call was recorded"),
    )
}

fn spread_cells(spread: Option<&Spread>, of: &[fn(&Spread) -> f64]) -> Vec<String> {
    let Some(spread) = spread else {
        return std::iter::once("0".to_owned())
            .chain(of.iter().map(|_| "-".to_owned()))
            .collect();
    };
    std::iter::once(spread.n.to_string())
        .chain(of.iter().map(|of| format!("{:.1}", of(spread))))
        .collect()
}

fn slowest(detail: &Detail) -> Table {
    let columns = vec![
        column("seconds", true),
        column("ended (UTC)", false),
        column("step", true),
        column("program", false),
        column("in window", false),
    ];
    let rows = detail.slowest.iter().map(|call| {
        let inside = if call.in_window { "yes" } else { "no" };
        vec![
            format!("{:.1}", call.seconds),
            date(call.ended_s),
            call.step.to_string(),
            call.program.clone(),
            inside.to_owned(),
        ]
    });
    table(
        "Slowest LLM calls",
        columns,
        some(rows.collect(), "no call was recorded"),
    )
}

fn open(detail: &Detail) -> Option<Table> {
    if detail.open_total == 0 {
        return None;
    }
    let columns = vec![
        column("program", false),
        column("began (UTC)", false),
        column("last event (UTC)", false),
        column("silent s", true),
    ];
    let rows = detail.open.iter().map(|open| {
        vec![
            open.program.clone(),
            date(open.started_s),
            date(open.last_s),
            format!("{:.0}", open.silent_s),
        ]
    });
    Some(Table {
        note: "Begun, and neither finished nor failed. What they waited for is not in the latencies above.".to_owned(),
        left_out: detail.open_total - detail.open.len(),
        ..table("Programs that never ended", columns, Ok(rows.collect()))
    })
}

fn stuck(detail: &Detail) -> Option<Table> {
    let stuck = detail.stuck.as_ref()?;
    let percent = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    let kv = stuck.kv.as_ref();
    let row = vec![
        date(stuck.since_s),
        format!("{:.0}", stuck.silent_s),
        percent(stuck.kv_before),
        percent(stuck.kv_least),
        percent(kv.map(|kv| kv.mean)),
        percent(kv.map(|kv| kv.max)),
    ];
    let names = [
        "since (UTC)",
        "silent s",
        "KV % before",
        "KV % least",
        "mean",
        "most",
    ];
    Some(Table {
        note: "Programs were open and nothing ended any more. With KV usage high they waited for the engine; with it low for a user, an expert, a tool, or a client that retried in vain.".to_owned(),
        ..table("Stuck", figures(&names), Ok(vec![row]))
    })
}

fn errors(run: &RunReport) -> Option<Table> {
    let errors = &run.measures.errors;
    let rows = errors
        .iter()
        .map(|(cause, count)| vec![cause.clone(), count.to_string()]);
    (!errors.is_empty()).then(|| {
        table(
            "Errors by cause",
            figures(&["cause", "times"]),
            Ok(rows.collect()),
        )
    })
}

fn some(rows: Vec<Vec<String>>, why: &str) -> Result<Vec<Vec<String>>, String> {
    if rows.is_empty() {
        return Err(why.to_owned());
    }
    Ok(rows)
}

/// The window in a few words.
pub fn window_line(run: &RunReport) -> String {
    let Some((first_s, last_s)) = run.detail.span else {
        return "nothing happened".to_owned();
    };
    let window = match &run.measures.window {
        crate::harness::measure::WindowRates::Found { window, rates } => format!(
            "active window {} to {}, {:.1} min; {} tasks and {} steps in it",
            clock(seconds(window.start_s)),
            clock(seconds(window.end_s)),
            rates.seconds / 60.0,
            rates.programs,
            rates.steps
        ),
        crate::harness::measure::WindowRates::Missing { missing } => {
            format!("no active window: {missing}")
        }
    };
    format!("{} to {} UTC; {window}", date(first_s), clock(last_s))
}

#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
const fn seconds(unix_s: i64) -> f64 {
    unix_s as f64
}
