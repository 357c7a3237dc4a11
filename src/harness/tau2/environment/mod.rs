//! Where tau2-bench is installed: a virtual environment of pinned packages in the user's cache, made once.
//!
//! It is built beside its place and renamed when it has passed the check, so one that is there is whole. A lock keeps
//! two runs from building at once. The name holds a hash of the pins: other pins, another environment.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::Catalogue;
use crate::harness::child::last_lines;

/// The packages, each with its version and the hashes of its files.
const PINS: &str = include_str!("../python/requirements.txt");
/// Prints what is installed.
const CATALOGUE: &str = include_str!("../python/catalogue.py");
/// Left in an environment that passed its check.
const CHECKED: &str = "kvgate.json";
/// Names under which a Python may be found, the best tried first.
const PYTHONS: [&str; 6] = [
    "python3.12",
    "python3.13",
    "python3.11",
    "python3.10",
    "python3.14",
    "python3",
];
/// What is needed of it.
const NEW_ENOUGH: &str = "import sys; sys.exit(sys.version_info < (3, 10))";
/// Tasks of each domain in the benchmark's base split.
const TASKS: [(&str, usize); 3] = [("retail", 114), ("telecom", 114), ("airline", 50)];
/// Set for every Python process of tau2: no look-ups outside, and nothing held back in a buffer.
pub(super) const VARIABLES: [(&str, &str); 5] = [
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
}

/// What [`CATALOGUE`] prints and [`CHECKED`] holds.
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

/// A short name of the pins.
fn pins_hash() -> String {
    format!("{:012x}", xxh3_64(PINS.as_bytes()) >> 16)
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
        let name = format!("tau2-{}", pins_hash());
        let place = cache.join(&name);
        if let Some(there) = Self::installed(&place) {
            return Ok(there);
        }
        fs::create_dir_all(cache)
            .with_context(|| format!("cannot make the cache {}", cache.display()))?;
        let _held = lock(&cache.join(format!("{name}.lock")), progress)?;
        if let Some(there) = Self::installed(&place) {
            return Ok(there);
        }
        clear(cache, &name)?;
        // Named by the process: what a killed one left may still be written to by its pip.
        let building = cache.join(format!("{name}.building-{}", std::process::id()));
        progress(&format!("installing tau2-bench into {}", place.display()));
        let built = build(&building, &cache.join(format!("{name}.log")), progress);
        built.inspect_err(|_| {
            // Half an environment may be what filled the disk.
            let _kept = fs::remove_dir_all(&building);
        })?;
        progress("checking tau2-bench and its data");
        let python = building.join("bin/python");
        let mut found = Found::by(&python, None)?;
        found.complete()?;
        if let Ok(inside) = found.data.strip_prefix(&building) {
            found.data = place.join(inside);
        }
        fs::write(building.join(CHECKED), serde_json::to_vec(&found)?)?;
        fs::rename(&building, &place)
            .with_context(|| format!("cannot move the environment to {}", place.display()))?;
        Self::installed(&place).context("the environment is not where it was just put")
    }

    /// The environment at `place`, if it is whole.
    fn installed(place: &Path) -> Option<Self> {
        let text = fs::read(place.join(CHECKED)).ok()?;
        let found: Found = serde_json::from_slice(&text).ok()?;
        let python = place.join("bin/python");
        // A link into an interpreter that may have been removed since.
        python.exists().then(|| Self::new(python, found))
    }

    /// A tau2 that is installed already, such as an upstream checkout's; `data` is the checkout's `data` folder,
    /// where that is not inside the package. Blocks.
    ///
    /// # Errors
    /// When `python` cannot load tau2 or its tasks.
    pub fn at(python: &Path, data: Option<&Path>) -> anyhow::Result<Self> {
        // Its folder's links are left alone: they make it a virtual environment's.
        let python = std::path::absolute(python)?;
        let found = Found::by(&python, data)?;
        Ok(Self::new(python, found))
    }

    fn new(python: PathBuf, found: Found) -> Self {
        Self {
            python,
            data: found.data,
            tau2: found.tau2,
            catalogue: found.tasks,
        }
    }
}

impl Found {
    /// Asks `python` what it finds.
    fn by(python: &Path, data: Option<&Path>) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", CATALOGUE]).envs(VARIABLES);
        if let Some(data) = data {
            command.env("TAU2_DATA_DIR", data);
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

/// Removes the environment `name` that is not whole, and what interrupted builds of it left.
fn clear(cache: &Path, name: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let path = entry?.path();
        let left = path.file_name().and_then(|file| file.to_str());
        if left.is_some_and(|left| left.starts_with(&format!("{name}.building"))) {
            // One that still changes goes with a later build.
            let _kept = fs::remove_dir_all(&path);
        }
    }
    let place = cache.join(name);
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    Ok(())
}

/// Waits until no other process builds. The lock ends with the file that is returned.
fn lock(path: &Path, progress: &mut dyn FnMut(&str)) -> anyhow::Result<File> {
    let name = || format!("cannot lock {}", path.display());
    let file = File::create(path).with_context(name)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress("another run installs tau2-bench: waiting for it");
            file.lock().with_context(name)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(name),
    }
    Ok(file)
}

