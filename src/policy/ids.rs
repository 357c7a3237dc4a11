//! Dense numbers for the things a policy talks about.
//!
//! Names live at the edge (`proxy/intern.rs`); a policy only sees small integers that index a `Vec`. An id is
//! used again after its owner is gone: a program's after [`super::Event::Release`], a request's after
//! [`super::Event::Finish`].

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

macro_rules! dense_id {
    ($(#[$doc:meta])* $name:ident($repr:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            /// The position of this id's entry in a dense `Vec`.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

dense_id!(
    /// One agent task: steps that share a growing context.
    ProgramId(u32),
    "p"
);
dense_id!(
    /// The HTTP carrier of one step. A client's retry is a new request of the same step.
    RequestId(u32),
    "r"
);
dense_id!(
    /// One vLLM server behind the gate, in the order of the configuration.
    BackendId(u16),
    "b"
);
dense_id!(
    /// A tool's name, interned. The set is bounded; names past the bound share [`ToolId::OTHER`].
    ToolId(u16),
    "t"
);

impl ToolId {
    /// The id shared by every tool past the interner's bound.
    pub const OTHER: Self = Self(u16::MAX);
}

/// The first eight bytes of the name's SHA-256, big-endian: the reference router's choice among equals.
pub fn name_hash(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    digest
        .iter()
        .take(8)
        .fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
}
