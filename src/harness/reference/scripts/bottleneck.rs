//! `bottleneck`: what runs spent their active windows on: step rates, long calls, latencies.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{DAYS, HOURS, Raised, counted, float_flag, ratio, say, shown, time, window};
use crate::harness::reference::files::PROFILE_LOG;
use crate::harness::reference::lines::Finder;
use crate::harness::reference::local_time::Zone;
use crate::harness::reference::python::{self, fixed};
use crate::harness::window::{THRESHOLD_PERCENT, Window};

const STEP: &str = "type=step_complete";
const LLM: &str = "type=llm_call";
const USER: &str = "type=user_sim";
const EXPERT: &str = "type=expert_call";

/// Longest calls shown.
const SHOWN: usize = 5;

/// Flags of `kvgate reference bottleneck`.
#[derive(Args, Clone, Debug)]
#[command(infer_long_args = true)]
pub struct BottleneckArgs {
    /// KV usage above which the active window counts, in percent
    #[arg(long, value_name = "PERCENT", value_parser = float_flag, allow_negative_numbers = true, default_value_t = THRESHOLD_PERCENT, overrides_with = "threshold")]
    pub threshold: f64,
    /// A run: what to call it and its directory; may be given several times
    #[arg(long, value_name = "NAME=DIR", allow_negative_numbers = true)]
    pub run: Vec<String>,
}

/// What a run did in its window.
struct Run {
    name: String,
    window: Window,
    steps: i64,
    /// Steps by who spoke and who was next.
    edges: BTreeMap<String, i64>,
    /// Durations in milliseconds.
    llm: Vec<f64>,
    user: Vec<f64>,
    expert: Vec<f64>,
    /// The longest calls, longest first, equal ones in the order of the log.
    longest: Vec<Call>,
}

struct Call {
    seconds: f64,
    at_s: i64,
    task: String,
    step: String,
}

pub(super) fn bottleneck(
    args: &BottleneckArgs,
    zone: &Zone,
    out: &mut String,
) -> Result<u8, Raised> {
    if args.run.is_empty() {
        return Err(Raised(
            "Must provide at least one --run NAME=DIR".to_owned(),
        ));
    }
    let mut runs = Vec::new();
    for text in &args.run {
        let Some((name, dir)) = text.split_once('=') else {
            let text = python::str_repr(text);
            return Err(Raised(format!("Invalid --run {text}, expected NAME=DIR")));
        };
        let name = name.trim_matches(python::is_blank).to_owned();
        let window = window(&expanded(dir), args.threshold)?;
        runs.push(Run::read(name, &expanded(dir), window, zone)?);
    }
    summary(&runs, zone, out)?;
    tails(&runs, out);
    say!(out, "\n### Latency distributions (within active window)\n");
    for run in &mut runs {
        run.latencies(zone, out)?;
    }
    Ok(0)
}

/// A path whose `~` is the user's home, as the shell does not do it behind `NAME=`.
fn expanded(path: &str) -> PathBuf {
    let behind_home = path
        .strip_prefix('~')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match behind_home.zip(env::var("HOME").ok()) {
        Some((rest, home)) => PathBuf::from(home + rest),
        None => PathBuf::from(path),
    }
}

impl Run {
    fn read(name: String, dir: &Path, window: Window, zone: &Zone) -> Result<Self, Raised> {
        let path = dir.join(PROFILE_LOG);
        if !path.exists() {
            return Err(Raised(format!(
                "FileNotFoundError: missing {}",
                shown(&path)
            )));
        }
        let mut run = Self {
            name,
            window,
            steps: 0,
            edges: BTreeMap::new(),
            llm: Vec::new(),
            user: Vec::new(),
            expert: Vec::new(),
            longest: Vec::new(),
        };
        let raised = |error| Raised::os_error(&error, &path);
        let file = File::open(&path).map_err(raised)?;
        let finder =
            Finder::new(&[STEP, LLM, USER, EXPERT]).map_err(|error| Raised(error.to_string()))?;
        let each = |line: &[u8]| {
            for piece in String::from_utf8_lossy(line).split('\r') {
                run.add(piece, zone);
            }
        };
        finder.lines(file, each).map_err(raised)?;
        Ok(run)
    }

