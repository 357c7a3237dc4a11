//! Continuum's decision scenarios: a list of arrivals, ends and other events, and the log that must come of them.
//!
//! A file is a JSON array of scenarios `{id, text, config, tool_history, events, until, expected}`. An event is an
//! array that begins with its time in seconds and its kind:
//!
//! | event | meaning |
//! |---|---|
//! | `[t, "A", program, request, tokens, retry?, last?]` | a request arrives |
//! | `[t, "F", request, tokens, tool, last?, ok?]` | it ends with this context; `tool` null: it called none |
//! | `[t, "R", program]` | the client releases the program |
//! | `[t, "C", request]` | the client cancels the request |
//! | `[t, "K", program]` | the backend has evicted the program's context |
//!
//! Of one moment, ends come first, then arrivals, then expiries, and then it is decided who runs.

mod format;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::format::{Scenario, flag, text, tokens};
use super::Tally;
use crate::policy::continuum::{Continuum, NoPinWhy, Note, StartWhy, UnpinWhy};
use crate::policy::{
    Arrival, BackendId, Decisions, Event, GapKind, Outcome, Policy, ProgramId, RequestId, Time,
    Tokens, ToolId, Usage,
};

/// Times and token counts that differ by less are equal.
const TOLERANCE: f64 = 1e-6;

/// Checks every scenario of `file`.
///
/// # Errors
/// The file cannot be read or is no array of scenarios. A scenario that cannot be run counts as failed.
pub fn check(file: &Path) -> anyhow::Result<Tally> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    // Cases are kept as text: parsed into a `Value`, an object's members would lose their order.
    let cases: Vec<&RawValue> = serde_json::from_str(&text)
        .with_context(|| format!("{} is no array of scenarios", file.display()))?;
    let mut tally = Tally::default();
    for (index, case) in cases.into_iter().enumerate() {
        let name = name(case).unwrap_or_else(|| format!("#{index}"));
        tally.attempt(&name, || {
            run(case.get()).map_err(|error| format!("{error:#}"))
        });
    }
    Ok(tally)
}

/// The scenario's `id`, if it has one.
fn name(case: &RawValue) -> Option<String> {
    let case: Value = serde_json::from_str(case.get()).ok()?;
    Some(case.get("id")?.as_str()?.to_owned())
}

/// Names as dense ids, in the order in which they are met.
#[derive(Debug, Default)]
struct Names(Vec<String>);

impl Names {
    fn id(&mut self, name: &str) -> usize {
        let known = self.0.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }
}

/// One request that has not ended.
#[derive(Clone, Copy, Debug)]
struct Live {
    program: ProgramId,
    running: bool,
}

/// The policy, and what the rest of the gate would know.
struct Scene {
    policy: Continuum,
    now: Time,
    out: Decisions,
    backends: Vec<String>,
    programs: Names,
    requests: Names,
    tools: Names,
    live: BTreeMap<RequestId, Live>,
    /// Requests whose end is the program's last.
    last: Vec<String>,
    log: Vec<Value>,
}

fn run(case: &str) -> anyhow::Result<()> {
    let scenario: Scenario = serde_json::from_str(case)?;
    let mut scene = Scene::new(&scenario)?;
    let mut moments = moments(&scenario.events)?;
    moments.retain(|(at, _)| *at <= scenario.until);
    for (at, events) in moments {
        scene.pass_until(at);
        scene.moment(at, &events)?;
    }
    scene.pass_until(scenario.until + TOLERANCE);
    scene.note_held();
    compare(&scenario.expected, &scene.log)
}

/// The events of one time in seconds, their time left out.
type Moment<'a> = (f64, Vec<&'a [Value]>);

/// The events by moment, and within one in the order in which they count: ends first, then arrivals.
fn moments(events: &[Vec<Value>]) -> anyhow::Result<Vec<Moment<'_>>> {
    let mut keyed = Vec::new();
    for event in events {
        let at = event.first().and_then(Value::as_f64);
        let at = at.with_context(|| format!("event without a time: {event:?}"))?;
        keyed.push((at, text(event, 1)? == "A", &event[1..]));
    }
    keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut moments: Vec<Moment<'_>> = Vec::new();
    for (at, _, event) in keyed {
        match moments.last_mut() {
            Some((last, events)) if at <= *last => events.push(event),
            _ => moments.push((at, vec![event])),
        }
    }
    Ok(moments)
}

