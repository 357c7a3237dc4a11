//! Events per second that each policy takes, and allocations per event, with 1,000 and 100,000 programs under KV
//! pressure.
//!
//! Why: the gate calls the policy inline for every request, so the policy's speed bounds the gate's, and it must
//! not depend on how many programs are known. Measured is [`kvgate::policy::Policy::handle`] through `dyn`, on a
//! recorded run in which about four times as many programs want to run as fit and most of the rest is held;
//! the state that the run starts from is built outside the measurement. The buffer for decisions is reused, as
//! the gate reuses it. Not measured: locks, wakeups and the JSON around it. Allocations are counted on one more
//! run, after the timed ones; while none is counted, the counting allocator costs an allocation a few
//! nanoseconds.
#![expect(clippy::print_stdout, reason = "a bench says what it measured")]

#[path = "support/pressure.rs"]
mod pressure;

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use kvgate::policy::Config;
use pressure::{Recording, replay};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

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
            let counted = allocations_per_event(&recording, &config);
            println!("policy/{name}/{programs}: {counted:.4} allocations per event");
        }
    }
    group.finish();
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn allocations_per_event(recording: &Recording, config: &Config) -> f64 {
    let mut policy = recording.warmed_up(config);
    let profiler = dhat::Profiler::builder().testing().build();
    replay(&mut *policy, recording.measured());
    let allocations = dhat::HeapStats::get().total_blocks;
    drop(profiler);
    allocations as f64 / recording.measured().len() as f64
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    events_per_second(&mut criterion);
    criterion.final_summary();
}
