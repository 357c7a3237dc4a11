//! What was asked for: flags and `experiment.toml` as one.
//!
//! One struct, [`Options`], is the command line and the file at once. A flag beats the file, which beats the default.
//! The sum of both is written into the experiment's directory, and is all that `resume` reads.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::engine::EngineOptions;
use super::watchdog::WatchdogOptions;
use super::workload::WorkloadOptions;
use crate::harness::child::ADMIN_TOKEN;
use crate::harness::rundir::DIRECT;
use crate::policy;

/// The file in an experiment's directory.
pub const FILE: &str = "experiment.toml";

/// What to play, on what, in which order; as typed. Each is also a key of `experiment.toml`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Scheduling policies; `direct` plays without a gate [default: kvgate]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', help_heading = "Experiment")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub policy: Vec<String>,
    /// Programs in flight [default: 32]
    #[arg(long, value_name = "C", num_args = 1.., value_delimiter = ',', help_heading = "Experiment")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub concurrency: Vec<usize>,
    /// How often each cell is played, with another seed each time [default: 1]
    #[arg(long, value_name = "N", help_heading = "Experiment")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<u32>,
    /// In which order policies take their turns [default: alternating]
    #[arg(long, help_heading = "Experiment")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Where the gate listens, for every policy the same; port 0 takes a free one [default: 127.0.0.1:1900]
    #[arg(long, value_name = "ADDR", help_heading = "Experiment")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// What is played.
    #[command(flatten)]
    pub workload: WorkloadOptions,
    /// What serves the model.
    #[command(flatten)]
    pub engine: EngineOptions,
    /// When to stop waiting.
    #[command(flatten)]
    pub watchdog: WatchdogOptions,
    /// Whether it is a matrix; the command says so.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix: Option<bool>,
    /// Options of `kvgate serve` and a table for each policy's parameters; only in the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub gate: toml::Table,
    /// Other endpoints by model name, as `kvgate serve` takes them; only in the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub routes: toml::Table,
}

/// In which order the policies of a row are played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// There and back: every second row backwards, so that a machine that warms up does not favour one
    #[default]
    Alternating,
    /// As they were named, in every row
    Listed,
}

/// Where the gate listens by default.
const LISTEN: &str = "127.0.0.1:1900";
/// Keys of `kvgate serve` that the experiment sets itself.
const OURS: [&str; 6] = [
    "listen",
    "backend",
    "policy",
    "run_dir",
    "time_scale",
    "time_epoch",
];
/// The most programs in flight.
const MOST: usize = 4_096;

/// A cell's place in the matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The gate's policy, or [`DIRECT`].
    pub policy: String,
    /// Programs in flight.
    pub concurrency: usize,
    /// Which repeat, from 0.
    pub repeat: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-c{}", self.policy, self.concurrency)?;
        match self.repeat {
            0 => Ok(()),
            repeat => write!(f, "-r{}", repeat + 1),
        }
    }
}

impl Options {
    /// The flags over what `file` says.
    ///
    /// # Errors
    /// When the file cannot be read, or has an unknown key or a wrong value; the message names it.
    pub fn over(&self, file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else {
            return Ok(self.clone());
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        // Read by itself first, so that a mistake in it is told with its line.
        let _checked: Self = toml::from_str(&text).with_context(|| file.display().to_string())?;
        let mut table: toml::Table = toml::from_str(&text)?;
        overlay(&mut table, toml::Table::try_from(self)?);
        toml::Value::Table(table)
            .try_into()
            .with_context(|| file.display().to_string())
    }

    /// What an experiment's directory says.
    ///
    /// # Errors
    /// When it holds no experiment.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(FILE);
        if !file.is_file() {
            bail!("{} is no experiment: it has no {FILE}", dir.display());
        }
        Self::default().over(Some(&file))
    }

    /// As the text of `experiment.toml`.
    ///
    /// # Errors
    /// Never in practice: every value has a form in TOML.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// What is wrong with it, all at once; the workload and the engine are asked themselves.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for name in self.policies() {
            if name != DIRECT && policy::Config::by_name(&name).is_none() {
                let names = policy::Config::NAMES.join(", ");
                problems.push(format!(
                    "--policy: no policy {name:?}; choose from {names}, {DIRECT}"
                ));
            }
        }
        if !self.rows().iter().all(|c| (1..=MOST).contains(c)) {
            problems.push(format!("--concurrency must be 1 to {MOST}"));
        }
        if self.repeats == Some(0) {
            problems.push("--repeats must be at least 1".to_owned());
        }
        if let Err(error) = self.listen().parse::<std::net::SocketAddr>() {
            problems.push(format!(
                "--listen {}: {error}; write an address such as {LISTEN}",
                self.listen()
            ));
        }
        problems.extend(
            OURS.iter()
                .filter(|key| self.gate.contains_key(**key))
                .map(|key| format!("[gate] {key}: the experiment sets this itself; take it out")),
        );
        if self.gate.contains_key("admin_token") {
            problems.push(format!(
                "[gate] admin_token: a secret is not kept in an experiment's folder; take it out, and export \
                 {ADMIN_TOKEN} for its gates"
            ));
        }
        for (what, given) in [
            ("--policy", has_twice(&self.policies())),
            ("--concurrency", has_twice(&self.rows())),
        ] {
            if given {
                problems.push(format!(
                    "{what} names one twice; --repeats plays cells again"
                ));
            }
        }
        problems
    }

    /// The policies in the order named.
    pub fn policies(&self) -> Vec<String> {
        if self.policy.is_empty() {
            vec![policy::Config::default().name().to_owned()]
        } else {
            self.policy.clone()
        }
    }

    /// The concurrencies in the order named.
    pub fn rows(&self) -> Vec<usize> {
        if self.concurrency.is_empty() {
            vec![32]
        } else {
            self.concurrency.clone()
        }
    }

    /// Where the gate listens.
    pub fn listen(&self) -> &str {
        self.listen.as_deref().unwrap_or(LISTEN)
    }

    /// Every cell, in the order in which they are played: all policies of a concurrency, one concurrency after the
    /// other, then all of it again.
    pub fn places(&self) -> Vec<Place> {
        let policies = self.policies();
        let mut places = Vec::new();
        let mut row = 0;
        for repeat in 0..self.repeats.unwrap_or(1) {
            for concurrency in self.rows() {
                let backwards =
                    row % 2 == 1 && self.order.unwrap_or_default() == Order::Alternating;
                let place = |policy: &String| Place {
                    policy: policy.clone(),
                    concurrency,
                    repeat,
                };
                if backwards {
                    places.extend(policies.iter().rev().map(place));
                } else {
                    places.extend(policies.iter().map(place));
                }
                row += 1;
            }
        }
        places
    }
}

