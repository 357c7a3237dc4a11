//! One run as plain data, whichever system wrote it: programs, steps, calls and samples on one time axis. Pure.
//!
//! Readers fill a [`Run`] ([`build`] does for kvgate's own records); [`super::measure`] and [`super::report`] compute
//! from it and ask no file again. All times are Unix seconds. A step of a kvgate run is one LLM call; a step of
//! the reference system is one transition between roles (`step_complete`), of which an LLM call is about one in
//! four, so their steps/s do not compare.

pub mod build;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use super::rundir::{Ending, StepSource};
use super::window::KvSample;

/// One run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Its run directory.
    pub dir: PathBuf,
    /// What it is called in tables; unique among the runs of a report.
    pub label: String,
    /// The scheduling policy; `unknown` if nothing names it.
    pub policy: String,
    /// What was played: runs with another workload are not compared.
    pub workload: String,
    /// Programs in flight; `None` if nothing says.
    pub concurrency: Option<usize>,
    /// KV blocks and tokens per block of the engine, where recorded.
    pub kv: Option<(u32, u32)>,
    /// Cost preset of the engine, where recorded.
    pub cost: Option<String>,
    /// The model asked for, where recorded.
    pub model: Option<String>,
    /// Programs that should have been played, where recorded.
    pub expected: Option<usize>,
    /// Every program that was seen, in the order of its first record.
    pub programs: Vec<Program>,
    /// Every step that ended, in the order recorded.
    pub steps: Vec<Step>,
    /// What the gate or the client says of each of `steps`, in the same order; empty for a reference run.
    pub requests: Vec<Request>,
    /// LLM calls, users' turns, experts, tools and tool gaps that ended.
    pub calls: Vec<Call>,
    /// KV usage over time.
    pub series: Vec<Series>,
    /// Running, waiting and held requests over time, where sampled.
    pub loads: Vec<LoadSample>,
    /// Prompt tokens and those of them that came from the prefix cache, where reported.
    pub prefix: Option<Prefix>,
    /// tau2's reward of each task that was judged, 0 to 1, in no order that matters.
    pub rewards: Vec<f64>,
    /// Who timed the steps.
    pub step_source: StepSource,
    /// Steps and programs that failed, by cause.
    pub errors: BTreeMap<String, usize>,
    /// Names of tools and outcomes, which requests refer to.
    pub names: Names,
    /// What reading met, for the completeness report.
    pub intake: Intake,
}

/// One program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// Its name, unique in the run.
    pub name: String,
    /// What sort of task it is; its domain in a reference run.
    pub kind: String,
    /// Its beginning: recorded, or its first event's.
    pub started_s: f64,
    /// Whether anything says when it began; otherwise `started_s` is the end of what it first did.
    pub begin_known: bool,
    /// Its last event, or its end.
    pub last_s: f64,
    /// How it ended; `None` if nothing says that it did.
    pub ending: Option<Ending>,
}

/// One step that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Index into [`Run::programs`]; `None` for a request without identity.
    pub program: Option<u32>,
    /// Position in its program.
    pub index: u32,
    /// Who acted, and who is next.
    pub edge: Edge,
    /// Whether it counts towards rates: a failed request does not.
    pub served: bool,
    /// It began: a request arrived, a role took its turn.
    pub started_s: f64,
    /// It ended.
    pub finished_s: f64,
}

/// What is known of a step that was a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Request {
    /// The policy admitted it, Unix seconds.
    pub admitted_s: Option<f64>,
    /// Its first token came, Unix seconds.
    pub first_token_s: Option<f64>,
    /// Arrival to admission, seconds.
    pub hold_s: f64,
    /// Arrival to first token, of streams, seconds.
    pub ttft_s: Option<f64>,
    /// Time per output token after the first, seconds.
    pub tpot_s: Option<f64>,
    /// The program's gap before it, seconds.
    pub tool_gap_s: Option<f64>,
    /// Prompt length in tokens.
    pub prompt_tokens: Option<u32>,
    /// Prompt tokens from the prefix cache.
    pub cached_tokens: Option<u32>,
    /// Generated tokens.
    pub output_tokens: Option<u32>,
    /// Tool called, an index into [`Run::names`].
    pub tool: Option<u32>,
    /// How it ended, an index into [`Run::names`].
    pub outcome: u32,
    /// HTTP status.
    pub status: u16,
}

/// Something that took time and ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// What it was.
    pub kind: CallKind,
    /// Index into [`Run::programs`].
    pub program: Option<u32>,
    /// Position in its program.
    pub step: u32,
    /// When it ended.
    pub ended_s: f64,
    /// How long it took.
    pub seconds: f64,
}

/// Kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// A call of the agent's model, hold included; in a reference run also the expert call within it.
    LlmCall,
    /// The simulated user's turn.
    UserSim,
    /// A call of an expert model.
    ExpertCall,
    /// A tool that ran.
    ToolCall,
    /// A judge's call after the task.
    Evaluator,
    /// All that passes between two steps of a program in a kvgate run: tools, users, experts.
    ToolGap,
}

