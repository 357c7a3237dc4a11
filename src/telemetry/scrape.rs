//! vLLM's metrics as numbers: one [`Scrape`] per `/metrics` text. The only file that knows vLLM's names.
//!
//! | fact | names, newest first |
//! |---|---|
//! | KV cache usage | `vllm:kv_cache_usage_perc`, `vllm:gpu_cache_usage_perc` |
//! | running, waiting | `vllm:num_requests_running`, `vllm:num_requests_waiting` |
//! | preemptions | `vllm:num_preemptions_total`, without `_total` |
//! | prefix cache, in tokens | `vllm:prefix_cache_{hits,queries}_total`, `vllm:gpu_prefix_cache_…`, both without `_total` |
//! | KV capacity | labels of `vllm:cache_config_info` |

use super::prometheus_text::{self, Sample};
use crate::policy::{BackendId, BackendSample, Ratio, Tokens};

/// The metric that names KV cache usage in rows written for a scrape that failed.
pub const KV_USAGE_METRIC: &str = "vllm:kv_cache_usage_perc";

/// The prefix of every series of vLLM's own.
pub const VLLM_PREFIX: &str = "vllm:";

/// What one `/metrics` text says, over all engines of the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// KV cache usage, 0–1, the highest of the engines; `None` when absent or NaN.
    pub kv_usage: Option<Ratio>,
    /// Requests that run, summed over the engines.
    pub running: u32,
    /// Requests that wait inside vLLM, summed over the engines.
    pub waiting: u32,
    /// Preemptions since the server started, summed over the engines.
    pub preemptions: u64,
    /// Prefix cache hits since the server started, in tokens, summed over the engines.
    pub prefix_hits: u64,
    /// Prefix cache look-ups since the server started, in tokens, summed over the engines.
    pub prefix_queries: u64,
    /// Tokens that the KV caches of all engines hold; `None` where the server does not say.
    pub kv_capacity: Option<Tokens>,
    /// Tokens per KV block; `None` where the server does not say.
    pub block_size: Option<u64>,
    /// The lines that tell KV cache usage, as they stand, in the text's order: old and new name, every engine.
    pub usage_lines: Vec<UsageLine>,
}

/// One line that tells KV cache usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageLine {
    /// Name and labels, as in the text.
    pub metric: String,
    /// The value, as in the text.
    pub value: String,
}

impl Scrape {
    /// Reads a `/metrics` text. Lines that are no samples, and series of others, are passed over.
    pub fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        let mut counters = Counters::default();
        for sample in prometheus_text::samples(text).flatten() {
            scrape.take(&sample, &mut counters);
        }
        scrape.prefix_hits = counters.hits.total();
        scrape.prefix_queries = counters.queries.total();
        scrape.preemptions = counters.preemptions.total();
        scrape
    }

    /// The numbers a policy is told.
    pub const fn sample(&self, backend: BackendId) -> BackendSample {
        BackendSample {
            backend,
            kv_usage: self.kv_usage,
            running: self.running,
            waiting: self.waiting,
            preemptions: self.preemptions,
            prefix_hits: self.prefix_hits,
            prefix_queries: self.prefix_queries,
        }
    }

    fn take(&mut self, sample: &Sample<'_>, counters: &mut Counters) {
        let Some(name) = sample.name.strip_prefix(VLLM_PREFIX) else {
            return;
        };
        let value = sample.value;
        match name {
            "kv_cache_usage_perc" | "gpu_cache_usage_perc" => self.take_usage(sample),
            "num_requests_running" => self.running = add(self.running, value),
            "num_requests_waiting" => self.waiting = add(self.waiting, value),
            "num_preemptions_total" => counters.preemptions.new += value,
            "num_preemptions" => counters.preemptions.old += value,
            "prefix_cache_hits_total" | "prefix_cache_hits" => counters.hits.new += value,
            "gpu_prefix_cache_hits_total" | "gpu_prefix_cache_hits" => counters.hits.old += value,
            "prefix_cache_queries_total" | "prefix_cache_queries" => counters.queries.new += value,
            "gpu_prefix_cache_queries_total" | "gpu_prefix_cache_queries" => {
                counters.queries.old += value;
            }
            "cache_config_info" => self.take_cache_config(sample),
            _ => {}
        }
    }

    fn take_usage(&mut self, sample: &Sample<'_>) {
        // Some servers report percent under this name: no fraction is above 1.
        let value = if sample.value > 1.0 {
            sample.value / 100.0
        } else {
            sample.value
        };
        let usage = Ratio::new(value);
        if usage > self.kv_usage {
            self.kv_usage = usage;
        }
        self.usage_lines.push(UsageLine {
            metric: sample.series.to_owned(),
            value: sample.raw_value.to_owned(),
        });
    }

    fn take_cache_config(&mut self, sample: &Sample<'_>) {
        let number = |label| {
            sample
                .label(label)
                .and_then(|text| text.parse::<u64>().ok())
        };
        let block_size = number("block_size");
        let from_blocks = || {
            // vLLM keeps one block for padding; usage, too, is counted without it.
            let blocks = number("num_gpu_blocks")?.checked_sub(1)?;
            blocks.checked_mul(block_size?)
        };
        self.block_size = self.block_size.or(block_size);
        let tokens = number("kv_cache_size_tokens").or_else(from_blocks);
        // A cache of no tokens serves nobody: the server has not measured it yet.
        if let Some(capacity) = tokens.filter(|tokens| *tokens > 0) {
            self.kv_capacity = Some(self.kv_capacity.unwrap_or_default() + Tokens(capacity));
        }
    }
}

