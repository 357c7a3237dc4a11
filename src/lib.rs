//! kvgate: a reverse proxy in front of vLLM that decides *when* each step of an agent runs.
//!
//! ```text
//! main ─▶ cli, config ─▶ proxy ───▶ telemetry ─▶ policy
//!                   └──▶ harness ─▶ telemetry ─▶ policy        (harness ✗ proxy)
//! ```
//!
//! Reading order: [`policy`] (pure decisions), [`telemetry`] (what happened, in the field's units), [`proxy`]
//! (the asynchronous shell around both), [`harness`] (experiments: a modelled engine, a workload replayed
//! through the gate, the comparison). ARCHITECTURE.md walks one request through them.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod harness;
pub mod policy;
pub mod proxy;
pub mod telemetry;
