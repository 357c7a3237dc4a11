//! `stuck`: KV usage around the last task that ended, and from then to the last sample.

use std::path::PathBuf;

use clap::Args;

use super::counted::{self, Ended};
use super::{DAYS, HOURS, Raised, int_flag, ratio, samples, say, time};
use crate::harness::reference::local_time::Zone;
use crate::harness::reference::python::fixed;
use crate::harness::window::KvSample;
use crate::telemetry::kv_csv;

/// Samples shown on each side of the last task.
const AROUND: usize = 10;

/// Flags of `kvgate reference stuck`.
#[derive(Args, Clone, Debug)]
#[command(infer_long_args = true, args_override_self = true)]
pub struct StuckArgs {
    /// Directory of the run
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub run_dir: PathBuf,
    /// How many tasks the run had
    #[arg(long, value_name = "TASKS", value_parser = int_flag, allow_negative_numbers = true, default_value_t = 278)]
    pub expected_total: i64,
}

pub(super) fn stuck(args: &StuckArgs, zone: &Zone, out: &mut String) -> Result<u8, Raised> {
    let mut kv = Vec::new();
    samples(&args.run_dir.join(kv_csv::FILE), |sample| kv.push(sample))?;
    kv.sort_by_key(|sample| sample.ts_s);
    let (mut completed, mut last) = (0, None);
    counted::ended(&args.run_dir, zone, |what, at_s| {
        if what == Ended::Task {
            completed += 1;
            last = last.max(Some(at_s));
        }
    });

    let banner = "=".repeat(80);
    say!(out, "{banner}\nTR128 stuck report\n{banner}");
    say!(out, "run_dir: {}", super::shown(&args.run_dir));
    say!(out, "expected_total: {}", args.expected_total);
    say!(out, "completed_tasks: {completed}");
    say!(
        out,
        "not_completed: {}",
        args.expected_total.saturating_sub(completed)
    );
    let (Some(last_task_s), Some(end)) = (last, kv.last()) else {
        say!(out, "ERROR: missing tasks or kv samples");
        return Ok(1);
    };
    say!(
        out,
        "\nlast_completed_task_ts: {}",
        time(zone, last_task_s, DAYS)?
    );
    around(&kv, last_task_s, zone, out)?;

    let stuck_s = end.ts_s.saturating_sub(last_task_s);
    say!(out, "\nKV log end: {}", time(zone, end.ts_s, DAYS)?);
    let (minutes, hours) = (fixed(ratio(stuck_s, 60), 1), fixed(ratio(stuck_s, 3600), 2));
    say!(out, "stuck_duration: {stuck_s}s = {minutes}min = {hours}hr");
    let since = kv.partition_point(|sample| sample.ts_s < last_task_s);
    since_then(&kv[since..], out)?;
    Ok(0)
}

fn around(kv: &[KvSample], last_task_s: i64, zone: &Zone, out: &mut String) -> Result<(), Raised> {
    let distance = |(_, sample): &(usize, &KvSample)| sample.ts_s.abs_diff(last_task_s);
    let closest = kv
        .iter()
        .enumerate()
        .min_by_key(distance)
        .map_or(0, |(index, _)| index);
    say!(out, "\nKV around last completed task (±{AROUND} samples):");
    say!(out, "rel_s  time       kv_pct");
    let shown = closest.saturating_sub(AROUND)..kv.len().min(closest + AROUND + 1);
    for (index, sample) in kv.iter().enumerate().take(shown.end).skip(shown.start) {
        let relative = sample.ts_s.saturating_sub(last_task_s);
        let mark = if index == closest { "  <==" } else { "" };
        let usage = fixed(sample.usage_percent, 2);
        say!(
            out,
            "{relative:+5}  {}  {usage:>6}%{mark}",
            time(zone, sample.ts_s, HOURS)?
        );
    }
    Ok(())
}

fn since_then(kv: &[KvSample], out: &mut String) -> Result<(), Raised> {
    say!(
        out,
        "\nKV during stuck period (from last task -> end of KV log):"
    );
    say!(out, "samples: {}", kv.len());
    let usages = || kv.iter().map(|sample| sample.usage_percent);
    // As Python's `min` and `max`: what does not compare, a NaN, changes nothing, unless it is the first.
    let smaller = |kept: f64, next: f64| if next < kept { next } else { kept };
    let larger = |kept: f64, next: f64| if next > kept { next } else { kept };
    let (Some(min), Some(max)) = (usages().reduce(smaller), usages().reduce(larger)) else {
        return Err(Raised::value_error("min() arg is an empty sequence"));
    };
    let count = i64::try_from(kv.len()).unwrap_or(i64::MAX);
    let average = usages().sum::<f64>() / ratio(count, 1);
    for (name, value) in [("min", min), ("max", max), ("avg", average)] {
        say!(out, "{name}: {}%", fixed(value, 2));
    }
    say!(out, "\nDistribution:");
    for (low, high) in [(0.0, 1.0), (1.0, 30.0), (30.0, 70.0), (70.0, 100.0001)] {
        let inside = usages().filter(|usage| (low..high).contains(usage)).count();
        let inside = i64::try_from(inside).unwrap_or(i64::MAX);
        let percent = fixed(100.0 * ratio(inside, 1) / ratio(count, 1), 1);
        say!(
            out,
            "  {low:>4.0}-{high:<4.0}%: {inside:>5} ({percent:>5}%)"
        );
    }
    Ok(())
}
