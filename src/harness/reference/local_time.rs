//! Wall-clock times without a zone, as the reference logs write them, and the zone that gives them a meaning. Pure.
//!
//! Where a wall-clock time exists twice or not at all (summer time ends or begins), the zone answers as Python's
//! `datetime.timestamp()` does with `fold=0`: the earlier of two, and the later reading of a skipped one.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use memchr::memchr_iter;

/// Length of `YYYY-MM-DD HH:MM:SS`.
const LEN: usize = 19;

/// Seconds in a day: how far Python looks around for a second reading of a wall-clock time.
const DAY_S: i64 = 86_400;

/// What a wall clock showed: `YYYY-MM-DD HH:MM:SS`, with milliseconds where the log gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalTime {
    /// Seconds since 1970-01-01 00:00:00 of the same wall clock.
    pub seconds: i64,
    /// 0 to 999; 0 where none were written.
    pub millis: u16,
}

impl LocalTime {
    /// Reads the time that `text` begins with; `.123` after it is taken for milliseconds.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if !looks_like_one(text) {
            return None;
        }
        let number = |at: usize, len: usize| {
            text[at..at + len]
                .iter()
                .fold(0, |n, b| n * 10 + i16::from(b - b'0'))
        };
        let small = |at: usize| i8::try_from(number(at, 2)).ok();
        let year = Some(number(0, 4)).filter(|year| *year > 0)?;
        let shown = DateTime::new(
            year,
            small(5)?,
            small(8)?,
            small(11)?,
            small(14)?,
            small(17)?,
            0,
        )
        .ok()?;
        let seconds = Offset::UTC.to_timestamp(shown).ok()?.as_second();
        let millis = match text.get(LEN..LEN + 4) {
            Some([b'.', digits @ ..]) if digits.iter().all(u8::is_ascii_digit) => {
                digits.iter().fold(0, |n, b| n * 10 + u16::from(b - b'0'))
            }
            _ => 0,
        };
        Some(Self { seconds, millis })
    }
}

/// Where the first text of the shape `dddd-dd-dd dd:dd:dd` begins.
pub fn find(text: &[u8]) -> Option<usize> {
    let starts = memchr_iter(b'-', text).filter_map(|dash| dash.checked_sub(4));
    let mut fitting = starts.filter(|&at| looks_like_one(&text[at..]));
    fitting.next()
}

/// Where the last text of that shape begins.
pub fn rfind(text: &[u8]) -> Option<usize> {
    let starts = memchr_iter(b'-', text)
        .rev()
        .filter_map(|dash| dash.checked_sub(4));
    let mut fitting = starts.filter(|&at| looks_like_one(&text[at..]));
    fitting.next()
}

fn looks_like_one(text: &[u8]) -> bool {
    const SHAPE: &[u8; LEN] = b"dddd-dd-dd dd:dd:dd";
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'd' => byte.is_ascii_digit(),
        _ => byte == shape,
    };
    text.len() >= LEN && text.iter().zip(SHAPE).all(fits)
}

