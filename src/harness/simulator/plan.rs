//! Which cells a command line asks for: the lists of its options, and every combination of them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::SimulateArgs;
use super::contender::{BOUNDS, Contender};
use super::grid::{Job, Key};
use crate::harness::cost_file;
use crate::harness::engine::core::CostModel;
use crate::harness::simulate::calibration::h100;
use crate::harness::simulate::recording::Reader;
use crate::harness::simulate::supply::Recorded;
use crate::harness::simulate::{Cell, Shape, Workload};
use crate::harness::trace::Trace;
use crate::policy;
use crate::telemetry::journal;

/// The lists of a run, with the defaults filled in.
#[derive(Debug)]
struct Lists {
    contenders: Vec<(String, Contender)>,
    workloads: Vec<Workload>,
    costs: Vec<(String, CostModel)>,
    concurrency: Vec<u32>,
    kv_tokens: Vec<u32>,
    prefill: Vec<f64>,
    seeds: Vec<u64>,
}

/// What a list holds where the command line does not say.
struct Defaults {
    shapes: &'static [&'static str],
    concurrency: &'static [u32],
    kv_tokens: &'static [u32],
    prefill: &'static [f64],
    seeds: &'static str,
}

/// A first look.
const FEW: Defaults = Defaults {
    shapes: &["orch"],
    concurrency: &[32, 64],
    kv_tokens: &[84_800],
    prefill: &[1.0],
    seeds: "1",
};

/// The experiment.
const GRID: Defaults = Defaults {
    shapes: &[
        "orch",
        "tau2",
        "tau2-lognormal",
        "swe",
        "mix",
        "slow",
        "review",
        "desk",
    ],
    concurrency: &[4, 8, 16, 32, 64, 128, 256],
    kv_tokens: &[50_000, 95_488, 200_000, 400_000],
    prefill: &[1.0, 3.0],
    seeds: "1-5",
};

fn lists(args: &SimulateArgs) -> anyhow::Result<Lists> {
    let defaults = if args.grid { GRID } else { FEW };
    let mut names: Vec<String> = given(&args.policy, policy::Config::NAMES.map(str::to_owned));
    if args.grid && args.policy.is_empty() {
        names.extend(BOUNDS.map(str::to_owned));
    }
    let contender = |name: String| Ok((name.clone(), Contender::parse(&name)?));
    let contenders = names.into_iter().map(contender);
    let cost = |name: &String| Ok((name.clone(), cost_file::load(name)?));
    let lists = Lists {
        contenders: contenders.collect::<anyhow::Result<_>>()?,
        workloads: workloads(args, defaults.shapes)?,
        costs: args.cost.iter().map(cost).collect::<anyhow::Result<_>>()?,
        concurrency: given(&args.concurrency, defaults.concurrency.iter().copied()),
        kv_tokens: given(&args.kv_tokens, defaults.kv_tokens.iter().copied()),
        prefill: given(&args.prefill, defaults.prefill.iter().copied()),
        seeds: seeds(&given(&args.seed, [defaults.seeds.to_owned()]))?,
    };
    lists.check(args)?;
    Ok(lists)
}

fn workloads(args: &SimulateArgs, shapes: &[&str]) -> anyhow::Result<Vec<Workload>> {
    let mut workloads = Vec::new();
    for name in &args.trace {
        workloads.push(Workload::recorded(&Trace::load(name)?));
    }
    for path in &args.journal {
        let recorded =
            read_journal(path).with_context(|| format!("--journal {}", path.display()))?;
        workloads.push(Workload::Recorded(Arc::new(recorded)));
    }
    if workloads.is_empty() || !args.shape.is_empty() {
        for name in given(&args.shape, shapes.iter().map(|&name| name.to_owned())) {
            workloads.push(Workload::by_name(&name)?);
        }
    }
    Ok(workloads)
}

