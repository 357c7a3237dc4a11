//! A gate on port 0 in front of stubs, and what a story asks of it. The one file that names the gate's settings.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use kvgate::policy::Policy;
use kvgate::proxy::routes::{Endpoints, Pattern, Role, RouteConfig, Target};
use kvgate::proxy::{self, Config, DrainReport};
use serde_json::Value;

use super::stub::Streaming;
use super::valve::{Limits, Valve, valve};
use super::{Ask, Reply, Stub, fixture, within};

/// A running gate.
pub(crate) struct Gate {
    running: proxy::Running,
}

/// The default configuration on port 0 in front of `stubs`, but for how often it looks at them.
pub(crate) fn config(stubs: &[&Stub]) -> Config {
    let urls: Vec<_> = stubs.iter().map(|stub| stub.url()).collect();
    config_for(&urls)
}

/// As [`config`], by URL.
pub(crate) fn config_for(urls: &[String]) -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        backends: urls.iter().map(|url| url.parse().unwrap()).collect(),
        scrape_interval: Duration::from_millis(20),
        drain_settle: Duration::ZERO,
        ..Config::default()
    }
}

/// A stub, and a gate before it whose policy holds every request until the test opens the valve.
pub(crate) async fn shut() -> (Stub, Gate, Valve) {
    let stub = Stub::start().await;
    let (policy, valve) = valve(Limits::default());
    let gate = Gate::start_with(config(&[&stub]), policy).await.up().await;
    (stub, gate, valve)
}

/// As [`shut`], with the valve open: nothing is held, and the test hears what the policy hears.
pub(crate) async fn open() -> (Stub, Gate, Valve) {
    let (stub, gate, valve) = shut().await;
    valve.open();
    (stub, gate, valve)
}

/// A stub, and a gate that looks at it only when it starts: every further connection is a request's.
pub(crate) async fn without_probes() -> (Stub, Gate) {
    let stub = Stub::start().await;
    let config = Config {
        scrape_interval: Duration::from_secs(3600),
        ..config(&[&stub])
    };
    let gate = Gate::start(config).await.up().await;
    (stub, gate)
}

/// A stream of program `p` whose first frame has reached the client.
pub(crate) async fn begun_stream(gate: &Gate, stub: &mut Stub) -> (Streaming, Reply) {
    let asking = gate.chat("p", true).spawn();
    let answer = fixture("chat-stream-usage");
    let mut stream = stub.call().await.stream(&answer).await;
    let mut reply = asking.await.unwrap();
    let frame = &answer.frames()[0];
    stream.frame(frame).await;
    reply.expect(frame).await;
    (stream, reply)
}

impl Gate {
    /// In front of one stub, with the default policy.
    pub(crate) async fn before(stub: &Stub) -> Self {
        Self::start(config(&[stub])).await.up().await
    }

    pub(crate) async fn start(config: Config) -> Self {
        let running = within(proxy::start(config)).await.unwrap();
        Self { running }
    }

    pub(crate) async fn start_with(config: Config, policy: Box<dyn Policy>) -> Self {
        let running = within(proxy::start_with(config, policy)).await.unwrap();
        Self { running }
    }

    /// Returns when the gate is ready.
    pub(crate) async fn up(self) -> Self {
        within(async { while self.get("/health").send().await.status != 200 {} }).await;
        self
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.running.addr()
    }

    pub(crate) fn get(&self, target: &str) -> Ask {
        Ask::new(self.addr(), Method::GET, target)
    }

    pub(crate) fn post(&self, target: &str, body: impl Into<bytes::Bytes>) -> Ask {
        Ask::new(self.addr(), Method::POST, target)
            .header("content-type", "application/json")
            .body(body)
    }

    /// A chat step of `program`.
    pub(crate) fn chat(&self, program: &str, stream: bool) -> Ask {
        let body = format!(
            r#"{{"model":"tiny","messages":[{{"role":"user","content":"hello world"}}],"stream":{stream},"job_id":"{program}"}}"#
        );
        self.post("/v1/chat/completions", body)
    }

    pub(crate) async fn json(&self, target: &str) -> Value {
        self.get(target).send().await.json().await
    }

    pub(crate) async fn metrics(&self) -> String {
        let bytes = self.get("/metrics").send().await.bytes().await;
        String::from_utf8(bytes).unwrap()
    }

    /// Names of the programs the gate knows, in order.
    pub(crate) async fn programs(&self) -> Vec<String> {
        let programs = self.json("/programs").await;
        programs.as_object().unwrap().keys().cloned().collect()
    }

    /// Returns when `ready` holds of `target`'s JSON; asks again until it does.
    pub(crate) async fn until(&self, target: &str, ready: impl Fn(&Value) -> bool) {
        within(async { while !ready(&self.json(target).await) {} }).await;
    }

    /// Returns when nothing is held and nothing in flight: every gauge of requests is back at zero.
    pub(crate) async fn quiet(&self) {
        let idle = |backends: &Value| {
            let mut each = backends.as_object().unwrap().values();
            each.all(|b| b["inflight"] == 0)
        };
        self.until("/backends", idle).await;
        let free = |programs: &Value| {
            let mut each = programs.as_object().unwrap().values();
            each.all(|p| p["inflight"] == false)
        };
        self.until("/programs", free).await;
        within(async {
            loop {
                let text = self.metrics().await;
                if request_gauges(&text).all(|(_, value)| value == "0") {
                    return;
                }
            }
        })
        .await;
    }

    /// Drains, however long the settings allow.
    pub(crate) async fn drain(self) -> DrainReport {
        self.running.drain().await
    }
}

/// The gate's gauges that count requests, with their values.
pub(crate) fn request_gauges(metrics: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    lines.filter(|(series, _)| {
        let name = series.split('{').next().unwrap();
        matches!(name, HELD_GAUGE | IN_FLIGHT_GAUGE)
    })
}

pub(crate) const HELD_GAUGE: &str = "kvgate_held_requests";
pub(crate) const IN_FLIGHT_GAUGE: &str = "kvgate_in_flight";

/// Sets the largest body accepted, in bytes.
pub(crate) fn set_max_body(config: &mut Config, bytes: usize) {
    config.max_body = bytes;
}

/// Sets how long a drain may take.
pub(crate) fn set_drain_timeout(config: &mut Config, timeout: Duration) {
    config.drain_timeout = timeout;
}

/// Sets how long the gate serves on after it said that it is not ready.
pub(crate) fn set_drain_settle(config: &mut Config, settle: Duration) {
    config.drain_settle = settle;
}

/// Sets how long a backend may take to its first byte, and between two.
pub(crate) fn set_stall_timeout(config: &mut Config, timeout: Duration) {
    config.first_byte_timeout = timeout;
    config.idle_timeout = timeout;
}

/// A route to these URLs, with nothing else set.
pub(crate) fn to_urls(model: &str, urls: &[String]) -> RouteConfig {
    route(
        model,
        Target::Endpoints(Endpoints {
            urls: urls.iter().map(|url| url.parse().unwrap()).collect(),
            key: None,
            ca_file: None,
        }),
    )
}

/// A route to `target`, of experts.
pub(crate) fn route(model: &str, target: Target) -> RouteConfig {
    RouteConfig {
        pattern: Pattern::new(model.to_owned()),
        role: Role::Expert,
        model: None,
        drop_fields: Vec::new(),
        target,
    }
}
