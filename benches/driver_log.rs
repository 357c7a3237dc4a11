//! What reading the reference experiment's files costs, in memory: a log of a real driver, cut into lines that hold
//! an event, and into events; and its samples.
//!
//! Throughput is in bytes of the file. `tests/throughput.py` measures a whole command on a gigabyte.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use kvgate::harness::reference::driver_log::{MARKS, Parser};
use kvgate::harness::reference::kv;
use kvgate::harness::reference::lines::Finder;

const LOG: &[u8] = include_bytes!("../tests/fixtures/reference/real-driver-run/driver.log");
const TABLE: &[u8] =
    include_bytes!("../tests/fixtures/reference/real-driver-run/kv_cache_timeseries.csv");

/// Copies of the log: a few megabytes, more than a cache holds.
const COPIES: usize = 32;

#[expect(clippy::expect_used, reason = "a bench may stop at the first surprise")]
fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let log = LOG.repeat(COPIES);
    let mut group = criterion.benchmark_group("driver_log");
    group.throughput(Throughput::Bytes(log.len() as u64));
    let ended = Finder::new(&["FINISHED SIMULATION", "type=step_complete"]).expect("two texts");
    group.bench_function("lines of ended tasks and steps", |bencher| {
        bencher.iter(|| {
            let mut found = 0;
            let scanned = ended.lines(log.as_slice(), |line| found += line.len());
            black_box((scanned.is_ok(), found))
        });
    });
    let (finder, parser) = (
        Finder::new(&MARKS).expect("few texts"),
        Parser::new().expect("few texts"),
    );
    group.bench_function("events", |bencher| {
        bencher.iter(|| {
            let mut events = 0_u32;
            let each = |line: &[u8]| {
                let line = String::from_utf8_lossy(line);
                parser.events(&line, |event| events += u32::from(event.is_ok()));
            };
            let scanned = finder.lines(log.as_slice(), each);
            black_box((scanned.is_ok(), events))
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("kv_cache_timeseries");
    group.throughput(Throughput::Bytes(TABLE.len() as u64));
    group.bench_function("samples", |bencher| {
        bencher.iter(|| {
            let mut sum = 0.0;
            let mut each = |row: &kv::Row<'_>| sum += row.sample.usage_percent;
            let mut reader = kv::Reader::default();
            let fed = reader.feed(black_box(TABLE), &mut each);
            (fed, reader.finish(&mut each), sum)
        });
    });
    group.finish();
    criterion.final_summary();
}
