//! Parses the arguments, calls one library function, exits.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use kvgate::{app, cli::Cli};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("KVGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would tell standard error of a failure to write there, and panic when that fails, as on a dead terminal.
        .log_internal_errors(false)
        .init();
    app::run(cli).await.unwrap_or_else(|error| {
        // One line with the whole chain of causes; nobody needs our stack for "address in use".
        let _closed = writeln!(std::io::stderr(), "kvgate: {error:#}");
        ExitCode::FAILURE
    })
}
