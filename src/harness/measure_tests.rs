//! Figures of a run small enough to check by hand.

use super::*;

fn step(arrived_s: f64, finished_s: f64, outcome: &str) -> StepRecord {
    StepRecord {
        policy: "baseline".to_owned(),
        arrived_s,
        finished_s,
        hold_s: 0.5,
        prompt_tokens: Some(100),
        cached_tokens: Some(60),
        outcome: outcome.to_owned(),
        status: 200,
        ..StepRecord::default()
    }
}

fn program(started_s: f64, finished_s: f64, ending: Ending) -> ProgramRecord {
    ProgramRecord {
        program: format!("p{started_s}"),
        kind: "k".to_owned(),
        started_s,
        finished_s,
        steps: 1,
        errors: 0,
        ending,
        cause: None,
    }
}

/// 60 s long; the cache is hot from 10 s to 40 s.
fn run() -> RunData {
    RunData {
        manifest: Manifest {
            concurrency: 2,
            trace: "tau2".to_owned(),
            ..Manifest::default()
        },
        programs: vec![
            program(0.0, 20.0, Ending::Done),
            program(0.0, 60.0, Ending::Done),
            program(20.0, 30.0, Ending::Failed),
        ],
        steps: vec![
            step(0.0, 2.0, "length"),
            step(10.0, 20.0, "length"),
            step(20.0, 30.0, "failed"),
            step(50.0, 60.0, "stop"),
        ],
        step_source: StepSource::Gate,
        kv_csv: Some(
            "h\nx,10,1,vllm:kv_cache_usage_perc,0.8\nx,40,1,vllm:kv_cache_usage_perc,0.9\n"
                .to_owned(),
        ),
    }
}

#[test]
fn rates_count_finished_programs_and_served_steps_only() {
    let measures = run().measure(70.0);
    let whole = measures.whole.unwrap();
    assert_eq!((whole.programs, whole.steps), (2, 3));
    assert!((whole.tasks_per_min - 2.0).abs() < 1e-9 && (whole.steps_per_s - 0.05).abs() < 1e-9);
    let window = *measures.window.rates().unwrap();
    assert_eq!(
        (window.programs, window.steps),
        (1, 1),
        "the failed step is in the window"
    );
    assert!((window.tasks_per_min - 2.0).abs() < 1e-9);
    assert_eq!((measures.programs_failed, measures.steps_failed), (1, 1));
    assert_eq!(measures.policy, "baseline", "from the steps");
}

#[test]
fn latencies_and_hit_rate_are_of_served_steps() {
    let measures = run().measure(70.0);
    assert!((measures.step_s.unwrap().p50 - 10.0).abs() < 1e-9);
    assert!((measures.hold_s.unwrap().p95 - 0.5).abs() < 1e-9);
    assert!((measures.program_s.unwrap().p50 - 40.0).abs() < 1e-9);
    assert!((measures.prefix_hit_rate.unwrap() - 0.6).abs() < 1e-9);
}

#[test]
fn without_pressure_or_gate_the_cells_say_so() {
    let mut data = run();
    data.step_source = StepSource::Client;
    let cold = data.measure(95.0);
    assert_eq!(
        cold.window,
        WindowRates::Missing {
            missing: "never above 95 % (highest 90 %)".to_owned()
        }
    );
    assert_eq!(cold.hold_s, None);
    data.kv_csv = None;
    data.steps.clear();
    let blind = data.measure(70.0);
    assert_eq!(blind.window.rates(), None);
    assert_eq!((blind.prefix_hit_rate, blind.step_s), (None, None));
}

#[test]
fn a_summary_reads_back() {
    let measures = run().measure(70.0);
    let text = serde_json::to_string(&measures).unwrap();
    assert_eq!(serde_json::from_str::<Measures>(&text).unwrap(), measures);
}
