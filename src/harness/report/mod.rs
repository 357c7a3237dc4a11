//! From run directories to the comparison: `kvgate report`.
//!
//! [`load`] reads directories of kvgate and of the reference system into plain [`Run`]s; [`complete`] says what is
//! wrong with them; [`compare`] groups them, takes repeats together and names winners by the figures of [`metric`];
//! [`detail`] looks into each run. [`view`] makes tables of it all, which [`text`], [`layout`] and [`html`] show;
//! [`export`] and [`artifacts`] write for machines.
//!
//! Winners are named by more than one figure, because they need not agree: a window favours small programs first,
//! a whole run of a fixed set of programs cannot be flattered. A cell without a figure says why.

pub mod artifacts;
pub mod compare;
pub mod complete;
pub mod detail;
pub mod export;
pub mod html;
pub mod layout;
pub mod load;
pub mod metric;
pub mod text;
pub mod view;
pub mod zone;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::artifacts::Artifacts;
use self::compare::{Entry, Group, Setup};
use self::complete::{Finding, Severity};
use self::detail::Detail;
use self::load::Source;
use self::zone::LogZone;
use super::measure::Measures;
use super::run::Run;
use super::rundir::RunDir;
use super::stdout;
use super::window::THRESHOLD_PERCENT;

/// Exit status when a run cannot be trusted.
pub const INCOMPLETE: u8 = 3;

/// Flags of `kvgate report`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = COMPLETENESS_HELP)]
pub struct ReportArgs {
    /// Run directories to compare, of kvgate or of the reference system, or a matrix's folder for all of its cells; runs of one workload, concurrency, setup
    /// (number of programs, KV capacity, cost preset, model: where known) and policy are repeats
    #[arg(required_unless_present = "label", value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// A further run directory and what to call it; a name such as TR32, CT64 or BL128 also gives policy and
    /// concurrency where the directory does not, and any other is the name of a policy that nothing else names
    #[arg(long, value_name = "NAME=DIR")]
    pub label: Vec<String>,
    /// KV usage above which the active window counts, in percent
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true, default_value_t = THRESHOLD_PERCENT)]
    pub threshold: f64,
    /// Time zone of the reference system's logs, such as Asia/Shanghai or +08:00 [default: the offset of the KV
    /// samples]
    #[arg(long, value_name = "ZONE", allow_hyphen_values = true)]
    pub log_tz: Option<String>,
    /// Show figures of incomplete runs too, below what is wrong with them
    #[arg(long)]
    pub allow_incomplete: bool,
    /// Headings: `en`, or `zh` for the layout of the reference's script
    #[arg(long, value_name = "LANG", default_value = "en")]
    pub lang: Language,
    /// Print manifests, and size and SHA-256 of every file
    #[arg(long)]
    pub manifest: bool,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page that opens offline, with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write runs, programs, steps, calls, samples and loads as CSV files
    #[arg(long, value_name = "DIR")]
    pub csv: Option<PathBuf>,
    /// Write the same as Parquet files, which pandas, polars and `DuckDB` read
    #[arg(long, value_name = "DIR")]
    pub parquet: Option<PathBuf>,
    /// Folder for `report.md` and `report.json` [default: none]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What `--help` says of exit statuses.
const COMPLETENESS_HELP: &str = "\
Exit status: 0 when every run is complete; 3 when one is not, with the reasons and no figures (neither in the files \
asked for; tables are not written), unless --allow-incomplete is given; 1 when a directory cannot be read, is given twice, or something cannot be written; 2 for wrong flags.

Incomplete, and cannot win: a missing steps.jsonl (unless tau2-bench was played to its end without a gate), programs.jsonl or driver.log; a run that was killed or \
interrupted; fewer results than tasks; log times in the wrong time zone; records dropped by the gate; more than 1 % \
of a file's lines unreadable; a profile log shorter than driver.log; a driver.log of something else; no step where \
programs finished; a manifest or result file cut short.

Without an active window, and no winner by it: a missing kv_cache_timeseries.csv; samples that do not cover the run \
(more than 60 s and 2 % at an end, or a hole of more than 60 s and 10 %); more than 10 % NaN samples; no sample, or a \
single moment, above the threshold.

Only noted: unreadable lines up to 1 %, glued records, markers printed as tuples, a sampler that ran on, files that \
add detail.";

/// Whose headings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// English.
    #[default]
    En,
    /// The reference script's.
    Zh,
}

