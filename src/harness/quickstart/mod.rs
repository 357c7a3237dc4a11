//! The whole path with one command: `kvgate quickstart` compares policies on an embedded engine, without a GPU.
//!
//! For each cell of policies × concurrency it starts a fresh engine and a fresh gate as child processes, both
//! sped up, plays the same fixed set of programs through them, and prints one table. [`cell`] runs a cell,
//! [`super::child`] keeps a process; the table is [`super::report`]'s.
//!
//! The default matrix is 9 cells of about 12 minutes each, in some two minutes at 60 times real time. The time is
//! the engine's, not the machine's, whose two cores are mostly idle; a set of 4C + 32 programs is long enough that
//! its tail, when few programs are left, does not decide the whole run.

pub mod cell;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;

use self::cell::{Backend, Cell, Finished};
use super::replay::cancelled_by_signal;
use super::report::load::{self, Source};
use super::report::{Report, text};
use super::rundir::{DIRECT, EngineManifest, RunDir};
use super::trace::Trace;
use super::window::THRESHOLD_PERCENT;
use crate::clock::Clock;
use crate::policy;

/// KV blocks that Qwen3-8B leaves on the RTX 5090 of the reference experiment: 95,488 tokens.
const MOST_BLOCKS: u32 = 5_968;
/// KV blocks per program in flight at which a small cell is under pressure.
const BLOCKS_PER_PROGRAM: u32 = 256;
/// Tokens per KV block.
const BLOCK_SIZE: u32 = 16;
/// Share by which a context may exceed the trace's count, as 1/n.
const LENGTH_SLACK: u32 = 20;

