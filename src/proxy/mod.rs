//! The asynchronous shell: sockets, the clock, and the requests that wait for a decision.
//!
//! A request's way, in files: [`server`] accepts, [`router`] tells the gate's own endpoints from the rest,
//! [`handler`] reads it ([`request`], [`identity`], [`scan`]), [`flight`] reports it to the [`gate`], whose
//! [`sequencer`] asks the policy
//! and keeps the table of [`programs`]; [`forward`] sends it ([`outgoing`], [`pool`], [`backend`]) and [`body`] relays
//! the response. Errors of the gate are made in [`error`] alone.

pub mod backend;
pub mod body;
pub mod config;
pub mod control;
pub mod endpoints;
pub mod error;
pub mod flight;
pub mod forward;
pub mod gate;
pub mod handler;
pub mod identity;
pub mod infer;
pub mod intern;
pub mod outgoing;
pub mod pool;
pub mod programs;
pub mod request;
pub mod router;
pub mod routes;
pub mod sampler;
pub mod scan;
pub mod sequencer;
pub mod server;
pub mod state;
pub mod upstream;
pub mod verdict;

pub use config::Config;
pub use server::{DrainReport, Running, StartError, start, start_with};
