//! From flags, environment and file to a checked [`proxy::Config`].
//!
//! One struct, [`ServeOptions`], is the command line, the environment and the TOML file at once, so that no
//! option can exist in one and not in the others. A flag beats its `KVGATE_*` variable, which beats the file,
//! which beats the default. Unknown keys are refused; a wrong value is one line that names the key and the fix.

mod routes;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::policy;
use crate::proxy;
use values::{MAX_SECONDS, count, parse_all, seconds};

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
#[serde(deny_unknown_fields, default)]
pub struct ServeOptions {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:1900]
    #[arg(
        long,
        env = "KVGATE_LISTEN",
        value_name = "ADDR",
        help_heading = "Where"
    )]
    pub listen: Option<String>,

    /// A vLLM server's root URL, such as `http://127.0.0.1:8000`; repeat for several
    #[arg(
        long,
        env = "KVGATE_BACKEND",
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "Where"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<String>,

    /// Requests of MODEL, a name or a glob such as `gpt-*`, go to another OpenAI endpoint, recorded but not scheduled: MODEL=URL, repeated for several; MODEL=stand-in:PRESET is answered by the gate after a drawn latency (expert, expert-qwen3-32b, user, judge), MODEL=scheduled:SERVED goes to the backends under that name. Keys and more in the file's [routes.MODEL]
    #[arg(
        long,
        env = "KVGATE_ROUTE",
        value_name = "MODEL=TARGET",
        value_delimiter = ',',
        help_heading = "Where"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<String>,

    /// Scheduling policy; README.md says when each is worse [default: kvgate]
    #[arg(
        long,
        env = "KVGATE_POLICY",
        value_name = "NAME",
        help_heading = "Scheduling"
    )]
    pub policy: Option<String>,

    /// Where requests name their program, in order; `header:NAME` or `body:KEY.KEY`, comma-separated
    #[arg(
        long,
        env = "KVGATE_IDENTITY",
        value_name = "SOURCE",
        value_delimiter = ',',
        help_heading = "Scheduling"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<String>,

    /// Recognise the programs of chat clients that name none by their message history [default: false]
    #[arg(
        long,
        env = "KVGATE_INFER_PROGRAMS",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Scheduling"
    )]
    pub infer_programs: Option<bool>,

    /// Send the ranking of `continuum` as `priority`, for a vLLM with `--scheduling-policy priority`: others ignore it or answer an error; a request's own stays [default: false]
    #[arg(
        long,
        env = "KVGATE_FORWARD_PRIORITY",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Scheduling"
    )]
    pub forward_priority: Option<bool>,

    /// Release a program after this many seconds without a request [default: 3600]
    #[arg(
        long,
        env = "KVGATE_PROGRAM_IDLE",
        value_name = "SECONDS",
        help_heading = "Scheduling"
    )]
    pub program_idle: Option<f64>,

    /// The most programs known at once; beyond, the longest idle one is forgotten [default: 200000]
    #[arg(
        long,
        env = "KVGATE_MAX_PROGRAMS",
        value_name = "N",
        help_heading = "Scheduling"
    )]
    pub max_programs: Option<usize>,

    /// Directory for steps.jsonl and the KV samples; nothing is recorded without it
    #[arg(
        long,
        env = "KVGATE_RUN_DIR",
        value_name = "DIR",
        help_heading = "Telemetry"
    )]
    pub run_dir: Option<PathBuf>,

    /// File for every event the policy is told and every decision it makes; `kvgate journal replay` reads it
    #[arg(
        long,
        env = "KVGATE_JOURNAL",
        value_name = "FILE",
        help_heading = "Telemetry"
    )]
    pub journal: Option<PathBuf>,

    /// Secret that `PUT /policy` must carry as `Authorization: Bearer`; without it anybody may switch policies
    #[arg(
        long,
        env = "KVGATE_ADMIN_TOKEN",
        value_name = "SECRET",
        hide_env_values = true,
        help_heading = "Limits"
    )]
    pub admin_token: Option<String>,

    /// Seconds between written samples, at least 0.1 [default: 5]
    #[arg(
        long,
        env = "KVGATE_SAMPLE_INTERVAL",
        value_name = "SECONDS",
        help_heading = "Telemetry"
    )]
    pub sample_interval: Option<f64>,

    /// Seconds between scrapes of each backend's /metrics, at least 0.1 [default: 0.5]
    #[arg(
        long,
        env = "KVGATE_SCRAPE_INTERVAL",
        value_name = "SECONDS",
        help_heading = "Telemetry"
    )]
    pub scrape_interval: Option<f64>,

    /// Ask for usage in streams whose client did not, and hide the extra frame [default: true]
    #[arg(
        long,
        env = "KVGATE_ASK_FOR_USAGE",
        value_name = "BOOL",
        help_heading = "Telemetry"
    )]
    pub ask_for_usage: Option<bool>,

    /// Largest request body in bytes; a larger one gets status 413 [default: 67108864]
    #[arg(
        long,
        env = "KVGATE_MAX_BODY",
        value_name = "BYTES",
        help_heading = "Limits"
    )]
    pub max_body: Option<usize>,

    /// Refuse generation requests that name no model [default: true]
    #[arg(
        long,
        env = "KVGATE_REQUIRE_MODEL",
        value_name = "BOOL",
        help_heading = "Limits"
    )]
    pub require_model: Option<bool>,

    /// Seconds to wait for a connection to a backend [default: 5]
    #[arg(
        long,
        env = "KVGATE_CONNECT_TIMEOUT",
        value_name = "SECONDS",
        help_heading = "Limits"
    )]
    pub connect_timeout: Option<f64>,

    /// Seconds a backend may take to begin its response; a hold does not count [default: 900]
    #[arg(
        long,
        env = "KVGATE_FIRST_BYTE_TIMEOUT",
        value_name = "SECONDS",
        help_heading = "Limits"
    )]
    pub first_byte_timeout: Option<f64>,

    /// Seconds a backend may be silent in the middle of a response [default: 300]
    #[arg(
        long,
        env = "KVGATE_IDLE_TIMEOUT",
        value_name = "SECONDS",
        help_heading = "Limits"
    )]
    pub idle_timeout: Option<f64>,

    /// Seconds a connection to a backend may idle and still be used; keep it under vLLM's 5 [default: 3]
    #[arg(
        long,
        env = "KVGATE_UPSTREAM_IDLE",
        value_name = "SECONDS",
        help_heading = "Limits"
    )]
    pub upstream_idle: Option<f64>,

    /// Seconds a client's connection may idle [default: 300]
    #[arg(
        long,
        env = "KVGATE_CLIENT_IDLE",
        value_name = "SECONDS",
        help_heading = "Limits"
    )]
    pub client_idle: Option<f64>,

    /// The most client connections; more wait in the backlog [default: 65536]
    #[arg(
        long,
        env = "KVGATE_MAX_CONNECTIONS",
        value_name = "N",
        help_heading = "Limits"
    )]
    pub max_connections: Option<usize>,

    /// On SIGTERM: seconds to keep serving after /health turned 503 [default: 1]
    #[arg(
        long,
        env = "KVGATE_DRAIN_SETTLE",
        value_name = "SECONDS",
        help_heading = "Shutdown"
    )]
    pub drain_settle: Option<f64>,

    /// On SIGTERM: seconds for held and running requests to finish [default: 30]
    #[arg(
        long,
        env = "KVGATE_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        help_heading = "Shutdown"
    )]
    pub drain_timeout: Option<f64>,

    /// Seconds of the run per second of the machine, for an engine sped up by the same factor [default: 1]
    #[arg(
        long,
        env = "KVGATE_TIME_SCALE",
        value_name = "N",
        help_heading = "Experiments"
    )]
    pub time_scale: Option<f64>,

    /// Unix time at which the run began, shared by its processes [default: now]
    #[arg(
        long,
        env = "KVGATE_TIME_EPOCH",
        value_name = "SECONDS",
        help_heading = "Experiments"
    )]
    pub time_epoch: Option<f64>,
}

