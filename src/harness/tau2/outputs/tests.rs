//! Stories of the run's files.

use std::sync::Arc;

use super::super::event::{Failure, Party, Role};
use super::super::plan::{Next, Rules, Schedule};
use super::*;
use crate::harness::reference::driver_log::Event as Line;
use crate::harness::reference::files;
use crate::harness::reference::profile::Kind;

const START_S: f64 = 1_795_489_069.0;

fn units() -> Vec<Unit> {
    let unit = |domain: &str, task_id: &str| Unit {
        domain: domain.to_owned(),
        task_id: task_id.to_owned(),
        trial: 0,
        seed: 626_729,
    };
    vec![unit("retail", "0"), unit("telecom", "[a]b|c[PERSONA:None]")]
}

fn header() -> Header {
    Header {
        domains: vec!["retail".to_owned(), "telecom".to_owned()],
        trials: 1,
        concurrency: 4,
        data: PathBuf::from("/data"),
        zone: TimeZone::UTC,
    }
}

fn open(dir: &Path) -> Outputs {
    Outputs::open(dir, header(), &units()).unwrap()
}

/// The attempts that a schedule of these units hands out after what `outputs` knows.
fn attempts(outputs: &Outputs) -> Vec<Arc<Attempt>> {
    let rules = Rules::default();
    let mut schedule = Schedule::new(units(), rules, &outputs.past()).unwrap();
    let next = std::iter::from_fn(|| match schedule.next(0.0) {
        Next::Play(attempt) => Some(Arc::new(attempt)),
        Next::At(_) | Next::Wait | Next::Over => None,
    });
    next.collect()
}

fn record(outputs: &mut Outputs, after_s: f64, attempt: Option<&Arc<Attempt>>, what: What) {
    let event = Event {
        at_s: START_S + after_s,
        worker: Some(0),
        attempt: attempt.cloned(),
        what,
    };
    outputs.record(&event).unwrap();
}

fn finish(failure: Option<Failure>, last_word: bool) -> What {
    What::Finished(Finish {
        reward: failure.is_none().then_some(1.0),
        termination: failure.is_none().then(|| "user_stop".to_owned()),
        failure,
        steps: 1,
        llm_calls: 1,
        duration_ms: 2_000.0,
        last_word,
    })
}

fn failure(error: &str) -> Failure {
    Failure {
        cause: Cause::Llm,
        error: error.to_owned(),
    }
}