impl Scene {
    fn new(scenario: &Scenario) -> anyhow::Result<Self> {
        let config = scenario.config.policy();
        config.validate().map_err(|problem| anyhow!(problem))?;
        let is_last = |event: &&Vec<Value>| {
            event.get(1).and_then(Value::as_str) == Some("F")
                && event.get(5).and_then(Value::as_bool).unwrap_or(false)
        };
        let ends = scenario.events.iter().filter(is_last);
        let mut scene = Self {
            policy: Continuum::new(config),
            now: Time::ZERO,
            out: Decisions::new(),
            backends: Vec::new(),
            programs: Names::default(),
            requests: Names::default(),
            tools: Names::default(),
            live: BTreeMap::new(),
            last: ends
                .filter_map(|event| Some(event.get(2)?.as_str()?.to_owned()))
                .collect(),
            log: Vec::new(),
        };
        scene.policy.keep_notes();
        for (tool, gaps) in &scenario.tool_history {
            let kind = scene.tool(tool)?;
            for gap in gaps {
                scene
                    .policy
                    .remember_gap(kind, Duration::try_from_secs_f64(*gap)?);
            }
        }
        for (name, tokens) in scenario.config.backends.iter() {
            let backend = BackendId(u16::try_from(scene.backends.len())?);
            scene.backends.push(name.clone());
            scene.absorb(&Event::BackendUp {
                backend,
                kv_capacity: Some(Tokens(*tokens)),
            });
        }
        scene.decide();
        Ok(scene)
    }

    /// Lets everything that falls due before `at` seconds happen.
    fn pass_until(&mut self, at: f64) {
        let until = Time::from_secs_f64(at);
        while let Some(wakeup) = self.policy.next_wakeup()
            && wakeup.at < until
        {
            self.now = self.now.max(wakeup.at);
            self.absorb(&Event::Tick);
            self.decide();
        }
    }

    fn moment(&mut self, at: f64, events: &[&[Value]]) -> anyhow::Result<()> {
        self.now = Time::from_secs_f64(at);
        for event in events {
            let kind = text(event, 0)?;
            let most = match kind {
                "A" | "F" => 6,
                _ => 2,
            };
            ensure!(event.len() <= most, "too much in {event:?}");
            match kind {
                "A" => self.arrive(event)?,
                "F" => self.finish(event)?,
                "R" => self.release(event)?,
                "C" => self.cancel(event)?,
                "K" => {
                    let program = self.program(event, 1)?;
                    self.policy.evicted(program);
                }
                kind => bail!("unknown kind of event {kind:?}"),
            }
            self.drain_notes();
        }
        self.absorb(&Event::Tick);
        self.decide();
        Ok(())
    }

    fn arrive(&mut self, event: &[Value]) -> anyhow::Result<()> {
        let program = self.program(event, 1)?;
        let name = text(event, 2)?;
        let request = self.request(name)?;
        ensure!(!self.live.contains_key(&request), "{name} arrives twice");
        let retry = flag(event, 4)?.unwrap_or(false);
        self.policy.expect_retry(self.now, program, retry);
        let last_step =
            flag(event, 5)?.unwrap_or(false) || self.last.iter().any(|last| last == name);
        let running = false;
        self.live.insert(request, Live { program, running });
        self.absorb(&Event::Arrive(Arrival {
            name_hash: 0,
            request,
            program: Some(program),
            prompt: tokens(event, 3)?,
            shared: None,
            last_step,
        }));
        Ok(())
    }

    fn finish(&mut self, event: &[Value]) -> anyhow::Result<()> {
        let name = text(event, 1)?;
        let request = self.request(name)?;
        let live = self.live.remove(&request);
        let live = live.with_context(|| format!("{name} ends but is unknown"))?;
        let ok = flag(event, 5)?.unwrap_or(true);
        let kind = match event.get(3) {
            None | Some(Value::Null) => GapKind::UserTurn,
            Some(_) => self.tool(text(event, 3)?)?,
        };
        let outcome = if ok {
            Outcome::ToolCalls
        } else {
            Outcome::Failed
        };
        self.absorb(&Event::Finish {
            request,
            outcome,
            usage: Some(Usage {
                prompt: tokens(event, 2)?,
                cached: None,
                output: Tokens::ZERO,
            }),
        });
        let program = live.program;
        if ok && flag(event, 4)?.unwrap_or(false) {
            self.release_if_quiet(program);
        } else if self.others(program).all(|live| !live.running) && ok {
            self.absorb(&Event::ToolGap { program, kind });
        }
        Ok(())
    }

