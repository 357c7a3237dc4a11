//! Looking at one program and at the policy, changing the policy while requests wait, and the journal of it all.

use http::Method;
use kvgate::harness::journal::replay;
use kvgate::policy::{Config as PolicyConfig, Event};
use kvgate::telemetry::journal::{Line, lines};
use serde_json::json;

use crate::support::client::Ask;
use crate::support::{Gate, Stub, config, fixture, shut};

fn put(gate: &Gate, body: &serde_json::Value) -> Ask {
    Ask::new(gate.addr(), Method::PUT, "/policy").body(body.to_string())
}

#[tokio::test]
async fn a_held_request_is_served_after_a_switch_of_policies() {
    let (mut stub, gate, valve) = shut().await;
    let asking = gate.chat("p", false).spawn();
    valve.holds(1).await;
    let timeline = gate.json("/programs/p").await;
    assert_eq!(timeline["open"][0]["state"], "held", "{timeline}");
    assert!(timeline["open"][0]["hold_reason"].is_string(), "{timeline}");

    let reply = put(&gate, &json!({"policy": "baseline"})).send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json().await["policy"], "baseline");
    stub.call().await.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
    let timeline = gate.json("/programs/p").await;
    assert_eq!(timeline["open"], json!([]));
    assert_eq!(timeline["past"][0]["step"], 0, "{timeline}");
    assert_ne!(
        timeline["past"][0]["hold_reason"],
        json!(null),
        "{timeline}"
    );
}

#[tokio::test]
async fn a_running_request_is_finished_although_the_policy_changed() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let asking = gate.chat("p", false).spawn();
    let call = stub.call().await;
    for name in PolicyConfig::NAMES {
        assert_eq!(
            put(&gate, &json!({"policy": name})).send().await.status,
            200
        );
        assert_eq!(gate.json("/policy").await["policy"], *name);
    }
    call.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
}

#[tokio::test]
async fn every_policy_shows_its_settings_totals_and_estimates_and_so_do_the_metrics() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for name in PolicyConfig::NAMES {
        put(&gate, &json!({"policy": name})).send().await;
        let asking = gate.chat("p", false).spawn();
        stub.call().await.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
        gate.quiet().await;

        let (state, metrics) = (gate.json("/policy").await, gate.metrics().await);
        let settings = serde_json::to_value(PolicyConfig::by_name(name).unwrap()).unwrap();
        assert_eq!(state["settings"], settings);
        let values = state["values"].as_object().unwrap();
        assert!(
            name == "baseline" || values["hold_timeout_s"].as_f64() > Some(0.0),
            "{state}"
        );
        // The recorded answer told how long its prompt was.
        assert!(
            state["estimates"]["prompt_bytes_per_token"].as_f64() > Some(0.0),
            "{state}"
        );
        for (part, series, label) in [
            ("values", "kvgate_policy_value", "name"),
            ("estimates", "kvgate_policy_estimate", "name"),
            ("pins", "kvgate_pins_total", "outcome"),
        ] {
            let shown = metrics.lines().filter(|line| line.starts_with(series));
            let told = state[part].as_object().unwrap();
            assert_eq!(
                shown.count(),
                told.len(),
                "{name}, {part}: the last policy's are gone"
            );
            for key in told.keys() {
                let sample = format!("{series}{{{label}=\"{key}\",policy=\"{name}\"}} ");
                assert!(metrics.contains(&sample), "{sample}");
            }
        }
    }
}

#[tokio::test]
async fn a_pin_that_waits_for_its_programs_return_is_counted_as_handed_off() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let settings = json!({"ttl_mode": "fixed", "ttl_fixed_s": 60.0});
    put(&gate, &json!({"policy": "continuum", "settings": settings}))
        .send()
        .await;
    for _ in 0..2 {
        let asking = gate.chat("p", false).spawn();
        stub.call().await.answer(&fixture("tool-required")).await;
        assert_eq!(asking.await.unwrap().status, 200);
        gate.quiet().await;
    }
    let state = gate.json("/policy").await;
    assert_eq!(state["pins"]["handed_off"], 1, "{state}");
    assert_eq!(state["values"]["pins"], 1.0, "{state}");
    assert_eq!(state["estimates"]["ttl_mean_s"], 60.0, "{state}");
}