    fn add(&mut self, line: &str, zone: &Zone) {
        let Some(kind) = [STEP, LLM, USER, EXPERT]
            .into_iter()
            .find(|kind| line.contains(kind))
        else {
            return;
        };
        let at_s = counted::first_time(line.as_bytes()).map(|at| zone.unix_s(at));
        let Some(at_s) =
            at_s.filter(|at_s| (self.window.start_s..=self.window.end_s).contains(at_s))
        else {
            return;
        };
        if kind == STEP {
            let role = |key| word(line, key).unwrap_or("unknown");
            let edge = format!("{}->{}", role("from_role="), role("to_role="));
            self.steps += 1;
            *self.edges.entry(edge).or_default() += 1;
            return;
        }
        let Some(duration_ms) = decimal(line, "duration_ms=") else {
            return;
        };
        match kind {
            LLM => self.add_llm_call(line, at_s, duration_ms),
            USER => self.user.push(duration_ms),
            _ => self.expert.push(duration_ms),
        }
    }

    fn add_llm_call(&mut self, line: &str, at_s: i64, duration_ms: f64) {
        self.llm.push(duration_ms);
        let seconds = duration_ms / 1000.0;
        let place = self.longest.partition_point(|call| call.seconds >= seconds);
        if place < SHOWN {
            let task = word(line, "task=").unwrap_or("unknown").to_owned();
            let step = digits(line, "step=").unwrap_or("NA").to_owned();
            self.longest.insert(
                place,
                Call {
                    seconds,
                    at_s,
                    task,
                    step,
                },
            );
            self.longest.truncate(SHOWN);
        }
    }

    const fn seconds(&self) -> i64 {
        self.window.end_s.saturating_sub(self.window.start_s)
    }

    fn minutes(&self) -> String {
        fixed(ratio(self.seconds(), 60), 1)
    }

    fn rate(&self, count: i64) -> String {
        fixed(ratio(count, self.seconds()), 2)
    }

    fn longer_than(&self, seconds: f64) -> usize {
        self.llm.iter().filter(|ms| **ms / 1000.0 > seconds).count()
    }

    fn latencies(&mut self, zone: &Zone, out: &mut String) -> Result<(), Raised> {
        let (start, end) = (
            time(zone, self.window.start_s, HOURS)?,
            time(zone, self.window.end_s, HOURS)?,
        );
        say!(out, "== {} ==", self.name);
        say!(out, "window: {start} -> {end} ({} min)", self.minutes());
        say!(out, "llm_call:   {}", distribution(&mut self.llm));
        say!(out, "user_sim:   {}", distribution(&mut self.user));
        say!(out, "expert_call:{}", distribution(&mut self.expert));
        if !self.longest.is_empty() {
            say!(out, "\nTop llm_call durations:");
        }
        for Call {
            seconds,
            at_s,
            task,
            step,
        } in &self.longest
        {
            let (seconds, at) = (fixed(*seconds, 1), time(zone, *at_s, DAYS)?);
            say!(out, "  {seconds:>8}s  {at}  step={step}  task={task}");
        }
        say!(out);
        Ok(())
    }
}

fn summary(runs: &[Run], zone: &Zone, out: &mut String) -> Result<(), Raised> {
    say!(out, "\n### Active-window bottleneck summary\n");
    say!(
        out,
        "| Run | window(min) | win_start | win_end | steps/s (all) | agent->env/s | user->agent/s |"
    );
    say!(
        out,
        "| :-- | ----------: | :------- | :------ | ------------: | -----------: | ------------: |"
    );
    for run in runs {
        let clock = |unix_s| time(zone, unix_s, HOURS);
        let edge = |name: &str| run.rate(run.edges.get(name).copied().unwrap_or(0));
        say!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            run.name,
            run.minutes(),
            clock(run.window.start_s)?,
            clock(run.window.end_s)?,
            run.rate(run.steps),
            edge("agent->env"),
            edge("user->agent")
        );
    }
    Ok(())
}

