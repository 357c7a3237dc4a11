//! One figure of all policies as bars with their intervals, a cluster of bars for each concurrency.

use plotters::chart::ChartBuilder;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::Color;
use plotters::style::text_anchor::{HPos, VPos};

use super::chart::{Chart, DrawError, letters, top_of};
use super::svg::{Area, Drawing, Ink, Tone, UNITS};
use super::{Estimate, Interval, Known, Metric, Verdict};

/// Width in pixels: three beside each other on a wide screen, one on a phone.
const WIDTH: u32 = 350;
/// Height of a bar with its surroundings, and of the space between clusters.
const BAR_PX: u32 = 18;
const SPACE_PX: u32 = 10;

/// The bars of one concurrency.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster<'p> {
    pub(super) concurrency: u64,
    pub(super) metric: &'p Metric,
}

/// One bar, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Row<'p> {
    /// Its upper edge, in pixels from above.
    y: f64,
    /// What its cluster is called, beside the first bar of it.
    heading: Option<u64>,
    metric: &'p Metric,
    estimate: &'p Estimate,
}

/// Draws the clusters below each other; `tone` knows the colour of a policy.
pub(super) fn bars(clusters: &[Cluster<'_>], tone: impl Fn(&str) -> Tone) -> Known<Drawing> {
    let rows = rows(clusters);
    if !rows.iter().any(|row| usable(row.estimate).is_some()) {
        let why = rows
            .iter()
            .find_map(|row| row.estimate.value.as_ref().err());
        return Err(why.map_or_else(|| "no policy has it".to_owned(), Clone::clone));
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let bars = count(rows.len()).saturating_mul(BAR_PX);
    let height = bars.saturating_add(count(clusters.len()).saturating_mul(SPACE_PX));
    Drawing::new((WIDTH, height), |area| draw(area, height, &rows, &tone))
}

fn rows<'p>(clusters: &[Cluster<'p>]) -> Vec<Row<'p>> {
    let mut rows = Vec::new();
    let mut y = f64::from(SPACE_PX) / 2.0;
    for cluster in clusters {
        let mut heading = Some(cluster.concurrency);
        for estimate in &cluster.metric.estimates {
            let (metric, heading) = (cluster.metric, heading.take());
            rows.push(Row {
                y,
                heading,
                metric,
                estimate,
            });
            y += f64::from(BAR_PX);
        }
        y += f64::from(SPACE_PX);
    }
    rows
}

/// The figure of an estimate, if it can be drawn.
fn usable(estimate: &Estimate) -> Option<Interval> {
    let interval = estimate.value.as_ref().ok()?;
    let finite = |(low, high): &(f64, f64)| low.is_finite() && high.is_finite();
    let bounds = interval.bounds.filter(finite);
    interval.median.is_finite().then_some(Interval {
        bounds,
        ..*interval
    })
}

/// How far to the right a bar with its interval reaches.
fn end(interval: Interval) -> f64 {
    interval
        .bounds
        .map_or(0.0, |(_, high)| high)
        .max(interval.median)
        .max(0.0)
}

fn draw(
    area: &Area<'_>,
    height: u32,
    rows: &[Row<'_>],
    tone: &impl Fn(&str) -> Tone,
) -> Result<usize, DrawError> {
    let ends = rows.iter().filter_map(|row| usable(row.estimate)).map(end);
    // Pixels from above; the bars end where their figures still have room.
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(0)
        .y_label_area_size(52 * UNITS)
        .build_cartesian_2d(0.0..top_of(ends) * 1.35, f64::from(height)..0.0)?;
    let mut count = 0;
    for row in rows {
        let middle = row.y + 9.0;
        if let Some(concurrency) = row.heading {
            let text = format!("C={concurrency}\u{a0}\u{a0}");
            write(&mut chart, (0.0, middle), HPos::Right, Tone::Text, text)?;
        }
        if let Some(interval) = usable(row.estimate) {
            count += bar(&mut chart, row.y, interval, tone(&row.estimate.policy))?;
            let text = figure(row.metric, &row.estimate.policy, interval);
            write(
                &mut chart,
                (end(interval), middle),
                HPos::Left,
                Tone::Text,
                text,
            )?;
        } else {
            let text = "\u{a0}no figure: see the table".to_owned();
            write(&mut chart, (0.0, middle), HPos::Left, Tone::Muted, text)?;
        }
    }
    Ok(count)
}

/// The figure behind a bar; a star marks the winner.
fn figure(metric: &Metric, policy: &str, interval: Interval) -> String {
    let star = match &metric.verdict {
        Verdict::Winner { policy: winner, .. } if winner == policy => " ★",
        Verdict::Winner { .. } | Verdict::NoClearWinner { .. } | Verdict::NotJudged => "",
    };
    format!("\u{a0}\u{a0}{:.*}{star}", metric.decimals, interval.median)
}

/// A bar from 0 to the median, and a line over its interval.
fn bar(
    chart: &mut Chart<'_, '_>,
    y: f64,
    interval: Interval,
    tone: Tone,
) -> Result<usize, DrawError> {
    let corners = [(0.0, y + 2.0), (interval.median, y + 16.0)];
    chart.draw_series([Rectangle::new(corners, Ink::data(tone).filled())])?;
    let Some((low, high)) = interval.bounds else {
        return Ok(1);
    };
    let middle = y + 9.0;
    let whisker = PathElement::new([(low, middle), (high, middle)], Ink::data(Tone::Text));
    chart.draw_series([whisker])?;
    for end in [low, high] {
        let cap = PathElement::new(
            [(end, middle - 3.0), (end, middle + 3.0)],
            Ink::plain(Tone::Text),
        );
        chart.draw_series([cap])?;
    }
    Ok(3)
}

fn write(
    chart: &mut Chart<'_, '_>,
    place: (f64, f64),
    side: HPos,
    tone: Tone,
    text: String,
) -> Result<(), DrawError> {
    let style = letters(tone, side, VPos::Center);
    chart.draw_series([Text::new(text, place, style)])?;
    Ok(())
}
