//! From flags, environment and file to a checked [`proxy::Config`].
//!
//! One struct, [`ServeOptions`], is the command line, the environment and the TOML file at once, so that no
//! option can exist in one and not in the others. A flag beats its `KVGATE_*` variable, which beats the file,
//! which beats the default. Unknown keys are refused; a wrong value is one line that names the key and the fix.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::policy;
use crate::proxy::backend::BackendUrl;
use crate::proxy::identity::Source;
use crate::proxy;

/// A configuration that cannot be used: one line, naming the key and the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Options of `kvgate serve`, as typed. Each is also a key of the configuration file and a `KVGATE_*` variable.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ServeOptions {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:1900]
    #[arg(long, env = "KVGATE_LISTEN", value_name = "ADDR", help_heading = "Where")]
    pub listen: Option<String>,

    /// A vLLM server's root URL, such as `http://127.0.0.1:8000`; repeat for several
    #[arg(long, env = "KVGATE_BACKEND", value_name = "URL", value_delimiter = ',', help_heading = "Where")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<String>,

    /// Scheduling policy; README.md says when each is worse [default: baseline]
    #[arg(long, env = "KVGATE_POLICY", value_name = "NAME", help_heading = "Scheduling")]
    pub policy: Option<String>,

    /// Where requests name their program, in order; `header:NAME` or `body:KEY.KEY`, comma-separated
    #[arg(long, env = "KVGATE_IDENTITY", value_name = "SOURCE", value_delimiter = ',', help_heading = "Scheduling")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<String>,

    /// Release a program after this many seconds without a request [default: 3600]
    #[arg(long, env = "KVGATE_PROGRAM_IDLE", value_name = "SECONDS", help_heading = "Scheduling")]
    pub program_idle: Option<f64>,

    /// The most programs known at once; beyond, the longest idle one is forgotten [default: 200000]
    #[arg(long, env = "KVGATE_MAX_PROGRAMS", value_name = "N", help_heading = "Scheduling")]
    pub max_programs: Option<usize>,

    /// Directory for steps.jsonl and the KV samples; nothing is recorded without it
    #[arg(long, env = "KVGATE_RUN_DIR", value_name = "DIR", help_heading = "Telemetry")]
    pub run_dir: Option<PathBuf>,

    /// Seconds between written samples, at least 0.1 [default: 5]
    #[arg(long, env = "KVGATE_SAMPLE_INTERVAL", value_name = "SECONDS", help_heading = "Telemetry")]
    pub sample_interval: Option<f64>,

    /// Seconds between scrapes of each backend's /metrics, at least 0.1 [default: 0.5]
    #[arg(long, env = "KVGATE_SCRAPE_INTERVAL", value_name = "SECONDS", help_heading = "Telemetry")]
    pub scrape_interval: Option<f64>,

    /// Ask for usage in streams whose client did not, and hide the extra frame [default: true]
    #[arg(long, env = "KVGATE_ASK_FOR_USAGE", value_name = "BOOL", help_heading = "Telemetry")]
    pub ask_for_usage: Option<bool>,

    /// Largest request body in bytes; a larger one gets status 413 [default: 67108864]
    #[arg(long, env = "KVGATE_MAX_BODY", value_name = "BYTES", help_heading = "Limits")]
    pub max_body: Option<usize>,

    /// Refuse generation requests that name no model [default: true]
    #[arg(long, env = "KVGATE_REQUIRE_MODEL", value_name = "BOOL", help_heading = "Limits")]
    pub require_model: Option<bool>,

    /// Seconds to wait for a connection to a backend [default: 5]
    #[arg(long, env = "KVGATE_CONNECT_TIMEOUT", value_name = "SECONDS", help_heading = "Limits")]
    pub connect_timeout: Option<f64>,

    /// Seconds a backend may take to begin its response; a hold does not count [default: 900]
    #[arg(long, env = "KVGATE_FIRST_BYTE_TIMEOUT", value_name = "SECONDS", help_heading = "Limits")]
    pub first_byte_timeout: Option<f64>,

    /// Seconds a backend may be silent in the middle of a response [default: 300]
    #[arg(long, env = "KVGATE_IDLE_TIMEOUT", value_name = "SECONDS", help_heading = "Limits")]
    pub idle_timeout: Option<f64>,

    /// Seconds a connection to a backend may idle and still be used; keep it under vLLM's 5 [default: 3]
    #[arg(long, env = "KVGATE_UPSTREAM_IDLE", value_name = "SECONDS", help_heading = "Limits")]
    pub upstream_idle: Option<f64>,

    /// Seconds a client's connection may idle [default: 300]
    #[arg(long, env = "KVGATE_CLIENT_IDLE", value_name = "SECONDS", help_heading = "Limits")]
    pub client_idle: Option<f64>,

    /// The most client connections; more wait in the backlog [default: 65536]
    #[arg(long, env = "KVGATE_MAX_CONNECTIONS", value_name = "N", help_heading = "Limits")]
    pub max_connections: Option<usize>,

    /// On SIGTERM: seconds to keep serving after /health turned 503 [default: 1]
    #[arg(long, env = "KVGATE_DRAIN_SETTLE", value_name = "SECONDS", help_heading = "Shutdown")]
    pub drain_settle: Option<f64>,

    /// On SIGTERM: seconds for held and running requests to finish [default: 30]
    #[arg(long, env = "KVGATE_DRAIN_TIMEOUT", value_name = "SECONDS", help_heading = "Shutdown")]
    pub drain_timeout: Option<f64>,

    /// Seconds of the run per second of the machine, for an engine sped up by the same factor [default: 1]
    #[arg(long, env = "KVGATE_TIME_SCALE", value_name = "N", help_heading = "Experiments")]
    pub time_scale: Option<f64>,

    /// Unix time at which the run began, shared by its processes [default: now]
    #[arg(long, env = "KVGATE_TIME_EPOCH", value_name = "SECONDS", help_heading = "Experiments")]
    pub time_epoch: Option<f64>,
}