/// The figures of several runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Version of kvgate that made this; figures change with what it counts.
    pub kvgate: &'static str,
    /// KV usage above which the active window counts, in percent.
    pub threshold_percent: f64,
    /// One group per workload, concurrency and setup, in that order.
    pub groups: Vec<Group>,
    /// Every run, in the order given.
    pub runs: Vec<RunReport>,
    /// What the reader must know to trust the figures.
    pub notes: Vec<String>,
}

/// One run's figures and where they are from.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What it is called.
    pub label: String,
    /// Its run directory.
    pub dir: PathBuf,
    /// Whether its figures stand.
    pub complete: bool,
    /// What is wrong with it, the worst first.
    pub findings: Vec<Finding>,
    /// The figures.
    #[serde(flatten)]
    pub measures: Measures,
    /// A look into it.
    pub detail: Detail,
    /// Its files, where asked for.
    pub artifacts: Option<Artifacts>,
}

/// Runs `kvgate report`: compares finished runs.
///
/// # Errors
/// When a flag is wrong, a run directory cannot be read or a file cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let log_zone = args.log_tz.as_deref().map(LogZone::parse).transpose()?;
    let mut notes = Vec::new();
    let sources = sources(args, &mut notes)?;
    let mut runs = load::all(&sources, log_zone.as_ref())?;
    name_policies(&mut runs, &sources);
    let mut report = Report::of(&runs, args.threshold);
    report.notes = notes;
    let fatal = report.fatal();
    if fatal > 0 && !args.allow_incomplete {
        refuse(args, report, fatal)?;
        return Ok(ExitCode::from(INCOMPLETE));
    }
    if args.manifest || args.json.is_some() || args.html.is_some() || args.out.is_some() {
        report.read_artifacts()?;
    }
    write_files(args, &report, &runs)?;
    say(&text::whole(&report, args.lang))?;
    if args.manifest {
        say(&text::manifest(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sources(args: &ReportArgs, notes: &mut Vec<String>) -> anyhow::Result<Vec<Source>> {
    ensure!(
        (0.0..100.0).contains(&args.threshold),
        "--threshold is a percentage of KV usage, from 0 to below 100"
    );
    let mut sources = Vec::new();
    for dir in &args.dirs {
        sources.extend(Source::all_at(dir, notes)?);
    }
    for text in &args.label {
        sources.push(Source::labelled(text)?);
    }
    refuse_twice(&sources)?;
    Ok(sources)
}

/// A run that is given twice would count as a repeat of itself.
fn refuse_twice(sources: &[Source]) -> anyhow::Result<()> {
    let mut seen: Vec<(PathBuf, &Path)> = Vec::new();
    for Source { dir, .. } in sources {
        // What is not there is named when it is read.
        let Ok(place) = dir.canonicalize() else {
            continue;
        };
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == place) {
            bail!(
                "{} and {} are the same run directory, and a run is no repeat of itself; give it once",
                first.display(),
                dir.display()
            );
        }
        seen.push((place, dir));
    }
    Ok(())
}

/// Whoever labels a run whose policy nothing names says what it is.
fn name_policies(runs: &mut [Run], sources: &[Source]) {
    for (run, source) in runs.iter_mut().zip(sources) {
        match &source.label {
            Some(label) if run.policy == "unknown" => run.policy.clone_from(label),
            _ => {}
        }
    }
}

fn write_files(args: &ReportArgs, report: &Report, runs: &[Run]) -> anyhow::Result<()> {
    if let Some(out) = &args.out {
        report.write(RunDir::create(out)?.path())?;
    }
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(report, runs))?;
    }
    if let Some(dir) = &args.csv {
        export::to_csv(report, runs, dir)?;
    }
    if let Some(dir) = &args.parquet {
        export::to_parquet(report, runs, dir)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(path, &text)
}

fn say(text: &str) -> anyhow::Result<()> {
    stdout::say(text).context("cannot write to standard output")
}

/// Says why there are no figures, on standard error and in every file that can say it: an older one would speak of
/// other runs.
fn refuse(args: &ReportArgs, mut report: Report, fatal: usize) -> anyhow::Result<()> {
    let refused = format!("{fatal} of {} runs cannot be trusted", report.runs.len());
    let reasons = text::completeness(&report);
    complain(&format!(
        "{reasons}kvgate: {refused}; mend them, or see the figures below their findings with --allow-incomplete"
    ));
    let refusal = Refusal::of(&report, &refused);
    if let Some(out) = &args.out {
        let out = RunDir::create(out)?;
        write(
            &out.path().join("report.md"),
            &format!("{reasons}{refused}\n"),
        )?;
        out.write_json("report.json", &refusal)?;
    }
    if let Some(path) = &args.json {
        write_json(path, &refusal)?;
    }
    if let Some(path) = &args.html {
        report.groups.clear();
        write(path, &html::page(&report, &[]))?;
    }
    for dir in args.csv.iter().chain(&args.parquet) {
        complain(&format!(
            "kvgate: no tables are written to {}",
            dir.display()
        ));
    }
    Ok(())
}

/// What is written instead of a [`Report`] when a run cannot be trusted: no figures and no verdict.
#[derive(Debug, Serialize)]
struct Refusal<'a> {
    kvgate: &'static str,
    threshold_percent: f64,
    refused: &'a str,
    runs: Vec<RefusedRun<'a>>,
}

