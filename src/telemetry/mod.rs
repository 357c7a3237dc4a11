//! What happened, in the field's units: one [`StepRecord`] per request, one sample of every backend per interval.
//!
//! Depends on nothing but [`crate::policy`]'s vocabulary. [`sse`], [`observe`], [`prometheus_text`], [`scrape`] and
//! [`step`] are pure; [`recorder`] writes the run directory from a thread of its own; [`metrics`] holds what
//! `GET /metrics` shows.

pub mod journal;
pub mod kv_csv;
pub mod merge;
pub mod metrics;
pub mod observe;
pub mod prometheus_text;
pub mod recorder;
pub mod route_series;
pub mod scrape;
pub mod sse;
pub mod step;

pub use merge::merge_backends;
pub use metrics::{ClientGone, Metrics};
pub use observe::{BodyObserver, ResponseFacts, StreamObserver};
pub use recorder::{KvRow, Recorder};
pub use scrape::Scrape;
pub use step::{StepRecord, StepTimer};
