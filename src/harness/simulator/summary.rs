//! Who was how good over all settings, and each setting in which the policy `kvgate` misses what it is held to.
//!
//! What a setting's best policy is, and whether it is pressured, is asked of policies alone: bounds are no gates.

use std::fmt::Write as _;

use super::contender::{BOUNDS, REFERENCE};
use super::table::{Setting, geometric};
use crate::harness::simulate::Measured;
use crate::policy::kvgate;

/// A setting is pressured where one policy is more than this many times as fast as another.
const PRESSURE: f64 = 1.03;
/// Makespan over no gate that a policy is held to in each setting,
const LEAST_SPEEDUP: f64 = 0.98;
/// 95th percentile of program time, over no gate,
const LEAST_P95: f64 = 1.0 / 1.05;
/// and speed over the best policy's.
const LEAST_OF_BEST: f64 = 0.95;

const fn makespan(row: &Measured) -> f64 {
    row.makespan_s
}

const fn p95(row: &Measured) -> f64 {
    row.program_p95_s
}

/// The contenders that are policies.
fn policies(contenders: &[String]) -> impl Iterator<Item = &str> {
    let names = contenders.iter().map(String::as_str);
    names.filter(|name| !BOUNDS.contains(name))
}

/// The speed-up of the best policy of a setting, and its name.
fn best<'a>(setting: &Setting, contenders: &'a [String]) -> Option<(f64, &'a str)> {
    let each = |name| Some((setting.speedup(name, makespan)?, name));
    let speedups = policies(contenders).filter_map(each);
    speedups.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Whether every policy has been run in the setting, so that its best and its worst are theirs.
fn is_whole(setting: &Setting, contenders: &[String]) -> bool {
    policies(contenders).all(|name| setting.speedup(name, makespan).is_some())
}

fn is_pressured(setting: &Setting, contenders: &[String]) -> bool {
    if !is_whole(setting, contenders) {
        return false;
    }
    let speedups = policies(contenders).filter_map(|name| setting.speedup(name, makespan));
    let worst = speedups.fold(f64::INFINITY, f64::min);
    best(setting, contenders).is_some_and(|(best, _)| best / worst > PRESSURE)
}

/// A contender's speed-ups, with their settings.
fn speedups<'a>(
    settings: &'a [Setting],
    contender: &str,
    of: fn(&Measured) -> f64,
) -> Vec<(f64, &'a Setting)> {
    let each = |setting: &'a Setting| Some((setting.speedup(contender, of)?, setting));
    settings.iter().filter_map(each).collect()
}

fn least<'a>(speedups: &[(f64, &'a Setting)]) -> Option<(f64, &'a Setting)> {
    speedups.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0))
}

fn mean(speedups: &[(f64, &Setting)]) -> Option<f64> {
    geometric(speedups.iter().map(|(speedup, _)| *speedup))
}

fn below(speedups: &[(f64, &Setting)], least: f64) -> usize {
    speedups
        .iter()
        .filter(|(speedup, _)| *speedup < least)
        .count()
}

/// The mean speed-up over the settings under pressure.
fn pressured_mean(settings: &[Setting], name: &str, contenders: &[String]) -> Option<f64> {
    let all = speedups(settings, name, makespan).into_iter();
    let pressured = all.filter(|(_, setting)| is_pressured(setting, contenders));
    geometric(pressured.map(|(speedup, _)| speedup))
}

/// The least of this one's speed over the best policy's; `None` of a bound, which is not measured by that.
fn worst_of_best(settings: &[Setting], name: &str, contenders: &[String]) -> Option<f64> {
    policies(contenders).find(|policy| *policy == name)?;
    let ratio =
        |setting: &Setting| Some(setting.speedup(name, makespan)? / best(setting, contenders)?.0);
    settings.iter().filter_map(ratio).min_by(f64::total_cmp)
}

