//! The asynchronous shell: sockets, the clock, and the requests that wait for a decision.

pub mod identity;
pub mod request;
pub mod scan;