    fn release(&mut self, event: &[Value]) -> anyhow::Result<()> {
        let program = self.program(event, 1)?;
        self.release_if_quiet(program);
        Ok(())
    }

    /// A program with requests in flight ends with the last of them, which the scenarios announce.
    fn release_if_quiet(&mut self, program: ProgramId) {
        if self.others(program).next().is_none() {
            self.absorb(&Event::Release { program });
        }
    }

    fn cancel(&mut self, event: &[Value]) -> anyhow::Result<()> {
        let name = text(event, 1)?;
        let request = self.request(name)?;
        ensure!(self.live.remove(&request).is_some(), "{name} is unknown");
        self.write(json!(["cancel", name]));
        self.absorb(&Event::Finish {
            request,
            outcome: Outcome::Cancelled,
            usage: None,
        });
        Ok(())
    }

    fn others(&self, program: ProgramId) -> impl Iterator<Item = &Live> {
        self.live
            .values()
            .filter(move |live| live.program == program)
    }

    fn absorb(&mut self, event: &Event) {
        self.policy.absorb(self.now, event, &mut self.out);
        self.drain_notes();
    }

    fn decide(&mut self) {
        self.policy.decide(self.now, &mut self.out);
        self.out.clear();
        self.drain_notes();
    }

    fn drain_notes(&mut self) {
        for note in self.policy.take_notes() {
            let line = self.line(note);
            self.write(line);
        }
    }

    fn line(&mut self, note: Note) -> Value {
        match note {
            Note::Started {
                request,
                backend,
                why,
            } => {
                if let Some(live) = self.live.get_mut(&request) {
                    live.running = true;
                }
                let why = match why {
                    StartWhy::Fits => "ok",
                    StartWhy::Oversize => "oversize",
                    StartWhy::HoldTimeout => "hold-timeout",
                };
                let request = &self.requests.0[request.index()];
                json!(["dispatch", request, self.backends[backend.index()], why])
            }
            Note::Pinned {
                program,
                tokens,
                until,
            } => json!(["pin", self.name(program), tokens, until.as_secs_f64()]),
            Note::NotPinned { program, why } => {
                let why = match why {
                    NoPinWhy::NoTtl => "ttl0",
                    NoPinWhy::SiblingRuns => "sibling-running",
                    NoPinWhy::Failed => "failed",
                };
                json!(["nopin", self.name(program), why])
            }
            Note::Unpinned {
                program,
                tokens,
                why,
            } => {
                let why = match why {
                    UnpinWhy::Ttl => "ttl",
                    UnpinWhy::Pressure => "pressure",
                    UnpinWhy::Release => "release",
                    UnpinWhy::Evicted => "kv-event",
                    UnpinWhy::Dropped => "dropped",
                };
                json!(["unpin", self.name(program), why, tokens])
            }
            Note::Ended { program } => json!(["end", self.name(program)]),
            Note::Overwritten { program, tokens } => {
                json!(["lru-evict", self.name(program), tokens])
            }
        }
    }

    /// Writes one line of the log: the time, then the rest.
    fn write(&mut self, mut line: Value) {
        if let Some(line) = line.as_array_mut() {
            line.insert(0, json!(self.now.as_secs_f64()));
        }
        self.log.push(line);
    }

    /// What is held in the end, in order of arrival.
    fn note_held(&mut self) {
        let held: Vec<_> = self.live.iter().filter(|(_, live)| !live.running).collect();
        let names: Vec<_> = held
            .iter()
            .map(|(id, _)| self.requests.0[id.index()].clone())
            .collect();
        for name in names {
            self.write(json!(["held", name]));
        }
    }

    fn name(&self, program: ProgramId) -> &str {
        &self.programs.0[program.index()]
    }

    fn program(&mut self, event: &[Value], at: usize) -> anyhow::Result<ProgramId> {
        let id = self.programs.id(text(event, at)?);
        Ok(ProgramId(u32::try_from(id)?))
    }

    fn request(&mut self, name: &str) -> anyhow::Result<RequestId> {
        Ok(RequestId(u32::try_from(self.requests.id(name))?))
    }

    fn tool(&mut self, name: &str) -> anyhow::Result<GapKind> {
        let id = self.tools.id(name);
        Ok(GapKind::Tool(ToolId(u16::try_from(id)?)))
    }
}