/// What the reference router reads from a `/metrics` text. It knows only the newest names, and where one line is
/// malformed it takes the first line of each name instead of all. Samples without a `# TYPE` line are not summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// KV cache usage, 0–1, the highest of the engines; `None`: as before.
    pub usage: Option<f64>,
    /// Requests that run, summed over the engines; `None`: as before.
    pub running: Option<f64>,
    /// Requests that wait inside vLLM, summed over the engines; `None`: as before.
    pub waiting: Option<f64>,
}

impl Reading {
    const USAGE: &str = "vllm:kv_cache_usage_perc";
    const RUNNING: &str = "vllm:num_requests_running";
    const WAITING: &str = "vllm:num_requests_waiting";

    /// Reads a text as the reference router does.
    pub fn parse(text: &str) -> Self {
        let mut reading = Self::strict(text).unwrap_or_else(|| Self::by_lines(text));
        let percent = |usage: f64| if usage > 1.0 { usage / 100.0 } else { usage };
        reading.usage = reading.usage.map(percent);
        reading
    }

    /// Every metric, a later one of the same name instead of an earlier; `None` where a line is malformed.
    fn strict(text: &str) -> Option<Self> {
        let mut reading = Self::default();
        let mut open: Option<Family<'_>> = None;
        for line in text.lines().map(str::trim) {
            let next = if line.starts_with('#') {
                Family::announced(line, open.as_ref()).ok()?
            } else if let Some(sample) = prometheus_text::samples(line).next() {
                let sample = sample.ok()?;
                if let Some(family) = open.as_mut().filter(|family| family.owns(sample.name)) {
                    family.take(&sample);
                    continue;
                }
                reading.close(open.take());
                reading.close(Some(Family::alone(&sample)));
                None
            } else {
                None
            };
            if next.is_some() {
                reading.close(std::mem::replace(&mut open, next));
            }
        }
        reading.close(open);
        Some(reading)
    }

    /// Takes what a metric says. One that is there but has no finite sample counts 0, usage excepted.
    fn close(&mut self, family: Option<Family<'_>>) {
        let Some(family) = family else { return };
        match family.told_as() {
            Self::USAGE => self.usage = family.highest.or(self.usage),
            Self::RUNNING => self.running = Some(family.sum),
            Self::WAITING => self.waiting = Some(family.sum),
            _ => {}
        }
    }

    /// The first finite value among the lines that begin with each name.
    fn by_lines(text: &str) -> Self {
        let first = |name| {
            let mut values = text
                .lines()
                .filter(|line: &&str| line.starts_with(name))
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            values.find(|value| value.is_finite())
        };
        Self {
            usage: first(Self::USAGE),
            running: first(Self::RUNNING),
            waiting: first(Self::WAITING),
        }
    }
}

/// A comment that the reference router's parser gives up on.
#[derive(Clone, Copy, Debug)]
struct Malformed;

/// One metric as the reference router's parser groups samples: those after a `# HELP` or `# TYPE` line of their
/// name belong together; any other sample is a metric of its own.
#[derive(Debug, Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    /// The highest finite sample of the metric's own name.
    highest: Option<f64>,
    /// The finite samples of the metric's own name, summed.
    sum: f64,
}

