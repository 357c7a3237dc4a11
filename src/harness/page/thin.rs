//! Fewer points for the same picture: the extremes of every bucket stay, so that no peak is lost.

use super::Points;

/// At most two points for each of `buckets` equal parts of 0 to `end_s`, and one `NaN` for each gap.
pub(super) fn thinned(points: &[(f64, f64)], end_s: f64, buckets: usize) -> Points {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let bucket = |time: f64| bucket_of(time, end_s, buckets);
    let mut kept = Points::new();
    for part in points.chunk_by(|a, b| bucket(a.0) == bucket(b.0)) {
        kept.extend(extremes(part));
    }
    kept
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few hundred buckets; `as` saturates"
)]
fn bucket_of(time: f64, end_s: f64, buckets: usize) -> usize {
    ((time / end_s * buckets as f64) as usize).min(buckets.saturating_sub(1))
}

/// The lowest and the highest of some points in their order; a gap among them comes last.
fn extremes(part: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    let there = || part.iter().filter(|point| !point.1.is_nan());
    let low = there().min_by(|a, b| a.1.total_cmp(&b.1));
    let high = there().max_by(|a, b| a.1.total_cmp(&b.1));
    let gap = part.iter().find(|point| point.1.is_nan());
    let (first, second) = match (low, high) {
        (Some(low), Some(high)) if low.0 > high.0 => (Some(high), Some(low)),
        (low, high) => (low, high.filter(|high| low != Some(*high))),
    };
    first.into_iter().chain(second).chain(gap).copied()
}

/// The stretches between gaps.
pub(super) fn stretches(points: &[(f64, f64)]) -> impl Iterator<Item = &[(f64, f64)]> {
    let stretches = points.split(|(time, value)| time.is_nan() || value.is_nan());
    stretches.filter(|stretch| !stretch.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_series_stays_as_it_is() {
        let points = vec![(0.0, 1.0), (1.0, f64::INFINITY), (2.0, 3.0)];
        assert_eq!(thinned(&points, 2.0, 2), points);
    }

    #[test]
    fn a_long_series_keeps_its_peaks_and_its_order_in_a_bounded_number_of_points() {
        let mut points: Points = (0..100_000).map(|n| (f64::from(n), 5.0)).collect();
        points[70_001].1 = 99.0;
        points[30_001].1 = 1.0;
        let kept = thinned(&points, 100_000.0, 300);
        assert!(kept.len() <= 600, "{}", kept.len());
        assert!(kept.contains(&(70_001.0, 99.0)) && kept.contains(&(30_001.0, 1.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn a_gap_stays_a_gap() {
        let mut points: Points = (0..1000).map(|n| (f64::from(n), 5.0)).collect();
        for point in &mut points[300..500] {
            point.1 = f64::NAN;
        }
        let kept = thinned(&points, 1000.0, 10);
        assert_eq!(stretches(&kept).count(), 2, "{kept:?}");
    }
}
