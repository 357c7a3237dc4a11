//! Recorded programs: prompts, replies' lengths and gaps are the same every time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Hands, Kind, Played, Stage, Told, WorkloadOptions, load_trace};
use crate::harness::replay::player::InFlight;
use crate::harness::replay::{Onlooker, Replay, Summary};
use crate::harness::rundir::{Ending, Manifest, ProgramRecord, RunDir};
use crate::harness::tau2::event::Failure;
use crate::harness::trace::Trace;

/// Recorded programs, checked.
#[derive(Clone, Debug)]
pub struct Recorded {
    trace: Arc<Trace>,
    programs: usize,
    /// Whether replies are streamed; `None`: as the engine bears.
    stream: Option<bool>,
    stand_in: bool,
    seed: u32,
    timeout: Duration,
}

impl Recorded {
    pub(super) fn checked(options: &WorkloadOptions) -> Result<Self, Vec<String>> {
        let mut problems = options.only_for(Kind::Replay);
        let trace = load_trace(options.trace.as_deref().unwrap_or("tau2"));
        let timeout = options.timeout();
        if options.tasks == Some(0) {
            problems.push("--tasks must be at least 1".to_owned());
        }
        match (trace, timeout) {
            (Ok(trace), Ok(timeout)) if problems.is_empty() => Ok(Self {
                programs: options.tasks.unwrap_or(trace.programs.len()),
                trace,
                stream: options.stream,
                stand_in: options.stand_in.unwrap_or(false),
                seed: options.seed.unwrap_or(300),
                timeout,
            }),
            (trace, timeout) => {
                problems.extend(trace.err().into_iter().chain(timeout.err()));
                Err(problems)
            }
        }
    }

    pub(super) fn name(&self) -> String {
        format!("replay {}", self.trace.name)
    }

    /// Where it was read from, unless it is built in.
    pub fn file(&self) -> Option<PathBuf> {
        let path = PathBuf::from(&self.trace.name);
        path.is_file().then_some(path)
    }

    /// How many programs there are.
    pub const fn programs(&self) -> usize {
        self.programs
    }

    /// The longest prompt with its reply, in tokens.
    pub fn longest_context(&self) -> u32 {
        let steps = self
            .trace
            .programs
            .iter()
            .flat_map(|program| &program.steps);
        let contexts = steps.map(|step| step.prompt_tokens + step.output_tokens);
        contexts.max().unwrap_or_default()
    }

    /// How a run of it is made.
    pub fn manifest(&self, stage: &Stage) -> Manifest {
        self.replay(stage, RunDir::at(&stage.dir))
            .manifest(&stage.model)
    }

    fn replay(&self, stage: &Stage, dir: RunDir) -> Replay {
        Replay {
            url: stage.url.clone(),
            trace: Arc::clone(&self.trace),
            concurrency: stage.concurrency,
            programs: self.programs,
            // A sped-up engine cannot keep up with a frame for each token.
            stream: self.stream.unwrap_or(stage.engine.is_none()),
            tools: true,
            stand_in: self.stand_in,
            dir,
            clock: stage.clock,
            model: Some(stage.model.clone()),
            seed: u64::from(self.seed) + u64::from(stage.repeat),
            timeout: self.timeout,
            max_retries: 3,
            quiet: true,
            label: stage.label.clone(),
            policy: Some(stage.policy.clone()),
            engine: stage.engine.clone(),
        }
    }

    /// Plays the set; programs that are given up by name fail.
    ///
    /// # Errors
    /// When the server cannot be reached at the start or a record cannot be written.
    pub async fn play(
        &self,
        stage: &Stage,
        hands: &Hands,
        mut given_up: mpsc::UnboundedReceiver<(String, Failure)>,
        told: &mpsc::Sender<Told>,
    ) -> anyhow::Result<Played> {
        let (ended, mut endings) = mpsc::unbounded_channel();
        let in_flight = InFlight::default();
        let onlooker = Onlooker {
            ended: Some(ended),
            in_flight: in_flight.clone(),
            writes_manifest: true,
        };
        // A recorded program that is cut short cannot go on later, so that to drain is to end.
        let cancel = hands.drain.clone();
        let replay = self.replay(stage, RunDir::create(&stage.dir)?);
        let mut playing = std::pin::pin!(replay.play_watched(cancel.clone(), onlooker));
        let mut played = Played {
            total: self.programs,
            ..Played::default()
        };
        let summary = loop {
            tokio::select! {
                summary = &mut playing => break summary?,
                () = hands.kill.cancelled(), if !cancel.is_cancelled() => cancel.cancel(),
                Some(program) = endings.recv() => tell(&program, &mut played, told).await,
                Some((program, _)) = given_up.recv() => in_flight.give_up(&program),
            }
        };
        while let Ok(program) = endings.try_recv() {
            tell(&program, &mut played, told).await;
        }
        played.figures = figures(&summary);
        Ok(played)
    }
}

async fn tell(record: &ProgramRecord, played: &mut Played, told: &mpsc::Sender<Told>) {
    match record.ending {
        Ending::Done => played.ok += 1,
        Ending::Failed => {
            played.failed += 1;
            let cause = record.cause.clone().unwrap_or_default();
            *played.causes.entry(cause).or_default() += 1;
        }
        Ending::Cancelled => return,
    }
    let ended = Told::TaskEnded {
        program: record.program.clone(),
        at_s: record.finished_s,
        played: played.clone(),
    };
    // Fails only when nobody listens any more.
    let _gone = told.send(ended).await;
}

/// The summary in a line.
fn figures(summary: &Summary) -> String {
    let measures = &summary.measures;
    let Some(whole) = measures.whole else {
        return "no program ended".to_owned();
    };
    let hit = measures
        .prefix_hit_rate
        .map_or_else(String::new, |rate| format!(", hit rate {rate:.3}"));
    format!(
        "{:.2} tasks/min, {:.2} steps/s over {:.0} s{hit}",
        whole.tasks_per_min, whole.steps_per_s, whole.seconds
    )
}
