//! tau2-bench played by worker processes: the real benchmark, and the pool with a worker that only pretends.
//!
//! Where there is no Python 3.10 the tests say so and pass; with `KVGATE_REQUIRE_PYTHON=1`, as in CI, they fail instead.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at the first surprise, and says when it is skipped"
)]

mod pool;
#[path = "../support/python.rs"]
mod python;
mod real;
#[path = "../support/server.rs"]
mod server;
mod support;
mod upstream;
