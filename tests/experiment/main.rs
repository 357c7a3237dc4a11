//! `kvgate experiment` as a user has it: whole experiments as processes, some of which are killed, starved or told to stop.
//!
//! Where there is no Python 3.10 the test of tau2 says so and passes; with `KVGATE_REQUIRE_PYTHON=1`, as in CI, it fails.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

mod matrix;
mod support;