/// Makes the virtual environment `place` and installs the pinned packages, with uv where it is found.
fn build(place: &Path, log: &Path, progress: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let python = find_python(&PYTHONS)?;
    let mut log = Log::create(log)?;
    let pins = log.path.with_extension("pins");
    fs::write(&pins, PINS).with_context(|| format!("cannot write {}", pins.display()))?;
    let interpreter = place.join("bin/python");
    let options = ["--no-deps", "--only-binary", ":all:", "--require-hashes"];
    if answers("uv", &["--version"]) {
        let mut venv = Command::new("uv");
        venv.args(["venv", "--no-project", "--python", python])
            .arg(place);
        log.run(&mut venv, progress)?;
        let mut uv = Command::new("uv");
        uv.args(["pip", "install", "--python"]).arg(&interpreter);
        log.run(uv.args(options).arg("-r").arg(&pins), progress)?;
    } else {
        let mut venv = Command::new(python);
        log.run(venv.args(["-m", "venv"]).arg(place), progress)?;
        let mut pip = Command::new(&interpreter);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check"]);
        pip.arg("--progress-bar=off");
        log.run(pip.args(options).arg("-r").arg(&pins), progress)?;
    }
    Ok(())
}

fn find_python<'a>(names: &[&'a str]) -> anyhow::Result<&'a str> {
    let mut names = names.iter().copied();
    let found = names.find(|name| answers(name, &["-c", NEW_ENOUGH]));
    found.context("tau2-bench needs Python 3.10 or later: install python3, with its venv module")
}

/// Whether the command exists and succeeds.
fn answers(name: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(name);
    let quiet = command.args(arguments).stdin(Stdio::null());
    let quiet = quiet.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// The record of an installation.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Runs a command to its end, telling `progress` every line.
    fn run(&mut self, command: &mut Command, progress: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let (output, both) = std::io::pipe()?;
        command.stdin(Stdio::null());
        command.stdout(both.try_clone()?).stderr(both);
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        // The command holds the pipe's other end open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut text = String::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            writeln!(self.file, "{line}")
                .with_context(|| format!("cannot write {}", self.path.display()))?;
            if let Some(step) = step(&line) {
                progress(step);
            }
            text.push_str(&line);
            text.push('\n');
        }
        let status = child.wait()?;
        if !status.success() {
            bail!(
                "cannot install tau2-bench: {} ({name} ended with {status}; all of it in {}):\n{}",
                remedy(&text),
                self.path.display(),
                last_lines(&text)
            );
        }
        Ok(())
    }
}

/// What a line of pip's or uv's says that is worth showing, without the file that asked for it.
fn step(line: &str) -> Option<&str> {
    const TOLD: [&str; 5] = [
        "Collecting",
        "Resolved",
        "Downloading",
        "Installing",
        "Installed",
    ];
    let line = line.trim();
    let told = TOLD.iter().any(|word| line.starts_with(word));
    let (step, _) = line.split_once(" (from").unwrap_or((line, ""));
    told.then(|| step.split(':').next().unwrap_or(step))
}

/// What the output of a failed installation points at.
fn remedy(output: &str) -> &'static str {
    const SIGNS: [(&[&str], &str); 5] = [
        (
            &["No space left", "os error 28"],
            "the disk is full: free 500 MB, or set KVGATE_CACHE to a folder elsewhere",
        ),
        (
            &["HASHES", "Hash mismatch"],
            "a package is not the one that was pinned: look at the index that pip uses",
        ),
        (
            &["ensurepip", "python3-venv"],
            "this Python has no venv module: install python3-venv",
        ),
        (
            &[
                "resolution",
                "(from versions: none)",
                "dns error",
                "refused",
                "unreachable",
                "timed out",
                "error sending request",
                "NewConnectionError",
            ],
            "the package index cannot be reached: a network, or pip's proxy settings, are needed once",
        ),
        (
            &["No matching distribution", "no wheels", "no usable wheels"],
            "no package fits this Python or machine: try another Python, 3.10 to 3.13",
        ),
    ];
    SIGNS
        .into_iter()
        .find(|(words, _)| words.iter().any(|word| output.contains(word)))
        .map_or("see the output", |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests;
