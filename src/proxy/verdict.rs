//! What a request tells the sequencer, and what it hears.

use std::time::Duration;

use tokio::sync::oneshot;

use super::request::SharedBytes;
use crate::policy::{BackendId, HoldReason, Outcome, RejectReason, RequestId, Time, Usage};

/// What the policy decided, for the task that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send the request.
    Admit(Admission),
    /// Answer with an error.
    Refuse(Refusal),
}

/// Where an admitted request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The backend.
    pub backend: BackendId,
    /// Its place in the backend's own queue, lower first; `None` where the policy ranks nothing.
    pub priority: Option<i64>,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy refused it.
    Policy(RejectReason),
    /// The gate is shutting down.
    Draining,
}

/// A request as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arriving<'a> {
    /// The program's name; `None` for a request without identity.
    pub program: Option<&'a str>,
    /// Size of its body in bytes, from which its tokens are estimated.
    pub body_bytes: u64,
    /// The part of the body that other programs share.
    pub shared: Option<SharedBytes>,
    /// The client said that this is the last step.
    pub last_step: bool,
}

/// What is known about a request once it has arrived.
#[derive(Debug)]
pub struct Arrived {
    /// Its id until [`super::sequencer::Sequencer::finish`].
    pub request: RequestId,
    /// Position of the step in its program, from 0.
    pub step_index: u32,
    /// The program's tool gap before this step; `None` for a first step or beside another request.
    pub tool_gap: Option<Duration>,
    /// The policy that was asked.
    pub policy: &'static str,
    /// The decision, or the promise of one.
    pub answer: Answer,
}

/// A decision that was made at once, or one to wait for.
#[derive(Debug)]
pub enum Answer {
    /// Decided on arrival.
    Now(Verdict),
    /// Held; the verdict follows. Dropping the receiver does not cancel the request: [`super::sequencer::Sequencer::finish`] does.
    Held(HoldReason, oneshot::Receiver<Verdict>),
}

/// A request that has not ended, as `GET /programs/{name}` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenStep {
    /// Position of the step in its program.
    pub step_index: u32,
    /// When it arrived.
    pub arrived: Time,
    /// Why it is held; `None` while it runs.
    pub held: Option<HoldReason>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// The outcome, for the policy.
    pub outcome: Outcome,
    /// Token counts, if the backend reported them.
    pub usage: Option<Usage>,
    /// The tool that the response called.
    pub tool: Option<&'a str>,
}

impl Ending<'_> {
    /// The client left.
    pub const CANCELLED: Self = Self {
        outcome: Outcome::Cancelled,
        usage: None,
        tool: None,
    };
}
