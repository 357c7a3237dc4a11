//! What a policy answers. Decisions are values; the shell makes them happen.

use serde::{Deserialize, Serialize};

use super::ids::{BackendId, RequestId};
use super::time::Time;

/// One decision about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// Send the request to the backend now. Routing is part of admission: one decision, not two.
    Admit {
        /// The request.
        request: RequestId,
        /// Where it goes.
        backend: BackendId,
        /// Its place in the backend's own queue, lower first, for a vLLM that runs `--scheduling-policy priority`;
        /// `None`: the policy has no opinion.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        priority: Option<i64>,
    },
    /// Keep the request at the gate.
    Hold {
        /// The request.
        request: RequestId,
        /// Why it has to wait.
        reason: HoldReason,
    },
    /// Answer the request with an error.
    Reject {
        /// The request.
        request: RequestId,
        /// Why it is refused.
        reason: RejectReason,
    },
}

impl Decision {
    /// The request this decision is about.
    pub const fn request(self) -> RequestId {
        match self {
            Self::Admit { request, .. }
            | Self::Hold { request, .. }
            | Self::Reject { request, .. } => request,
        }
    }
}

/// Why a request waits at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// Its program was paused to relieve KV pressure.
    Paused,
    /// Its context does not fit beside what runs and what is reserved.
    NoRoom,
    /// An older request waits for the same room, and the policy does not let others pass it.
    BehindOlder,
    /// The backend has its limit of concurrent requests.
    ConcurrencyLimit,
}

impl HoldReason {
    /// Every reason, in the order of [`HoldReason::as_str`]'s metric labels.
    pub const ALL: [Self; 4] = [
        Self::Paused,
        Self::NoRoom,
        Self::BehindOlder,
        Self::ConcurrencyLimit,
    ];

    /// The word used in records and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::NoRoom => "no_room",
            Self::BehindOlder => "behind_older",
            Self::ConcurrencyLimit => "concurrency_limit",
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The policy holds as many requests as it may (`max_held`).
    QueueFull,
    /// No backend is up.
    NoBackend,
}

impl RejectReason {
    /// The word used in records, error codes and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::NoBackend => "no_backend",
        }
    }
}

/// When the policy wants its next [`super::Event::Tick`], and why: priceless in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wakeup {
    /// The moment; a tick at or after it serves.
    pub at: Time,
    /// What the policy will do then, for logs.
    pub why: &'static str,
}

impl Wakeup {
    /// The earlier of two optional wakeups.
    pub fn earliest(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (one, other) => one.or(other),
        }
    }
}

/// A buffer for decisions, owned by the caller and reused: a policy allocates nothing to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions(Vec<Decision>);

impl Decisions {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Sends `request` to `backend` now.
    pub fn admit(&mut self, request: RequestId, backend: BackendId) {
        self.admit_ranked(request, backend, None);
    }

    /// Sends `request` to `backend` now, with a place in the backend's own queue.
    pub fn admit_ranked(&mut self, request: RequestId, backend: BackendId, priority: Option<i64>) {
        self.0.push(Decision::Admit {
            request,
            backend,
            priority,
        });
    }

    /// Keeps `request` at the gate.
    pub fn hold(&mut self, request: RequestId, reason: HoldReason) {
        self.0.push(Decision::Hold { request, reason });
    }

    /// Refuses `request`.
    pub fn reject(&mut self, request: RequestId, reason: RejectReason) {
        self.0.push(Decision::Reject { request, reason });
    }

    /// Forgets everything, keeping the allocation.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The decisions, in the order in which they were made.
    pub fn as_slice(&self) -> &[Decision] {
        &self.0
    }

    /// How many decisions were made.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no decision was made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the decisions out, in order, keeping the allocation.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Decision> {
        self.0.drain(..)
    }
}
