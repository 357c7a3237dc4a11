//! `kvgate journal replay`: a recorded journal against a policy, offline.
//!
//! With the policy that was recorded, every decision has to be the same (law P3): the journal is a regression
//! test. With another, its decisions are laid beside the recorded ones: how many requests it would have admitted
//! at once, held or refused, and where it first differs. The events after that are those of the recorded run,
//! so the comparison says how policies differ on one history, not how each would have fared.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::policy::{self, Decision, Decisions, Event, Policy, Time};
use crate::telemetry::journal::{self, Line, VERSION};

/// How many differences are printed.
const SHOWN: usize = 10;

/// `kvgate journal`.
#[derive(Args, Clone, Debug)]
pub struct JournalArgs {
    /// What to do with a journal.
    #[command(subcommand)]
    pub command: JournalCommand,
}

/// What can be done with a journal.
#[derive(Clone, Debug, Subcommand)]
pub enum JournalCommand {
    /// Run a policy on the recorded events and compare its decisions with the recorded ones
    Replay(ReplayArgs),
}

/// Options of `kvgate journal replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The journal, as `kvgate serve --journal` wrote it
    pub file: PathBuf,

    /// Another policy, with its default settings [default: the recorded one, with the recorded settings]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
}

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events replayed.
    pub events: u64,
    /// Calls whose decisions were the same.
    pub equal: u64,
    /// Calls whose decisions were not.
    pub different: u64,
    /// Lines that the journal itself is missing.
    pub lost: u64,
    /// On arrival: recorded answer and replayed answer, with how often.
    pub arrivals: BTreeMap<(Answer, Answer), u64>,
    /// The first differences, in words.
    pub shown: Vec<String>,
}

/// How an arriving request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Admitted at once.
    Admitted,
    /// Held.
    Held,
    /// Refused.
    Refused,
}

impl From<&Decision> for Answer {
    fn from(decision: &Decision) -> Self {
        match decision {
            Decision::Admit { .. } => Self::Admitted,
            Decision::Hold { .. } => Self::Held,
            Decision::Reject { .. } => Self::Refused,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admitted => "admitted",
            Self::Held => "held",
            Self::Refused => "refused",
        })
    }
}

/// Runs the command; true if nothing differed.
///
/// # Errors
/// A journal that cannot be read, an unknown policy.
pub fn run(args: &JournalArgs) -> anyhow::Result<bool> {
    let JournalCommand::Replay(args) = &args.command;
    let file =
        File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let lines = journal::lines(BufReader::new(file));
    let outcome = replay(lines, args.policy.as_deref())?;
    std::io::stdout().write_all(describe(&outcome).as_bytes())?;
    Ok(outcome.different == 0)
}

/// Replays `lines` against the recorded policy, or `other`.
///
/// # Errors
/// A broken line, a journal of another version, an unknown policy or settings it does not know.
pub fn replay(
    lines: impl Iterator<Item = Result<Line, journal::ReadError>>,
    other: Option<&str>,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut policy = None;
    for line in lines {
        match line? {
            Line::Policy {
                version,
                name,
                settings,
            } => {
                if version != VERSION {
                    bail!("the journal has format version {version}; this kvgate reads {VERSION}");
                }
                // Another policy is told the whole history; the recorded one starts anew where it was switched.
                if policy.is_none() || other.is_none() {
                    policy = Some(build(&name, settings, other)?);
                }
            }
            // Another policy saw it happen.
            Line::Told { .. }
            | Line::Event {
                event: Event::Rearrive { .. },
                ..
            } if other.is_some() => {}
            Line::Told { at, event } => {
                let policy = policy.as_mut().context("the journal names no policy")?;
                step(policy.as_mut(), at, &event, &[], &mut outcome);
            }
            Line::Event {
                at,
                event,
                decisions,
            } => {
                let policy: &mut Box<dyn Policy> =
                    policy.as_mut().context("the journal names no policy")?;
                step(policy.as_mut(), at, &event, &decisions, &mut outcome);
            }
            Line::Gap { lost } => outcome.lost += lost,
        }
    }
    Ok(outcome)
}

