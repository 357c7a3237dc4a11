//! Reads the source tree and holds it to the rules of the house: module docs, the direction of dependencies,
//! one reader of the clock, short functions and files, and an ARCHITECTURE.md that shows the true arrows.
//!
//! Every rule is a function from sources to complaints. Each has two tests: the tree has none, and a planted
//! offender gets one. What only a compiler can see is left to the lints in `Cargo.toml` and `clippy.toml`.
#![expect(
    clippy::expect_used,
    clippy::string_slice,
    reason = "a test may stop at the first surprise, and cuts ASCII tokens out of Rust sources"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// A function's lines, from `fn` to its closing brace: nine in ten may have at most this many.
const FUNCTION_P90: usize = 30;
/// No function may be longer without a written reason.
const FUNCTION_MAX: usize = 70;
/// The attribute that is the written reason.
const LONG_FUNCTION_REASON: &str = "expect(clippy::too_many_lines, reason";
/// Lines of a file, its tests left out.
const FILE_MAX: usize = 600;
/// Lines of ARCHITECTURE.md.
const ARCHITECTURE_MAX: usize = 200;
/// Opens the block of ARCHITECTURE.md with one line per module: `proxy -> clock, policy, telemetry`.
const ARROWS_FENCE: &str = "```arrows";

/// What each module may import of ours. A module that is not listed composes the others and may import all.
const MAY_IMPORT: [(&str, &[&str]); 5] = [
    ("policy", &[]),
    ("clock", &["policy"]),
    ("telemetry", &["policy", "clock"]),
    ("proxy", &["telemetry", "policy", "clock"]),
    ("harness", &["telemetry", "policy", "clock"]),
];

/// Where neither clock, nor I/O, nor a task may appear: paths by their beginning.
const PURE: [&str; 40] = [
    "src/harness/calibrate/fit.rs",
    "src/harness/calibrate/plan.rs",
    "src/harness/engine/core",
    "src/harness/experiment/watch/signs.rs",
    "src/harness/experiment/watchdog/",
    "src/harness/experiment/preflight/clock.rs",
    "src/harness/experiment/status/text.rs",
    "src/harness/measure.rs",
    "src/harness/page/",
    "src/harness/reference/driver_log.rs",
    "src/harness/reference/kv.rs",
    "src/harness/reference/local_time.rs",
    "src/harness/reference/outputs.rs",
    "src/harness/reference/profile.rs",
    "src/harness/reference/python.rs",
    "src/harness/report/compare.rs",
    "src/harness/report/complete.rs",
    "src/harness/report/detail.rs",
    "src/harness/report/export/rows.rs",
    "src/harness/report/html.rs",
    "src/harness/report/layout.rs",
    "src/harness/report/load/naming.rs",
    "src/harness/report/metric.rs",
    "src/harness/report/text.rs",
    "src/harness/report/view.rs",
    "src/harness/report/zone.rs",
    "src/harness/run/",
    "src/harness/simulate",
    "src/harness/stats.rs",
    "src/harness/window.rs",
    "src/policy/",
    "src/proxy/identity.rs",
    "src/proxy/infer/",
    "src/proxy/intern.rs",
    "src/proxy/scan.rs",
    "src/telemetry/merge.rs",
    "src/telemetry/observe/",
    "src/telemetry/prometheus_text.rs",
    "src/telemetry/scrape.rs",
    "src/telemetry/sse.rs",
];

/// Files among them that are not, each with its reason.
const NOT_PURE: [(&str, &str); 1] = [(
    "src/harness/simulate/calibration.rs",
    "prints what the simulation gave; the simulation is beside it",
)];

/// What pure code does not say.
const IMPURE: [&str; 14] = [
    "tokio",
    "axum",
    "hyper",
    "reqwest",
    "async",
    "await",
    "std::fs",
    "std::net",
    "std::env",
    "std::io",
    "std::thread",
    "std::process",
    "Instant",
    "SystemTime",
];

