//! Agent programs to simulate, drawn from a seed: the shapes of the measured cells and others beside them.
//!
//! A shape says how large the shared prefixes are, how many steps a program has, how much each step adds, how
//! much it generates, and how long its tool gap is. What the measurements' description leaves open is decided
//! here and said beside it: a plain "about 140 tokens" is a mean with [`SPREAD`] around it.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};

use crate::policy::{GapKind, ToolId};

/// What the programs of a run look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Customer service with long policies: three domains, medium gaps.
    Tau2Lognormal,
    /// Software engineering: a short shared prefix, long private contexts, gaps mostly under a second.
    Swe,
    /// An orchestrator with tools, experts and a simulated user, whose gaps differ by a factor of 200.
    Orch,
    /// Each program one of the first two, as likely.
    Mix,
    /// The first with gaps four times as long, at most [`SLOW_LIMIT_S`].
    Slow,
    /// The first, but what programs wait for comes only every [`BURST`], for all at once.
    Bursts,
    /// The orchestrator, but a fifth of its steps are two to four requests on one context.
    Forks,
    /// Research: large tool results of very different sizes, long answers, long gaps.
    Research,
    /// Coding with a long shared prefix: gaps under a second and, now and then, a build of half a minute.
    Coding,
    /// Each program one of research, software engineering and coding, as likely.
    Blend,
    /// Review of a change: all of it in the first prompt, few steps, searches and, now and then, a long test run.
    Review,
    /// A help desk: a short shared prefix, documents looked up at once, and people who answer after half a minute.
    Desk,
}

impl Shape {
    /// Every shape, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::Orch,
        Self::Tau2Lognormal,
        Self::Swe,
        Self::Mix,
        Self::Slow,
        Self::Bursts,
        Self::Forks,
        Self::Research,
        Self::Coding,
        Self::Blend,
        Self::Review,
        Self::Desk,
    ];

    /// The name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tau2Lognormal => "tau2-lognormal",
            Self::Swe => "swe",
            Self::Orch => "orch",
            Self::Mix => "mix",
            Self::Slow => "slow",
            Self::Bursts => "bursts",
            Self::Forks => "forks",
            Self::Research => "res",
            Self::Coding => "cod",
            Self::Blend => "blend",
            Self::Review => "review",
            Self::Desk => "desk",
        }
    }

    /// The shape called `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// Between two moments at which gaps of this shape can end; `None`: at any.
    pub const fn gap_grid(self) -> Option<Duration> {
        if matches!(self, Self::Bursts) {
            return Some(BURST);
        }
        None
    }
}

/// One step of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Tokens that the user or the tool adds to the prompt before this step.
    pub added: u32,
    /// Tokens generated.
    pub output: u32,
    /// From this step's end to the next one's arrival.
    pub gap: Duration,
    /// What the gap is spent on.
    pub kind: GapKind,
    /// Requests sent at once on the same context, at least 1; the first one's answer becomes history.
    pub branches: u32,
}

/// One agent task.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Unique in a run.
    pub name: String,
    /// Which shared prefix it begins with.
    pub group: u32,
    /// Length of that prefix, in tokens.
    pub shared: u32,
    /// Its steps, at least one.
    pub steps: Vec<Step>,
}

/// Draws programs of one shape.
#[derive(Clone, Debug)]
pub struct Generator {
    shape: Shape,
    dice: ChaCha8Rng,
    drawn: usize,
}

/// Sigma of the lognormal around a mean that the description gives without a spread.
pub const SPREAD: f64 = 0.5;
/// Most tokens of a change to review.
const LONGEST_CHANGE: u32 = 26_000;
/// Longest gap of [`Shape::Slow`], [`Shape::Review`] and [`Shape::Desk`], in seconds.
pub const SLOW_LIMIT_S: f64 = 240.0;
/// Time between two bursts of [`Shape::Bursts`].
pub const BURST: Duration = Duration::from_secs(10);
/// An orchestrator's two domains: prefix, tokens added by a turn, tokens generated.
const ORCH: [(u32, f64, f64); 2] = [(4_700, 160.0, 81.0), (7_150, 330.0, 150.0)];
/// Share of programs in the second domain: the real tasks are 114 and 50.
const ORCH_SECOND: f64 = 50.0 / 164.0;

/// The only tool of most shapes; an orchestrator's environment.
pub const TOOL: ToolId = ToolId(0);
/// An orchestrator's expert.
pub const EXPERT: ToolId = ToolId(1);
/// A coder's build, a reviewer's test run.
pub const BUILD: ToolId = ToolId(2);
/// The tools' names, by number.
pub const TOOLS: [&str; 3] = ["environment", "call_expert", "build"];

/// The shared prefixes' names, by number.
pub const GROUPS: [&str; 10] = [
    "tau2-a", "tau2-b", "tau2-c", "swe", "retail", "airline", "res", "cod", "review", "desk",
];

/// The shape of one program, where a shape mixes several: what decides its prefix and its steps.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Tau2 { domain: u32, slower: f64 },
    Swe,
    Orch { domain: u32, forks: bool },
    Research,
    Coding,
    Review,
    Desk,
}

