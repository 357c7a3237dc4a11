//! Plays a fixed set of agent programs through the OpenAI API, closed loop: `kvgate replay`.
//!
//! C slots each play one program at a time to its end and then take the next; the set is finite, so policies are
//! compared on the same work. A program is what an agent is to a server: a history that grows by the replies
//! really received, gaps between steps, a release at the end. [`history`] builds requests, [`client`] sends them,
//! [`player`] plays one program, [`tally`] keeps the records.

pub mod client;
pub mod history;
pub mod player;
pub mod reply;
pub mod tally;
pub mod text;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::client::Client;
use self::history::{RequestShape, tool_lists};
use self::player::{InFlight, Session};
use self::tally::{GapLag, Tally, collect, progress_bar};
use super::measure::Measures;
use super::report::load::kv;
use super::run::build::Builder;
use super::rundir::{Ending, EngineManifest, Manifest, ProgramRecord, RunDir, StepSource};
use super::trace::{Program, Trace};
use super::window::THRESHOLD_PERCENT;
use crate::clock::Clock;

/// Notes that wait for their reader; a full queue slows the players down.
const NOTES: usize = 4_096;

/// Flags of `kvgate replay`.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct ReplayArgs {
    /// Server to play against: a gate, or vLLM itself
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:1900")]
    pub url: String,
    /// Built-in trace (tau2, swe) or a file of JSON lines
    #[arg(long, value_name = "NAME|FILE", default_value = "tau2")]
    pub trace: String,
    /// Programs in flight at any time
    #[arg(long, value_name = "C", default_value_t = 32)]
    pub concurrency: usize,
    /// Size of the fixed set of programs; past the trace's end it starts over under new names [default: all]
    #[arg(long, value_name = "N")]
    pub programs: Option<usize>,
    /// Ask for streamed replies (the default)
    #[arg(long, overrides_with = "no_stream")]
    pub stream: bool,
    /// Ask for replies in one piece
    #[arg(long, overrides_with = "stream")]
    pub no_stream: bool,
    /// Offer no tools and ask for no tool calls
    #[arg(long)]
    pub no_tools: bool,
    /// Put words, as many as a reply had tokens, into the history instead of the reply: for a model with random
    /// weights, whose text would come back as other and more tokens
    #[arg(long)]
    pub stand_in: bool,
    /// Run directory [default: runs/replay-TRACE-cC-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Seconds of the run per real second; give engine and gate the same
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub time_scale: f64,
    /// Unix time at which the run began, shared by its processes [default: now]
    #[arg(long, value_name = "UNIX")]
    pub time_epoch: Option<f64>,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Seed of the message texts; another seed finds nothing in a warm prefix cache
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Time for one request, hold included, in seconds of the run
    #[arg(long, value_name = "S", default_value_t = 3600.0)]
    pub timeout_s: f64,
    /// Retries of a step before its program counts as failed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_retries: u32,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// One replay, checked.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Replay {
    /// Where requests go.
    pub url: String,
    /// What to play.
    pub trace: Arc<Trace>,
    /// Programs in flight.
    pub concurrency: usize,
    /// Size of the fixed set.
    pub programs: usize,
    /// Ask for streams.
    pub stream: bool,
    /// Offer tools.
    pub tools: bool,
    /// Let words stand in for replies.
    pub stand_in: bool,
    /// Where records go.
    pub dir: RunDir,
    /// The run's time.
    pub clock: Clock,
    /// The model to ask for; the first listed if `None`.
    pub model: Option<String>,
    /// Seed of the texts.
    pub seed: u64,
    /// Time for one request, of the run.
    pub timeout: Duration,
    /// Retries of one step.
    pub max_retries: u32,
    /// Draw no bar.
    pub quiet: bool,
    /// What the bar begins with.
    pub label: String,
    /// The gate's policy, where known.
    pub policy: Option<String>,
    /// The engine, where known.
    pub engine: Option<EngineManifest>,
}

/// What a replay found; `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The figures, with latencies as the client saw them.
    #[serde(flatten)]
    pub measures: Measures,
    /// How well the machine kept the gaps.
    pub gap_lag: GapLag,
    /// Failed requests by cause.
    pub causes: std::collections::BTreeMap<String, usize>,
    /// Programs that the gate could not be told are over.
    pub releases_failed: usize,
    /// Whether every program of the set was played to an end.
    pub complete: bool,
}

