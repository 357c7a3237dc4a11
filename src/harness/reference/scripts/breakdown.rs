//! `breakdown`: tasks and steps of one run before, inside and after its active window.

use std::path::PathBuf;

use clap::Args;

use super::counted::{self, Counts, Ended};
use super::{HOURS, Raised, float_flag, ratio, say, time, window};
use crate::harness::reference::local_time::Zone;
use crate::harness::reference::python::fixed;
use crate::harness::window::THRESHOLD_PERCENT;

/// Flags of `kvgate reference breakdown`.
#[derive(Args, Clone, Debug)]
#[command(infer_long_args = true, args_override_self = true)]
pub struct BreakdownArgs {
    /// KV usage above which the active window counts, in percent
    #[arg(long, value_name = "PERCENT", value_parser = float_flag, allow_negative_numbers = true, default_value_t = THRESHOLD_PERCENT)]
    pub threshold: f64,
    /// What to call the run, such as TR32
    #[arg(long, allow_negative_numbers = true)]
    pub name: String,
    /// Directory of the run
    #[arg(long, value_name = "DIR", allow_negative_numbers = true)]
    pub run_dir: PathBuf,
}

pub(super) fn breakdown(args: &BreakdownArgs, zone: &Zone, out: &mut String) -> Result<u8, Raised> {
    let window = window(&args.run_dir, args.threshold)?;
    let (mut tasks, mut steps) = (Counts::default(), Counts::default());
    let mut ends: Option<(i64, i64)> = None;
    counted::ended(&args.run_dir, zone, |what, at_s| match what {
        Ended::Task => {
            let (first, last) = ends.unwrap_or((at_s, at_s));
            ends = Some((first.min(at_s), last.max(at_s)));
            tasks.add(at_s, &window);
        }
        Ended::Step => steps.add(at_s, &window),
    });
    let (first, last) = ends.unwrap_or_default();
    say!(
        out,
        "\n=== {} (active window: first>70% -> last>70%) ===",
        args.name
    );
    let clock = |unix_s| time(zone, unix_s, HOURS);
    say!(
        out,
        "first_task={}  win_start={}  win_end={}  last_task={}",
        clock(first)?,
        clock(window.start_s)?,
        clock(window.end_s)?,
        clock(last)?
    );
    let minutes = |seconds| fixed(ratio(seconds, 1) / 60.0, 1);
    let length = minutes(window.end_s.saturating_sub(window.start_s));
    let gap = minutes(last.saturating_sub(window.end_s));
    say!(
        out,
        "window={length} min  gap(win_end->last_task)={gap} min"
    );
    for (
        name,
        Counts {
            before,
            inside,
            after,
        },
    ) in [("tasks", tasks), ("steps", steps)]
    {
        say!(out, "{name}: before/in/after = {before}/{inside}/{after}");
    }
    Ok(0)
}
