//! Cases of the reference router: one JSON object whose members are lists of cases, by kind.
//!
//! `constants` (an object), `pause_resume`, `transfer`, `least_loaded`, `metrics_parse`, `program_id`. Times are
//! seconds; programs are listed in the order in which the router met them; `changed` names every program whose
//! state changed, with its new state.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::entries::Entries;
use super::{Tally, python};
use crate::policy::thunderreact::{Config, LastActs, Mode, ProgramState, Reference};
use crate::policy::{
    Arrival, BackendId, BackendSample, Decision, Decisions, Event, Policy, ProgramId, Ratio,
    RequestId, Time, Tokens, ids,
};
use crate::telemetry::scrape::Reading;

/// The backend that a case is about; the others follow it.
const HERE: BackendId = BackendId(0);

/// One look at one backend.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pressure {
    usage: f64,
    now: f64,
    #[serde(default)]
    last_pause_time: f64,
    #[serde(default)]
    last_resume_time: f64,
    #[serde(default)]
    last_transfer_time: f64,
    /// Other backends by URL, in order.
    #[serde(default)]
    others: Entries<Other>,
    #[serde(default)]
    rr_index: usize,
    programs: Entries<Program>,
    changed: BTreeMap<String, Program>,
    last_pause_time_after: Option<f64>,
    last_resume_time_after: Option<f64>,
    last_transfer_time_after: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Other {
    usage: f64,
    healthy: bool,
    #[serde(default)]
    programs: Entries<Program>,
}

