//! `kvgate reference`: what the reference experiment's scripts printed, to the byte, and their exit status.
//!
//! | command | script |
//! |---|---|
//! | `compare` | `compare_tr_ct_bl_active_window.py` |
//! | `compare6` | `compare_tr_ct_active_window.py` |
//! | `breakdown` | `window_outside_breakdown.py` |
//! | `bottleneck` | `compare_bottleneck_active_window.py` |
//! | `stuck` | `tr128_stuck_report.py` |
//! | `kv-after` | `check_kv_above_threshold_after.py` |
//!
//! Source: `scripts/analysis/active_window` of the reference experiment, as of 2026-01-05. So they are as silent as
//! those were: times are read in the zone of the process (`TZ`), and a `driver.log` that is missing counts as empty.
//! Where Python raised, the exception's last line goes to standard error, behind what had been printed until then.
//!
//! Logs are counted as they stream by; `stuck` keeps the samples, 16 bytes each, and `bottleneck` the durations that it
//! takes quantiles of, 8 bytes each.
//!
//! Not the same: a line of more than [`super::lines::MAX_LINE`] bytes is cut; and GNU grep, on which the scripts
//! stood, gave up on a log at its first byte that is no text, where this reads on.

mod bottleneck;
mod breakdown;
pub mod compare;
mod counted;
mod kv_after;
mod stuck;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::files::{self, KvError};
use super::kv::Row;
use super::local_time::Zone;
use super::python;
use crate::harness::stdout;
use crate::harness::window::{KvSample, Window};

/// `kvgate reference`.
#[derive(Args, Clone, Debug)]
pub struct ReferenceArgs {
    /// Which script.
    #[command(subcommand)]
    pub script: Script,
}

/// The scripts, with their flags.
#[derive(Clone, Debug, Subcommand)]
pub enum Script {
    /// Tasks/min and steps/s in the active window: three policies, three concurrencies
    ///
    /// Every flag but --threshold names the directory of a run: tr ThunderReact, ct Continuum, bl Baseline, and
    /// the concurrency. Log times are read in the zone TZ: set it to the zone in which the runs were made.
    Compare(compare::CompareArgs),
    /// The same for two policies, ThunderReact and Continuum
    Compare6(compare::Compare6Args),
    /// Tasks and steps of one run before, inside and after its active window
    Breakdown(breakdown::BreakdownArgs),
    /// Step rates, long calls and latencies of runs in their active windows
    Bottleneck(bottleneck::BottleneckArgs),
    /// KV usage around the last task that ended, and from then on
    Stuck(stuck::StuckArgs),
    /// Whether KV usage is ever above the threshold after a time; exit status 2 if so
    KvAfter(kv_after::KvAfterArgs),
}

/// What a script printed, and its exit status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// On standard output.
    pub stdout: String,
    /// The last line on standard error, if any.
    pub stderr: String,
    /// Exit status.
    pub status: u8,
}

/// The last line of a Python traceback, or the message of a `SystemExit`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Raised(String);

impl Raised {
    fn value_error(text: impl AsRef<str>) -> Self {
        Self(format!("ValueError: {}", text.as_ref()))
    }

    /// What `open(path)` or reading from it raises.
    fn os_error(error: &io::Error, path: &Path) -> Self {
        let classes = [
            (io::ErrorKind::NotFound, "FileNotFoundError"),
            (io::ErrorKind::PermissionDenied, "PermissionError"),
            (io::ErrorKind::IsADirectory, "IsADirectoryError"),
            (io::ErrorKind::NotADirectory, "NotADirectoryError"),
        ];
        let class = classes.iter().find(|(kind, _)| *kind == error.kind());
        let class = class.map_or("OSError", |(_, class)| *class);
        let text = error.to_string();
        let what = text
            .split_once(" (os error")
            .map_or(&*text, |(what, _)| what);
        let number = error.raw_os_error().unwrap_or(0);
        Self(format!(
            "{class}: [Errno {number}] {what}: {}",
            python::str_repr(&shown(path))
        ))
    }
}

/// Runs `kvgate reference` and prints what the script printed.
pub fn run(args: &ReferenceArgs) -> ExitCode {
    let printed = printed(args, &Zone::of_process());
    if let Err(error) = stdout::say(&printed.stdout) {
        let _closed = writeln!(
            io::stderr(),
            "kvgate: cannot write to standard output: {error}"
        );
        return ExitCode::FAILURE;
    }
    if !printed.stderr.is_empty() {
        let _closed = writeln!(io::stderr(), "{}", printed.stderr);
    }
    ExitCode::from(printed.status)
}

