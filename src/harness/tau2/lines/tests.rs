//! The lines against those that the reference driver wrote, copied from a run of it.

use super::super::event::Party;
use super::*;

const AGENT: &str = "Nemotron-Orchestrator-8B";

fn unit(domain: &str, task_id: &str) -> Unit {
    Unit {
        domain: domain.to_owned(),
        task_id: task_id.to_owned(),
        trial: 0,
        seed: 1,
    }
}

/// `02:57:SS` on the day of that run.
fn at(seconds: f64) -> f64 {
    1_795_489_020.0 + seconds
}

fn llm(role: Role, model: &str, step: u32, duration_ms: f64) -> Moment {
    Moment::Llm {
        role,
        step,
        thread: 140_177_366_664_896,
        model: model.to_owned(),
        duration_ms,
        prompt_tokens: None,
        completion_tokens: None,
        tool_calls: 1,
        error: None,
    }
}

#[test]
fn model_calls_tools_and_steps_read_as_the_reference_writes_them() {
    let mock = unit("mock", "create_task_1");
    let tool = Moment::Tool {
        step: 2,
        thread: 140_177_366_664_896,
        name: "update_task_status".to_owned(),
        requestor: Role::Agent,
        duration_ms: 0.044,
        error: true,
    };
    let step = Moment::Step {
        step: 0,
        thread: 140_177_358_272_192,
        duration_ms: 1614.384,
        from: Party::User,
        to: Party::Agent,
    };
    let retail = unit("retail", "0");
    for (unit, moment_, at_s, line) in [
        (
            &mock,
            llm(Role::Agent, AGENT, 1, 1205.18),
            52.987,
            "[PROFILE] 2026-11-24 02:57:52.987 task=mock:create_task_1 thread=140177366664896 type=llm_call step=1 \
             model=Nemotron-Orchestrator-8B call_type=vllm duration_ms=1205.18 has_tool_calls=True",
        ),
        (
            &mock,
            tool,
            52.994,
            "[PROFILE] 2026-11-24 02:57:52.994 task=mock:create_task_1 thread=140177366664896 type=tool_call step=2 \
             function=update_task_status call_type=local_function duration_ms=0.04 error=True",
        ),
        (
            &retail,
            step,
            51.798,
            "[PROFILE] 2026-11-24 02:57:51.798 task=retail:0 thread=140177358272192 type=step_complete step=0 \
             total_duration_ms=1614.38 from_role=user to_role=agent",
        ),
        (
            &mock,
            llm(Role::User, "gpt-5", 0, 1704.19),
            51.781,
            "[USER_JUDGE] 2026-11-24 02:57:51.781 task=mock:create_task_1 thread=140177366664896 type=user_sim step=0 \
             model=gpt-5 call_type=openai duration_ms=1704.19",
        ),
        (
            &mock,
            llm(Role::Judge, "gpt-5", 10, 461.85),
            51.781,
            "[USER_JUDGE] 2026-11-24 02:57:51.781 task=mock:create_task_1 thread=140177366664896 type=evaluator step=10 \
             model=gpt-5 call_type=openai duration_ms=461.85",
        ),
    ] {
        let written = moment(unit, &moment_, at(at_s), &TimeZone::UTC);
        assert_eq!(written.as_deref(), Some(line));
    }
}

#[test]
fn token_counts_stand_where_the_reference_has_them_when_it_streams() {
    let mut call = llm(Role::Agent, AGENT, 1, 352.44);
    if let Moment::Llm {
        prompt_tokens,
        completion_tokens,
        tool_calls,
        ..
    } = &mut call
    {
        (*prompt_tokens, *completion_tokens, *tool_calls) = (Some(4881), Some(24), 0);
    }
    let line = moment(&unit("airline", "1"), &call, at(0.0), &TimeZone::UTC).unwrap();
    let end = "duration_ms=352.44 input_tokens=4881 output_tokens=24 has_tool_calls=False";
    assert!(line.ends_with(end), "{line}");
}

#[test]
fn a_failed_model_call_is_an_error_on_one_line() {
    let mut call = llm(Role::User, "gpt-5", 3, 1.0);
    if let Moment::Llm { error, .. } = &mut call {
        *error = Some("Timeout:\n  600 s".to_owned());
    }
    let line = moment(&unit("retail", "5"), &call, at(1.0), &TimeZone::UTC).unwrap();
    let start = "[ERROR] 2026-11-24 02:57:01.000 task=retail:5 thread=140177366664896 ";
    assert_eq!(
        line,
        format!("{start}LLM call failed permanently: Timeout: 600 s")
    );
}

#[test]
fn starts_ends_and_markers_read_as_the_reference_writes_them() {
    let (zone, mock) = (TimeZone::UTC, unit("mock", "create_task_1"));
    assert_eq!(
        logged(&starting(&mock), at(49.865), &zone),
        "2026-11-24 02:57:49.865 | INFO     | tau2.run:run_task:476 - STARTING SIMULATION: Domain: mock, Task: \
         create_task_1, Agent: llm_agent, User: user_simulator"
    );
    assert_eq!(
        logged(&finished(&mock, 0.0), at(59.891), &zone),
        "2026-11-24 02:57:59.891 | INFO     | tau2.run:run_task:568 - FINISHED SIMULATION: Domain: mock, Task: \
         create_task_1, Agent: LLMAgent, User: UserSimulator. Reward: 0.0"
    );
    assert_eq!(
        task_complete(&unit("retail", "0"), "ok", 4, 18),
        "('[TAU2_TASK_COMPLETE] domain=retail trial=0 task_id=0 status=ok completed_global=4 total_global=18',)"
    );
}

#[test]
fn a_zone_changes_the_naive_time_and_not_the_moment() {
    let zone = TimeZone::fixed(jiff::tz::offset(-8));
    let started = Event {
        at_s: at(49.5),
        worker: None,
        attempt: None,
        what: What::Began { workers: 2 },
    };
    assert_eq!(stamped("x", at(49.0), &zone), "[2026-11-23 18:57:49] x");
    assert_eq!(
        event(&started, &zone).unwrap(),
        r#"{"time":"2026-11-23T18:57:49.500000-08:00","at_s":1795489069.5,"event":"began","workers":2}"#
    );
}
