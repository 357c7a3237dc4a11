//! Prometheus histograms with vLLM's buckets.

use std::fmt::Write;
use std::time::Duration;

/// Upper bounds, in seconds, of `vllm:time_to_first_token_seconds`.
pub(super) const TTFT_BOUNDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Upper bounds, in seconds, of `vllm:e2e_request_latency_seconds`.
pub(super) const E2E_BOUNDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// Durations counted by bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// Durations up to each bound but above the one before. As long as the longest list of bounds.
    counts: [u64; TTFT_BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: [0; TTFT_BOUNDS.len()],
            count: 0,
            sum: 0.0,
        }
    }

    pub(super) fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    /// Appends the samples of series `name` with the labels `engine` and `model`.
    pub(super) fn expose(&self, name: &str, model: &str, out: &mut String) {
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count;
            let _ = writeln!(
                out,
                "{name}_bucket{{engine=\"0\",le=\"{bound:?}\",model_name=\"{model}\"}} {below}.0"
            );
        }
        let _ = writeln!(
            out,
            "{name}_bucket{{engine=\"0\",le=\"+Inf\",model_name=\"{model}\"}} {count}.0\n\
             {name}_count{{engine=\"0\",model_name=\"{model}\"}} {count}.0\n\
             {name}_sum{{engine=\"0\",model_name=\"{model}\"}} {sum}",
            count = self.count,
            sum = self.sum
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_is_at_or_below_their_bound() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        for millis in [500, 700, 1000, 3000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut text = String::new();
        histogram.expose("t", "m", &mut text);
        assert_eq!(
            text,
            "t_bucket{engine=\"0\",le=\"0.5\",model_name=\"m\"} 1.0\n\
             t_bucket{engine=\"0\",le=\"1.0\",model_name=\"m\"} 3.0\n\
             t_bucket{engine=\"0\",le=\"+Inf\",model_name=\"m\"} 4.0\n\
             t_count{engine=\"0\",model_name=\"m\"} 4.0\n\
             t_sum{engine=\"0\",model_name=\"m\"} 5.2\n"
        );
    }
}
