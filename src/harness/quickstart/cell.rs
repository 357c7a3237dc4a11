//! One cell of the matrix: a fresh engine or a live server, a fresh gate, one replay, and whether the machine kept up.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::harness::child::server::{ANY_PORT, Server};
use crate::harness::replay::{Replay, Summary};
use crate::harness::rundir::{DIRECT, EngineManifest, RunDir};
use crate::harness::stats::mean;
use crate::harness::trace::Trace;

/// Run seconds between KV samples, as in the reference experiment.
const SAMPLE_INTERVAL_S: f64 = 5.0;
/// Run seconds between the gate's scrapes of the engine. Less would cost a sped-up run more than it tells.
const SCRAPE_INTERVAL_S: f64 = 2.5;
/// Seconds between the gate's scrapes of a live server, as by default.
const LIVE_SCRAPE_INTERVAL_S: f64 = 0.5;
/// Machine time between looks at the engine's lag.
const LAG_POLL: Duration = Duration::from_millis(250);
/// Mean lag of the engine, in seconds of the run, above which latencies are not to be trusted.
const MAX_ENGINE_LAG_S: f64 = 0.5;
/// Share of timed gaps that may be late.
const MAX_LATE_SHARE: f64 = 0.1;
/// Time for one request, hold included, of the run.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// What serves the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    /// An embedded engine, started for the cell.
    Embedded {
        /// Its cost preset and KV cache.
        engine: EngineManifest,
        /// Longest prompt and reply together, in tokens.
        max_model_len: u32,
    },
    /// A server that runs already, at this URL.
    Live(String),
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The gate's policy, [`DIRECT`], or the name of a peer.
    pub policy: String,
    /// Where a gate of another make listens, which takes the place of ours.
    pub peer: Option<String>,
    /// Programs in flight.
    pub concurrency: usize,
    /// Size of the fixed set.
    pub programs: usize,
    /// The trace.
    pub trace: Arc<Trace>,
    /// Run seconds per machine second.
    pub speedup: f64,
    /// What serves the model.
    pub backend: Backend,
    /// Ask for streams.
    pub stream: bool,
    /// Let words stand in for replies.
    pub stand_in: bool,
    /// Seed of the texts.
    pub seed: u64,
    /// Its run directory.
    pub dir: PathBuf,
    /// Draw no bar.
    pub quiet: bool,
    /// What the bar says.
    pub label: String,
}

/// What came of it.
#[derive(Debug)]
pub struct Finished {
    /// The replay's view.
    pub summary: Summary,
    /// Why the figures are not to be trusted, if so.
    pub warning: Option<String>,
}

impl Cell {
    /// Whether its run directory holds this very cell, played to the end.
    pub fn is_there(&self) -> bool {
        let dir = RunDir::at(&self.dir);
        let played = dir.manifest().is_ok_and(|manifest| {
            manifest.policy.as_deref() == Some(&self.policy)
                && manifest.concurrency == self.concurrency
                && manifest.programs == self.programs
                && manifest.trace == self.trace.name
                && manifest.engine.as_ref() == self.backend.engine()
        });
        let text = std::fs::read(self.dir.join("summary.json")).unwrap_or_default();
        played && serde_json::from_slice(&text).is_ok_and(|summary: Summary| summary.complete)
    }

    /// Runs it; every process is gone afterwards.
    ///
    /// # Errors
    /// When a process cannot be started, fails, or the replay cannot begin.
    pub async fn run(&self, cancel: CancellationToken) -> anyhow::Result<Finished> {
        let dir = RunDir::create(&self.dir)?;
        let clock = Clock::scaled(self.speedup, None);
        let engine = match &self.backend {
            Backend::Embedded { .. } => {
                Some(Server::start("engine", ANY_PORT, &self.engine_args(), dir.path()).await?)
            }
            Backend::Live(_) => None,
        };
        let (summary, lag_s) = match (&self.backend, &engine) {
            (Backend::Live(url), _) => (self.play(url, dir, clock, cancel).await, None),
            (Backend::Embedded { .. }, None) => anyhow::bail!("the engine was not started"),
            (Backend::Embedded { .. }, Some(engine)) => {
                let over = CancellationToken::new();
                let play = async {
                    let summary = self.play(engine.url(), dir, clock, cancel).await;
                    over.cancel();
                    summary
                };
                tokio::join!(play, mean_lag_s(engine.url(), &over))
            }
        };
        if let Some(engine) = engine {
            engine.stop().await?;
        }
        let summary = summary?;
        let warning = warning(&summary, lag_s);
        Ok(Finished { summary, warning })
    }

