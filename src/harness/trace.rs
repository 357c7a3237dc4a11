//! Programs as data: what a trace file holds, how one is read, the built-in ones.
//!
//! A trace is a text file with one JSON object per line, one line per program:
//!
//! ```json
//! {"program":"retail-0","kind":"retail","shared_prefix":{"id":"tau2-retail","tokens":4704},
//!  "steps":[{"prompt_tokens":4816,"output_tokens":253,"then":"user","gap_s":9.6},
//!           {"prompt_tokens":5215,"output_tokens":45,"then":"tool:environment","gap_s":0.041},
//!           {"prompt_tokens":5279,"output_tokens":30,"then":"end","gap_s":0}]}
//! ```
//!
//! (one line in the file). `prompt_tokens` is the whole context the step sends: shared prefix, every earlier
//! message and reply, and what is new. `output_tokens` is the length of the reply. `then` is what the program
//! does next: `tool:NAME`, `user` (somebody answers a text), or `end` on the last step only; `gap_s` is how long
//! that takes, in seconds. Programs with one `shared_prefix.id` start with the same `tokens` tokens.
//!
//! # Repair
//! Histories are append-only: a step's context holds the step before and its reply. A step whose
//! `prompt_tokens` leaves no room for them is raised to the smallest context that does
//! ([`MIN_GROWTH_TOKENS`] more than both), and so are the steps after it where needed; [`Trace::repaired`]
//! counts the steps raised. The shipped traces need no repair.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Room that a step's new message takes at least, beyond the context before it, in tokens: the frames of the
/// reply and of the new message, and a word.
pub const MIN_GROWTH_TOKENS: u32 = 10;

/// Bound on a context or a reply, in tokens; a larger count in a trace is refused as a mistake.
const MAX_TOKENS: u32 = 4_000_000;
/// Bound on one gap, in seconds (a day).
const MAX_GAP_S: f64 = 86_400.0;

/// The built-in traces: name and content.
const BUILT_IN: [(&str, &str); 2] = [
    ("tau2", include_str!("../../traces/tau2.jsonl")),
    ("swe", include_str!("../../traces/swe.jsonl")),
];

/// A trace that was read and found consistent.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The name or path it was asked for by.
    pub name: String,
    /// The programs, in file order; never empty.
    pub programs: Vec<Program>,
    /// Steps whose `prompt_tokens` was raised to keep the history append-only.
    pub repaired: usize,
}

/// One program: one line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_field_names,
    reason = "records name a program by `program` everywhere"
)]
pub struct Program {
    /// Name, unique in the trace.
    pub program: String,
    /// What sort of task it is, such as a tau2 domain.
    pub kind: String,
    /// The start of the context that programs of its kind have in common.
    pub shared_prefix: SharedPrefix,
    /// Its LLM calls, in order; never empty.
    pub steps: Vec<Step>,
}

/// A prefix that several programs start with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefix {
    /// Equal for equal prefixes.
    pub id: String,
    /// Its length in tokens, less than the first step's `prompt_tokens`.
    pub tokens: u32,
}

/// One LLM call and what follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Whole context sent, shared prefix included, in tokens.
    pub prompt_tokens: u32,
    /// Reply length in tokens, at least 1.
    pub output_tokens: u32,
    /// What the program does after the reply.
    pub then: Then,
    /// How long that takes, in seconds; 0 after the last step.
    pub gap_s: f64,
}

/// What a program does after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Then {
    /// Runs this tool (`tool:NAME`).
    Tool(String),
    /// Waits for somebody's answer (`user`).
    User,
    /// Is done (`end`).
    End,
}

impl TryFrom<String> for Then {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (text.as_str(), text.strip_prefix("tool:")) {
            ("user", _) => Ok(Self::User),
            ("end", _) => Ok(Self::End),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Tool(name.to_owned())),
            _ => Err(format!(
                "`then` must be \"tool:NAME\", \"user\" or \"end\", not {text:?}"
            )),
        }
    }
}

impl From<Then> for String {
    fn from(then: Then) -> Self {
        then.to_string()
    }
}

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tool(name) => write!(f, "tool:{name}"),
            Self::User => f.write_str("user"),
            Self::End => f.write_str("end"),
        }
    }
}

