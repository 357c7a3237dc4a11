//! The machine that an experiment is played on, and asking its programs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use super::gpu::{self, Gpu};

/// How long a program may take to say its version or state.
const PATIENCE: Duration = Duration::from_secs(20);
/// Characters of a failed program's complaint that are shown.
const SHOWN: usize = 200;

/// What it is. No name and no address: runs are shown to others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The system's name and version.
    pub system: Option<String>,
    /// The kernel's version.
    pub kernel: Option<String>,
    /// The processor's model.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// GPUs, if `nvidia-smi` is there.
    pub gpus: Vec<Gpu>,
}

impl Machine {
    /// Asks it.
    pub async fn ask() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let gpus = gpu::ask(Path::new(gpu::PROGRAM)).await;
        Self {
            system: read("/etc/os-release").and_then(|text| field(&text, "PRETTY_NAME", '=')),
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            cpu: read("/proc/cpuinfo").and_then(|text| field(&text, "model name", ':')),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            memory_bytes: read("/proc/meminfo")
                .and_then(|text| kibibytes(&field(&text, "MemTotal", ':')?)),
            gpus: gpus.map(|gpus| gpus.cards).unwrap_or_default(),
        }
    }
}

/// The value of the first line that begins with `name`, without quotes.
fn field(text: &str, name: &str, mark: char) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(mark));
    let (_, value) = lines.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().trim_matches('"').to_owned())
}

/// Bytes of `1024 kB`.
fn kibibytes(text: &str) -> Option<u64> {
    let number: u64 = text.strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

/// Where a program is: a path as it is, a bare name as `PATH` finds it; `None` if it is nowhere or cannot be executed.
pub fn find(program: &Path) -> Option<PathBuf> {
    let places: Vec<PathBuf> = if program.components().count() > 1 {
        vec![program.to_owned()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(program))
            .collect()
    };
    places.into_iter().find(|place| {
        place.is_file() && rustix::fs::access(place, rustix::fs::Access::EXEC_OK).is_ok()
    })
}

/// What a program prints, at most 20 s long, with the blanks around it removed.
///
/// # Errors
/// When it is not there, fails or takes too long; the message names it and has the first line of its complaint.
pub async fn output<Arg: AsRef<OsStr>>(
    program: &Path,
    args: &[Arg],
    cwd: Option<&Path>,
) -> anyhow::Result<String> {
    let name = program.display();
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    let Ok(ended) = timeout(PATIENCE, command.output()).await else {
        bail!("{name} does not answer within {PATIENCE:?}");
    };
    let ended = ended.with_context(|| format!("cannot start {name}"))?;
    let said = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    if !ended.status.success() {
        let complaint = String::from_utf8_lossy(&ended.stderr);
        let lines = complaint.lines().chain(said.lines());
        let line = lines
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or("no word");
        let line: String = line.chars().take(SHOWN).collect();
        bail!("{name} ended with {}: {line}", ended.status);
    }
    Ok(said)
}

/// A moment as `2026-11-24T16:00:00+00:00`, in the zone.
pub fn rfc3339(unix_s: f64, zone: &TimeZone) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds of a date")]
    let seconds = unix_s.floor() as i64;
    let zoned = Timestamp::from_second(seconds)
        .unwrap_or_default()
        .to_zoned(zone.clone());
    zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read_by_the_name_of_the_field() {
        let text = "processor : 0\nmodel name\t: Some CPU @ 2.0GHz\nmodel name : Other\n";
        assert_eq!(field(text, "model name", ':').unwrap(), "Some CPU @ 2.0GHz");
        assert_eq!(
            field("A=1\nPRETTY_NAME=\"A B\"\n", "PRETTY_NAME", '=').unwrap(),
            "A B"
        );
        assert_eq!(kibibytes("2 kB"), Some(2048));
        assert_eq!(kibibytes("2"), None);
    }

    #[tokio::test]
    async fn this_machine_has_cores_and_a_kernel() {
        let machine = Machine::ask().await;
        assert!(
            machine.cores > 0 && machine.kernel.is_some() && machine.memory_bytes > Some(1 << 20)
        );
    }

    #[test]
    fn a_program_is_found_by_name_or_path_if_it_can_be_executed() {
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        assert_eq!(find(Path::new("no-such-program")), None);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("text");
        fs::write(&file, "").unwrap();
        assert_eq!(find(&file), None, "not executable");
    }

    #[tokio::test]
    async fn a_programs_failure_is_told_in_its_own_words() {
        let sh = Path::new("sh");
        assert_eq!(
            output(sh, &["-c", "echo ' a b '"], None).await.unwrap(),
            "a b"
        );
        let error = output(sh, &["-c", "echo; echo why >&2; exit 3"], None)
            .await
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("exit status: 3") && error.ends_with("why"),
            "{error}"
        );
        let none = output(Path::new("no-such-program"), &[""], None)
            .await
            .unwrap_err();
        assert!(
            none.to_string().contains("cannot start no-such-program"),
            "{none}"
        );
    }

    #[test]
    fn a_moment_is_shown_in_its_zone() {
        let shanghai = TimeZone::get("Asia/Shanghai").unwrap();
        assert_eq!(
            rfc3339(1_767_600_000.9, &shanghai),
            "2026-01-05T16:00:00+08:00"
        );
        assert_eq!(
            rfc3339(1_767_600_000.0, &TimeZone::UTC),
            "2026-01-05T08:00:00+00:00"
        );
    }
}
