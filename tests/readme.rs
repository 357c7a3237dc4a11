//! The README's table of options is generated from the command line, so that it cannot go stale.
//!
//! `UPDATE_README=1 cargo test --test readme` writes it.

use std::fmt::Write as _;
use std::fs;

use clap::{Command, CommandFactory};
use kvgate::cli::Cli;

const BEGIN: &str = "<!-- flags:begin (UPDATE_README=1 cargo test --test readme) -->\n";
const END: &str = "<!-- flags:end -->";

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

#[test]
fn the_table_of_options_is_the_command_lines() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let cli = Cli::command();
    let table = table(cli.find_subcommand("serve").unwrap());
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(path, [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    assert_eq!(shown, table, "run UPDATE_README=1 cargo test --test readme");
}