/// A run of two units, of which the second fails.
fn play(outputs: &mut Outputs) {
    let attempts = attempts(outputs);
    let (first, second) = (&attempts[0], &attempts[1]);
    record(outputs, 0.0, None, What::Began { workers: 1 });
    record(outputs, 0.25, Some(first), What::Started);
    record(outputs, 0.5, Some(second), What::Started);
    let call = Moment::Llm {
        role: Role::User,
        step: 0,
        thread: 7,
        model: "gpt-5".to_owned(),
        duration_ms: 750.0,
        prompt_tokens: Some(10),
        completion_tokens: Some(2),
        tool_calls: 0,
        error: None,
    };
    record(outputs, 1.0, Some(first), What::Moment(call));
    let step = Moment::Step {
        step: 0,
        thread: 7,
        duration_ms: 760.5,
        from: Party::User,
        to: Party::Agent,
    };
    record(outputs, 1.5, Some(first), What::Moment(step));
    record(outputs, 2.0, Some(first), finish(None, true));
    let error = failure("503\nService Unavailable");
    record(outputs, 3.0, Some(second), finish(Some(error), true));
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn a_run_leaves_the_references_files_in_the_references_words() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut outputs = open(dir);
    play(&mut outputs);
    let progress = outputs.finish().unwrap();
    assert_eq!((progress.ok, progress.failed, progress.total), (1, 1, 2));
    assert_eq!(progress.causes, BTreeMap::from([(Cause::Llm, 1)]));

    let at = dir.display();
    let profile = "\
[USER_JUDGE] 2026-11-24 02:57:50.000 task=retail:0 thread=7 type=user_sim step=0 model=gpt-5 call_type=openai duration_ms=750.00
[PROFILE] 2026-11-24 02:57:50.500 task=retail:0 thread=7 type=step_complete step=0 total_duration_ms=760.50 from_role=user to_role=agent
";
    assert_eq!(read(dir, "logs/tau2_global.log"), profile);
    let head = format!(
        "\
[2026-11-24 02:57:49] Global logs: eval_log={at}/logs/eval_global.log tau2_log={at}/logs/tau2_global.log
[2026-11-24 02:57:49] Output prefix: {at}/outputs/all_domains.json (task summaries in {at}/outputs/all_domains/)
[2026-11-24 02:57:49] Loaded tasks: domain=retail tasks=1 trials=1 path=/data/tau2/domains/retail/tasks.json
[2026-11-24 02:57:49] Loaded tasks: domain=telecom tasks=1 trials=1 path=/data/tau2/domains/telecom/tasks.json
[2026-11-24 02:57:49] Scheduling mode: global (round-robin) total_tasks=2 max_concurrency=4
"
    );
    let failed = "[2026-11-24 02:57:52] Task failed: domain=telecom task_id=[a]b|c[PERSONA:None] trial=0 error=503 Service Unavailable\n";
    let complete = "[2026-11-24 02:57:52] Global evaluation complete: ok=1 error=1 total=2 elapsed_s=3.0 tasks_per_min=20.00\n";
    assert_eq!(
        read(dir, "logs/eval_global.log"),
        format!("{head}{failed}{complete}")
    );
    let driver = format!(
        "{head}\
2026-11-24 02:57:49.250 | INFO     | tau2.run:run_task:476 - STARTING SIMULATION: Domain: retail, Task: 0, Agent: llm_agent, User: user_simulator
2026-11-24 02:57:49.500 | INFO     | tau2.run:run_task:476 - STARTING SIMULATION: Domain: telecom, Task: [a]b|c[PERSONA:None], Agent: llm_agent, User: user_simulator
{profile}\
2026-11-24 02:57:51.000 | INFO     | tau2.run:run_task:568 - FINISHED SIMULATION: Domain: retail, Task: 0, Agent: LLMAgent, User: UserSimulator. Reward: 1.0
('[TAU2_TASK_COMPLETE] domain=retail trial=0 task_id=0 status=ok completed_global=1 total_global=2',)
{failed}\
('[TAU2_TASK_COMPLETE] domain=telecom trial=0 task_id=[a]b|c[PERSONA:None] status=error completed_global=2 total_global=2',)
{complete}\
[2026-11-24 02:57:52] 
============================================================
[2026-11-24 02:57:52] EVALUATION SUMMARY
[2026-11-24 02:57:52] ============================================================
[2026-11-24 02:57:52] ------------------------------------------------------------
[2026-11-24 02:57:52] GLOBAL: FAILED
[2026-11-24 02:57:52] ============================================================
[2026-11-24 02:57:52] Output directory: {at}/outputs
[2026-11-24 02:57:52] Log directory: {at}/logs
[2026-11-24 02:57:52] Profile logs: {at}/logs/tau2_global.log
[2026-11-24 02:57:52] Driver logs: {at}/logs/eval_global.log
"
    );
    assert_eq!(read(dir, "driver.log"), driver);
}

#[test]
fn what_reads_the_references_runs_reads_every_line_of_ours() {
    let temp = tempfile::tempdir().unwrap();
    let mut outputs = open(temp.path());
    play(&mut outputs);
    outputs.finish().unwrap();
    let (mut started, mut finished, mut left, mut failed, mut complete) = (0, 0, 0, 0, 0);
    let mut records = Vec::new();
    let tally = files::driver_events(temp.path(), |event| match event {
        Line::Started { .. } => started += 1,
        Line::Finished { .. } => finished += 1,
        Line::Left { .. } => left += 1,
        Line::Failed { .. } => failed += 1,
        Line::Complete { .. } => complete += 1,
        Line::Record(record) => records.push(record.kind),
        Line::Loaded { .. } | Line::Scheduled { .. } => {}
    });
    assert_eq!(tally.unwrap().unwrap().unread, 0);
    assert_eq!((started, finished, left, failed, complete), (2, 1, 2, 1, 1));
    assert_eq!(records, [Some(Kind::UserSim), Some(Kind::StepComplete)]);
    let metrics = files::metrics(temp.path()).unwrap().unwrap();
    assert_eq!((metrics.ok, metrics.error), (1, 1));
    let mut rewards = Vec::new();
    files::task_results(temp.path(), |result| rewards.push(result.reward)).unwrap();
    rewards.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert_eq!(rewards, [None, Some(1.0)]);
}

