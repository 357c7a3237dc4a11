//! Pure decisions: when each request of each program runs, and on which backend.
//!
//! No async, clock, lock, I/O or thread lives here, and nothing of ours is imported: time and events come in,
//! decisions go out. The same events give the same decisions, so a recorded day replays as a test.
//!
//! To read on: [`Policy`] and its laws, then [`baseline`] (the smallest implementation), [`ledger`] (what the
//! others share), [`checked`] (the laws as assertions). To add a policy: CONTRIBUTING.md, six steps.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod baseline;
pub mod checked;
pub mod concurrency;
pub mod continuum;
pub mod decision;
pub mod estimate;
pub mod event;
pub mod handover;
pub mod ids;
pub mod kvgate;
pub mod ledger;
pub mod roster;
pub mod settings;
pub mod slots;
pub mod thunderagent;
pub mod thunderreact;
pub mod time;
pub mod units;
pub mod waiting;

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use checked::Checked;
pub use decision::{Decision, Decisions, HoldReason, RejectReason, Wakeup};
pub use event::{Adoption, Arrival, BackendSample, Event, GapKind, Outcome, SharedPrefix, Usage};
pub use ids::{BackendId, ProgramId, RequestId, ToolId};
pub use time::Time;
pub use units::{Ratio, Tokens};

/// Decides when each request runs, and where.
///
/// # Laws
/// Asserted by [`Checked`] and property-tested for every policy in the registry.
///
/// * **P1** Each [`Event::Arrive`] and [`Event::Rearrive`] gets exactly one decision in the same call. Each held request later gets
///   exactly one `Admit` or `Reject`, unless it is cancelled first. A request without a program is never held.
/// * **P2** `now` never decreases from call to call.
/// * **P3** The same configuration, seed and events give the same decisions.
/// * **P4** No request is admitted to a backend that is down.
/// * **P5** No spin: after a [`Event::Tick`] at *t*, the next wakeup is later than *t*.
/// * **P6** No wedge: while a request is held and a backend is up, a wakeup is due or a request is in flight.
/// * **P7** Queues and holds are bounded, and reaching the bound is a decision.
/// * **P8** The ledger equals its recomputation (checked in debug builds).
pub trait Policy: fmt::Debug + Send {
    /// Takes one event at `now` and appends the decisions that follow from it to `out`, in order.
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions);

    /// When the policy wants a [`Event::Tick`]; `None` while only events can change its mind.
    fn next_wakeup(&self) -> Option<Wakeup>;

    /// Plain numbers for gauges and reports. O(1): sums are kept, not recomputed.
    fn snapshot(&self) -> PolicySnapshot;

    /// How the policy sees one program, for `GET /programs`; the default is a program it does nothing with.
    fn program(&self, program: ProgramId) -> ProgramView {
        let _ = program;
        ProgramView::default()
    }
}

/// A policy's state in plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PolicySnapshot {
    /// The policy's name in the registry.
    pub policy: &'static str,
    /// Requests held now.
    pub held: u32,
    /// Programs known now.
    pub programs: u32,
    /// Programs paused, or without a reservation, now.
    pub paused: u32,
    /// Tokens of programs that the policy counts as resident, over all backends.
    pub resident: Tokens,
    /// Further numbers of this policy, by name, in a fixed order: limits, counts now, and totals since it took over.
    pub values: Vec<(&'static str, f64)>,
    /// What it has learnt and decides by, by name, in a fixed order.
    pub estimates: Vec<(&'static str, f64)>,
    /// Reservations of idle programs' room that ended since it took over, by how.
    pub pins: Vec<(&'static str, u64)>,
}

/// How a policy sees one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramView {
    /// Its next request will be held.
    pub paused: bool,
    /// It will be paused when its running request ends.
    pub pause_requested: bool,
}

/// The registry: every policy and its configuration.
///
/// Adding a variant makes the compiler name each place that must know it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Config {
    /// Admit at once, to the backend with the fewest requests in flight.
    Baseline(baseline::Config),
    /// Pause and resume programs by KV cache usage.
    ThunderReact(thunderreact::Config),
    /// Pause and resume programs by the tokens counted for each.
    ThunderAgent(thunderagent::Config),
    /// Keep a program's room through a tool gap, up to a time-to-live.
    Continuum(continuum::Config),
    /// Cap the number of active programs.
    Concurrency(concurrency::Config),
    /// Keep a program's room while it is worth more than what running requests would make of it.
    Kvgate(kvgate::Config),
}

impl Default for Config {
    /// The policy where none is named.
    fn default() -> Self {
        Self::Kvgate(kvgate::Config::default())
    }
}

impl Config {
    /// The names accepted by `--policy`, in the order in which they are listed.
    pub const NAMES: [&'static str; 6] = [
        baseline::NAME,
        thunderreact::NAME,
        thunderagent::NAME,
        continuum::NAME,
        concurrency::NAME,
        kvgate::NAME,
    ];

