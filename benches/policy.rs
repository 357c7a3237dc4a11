//! Events per second that each policy takes, with 1,000 and 100,000 programs under KV pressure.
//!
//! Why: the gate calls the policy inline for every request, so the policy's speed bounds the gate's, and it must
//! not depend on how many programs are known. Measured is [`kvgate::policy::Policy::handle`] through `dyn`, on a
//! recorded run in which about four times as many programs want to run as fit and most of the rest is held;
//! the state that the run starts from is built outside the measurement. The buffer for decisions is reused, as
//! the gate reuses it. Not measured: locks, wakeups and the JSON around it.

#[path = "support/pressure.rs"]
mod pressure;

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use pressure::{Recording, replay};

fn events_per_second(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    group.sample_size(10);
    for (programs, events) in [(1_000, 20_000), (100_000, 200_000_usize)] {
        group.throughput(Throughput::Elements(events as u64));
        for (name, config) in pressure::all(programs) {
            let recording = Recording::make(&config, programs, events);
            let measured = &recording.measured()[..events];
            assert!(
                name == "baseline" || recording.held > programs / 4,
                "{name}: only {} held, no pressure",
                recording.held
            );
            let id = BenchmarkId::new(&name, programs);
            group.bench_function(id, |bencher| {
                bencher.iter_batched_ref(
                    || recording.warmed_up(&config),
                    |policy| replay(&mut **policy, black_box(measured)),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    events_per_second(&mut criterion);
    criterion.final_summary();
}