fn read_journal(path: &Path) -> anyhow::Result<Recorded> {
    let mut reader = Reader::default();
    for line in journal::lines(BufReader::new(File::open(path)?)) {
        reader.take(&line?);
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let recorded = reader.end(stem.unwrap_or("journal"));
    recorded.context("no request in it belongs to a program")
}

/// `list`, or `default` where it is empty.
fn given<T: Clone>(list: &[T], default: impl IntoIterator<Item = T>) -> Vec<T> {
    if list.is_empty() {
        return default.into_iter().collect();
    }
    list.to_vec()
}

/// Seeds and ranges of seeds.
fn seeds(texts: &[String]) -> anyhow::Result<Vec<u64>> {
    let mut seeds = Vec::new();
    for text in texts {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| {
            text.parse::<u64>().with_context(|| {
                format!("--seed: {text:?}: write numbers, or ranges such as 11-15")
            })
        };
        let range = number(first)?..=number(last)?;
        ensure!(range.clone().count() <= 10_000, "--seed: {text}: too many");
        seeds.extend(range);
    }
    Ok(seeds)
}

impl Lists {
    fn check(&self, args: &SimulateArgs) -> anyhow::Result<()> {
        ensure!(
            self.concurrency.iter().all(|c| *c > 0),
            "--concurrency: 0 programs do nothing; write 1 or more"
        );
        ensure!(args.programs != Some(0), "--programs: write 1 or more");
        let block = h100().block_size;
        for tokens in &self.kv_tokens {
            ensure!(
                *tokens >= block,
                "--kv-tokens: {tokens} is less than a block"
            );
        }
        let beliefs = args.believed_capacity.iter().chain(&args.believed_gaps);
        for factor in self.prefill.iter().chain(beliefs) {
            ensure!(
                factor.is_finite() && *factor > 0.0,
                "--prefill, --believed-capacity, --believed-gaps: {factor} is no factor; write a number above 0"
            );
        }
        for share in &args.anonymous {
            ensure!(
                (0.0..=1.0).contains(share),
                "--anonymous: {share}: write a share, 0 to 1"
            );
        }
        ensure!(
            args.max_num_seqs > 0 && args.max_num_batched_tokens > 0,
            "--max-num-seqs, --max-num-batched-tokens: write 1 or more"
        );
        Ok(())
    }
}

/// Every combination, contenders innermost, then seeds.
///
/// # Errors
/// The option that cannot work, with what to do about it.
pub fn jobs(args: &SimulateArgs) -> anyhow::Result<Vec<Job>> {
    let lists = lists(args)?;
    let mut jobs = cross(vec![first(args)], &lists.workloads, |job, workload| {
        workload.name().clone_into(&mut job.key.shape);
        job.cell.workload = workload.clone();
    });
    jobs = cross(jobs, &lists.costs, |job, (name, cost)| {
        job.key.cost.clone_from(name);
        job.cell.engine.cost = *cost;
    });
    jobs = cross(jobs, &lists.prefill, |job, factor| {
        job.key.prefill = *factor;
        job.cell.engine.cost = job.cell.engine.cost.with_prefill(*factor);
    });
    jobs = cross(jobs, &lists.kv_tokens, |job, tokens| {
        job.key.kv_tokens = *tokens;
        // One more for the null block.
        job.cell.engine.blocks = tokens / job.cell.engine.block_size + 1;
    });
    jobs = cross(jobs, &lists.concurrency, |job, concurrency| {
        let programs = args.programs.or_else(|| job.cell.workload.programs());
        job.key.concurrency = *concurrency;
        job.cell.concurrency = *concurrency;
        job.cell.programs = programs.unwrap_or_else(|| Cell::programs_for(*concurrency));
        job.key.programs = job.cell.programs;
    });
    jobs = cross(jobs, &args.believed_capacity, |job, factor| {
        job.key.believed_capacity = *factor;
        job.cell.beliefs.capacity = *factor;
    });
    jobs = cross(jobs, &args.anonymous, |job, share| {
        job.key.anonymous = *share;
        job.cell.beliefs.anonymous = *share;
    });
    jobs = cross(jobs, &args.believed_gaps, |job, factor| {
        job.key.believed_gaps = *factor;
        job.cell.beliefs.gaps = *factor;
    });
    jobs = cross(jobs, &lists.seeds, |job, seed| {
        job.key.seed = *seed;
        job.cell.seed = *seed;
    });
    Ok(cross(jobs, &lists.contenders, |job, (name, contender)| {
        job.key.policy.clone_from(name);
        job.contender = contender.clone();
    }))
}

/// A job with what is the same for all.
fn first(args: &SimulateArgs) -> Job {
    let mut engine = h100();
    engine.max_num_seqs = args.max_num_seqs;
    engine.max_num_batched_tokens = args.max_num_batched_tokens;
    Job {
        key: Key {
            history: args.history.name().to_owned(),
            ..Key::default()
        },
        contender: Contender::Bound,
        cell: Cell {
            history: args.history.history(),
            ..Cell::new(Workload::Drawn(Shape::Orch), 1, 1, engine)
        },
    }
}

/// Each of `jobs` with each of `values`.
fn cross<V>(jobs: Vec<Job>, values: &[V], set: impl Fn(&mut Job, &V)) -> Vec<Job> {
    let with = |job: Job| {
        let set = &set;
        values.iter().map(move |value| {
            let mut job = job.clone();
            set(&mut job, value);
            job
        })
    };
    jobs.into_iter().flat_map(with).collect()
}
