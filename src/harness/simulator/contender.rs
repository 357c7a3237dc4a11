//! What is compared: a policy with settings of its own, or one of the bounds.

use anyhow::{Context, bail};

use crate::harness::simulate::clairvoyant::Clairvoyant;
use crate::harness::simulate::{Cell, Measured, ProgramRun, bound, fixed_set_by_program};
use crate::policy;

/// The name of the run without a gate on a cache that holds everything.
pub const INFINITE_KV: &str = "infinite-kv";
/// The name of the policy `kvgate` that knows when each idle program returns.
pub const CLAIRVOYANT: &str = "clairvoyant";
/// The name of the makespan that no policy can beat.
pub const BOUND: &str = "bound";
/// What no gate can be: shown beside the policies, and never the best of them.
pub const BOUNDS: [&str; 3] = [INFINITE_KV, CLAIRVOYANT, BOUND];
/// What the others are compared with.
pub const REFERENCE: &str = policy::baseline::NAME;

/// One of the compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Contender {
    /// A policy.
    Policy(Box<policy::Config>),
    /// No gate, and a cache that holds everything.
    InfiniteKv,
    /// `kvgate` with default settings, told when each idle program returns.
    Clairvoyant,
    /// The analytic bound: only a makespan.
    Bound,
}

impl Contender {
    /// Reads `NAME` or `NAME:KEY=VALUE;KEY=VALUE`, the keys being those of the policy's table in `kvgate config`.
    ///
    /// # Errors
    /// An unknown name or key, or a value that the policy refuses.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text {
            INFINITE_KV => return Ok(Self::InfiniteKv),
            CLAIRVOYANT => return Ok(Self::Clairvoyant),
            BOUND => return Ok(Self::Bound),
            _ => {}
        }
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        if !policy::Config::NAMES.contains(&name) {
            bail!(
                "--policy: {name:?} is unknown; choose from {}, {}",
                policy::Config::NAMES.join(", "),
                BOUNDS.join(", ")
            );
        }
        let table: toml::Table = toml::from_str(&settings.replace(';', "\n"))
            .with_context(|| format!("--policy {text}: write NAME:KEY=VALUE;KEY=VALUE"))?;
        let config = policy::Config::deserialize(name, toml::Value::Table(table))
            .with_context(|| format!("--policy {text}"))?;
        match config.validate() {
            Ok(()) => Ok(Self::Policy(Box::new(config))),
            Err(problem) => bail!("--policy {text}: {problem}"),
        }
    }

    /// Plays `cell`.
    pub fn measure(&self, cell: &Cell) -> (Measured, Vec<ProgramRun>) {
        match self {
            Self::Policy(config) => fixed_set_by_program(cell, build(config, cell).as_mut()),
            Self::Clairvoyant => fixed_set_by_program(cell, &mut Clairvoyant::new(cell)),
            Self::InfiniteKv => {
                let mut direct = policy::baseline::Baseline::default();
                fixed_set_by_program(&cell.with_everything_cached(), &mut direct)
            }
            Self::Bound => {
                let makespan_s = bound::makespan_s(cell);
                let measured = Measured {
                    makespan_s,
                    ..Measured::default()
                };
                (measured, Vec::new())
            }
        }
    }
}

/// The policy, with what `cell` has it believe of gaps.
fn build(config: &policy::Config, cell: &Cell) -> Box<dyn policy::Policy> {
    if let policy::Config::Kvgate(config) = config {
        let mut policy = policy::kvgate::Kvgate::new(config.clone());
        policy.believe_gaps(cell.beliefs.gaps);
        return Box::new(policy);
    }
    config.build_unchecked()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_follow_the_name() {
        let Contender::Policy(config) =
            Contender::parse("continuum:ttl_fixed_s=3.5;headroom=0.1").unwrap()
        else {
            panic!("continuum is a policy");
        };
        let policy::Config::Continuum(config) = *config else {
            panic!("the name chooses the policy");
        };
        assert!((config.ttl_fixed_s - 3.5).abs() < 1e-9);
        assert_eq!(Contender::parse("bound").unwrap(), Contender::Bound);
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        let problem = |text| format!("{:#}", Contender::parse(text).unwrap_err());
        assert!(problem("fifo").contains("baseline, "));
        assert!(problem("continuum:headrom=1").contains("headrom"));
        assert!(problem("continuum:headroom=7").contains("continuum.headroom is 7"));
        assert!(problem("continuum:headroom").contains("NAME:KEY=VALUE"));
    }
}
