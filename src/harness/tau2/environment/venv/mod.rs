//! A virtual environment in a cache: built beside its place, checked, and renamed, by one process at a time.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::harness::child::last_lines;

/// Names under which a Python may be found, the best tried first.
const PYTHONS: [&str; 6] = [
    "python3.12",
    "python3.13",
    "python3.11",
    "python3.10",
    "python3.14",
    "python3",
];
/// Left in an environment that passed its check, with what the check found.
const CHECKED: &str = "kvgate.json";

/// What an environment is made of.
#[derive(Debug)]
pub(super) struct Recipe<'a> {
    /// Its folder in the cache; other packages, another name.
    pub(super) name: String,
    /// The packages, as pip reads them from a file.
    pub(super) packages: &'a str,
    /// Whether these are all, each with its version and hashes; else what they need is installed with them.
    pub(super) locked: bool,
    /// The least Python 3 that will do.
    pub(super) minor: u8,
}

impl Recipe<'_> {
    /// What the check of the environment in `cache` found; the environment is made if it is not there. `check` is
    /// given the folder in which it was built, which is then renamed.
    pub(super) fn make(
        &self,
        cache: &Path,
        progress: &mut dyn FnMut(&str),
        check: impl FnOnce(&Path) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Vec<u8>> {
        let name = &self.name;
        let place = cache.join(name);
        if let Some(found) = checked(&place) {
            return Ok(found);
        }
        fs::create_dir_all(cache)
            .with_context(|| format!("cannot make the cache {}", cache.display()))?;
        let _held = lock(&cache.join(format!("{name}.lock")), progress)?;
        if let Some(found) = checked(&place) {
            return Ok(found);
        }
        clear(cache, name)?;
        // Named by the process: what a killed one left may still be written to by its pip.
        let building = cache.join(format!("{name}.building-{}", std::process::id()));
        progress(&format!("installing tau2-bench into {}", place.display()));
        let built = self.build(&building, &cache.join(format!("{name}.log")), progress);
        built.inspect_err(|_| {
            // Half an environment may be what filled the disk.
            let _kept = fs::remove_dir_all(&building);
        })?;
        progress("checking tau2-bench and its data");
        let found = check(&building)?;
        fs::write(building.join(CHECKED), found)?;
        fs::rename(&building, &place)
            .with_context(|| format!("cannot move the environment to {}", place.display()))?;
        checked(&place).context("the environment is not where it was just put")
    }

    /// Makes the virtual environment `place` and installs the packages, with uv where it is found.
    fn build(
        &self,
        place: &Path,
        log: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        let python = find_python(&PYTHONS, self.minor)?;
        let mut log = Log::create(log)?;
        let pins = log.path.with_extension("pins");
        fs::write(&pins, self.packages)
            .with_context(|| format!("cannot write {}", pins.display()))?;
        let interpreter = python_of(place);
        let options: &[&str] = if self.locked {
            &["--no-deps", "--only-binary", ":all:", "--require-hashes"]
        } else {
            &[]
        };
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
}

/// The interpreter of an environment.
pub(super) fn python_of(place: &Path) -> PathBuf {
    place.join("bin/python")
}

/// What the check of the environment at `place` found, if it is whole.
pub(super) fn checked(place: &Path) -> Option<Vec<u8>> {
    let found = fs::read(place.join(CHECKED)).ok()?;
    // A link into an interpreter that may have been removed since.
    python_of(place).exists().then_some(found)
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

fn find_python<'a>(names: &[&'a str], minor: u8) -> anyhow::Result<&'a str> {
    let new_enough = format!("import sys; sys.exit(sys.version_info < (3, {minor}))");
    let mut names = names.iter().copied();
    let found = names.find(|name| answers(name, &["-c", &new_enough]));
    found.with_context(|| {
        format!("tau2-bench needs Python 3.{minor} or later: install python3, with its venv module")
    })
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