/// Readers of the machine's clock, each with its reason.
const CLOCK_READERS: [(&str, &str); 1] = [(
    "src/clock.rs",
    "the one place; everything else is handed a Clock or a Time",
)];

/// A clock is read by one of these.
const CLOCK_READS: [&str; 3] = ["Instant::now", "SystemTime::now", ".elapsed("];

/// What no file says, in two halves so that this file does not say it either.
const FORBIDDEN: [(&str, &str); 12] = [
    ("FIX", "ME"),
    ("TO", "DO"),
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("place", "holder"),
    ("for", " now"),
    ("not", " implemented"),
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("/tm", "p/"),
    ("/ho", "me/"),
];

/// The files that are ours to word: by ending or by name.
const TEXT_ENDINGS: [&str; 14] = [
    ".rs", ".py", ".sh", ".md", ".toml", ".html", ".css", ".js", ".json", ".jsonl", ".txt",
    ".ci/run", "justfile", ".yml",
];

/// One file of the tree.
#[derive(Clone)]
struct Source {
    /// From the root of the repository, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// The text with comments, literals and test items blanked out; lines stay where they are.
    fn code(&self) -> String {
        blank_tests(&blank_literals(&self.text))
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The module path: `src/proxy/body.rs` is `proxy::body`, `src/proxy/mod.rs` is `proxy`.
    fn module(&self) -> Vec<&str> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut parts: Vec<_> = inner.split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
            parts.pop();
        }
        parts
    }
}

/// A function and where it stands.
struct Function {
    place: String,
    lines: usize,
    /// Text between the end of the item before and `fn`: attributes and visibility.
    has_reason: bool,
}

// The tree.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tree() -> Vec<Source> {
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let relative = path.strip_prefix(root()).expect("a path below the root");
        let relative = relative.to_string_lossy().replace('\\', "/");
        let skipped = ["target", ".git", ".venv", "tests/fixtures"];
        if skipped.contains(&relative.as_str()) || relative.contains("node_modules") {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        } else if TEXT_ENDINGS.iter().any(|end| relative.ends_with(end)) {
            // A file that is not UTF-8 is not one of our texts.
            if let Ok(text) = fs::read_to_string(&path) {
                found.push(Source {
                    path: relative,
                    text,
                });
            }
        }
    }
}

fn rust_sources() -> Vec<Source> {
    let mut sources = tree();
    let rust = Some("rs".as_ref());
    sources.retain(|s| s.path.starts_with("src/") && Path::new(&s.path).extension() == rust);
    assert!(sources.len() > 10, "the tree was not found");
    sources
}

#[track_caller]
fn assert_clean(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// A small reading of Rust: enough to tell code from text, and where an item ends.

/// Replaces comments and the insides of literals by blanks, keeping every line break.
fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("blanks replace whole literals")
}

/// Where the comment or literal that begins at `at` ends; `at` when none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + find(rest, b"*/").map_or(rest.len(), |n| n + 2),
        [b'"', ..] => at + quoted_len(rest),
        [b'r', b'"' | b'#', ..] if !after_word => at + raw_len(rest),
        [b'\'', b'\\', _, tail @ ..] => {
            at + 3 + tail.iter().position(|b| *b == b'\'').map_or(0, |n| n + 1)
        }
        [b'\'', first, b'\'', ..] if *first != b'\'' => at + 3,
        _ => at,
    }
}

fn quoted_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Length of a raw string; 0 when `r#` begins an identifier instead.
fn raw_len(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    let body = 2 + hashes;
    find(&rest[body..], &close).map_or(rest.len(), |n| body + n + close.len())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Blanks every item that stands behind `#[cfg(test)]`.
fn blank_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]") {
        let end = item_end(&out, at);
        let blank: String = out[at..end]
            .chars()
            .map(|c| if c == '\n' { c } else { ' ' })
            .collect();
        out.replace_range(at..end, &blank);
    }
    out
}

