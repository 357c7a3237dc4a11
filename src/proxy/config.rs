//! What a gate needs to know, checked. Where the values come from is [`crate::config`]'s affair.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::backend::BackendUrl;
use super::identity::Source;
use super::routes::RouteConfig;
use crate::policy;

/// The checked configuration of a gate. Durations are machine time unless said otherwise.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub struct Config {
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The vLLM servers, at least one; their order gives the [`crate::policy::BackendId`]s.
    pub backends: Vec<BackendUrl>,
    /// Requests of which models go elsewhere; no two have the same pattern.
    pub routes: Vec<RouteConfig>,
    /// The policy and its own configuration.
    pub policy: policy::Config,
    /// Where programs are named, in order of precedence.
    pub identity: Vec<Source>,
    /// Tell programs by their message history where a chat request names none.
    pub infer_programs: bool,
    /// Send a policy's ranking on as the request's priority.
    pub forward_priority: bool,
    /// Where records go; `None` records nothing.
    pub run_dir: Option<PathBuf>,
    /// Where every event and decision goes; `None` keeps no journal.
    pub journal: Option<PathBuf>,
    /// What a client has to know to change the policy; `None` lets everybody.
    pub admin_token: Option<String>,
    /// How often samples are written, in the run's time.
    pub sample_interval: Duration,
    /// How often backends are scraped, in the run's time.
    pub scrape_interval: Duration,
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// Refuse generation requests without a model.
    pub require_model: bool,
    /// Ask for usage in streams whose client did not, and hide the extra frame.
    pub ask_for_usage: bool,
    /// How long to wait for a connection to a backend.
    pub connect_timeout: Duration,
    /// How long a connection to a backend may idle and still be used.
    pub upstream_idle: Duration,
    /// How long a backend may take to begin its response, counted from admission.
    pub first_byte_timeout: Duration,
    /// How long a backend may be silent in the middle of a response.
    pub idle_timeout: Duration,
    /// How long a client's connection may idle.
    pub client_idle: Duration,
    /// The most client connections; more wait in the listener's backlog.
    pub max_connections: usize,
    /// On shutdown: how long the gate keeps serving after it said that it is not ready.
    pub drain_settle: Duration,
    /// On shutdown: how long requests may still run.
    pub drain_timeout: Duration,
    /// A program without a request for this long is released, in the run's time.
    pub program_idle: Duration,
    /// The most programs known at once.
    pub max_programs: usize,
    /// Run seconds per machine second.
    pub time_scale: f64,
    /// Unix seconds at which the run began; `None` for the moment it starts.
    pub time_epoch: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 1900)),
            backends: Vec::new(),
            routes: Vec::new(),
            policy: policy::Config::default(),
            identity: Source::defaults(),
            infer_programs: false,
            forward_priority: false,
            run_dir: None,
            journal: None,
            admin_token: None,
            sample_interval: Duration::from_secs(5),
            scrape_interval: Duration::from_millis(500),
            max_body: 64 << 20,
            require_model: true,
            ask_for_usage: true,
            connect_timeout: Duration::from_secs(5),
            // Below the 5 s after which vLLM's server closes an idle connection.
            upstream_idle: Duration::from_secs(3),
            first_byte_timeout: Duration::from_secs(900),
            idle_timeout: Duration::from_secs(300),
            client_idle: Duration::from_secs(300),
            max_connections: 65_536,
            drain_settle: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            program_idle: Duration::from_secs(3600),
            max_programs: 200_000,
            time_scale: 1.0,
            time_epoch: None,
        }
    }
}
