//! What the programs of a run did when: one lane each, the first and last moments on the time axis of the run.
//!
//! Of many programs some are drawn: those that never ended, then others evenly through the order of their starts.
//! Moments are drawn in columns of pixels, each in the colour of what took most of it; columns are widened until
//! few enough bars are left.

use std::collections::BTreeMap;

use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::Color;
use plotters::style::text_anchor::{HPos, VPos};

use super::chart::{Chart, DrawError, Format, Pair, Timeline, end_s, letters, pair};
use super::svg::{Ink, Tone};
use super::{Known, Lane, Phase, Programs, Run};

/// Programs drawn at most.
pub(super) const MAX_LANES: usize = 32;
/// Bars drawn at most.
const MAX_BARS: usize = 2400;
/// Columns of the finest picture, for each pixel of its width.
const COLUMNS_PER_PX: f64 = 0.5;
/// Letters of a program's name beside its lane.
const NAME_LETTERS: usize = 17;
/// Height of a lane in pixels.
const LANE_PX: u32 = 14;

/// A stretch of columns in which a program did the same.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bar {
    phase: Phase,
    start_s: f64,
    end_s: f64,
}

/// The lanes that are drawn, in their order, with their numbers from 1.
pub(super) fn chosen(programs: &Programs) -> Vec<(usize, &Lane)> {
    let lanes = || programs.lanes.iter().enumerate();
    let stuck = lanes().filter(|(_, lane)| !lane.ended).map(|(at, _)| at);
    let mut picked: Vec<usize> = stuck.take(MAX_LANES).collect();
    let others: Vec<usize> = lanes()
        .filter(|(_, lane)| lane.ended)
        .map(|(at, _)| at)
        .collect();
    let room = (MAX_LANES - picked.len()).min(others.len());
    picked.extend((0..room).filter_map(|n| others.get(n * others.len() / room.max(1))));
    picked.sort_unstable();
    let lane = |at: usize| Some((at + 1, programs.lanes.get(at)?));
    picked.into_iter().filter_map(lane).collect()
}

/// Which programs are not drawn, in words; nothing when all are.
pub(super) fn left_out(programs: &Programs) -> Option<String> {
    let total = programs.total.max(programs.lanes.len());
    let drawn = chosen(programs);
    let stuck = drawn.iter().filter(|(_, lane)| !lane.ended).count();
    (drawn.len() < total).then(|| {
        format!(
            "{} of {total} programs are drawn: {stuck} that never ended, and others evenly through the order of \
             their starts; {} are left out",
            drawn.len(),
            total - drawn.len()
        )
    })
}

/// The lanes of a run's programs.
pub(super) fn gantt(run: &Run) -> Known<Pair> {
    let programs = run.programs.as_ref().map_err(Clone::clone)?;
    let lanes = chosen(programs);
    if lanes.is_empty() {
        return Err("no program was seen".to_owned());
    }
    pair(|format| {
        let count = u32::try_from(lanes.len()).unwrap_or(u32::MAX);
        let height = count.saturating_mul(LANE_PX).saturating_add(32);
        let timeline = Timeline::new(run, format, height, f64::from(count));
        let bars = bars(&lanes, end_s(run), f64::from(format.width) * COLUMNS_PER_PX);
        timeline.draw(0, &|_| String::new(), |chart| {
            for (row, (number, lane)) in lanes.iter().enumerate() {
                draw_label(chart, row, &label(lane, *number, format))?;
                if !lane.ended {
                    draw_stuck(&timeline, chart, row, lane)?;
                }
            }
            draw_bars(&timeline, chart, &bars)
        })
    })
}

/// The height of a lane's middle; the first row is at the top.
fn level(chart: &Chart<'_, '_>, row: usize) -> f64 {
    chart.y_range().end - 0.5 - f64::from(u32::try_from(row).unwrap_or(u32::MAX))
}

