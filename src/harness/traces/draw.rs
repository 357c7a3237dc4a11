//! Draws of gap lengths, from a seeded generator.

use rand::Rng;
use rand_distr::{Distribution, LogNormal};

/// Standard deviations between the median and the 90th percentile of a normal distribution.
const Z90: f64 = 1.281_551_565_5;

/// A lognormal distribution given by two of its percentiles, cut off at a maximum.
#[derive(Clone, Copy, Debug)]
pub struct Lognormal {
    distribution: LogNormal<f64>,
    max_s: f64,
}

impl Lognormal {
    /// The distribution with this median and 90th percentile; draws above `max_s` are set to it. Seconds.
    ///
    /// # Errors
    /// When the percentiles are not positive and ascending.
    pub fn fit(p50_s: f64, p90_s: f64, max_s: f64) -> anyhow::Result<Self> {
        anyhow::ensure!(
            0.0 < p50_s && p50_s <= p90_s,
            "percentiles {p50_s} and {p90_s} are not positive and ascending"
        );
        Ok(Self {
            distribution: LogNormal::new(p50_s.ln(), (p90_s / p50_s).ln() / Z90)?,
            max_s,
        })
    }

    /// One draw, in seconds.
    pub fn draw(&self, rng: &mut impl Rng) -> f64 {
        self.distribution.sample(rng).min(self.max_s)
    }
}

/// `seconds` to the millisecond, which keeps trace files short and readable.
pub fn to_millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}
