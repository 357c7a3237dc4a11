//! The gate between a client and a stub vLLM, over real sockets on port 0.
//!
//! Each file tells the stories of one promise; `support` holds the stub, the client and the test policy. No
//! story sleeps: the stub hands every request to the test, which decides byte by byte what the backend does.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may stop at the first surprise, and says what it measured"
)]

mod cancel;
mod control;
mod drain;
mod errors;
mod held;
mod hold;
mod identity;
mod infer;
mod metrics;
mod passthrough;
mod priority;
mod routes;
mod start;
mod streaming;
mod support;
