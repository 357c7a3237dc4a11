//! Plays tau2-bench through a gate: real simulations of customer-service tasks, by Python worker processes.
//!
//! ```text
//!  plan ──units──▶ pool ──orders──▶ worker processes (python/worker.py) ──HTTP──▶ gate
//!                   │  ▲                     │
//!                   │  └────── wire ◀────────┘
//!                   ▼
//!                 event ──▶ outputs (the reference's files, events.jsonl, rewards.jsonl)
//! ```
//!
//! [`environment`] installs the benchmark, [`plan`] says what is played and when, [`pool`] plays it, [`outputs`]
//! writes it down. The Rust side owns arrivals, order, concurrency, ids and retries; the Python side plays one
//! simulation when it is told to. How it is put together:
//!
//! ```no_run
//! # use kvgate::harness::tau2::{environment, outputs, plan, pool, remote, settings};
//! # async fn example(settings: settings::Settings, header: outputs::Header) -> anyhow::Result<()> {
//! let units = plan::Workload::default().list(&settings.environment.catalogue)?;
//! let mut outputs = outputs::Outputs::open(&settings.dir, header, &units)?;
//! let schedule = plan::Schedule::new(units, plan::Rules::default(), &outputs.past())?;
//! let (remote, control) = remote::control();
//! remote.obey_signals()?;
//! let (sender, mut events) = tokio::sync::mpsc::channel(pool::EVENTS);
//! let playing = tokio::spawn(pool::play(settings, schedule, control, sender));
//! while let Some(event) = events.recv().await {
//!     outputs.record(&event)?;
//! }
//! playing.await??;
//! outputs.finish()?;
//! # Ok(())
//! # }
//! ```

pub mod environment;
pub mod event;
mod lines;
pub mod outputs;
pub mod plan;
pub mod pool;
pub mod remote;
pub mod settings;
mod wire;
mod worker;