/// Options merged from every source, the policy's own table, and the routes.
#[derive(Clone, Debug)]
pub struct Effective {
    options: ServeOptions,
    policy: policy::Config,
    routes: routes::Table,
}

impl Effective {
    /// Merges `typed` (flags and environment) over the file at `path`, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key or policy, a value of the wrong type or out of range.
    pub fn load(typed: &ServeOptions, path: Option<&Path>) -> Result<Self, ConfigError> {
        let mut table = path.map_or_else(|| Ok(toml::Table::new()), read)?;
        let mut policies: Vec<_> = policy::Config::NAMES
            .map(|name| (name, table.remove(name)))
            .into();
        let written = table.remove("routes");
        let typed =
            toml::Table::try_from(typed).map_err(|error| ConfigError::new(error.to_string()))?;
        table.extend(typed);
        let options: ServeOptions = table
            .try_into()
            .map_err(|error: toml::de::Error| explain(path, &error.to_string()))?;
        let routes = routes::merge(written, &options.route)
            .map_err(|error| explain(path, &error.to_string()))?;
        let default = policy::Config::default().name();
        let name = options.policy.as_deref().unwrap_or(default);
        let own = policies
            .iter_mut()
            .find(|(known, _)| *known == name)
            .and_then(|(_, table)| table.take());
        let policy = policy_config(name, own, path)?;
        // A typing error in the table of another policy would show only on the day that one is chosen.
        for (name, table) in policies {
            if table.is_some() {
                policy_config(name, table, path)?;
            }
        }
        Ok(Self {
            options,
            policy,
            routes,
        })
    }

