//! The options of an experiment's engine, and the checked plan that they become.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::plan::{Launch, Plan};
use super::program;
use super::tunnel::Route;
use crate::harness::engine::EngineArgs;
use crate::harness::rundir::EngineManifest;

/// Where an engine that is started listens, as in the reference experiment.
const PORT: u16 = 8000;
/// Seconds until an engine must be ready, as in the reference experiment.
const READY_S: u64 = 600;
/// Seconds between asking an engine to end and killing it; a vLLM with Continuum writes its timestamps meanwhile.
const STOP_S: u64 = 60;
/// Seconds without a tunnel after which it is given up.
const PATIENCE_S: u64 = 600;
/// The remote end of a tunnel.
const REMOTE: &str = "127.0.0.1:8000";
/// Flags of `vllm serve` that the experiment sets from options of its own.
const OURS: [(&str, &str); 3] = [
    ("--port", "--engine-port"),
    ("--model", "--model-path"),
    ("--served-model-name", "--served-model"),
];

/// What serves the model. Each is also a key of the table `[engine]` in `experiment.toml`.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineOptions {
    /// What serves the model [default: running with --backend, vllm with --model-path, command with --engine-cmd,
    /// ssh with --ssh, else embedded]
    #[arg(long, help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Kind>,
    /// URL of an engine that runs already; it is left running
    #[arg(long, value_name = "URL", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Folder of the model that `vllm serve` loads, or that `{model}` in --engine-cmd stands for
    #[arg(long, value_name = "DIR", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_path: Option<PathBuf>,
    /// The `vllm` executable, or the folder of the environment that has it [default: from PATH]
    #[arg(long, value_name = "PATH", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vllm: Option<PathBuf>,
    /// Further argument of `vllm serve`, repeatable: --vllm-arg=--max-model-len=32768. It is put last, where it beats
    /// the reference experiment's (--enable-auto-tool-choice --tool-call-parser hermes --gpu-memory-utilization 0.95)
    #[arg(
        long,
        value_name = "ARG",
        allow_hyphen_values = true,
        help_heading = "Engine"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vllm_arg: Vec<String>,
    /// Name under which the model is asked for: given to an engine that is started, looked for in one that runs
    /// [default: the first that /v1/models lists]
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_model: Option<String>,
    /// Shell command that starts an engine and stays with it; `{port}`, `{model}` and `{run_dir}` are replaced, quoted
    /// where they need it. For an engine that schedules by itself, such as a vLLM with Continuum; play it with the
    /// policy `baseline`
    #[arg(long, value_name = "TEMPLATE", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_cmd: Option<String>,
    /// Local port of an engine that is started, or of the tunnel to a remote one; 0 takes a free one [default: 8000;
    /// for the embedded engine 0]
    #[arg(long, value_name = "PORT", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_port: Option<u16>,
    /// Seconds until /health and /v1/models must answer [default: 600]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_ready_s: Option<u64>,
    /// Seconds that an engine has to end before it is killed [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_stop_s: Option<u64>,
    /// Reach a remote engine through a tunnel by the system's ssh, which must log in without asking. With another
    /// --engine it only carries the --forward ports
    #[arg(long, value_name = "HOST", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// The remote engine, seen from the ssh host [default: 127.0.0.1:8000]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_remote: Option<String>,
    /// Further port to carry through the tunnel, repeatable: a local port and what it leads to, such as an expert
    #[arg(long, value_name = "PORT:HOST:PORT", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<String>,
    /// Further argument of ssh, repeatable: --ssh-arg=-J --ssh-arg=gateway
    #[arg(
        long,
        value_name = "ARG",
        allow_hyphen_values = true,
        help_heading = "Engine"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_arg: Vec<String>,
    /// Seconds without a connection after which the tunnel is given up [default: 600]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_patience_s: Option<u64>,
    /// The ssh to use [default: from PATH]
    #[arg(long, value_name = "PATH", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_program: Option<PathBuf>,
    /// The nvidia-smi to ask whether GPU memory is free again [default: from PATH, if it is there]
    #[arg(long, value_name = "PATH", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvidia_smi: Option<PathBuf>,
    /// Cost preset or file of the embedded engine [default: h100-qwen3-8b]
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// KV blocks of the embedded engine [default: 5301]
    #[arg(long, value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_blocks: Option<u32>,
    /// Tokens per KV block of the embedded engine [default: 16]
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Longest prompt and output together of the embedded engine [default: 40960]
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    /// Run seconds per machine second, for the embedded engine and the run's clock [default: 1]
    #[arg(long, value_name = "FACTOR", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speedup: Option<f64>,
}

