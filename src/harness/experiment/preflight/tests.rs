//! Stories of the preflight.

use std::net::TcpListener;
use std::path::Path;

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::*;

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/preflight").join(name)
}

/// What was found, without the clock and the zone of the machine that tests this.
async fn found(asked: &Asked) -> Vec<Finding> {
    let mut findings = check(asked).await;
    findings.retain(|finding| !matches!(finding.what.as_str(), "clock" | "time zone"));
    findings
}

/// The only thing that was found.
async fn only(asked: &Asked) -> Finding {
    let mut findings = found(asked).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

/// A server with these answers to `/health` and `/v1/models`.
async fn serve(health: StatusCode, models: Result<&'static str, StatusCode>) -> String {
    let models = move || async move {
        match models {
            Ok(id) => Ok(Json(json!({"object": "list", "data": [{"id": id}]}))),
            Err(status) => Err(status),
        }
    };
    let app = Router::new()
        .route("/health", get(move || async move { health }))
        .route("/v1/models", get(models));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

fn endpoint(url: String, model: Option<&str>) -> Asked {
    Asked {
        endpoints: vec![Endpoint {
            url,
            what: "expert-1".to_owned(),
            model: model.map(str::to_owned),
            key: None,
        }],
        ..Asked::default()
    }
}

#[tokio::test]
async fn nothing_asked_for_is_nothing_found() {
    assert_eq!(found(&Asked::default()).await, []);
    assert_eq!(to_text(&[]), "preflight: all is well\n");
    assert!(!is_fatal(&[]));
}

#[tokio::test]
async fn every_problem_is_named_at_once_one_line_each() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked {
        ports: vec![Port {
            addr: taken.local_addr().unwrap(),
            what: "the gate".to_owned(),
            flag: "--listen".to_owned(),
        }],
        keys: vec![Key {
            variable: "KVGATE_TEST_NO_SUCH_KEY".to_owned(),
            used_for: "the experts".to_owned(),
        }],
        paths: vec![PathNeed {
            path: dir.path().join("model"),
            what: "the model".to_owned(),
            flag: "--model-path".to_owned(),
        }],
        disk: Some(Disk {
            path: dir.path().join("not/made/yet"),
            bytes: u64::MAX,
        }),
        open_files: u64::MAX,
        gpu: Some(GpuNeed {
            program: "no-such-nvidia-smi".into(),
            ..GpuNeed::default()
        }),
        commands: vec![CommandNeed {
            program: "no-such-ssh".into(),
            used_for: "the tunnel".to_owned(),
        }],
        interpreter: Some(Interpreter {
            python: fixture("python"),
            imports: vec!["json".to_owned(), "pandas".to_owned()],
            flag: "--tau2-python".to_owned(),
        }),
        ..endpoint(closed, None)
    };
    let findings = found(&asked).await;
    let text = to_text(&findings);
    assert!(is_fatal(&findings));
    let expected = [
        "the gate on 127.0.0.1",
        "$KVGATE_TEST_NO_SUCH_KEY",
        "model: no such file",
        "disk of",
        // A process may have no limit, and then there is nothing to find.
        "no-such-nvidia-smi",
        "no-such-ssh",
        "it lacks pandas",
        "expert-1 at http://",
        "connection refused",
    ];
    for part in expected {
        assert!(
            text.to_lowercase().contains(&part.to_lowercase()),
            "{part} is not in\n{text}"
        );
    }
    assert_eq!(text.lines().count(), findings.len() + 1, "{text}");
    assert!(
        text.starts_with(&format!(
            "preflight: {} errors, 0 warnings\n",
            findings.len()
        )),
        "{text}"
    );
}

#[tokio::test]
async fn a_free_port_a_set_key_a_readable_path_and_a_program_in_place_are_no_problem() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked {
        ports: vec![Port {
            addr: "127.0.0.1:0".parse().unwrap(),
            what: "the gate".to_owned(),
            flag: "--listen".to_owned(),
        }],
        keys: vec![Key {
            variable: "PATH".to_owned(),
            used_for: "a test".to_owned(),
        }],
        paths: vec![PathNeed {
            path: dir.path().to_owned(),
            what: "the model".to_owned(),
            flag: "--model-path".to_owned(),
        }],
        disk: Some(Disk {
            path: dir.path().join("not/made/yet"),
            bytes: 1,
        }),
        open_files: 3,
        commands: vec![CommandNeed {
            program: "sh".into(),
            used_for: "a test".to_owned(),
        }],
        ..Asked::default()
    };
    assert_eq!(found(&asked).await, []);
}

