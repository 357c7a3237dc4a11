//! `/metrics`: the series of vLLM 0.32 that a gate or a sampler reads, under vLLM's names and labels.

use std::fmt::Write;

use super::EngineConfig;
use super::core::Stats;
use super::driver::Snapshot;

/// Renders `snapshot` in the Prometheus text format.
pub(super) fn render(config: &EngineConfig, snapshot: &Snapshot) -> String {
    let mut page = Page {
        model: config.models.first().map_or("", String::as_str),
        text: String::with_capacity(16 << 10),
    };
    page.gauges(&snapshot.stats);
    page.counters(&snapshot.stats);
    page.finished(snapshot);
    page.histograms(snapshot);
    page.cache_config(config);
    page.lag(snapshot);
    page.text
}

struct Page<'a> {
    model: &'a str,
    text: String,
}

impl Page<'_> {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn gauges(&mut self, stats: &Stats) {
        self.gauge(
            "num_requests_running",
            "Number of requests in model execution batches.",
            count(stats.running as u64),
        );
        self.gauge(
            "num_requests_waiting",
            "Number of requests waiting to be processed.",
            count(stats.waiting as u64),
        );
        self.gauge(
            "kv_cache_usage_perc",
            "KV-cache usage. 1 means 100 percent usage.",
            stats.kv_usage,
        );
    }

    fn counters(&mut self, stats: &Stats) {
        for (name, help, value) in [
            (
                "prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                stats.prefix_queries,
            ),
            (
                "prefix_cache_hits",
                "Prefix cache hits, in terms of number of cached tokens.",
                stats.prefix_hits,
            ),
            (
                "num_preemptions",
                "Cumulative number of preemption from the engine.",
                stats.preemptions,
            ),
            (
                "prompt_tokens",
                "Number of prefill tokens processed.",
                stats.prompt_tokens,
            ),
            (
                "generation_tokens",
                "Number of generation tokens processed.",
                stats.generation_tokens,
            ),
        ] {
            self.counter(name, help, value);
        }
    }

    fn histograms(&mut self, snapshot: &Snapshot) {
        let name = "vllm:time_to_first_token_seconds";
        self.head(
            name,
            "Histogram of time to first token in seconds.",
            "histogram",
        );
        snapshot.ttft.expose(name, self.model, &mut self.text);
        let name = "vllm:e2e_request_latency_seconds";
        self.head(
            name,
            "Histogram of e2e request latency in seconds.",
            "histogram",
        );
        snapshot.e2e.expose(name, self.model, &mut self.text);
    }

    fn lag(&mut self, snapshot: &Snapshot) {
        let name = "kvgate_engine_lag_seconds";
        let help = "Engine time by which the machine is behind the asked speed-up.";
        self.head(name, help, "gauge");
        let _ = writeln!(self.text, "{name} {:?}", snapshot.lag.as_secs_f64());
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let name = format!("vllm:{name}");
        self.head(&name, help, "gauge");
        self.sample(&name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("vllm:{name}_total");
        self.head(&name, help, "counter");
        self.sample(&name, "", count(value));
    }

    fn finished(&mut self, snapshot: &Snapshot) {
        let name = "vllm:request_success_total";
        self.head(name, "Count of successfully processed requests.", "counter");
        for (reason, requests) in [
            ("stop", snapshot.stopped),
            ("length", snapshot.cut),
            ("abort", 0),
            ("error", 0),
            ("repetition", 0),
        ] {
            let label = format!("finished_reason=\"{reason}\",");
            self.sample(name, &label, count(requests));
        }
    }

    /// One sample. Whole numbers are written with `.0`, as vLLM's client library does.
    fn sample(&mut self, name: &str, label: &str, value: f64) {
        let model = self.model;
        let _ = writeln!(
            self.text,
            "{name}{{engine=\"0\",{label}model_name=\"{model}\"}} {value:?}"
        );
    }

    fn cache_config(&mut self, config: &EngineConfig) {
        let core = &config.core;
        let name = "vllm:cache_config_info";
        self.head(name, "Information of the LLMEngine CacheConfig", "gauge");
        let tokens = u64::from(core.blocks) * u64::from(core.block_size);
        let concurrency = count(tokens) / f64::from(config.max_model_len);
        let _ = writeln!(
            self.text,
            "{name}{{block_size=\"{block_size}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",\
             engine=\"0\",gpu_memory_utilization=\"0.92\",kv_cache_max_concurrency=\"{concurrency}\",\
             kv_cache_size_tokens=\"{tokens}\",num_gpu_blocks=\"{blocks}\",\
             num_gpu_blocks_override=\"{blocks}\",prefix_caching_hash_algo=\"xxh3\",\
             sliding_window=\"None\"}} 1.0",
            block_size = core.block_size,
            blocks = core.blocks,
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
const fn count(value: u64) -> f64 {
    value as f64
}
