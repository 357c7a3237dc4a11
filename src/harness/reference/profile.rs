//! The structured lines of the driver: `[PROFILE]`, `[USER_JUDGE]` and `[ERROR]`. Pure.
//!
//! `[LEVEL] YYYY-MM-DD HH:MM:SS.mmm task=T thread=N type=K step=S key=value...`, or a message in place of the
//! pairs. The time is the end of what is told. They stand in `driver.log`, glued to other text at times, and one a
//! line in `logs/tau2_global.log`. Older logs named the model's times and lengths `toolorchestra_vllm_*`.

use super::local_time::LocalTime;

/// How these lines begin.
pub const LEVELS: [(&str, Level); 3] = [
    ("[PROFILE] ", Level::Profile),
    ("[USER_JUDGE] ", Level::UserJudge),
    ("[ERROR] ", Level::Error),
];

/// What a line is marked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Timings of the agent's side.
    Profile,
    /// Timings of the simulated user and of the judge.
    UserJudge,
    /// A message about a failure.
    Error,
}

/// What a line tells the time of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The agent's model answered; includes an expert's answer in the same step.
    LlmCall,
    /// An expert model answered.
    ExpertCall,
    /// A tool ran; also the judge's, when it plays a task's calls again.
    ToolCall,
    /// One move of the conversation is over.
    StepComplete,
    /// The simulated user answered.
    UserSim,
    /// The judge answered.
    Evaluator,
}

impl Kind {
    /// Every kind with its name in `type=`.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("llm_call", Self::LlmCall),
        ("expert_call", Self::ExpertCall),
        ("tool_call", Self::ToolCall),
        ("step_complete", Self::StepComplete),
        ("user_sim", Self::UserSim),
        ("evaluator", Self::Evaluator),
    ];
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it is marked as.
    pub level: Level,
    /// When what it tells of ended.
    pub at: LocalTime,
    /// `{domain}:{task}`, `{task}` where one domain was run by itself, `global` outside tasks.
    pub task: &'a str,
    /// The driver's thread.
    pub thread: &'a str,
    /// What it tells the time of; `None` for a message and for kinds that are not known.
    pub kind: Option<Kind>,
    /// Index of the move in the task's conversation.
    pub step: Option<u32>,
    /// Everything behind `thread=`: pairs, or a message.
    pub text: &'a str,
}

impl<'a> Record<'a> {
    /// Reads a text that begins with one of [`LEVELS`]; `None` where it is cut off or something else.
    pub fn parse(text: &'a str) -> Option<Self> {
        let begins = |(mark, level): &(&str, Level)| Some((text.strip_prefix(mark)?, *level));
        let (rest, level) = LEVELS.iter().find_map(begins)?;
        let at = LocalTime::parse(rest.as_bytes())?;
        let (_, rest) = rest.split_once(" task=")?;
        let (task, rest) = rest.split_once(" thread=")?;
        let (thread, text) = rest.split_once(' ')?;
        let named = field(text, "type");
        let kind = Kind::NAMES
            .iter()
            .find(|(name, _)| named == Some(name))
            .map(|(_, kind)| *kind);
        let step = field(text, "step").and_then(|step| step.parse().ok());
        Some(Self {
            level,
            at,
            task,
            thread,
            kind,
            step,
            text,
        })
    }