/// Runs `kvgate replay`; Ctrl-C ends it early, with everything written that was seen.
///
/// # Errors
/// When the flags are wrong, the server cannot be reached, the run directory cannot be written, or no program
/// could be finished.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub async fn run(args: ReplayArgs) -> anyhow::Result<Summary> {
    let replay = Replay::new(args)?;
    let cancel = cancelled_by_signal()?;
    let dir = replay.dir.clone();
    let summary = replay.play(cancel).await?;
    println!("{}", summary.to_text());
    println!("run directory: {}", dir.path().display());
    let done = summary.measures.whole.map_or(0, |whole| whole.programs);
    ensure!(
        done > 0,
        "no program was finished; see programs.jsonl for the causes"
    );
    Ok(summary)
}

/// A token that Ctrl-C, SIGTERM or a closed terminal cancels.
///
/// # Errors
/// When the process cannot listen for signals.
pub fn cancelled_by_signal() -> anyhow::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let cancel = CancellationToken::new();
    let cancelled = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(cancel)
}

/// Who looks on while a replay plays, and may give programs up.
#[derive(Clone, Debug, Default)]
pub struct Onlooker {
    /// Is told of every program that ended.
    pub ended: Option<mpsc::UnboundedSender<ProgramRecord>>,
    /// The programs in flight.
    pub in_flight: InFlight,
    /// Whether it writes `manifest.json`; otherwise the replay does.
    pub writes_manifest: bool,
}

impl Replay {
    /// Checks the flags, reads the trace and makes the run directory.
    ///
    /// # Errors
    /// Names the flag to mend.
    pub fn new(args: ReplayArgs) -> anyhow::Result<Self> {
        ensure!(args.concurrency > 0, "--concurrency must be at least 1");
        ensure!(args.programs != Some(0), "--programs must be at least 1");
        for (flag, value) in [
            ("--time-scale", args.time_scale),
            ("--timeout-s", args.timeout_s),
        ] {
            ensure!(
                value.is_finite() && value > 0.0,
                "{flag} must be a positive number"
            );
        }
        let trace = Trace::load(&args.trace)?;
        let clock = Clock::scaled(args.time_scale, args.time_epoch);
        let out = args.out.unwrap_or_else(|| {
            let now = clock.unix(clock.now());
            let name = trace.file_stem();
            format!("runs/replay-{name}-c{}-{now:.0}", args.concurrency).into()
        });
        Ok(Self {
            url: args.url,
            concurrency: args.concurrency,
            programs: args.programs.unwrap_or(trace.programs.len()),
            trace: Arc::new(trace),
            stream: !args.no_stream,
            tools: !args.no_tools,
            stand_in: args.stand_in,
            dir: RunDir::create(out)?,
            clock,
            model: args.model,
            seed: args.seed,
            timeout: Duration::from_secs_f64(args.timeout_s),
            max_retries: args.max_retries,
            quiet: args.quiet,
            label: args.trace,
            policy: None,
            engine: None,
        })
    }

    /// Plays the set to its end, or until `cancel`; writes the run directory.
    ///
    /// # Errors
    /// When the server cannot be reached at the start or a record cannot be written.
    pub async fn play(self, cancel: CancellationToken) -> anyhow::Result<Summary> {
        self.play_watched(cancel, Onlooker::default()).await
    }

