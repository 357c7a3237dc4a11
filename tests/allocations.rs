//! Heap allocations on the hot path, counted by dhat, which is this binary's allocator.
//!
//! One test only: dhat counts for the whole process, so a test running beside it would be counted too.

#[path = "../benches/support/pressure.rs"]
mod pressure;

use pressure::{Recording, replay};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Allocations per event that a policy may make in steady state.
const BUDGET: f64 = 0.1;

#[test]
fn a_policy_in_steady_state_hardly_allocates() {
    for (name, config) in pressure::all(1_000) {
        let recording = Recording::make(&config, 1_000, 40_000);
        assert!(
            name == "baseline" || recording.held > 100,
            "{name}: only {} held, no pressure",
            recording.held
        );
        let mut policy = recording.warmed_up(&config);
        let profiler = dhat::Profiler::builder().testing().build();
        replay(&mut *policy, recording.measured());
        let allocations = dhat::HeapStats::get().total_blocks;
        drop(profiler);
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let per_event = allocations as f64 / recording.measured().len() as f64;
        println!(
            "{name}: {per_event:.4} allocations per event, {} held",
            recording.held
        );
        assert!(
            per_event <= BUDGET,
            "{name}: {per_event:.4} allocations per event"
        );
    }
}