#[test]
fn results_and_metrics_are_json_as_python_writes_it() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut outputs = open(dir);
    play(&mut outputs);
    outputs.finish().unwrap();

    let ok = "{\n  \"domain\": \"retail\",\n  \"task_id\": \"0\",\n  \"trial\": 0,\n  \"status\": \"ok\",\n  \"reward\": 1.0\n}";
    assert_eq!(read(dir, "outputs/all_domains/retail__0__trial0.json"), ok);
    let failed = read(
        dir,
        "outputs/all_domains/telecom___a_b_c_PERSONA_None___trial0.json",
    );
    assert!(
        failed.ends_with("\"status\": \"error\",\n  \"reward\": null\n}"),
        "{failed}"
    );
    let at = dir.display();
    let metrics = format!(
        "{{\n  \"domains\": [\n    \"retail\",\n    \"telecom\"\n  ],\n  \"total\": 2,\n  \"ok\": 1,\n  \"error\": 1,\n  \
         \"elapsed_s\": 3.0,\n  \"tasks_per_min\": 20.0,\n  \"log_dir\": \"{at}/logs\",\n  \
         \"tau2_log\": \"{at}/logs/tau2_global.log\",\n  \"eval_log\": \"{at}/logs/eval_global.log\"\n}}"
    );
    assert_eq!(read(dir, "outputs/metrics_global.json"), metrics);
}

#[test]
fn events_and_rewards_read_back() {
    let temp = tempfile::tempdir().unwrap();
    let mut outputs = open(temp.path());
    play(&mut outputs);
    let rewards = read_rewards(temp.path()).unwrap();
    assert_eq!(rewards.len(), 2);
    assert_eq!(rewards[0].finish.reward, Some(1.0));
    assert!((rewards[0].finished_s - rewards[0].started_s - 1.75).abs() < 1e-6);
    assert_eq!(
        rewards[1].finish.failure.as_ref().unwrap().cause,
        Cause::Llm
    );

    let events = read(temp.path(), EVENTS);
    let last: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "finished");
    assert_eq!(last["time"], "2026-11-24T02:57:52.000000+00:00");
    assert_eq!(last["job_id"], rewards[1].job_id.as_str());
    assert_eq!(last["failure"]["cause"], "llm");
    let call: serde_json::Value = serde_json::from_str(events.lines().nth(3).unwrap()).unwrap();
    assert_eq!(
        (&call["event"], &call["role"]),
        (&"llm".into(), &"user".into())
    );
}

#[test]
fn a_killed_run_is_resumed_after_its_last_whole_line_and_counts_on() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut outputs = open(dir);
    let first = attempts(&outputs).remove(0);
    record(&mut outputs, 0.0, None, What::Began { workers: 1 });
    record(&mut outputs, 0.0, Some(&first), What::Started);
    record(&mut outputs, 9.0, Some(&first), finish(None, true));
    drop(outputs);
    let mut torn = File::options()
        .append(true)
        .open(dir.join(REWARDS))
        .unwrap();
    torn.write_all(b"{\"domain\":\"tele").unwrap();

    let mut outputs = open(dir);
    let left = attempts(&outputs);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].unit, units()[1]);
    record(&mut outputs, 100.0, None, What::Began { workers: 1 });
    record(&mut outputs, 100.0, Some(&left[0]), What::Started);
    record(&mut outputs, 101.0, Some(&left[0]), finish(None, true));
    let progress = outputs.finish().unwrap();
    assert_eq!((progress.ok, progress.failed), (2, 0));
    assert!(
        (progress.elapsed_s - 10.0).abs() < 1e-6,
        "9 s before and 1 s now"
    );
    let played: Vec<Unit> = read_rewards(dir)
        .unwrap()
        .into_iter()
        .map(|r| r.unit)
        .collect();
    assert_eq!(played, units());
    assert!(read(dir, "driver.log").contains("completed_global=2 total_global=2"));
}

#[test]
fn an_attempt_that_will_be_repeated_is_recorded_and_is_not_a_result() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut outputs = open(dir);
    let first = attempts(&outputs).remove(0);
    record(&mut outputs, 0.0, None, What::Began { workers: 1 });
    record(
        &mut outputs,
        1.0,
        Some(&first),
        finish(Some(failure("x")), false),
    );
    let progress = outputs.finish().unwrap();
    assert_eq!((progress.ok, progress.failed), (0, 0));
    assert_eq!(read_rewards(dir).unwrap().len(), 1);
    assert!(!read(dir, "driver.log").contains("TASK_COMPLETE"));
    assert!(
        !dir.join("outputs/metrics_global.json").exists(),
        "not complete"
    );
    assert_eq!(outputs.past()[0].attempts, 1);
    assert_eq!(outputs.past()[0].ended, None);
}

#[test]
fn a_file_that_cannot_be_written_or_is_none_of_ours_is_named() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir_all(temp.path().join("driver.log")).unwrap();
    let error = Outputs::open(temp.path(), header(), &units()).unwrap_err();
    assert!(format!("{error:#}").contains("driver.log"), "{error:#}");

    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join(REWARDS), "{}\n").unwrap();
    let error = Outputs::open(temp.path(), header(), &units()).unwrap_err();
    assert!(
        format!("{error:#}").contains("rewards.jsonl line 1"),
        "{error:#}"
    );
}
