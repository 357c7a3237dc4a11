//! What every story needs: a stub vLLM, a client, a gate between them, and a policy that waits for the test.

pub(crate) mod client;
pub(crate) mod fixture;
pub(crate) mod gate;
pub(crate) mod stub;
pub(crate) mod valve;

use std::future::Future;
use std::time::Duration;

pub(crate) use client::{Ask, Reply};
pub(crate) use fixture::{Fixture, fixture};
pub(crate) use gate::{Gate, begun_stream, config, open, shut, without_probes};
pub(crate) use stub::{Call, Stub};
pub(crate) use valve::valve;

/// How long anything may take on a crowded machine before the story counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, and fails the test when it hangs.
#[track_caller]
pub(crate) fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let done = tokio::time::timeout(PATIENCE, future).await;
        done.unwrap_or_else(|_| panic!("{place}: still waiting after {PATIENCE:?}"))
    }
}