impl<'a> Family<'a> {
    /// The metric that a comment announces, if it is not the open one.
    fn announced(line: &'a str, open: Option<&Self>) -> Result<Option<Self>, Malformed> {
        let mut words = line.split_whitespace().skip(1);
        let (word, name, kind) = (words.next(), words.next(), words.next());
        let kind = match (word, kind) {
            (Some("TYPE"), kind) => {
                let kind = kind.filter(|kind| Self::KINDS.contains(kind));
                Some(kind.ok_or(Malformed)?)
            }
            (Some("HELP"), _) => None,
            _ => return Ok(None),
        };
        let name = name.filter(|name| prometheus_text::is_name(name));
        let name = name.ok_or(Malformed)?;
        let known = open.filter(|family| family.name == name);
        if known.is_some_and(|family| kind.is_none_or(|kind| family.kind == kind)) {
            return Ok(None);
        }
        let kind = kind.unwrap_or("untyped");
        let known = known.filter(|_| kind != "counter");
        let (highest, sum) = known.map_or((None, 0.0), |family| (family.highest, family.sum));
        Ok(Some(Self {
            name,
            kind,
            highest,
            sum,
        }))
    }

    const KINDS: [&'static str; 9] = [
        "counter",
        "gauge",
        "summary",
        "histogram",
        "gaugehistogram",
        "unknown",
        "untyped",
        "info",
        "stateset",
    ];

    /// A sample that nothing announced.
    fn alone(sample: &Sample<'a>) -> Self {
        let mut family = Self {
            name: sample.name,
            ..Self::default()
        };
        family.take(sample);
        family
    }

    /// Whether a sample of this name belongs to the metric.
    fn owns(&self, sample: &str) -> bool {
        let part = sample.strip_prefix(self.name);
        part.is_some_and(|part| match self.kind {
            "histogram" => matches!(part, "_count" | "_sum" | "_bucket"),
            "summary" => matches!(part, "" | "_count" | "_sum"),
            _ => part.is_empty(),
        })
    }

    fn take(&mut self, sample: &Sample<'_>) {
        // A counter's samples are told under its name with `_total`, which nobody asks for.
        let own = sample.name == self.name && self.kind != "counter";
        if own && sample.value.is_finite() {
            self.highest = Some(
                self.highest
                    .map_or(sample.value, |old| old.max(sample.value)),
            );
            self.sum += sample.value;
        }
    }

    /// The name that the parser gives the metric.
    fn told_as(&self) -> &'a str {
        let bare = self.name.strip_suffix("_total");
        bare.filter(|_| self.kind == "counter").unwrap_or(self.name)
    }
}

/// The counters that a server may report under an old and a new name at once.
#[derive(Default)]
struct Counters {
    preemptions: Counter,
    hits: Counter,
    queries: Counter,
}

/// One counter, summed over the engines, apart for its two names.
#[derive(Default)]
struct Counter {
    new: f64,
    old: f64,
}

impl Counter {
    fn total(&self) -> u64 {
        // A server that has both names counts the same thing twice.
        count(self.new.max(self.old))
    }
}

/// A value that counts things, as a count: NaN and negative values read as 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, as documented"
)]
const fn count(value: f64) -> u64 {
    value as u64
}

