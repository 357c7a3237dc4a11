//! A calibration of the embedded engine, over real sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use super::*;
use crate::harness::cost_file;
use crate::harness::engine::core::{Config, Lookups, Scheduling};
use crate::harness::engine::{EngineConfig, listen, serve};

/// A slow device, so that what this machine adds is small beside it.
const SLOW: CostModel = CostModel {
    iteration_s: 0.05,
    weights_s: 0.10,
    token_s: 1e-3,
    decode_context_s: 2e-5,
    prefill_pair_s: 1e-7,
    decode_s: 2e-3,
    http_s: 0.02,
    http_token_s: 1e-5,
};

fn args(url: String, out: PathBuf, time_scale: f64) -> CalibrateArgs {
    CalibrateArgs {
        url,
        out,
        points: None,
        model: None,
        max_num_batched_tokens: 512,
        rounds: 1,
        time_scale,
        quiet: true,
    }
}

/// An engine of these constants, ten times as fast as it says.
fn engine() -> String {
    let config = EngineConfig {
        core: Config {
            blocks: 301,
            block_size: 16,
            max_num_seqs: 8,
            max_num_batched_tokens: 512,
            scheduling: Scheduling::Fcfs,
            lookups: Lookups::Admission,
            cost: SLOW,
        },
        models: vec!["slow".to_owned()],
        max_model_len: 2_048,
        speedup: 10.0,
        seed: 7,
        tau2: true,
        max_requests: 64,
    };
    let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(config, listener, std::future::pending()));
    url
}

/// What can be said of times on a machine that does other things as well: each point was measured, and no first token
/// came before the engine could have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_is_measured_and_its_points_are_what_it_does() {
    let plan = Plan {
        prompts: vec![64, 256, 1_024, 4_096],
        contexts: vec![128, 1_024],
        batches: vec![1, 4, 32],
        output: 8,
        rounds: 1,
    };
    let dir = tempfile::tempdir().unwrap();
    let args = args(engine(), dir.path().join("slow.toml"), 10.0);
    let measured = measure(&args, &plan).await.unwrap();
    assert_eq!(
        (measured.model.as_str(), measured.kv_tokens),
        ("slow", 4_800)
    );
    // 4,096 tokens are more than a request may have, and 32 take their place; 32 sequences are more than the cache holds.
    let first = |point: &&Point| matches!(point, Point::FirstToken { .. });
    assert_eq!(measured.points.iter().filter(first).count(), 2 * 4);
    assert_eq!(measured.points.len(), 2 * 4 + 2 + 2);
    let cached = |point: &&Point| matches!(point, Point::FirstToken { cached, .. } if *cached > 0);
    assert_eq!(measured.points.iter().filter(cached).count(), 4);
    for point in measured.points.iter().filter(first) {
        let least = point.predicted_s(&SLOW, measured.server());
        assert!(
            point.seconds() > 0.99 * least,
            "{point:?}: at least {least}"
        );
    }
}

#[tokio::test]
async fn points_are_fitted_again_without_a_server_and_the_preset_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slow.points.json");
    let first = |prompt, cached| Point::FirstToken {
        prompt,
        cached,
        seconds: 0.0,
    };
    let decode = |batch, context| Point::Decode {
        batch,
        context,
        seconds: 0.0,
    };
    let mut measurement = Measurement {
        model: "slow".to_owned(),
        max_num_batched_tokens: 512,
        kv_tokens: 4_800,
        points: vec![
            first(64, 0),
            first(64, 48),
            first(256, 0),
            first(1_024, 0),
            first(1_024, 1_008),
            first(2_048, 0),
            decode(1, 128.0),
            decode(4, 128.0),
            decode(1, 1_024.0),
            decode(4, 1_024.0),
        ],
    };
    let server = measurement.server();
    for point in &mut measurement.points {
        let exact = point.predicted_s(&SLOW, server);
        match point {
            Point::FirstToken { seconds, .. } | Point::Decode { seconds, .. } => *seconds = exact,
        }
    }
    std::fs::write(&path, serde_json::to_string(&measurement).unwrap()).unwrap();
    let mut args = args(String::new(), dir.path().join("slow.toml"), 1.0);
    args.points = Some(path);
    run(&args).await.unwrap();
    let cost = cost_file::load(args.out.to_str().unwrap()).unwrap();
    for ((name, found), (_, known)) in cost.constants().into_iter().zip(SLOW.constants()) {
        assert!(
            (found / known - 1.0).abs() < 1e-6,
            "{name}: {found} for {known}"
        );
    }
    let table = table(&measurement.points, &cost, server);
    assert!(table.contains("first token, 1024, 1008 cached"), "{table}");
    assert!(table.contains("decode, 4 x 128"), "{table}");
}

#[test]
fn points_lie_beside_a_file_and_beside_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("slow.toml");
    let points = Some(dir.path().join("slow.points.json"));
    assert_eq!(beside(&out), points);
    std::fs::write(&out, "an earlier one").unwrap();
    assert_eq!(beside(&out), points);
    let (_reader, writer) = std::io::pipe().unwrap();
    let pipe = PathBuf::from(format!("/dev/fd/{}", writer.as_raw_fd()));
    assert_eq!(beside(&pipe), None);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let args = args("http://127.0.0.1:9".to_owned(), PathBuf::new(), 1.0);
    let error = format!("{:#}", measure(&args, &Plan::default()).await.unwrap_err());
    assert!(
        error.contains("cannot reach http://127.0.0.1:9/v1/models"),
        "{error}"
    );
}