/// What the script prints of the files it names, with the log's times read in `zone`.
pub fn printed(args: &ReferenceArgs, zone: &Zone) -> Printed {
    let mut stdout = String::new();
    let out = &mut stdout;
    let status = match &args.script {
        Script::Compare(args) => compare::compare(args, zone, out),
        Script::Compare6(args) => compare::compare6(args, zone, out),
        Script::Breakdown(args) => breakdown::breakdown(args, zone, out),
        Script::Bottleneck(args) => bottleneck::bottleneck(args, zone, out),
        Script::Stuck(args) => stuck::stuck(args, zone, out),
        Script::KvAfter(args) => kv_after::kv_after(args, zone, out),
    };
    let (status, stderr) = match status {
        Ok(status) => (status, String::new()),
        Err(Raised(text)) => (1, text),
    };
    Printed {
        stdout,
        stderr,
        status,
    }
}

/// Appends a line, as `print` does.
macro_rules! say {
    ($out:expr $(, $($text:tt)*)?) => {{
        use std::fmt::Write as _;
        // A String takes all.
        let _ = writeln!($out $(, $($text)*)?);
    }};
}
use say;

/// The `type=float` of a flag.
fn float_flag(text: &str) -> Result<f64, String> {
    python::float(text).ok_or_else(|| format!("invalid float value: {}", python::str_repr(text)))
}

/// The `type=int` of a flag.
fn int_flag(text: &str) -> Result<i64, String> {
    python::int(text).ok_or_else(|| format!("invalid int value: {}", python::str_repr(text)))
}

/// A path as `str(Path(path))` shows it.
fn shown(path: &Path) -> String {
    python::path(&path.to_string_lossy())
}

/// A moment on the zone's wall clock, as `datetime.fromtimestamp(unix_s).strftime(pattern)`.
fn time(zone: &Zone, unix_s: i64, pattern: &str) -> Result<String, Raised> {
    const YEAR_S: i64 = 31_556_952;
    let year = 1970 + unix_s.div_euclid(YEAR_S);
    let unshown = || Raised::value_error(format!("year {year} is out of range"));
    zone.show(unix_s, pattern).ok_or_else(unshown)
}

/// `HH:MM:SS`.
const HOURS: &str = "%H:%M:%S";

/// `YYYY-MM-DD HH:MM:SS`.
const DAYS: &str = "%Y-%m-%d %H:%M:%S";

/// Calls `each` with the samples of a table, in the order of the file.
fn samples(path: &Path, mut each: impl FnMut(KvSample)) -> Result<(), Raised> {
    let read = files::kv_rows(path, |row: &Row<'_>| each(row.sample));
    match read {
        Ok(_) => Ok(()),
        Err(KvError::Io(error)) => Err(Raised::os_error(&error, path)),
        Err(KvError::CellTooLong(error)) => Err(Raised(format!("_csv.Error: {error}"))),
    }
}

/// The active window of a run: from the first to the last sample above the threshold.
fn window(run: &Path, threshold: f64) -> Result<Window, Raised> {
    let mut ends: Option<Window> = None;
    samples(
        &run.join(crate::telemetry::kv_csv::FILE),
        |KvSample {
             ts_s,
             usage_percent,
         }| {
            if usage_percent > threshold {
                let ends = ends.get_or_insert(Window {
                    start_s: ts_s,
                    end_s: ts_s,
                });
                *ends = Window {
                    start_s: ends.start_s.min(ts_s),
                    end_s: ends.end_s.max(ts_s),
                };
            }
        },
    )?;
    match ends {
        None => {
            let text = format!(
                "No samples above threshold {}%",
                python::float_repr(threshold)
            );
            Err(Raised::value_error(text))
        }
        Some(ends) if ends.start_s == ends.end_s => {
            Err(Raised::value_error("Invalid active window (end <= start)"))
        }
        Some(ends) => Ok(ends),
    }
}

/// Whole numbers of seconds and of events as Python divides them.
#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
const fn ratio(numerator: i64, denominator: i64) -> f64 {
    numerator as f64 / denominator as f64
}