    /// The value of a pair.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        field(self.text, name)
    }

    /// How long it took, in milliseconds.
    pub fn duration_ms(&self) -> Option<f64> {
        self.number(&["duration_ms", "total_duration_ms"])
    }

    /// From sending the request to the whole answer, in milliseconds.
    pub fn infer_ms(&self) -> Option<f64> {
        self.number(&["vllm_infer_ms", "toolorchestra_vllm_infer_ms"])
    }

    /// To the first token, in milliseconds.
    pub fn prefill_ms(&self) -> Option<f64> {
        self.number(&["prefill_ms", "toolorchestra_vllm_prefill_ms"])
    }

    /// From the first token to the last, in milliseconds.
    pub fn decode_ms(&self) -> Option<f64> {
        self.number(&["decode_ms", "toolorchestra_vllm_decode_ms"])
    }

    /// Tokens of the prompt.
    pub fn input_tokens(&self) -> Option<f64> {
        self.number(&["input_tokens", "toolorchestra_vllm_prefill_len"])
    }

    /// Tokens of the answer.
    pub fn output_tokens(&self) -> Option<f64> {
        self.number(&["output_tokens", "toolorchestra_vllm_decode_len"])
    }

    /// Who spoke and who is next, after the move: `("agent", "env")`.
    pub fn edge(&self) -> Option<(&'a str, &'a str)> {
        self.field("from_role").zip(self.field("to_role"))
    }

    fn number(&self, names: &[&str]) -> Option<f64> {
        let value = names.iter().find_map(|name| self.field(name))?;
        value.parse().ok().filter(|value: &f64| value.is_finite())
    }
}

/// The value of `name=value` in a text of pairs separated by blanks.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |pair: &'a str| pair.strip_prefix(name)?.strip_prefix('=');
    text.split_ascii_whitespace().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = "[PROFILE] 2026-11-24 02:57:52.987 task=telecom:[a]b|c[PERSONA:None] thread=14 type=llm_call \
        step=1 model=/ckpt/M call_type=vllm duration_ms=1205.18 vllm_infer_ms=1203.37 has_tool_calls=True";

    #[test]
    fn a_call_is_read_with_its_task_step_and_times() {
        let call = Record::parse(CALL).unwrap();
        assert_eq!(
            (call.level, call.kind, call.step),
            (Level::Profile, Some(Kind::LlmCall), Some(1))
        );
        assert_eq!(
            (call.task, call.thread, call.at.millis),
            ("telecom:[a]b|c[PERSONA:None]", "14", 987)
        );
        assert_eq!(
            (call.duration_ms(), call.infer_ms(), call.prefill_ms()),
            (Some(1205.18), Some(1203.37), None)
        );
        assert_eq!(call.field("has_tool_calls"), Some("True"));
    }

    #[test]
    fn a_steps_length_is_its_total_and_its_roles_are_an_edge() {
        let text = "[PROFILE] 2026-11-24 02:57:51.798 task=retail:0 thread=1 type=step_complete step=0 \
            total_duration_ms=1614.38 from_role=user to_role=agent";
        let step = Record::parse(text).unwrap();
        assert_eq!(
            (step.duration_ms(), step.edge()),
            (Some(1614.38), Some(("user", "agent")))
        );
    }

    #[test]
    fn older_names_mean_the_same() {
        let text = "[PROFILE] 2025-12-24 02:57:51 task=0 thread=1 type=llm_call toolorchestra_vllm_infer_ms=5 \
            toolorchestra_vllm_prefill_ms=2 toolorchestra_vllm_decode_ms=3 toolorchestra_vllm_prefill_len=7 \
            toolorchestra_vllm_decode_len=8";
        let call = Record::parse(text).unwrap();
        assert_eq!(
            (call.infer_ms(), call.prefill_ms(), call.decode_ms()),
            (Some(5.0), Some(2.0), Some(3.0))
        );
        assert_eq!(
            (call.input_tokens(), call.output_tokens(), call.step),
            (Some(7.0), Some(8.0), None)
        );
    }

    #[test]
    fn an_error_is_a_message_and_a_cut_line_is_nothing() {
        let text = "[ERROR] 2026-11-24 02:58:22.486 task=retail:5 thread=1 LLM call failed permanently: X: step=3";
        let error = Record::parse(text).unwrap();
        assert_eq!(
            (error.level, error.kind, error.task),
            (Level::Error, None, "retail:5")
        );
        assert!(error.text.starts_with("LLM call failed"));
        for cut in [9, 20, 40, 60] {
            assert_eq!(Record::parse(CALL.split_at(cut).0), None, "{cut}");
        }
    }
}
