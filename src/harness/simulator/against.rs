//! Live runs beside the simulation of the same trace: how far off the model is, cell by cell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::SimulateArgs;
use super::contender::{Contender, REFERENCE};
use super::plan::jobs;
use crate::harness::measure::Measures;
use crate::harness::report::load::own;
use crate::harness::run::Run;
use crate::harness::rundir::{DIRECT, Manifest, RunDir};
use crate::harness::simulate::{Cell, Measured, ProgramRun, Workload};
use crate::harness::stats::mean;
use crate::harness::trace::Trace;
use crate::harness::window::THRESHOLD_PERCENT;

/// A cell counts as met where steps/s differ by no more than this share,
const RATE_WITHIN: f64 = 0.10;
/// and hit rates by no more than this.
const HIT_WITHIN: f64 = 0.05;

/// What a live run and a simulation are compared by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// From the first request to the end of the last program, in seconds.
    pub makespan_s: f64,
    /// Steps per second between 20 % and 80 % of the steps.
    pub steps_per_s: f64,
    /// Cached over prompt tokens; `None` where the server did not report it.
    pub hit: Option<f64>,
    /// Mean time of a program, in seconds.
    pub program_mean_s: f64,
    /// 95th percentile of the same.
    pub program_p95_s: f64,
}

/// A live run and its simulation.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The run directory and the policy.
    pub name: String,
    /// Measured.
    pub live: Figures,
    /// Simulated.
    pub model: Figures,
    /// Mean absolute difference of the programs' times over their mean, program by program.
    pub program_error: f64,
}

/// Simulates each run of `args.against` and lays it beside the run.
///
/// # Errors
/// A run directory or its trace that cannot be read, a run that is incomplete, an unknown policy.
pub fn pairs(args: &SimulateArgs) -> anyhow::Result<Vec<Pair>> {
    args.against.iter().map(|name| pair(args, name)).collect()
}

fn pair(args: &SimulateArgs, name: &str) -> anyhow::Result<Pair> {
    let (path, policy) = name.split_once('=').unwrap_or((name, ""));
    let read = || anyhow::Ok((RunDir::at(path).manifest()?, own::read(Path::new(path))?));
    let (manifest, run) = read().with_context(|| format!("--against {path}"))?;
    let policy = match (policy, run.policy.as_str()) {
        ("", "unknown") => bail!(
            "--against {path}: the run does not say which policy was in front of it; \
             write {path}={REFERENCE} for none"
        ),
        ("" | DIRECT, DIRECT) | (DIRECT, _) => REFERENCE,
        ("", recorded) => recorded,
        (named, _) => named,
    };
    let cell = cell(args, &manifest, &run).with_context(|| format!("--against {path}"))?;
    let (measured, programs) = Contender::parse(policy)?.measure(&cell);
    let live = figures(&Measures::of(&run, THRESHOLD_PERCENT));
    let live = live.with_context(|| format!("--against {path}: nothing was served"))?;
    Ok(Pair {
        name: format!("{path} {policy}"),
        program_error: apart_s(&run, &programs) / live.program_mean_s,
        live,
        model: modelled(&measured),
    })
}