/// Kinds of engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The modelled engine of this program: no GPU needed
    Embedded,
    /// One that runs already
    Running,
    /// `vllm serve`, started and ended by the experiment
    Vllm,
    /// A command, started and ended by the experiment
    Command,
    /// A remote one, through a tunnel
    Ssh,
}

impl Kind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Running => "running",
            Self::Vllm => "vllm",
            Self::Command => "command",
            Self::Ssh => "ssh",
        }
    }

    /// Whether its process is started and ended by the experiment.
    pub const fn is_owned(self) -> bool {
        matches!(self, Self::Embedded | Self::Vllm | Self::Command)
    }
}

impl EngineOptions {
    /// The kind that is asked for, or that the other options tell.
    pub fn kind(&self) -> Kind {
        let told = [
            (self.backend.is_some(), Kind::Running),
            (self.engine_cmd.is_some(), Kind::Command),
            (self.model_path.is_some(), Kind::Vllm),
            (self.ssh.is_some(), Kind::Ssh),
        ];
        let told = told.into_iter().find(|(given, _)| *given);
        let told = told.map(|(_, kind)| kind);
        self.engine.or(told).unwrap_or(Kind::Embedded)
    }

    /// Checks all of it, files and executables included; starts nothing.
    ///
    /// # Errors
    /// Every problem, each with the flag to mend.
    pub fn check(&self) -> Result<Plan, Vec<String>> {
        let mut problems = self.misplaced();
        let launch = self.launch(&mut problems);
        let routes = self.routes(&mut problems);
        let ssh = self.ssh_program(&mut problems);
        let nvidia_smi = self.nvidia_smi(&mut problems);
        let kvgate = crate::harness::child::own_executable()
            .map_err(|error| problems.push(format!("{error:#}")));
        if self.speedup.is_some_and(|s| !(s.is_finite() && s > 0.0)) {
            problems.push("--speedup: must be a positive number".to_owned());
        }
        let (Some(launch), Ok(kvgate), true) = (launch, kvgate, problems.is_empty()) else {
            return Err(problems);
        };
        let seconds = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
        Ok(Plan {
            kind: self.kind(),
            launch,
            served_model: self.served_model.clone(),
            port: self.port(),
            ready: seconds(self.engine_ready_s, READY_S),
            stop: seconds(self.engine_stop_s, STOP_S),
            ssh,
            routes,
            patience: seconds(self.ssh_patience_s, PATIENCE_S),
            speedup: self.speedup.unwrap_or(1.0),
            kvgate,
            nvidia_smi,
        })
    }

    fn port(&self) -> u16 {
        let default = match self.kind() {
            Kind::Embedded => 0,
            Kind::Running | Kind::Vllm | Kind::Command | Kind::Ssh => PORT,
        };
        self.engine_port.unwrap_or(default)
    }

