//! Rows as text: for each setting the contenders side by side, the bounds last; then the summary.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::contender::{BOUND, BOUNDS, REFERENCE};
use super::grid::{Key, Row};
use super::summary;
use crate::harness::simulate::Measured;

/// Up to this many settings every figure of every cell is shown; beyond, only makespans.
const DETAILED: usize = 12;

/// One setting: everything but the contender and the seed.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) name: String,
    /// By contender, then by seed.
    rows: BTreeMap<String, BTreeMap<u64, Measured>>,
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
        summary::summary(&mut text, &settings, &contenders);
        summary::misses(&mut text, &settings, &contenders);
    }
    text
}

/// The contenders in the order in which they first occur, bounds last.
fn contenders(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        if !names.contains(&row.key.policy) {
            names.push(row.key.policy.clone());
        }
    }
    names.sort_by_key(|name| BOUNDS.contains(&name.as_str()));
    names
}

fn settings(rows: &[Row]) -> Vec<Setting> {
    let mut keys: Vec<Key> = Vec::new();
    let mut settings: Vec<Setting> = Vec::new();
    for row in rows {
        let mut key = row.key.clone();
        key.policy.clear();
        key.seed = 0;
        // Rows of a setting stand together, so the last ones are looked at first.
        let known = keys.iter().rposition(|known| *known == key);
        let place = known.unwrap_or_else(|| {
            settings.push(Setting {
                name: String::new(),
                rows: BTreeMap::new(),
            });
            keys.push(key);
            settings.len() - 1
        });
        let seeds = settings[place].rows.entry(row.key.policy.clone());
        seeds.or_default().insert(row.key.seed, row.measured);
    }
    for (setting, name) in settings.iter_mut().zip(names(&keys)) {
        setting.name = name;
    }
    settings
}

/// What a short name leaves out, shown where settings differ in it alone.
const LEFT_OUT: [fn(&Key) -> String; 4] = [
    |key| format!("{} tokens", key.kv_tokens),
    |key| key.cost.clone(),
    |key| format!("{} programs", key.programs),
    |key| key.history.clone(),
];

/// The names of settings, no two of them alike.
fn names(keys: &[Key]) -> Vec<String> {
    let mut alike: BTreeMap<String, Vec<&Key>> = BTreeMap::new();
    for key in keys {
        alike.entry(setting_name(key)).or_default().push(key);
    }
    let name = |key: &Key| {
        let mut name = setting_name(key);
        let twins = alike.get(&name).map_or(&[][..], Vec::as_slice);
        for shown in LEFT_OUT {
            let own = shown(key);
            if twins.iter().any(|twin| shown(twin) != own) {
                let _infallible = write!(name, " {own}");
            }
        }
        name
    };
    keys.iter().map(name).collect()
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
        // Of a file, its name: the whole path would be wider than the figures.
        let cost = key.cost.rsplit('/').next().unwrap_or_default();
        let _infallible = write!(name, " {cost}");
    }
    if (key.believed_capacity - 1.0).abs() > 1e-9 {
        let _infallible = write!(name, " believed x{}", key.believed_capacity);
    }
    if key.anonymous > 0.0 {
        let _infallible = write!(name, " anonymous {}", key.anonymous);
    }
    if (key.believed_gaps - 1.0).abs() > 1e-9 {
        let _infallible = write!(name, " gaps x{}", key.believed_gaps);
    }
    name
}

impl Setting {
    /// The mean of a figure over the seeds.
    fn mean(&self, contender: &str, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let rows = self.rows.get(contender)?;
        let values: Vec<f64> = rows.values().map(of).collect();
        crate::harness::stats::mean(&values)
    }

    /// How many times as fast as the reference, by `of` (a time): the geometric mean over the seeds of both. `None`
    /// where one of them has no such time.
    pub(super) fn speedup(&self, contender: &str, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let (ours, theirs) = (self.rows.get(contender)?, self.rows.get(REFERENCE)?);
        let ratio = |(seed, ours): (&u64, &Measured)| Some(of(theirs.get(seed)?) / of(ours));
        let ratios = ours.iter().filter_map(ratio);
        geometric(ratios).filter(|speedup| speedup.is_finite())
    }

    /// The longest that `contender` held a request, over all seeds, in seconds.
    pub(super) fn hold_max_s(&self, contender: &str) -> f64 {
        let rows = self.rows.get(contender).into_iter().flatten();
        rows.map(|(_, row)| row.hold_max_s).fold(0.0, f64::max)
    }
}

