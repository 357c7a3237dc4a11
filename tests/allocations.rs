//! Heap allocations on the hot path, counted by dhat, which is this binary's allocator.
//!
//! One test only: dhat counts for the whole process, so a test running beside it would be counted too. It tells two
//! stories, of events and of bytes, the latter of policies and of program inference.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may fail as loudly as the test"
)]

#[path = "../benches/support/pressure.rs"]
mod pressure;

use std::time::Duration;

use kvgate::policy::{
    Arrival, BackendId, Config, Decisions, Event, GapKind, Outcome, ProgramId, RequestId, Time,
    Tokens, ToolId, Usage,
};
use kvgate::proxy::infer::{Conversation, Inference, Limits, ReplyHasher};
use pressure::{Recording, replay};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Allocations per event that a policy may make in steady state.
const BUDGET: f64 = 0.1;

/// Bytes that a policy may keep for a program between two of its steps.
const IDLE_BYTES: f64 = 300.0;
const IDLE: u32 = 50_000;

#[test]
fn a_policy_in_steady_state_hardly_allocates_and_an_idle_program_is_small() {
    for (name, config) in pressure::all(IDLE) {
        let bytes = bytes_per_idle_program(&name, &config);
        println!("{name}: {bytes:.0} bytes per idle program");
        assert!(bytes <= IDLE_BYTES, "{name}: {bytes:.0} bytes");
    }
    let bytes = bytes_per_inferred_program();
    println!("inference: {bytes:.0} bytes per idle program");
    assert!(bytes <= IDLE_BYTES, "inference: {bytes:.0} bytes");
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

/// Heap that the table of inferred programs keeps for each that was answered once.
fn bytes_per_inferred_program() -> f64 {
    let profiler = dhat::Profiler::builder().testing().build();
    let mut infer = Inference::new(Limits {
        max_programs: usize::MAX,
        idle: Duration::MAX,
    });
    for program in 0..IDLE {
        let messages = format!(r#"[{{"role": "user", "content": "{program}"}}]"#);
        let asked = Conversation::read("m", messages.as_bytes()).unwrap();
        let step = infer.arrive(Time::ZERO, &asked).unwrap().ticket;
        let mut reply = ReplyHasher::whole();
        reply
            .push(format!(r#"{{"choices":[{{"message":{{"content":"{program}"}}}}]}}"#).as_bytes());
        infer.replied(Time::ZERO, step, reply.digest().unwrap());
        infer.finished(Time::ZERO, step);
    }
    let bytes = dhat::HeapStats::get().curr_bytes;
    assert_eq!(infer.len(), IDLE as usize);
    drop(profiler);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let bytes = bytes as f64;
    bytes / f64::from(IDLE)
}

/// Heap that remains per program after each has made one step and begun its tool gap.
fn bytes_per_idle_program(name: &str, config: &Config) -> f64 {
    let profiler = dhat::Profiler::builder().testing().build();
    let mut policy = config.build_unchecked();
    let mut out = Decisions::new();
    let mut tell = |event| {
        policy.handle(Time::ZERO, &event, &mut out);
        out.clear();
    };
    tell(Event::BackendUp {
        backend: BackendId(0),
        kv_capacity: Some(Tokens(u64::from(IDLE) * 4000)),
    });
    let request = RequestId(0);
    for program in (0..IDLE).map(ProgramId) {
        tell(Event::Arrive(Arrival {
            request,
            program: Some(program),
            prompt: Tokens(1000),
            shared: None,
            last_step: false,
            name_hash: 0,
        }));
        tell(Event::Finish {
            request,
            outcome: Outcome::ToolCalls,
            usage: Some(Usage {
                prompt: Tokens(1000),
                cached: None,
                output: Tokens(100),
            }),
        });
        tell(Event::ToolGap {
            program,
            kind: GapKind::Tool(ToolId(1)),
        });
    }
    let known = policy.snapshot().programs;
    assert!(name == "baseline" || known == IDLE, "{name}: {known} known");
    let bytes = dhat::HeapStats::get().curr_bytes;
    drop(profiler);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let bytes = bytes as f64;
    bytes / f64::from(IDLE)
}