/// One past the end of the item that begins at `at`: its closing brace, or a `;` before any brace.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (offset, byte) in code.as_bytes()[at..].iter().enumerate() {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + offset + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 && brackets == 0 => return at + offset + 1,
            _ => {}
        }
    }
    code.len()
}

/// Positions at which `word` stands, not as a part of a longer word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let (first, last) = (word.as_bytes()[0], word.as_bytes()[word.len() - 1]);
    let found = code.match_indices(word).map(|(at, _)| at);
    found.filter(move |at| {
        let before = at.checked_sub(1).map(|n| bytes[n]);
        let after = bytes.get(at + word.len()).copied();
        let joined_before = is_word(first) && before.is_some_and(is_word);
        let joined_after = is_word(last) && after.is_some_and(is_word);
        !joined_before && !joined_after
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

// The rules.

fn undocumented(sources: &[Source]) -> Vec<String> {
    let bare = |s: &&Source| !s.text.starts_with("//! ");
    let complain = |s: &Source| format!("{}: begin with `//!`: what belongs in this file", s.path);
    sources.iter().filter(bare).map(complain).collect()
}

/// Which top-level modules a source imports, its own left out.
fn imports(source: &Source) -> BTreeSet<String> {
    let code = source.code();
    let module = source.module();
    let mut found = BTreeSet::new();
    for root in ["crate::", "kvgate::"] {
        for at in words(&code, root) {
            found.extend(path_heads(&code[at + root.len()..]));
        }
    }
    // As many `super` as the file is deep lead out of the top-level module.
    let out = "super::".repeat(module.len());
    if !out.is_empty() {
        for at in words(&code, &out) {
            found.extend(path_heads(&code[at + out.len()..]));
        }
    }
    if let Some(own) = module.first() {
        found.remove(*own);
    }
    // A name of the crate root that begins with a capital is an item, not a module.
    found.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()) && name != "super");
    found
}

/// The first segments of the paths that begin here: `policy::{Time}` is one, `{clock, policy::Time}` two.
fn path_heads(rest: &str) -> Vec<String> {
    let head = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![head(rest)];
    };
    let mut heads = vec![head(group)];
    let mut depth = 1_u32;
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => break,
            b'}' => depth -= 1,
            b',' if depth == 1 => heads.push(head(&group[at + 1..])),
            _ => {}
        }
    }
    heads.retain(|name| !name.is_empty());
    heads
}

fn wrong_imports(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let module = source.module();
        let rule = MAY_IMPORT.iter().find(|(m, _)| module.first() == Some(m));
        let Some((name, allowed)) = rule else {
            continue;
        };
        for import in imports(source) {
            if !allowed.contains(&import.as_str()) {
                complaints.push(format!(
                    "{}: `{name}` may not import `{import}`, only {allowed:?}",
                    source.path
                ));
            }
        }
    }
    complaints
}

fn impure(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let excused = |s: &Source| NOT_PURE.iter().any(|(path, _)| *path == s.path);
    let pure = |s: &&Source| PURE.iter().any(|p| s.path.starts_with(p));
    let counted = sources.iter().filter(pure).filter(|s| !excused(s));
    for source in counted.filter(|s| !s.is_test()) {
        let code = source.code();
        for word in IMPURE {
            for at in words(&code, word) {
                complaints.push(format!(
                    "{}:{}: pure code says `{word}`",
                    source.path,
                    line_of(&code, at)
                ));
            }
        }
    }
    complaints
}

fn clock_reads(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let excused = |s: &Source| CLOCK_READERS.iter().any(|(path, _)| *path == s.path);
    for source in sources.iter().filter(|s| !excused(s) && !s.is_test()) {
        let code = source.code();
        for read in CLOCK_READS {
            for at in words(&code, read) {
                complaints.push(format!(
                    "{}:{}: `{read}` reads a clock; take a `Clock` or a `Time`",
                    source.path,
                    line_of(&code, at)
                ));
            }
        }
    }
    complaints
}

