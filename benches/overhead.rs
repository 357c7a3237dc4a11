//! What the gate adds to a request: latency against going direct, and CPU time of its process.
//!
//! A stub answers at once, so everything beyond `direct` is the gate: reading, deciding, forwarding, relaying,
//! recording. `direct` and `gate` run in one process, side by side; compare them within one run only. The CPU
//! figure (printed first) is user and system time of a gate process of its own over 20,000 requests per body
//! size; it is the stable one on a busy machine.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measurement stops at the first surprise, and prints"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};

#[path = "support/bodies.rs"]
mod bodies;
#[path = "support/loopback.rs"]
mod loopback;

use loopback::Client;

const SIZES_KIB: [usize; 3] = [1, 32, 256];
const REQUESTS: u32 = 20_000;

/// A `kvgate serve` of its own in front of `backend`, killed on drop.
struct Gate {
    child: Child,
    addr: SocketAddr,
}

impl Gate {
    fn start(backend: SocketAddr, policy: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvgate"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--backend",
                &format!("http://{backend}"),
                "--policy",
                policy,
            ])
            .env("KVGATE_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the gate starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the gate says where it listens");
        let addr = line
            .trim()
            .trim_start_matches("listening on http://")
            .parse()
            .expect("an address");
        Self { child, addr }
    }

    /// User and system time of the process so far.
    fn cpu(&self) -> Duration {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let fields: Vec<u64> = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse().ok())
            .collect();
        // USER_HZ is 100 on every Linux that Rust runs on.
        Duration::from_millis(fields.iter().sum::<u64>() * 10)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// CPU microseconds per request, for each policy and body size.
fn cpu_per_request(requests: u32) {
    let backend = loopback::stub();
    for policy in kvgate::policy::Config::NAMES {
        for kib in SIZES_KIB {
            let gate = Gate::start(backend, policy);
            let mut client = Client::connect(gate.addr, &bodies::chat_body(kib << 10));
            for _ in 0..requests / 10 {
                client.call();
            }
            let before = gate.cpu();
            for _ in 0..requests {
                client.call();
            }
            let spent = gate.cpu().saturating_sub(before).as_secs_f64() * 1e6 / f64::from(requests);
            println!("cpu/{policy}/{kib}KiB: {spent:.1} µs per request over {requests} requests");
        }
    }
}

fn overhead(criterion: &mut Criterion) {
    // `cargo bench -- --test` only checks that everything runs.
    let requests = if std::env::args().any(|arg| arg == "--test") {
        100
    } else {
        REQUESTS
    };
    cpu_per_request(requests);
    let backend = loopback::stub();
    let gate = Gate::start(backend, "continuum");
    let mut group = criterion.benchmark_group("latency");
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    for kib in SIZES_KIB {
        let body = bodies::chat_body(kib << 10);
        for (name, addr) in [("direct", backend), ("gate", gate.addr)] {
            let mut client = Client::connect(addr, &body);
            group.bench_function(BenchmarkId::new(name, format!("{kib}KiB")), |bencher| {
                bencher.iter(|| client.call());
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    overhead(&mut criterion);
    criterion.final_summary();
}
