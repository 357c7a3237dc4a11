//! Where a run's programs come from: drawn from a [`Shape`], or recorded in a trace.
//!
//! One order for all policies: the n-th program of a seed is the same whoever schedules it.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::workload::{GROUPS, Generator, Program, Shape, Step, TOOLS};
use crate::harness::trace::{self, MIN_GROWTH_TOKENS, SharedPrefix, Then, Trace};
use crate::policy::{GapKind, Time, ToolId};

/// What kind of programs a run plays.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// Drawn from a shape.
    Drawn(Shape),
    /// Those of a trace, in its order; past its end it starts over under new names, as `kvgate replay` does.
    Recorded(Arc<Recorded>),
    /// Those of a trace in an order drawn from the seed, each gap replaced by one of the trace's of its kind.
    Resampled(Arc<Recorded>),
}

/// The programs of a trace, in the simulation's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The trace's name.
    pub name: String,
    /// Its programs, at least one.
    pub programs: Vec<Program>,
    /// The names of its tools, by number.
    pub tools: Vec<String>,
    /// The names of its shared prefixes, by number.
    pub groups: Vec<String>,
}

impl Workload {
    /// The shape called `name`, or `tau2`: the recorded trajectories in an order drawn from the seed.
    ///
    /// # Errors
    /// An unknown name; the message lists the known.
    pub fn by_name(name: &str) -> anyhow::Result<Self> {
        if let Some(shape) = Shape::by_name(name) {
            return Ok(Self::Drawn(shape));
        }
        if name == "tau2" {
            return Ok(Self::resampled(&Trace::load(name)?));
        }
        let shapes = Shape::ALL.map(Shape::name).join(", ");
        anyhow::bail!("no shape {name:?}; choose from tau2, {shapes}, or give a trace file")
    }

    /// The trace called `tau2` or `swe`, or in that file, in its order.
    pub fn recorded(trace: &Trace) -> Self {
        Self::Recorded(Arc::new(Recorded::new(trace)))
    }

    /// The same, shuffled by the seed.
    pub fn resampled(trace: &Trace) -> Self {
        Self::Resampled(Arc::new(Recorded::new(trace)))
    }

    /// The name in tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Drawn(shape) => shape.name(),
            Self::Recorded(recorded) | Self::Resampled(recorded) => &recorded.name,
        }
    }

    /// How many programs a set has by itself; `None`: as many as one likes.
    pub fn programs(&self) -> Option<usize> {
        match self {
            Self::Recorded(recorded) => Some(recorded.programs.len()),
            Self::Drawn(_) | Self::Resampled(_) => None,
        }
    }

    /// Programs without end, those of `seed`.
    pub fn supply(&self, seed: u64) -> Supply {
        let source = match self {
            Self::Drawn(shape) => Source::Drawn(Generator::new(*shape, seed)),
            Self::Recorded(recorded) => Source::Recorded(Arc::clone(recorded)),
            Self::Resampled(recorded) => {
                Source::Resampled(Resampled::new(Arc::clone(recorded), seed))
            }
        };
        Supply { source, given: 0 }
    }

    /// Between two moments at which gaps can end; `None`: at any.
    const fn gap_grid(&self) -> Option<Duration> {
        match self {
            Self::Drawn(shape) => shape.gap_grid(),
            Self::Recorded(_) | Self::Resampled(_) => None,
        }
    }

    /// When a program returns that goes idle at `since` for a gap drawn as `gap`.
    pub fn returns_at(&self, since: Time, gap: Duration) -> Time {
        let drawn = since + gap;
        let Some(grid) = self.gap_grid() else {
            return drawn;
        };
        let grid = u64::try_from(grid.as_nanos()).unwrap_or(u64::MAX).max(1);
        Time::from_nanos(drawn.as_nanos().next_multiple_of(grid))
    }

    /// Programs of this workload as a trace, which `kvgate replay` plays.
    pub fn to_trace(&self, programs: &[Program]) -> Vec<trace::Program> {
        let program = |program| self.trace_program(program);
        programs.iter().map(program).collect()
    }

    fn trace_program(&self, program: &Program) -> trace::Program {
        let group = program.group as usize;
        let (prefix, kind) = match self {
            Self::Drawn(_) => (GROUPS.get(group).copied(), self.name()),
            Self::Recorded(recorded) | Self::Resampled(recorded) => {
                (recorded.groups.get(group).map(String::as_str), self.name())
            }
        };
        trace::Program {
            program: program.name.clone(),
            kind: kind.to_owned(),
            shared_prefix: SharedPrefix {
                id: prefix.unwrap_or("prefix").to_owned(),
                tokens: program.shared,
            },
            steps: self.trace_steps(program),
        }
    }

    fn trace_steps(&self, program: &Program) -> Vec<trace::Step> {
        let last = program.steps.len().saturating_sub(1);
        let mut context = program.shared;
        let step = |(index, step): (usize, &Step)| {
            context += step.added.max(MIN_GROWTH_TOKENS);
            let prompt_tokens = context;
            context += step.output;
            let over = index == last;
            trace::Step {
                prompt_tokens,
                output_tokens: step.output,
                then: if over {
                    Then::End
                } else {
                    self.then(step.kind)
                },
                gap_s: if over { 0.0 } else { step.gap.as_secs_f64() },
            }
        };
        program.steps.iter().enumerate().map(step).collect()
    }

    fn then(&self, kind: GapKind) -> Then {
        let GapKind::Tool(tool) = kind else {
            return Then::User;
        };
        let at = usize::from(tool.0);
        let name = match self {
            Self::Drawn(_) => TOOLS.get(at).copied(),
            Self::Recorded(recorded) | Self::Resampled(recorded) => {
                recorded.tools.get(at).map(String::as_str)
            }
        };
        Then::Tool(name.unwrap_or("tool").to_owned())
    }
}