    /// What whoever starts a gate with this policy has to know; `None` where there is nothing.
    pub const fn advice(&self) -> Option<&'static str> {
        if let Self::Kvgate(_) = self {
            return Some(
                "a request without a program passes at once, and so does every request until /metrics of the backend \
                 tell its KV capacity; vLLM's --enable-prompt-tokens-details lets the policy learn from cached tokens; \
                 --policy baseline is the plain proxy",
            );
        }
        None
    }

    /// Whether the policy lets everything pass on a backend that does not tell its KV capacity.
    pub const fn needs_capacity(&self) -> bool {
        match self {
            Self::Baseline(_) | Self::ThunderReact(_) | Self::Concurrency(_) => false,
            Self::Continuum(config) => config.kv_budget_tokens.is_none(),
            Self::ThunderAgent(_) | Self::Kvgate(_) => true,
        }
    }

    /// The policy called `name` with its default configuration; `None` for an unknown name.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            baseline::NAME => Some(Self::Baseline(baseline::Config::default())),
            thunderreact::NAME => Some(Self::ThunderReact(thunderreact::Config::default())),
            thunderagent::NAME => Some(Self::ThunderAgent(thunderagent::Config::default())),
            continuum::NAME => Some(Self::Continuum(continuum::Config::default())),
            concurrency::NAME => Some(Self::Concurrency(concurrency::Config::default())),
            kvgate::NAME => Some(Self::Kvgate(kvgate::Config::default())),
            _ => None,
        }
    }

    /// The name in the registry.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Baseline(_) => baseline::NAME,
            Self::ThunderReact(_) => thunderreact::NAME,
            Self::ThunderAgent(_) => thunderagent::NAME,
            Self::Continuum(_) => continuum::NAME,
            Self::Concurrency(_) => concurrency::NAME,
            Self::Kvgate(_) => kvgate::NAME,
        }
    }

    /// The policy called `name`, with the settings that `table` holds and the defaults for the rest.
    ///
    /// # Errors
    /// An unknown name, an unknown key, or a value of the wrong type, as the deserialiser words it.
    pub fn deserialize<'de, D: Deserializer<'de>>(name: &str, table: D) -> Result<Self, D::Error> {
        match name {
            baseline::NAME => Deserialize::deserialize(table).map(Self::Baseline),
            thunderreact::NAME => Deserialize::deserialize(table).map(Self::ThunderReact),
            thunderagent::NAME => Deserialize::deserialize(table).map(Self::ThunderAgent),
            continuum::NAME => Deserialize::deserialize(table).map(Self::Continuum),
            concurrency::NAME => Deserialize::deserialize(table).map(Self::Concurrency),
            kvgate::NAME => Deserialize::deserialize(table).map(Self::Kvgate),
            _ => Err(D::Error::custom(format!(
                "unknown policy {name:?}; choose one of {}",
                Self::NAMES.join(", ")
            ))),
        }
    }

    /// Checks every setting of the chosen policy.
    ///
    /// # Errors
    /// One line that names the key and the fix.
    pub fn validate(&self) -> Result<(), String> {
        let checked = match self {
            Self::Baseline(baseline::Config {}) => Ok(()),
            Self::ThunderReact(config) => config.validate(),
            Self::ThunderAgent(config) => config.validate(),
            Self::Continuum(config) => config.validate(),
            Self::Concurrency(config) => config.validate(),
            Self::Kvgate(config) => config.validate(),
        };
        checked.map_err(|problem| format!("{}.{problem}", self.name()))
    }

    /// A fresh policy with this configuration, which [`Self::validate`] has accepted. Debug builds wrap it in
    /// [`Checked`].
    pub fn build(&self) -> Box<dyn Policy> {
        let policy = self.build_unchecked();
        if cfg!(debug_assertions) {
            return Box::new(Checked::new(policy));
        }
        policy
    }

    /// A fresh policy without the wrapper of debug builds, for measurements.
    pub fn build_unchecked(&self) -> Box<dyn Policy> {
        match self {
            Self::Baseline(baseline::Config {}) => Box::new(baseline::Baseline::default()),
            Self::ThunderReact(config) => thunderreact::build(config.clone()),
            Self::ThunderAgent(config) => thunderagent::build(config.clone()),
            Self::Continuum(config) => Box::new(continuum::Continuum::new(config.clone())),
            Self::Concurrency(config) => Box::new(concurrency::Concurrency::new(config.clone())),
            Self::Kvgate(config) => Box::new(kvgate::Kvgate::new(config.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_builds_the_policy_that_it_names() {
        for name in Config::NAMES {
            let config = Config::by_name(name).unwrap();
            assert_eq!(config.name(), name);
            assert_eq!(config.validate(), Ok(()), "the defaults are valid");
            assert_eq!(config.build().snapshot().policy, name);
        }
        assert_eq!(Config::by_name("fifo"), None);
    }

    #[test]
    fn an_unknown_key_is_refused_and_a_missing_one_keeps_its_default() {
        let parse = serde_json::from_str::<continuum::Config>;
        assert!(parse(r#"{"headrom": 0.1}"#).is_err());
        let config = parse(r#"{"headroom": 0.1}"#).unwrap();
        assert!((config.ttl_fixed_s - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_bad_setting_is_refused_with_its_full_name() {
        let config = Config::Continuum(continuum::Config {
            headroom: 2.0,
            ..continuum::Config::default()
        });
        let problem = config.validate().unwrap_err();
        assert!(
            problem.starts_with("continuum.headroom is 2: "),
            "{problem}"
        );
    }
}
