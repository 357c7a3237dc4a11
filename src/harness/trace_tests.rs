//! What a trace promises its reader.

use super::*;

fn line(program: &str, steps: &str) -> String {
    format!(
        r#"{{"program":"{program}","kind":"k","shared_prefix":{{"id":"s","tokens":100}},"steps":[{steps}]}}"#
    )
}

const ONE: &str = r#"{"prompt_tokens":120,"output_tokens":5,"then":"end","gap_s":0}"#;

fn problem(text: &str) -> String {
    Trace::parse("t", text).unwrap_err().to_string()
}

#[test]
fn a_trace_reads_back_what_it_wrote() {
    let trace = Trace::load("tau2").unwrap();
    let again = Trace::parse("tau2", &trace.to_jsonl().unwrap()).unwrap();
    assert_eq!(trace, again);
}

#[test]
fn the_built_in_traces_need_no_repair_and_hold_the_known_shapes() {
    let tau2 = Trace::load("tau2").unwrap();
    assert_eq!((tau2.programs.len(), tau2.repaired), (164, 0));
    assert_eq!(tau2.steps(), 1_482, "agent steps of the source data");
    let swe = Trace::load("swe").unwrap();
    assert_eq!((swe.programs.len(), swe.repaired), (100, 0));
    let deepest = swe
        .programs
        .iter()
        .flat_map(|p| &p.steps)
        .map(|s| s.prompt_tokens)
        .max();
    assert!(deepest <= Some(40_000), "{deepest:?}");
}

#[test]
fn gaps_of_tau2_keep_the_measured_shares() {
    let trace = Trace::load("tau2").unwrap();
    let steps: Vec<&Step> = trace.programs.iter().flat_map(|p| &p.steps).collect();
    let count = |then: &str| steps.iter().filter(|s| s.then.to_string() == then).count();
    let (tool, user, expert) = (
        count("tool:environment"),
        count("user"),
        count("tool:call_expert"),
    );
    let gaps = tool + user + expert;
    let percent = |n: usize| n * 100 / gaps;
    assert!((40..=50).contains(&percent(tool)), "{tool} of {gaps}");
    assert!((28..=38).contains(&percent(user)), "{user} of {gaps}");
    assert!((17..=27).contains(&percent(expert)), "{expert} of {gaps}");
    let fast = |s: &&&Step| s.then == Then::Tool("environment".to_owned());
    assert!(
        steps
            .iter()
            .filter(fast)
            .all(|s| (0.02..=0.08).contains(&s.gap_s)),
        "a tool result takes 20 to 80 ms"
    );
}

#[test]
fn a_history_that_shrinks_is_raised_and_counted() {
    let steps = r#"{"prompt_tokens":120,"output_tokens":50,"then":"user","gap_s":1},
        {"prompt_tokens":90,"output_tokens":5,"then":"tool:ls","gap_s":0},
        {"prompt_tokens":900,"output_tokens":5,"then":"end","gap_s":0}"#
        .replace('\n', " ");
    let trace = Trace::parse("t", &line("p", &steps)).unwrap();
    assert_eq!(trace.repaired, 1);
    let prompts: Vec<u32> = trace.programs[0]
        .steps
        .iter()
        .map(|s| s.prompt_tokens)
        .collect();
    assert_eq!(prompts, [120, 120 + 50 + MIN_GROWTH_TOKENS, 900]);
}

#[test]
fn an_error_names_the_line_and_the_field() {
    let good = line("a", ONE);
    let bad_gap = line("b", &ONE.replace("\"gap_s\":0", "\"gap_s\":-1"));
    let text = problem(&format!("{good}\n\n{bad_gap}"));
    assert!(
        text.contains("line 3") && text.contains("steps[0]") && text.contains("gap_s"),
        "{text}"
    );
    let missing = problem(&line("b", ONE).replace("\"kind\":\"k\",", ""));
    assert!(
        missing.contains("line 1") && missing.contains("`kind`"),
        "{missing}"
    );
    let word = problem(&line("b", &ONE.replace("end", "dance")));
    assert!(
        word.contains("tool:NAME") && word.contains("dance"),
        "{word}"
    );
}

#[test]
fn lines_that_contradict_each_other_are_refused() {
    let twice = format!("{}\n{}", line("a", ONE), line("a", ONE));
    assert!(problem(&twice).contains("already on line 1"));
    let other = line("b", ONE).replace("\"tokens\":100", "\"tokens\":90");
    assert!(problem(&format!("{}\n{other}", line("a", ONE))).contains("shared_prefix.tokens"));
    let early_end = line("a", &format!("{ONE},{ONE}"));
    assert!(problem(&early_end).contains("only there"));
    assert!(problem(&line("a", "")).contains("`steps` is empty"));
}

#[test]
fn an_empty_or_missing_trace_says_what_to_do() {
    assert!(problem("\n \n").contains("no programs"));
    let text = Trace::load("no/such/trace.jsonl").unwrap_err().to_string();
    assert!(text.contains("built-in") && text.contains("tau2"), "{text}");
}