impl CallKind {
    /// The kinds, in the order they are shown.
    pub const ALL: [Self; 6] = [
        Self::LlmCall,
        Self::UserSim,
        Self::ExpertCall,
        Self::ToolCall,
        Self::Evaluator,
        Self::ToolGap,
    ];

    /// Its word in logs and tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::LlmCall => "llm_call",
            Self::UserSim => "user_sim",
            Self::ExpertCall => "expert_call",
            Self::ToolCall => "tool_call",
            Self::Evaluator => "evaluator",
            Self::ToolGap => "tool_gap",
        }
    }
}

/// Who takes part in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The model that works on the task.
    Agent,
    /// The user it talks to.
    User,
    /// Where its tools run.
    Env,
    /// A word this version does not know.
    Other,
}

impl Role {
    /// Its word in logs and tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::User => "user",
            Self::Env => "env",
            Self::Other => "other",
        }
    }

    /// The role that a log names.
    pub fn from_word(word: &str) -> Self {
        match word {
            "agent" => Self::Agent,
            "user" => Self::User,
            "env" => Self::Env,
            _ => Self::Other,
        }
    }
}

/// Who acted, and who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// Who acted.
    pub from: Role,
    /// Who is next.
    pub to: Role,
}

impl std::fmt::Display for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}->{}", self.from.word(), self.to.word())
    }
}

/// KV usage of one engine over time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its port, and its engine where a port has several.
    pub name: String,
    /// Its samples, in the order recorded.
    pub samples: Vec<KvSample>,
}

/// Requests at one moment, by backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadSample {
    /// When, Unix seconds.
    pub ts_s: f64,
    /// Which backend, in the order they were first seen.
    pub backend: u32,
    /// KV usage, fraction 0–1.
    pub kv_usage: Option<f64>,
    /// Running in the engine.
    pub running: Option<u32>,
    /// Waiting in the engine.
    pub waiting: Option<u32>,
    /// Held by the gate, for all backends together.
    pub held: u32,
}

/// Token counts of the prefix cache, over served steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Prompt tokens from the cache.
    pub cached: u64,
    /// Prompt tokens.
    pub prompt: u64,
}

impl Prefix {
    /// Cached over prompt tokens, fraction 0–1; `None` where there were no prompts.
    #[expect(clippy::cast_precision_loss, reason = "token sums below 2^52")]
    pub fn hit_rate(self) -> Option<f64> {
        (self.prompt > 0).then(|| self.cached as f64 / self.prompt as f64)
    }
}

/// Words by number.
#[derive(Clone, Debug, Default)]
pub struct Names {
    list: Vec<String>,
    index: HashMap<String, u32>,
}

impl Names {
    /// The number of `name`, new if it was not seen before.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(&known) = self.index.get(name) {
            return known;
        }
        let new = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(name.to_owned());
        self.index.insert(name.to_owned(), new);
        new
    }

    /// The name with this number; empty for one that was never given.
    pub fn name(&self, number: u32) -> &str {
        self.list.get(number as usize).map_or("", String::as_str)
    }
}

/// What reading a run directory met.
#[derive(Clone, Debug, Default)]
pub struct Intake {
    /// Files that should be there and are not.
    pub missing: Vec<Missing>,
    /// Files that are there and cannot be read as a whole, as a killed run leaves them.
    pub damaged: Vec<Damaged>,
    /// Lines that could not be read, by file.
    pub files: Vec<FileIntake>,
    /// Records that stood behind other text on their line.
    pub glued: u64,
    /// Completion markers that were printed as a Python tuple.
    pub tuple_markers: u64,
    /// Whether the run was seen to end.
    pub ended: Ended,
    /// When it went on after it was cut short, in words.
    pub resumed: Vec<String>,
    /// Records that the gate's recorder dropped, as it counted itself.
    pub dropped: u64,
    /// Steps that the client saw served; `None` if only the gate or only the client recorded.
    pub client_served: Option<usize>,
    /// Steps in `driver.log` and in `logs/tau2_global.log`, where both are there; the file with more was taken.
    pub steps_in_logs: Option<(u64, u64)>,
    /// What the reference driver says of the run at its end.
    pub driver: Option<DriverSummary>,
    /// Files with one task's result each, in a reference run.
    pub result_files: Option<usize>,
    /// Programs were derived from steps, because no replay recorded them.
    pub programs_derived: bool,
    /// How naive log times were read.
    pub zone: Option<Zone>,
}

impl Intake {
    /// What was read of this file; without it, the file counts as damaged.
    pub fn read<T>(&mut self, file: &str, read: anyhow::Result<T>) -> Option<T> {
        let damaged = |error: anyhow::Error| Damaged {
            file: file.to_owned(),
            why: error.root_cause().to_string(),
        };
        read.map_err(|error| self.damaged.push(damaged(error))).ok()
    }

