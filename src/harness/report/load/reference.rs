//! A run directory of the reference system.
//!
//! Tasks come from `driver.log`; steps and calls from `logs/tau2_global.log`, which has one record a line, and from
//! `driver.log` where that is missing or has fewer. Of both only compact records are kept.

use std::collections::HashMap;
use std::mem;
use std::path::Path;

use super::kv;
use crate::harness::reference::driver_log::Event;
use crate::harness::reference::files::{self, DRIVER_LOG, LogTally, METRICS, PROFILE_LOG, RESULTS};
use crate::harness::reference::local_time::LocalTime;
use crate::harness::reference::outputs::SchedulerEvent;
use crate::harness::reference::profile::{Kind, Level, Record};
use crate::harness::report::zone::LogZone;
use crate::harness::run::{
    Call, CallKind, DriverSummary, Edge, Ended, FileIntake, Missing, Prefix, Program, Role, Run,
    Step,
};
use crate::harness::rundir::{Ending, StepSource};
use crate::telemetry::kv_csv;

/// Written by Continuum's scheduler.
const SCHEDULER: &str = "scheduler_timestamps";
/// Where results and summary are.
const OUTPUTS: &str = "outputs";
/// The name that the judge's records add to their task's.
const JUDGE: &str = "_nl_eval";

/// Whether the directory may hold a run of the reference system.
pub fn is_there(dir: &Path) -> bool {
    [DRIVER_LOG, "logs", OUTPUTS, kv_csv::FILE]
        .iter()
        .any(|name| dir.join(name).exists())
}

/// Reads it; `log_zone` says where its clocks stood, and without it the sampler's offset does.
///
/// # Errors
/// When a file is there and cannot be read; the message names it.
pub fn read(dir: &Path, log_zone: Option<&LogZone>) -> anyhow::Result<Run> {
    let mut run = Run {
        step_source: StepSource::Agents,
        ..Run::default()
    };
    let offset_s = kv::read(dir, &mut run)?;
    let zone = log_zone
        .cloned()
        .unwrap_or_else(|| LogZone::of_sampler(offset_s));
    run.intake.zone = Some(zone.said());
    let mut loader = Loader::new(run, zone);
    logs(dir, &mut loader)?;
    outputs(dir, &mut loader.run);
    Ok(loader.finish())
}

fn logs(dir: &Path, loader: &mut Loader) -> anyhow::Result<()> {
    let (mut driver, mut steps) = (None, (0, 0));
    let mut profile = None;
    if dir.join(PROFILE_LOG).is_file() {
        (driver, steps.0) = driver_log(dir, loader, false)?;
        profile = files::profile_records(dir, |record| {
            steps.1 += u64::from(record.kind == Some(Kind::StepComplete));
            loader.record(&record);
        })?;
        loader.run.intake.steps_in_logs = driver.is_some().then_some(steps);
    }
    let by_driver = profile.is_none() || steps.0 > steps.1;
    if by_driver {
        loader.restart();
        (driver, _) = driver_log(dir, loader, true)?;
    }
    let none = FileIntake::default();
    let untimed = mem::take(&mut loader.untimed);
    let (in_driver, in_profile) = if by_driver {
        (untimed, none)
    } else {
        (none, untimed)
    };
    let intake = &mut loader.run.intake;
    if let Some(tally) = &driver {
        intake.glued = tally.glued;
        intake.tuple_markers = tally.tuples;
        intake.files.push(file_intake(DRIVER_LOG, tally, in_driver));
        let summary = intake.driver.is_some();
        intake.ended = if summary {
            Ended::Summary
        } else {
            Ended::Killed("the driver's summary line")
        };
    }
    if let Some(tally) = &profile {
        intake
            .files
            .push(file_intake(PROFILE_LOG, tally, in_profile));
    }
    missing(dir, loader);
    Ok(())
}

/// Reads `driver.log`, its steps and calls only where they are `wanted`; also how many steps it has.
fn driver_log(
    dir: &Path,
    loader: &mut Loader,
    wanted: bool,
) -> anyhow::Result<(Option<LogTally>, u64)> {
    let mut steps = 0;
    let tally = files::driver_events(dir, |event| {
        let Event::Record(record) = event else {
            loader.event(&event);
            return;
        };
        steps += u64::from(record.kind == Some(Kind::StepComplete));
        if wanted {
            loader.record(&record);
        }
    })?;
    Ok((tally, steps))
}

/// What reading a log met, and what its records did not say.
fn file_intake(file: &str, tally: &LogTally, untimed: FileIntake) -> FileIntake {
    let example = tally.example.clone().map(|line| (None, line));
    FileIntake {
        file: file.to_owned(),
        records: tally.read - untimed.unparsed,
        unparsed: tally.unread + untimed.unparsed,
        example: example.or(untimed.example),
    }
}