    /// The checked configuration.
    ///
    /// # Errors
    /// The first value that cannot be used, by key.
    pub fn check(&self) -> Result<proxy::Config, ConfigError> {
        let mut config = proxy::Config {
            policy: self.policy.clone(),
            ..proxy::Config::default()
        };
        self.options.set_where(&mut config)?;
        self.options.set_limits(&mut config)?;
        self.options.set_timeouts(&mut config)?;
        self.options.set_telemetry(&mut config)?;
        config.routes = routes::check(&self.routes, &|variable| std::env::var(variable).ok())?;
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
            let section = toml::Table::from_iter([(config.policy.name().to_owned(), table)]);
            text.push('\n');
            text += &toml::to_string(&section).map_err(broken)?;
        }
        if !self.routes.is_empty() {
            let section = BTreeMap::from([("routes", &self.routes)]);
            text.push('\n');
            text += &toml::to_string(&section).map_err(broken)?;
        }
        Ok(text)
    }
}

impl ServeOptions {
    fn set_where(&self, config: &mut proxy::Config) -> Result<(), ConfigError> {
        if let Some(text) = &self.listen {
            config.listen = text.parse().map_err(|_| {
                ConfigError::new(format!(
                    "listen: {text:?} is not an address; write IP:PORT, such as 127.0.0.1:1900"
                ))
            })?;
        }
        config.backends = parse_all("backend", &self.backend)?;
        if config.backends.is_empty() {
            return Err(ConfigError::new(
                "backend: none is given; add --backend http://HOST:PORT",
            ));
        }
        if !self.identity.is_empty() {
            config.identity = parse_all("identity", &self.identity)?;
        }
        config.infer_programs = self.infer_programs.unwrap_or(config.infer_programs);
        config.forward_priority = self.forward_priority.unwrap_or(config.forward_priority);
        config.run_dir.clone_from(&self.run_dir);
        config.journal.clone_from(&self.journal);
        config.admin_token.clone_from(&self.admin_token);
        Ok(())
    }

    fn set_limits(&self, config: &mut proxy::Config) -> Result<(), ConfigError> {
        count("max_body", self.max_body, &mut config.max_body)?;
        count(
            "max_connections",
            self.max_connections,
            &mut config.max_connections,
        )?;
        count("max_programs", self.max_programs, &mut config.max_programs)?;
        config.require_model = self.require_model.unwrap_or(config.require_model);
        Ok(())
    }

    fn set_timeouts(&self, config: &mut proxy::Config) -> Result<(), ConfigError> {
        seconds(
            "connect_timeout",
            self.connect_timeout,
            0.001,
            &mut config.connect_timeout,
        )?;
        seconds(
            "upstream_idle",
            self.upstream_idle,
            0.0,
            &mut config.upstream_idle,
        )?;
        seconds(
            "first_byte_timeout",
            self.first_byte_timeout,
            0.001,
            &mut config.first_byte_timeout,
        )?;
        seconds(
            "idle_timeout",
            self.idle_timeout,
            0.001,
            &mut config.idle_timeout,
        )?;
        seconds(
            "client_idle",
            self.client_idle,
            0.001,
            &mut config.client_idle,
        )?;
        seconds(
            "drain_settle",
            self.drain_settle,
            0.0,
            &mut config.drain_settle,
        )?;
        seconds(
            "drain_timeout",
            self.drain_timeout,
            0.0,
            &mut config.drain_timeout,
        )?;
        seconds(
            "program_idle",
            self.program_idle,
            0.001,
            &mut config.program_idle,
        )
    }

