//! The Prometheus text format, read without copying: one [`Sample`] per line, one typed error per bad line.
//!
//! Total: any text gives an iterator that ends, never a panic. Knows no metric's name; [`super::scrape`] does.

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

/// Whether a metric may have this name.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(is_name_char)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(line: &str) -> Result<Sample<'_>, LineError> {
        let mut all = samples(line);
        let first = all.next().expect("one line");
        assert_eq!(all.next(), None);
        first
    }

    #[test]
    fn a_sample_has_its_parts() {
        let sample =
            only("vllm:x_total{engine=\"0\", le=\"+Inf\",} 1e-05 1395066363000\r").unwrap();
        assert_eq!(sample.name, "vllm:x_total");
        assert_eq!(sample.series, "vllm:x_total{engine=\"0\", le=\"+Inf\",}");
        assert_eq!(sample.labels, "engine=\"0\", le=\"+Inf\"");
        assert_eq!(
            sample.raw_labels().collect::<Vec<_>>(),
            [("engine", "0"), ("le", "+Inf")]
        );
        assert_eq!(sample.value.to_bits(), 1e-5_f64.to_bits());
        assert_eq!(sample.raw_value, "1e-05");
        assert_eq!(sample.timestamp_ms, Some(1_395_066_363_000));
    }

    #[test]
    fn nan_and_the_infinities_are_values() {
        assert!(only("a NaN").unwrap().value.is_nan());
        for (word, sign) in [("+Inf", 1.0), ("-Inf", -1.0), ("Inf", 1.0)] {
            let value = only(&format!("a {word}")).unwrap().value;
            assert!(
                value.is_infinite() && value.signum().to_bits() == f64::to_bits(sign),
                "{word}"
            );
        }
    }

    #[test]
    fn labels_may_hold_braces_quotes_and_line_feeds() {
        let sample = only(r#"m{a="x} 1",b="\\\"q\"\n",c=""} 2"#).unwrap();
        assert_eq!(sample.label("a").as_deref(), Some("x} 1"));
        assert_eq!(sample.label("b").as_deref(), Some("\\\"q\"\n"));
        assert_eq!(sample.label("c").as_deref(), Some(""));
        assert_eq!(sample.label("d"), None);
        assert_eq!(sample.raw_value, "2");
    }

    #[test]
    fn a_bad_line_is_one_error_and_the_next_line_is_read() {
        let text =
            "a None\n{} 1\nb{x=1} 1\nc{x=\"1\" 1\nd\ne 1 now\nf 1 2 3\n\n# HELP g text\ng 7\n";
        let all: Vec<_> = samples(text).collect();
        let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        let told: Vec<_> = bad
            .into_iter()
            .filter_map(Result::err)
            .map(|error| error.to_string())
            .collect();
        assert_eq!(
            told,
            [
                "line 1: bad value \"None\" of a",
                "line 2: no metric name",
                "line 3: bad labels of b",
                "line 4: bad labels of c",
                "line 5: bad value \"\" of d",
                "line 6: bad timestamp of e",
                "line 7: bad timestamp of f",
            ]
        );
        assert_eq!(good.len(), 1);
    }

    #[test]
    fn every_line_of_a_real_server_is_read() {
        for text in [
            include_str!("../../tests/fixtures/vllm/metrics.txt"),
            include_str!("../../tests/fixtures/vllm/rust-frontend/metrics.response.txt"),
        ] {
            let body = text.lines().skip_while(|line| !line.starts_with('#'));
            let body: Vec<_> = body.collect();
            let expected = body.iter().filter(|line| !line.starts_with('#')).count();
            let body = body.join("\n");
            assert_eq!(samples(&body).flatten().count(), expected);
            assert!(expected > 100);
        }
    }

    fn escape(label: &str) -> String {
        label
            .replace('\\', r"\\")
            .replace('"', "\\\"")
            .replace('\n', r"\n")
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a{}=\",\\\\ #:0\n]|\\PC){0,80}") {
            for sample in samples(&text).flatten() {
                let _labels = sample.raw_labels().count();
                let _label = sample.label("a");
            }
        }

        #[test]
        fn what_is_printed_parses_back(
            name in "[a-z_:][a-z0-9_:]{0,12}",
            labels in proptest::collection::vec(("[a-z]{1,6}", "([\"\\\\{}=,\n ]|\\PC){0,10}"), 0..4),
            value: f64,
            timestamp: Option<i64>,
        ) {
            let inside: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
            let stamp = timestamp.map(|stamp| format!(" {stamp}")).unwrap_or_default();
            let line = format!("{name}{{{}}} {value:e}{stamp}", inside.join(","));
            // A line feed inside a label is escaped, so the sample stays on one line.
            let sample = only(&line).unwrap();
            prop_assert_eq!(sample.name, &name);
            prop_assert!(sample.value.to_bits() == value.to_bits() || value.is_nan());
            prop_assert_eq!(sample.timestamp_ms, timestamp);
            let read: Vec<_> = sample.raw_labels().map(|(key, raw)| (key.to_owned(), unescaped(raw).into_owned())).collect();
            prop_assert_eq!(read, labels);
        }
    }
}
