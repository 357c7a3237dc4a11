//! `kvgate experiment` as a user has it: whole experiments as processes, some of which are killed, starved or told to stop.
//!
//! Where there is no Python 3.10 the test of tau2 says so and passes; with `KVGATE_REQUIRE_PYTHON=1`, as in CI, it fails.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at the first surprise, and says when it is skipped"
)]

mod faults;
mod manifest;
mod matrix;
mod preflight;
#[path = "../support/python.rs"]
mod python;
mod resume;
#[path = "../support/server.rs"]
mod server;
mod signals;
mod support;
mod tau2;
