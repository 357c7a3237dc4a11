//! What happened, in the field's units: one [`StepRecord`] per request, one sample of every backend per interval.
//!
//! Depends on nothing but [`crate::policy`]'s vocabulary. [`sse`], [`observe`], [`exposition`], [`sample`] and
//! [`step`] are pure; [`recorder`] writes the run directory from a thread of its own; [`gauges`] holds what
//! `GET /metrics` shows.

pub mod exposition;
pub mod gauges;
pub mod merge;
pub mod observe;
pub mod recorder;
pub mod sample;
pub mod sse;
pub mod step;

pub use gauges::{ClientGone, Gauges};
pub use merge::merge_backends;
pub use observe::{BodyObserver, ResponseFacts, StreamObserver};
pub use recorder::{KvRow, Recorder};
pub use sample::Scrape;
pub use step::{StepRecord, StepTimer};
