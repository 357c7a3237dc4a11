//! The lines of the run's logs, byte for byte in the reference driver's formats; pure.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::event::{Event, Failure, Moment, Role, What};
use super::outputs::Header;
use super::plan::Unit;
use crate::harness::reference::outputs::Metrics;

const RULE: &str = "============================================================";
const THIN_RULE: &str = "------------------------------------------------------------";

/// A line of `events.jsonl`.
#[derive(Serialize)]
struct EventLine<'a> {
    time: String,
    at_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    unit: Option<&'a Unit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(flatten)]
    what: &'a What,
}

pub(super) fn event(event: &Event, zone: &TimeZone) -> serde_json::Result<String> {
    let attempt = event.attempt.as_deref();
    serde_json::to_string(&EventLine {
        time: local(event.at_s, zone, "%Y-%m-%dT%H:%M:%S.%6f%:z"),
        at_s: event.at_s,
        worker: event.worker,
        job_id: attempt.map(|attempt| attempt.job_id.as_str()),
        unit: attempt.map(|attempt| &attempt.unit),
        attempt: attempt.map(|attempt| attempt.number),
        what: &event.what,
    })
}

/// Unix seconds in the zone's own time.
fn local(at_s: f64, zone: &TimeZone, format: &str) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "microseconds of this era fit an i64 many times over"
    )]
    let micros = (at_s * 1e6).round() as i64;
    let time = Timestamp::from_microsecond(micros).unwrap_or_default();
    time.to_zoned(zone.clone()).strftime(format).to_string()
}

fn millis(at_s: f64, zone: &TimeZone) -> String {
    local(at_s, zone, "%Y-%m-%d %H:%M:%S.%3f")
}

/// A message of the driver.
pub(super) fn stamped(text: &str, at_s: f64, zone: &TimeZone) -> String {
    format!("[{}] {text}", local(at_s, zone, "%Y-%m-%d %H:%M:%S"))
}

/// A message of tau2's own log.
pub(super) fn logged(text: &str, at_s: f64, zone: &TimeZone) -> String {
    format!("{} | INFO     | {text}", millis(at_s, zone))
}

/// The driver's first messages.
pub(super) fn head<'a>(
    header: &Header,
    units: impl IntoIterator<Item = &'a Unit>,
    total: usize,
    dir: &Path,
) -> Vec<String> {
    let dir = dir.display();
    let mut tasks: BTreeMap<&str, usize> = BTreeMap::new();
    for unit in units {
        if unit.trial == 0 {
            *tasks.entry(&unit.domain).or_default() += 1;
        }
    }
    let mut head = vec![
        format!(
            "Global logs: eval_log={dir}/logs/eval_global.log tau2_log={dir}/logs/tau2_global.log"
        ),
        format!(
            "Output prefix: {dir}/outputs/all_domains.json (task summaries in {dir}/outputs/all_domains/)"
        ),
    ];
    for domain in &header.domains {
        let tasks = tasks.get(domain.as_str()).copied().unwrap_or(0);
        head.push(format!(
            "Loaded tasks: domain={domain} tasks={tasks} trials={} path={}/tau2/domains/{domain}/tasks.json",
            header.trials,
            header.data.display(),
        ));
    }
    head.push(format!(
        "Scheduling mode: global (round-robin) total_tasks={total} max_concurrency={}",
        header.concurrency
    ));
    head
}

pub(super) fn starting(unit: &Unit) -> String {
    format!(
        "tau2.run:run_task:476 - STARTING SIMULATION: Domain: {}, Task: {}, Agent: llm_agent, User: user_simulator",
        unit.domain, unit.task_id
    )
}

pub(super) fn finished(unit: &Unit, reward: f64) -> String {
    format!(
        "tau2.run:run_task:568 - FINISHED SIMULATION: Domain: {}, Task: {}, Agent: LLMAgent, User: UserSimulator. Reward: {reward:?}",
        unit.domain, unit.task_id
    )
}

/// A failed unit, on one line.
pub(super) fn failed(unit: &Unit, failure: &Failure) -> String {
    format!(
        "Task failed: domain={} task_id={} trial={} error={}",
        unit.domain,
        unit.task_id,
        unit.trial,
        one_line(&failure.error)
    )
}

