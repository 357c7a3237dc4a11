//! The comparison as one HTML page that needs nothing else: plain data in, text out.
//!
//! [`Page`] says what there is to show, [`render`] shows it: the verdict first, then what is wrong with the data,
//! the comparison, and every run. Plots are inline SVG drawn by plotters; the colours of both schemes and of paper
//! are in the style sheet. The page has no script and loads nothing, and its size is bounded: lines are thinned,
//! programs chosen, tables cut by whoever fills them.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod bars;
mod chart;
mod compare;
mod curves;
mod data;
mod gantt;
mod parts;
mod run;
mod svg;
mod thin;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub use data::*;
use parts::{Policies, anchor};

/// The page as HTML.
pub fn render(page: &Page) -> String {
    let policies = Policies::of(page);
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Without an icon of its own a browser would ask for one.
                link rel="icon" href="data:,";
                title { (page.title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                (head(page))
                main {
                    (compare::verdicts(page, &policies))
                    (findings(&page.findings))
                    (compare::comparison(page, &policies))
                    (compare::latencies(page, &policies))
                    (run::runs(page, &policies))
                }
            }
        }
    };
    whole.into_string()
}

fn head(page: &Page) -> Markup {
    html! {
        header {
            h1 { (page.title) }
            p.subtitle { (page.subtitle) }
            nav aria-label="Contents" {
                a href="#verdict" { "Verdict" }
                @if !page.findings.is_empty() { a href="#findings" { "Findings" } }
                a href="#comparison" { "Comparison" }
                a href="#latencies" { "Latencies" }
                @for run in &page.runs { a href=(format!("#{}", anchor(&run.label))) { (run.label) } }
            }
            (parts::facts(&page.provenance))
        }
    }
}

fn findings(findings: &[Finding]) -> Markup {
    html! {
        section #findings {
            h2 { "Completeness" }
            @if findings.is_empty() {
                p.fine { "Nothing is missing: every file is there, every line was read, and the samples cover the runs." }
            } @else {
                ul.findings { @for finding in findings { (entry(finding)) } }
            }
        }
    }
}

fn entry(finding: &Finding) -> Markup {
    let (class, word) = match finding.severity {
        Severity::Error => ("error", "Error"),
        Severity::Warning => ("warning", "Warning"),
        Severity::Note => ("note", "Note"),
    };
    html! {
        li class=(class) {
            strong { (word) }
            div {
                @if let Some(run) = &finding.run { a href=(format!("#{}", anchor(run))) { (run) } ": " }
                (finding.text)
                @if let Some(example) = &finding.example { pre { (example) } }
            }
        }
    }
}