impl Recorded {
    /// Translates a trace; contexts become what each step adds to them.
    pub fn new(trace: &Trace) -> Self {
        let mut recorded = Self {
            name: trace.file_stem().to_owned(),
            programs: Vec::new(),
            tools: Vec::new(),
            groups: Vec::new(),
        };
        for program in &trace.programs {
            let group = number(&mut recorded.groups, &program.shared_prefix.id);
            let shared = program.shared_prefix.tokens;
            let mut context = shared;
            let mut steps = Vec::new();
            for step in &program.steps {
                steps.push(Step {
                    added: step.prompt_tokens.saturating_sub(context).max(1),
                    output: step.output_tokens,
                    gap: Duration::from_secs_f64(step.gap_s),
                    kind: recorded.kind(&step.then),
                    branches: 1,
                });
                context = step.prompt_tokens + step.output_tokens;
            }
            recorded.programs.push(Program {
                name: program.program.clone(),
                group: u32::from(group),
                shared,
                steps,
            });
        }
        recorded
    }

    fn kind(&mut self, then: &Then) -> GapKind {
        match then {
            Then::Tool(name) => GapKind::Tool(ToolId(number(&mut self.tools, name))),
            Then::User | Then::End => GapKind::UserTurn,
        }
    }
}

/// The position of `name` in `names`, where it is added if need be.
fn number(names: &mut Vec<String>, name: &str) -> u16 {
    let at = names.iter().position(|known| known == name);
    let at = at.unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    });
    u16::try_from(at).unwrap_or(u16::MAX)
}

/// The programs of one seed, one after the other, without end.
#[derive(Clone, Debug)]
pub struct Supply {
    source: Source,
    given: usize,
}

#[derive(Clone, Debug)]
enum Source {
    Drawn(Generator),
    Recorded(Arc<Recorded>),
    Resampled(Resampled),
}

impl Supply {
    /// A program, the index of its next step and the time until then: in the middle of its life and of a tool
    /// gap, each moment of both being as likely. Recorded programs begin at their beginning.
    pub fn in_mid_life(&mut self) -> Option<(Program, usize, Duration)> {
        if let Source::Drawn(generator) = &mut self.source {
            self.given += 1;
            return Some(generator.in_mid_life());
        }
        self.next().map(|program| (program, 0, Duration::ZERO))
    }
}

impl Iterator for Supply {
    type Item = Program;

    fn next(&mut self) -> Option<Program> {
        let given = self.given;
        self.given += 1;
        match &mut self.source {
            Source::Drawn(generator) => Some(generator.program()),
            Source::Recorded(recorded) => again(&recorded.programs, given, given),
            Source::Resampled(resampled) => resampled.program(given),
        }
    }
}

/// The program at `index`, under a new name after the first `programs.len()` of a run.
fn again(programs: &[Program], index: usize, given: usize) -> Option<Program> {
    let count = programs.len().max(1);
    let mut program = programs.get(index % count)?.clone();
    if given >= count {
        program.name = format!("{}.{}", program.name, given / count);
    }
    Some(program)
}

#[derive(Clone, Debug)]
struct Resampled {
    recorded: Arc<Recorded>,
    dice: ChaCha8Rng,
    /// The programs of the pass under way, the next one last.
    order: Vec<usize>,
    /// The trace's gaps, by kind.
    gaps: Vec<(GapKind, Vec<Duration>)>,
}

impl Resampled {
    fn new(recorded: Arc<Recorded>, seed: u64) -> Self {
        let mut gaps: Vec<(GapKind, Vec<Duration>)> = Vec::new();
        for program in &recorded.programs {
            // The last step has no gap.
            for step in program.steps.iter().rev().skip(1) {
                match gaps.iter_mut().find(|(kind, _)| *kind == step.kind) {
                    Some((_, pool)) => pool.push(step.gap),
                    None => gaps.push((step.kind, vec![step.gap])),
                }
            }
        }
        Self {
            recorded,
            dice: ChaCha8Rng::seed_from_u64(seed),
            order: Vec::new(),
            gaps,
        }
    }

    fn program(&mut self, given: usize) -> Option<Program> {
        if self.order.is_empty() {
            self.order = (0..self.recorded.programs.len()).collect();
            self.order.shuffle(&mut self.dice);
        }
        let index = self.order.pop()?;
        let mut program = again(&self.recorded.programs, index, given)?;
        for step in &mut program.steps {
            let pool = self.gaps.iter().find(|(kind, _)| *kind == step.kind);
            if let Some(gap) = pool.and_then(|(_, pool)| pool.choose(&mut self.dice)) {
                step.gap = *gap;
            }
        }
        Some(program)
    }
}
