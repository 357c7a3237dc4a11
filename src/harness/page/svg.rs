//! Where plotters draws to: SVG whose shapes carry classes instead of colours, so that one drawing serves the dark
//! scheme, the light one and paper.
//!
//! Neighbouring shapes of one class become one path: a thousand bars cost fifteen bytes each.

use std::convert::Infallible;
use std::fmt::Write as _;

use maud::{Markup, PreEscaped, Render, html};
use plotters::coord::Shift;
use plotters::prelude::{Color, DrawingArea, IntoDrawingArea};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};

/// Units per pixel: plotters counts in whole units, and a pixel is too coarse for a line.
pub(super) const UNITS: u32 = 4;
/// Height of letters in pixels; `style.css` says the same.
pub(super) const LETTER_PX: u32 = 11;
/// How many policies have a colour of their own; further ones begin again.
pub(super) const POLICIES: usize = 8;
/// How many ways there are to break a line up.
pub(super) const DASHES: usize = 4;

/// What a shape stands for. Its colour is in `style.css`, under the class of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Text,
    Muted,
    Grid,
    Axis,
    Window,
    Threshold,
    Alert,
    Step,
    Hold,
    Gap,
    Waiting,
    Policy(usize),
}

/// The tones that are no policy, in the order of their codes.
const TONES: [(Tone, &str); 11] = [
    (Tone::Text, "text"),
    (Tone::Muted, "muted"),
    (Tone::Grid, "grid"),
    (Tone::Axis, "axis"),
    (Tone::Window, "window"),
    (Tone::Threshold, "threshold"),
    (Tone::Alert, "alert"),
    (Tone::Step, "step"),
    (Tone::Hold, "hold"),
    (Tone::Gap, "gap"),
    (Tone::Waiting, "waiting"),
];

/// A tone, and how it is laid on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ink {
    pub(super) tone: Tone,
    /// Which dashes, below [`DASHES`]; 0 is an unbroken line.
    pub(super) dash: usize,
    /// Whether what it draws are data, which are counted, or surroundings.
    pub(super) data: bool,
}

impl Ink {
    /// For axes, words and backgrounds.
    pub(super) const fn plain(tone: Tone) -> Self {
        Self {
            tone,
            dash: 0,
            data: false,
        }
    }

    /// For what is counted in `data-points`.
    pub(super) const fn data(tone: Tone) -> Self {
        Self {
            tone,
            dash: 0,
            data: true,
        }
    }

    pub(super) const fn dashed(self, dash: usize) -> Self {
        Self {
            dash: dash % DASHES,
            ..self
        }
    }

    /// Classes of a shape in this ink.
    pub(super) fn classes(self) -> String {
        class_names(self.to_backend_color().rgb)
    }
}

/// Plotters hands colours through as three numbers: here they are tone, dashes, and whether it is data.
impl Color for Ink {
    fn to_backend_color(&self) -> BackendColor {
        let tone = if let Tone::Policy(index) = self.tone {
            TONES.len() + index % POLICIES
        } else {
            let mine = |(tone, _): &(Tone, &str)| *tone == self.tone;
            TONES.iter().position(mine).unwrap_or_default()
        };
        let byte = |number: usize| u8::try_from(number).unwrap_or(0);
        BackendColor {
            alpha: 1.0,
            rgb: (byte(tone), byte(self.dash), u8::from(self.data)),
        }
    }
}

fn class_names((tone, dash, data): (u8, u8, u8)) -> String {
    let index = usize::from(tone);
    let mut names = match TONES.get(index) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("policy{}", index - TONES.len()),
    };
    if dash > 0 {
        let _ = write!(names, " dash{dash}");
    }
    if data > 0 {
        names.push_str(" data");
    }
    names
}

/// A drawing in the making.
#[derive(Debug)]
pub(super) struct Canvas {
    width: u32,
    height: u32,
    body: String,
    /// Classes and path of the shape that is still open for more of its kind.
    open: Option<(String, String)>,
}

/// A finished drawing.
#[derive(Clone, Debug)]
pub(super) struct Drawing {
    /// Size in pixels.
    pub(super) size: (u32, u32),
    /// The elements inside of `<svg>`.
    pub(super) body: String,
    /// Vertices of its lines and number of its bars.
    pub(super) points: usize,
}

