//! How many allocations one proxied request costs, everything included: HTTP both ways, identity, decision,
//! relay and record.
//!
//! The stub and the client are blocking threads with fixed buffers, so that what is counted is the gate. The
//! bound was set by the first measurement and is only ever lowered.

#[path = "../benches/support/bodies.rs"]
mod bodies;
#[path = "../benches/support/loopback.rs"]
mod loopback;

use std::time::Duration;

use kvgate::policy;
use kvgate::proxy::{self, Config};
use loopback::Client;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Allocations per request.
const BOUND: f64 = 23.0;
const REQUESTS: u32 = 2_000;

#[test]
fn a_proxied_request_stays_within_its_allocations() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let backend = loopback::stub();
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        backends: vec![format!("http://{backend}").parse().unwrap()],
        policy: policy::Config::by_name("continuum").unwrap(),
        // Nothing but requests happens while they are counted.
        scrape_interval: Duration::from_secs(3600),
        sample_interval: Duration::from_secs(3600),
        ..Config::default()
    };
    let gate = runtime.block_on(proxy::start(config)).unwrap();
    let addr = gate.addr();
    let (done, counted) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut client = Client::connect(addr, &bodies::chat_body(32 << 10));
        let mut run = |requests: u32| {
            for _ in 0..requests {
                client.call();
            }
        };
        run(REQUESTS / 4);
        let _profiler = dhat::Profiler::builder().testing().build();
        let before = dhat::HeapStats::get().total_blocks;
        run(REQUESTS);
        done.send(dhat::HeapStats::get().total_blocks - before)
    });
    let blocks = runtime.block_on(counted).unwrap();
    let per_request = f64::from(u32::try_from(blocks).unwrap()) / f64::from(REQUESTS);
    println!("{per_request:.1} allocations per proxied request of 32 KiB");
    assert!(
        per_request > 5.0,
        "the count is broken: HTTP alone costs more than {per_request}"
    );
    assert!(
        per_request <= BOUND,
        "{per_request:.1} allocations, of {BOUND} allowed"
    );
}
