//! ThunderAgent: pauses and resumes programs by the KV tokens that it counts for each.
//!
//! Here: the choice between the original and the mended policy.

mod config;
mod original;

pub use config::{Config, Mode};
pub use original::{Act, Original, ProgramState};

/// The name in the registry.
pub const NAME: &str = "thunderagent";
