//! What every request and every task of the gate shares.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::Method;
use parking_lot::Mutex;

use super::Config;
use super::backend::Backend;
use super::control::Recent;
use super::gate::Gate;
use super::infer::{Conversation, Inference, InferredId, Limits, ReplyDigest, Ticket};
use super::routes::Routes;
use crate::policy::{self, BackendId, Time};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::recorder::Recorder;

/// The gate's shared state: the sequencer behind its lock, the backends, and where telemetry goes.
#[derive(Debug)]
pub struct Proxy {
    /// The checked configuration.
    pub config: Config,
    /// Decisions.
    pub gate: Gate,
    /// The backends, by [`BackendId`].
    pub backends: Box<[Backend]>,
    /// Where requests of some models go instead.
    pub routes: Routes,
    /// Records of steps and samples.
    pub recorder: Recorder,
    /// kvgate's own series.
    pub metrics: Metrics,
    /// The present policy with its settings; the configuration has the first one's.
    pub policy: Mutex<policy::Config>,
    /// The last steps that ended.
    pub recent: Mutex<Recent>,
    /// Whose turn it is among the backends, for requests outside the policy.
    turn: AtomicUsize,
    /// Programs of clients that name none; `None` where they are not looked for.
    inference: Option<Mutex<Inference>>,
    ready: AtomicBool,
}

impl Proxy {
    /// The shared state of a gate that is ready as soon as a backend is.
    ///
    /// # Errors
    /// A metric that cannot be registered.
    pub fn new(
        config: Config,
        gate: Gate,
        backends: Box<[Backend]>,
        routes: Routes,
        recorder: Recorder,
    ) -> prometheus::Result<Self> {
        let names: Vec<String> = backends.iter().map(Backend::name).collect();
        let policy = Mutex::new(config.policy.clone());
        let ready = AtomicBool::new(true);
        let metrics = Metrics::new(&names, &routes.names())?;
        let inference = config.infer_programs.then(|| {
            Mutex::new(Inference::new(Limits {
                max_programs: config.max_programs,
                idle: config.program_idle,
            }))
        });
        Ok(Self {
            config,
            gate,
            backends,
            routes,
            recorder,
            metrics,
            policy,
            recent: Mutex::new(Recent::default()),
            turn: AtomicUsize::new(0),
            inference,
            ready,
        })
    }

    /// Whether programs are told by their history where a request names none.
    pub const fn infers_programs(&self) -> bool {
        self.inference.is_some()
    }

    /// The inferred program of a request, which is from now on in flight.
    pub fn infer(&self, conversation: &Conversation) -> Option<Ticket> {
        let now = self.gate.clock().now();
        let inferred = self.inference.as_ref()?.lock().arrive(now, conversation);
        inferred.map(|inferred| inferred.ticket)
    }

    /// The reply to a request of an inferred program has passed.
    pub fn inferred_replied(&self, ticket: Ticket, reply: ReplyDigest) {
        if let Some(inference) = &self.inference {
            let now = self.gate.clock().now();
            inference.lock().replied(now, ticket, reply);
        }
    }

    /// A request of an inferred program is over; so are the programs that its reply ended.
    pub fn inferred_finished(&self, now: Time, ticket: Ticket) {
        let Some(inference) = &self.inference else {
            return;
        };
        let over = inference.lock().finished(now, ticket);
        for program in over.into_iter().flatten() {
            let name = program.to_string();
            self.gate
                .with(|sequencer, now| sequencer.release(now, &name));
        }
    }

    /// The program is over, an inferred one for the inference too; returns whether it was known.
    pub fn release(&self, name: &str) -> bool {
        if let (Some(inference), Some(id)) = (&self.inference, InferredId::named(name)) {
            inference.lock().release(id);
        }
        self.gate
            .with(|sequencer, now| sequencer.release(now, name))
    }

    /// Brings the series that are read and not counted up to date.
    pub fn update_metrics(&self) {
        self.metrics
            .policy(&self.gate.with(|sequencer, _| sequencer.snapshot()));
        self.metrics.records_dropped(self.recorder.dropped());
        for backend in &self.backends {
            self.metrics.backend_up(backend.id, backend.is_up());
        }
    }

    /// The backend with this id.
    pub fn backend(&self, id: BackendId) -> &Backend {
        &self.backends[id.index()]
    }

    /// A backend for a request outside the policy: they take turns with work (POST), and the first that is up
    /// answers the rest, so that what one call left there the next one finds.
    pub fn next_up(&self, method: &Method) -> Option<&Backend> {
        let turn = match *method {
            Method::POST => self.turn.fetch_add(1, Ordering::Relaxed) % self.backends.len(),
            _ => 0,
        };
        let (before, after) = self.backends.split_at(turn);
        after.iter().chain(before).find(|backend| backend.is_up())
    }

    /// Logs a warning of a backend whose capacity the policy in force does not know.
    pub fn warn_of_capacity(&self, backend: &Backend) {
        let policy = self.policy.lock();
        if let Some(warning) = capacity_warning(&policy, backend) {
            tracing::warn!(backend = %backend.url, policy = policy.name(), "{warning}");
        }
    }

    /// Whether the gate wants traffic: it does until it is told to drain.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// From here on `GET /health` says that the gate is going away.
    pub fn set_unready(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }

    /// Why each backend is down, for an error message.
    pub fn causes(&self) -> String {
        let cause = |backend: &Backend| format!("{}: {}", backend.url, backend.status().cause);
        let down = self.backends.iter().filter(|backend| !backend.is_up());
        let causes: Vec<String> = down.map(cause).collect();
        if causes.is_empty() {
            "none is configured".to_owned()
        } else {
            causes.join("; ")
        }
    }
}

/// What makes a policy let every request to this backend pass: a gate that does looks like one that works. Nothing is known
/// of a backend that was never scraped.
pub fn capacity_warning(policy: &policy::Config, backend: &Backend) -> Option<&'static str> {
    let scrape = backend.status().scrape?;
    (scrape.kv_capacity.is_none() && policy.needs_capacity()).then_some(
        "its /metrics tell no KV capacity (vllm:cache_config_info); until they do, every request there passes at once",
    )
}