/// A program as the router has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    context_len: u64,
    step_count: u32,
    inflight: bool,
    paused: bool,
    pause_requested: bool,
    transfer_target: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Placement {
    program_id: String,
    backends: Vec<String>,
    /// Requests running and waiting, by backend.
    load: Vec<(f64, f64)>,
    picked: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    text: String,
    result: Readings,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Readings {
    usage: f64,
    running: f64,
    waiting: f64,
    healthy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    payload: Value,
    program_id: String,
}

/// Checks every case of `file`. One that is not understood counts as failed.
///
/// # Errors
/// The file cannot be read, or is no JSON object.
pub fn check(file: &Path) -> anyhow::Result<Tally> {
    let text = std::fs::read_to_string(file)?;
    // Cases are kept as text: parsed into a `Value`, an object's members would lose their order.
    let kinds: Entries<&RawValue> = serde_json::from_str(&text)
        .context("not a file of router cases: a JSON object of lists, by kind")?;
    let config = Config {
        mode: Mode::Compat,
        ..Config::default()
    };
    let mut tally = Tally::default();
    for (kind, cases) in kinds.iter() {
        if kind == "constants" {
            check_constants(&config, cases, &mut tally);
            continue;
        }
        match serde_json::from_str::<Vec<&RawValue>>(cases.get()) {
            Ok(cases) => {
                for (index, case) in cases.into_iter().enumerate() {
                    let name = format!("{kind} {index}");
                    tally.attempt(&name, || check_case(&config, kind, case));
                }
            }
            Err(error) => tally.case(kind, Err(format!("not a list of cases: {error}"))),
        }
    }
    Ok(tally)
}

fn check_constants(config: &Config, theirs: &RawValue, tally: &mut Tally) {
    let ours = constants(config);
    match serde_json::from_str::<Map<String, Value>>(theirs.get()) {
        Ok(theirs) => {
            for (name, theirs) in &theirs {
                let outcome = equal(&Some(theirs), &ours.get(name));
                tally.case(&format!("constants {name}"), outcome);
            }
        }
        Err(error) => tally.case("constants", Err(format!("not an object: {error}"))),
    }
}

fn check_case(config: &Config, kind: &str, case: &RawValue) -> Result<(), String> {
    match kind {
        "pause_resume" | "transfer" => read::<Pressure>(case)?.check(config),
        "least_loaded" => read::<Placement>(case)?.check(config),
        "metrics_parse" => read::<Metrics>(case)?.check(),
        "program_id" => {
            let Identity {
                payload,
                program_id: theirs,
            } = read(case)?;
            equal(&theirs, &program_id(&payload))
        }
        _ => Err("unknown kind of case".to_owned()),
    }
}

fn read<'a, T: Deserialize<'a>>(case: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(case.get()).map_err(|error| format!("not understood: {error}"))
}

fn equal<T: PartialEq + std::fmt::Debug>(theirs: &T, ours: &T) -> Result<(), String> {
    if theirs == ours {
        return Ok(());
    }
    Err(format!("expected {theirs:?}, came {ours:?}"))
}

/// The settings under the router's names.
fn constants(config: &Config) -> Map<String, Value> {
    let budget = config.kv_budget_tokens.unwrap_or(Config::REFERENCE_BUDGET);
    let table = json!({
        "PAUSE_TRIGGER_USAGE": config.pause_trigger,
        "PAUSE_TARGET_USAGE": config.pause_target,
        "PAUSE_COOLDOWN_S": config.pause_cooldown_s,
        "PAUSE_STEP": config.pause_step,
        "RESUME_TRIGGER_USAGE": config.resume_trigger,
        "RESUME_TARGET_USAGE": config.resume_target,
        "RESUME_COOLDOWN_S": config.resume_cooldown_s,
        "RESUME_STEP": config.resume_step,
        "TRANSFER_TRIGGER_USAGE": config.transfer_trigger,
        "TRANSFER_TARGET_USAGE": config.transfer_target,
        "TRANSFER_COOLDOWN_S": config.transfer_cooldown_s,
        "TRANSFER_STEP": config.transfer_step,
        "KV_CACHE_TOKEN_BUDGET": budget,
        "OUTPUT_TOKEN_ESTIMATE": config.output_estimate_tokens,
    });
    match table {
        Value::Object(table) => table,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

impl Pressure {
    fn check(&self, config: &Config) -> Result<(), String> {
        let mut scene = Scene::new(config, self.others.iter().map(|(url, _)| url))?;
        scene.backend(HERE, self.usage, true);
        scene.load(HERE, &self.programs)?;
        for (place, other) in (1_u16..).zip(self.others.iter().map(|(_, other)| other)) {
            scene.backend(BackendId(place), other.usage, other.healthy);
            scene.load(BackendId(place), &other.programs)?;
        }
        *scene.router.last_acts(HERE) = LastActs {
            pause: Some(Time::from_secs_f64(self.last_pause_time)),
            resume: Some(Time::from_secs_f64(self.last_resume_time)),
            transfer: Some(Time::from_secs_f64(self.last_transfer_time)),
        };
        scene.router.set_turn(self.rr_index);
        let before = scene.states(HERE);
        scene.tell(Time::from_secs_f64(self.now), &Event::Tick);
        let after = scene.states(HERE);
        let changed: BTreeMap<_, _> = after
            .into_iter()
            .filter(|(name, state)| before.get(name) != Some(state))
            .collect();
        equal(&self.changed, &changed)?;
        let last = *scene.router.last_acts(HERE);
        for (name, theirs, ours) in [
            ("last_pause_time", self.last_pause_time_after, last.pause),
            ("last_resume_time", self.last_resume_time_after, last.resume),
            (
                "last_transfer_time",
                self.last_transfer_time_after,
                last.transfer,
            ),
        ] {
            let ours = ours.filter(|_| theirs.is_some());
            let differs = |difference| format!("{name}: {difference}");
            equal(&theirs.map(Time::from_secs_f64), &ours).map_err(differs)?;
        }
        Ok(())
    }
}

impl Placement {
    fn check(&self, config: &Config) -> Result<(), String> {
        let mut scene = Scene::new(config, self.backends.iter().skip(1))?;
        equal(&self.backends.len(), &self.load.len()).map_err(|why| format!("loads: {why}"))?;
        for (place, (running, waiting)) in (0_u16..).zip(&self.load) {
            scene.backend(BackendId(place), 0.0, true);
            scene.sample(BackendId(place), None, (count(*running)?, count(*waiting)?));
        }
        let decisions = scene.tell(Time::ZERO, &arrival(&self.program_id));
        let [Decision::Admit { backend, .. }] = decisions.as_slice() else {
            return Err(format!("expected {}, came {decisions:?}", self.picked));
        };
        equal(&Some(&self.picked), &self.backends.get(backend.index()))
    }
}

/// A number of requests, which the router keeps as a float.
fn count(requests: f64) -> Result<u32, String> {
    let whole = Tokens::from_f64(requests);
    let count = u32::try_from(whole.0).ok();
    count
        .filter(|_| whole.as_f64() >= requests && requests >= 0.0)
        .ok_or_else(|| format!("not a number of requests: {requests}"))
}

fn arrival(name: &str) -> Event {
    Event::Arrive(Arrival {
        request: RequestId(0),
        program: Some(ProgramId(0)),
        name_hash: ids::name_hash(name),
        prompt: Tokens::ZERO,
        shared: None,
        last_step: false,
    })
}

impl Metrics {
    fn check(&self) -> Result<(), String> {
        let reading = Reading::parse(&self.text);
        // A fresh router keeps its zeros where the text says nothing.
        let ours = Readings {
            usage: reading.usage.unwrap_or(0.0),
            running: reading.running.unwrap_or(0.0),
            waiting: reading.waiting.unwrap_or(0.0),
            healthy: true,
        };
        equal(&self.result, &ours)
    }
}

/// The router's name for the program of a request: `job_id`, then `extra_body.job_id`, then one name for all
/// others. A name that is no string is written as Python writes it.
pub fn program_id(payload: &Value) -> String {
    let nested = || payload.get("extra_body")?.get("job_id");
    let id = payload.get("job_id").or_else(nested);
    id.map_or_else(|| "default".to_owned(), python::text)
}

/// A router in the state of a case.
struct Scene {
    router: Reference,
    /// By backend; the one that the case is about has no name.
    urls: Vec<String>,
    /// By program.
    names: Vec<String>,
}

impl Scene {
    fn new<'a>(config: &Config, others: impl Iterator<Item = &'a String>) -> Result<Self, String> {
        let urls: Vec<_> = std::iter::once(String::new())
            .chain(others.cloned())
            .collect();
        u16::try_from(urls.len()).map_err(|_| "too many backends".to_owned())?;
        Ok(Self {
            router: Reference::new(config.clone()),
            urls,
            names: Vec::new(),
        })
    }

    fn tell(&mut self, now: Time, event: &Event) -> Decisions {
        let mut out = Decisions::new();
        self.router.handle(now, event, &mut out);
        out
    }

    fn backend(&mut self, backend: BackendId, usage: f64, healthy: bool) {
        let kv_capacity = None;
        self.tell(
            Time::ZERO,
            &Event::BackendUp {
                backend,
                kv_capacity,
            },
        );
        self.sample(backend, Ratio::new(usage), (0, 0));
        if !healthy {
            self.tell(Time::ZERO, &Event::BackendDown { backend });
        }
    }

    fn sample(&mut self, backend: BackendId, kv_usage: Option<Ratio>, load: (u32, u32)) {
        let sample = BackendSample {
            backend,
            kv_usage,
            running: load.0,
            waiting: load.1,
            preemptions: 0,
            prefix_hits: 0,
            prefix_queries: 0,
        };
        self.tell(Time::ZERO, &Event::Sample(sample));
    }

    fn load(&mut self, backend: BackendId, programs: &Entries<Program>) -> Result<(), String> {
        for (name, program) in programs.iter() {
            let id = u32::try_from(self.names.len()).map_err(|error| error.to_string())?;
            self.names.push(name.clone());
            let state = self.state(program)?;
            self.router.set_program(backend, ProgramId(id), state);
        }
        Ok(())
    }

    /// A backend by its URL. One that the case does not list is not up.
    fn place(&mut self, url: &String) -> Result<BackendId, String> {
        let known = self.urls.iter().position(|known| known == url);
        let place = known.unwrap_or_else(|| {
            self.urls.push(url.clone());
            self.urls.len() - 1
        });
        let place = u16::try_from(place).map_err(|error| error.to_string())?;
        Ok(BackendId(place))
    }

    fn state(&mut self, program: &Program) -> Result<ProgramState, String> {
        let target = program.transfer_target.as_ref();
        let transfer = target.map(|url| self.place(url)).transpose()?;
        Ok(ProgramState {
            context: Tokens(program.context_len),
            steps: program.step_count,
            in_flight: program.inflight,
            paused: program.paused,
            pause_requested: program.pause_requested,
            transfer,
        })
    }

    fn states(&self, backend: BackendId) -> BTreeMap<String, Program> {
        let state = |(id, name): (u32, &String)| {
            let state = self.router.program_on(backend, ProgramId(id))?;
            let target = state.transfer.and_then(|to| self.urls.get(to.index()));
            let program = Program {
                context_len: state.context.0,
                step_count: state.steps,
                inflight: state.in_flight,
                paused: state.paused,
                pause_requested: state.pause_requested,
                transfer_target: target.cloned(),
            };
            Some((name.clone(), program))
        };
        (0..).zip(&self.names).filter_map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> Tally {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        check(file.path()).unwrap()
    }

    #[test]
    fn a_case_that_is_not_understood_fails_and_the_others_are_checked() {
        let tally = check_text(
            r#"{"constants": {"PAUSE_STEP": 0.2, "SLEEP_S": 0.5}, "overflow": [{"now": 1}, 2],
            "program_id": [{"payload": {"job_id": 42}, "program_id": "42"}, {"payload": {}},
                {"payload": {"job_id": 1}, "program_id": "1", "is_last_step": true}],
            "least_loaded": 7}"#,
        );
        assert_eq!((tally.passed, tally.failed), (2, 6), "{:?}", tally.lines);
        assert!(tally.lines[0].starts_with("constants SLEEP_S: expected"));
        assert_eq!(tally.lines[1], "overflow 0: unknown kind of case");
        assert!(tally.lines[4].contains("unknown field `is_last_step`"));
    }

    #[test]
    fn a_target_that_no_one_lists_is_carried_along() {
        let program = |paused: bool| {
            json!({"context_len": 7, "step_count": 1, "inflight": false, "paused": paused,
                "pause_requested": false, "transfer_target": "http://z"})
        };
        let case = json!({"pause_resume": [{"usage": 0.1, "now": 1000.0,
            "programs": {"p": program(true)}, "changed": {"p": program(false)}}]});
        let tally = check_text(&case.to_string());
        assert_eq!((tally.passed, tally.failed), (1, 0), "{:?}", tally.lines);
    }

    #[test]
    fn a_name_is_looked_for_where_the_router_looks() {
        for (payload, name) in [
            (json!({"job_id": 42}), "42"),
            (
                json!({"job_id": null, "extra_body": {"job_id": "b"}}),
                "None",
            ),
            (json!({"extra_body": ["job_id"]}), "default"),
            (json!({"extra_body": {"job_id": true}}), "True"),
        ] {
            assert_eq!(program_id(&payload), name, "{payload}");
        }
    }
}
