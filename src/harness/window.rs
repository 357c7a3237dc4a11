//! The active window: the part of a run in which the KV cache was under pressure. Pure.
//!
//! The reference experiment's rule: from the first to the last sample whose KV usage is strictly above the
//! threshold, whatever lies between; an event belongs to it when `start <= t <= end`, both in whole seconds
//! (fractions are cut off). A rate measured in a window favours a policy that finishes small programs first, so
//! the whole run's figures belong beside it: see [`super::measure`].

use serde::{Deserialize, Serialize};

/// Default threshold of KV usage, in percent.
pub const THRESHOLD_PERCENT: f64 = 70.0;

/// One sample of one KV usage series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvSample {
    /// Unix seconds.
    pub ts_s: i64,
    /// KV cache usage, in percent; NaN where the backend did not answer.
    pub usage_percent: f64,
}

/// A stretch of time, in whole Unix seconds; `start_s < end_s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The first sample above the threshold.
    pub start_s: i64,
    /// The last sample above the threshold.
    pub end_s: i64,
}

/// Why a run has no active window.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum NoWindow {
    /// Nobody sampled the KV cache.
    #[error("no KV samples")]
    NoSamples,
    /// Every sample is NaN.
    #[error("none of {samples} KV samples is a number")]
    NoNumbers {
        /// Samples there are.
        samples: usize,
    },
    /// The cache was never under pressure.
    #[error("never above {threshold_percent} % (highest {highest_percent:.0} %)")]
    NeverAbove {
        /// The threshold, in percent.
        threshold_percent: f64,
        /// The highest usage seen, in percent.
        highest_percent: f64,
    },
    /// All samples above the threshold fall in one second.
    #[error("one moment above {threshold_percent} %")]
    OneMoment {
        /// The threshold, in percent.
        threshold_percent: f64,
    },
}

impl Window {
    /// The active window of samples in any order, all series together.
    ///
    /// # Errors
    /// [`NoWindow`], which says why there is none.
    pub fn active<'a>(
        samples: impl IntoIterator<Item = &'a KvSample, IntoIter: Clone>,
        threshold_percent: f64,
    ) -> Result<Self, NoWindow> {
        let samples = samples.into_iter();
        if samples.clone().next().is_none() {
            return Err(NoWindow::NoSamples);
        }
        let above = || {
            let hot = samples.clone();
            let hot = hot.filter(|s| s.usage_percent > threshold_percent);
            hot.map(|s| s.ts_s)
        };
        let (Some(start_s), Some(end_s)) = (above().min(), above().max()) else {
            let usages = samples.clone().map(|s| s.usage_percent);
            let highest = usages.filter(|usage| !usage.is_nan()).reduce(f64::max);
            return Err(highest.map_or_else(
                || NoWindow::NoNumbers {
                    samples: samples.count(),
                },
                |highest_percent| NoWindow::NeverAbove {
                    threshold_percent,
                    highest_percent,
                },
            ));
        };
        if start_s == end_s {
            return Err(NoWindow::OneMoment { threshold_percent });
        }
        Ok(Self { start_s, end_s })
    }

    /// Whether something that happened at `at_s` (Unix seconds) belongs to it.
    pub fn contains(&self, at_s: f64) -> bool {
        (self.start_s..=self.end_s).contains(&whole_seconds(at_s))
    }

    /// Whether something at `at_s` (Unix seconds) came later.
    pub fn is_after(&self, at_s: f64) -> bool {
        whole_seconds(at_s) > self.end_s
    }

    /// Its length in seconds.
    #[expect(clippy::cast_precision_loss, reason = "differences of Unix seconds")]
    pub const fn seconds(&self) -> f64 {
        (self.end_s - self.start_s) as f64
    }
}

/// Unix seconds without their fraction.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
const fn whole_seconds(at_s: f64) -> i64 {
    at_s.floor() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(points: &[(i64, f64)]) -> Vec<KvSample> {
        let sample = |&(ts_s, usage_percent)| KvSample {
            ts_s,
            usage_percent,
        };
        points.iter().map(sample).collect()
    }

    #[test]
    fn it_runs_from_the_first_to_the_last_hot_sample_across_cool_ones() {
        let points = [
            (0, 10.0),
            (5, 71.0),
            (10, 20.0),
            (15, f64::NAN),
            (20, 90.0),
            (25, 70.0),
        ];
        let window = Window::active(&samples(&points), 70.0).unwrap();
        assert_eq!(
            (window.start_s, window.end_s),
            (5, 20),
            "70 is not above 70"
        );
        assert!(
            window.contains(5.0) && window.contains(20.9),
            "whole seconds, both ends"
        );
        assert!(!window.contains(4.999) && !window.contains(21.0));
    }

    #[test]
    fn a_missing_window_says_why() {
        let why = |points: &[(i64, f64)]| {
            Window::active(&samples(points), 70.0)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(why(&[]), "no KV samples");
        assert_eq!(
            why(&[(0, 41.2), (5, f64::NAN)]),
            "never above 70 % (highest 41 %)"
        );
        assert_eq!(
            why(&[(0, f64::NAN), (5, f64::NAN)]),
            "none of 2 KV samples is a number"
        );
        assert_eq!(why(&[(0, 80.0), (5, 1.0)]), "one moment above 70 %");
    }
}
