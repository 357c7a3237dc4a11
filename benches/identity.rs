//! What reading a request costs: one scan for model, stream, program and last step, with no tree built.
//!
//! Bodies are agent histories of 1, 32 and 256 KiB with the program's id behind the messages. The figure to
//! watch is time per body: it is paid once per request, before anything is forwarded.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use http::HeaderMap;
use kvgate::proxy::identity::Source;
use kvgate::proxy::request::{Api, RequestView};

#[path = "support/bodies.rs"]
mod bodies;

fn identity(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("identity_scan");
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let sources = Source::defaults();
    let headers = HeaderMap::new();
    for kib in [1, 32, 256] {
        let body = bodies::chat_body(kib << 10);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(
            BenchmarkId::from_parameter(format!("{kib}KiB")),
            &body,
            |bencher, body| {
                bencher.iter(|| {
                    RequestView::parse(
                        Api::Completions,
                        &headers,
                        black_box(body.as_bytes()),
                        &sources,
                    )
                });
            },
        );
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    identity(&mut criterion);
    criterion.final_summary();
}
