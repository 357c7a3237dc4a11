//! What `kvgate serve` says when it starts, as its users read it: of the policy, and of a backend that tells too little.

use std::net::SocketAddr;
use std::process::Stdio;

use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{Ask, Stub, within};

const CAPACITY: &str = "vllm:cache_config_info{kv_cache_size_tokens=\"5000\"} 1\n";
const ADVICE: &str = "a request without a program passes at once";
const WARNING: &str = "tell no KV capacity";

/// What a `kvgate serve` with these flags logs, until it has scraped `metrics` of `stub` at least twice.
async fn log_of(stub: &Stub, metrics: &str, flags: &[&str]) -> Vec<String> {
    log_after_switches(stub, metrics, flags, &[]).await.0
}

/// As [`log_of`], until these policies then took over, with what each was answered.
async fn log_after_switches(
    stub: &Stub,
    metrics: &str,
    flags: &[&str],
    policies: &[&str],
) -> (Vec<String>, Vec<Value>) {
    stub.set_metrics(metrics);
    let mut gate = Command::new(env!("CARGO_BIN_EXE_kvgate"))
        .args(["serve", "--listen", "127.0.0.1:0", "--backend", &stub.url()])
        .args(["--scrape-interval", "0.1"])
        .args(flags)
        .env_remove("KVGATE_POLICY")
        .env_remove("KVGATE_LOG")
        .env("NO_COLOR", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(gate.stdout.take().unwrap()).lines();
    let line = within(output.next_line()).await.unwrap().unwrap();
    let addr = line.strip_prefix("listening on http://").unwrap();
    for running in ["7.0", "8.0"] {
        let told = format!("vllm:num_requests_running{{engine=\"0\"}} {running}\n");
        stub.set_metrics(&format!("{metrics}{told}"));
        within(has_scraped(addr.parse().unwrap(), running)).await;
    }
    let mut answers = Vec::new();
    for policy in policies {
        let body = json!({ "policy": policy }).to_string();
        let put = Ask::new(addr.parse().unwrap(), Method::PUT, "/policy").body(body);
        answers.push(put.send().await.json().await);
    }
    gate.start_kill().unwrap();
    let log = within(gate.wait_with_output()).await.unwrap().stderr;
    let log = String::from_utf8(log).unwrap();
    (log.lines().map(str::to_owned).collect(), answers)
}

/// Returns when the gate shows that `running` requests run on its backend.
async fn has_scraped(gate: SocketAddr, running: &str) {
    let is_told =
        |line: &str| line.starts_with("vllm:num_requests_running") && line.ends_with(running);
    loop {
        let reply = Ask::new(gate, Method::GET, "/metrics").send().await;
        let page = String::from_utf8(reply.bytes().await).unwrap();
        if page.lines().any(is_told) {
            return;
        }
    }
}

fn count(log: &[String], words: &str) -> usize {
    log.iter().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn the_default_policy_is_kvgate_and_says_when_everything_passes() {
    let stub = Stub::start().await;
    let log = log_of(&stub, CAPACITY, &[]).await;
    assert_eq!(count(&log, "serving policy=\"kvgate\""), 1, "{log:#?}");
    for words in [
        ADVICE,
        "KV capacity",
        "--enable-prompt-tokens-details",
        "--policy baseline is the plain proxy",
    ] {
        assert_eq!(count(&log, words), 1, "{words}: {log:#?}");
    }
    assert_eq!(count(&log, "WARN"), 0, "{log:#?}");
}

#[tokio::test]
async fn a_backend_that_tells_no_capacity_is_warned_of_once_where_the_policy_needs_it() {
    let stub = Stub::start().await;
    let log = log_of(&stub, "", &[]).await;
    assert_eq!(count(&log, WARNING), 1, "{log:#?}");
    let warning = log.iter().find(|line| line.contains(WARNING)).unwrap();
    assert!(
        warning.contains("WARN") && warning.contains(&stub.url()),
        "{warning}"
    );
    let plain = log_of(&stub, "", &["--policy", "baseline"]).await;
    assert_eq!(
        count(&plain, "serving policy=\"baseline\""),
        1,
        "{plain:#?}"
    );
    assert_eq!(count(&plain, WARNING) + count(&plain, ADVICE), 0);
}

#[tokio::test]
async fn a_switch_to_a_policy_that_needs_the_capacity_warns_as_the_start_does() {
    let stub = Stub::start().await;
    let flags = ["--policy", "baseline"];
    let switches = ["kvgate", "baseline"];
    let (log, answers) = log_after_switches(&stub, "", &flags, &switches).await;
    assert_eq!(count(&log, WARNING), 1, "{log:#?}");
    let warning = log.iter().find(|line| line.contains(WARNING)).unwrap();
    for words in ["WARN", &stub.url(), "policy=\"kvgate\""] {
        assert!(warning.contains(words), "{words}: {warning}");
    }
    let told = answers[0]["warnings"][0].as_str().unwrap();
    assert!(
        told.contains(WARNING) && told.contains(&stub.url()),
        "{told}"
    );
    assert_eq!(answers[1]["warnings"], json!([]));
    let (log, answers) = log_after_switches(&stub, CAPACITY, &flags, &switches).await;
    assert_eq!(count(&log, WARNING), 0, "{log:#?}");
    assert_eq!(answers[0]["warnings"], json!([]));
}