/// A configuration file: the options, and a table for each policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    #[serde(flatten)]
    rest: toml::Table,
}

/// Options merged from every source, and the policy's own table.
#[derive(Clone, Debug)]
pub struct Effective {
    options: ServeOptions,
    policy: policy::Config,
}

impl Effective {
    /// Merges `typed` (flags and environment) over the file at `path`, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key or policy, a value of the wrong type or out of range.
    pub fn load(typed: ServeOptions, path: Option<&Path>) -> Result<Self, ConfigError> {
        let mut file = match path {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let mut tables = toml::Table::new();
        for name in policy::Config::NAMES {
            if let Some(table) = file.rest.remove(name) {
                tables.insert(name.to_owned(), table);
            }
        }
        let from_file: ServeOptions =
            file.rest.try_into().map_err(|error: toml::de::Error| explain(path, error.message()))?;
        let options = typed.or(from_file);
        let name = options.policy.as_deref().unwrap_or(policy::baseline::NAME);
        let policy = policy_config(name, tables.remove(name), path)?;
        Ok(Self { options, policy })
    }

    /// The checked configuration.
    ///
    /// # Errors
    /// The first value that cannot be used, by key.
    pub fn check(&self) -> Result<proxy::Config, ConfigError> {
        let options = &self.options;
        let default = proxy::Config::default();
        let config = proxy::Config {
            listen: listen(options.listen.as_deref(), default.listen)?,
            backends: parse_all("backend", &options.backend)?,
            policy: self.policy.clone(),
            identity: match options.identity.as_slice() {
                [] => default.identity,
                sources => parse_all::<Source>("identity", sources)?,
            },
            run_dir: options.run_dir.clone(),
            sample_interval: seconds("sample-interval", options.sample_interval, default.sample_interval, 0.1)?,
            scrape_interval: seconds("scrape-interval", options.scrape_interval, default.scrape_interval, 0.1)?,
            max_body: at_least_one("max-body", options.max_body, default.max_body)?,
            require_model: options.require_model.unwrap_or(default.require_model),
            ask_for_usage: options.ask_for_usage.unwrap_or(default.ask_for_usage),
            connect_timeout: seconds("connect-timeout", options.connect_timeout, default.connect_timeout, 0.001)?,
            upstream_idle: seconds("upstream-idle", options.upstream_idle, default.upstream_idle, 0.0)?,
            first_byte_timeout: seconds(
                "first-byte-timeout",
                options.first_byte_timeout,
                default.first_byte_timeout,
                0.001,
            )?,
            idle_timeout: seconds("idle-timeout", options.idle_timeout, default.idle_timeout, 0.001)?,
            client_idle: seconds("client-idle", options.client_idle, default.client_idle, 0.001)?,
            max_connections: at_least_one("max-connections", options.max_connections, default.max_connections)?,
            drain_settle: seconds("drain-settle", options.drain_settle, default.drain_settle, 0.0)?,
            drain_timeout: seconds("drain-timeout", options.drain_timeout, default.drain_timeout, 0.0)?,
            program_idle: seconds("program-idle", options.program_idle, default.program_idle, 0.001)?,
            max_programs: at_least_one("max-programs", options.max_programs, default.max_programs)?,
            time_scale: scale(options.time_scale)?,
            time_epoch: options.time_epoch,
        };
        if config.backends.is_empty() {
            return Err(ConfigError::new("backend: none is given; add --backend http://HOST:PORT"));
        }
        Ok(config)
    }

    /// The effective configuration as a file that gives the same one.
    ///
    /// # Errors
    /// As [`Effective::check`].
    pub fn print(&self) -> Result<String, ConfigError> {
        let config = self.check()?;
        let broken = |error: toml::ser::Error| ConfigError::new(error.to_string());
        let mut text = toml::to_string(&ServeOptions::from(&config)).map_err(broken)?;
        let table = toml::Value::try_from(&config.policy).map_err(broken)?;
        if table.as_table().is_some_and(|table| !table.is_empty()) {
            text += &format!("\n[{}]\n", config.policy.name());
            text += &toml::to_string(&table).map_err(broken)?;
        }
        Ok(text)
    }
}

impl ServeOptions {
    /// These options where they are given, `other`'s elsewhere.
    #[must_use]
    fn or(self, other: Self) -> Self {
        let list = |own: Vec<String>, other| if own.is_empty() { other } else { own };
        Self {
            listen: self.listen.or(other.listen),
            backend: list(self.backend, other.backend),
            policy: self.policy.or(other.policy),
            identity: list(self.identity, other.identity),
            program_idle: self.program_idle.or(other.program_idle),
            max_programs: self.max_programs.or(other.max_programs),
            run_dir: self.run_dir.or(other.run_dir),
            sample_interval: self.sample_interval.or(other.sample_interval),
            scrape_interval: self.scrape_interval.or(other.scrape_interval),
            ask_for_usage: self.ask_for_usage.or(other.ask_for_usage),
            max_body: self.max_body.or(other.max_body),
            require_model: self.require_model.or(other.require_model),
            connect_timeout: self.connect_timeout.or(other.connect_timeout),
            first_byte_timeout: self.first_byte_timeout.or(other.first_byte_timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            upstream_idle: self.upstream_idle.or(other.upstream_idle),
            client_idle: self.client_idle.or(other.client_idle),
            max_connections: self.max_connections.or(other.max_connections),
            drain_settle: self.drain_settle.or(other.drain_settle),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
            time_scale: self.time_scale.or(other.time_scale),
            time_epoch: self.time_epoch.or(other.time_epoch),
        }
    }
}

impl From<&proxy::Config> for ServeOptions {
    fn from(config: &proxy::Config) -> Self {
        let seconds = |duration: Duration| Some(duration.as_secs_f64());
        Self {
            listen: Some(config.listen.to_string()),
            backend: config.backends.iter().map(ToString::to_string).collect(),
            policy: Some(config.policy.name().to_owned()),
            identity: config.identity.iter().map(ToString::to_string).collect(),
            program_idle: seconds(config.program_idle),
            max_programs: Some(config.max_programs),
            run_dir: config.run_dir.clone(),
            sample_interval: seconds(config.sample_interval),
            scrape_interval: seconds(config.scrape_interval),
            ask_for_usage: Some(config.ask_for_usage),
            max_body: Some(config.max_body),
            require_model: Some(config.require_model),
            connect_timeout: seconds(config.connect_timeout),
            first_byte_timeout: seconds(config.first_byte_timeout),
            idle_timeout: seconds(config.idle_timeout),
            upstream_idle: seconds(config.upstream_idle),
            client_idle: seconds(config.client_idle),
            max_connections: Some(config.max_connections),
            drain_settle: seconds(config.drain_settle),
            drain_timeout: seconds(config.drain_timeout),
            time_scale: Some(config.time_scale),
            time_epoch: config.time_epoch,
        }
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError::new(format!("config file {}: {error}; check --config", path.display())))?;
    toml::from_str(&text).map_err(|error| explain(Some(path), &error.to_string().replace('\n', " ")))
}

fn explain(path: Option<&Path>, problem: &str) -> ConfigError {
    let place = path.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
    // The deserialiser names the key and lists those it knows.
    ConfigError::new(format!("{place}: {}", problem.trim()))
}

fn policy_config(
    name: &str,
    table: Option<toml::Value>,
    path: Option<&Path>,
) -> Result<policy::Config, ConfigError> {
    let table = table.unwrap_or_else(|| toml::Value::Table(toml::Table::new()));
    let config = policy::Config::deserialize(name, table)
        .map_err(|error| explain(path, &format!("policy {name}: {}", error.message())))?;
    config.validate().map_err(ConfigError::new)?;
    Ok(config)
}

fn listen(text: Option<&str>, default: SocketAddr) -> Result<SocketAddr, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    text.parse().map_err(|_| {
        ConfigError::new(format!("listen: {text:?} is not an address; write IP:PORT, such as 127.0.0.1:1900"))
    })
}

fn parse_all<T: std::str::FromStr<Err: std::fmt::Display>>(key: &str, texts: &[String]) -> Result<Vec<T>, ConfigError> {
    let parse = |text: &String| text.parse().map_err(|error| ConfigError::new(format!("{key}: {error}")));
    texts.iter().map(parse).collect()
}

fn seconds(key: &str, value: Option<f64>, default: Duration, least: f64) -> Result<Duration, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if value >= least => Ok(duration),
        Ok(_) | Err(_) => Err(ConfigError::new(format!("{key}: {value} is too small or no number; write seconds, at least {least}"))),
    }
}

fn at_least_one(key: &str, value: Option<usize>, default: usize) -> Result<usize, ConfigError> {
    match value {
        Some(0) => Err(ConfigError::new(format!("{key}: 0 would refuse everything; write 1 or more"))),
        value => Ok(value.unwrap_or(default)),
    }
}

fn scale(value: Option<f64>) -> Result<f64, ConfigError> {
    match value {
        None => Ok(1.0),
        Some(scale) if scale.is_finite() && (0.001..=10_000.0).contains(&scale) => Ok(scale),
        Some(scale) => Err(ConfigError::new(format!("time-scale: {scale} is out of range; write 0.001 to 10000"))),
    }
}

/// The backends a configuration names, for messages.
pub fn backend_names(backends: &[BackendUrl]) -> String {
    backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
