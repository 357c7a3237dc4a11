//! The makers on a handful of rows.

use super::*;
use crate::harness::trace::{Step, Then};

const CSV: &str = "\
source,program,domain,role,step,prompt_tokens,completion_tokens,tok,after,llm_ms,gap_ms,tool_calls
gemini_base,x,airline,agent,0,3412,131,usage,user,1539.3,,0
orch8b_retail,r:0,retail,agent,0,4816,253,qwen,user,,,0
orch8b_retail,r:0,retail,user,0,500,20,qwen,agent,,,0
orch8b_retail,r:0,retail,agent,1,5215,45,qwen,user,,,1
orch8b_retail,r:0,retail,agent,2,5279,30,qwen,tool,,,0
orch8b_retail,r:1,retail,agent,0,4728,25,qwen,user,,,0
orch8b_airline,a:0,airline,agent,0,4793,25,qwen,user,,,0
";

#[test]
fn tau2_takes_the_agent_steps_and_alternates_domains() {
    let programs = tau2::make(CSV, 1).unwrap();
    let names: Vec<&str> = programs.iter().map(|p| p.program.as_str()).collect();
    assert_eq!(names, ["retail-0", "airline-0", "retail-1"]);
    let steps = &programs[0].steps;
    let prompts: Vec<u32> = steps.iter().map(|s| s.prompt_tokens).collect();
    assert_eq!(prompts, [4816, 5215, 5279]);
    assert_eq!(steps[0].then, Then::User);
    assert!(matches!(steps[1].then, Then::Tool(_)));
    assert_eq!(steps[2].then, Then::End);
    assert_eq!(programs[0].shared_prefix.tokens, 4728 - 24);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_other_gaps() {
    assert_eq!(tau2::make(CSV, 7).unwrap(), tau2::make(CSV, 7).unwrap());
    assert_ne!(tau2::make(CSV, 7).unwrap(), tau2::make(CSV, 8).unwrap());
}

#[test]
fn a_bad_row_is_named() {
    let text = CSV.replace("4816", "many");
    let error = format!("{:#}", tau2::make(&text, 1).unwrap_err());
    assert!(
        error.contains("line 3") && error.contains("many"),
        "{error}"
    );
    let error = tau2::make("a,b\n", 1).unwrap_err().to_string();
    assert!(error.contains("no column"), "{error}");
}

#[test]
fn swe_cuts_long_contexts_and_skips_turns_without_room() {
    let lengths = r#"{"programs":{"p":[600,603,700,900,1500,39000,41000],"q":[600,700]}}"#;
    let rounds = r#"{"programs":{"p":[[0,0.0,null,null],[1,0.5,600,20]]}}"#;
    let programs = swe::make(lengths, rounds, 1).unwrap();
    assert_eq!(programs.len(), 1, "q has too few turns");
    let steps = &programs[0].steps;
    let prompts: Vec<u32> = steps.iter().map(|s| s.prompt_tokens).collect();
    assert_eq!(prompts, [600, 700, 900, 1500, 39_000]);
    assert!(steps.iter().all(|s| s.output_tokens == 20));
    assert!(
        steps[..4]
            .iter()
            .all(|s| (s.gap_s - 0.5).abs() < 1e-9 || (10.0..=40.0).contains(&s.gap_s)),
        "the zero of round 0 is no tool time"
    );
    checked("swe", programs).unwrap();
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: TraceArgs,
}

fn args(line: &str) -> TraceArgs {
    <Line as clap::Parser>::parse_from(line.split(' ')).args
}

#[test]
fn a_drawn_set_is_the_simulations_and_the_same_bytes_each_time() {
    let line = "trace mix --programs 5 --seed 3 --out unused";
    let programs = drawn(&args(line)).unwrap();
    assert_eq!(programs, drawn(&args(line)).unwrap());
    let shape = Workload::by_name("mix").unwrap();
    let simulated: Vec<_> = shape.supply(3).take(5).collect();
    assert_eq!(programs, shape.to_trace(&simulated));
    checked("mix", programs).unwrap();
}

#[test]
fn a_short_set_has_fewer_steps_and_no_gap_above_the_limit() {
    let steps = |line: &str| {
        let programs = drawn(&args(line)).unwrap();
        programs
            .into_iter()
            .flat_map(|program| program.steps)
            .collect::<Vec<_>>()
    };
    let whole = steps("trace orch --programs 40 --out unused");
    let short = steps("trace orch --programs 40 --steps-scale 0.25 --gap-limit 4 --out unused");
    assert!(short.len() * 3 < whole.len());
    let longest = |steps: &[Step]| steps.iter().map(|step| step.gap_s).fold(0.0, f64::max);
    assert!(longest(&whole) > 4.0 && longest(&short) <= 4.0);
}

#[test]
fn what_a_trace_cannot_say_is_refused() {
    let problem = |line: &str| drawn(&args(line)).unwrap_err().to_string();
    assert!(problem("trace forks --out unused").contains("no forks"));
    assert!(problem("trace knot --out unused").contains("no shape \"knot\""));
    assert!(problem("trace orch --gap-scale 0 --out unused").contains("--gap-scale"));
    assert!(problem("trace orch --programs 0 --out unused").contains("--programs"));
    let error = recorded("orch", Path::new("."), 1).unwrap_err().to_string();
    assert!(error.contains("tau2 or swe"), "{error}");
}
