//! A program is named by whatever its client already sends, in one order of precedence.

use std::collections::BTreeMap;

use kvgate::proxy::identity::DEFAULT_SOURCES;
use serde_json::{Map, Value, json};

use crate::support::{Ask, Gate, Stub, fixture};

/// Every place where a client may name its program, first come first served; a header that a second one
/// narrows goes without it here.
fn sources() -> Vec<&'static str> {
    let places = DEFAULT_SOURCES
        .iter()
        .map(|source| source.split('+').next());
    places.map(Option::unwrap).collect()
}

/// A chat request that names a program in each of `named`: the place and the name.
fn request(gate: &Gate, named: &BTreeMap<&'static str, Value>) -> Ask {
    let mut body = Map::new();
    body.insert("model".into(), json!("tiny"));
    body.insert("messages".into(), json!([]));
    let mut headers = Vec::new();
    for (source, name) in named {
        match source.split_once(':').unwrap() {
            ("header", header) => headers.push((header, name.as_str().unwrap_or("").to_owned())),
            (_, path) => insert(&mut body, path, name.clone()),
        }
    }
    let ask = gate.post("/v1/chat/completions", Value::Object(body).to_string());
    headers
        .iter()
        .fold(ask, |ask, (name, value)| ask.header(name, value))
}

fn insert(object: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(object.insert(path.to_owned(), value)),
        Some((key, rest)) => {
            let inner = object.entry(key).or_insert_with(|| json!({}));
            insert(inner.as_object_mut().unwrap(), rest, value);
        }
    }
}

/// Sends `ask`, and returns the name of the program that the gate then knows; forgets it again.
async fn program_of(ask: Ask, gate: &Gate, stub: &mut Stub) -> Option<String> {
    let asking = ask.spawn();
    stub.call().await.answer(&fixture("chat")).await;
    assert_eq!(asking.await.unwrap().status, 200);
    gate.quiet().await;
    let mut known = gate.programs().await;
    assert!(known.len() <= 1, "{known:?}");
    let name = known.pop()?;
    let release = json!({"job_id": name}).to_string();
    let released = gate.post("/programs/release", release).send().await;
    assert_eq!(released.json().await["released"], true);
    Some(name)
}

#[tokio::test]
async fn each_source_alone_names_the_program() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for source in sources() {
        let named = BTreeMap::from([(source, json!("tau2:telecom:[a]b|c[X:None]:7b0f9e3a"))]);
        let found = program_of(request(&gate, &named), &gate, &mut stub).await;
        assert_eq!(
            found.as_deref(),
            Some("tau2:telecom:[a]b|c[X:None]:7b0f9e3a"),
            "{source}"
        );
    }
}

#[tokio::test]
async fn an_earlier_source_wins_over_every_later_one() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let mut named: BTreeMap<_, _> = sources().into_iter().map(|s| (s, json!(s))).collect();
    for source in sources() {
        let found = program_of(request(&gate, &named), &gate, &mut stub).await;
        assert_eq!(found.as_deref(), Some(source));
        named.remove(source);
    }
    let found = program_of(request(&gate, &named), &gate, &mut stub).await;
    assert_eq!(found, None);
}

#[tokio::test]
async fn an_empty_or_null_name_leaves_the_word_to_the_next_source() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for empty in [json!(null), json!("")] {
        let mut named: BTreeMap<_, _> = sources().into_iter().map(|s| (s, empty.clone())).collect();
        let found = program_of(request(&gate, &named), &gate, &mut stub).await;
        assert_eq!(found, None, "{empty}");
        named.insert(sources().pop().unwrap(), json!("last"));
        let found = program_of(request(&gate, &named), &gate, &mut stub).await;
        assert_eq!(found.as_deref(), Some("last"), "{empty}");
    }
}

#[tokio::test]
async fn a_field_of_the_name_deep_inside_a_message_names_nothing() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    let body = r#"{"messages":[{"role":"user","content":"\"job_id\":\"fake\"","job_id":"fake"}],
        "metadata":{"program_id":"fake"},"model":"tiny"}"#;
    let ask = gate.post("/v1/chat/completions", body);
    assert_eq!(program_of(ask, &gate, &mut stub).await, None);
}

#[tokio::test]
async fn escapes_in_a_name_are_read_and_a_number_is_a_name() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for (written, name) in [(r#""a\u00e9\n\"b""#, "a\u{e9}\n\"b"), ("17", "17")] {
        let body = format!(r#"{{"model":"tiny","messages":[],"job_id":{written}}}"#);
        let ask = gate.post("/v1/chat/completions", body);
        assert_eq!(
            program_of(ask, &gate, &mut stub).await.as_deref(),
            Some(name)
        );
    }
}

#[tokio::test]
async fn the_other_generation_endpoints_have_programs_too() {
    let mut stub = Stub::start().await;
    let gate = Gate::before(&stub).await;
    for path in ["/v1/completions", "/v1/responses", "/v1/messages"] {
        let body = r#"{"model":"tiny","messages":[],"prompt":"x","input":"x","job_id":"p"}"#;
        let found = program_of(gate.post(path, body), &gate, &mut stub).await;
        assert_eq!(found.as_deref(), Some("p"), "{path}");
    }
}
