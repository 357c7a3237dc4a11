//! What is known of one program, and of one step that runs.

use std::time::Duration;

use crate::policy::{BackendId, GapKind, SharedPrefix, Time, Tokens};

/// One program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Its first arrival.
    pub(super) since: Time,
    /// Seniority: position by first arrival.
    pub(super) seq: u64,
    /// When its tool gap began, and of which kind; taken by the arrival that ends it.
    pub(super) gap: Option<(Time, GapKind)>,
    /// The prefix that its prompts share with other programs'; length below, to keep the entry small.
    fingerprint: u64,
    prefix_tokens: u32,
    /// Steps served.
    pub(super) steps: u32,
    pub(super) in_flight: u32,
    pub(super) held: u32,
    pub(super) home: Option<BackendId>,
    /// Its step ended well and nothing of it runs: the next `ToolGap` decides about its pin.
    pub(super) between: bool,
    /// Its last step failed at the backend: the next arrival is the same step again.
    pub(super) failed: bool,
}

const _: () = assert!(
    size_of::<Option<Program>>() <= 64,
    "100,000 programs must stay within a few MB"
);

impl Program {
    pub(super) const fn new(since: Time, seq: u64) -> Self {
        Self {
            since,
            seq,
            gap: None,
            fingerprint: 0,
            prefix_tokens: 0,
            steps: 0,
            in_flight: 0,
            held: 0,
            home: None,
            between: false,
            failed: false,
        }
    }

    /// The prefix that its prompts share with other programs'.
    pub(super) fn shared(&self) -> Option<SharedPrefix> {
        (self.prefix_tokens > 0).then(|| SharedPrefix {
            fingerprint: self.fingerprint,
            tokens: Tokens(self.prefix_tokens.into()),
        })
    }

    pub(super) fn shares(&mut self, shared: SharedPrefix) {
        self.fingerprint = shared.fingerprint;
        self.prefix_tokens = u32::try_from(shared.tokens.0).unwrap_or(u32::MAX);
    }
}

/// One step that runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) admitted: Time,
    /// Admission to first token, where the backend had no queue of its own.
    pub(super) prefill: Option<Duration>,
    /// The part of its prompt that a pin kept, and where that stood in the order of eviction.
    pub(super) pinned: Option<(Tokens, u64)>,
    /// The client announced the program's last step: no pin after it.
    pub(super) last_step: bool,
}
