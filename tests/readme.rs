//! The README's tables of options and metrics are generated from the program, so that they cannot go stale.
//!
//! `UPDATE_README=1 cargo test --test readme` writes them.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may fail as loudly as the test"
)]

use std::fmt::Write as _;
use std::fs;

use clap::{Command, CommandFactory};
use kvgate::cli::Cli;
use kvgate::policy::{Config, PolicySnapshot};
use kvgate::telemetry::Metrics;

/// The options of `kvgate serve` as a Markdown table.
fn table(serve: &Command) -> String {
    let mut table = String::from("| flag | variable | meaning |\n|---|---|---|\n");
    for argument in serve.get_arguments() {
        let Some(flag) = argument.get_long() else {
            continue;
        };
        let names = argument.get_value_names().unwrap_or_default();
        let value = names.first().map_or("", |name| name.as_str());
        let variable = argument.get_env().unwrap_or_default().to_string_lossy();
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let _infallible = writeln!(table, "| `--{flag} {value}` | `{variable}` | {help} |");
    }
    table
}

/// The gate's own series as a Markdown table.
fn series() -> String {
    let metrics =
        Metrics::new(&["http://127.0.0.1:8000".to_owned()], &["gpt-5".to_owned()]).unwrap();
    metrics.policy(&PolicySnapshot {
        values: vec![("a", 0.0)],
        estimates: vec![("a", 0.0)],
        pins: vec![("a", 0)],
        ..PolicySnapshot::default()
    });
    let text = metrics.render();
    let mut table = String::from("| series | kind | meaning |\n|---|---|---|\n");
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let labels = labels(&text, name);
            let _infallible = writeln!(table, "| `{name}{labels}` | {kind} | {help} |");
        }
    }
    table
}

/// The names of a series' labels, in braces, a histogram's own left out.
fn labels(text: &str, name: &str) -> String {
    let mut samples = text.lines().filter(|line| line.starts_with(name));
    let sample = samples.next().unwrap().split_once('{');
    let inside = sample.map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
    let names = inside.split(',').filter_map(|label| label.split_once('='));
    let names: Vec<_> = names
        .map(|(name, _)| name)
        .filter(|name| *name != "le")
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!("{{{}}}", names.join(","))
}

/// What each policy tells of itself, as a Markdown table.
fn told() -> String {
    let mut table = String::from("| policy | values | estimates | pins |\n|---|---|---|---|\n");
    for name in Config::NAMES {
        let snapshot = Config::by_name(name).unwrap().build().snapshot();
        let names = |told: Vec<&str>| {
            told.iter()
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let values = names(snapshot.values.iter().map(|(name, _)| *name).collect());
        let estimates = names(snapshot.estimates.iter().map(|(name, _)| *name).collect());
        let pins = names(snapshot.pins.iter().map(|(name, _)| *name).collect());
        let _infallible = writeln!(table, "| `{name}` | {values} | {estimates} | {pins} |");
    }
    table
}

#[test]
fn the_tables_of_options_and_metrics_are_the_programs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let mut readme = fs::read_to_string(path).unwrap();
    let cli = Cli::command();
    for (name, table) in [
        ("flags", table(cli.find_subcommand("serve").unwrap())),
        ("series", series()),
        ("told", told()),
    ] {
        let begin = format!("<!-- {name}:begin (UPDATE_README=1 cargo test --test readme) -->\n");
        let end = format!("<!-- {name}:end -->");
        let (before, rest) = readme.split_once(&begin).unwrap();
        let (shown, after) = rest.split_once(&end).unwrap();
        let update = std::env::var_os("UPDATE_README").is_some();
        assert!(
            update || shown == table,
            "the README's table {name:?} is not the program's; run UPDATE_README=1 cargo test --test readme"
        );
        readme = [before, &begin, &table, &end, after].concat();
    }
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(path, readme).unwrap();
    }
}
