//! How Python reads and prints numbers, texts and paths, as far as the reference scripts rely on it. Pure.
//!
//! Source: the language's library reference (`int`, `float`, `repr`, `pathlib`). Left out: digits outside ASCII.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::local_time::LocalTime;

/// Whether `str.strip` and the regular expression `\s` take this character for a blank.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Where `str.splitlines` ends a line.
pub const fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r'
            | '\x0b'
            | '\x0c'
            | '\x1c'
            | '\x1d'
            | '\x1e'
            | '\u{85}'
            | '\u{2028}'
            | '\u{2029}'
    )
}

/// `float(text)`; `None` where Python raises `ValueError`.
pub fn float(text: &str) -> Option<f64> {
    joined(text.trim_matches(is_blank))?.parse().ok()
}

/// `int(text)`; `None` where Python raises `ValueError`. What an `i64` cannot hold becomes its nearest.
pub fn int(text: &str) -> Option<i64> {
    let text = joined(text.trim_matches(is_blank))?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nearest = if text.starts_with('-') {
        i64::MIN
    } else {
        i64::MAX
    };
    Some(text.parse().unwrap_or(nearest))
}

/// A number without its underscores, each of which must stand between two digits.
fn joined(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('_') {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let between =
        |(at, byte): (usize, &u8)| *byte != b'_' || (at > 0 && digit(at - 1) && digit(at + 1));
    let good = bytes.iter().enumerate().all(between);
    good.then(|| Cow::Owned(text.replace('_', "")))
}

/// `repr(value)`: the shortest decimal that reads back, always recognisable as a float.
pub fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return fixed(value, 0);
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// `f"{value:.{digits}f}"`.
pub fn fixed(value: f64, digits: usize) -> String {
    if value.is_nan() {
        "nan".to_owned()
    } else {
        format!("{value:.digits$}")
    }
}

/// `repr(text)`.
pub fn str_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if c == quote => out.extend(['\\', c]),
            _ if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `str(pathlib.PurePosixPath(text))`: single slashes, no `.` in between and no slash at the end.
pub fn path(text: &str) -> String {
    let slashes = text.len() - text.trim_start_matches('/').len();
    // POSIX gives exactly two leading slashes a meaning of their own.
    let root = match slashes {
        0 => "",
        2 => "//",
        _ => "/",
    };
    let parts: Vec<_> = text
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.is_empty() && root.is_empty() {
        return ".".to_owned();
    }
    format!("{root}{}", parts.join("/"))
}

/// `datetime.strptime(text, "%Y-%m-%d %H:%M:%S")`.
///
/// # Errors
/// What Python's `ValueError` says.
pub fn strptime(text: &str) -> Result<LocalTime, String> {
    let unlike = || {
        format!(
            "time data {} does not match format '%Y-%m-%d %H:%M:%S'",
            str_repr(text)
        )
    };
    let (fields, rest) = fields(text).ok_or_else(unlike)?;
    if !rest.is_empty() {
        return Err(format!("unconverted data remains: {rest}"));
    }
    let [year, month, day, hour, minute, second] = fields;
    let padded = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
    LocalTime::parse(padded.as_bytes()).ok_or_else(|| match (year, second) {
        (0, _) => "year 0 is out of range".to_owned(),
        (_, 60..) => "second must be in 0..59".to_owned(),
        _ => "day is out of range for month".to_owned(),
    })
}

/// Year to second, each with as many digits as it may have, and what follows.
fn fields(text: &str) -> Option<([u16; 6], &str)> {
    let (year, mut rest) = number(text, 9999).filter(|(_, rest)| text.len() - rest.len() == 4)?;
    let mut fields = [year, 0, 0, 0, 0, 0];
    let limits = [
        ('-', 1, 12),
        ('-', 1, 31),
        (' ', 0, 23),
        (':', 0, 59),
        (':', 0, 61),
    ];
    for (field, (before, lowest, highest)) in fields[1..].iter_mut().zip(limits) {
        let unblanked = rest.trim_start_matches(is_blank);
        let next = if before == ' ' {
            Some(unblanked).filter(|next| next.len() < rest.len())
        } else {
            rest.strip_prefix(before)
        };
        (*field, rest) = number(next?, highest).filter(|(value, _)| *value >= lowest)?;
    }
    Some((fields, rest))
}

/// The longest number that `text` begins with and that is at most `highest`, of at most as many digits.
fn number(text: &str, highest: u16) -> Option<(u16, &str)> {
    let most = if highest > 99 { 4 } else { 2 };
    let digits = text
        .bytes()
        .take(most)
        .take_while(u8::is_ascii_digit)
        .count();
    let mut lengths = (1..=digits).rev();
    lengths.find_map(|len| {
        let (number, rest) = text.split_at_checked(len)?;
        let number = number.parse().ok().filter(|number| *number <= highest)?;
        Some((number, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        for (text, value) in [
            ("70", 70.0),
            (" +7_0.5\n", 70.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
        ] {
            assert_eq!(float(text), Some(value), "{text:?}");
        }
        assert!(float("-NaN").unwrap().is_nan());
        assert_eq!(float("Infinity"), Some(f64::INFINITY));
        for text in ["", ".", "_1", "1_", "1__0", "1_.0", "0x10", "1e", "n_an"] {
            assert_eq!(float(text), None, "{text:?}");
        }
        assert_eq!(int("\u{a0}-1_0\x1f"), Some(-10));
        assert_eq!(int("99999999999999999999"), Some(i64::MAX));
        for text in ["1.5", "", "+", "--1", "1_", "0x1", "1e3"] {
            assert_eq!(int(text), None, "{text:?}");
        }
    }

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        let shown = [
            (70.0, "70.0"),
            (70.000_000_1, "70.0000001"),
            (1e16, "1e+16"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (value, text) in shown {
            assert_eq!(float_repr(value), text);
        }
        // Ties of the binary value go to the even digit.
        for (value, text) in [
            (0.125, "0.12"),
            (0.375, "0.38"),
            (2.675, "2.67"),
            (-0.001, "-0.00"),
        ] {
            assert_eq!(fixed(value, 2), text);
        }
        assert_eq!(
            (fixed(0.5, 0), fixed(2.5, 0), fixed(1.5, 0)),
            ("0".into(), "2".into(), "2".into())
        );
    }

    #[test]
    fn texts_and_paths_are_printed_as_python_prints_them() {
        assert_eq!(str_repr("foo"), "'foo'");
        assert_eq!(str_repr("it's"), "\"it's\"");
        assert_eq!(str_repr("'\"\\\n\x01"), "'\\'\"\\\\\\n\\x01'");
        for (given, shown) in [
            ("", "."),
            ("./runs//a/", "runs/a"),
            ("/", "/"),
            ("//a", "//a"),
            ("///a/..", "/a/.."),
        ] {
            assert_eq!(path(given), shown, "{given:?}");
        }
    }

    // Each case was put to CPython 3.11.
    #[test]
    fn times_are_read_as_python_reads_them() {
        for text in ["2026-01-05 08:05:00", "2026-1-5\t 8:5:0"] {
            assert_eq!(
                strptime(text).map(|time| time.seconds),
                Ok(1_767_600_300),
                "{text:?}"
            );
        }
        let unlike =
            |text: &str| format!("time data '{text}' does not match format '%Y-%m-%d %H:%M:%S'");
        for text in [
            "",
            "soon",
            "2026-01-05",
            "26-01-05 08:05:00",
            "2026-13-05 08:05:00",
            "2026-01-05 24:05:00",
            "2026-00-05 08:05:00",
        ] {
            assert_eq!(strptime(text), Err(unlike(text)));
        }
        let errors = [
            ("2026-01-05 08:05:00Z", "unconverted data remains: Z"),
            ("2026-01-05 08:05:75", "unconverted data remains: 5"),
            ("2026-02-30 08:05:00", "day is out of range for month"),
            ("2026-01-05 08:05:60", "second must be in 0..59"),
            ("0000-01-05 08:05:00", "year 0 is out of range"),
        ];
        for (text, error) in errors {
            assert_eq!(strptime(text), Err(error.to_owned()));
        }
    }
}