#[derive(Debug, Serialize)]
struct RefusedRun<'a> {
    label: &'a str,
    dir: &'a Path,
    complete: bool,
    findings: &'a [Finding],
}

impl<'a> Refusal<'a> {
    fn of(report: &'a Report, refused: &'a str) -> Self {
        let run = |run: &'a RunReport| RefusedRun {
            label: &run.label,
            dir: &run.dir,
            complete: run.complete,
            findings: &run.findings,
        };
        Self {
            kvgate: report.kvgate,
            threshold_percent: report.threshold_percent,
            refused,
            runs: report.runs.iter().map(run).collect(),
        }
    }
}

/// Writes a line to standard error; where that is closed, the exit status tells.
fn complain(line: &str) {
    let _closed = writeln!(std::io::stderr(), "{line}");
}

impl Report {
    /// Compares runs, with the active window above `threshold_percent` of KV usage.
    pub fn of(runs: &[Run], threshold_percent: f64) -> Self {
        let reports: Vec<RunReport> = runs
            .iter()
            .map(|run| RunReport::of(run, threshold_percent))
            .collect();
        let pairs = runs.iter().zip(&reports);
        let entries: Vec<Entry> = pairs.map(|(run, report)| report.entry(run)).collect();
        Self {
            kvgate: env!("CARGO_PKG_VERSION"),
            threshold_percent,
            groups: compare::groups(&entries),
            runs: reports,
            notes: Vec::new(),
        }
    }

    /// Runs that cannot be trusted.
    pub fn fatal(&self) -> usize {
        let fatal = |run: &&RunReport| run.findings.iter().any(|f| f.severity.is_fatal());
        self.runs.iter().filter(fatal).count()
    }

    /// Reads size and digest of every run's files.
    ///
    /// # Errors
    /// When one cannot be read; the message names it.
    pub fn read_artifacts(&mut self) -> anyhow::Result<()> {
        for run in &mut self.runs {
            run.artifacts = Some(Artifacts::of(&run.dir)?);
        }
        Ok(())
    }

    /// Writes `report.md` and `report.json` into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        write(&dir.join("report.md"), &text::whole(self, Language::En))?;
        RunDir::at(dir).write_json("report.json", self)
    }
}

impl RunReport {
    fn of(run: &Run, threshold_percent: f64) -> Self {
        let findings = complete::findings(run, threshold_percent);
        let measures = Measures::of(run, threshold_percent);
        Self {
            label: run.label.clone(),
            dir: run.dir.clone(),
            complete: findings.iter().all(|f| f.severity != Severity::Incomplete),
            detail: Detail::of(run, &measures),
            findings,
            measures,
            artifacts: None,
        }
    }

    fn entry(&self, run: &Run) -> Entry {
        let first = |severity| {
            let mut found = self.findings.iter().filter(|f| f.severity == severity);
            found.next().map(|finding| finding.text.clone())
        };
        // Without any window the figure itself says so.
        let doubt = self
            .measures
            .window
            .rates()
            .and_then(|_| first(Severity::NoWindow));
        Entry {
            label: self.label.clone(),
            incomplete: first(Severity::Incomplete),
            setup: Setup::of(run),
            resumed: !run.intake.resumed.is_empty(),
            no_window: doubt.map(|why| format!("a doubtful window: {why}")),
            measures: self.measures.clone(),
            by_threshold: compare::by_threshold(run, &self.measures),
        }
    }
}

#[cfg(test)]
mod tests;
