//! What the policy does besides deciding, in words: counted always, and written down where somebody asked.

use crate::policy::{BackendId, ProgramId, RequestId, Time, Tokens};

/// Why a request started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartWhy {
    /// It fits.
    Fits,
    /// It is larger than the whole cache and runs alone.
    Oversize,
    /// It was held for as long as allowed.
    HoldTimeout,
}

/// Why a pin ended without a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpinWhy {
    /// Its time is over.
    Ttl,
    /// It gave way to a request that did not fit.
    Pressure,
    /// Its program is over.
    Release,
    /// The backend no longer has the context.
    Evicted,
    /// A later step of its program failed or was its last, or its backend is gone.
    Dropped,
}

/// Why no pin was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPinWhy {
    /// Waiting for this kind of gap does not pay.
    NoTtl,
    /// Another request of the program runs.
    SiblingRuns,
    /// The step failed.
    Failed,
}

/// One thing that the policy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A request was admitted.
    Started {
        /// The request.
        request: RequestId,
        /// Where it went.
        backend: BackendId,
        /// Why now.
        why: StartWhy,
    },
    /// A program's room is kept.
    Pinned {
        /// The program.
        program: ProgramId,
        /// Its whole context.
        tokens: Tokens,
        /// When the pin expires.
        until: Time,
    },
    /// A program's room is not kept.
    NotPinned {
        /// The program.
        program: ProgramId,
        /// Why not.
        why: NoPinWhy,
    },
    /// A pin ended without a return.
    Unpinned {
        /// The program.
        program: ProgramId,
        /// Its whole context.
        tokens: Tokens,
        /// Why it ended.
        why: UnpinWhy,
    },
    /// A program's last step was served.
    Ended {
        /// The program.
        program: ProgramId,
    },
    /// The eviction model says that a pinned context was hit.
    Overwritten {
        /// The program.
        program: ProgramId,
        /// How much of it is gone.
        tokens: Tokens,
    },
}

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) pinned: u64,
    pub(super) handed_off: u64,
    pub(super) lost: u64,
    pub(super) ttl: u64,
    pub(super) pressure: u64,
    pub(super) released: u64,
    pub(super) evicted: u64,
    pub(super) dropped: u64,
    pub(super) overwritten: u64,
    pub(super) guarded: u64,
    pub(super) oversize: u64,
    pub(super) timed_out: u64,
    pub(super) untracked: u64,
}

impl Counts {
    /// How the pins that ended did.
    pub(super) fn pins(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("handed_off", self.handed_off),
            ("ttl", self.ttl),
            ("pressure", self.pressure),
            ("released", self.released),
            ("evicted", self.evicted),
            ("dropped", self.dropped),
        ]
    }
}

/// Counts, and the notes themselves where they are kept.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) counts: Counts,
    kept: Option<Vec<Note>>,
}

impl Notes {
    pub(super) fn keep(&mut self) {
        self.kept.get_or_insert_default();
    }

    pub(super) fn take(&mut self) -> Vec<Note> {
        self.kept.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn add(&mut self, note: Note) {
        let counts = &mut self.counts;
        match note {
            Note::Pinned { .. } => counts.pinned += 1,
            Note::Overwritten { .. } => counts.overwritten += 1,
            Note::Unpinned { why, .. } => {
                *match why {
                    UnpinWhy::Ttl => &mut counts.ttl,
                    UnpinWhy::Pressure => &mut counts.pressure,
                    UnpinWhy::Release => &mut counts.released,
                    UnpinWhy::Evicted => &mut counts.evicted,
                    UnpinWhy::Dropped => &mut counts.dropped,
                } += 1;
            }
            Note::Started { why, .. } => match why {
                StartWhy::Fits => {}
                StartWhy::Oversize => counts.oversize += 1,
                StartWhy::HoldTimeout => counts.timed_out += 1,
            },
            Note::NotPinned { .. } | Note::Ended { .. } => {}
        }
        if let Some(kept) = &mut self.kept {
            kept.push(note);
        }
    }
}