/// On a wide screen the name of a program as far as there is room, else its number in the table below.
fn label(lane: &Lane, number: usize, format: Format) -> String {
    if format.left < 100 {
        return number.to_string();
    }
    let letters: Vec<char> = lane.name.chars().collect();
    let part = |part: &[char]| part.iter().collect::<String>();
    if letters.len() <= NAME_LETTERS {
        return part(&letters);
    }
    let head = NAME_LETTERS / 2;
    let tail = letters.len() - (NAME_LETTERS - 1 - head);
    format!("{}…{}", part(&letters[..head]), part(&letters[tail..]))
}

/// Draws the name left of the axis; a hard space keeps it off.
fn draw_label(chart: &mut Chart<'_, '_>, row: usize, label: &str) -> Result<(), DrawError> {
    let style = letters(Tone::Muted, HPos::Right, VPos::Center);
    let place = (0.0, level(chart, row));
    chart.draw_series([Text::new(format!("{label}\u{a0}\u{a0}"), place, style)])?;
    Ok(())
}

/// A line from the last thing a program did to the end of the run.
fn draw_stuck(
    timeline: &Timeline<'_>,
    chart: &mut Chart<'_, '_>,
    row: usize,
    lane: &Lane,
) -> Result<(), DrawError> {
    let last = lane.phases.last().map_or(0.0, |(_, span)| span.end_s);
    let (y, end) = (level(chart, row), chart.x_range().end);
    let last = timeline.x(last).clamp(0.0, end);
    let ink = Ink::plain(Tone::Alert);
    chart.draw_series([PathElement::new([(last, y), (end, y)], ink)])?;
    Ok(())
}

/// Draws the bars of all lanes, one phase after the other, for equal neighbours are cheap.
fn draw_bars(
    timeline: &Timeline<'_>,
    chart: &mut Chart<'_, '_>,
    bars: &[Vec<Bar>],
) -> Result<usize, DrawError> {
    for phase in [Phase::Gap, Phase::Hold, Phase::Step] {
        let half = if phase == Phase::Gap { 0.12 } else { 0.36 };
        let mut boxes = Vec::new();
        for (row, lane) in bars.iter().enumerate() {
            let y = level(chart, row);
            for bar in lane.iter().filter(|bar| bar.phase == phase) {
                let (left, right) = (timeline.x(bar.start_s), timeline.x(bar.end_s));
                let corners = [(left, y + half), (right, y - half)];
                boxes.push(Rectangle::new(corners, ink(phase).filled()));
            }
        }
        chart.draw_series(boxes)?;
    }
    Ok(bars.iter().map(Vec::len).sum())
}

/// The ink of a phase.
pub(super) const fn ink(phase: Phase) -> Ink {
    Ink::data(match phase {
        Phase::Step => Tone::Step,
        Phase::Hold => Tone::Hold,
        Phase::Gap => Tone::Gap,
    })
}

/// The bars of every lane in columns as fine as the bound on their number allows.
fn bars(lanes: &[(usize, &Lane)], end_s: f64, mut columns: f64) -> Vec<Vec<Bar>> {
    loop {
        let width = end_s / columns;
        let bars: Vec<_> = lanes
            .iter()
            .map(|(_, lane)| in_columns(lane, end_s, width))
            .collect();
        if columns < 8.0 || bars.iter().map(Vec::len).sum::<usize>() <= MAX_BARS {
            return bars;
        }
        columns /= 2.0;
    }
}

/// The phases of a lane, each column of `width` seconds in the one that takes most of it.
fn in_columns(lane: &Lane, end_s: f64, width: f64) -> Vec<Bar> {
    let mut shares: BTreeMap<u64, [f64; 3]> = BTreeMap::new();
    for (phase, span) in &lane.phases {
        // What lies outside of the run is not drawn, and nothing is drawn without end.
        let (from, to) = (span.start_s.clamp(0.0, end_s), span.end_s.clamp(0.0, end_s));
        for column in column(from, width)..=column(to, width) {
            let (start, end) = (start_of(column, width), start_of(column + 1, width));
            let share = to.min(end) - from.max(start);
            shares.entry(column).or_default()[*phase as usize] += share.max(0.0);
        }
    }
    let mut bars: Vec<Bar> = Vec::new();
    for (column, shares) in shares {
        let Some(phase) = longest(shares) else {
            continue;
        };
        let (start_s, end_s) = (start_of(column, width), start_of(column + 1, width));
        match bars.last_mut() {
            Some(bar) if bar.phase == phase && bar.end_s >= start_s => bar.end_s = end_s,
            _ => bars.push(Bar {
                phase,
                start_s,
                end_s,
            }),
        }
    }
    bars
}

