//! What every request and every task of the gate shares.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Config;
use super::backend::Backend;
use super::gate::Gate;
use super::infer::{Conversation, Inference, Limits, ReplyDigest, Ticket};
use crate::policy::{BackendId, Time};
use crate::telemetry::gauges::Gauges;
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
    /// Records of steps and samples.
    pub recorder: Recorder,
    /// kvgate's own series.
    pub gauges: Gauges,
    /// The policy's name, for records.
    pub policy_name: &'static str,
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
        recorder: Recorder,
    ) -> prometheus::Result<Self> {
        let names: Vec<String> = backends.iter().map(Backend::name).collect();
        let policy_name = gate.with(|sequencer, _| sequencer.snapshot().policy);
        let ready = AtomicBool::new(true);
        let gauges = Gauges::new(&names)?;
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
            recorder,
            gauges,
            policy_name,
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

    /// Brings the series that are read and not counted up to date.
    pub fn update_gauges(&self) {
        self.gauges
            .policy(&self.gate.with(|sequencer, _| sequencer.snapshot()));
        self.gauges.records_dropped(self.recorder.dropped());
        for backend in &self.backends {
            self.gauges.backend_up(backend.id, backend.is_up());
        }
    }

    /// The backend with this id.
    pub fn backend(&self, id: BackendId) -> &Backend {
        &self.backends[id.index()]
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
