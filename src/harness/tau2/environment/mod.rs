//! Where tau2-bench is installed: a virtual environment of pinned packages in the user's cache, made once.
//!
//! It is built beside its place and renamed when it has passed the check, so one that is there is whole. A lock keeps
//! two runs from building at once. The name holds a hash of the pins: other pins, another environment.

mod upstream;
mod venv;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::Catalogue;
use crate::harness::child::last_lines;
use venv::{Recipe, python_of};

/// The packages, each with its version and the hashes of its files.
const PINS: &str = include_str!("../python/requirements.txt");
/// Prints what is installed.
const CATALOGUE: &str = include_str!("../python/catalogue.py");
/// Tasks of each domain in the benchmark's base split.
const TASKS: [(&str, usize); 3] = [("retail", 114), ("telecom", 114), ("airline", 50)];
/// Set for every Python process of tau2: no look-ups outside, and nothing held back in a buffer.
pub(in crate::harness) const VARIABLES: [(&str, &str); 5] = [
    ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
    ("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True"),
    ("HF_HUB_OFFLINE", "1"),
    ("PYTHONUNBUFFERED", "1"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
];

/// An installation of tau2 that passed its check.
#[derive(Clone, Debug, PartialEq)]
pub struct Environment {
    /// Its interpreter.
    pub python: PathBuf,
    /// The folder of its data.
    pub data: PathBuf,
    /// Package and version.
    pub tau2: String,
    /// The tasks there are.
    pub catalogue: Catalogue,
    /// Where its code is, if that is not installed.
    pub source: Option<PathBuf>,
}

/// What [`CATALOGUE`] prints.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    tau2: String,
    data: PathBuf,
    tasks: Catalogue,
}

/// The user's cache of kvgate: `KVGATE_CACHE`, else `XDG_CACHE_HOME/kvgate`, else `~/.cache/kvgate`.
///
/// # Errors
/// When none of the variables is set.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    cache_of(|name| std::env::var_os(name))
}

fn cache_of(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let below = |name: &str, rest: &str| set(name).map(|value| Path::new(&value).join(rest));
    below("KVGATE_CACHE", "")
        .or_else(|| below("XDG_CACHE_HOME", "kvgate"))
        .or_else(|| below("HOME", ".cache/kvgate"))
        .context("no place for the tau2 environment: set KVGATE_CACHE to a folder")
}

/// A short name of a list of packages.
fn hash(packages: &str) -> String {
    format!("{:012x}", xxh3_64(packages.as_bytes()) >> 16)
}

/// The domains that are played, of the pinned benchmark and of an upstream checkout.
pub fn domains() -> impl Iterator<Item = &'static str> + Clone {
    TASKS.iter().map(|(domain, _)| *domain)
}

/// Whether a folder is an upstream checkout, and whole; nothing is installed or loaded.
///
/// # Errors
/// What is missing, and what helps.
pub fn check_upstream(checkout: &Path) -> anyhow::Result<()> {
    upstream::Checkout::open(checkout).map(drop)
}

impl Environment {
    /// The environment of the pinned packages below `cache`, which is made if it is not there: one to two minutes and
    /// 500 MB, with a network. `progress` is told each step. Blocks.
    ///
    /// # Errors
    /// When there is no Python, the packages cannot be installed or the check fails; the message says which and what
    /// helps.
    pub fn install(cache: &Path, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        let cache = &std::path::absolute(cache)?;
        let recipe = Recipe {
            name: format!("tau2-{}", hash(PINS)),
            packages: PINS,
            locked: true,
            minor: 10,
        };
        let place = cache.join(&recipe.name);
        let found = recipe.make(cache, progress, |building| {
            let mut found = Found::by(&python_of(building), None, None)?;
            found.complete()?;
            if let Ok(inside) = found.data.strip_prefix(building) {
                found.data = place.join(inside);
            }
            Ok(serde_json::to_vec(&found)?)
        })?;
        let found = serde_json::from_slice(&found)
            .with_context(|| format!("{} is damaged: remove it", place.display()))?;
        Ok(Self::new(python_of(&place), found))
    }

    /// An upstream checkout, with `python`, else with an environment of what its `pyproject.toml` says that it needs:
    /// made once below `cache`, in a minute and 300 MB, with a network. Nothing is written into the checkout.
    /// `progress` is told each step. Blocks.
    ///
    /// # Errors
    /// When files are missing from the checkout, no Python will do, its packages cannot be installed, or it cannot be
    /// loaded; the message says which and what helps.
    pub fn upstream(
        checkout: &Path,
        python: Option<&Path>,
        cache: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Self> {
        let checkout = upstream::Checkout::open(checkout)?;
        let python = match python {
            // Its folder's links are left alone: they make it a virtual environment's.
            Some(python) => std::path::absolute(python)?,
            None => checkout.install(&std::path::absolute(cache)?, progress)?,
        };
        progress("loading tau2-bench");
        let mut found = Found::by(&python, Some(&checkout.data), Some(&checkout.source))?;
        found.tau2 = checkout.version;
        let mut environment = Self::new(python, found);
        environment.source = Some(checkout.source);
        Ok(environment)
    }

    /// A tau2 that is installed already, such as an upstream checkout's; `data` is the checkout's `data` folder,
    /// where that is not inside the package. Blocks.
    ///
    /// # Errors
    /// When `python` cannot load tau2 or its tasks.
    pub fn at(python: &Path, data: Option<&Path>) -> anyhow::Result<Self> {
        // Its folder's links are left alone: they make it a virtual environment's.
        let python = std::path::absolute(python)?;
        let found = Found::by(&python, data, None)?;
        Ok(Self::new(python, found))
    }

    fn new(python: PathBuf, found: Found) -> Self {
        Self {
            python,
            data: found.data,
            tau2: found.tau2,
            catalogue: found.tasks,
            source: None,
        }
    }
}

impl Found {
    /// Asks `python` what it finds.
    fn by(python: &Path, data: Option<&Path>, source: Option<&Path>) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", CATALOGUE]).envs(VARIABLES);
        if let Some(data) = data {
            command.env("TAU2_DATA_DIR", data);
        }
        if let Some(source) = source {
            command.env("PYTHONPATH", source);
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{} cannot load tau2 and its tasks:\n{}",
            python.display(),
            last_lines(&errors)
        );
        serde_json::from_slice(&output.stdout).context("tau2 did not list its tasks")
    }

    /// Whether every task is there.
    fn complete(&self) -> anyhow::Result<()> {
        for (domain, count) in TASKS {
            let there = self.tasks.get(domain).map_or(0, Vec::len);
            ensure!(
                there == count,
                "the installed tau2 has {there} tasks of {domain}, not {count}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