    fn set_telemetry(&self, config: &mut proxy::Config) -> Result<(), ConfigError> {
        seconds(
            "sample_interval",
            self.sample_interval,
            0.1,
            &mut config.sample_interval,
        )?;
        seconds(
            "scrape_interval",
            self.scrape_interval,
            0.1,
            &mut config.scrape_interval,
        )?;
        config.ask_for_usage = self.ask_for_usage.unwrap_or(config.ask_for_usage);
        config.time_epoch = self.time_epoch;
        if let Some(scale) = self.time_scale {
            if !(0.001..=10_000.0).contains(&scale) {
                return Err(ConfigError::new(format!(
                    "time_scale: {scale} is out of range; write 0.001 to 10000"
                )));
            }
            config.time_scale = scale;
        }
        self.check_epoch(config)
    }

    /// The run's clock must be able to count from the epoch to now.
    fn check_epoch(&self, config: &proxy::Config) -> Result<(), ConfigError> {
        let Some(epoch) = self.time_epoch else {
            return Ok(());
        };
        let run_s = Clock::scaled(1.0, Some(epoch)).now().as_secs_f64() * config.time_scale;
        if !epoch.is_finite() || epoch < 0.0 || run_s > MAX_SECONDS {
            return Err(ConfigError::new(format!(
                "time_epoch: {epoch} is out of range; write the Unix time, in seconds, at which the run began"
            )));
        }
        Ok(())
    }
}

impl From<&proxy::Config> for ServeOptions {
    fn from(config: &proxy::Config) -> Self {
        let seconds = |duration: Duration| Some(duration.as_secs_f64());
        Self {
            listen: Some(config.listen.to_string()),
            backend: config.backends.iter().map(ToString::to_string).collect(),
            // Each has a table of its own.
            route: Vec::new(),
            policy: Some(config.policy.name().to_owned()),
            identity: config.identity.iter().map(ToString::to_string).collect(),
            infer_programs: Some(config.infer_programs),
            forward_priority: Some(config.forward_priority),
            program_idle: seconds(config.program_idle),
            max_programs: Some(config.max_programs),
            run_dir: config.run_dir.clone(),
            journal: config.journal.clone(),
            // A secret is not printed.
            admin_token: None,
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

fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = fs::read_to_string(path).map_err(|error| {
        ConfigError::new(format!(
            "config file {}: {error}; check --config",
            path.display()
        ))
    })?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        // The first line says where, the message what; between them stands the text itself.
        let place = error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        explain(Some(path), &format!("{place}: {}", error.message()))
    })
}

fn explain(path: Option<&Path>, problem: &str) -> ConfigError {
    let place = path.map_or_else(
        || "configuration".to_owned(),
        |path| path.display().to_string(),
    );
    // The deserialiser names the key, on a line of its own.
    ConfigError::new(format!("{place}: {}", problem.trim().replace('\n', " ")))
}