fn build(
    name: &str,
    settings: serde_json::Value,
    other: Option<&str>,
) -> anyhow::Result<Box<dyn Policy>> {
    let config = match other {
        None => {
            policy::Config::deserialize(name, settings).with_context(|| format!("policy {name}"))?
        }
        Some(other) => policy::Config::by_name(other).with_context(|| {
            format!(
                "--policy: {other:?} is unknown; choose one of {}",
                policy::Config::NAMES.join(", ")
            )
        })?,
    };
    // Events that were legal for the recorded policy need not be for another: no law is asserted here.
    Ok(config.build_unchecked())
}

fn step(
    policy: &mut dyn Policy,
    at: Time,
    event: &Event,
    recorded: &[Decision],
    outcome: &mut Outcome,
) {
    let mut decisions = Decisions::new();
    policy.handle(at, event, &mut decisions);
    outcome.events += 1;
    if let (Event::Arrive(_), Some(before), Some(now)) =
        (event, recorded.first(), decisions.as_slice().first())
    {
        *outcome
            .arrivals
            .entry((before.into(), now.into()))
            .or_default() += 1;
    }
    if decisions.as_slice() == recorded {
        outcome.equal += 1;
        return;
    }
    outcome.different += 1;
    if outcome.shown.len() < SHOWN {
        let now = decisions.as_slice();
        outcome.shown.push(format!(
            "event {} at {at}: {event:?}\n  recorded {recorded:?}\n  replayed {now:?}",
            outcome.events
        ));
    }
}