/// A time zone: what turns a wall clock's reading into a moment, and back.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of this process: `TZ`, or where that is unset, the machine's.
    pub fn of_process() -> Self {
        Self(TimeZone::system())
    }

    /// Coordinated universal time.
    pub const fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// A zone that is always `offset_s` seconds east of UTC; `None` beyond a day.
    pub fn fixed(offset_s: i32) -> Option<Self> {
        Offset::from_seconds(offset_s)
            .ok()
            .map(|offset| Self(TimeZone::fixed(offset)))
    }

    /// A zone of the tz database by name; `None` where there is no such name.
    pub fn named(name: &str) -> Option<Self> {
        TimeZone::get(name).ok().map(Self)
    }

    /// Seconds east of UTC at a moment, in Unix seconds.
    pub fn offset_s(&self, unix_s: i64) -> i64 {
        i64::from(self.0.to_offset(nearest(unix_s)).seconds())
    }

    /// The moment, in Unix seconds without their fraction, at which a wall clock here shows `local`.
    pub fn unix_s(&self, local: LocalTime) -> i64 {
        let shown = local.seconds;
        let wall = |unix_s: i64| unix_s + self.offset_s(unix_s);
        let offset = self.offset_s(shown);
        let first = shown - offset;
        let other_offset = if wall(first) == shown {
            let other = self.offset_s(first - DAY_S);
            if other == offset {
                return first;
            }
            other
        } else {
            wall(first) - first
        };
        let second = shown - other_offset;
        if wall(second) == shown {
            second
        } else if wall(first) == shown {
            first
        } else {
            first.max(second)
        }
    }

    /// The same with its milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "Unix seconds are far below 2^52"
    )]
    pub fn unix(&self, local: LocalTime) -> f64 {
        self.unix_s(local) as f64 + f64::from(local.millis) / 1000.0
    }

    /// What a wall clock here shows at a moment, by a pattern of `strftime`; `None` outside the years 1 to 9999.
    pub fn show(&self, unix_s: i64, pattern: &str) -> Option<String> {
        let shifted = unix_s.checked_add(self.offset_s(unix_s))?;
        let shown = Offset::UTC.to_datetime(Timestamp::from_second(shifted).ok()?);
        (shown.year() > 0).then(|| shown.strftime(pattern).to_string())
    }
}

fn nearest(unix_s: i64) -> Timestamp {
    let (low, high) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
    Timestamp::from_second(unix_s.clamp(low, high)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(zone: &Zone, text: &str) -> i64 {
        zone.unix_s(LocalTime::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_time_is_found_anywhere_in_a_line_and_read_with_its_milliseconds() {
        let line =
            b"req_id=1-22-4000-8000-0000002026-01-05 08:03:24.517 | INFO 2026-01-05 09:00:00";
        let at = find(line).unwrap();
        assert_eq!(at, 28);
        let time = LocalTime::parse(&line[at..]).unwrap();
        assert_eq!((time.seconds, time.millis), (1_767_600_204, 517));
        assert_eq!(rfind(line), Some(59));
        assert_eq!(find(b"2026-01-05T08:03:24"), None);
        assert_eq!(find(b"-"), None);
    }

    #[test]
    fn what_no_calendar_has_is_no_time() {
        for text in [
            "2026-13-05 08:00:00",
            "2026-02-29 08:00:00",
            "2026-01-05 24:00:00",
            "2026-01-05 08:00:60",
            "0000-01-01 00:00:00",
            "2026-01-05 08:00",
        ] {
            assert_eq!(LocalTime::parse(text.as_bytes()), None, "{text}");
        }
    }

    // Expected values: CPython 3.11, datetime(...).timestamp() with TZ=America/Los_Angeles.
    #[test]
    fn skipped_and_repeated_hours_are_read_as_python_reads_them() {
        let zone = Zone::named("America/Los_Angeles").unwrap();
        let times = [
            ("2026-01-05 08:00:00", 1_767_628_800),
            ("2026-07-05 08:00:00", 1_783_263_600),
            ("2026-03-08 01:59:59", 1_772_963_999),
            ("2026-03-08 02:30:00", 1_772_965_800),
            ("2026-03-08 03:00:00", 1_772_964_000),
            ("2026-11-01 00:30:00", 1_793_518_200),
            ("2026-11-01 01:30:00", 1_793_521_800),
            ("2026-11-01 02:00:00", 1_793_527_200),
        ];
        for (text, expected) in times {
            assert_eq!(unix(&zone, text), expected, "{text}");
        }
        assert_eq!(
            zone.show(1_793_521_800, "%Y-%m-%d %H:%M:%S").unwrap(),
            "2026-11-01 01:30:00"
        );
    }

    #[test]
    fn a_fixed_offset_is_a_zone() {
        let zone = Zone::fixed(-8 * 3600).unwrap();
        assert_eq!(unix(&zone, "2026-01-05 00:00:00"), 1_767_600_000);
        assert_eq!(zone.show(1_767_600_000, "%H:%M:%S").unwrap(), "00:00:00");
        assert!(Zone::fixed(1_000_000).is_none());
        assert_eq!(zone.show(1_767_600_000_000, "%Y"), None, "milliseconds");
    }
}