fn policy_config(
    name: &str,
    table: Option<toml::Value>,
    path: Option<&Path>,
) -> Result<policy::Config, ConfigError> {
    let table = table.unwrap_or_else(|| toml::Value::Table(toml::Table::new()));
    let config = policy::Config::deserialize(name, table)
        .map_err(|error| explain(path, &format!("policy {name}: {error}")))?;
    config.validate().map_err(ConfigError::new)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file to load from, and the directory that it lives in.
    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvgate.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn load(typed: &ServeOptions, text: &str) -> Result<Effective, ConfigError> {
        let (_dir, path) = file(text);
        Effective::load(typed, Some(&path))
    }

    fn backend() -> ServeOptions {
        ServeOptions {
            backend: vec!["http://b:1".to_owned()],
            ..ServeOptions::default()
        }
    }

    #[test]
    fn a_flag_beats_the_file_which_beats_the_default() {
        let typed = ServeOptions {
            max_body: Some(1),
            ..backend()
        };
        let config = load(&typed, "max_body = 2\nmax_programs = 3")
            .unwrap()
            .check()
            .unwrap();
        let default = proxy::Config::default();
        assert_eq!((config.max_body, config.max_programs), (1, 3));
        assert_eq!(config.max_connections, default.max_connections);
    }

    #[test]
    fn where_no_policy_is_named_it_is_kvgate_and_the_help_says_so() {
        let unnamed = load(&backend(), "max_body = 1").unwrap();
        let kvgate = policy::Config::Kvgate(policy::kvgate::Config::default());
        assert_eq!(unnamed.check().unwrap().policy, kvgate);
        assert_eq!(proxy::Config::default().policy, kvgate);
        let printed = unnamed.print().unwrap();
        assert!(printed.contains("policy = \"kvgate\""), "{printed}");
        assert!(printed.contains("[kvgate]\n"), "{printed}");
        let command = ServeOptions::augment_args(clap::Command::new("serve"));
        let mut flags = command.get_arguments();
        let help = flags.find(|flag| flag.get_id() == "policy").unwrap();
        let help = help.get_help().unwrap().to_string();
        assert!(help.ends_with("[default: kvgate]"), "{help}");

        let set = load(&backend(), "[kvgate]\nmax_held = 7").unwrap();
        let set = set.check().unwrap().policy;
        assert!(matches!(set, policy::Config::Kvgate(config) if config.max_held == 7));
    }

    #[test]
    fn what_is_printed_gives_the_same_configuration() {
        for name in policy::Config::NAMES {
            let typed = ServeOptions {
                policy: Some(name.to_owned()),
                ..backend()
            };
            let printed = load(&typed, "drain_timeout = 7.5")
                .unwrap()
                .print()
                .unwrap();
            let again = load(&ServeOptions::default(), &printed).unwrap();
            assert_eq!(again.print().unwrap(), printed);
            assert_eq!(again.check().unwrap().policy.name(), name);
        }
    }

    #[test]
    fn routes_are_printed_as_they_are_written_and_a_key_by_its_variable() {
        let file = "[routes.\"gpt-5\"]\nurls = [\"https://api.openai.com/v1\"]\nrole = \"user\"\n\
                    [routes.\"gpt-4*\"]\nstand_in = { preset = \"judge\", seed = 2 }";
        let typed = ServeOptions {
            route: vec!["x=scheduled:served".to_owned()],
            ..backend()
        };
        let printed = load(&typed, file).unwrap().print().unwrap();
        let again = load(&ServeOptions::default(), &printed).unwrap();
        assert_eq!(again.print().unwrap(), printed);
        let routes = again.check().unwrap().routes;
        let patterns: Vec<_> = routes.iter().map(|route| route.pattern.as_str()).collect();
        assert_eq!(patterns, ["gpt-4*", "gpt-5", "x"]);
        let wrong = load(&backend(), "[routes.\"gpt-5\"]\nurl = 1").unwrap_err();
        let wrong = wrong.to_string();
        assert!(
            wrong.contains("kvgate.toml: routes.\"gpt-5\": unknown field `url`"),
            "{wrong}"
        );
    }

    #[test]
    fn a_wrong_value_is_one_line_that_names_the_key() {
        for (file, words) in [
            ("max_bodyy = 1", "max_bodyy"),
            ("max_body = 0", "max_body: 0"),
            ("max_body = \"x\"", "max_body"),
            ("policy = \"fifo\"", "choose one of baseline"),
            (
                "policy = \"continuum\"\n[continuum]\nttl = 1",
                "unknown field `ttl`",
            ),
            (
                "policy = \"continuum\"\n[continuum]\nheadroom = 2.0",
                "continuum.headroom",
            ),
            ("listen = \"1900\"", "IP:PORT"),
            ("sample_interval = 0.01", "sample_interval: 0.01"),
            ("time_scale = nan", "time_scale"),
            ("identity = [\"cookie\"]", "identity"),
            ("idle_timeout = 1e19", "idle_timeout: 1"),
            ("time_scale = 50.0\ntime_epoch = 0.0", "time_epoch: 0"),
            ("time_epoch = nan", "time_epoch"),
            (
                "policy = \"baseline\"\n[continuum]\nttl = 1",
                "unknown field `ttl`",
            ),
            ("backend = [", "kvgate.toml"),
        ] {
            let error = load(&backend(), file)
                .and_then(|effective| effective.check())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(words) && !error.contains('\n'),
                "{file}: {error}"
            );
        }
        let error = Effective::load(&ServeOptions::default(), None)
            .unwrap()
            .check()
            .unwrap_err();
        assert!(error.to_string().starts_with("backend: none"));
    }
}
