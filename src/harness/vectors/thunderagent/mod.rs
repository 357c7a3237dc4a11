//! Cases of the original ThunderAgent scheduler: one JSON object per file, or a list of them.
//!
//! `input` has a configuration, backends, programs and operations; `expected_decisions` and `observed.events` are
//! what the original did, `observed.after` its state at the end. Times are seconds from a clock that starts at
//! 1000; a request body is given by its length in characters. A file with none of these keys holds no scheduler
//! case and is passed over, with a word.

mod format;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use self::format::{After, Case, Input, Observed, OneOrMore, Op, Program, Settings, State, Status};
use super::Tally;
use crate::policy::estimate::CharsPerToken;
use crate::policy::thunderagent::{Act, Config, Mode, Original, ProgramState};
use crate::policy::{
    Arrival, BackendId, Decisions, Event, Policy, ProgramId, RequestId, Time, Tokens, ids, settings,
};

/// Where the clock of every case starts.
const START: f64 = 1000.0;

/// Checks every case of `file`. One that is not understood counts as failed.
///
/// # Errors
/// The file cannot be read, or is not JSON.
pub fn check(file: &Path) -> anyhow::Result<Tally> {
    let text = std::fs::read_to_string(file)?;
    let cases: OneOrMore = serde_json::from_str(&text).context("not JSON")?;
    let mut tally = Tally::default();
    let cases = match cases {
        OneOrMore::More(cases) => cases,
        OneOrMore::One(case) => vec![case],
    };
    for (index, case) in cases.into_iter().enumerate() {
        if is_other(&case) {
            tally.pass_over(&format!("{} holds no scheduler case", file.display()));
            continue;
        }
        let name = case.get("name").and_then(Value::as_str);
        let name = name.map_or_else(|| format!("case {index}"), str::to_owned);
        let case = Case::deserialize(case).map_err(|error| format!("not understood: {error}"));
        tally.attempt(&name, || case.and_then(|case| case.check()));
    }
    Ok(tally)
}

/// Whether this is an object of the other format: recorded HTTP exchanges, by names such as `E01_nonstream`.
fn is_other(case: &Value) -> bool {
    let exchange = |name: &String| {
        let number = name
            .strip_prefix('E')
            .and_then(|rest| rest.split('_').next());
        number.is_some_and(|n| n.len() == 2 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let names = case.as_object().filter(|names| !names.is_empty());
    names.is_some_and(|names| names.keys().all(exchange))
}

impl Case {
    fn check(&self) -> Result<(), String> {
        let mut run = Run::new(&self.input)?;
        for op in &self.input.ops {
            run.perform(op);
        }
        // Written before the original ran; where it then decided otherwise, `match` says so.
        let foreseen = self.expected_decisions.as_ref();
        let foreseen = foreseen.filter(|_| self.matched || self.observed.is_none());
        if foreseen.is_none() && self.observed.is_none() {
            return Err("says nothing of what the scheduler did".to_owned());
        }
        if let Some(expected) = foreseen {
            let short = run.events.iter().filter_map(shortened);
            same(
                "decisions",
                &json!(expected),
                &json!(short.collect::<Vec<_>>()),
            )?;
        }
        self.observed
            .as_ref()
            .map_or(Ok(()), |observed| observed.check(&run))
    }
}

impl Observed {
    fn check(&self, run: &Run) -> Result<(), String> {
        if let Some(events) = &self.events {
            same("events", &json!(events), &json!(run.events))?;
        }
        let after = self.after.as_ref();
        after.map_or(Ok(()), |after| run.compare(after))
    }
}

/// An event as `expected_decisions` has it: without the room that was left; ticks are no decisions.
fn shortened(event: &Value) -> Option<Value> {
    let parts = event.as_array()?;
    match parts.first()?.as_str()? {
        "tick" => None,
        "pause" | "mark" | "resume" => Some(json!(parts.get(..3)?)),
        _ => Some(event.clone()),
    }
}

fn same(what: &str, theirs: &Value, ours: &Value) -> Result<(), String> {
    if equal(theirs, ours) {
        return Ok(());
    }
    Err(format!("{what}: expected {theirs}, came {ours}"))
}

/// Whether two values are equal; 700 and 700.0 are.
fn equal(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::Number(theirs), Value::Number(ours)) => {
            theirs == ours || theirs.as_f64() == ours.as_f64()
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(a, b)| equal(a, b))
        }
        (Value::Object(theirs), Value::Object(ours)) => {
            let found = |(key, value)| ours.get(key).is_some_and(|ours| equal(value, ours));
            theirs.len() == ours.len() && theirs.iter().all(found)
        }
        _ => theirs == ours,
    }
}

