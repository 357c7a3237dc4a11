//! What happened, in the field's units: one [`StepRecord`] per request, one sample of every backend per interval.
//!
//! Depends on nothing but [`crate::policy`]'s vocabulary. Parsers and timers are pure; [`scrape`](self) and the
//! recorder's writer thread are the only I/O.

pub mod step;

pub use step::StepRecord;