fn missing(dir: &Path, loader: &mut Loader) {
    let mut note = |file, without, fatal| {
        if !dir.join(file).is_file() {
            loader.run.intake.missing.push(Missing {
                file,
                without,
                fatal,
                tells_of_programs: file == DRIVER_LOG,
            });
        }
    };
    note(DRIVER_LOG, "nothing says which tasks finished", true);
    let steps = if dir.join(DRIVER_LOG).is_file() {
        "steps and calls are taken from driver.log"
    } else {
        "there are no steps"
    };
    note(PROFILE_LOG, steps, false);
    note(kv_csv::FILE, "there is no active window", true);
    if loader.run.done().next().is_some() && !dir.join(OUTPUTS).is_dir() {
        loader.run.intake.missing.push(Missing {
            file: OUTPUTS,
            without: "driver.log says that tasks completed, and their results are not there",
            fatal: false,
            tells_of_programs: false,
        });
    }
}

fn outputs(dir: &Path, run: &mut Run) {
    let metrics = run.intake.read(METRICS, files::metrics(dir));
    if let Some(metrics) = metrics.flatten() {
        run.expected = run.expected.or_else(|| usize::try_from(metrics.total).ok());
        run.intake.driver.get_or_insert(DriverSummary {
            ok: metrics.ok,
            error: metrics.error,
            total: metrics.total,
            elapsed_s: metrics.elapsed_s,
            tasks_per_min: metrics.tasks_per_min,
        });
    }
    let results = run.intake.read(RESULTS, files::task_results(dir, |_| {}));
    let results = results.and_then(|count| usize::try_from(count).ok());
    run.intake.result_files = results.filter(|&count| count > 0);
    let mut prefix = Prefix::default();
    let read = files::scheduler_timestamps(dir, |_, events| {
        for event in events {
            // What an eviction made it compute again says nothing of the requests' own prefixes.
            if let SchedulerEvent::Started {
                prompt,
                hit,
                again: false,
                ..
            } = event
            {
                prefix.prompt += prompt;
                prefix.cached += hit;
            }
        }
    });
    let whole = run.intake.read(SCHEDULER, read).is_some();
    run.prefix = (whole && prefix.prompt > 0).then_some(prefix);
}

struct Loader {
    run: Run,
    zone: LogZone,
    /// Where each task's program is.
    programs: HashMap<String, u32>,
    /// The last error that a task's thread logged.
    reasons: HashMap<u32, String>,
    domains: Vec<String>,
    /// When the driver began to schedule, Unix seconds: nothing can have begun earlier.
    began_s: f64,
    /// Steps and calls that do not say how long they took.
    untimed: FileIntake,
}

impl Loader {
    fn new(run: Run, zone: LogZone) -> Self {
        Self {
            run,
            zone,
            programs: HashMap::new(),
            reasons: HashMap::new(),
            domains: Vec::new(),
            began_s: f64::NEG_INFINITY,
            untimed: FileIntake::default(),
        }
    }

    /// Forgets what the logs said, so that they can be read again.
    fn restart(&mut self) {
        let read = mem::take(&mut self.run);
        let run = Run {
            step_source: read.step_source,
            series: read.series,
            intake: read.intake,
            ..Run::default()
        };
        *self = Self::new(run, self.zone.clone());
    }

    fn event(&mut self, event: &Event<'_>) {
        match *event {
            Event::Loaded { domain, .. } => {
                if !self.domains.iter().any(|known| known == domain) {
                    self.domains.push(domain.to_owned());
                }
            }
            Event::Scheduled {
                at,
                total_tasks,
                max_concurrency,
            } => {
                self.began_s = self.zone.unix(at);
                self.run.expected = usize::try_from(total_tasks).ok();
                self.run.concurrency = max_concurrency.and_then(|c| usize::try_from(c).ok());
            }
            Event::Started { at, domain, task } => {
                let index = self.started(&format!("{domain}:{task}"), at);
                if let Some(program) = self.run.programs.get_mut(index as usize) {
                    program.begin_known = true;
                }
            }
            Event::Finished {
                at, domain, task, ..
            } => {
                self.ended(&format!("{domain}:{task}"), at, Ending::Done);
            }
            Event::Failed {
                at,
                domain,
                task,
                error,
                ..
            } => {
                let index = self.ended(&format!("{domain}:{task}"), at, Ending::Failed);
                let reason = self.reasons.remove(&index);
                let cause = reason.unwrap_or_else(|| cause(error));
                self.run.count_error(&format!("program given up: {cause}"));
            }
            Event::Complete {
                ok,
                error,
                total,
                elapsed_s,
                tasks_per_min,
                ..
            } => {
                self.run.intake.driver = Some(DriverSummary {
                    ok,
                    error,
                    total,
                    elapsed_s,
                    tasks_per_min,
                });
            }
            Event::Left { .. } | Event::Record(_) => {}
        }
    }