/// A scheduler that runs a case.
struct Run {
    scheduler: Original,
    now: f64,
    ratio: CharsPerToken,
    urls: Vec<String>,
    names: Vec<String>,
    /// Characters of each program's last request.
    chars: Vec<u64>,
    requests: u32,
    events: Vec<Value>,
}

impl Run {
    fn new(input: &Input) -> Result<Self, String> {
        let mut run = Self {
            scheduler: Original::new(config(&input.config)?),
            now: START,
            ratio: CharsPerToken::new(input.config.ratio),
            urls: input.backends.iter().map(|b| b.url.clone()).collect(),
            names: Vec::new(),
            chars: Vec::new(),
            requests: 0,
            events: Vec::new(),
        };
        u16::try_from(run.urls.len()).map_err(|_| "too many backends".to_owned())?;
        for (place, backend) in (0..).map(BackendId).zip(&input.backends) {
            let kv_capacity = backend.capacity.map(Tokens);
            run.tell(&Event::BackendUp {
                backend: place,
                kv_capacity,
            });
            run.scheduler.set_healthy(place, backend.healthy);
        }
        for program in &input.programs {
            run.load(program)?;
        }
        run.scheduler.note_acts();
        Ok(run)
    }

    fn time(&self) -> Time {
        Time::from_secs_f64(self.now)
    }

    fn tell(&mut self, event: &Event) {
        let mut out = Decisions::new();
        self.scheduler.handle(self.time(), event, &mut out);
    }

    fn load(&mut self, program: &Program) -> Result<(), String> {
        let home = self.backend(program.backend.as_ref())?;
        let origin = self.backend(program.origin.as_ref())?;
        let id = self.id(&program.id);
        let since = Time::from_secs_f64(self.now - program.acting_age);
        let paused = program.state == State::Paused;
        self.scheduler.set_program(
            id,
            ProgramState {
                home: home.filter(|_| !paused),
                origin,
                tokens: Tokens(program.tokens),
                queued: Tokens(program.queued_tokens.unwrap_or(program.tokens)),
                acting_since: (program.status == Status::Acting).then_some(since),
                steps: program.step,
                paused,
                marked: program.marked,
                registered: !paused && home.is_some(),
            },
        );
        Ok(())
    }

    fn backend(&self, url: Option<&String>) -> Result<Option<BackendId>, String> {
        let Some(url) = url else { return Ok(None) };
        let place = self.urls.iter().position(|known| known == url);
        let place = place.and_then(|place| u16::try_from(place).ok());
        let backend = place.map(BackendId);
        backend.map(Some).ok_or_else(|| format!("no backend {url}"))
    }

