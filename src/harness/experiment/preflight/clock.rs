//! The machine's clock and time zone: what timestamps of logs will be worth.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Finding;

/// Before this, no clock of a machine that runs kvgate can be: 2026-01-01.
const FLOOR_S: i64 = 1_767_225_600;
/// Clocks that differ by more give logs that cannot be laid side by side.
const SKEW_S: i64 = 10;
/// How far ahead a change of the offset is looked for: longer than most experiments.
const AHEAD_HOURS: i64 = 48;

/// What a server's `Date` said, and who it is.
#[derive(Clone, Debug)]
pub(super) struct Dated {
    pub(super) what: String,
    pub(super) unix_s: i64,
}

/// Reads the `Date` of a response.
pub(super) fn date(header: &str) -> Option<i64> {
    let zoned = jiff::fmt::rfc2822::parse(header).ok()?;
    Some(zoned.timestamp().as_second())
}

/// Looks at the clock: `now_s` as it shows, and what servers said at about that time. Pure.
pub(super) fn clock(now_s: i64, servers: &[Dated]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if now_s < FLOOR_S {
        let shown = Timestamp::from_second(now_s).unwrap_or_default();
        findings.push(Finding::error(
            "clock",
            format!("it shows {}", shown.strftime("%Y-%m-%d")),
            "set it, as with `chronyd -q` or `date -s`",
        ));
    }
    let off = servers
        .iter()
        .filter(|server| (server.unix_s - now_s).abs() > SKEW_S);
    findings.extend(off.map(|server| {
        let ahead = now_s - server.unix_s;
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        Finding::warning(
            "clock",
            format!("it is {} s {way} that of {}", ahead.abs(), server.what),
            "set both by NTP, or their logs cannot be laid side by side",
        )
    }));
    findings
}

/// The zone that `TZ` names, or the machine's own where it is unset; `None` if it names none. Python then takes UTC.
pub(super) fn zone(variable: Option<&str>) -> Option<TimeZone> {
    match variable.map(|name| name.trim_start_matches(':')) {
        // An empty TZ is UTC, as POSIX has it.
        Some("") => Some(TimeZone::UTC),
        None => TimeZone::try_system().ok(),
        Some(name) => TimeZone::get(name)
            .ok()
            .or_else(|| TimeZone::posix(name).ok()),
    }
}

/// Looks at the time zone in which the reference's logs will be written. Pure.
pub(super) fn time_zone(
    variable: Option<&str>,
    zone: Option<&TimeZone>,
    now: Timestamp,
) -> Option<Finding> {
    let Some(zone) = zone else {
        let (problem, remedy) = match variable {
            Some(name) => (
                format!(
                    "TZ={name} names no zone, so that Python writes UTC and other programs may not"
                ),
                "set TZ to a name such as UTC or Asia/Shanghai",
            ),
            None => (
                "the machine's zone cannot be read from /etc/localtime".to_owned(),
                "set TZ=UTC",
            ),
        };
        return Some(Finding::warning("time zone", problem, remedy));
    };
    let until = now
        .checked_add(SignedDuration::from_hours(AHEAD_HOURS))
        .ok()?;
    let change = zone
        .following(now)
        .find(|change| change.timestamp() > until || change.offset() != zone.to_offset(now))?;
    if change.timestamp() > until {
        return None;
    }
    let at = change.timestamp().strftime("%Y-%m-%d %H:%M UTC");
    Some(Finding::warning(
        "time zone",
        format!("its offset changes at {at}: log times without a zone are then ambiguous"),
        "set TZ=UTC for the run",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_clock_that_was_never_set_is_an_error() {
        let found = clock(0, &[]);
        assert!(found[0].problem.contains("1970-01-01"), "{found:?}");
        assert!(super::super::is_fatal(&found));
        assert!(clock(FLOOR_S, &[]).is_empty());
    }

    #[test]
    fn a_server_whose_clock_differs_is_named_with_the_direction() {
        let dated = |offset: i64| Dated {
            what: "expert-1".to_owned(),
            unix_s: FLOOR_S + offset,
        };
        assert!(clock(FLOOR_S, &[dated(10), dated(-10)]).is_empty());
        let found = clock(FLOOR_S, &[dated(11), dated(-90)]);
        assert!(
            found[0].problem.contains("11 s behind that of expert-1"),
            "{found:?}"
        );
        assert!(found[1].problem.contains("90 s ahead of"), "{found:?}");
        assert!(!super::super::is_fatal(&found));
    }

    #[test]
    fn a_date_header_is_read() {
        assert_eq!(date("Mon, 05 Jan 2026 08:00:00 GMT"), Some(1_767_600_000));
        assert_eq!(date("yesterday"), None);
    }

    #[test]
    fn a_zone_that_changes_its_offset_during_the_run_is_a_warning_and_another_is_none() {
        let los_angeles = zone(Some("America/Los_Angeles")).unwrap();
        let find = |now| time_zone(Some("America/Los_Angeles"), Some(&los_angeles), at(now));
        let found = find("2026-10-31T00:00:00Z").unwrap();
        assert!(found.problem.contains("2026-11-01 09:00 UTC"), "{found:?}");
        assert_eq!(
            find("2026-07-01T00:00:00Z"),
            None,
            "far from UTC, and unambiguous"
        );
        assert_eq!(find("2026-10-30T08:59:00Z"), None, "49 hours before");
        assert_eq!(
            time_zone(None, Some(&TimeZone::UTC), at("2026-10-31T00:00:00Z")),
            None
        );
    }

    #[test]
    fn a_name_that_is_no_zone_is_told_apart_from_posix_rules_and_nothing() {
        assert!(zone(Some("Nowhere/Town")).is_none());
        assert!(
            zone(Some(":Asia/Shanghai")).is_some()
                && zone(Some("EST5EDT,M3.2.0,M11.1.0")).is_some()
        );
        assert_eq!(zone(Some("")), Some(TimeZone::UTC));
        let found = time_zone(Some("Nowhere/Town"), None, at("2026-10-31T00:00:00Z")).unwrap();
        assert!(found.problem.contains("TZ=Nowhere/Town"), "{found:?}");
    }
}
