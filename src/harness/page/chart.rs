//! Plots over the seconds of a run: KV usage, load, step rate. All of a run have the same time axis and the same
//! margins, so that they read as one.

use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::element::{PathElement, Rectangle};
use plotters::prelude::{Color, DrawingArea, IntoFont, TRANSPARENT, TextStyle};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::svg::{DASHES, Drawing, Ink, LETTER_PX, Pen, Tone, UNITS};
use super::thin::{stretches, thinned};
use super::{Bins, Known, Line, Points, Run, Span};

/// What plotters says when it cannot draw; the surface itself never fails.
pub(super) type DrawError = DrawingAreaErrorKind<std::convert::Infallible>;

/// A chart of two linear axes.
pub(super) type Chart<'a, 'b> =
    ChartContext<'a, Pen<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A plot once for a wide screen and paper, once for a phone.
pub(super) type Pair = [Drawing; 2];

/// How wide a plot is and what is left of its axis, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) width: u32,
    pub(super) left: u32,
    /// Labels of the time axis.
    pub(super) x_labels: usize,
    /// Buckets that a line is thinned to.
    pub(super) buckets: usize,
}

/// Beside each other on a wide screen, in the order of [`Pair`].
pub(super) const FORMATS: [Format; 2] = [
    Format {
        width: 1080,
        left: 132,
        x_labels: 10,
        buckets: 360,
    },
    Format {
        width: 358,
        left: 44,
        x_labels: 4,
        buckets: 120,
    },
];

/// Lines of a plot that are drawn as finely as its format allows.
const FULL_LINES: usize = 4;
/// Buckets of a line at least, however many there are.
const MIN_BUCKETS: usize = 40;

const TOP_PX: u32 = 8;
const RIGHT_PX: u32 = 12;
const BOTTOM_PX: u32 = 24;

/// Seconds in larger units where there are many.
#[derive(Clone, Copy, Debug)]
struct Clock {
    unit: &'static str,
    seconds: f64,
}

impl Clock {
    fn of(length_s: f64) -> Self {
        let (unit, seconds) = match length_s {
            long if long > 3.0 * 3600.0 => ("h", 3600.0),
            some if some > 300.0 => ("min", 60.0),
            _ => ("s", 1.0),
        };
        Self { unit, seconds }
    }
}

/// The frame that all plots of a run share.
#[derive(Debug)]
pub(super) struct Timeline<'r> {
    run: &'r Run,
    clock: Clock,
    format: Format,
    height: u32,
    /// The top of the other axis.
    top: f64,
}

/// Text in the letters of the page.
pub(super) fn letters(tone: Tone, h_pos: HPos, v_pos: VPos) -> TextStyle<'static> {
    TextStyle {
        font: ("sans-serif", LETTER_PX * UNITS).into_font(),
        color: Ink::plain(tone).to_backend_color(),
        pos: Pos { h_pos, v_pos },
    }
}

/// A label of an axis without the remains of binary fractions.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "plotters asks for labels so"
)]
fn number(value: &f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0" } else { text }.to_owned()
}

/// The end of a run's time axis, in seconds.
pub(super) fn end_s(run: &Run) -> f64 {
    if run.length_s.is_finite() {
        run.length_s.max(1.0)
    } else {
        1.0
    }
}

impl<'r> Timeline<'r> {
    pub(super) fn new(run: &'r Run, format: Format, height: u32, top: f64) -> Self {
        Self {
            run,
            clock: Clock::of(run.length_s),
            format,
            height,
            top,
        }
    }

    /// Seconds to the units of the axis.
    pub(super) fn x(&self, seconds: f64) -> f64 {
        seconds / self.clock.seconds
    }