    fn id(&mut self, name: &str) -> ProgramId {
        let known = self.names.iter().position(|known| known == name);
        let place = known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.chars.push(0);
            self.names.len() - 1
        });
        ProgramId(u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn perform(&mut self, op: &Op) {
        let mut out = Decisions::new();
        match op {
            Op::Tick => {
                self.events.push(json!(["tick"]));
                self.scheduler.sweep(self.time(), &mut out);
            }
            Op::Advance { dt } => self.now += dt,
            Op::Arrive { id, chars, .. } => self.arrive(id, *chars),
            Op::Finish {
                id, total, prompt, ..
            } => {
                let program = self.id(id);
                let chars = self.chars[program.index()];
                self.ratio.observe(chars, Tokens(*prompt));
                let now = self.time();
                self.scheduler.answered(now, program, Tokens(*total));
            }
            Op::Grow { id, delta } => {
                let program = self.id(id);
                self.scheduler.grew(program, Tokens(*delta));
            }
            Op::Release { id } => {
                let program = self.id(id);
                let known = self.scheduler.state(program).is_some();
                self.events.push(json!(["release", id, known]));
                self.tell(&Event::Release { program });
            }
            Op::Timeout { id } => {
                let program = self.id(id);
                self.scheduler.force(program, &mut out);
            }
        }
        for act in self.scheduler.take_acts() {
            let event = self.event(act);
            self.events.push(event);
        }
    }

    fn arrive(&mut self, name: &str, chars: u64) {
        let program = self.id(name);
        self.chars[program.index()] = chars;
        self.requests += 1;
        self.tell(&Event::Arrive(Arrival {
            request: RequestId(self.requests),
            program: Some(program),
            name_hash: ids::name_hash(name),
            prompt: self.ratio.estimate(chars),
            shared: None,
            last_step: false,
        }));
    }

    fn event(&self, act: Act) -> Value {
        let name = |id: ProgramId| &self.names[id.index()];
        let url = |id: BackendId| self.urls.get(id.index());
        match act {
            Act::Pause(id, on, room) => json!(["pause", name(id), url(on), room]),
            Act::Mark(id, on, room) => json!(["mark", name(id), url(on), room]),
            Act::Resume(id, on, room) => json!(["resume", name(id), url(on), room]),
            Act::Wait(id) => json!(["wait", name(id)]),
            Act::Forward(id, on, known) => json!(["forward", name(id), url(on), known]),
        }
    }

    fn compare(&self, after: &After) -> Result<(), String> {
        same("programs", &json!(after.programs), &json!(self.programs()))?;
        for (name, theirs) in after.backends.iter() {
            if let Some(id) = self.backend(Some(name))? {
                same(name, theirs, &self.server(id))?;
            }
        }
        if let Some(queue) = &after.queue {
            let ours = self.scheduler.queue();
            let ours: Vec<_> = ours.iter().map(|id| &self.names[id.index()]).collect();
            same("queue", queue, &json!(ours))?;
        }
        let ours = self.ratio.get();
        let theirs = after.ratio.unwrap_or(ours);
        if (theirs - ours).abs() > 1e-9 * theirs.abs() {
            return Err(format!("ratio: expected {theirs}, came {ours}"));
        }
        Ok(())
    }

    /// Every program that the scheduler knows.
    fn known(&self) -> impl Iterator<Item = (&String, &ProgramState)> {
        let names = (0..).map(ProgramId).zip(&self.names);
        names.filter_map(|(id, name)| Some((name, self.scheduler.state(id)?)))
    }

    fn programs(&self) -> BTreeMap<&String, Value> {
        let url = |id: Option<BackendId>| id.and_then(|id| self.urls.get(id.index()));
        let program = |(name, p): (_, &ProgramState)| {
            let program = json!({
                "state": if p.paused { "paused" } else { "active" },
                "status": if p.acting_since.is_some() { "acting" } else { "reasoning" },
                "backend": url(p.home),
                "origin": url(p.origin),
                "tokens": p.tokens,
                "step": p.steps,
                "marked": p.marked,
                "waiting_event": p.paused,
            });
            (name, program)
        };
        self.known().map(program).collect()
    }

    fn server(&self, id: BackendId) -> Value {
        let here = self
            .known()
            .filter(|(_, p)| p.registered && p.home == Some(id));
        let mut registered: Vec<_> = here.map(|(name, _)| name).collect();
        registered.sort_unstable();
        json!({
            "remaining": self.scheduler.room(id),
            "registered": registered,
            "future_paused": self.scheduler.future_paused(id),
            "shared": 0,
            "remaining_decay": self.scheduler.fading_room(self.time(), id),
        })
    }
}

fn config(theirs: &Settings) -> Result<Config, String> {
    Ok(Config {
        mode: Mode::Compat,
        acting_token_weight: theirs.acting_token_weight,
        decay: Some(theirs.decay),
        scheduling: match theirs.mode.as_str() {
            "tr" => true,
            "default" => false,
            other => return Err(format!("unknown mode {other}")),
        },
        // Holds end by an operation of their own.
        hold_timeout_s: Some(settings::duration(f64::INFINITY).as_secs_f64()),
        ..Config::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new program meets room for it.
    fn case() -> Value {
        json!({
            "name": "new fits",
            "input": {
                "backends": [{"url": "b1", "capacity": 1000}],
                "ops": [{"op": "arrive", "id": "n", "chars": 1000}]
            },
            "expected_decisions": [["forward", "n", "b1", true]]
        })
    }

    fn check_value(value: &Value) -> Tally {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), value.to_string()).unwrap();
        check(file.path()).unwrap()
    }

    #[test]
    fn a_case_that_is_not_understood_fails_and_the_others_are_checked() {
        let mut strange = case();
        strange["input"]["ops"][0]["op"] = json!("arrives");
        let mut empty = case();
        empty["input"] = Value::Null;
        let mut silent = case();
        silent["expected_decisions"] = Value::Null;
        let tally = check_value(&json!([strange, case(), empty, silent, 7]));
        assert_eq!((tally.passed, tally.failed), (1, 4), "{:?}", tally.lines);
    }

    #[test]
    fn what_the_original_did_counts_where_it_was_foreseen_wrongly() {
        let mut case = case();
        case["observed"] = json!({"events": [["forward", "n", "b1", true]]});
        case["expected_decisions"] = json!([["wait", "n"]]);
        assert_eq!(check_value(&case).failed, 1);
        case["match"] = json!(false);
        assert_eq!(check_value(&case).passed, 1);
    }

    #[test]
    fn a_file_of_another_format_is_passed_over_aloud() {
        let tally = check_value(&json!({"E01": {"status": 200}}));
        assert_eq!((tally.passed, tally.failed), (0, 0));
        assert!(tally.lines[0].contains("holds no scheduler case"));
    }
}
