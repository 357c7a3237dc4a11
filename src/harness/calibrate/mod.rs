//! `kvgate calibrate`: measures a live vLLM and writes the cost preset that explains it.
//!
//! About two minutes of single requests and small batches on an otherwise idle server: the time to the first token of
//! prompts of several lengths, new and cached; the time between tokens in several batches and contexts; the KV
//! capacity from `/metrics`. [`plan`] says how much a server has room for, [`probe`] asks, [`mod@fit`] explains. The
//! preset is a TOML file for `--cost` of `kvgate simulate` and `kvgate engine`; the points are written beside it, and can
//! be fitted again without a server.

pub mod fit;
pub mod plan;
pub mod probe;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use self::fit::{Point, Server, fit};
use self::plan::Plan;
use self::probe::Probe;
use super::cost_file::CostFile;
use super::engine::core::CostModel;
use super::stdout;
use crate::clock::Clock;

/// Flags of `kvgate calibrate`.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// The server to measure: vLLM itself, not a gate, and nobody else's requests on it
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Preset to write; the measured points go beside it, as NAME.points.json, unless it is a pipe or `/dev/stdout`
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Fit the points of this file again instead of measuring
    #[arg(long, value_name = "FILE")]
    pub points: Option<PathBuf>,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The server's `--max-num-batched-tokens`
    #[arg(long, value_name = "TOKENS", default_value_t = 8_192)]
    pub max_num_batched_tokens: u32,
    /// Measurements of each point; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: u32,
    /// Seconds of the server per real second, for an embedded engine with `--speedup`
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub time_scale: f64,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// What was measured; the file beside the preset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The model's name.
    pub model: String,
    /// Tokens computed per iteration at most, as given.
    pub max_num_batched_tokens: u32,
    /// KV capacity in tokens.
    pub kv_tokens: u64,
    /// The points.
    pub points: Vec<Point>,
}

/// Runs `kvgate calibrate`.
///
/// # Errors
/// When the server cannot be measured, the points do not tell the constants apart, or a file cannot be written.
pub async fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    let measurement = match &args.points {
        Some(path) => read(path)?,
        None => {
            measure(
                args,
                &Plan {
                    rounds: args.rounds,
                    ..Plan::default()
                },
            )
            .await?
        }
    };
    // First what cannot be had again.
    if let (None, Some(path)) = (&args.points, beside(&args.out)) {
        write(&path, &(serde_json::to_string_pretty(&measurement)? + "\n"))?;
    }
    let server = measurement.server();
    let cost = fit(&measurement.points, server)?;
    let preset = measurement.preset(cost)?;
    let out = args.out.display();
    let table = table(&measurement.points, &cost, server);
    let about = format!("{table}{out}: use it with --cost {out}\n");
    stdout::write(&args.out, &preset, &about)
}

/// Where the points of the preset at `out` go: nowhere, if it is no file to lie beside.
fn beside(out: &Path) -> Option<PathBuf> {
    stdout::is_kept(out).then(|| out.with_extension("points.json"))
}

fn read(path: &Path) -> anyhow::Result<Measurement> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--points: cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("--points: {}", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Measures the server that `args` name.
///
/// # Errors
/// When it cannot be reached or fails.
pub async fn measure(args: &CalibrateArgs, plan: &Plan) -> anyhow::Result<Measurement> {
    for (flag, value) in [
        ("--rounds", args.rounds),
        ("--max-num-batched-tokens", args.max_num_batched_tokens),
    ] {
        ensure!(value > 0, "{flag}: write 1 or more");
    }
    ensure!(
        args.time_scale.is_finite() && args.time_scale > 0.0,
        "--time-scale must be a positive number"
    );
    let clock = Clock::scaled(args.time_scale, None);
    let bar = progress_bar(plan.steps() as u64, args.quiet);
    // The time of day: prompts of an earlier calibration must not be found in the cache.
    let seed = clock.epoch_unix().to_bits();
    let mut probe = Probe::new(&args.url, args.model.clone(), clock, seed, &bar).await?;
    let cache = probe.cache().await?;
    let plan = plan.clone().within(cache, probe.max_model_len())?;
    bar.set_length(plan.steps() as u64);
    let points = probe.measure(&plan, cache).await?;
    bar.finish_and_clear();
    Ok(Measurement {
        model: probe.model().to_owned(),
        max_num_batched_tokens: args.max_num_batched_tokens,
        kv_tokens: cache.tokens,
        points,
    })
}

fn progress_bar(steps: u64, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} points, {eta} left") {
        bar.set_style(style);
    }
    bar
}

impl Measurement {
    /// What the fit needs to know.
    pub const fn server(&self) -> Server {
        Server {
            max_num_batched_tokens: self.max_num_batched_tokens,
        }
    }

    /// The preset as a file.
    fn preset(&self, cost: CostModel) -> anyhow::Result<String> {
        let errors = self
            .points
            .iter()
            .map(|point| error(point, &cost, self.server()).abs());
        let errors: Vec<f64> = errors.collect();
        let mean = super::stats::mean(&errors).unwrap_or(0.0);
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let about = format!(
            "{}, {} points; the model is off by {:.1} % on average, {:.1} % at most",
            self.model,
            self.points.len(),
            100.0 * mean,
            100.0 * worst
        );
        Ok(toml::to_string(&CostFile {
            about: Some(about),
            kv_tokens: Some(self.kv_tokens),
            cost,
        })?)
    }
}

/// How far off the model is: 0.1 for a tenth too slow.
fn error(point: &Point, cost: &CostModel, server: Server) -> f64 {
    point.predicted_s(cost, server) / point.seconds() - 1.0
}

/// The points beside what the model says of them, and the constants.
pub fn table(points: &[Point], cost: &CostModel, server: Server) -> String {
    let mut text =
        String::from("                                 measured ms   model ms   error\n");
    for point in points {
        let name = match point {
            Point::FirstToken {
                prompt, cached: 0, ..
            } => format!("first token, {prompt} tokens"),
            Point::FirstToken { prompt, cached, .. } => {
                format!("first token, {prompt}, {cached} cached")
            }
            Point::Decode { batch, context, .. } => format!("decode, {batch} x {context:.0}"),
        };
        let _infallible = writeln!(
            text,
            "{name:<32} {:>11.2} {:>10.2} {:>+6.1}%",
            1e3 * point.seconds(),
            1e3 * point.predicted_s(cost, server),
            100.0 * error(point, cost, server),
        );
    }
    for (name, constant) in cost.constants() {
        let _infallible = writeln!(text, "{name:<18} {constant:.4e}");
    }
    text
}

#[cfg(test)]
mod tests;