/// How far apart a program's two times are, on average.
fn apart_s(run: &Run, programs: &[ProgramRun]) -> f64 {
    let live: BTreeMap<&str, f64> = run
        .done()
        .map(|program| (program.name.as_str(), program.last_s - program.started_s))
        .collect();
    let apart = |run: &ProgramRun| {
        let live_s = live.get(run.program.as_str())?;
        Some((run.finished_s - run.started_s - live_s).abs())
    };
    mean(&programs.iter().filter_map(apart).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

/// The cell that the run was, on the engine of `args`.
fn cell(args: &SimulateArgs, manifest: &Manifest, run: &Run) -> anyhow::Result<Cell> {
    let Some(job) = jobs(args)?.into_iter().next() else {
        bail!("nothing to simulate");
    };
    ensure!(
        run.done().count() == manifest.programs,
        "the run is incomplete: not all of its {} programs were done",
        manifest.programs
    );
    Ok(Cell {
        workload: Workload::recorded(&Trace::load(&manifest.trace)?),
        concurrency: u32::try_from(manifest.concurrency)?,
        programs: manifest.programs,
        ..job.cell
    })
}

fn figures(measures: &Measures) -> Option<Figures> {
    let programs = measures.program_s?;
    Some(Figures {
        makespan_s: measures.whole?.seconds,
        steps_per_s: measures.steady?.steps_per_s,
        hit: measures.prefix_hit_rate,
        program_mean_s: programs.mean,
        program_p95_s: programs.p95,
    })
}

const fn modelled(measured: &Measured) -> Figures {
    Figures {
        makespan_s: measured.makespan_s,
        steps_per_s: measured.steps_per_s,
        hit: Some(measured.hit_true),
        program_mean_s: measured.program_mean_s,
        program_p95_s: measured.program_p95_s,
    }
}

impl Pair {
    /// Whether the model is as near as it has to be.
    fn is_met(&self) -> bool {
        let rate = (self.model.steps_per_s / self.live.steps_per_s - 1.0).abs() <= RATE_WITHIN;
        let apart = |live: f64| (self.model.hit.unwrap_or(live) - live).abs();
        rate && self.live.hit.is_none_or(|live| apart(live) <= HIT_WITHIN)
    }
}

/// The pairs as text, one line each, and how many are met.
pub fn render(pairs: &[Pair]) -> String {
    let width = pairs
        .iter()
        .map(|pair| pair.name.len())
        .max()
        .unwrap_or(0)
        .max(3);
    let mut text = format!(
        "{:<width$}  makespan s: live   model    diff  steps/s: live  model    diff  hit: live  model   program s: live   model     p95: live   model  program diff\n",
        "run"
    );
    for pair in pairs {
        let (live, model) = (&pair.live, &pair.model);
        let diff = |of: fn(&Figures) -> f64| 100.0 * (of(model) / of(live) - 1.0);
        let _infallible = writeln!(
            text,
            "{:<width$}  {:>16.1} {:>7.1} {:>+6.1}%  {:>13.2} {:>6.2} {:>+6.1}%  {:>9.3} {:>6.3}  {:>16.1} {:>7.1}  {:>10.1} {:>7.1}  {:>11.1}%",
            pair.name,
            live.makespan_s,
            model.makespan_s,
            diff(|f| f.makespan_s),
            live.steps_per_s,
            model.steps_per_s,
            diff(|f| f.steps_per_s),
            live.hit.unwrap_or(f64::NAN),
            model.hit.unwrap_or(f64::NAN),
            live.program_mean_s,
            model.program_mean_s,
            live.program_p95_s,
            model.program_p95_s,
            100.0 * pair.program_error,
        );
    }
    let met = pairs.iter().filter(|pair| pair.is_met()).count();
    let _infallible = writeln!(
        text,
        "{met} of {} runs: steps/s within {:.0} % and hit rate within {HIT_WITHIN}",
        pairs.len(),
        100.0 * RATE_WITHIN
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(steps_per_s: f64, hit: Option<f64>) -> Figures {
        Figures {
            makespan_s: 60.0,
            steps_per_s,
            hit,
            program_mean_s: 20.0,
            program_p95_s: 30.0,
        }
    }

    fn pair(live: Figures, model: Figures) -> Pair {
        Pair {
            name: "run baseline".to_owned(),
            live,
            model,
            program_error: 0.1,
        }
    }

    #[test]
    fn a_cell_is_met_by_rate_and_hit_rate_together() {
        let met =
            |rate, live_hit, hit| pair(figures(10.0, live_hit), figures(rate, Some(hit))).is_met();
        assert!(met(10.9, Some(0.80), 0.76));
        assert!(!met(11.1, Some(0.80), 0.80));
        assert!(!met(10.0, Some(0.80), 0.74));
        assert!(met(9.1, None, 0.1), "a server that does not report hits");
    }

    #[test]
    fn the_table_counts_what_is_met() {
        let good = pair(figures(10.0, Some(0.8)), figures(10.5, Some(0.8)));
        let bad = pair(figures(10.0, Some(0.8)), figures(15.0, Some(0.8)));
        let text = render(&[good, bad]);
        assert!(text.contains("+5.0%") && text.contains("+50.0%"), "{text}");
        assert!(
            text.ends_with("1 of 2 runs: steps/s within 10 % and hit rate within 0.05\n"),
            "{text}"
        );
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    /// The run directory of a set that a real server played exactly as the simulation says, without its last program
    /// if it is to be incomplete.
    fn run_dir(folder: &Path, complete: bool) -> SimulateArgs {
        use clap::Parser as _;
        let drawn = Workload::Drawn(crate::harness::simulate::Shape::Orch);
        let trace = Trace {
            name: String::new(),
            programs: drawn.to_trace(&drawn.supply(1).take(4).collect::<Vec<_>>()),
            repaired: 0,
        };
        let file = folder.join("orch.jsonl");
        std::fs::write(&file, trace.to_jsonl().unwrap()).unwrap();
        let (file, run) = (file.display().to_string(), folder.join("run"));
        let of_it = ["simulate", "--trace", &file, "--concurrency", "2"];
        let job = jobs(&Line::parse_from(of_it).args).unwrap().remove(0);
        let (_, runs) = job.contender.measure(&job.cell);
        let dir = RunDir::create(&run).unwrap();
        let manifest = Manifest {
            concurrency: 2,
            trace: file,
            programs: 4,
            ..Default::default()
        };
        dir.write_json("manifest.json", &manifest).unwrap();
        let (mut programs, mut steps) = (
            dir.lines("programs.jsonl").unwrap(),
            dir.lines("client_steps.jsonl").unwrap(),
        );
        for run in runs.iter().skip(usize::from(!complete)) {
            let record = crate::harness::rundir::ProgramRecord {
                program: run.program.clone(),
                kind: "orch".to_owned(),
                started_s: 1e9 + run.started_s,
                finished_s: 1e9 + run.finished_s,
                steps: run.steps,
                errors: 0,
                ending: crate::harness::rundir::Ending::Done,
                cause: None,
            };
            programs.push(&record).unwrap();
            let step = crate::telemetry::StepRecord {
                finished_s: record.finished_s,
                prompt_tokens: Some(100),
                cached_tokens: Some(90),
                outcome: "length".to_owned(),
                status: 200,
                ..Default::default()
            };
            steps.push(&step).unwrap();
        }
        programs.finish().unwrap();
        steps.finish().unwrap();
        let against = format!("{}=baseline", run.display());
        Line::parse_from(["simulate", "--against", &against]).args
    }

    #[test]
    fn a_run_is_laid_beside_the_simulation_of_its_own_trace() {
        let folder = tempfile::tempdir().unwrap();
        let args = run_dir(folder.path(), true);
        let pair = pairs(&args).unwrap().remove(0);
        assert!((pair.live.makespan_s - pair.model.makespan_s).abs() < 1e-3);
        assert!(pair.program_error < 1e-6, "{}", pair.program_error);
        assert_eq!(pair.live.hit, Some(0.9));
    }

    #[test]
    fn a_run_that_is_incomplete_or_does_not_say_its_policy_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut args = run_dir(folder.path(), false);
        let problem = |args: &SimulateArgs| format!("{:#}", pairs(args).unwrap_err());
        assert!(problem(&args).contains("incomplete"), "{}", problem(&args));
        args.against[0] = args.against[0].replace("=baseline", "");
        assert!(
            problem(&args).contains("=baseline for none"),
            "{}",
            problem(&args)
        );
    }
}