fn tails(runs: &[Run], out: &mut String) {
    say!(out, "\n### LLM-call tail (within active window)\n");
    say!(out, "| Run | llm_call | >300s | >1200s |");
    say!(out, "| :-- | :------ | ----: | -----: |");
    for run in runs {
        let (long, longer) = (run.longer_than(300.0), run.longer_than(1200.0));
        say!(
            out,
            "| {} | {} | {long} | {longer} |",
            run.name,
            run.llm.len()
        );
    }
}

/// Count, quantiles and maximum of milliseconds, in seconds.
fn distribution(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let Some(max) = values.last() else {
        return "n=0".to_owned();
    };
    let shown = |ms: f64| fixed(ms / 1000.0, 1);
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| shown(quantile(values, q)));
    format!(
        "n={} p50={p50}s p90={p90}s p99={p99}s max={}s",
        values.len(),
        shown(*max)
    )
}

/// Between the two values next to the place `q * (n - 1)`, by their distance to it.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index below 2^53, cut as Python's int() cuts"
)]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let low = place as usize;
    let high = (low + 1).min(sorted.len() - 1);
    let part = place - low as f64;
    sorted[low] * (1.0 - part) + sorted[high] * part
}

/// What stands behind each `key` that begins a word: the regular expression `\bkey`.
fn behind<'a>(line: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let in_word = |at: usize| {
        line.get(..at)
            .and_then(|before| before.chars().next_back())
            .is_some_and(|c| c.is_alphanumeric() || c == '_')
    };
    let begins = line.match_indices(key).filter(move |(at, _)| !in_word(*at));
    begins.filter_map(move |(at, _)| line.get(at + key.len()..))
}

fn word<'a>(line: &'a str, key: &'a str) -> Option<&'a str> {
    let words = behind(line, key).filter_map(|rest| rest.split(python::is_blank).next());
    words.into_iter().find(|word| !word.is_empty())
}

fn leading_digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

fn digits<'a>(line: &'a str, key: &'a str) -> Option<&'a str> {
    let mut numbers = behind(line, key).filter_map(|rest| rest.get(..leading_digits(rest)));
    numbers.find(|number| !number.is_empty())
}

/// Digits, and a fraction where there is one.
fn decimal(line: &str, key: &str) -> Option<f64> {
    let rest = behind(line, key).find(|rest| leading_digits(rest) > 0)?;
    let whole = leading_digits(rest);
    let fraction = rest
        .get(whole..)
        .and_then(|rest| rest.strip_prefix('.'))
        .map_or(0, leading_digits);
    let end = if fraction == 0 {
        whole
    } else {
        whole + 1 + fraction
    };
    rest.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_begins_a_word_and_has_a_value() {
        let line =
            "xstep=1 step= 7 total_duration_ms=9.5 duration_ms=. duration_ms=12.50.1 step=3a task=";
        assert_eq!(digits(line, "step="), Some("3"));
        assert_eq!(decimal(line, "duration_ms="), Some(12.5));
        assert_eq!(decimal("duration_ms=12.", "duration_ms="), Some(12.0));
        assert_eq!(word(line, "task="), None);
        assert_eq!(word("(task=a:b\u{a0}c", "task="), Some("a:b"));
        assert_eq!(word("étask=a", "task="), None);
    }

    // Expected values: q * (n - 1) by hand.
    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(
            distribution(&mut [3000.0, 1000.0]),
            "n=2 p50=2.0s p90=2.8s p99=3.0s max=3.0s"
        );
        assert_eq!(
            distribution(&mut [500.0]),
            "n=1 p50=0.5s p90=0.5s p99=0.5s max=0.5s"
        );
        assert_eq!(distribution(&mut []), "n=0");
    }

    #[test]
    fn home_is_expanded_where_python_does_it() {
        let home = PathBuf::from(env::var("HOME").unwrap());
        assert_eq!(expanded("~"), home);
        assert_eq!(expanded("~/runs"), home.join("runs"));
        assert_eq!(expanded("a~/b"), PathBuf::from("a~/b"));
    }
}