    fn record(&mut self, record: &Record<'_>) {
        let program = self.program_of(record);
        let ended_s = self.zone.unix(record.at);
        if record.level == Level::Error {
            if let Some(program) = program {
                self.reasons.insert(program, cause(record.text));
            }
            return;
        }
        let lasted_ms = record.duration_ms().filter(|lasted_ms| *lasted_ms >= 0.0);
        let seconds = lasted_ms.map(|lasted_ms| lasted_ms / 1000.0);
        let started_s = seconds.map(|seconds| (ended_s - seconds).max(self.began_s));
        self.touch(program, started_s, ended_s);
        let Some(kind) = record.kind else {
            return;
        };
        let Some((seconds, started_s)) = seconds.zip(started_s) else {
            let line = format!("task={} {}", record.task, record.text);
            self.untimed.bad(None, &line);
            return;
        };
        let step = record.step.unwrap_or_default();
        let kind = match kind {
            Kind::StepComplete => {
                let (from, to) = record.edge().unwrap_or(("other", "other"));
                self.run.steps.push(Step {
                    program,
                    index: step,
                    edge: Edge {
                        from: Role::from_word(from),
                        to: Role::from_word(to),
                    },
                    served: true,
                    started_s,
                    finished_s: ended_s,
                });
                return;
            }
            Kind::LlmCall => CallKind::LlmCall,
            Kind::ExpertCall => CallKind::ExpertCall,
            Kind::ToolCall => CallKind::ToolCall,
            Kind::UserSim => CallKind::UserSim,
            Kind::Evaluator => CallKind::Evaluator,
        };
        self.run.calls.push(Call {
            kind,
            program,
            step,
            ended_s,
            seconds,
        });
    }

    fn program_of(&mut self, record: &Record<'_>) -> Option<u32> {
        let task = record.task.strip_suffix(JUDGE).unwrap_or(record.task);
        if task == "global" {
            return None;
        }
        Some(self.index_of(task, self.zone.unix(record.at)))
    }

    /// Moves a program's ends apart, as long as it has not ended.
    fn touch(&mut self, program: Option<u32>, from_s: Option<f64>, to_s: f64) {
        let program = program.and_then(|index| self.run.programs.get_mut(index as usize));
        if let Some(program) = program {
            if let Some(from_s) = from_s {
                program.started_s = program.started_s.min(from_s);
                program.begin_known = true;
            }
            if program.ending.is_none() {
                program.last_s = program.last_s.max(to_s);
            }
        }
    }

    /// A task that begins again, as with several trials, is another program.
    fn started(&mut self, task: &str, at: LocalTime) -> u32 {
        let at_s = self.zone.unix(at);
        let known = self.programs.get(task).copied();
        let over = known.and_then(|index| self.run.programs.get(index as usize));
        if over.is_some_and(|program| program.ending.is_some()) {
            self.programs.remove(task);
        }
        self.index_of(task, at_s)
    }

    fn ended(&mut self, task: &str, at: LocalTime, ending: Ending) -> u32 {
        let index = self.started(task, at);
        let at_s = self.zone.unix(at);
        if let Some(program) = self.run.programs.get_mut(index as usize) {
            program.last_s = at_s;
            program.ending = Some(ending);
        }
        index
    }

    fn index_of(&mut self, task: &str, at_s: f64) -> u32 {
        if let Some(&known) = self.programs.get(task) {
            return known;
        }
        let index = u32::try_from(self.run.programs.len()).unwrap_or(u32::MAX);
        let kind = task.split_once(':').map_or("", |(domain, _)| domain);
        self.run.programs.push(Program {
            name: task.to_owned(),
            kind: kind.to_owned(),
            started_s: at_s,
            last_s: at_s,
            ..Program::default()
        });
        self.programs.insert(task.to_owned(), index);
        index
    }

    fn finish(mut self) -> Run {
        if self.domains.is_empty() {
            self.domains = self.run.programs.iter().map(|p| p.kind.clone()).collect();
        }
        self.domains.sort();
        self.domains.dedup();
        self.domains.retain(|domain| !domain.is_empty());
        let tasks = self.run.expected.unwrap_or(self.run.programs.len());
        let domains = match self.domains.join("+") {
            none if none.is_empty() => String::new(),
            domains => format!(" {domains}"),
        };
        self.run.workload = format!("tau2{domains}, {tasks} tasks");
        self.run
    }
}

/// The sort of failure that an error text tells of, so that failures can be counted.
pub fn cause(text: &str) -> String {
    const SORTS: [(&str, &str); 6] = [
        ("context length", "context length exceeded"),
        ("contextlength", "context length exceeded"),
        ("expert", "an expert model failed"),
        ("timed out", "a request timed out"),
        ("timeout", "a request timed out"),
        ("connection", "a connection failed"),
    ];
    let lower = text.to_ascii_lowercase();
    let sort = SORTS.iter().find(|(word, _)| lower.contains(word));
    match sort {
        Some((_, name)) => (*name).to_owned(),
        None => text.chars().take(80).collect(),
    }
}
