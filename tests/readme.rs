//! The README's table of options is generated from the command line, so that it cannot go stale.
//!
//! `UPDATE_README=1 cargo test --test readme` writes it.

use std::fmt::Write as _;
use std::fs;

use clap::CommandFactory;
use kvgate::cli::Cli;

const BEGIN: &str = "<!-- flags:begin (UPDATE_README=1 cargo test --test readme) -->\n";
const END: &str = "<!-- flags:end -->";

/// The options of `kvgate serve` as a Markdown table.
fn table() -> String {
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").expect("the subcommand exists");
    let mut table = String::from("| flag | variable | meaning |\n|---|---|---|\n");
    for argument in serve.get_arguments() {
        let Some(flag) = argument.get_long() else {
            continue;
        };
        let value = argument
            .get_value_names()
            .and_then(|names| names.first())
            .map_or("", |name| name.as_str());
        let variable = argument
            .get_env()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        writeln!(table, "| `--{flag} {value}` | `{variable}` | {help} |")
            .expect("a string takes everything");
    }
    table
}

#[test]
fn the_table_of_options_is_the_command_lines() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(path).unwrap();
    let start = readme
        .find(BEGIN)
        .expect("the README marks where the table begins")
        + BEGIN.len();
    let end = readme
        .find(END)
        .expect("the README marks where the table ends");
    let (before, shown, after) = (&readme[..start], &readme[start..end], &readme[end..]);
    let table = table();
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(path, [before, &table, after].concat()).unwrap();
        return;
    }
    assert_eq!(shown, table, "run UPDATE_README=1 cargo test --test readme");
}
