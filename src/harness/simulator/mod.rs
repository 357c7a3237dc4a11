//! `kvgate simulate`: the command line around the pure [`simulate`](super::simulate).
//!
//! A cell takes a second or less, so this is where ideas are tried first. What a simulation says is worth is in its
//! calibration: `kvgate simulate --calibration` holds the model against cells measured on a GPU.

pub mod against;
pub mod contender;
pub mod grid;
pub mod plan;
mod summary;
pub mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::grid::Output;
use self::plan::jobs;
use super::simulate::{History, RANDOM_WEIGHTS, calibration};
use super::stdout;

/// The cost preset that tables do not mention.
pub const DEFAULT_COST: &str = "h100-qwen3-8b";

/// Options of `kvgate simulate`.
#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// Print the model beside the cells measured on an H100, and nothing else
    #[arg(long)]
    pub calibration: bool,

    /// Run directories of `kvgate replay` on a live server: each is simulated with its trace, concurrency and policy on
    /// the engine of the options below, and laid beside it; `DIR=POLICY` where the run does not say its policy
    #[arg(long, value_name = "DIR[=POLICY]", num_args = 1..)]
    pub against: Vec<String>,

    /// The whole grid: each list below that is not given takes the experiment's values (448 settings with five seeds
    /// each; use --out)
    #[arg(long)]
    pub grid: bool,

    /// Policies to compare, `NAME` or `NAME:KEY=VALUE;KEY=VALUE`; `infinite-kv` is no gate on a cache that holds
    /// everything, `clairvoyant` the policy kvgate that knows when each idle program returns, `bound` a makespan that
    /// nobody can beat [default: all policies; with --grid, these three too]
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    pub policy: Vec<String>,

    /// What the programs look like: orch, tau2-lognormal, swe, mix, slow, bursts, forks, res, cod, blend, review, desk, or tau2 for
    /// the recorded trajectories in an order drawn from the seed [default: orch]
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    pub shape: Vec<String>,

    /// A trace file, played program by program as `kvgate replay` plays it
    #[arg(long, value_name = "FILE")]
    pub trace: Vec<String>,

    /// A journal of `kvgate serve --journal`: the programs that it saw, played in a closed loop
    #[arg(long, value_name = "FILE")]
    pub journal: Vec<PathBuf>,

    /// Programs at once [default: 32, 64]
    #[arg(long, value_name = "C", value_delimiter = ',', num_args = 1..)]
    pub concurrency: Vec<u32>,

    /// Programs in the set [default: 2C + 32; of a trace or journal, all]
    #[arg(long, value_name = "N")]
    pub programs: Option<usize>,

    /// KV capacity in tokens, the null block left out [default: 84800]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', num_args = 1..)]
    pub kv_tokens: Vec<u32>,

    /// What an iteration costs: a preset, or a file that `kvgate calibrate` wrote
    #[arg(long, value_name = "PRESET|FILE", value_delimiter = ',', num_args = 1.., default_value = DEFAULT_COST)]
    pub cost: Vec<String>,

    /// Factors on the prefill cost of the preset [default: 1]
    #[arg(long, value_name = "FACTOR", value_delimiter = ',', num_args = 1..)]
    pub prefill: Vec<f64>,

    /// Seeds of the programs, such as `1,2` or `11-15` [default: 1]
    #[arg(long, value_name = "N|A-B", value_delimiter = ',', num_args = 1..)]
    pub seed: Vec<String>,

    /// How an answer comes back as history
    #[arg(long, value_enum, default_value_t = HistoryName::Kept)]
    pub history: HistoryName,

    /// Factors on the KV capacity that the policy is told
    #[arg(long, value_name = "FACTOR", value_delimiter = ',', num_args = 1.., default_value = "1")]
    pub believed_capacity: Vec<f64>,

    /// Factors on the gaps that the policy kvgate believes in: its return rates are divided by it
    #[arg(long, value_name = "FACTOR", value_delimiter = ',', num_args = 1.., default_value = "1")]
    pub believed_gaps: Vec<f64>,

    /// Shares of the programs that come without identity, 0 to 1
    #[arg(long, value_name = "SHARE", value_delimiter = ',', num_args = 1.., default_value = "0")]
    pub anonymous: Vec<f64>,

    /// Most sequences that run at once in the engine
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_num_seqs: u32,

    /// Most tokens that the engine computes in one iteration
    #[arg(long, value_name = "TOKENS", default_value_t = 8_192)]
    pub max_num_batched_tokens: u32,

    /// File of rows, one JSON object a cell: cells that are in it are not run again, new ones are appended; a pipe or
    /// `/dev/stdout` gets the rows of all
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Print the tables of these files of rows, and nothing else: no cell is run
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["grid", "out", "policy", "against", "calibration"])]
    pub from: Vec<PathBuf>,

    /// File to append one JSON object a program to, with when it began and ended
    #[arg(long, value_name = "FILE")]
    pub by_program: Option<PathBuf>,

    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// How answers come back, as named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HistoryName {
    /// As they were generated: a trained model
    Kept,
    /// As other tokens, 1.38 times as many, and the next message shortened by the excess: random weights behind
    /// `kvgate replay`
    RandomWeights,
    /// As other tokens, as many: `kvgate replay --stand-in`
    StandIn,
}

