//! What sections of the page are put together from: figures, legends, tables, lists of facts.

use maud::{Markup, html};

use super::chart::Pair;
use super::svg::{Drawing, Ink, Tone};
use super::{Column, Known, Page, Table};

/// The policies of a page in the order in which they first appear; the order gives each its colour everywhere.
#[derive(Debug)]
pub(super) struct Policies<'p>(Vec<&'p str>);

impl<'p> Policies<'p> {
    pub(super) fn of(page: &'p Page) -> Self {
        let metrics = page.groups.iter().flat_map(|group| &group.metrics);
        let compared = metrics.flat_map(|metric| &metric.estimates);
        let compared = compared.map(|estimate| estimate.policy.as_str());
        let mut names: Vec<&str> = Vec::new();
        for name in compared.chain(page.runs.iter().map(|run| run.policy.as_str())) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Self(names)
    }

    /// Its place among the policies.
    pub(super) fn index(&self, policy: &str) -> usize {
        self.0.iter().position(|name| *name == policy).unwrap_or(0)
    }

    pub(super) fn tone(&self, policy: &str) -> Tone {
        Tone::Policy(self.index(policy))
    }

    /// Name and colour of each.
    pub(super) fn keys(&self) -> Vec<Key<'p>> {
        let key = |(at, name): (usize, &&'p str)| Key::area(name, Ink::plain(Tone::Policy(at)));
        self.0.iter().enumerate().map(key).collect()
    }
}

/// An entry of a legend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'n> {
    name: &'n str,
    ink: Ink,
    line: bool,
}

impl<'n> Key<'n> {
    pub(super) const fn line(name: &'n str, ink: Ink) -> Self {
        Self {
            name,
            ink,
            line: true,
        }
    }

    pub(super) const fn area(name: &'n str, ink: Ink) -> Self {
        Self {
            name,
            ink,
            line: false,
        }
    }
}

/// Names with the colours and dashes that stand for them.
pub(super) fn legend(keys: &[Key<'_>]) -> Markup {
    html! {
        @if !keys.is_empty() {
            span.legend { @for key in keys { span { (swatch(*key)) (key.name) } } }
        }
    }
}

pub(super) fn swatch(key: Key<'_>) -> Markup {
    let ink = Ink {
        data: false,
        ..key.ink
    };
    let (class, path) = if key.line {
        (format!("line {}", ink.classes()), "M4,24 76,24")
    } else {
        (format!("area {}", ink.classes()), "M8,4h40v40h-40z")
    };
    html! {
        svg.swatch viewBox=(if key.line { "0 0 80 48" } else { "0 0 56 48" }) aria-hidden="true" {
            path class=(class) d=(path) {}
        }
    }
}

/// What stands around a plot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caption<'c> {
    /// What kind of plot it is, for `data-plot`.
    pub(super) plot: &'static str,
    pub(super) title: &'c str,
    /// What it shows, for those who do not see it.
    pub(super) label: &'c str,
    pub(super) keys: &'c [Key<'c>],
}

/// A plot that is drawn for wide screens and for narrow ones.
pub(super) fn figure(caption: Caption<'_>, drawn: Known<Pair>) -> Markup {
    framed(
        caption,
        drawn.map(|[wide, narrow]| {
            html! {
                (wide.svg("wide", caption.label)) (narrow.svg("narrow", caption.label))
            }
        }),
    )
}

/// A plot that is small everywhere.
pub(super) fn small_figure(caption: Caption<'_>, drawn: Known<Drawing>) -> Markup {
    framed(
        caption,
        drawn.map(|drawing| drawing.svg("small", caption.label)),
    )
}

fn framed(caption: Caption<'_>, drawn: Known<Markup>) -> Markup {
    let missing = drawn.is_err();
    html! {
        figure data-plot=(caption.plot) data-missing[missing] {
            figcaption { b { (caption.title) } @if !missing { " " (legend(caption.keys)) } }
            @match drawn {
                Ok(svg) => (svg),
                Err(why) => p.missing { "Not drawn: " (why) "." },
            }
        }
    }
}

/// Names and values.
pub(super) fn facts(facts: &[(String, String)]) -> Markup {
    html! {
        @if !facts.is_empty() {
            dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } }
        }
    }
}

/// A table in a box of its own, which scrolls where the page must not.
pub(super) fn table(table: &Table) -> Markup {
    html! {
        div.block {
            h4 { (table.title) }
            @if !table.note.is_empty() { p.note { (table.note) } }
            (cells(table))
        }
    }
}

/// The table without its heading.
pub(super) fn cells(table: &Table) -> Markup {
    match &table.rows {
        Err(why) => html! { p.missing { "None: " (why) "." } },
        Ok(rows) if rows.is_empty() => html! { p.missing { "None." } },
        Ok(rows) => html! {
            div.scroll tabindex="0" role="region" aria-label=(table.title) {
                table {
                    thead { tr { @for column in &table.columns { th scope="col" class=[side(column)] { (column.name) } } } }
                    tbody { @for row in rows { tr {
                        @for (cell, column) in row.iter().zip(&table.columns) { td class=[side(column)] { (cell) } }
                    } } }
                }
            }
            @if table.left_out > 0 { p.note { (table.left_out) " more are not listed." } }
        },
    }
}

fn side(column: &Column) -> Option<&'static str> {
    column.numeric.then_some("number")
}

/// The place of a run on the page; unlike labels have unlike places.
pub(super) fn anchor(label: &str) -> String {
    let letter = |letter: char| match letter {
        plain if plain.is_ascii_alphanumeric() => plain.to_string(),
        other => format!("-{:x}", u32::from(other)),
    };
    format!("run-{}", label.chars().map(letter).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlike_labels_have_unlike_places() {
        assert_eq!(anchor("tr C=32 #2"), "run-tr-20C-3d32-20-232");
        assert_ne!(anchor("a b"), anchor("a=b"));
    }
}