/// Equal lines in equal order; pins that expire in one moment, and what is held in the end, may be told in any.
fn compare(expected: &[Vec<Value>], log: &[Value]) -> anyhow::Result<()> {
    let mut expected: Vec<Value> = expected.iter().map(|line| json!(line)).collect();
    let mut log = log.to_vec();
    for lines in [&mut expected, &mut log] {
        let held = lines
            .iter()
            .rev()
            .take_while(|line| line[1] == "held")
            .count();
        let from = lines.len() - held;
        lines[from..].sort_by_key(|line| line[2].to_string());
        for expired in lines.chunk_by_mut(expire_together) {
            if expired.len() > 1 {
                expired.sort_by_key(|line| line[2].to_string());
            }
        }
    }
    for (at, (want, got)) in expected.iter().zip(&log).enumerate() {
        ensure!(same(want, got), "line {at}: expected {want}, got {got}");
    }
    if let Some(want) = expected.get(log.len()) {
        bail!("line {}: expected {want}, got nothing", log.len());
    }
    if let Some(got) = log.get(expected.len()) {
        bail!("line {}: expected nothing, got {got}", expected.len());
    }
    Ok(())
}

/// Whether two lines tell of pins that expire in one moment.
fn expire_together(a: &Value, b: &Value) -> bool {
    let expires = |line: &Value| line[1] == "unpin" && line[3] == "ttl";
    expires(a) && expires(b) && same(&a[0], &b[0])
}

