//! What is written for the driver before it starts, and the environment it starts in. All of it is in the run
//! directory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use tokio::process::Command;

use super::Settings;
use super::model_config::{Endpoint, ModelConfig};
use crate::harness::child::guarded;
use crate::harness::reference::files;
use crate::harness::tau2::environment::VARIABLES;

/// Stands for the agent's checkpoint. The driver takes a model whose name holds `orchestrator` and `8b` for its agent,
/// and sends tools only to one that is an existing path.
const CHECKPOINT: &str = "checkpoint/Nemotron-Orchestrator-8B";
/// The driver's working directory, in which it makes `keys/`.
const CWD: &str = "oss";
/// The folder of the package that stands in for `transformers`.
const STAND_IN: &str = "oss/python";
/// That package.
const TRANSFORMERS: &str = include_str!("python/transformers.py");
/// Whether the real one can give the tokenizer that the driver loads.
const HAS_TOKENIZER: &str =
    "from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('Qwen/Qwen3-8B')";
/// Where the driver is in a checkout.
pub(super) const BENCH: &str = "evaluation/tau2-bench";
/// Settings of the driver that would change what is sent or written.
const UNSET: [&str; 6] = [
    "TAU2_TOOLORCH_STREAM_PROFILE",
    "TAU2_EXPERT_STREAM_PROFILE",
    "TAU2_TRACE",
    "TAU2_LOG_FILE",
    "TAU2_DATA_DIR",
    "NEBIUS_API_KEY",
];

/// The folder that stands for the agent's checkpoint.
pub(super) fn checkpoint(dir: &Path) -> PathBuf {
    absolute(dir).join(CHECKPOINT)
}

/// `path`, from the root; links stay.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether the run directory holds a run. The driver would leave out its tasks, and others of the same id in other
/// domains.
pub(super) fn is_used(dir: &Path) -> bool {
    [files::DRIVER_LOG, files::RESULTS]
        .iter()
        .any(|name| dir.join(name).exists())
}

/// What to say of one that does.
pub(super) fn used(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "{dir} holds a run already, whose tasks run_oss.py would leave out: choose a new directory"
    )
}

/// Writes what the driver needs; returns the command that starts it.
pub(super) fn prepare(settings: &Settings) -> anyhow::Result<Command> {
    let dir = absolute(&settings.dir);
    anyhow::ensure!(!is_used(&dir), used(&dir));
    for folder in [CHECKPOINT, CWD, STAND_IN] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let gate = Endpoint::of_url(&settings.gate)?;
    let config = dir.join(ModelConfig::file_name(&settings.policy));
    let names = settings.names();
    let text = ModelConfig::behind(&gate, &names.agent, &config.display().to_string()).text();
    write(&config, &text)?;
    let stand_in = dir.join(STAND_IN);
    let stand_in = (!has_tokenizer(&settings.python.interpreter)).then_some(stand_in);
    if let Some(folder) = &stand_in {
        write(&folder.join("transformers.py"), TRANSFORMERS)?;
    }
    let mut command = command(settings, &dir, &config);
    environment(&mut command, settings, &gate, stand_in.as_ref());
    Ok(command)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn has_tokenizer(python: &Path) -> bool {
    let mut command = std::process::Command::new(python);
    command.args(["-c", HAS_TOKENIZER]).envs(VARIABLES);
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    let asked = quiet.stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

fn command(settings: &Settings, dir: &Path, config: &Path) -> Command {
    let driver = absolute(&settings.checkout).join(BENCH).join("run_oss.py");
    let mut argv: Vec<OsString> = vec![settings.python.interpreter.clone().into(), driver.into()];
    let mut flag = |name: &str, values: &[OsString]| {
        argv.push(name.into());
        argv.extend_from_slice(values);
    };
    let text = |text: &str| [OsString::from(text)];
    let domains: Vec<OsString> = settings.domains.iter().map(OsString::from).collect();
    flag("--agent-model", &text(&settings.names().agent));
    flag("--user-llm", &text(&settings.user));
    flag("--domains", &domains);
    if let Some(tasks) = settings.tasks {
        flag("--num-tasks", &text(&tasks.to_string()));
    }
    flag("--num-trials", &text(&settings.trials.to_string()));
    flag("--max-steps", &text(&settings.max_steps.to_string()));
    flag(
        "--max-concurrency",
        &text(&settings.concurrency.to_string()),
    );
    flag("--skip-server-start", &[]);
    flag("--schedule-mode", &text("global"));
    flag("--log-level", &text("PROFILE"));
    flag("--model-config-path", &[config.into()]);
    flag("--output-dir", &[dir.join("outputs").into()]);
    flag("--log-dir", &[dir.join("logs").into()]);
    let mut command = guarded(&settings.kvgate, argv);
    command.current_dir(dir.join(CWD));
    command
}

fn environment(
    command: &mut Command,
    settings: &Settings,
    gate: &Endpoint,
    stand_in: Option<&PathBuf>,
) {
    let checkout = absolute(&settings.checkout);
    let api = format!("http://{}:{}/v1", gate.host, gate.port);
    let direct = std::env::var("NO_PROXY").unwrap_or_default();
    for name in UNSET {
        command.env_remove(name);
    }
    let mut packages = OsString::new();
    if let Some(stand_in) = stand_in {
        packages.push(stand_in);
        packages.push(":");
    }
    packages.push(checkout.join(BENCH));
    command
        .envs(VARIABLES)
        .env("REPO_PATH", &checkout)
        .env("ROUTER_URL", settings.gate.trim_end_matches('/'))
        .env("PYTHONPATH", packages)
        // The gate has the keys of what it routes to; without one the driver asks for others.
        .env("OPENAI_API_KEY", "kvgate")
        .env("OPENAI_BASE_URL", &api)
        .env("OPENAI_API_BASE", &api)
        .env("LOGURU_LEVEL", "INFO")
        // A proxy of the environment would stand between client and gate.
        .env("NO_PROXY", format!("{},{direct}", gate.host));
    if let Some(data) = &settings.python.data {
        command.env("TAU2_DATA_DIR", data);
    }
}