    /// Draws the axes and the active window, then what `draw` adds.
    pub(super) fn draw(
        &self,
        y_labels: usize,
        y_text: &dyn Fn(&f64) -> String,
        draw: impl FnOnce(&mut Chart<'_, '_>) -> Result<usize, DrawError>,
    ) -> Known<Drawing> {
        Drawing::new((self.format.width, self.height), |area| {
            let mut chart = self.chart(area)?;
            self.window(&mut chart)?;
            self.mesh(&mut chart, y_labels, y_text)?;
            draw(&mut chart)
        })
    }

    fn chart<'a, 'b>(
        &self,
        area: &'a DrawingArea<Pen<'b>, Shift>,
    ) -> Result<Chart<'a, 'b>, DrawError> {
        ChartBuilder::on(area)
            .margin_top(TOP_PX * UNITS)
            .margin_right(RIGHT_PX * UNITS)
            .x_label_area_size(BOTTOM_PX * UNITS)
            .y_label_area_size(self.format.left * UNITS)
            .build_cartesian_2d(0.0..self.x(end_s(self.run)), 0.0..self.top)
    }

    fn window(&self, chart: &mut Chart<'_, '_>) -> Result<(), DrawError> {
        if let Ok(Span { start_s, end_s }) = self.run.window {
            let x = |seconds: f64| self.x(seconds.clamp(0.0, self::end_s(self.run)));
            let corners = [(x(start_s), self.top), (x(end_s), 0.0)];
            let shade = Ink::plain(Tone::Window).filled();
            chart.draw_series([Rectangle::new(corners, shade)])?;
        }
        Ok(())
    }

    fn mesh(
        &self,
        chart: &mut Chart<'_, '_>,
        y_labels: usize,
        y_text: &dyn Fn(&f64) -> String,
    ) -> Result<(), DrawError> {
        let unit = self.clock.unit;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::plain(Tone::Grid))
            .axis_style(Ink::plain(Tone::Axis))
            .label_style(letters(Tone::Muted, HPos::Center, VPos::Center))
            .x_labels(self.format.x_labels)
            .y_labels(y_labels)
            .x_label_formatter(&|x| format!("{} {unit}", number(x)))
            .y_label_formatter(y_text)
            .set_all_tick_mark_size(4 * UNITS)
            .draw()
    }

    /// Draws one of so many lines, thinned; says of how many points.
    fn line(
        &self,
        chart: &mut Chart<'_, '_>,
        points: &[(f64, f64)],
        ink: Ink,
        lines: usize,
    ) -> Result<usize, DrawError> {
        let end = end_s(self.run);
        let kept = thinned(points, end, buckets(self.format, lines));
        let place =
            |(time, value): &(f64, f64)| (self.x(time.clamp(0.0, end)), value.clamp(0.0, self.top));
        let paths: Vec<Vec<_>> = stretches(&kept)
            .map(|stretch| stretch.iter().map(place).collect())
            .collect();
        let count = paths.iter().map(Vec::len).sum();
        chart.draw_series(paths.into_iter().map(|path| PathElement::new(path, ink)))?;
        Ok(count)
    }
}

/// Many lines in one plot are thinned more, so that a plot of many backends is not many times as large.
fn buckets(format: Format, lines: usize) -> usize {
    (format.buckets * FULL_LINES / lines.max(FULL_LINES)).max(MIN_BUCKETS)
}

/// Draws in both formats.
pub(super) fn pair(draw: impl Fn(Format) -> Known<Drawing>) -> Known<Pair> {
    let [wide, narrow] = FORMATS.map(draw);
    Ok([wide?, narrow?])
}

/// KV usage of every backend, with the threshold and the active window.
pub(super) fn kv(run: &Run, policy: usize) -> Known<Pair> {
    let lines = run.kv.as_ref().map_err(Clone::clone)?;
    drawable(lines.iter().map(|line| &line.points))?;
    pair(|format| {
        let timeline = Timeline::new(run, format, 170, 100.0);
        timeline.draw(5, &|percent| format!("{percent} %"), |chart| {
            threshold(&timeline, chart)?;
            let mut count = 0;
            for (at, line) in lines.iter().enumerate() {
                count +=
                    timeline.line(chart, &line.points, backend_ink(policy, at), lines.len())?;
            }
            Ok(count)
        })
    })
}

