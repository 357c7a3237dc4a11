//! The Prometheus text format, read without copying: one [`Sample`] per line, one typed error per bad line.
//!
//! Total: any text gives an iterator that ends, never a panic. Knows no metric's name; [`super::sample`] does.

use std::borrow::Cow;

/// One sample line: `name{labels} value [timestamp]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Name and labels as they stand, braces included.
    pub series: &'a str,
    /// The series' name.
    pub name: &'a str,
    /// What stands between the braces, escapes as they are; empty without labels.
    pub labels: &'a str,
    /// The value; NaN and the infinities are values.
    pub value: f64,
    /// The value as it is written, such as `1e-05`.
    pub raw_value: &'a str,
    /// Milliseconds since the Unix epoch, where the line has one.
    pub timestamp_ms: Option<i64>,
}

/// Why a line is no sample.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The line does not begin with a name.
    #[error("line {line}: no metric name")]
    NoName {
        /// Number of the line, from 1.
        line: usize,
    },
    /// The label set is not closed, or a label is not `name="value"`.
    #[error("line {line}: bad labels of {name}")]
    BadLabels {
        /// Number of the line, from 1.
        line: usize,
        /// The metric.
        name: String,
    },
    /// The value is missing or no number.
    #[error("line {line}: bad value {value:?} of {name}")]
    BadValue {
        /// Number of the line, from 1.
        line: usize,
        /// The metric.
        name: String,
        /// What stands there; empty if nothing does.
        value: String,
    },
    /// The timestamp is no whole number, or something follows it.
    #[error("line {line}: bad timestamp of {name}")]
    BadTimestamp {
        /// Number of the line, from 1.
        line: usize,
        /// The metric.
        name: String,
    },
}

/// The samples of `text`, in its order. Comments and blank lines are left out; a bad line is one error, and the
/// lines after it are read.
pub fn samples(text: &str) -> impl Iterator<Item = Result<Sample<'_>, LineError>> {
    text.lines().zip(1..).filter_map(|(line, number)| {
        let line = line.trim_ascii();
        (!line.is_empty() && !line.starts_with('#')).then(|| parse(line, number))
    })
}

impl<'a> Sample<'a> {
    /// The labels, in the line's order, as names and raw values.
    pub fn raw_labels(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = self.labels;
        std::iter::from_fn(move || {
            let (label, after) = split_label(rest)?;
            rest = after;
            Some(label)
        })
    }

    /// The value of label `name`, escapes resolved; allocates only where there are some.
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        let (_, raw) = self.raw_labels().find(|&(key, _)| key == name)?;
        Some(unescaped(raw))
    }
}

fn parse(line: &str, number: usize) -> Result<Sample<'_>, LineError> {
    let named = line.find(|c| !is_name_char(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(named);
    if name.is_empty() {
        return Err(LineError::NoName { line: number });
    }
    let (labels, rest) = split_labels(rest).ok_or_else(|| LineError::BadLabels {
        line: number,
        name: name.to_owned(),
    })?;
    let series = line.strip_suffix(rest).unwrap_or(name);
    let mut words = rest.split_ascii_whitespace();
    let raw_value = words.next().unwrap_or_default();
    let value = raw_value.parse().map_err(|_| LineError::BadValue {
        line: number,
        name: name.to_owned(),
        value: raw_value.to_owned(),
    })?;
    let timestamp = words.next().map(str::parse).transpose();
    let (Ok(timestamp_ms), None) = (timestamp, words.next()) else {
        return Err(LineError::BadTimestamp {
            line: number,
            name: name.to_owned(),
        });
    };
    Ok(Sample {
        series,
        name,
        labels,
        value,
        raw_value,
        timestamp_ms,
    })
}

const fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

/// Splits `{labels}` off; `None` when a brace or a label is malformed.
fn split_labels(text: &str) -> Option<(&str, &str)> {
    let Some(inside) = text.trim_ascii_start().strip_prefix('{') else {
        return Some(("", text));
    };
    let mut rest = inside;
    while let Some((_, after)) = split_label(rest) {
        rest = after;
    }
    let after = rest.trim_ascii_start().strip_prefix('}')?;
    let labels = inside.strip_suffix(rest)?;
    Some((
        labels.trim_ascii().trim_end_matches(',').trim_ascii_end(),
        after,
    ))
}

/// Splits the first label off, and the comma after it; `None` where no well-formed label begins.
fn split_label(text: &str) -> Option<((&str, &str), &str)> {
    let (name, rest) = text.trim_ascii_start().split_once('=')?;
    let rest = rest.trim_ascii_start().strip_prefix('"')?;
    let (value, rest) = rest.split_at_checked(closing_quote(rest)?)?;
    let rest = rest.strip_prefix('"')?.trim_ascii_start();
    let rest = rest.strip_prefix(',').unwrap_or(rest);
    let name = name.trim_ascii_end();
    let well_named = !name.is_empty() && name.chars().all(is_name_char);
    well_named.then_some(((name, value), rest))
}

/// The offset of the first quote that no backslash escapes.
fn closing_quote(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.as_bytes().get(at..)?)?;
        if text.as_bytes().get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

fn unescaped(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some(escaped @ ('\\' | '"'))) => text.push(escaped),
            (c, next) => {
                text.push(c);
                text.extend(next);
            }
        }
    }
    Cow::Owned(text)
}
