//! Watching a stream pass allocates nothing for a frame that lies inside one chunk.

use bytes::Bytes;
use kvgate::telemetry::StreamObserver;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const ROLE: &[u8] =
    b"data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const CONTENT: &[u8] = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" the\"},\"finish_reason\":null}]}\n\n";
const FINISH: &[u8] =
    b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &[u8] = b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":100}}\n\ndata: [DONE]\n\n";

/// Heap blocks asked for while `frames` content frames pass.
fn blocks_for(hide_usage: bool, frames: usize) -> u64 {
    let mut observer = StreamObserver::new(hide_usage);
    let before = dhat::HeapStats::get().total_blocks;
    let mut forwarded = 0;
    let chunks = std::iter::once(ROLE)
        .chain(std::iter::repeat_n(CONTENT, frames))
        .chain([FINISH, USAGE]);
    for chunk in chunks {
        observer.push(Bytes::from_static(chunk), &mut |bytes| {
            forwarded += bytes.len();
        });
    }
    assert!(observer.facts().done && forwarded > frames * CONTENT.len());
    dhat::HeapStats::get().total_blocks - before
}

#[test]
fn frames_inside_a_chunk_cost_no_allocation() {
    let _profiler = dhat::Profiler::builder().testing().build();
    for hide_usage in [false, true] {
        // The first stream of a process makes what is made once, and the test harness has threads of its own:
        // the quietest of a few runs is what the observer asks for.
        let quietest = (0..5).map(|_| blocks_for(hide_usage, 1000)).min();
        assert_eq!(quietest, Some(0), "hide_usage: {hide_usage}");
    }
}
