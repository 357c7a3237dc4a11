//! Naive log times: which zone they are in, and how to see that it was another. Pure.

use anyhow::Context;

use crate::harness::reference::local_time::{LocalTime, Zone};
use crate::harness::run::{self, Run};

/// Zones differ by whole quarters of an hour.
const QUARTER_S: i64 = 900;
/// No two zones differ by more: from -12:00 to +14:00.
const MOST_QUARTERS: i64 = 26 * 4;

/// The zone of a log, and who says so.
#[derive(Clone, Debug)]
pub struct LogZone {
    zone: Zone,
    name: String,
    source: &'static str,
}

impl LogZone {
    /// The zone of this name: `UTC`, an offset such as `+08:00`, or one of the zone database.
    ///
    /// # Errors
    /// Names what is accepted.
    pub fn parse(name: &str) -> anyhow::Result<Self> {
        let zone = match fixed_offset(name) {
            Some(seconds) => Zone::fixed(seconds),
            None => Zone::named(name),
        };
        let zone = zone.with_context(|| {
            format!("--log-tz: no zone {name:?}; give a name such as Asia/Shanghai, or an offset such as +08:00")
        })?;
        Ok(Self {
            zone,
            name: name.to_owned(),
            source: "as --log-tz says",
        })
    }

    /// The offset that the sampler wrote, on the same machine as the log; UTC where it wrote none.
    pub fn of_sampler(offset_s: Option<i32>) -> Self {
        let written = offset_s.and_then(|seconds| Some((seconds, Zone::fixed(seconds)?)));
        let (seconds, source) = match &written {
            Some((seconds, _)) => (*seconds, "the offset of the KV samples"),
            None => (0, "for want of any offset"),
        };
        Self {
            zone: written.map_or_else(Zone::utc, |(_, zone)| zone),
            name: offset_name(i64::from(seconds)),
            source,
        }
    }

    /// Unix seconds of a time in the log.
    pub fn unix(&self, at: LocalTime) -> f64 {
        self.zone.unix(at)
    }

    /// What the report says of it.
    pub fn said(&self) -> run::Zone {
        run::Zone {
            name: self.name.clone(),
            source: self.source,
        }
    }
}

/// When programs and steps ended, ascending, Unix seconds.
pub fn events(run: &Run) -> Vec<f64> {
    let programs = run.programs.iter().filter(|p| p.ending.is_some());
    let steps = run.steps.iter().map(|step| step.finished_s);
    let mut events: Vec<f64> = programs.map(|p| p.last_s).chain(steps).collect();
    events.sort_unstable_by(f64::total_cmp);
    events
}

/// How many of ascending `events` fall into `sampled` once they are `shift` seconds later.
#[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
pub fn inside(events: &[f64], sampled: (i64, i64), shift: i64) -> usize {
    let (first, last) = ((sampled.0 - shift) as f64, (sampled.1 - shift) as f64);
    let below = |bound: f64| events.partition_point(|&at| at < bound);
    // Whole seconds: an event of the last sample's second belongs to it.
    below(last + 1.0).saturating_sub(below(first))
}

/// The shift in seconds, a whole number of quarter hours, that brings the most of ascending `events` into
/// `sampled`; of equals whole hours, then the smallest. `None` if none brings any.
pub fn shift(events: &[f64], sampled: (i64, i64)) -> Option<i64> {
    let shifts = (-MOST_QUARTERS..=MOST_QUARTERS).map(|quarters| quarters * QUARTER_S);
    let scored = shifts.map(|shift| {
        let hour = shift % (4 * QUARTER_S) == 0;
        (inside(events, sampled, shift), hour, -shift.abs(), shift)
    });
    let best = scored.max()?;
    (best.0 > 0).then_some(best.3)
}

/// `8 h later` or `5.75 h earlier`.
#[expect(clippy::cast_precision_loss, reason = "at most a day")]
pub fn hours(shift: i64) -> String {
    let way = if shift < 0 { "earlier" } else { "later" };
    format!("{} h {way}", shift.abs() as f64 / 3600.0)
}

/// The zone in which events that were read as `read_as` lie `shift` seconds later, if that has a fixed offset.
pub fn meant(shift: i64, read_as: &str) -> Option<String> {
    Some(offset_name(i64::from(fixed_offset(read_as)?) - shift))
}

/// `+08:00`, or `UTC`.
fn offset_name(seconds: i64) -> String {
    if seconds == 0 {
        return "UTC".to_owned();
    }
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.abs() / 60;
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// Seconds east of UTC of `UTC`, `Z`, `+HH:MM` or `-HHMM`.
fn fixed_offset(name: &str) -> Option<i32> {
    if matches!(name, "UTC" | "Z" | "utc") {
        return Some(0);
    }
    let (sign, digits) = match name.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, name.strip_prefix('+')?),
    };
    let digits = digits.replace(':', "");
    if digits.len() != 4 {
        return None;
    }
    let number: i32 = digits.parse().ok()?;
    Some(sign * (number / 100 * 3600 + number % 100 * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_eight_hours_off_is_recognised_and_its_zone_named() {
        let sampled = (100_000, 103_600);
        let events: Vec<f64> = (0..30).map(|n| 71_200.0 + 100.0 * f64::from(n)).collect();
        assert_eq!(inside(&events, sampled, 0), 0);
        assert_eq!(shift(&events, sampled), Some(28_800));
        assert_eq!(meant(28_800, "UTC").as_deref(), Some("-08:00"));
        assert_eq!(meant(-28_800, "+00:00").as_deref(), Some("+08:00"));
        assert_eq!(meant(28_800, "Asia/Shanghai"), None);
        assert_eq!(hours(-20_700), "5.75 h earlier");
        assert_eq!(shift(&[0.0], (1_000_000, 1_000_001)), None, "another week");
    }

    #[test]
    fn a_zone_is_an_offset_or_a_name() {
        assert_eq!(fixed_offset("+05:45"), Some(20_700));
        assert_eq!(fixed_offset("-0800"), Some(-28_800));
        assert_eq!(fixed_offset("+8"), None);
        let at = LocalTime::parse(b"1970-01-01 08:00:00.500").unwrap();
        assert!((LogZone::parse("+08:00").unwrap().unix(at) - 0.5).abs() < 1e-9);
        let error = LogZone::parse("Nowhere/Town").unwrap_err().to_string();
        assert!(
            error.contains("--log-tz") && error.contains("+08:00"),
            "{error}"
        );
        assert!(LogZone::parse("+99:00").is_err());
    }

    #[test]
    fn the_samplers_offset_is_the_logs_and_utc_is_the_last_resort() {
        let said = |offset| LogZone::of_sampler(offset).said();
        assert_eq!(said(Some(-28_800)).name, "-08:00");
        assert_eq!(said(None).name, "UTC");
        assert!(said(None).source.contains("want"));
    }
}
