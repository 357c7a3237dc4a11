//! Rows as text: each setting's cells side by side, then who was how good over all settings.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::contender::{BOUND, INFINITE_KV, REFERENCE};
use super::grid::{Key, Row};
use crate::harness::simulate::Measured;

/// Up to this many settings every figure of every cell is shown; beyond, only makespans.
const DETAILED: usize = 12;
/// A setting counts as pressured where a cache that holds everything would be this much faster.
const PRESSURE: f64 = 1.05;

/// One setting: everything but the contender and the seed.
#[derive(Debug)]
struct Setting {
    name: String,
    /// By contender, a row for each seed.
    rows: BTreeMap<String, Vec<Measured>>,
}

/// The tables of `rows`.
pub fn render(rows: &[Row]) -> String {
    let contenders = contenders(rows);
    let settings = settings(rows);
    let mut text = String::new();
    if settings.len() <= DETAILED {
        details(&mut text, &settings, &contenders);
    } else {
        makespans(&mut text, &settings, &contenders);
    }
    if contenders.iter().any(|name| name == REFERENCE) {
        summary(&mut text, &settings, &contenders);
    }
    text
}

/// The contenders in the order in which they first occur.
fn contenders(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        if !names.contains(&row.key.policy) {
            names.push(row.key.policy.clone());
        }
    }
    names
}

fn settings(rows: &[Row]) -> Vec<Setting> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut settings: Vec<Setting> = Vec::new();
    for row in rows {
        let name = setting_name(&row.key);
        let place = *places.entry(name.clone()).or_insert_with(|| {
            settings.push(Setting {
                name,
                rows: BTreeMap::new(),
            });
            settings.len() - 1
        });
        let cells = settings[place].rows.entry(row.key.policy.clone());
        cells.or_default().push(row.measured);
    }
    settings
}

fn setting_name(key: &Key) -> String {
    let mut name = format!(
        "{} C{} {}k",
        key.shape,
        key.concurrency,
        key.kv_tokens / 1000
    );
    if (key.prefill - 1.0).abs() > 1e-9 {
        let _infallible = write!(name, " x{}", key.prefill);
    }
    if key.cost != super::DEFAULT_COST {
        let _infallible = write!(name, " {}", key.cost);
    }
    if (key.believed_capacity - 1.0).abs() > 1e-9 {
        let _infallible = write!(name, " believed x{}", key.believed_capacity);
    }
    if key.anonymous > 0.0 {
        let _infallible = write!(name, " anonymous {}", key.anonymous);
    }
    name
}

impl Setting {
    /// The mean of a figure over the seeds.
    fn mean(&self, contender: &str, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let rows = self.rows.get(contender)?;
        let values: Vec<f64> = rows.iter().map(of).collect();
        crate::harness::stats::mean(&values)
    }

    /// How many times as fast as the reference, by `of` (a time): the geometric mean over the seeds.
    fn speedup(&self, contender: &str, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let (ours, theirs) = (self.rows.get(contender)?, self.rows.get(REFERENCE)?);
        let ratios = theirs.iter().zip(ours).map(|(t, o)| of(t) / of(o));
        geometric(ratios.collect())
    }
}

fn geometric(values: Vec<f64>) -> Option<f64> {
    let logs: Vec<f64> = values.into_iter().map(f64::ln).collect();
    crate::harness::stats::mean(&logs).map(f64::exp)
}

fn width(settings: &[Setting]) -> usize {
    settings
        .iter()
        .map(|s| s.name.len())
        .max()
        .unwrap_or(0)
        .max(7)
}