/// Flags of `kvgate quickstart`.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct QuickstartArgs {
    /// Policies to compare; with --backend also `direct`: no gate at all
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', default_values = ["baseline", "thunderagent", "kvgate"])]
    pub policies: Vec<String>,
    /// Programs in flight, one row of the table each
    #[arg(long, value_name = "C", num_args = 1.., value_delimiter = ',', default_values_t = [8, 32, 64])]
    pub concurrency: Vec<usize>,
    /// Size of the fixed set of programs of each cell [default: 4C + 32; with --backend, the trace's]
    #[arg(long, value_name = "N")]
    pub programs: Option<usize>,
    /// A live vLLM to play on, in real time and with streams, instead of an embedded engine
    #[arg(long, value_name = "URL", conflicts_with_all = ["speedup", "cost", "kv_blocks", "stream"])]
    pub backend: Option<String>,
    /// A gate of another make that stands before --backend already: --policies takes its name too
    #[arg(long = "peer", value_name = "NAME=URL", requires = "backend")]
    pub peers: Vec<String>,
    /// Put words of our own in place of replies, for a live model with random weights
    #[arg(long, requires = "backend")]
    pub stand_in: bool,
    /// Begin no cell after this many seconds; the same command with --keep goes on
    #[arg(long, value_name = "S")]
    pub budget_s: Option<f64>,
    /// Seconds of the run per real second
    #[arg(long, value_name = "FACTOR", default_value_t = 60.0)]
    pub speedup: f64,
    /// Built-in trace (tau2, swe) or a file of JSON lines
    #[arg(long, value_name = "NAME|FILE", default_value = "tau2")]
    pub trace: String,
    /// Cost preset of the engine
    #[arg(long, value_name = "PRESET", default_value = "rtx5090-qwen3-8b")]
    pub cost: String,
    /// KV blocks of 16 tokens [default: 256 per program in flight, at most 5968 as on an RTX 5090]
    #[arg(long, value_name = "N")]
    pub kv_blocks: Option<u32>,
    /// Ask for streamed replies, which costs the machine several times more
    #[arg(long)]
    pub stream: bool,
    /// Seed of the message texts
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Folder for run directories and report [default: runs/quickstart-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Keep the cells that --out already has and run the others
    #[arg(long, requires = "out")]
    pub keep: bool,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// Runs the matrix and prints the table. Ctrl-C ends it early and compares what was finished.
///
/// # Errors
/// When a flag is wrong, a child process fails, or the run was interrupted.
pub async fn run(args: QuickstartArgs) -> anyhow::Result<()> {
    let (cells, out) = plan(&args)?;
    let cancel = cancelled_by_signal()?;
    say(&intro(&args, &cells));
    let mut done = Vec::new();
    let mut notes = general_notes(&args);
    let clock = Clock::real();
    let begun = clock.now();
    let mut left = 0;
    for (index, cell) in cells.iter().enumerate() {
        let spent = clock.now().since(begun).as_secs_f64();
        let is_kept = args.keep && cell.is_there();
        if !is_kept && args.budget_s.is_some_and(|budget| spent >= budget) {
            left += 1;
            continue;
        }
        let finished = if is_kept {
            say(&format!("{}: kept", cell.label));
            None
        } else {
            Some(Box::pin(cell.run(cancel.clone())).await)
        };
        if cancel.is_cancelled() {
            break;
        }
        let finished = finished.transpose().with_context(|| cell.label.clone())?;
        if let Some(finished) = finished {
            say(&line(cell, &finished, index + 1, cells.len()));
            notes.extend(
                finished
                    .warning
                    .map(|why| format!("{}: {why}; lower --speedup", cell.label)),
            );
        }
        done.push(cell);
    }
    // Policies in the order they were named, whichever went first.
    done.sort_by_key(|cell| {
        (
            cell.concurrency,
            args.policies.iter().position(|p| *p == cell.policy),
        )
    });
    conclude(&done, &out, notes)?;
    if left > 0 {
        say(&format!(
            "--budget-s is spent: {left} cells are left; the same command with --keep goes on"
        ));
    }
    ensure!(
        !cancel.is_cancelled(),
        "interrupted after {} of {} cells",
        done.len(),
        cells.len()
    );
    Ok(())
}

/// Prints and writes the comparison of the finished cells.
fn conclude(done: &[&Cell], out: &RunDir, notes: Vec<String>) -> anyhow::Result<()> {
    if done.is_empty() {
        return Ok(());
    }
    let sources: Vec<Source> = done.iter().map(|cell| Source::at(&cell.dir)).collect();
    let runs = load::all(&sources, None)?;
    let mut report = Report::of(&runs, THRESHOLD_PERCENT);
    report.notes = notes;
    report.write(out.path())?;
    say(&format!("\n{}", text::comparison(&report)));
    say(&format!(
        "report: {}\nrun directories: {}",
        out.path().join("report.md").display(),
        out.path().display()
    ));
    Ok(())
}

/// The cells in the order they run. Policies take turns in going first, so that a machine that warms up or gets
/// busy does not always meet the same one.
fn plan(args: &QuickstartArgs) -> anyhow::Result<(Vec<Cell>, RunDir)> {
    let peers = peers(args)?;
    for name in &args.policies {
        let direct = name == DIRECT && args.backend.is_some();
        if !direct && !peers.contains_key(name) && policy::Config::by_name(name).is_none() {
            let names = policy::Config::NAMES.join(", ");
            bail!(
                "--policies: no policy {name:?}; choose from {names}, or {DIRECT} and each --peer with --backend"
            );
        }
    }
    ensure!(
        args.speedup.is_finite() && args.speedup >= 1.0,
        "--speedup must be at least 1"
    );
    ensure!(
        args.concurrency.iter().all(|c| (1..=4096).contains(c)),
        "--concurrency must be 1 to 4096"
    );
    ensure!(args.programs != Some(0), "--programs must be at least 1");
    let trace = Arc::new(Trace::load(&args.trace)?);
    let out = out_dir(args, &trace)?;
    let mut cells = Vec::new();
    for (row, &concurrency) in args.concurrency.iter().enumerate() {
        let mut policies: Vec<&String> = args.policies.iter().collect();
        if row % 2 == 1 {
            policies.reverse();
        }
        for policy in policies {
            let mut cell = cell_of(args, &trace, &out, policy, concurrency)?;
            cell.peer = peers.get(policy).cloned();
            cells.push(cell);
        }
    }
    Ok((cells, out))
}

/// The URLs of the gates of another make, by name.
fn peers(args: &QuickstartArgs) -> anyhow::Result<BTreeMap<String, String>> {
    let mut peers = BTreeMap::new();
    for peer in &args.peers {
        let (name, url) = peer
            .split_once('=')
            .filter(|(_, url)| url.starts_with("http://"))
            .with_context(|| format!("--peer {peer:?} must be NAME=http://HOST:PORT"))?;
        let taken = name == DIRECT || policy::Config::by_name(name).is_some();
        ensure!(
            !taken,
            "--peer {peer:?}: {name} is a policy; name it otherwise"
        );
        peers.insert(name.to_owned(), url.to_owned());
    }
    Ok(peers)
}

fn out_dir(args: &QuickstartArgs, trace: &Trace) -> anyhow::Result<RunDir> {
    let Some(out) = &args.out else {
        let now = Clock::real();
        let stamp = now.unix(now.now());
        return RunDir::create(format!("runs/quickstart-{}-{stamp:.0}", trace.file_stem()));
    };
    let used = out
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    ensure!(
        args.keep || !used,
        "--out {} is not empty; name another folder, or add --keep to go on there",
        out.display()
    );
    RunDir::create(out)
}

fn cell_of(
    args: &QuickstartArgs,
    trace: &Arc<Trace>,
    out: &RunDir,
    policy: &str,
    concurrency: usize,
) -> anyhow::Result<Cell> {
    let (backend, whole) = match &args.backend {
        Some(url) => (Backend::Live(url.clone()), trace.programs.len()),
        None => (embedded(args, trace, concurrency)?, 4 * concurrency + 32),
    };
    let is_live = args.backend.is_some();
    Ok(Cell {
        policy: policy.to_owned(),
        peer: None,
        concurrency,
        programs: args.programs.unwrap_or(whole),
        trace: Arc::clone(trace),
        speedup: if is_live { 1.0 } else { args.speedup },
        backend,
        stream: args.stream || is_live,
        stand_in: args.stand_in,
        seed: args.seed,
        dir: out.path().join(format!("c{concurrency}-{policy}")),
        quiet: args.quiet,
        label: format!("{} C={concurrency} {policy}", trace.file_stem()),
    })
}

/// An engine that holds this trace's longest context.
fn embedded(args: &QuickstartArgs, trace: &Trace, concurrency: usize) -> anyhow::Result<Backend> {
    let longest = longest_context(trace);
    let max_model_len = longest + longest / LENGTH_SLACK;
    // One block more than the longest context needs: the engine keeps one for itself.
    let least = max_model_len.div_ceil(BLOCK_SIZE) + 1;
    let by_size = u32::try_from(concurrency)?.saturating_mul(BLOCKS_PER_PROGRAM);
    let kv_blocks = args
        .kv_blocks
        .unwrap_or_else(|| by_size.min(MOST_BLOCKS).max(least));
    ensure!(
        kv_blocks >= least,
        "--kv-blocks must be at least {least} for the longest context of this trace"
    );
    Ok(Backend::Embedded {
        engine: EngineManifest {
            cost: args.cost.clone(),
            kv_blocks,
            block_size: BLOCK_SIZE,
        },
        max_model_len,
    })
}

/// The longest prompt with its reply, in tokens.
fn longest_context(trace: &Trace) -> u32 {
    let steps = trace.programs.iter().flat_map(|program| &program.steps);
    let contexts = steps.map(|step| step.prompt_tokens + step.output_tokens);
    contexts.max().unwrap_or_default()
}

fn intro(args: &QuickstartArgs, cells: &[Cell]) -> String {
    let what = match &args.backend {
        Some(url) => url.clone(),
        None => format!("engine {}, {}x real time", args.cost, args.speedup),
    };
    format!(
        "{} cells: {} x C={:?}, trace {}, {what}",
        cells.len(),
        args.policies.join(" "),
        args.concurrency,
        args.trace,
    )
}

fn general_notes(args: &QuickstartArgs) -> Vec<String> {
    if let Some(url) = &args.backend {
        return vec![format!("{url} in real time, one run a cell")];
    }
    let mut notes = vec![format!(
        "a model of an engine at {}x real time, one run a cell; repeats of a cell differ by up to 7 %",
        args.speedup
    )];
    if cfg!(debug_assertions) {
        notes.push("built without --release, so the machine keeps up with less".to_owned());
    }
    notes
}

fn line(cell: &Cell, finished: &Finished, number: usize, cells: usize) -> String {
    let measures = &finished.summary.measures;
    let figures = measures.whole.map_or_else(
        || "no programs".to_owned(),
        |w| {
            format!(
                "{:.2} tasks/min, {:.2} steps/s over {:.0} s",
                w.tasks_per_min, w.steps_per_s, w.seconds
            )
        },
    );
    let hit = measures
        .prefix_hit_rate
        .map_or_else(String::new, |rate| format!(", hit rate {rate:.3}"));
    let mark = if finished.warning.is_some() {
        " (!)"
    } else {
        ""
    };
    format!("[{number}/{cells}] {}: {figures}{hit}{mark}", cell.label)
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(change: impl Fn(&mut QuickstartArgs)) -> QuickstartArgs {
        let mut args = QuickstartArgs {
            policies: vec!["baseline".to_owned(), "continuum".to_owned()],
            concurrency: vec![8, 32],
            programs: None,
            backend: None,
            peers: Vec::new(),
            stand_in: false,
            budget_s: None,
            speedup: 40.0,
            trace: "tau2".to_owned(),
            cost: "rtx5090-qwen3-8b".to_owned(),
            kv_blocks: None,
            stream: false,
            seed: 1,
            out: None,
            keep: false,
            quiet: true,
        };
        change(&mut args);
        args
    }

    #[test]
    fn policies_of_a_row_play_the_same_set_on_the_same_engine_and_take_turns() {
        let temp = tempfile::tempdir().unwrap();
        let (cells, _) = plan(&args(|a| a.out = Some(temp.path().to_owned()))).unwrap();
        let order: Vec<(usize, &str)> = cells
            .iter()
            .map(|c| (c.concurrency, c.policy.as_str()))
            .collect();
        assert_eq!(
            order,
            [
                (8, "baseline"),
                (8, "continuum"),
                (32, "continuum"),
                (32, "baseline")
            ]
        );
        for row in cells.chunks(2) {
            assert_eq!(
                (row[0].programs, &row[0].backend),
                (row[1].programs, &row[1].backend)
            );
        }
        let blocks = |cell: &Cell| cell.backend.engine().unwrap().kv_blocks;
        assert_eq!((blocks(&cells[0]), blocks(&cells[2])), (2_048, 5_968));
        let Backend::Embedded { max_model_len, .. } = &cells[0].backend else {
            panic!("no backend was given");
        };
        assert!(blocks(&cells[0]) * BLOCK_SIZE > *max_model_len);
    }

    #[test]
    fn a_live_server_gets_the_whole_trace_in_real_time_and_no_gate_where_asked() {
        let temp = tempfile::tempdir().unwrap();
        let live = args(|a| {
            a.out = Some(temp.path().to_owned());
            a.backend = Some("http://127.0.0.1:1".to_owned());
            a.policies = vec![DIRECT.to_owned(), "baseline".to_owned()];
        });
        let (cells, _) = plan(&live).unwrap();
        assert_eq!(
            cells[0].backend,
            Backend::Live("http://127.0.0.1:1".to_owned())
        );
        assert_eq!((cells[0].programs, cells[0].stream), (164, true));
        assert!((cells[0].speedup - 1.0).abs() < 1e-9);
        assert_eq!(cells[1].peer, None);
        let embedded = args(|a| a.policies = vec![DIRECT.to_owned()]);
        let error = plan(&embedded).unwrap_err().to_string();
        assert!(error.contains("with --backend"), "{error}");
    }

    #[test]
    fn a_gate_of_another_make_is_a_policy_by_the_name_that_it_is_given() {
        let temp = tempfile::tempdir().unwrap();
        let live = |peer: &str| {
            let peer = peer.to_owned();
            plan(&args(|a| {
                a.out = Some(temp.path().to_owned());
                a.backend = Some("http://127.0.0.1:1".to_owned());
                a.peers = vec![peer.clone()];
                a.policies = vec!["baseline".to_owned(), "router".to_owned()];
            }))
        };
        let (cells, _) = live("router=http://127.0.0.1:2").unwrap();
        let urls: Vec<Option<&str>> = cells[..2].iter().map(|c| c.peer.as_deref()).collect();
        assert_eq!(urls, [None, Some("http://127.0.0.1:2")]);
        for (peer, why) in [
            ("router", "NAME=http://"),
            ("router=here", "NAME=http://"),
            ("baseline=http://127.0.0.1:2", "is a policy"),
            ("other=http://127.0.0.1:2", "each --peer"),
        ] {
            let error = live(peer).unwrap_err().to_string();
            assert!(error.contains(why), "{peer}: {error}");
        }
    }

    #[test]
    fn wrong_flags_are_named_before_anything_starts() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("old"), "").unwrap();
        let error =
            |change: &dyn Fn(&mut QuickstartArgs)| plan(&args(change)).unwrap_err().to_string();
        assert!(error(&|a| a.policies = vec!["magic".to_owned()]).contains("thunderreact"));
        assert!(error(&|a| a.speedup = 0.0).contains("--speedup"));
        assert!(error(&|a| a.concurrency = vec![0]).contains("--concurrency"));
        assert!(error(&|a| a.out = Some(temp.path().to_owned())).contains("--keep"));
    }
}