    /// Flags that mean nothing to this kind of engine.
    fn misplaced(&self) -> Vec<String> {
        use Kind::{Command, Embedded, Ssh, Vllm};
        let kind = self.kind();
        let given = [
            ("--backend", self.backend.is_some(), &[Kind::Running][..]),
            ("--model-path", self.model_path.is_some(), &[Vllm, Command]),
            ("--vllm", self.vllm.is_some(), &[Vllm]),
            ("--vllm-arg", !self.vllm_arg.is_empty(), &[Vllm]),
            ("--engine-cmd", self.engine_cmd.is_some(), &[Command]),
            (
                "--engine-port",
                self.engine_port.is_some(),
                &[Embedded, Vllm, Command, Ssh],
            ),
            (
                "--engine-stop-s",
                self.engine_stop_s.is_some(),
                &[Vllm, Command],
            ),
            ("--ssh-remote", self.ssh_remote.is_some(), &[Ssh]),
            ("--cost", self.cost.is_some(), &[Embedded]),
            ("--kv-blocks", self.kv_blocks.is_some(), &[Embedded]),
            ("--block-size", self.block_size.is_some(), &[Embedded]),
            ("--max-model-len", self.max_model_len.is_some(), &[Embedded]),
            ("--speedup", self.speedup.is_some(), &[Embedded]),
        ];
        let mut problems: Vec<String> = given
            .into_iter()
            .filter(|(_, given, kinds)| *given && !kinds.contains(&kind))
            .map(|(flag, _, kinds)| {
                let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                let (names, kind) = (names.join(" or "), kind.name());
                format!("{flag} is for --engine {names}, not for {kind}; leave one of the two out")
            })
            .collect();
        problems.extend(self.without_ssh());
        problems
    }

    /// Options of a tunnel that leads nowhere.
    fn without_ssh(&self) -> Vec<String> {
        let given = [
            ("--forward", !self.forward.is_empty()),
            ("--ssh-arg", !self.ssh_arg.is_empty()),
            ("--ssh-patience-s", self.ssh_patience_s.is_some()),
            ("--ssh-program", self.ssh_program.is_some()),
        ];
        if self.ssh.is_none() {
            let given = given.into_iter().filter(|(_, given)| *given);
            return given
                .map(|(flag, _)| format!("{flag} needs --ssh HOST"))
                .collect();
        }
        if self.kind() != Kind::Ssh && self.forward.is_empty() {
            let kind = self.kind().name();
            return vec![format!(
                "--ssh: nothing goes through a tunnel with --engine {kind}; add --forward, or leave it out"
            )];
        }
        Vec::new()
    }

    fn launch(&self, problems: &mut Vec<String>) -> Option<Launch> {
        let launch = match self.kind() {
            Kind::Embedded => self.embedded(),
            Kind::Running => self.running(),
            Kind::Vllm => return self.vllm(problems),
            Kind::Command => return self.command(problems),
            Kind::Ssh => match self.ssh {
                Some(_) => Ok(Launch::Remote),
                None => Err("--engine ssh needs --ssh HOST".to_owned()),
            },
        };
        launch.map_err(|problem| problems.push(problem)).ok()
    }