/// Why a trace cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error(
        "cannot read trace {name:?}: {source}; name a built-in trace (tau2, swe) or a file of JSON lines"
    )]
    Read {
        /// The name or path asked for.
        name: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A line does not describe a program.
    #[error("trace {name}, line {line}: {problem}")]
    Line {
        /// The name or path asked for.
        name: String,
        /// Line number, from 1.
        line: usize,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// The file has no program.
    #[error("trace {name} has no programs; it needs one JSON object per line")]
    Empty {
        /// The name or path asked for.
        name: String,
    },
}

impl Trace {
    /// Reads the built-in trace called `name`, or else the file at that path.
    ///
    /// # Errors
    /// [`TraceError`], naming the line and the field to mend.
    pub fn load(name: &str) -> Result<Self, TraceError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text);
        }
        let text = std::fs::read_to_string(Path::new(name)).map_err(|source| TraceError::Read {
            name: name.to_owned(),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// Reads a trace from its text; `name` is for messages. Blank lines are skipped.
    ///
    /// # Errors
    /// [`TraceError::Line`] or [`TraceError::Empty`].
    pub fn parse(name: &str, text: &str) -> Result<Self, TraceError> {
        let mut checker = Checker::default();
        let mut programs = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let program = checker
                .take(index + 1, line)
                .map_err(|problem| TraceError::Line {
                    name: name.to_owned(),
                    line: index + 1,
                    problem,
                })?;
            programs.push(program);
        }
        if programs.is_empty() {
            return Err(TraceError::Empty {
                name: name.to_owned(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            programs,
            repaired: checker.repaired,
        })
    }

    /// The trace as text, one line per program; reading it back gives the same programs.
    ///
    /// # Errors
    /// Never in practice: every field is a string, an integer or a finite float.
    pub fn to_jsonl(&self) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        for program in &self.programs {
            text.push_str(&serde_json::to_string(program)?);
            text.push('\n');
        }
        Ok(text)
    }

    /// A short name for folders: the built-in's name, or the file's without folder and ending.
    pub fn file_stem(&self) -> &str {
        let stem = Path::new(&self.name).file_stem();
        stem.and_then(|s| s.to_str()).unwrap_or("trace")
    }

    /// LLM calls of all programs together.
    pub fn steps(&self) -> usize {
        self.programs.iter().map(|p| p.steps.len()).sum()
    }
}

/// Checks lines against each other: names are unique, a prefix has one length.
#[derive(Debug, Default)]
struct Checker {
    /// Program name → line.
    names: BTreeMap<String, usize>,
    /// Prefix id → (tokens, line).
    prefixes: BTreeMap<String, (u32, usize)>,
    repaired: usize,
}

impl Checker {
    fn take(&mut self, line: usize, text: &str) -> Result<Program, String> {
        let mut program: Program =
            serde_json::from_str(text).map_err(|e| format!("not a program: {e}"))?;
        if program.program.is_empty() {
            return Err("`program` is empty".to_owned());
        }
        if let Some(first) = self.names.insert(program.program.clone(), line) {
            return Err(format!(
                "`program` {:?} is already on line {first}",
                program.program
            ));
        }
        let prefix = &program.shared_prefix;
        let (tokens, first) = *self
            .prefixes
            .entry(prefix.id.clone())
            .or_insert((prefix.tokens, line));
        if tokens != prefix.tokens {
            return Err(format!(
                "`shared_prefix.tokens` is {}, but prefix {:?} has {tokens} on line {first}",
                prefix.tokens, prefix.id
            ));
        }
        check_steps(&program)?;
        self.repaired += make_append_only(&mut program.steps);
        Ok(program)
    }
}

/// The rules that hold within one program.
fn check_steps(program: &Program) -> Result<(), String> {
    let Some(first) = program.steps.first() else {
        return Err("`steps` is empty".to_owned());
    };
    if program.shared_prefix.tokens >= first.prompt_tokens {
        return Err(format!(
            "`shared_prefix.tokens` ({}) must be below steps[0].prompt_tokens ({})",
            program.shared_prefix.tokens, first.prompt_tokens
        ));
    }
    let last = program.steps.len() - 1;
    for (index, step) in program.steps.iter().enumerate() {
        let problem = if !(1..=MAX_TOKENS).contains(&step.output_tokens) {
            format!("`output_tokens` must be 1 to {MAX_TOKENS}")
        } else if step.prompt_tokens > MAX_TOKENS {
            format!("`prompt_tokens` must be at most {MAX_TOKENS}")
        } else if !(0.0..=MAX_GAP_S).contains(&step.gap_s) {
            format!("`gap_s` must be 0 to {MAX_GAP_S}")
        } else if (step.then == Then::End) != (index == last) {
            "`then` must be \"end\" on the last step and only there".to_owned()
        } else {
            continue;
        };
        return Err(format!("steps[{index}]: {problem}"));
    }
    Ok(())
}

/// Raises contexts that could not hold the step before; returns how many.
fn make_append_only(steps: &mut [Step]) -> usize {
    let mut raised = 0;
    let mut floor = 0;
    for step in steps {
        if step.prompt_tokens < floor {
            step.prompt_tokens = floor;
            raised += 1;
        }
        floor = step.prompt_tokens + step.output_tokens + MIN_GROWTH_TOKENS;
    }
    raised
}

#[cfg(test)]
mod tests {
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
}