/// The reference prints a tuple here; what reads its logs expects it.
pub(super) fn task_complete(unit: &Unit, status: &str, done: usize, total: usize) -> String {
    format!(
        "('[TAU2_TASK_COMPLETE] domain={} trial={} task_id={} status={status} completed_global={done} total_global={total}',)",
        unit.domain, unit.trial, unit.task_id
    )
}

pub(super) fn complete(metrics: &Metrics) -> String {
    format!(
        "Global evaluation complete: ok={} error={} total={} elapsed_s={:.1} tasks_per_min={:.2}",
        metrics.ok, metrics.error, metrics.total, metrics.elapsed_s, metrics.tasks_per_min
    )
}

/// The driver's last messages.
pub(super) fn summary(metrics: &Metrics, dir: &Path) -> Vec<String> {
    let word = if metrics.error == 0 {
        "SUCCESS"
    } else {
        "FAILED"
    };
    let dir = dir.display();
    vec![
        format!("\n{RULE}"),
        "EVALUATION SUMMARY".to_owned(),
        RULE.to_owned(),
        THIN_RULE.to_owned(),
        format!("GLOBAL: {word}"),
        RULE.to_owned(),
        format!("Output directory: {dir}/outputs"),
        format!("Log directory: {dir}/logs"),
        format!("Profile logs: {dir}/logs/tau2_global.log"),
        format!("Driver logs: {dir}/logs/eval_global.log"),
    ]
}

/// A line of `tau2_global.log`; `None` for what it does not tell.
pub(super) fn moment(unit: &Unit, moment: &Moment, at_s: f64, zone: &TimeZone) -> Option<String> {
    let (level, thread, text) = match moment {
        Moment::Llm { thread, .. } => {
            let (level, text) = model_call(moment)?;
            (level, thread, text)
        }
        Moment::Tool {
            step,
            thread,
            name,
            duration_ms,
            error,
            ..
        } => {
            let error = if *error { " error=True" } else { "" };
            let text = format!(
                "type=tool_call step={step} function={name} call_type=local_function \
                 duration_ms={duration_ms:.2}{error}"
            );
            ("PROFILE", thread, text)
        }
        Moment::Step {
            step,
            thread,
            duration_ms,
            from,
            to,
        } => {
            let (from, to) = (from.word(), to.word());
            let text = format!(
                "type=step_complete step={step} total_duration_ms={duration_ms:.2} \
                 from_role={from} to_role={to}"
            );
            ("PROFILE", thread, text)
        }
        Moment::Played { .. } => return None,
    };
    let (at, domain, task) = (millis(at_s, zone), &unit.domain, &unit.task_id);
    Some(format!(
        "[{level}] {at} task={domain}:{task} thread={thread} {text}"
    ))
}

/// Level and text of a model's call.
fn model_call(moment: &Moment) -> Option<(&'static str, String)> {
    let Moment::Llm {
        role,
        step,
        model,
        duration_ms,
        prompt_tokens,
        completion_tokens,
        tool_calls,
        error,
        ..
    } = moment
    else {
        return None;
    };
    if let Some(error) = error {
        let error = one_line(error);
        return Some(("ERROR", format!("LLM call failed permanently: {error}")));
    }
    let call = |kind: &str, server: &str| {
        format!(
            "type={kind} step={step} model={model} call_type={server} duration_ms={duration_ms:.2}"
        )
    };
    Some(match role {
        Role::Agent => {
            let tokens = tokens(*prompt_tokens, *completion_tokens);
            let calls = if *tool_calls > 0 { "True" } else { "False" };
            let call = call("llm_call", "vllm");
            ("PROFILE", format!("{call}{tokens} has_tool_calls={calls}"))
        }
        Role::User => ("USER_JUDGE", call("user_sim", "openai")),
        Role::Judge => ("USER_JUDGE", call("evaluator", "openai")),
    })
}

fn tokens(prompt: Option<u64>, completion: Option<u64>) -> String {
    let field = |name: &str, count: Option<u64>| {
        count.map_or_else(String::new, |count| format!(" {name}={count}"))
    };
    field("input_tokens", prompt) + &field("output_tokens", completion)
}

/// A text of several lines as one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