impl HistoryName {
    const fn history(self) -> History {
        match self {
            Self::Kept => History::Kept,
            Self::RandomWeights => History::Corrected(RANDOM_WEIGHTS),
            Self::StandIn => History::Recut(1.0),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::RandomWeights => "random-weights",
            Self::StandIn => "stand-in",
        }
    }
}

/// Runs the cells and prints their tables.
///
/// # Errors
/// An option that cannot work; a file or standard output that cannot be written.
pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    let text = if args.calibration {
        calibration::render(&calibration::calibration_table())
    } else if !args.against.is_empty() {
        against::render(&against::pairs(args)?)
    } else if !args.from.is_empty() {
        table::render(&recorded(&args.from)?)
    } else {
        table::render(&rows(args)?)
    };
    stdout::say(&text)?;
    Ok(())
}

/// The rows of `files`, in their order.
fn recorded(files: &[PathBuf]) -> anyhow::Result<Vec<grid::Row>> {
    let read: anyhow::Result<Vec<_>> = files.iter().map(|file| grid::read(file)).collect();
    Ok(read?.concat())
}

/// The rows of the cells that `args` name, in their order: those of the file, and the rest run anew.
fn rows(args: &SimulateArgs) -> anyhow::Result<Vec<grid::Row>> {
    let jobs = jobs(args)?;
    let known = args
        .out
        .as_deref()
        .map_or_else(|| Ok(BTreeMap::new()), grid::known)?;
    let mut names = Vec::new();
    let mut missing = Vec::new();
    for job in jobs {
        let name = grid::name(&job.key)?;
        if !known.contains_key(&name) {
            missing.push(job);
        }
        names.push(name);
    }
    let mut output = Output::open(args.out.as_deref(), args.by_program.as_deref())?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(processors);
    let bar = grid::progress_bar(&missing, args.quiet);
    let mut new = grid::run(&missing, threads, &bar, &mut output)?.into_iter();
    bar.finish_and_clear();
    // What is not in the file was run in this order.
    let row = |name: String| known.get(&name).cloned().or_else(|| new.next());
    Ok(names.into_iter().filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::fd::AsRawFd as _;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(line: &str) -> SimulateArgs {
        Line::parse_from(line.split(' ')).args
    }

    const SMALL: &str = "simulate --policy baseline,continuum,bound --concurrency 2,4 --programs 6 \
                         --seed 1-2 --kv-tokens 20000 --quiet";

    fn text(line: &str) -> String {
        table::render(&rows(&args(line)).unwrap())
    }

    #[test]
    fn a_line_a_cell_and_the_same_bytes_on_any_number_of_threads() {
        let one = text(&format!("{SMALL} --threads 1"));
        assert_eq!(one, text(&format!("{SMALL} --threads 4")));
        let cells = one.lines().filter(|line| line.starts_with("orch C"));
        assert_eq!(cells.count(), 2 * 3);
    }

    #[test]
    fn a_run_goes_on_where_the_file_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let line = format!("{SMALL} --out {}", path.display());
        let whole = text(&line);
        let rows = std::fs::read_to_string(&path).unwrap();
        assert_eq!(rows.lines().count(), 2 * 2 * 3);
        // Broken off after five cells, and one of them in its place no more.
        let kept: Vec<_> = rows.lines().take(6).skip(1).collect();
        std::fs::write(&path, kept.join("\n") + "\n").unwrap();
        assert_eq!(text(&line), whole);
        let again = std::fs::read_to_string(&path).unwrap();
        assert_eq!(again.lines().count(), rows.lines().count());
        assert!(again.starts_with(kept[0]), "what was there stays");
    }

    #[test]
    fn a_pipe_gets_the_rows_and_is_not_read() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"of somebody else\n").unwrap();
        let path = format!("/dev/fd/{}", writer.as_raw_fd());
        let table = text(&format!("{SMALL} --out {path}"));
        assert_eq!(table, text(SMALL));
        drop(writer);
        let lines: Vec<_> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines[0], "of somebody else");
        assert_eq!(lines[1..].len(), 2 * 2 * 3);
        assert!(lines[1..].iter().all(|line| line.starts_with('{')));
    }

    #[test]
    fn the_tables_of_a_file_need_no_run_and_older_rows_count_as_told_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let line = SMALL.replace("continuum,bound", "kvgate,infinite-kv,clairvoyant,bound");
        let run = text(&format!("{line} --out {}", path.display()));
        let older = std::fs::read_to_string(&path).unwrap();
        let older = older.replace("\"believed_gaps\":1.0,", "");
        std::fs::write(&path, &older).unwrap();
        assert_eq!(
            table::render(&recorded(std::slice::from_ref(&path)).unwrap()),
            run
        );
        assert_eq!(text(&format!("{line} --out {}", path.display())), run);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            older,
            "nothing is run"
        );
        let absent = dir.path().join("absent.jsonl");
        let error = format!("{:#}", recorded(&[absent]).unwrap_err());
        assert!(error.contains("absent.jsonl"), "{error}");
    }

    #[test]
    fn wrong_gaps_are_heeded_by_our_policy_alone() {
        let line = "simulate --policy baseline,continuum,kvgate --concurrency 16 --programs 24 \
                    --kv-tokens 20000 --believed-gaps 1,20 --quiet";
        let rows = rows(&args(line)).unwrap();
        let (right, wrong) = rows.split_at(3);
        let same = |at: usize| right[at].measured == wrong[at].measured;
        assert_eq!([same(0), same(1), same(2)], [true, true, false]);
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_named_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let error = rows(&args(&format!("{SMALL} --out {}", path.display()))).unwrap_err();
        assert!(
            format!("{error:#}").contains("rows.jsonl, line 1"),
            "{error:#}"
        );
    }

    #[test]
    fn every_program_of_every_cell_is_listed_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("programs.jsonl");
        text(&format!("{SMALL} --by-program {}", path.display()));
        let lines = std::fs::read_to_string(&path).unwrap();
        // Two policies; the bound has no programs.
        assert_eq!(lines.lines().count(), 2 * 2 * 2 * 6);
        assert!(lines.contains("\"program\":\"retail-0\"") && lines.contains("\"seed\":2"));
    }

    #[test]
    fn no_policy_is_faster_than_the_bound() {
        let line = SMALL.replace("20000", "60000");
        let rows = rows(&args(&format!("{line} --shape orch,swe,forks"))).unwrap();
        for three in rows.chunks(3) {
            let [baseline, continuum, bound] = three else {
                panic!("three contenders");
            };
            for row in [baseline, continuum] {
                assert!(
                    row.measured.makespan_s > bound.measured.makespan_s,
                    "{row:?}"
                );
            }
            assert!(bound.measured.makespan_s > 10.0);
        }
    }

    #[test]
    fn an_option_that_cannot_work_is_named() {
        let problem = |line: &str| {
            let error = rows(&args(&format!("simulate --quiet {line}"))).unwrap_err();
            format!("{error:#}")
        };
        assert!(problem("--policy fifo").contains("baseline, "));
        assert!(problem("--shape knot").contains("no shape \"knot\""));
        assert!(problem("--seed 1-x").contains("ranges such as 11-15"));
        assert!(problem("--concurrency 0").contains("--concurrency"));
        assert!(problem("--kv-tokens 7").contains("--kv-tokens"));
        assert!(problem("--believed-gaps 0").contains("--believed-gaps"));
        assert!(problem("--anonymous 2").contains("--anonymous"));
        assert!(problem("--cost abacus").contains("h100-qwen3-8b"));
    }

    #[test]
    fn a_journal_is_a_workload() {
        use crate::policy::{Arrival, Event, ProgramId, RequestId, Time, Tokens};
        let arrival = Arrival {
            request: RequestId(0),
            program: Some(ProgramId(0)),
            name_hash: 0,
            prompt: Tokens(500),
            shared: None,
            last_step: true,
        };
        let line = crate::telemetry::journal::Line::Event {
            at: Time::ZERO,
            event: Event::Arrive(arrival),
            decisions: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monday.jsonl");
        std::fs::write(&path, serde_json::to_string(&line).unwrap() + "\n").unwrap();
        let line = format!(
            "simulate --quiet --journal {} --policy baseline",
            path.display()
        );
        let rows = rows(&args(&line)).unwrap();
        assert_eq!(
            (rows[0].key.shape.as_str(), rows[0].measured.steps),
            ("monday", 1)
        );
        std::fs::write(&path, "").unwrap();
        let error = format!("{:#}", super::rows(&args(&line)).unwrap_err());
        assert!(
            error.contains("monday.jsonl") && error.contains("no request"),
            "{error}"
        );
    }

    #[test]
    fn the_grid_is_the_experiment() {
        let of = |line: &str| jobs(&args(line)).unwrap().len();
        let cells = 8 * 7 * 4 * 2 * 5;
        assert_eq!(of("simulate --grid --policy baseline"), cells);
        let everybody = crate::policy::Config::NAMES.len() + contender::BOUNDS.len();
        assert_eq!(of("simulate --grid"), cells * everybody);
    }
}
