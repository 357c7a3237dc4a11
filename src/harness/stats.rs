//! Percentiles, means and confidence intervals of small samples. Pure; every function says what it does with an empty sample.
//!
//! Percentiles interpolate linearly between the two nearest order statistics, at rank `q × (n − 1)`: the rule of
//! the reference experiment's analysis scripts, so that figures compare.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: u32 = 4_000;
/// Seed of the bootstrap: the same sample always has the same interval.
const SEED: u64 = 1;
/// Share of the medians that lie in the interval, fraction 0–1.
const CONFIDENCE: f64 = 0.95;
/// With fewer values than this a bootstrap finds nothing but their range, which says little of the median.
pub const ENOUGH_REPEATS: usize = 5;

/// What is reported of a sample of durations or counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Sample size.
    pub n: usize,
    /// Arithmetic mean, in the sample's unit.
    pub mean: f64,
    /// Median, in the sample's unit.
    pub p50: f64,
    /// 90th percentile, in the sample's unit.
    pub p90: f64,
    /// 95th percentile, in the sample's unit.
    pub p95: f64,
    /// 99th percentile, in the sample's unit.
    pub p99: f64,
    /// Largest value, in the sample's unit.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`, which are sorted in place; `None` for an empty sample. NaN sorts last.
    pub fn of(values: &mut [f64]) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            n: values.len(),
            mean: mean(values)?,
            p50: percentile(values, 0.50)?,
            p90: percentile(values, 0.90)?,
            p95: percentile(values, 0.95)?,
            p99: percentile(values, 0.99)?,
            max: *values.last()?,
        })
    }
}

/// The `q` quantile (fraction, 0–1) of an ascending sample, interpolated linearly; `None` for an empty sample.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "ranks of samples far below 2^52; `as` saturates"
)]
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    let (low, high) = (*sorted.get(below)?, *sorted.get(above)?);
    Some(low + (high - low) * rank.fract())
}

/// The arithmetic mean; `None` for an empty sample.
#[expect(clippy::cast_precision_loss, reason = "sample sizes far below 2^52")]
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Both ends of the 95 % confidence interval of the median, by the percentile bootstrap; below [`ENOUGH_REPEATS`]
/// values the least and the greatest; `None` below 2 values.
pub fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    if values.len() < ENOUGH_REPEATS {
        let least = values.iter().copied().reduce(f64::min)?;
        return Some((least, values.iter().copied().reduce(f64::max)?));
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut medians = Vec::new();
    let mut drawn = vec![0.0; values.len()];
    for _ in 0..RESAMPLES {
        for slot in &mut drawn {
            *slot = values[random.random_range(0..values.len())];
        }
        drawn.sort_by(f64::total_cmp);
        medians.extend(percentile(&drawn, 0.5));
    }
    medians.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some((
        percentile(&medians, tail)?,
        percentile(&medians, 1.0 - tail)?,
    ))
}

/// The median of values in any order; `None` for an empty sample.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_between_order_statistics() {
        let sorted = [10.0, 20.0, 30.0, 40.0];
        let at = |q| percentile(&sorted, q).unwrap();
        assert!((at(0.5) - 25.0).abs() < 1e-12);
        assert!((at(0.95) - 38.5).abs() < 1e-12);
        assert!((at(0.0) - 10.0).abs() < 1e-12 && (at(1.0) - 40.0).abs() < 1e-12);
    }

    #[test]
    fn an_empty_sample_has_no_figures_rather_than_zeros() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(mean(&[]), None);
        assert_eq!(Spread::of(&mut []), None);
    }

    #[test]
    fn a_spread_sorts_its_sample() {
        let spread = Spread::of(&mut [3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread.n, 3);
        assert!((spread.p50 - 2.0).abs() < 1e-12);
        assert!((spread.mean - 2.0).abs() < 1e-12);
        assert!((spread.max - 3.0).abs() < 1e-12);
    }

    #[test]
    fn few_repeats_have_their_range_as_interval_and_many_a_narrower_one() {
        assert_eq!(median_interval(&[1.0]), None);
        assert_eq!(median_interval(&[3.0, 1.0]), Some((1.0, 3.0)));
        assert_eq!(median_interval(&[3.0, 2.0, 1.0, 9.0]), Some((1.0, 9.0)));
        let many: Vec<f64> = (0..101).map(f64::from).collect();
        let (low, high) = median_interval(&many).unwrap();
        assert!(
            low > 25.0 && low < 50.0 && high > 50.0 && high < 75.0,
            "{low} {high}"
        );
        assert_eq!(
            median_interval(&many),
            Some((low, high)),
            "the same every time"
        );
        assert!((median(&[3.0, 1.0, 2.0]).unwrap() - 2.0).abs() < 1e-12);
    }
}
