//! Requests of models that the gate does not schedule: experts, user simulators, judges.
//!
//! A route names a model, exactly or by a glob, and where its requests go: to other OpenAI-compatible endpoints, to
//! a stand-in that answers after a drawn latency, or, under another name, to the scheduled backends. Only the last
//! kind is seen by the policy. [`config`] is what a route needs to know, [`pattern`] who it is for.

pub mod config;
pub mod latency;
pub mod pattern;

pub use crate::telemetry::step::Role;
pub use config::{ApiKey, EndpointUrl, Endpoints, RouteConfig, StandIn, Target};
pub use latency::{Latency, Preset};
pub use pattern::Pattern;