    fn embedded(&self) -> Result<Launch, String> {
        let mut words = Vec::new();
        let mut add = |flag: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{flag}={value}")));
        };
        add("--model", self.served_model.clone());
        add("--cost", self.cost.clone());
        add("--kv-blocks", self.kv_blocks.map(|n| n.to_string()));
        add("--block-size", self.block_size.map(|n| n.to_string()));
        add("--max-model-len", self.max_model_len.map(|n| n.to_string()));
        add("--speedup", self.speedup.map(|n| n.to_string()));
        let config = EngineArgs::of_words(&words).and_then(|args| {
            let cost = args.cost.clone();
            Ok((cost, args.into_config()?.core))
        });
        let (cost, core) = config.map_err(|error| format!("{error:#}"))?;
        let manifest = EngineManifest {
            cost,
            kv_blocks: core.blocks,
            block_size: core.block_size,
        };
        Ok(Launch::Embedded {
            args: words,
            manifest,
        })
    }

    fn running(&self) -> Result<Launch, String> {
        let Some(backend) = &self.backend else {
            return Err("--engine running needs --backend URL".to_owned());
        };
        let hint = "write it as http://HOST:PORT";
        let url = reqwest::Url::parse(backend)
            .map_err(|error| format!("--backend {backend}: {error}; {hint}"))?;
        if url.scheme() != "http" || url.path() != "/" || url.query().is_some() {
            return Err(format!(
                "--backend {backend}: must be plain HTTP, without a path; {hint}"
            ));
        }
        let url = backend.trim_end_matches('/').to_owned();
        Ok(Launch::Running { url })
    }

    fn vllm(&self, problems: &mut Vec<String>) -> Option<Launch> {
        let model = self.model(problems);
        if self.model_path.is_none() {
            problems.push("--engine vllm needs --model-path DIR".to_owned());
        }
        for argument in &self.vllm_arg {
            let name = argument.split('=').next().unwrap_or_default();
            if let Some((_, flag)) = OURS.iter().find(|(ours, _)| *ours == name) {
                problems.push(format!("--vllm-arg {argument}: give {flag} instead"));
            }
        }
        let found = match &self.vllm {
            Some(path) if path.is_dir() => program::check(&path.join("bin/vllm")),
            Some(path) => program::check(path),
            None => program::find("vllm").ok_or_else(|| "vllm is not in PATH".to_owned()),
        };
        let program = found
            .map_err(|problem| problems.push(format!("--vllm: {problem}")))
            .ok()?;
        Some(Launch::Vllm {
            program,
            model: model?,
            args: self.vllm_arg.clone(),
        })
    }

    fn command(&self, problems: &mut Vec<String>) -> Option<Launch> {
        let Some(template) = &self.engine_cmd else {
            problems.push("--engine command needs --engine-cmd TEMPLATE".to_owned());
            return None;
        };
        let model = self.model(problems);
        let named = model.as_ref().map(|path| path.display().to_string());
        let model = named.or_else(|| self.served_model.clone());
        if template.contains("{model}") && model.is_none() && self.model_path.is_none() {
            problems.push("--engine-cmd: {model} needs --model-path or --served-model".to_owned());
        }
        if self.port() == 0 && !template.contains("{port}") {
            problems.push("--engine-cmd: --engine-port 0 needs {port} in it".to_owned());
        }
        if template.trim().is_empty() {
            problems.push("--engine-cmd is empty".to_owned());
        }
        Some(Launch::Command {
            template: template.clone(),
            model: model.unwrap_or_default(),
        })
    }

    fn model(&self, problems: &mut Vec<String>) -> Option<PathBuf> {
        let path = self.model_path.as_deref()?;
        if !path.is_dir() {
            problems.push(format!("--model-path {}: no such folder", path.display()));
            return None;
        }
        if !path.join("config.json").is_file() {
            let path = path.display();
            problems.push(format!(
                "--model-path {path}: no model, it has no config.json"
            ));
        }
        Some(path.to_owned())
    }

    /// Everything that goes through the tunnel but the engine itself, whose local port may have to be chosen.
    fn routes(&self, problems: &mut Vec<String>) -> Vec<Route> {
        let mut routes = Vec::new();
        for text in &self.forward {
            match Route::parse(text) {
                Ok(route) => routes.push(route),
                Err(problem) => problems.push(format!("--forward {text}: {problem}")),
            }
        }
        routes
    }

    fn ssh_program(&self, problems: &mut Vec<String>) -> Option<super::tunnel::Ssh> {
        let host = self.ssh.clone()?;
        if host.starts_with('-') || host.is_empty() {
            problems.push(format!("--ssh {host}: not the name of a host"));
        }
        let remote = self.ssh_remote.as_deref().unwrap_or(REMOTE);
        if let Err(problem) = Route::parse(&format!("1:{remote}")) {
            problems.push(format!("--ssh-remote {remote}: {problem}"));
        }
        let found = match &self.ssh_program {
            Some(path) => program::check(path),
            None => program::find("ssh").ok_or_else(|| "ssh is not in PATH".to_owned()),
        };
        let program = found
            .map_err(|problem| problems.push(format!("--ssh: {problem}")))
            .ok()?;
        Some(super::tunnel::Ssh {
            program,
            host,
            args: self.ssh_arg.clone(),
            remote: remote.to_owned(),
        })
    }

    fn nvidia_smi(&self, problems: &mut Vec<String>) -> Option<PathBuf> {
        let given = self.nvidia_smi.as_deref().map(program::check);
        given.map_or_else(
            || program::find("nvidia-smi"),
            |checked| {
                checked
                    .map_err(|problem| problems.push(format!("--nvidia-smi: {problem}")))
                    .ok()
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(options: &EngineOptions) -> String {
        options.check().unwrap_err().join("\n")
    }

    #[test]
    fn the_kind_follows_from_what_is_given() {
        let kind = |fill: fn(&mut EngineOptions)| {
            let mut options = EngineOptions::default();
            fill(&mut options);
            options.kind()
        };
        assert_eq!(kind(|_| ()), Kind::Embedded);
        assert_eq!(kind(|it| it.backend = Some(String::new())), Kind::Running);
        assert_eq!(kind(|it| it.model_path = Some(PathBuf::new())), Kind::Vllm);
        assert_eq!(kind(|it| it.ssh = Some(String::new())), Kind::Ssh);
        assert_eq!(
            kind(|it| {
                it.engine_cmd = Some(String::new());
                it.model_path = Some(PathBuf::new());
            }),
            Kind::Command
        );
        assert_eq!(
            kind(|it| {
                it.ssh = Some(String::new());
                it.engine = Some(Kind::Embedded);
            }),
            Kind::Embedded
        );
    }

    #[test]
    fn every_problem_is_named_at_once_with_its_flag() {
        let options = EngineOptions {
            engine: Some(Kind::Vllm),
            model_path: Some("/no/model".into()),
            vllm: Some("/no/vllm".into()),
            vllm_arg: vec!["--port=1".to_owned()],
            forward: vec!["1910".to_owned()],
            cost: Some("h100-qwen3-8b".to_owned()),
            nvidia_smi: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()),
            ..EngineOptions::default()
        };
        let problems = problems(&options);
        for part in [
            "--model-path /no/model: no such folder",
            "--vllm: /no/vllm does not exist",
            "--vllm-arg --port=1: give --engine-port instead",
            "--forward needs --ssh HOST",
            "--forward 1910: write it as PORT:HOST:PORT",
            "--cost is for --engine embedded, not for vllm",
            "Cargo.toml is not an executable file",
        ] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }

    #[test]
    fn a_backend_is_the_address_of_a_server() {
        for backend in [
            "127.0.0.1:8000",
            "https://there",
            "http://there:8000/v1",
            "x",
        ] {
            let options = EngineOptions {
                backend: Some(backend.to_owned()),
                ..EngineOptions::default()
            };
            let problems = problems(&options);
            assert!(problems.contains("http://HOST:PORT"), "{problems}");
        }
        let options = EngineOptions {
            backend: Some("http://there:8000/".to_owned()),
            ..EngineOptions::default()
        };
        let plan = options.check().unwrap();
        assert_eq!(plan.running_url(), Some("http://there:8000"));
    }

    #[test]
    fn the_embedded_engines_own_rules_hold_before_it_starts() {
        let options = EngineOptions {
            kv_blocks: Some(100),
            ..EngineOptions::default()
        };
        assert!(problems(&options).contains("--kv-blocks: 1584 usable tokens"));
        let plan = EngineOptions::default().check().unwrap();
        assert_eq!(plan.manifest().unwrap().kv_blocks, 5_301);
    }

    #[test]
    fn a_template_without_what_it_needs_is_refused() {
        let options = EngineOptions {
            engine_cmd: Some("serve {model}".to_owned()),
            engine_port: Some(0),
            ..EngineOptions::default()
        };
        let problems = problems(&options);
        assert!(
            problems.contains("{model} needs --model-path"),
            "{problems}"
        );
        assert!(problems.contains("needs {port} in it"), "{problems}");
    }

    #[test]
    fn what_is_not_given_is_not_in_the_file_and_the_rest_reads_back() {
        let options = EngineOptions {
            engine: Some(Kind::Embedded),
            speedup: Some(60.0),
            vllm_arg: vec!["--dtype=float32".to_owned()],
            ..EngineOptions::default()
        };
        let text = toml::to_string(&options).unwrap();
        assert_eq!(
            text,
            "engine = \"embedded\"\nvllm_arg = [\"--dtype=float32\"]\nspeedup = 60.0\n"
        );
        assert_eq!(toml::from_str::<EngineOptions>(&text).unwrap(), options);
        assert!(toml::from_str::<EngineOptions>("port = 1").is_err());
    }
}
