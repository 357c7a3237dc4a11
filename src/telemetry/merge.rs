//! The backends' own `vllm:` series, passed on in the gate's `/metrics`.
//!
//! Existing samplers and dashboards read them there unchanged. Works on lines, and only the series' names count:
//! what a backend says is not interpreted.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::prometheus_text::{self, Sample};
use super::scrape::VLLM_PREFIX;

/// The `vllm:` families of `parts`, which are pairs of a backend's URL and its `/metrics` text.
///
/// Give every configured backend a part, with an empty text for one that does not answer: its going must not
/// change the other's labels.
///
/// One backend's lines stand as they are. With several, each family stands once, `HELP` and `TYPE` as its first
/// backend gives them, and each sample has a `backend` label in front of its own; families come in the order of
/// the first text that has them, and lines that are no samples are left out.
pub fn merge_backends(parts: &[(&str, &str)]) -> String {
    match parts {
        [(_, text)] => vllm_lines(text),
        _ => merged(parts),
    }
}

fn vllm_lines(text: &str) -> String {
    let mut merged = String::with_capacity(text.len());
    for line in text.lines() {
        let series = comment_subject(line).unwrap_or(line);
        if series.starts_with(VLLM_PREFIX) {
            merged.push_str(line);
            merged.push('\n');
        }
    }
    merged
}

/// The metric that a `# HELP` or `# TYPE` line is about.
fn comment_subject(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix("# HELP ")
        .or_else(|| line.strip_prefix("# TYPE "))?;
    rest.split_ascii_whitespace().next()
}

/// Families in the order in which they were met, each with all its lines.
#[derive(Default)]
struct Families<'a> {
    families: Vec<Family<'a>>,
    by_name: BTreeMap<&'a str, usize>,
}

#[derive(Default)]
struct Family<'a> {
    /// The `HELP` and `TYPE` lines of the first backend that has the family.
    comments: Vec<&'a str>,
    /// The backend, by position, that gave the comments.
    first: usize,
    samples: String,
}

impl<'a> Families<'a> {
    fn family(&mut self, name: &'a str, backend: usize) -> &mut Family<'a> {
        let next = self.families.len();
        let index = *self.by_name.entry(name).or_insert(next);
        if index == next {
            self.families.push(Family {
                first: backend,
                ..Family::default()
            });
        }
        &mut self.families[index]
    }
}

fn merged(parts: &[(&str, &str)]) -> String {
    let mut families = Families::default();
    for (position, (backend, text)) in parts.iter().enumerate() {
        take(&mut families, position, &escaped(backend), text);
    }
    let mut merged = String::new();
    for family in families.families {
        for comment in family.comments {
            merged.push_str(comment);
            merged.push('\n');
        }
        merged.push_str(&family.samples);
    }
    merged
}

fn take<'a>(families: &mut Families<'a>, position: usize, backend: &str, text: &'a str) {
    // A histogram's samples bear longer names than their family; they follow its comments.
    let mut current = "";
    for line in text.lines() {
        if let Some(name) = comment_subject(line) {
            current = name;
            if name.starts_with(VLLM_PREFIX) {
                let family = families.family(name, position);
                if family.first == position {
                    family.comments.push(line);
                }
            }
            continue;
        }
        let Some(Ok(sample)) = prometheus_text::samples(line).next() else {
            continue;
        };
        if sample.name.starts_with(VLLM_PREFIX) {
            let in_current = !current.is_empty() && sample.name.starts_with(current);
            let name = if in_current { current } else { sample.name };
            push_labelled(
                &mut families.family(name, position).samples,
                backend,
                &sample,
            );
        }
    }
}

fn push_labelled(text: &mut String, backend: &str, sample: &Sample<'_>) {
    let Sample {
        name,
        labels,
        raw_value,
        ..
    } = sample;
    let comma = if labels.is_empty() { "" } else { "," };
    // Writing to a string cannot fail.
    let _infallible = write!(
        text,
        "{name}{{backend=\"{backend}\"{comma}{labels}}} {raw_value}"
    );
    if let Some(timestamp_ms) = sample.timestamp_ms {
        let _infallible = write!(text, " {timestamp_ms}");
    }
    text.push('\n');
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Scrape;

    const REAL: &str = include_str!("../../tests/fixtures/vllm/metrics.txt");

    #[test]
    fn one_backends_lines_stand_as_they_are() {
        let merged = merge_backends(&[("http://a", REAL)]);
        let expected: Vec<&str> = REAL.lines().filter(|line| line.contains("vllm:")).collect();
        assert_eq!(merged.lines().collect::<Vec<_>>(), expected);
        assert_eq!(Scrape::parse(&merged), Scrape::parse(REAL));
    }

    #[test]
    fn several_backends_share_a_familys_comments_and_are_told_apart_by_a_label() {
        let a = "# HELP vllm:h Help of a.\n# TYPE vllm:h histogram\nvllm:h_bucket{le=\"1\"} 2\nvllm:h_sum 0.5\n\
                 # TYPE vllm:g gauge\nvllm:g 1 1700000000000\nprocess_cpu 3\n";
        let b = "# HELP vllm:h Help of b.\n# TYPE vllm:h histogram\nvllm:h_bucket{le=\"1\"} 4\nvllm:bad None\n\
                 # TYPE vllm:new counter\nvllm:new_total{x=\"y\"} 9\n";
        let merged = merge_backends(&[("http://a:1", a), ("b\"\\", b)]);
        let expected = "# HELP vllm:h Help of a.\n# TYPE vllm:h histogram\n\
                        vllm:h_bucket{backend=\"http://a:1\",le=\"1\"} 2\nvllm:h_sum{backend=\"http://a:1\"} 0.5\n\
                        vllm:h_bucket{backend=\"b\\\"\\\\\",le=\"1\"} 4\n\
                        # TYPE vllm:g gauge\nvllm:g{backend=\"http://a:1\"} 1 1700000000000\n\
                        # TYPE vllm:new counter\nvllm:new_total{backend=\"b\\\"\\\\\",x=\"y\"} 9\n";
        assert_eq!(merged, expected);
    }

    #[test]
    fn two_real_backends_keep_every_sample_and_sum_up() {
        let merged = merge_backends(&[("http://a", REAL), ("http://b", REAL)]);
        let count = |text: &str| {
            prometheus_text::samples(text)
                .flatten()
                .filter(|s| s.name.starts_with("vllm:"))
                .count()
        };
        assert_eq!(count(&merged), 2 * count(REAL));
        let types = |text: &str| {
            text.lines()
                .filter(|line| line.starts_with("# TYPE vllm:"))
                .count()
        };
        assert_eq!(types(&merged), types(REAL));
        let both = Scrape::parse(&merged);
        assert_eq!(both.prefix_hits, 2 * Scrape::parse(REAL).prefix_hits);
    }

    #[test]
    fn no_backend_gives_no_lines() {
        assert_eq!(merge_backends(&[]), "");
    }
}