fn functions(source: &Source) -> Vec<Function> {
    let code = source.code();
    let mut found = Vec::new();
    for at in words(&code, "fn") {
        let name: String = code[at + 2..]
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let end = item_end(&code, at);
        // Without a name it is a type, without a body a trait's method.
        if name.is_empty() || !code[at..end].ends_with('}') {
            continue;
        }
        let before = code[..at].rfind(['}', ';', '{']).map_or(0, |n| n + 1);
        found.push(Function {
            place: format!("{}:{}: {name}", source.path, line_of(&code, at)),
            lines: code[at..end].matches('\n').count() + 1,
            // The reason's text is a literal, blanked in `code`; lengths are equal.
            has_reason: code[before..at]
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .replace("( ", "(")
                .contains(LONG_FUNCTION_REASON),
        });
    }
    found
}

fn long_functions(sources: &[Source]) -> Vec<String> {
    let counted = sources.iter().filter(|s| !s.is_test());
    let all: Vec<_> = counted.flat_map(functions).collect();
    let mut complaints = Vec::new();
    for function in &all {
        if function.lines > FUNCTION_MAX && !function.has_reason {
            complaints.push(format!(
                "{}: {} lines, more than {FUNCTION_MAX} without `#[{LONG_FUNCTION_REASON} = ..)]`",
                function.place, function.lines
            ));
        }
    }
    let mut lengths: Vec<_> = all.iter().map(|f| (f.lines, &f.place)).collect();
    lengths.sort();
    if let Some((p90, _)) = lengths.get(lengths.len() * 9 / 10)
        && *p90 > FUNCTION_P90
    {
        let mut text = format!("nine in ten functions reach {p90} lines, over {FUNCTION_P90}:");
        for (lines, place) in lengths.iter().rev().take(15) {
            write!(text, "\n  {lines} {place}").expect("a String takes all");
        }
        complaints.push(text);
    }
    complaints
}

fn long_files(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test()) {
        let kept = blank_tests(&blank_literals(&source.text));
        let test_lines = source
            .text
            .lines()
            .zip(kept.lines())
            .filter(|(raw, left)| in_tests(raw, left))
            .count();
        let lines = source.text.lines().count() - test_lines;
        if lines > FILE_MAX {
            complaints.push(format!(
                "{}: {lines} lines without tests, more than {FILE_MAX}",
                source.path
            ));
        }
    }
    complaints
}

/// Whether a line was code before test items were blanked, and is not after.
fn in_tests(raw: &str, left: &str) -> bool {
    let raw = raw.trim();
    !raw.is_empty() && !raw.starts_with("//") && left.trim().is_empty()
}

fn forbidden_words(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for (start, end) in FORBIDDEN {
            let word = format!("{start}{end}");
            for at in words(&source.text, &word) {
                complaints.push(format!(
                    "{}:{}: says `{word}`",
                    source.path,
                    line_of(&source.text, at)
                ));
            }
        }
    }
    complaints
}

/// The true arrows: one entry per top-level module, with what it imports.
fn arrows_of(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let mut arrows = BTreeMap::new();
    for source in sources.iter().filter(|s| s.path != "src/lib.rs") {
        let name = source.module().first().copied().unwrap_or("main");
        let entry: &mut BTreeSet<_> = arrows.entry(name.to_owned()).or_default();
        entry.extend(imports(source));
    }
    arrows
}

/// The arrows that a document shows; `None` without an arrows block.
fn arrows_shown(document: &str) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let (_, block) = document.split_once(ARROWS_FENCE)?;
    let (block, _) = block.split_once("```")?;
    let lines = block.lines().filter_map(|line| line.split_once("->"));
    let names = |right: &str| -> BTreeSet<String> {
        let names = right.split(',').map(|n| n.trim().to_owned());
        names.filter(|n| !n.is_empty()).collect()
    };
    Some(
        lines
            .map(|(left, right)| (left.trim().to_owned(), names(right)))
            .collect(),
    )
}