#[tokio::test]
async fn settings_that_are_null_are_the_defaults_as_those_left_out() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let defaults = PolicyConfig::by_name("continuum").unwrap();
    let defaults = serde_json::to_value(defaults).unwrap();
    let other = json!({"policy": "continuum", "settings": {"headroom": 0.3}});
    for left_open in [
        json!({"policy": "continuum"}),
        json!({"policy": "continuum", "settings": null}),
        json!({"policy": "continuum", "settings": {}}),
    ] {
        let reply = put(&gate, &other).send().await.json().await;
        assert_ne!(reply["settings"], defaults);
        let reply = put(&gate, &left_open).send().await;
        assert_eq!(reply.status, 200, "{left_open}");
        assert_eq!(reply.json().await["settings"], defaults, "{left_open}");
    }
}

#[tokio::test]
async fn a_policy_that_cannot_be_says_why_and_changes_nothing() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let settings = gate.json("/policy").await["settings"].clone();
    for (body, words) in [
        (json!({"policy": "fifo"}), "choose one of baseline"),
        (
            json!({"policy": "continuum", "settings": {"headroom": 2.0}}),
            "continuum.headroom",
        ),
        (
            json!({"policy": "continuum", "settings": {"ttl": 1}}),
            "unknown field `ttl`",
        ),
        (
            json!({"policy": "continuum", "settings": {"headroom": null}}),
            "invalid type: null",
        ),
        (json!({"name": "continuum"}), "unknown field `name`"),
    ] {
        let reply = put(&gate, &body).send().await;
        assert_eq!(reply.status, 400);
        let error = reply.json().await;
        assert_eq!(error["error"]["code"], "bad_policy");
        assert!(
            error["error"]["message"].as_str().unwrap().contains(words),
            "{error}"
        );
    }
    let after = gate.json("/policy").await;
    assert_eq!(after["policy"], PolicyConfig::default().name());
    assert_eq!(after["settings"], settings);
}

#[tokio::test]
async fn only_who_knows_the_token_switches_policies() {
    let stub = Stub::start().await;
    let mut config = config(&[&stub]);
    config.admin_token = Some("secret".to_owned());
    let gate = Gate::start(config).await.up().await;
    let body = json!({"policy": "continuum"});
    assert_eq!(put(&gate, &body).send().await.status, 401);
    let wrong = put(&gate, &body).header("authorization", "Bearer guess");
    assert_eq!(wrong.send().await.status, 401);
    let right = put(&gate, &body).header("authorization", "Bearer secret");
    assert_eq!(right.send().await.status, 200);
}

#[test]
fn a_gate_listens_to_its_own_machine_unless_told_otherwise() {
    assert!(kvgate::proxy::Config::default().listen.ip().is_loopback());
}

#[tokio::test]
async fn a_program_nobody_knows_is_not_found() {
    let stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let reply = gate.get("/programs/tau2:retail:[x]:1").send().await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json().await["error"]["code"], "unknown_program");
}

#[tokio::test]
async fn a_journal_of_a_run_replays_to_the_same_decisions() {
    let mut stub = Stub::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let mut config = config(&[&stub]);
    config.policy = PolicyConfig::by_name("continuum").unwrap();
    config.journal = Some(path.clone());
    let gate = Gate::start(config).await.up().await;
    for program in ["a", "b", "a"] {
        let asking = gate.chat(program, false).spawn();
        stub.call().await.answer(&fixture("chat")).await;
        assert_eq!(asking.await.unwrap().status, 200);
    }
    let running = gate.chat("c", false).spawn();
    let call = stub.call().await;
    assert_eq!(
        put(&gate, &json!({"policy": "thunderreact"}))
            .send()
            .await
            .status,
        200
    );
    let asking = gate.chat("b", false).spawn();
    stub.call().await.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    call.answer(&fixture("chat")).await;
    assert_eq!(running.await.unwrap().status, 200);
    gate.drain().await;

    for other in [None, Some("kvgate")] {
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let outcome = replay(lines(file), other).unwrap();
        let differs = other.is_none() && outcome.different > 0;
        assert!(!differs && outcome.lost == 0, "{outcome:?}");
        assert_eq!(outcome.arrivals.values().sum::<u64>(), 5, "{outcome:?}");
    }
    let read: Vec<_> = lines(std::io::BufReader::new(std::fs::File::open(&path).unwrap()))
        .map(Result::unwrap)
        .collect();
    let adopted = |line: &&Line| {
        matches!(
            line,
            Line::Told {
                event: Event::Adopt(_),
                ..
            }
        )
    };
    assert_eq!(
        read.iter().filter(adopted).count(),
        3,
        "a and b are idle, c runs"
    );
}
