//! Requests of models that the gate does not schedule: experts, user simulators, judges.
//!
//! A route names a model, exactly or by a glob, and where its requests go: to other OpenAI-compatible endpoints, to
//! a stand-in that answers after a drawn latency, or, under another name, to the scheduled backends. Only the last
//! kind is seen by the policy.
//!
//! [`config`] is what a route needs to know, [`table`] the routes of a running gate, [`pattern`] whom each is for.
//! A request is a [`call`] until it is recorded; [`endpoint`] sends it ([`balance`], [`rewrite`], [`tls`]), or
//! [`stand_in`] answers it ([`latency`]).

pub mod balance;
pub mod call;
pub mod config;
pub mod endpoint;
pub mod latency;
pub mod pattern;
pub mod rewrite;
pub mod stand_in;
pub mod table;
pub mod tls;

pub use call::Call;
pub use config::{ApiKey, EndpointUrl, Endpoints, RouteConfig, StandIn, Target};
pub use latency::{Latency, Preset};
pub use pattern::Pattern;
pub use table::{Route, RouteError, Routes, Way};

pub use crate::telemetry::step::Role;
