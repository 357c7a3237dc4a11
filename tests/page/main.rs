//! The HTML page: what it says, and what a browser makes of it.
//!
//! The tests in the browser need Debian's chromium and chromium-driver. Without them they say so and pass; with
//! `KVGATE_REQUIRE_BROWSER=1`, as in CI, they fail instead. Their pictures are kept in `target/page`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may stop at the first surprise, says when it is skipped, and makes up small figures"
)]

mod browser;
mod example;
mod strange;

use std::collections::BTreeMap;
use std::fs;

use browser::Browser;
use kvgate::harness::page::{Page, render};
use serde_json::Value;

/// Bytes that a page of ten runs may have.
const MAX_BYTES: usize = 2_000_000;
/// Contrast of text, and of shapes that carry meaning, by the Web Content Accessibility Guidelines 2.2, 1.4.3
/// and 1.4.11.
const TEXT_CONTRAST: f64 = 4.5;
const SHAPE_CONTRAST: f64 = 3.0;

/// The plots of every size and what their attributes say.
const PLOTS: &str = r"
    const pairs = path => (path.getAttribute('d').match(/-?\d+,-?\d+/g) || []).length;
    return [...document.querySelectorAll('figure[data-plot]')].map(figure => ({
        plot: figure.dataset.plot,
        missing: figure.dataset.missing !== undefined,
        text: figure.innerText,
        shown: [...figure.querySelectorAll(':scope > svg')].filter(svg => svg.getClientRects().length).length,
        drawings: [...figure.querySelectorAll(':scope > svg')].map(svg => ({
            said: Number(svg.dataset.points),
            drawn: [...svg.querySelectorAll('path.data')].map(pairs).reduce((a, b) => a + b, 0),
            role: svg.getAttribute('role'), label: svg.getAttribute('aria-label'),
        })),
    }));";

/// Letters in pixels, and texts that leave their drawing, in all drawings that are shown.
const LETTERS: &str = r"
    const found = {smallest: 1000, cut: []};
    for (const svg of document.querySelectorAll('svg[data-points]')) {
        const box = svg.getBoundingClientRect();
        if (!box.width) continue;
        for (const text of svg.querySelectorAll('text')) {
            const scale = box.width / svg.viewBox.baseVal.width;
            found.smallest = Math.min(found.smallest, parseFloat(getComputedStyle(text).fontSize) * scale);
            const letters = text.getBoundingClientRect();
            if (letters.left < box.left - 1 || letters.right > box.right + 1) found.cut.push(text.textContent);
        }
    }
    return found;";

/// Every pair of a colour and what is behind it: [kind, colour, background, an example].
const COLOURS: &str = r"
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
    };
    const found = new Map();
    const note = (kind, colour, element, example) => {
        const pair = [kind, colour, behind(element)];
        if (!found.has(pair.join())) found.set(pair.join(), [...pair, example]);
    };
    for (const element of document.querySelectorAll('body *')) {
        const words = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        const style = getComputedStyle(element);
        const example = element.tagName + ' ' + element.textContent.slice(0, 40);
        if (words) note('text', element.ownerSVGElement ? style.fill : style.color, element, example);
        if (element.matches('path.data')) note('shape', style.color, element.ownerSVGElement.parentElement, element.getAttribute('class'));
    }
    return [...found.values()];";

async fn opened(page: &Page, name: &str) -> Option<Browser> {
    if !browser::is_there() {
        return None;
    }
    let file = browser::folder().join(format!("{name}.html"));
    fs::write(&file, render(page)).expect("the page can be saved");
    Some(Browser::open(&file).await)
}

#[test]
fn the_page_is_one_file_of_bounded_size_and_the_same_every_time() {
    let html = render(&example::page());
    assert!(html.len() < MAX_BYTES, "{} bytes", html.len());
    println!(
        "{} bytes for {} runs",
        html.len(),
        example::page().runs.len()
    );
    assert_eq!(html, render(&example::page()));
    for outside in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!html.contains(outside), "the page says {outside}");
    }
}