pub(super) fn geometric(values: impl Iterator<Item = f64>) -> Option<f64> {
    let logs: Vec<f64> = values.map(f64::ln).collect();
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

#[cfg(test)]
mod tests {
    use super::super::contender::{CLAIRVOYANT, INFINITE_KV};
    use super::*;

    fn row(policy: &str, concurrency: u32, seed: u64, makespan_s: f64) -> Row {
        Row {
            key: Key {
                policy: policy.to_owned(),
                shape: "orch".to_owned(),
                concurrency,
                kv_tokens: 95_488,
                cost: super::super::DEFAULT_COST.to_owned(),
                prefill: 1.0,
                believed_capacity: 1.0,
                believed_gaps: 1.0,
                seed,
                ..Key::default()
            },
            measured: Measured {
                makespan_s,
                program_p95_s: makespan_s / 2.0,
                hold_max_s: makespan_s / 10.0,
                ..Measured::default()
            },
        }
    }

    /// The fields of the first line after `header` that begins with these.
    fn fields<'a>(text: &'a str, header: &str, begin: &str) -> Vec<&'a str> {
        let begin: Vec<_> = begin.split_whitespace().collect();
        let (_, after) = text.split_once(header).unwrap();
        let mut lines = after
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.find(|fields| fields.starts_with(&begin)).unwrap()
    }

    fn rows() -> Vec<Row> {
        let cell = |concurrency, seed, baseline: f64, other: f64, free: f64| {
            [
                row(REFERENCE, concurrency, seed, baseline),
                row("other", concurrency, seed, other),
                row(INFINITE_KV, concurrency, seed, free),
            ]
        };
        [
            // Twice as fast and half as fast: the same on geometric average.
            cell(4, 1, 100.0, 50.0, 100.0),
            cell(4, 2, 100.0, 200.0, 100.0),
            cell(64, 1, 100.0, 125.0, 50.0),
            cell(64, 2, 100.0, 80.0, 50.0),
            cell(128, 1, 100.0, 125.0, 50.0),
        ]
        .concat()
    }

    #[test]
    fn a_setting_is_the_mean_of_its_seeds_and_its_speed_up_their_geometric_mean() {
        let text = render(&rows());
        let four = fields(&text, "setting", "orch C4 95k  other");
        assert_eq!(four[4..6], ["125.0", "1.000"], "{text}");
        let last = fields(&text, "setting", "orch C128 95k  other");
        assert_eq!(last[4..6], ["125.0", "0.800"], "{text}");
    }

    #[test]
    fn the_summary_names_the_worst_and_counts_what_is_slower_than_no_gate() {
        let text = render(&rows());
        assert!(
            text.contains("in 3 settings, each the mean of its seeds; 1 of them pressured"),
            "a bound makes no pressure: {text}"
        );
        let other = fields(&text, "worst setting", "other");
        // Mean and mean under pressure, worst, settings below 0.98; the same of the programs' times, against the best.
        assert_eq!(other[1..5], ["0.928", "0.800", "0.800", "1"], "{text}");
        assert_eq!(other[5..9], ["0.928", "0.800", "1", "0.800"], "{text}");
        assert_eq!(other[9..], ["20.0", "orch", "C128", "95k"], "{text}");
        let direct = fields(&text, "worst setting", REFERENCE);
        assert_eq!(direct[8], "1.000", "nobody is faster on average: {text}");
        let free = fields(&text, "worst setting", INFINITE_KV);
        assert_eq!((free[1], free[8]), ("1.587", "-"), "{text}");
    }

    #[test]
    fn bounds_stand_last_in_every_setting_and_one_without_programs_says_only_its_makespan() {
        let mut rows = vec![row(BOUND, 4, 1, 25.0), row(CLAIRVOYANT, 4, 1, 80.0)];
        rows[0].measured.program_p95_s = 0.0;
        rows.extend([row(REFERENCE, 4, 1, 100.0), row("other", 4, 1, 200.0)]);
        let text = render(&rows);
        let (table, _) = text.split_once("\n\n").unwrap();
        let lines = table.lines().skip(1);
        let order: Vec<_> = lines
            .filter_map(|line| line.split_whitespace().nth(3))
            .collect();
        assert_eq!(order, [REFERENCE, "other", BOUND, CLAIRVOYANT], "{text}");
        let bound = fields(&text, "worst setting", BOUND);
        assert_eq!(
            bound[1..9],
            ["4.000", "4.000", "4.000", "0", "-", "-", "0", "-"]
        );
        assert_eq!(fields(&text, "worst setting", CLAIRVOYANT)[5], "1.250");
    }

    #[test]
    fn every_miss_of_our_policy_is_listed_and_no_bound_is_the_best() {
        let cell = |concurrency, kvgate: f64, other: f64| {
            [
                row(REFERENCE, concurrency, 1, 100.0),
                row("kvgate", concurrency, 1, kvgate),
                row("other", concurrency, 1, other),
                row(CLAIRVOYANT, concurrency, 1, 10.0),
            ]
        };
        let mut rows = [
            cell(4, 100.0, 120.0),
            cell(8, 104.0, 104.0),
            cell(16, 80.0, 50.0),
        ]
        .concat();
        rows.extend(cell(32, 100.0, 99.0));
        rows[13].measured.program_p95_s = 60.0;
        let text = render(&rows);
        let (_, misses) = text.split_once("of the best policy: ").unwrap();
        let expected = [
            "3 times",
            "  orch C8 95k: makespan 0.962",
            "  orch C16 95k: against other 0.625",
            "  orch C32 95k: p95 0.833",
        ];
        assert_eq!(misses.lines().collect::<Vec<_>>(), expected, "{text}");
        // Under pressure, in three settings: the cube roots of 1 / 1.04 / 0.8 and of 1 / 1.2 / 1.04 / 0.5.
        let ahead = "kvgate in pressured settings: 0.909 times as fast as the best single other policy, other";
        assert!(text.contains(ahead), "{text}");
    }

    #[test]
    fn a_setting_that_lacks_a_policy_is_not_pressured() {
        let mut rows = rows();
        rows.extend([row(REFERENCE, 4, 1, 100.0), row("new", 4, 1, 10.0)]);
        let text = render(&rows);
        assert!(text.contains("(2 settings lack a policy"), "{text}");
        // Without the one at C = 4, `other` would be judged under pressure at C = 128, where it has 0.800.
        let other = fields(&text, "worst setting", "other");
        assert_eq!(other[1..3], ["0.928", "1.000"], "{text}");
    }

    #[test]
    fn what_a_policy_was_told_makes_a_setting_of_its_own() {
        let mut rows = vec![row(REFERENCE, 4, 1, 100.0), row(REFERENCE, 4, 1, 50.0)];
        rows[1].key.believed_gaps = 2.0;
        let text = render(&rows);
        let wrong = fields(&text, "setting", "orch C4 95k gaps x2");
        assert_eq!(wrong[5..7], ["baseline", "50.0"], "{text}");
    }

    #[test]
    fn settings_that_differ_in_what_a_name_leaves_out_are_told_apart_by_it() {
        let cell = |change: fn(&mut Key)| {
            let mut row = row(REFERENCE, 4, 1, 100.0);
            row.key.programs = 40;
            row.key.history = "kept".to_owned();
            change(&mut row.key);
            row
        };
        let names = |rows: &[Row]| -> Vec<String> {
            let settings = settings(rows).into_iter();
            settings.map(|setting| setting.name).collect()
        };
        let changed: [fn(&mut Key); 5] = [
            |_| (),
            |key| key.programs = 20,
            |key| key.history = "stand-in".to_owned(),
            // Whose programs are others by default: nobody's twin.
            |key| (key.concurrency, key.programs) = (8, 48),
            |key| key.shape = "swe".to_owned(),
        ];
        let told_apart = [
            "orch C4 95k 40 programs kept",
            "orch C4 95k 20 programs kept",
            "orch C4 95k 40 programs stand-in",
            "orch C8 95k",
            "swe C4 95k",
        ];
        assert_eq!(names(&changed.map(cell)), told_apart);
        let changed: [fn(&mut Key); 3] = [
            |key| key.cost = "a/mine.toml".to_owned(),
            |key| key.cost = "b/mine.toml".to_owned(),
            |key| (key.cost, key.kv_tokens) = ("b/mine.toml".to_owned(), 95_000),
        ];
        let told_apart = [
            "orch C4 95k mine.toml 95488 tokens a/mine.toml",
            "orch C4 95k mine.toml 95488 tokens b/mine.toml",
            "orch C4 95k mine.toml 95000 tokens b/mine.toml",
        ];
        assert_eq!(names(&changed.map(cell)), told_apart);
    }

    #[test]
    fn many_settings_are_one_line_each() {
        let of = |seed: u32| {
            [
                row(REFERENCE, 2 * seed, 1, 100.0),
                row("other", 2 * seed, 1, 80.0),
            ]
        };
        let text = render(&(1..=20).flat_map(of).collect::<Vec<_>>());
        assert_eq!(
            fields(&text, "setting", "orch C40 95k"),
            ["orch", "C40", "95k", "100.0", "1.250"]
        );
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("orch C"))
                .count(),
            20
        );
    }
}