fn same(want: &Value, got: &Value) -> bool {
    match (want, got) {
        (Value::Array(want), Value::Array(got)) => {
            want.len() == got.len() && want.iter().zip(got).all(|(want, got)| same(want, got))
        }
        (Value::Number(want), Value::Number(got)) => {
            let (want, got) = (want.as_f64(), got.as_f64());
            want.zip(got)
                .is_some_and(|(want, got)| (want - got).abs() < TOLERANCE)
        }
        _ => want == got,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(events: &Value, expected: &Value) -> anyhow::Result<()> {
        let case = json!({"config": {}, "events": events, "until": 99.0, "expected": expected});
        run(&case.to_string())
    }

    #[test]
    fn a_wrong_expectation_fails_and_says_where() {
        let events = json!([[0, "A", "P1", "a1", 300]]);
        assert!(scenario(&events, &json!([[0, "dispatch", "a1", "b", "ok"]])).is_ok());
        let wrong = json!([[0, "dispatch", "a1", "b", "oversize"]]);
        let said = scenario(&events, &wrong).unwrap_err().to_string();
        assert!(said.starts_with("line 0: expected"), "{said}");
        assert!(scenario(&events, &json!([])).is_err());
        let missing = json!([[0, "dispatch", "a1", "b", "ok"], [9, "end", "P1"]]);
        assert!(scenario(&events, &missing).is_err());
    }

    #[test]
    fn of_one_moment_all_events_count_before_anyone_starts() {
        let events = json!([
            [0, "A", "P1", "a1", 100],
            [1, "A", "P2", "b1", 800],
            [2, "F", "a1", 100, null],
            [3, "A", "P3", "c1", 900],
            [5, "F", "b1", 800, null, true],
            [5, "A", "P1", "a2", 900]
        ]);
        let expected = json!([
            [0, "dispatch", "a1", "b", "ok"],
            [1, "dispatch", "b1", "b", "ok"],
            [2, "nopin", "P1", "ttl0"],
            [5, "end", "P2"],
            [5, "dispatch", "a2", "b", "ok"],
            [5, "held", "c1"]
        ]);
        let outcome = scenario(&events, &expected);
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[test]
    fn equally_roomy_backends_are_taken_in_the_order_of_the_file() {
        let case = r#"{"config": {"backends": {"y": 1000, "x": 1000}}, "until": 9,
            "events": [[1, "A", "P1", "a1", 300]], "expected": [[1, "dispatch", "a1", "y", "ok"]]}"#;
        let outcome = run(case);
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[test]
    fn of_one_moment_arrivals_come_before_expiries_even_beside_a_cancel() {
        let events = json!([
            [0, "A", "P9", "z1", 500],
            [1, "A", "P1", "a1", 400],
            [2.1, "F", "a1", 400, "ls"],
            [3, "A", "P2", "b1", 900],
            [4.1, "C", "b1"],
            [4.1, "A", "P1", "a2", 500]
        ]);
        let expected = json!([
            [0, "dispatch", "z1", "b", "ok"],
            [1, "dispatch", "a1", "b", "ok"],
            [2.1, "pin", "P1", 400, 4.1],
            [4.1, "cancel", "b1"],
            [4.1, "dispatch", "a2", "b", "ok"]
        ]);
        let outcome = scenario(&events, &expected);
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[test]
    fn a_failed_step_is_a_retry_only_where_the_scenario_says_so() {
        for (retry, next, last) in [(false, "z2", "a2"), (true, "a2", "z2")] {
            let events = json!([
                [0, "A", "P0", "z1", 100],
                [1, "F", "z1", 100, null],
                [1, "A", "P1", "a1", 900],
                [2, "A", "P2", "b1", 900],
                [3, "F", "a1", 900, null, false, false],
                [4, "A", "P0", "z2", 900],
                [5, "A", "P1", "a2", 900, retry],
                [6, "F", "b1", 900, null, true]
            ]);
            let expected = json!([
                [0, "dispatch", "z1", "b", "ok"],
                [1, "nopin", "P0", "ttl0"],
                [1, "dispatch", "a1", "b", "ok"],
                [3, "nopin", "P1", "failed"],
                [3, "dispatch", "b1", "b", "ok"],
                [6, "end", "P2"],
                [6, "dispatch", next, "b", "ok"],
                [6, "held", last]
            ]);
            let outcome = scenario(&events, &expected);
            assert!(outcome.is_ok(), "{outcome:?}");
        }
    }

    #[test]
    fn the_gap_before_a_retry_is_no_gap_of_its_tool() {
        let events = json!([
            [0, "A", "P1", "a1", 100],
            [1, "F", "a1", 100, "ls"],
            [20, "A", "P1", "a2", 100, true],
            [21, "F", "a2", 100, "ls"]
        ]);
        let expected = json!([
            [0, "dispatch", "a1", "b", "ok"],
            [1, "pin", "P1", 100, 3],
            [3, "unpin", "P1", "ttl", 100],
            [20, "dispatch", "a2", "b", "ok"],
            [21, "pin", "P1", 100, 23],
            [23, "unpin", "P1", "ttl", 100]
        ]);
        let outcome = scenario(&events, &expected);
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[test]
    fn pins_that_expire_together_may_be_told_in_any_order() {
        let events = json!([
            [0, "A", "P1", "a1", 100],
            [0, "A", "P2", "b1", 200],
            [1, "F", "b1", 200, "ls"],
            [1, "F", "a1", 100, "ls"]
        ]);
        let expected = |last: [Value; 2]| {
            let [third, fourth] = last;
            json!([
                [0, "dispatch", "a1", "b", "ok"],
                [0, "dispatch", "b1", "b", "ok"],
                [1, "pin", "P2", 200, 3],
                [1, "pin", "P1", 100, 3],
                third,
                fourth
            ])
        };
        let [p1, p2] = [
            json!([3, "unpin", "P1", "ttl", 100]),
            json!([3, "unpin", "P2", "ttl", 200]),
        ];
        assert!(scenario(&events, &expected([p1.clone(), p2.clone()])).is_ok());
        assert!(scenario(&events, &expected([p2, p1.clone()])).is_ok());
        assert!(scenario(&events, &expected([p1.clone(), p1])).is_err());
    }

    #[test]
    fn what_is_not_understood_fails() {
        for events in [
            json!([[0, "A", "P1", "a1", 1.5]]),
            json!([[0, "A", "P1", "a1", 1, "yes"]]),
            json!([[0, "A", "P1", "a1", 1, false, false, 7]]),
            json!([[0, "A", "P1", "a1", 1], [1, "F", "a1", 1, 7]]),
            json!([[0, "R", "P1", "a1"]]),
        ] {
            let outcome = scenario(&events, &json!([[0, "dispatch", "a1", "b", "ok"]]));
            assert!(outcome.is_err(), "{events}");
        }
        assert!(run(r#"{"events": [], "until": 1, "expected": [], "steps": 3}"#).is_err());
    }

    #[test]
    fn an_unknown_setting_or_event_is_refused() {
        assert!(scenario(&json!([[0, "Z", "P1"]]), &json!([])).is_err());
        let case = json!({"config": {"sped": 1}, "events": [], "until": 1, "expected": []});
        assert!(run(&case.to_string()).is_err());
    }
}
