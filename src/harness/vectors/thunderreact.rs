//! Cases of the reference router: one JSON object whose members are lists of cases, by kind.
//!
//! `constants` (an object), `pause_resume`, `transfer`, `least_loaded`, `metrics_parse`, `program_id`. Times are
//! seconds; programs are listed in the order in which the router met them; `changed` names every program whose
//! state changed, with its new state.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
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

/// A whole file. A kind that is missing has no cases; an unknown one is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    constants: Map<String, Value>,
    #[serde(default)]
    pause_resume: Vec<Pressure>,
    #[serde(default)]
    transfer: Vec<Pressure>,
    #[serde(default)]
    least_loaded: Vec<Placement>,
    #[serde(default)]
    metrics_parse: Vec<Metrics>,
    #[serde(default)]
    program_id: Vec<Identity>,
}

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
    load: Vec<(u32, u32)>,
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

/// Checks every case of `file`.
///
/// # Errors
/// The file cannot be read, or is not of this format.
pub fn check(file: &Path) -> anyhow::Result<Tally> {
    let text = std::fs::read_to_string(file)?;
    let cases: File = serde_json::from_str(&text).context("not a file of router cases")?;
    let mut tally = Tally::default();
    let config = Config {
        mode: Mode::Compat,
        ..Config::default()
    };
    let ours = constants(&config);
    for (name, theirs) in &cases.constants {
        tally.case(
            &format!("constants {name}"),
            equal(&Some(theirs), &ours.get(name)),
        );
    }
    let pressure = |cases: &[Pressure], kind, tally: &mut Tally| {
        for (index, case) in cases.iter().enumerate() {
            tally.case(&format!("{kind} {index}"), case.check(&config));
        }
    };
    pressure(&cases.pause_resume, "pause_resume", &mut tally);
    pressure(&cases.transfer, "transfer", &mut tally);
    for (index, case) in cases.least_loaded.iter().enumerate() {
        tally.case(&format!("least_loaded {index}"), case.check(&config));
    }
    for (index, case) in cases.metrics_parse.iter().enumerate() {
        tally.case(&format!("metrics_parse {index}"), case.check());
    }
    for (index, case) in cases.program_id.iter().enumerate() {
        let ours = program_id(&case.payload);
        let outcome = equal(&case.program_id, &ours);
        tally.case(&format!("program_id {index}"), outcome);
    }
    Ok(tally)
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
        for (place, (running, waiting)) in (0_u16..).zip(&self.load) {
            scene.backend(BackendId(place), 0.0, true);
            scene.sample(BackendId(place), None, (*running, *waiting));
        }
        let decisions = scene.tell(Time::ZERO, &arrival(&self.program_id));
        let [Decision::Admit { backend, .. }] = decisions.as_slice() else {
            return Err(format!("expected {}, came {decisions:?}", self.picked));
        };
        equal(&Some(&self.picked), &self.backends.get(backend.index()))
    }
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

    fn state(&self, program: &Program) -> Result<ProgramState, String> {
        let place = |url: &String| {
            let place = self.urls.iter().position(|known| known == url);
            let place = place.and_then(|place| u16::try_from(place).ok());
            place
                .map(BackendId)
                .ok_or_else(|| format!("no backend {url}"))
        };
        Ok(ProgramState {
            context: Tokens(program.context_len),
            steps: program.step_count,
            in_flight: program.inflight,
            paused: program.paused,
            pause_requested: program.pause_requested,
            transfer: program.transfer_target.as_ref().map(place).transpose()?,
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