#[tokio::test]
async fn a_server_is_up_if_it_is_healthy_or_lists_its_models_or_wants_a_key() {
    let (good, none) = (StatusCode::OK, StatusCode::NOT_FOUND);
    for (health, models) in [
        (good, Ok("m")),
        (good, Err(none)),
        (none, Ok("m")),
        (none, Err(StatusCode::UNAUTHORIZED)),
    ] {
        let url = serve(health, models).await;
        assert_eq!(found(&endpoint(url, None)).await, [], "{health} {models:?}");
    }
    let url = serve(StatusCode::SERVICE_UNAVAILABLE, Err(none)).await;
    let down = only(&endpoint(url, None)).await;
    assert!(down.problem.contains("404"), "{down:?}");
}

#[tokio::test]
async fn a_server_over_tls_is_asked_for_a_connection_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = endpoint(format!("https://{}", listener.local_addr().unwrap()), None);
    let open = only(&asked).await;
    assert!(
        open.problem.contains("not asked for over https"),
        "{open:?}"
    );
    assert!(!is_fatal(&[open]));
    drop(listener);
    let closed = only(&asked).await;
    assert!(closed.problem.contains("connection refused"), "{closed:?}");
    assert!(is_fatal(&[closed]));
}

#[tokio::test]
async fn a_server_of_another_model_is_an_error_that_names_both() {
    let url = serve(StatusCode::OK, Ok("/models/other")).await;
    let wrong = only(&endpoint(url.clone(), Some("mine"))).await;
    assert!(
        wrong.problem.contains("mine") && wrong.problem.contains("/models/other"),
        "{wrong:?}"
    );
    assert_eq!(
        found(&endpoint(format!("{url}/v1/"), Some("/models/other"))).await,
        []
    );
    let url = serve(StatusCode::OK, Err(StatusCode::UNAUTHORIZED)).await;
    let locked = only(&endpoint(url, Some("mine"))).await;
    assert!(locked.remedy.contains("key"), "{locked:?}");
}

#[tokio::test]
async fn an_ssh_that_fails_or_is_killed_has_not_been_let_in() {
    let login = |script: &str| Asked {
        login: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
        ..Asked::default()
    };
    assert_eq!(
        found(&login("exit 3")).await,
        [],
        "the host's command failed"
    );
    let refused = only(&login("echo Permission denied >&2; exit 255")).await;
    assert_eq!(refused.problem, "Permission denied");
    let killed = only(&login("kill -9 $$")).await;
    assert!(killed.problem.contains("signal: 9"), "{killed:?}");
    assert!(is_fatal(&[killed]));
}

#[tokio::test]
async fn a_gpu_on_which_somebody_computes_is_named_with_the_process_and_a_free_one_is_not() {
    let need = |devices: &[u32], free_mib| Asked {
        gpu: Some(GpuNeed {
            devices: devices.to_vec(),
            free_mib,
            program: fixture("nvidia-smi"),
        }),
        ..Asked::default()
    };
    assert_eq!(found(&need(&[0], 70_000)).await, []);
    let both = found(&need(&[], 70_000)).await;
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(
        both[0].problem.contains("4711") && both[0].problem.contains("61000 MiB"),
        "{both:?}"
    );
    assert!(both[1].problem.contains("20000 MiB are free"), "{both:?}");
    let missing = only(&need(&[0, 7], 0)).await;
    assert!(
        missing.what == "GPU 7" && missing.problem.contains("[0, 1]"),
        "{missing:?}"
    );
}

#[test]
fn errors_of_several_lines_are_one_line_and_warnings_are_no_errors() {
    let warning = Finding::warning("clock", "it is\n5 s ahead", "set it");
    let text = to_text(std::slice::from_ref(&warning));
    assert_eq!(
        text,
        "preflight: 0 errors, 1 warning\n  warning  clock  it is 5 s ahead; set it\n"
    );
    assert!(!is_fatal(&[warning]));
}