fn add(sum: u32, value: f64) -> u32 {
    sum.saturating_add(u32::try_from(count(value)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = include_str!("../../tests/fixtures/vllm/metrics.txt");
    const RUST_FRONT_END: &str =
        include_str!("../../tests/fixtures/vllm/rust-frontend/metrics.response.txt");

    fn ratio(value: f64) -> Option<Ratio> {
        Ratio::new(value)
    }

    #[test]
    fn a_real_scrape_is_read_whole() {
        let expected = Scrape {
            kv_usage: ratio(0.0),
            running: 0,
            waiting: 0,
            preemptions: 5,
            prefix_hits: 9856,
            prefix_queries: 37546,
            kv_capacity: Some(Tokens(5120)),
            block_size: Some(32),
            usage_lines: vec![UsageLine {
                metric: "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"}".to_owned(),
                value: "0.0".to_owned(),
            }],
        };
        assert_eq!(Scrape::parse(REAL), expected);
    }

    #[test]
    fn a_server_without_cache_config_says_nothing_of_its_capacity() {
        let scrape = Scrape::parse(RUST_FRONT_END);
        assert_eq!((scrape.prefix_hits, scrape.prefix_queries), (2912, 4914));
        assert_eq!((scrape.kv_capacity, scrape.block_size), (None, None));
    }

    #[test]
    fn a_cache_of_no_tokens_has_not_been_measured() {
        for labels in [
            "kv_cache_size_tokens=\"0\"",
            "block_size=\"16\",num_gpu_blocks=\"1\"",
        ] {
            let scrape = Scrape::parse(&format!("vllm:cache_config_info{{{labels}}} 1\n"));
            assert_eq!(scrape.kv_capacity, None, "{labels}");
        }
    }

    #[test]
    fn several_engines_give_the_highest_usage_and_the_sum_of_counts() {
        let scrape = Scrape::parse(
            "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n\
             vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\n\
             vllm:num_requests_waiting{engine=\"0\"} 1\nvllm:num_requests_waiting{engine=\"1\"} 2\n\
             vllm:num_preemptions_total{engine=\"0\"} 5\nvllm:num_preemptions_total{engine=\"1\"} 6\n\
             vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"101\",kv_cache_size_tokens=\"None\"} 1\n\
             vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"51\"} 1\n",
        );
        assert_eq!(scrape.kv_usage, ratio(0.75));
        assert_eq!(
            (scrape.running, scrape.waiting, scrape.preemptions),
            (7, 3, 11)
        );
        // One block of each engine is never used.
        assert_eq!(scrape.kv_capacity, Some(Tokens(1600 + 800)));
        assert_eq!(scrape.usage_lines.len(), 2);
    }

    #[test]
    fn the_old_names_are_read() {
        let scrape = Scrape::parse(
            "vllm:gpu_cache_usage_perc 0.5\nvllm:num_preemptions 2\n\
             vllm:gpu_prefix_cache_hits 30\nvllm:gpu_prefix_cache_queries_total 40\n",
        );
        assert_eq!(scrape.kv_usage, ratio(0.5));
        assert_eq!(
            (
                scrape.preemptions,
                scrape.prefix_hits,
                scrape.prefix_queries
            ),
            (2, 30, 40)
        );
    }

    #[test]
    fn a_server_with_both_names_is_not_counted_twice() {
        let scrape = Scrape::parse(
            "vllm:prefix_cache_hits_total 30\nvllm:gpu_prefix_cache_hits_total 30\n\
             vllm:kv_cache_usage_perc 0.5\nvllm:gpu_cache_usage_perc 0.5\n",
        );
        assert_eq!(scrape.prefix_hits, 30);
        assert_eq!(scrape.usage_lines.len(), 2);
    }

    #[test]
    fn percent_is_brought_to_a_fraction_and_nan_is_no_usage() {
        assert_eq!(
            Scrape::parse("vllm:kv_cache_usage_perc 81.9").kv_usage,
            ratio(81.9 / 100.0)
        );
        assert_eq!(
            Scrape::parse("vllm:kv_cache_usage_perc 1e-05").kv_usage,
            ratio(1e-5)
        );
        let scrape = Scrape::parse("vllm:kv_cache_usage_perc NaN");
        assert_eq!(scrape.kv_usage, None);
        assert_eq!(scrape.usage_lines[0].value, "NaN");
    }

    #[test]
    fn the_reference_router_sums_only_what_was_announced() {
        let engines = "vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\n";
        let running = |before: &str, after: &str| {
            Reading::parse(&format!("{before}{engines}{after}")).running
        };
        let gauge = "# TYPE vllm:num_requests_running gauge\n";
        assert_eq!(running(gauge, ""), Some(7.0));
        assert_eq!(
            running("# HELP vllm:num_requests_running x\n", ""),
            Some(7.0)
        );
        assert_eq!(running("", ""), Some(4.0));
        assert_eq!(running("# TYPE other gauge\n", gauge), Some(0.0));
        assert_eq!(
            running("# TYPE vllm:num_requests_running counter\n", ""),
            Some(0.0)
        );
        assert_eq!(
            running("", "# TYPE vllm:num_requests_running unheard\n"),
            Some(3.0)
        );
    }

    #[test]
    fn junk_is_passed_over() {
        let scrape = Scrape::parse(
            "<html>\nvllm:num_requests_running None\nvllm:num_requests_running -3\nother 1\n",
        );
        assert_eq!(scrape, Scrape::default());
    }

    #[test]
    fn the_sample_for_policies_has_the_scrapes_numbers() {
        let sample = Scrape::parse(REAL).sample(BackendId(3));
        assert_eq!((sample.backend, sample.preemptions), (BackendId(3), 5));
    }
}