/// The phase of the greatest share; the order of [`Phase`] breaks ties. Nothing where nothing happened.
fn longest(shares: [f64; 3]) -> Option<Phase> {
    let phases = [Phase::Step, Phase::Hold, Phase::Gap]
        .into_iter()
        .zip(shares);
    let greatest = phases.rev().max_by(|a, b| a.1.total_cmp(&b.1))?;
    (greatest.1 > 0.0).then_some(greatest.0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "columns of a picture; `as` saturates, and a time before the run is its first column"
)]
fn column(seconds: f64, width: f64) -> u64 {
    (seconds / width) as u64
}

#[expect(clippy::cast_precision_loss, reason = "columns of a picture")]
fn start_of(column: u64, width: f64) -> f64 {
    column as f64 * width
}

#[cfg(test)]
mod tests {
    use super::super::Span;
    use super::*;

    fn lane(name: &str, ended: bool, phases: &[(Phase, f64, f64)]) -> Lane {
        let phase = |&(phase, start_s, end_s)| (phase, Span { start_s, end_s });
        Lane {
            name: name.to_owned(),
            ended,
            phases: phases.iter().map(phase).collect(),
        }
    }

    #[test]
    fn all_programs_are_drawn_while_there_is_room_and_nothing_is_said() {
        let lanes = vec![lane("a", true, &[]), lane("b", false, &[])];
        let programs = Programs { total: 2, lanes };
        assert_eq!(chosen(&programs).len(), 2);
        assert_eq!(left_out(&programs), None);
    }

    #[test]
    fn of_many_programs_the_stuck_ones_are_drawn_first_and_the_page_says_what_is_missing() {
        let ended = |n: usize| n != 250 && n != 251;
        let lanes = (0..278)
            .map(|n| lane(&n.to_string(), ended(n), &[]))
            .collect();
        let programs = Programs { total: 300, lanes };
        let drawn = chosen(&programs);
        assert_eq!(drawn.len(), MAX_LANES);
        assert!(drawn.iter().any(|(number, _)| *number == 251));
        assert!(drawn.is_sorted_by_key(|(number, _)| *number));
        let said = left_out(&programs).unwrap();
        assert!(
            said.starts_with("32 of 300 programs are drawn: 2 that never ended"),
            "{said}"
        );
    }

    #[test]
    fn a_column_has_the_phase_that_took_most_of_it() {
        let lane = lane(
            "a",
            true,
            &[
                (Phase::Hold, 0.0, 2.0),
                (Phase::Step, 2.0, 10.0),
                (Phase::Gap, 10.0, 30.0),
            ],
        );
        let bars = in_columns(&lane, 100.0, 10.0);
        let phases: Vec<_> = bars
            .iter()
            .map(|bar| (bar.phase, bar.start_s, bar.end_s))
            .collect();
        assert_eq!(phases, [(Phase::Step, 0.0, 10.0), (Phase::Gap, 10.0, 30.0)]);
    }

    #[test]
    fn however_many_steps_there_are_the_bars_are_bounded() {
        let busy: Vec<_> = (0..5000)
            .map(|n| {
                (
                    if n % 2 == 0 { Phase::Step } else { Phase::Gap },
                    f64::from(n),
                    f64::from(n + 1),
                )
            })
            .collect();
        let lane = lane("a", true, &busy);
        let lanes = vec![(1, &lane); MAX_LANES];
        let count: usize = bars(&lanes, 5000.0, 540.0).iter().map(Vec::len).sum();
        assert!((1..=MAX_BARS).contains(&count), "{count}");
    }

    #[test]
    fn a_long_name_keeps_both_ends() {
        let lane = lane(
            "telecom:[mobile_data]data_mode_off[PERSONA:None]",
            true,
            &[],
        );
        let shown = label(&lane, 1, super::super::chart::FORMATS[0]);
        assert_eq!(shown, "telecom:…NA:None]");
    }
}