fn wrong_architecture(document: &str, sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = document.lines().count();
    if lines > ARCHITECTURE_MAX {
        complaints.push(format!(
            "ARCHITECTURE.md: {lines} lines, more than {ARCHITECTURE_MAX}"
        ));
    }
    let arrows = arrows_of(sources);
    if arrows_shown(document).as_ref() != Some(&arrows) {
        let mut block = String::new();
        for (name, imports) in &arrows {
            let imports: Vec<_> = imports.iter().map(String::as_str).collect();
            let line = format!("{name} -> {}", imports.join(", "));
            writeln!(block, "{}", line.trim_end()).expect("a String takes all");
        }
        complaints.push(format!(
            "ARCHITECTURE.md: its arrows are not the imports of src, which are:\n{ARROWS_FENCE}\n{block}```"
        ));
    }
    complaints
}

// The tree keeps the rules.

#[test]
fn every_source_says_what_belongs_in_it() {
    assert_clean(&undocumented(&rust_sources()));
}

#[test]
fn dependencies_point_one_way() {
    assert_clean(&wrong_imports(&rust_sources()));
}

#[test]
fn pure_code_has_no_clock_no_io_and_no_task() {
    assert_clean(&impure(&rust_sources()));
}

#[test]
fn what_the_rules_name_is_there() {
    let sources = rust_sources();
    let exists = |start: &&str| sources.iter().any(|s| s.path.starts_with(start));
    let excused = NOT_PURE.iter().chain(&CLOCK_READERS).map(|(path, _)| path);
    for path in PURE.iter().chain(excused) {
        assert!(exists(path), "{path} is gone: change the rule");
    }
}

#[test]
fn only_the_clock_reads_the_clock() {
    assert_clean(&clock_reads(&rust_sources()));
}

#[test]
fn functions_are_short() {
    assert_clean(&long_functions(&rust_sources()));
}

#[test]
fn files_are_short() {
    assert_clean(&long_files(&rust_sources()));
}

#[test]
fn no_file_says_a_forbidden_word() {
    assert_clean(&forbidden_words(&tree()));
}

#[test]
fn the_architecture_shows_the_imports() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    assert_clean(&wrong_architecture(&document, &rust_sources()));
}

// The rules can fail.

#[test]
fn a_source_without_a_module_doc_is_found() {
    let planted = [
        Source::new("src/policy/a.rs", "use std::fmt;\n"),
        Source::new("src/policy/b.rs", "//! Holds b.\n"),
    ];
    assert_eq!(undocumented(&planted).len(), 1);
}

#[test]
fn an_import_against_the_direction_is_found_in_every_spelling() {
    for (path, text) in [
        ("src/policy/a.rs", "use crate::telemetry::StepRecord;"),
        ("src/telemetry/a.rs", "fn f() { crate::proxy::start(); }"),
        ("src/harness/a.rs", "use crate::{clock, proxy::Config};"),
        ("src/proxy/a/b.rs", "use super::super::super::harness::x;"),
        ("src/clock.rs", "use crate::telemetry;"),
    ] {
        let found = wrong_imports(&[Source::new(path, text)]);
        assert_eq!(found.len(), 1, "{path} {text}: {found:?}");
    }
}