/// All backends of a run have the colour of its policy; dashes tell them apart.
pub(super) fn backend_ink(policy: usize, backend: usize) -> Ink {
    Ink::data(Tone::Policy(policy)).dashed(backend % DASHES)
}

fn threshold(timeline: &Timeline<'_>, chart: &mut Chart<'_, '_>) -> Result<(), DrawError> {
    let (level, end) = (timeline.run.threshold_percent, end_s(timeline.run));
    let ends = vec![(0.0, level), (timeline.x(end), level)];
    let ink = Ink::plain(Tone::Threshold).dashed(1);
    chart.draw_series([PathElement::new(ends, ink)])?;
    Ok(())
}

/// Requests that run, wait and are held.
pub(super) fn load(run: &Run) -> Known<Pair> {
    let series = load_series(run);
    let there: Vec<(&Points, Ink)> = series
        .iter()
        .filter_map(|(_, points, ink)| Some((points.as_ref().ok()?, *ink)))
        .collect();
    if there.is_empty() {
        let whys = series
            .iter()
            .filter_map(|(_, points, _)| points.as_ref().err());
        let mut whys: Vec<&str> = whys.map(String::as_str).collect();
        whys.dedup();
        return Err(whys.join("; "));
    }
    drawable(there.iter().map(|(points, _)| *points))?;
    let top = top_of(
        there
            .iter()
            .flat_map(|(points, _)| points.iter().map(|point| point.1)),
    );
    pair(|format| {
        let timeline = Timeline::new(run, format, 150, top);
        timeline.draw(4, &number, |chart| {
            let mut count = 0;
            for (points, ink) in &there {
                count += timeline.line(chart, points, *ink, there.len())?;
            }
            Ok(count)
        })
    })
}

/// The three series of the load with their names and inks.
pub(super) fn load_series(run: &Run) -> [(&'static str, &Known<Points>, Ink); 3] {
    [
        ("running", &run.running, Ink::data(Tone::Step)),
        ("waiting", &run.waiting, Ink::data(Tone::Waiting)),
        ("held by the gate", &run.held, Ink::data(Tone::Hold)),
    ]
}

/// Steps finished per second, as an outline of bins.
pub(super) fn step_rate(run: &Run, policy: usize) -> Known<Pair> {
    let bins = run.steps_per_s.as_ref().map_err(Clone::clone)?;
    let points = outline(bins);
    drawable([&points])?;
    let top = top_of(points.iter().map(|point| point.1));
    pair(|format| {
        let timeline = Timeline::new(run, format, 130, top);
        let ink = Ink::data(Tone::Policy(policy));
        timeline.draw(4, &number, |chart| timeline.line(chart, &points, ink, 1))
    })
}

/// A point at both ends of every bin.
fn outline(bins: &Bins) -> Points {
    let mut points = Points::with_capacity(2 * bins.values.len());
    let mut start = 0.0;
    for value in &bins.values {
        points.extend([(start, *value), (start + bins.width_s, *value)]);
        start += bins.width_s;
    }
    points
}

/// Whether there is anything to draw.
fn drawable<'p>(series: impl IntoIterator<Item = &'p Points>) -> Known<()> {
    let any = |points: &Points| stretches(points).next().is_some();
    if series.into_iter().any(any) {
        Ok(())
    } else {
        Err("there are no samples".to_owned())
    }
}

/// A little above the highest value.
pub(super) fn top_of(values: impl Iterator<Item = f64>) -> f64 {
    let highest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if highest > 0.0 { highest * 1.08 } else { 1.0 }
}

/// Lines of the KV plot, for its legend.
pub(super) fn backends(run: &Run) -> &[Line] {
    run.kv.as_deref().unwrap_or_default()
}