    /// The same, with somebody who looks on.
    ///
    /// # Errors
    /// As [`Self::play`].
    pub async fn play_watched(
        self,
        cancel: CancellationToken,
        onlooker: Onlooker,
    ) -> anyhow::Result<Summary> {
        let client = Client::new(&self.url, self.clock, self.timeout)?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => client.first_model().await?.id,
        };
        let manifest = self.manifest(&model);
        if !onlooker.writes_manifest {
            self.dir.write_json("manifest.json", &manifest)?;
        }
        let (notes, inbox) = mpsc::channel(NOTES);
        let session = Session {
            client,
            clock: self.clock,
            shape: self.shape(model),
            max_retries: self.max_retries,
            notes,
            cancel,
            in_flight: onlooker.in_flight,
        };
        let bar = progress_bar(self.programs, &self.label, self.quiet);
        let players = self.start_players(session);
        let tally = collect(inbox, &self.dir, self.clock, bar, onlooker.ended).await?;
        drop(players.join_all().await);
        self.summarise(&manifest, tally)
    }

    fn shape(&self, model: String) -> RequestShape {
        RequestShape {
            model,
            stream: self.stream,
            tools: if self.tools {
                tool_lists(&self.trace.programs)
            } else {
                std::collections::BTreeMap::new()
            },
            stand_in: self.stand_in,
            seed: self.seed,
        }
    }

    /// C slots, each taking the next program of the set as it gets free.
    fn start_players(&self, session: Session) -> JoinSet<()> {
        let session = Arc::new(session);
        let next = Arc::new(AtomicUsize::new(0));
        let mut players = JoinSet::new();
        for _ in 0..self.concurrency.min(self.programs) {
            let (session, next) = (Arc::clone(&session), Arc::clone(&next));
            let (trace, programs) = (Arc::clone(&self.trace), self.programs);
            players.spawn(async move {
                while !session.cancel.is_cancelled() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= programs {
                        break;
                    }
                    let (name, program) = pick(&trace.programs, index);
                    session.play(name, program).await;
                }
            });
        }
        players
    }

    /// How the run is made, with this model.
    pub fn manifest(&self, model: &str) -> Manifest {
        let steps = (0..self.programs).map(|i| pick(&self.trace.programs, i).1.steps.len());
        Manifest {
            kvgate: env!("CARGO_PKG_VERSION").to_owned(),
            policy: self.policy.clone(),
            concurrency: self.concurrency,
            trace: self.trace.name.clone(),
            programs: self.programs,
            steps: steps.sum(),
            trace_repaired: self.trace.repaired,
            stream: self.stream,
            seed: self.seed,
            url: self.url.clone(),
            model: model.to_owned(),
            time_scale: self.clock.scale(),
            epoch_unix: self.clock.epoch_unix(),
            engine: self.engine.clone(),
        }
    }

    fn summarise(&self, manifest: &Manifest, tally: Tally) -> anyhow::Result<Summary> {
        let complete = tally.programs.len() == self.programs && tally.ended(Ending::Cancelled) == 0;
        let mut builder = Builder::new(Some(manifest), StepSource::Client);
        tally.steps.iter().for_each(|step| builder.step(step));
        tally
            .programs
            .iter()
            .for_each(|program| builder.program(program));
        let mut run = builder.finish(true);
        kv::read(self.dir.path(), &mut run)?;
        let summary = Summary {
            measures: Measures::of(&run, THRESHOLD_PERCENT),
            gap_lag: tally.gap_lag,
            causes: tally.causes,
            releases_failed: tally.releases_failed,
            complete,
        };
        self.dir.write_json("summary.json", &summary)?;
        Ok(summary)
    }
}

/// The program at `index` of the set and its name there: the trace over and over, under a new name each time.
fn pick(programs: &[Program], index: usize) -> (String, &Program) {
    let (cycle, index) = (index / programs.len(), index % programs.len());
    let program = &programs[index];
    let name = match cycle {
        0 => program.program.clone(),
        _ => format!("{}.{cycle}", program.program),
    };
    (name, program)
}

impl Summary {
    /// The figures in a few lines.
    pub fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let measures = &self.measures;
        let mut text = String::new();
        if let Some(whole) = &measures.whole {
            let _ = write!(
                text,
                "{} programs and {} steps in {:.0} s: {:.2} tasks/min, {:.2} steps/s",
                whole.programs, whole.steps, whole.seconds, whole.tasks_per_min, whole.steps_per_s
            );
        }
        if let Some(rate) = measures.prefix_hit_rate {
            let _ = write!(text, "; prefix hit rate {rate:.3}");
        }
        for (what, spread) in [("step", measures.step_s), ("program", measures.program_s)] {
            if let Some(spread) = spread {
                let _ = write!(
                    text,
                    "; {what} p50 {:.1} s, p95 {:.1} s",
                    spread.p50, spread.p95
                );
            }
        }
        if !self.complete {
            text.push_str("\nincomplete: the set was not played to its end");
        }
        if measures.programs_failed > 0 {
            let _ = write!(text, "\n{} programs failed", measures.programs_failed);
        }
        for (cause, count) in &self.causes {
            let _ = write!(text, "\n{count} x {cause}");
        }
        if self.releases_failed > 0 {
            let _ = write!(text, "\n{} releases failed", self.releases_failed);
        }
        text
    }
}

#[cfg(test)]
mod tests;