/// How each contender did over all settings.
pub(super) fn summary(text: &mut String, settings: &[Setting], contenders: &[String]) {
    let width = contenders.iter().map(String::len).max().unwrap_or(0).max(6);
    let pressured = |setting: &&Setting| is_pressured(setting, contenders);
    let _infallible = writeln!(
        text,
        "\nspeed-up over {REFERENCE} in {} settings, each the mean of its seeds; {} of them pressured: the best and the worst policy differ by more than 3 %\n\
         {:<width$}   mean  pressured  worst  below 0.98  p95: mean  worst  below 1/1.05  vs best  hold max s  worst setting",
        settings.len(),
        settings.iter().filter(pressured).count(),
        "policy",
    );
    let whole = |setting: &&Setting| is_whole(setting, contenders);
    let missing = settings.len() - settings.iter().filter(whole).count();
    if missing > 0 {
        let _infallible = writeln!(
            text,
            "({missing} settings lack a policy: they count in the means over all, not as pressured)"
        );
    }
    for name in contenders {
        standing(text, (name, width), settings, contenders);
    }
}

/// One line of the summary.
fn standing(
    text: &mut String,
    (name, width): (&str, usize),
    settings: &[Setting],
    contenders: &[String],
) {
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    let all = speedups(settings, name, makespan);
    let Some((worst, at)) = least(&all) else {
        return;
    };
    let program = speedups(settings, name, p95);
    let worst_program = least(&program).map(|(worst, _)| worst);
    let hold_s = settings.iter().map(|setting| setting.hold_max_s(name));
    let _infallible = writeln!(
        text,
        "{name:<width$}  {:>5}  {:>9}  {worst:>5.3}  {:>10}  {:>9}  {:>5}  {:>12}  {:>7}  {:>10.1}  {}",
        shown(mean(&all)),
        shown(pressured_mean(settings, name, contenders)),
        below(&all, LEAST_SPEEDUP),
        shown(mean(&program)),
        shown(worst_program),
        below(&program, LEAST_P95),
        shown(worst_of_best(settings, name, contenders)),
        hold_s.fold(0.0, f64::max),
        at.name,
    );
}

/// What each `kvgate` of the contenders is held to: how far it is ahead of the best other policy under pressure, and
/// each setting that it misses something in.
pub(super) fn misses(text: &mut String, settings: &[Setting], contenders: &[String]) {
    let is_own = |name: &str| name.split(':').next() == Some(kvgate::NAME);
    for name in policies(contenders).filter(|name| is_own(name)) {
        let pressured = |name| pressured_mean(settings, name, contenders);
        let others = policies(contenders).filter(|other| !is_own(other));
        let others = others.filter_map(|other| Some((pressured(other)?, other)));
        if let (Some(ours), Some((best, other))) =
            (pressured(name), others.max_by(|a, b| a.0.total_cmp(&b.0)))
        {
            let ratio = ours / best;
            let _infallible = writeln!(
                text,
                "\n{name} in pressured settings: {ratio:.3} times as fast as the best single other policy, {other}"
            );
        }
        let missed: Vec<String> = settings
            .iter()
            .flat_map(|setting| missed(setting, name, contenders))
            .collect();
        let _infallible = writeln!(
            text,
            "{name} below 0.98 in makespan, 1/1.05 in p95 program time, or 0.95 of the best policy: {} times",
            missed.len()
        );
        for line in missed {
            let _infallible = writeln!(text, "  {line}");
        }
    }
}

/// What a policy misses in a setting, one line each.
fn missed(setting: &Setting, policy: &str, contenders: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut hold_to = |value: Option<f64>, least: f64, what: &str| {
        if let Some(value) = value.filter(|value| *value < least) {
            lines.push(format!("{}: {what} {value:.3}", setting.name));
        }
    };
    let speedup = setting.speedup(policy, makespan);
    hold_to(speedup, LEAST_SPEEDUP, "makespan");
    hold_to(setting.speedup(policy, p95), LEAST_P95, "p95");
    if let (Some(speedup), Some((best, other))) = (speedup, best(setting, contenders)) {
        hold_to(
            Some(speedup / best),
            LEAST_OF_BEST,
            &format!("against {other}"),
        );
    }
    lines
}