fn details(text: &mut String, settings: &[Setting], contenders: &[String]) {
    let width = width(settings);
    let policy = contenders.iter().map(String::len).max().unwrap_or(0).max(6);
    let _infallible = writeln!(
        text,
        "{:<width$}  {:<policy$}  makespan s  speed-up  steps/s    hit  program s: mean     p50     p95     p99  hold s: mean     max  running  waiting  preempted  failed",
        "setting", "policy",
    );
    for setting in settings {
        for name in contenders {
            let figure = |of: fn(&Measured) -> f64| setting.mean(name, of).unwrap_or(f64::NAN);
            let speedup = setting.speedup(name, |m| m.makespan_s).unwrap_or(f64::NAN);
            let makespan_s = figure(|m| m.makespan_s);
            let start = format!(
                "{:<width$}  {name:<policy$}  {makespan_s:>10.1}  {speedup:>8.3}",
                setting.name
            );
            if name == BOUND {
                let _infallible = writeln!(text, "{start}");
                continue;
            }
            let _infallible = writeln!(
                text,
                "{start}  {:>7.2}  {:>5.3}  {:>15.1} {:>7.1} {:>7.1} {:>7.1}  {:>12.1} {:>7.1}  {:>7.1}  {:>7.1}  {:>9.0}  {:>6.0}",
                figure(|m| m.steps_per_s),
                figure(|m| m.hit_true),
                figure(|m| m.program_mean_s),
                figure(|m| m.program_p50_s),
                figure(|m| m.program_p95_s),
                figure(|m| m.program_p99_s),
                figure(|m| m.hold_mean_s),
                figure(|m| m.hold_max_s),
                figure(|m| m.running),
                figure(|m| m.waiting),
                figure(|m| count(m.preemptions)),
                figure(|m| count(m.programs_failed as u64)),
            );
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
const fn count(value: u64) -> f64 {
    value as f64
}

/// One line a setting: the reference's makespan, and the others' speed-up over it.
fn makespans(text: &mut String, settings: &[Setting], contenders: &[String]) {
    let width = width(settings);
    let others = || contenders.iter().filter(|name| *name != REFERENCE);
    let _infallible = write!(text, "{:<width$}  {REFERENCE} s", "setting");
    for name in others() {
        let _infallible = write!(text, "  {name:>8}");
    }
    text.push('\n');
    for setting in settings {
        let makespan_s = setting.mean(REFERENCE, |m| m.makespan_s);
        let _infallible = write!(
            text,
            "{:<width$}  {:>10.1}",
            setting.name,
            makespan_s.unwrap_or(f64::NAN)
        );
        for name in others() {
            let speedup = setting.speedup(name, |m| m.makespan_s).unwrap_or(f64::NAN);
            let _infallible = write!(text, "  {speedup:>w$.3}", w = name.len().max(8));
        }
        text.push('\n');
    }
}

/// How each contender did over all settings.
fn summary(text: &mut String, settings: &[Setting], contenders: &[String]) {
    let policy = contenders.iter().map(String::len).max().unwrap_or(0).max(6);
    let pressured = |s: &&Setting| {
        let free = s.speedup(INFINITE_KV, |m| m.makespan_s);
        free.is_some_and(|speedup| speedup >= PRESSURE)
    };
    let under_pressure = settings.iter().filter(pressured).count();
    let _infallible = writeln!(
        text,
        "\nspeed-up over {REFERENCE} in {} settings, {under_pressure} of them pressured ({INFINITE_KV} at least {PRESSURE} times as fast)\n\
         {:<policy$}   mean  pressured  worst  below 0.98  p95 mean  p95 worst  vs best  hold max s  worst setting",
        settings.len(),
        "policy",
    );
    for name in contenders {
        let speedups = |of: fn(&Measured) -> f64| -> Vec<(f64, &Setting)> {
            let each = |s| Some((Setting::speedup(s, name, of)?, s));
            settings.iter().filter_map(each).collect()
        };
        let makespans = speedups(|m| m.makespan_s);
        let Some((worst, setting)) = makespans.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
            continue;
        };
        let all: Vec<f64> = makespans.iter().map(|(speedup, _)| *speedup).collect();
        let crowded = makespans.iter().filter(|(_, s)| pressured(s));
        let crowded = geometric(crowded.map(|(speedup, _)| *speedup).collect());
        let p95: Vec<f64> = speedups(|m| m.program_p95_s)
            .into_iter()
            .map(|(s, _)| s)
            .collect();
        let worst_p95 = p95.iter().copied().fold(f64::INFINITY, f64::min);
        let hold = settings.iter().filter_map(|s| s.rows.get(name)).flatten();
        let hold = hold.map(|m| m.hold_max_s).fold(0.0, f64::max);
        let _infallible = writeln!(
            text,
            "{name:<policy$}  {:>5.3}  {:>9.3}  {worst:>5.3}  {:>10}  {:>8.3}  {:>9.3}  {:>7.3}  {hold:>10.1}  {}",
            geometric(all.clone()).unwrap_or(f64::NAN),
            crowded.unwrap_or(f64::NAN),
            all.iter().filter(|speedup| **speedup < 0.98).count(),
            geometric(p95).unwrap_or(f64::NAN),
            worst_p95,
            worst_against_best(name, settings, contenders),
            setting.name,
        );
    }
}

/// The least ratio of this one's speed to the best policy's, over the settings.
fn worst_against_best(name: &str, settings: &[Setting], contenders: &[String]) -> f64 {
    let policies = || {
        contenders
            .iter()
            .filter(|name| *name != BOUND && *name != INFINITE_KV)
    };
    let ratio = |setting: &Setting| {
        let speedup = |name: &str| setting.speedup(name, |m| m.makespan_s);
        let best = policies()
            .filter_map(|name| speedup(name))
            .fold(f64::NAN, f64::max);
        Some(speedup(name)? / best)
    };
    settings
        .iter()
        .filter_map(ratio)
        .fold(f64::INFINITY, f64::min)
}