#[test]
fn no_text_becomes_markup() {
    let marks = |word: &str| {
        let html = render(&strange::worded(word));
        ["<", ">", "\""].map(|mark| html.matches(mark).count())
    };
    assert_eq!(
        marks("plain"),
        marks(r#""><script>alert('x')</script>&quot;<b x="#)
    );
    assert!(render(&strange::worded("<b>")).contains("&lt;b&gt;"));
}

#[test]
fn odd_figures_still_make_a_page_and_not_a_large_one() {
    let html = render(&strange::odd());
    assert!(html.len() < MAX_BYTES, "{} bytes", html.len());
    let paths = html
        .split(" d=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    for number in paths.flat_map(|path| path.split(|c: char| !c.is_ascii_digit())) {
        assert!(
            number.len() < 6,
            "a shape reaches out of its drawing: {number}"
        );
    }
}

#[test]
fn an_empty_page_says_that_it_is_empty() {
    let mut page = strange::worded("x");
    (page.groups, page.runs, page.findings, page.tables) = Default::default();
    let html = render(&page);
    assert!(html.contains("Nothing was compared.") && html.contains("Nothing is missing"));
}

#[test]
fn many_backends_and_long_series_do_not_make_a_large_page() {
    let mut page = strange::worded("x");
    let points: Vec<_> = (0..100_000)
        .map(|n| (f64::from(n), f64::from(n % 100)))
        .collect();
    let line = |n: u32| kvgate::harness::page::Line {
        name: n.to_string(),
        points: points.clone(),
    };
    page.runs[0].length_s = 100_000.0;
    page.runs[0].kv = Ok((0..64).map(line).collect());
    let html = render(&page);
    assert!(html.len() < MAX_BYTES / 9, "{} bytes", html.len());
}

#[tokio::test]
async fn every_plot_is_drawn_with_all_its_points() {
    let Some(browser) = opened(&example::page(), "plots").await else {
        return;
    };
    browser.width(1280).await;
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let plots = browser.eval(PLOTS).await;
    for plot in plots.as_array().expect("a list") {
        let name = plot["plot"].as_str().expect("a name").to_owned();
        let (drawn, missing) = counts.entry(name).or_default();
        let drawings = plot["drawings"].as_array().expect("a list");
        if plot["missing"] == true {
            *missing += 1;
            let text = plot["text"].as_str().expect("words");
            assert!(
                drawings.is_empty() && text.contains("Not drawn: "),
                "{plot}"
            );
            continue;
        }
        *drawn += 1;
        assert_eq!(plot["shown"], 1, "{plot}");
        for drawing in drawings {
            assert!(drawing["said"].as_u64() > Some(1), "{plot}");
            assert_eq!(drawing["said"], drawing["drawn"], "{plot}");
            assert_eq!(drawing["role"], "img");
            assert!(
                drawing["label"]
                    .as_str()
                    .is_some_and(|label| label.len() > 20),
                "{plot}"
            );
        }
    }
    // Six figures are compared, seven kinds of latency for each of three concurrencies, and ten runs are shown, of
    // which the last one lost its files.
    let found: Vec<_> = counts
        .iter()
        .map(|(name, counts)| (name.as_str(), *counts))
        .collect();
    let one_missing = (9, 1);
    assert_eq!(
        found,
        [
            ("comparison", (6, 0)),
            ("kv", one_missing),
            ("latency", (18, 3)),
            ("load", one_missing),
            ("programs", one_missing),
            ("steps", one_missing),
        ]
    );
}

#[tokio::test]
async fn nothing_is_loaded_and_the_console_stays_silent() {
    let Some(browser) = opened(&example::page(), "console").await else {
        return;
    };
    let loaded = browser
        .eval("return performance.getEntriesByType('resource').map(entry => entry.name)")
        .await;
    assert_eq!(loaded, Value::Array(Vec::new()));
    assert_eq!(browser.console().await, Value::Array(Vec::new()));
    // That it would not be silent about an error:
    browser.eval("console.error('heard')").await;
    assert!(browser.console().await.to_string().contains("heard"));
}

#[tokio::test]
async fn no_width_scrolls_sideways_cuts_words_or_shrinks_letters() {
    let Some(browser) = opened(&example::page(), "width").await else {
        return;
    };
    for (width, smallest) in [(1280, 10.0), (390, 10.0), (820, 8.0), (320, 8.0)] {
        browser.width(width).await;
        let wide = browser
            .eval("return [document.scrollingElement.scrollWidth, innerWidth]")
            .await;
        assert!(wide[0].as_u64() <= wide[1].as_u64(), "at {width}: {wide}");
        assert_eq!(wide[1], width);
        let letters = browser.eval(LETTERS).await;
        assert!(
            letters["smallest"].as_f64() >= Some(smallest),
            "at {width}: {letters}"
        );
        assert_eq!(letters["cut"], Value::Array(Vec::new()), "at {width}");
    }
}

#[tokio::test]
async fn both_schemes_can_be_read() {
    let Some(browser) = opened(&example::page(), "schemes").await else {
        return;
    };
    let mut papers = Vec::new();
    for scheme in ["light", "dark"] {
        browser.scheme(scheme).await;
        let colours = browser.eval(COLOURS).await;
        let colours = colours.as_array().expect("a list");
        let shapes = colours.iter().filter(|colour| colour[0] == "shape").count();
        // Three policies, three states of a request, the tool gap and the intervals.
        assert_eq!(shapes, 8, "{colours:?}");
        for colour in colours {
            let ratio = contrast(&colour[1], &colour[2]);
            let least = if colour[0] == "text" {
                TEXT_CONTRAST
            } else {
                SHAPE_CONTRAST
            };
            assert!(ratio >= least, "{scheme}: {ratio:.2} for {colour}");
        }
        papers.push(
            browser
                .eval("return getComputedStyle(document.body).backgroundColor")
                .await,
        );
        for width in [1280, 390] {
            browser.width(width).await;
            browser.picture(&format!("{scheme}-{width}.png")).await;
        }
    }
    assert_ne!(papers[0], papers[1]);
}

#[tokio::test]
async fn on_paper_it_is_light_and_wide_and_lists_the_files() {
    let Some(browser) = opened(&example::page(), "paper").await else {
        return;
    };
    browser.scheme("dark").await;
    assert!(browser.print("page.pdf").await > 10_000);
    let print = serde_json::json!({"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    browser.cdp("Emulation.setEmulatedMedia", print).await;
    browser.width(390).await;
    let shown = browser
        .eval(
            r"const seen = name => [...document.querySelectorAll(name)].filter(e => e.checkVisibility()).length;
            return [getComputedStyle(document.body).backgroundColor, seen('svg.wide') > 0, seen('svg.narrow'),
                    document.querySelector('details.files td').checkVisibility({contentVisibilityAuto: true})];",
        )
        .await;
    assert_eq!(
        shown,
        serde_json::json!(["rgb(255, 255, 255)", true, 0, true])
    );
}

#[test]
fn contrast_is_that_of_the_guidelines() {
    let ratio = |a: &str, b: &str| contrast(&Value::from(a), &Value::from(b));
    assert!((ratio("rgb(0, 0, 0)", "rgb(255, 255, 255)") - 21.0).abs() < 1e-9);
    assert!((ratio("rgb(119, 119, 119)", "rgb(255, 255, 255)") - 4.48).abs() < 0.005);
}

/// The contrast ratio of two opaque colours, 1 to 21.
fn contrast(a: &Value, b: &Value) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// The relative luminance of `rgb(R, G, B)`.
fn luminance(colour: &Value) -> f64 {
    let text = colour.as_str().expect("a colour");
    let parts = text
        .strip_prefix("rgb(")
        .and_then(|rest| rest.strip_suffix(')'));
    let parts = parts.unwrap_or_else(|| panic!("{text} is not opaque"));
    let linear = parts.split(", ").map(|part| {
        let part = part.parse::<f64>().expect("a number") / 255.0;
        if part <= 0.04045 {
            part / 12.92
        } else {
            ((part + 0.055) / 1.055).powf(2.4)
        }
    });
    linear
        .zip([0.2126, 0.7152, 0.0722])
        .map(|(part, weight)| part * weight)
        .sum()
}
