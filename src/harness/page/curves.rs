//! Latency distributions: for every kind of duration, the share of it that took at most so long, on a logarithmic
//! axis; one curve per run, in the colour of its policy.

use plotters::chart::ChartBuilder;
use plotters::element::PathElement;
use plotters::prelude::{IntoLogRange, TRANSPARENT};
use plotters::style::text_anchor::{HPos, VPos};

use super::Known;
use super::chart::{DrawError, letters};
use super::data::Distribution;
use super::svg::{Area, Drawing, Ink, Tone, UNITS};

/// Size in pixels: three beside each other on a wide screen, one on a phone.
const SIZE: (u32, u32) = (350, 180);
/// Powers of ten on the axis, at most; shorter durations stand at its beginning.
const DECADES: i32 = 5;

/// The axis is this much longer at both ends, so that rounding leaves its first and last label on it.
const EDGE: f64 = 0.9999;

/// Draws one curve for each distribution.
pub(super) fn curves(runs: &[(&Distribution, Ink)]) -> Known<Drawing> {
    let all = || {
        runs.iter()
            .flat_map(|(of, _)| of.quantiles.iter().map(|quantile| quantile.1))
    };
    let usable = || all().filter(|seconds| seconds.is_finite() && *seconds > 0.0);
    let (low, high) = axis(usable()).ok_or("no duration is above 0 s")?;
    Drawing::new(SIZE, |area| draw(area, runs, low, high))
}

/// Whole powers of ten around these durations.
fn axis(seconds: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let highest = seconds.clone().max_by(f64::total_cmp)?;
    let lowest = seconds.min_by(f64::total_cmp)?;
    let high = highest.log10().ceil();
    let low = lowest.log10().floor().min(high - 1.0);
    Some((
        10_f64.powf(low.max(high - f64::from(DECADES))),
        10_f64.powf(high),
    ))
}

fn draw(
    area: &Area<'_>,
    runs: &[(&Distribution, Ink)],
    low: f64,
    high: f64,
) -> Result<usize, DrawError> {
    let mut chart = ChartBuilder::on(area)
        .margin_top(8 * UNITS)
        .margin_right(26 * UNITS)
        .x_label_area_size(24 * UNITS)
        .y_label_area_size(44 * UNITS)
        .build_cartesian_2d((low * EDGE..high / EDGE).log_scale(), 0.0..100.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(Ink::plain(Tone::Grid))
        .axis_style(Ink::plain(Tone::Axis))
        .label_style(letters(Tone::Muted, HPos::Center, VPos::Center))
        .x_labels(usize::try_from(DECADES).unwrap_or_default() + 1)
        .y_labels(5)
        .x_label_formatter(&|seconds| duration(*seconds))
        .y_label_formatter(&|share| format!("{share} %"))
        .set_all_tick_mark_size(4 * UNITS)
        .draw()?;
    let mut count = 0;
    for (distribution, ink) in runs {
        let place = |(share, seconds): &(f64, f64)| (seconds.clamp(low, high), *share);
        let path: Vec<_> = distribution
            .quantiles
            .iter()
            .filter(|q| !q.1.is_nan())
            .map(place)
            .collect();
        count += path.len();
        chart.draw_series([PathElement::new(path, *ink)])?;
    }
    Ok(count)
}

/// A power of ten of seconds, as short as it is exact.
fn duration(seconds: f64) -> String {
    if seconds < 0.000_999 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 0.999 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.0} s")
    }
}
