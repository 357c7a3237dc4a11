//! `kv-after`: whether KV usage is ever above the threshold after a time.

use std::path::PathBuf;

use clap::Args;

use super::{DAYS, Raised, float_flag, samples, say, shown, time};
use crate::harness::reference::local_time::Zone;
use crate::harness::reference::python::{self, fixed};
use crate::harness::window::{KvSample, THRESHOLD_PERCENT};

/// Exit status where it is.
const ABOVE: u8 = 2;

/// Flags of `kvgate reference kv-after`.
#[derive(Args, Clone, Debug)]
#[command(infer_long_args = true, args_override_self = true)]
pub struct KvAfterArgs {
    /// The samples, `kv_cache_timeseries.csv` of a run
    #[arg(long, value_name = "FILE", allow_negative_numbers = true)]
    pub kv_csv: PathBuf,
    /// Unix seconds, or "YYYY-MM-DD HH:MM:SS" in the zone TZ
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub cutoff: String,
    /// KV usage to look for, in percent
    #[arg(long, value_name = "PERCENT", value_parser = float_flag, allow_negative_numbers = true, default_value_t = THRESHOLD_PERCENT)]
    pub threshold: f64,
}

pub(super) fn kv_after(args: &KvAfterArgs, zone: &Zone, out: &mut String) -> Result<u8, Raised> {
    let cutoff_s = cutoff(&args.cutoff, zone)?;
    let (mut after, mut above) = (0_u64, 0_u64);
    let mut last: Option<KvSample> = None;
    samples(&args.kv_csv, |sample| {
        if sample.ts_s <= cutoff_s {
            return;
        }
        after += 1;
        if sample.usage_percent > args.threshold {
            above += 1;
            // Of several at one time, the first is shown.
            last = last
                .filter(|last| last.ts_s >= sample.ts_s)
                .or(Some(sample));
        }
    })?;
    let banner = "=".repeat(70);
    say!(out, "{banner}\nKV > threshold AFTER cutoff\n{banner}");
    say!(out, "kv_csv: {}", shown(&args.kv_csv));
    say!(out, "cutoff: {} (ts={cutoff_s})", args.cutoff);
    say!(out, "threshold: {}%", fixed(args.threshold, 1));
    say!(out, "samples_after_cutoff: {after}");
    say!(out, "samples_above_threshold: {above}");
    let Some(last) = last else {
        return Ok(0);
    };
    let (at, usage) = (time(zone, last.ts_s, DAYS)?, fixed(last.usage_percent, 2));
    say!(out, "last_above_threshold: {at}  {usage}%");
    Ok(ABOVE)
}

/// Digits are Unix seconds, anything else is a time of the zone's wall clock.
fn cutoff(text: &str, zone: &Zone) -> Result<i64, Raised> {
    let text = text.trim_matches(python::is_blank);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(python::int(text).unwrap_or(i64::MAX));
    }
    let local = python::strptime(text).map_err(Raised::value_error)?;
    Ok(zone.unix_s(local))
}
