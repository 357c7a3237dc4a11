//! Whether an experiment can be done, asked before anything starts: every problem at once.

mod ask;
mod clock;
mod gate;
mod login;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::gpu;

/// What an experiment needs. What is asked for is checked, all of it at once; a default asks for nothing but the clock.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Addresses that something will listen on.
    pub ports: Vec<Port>,
    /// Environment variables that hold keys.
    pub keys: Vec<Key>,
    /// Files and folders that will be read.
    pub paths: Vec<PathNeed>,
    /// Servers that have to answer.
    pub endpoints: Vec<Endpoint>,
    /// Room for the run's files.
    pub disk: Option<Disk>,
    /// Files that are open at once; 0 asks for none.
    pub open_files: u64,
    /// GPUs for an engine of our own.
    pub gpu: Option<GpuNeed>,
    /// Programs that will be run.
    pub commands: Vec<CommandNeed>,
    /// A Python that somebody else installed.
    pub interpreter: Option<Interpreter>,
    /// An upstream checkout of tau2-bench.
    pub tau2_checkout: Option<PathBuf>,
    /// A checkout of the reference fork.
    pub fork: Option<ForkNeed>,
    /// A command that logs in by ssh and does nothing there.
    pub login: Option<Vec<String>>,
    /// The gates' configuration.
    pub gate: Option<GateNeed>,
}

/// An address to listen on.
#[derive(Clone, Debug)]
pub struct Port {
    /// The address; port 0 is always free.
    pub addr: SocketAddr,
    /// What will listen there, such as `the gate`.
    pub what: String,
    /// The flag that chooses another, such as `--listen`.
    pub flag: String,
}

/// An environment variable that holds a key. Its value is never shown.
#[derive(Clone, Debug)]
pub struct Key {
    /// The variable.
    pub variable: String,
    /// What the key opens, such as `the experts of gpt-5`.
    pub used_for: String,
}

impl Key {
    /// Whether the variable holds anything.
    fn is_set(&self) -> bool {
        std::env::var_os(&self.variable).is_some_and(|value| !value.is_empty())
    }
}

/// A file or folder to be read.
#[derive(Clone, Debug)]
pub struct PathNeed {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, such as `the model`.
    pub what: String,
    /// The flag that names it.
    pub flag: String,
}

/// A server of an OpenAI API.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Without `/v1`.
    pub url: String,
    /// Who it is, such as `expert-1`.
    pub what: String,
    /// A model that it has to serve, under this very name.
    pub model: Option<String>,
    /// The variable with the key to send, if any.
    pub key: Option<String>,
}

/// Room on a disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// A place on it, which need not exist yet.
    pub path: PathBuf,
    /// Bytes that are needed there.
    pub bytes: u64,
}

/// GPUs that nobody else uses.
#[derive(Clone, Debug)]
pub struct GpuNeed {
    /// Their numbers; all, if empty.
    pub devices: Vec<u32>,
    /// Memory that has to be free on each, in MiB.
    pub free_mib: u64,
    /// The program that knows.
    pub program: PathBuf,
}

impl Default for GpuNeed {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            free_mib: 0,
            program: gpu::PROGRAM.into(),
        }
    }
}

/// A program to be run.
#[derive(Clone, Debug)]
pub struct CommandNeed {
    /// A name to be found in `PATH`, or a path.
    pub program: PathBuf,
    /// What for, such as `the tunnel to the engine`.
    pub used_for: String,
}

/// A Python and the packages it has to have.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// The interpreter.
    pub python: PathBuf,
    /// Names as they are imported.
    pub imports: Vec<String>,
    /// The flag that names it.
    pub flag: String,
}

/// A checkout of the reference fork, and what is played of it.
#[derive(Clone, Debug)]
pub struct ForkNeed {
    /// The checkout.
    pub checkout: PathBuf,
    /// Its domains.
    pub domains: Vec<String>,
}

/// How a gate will be configured. A key of [`Asked::keys`] that is not set is told there, and not here again.
#[derive(Clone, Debug)]
pub struct GateNeed {
    /// Its configuration file.
    pub table: toml::Table,
    /// Its policy; the tables of others are checked too.
    pub policy: String,
    /// The executable of kvgate that will serve it.
    pub kvgate: PathBuf,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The experiment would fail.
    Error,
    /// It can be done, and something is worth knowing.
    Warning,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was asked for.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn error(
        what: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            what: what.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn warning(
        what: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(what, problem, remedy)
        }
    }
}

/// Checks everything that is asked for, and the clock and time zone; errors come first. Nothing is started or left
/// behind, and no check waits for another: it takes as long as the slowest, at most 20 s.
pub async fn check(asked: &Asked) -> Vec<Finding> {
    let mut findings = Box::pin(ask::everything(asked)).await;
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Whether one of them keeps the experiment from being done.
pub fn is_fatal(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
}

/// One line for each, under a line that counts them. Pure.
pub fn to_text(findings: &[Finding]) -> String {
    let count = |severity, word: &str| {
        let n = findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count();
        format!("{n} {word}{}", if n == 1 { "" } else { "s" })
    };
    if findings.is_empty() {
        return "preflight: all is well\n".to_owned();
    }
    let (errors, warnings) = (
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
    );
    let mut text = format!("preflight: {errors}, {warnings}\n");
    let width = findings
        .iter()
        .map(|finding| finding.what.chars().count())
        .max()
        .unwrap_or(0);
    for finding in findings {
        let mark = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Finding {
            what,
            problem,
            remedy,
            ..
        } = finding;
        let line = format!("  {mark:<7}  {what:<width$}  {problem}; {remedy}");
        // What others say in an error may have line breaks.
        let _ = writeln!(text, "{}", line.replace(['\n', '\r'], " "));
    }
    text
}

#[cfg(test)]
mod tests;
