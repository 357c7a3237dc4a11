//! What each subcommand does: one function each, called by `main`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command, ServeArgs};
use crate::config::{ConfigError, Effective};
use crate::harness::{
    calibrate, child, engine, experiment, group, journal, quickstart, reference, replay, report,
    simulator, traces, vectors,
};
use crate::proxy;

/// Exit status for a command line or configuration that cannot be used, as clap uses it.
const USAGE: u8 = 2;

/// Runs a parsed command line; the returned status is the process's.
///
/// # Errors
/// What kept the command from doing its work, with its causes.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(args) => serve(args).await,
        Command::Config(args) => Ok(print_config(&args)),
        Command::Engine(args) => run_engine(args).await,
        Command::Quickstart(args) => quickstart::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Experiment(args) => Box::pin(experiment::run(args)).await,
        Command::Replay(args) => replay::run(args).await.map(|_| ExitCode::SUCCESS),
        Command::Report(args) => report::run(&args),
        Command::Reference(args) => Ok(reference::scripts::run(&args)),
        Command::Journal(args) => journal::run(&args).map(status),
        Command::Simulate(args) => simulator::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Calibrate(args) => calibrate::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Trace(args) => traces::run(&args).map(|()| ExitCode::SUCCESS),
        Command::CheckVectors(args) => check_vectors(&args),
        Command::Guard(args) => child::guard::run(args).await,
    }
}

/// Success, or a failure that has been printed.
const fn status(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Writes a line to standard output. A closed pipe is the reader's choice, not an error.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn complain(error: &ConfigError) -> ExitCode {
    let _closed = writeln!(std::io::stderr(), "kvgate: {error}");
    ExitCode::from(USAGE)
}

fn check_vectors(args: &vectors::VectorsArgs) -> anyhow::Result<ExitCode> {
    let tally = vectors::check(args, &mut std::io::stdout().lock())?;
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_config(args: &ServeArgs) -> ExitCode {
    let text = Effective::load(&args.options, args.config.as_deref())
        .and_then(|effective| effective.print());
    match text {
        Ok(text) => {
            say(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error),
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let checked = Effective::load(&args.options, args.config.as_deref())
        .and_then(|effective| effective.check());
    let config = match checked {
        Ok(config) => config,
        Err(error) => return Ok(complain(&error)),
    };
    raise_open_files();
    let (policy, advice) = (config.policy.name(), config.policy.advice());
    let mut gate = proxy::start(config).await?;
    for backend in &gate.proxy().backends {
        if !backend.is_up() {
            tracing::warn!(backend = %backend.url, cause = %backend.status().cause, "not reached yet");
        }
    }
    tracing::info!(policy, addr = %gate.addr(), "serving");
    if let Some(advice) = advice {
        tracing::info!(policy, "{advice}");
    }
    say(&format!("listening on http://{}", gate.addr()));
    tokio::select! {
        stop = stop_signal() => stop?,
        why = gate.broken() => anyhow::bail!("the gate cannot go on: {why}"),
    }
    tracing::info!("draining; a second signal exits at once");
    let report = tokio::select! {
        report = gate.drain() => report,
        again = stop_signal() => {
            again?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let proxy::DrainReport {
        refused,
        quiet,
        programs,
    } = report;
    tracing::info!(refused, quiet, programs, "stopped");
    Ok(ExitCode::SUCCESS)
}

fn raise_open_files() {
    if let Err(error) = group::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

async fn run_engine(args: engine::EngineArgs) -> anyhow::Result<ExitCode> {
    let address = args.listen;
    let config = args.into_config()?;
    let listener = engine::listen(address)
        .with_context(|| format!("cannot listen on {address}; choose another --listen address"))?;
    say(&format!("listening on http://{}", listener.local_addr()?));
    engine::serve(config, listener, async { drop(stop_signal().await) }).await?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or Ctrl-C.
async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