    /// Whether this file should be there and is not.
    pub fn is_missing(&self, file: &str) -> bool {
        self.missing.iter().any(|missing| missing.file == file)
    }
}

/// A file that is there and cannot be read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its path inside the run directory.
    pub file: String,
    /// What stopped the reader.
    pub why: String,
}

/// A file that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its path inside the run directory.
    pub file: &'static str,
    /// What cannot be said without it.
    pub without: &'static str,
    /// Whether the figures cannot be trusted without it.
    pub fatal: bool,
    /// Whether nothing else says which programs finished.
    pub tells_of_programs: bool,
}

/// How reading one file went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileIntake {
    /// Its path inside the run directory.
    pub file: String,
    /// Records read.
    pub records: u64,
    /// Lines that should be records and could not be read.
    pub unparsed: u64,
    /// The first of them: line number, where known, and text.
    pub example: Option<(Option<u64>, String)>,
}

/// Characters kept of a line that could not be read.
const EXAMPLE_CHARS: usize = 120;

impl FileIntake {
    /// For the file at this path inside the run directory.
    pub fn of(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            ..Self::default()
        }
    }

    /// Notes a line that could not be read; the first one's beginning is kept.
    pub fn bad(&mut self, number: Option<u64>, line: &str) {
        self.unparsed += 1;
        self.example
            .get_or_insert_with(|| (number, line.chars().take(EXAMPLE_CHARS).collect()));
    }
}

/// Whether a run was seen to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Its summary is there.
    Summary,
    /// A summary should be there, in this file, and is not.
    Killed(&'static str),
    /// Nothing promises a summary.
    #[default]
    Unknown,
}

impl Ended {
    /// Whether a summary is wanting.
    pub const fn is_killed(self) -> bool {
        matches!(self, Self::Killed(_))
    }
}

/// `Global evaluation complete: ...` of the reference driver.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DriverSummary {
    /// Tasks that finished.
    pub ok: u64,
    /// Tasks that failed.
    pub error: u64,
    /// Tasks there were.
    pub total: u64,
    /// How long it took, seconds.
    pub elapsed_s: f64,
    /// The driver's own rate: finished tasks per minute over all of it.
    pub tasks_per_min: f64,
}

/// How naive log times were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its name or offset.
    pub name: String,
    /// Who said so, in words.
    pub source: &'static str,
}

/// Most causes of errors that are told apart; others are counted as one.
const MAX_CAUSES: usize = 20;

impl Run {
    /// Counts a failure.
    pub fn count_error(&mut self, cause: &str) {
        let known = self.errors.contains_key(cause) || self.errors.len() < MAX_CAUSES;
        let cause = if known { cause } else { "other causes" };
        *self.errors.entry(cause.to_owned()).or_default() += 1;
    }

    /// Programs that finished their task.
    pub fn done(&self) -> impl Iterator<Item = &Program> {
        self.ended_as(Ending::Done)
    }

    /// Programs that ended so.
    pub fn ended_as(&self, ending: Ending) -> impl Iterator<Item = &Program> {
        self.programs
            .iter()
            .filter(move |program| program.ending == Some(ending))
    }

    /// Programs that began and never ended.
    pub fn open(&self) -> impl Iterator<Item = &Program> {
        self.programs.iter().filter(|p| p.ending.is_none())
    }

    /// How long each finished program took, in seconds, where anything says when it began.
    pub fn program_times(&self) -> impl Iterator<Item = f64> {
        let timed = self.done().filter(|program| program.begin_known);
        timed.map(|program| program.last_s - program.started_s)
    }

    /// Steps that count towards rates.
    pub fn served(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.served)
    }

    /// Requests that were served, with their steps.
    pub fn served_requests(&self) -> impl Iterator<Item = (&Step, &Request)> {
        let pairs = self.steps.iter().zip(&self.requests);
        pairs.filter(|(step, _)| step.served)
    }

    /// Name of a step's or call's program; empty without one.
    pub fn program_name(&self, program: Option<u32>) -> &str {
        let program = program.and_then(|index| self.programs.get(index as usize));
        program.map_or("", |program| &program.name)
    }

    /// From the first to the last thing that happened in a program; `None` if nothing did.
    pub fn span(&self) -> Option<(f64, f64)> {
        let ends = |s: &Step| [s.started_s, s.finished_s];
        let programs = self.programs.iter().flat_map(|p| [p.started_s, p.last_s]);
        let all = || programs.clone().chain(self.steps.iter().flat_map(ends));
        Some((all().reduce(f64::min)?, all().reduce(f64::max)?))
    }

    /// KV usage, all series together.
    pub fn samples(&self) -> impl Iterator<Item = &KvSample> + Clone {
        self.series.iter().flat_map(|series| &series.samples)
    }

    /// From the first to the last KV sample, whole Unix seconds.
    pub fn sampled(&self) -> Option<(i64, i64)> {
        let times = || self.samples().map(|sample| sample.ts_s);
        Some((times().min()?, times().max()?))
    }
}