#[test]
fn an_import_in_a_comment_a_string_or_a_test_is_not_an_import() {
    for text in [
        "// use crate::proxy;\n/* crate::proxy */",
        "const A: &str = \"crate::proxy\"; const B: &str = r#\"crate::proxy \" \"#;",
        "#[cfg(test)]\nmod tests {\n    use crate::proxy;\n}\n",
        "use crate::policy::Time; use super::sse; use super::super::policy; // '\"'",
    ] {
        let found = wrong_imports(&[Source::new("src/telemetry/a.rs", text)]);
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}

#[test]
fn a_clock_io_or_task_in_pure_code_is_found() {
    for text in [
        "use std::time::Instant;",
        "async fn f() {}",
        "use tokio::sync::mpsc;",
        "fn f() { std::fs::read(\"x\"); }",
    ] {
        let found = impure(&[Source::new("src/policy/a.rs", text)]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(impure(&[Source::new("src/proxy/a.rs", text)]).is_empty());
    }
    let innocent = Source::new("src/policy/a.rs", "fn asynchronous(instant: Time) {}");
    assert!(impure(&[innocent]).is_empty());
}

#[test]
fn a_second_reader_of_the_clock_is_found() {
    let text = "fn f() { let t = std::time::Instant::now(); t.elapsed(); }";
    assert_eq!(clock_reads(&[Source::new("src/proxy/a.rs", text)]).len(), 2);
    assert!(clock_reads(&[Source::new("src/clock.rs", text)]).is_empty());
}

#[test]
fn a_long_function_is_found_unless_it_gives_a_reason() {
    let long = format!("fn long() {{\n{}}}\n", "    work();\n".repeat(70));
    // Short ones keep the p90 low, so that only the one rule speaks.
    let short = "fn short() {}\n".repeat(20);
    let plain = Source::new("src/a.rs", &format!("{short}{long}"));
    let found = long_functions(&[plain]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("long: 72 lines"), "{found:?}");

    let reason = "#[expect(\n    clippy::too_many_lines,\n    reason = \"one table\"\n)]\n";
    let excused = Source::new("src/a.rs", &format!("{short}{reason}{long}"));
    assert!(long_functions(&[excused]).is_empty());
}

#[test]
fn a_tree_of_long_functions_is_found_though_none_is_over_the_limit() {
    let function = format!("fn f() {{\n{}}}\n", "    work();\n".repeat(40));
    let found = long_functions(&[Source::new("src/a.rs", &function.repeat(10))]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("nine in ten"), "{found:?}");
}

#[test]
fn a_long_file_is_found_and_its_tests_do_not_count() {
    let lines = "fn f() {}\n".repeat(400);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{lines}}}\n");
    assert!(long_files(&[Source::new("src/a.rs", &format!("{lines}{tests}"))]).is_empty());
    assert_eq!(
        long_files(&[Source::new("src/a.rs", &lines.repeat(2))]).len(),
        1
    );
}

#[test]
fn a_forbidden_word_is_found_in_code_and_in_comments() {
    for (start, end) in FORBIDDEN {
        let text = format!("//! A file.\n// {start}{end}\n");
        let found = forbidden_words(&[Source::new("README.md", &text)]);
        assert!(!found.is_empty(), "{start}{end}");
    }
    let text = format!("for n{}, methods and the root/path", "owadays");
    let innocent = Source::new("README.md", &text);
    assert!(forbidden_words(&[innocent]).is_empty());
}

#[test]
fn an_arrow_too_many_or_too_few_in_the_architecture_is_found() {
    let sources = [
        Source::new("src/main.rs", "fn main() { kvgate::proxy::start(); }"),
        Source::new("src/proxy/mod.rs", "use crate::{clock::Clock, policy};"),
        Source::new("src/policy/mod.rs", "use std::fmt;"),
    ];
    let show = |proxy: &str| format!("```arrows\nmain -> proxy\npolicy ->\n{proxy}\n```\n");
    assert!(wrong_architecture(&show("proxy -> clock, policy"), &sources).is_empty());
    for wrong in ["proxy -> policy", "proxy -> clock, harness, policy", ""] {
        assert_eq!(
            wrong_architecture(&show(wrong), &sources).len(),
            1,
            "{wrong}"
        );
    }
    let long = format!("{}{}", show("proxy -> clock, policy"), "line\n".repeat(200));
    assert_eq!(wrong_architecture(&long, &sources).len(), 1);
    assert_eq!(wrong_architecture("", &sources).len(), 1);
}