    /// Plays the set at the server at `url`, through a gate of its own unless it is [`DIRECT`] or a peer's.
    async fn play(
        &self,
        url: &str,
        dir: RunDir,
        clock: Clock,
        cancel: CancellationToken,
    ) -> anyhow::Result<Summary> {
        let served = match &self.peer {
            Some(peer) => Some(peer.as_str()),
            None => (self.policy == DIRECT).then_some(url),
        };
        if let Some(url) = served {
            return Box::pin(self.replay(url, dir, clock).play(cancel)).await;
        }
        let gate_args = self.gate_args(url, clock.epoch_unix());
        let gate = Server::start("serve", ANY_PORT, &gate_args, dir.path()).await?;
        let summary = Box::pin(self.replay(gate.url(), dir, clock).play(cancel)).await;
        // Stopped before the figures are judged: the gate writes its last records as it ends.
        let stopped = gate.stop().await;
        let summary = summary?;
        stopped?;
        Ok(summary)
    }

    fn engine_args(&self) -> Vec<String> {
        let Backend::Embedded {
            engine,
            max_model_len,
        } = &self.backend
        else {
            return Vec::new();
        };
        flags(&[
            ("--cost", &engine.cost),
            ("--kv-blocks", &engine.kv_blocks),
            ("--block-size", &engine.block_size),
            ("--max-model-len", max_model_len),
            ("--speedup", &self.speedup),
        ])
    }

    fn gate_args(&self, engine: &str, epoch_unix: f64) -> Vec<String> {
        flags(&[
            ("--backend", &engine),
            ("--policy", &self.policy),
            ("--run-dir", &self.dir.display()),
            ("--sample-interval", &SAMPLE_INTERVAL_S),
            ("--scrape-interval", &self.scrape_interval_s()),
            ("--time-scale", &self.speedup),
            ("--time-epoch", &epoch_unix),
            ("--drain-settle", &0),
            ("--drain-timeout", &2),
        ])
    }

    const fn scrape_interval_s(&self) -> f64 {
        match self.backend {
            Backend::Embedded { .. } => SCRAPE_INTERVAL_S,
            Backend::Live(_) => LIVE_SCRAPE_INTERVAL_S,
        }
    }

    fn replay(&self, gate: &str, dir: RunDir, clock: Clock) -> Replay {
        Replay {
            url: gate.to_owned(),
            trace: Arc::clone(&self.trace),
            concurrency: self.concurrency,
            programs: self.programs,
            stream: self.stream,
            tools: true,
            stand_in: self.stand_in,
            seed: self.text_seed(clock),
            dir,
            clock,
            model: None,
            timeout: REQUEST_TIMEOUT,
            max_retries: 3,
            quiet: self.quiet,
            label: self.label.clone(),
            policy: Some(self.policy.clone()),
            engine: self.backend.engine().cloned(),
        }
    }

    /// A live server keeps its cache from cell to cell: each cell says something else, or it would find its prompts
    /// there.
    const fn text_seed(&self, clock: Clock) -> u64 {
        match self.backend {
            Backend::Embedded { .. } => self.seed,
            Backend::Live(_) => self.seed ^ clock.epoch_unix().to_bits(),
        }
    }
}

impl Backend {
    /// The embedded engine, if it is one.
    pub const fn engine(&self) -> Option<&EngineManifest> {
        match self {
            Self::Embedded { engine, .. } => Some(engine),
            Self::Live(_) => None,
        }
    }
}

/// Flags and their values as arguments.
fn flags(pairs: &[(&str, &dyn Display)]) -> Vec<String> {
    let words = pairs
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), value.to_string()]);
    words.collect()
}

/// The engine's lag until `over`, averaged over looks at its metrics; `None` without one.
async fn mean_lag_s(engine: &str, over: &CancellationToken) -> Option<f64> {
    let http = reqwest::Client::builder().no_proxy().build().ok()?;
    let url = format!("{engine}/metrics");
    let mut lags = Vec::new();
    while over
        .run_until_cancelled(tokio::time::sleep(LAG_POLL))
        .await
        .is_some()
    {
        let Ok(page) = http.get(&url).timeout(LAG_POLL).send().await else {
            continue;
        };
        lags.extend(page.text().await.ok().as_deref().and_then(lag_in));
    }
    mean(&lags)
}

/// The lag on a page of the engine's metrics, in seconds of the run.
fn lag_in(page: &str) -> Option<f64> {
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("kvgate_engine_lag_seconds "));
    line?.trim().parse().ok()
}

/// Why the machine's part in the figures is too large, if it is.
fn warning(summary: &Summary, lag_s: Option<f64>) -> Option<String> {
    let late = summary.gap_lag.late_share();
    match lag_s {
        Some(lag_s) if lag_s > MAX_ENGINE_LAG_S => Some(format!(
            "the engine was {lag_s:.1} s of the run behind on average"
        )),
        _ if late > MAX_LATE_SHARE => Some(format!(
            "{:.0} % of the gaps took over 20 % too long",
            late * 100.0
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_found_among_other_metrics() {
        let page = "# HELP kvgate_engine_lag_seconds x\nkvgate_engine_lag_seconds 1.25\nvllm:a 3\n";
        assert_eq!(lag_in(page), Some(1.25));
        assert_eq!(lag_in("vllm:a 3\n"), None);
    }

    #[test]
    fn flags_are_words_in_order() {
        assert_eq!(
            flags(&[("--a", &1.5), ("--b", &"x")]),
            ["--a", "1.5", "--b", "x"]
        );
    }
}