/// A list; a single value is a list of one.
fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OneOrMore<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value or a list of them")
        }

        fn visit_i64<E: Error>(self, one: i64) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(one.into_deserializer())?])
        }

        fn visit_str<E: Error>(self, one: &str) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(one.into_deserializer())?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, more: A) -> Result<Vec<T>, A::Error> {
            Deserialize::deserialize(SeqAccessDeserializer::new(more))
        }
    }

    deserializer.deserialize_any(OneOrMore(PhantomData))
}

fn has_twice<T: PartialEq>(values: &[T]) -> bool {
    values
        .iter()
        .enumerate()
        .any(|(at, value)| values[..at].contains(value))
}

/// Puts the values of `upper` over those of `lower`, table by table.
fn overlay(lower: &mut toml::Table, upper: toml::Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("mine.toml");
        std::fs::write(&file, text).unwrap();
        (temp, file)
    }

    #[test]
    fn a_flag_beats_the_file_and_the_sum_reads_back() {
        let (_temp, file) = file(
            "policy = [\"baseline\"]\nconcurrency = [8]\n[workload]\nworkload = \"replay\"\ntasks = 5\n\
             [gate]\nprogram_idle = 60.0\n[gate.continuum]\nttl_s = 2.0\n",
        );
        let mut flags = Options {
            policy: vec!["continuum".to_owned()],
            ..Options::default()
        };
        flags.workload.tasks = Some(7);

        let sum = flags.over(Some(&file)).unwrap();

        assert_eq!(sum.policies(), ["continuum"]);
        assert_eq!((sum.rows(), sum.workload.tasks), (vec![8], Some(7)));
        assert_eq!(sum.gate["program_idle"].as_float(), Some(60.0));
        let again: Options = toml::from_str(&sum.to_toml().unwrap()).unwrap();
        assert_eq!(again.to_toml().unwrap(), sum.to_toml().unwrap());
    }

    #[test]
    fn where_no_policy_is_named_it_is_kvgate_and_the_help_says_so() {
        let (_temp, file) = file("concurrency = 2\n");
        let options = Options::default().over(Some(&file)).unwrap();
        assert_eq!(options.policies(), ["kvgate"]);
        assert_eq!(options.places()[0].policy, "kvgate");
        let command = Options::augment_args(clap::Command::new("run"));
        let mut flags = command.get_arguments();
        let help = flags.find(|flag| flag.get_id() == "policy").unwrap();
        let help = help.get_help().unwrap().to_string();
        assert!(help.ends_with("[default: kvgate]"), "{help}");
    }

    #[test]
    fn a_single_value_is_a_list_of_one_and_a_wrong_one_is_named_with_its_line() {
        let (_temp, one) = file("policy = \"continuum\"\nconcurrency = 2\n");
        let options = Options::default().over(Some(&one)).unwrap();
        assert_eq!(
            (options.policies(), options.rows()),
            (vec!["continuum".to_owned()], vec![2])
        );
        let flags = Options {
            concurrency: vec![4, 8],
            ..Options::default()
        };
        assert_eq!(flags.over(Some(&one)).unwrap().rows(), [4, 8]);
        for wrong in [
            "concurrency = \"2\"",
            "concurrency = -2",
            "concurrency = [2, \"4\"]",
            "policy = 2",
        ] {
            let (_temp, file) = file(&format!("repeats = 1\n{wrong}\n"));
            let error = Options::default().over(Some(&file)).unwrap_err();
            let text = format!("{error:#}");
            assert!(
                text.contains("line 2") && text.contains("invalid"),
                "{wrong}: {text}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let (_temp, file) = file("policy = [\"baseline\"]\n[workload]\ntask = 5\n");
        let error = Options::default().over(Some(&file)).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("mine.toml") && text.contains("line 3") && text.contains("task"),
            "{text}"
        );
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let options = Options {
            policy: vec!["magic".to_owned(), "magic".to_owned()],
            concurrency: vec![0],
            repeats: Some(0),
            listen: Some("here".to_owned()),
            gate: toml::toml! { backend = "x" },
            ..Options::default()
        };
        let problems = options.problems().join("\n");
        for part in [
            "thunderreact",
            "--concurrency",
            "--repeats",
            "--listen here",
            "[gate] backend",
            "one twice",
        ] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }
}