/// The surface that plotters draws on.
pub(super) type Area<'a> = DrawingArea<Pen<'a>, Shift>;

/// Plotters' access to a canvas.
#[derive(Debug)]
pub(super) struct Pen<'a>(&'a mut Canvas);

impl Drawing {
    /// Draws with plotters on a surface of this many pixels; `draw` says how many data points it drew.
    pub(super) fn new<E: std::error::Error>(
        (width, height): (u32, u32),
        draw: impl FnOnce(&Area<'_>) -> Result<usize, E>,
    ) -> Result<Self, String> {
        let mut canvas = Canvas {
            width: width * UNITS,
            height: height * UNITS,
            body: String::new(),
            open: None,
        };
        let points = draw(&Pen(&mut canvas).into_drawing_area())
            .map_err(|error| format!("it cannot be drawn: {error}"))?;
        canvas.close();
        Ok(Self {
            size: (width, height),
            body: canvas.body,
            points,
        })
    }

    /// The `<svg>` element, shown where `class` is.
    pub(super) fn svg(&self, class: &str, label: &str) -> Markup {
        let (width, height) = self.size;
        let view = format!("0 0 {} {}", width * UNITS, height * UNITS);
        html! {
            svg class=(class) viewBox=(view) width=(width) height=(height) role="img" aria-label=(label)
                data-points=(self.points) { (PreEscaped(&self.body)) }
        }
    }
}

impl Canvas {
    /// Adds to the open path, or closes it and begins another of these classes.
    fn path(&mut self, classes: String, add: impl FnOnce(&mut String)) {
        if self.open.as_ref().is_none_or(|(open, _)| *open != classes) {
            self.close();
            self.open = Some((classes, String::new()));
        }
        if let Some((_, path)) = &mut self.open {
            add(path);
        }
    }

    fn close(&mut self) {
        if let Some((classes, path)) = self.open.take() {
            let _ = write!(self.body, r#"<path class="{classes}" d="{path}"/>"#);
        }
    }
}

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

fn classes_of(kind: &str, style: &impl BackendStyle) -> String {
    format!("{kind} {}", class_names(style.color().rgb))
}

impl DrawingBackend for Pen<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.0.width, self.0.height)
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Drawn {
        self.draw_rect(at, at, &color, true)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Drawn {
        self.draw_path([from, to], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        points: I,
        style: &S,
    ) -> Drawn {
        // Plotters draws lines of its mesh that were asked away in a colour that is not seen.
        if style.color().alpha == 0.0 {
            return Ok(());
        }
        self.0.path(classes_of("line", style), |path| {
            let mut count = 0;
            for (x, y) in points {
                let _ = write!(path, "{}{x},{y}", if count == 0 { "M" } else { " " });
                count += 1;
            }
            // A line of no length is a dot, for its ends are round.
            if count == 1 {
                path.push_str("h0");
            }
        });
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        (left, top): BackendCoord,
        (right, bottom): BackendCoord,
        style: &S,
        _fill: bool,
    ) -> Drawn {
        let (width, height) = (right - left, bottom - top);
        self.0.path(classes_of("area", style), |path| {
            let _ = write!(path, "M{left},{top}h{width}v{height}h-{width}z");
        });
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Drawn {
        self.0.path(classes_of("area", style), |path| {
            for (at, (x, y)) in corners.into_iter().enumerate() {
                let _ = write!(path, "{}{x},{y}", if at == 0 { "M" } else { " " });
            }
            path.push('z');
        });
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> Drawn {
        self.0.close();
        let classes = class_names(style.color().rgb);
        let side = match style.anchor().h_pos {
            HPos::Left => "",
            HPos::Center => " middle",
            HPos::Right => " end",
        };
        let drop = match style.anchor().v_pos {
            VPos::Top => ".8em",
            VPos::Center => ".35em",
            VPos::Bottom => "-.2em",
        };
        let (classes, text) = (format!("{classes}{side}"), text.render());
        let _ = write!(
            self.0.body,
            r#"<text class="{classes}" x="{x}" y="{y}" dy="{drop}">{}</text>"#,
            text.into_string()
        );
        Ok(())
    }

    /// A letter of a sans-serif face is about half as wide as it is high.
    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let letters = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let height = LETTER_PX * UNITS;
        Ok((letters.saturating_mul(height * 11 / 20), height))
    }
}
