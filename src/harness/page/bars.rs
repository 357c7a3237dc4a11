//! One figure of all policies as bars with their intervals, a cluster of bars for each concurrency.

use plotters::chart::ChartBuilder;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::Color;
use plotters::style::text_anchor::{HPos, VPos};

use super::chart::{Chart, DrawError, letters, top_of};
use super::svg::{Area, Drawing, Ink, Tone, UNITS};
use super::{Interval, Known, Metric, Verdict};

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

/// Draws the clusters below each other; `tone` knows the colour of a policy.
pub(super) fn bars(clusters: &[Cluster<'_>], tone: impl Fn(&str) -> Tone) -> Known<Drawing> {
    let known = |cluster: &Cluster<'_>| {
        cluster
            .metric
            .estimates
            .iter()
            .any(|estimate| estimate.value.is_ok())
    };
    if !clusters.iter().any(known) {
        let first = clusters
            .iter()
            .flat_map(|cluster| &cluster.metric.estimates)
            .next();
        let why = first.and_then(|estimate| estimate.value.as_ref().err());
        return Err(why.map_or_else(|| "no policy has it".to_owned(), Clone::clone));
    }
    let rows: usize = clusters
        .iter()
        .map(|cluster| cluster.metric.estimates.len())
        .sum();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let height =
        count(rows).saturating_mul(BAR_PX) + count(clusters.len()).saturating_mul(SPACE_PX);
    Drawing::new((WIDTH, height), |area| draw(area, height, clusters, &tone))
}

fn ends(interval: &Interval) -> impl Iterator<Item = f64> {
    let bounds = interval.bounds.into_iter().map(|(_, high)| high);
    bounds.chain([interval.median])
}

fn draw(
    area: &Area<'_>,
    height: u32,
    clusters: &[Cluster<'_>],
    tone: &impl Fn(&str) -> Tone,
) -> Result<usize, DrawError> {
    let estimates = || {
        clusters
            .iter()
            .flat_map(|cluster| &cluster.metric.estimates)
    };
    let top = top_of(
        estimates()
            .filter_map(|e| e.value.as_ref().ok())
            .flat_map(ends),
    );
    // Pixels from above; the bars end where their figures still have room.
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(0)
        .y_label_area_size(52 * UNITS)
        .build_cartesian_2d(0.0..top * 1.35, f64::from(height)..0.0)?;
    let mut count = 0;
    let mut y = f64::from(SPACE_PX) / 2.0;
    for cluster in clusters {
        write(
            &mut chart,
            (0.0, y + 9.0),
            HPos::Right,
            Tone::Text,
            &format!("C={}\u{a0}\u{a0}", cluster.concurrency),
        )?;
        for estimate in &cluster.metric.estimates {
            match &estimate.value {
                Ok(interval) => {
                    count += bar(&mut chart, y, interval, tone(&estimate.policy))?;
                    let (text, end) = (
                        figure(cluster.metric, &estimate.policy, interval),
                        ends(interval).fold(0.0, f64::max),
                    );
                    write(&mut chart, (end, y + 9.0), HPos::Left, Tone::Text, &text)?;
                }
                Err(_) => write(
                    &mut chart,
                    (0.0, y + 9.0),
                    HPos::Left,
                    Tone::Muted,
                    "\u{a0}no figure: see the table",
                )?,
            }
            y += f64::from(BAR_PX);
        }
        y += f64::from(SPACE_PX);
    }
    Ok(count)
}

/// The figure behind a bar; a star marks the winner.
fn figure(metric: &Metric, policy: &str, interval: &Interval) -> String {
    let star = match &metric.verdict {
        Verdict::Winner { policy: winner, .. } if winner == policy => " ★",
        Verdict::Winner { .. } | Verdict::NoClearWinner { .. } => "",
    };
    format!("\u{a0}\u{a0}{:.*}{star}", metric.decimals, interval.median)
}

/// A bar from 0 to the median, and a line over its interval.
fn bar(
    chart: &mut Chart<'_, '_>,
    y: f64,
    interval: &Interval,
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
    text: &str,
) -> Result<(), DrawError> {
    chart.draw_series([Text::new(
        text.to_owned(),
        place,
        letters(tone, side, VPos::Center),
    )])?;
    Ok(())
}
