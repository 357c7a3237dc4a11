//! A model of one vLLM V1 engine behind vLLM's HTTP API: `kvgate engine`.
//!
//! Real here is everything that a gate's decisions act on: which requests run, wait or are preempted, which
//! KV blocks hold which prefix, and in which order prefixes are lost. Modelled is what a GPU would add: the
//! duration of an iteration ([`core::cost`]) and the text. So the same workload through the same gate shows
//! the same queues and cache hits as on a GPU, without one, and as many times faster as the machine allows.
//!
//! To read on: [`core`] (pure: blocks, queue, scheduler, cost), `driver` (the core in scaled real time),
//! `http`, `body`, `job` and `reply` (vLLM's API around it).
//!
//! # What this model leaves out
//! * **The model.** Text is filler from a seed: it never calls a tool unless `tool_choice` makes it, never
//!   follows an instruction, and ends at a random length (120 tokens on average) unless `ignore_eos` is set. Only the
//!   prompts of tau2-bench are understood as far as its conversations need it to get to an end (`tau2`).
//!   Sampling parameters, stop strings, log-probabilities, guided decoding, `n` > 1, images, audio and adapters
//!   are accepted and ignored, except `n` > 1 and more than one prompt, which are refused.
//! * **The tokeniser.** Four bytes are one token. Token counts of real text differ by language and content;
//!   `/tokenize` agrees with the engine, not with Qwen.
//! * **Asynchronous scheduling.** vLLM on a GPU plans an iteration while the one before still runs, so that a
//!   finished request frees its slot and blocks one iteration later than here. (On a CPU it does not.)
//! * **Everything beside one plain attention cache**: sliding windows, hybrid and Mamba layers, speculative
//!   decoding, KV offloading and transfer, pipeline and data parallelism, pooling models.
//! * **A loaded API server.** HTTP costs a fixed time per request and token, however many there are at once;
//!   the real server has one Python process for all of them.
//! * **Noise.** The same work always takes the same time.
//! * **Limits of its own**: a body over 64 MiB gets 413, the 65,537th concurrent request vLLM's 503 (streaming
//!   or not; vLLM answers a stream with 200 and an error event).
//! * **Keep-alive**: vLLM closes a connection that is idle for 5 s; this server waits for the client.
//! * **Rare refusals**: the exact words of validation errors are those of the cases that clients meet (see the
//!   tests); others have the status and the shape, with a plain reason.
//! * **Endpoints** other than chat, completions, models, tokenize, health, ping, version and metrics; of the
//!   metrics, those that schedulers and samplers read.

pub mod args;
mod body;
pub mod core;
mod driver;
mod error;
mod histogram;
mod http;
mod job;
mod metrics;
mod reply;
mod tau2;
mod tokenizer;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use anyhow::Context;
use axum::serve::ListenerExt;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use driver::{Driver, Snapshot};
use histogram::Histogram;

pub use args::{EngineArgs, EngineConfig};

/// Connections that may wait to be accepted: a replay opens thousands at once.
const BACKLOG: i32 = 4096;

/// Listens on `address`; port 0 takes a free one.
///
/// # Errors
/// The address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves the API on `listener` until `shutdown`. Requests in flight then end at once, streams with finish
/// reason `abort`, as vLLM's do.
///
/// # Errors
/// The server failed; a client's error never ends it.
pub async fn serve(
    config: EngineConfig,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let clock = Clock::scaled(config.speedup, None);
    let (commands, inbox) = mpsc::unbounded_channel();
    let first = Snapshot {
        ttft: Histogram::new(&histogram::TTFT_BOUNDS),
        e2e: Histogram::new(&histogram::E2E_BOUNDS),
        ..Snapshot::default()
    };
    let (published, snapshot) = watch::channel(first);
    let engine = core::Engine::new(config.core.clone());
    let driver = Driver::new(engine, clock, published);
    let shared = Arc::new(http::Shared {
        config,
        clock,
        commands,
        snapshot,
        submitted: AtomicU64::new(0),
        open: AtomicUsize::new(0),
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = tokio::spawn(driver.run(inbox, async {
        drop(stopped.await);
    }));
    let listener = listener.tap_io(|connection| {
        // Without it a small frame may wait for the client's acknowledgement; a failure only costs latency.
        drop(connection.set_nodelay(true));
    });
    let closing = async move {
        shutdown.await;
        drop(stop);
    };
    axum::serve(listener, http::router(shared))
        .with_graceful_shutdown(closing)
        .await
        .context("the engine's HTTP server failed")?;
    driver.await.context("the engine's driver failed")
}

#[cfg(test)]
mod tests;
