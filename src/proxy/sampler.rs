//! Writes what the last scrapes said, every sample interval.

use super::backend::Backend;
use super::state::Proxy;
use crate::policy::PolicySnapshot;
use crate::telemetry::recorder::KvRow;

/// Writes one row per backend and interval. Never returns; runs as one task beside the gate.
pub async fn run(proxy: &Proxy) -> ! {
    let interval = proxy.gate.clock().machine(proxy.config.sample_interval);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        sample(proxy);
    }
}

/// Writes one row per backend.
pub fn sample(proxy: &Proxy) {
    let (snapshot, held, now) = proxy
        .gate
        .with(|sequencer, now| (sequencer.snapshot(), sequencer.held(), now));
    let at_s = proxy.gate.clock().unix(now);
    let held = u32::try_from(held).unwrap_or(u32::MAX);
    for backend in &proxy.backends {
        proxy.recorder.kv(KvRow {
            records_dropped: proxy.recorder.dropped(),
            ..row(backend, &snapshot, held, at_s)
        });
    }
}

fn row(backend: &Backend, snapshot: &PolicySnapshot, held: u32, at_s: f64) -> KvRow {
    let status = backend.status();
    // A failed scrape leaves a gap in the series, not the value before it.
    let fresh = status.up && status.failures == 0;
    KvRow {
        at_s,
        backend: backend.name(),
        port: backend.url.port(),
        scrape: status
            .scrape
            .filter(|_| fresh)
            .map(|scrape| (*scrape).clone()),
        held,
        policy: snapshot.policy,
        values: snapshot.values.clone(),
        records_dropped: 0,
    }
}