/// The outcome for a reader; the last line says it all.
pub fn describe(outcome: &Outcome) -> String {
    let mut text = String::new();
    for difference in &outcome.shown {
        let _infallible = writeln!(text, "{difference}");
    }
    for ((before, now), count) in &outcome.arrivals {
        let _infallible = writeln!(
            text,
            "arrivals {before} when recorded, {now} when replayed: {count}"
        );
    }
    if outcome.lost > 0 {
        let lost = outcome.lost;
        let _infallible = writeln!(
            text,
            "the journal is missing {lost} lines: differences after a gap mean nothing"
        );
    }
    let Outcome {
        events,
        equal,
        different,
        ..
    } = outcome;
    let _infallible = writeln!(
        text,
        "{events} events: {equal} with equal decisions, {different} with different ones"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::handover::{Handover, Running};
    use crate::policy::roster::Backend;
    use crate::policy::{
        Adoption, Arrival, BackendId, Outcome as StepOutcome, ProgramId, RequestId, Tokens,
    };

    /// A journal of `policy`, recorded on a small backend that many programs want.
    fn record(name: &str) -> Vec<Line> {
        let config = policy::Config::by_name(name).unwrap();
        let mut policy = config.build_unchecked();
        let mut lines = vec![Line::policy(name, serde_json::to_value(&config).unwrap())];
        let mut tell = |at: u64, event: Event| {
            let mut decisions = Decisions::new();
            policy.handle(Time::from_millis(at), &event, &mut decisions);
            let decisions = decisions.as_slice().to_vec();
            lines.push(Line::Event {
                at: Time::from_millis(at),
                event,
                decisions,
            });
        };
        tell(
            0,
            Event::BackendUp {
                backend: BackendId(0),
                kv_capacity: Some(Tokens(4000)),
            },
        );
        for index in 0..6 {
            let arrival = Arrival {
                request: RequestId(index),
                program: Some(ProgramId(index)),
                prompt: Tokens(1500),
                shared: None,
                last_step: false,
                name_hash: 0,
            };
            tell(u64::from(index) + 1, Event::Arrive(arrival));
        }
        tell(
            50,
            Event::Finish {
                request: RequestId(0),
                outcome: StepOutcome::Stop,
                usage: None,
            },
        );
        lines
    }

    fn replayed(lines: &[Line], other: Option<&str>) -> Outcome {
        replay(lines.iter().cloned().map(Ok), other).unwrap()
    }

    #[test]
    fn every_policy_decides_again_as_it_did() {
        for name in policy::Config::NAMES {
            let outcome = replayed(&record(name), None);
            assert_eq!(
                (outcome.different, outcome.events),
                (0, 8),
                "{name}: {outcome:?}"
            );
        }
    }

    /// The same, with `name` taking over from `baseline` while five programs run and one waits.
    fn record_switch(name: &str) -> Vec<Line> {
        let mut lines = record("baseline");
        let now = Time::from_millis(60);
        let config = policy::Config::by_name(name).unwrap();
        lines.push(Line::policy(name, serde_json::to_value(&config).unwrap()));
        let arrivals = lines.iter().filter_map(|line| match line {
            Line::Event {
                at,
                event: Event::Arrive(arrival),
                ..
            } => Some((*at, *arrival)),
            Line::Policy { .. } | Line::Event { .. } | Line::Told { .. } | Line::Gap { .. } => None,
        });
        let arrivals: Vec<_> = arrivals.collect();
        let running = arrivals[1..].iter().map(|&(at, arrival)| Running {
            adoption: Adoption {
                arrival,
                backend: BackendId(0),
                steps: 0,
            },
            admitted: at,
            first_token: None,
        });
        let handover = Handover {
            backends: vec![Backend {
                up: true,
                kv_capacity: Some(Tokens(4000)),
                ..Backend::default()
            }],
            running: running.collect(),
            // As if it had been held since.
            held: vec![arrivals[0]],
            ..Handover::default()
        };
        let mut policy = config.build_unchecked();
        for (at, event) in handover.past(now) {
            policy.handle(at, &event, &mut Decisions::new());
            lines.push(Line::Told { at, event });
        }
        for event in handover.present() {
            let mut decisions = Decisions::new();
            policy.handle(now, &event, &mut decisions);
            let decisions = decisions.as_slice().to_vec();
            lines.push(Line::Event {
                at: now,
                event,
                decisions,
            });
        }
        lines
    }

    #[test]
    fn a_switch_of_policies_replays_as_it_was_and_is_nothing_to_another_policy() {
        for name in policy::Config::NAMES {
            let lines = record_switch(name);
            let outcome = replayed(&lines, None);
            assert_eq!(outcome.different, 0, "{name}: {outcome:?}");
            assert_eq!(
                outcome.events,
                8 + 7,
                "{name}: the past is told, and one asks"
            );
            let other = replayed(&lines, Some("concurrency"));
            assert_eq!(other.events, 8, "{name}");
            assert_eq!(other.arrivals.values().sum::<u64>(), 6, "{name}: each once");
        }
    }

    #[test]
    fn another_policy_differs_where_it_would_have_held() {
        let outcome = replayed(&record("baseline"), Some("continuum"));
        assert!(
            outcome.arrivals[&(Answer::Admitted, Answer::Held)] >= 3,
            "{outcome:?}"
        );
        assert!(describe(&outcome).contains("admitted when recorded, held when replayed"));
    }

    #[test]
    fn a_decision_that_changed_is_shown_and_a_gap_is_said() {
        let mut lines = record("baseline");
        if let Some(Line::Event { decisions, .. }) = lines.get_mut(2) {
            decisions.clear();
        }
        lines.push(Line::Gap { lost: 3 });
        let outcome = replayed(&lines, None);
        let text = describe(&outcome);
        assert_eq!((outcome.different, outcome.lost), (1, 3));
        assert!(
            text.contains("event 2 at 0.001s") && text.contains("missing 3 lines"),
            "{text}"
        );
        assert!(
            text.ends_with("8 events: 7 with equal decisions, 1 with different ones\n"),
            "{text}"
        );
    }
}