impl Kind {
    /// Number and length of the shared prefix.
    const fn prefix(self) -> (u32, u32) {
        match self {
            Self::Tau2 { domain, .. } => (domain, 4_200 + 800 * domain),
            Self::Swe => (3, 900),
            Self::Orch { domain, .. } => (4 + domain, ORCH[domain as usize].0),
            Self::Research => (6, 2_500),
            Self::Coding => (7, 12_000),
            Self::Review => (8, 3_000),
            Self::Desk => (9, 1_200),
        }
    }
}

impl Step {
    fn new(added: u32, output: u32, gap_s: f64, kind: GapKind) -> Self {
        Self {
            added,
            output,
            gap: Duration::from_secs_f64(gap_s),
            kind,
            branches: 1,
        }
    }
}

impl Generator {
    /// The programs of `seed`.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            dice: ChaCha8Rng::seed_from_u64(seed),
            drawn: 0,
        }
    }

    /// The next program.
    pub fn program(&mut self) -> Program {
        let kind = self.kind();
        let (group, shared) = kind.prefix();
        let count = match kind {
            Kind::Tau2 { .. } => self.dice.random_range(6..=40),
            Kind::Swe => self.dice.random_range(15..=60),
            Kind::Orch { .. } => self.dice.random_range(5..=24),
            Kind::Research => self.dice.random_range(4..=12),
            Kind::Coding => self.dice.random_range(10..=30),
            Kind::Review => self.dice.random_range(3..=9),
            Kind::Desk => self.dice.random_range(8..=24),
        };
        let mut steps: Vec<_> = (0..count).map(|_| self.step(kind)).collect();
        if matches!(kind, Kind::Review) {
            steps[0].added = self.tokens(9_000.0, 0.6).min(LONGEST_CHANGE);
        }
        let name = format!("{}-{}", GROUPS[group as usize], self.drawn);
        self.drawn += 1;
        Program {
            name,
            group,
            shared,
            steps,
        }
    }

    /// A program, the index of its next step and the time until then: in the middle of its life and of a tool
    /// gap, each moment of both being as likely.
    pub fn in_mid_life(&mut self) -> (Program, usize, Duration) {
        let program = self.program();
        let position = self.dice.random_range(0..program.steps.len());
        let gap = program.steps[position].gap;
        let left = gap.mul_f64(self.dice.random_range(0.0..1.0));
        (program, position, left)
    }

    fn kind(&mut self) -> Kind {
        match self.shape {
            Shape::Mix if self.dice.random_bool(0.5) => Kind::Swe,
            Shape::Tau2Lognormal | Shape::Bursts | Shape::Mix => self.tau2(1.0),
            Shape::Slow => self.tau2(4.0),
            Shape::Swe => Kind::Swe,
            Shape::Orch => self.orch(false),
            Shape::Forks => self.orch(true),
            Shape::Research => Kind::Research,
            Shape::Coding => Kind::Coding,
            Shape::Review => Kind::Review,
            Shape::Desk => Kind::Desk,
            Shape::Blend => [Kind::Research, Kind::Swe, Kind::Coding][self.dice.random_range(0..3)],
        }
    }

    fn tau2(&mut self, slower: f64) -> Kind {
        Kind::Tau2 {
            domain: self.dice.random_range(0..3),
            slower,
        }
    }

    fn orch(&mut self, forks: bool) -> Kind {
        Kind::Orch {
            domain: u32::from(self.dice.random_bool(ORCH_SECOND)),
            forks,
        }
    }

    fn step(&mut self, kind: Kind) -> Step {
        let tool = GapKind::Tool(TOOL);
        match kind {
            Kind::Tau2 { slower, .. } => {
                let median = self.dice.random_range(2.0..3.0);
                let (added, output) = (self.around(320.0), self.around(140.0));
                let gap_s = slower * self.lognormal(median, 1.0);
                let limit_s = if slower > 1.0 { SLOW_LIMIT_S } else { f64::MAX };
                Step::new(added, output, gap_s.min(limit_s), tool)
            }
            Kind::Swe => {
                // The median of the real trajectories.
                let (added, output) = (self.tokens(362.0, 0.8), self.around(30.0));
                Step::new(added, output, self.swe_gap_s(), tool)
            }
            Kind::Orch { domain, forks } => self.orch_step(domain, forks),
            Kind::Research => {
                let (added, output) = (self.around_with(1_400.0, 1.0), self.around(320.0));
                Step::new(added, output, self.lognormal(8.0, 1.2), tool)
            }
            Kind::Review => {
                let (added, output) = (self.around(900.0), self.around(280.0));
                let (median, sigma, tool) = if self.dice.random_bool(0.25) {
                    (45.0, 0.7, BUILD)
                } else {
                    (0.3, SPREAD, TOOL)
                };
                let gap_s = self.lognormal(median, sigma).min(SLOW_LIMIT_S);
                Step::new(added, output, gap_s, GapKind::Tool(tool))
            }
            Kind::Desk => self.desk_step(),
            Kind::Coding => {
                let (added, output) = (self.around(700.0), self.around(90.0));
                let (median, tool) = if self.dice.random_bool(0.12) {
                    (25.0, BUILD)
                } else {
                    (0.8, TOOL)
                };
                Step::new(
                    added,
                    output,
                    self.lognormal(median, SPREAD),
                    GapKind::Tool(tool),
                )
            }
        }
    }

    fn desk_step(&mut self) -> Step {
        let output = self.around(160.0);
        if self.dice.random_bool(0.45) {
            let gap_s = self.lognormal(28.0, 0.8).min(SLOW_LIMIT_S);
            return Step::new(self.around(90.0), output, gap_s, GapKind::UserTurn);
        }
        let gap_s = self.dice.random_range(0.15..0.9);
        Step::new(
            self.around_with(1_100.0, 0.8),
            output,
            gap_s,
            GapKind::Tool(TOOL),
        )
    }

    fn swe_gap_s(&mut self) -> f64 {
        match self.dice.random_range(0..100) {
            0..60 => 0.002,
            60..98 => 0.5,
            _ => self.dice.random_range(10.0..40.0),
        }
    }

    fn orch_step(&mut self, domain: u32, forks: bool) -> Step {
        let (_, added, output) = ORCH[domain as usize];
        let (gap_s, kind) = match self.dice.random_range(0..100) {
            0..45 => (self.dice.random_range(0.020..0.080), GapKind::Tool(TOOL)),
            // Median 9.6 s and 90th percentile 23.4 s.
            45..78 => (self.lognormal(9.6, 0.695), GapKind::UserTurn),
            _ => (self.lognormal(2.5, 0.8), GapKind::Tool(EXPERT)),
        };
        let branches = if forks && self.dice.random_bool(0.2) {
            self.dice.random_range(2..=4)
        } else {
            1
        };
        Step {
            branches,
            ..Step::new(self.around(added), self.around(output), gap_s, kind)
        }
    }

    /// Tokens with this mean.
    fn around(&mut self, mean: f64) -> u32 {
        self.around_with(mean, SPREAD)
    }

    fn around_with(&mut self, mean: f64, sigma: f64) -> u32 {
        self.tokens(mean * (-sigma * sigma / 2.0).exp(), sigma)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and far below the limit"
    )]
    fn tokens(&mut self, median: f64, sigma: f64) -> u32 {
        (self.lognormal(median, sigma) as u32).max(1)
    }

    fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        match LogNormal::new(median.ln(), sigma) {
            Ok(distribution) => distribution.sample(&mut self.dice),
            Err(_) => median,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_programs() {
        for shape in Shape::ALL {
            let draw = |seed| {
                let mut generator = Generator::new(shape, seed);
                (0..20).map(|_| generator.program()).collect::<Vec<_>>()
            };
            assert_eq!(draw(3), draw(3));
            assert_ne!(draw(3), draw(4));
        }
    }

    fn steps(shape: Shape) -> Vec<Step> {
        let mut generator = Generator::new(shape, 1);
        (0..100).flat_map(|_| generator.program().steps).collect()
    }

    /// Percent of the shape's gaps from `from` to `to` seconds.
    fn share(shape: Shape, from: f64, to: f64) -> usize {
        let steps = steps(shape);
        let inside = |step: &&Step| (from..to).contains(&step.gap.as_secs_f64());
        steps.iter().filter(inside).count() * 100 / steps.len()
    }

    #[test]
    fn gaps_have_the_shares_of_the_description() {
        let swe = |from, to| share(Shape::Swe, from, to);
        assert!((57..=63).contains(&swe(0.0, 0.1)), "{}", swe(0.0, 0.1));
        assert!((35..=41).contains(&swe(0.4, 0.6)));
        assert!((1..=3).contains(&swe(10.0, 40.0)));
        // A median of 2.5 s, and four times that.
        assert!((46..=54).contains(&share(Shape::Tau2Lognormal, 0.0, 2.5)));
        assert!((46..=54).contains(&share(Shape::Slow, 0.0, 10.0)));
        assert_eq!(share(Shape::Slow, 240.1, 1e9), 0);
    }

    #[test]
    fn a_mixture_has_each_of_its_kinds() {
        let mut generator = Generator::new(Shape::Blend, 1);
        let groups: std::collections::BTreeSet<_> = (0..50)
            .map(|_| GROUPS[generator.program().group as usize])
            .collect();
        assert_eq!(
            groups.into_iter().collect::<Vec<_>>(),
            ["cod", "res", "swe"]
        );
    }

    #[test]
    fn forks_send_up_to_four_requests_at_once_and_other_shapes_one() {
        let widest = |shape| steps(shape).iter().map(|step| step.branches).max();
        assert_eq!(widest(Shape::Forks), Some(4));
        assert_eq!(widest(Shape::Orch), Some(1));
    }

    #[test]
    fn every_shape_is_found_by_its_name() {
        for shape in Shape::ALL {
            assert_eq!(Shape::by_name(shape.name()), Some(shape));
        }
        assert_eq!(Shape::by_name("fractal"), None);
    }
}
