//! Generated agent programs: the shapes of the measured cells, drawn from a seed.
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
}

impl Shape {
    /// The name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tau2Lognormal => "tau2-lognormal",
            Self::Swe => "swe",
            Self::Orch => "orch",
        }
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
}

/// One agent task.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
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
}

/// Sigma of the lognormal around a mean that the description gives without a spread.
pub const SPREAD: f64 = 0.5;
/// An orchestrator's two domains: prefix, tokens added by a turn, tokens generated.
const ORCH: [(u32, f64, f64); 2] = [(4_700, 160.0, 81.0), (7_150, 330.0, 150.0)];
/// Share of programs in the second domain: the real tasks are 114 and 50.
const ORCH_SECOND: f64 = 50.0 / 164.0;

impl Generator {
    /// The programs of `seed`.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            dice: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// The next program.
    pub fn program(&mut self) -> Program {
        let (group, shared, steps) = match self.shape {
            Shape::Tau2Lognormal => {
                let group = self.dice.random_range(0..3);
                (group, 4_200 + 800 * group, self.dice.random_range(6..=40))
            }
            Shape::Swe => (0, 900, self.dice.random_range(15..=60)),
            Shape::Orch => {
                let group = u32::from(self.dice.random_bool(ORCH_SECOND));
                (
                    group,
                    ORCH[group as usize].0,
                    self.dice.random_range(5..=24),
                )
            }
        };
        let steps = (0..steps).map(|_| self.step(group)).collect();
        Program {
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

    fn step(&mut self, group: u32) -> Step {
        match self.shape {
            Shape::Tau2Lognormal => {
                let median = self.dice.random_range(2.0..3.0);
                Step {
                    added: self.around(320.0),
                    output: self.around(140.0),
                    gap: self.seconds(median, 1.0),
                    kind: GapKind::Tool(ToolId(0)),
                }
            }
            Shape::Swe => Step {
                // The median of the real trajectories.
                added: self.tokens(362.0, 0.8),
                output: self.around(30.0),
                gap: self.swe_gap(),
                kind: GapKind::Tool(ToolId(0)),
            },
            Shape::Orch => self.orch_step(group),
        }
    }

    fn swe_gap(&mut self) -> Duration {
        match self.dice.random_range(0..100) {
            0..60 => Duration::from_millis(2),
            60..98 => Duration::from_millis(500),
            _ => Duration::from_secs_f64(self.dice.random_range(10.0..40.0)),
        }
    }

    fn orch_step(&mut self, group: u32) -> Step {
        let (_, added, output) = ORCH[group as usize];
        let (gap, kind) = match self.dice.random_range(0..100) {
            0..45 => {
                let seconds = self.dice.random_range(0.020..0.080);
                (Duration::from_secs_f64(seconds), GapKind::Tool(ToolId(0)))
            }
            // Median 9.6 s and 90th percentile 23.4 s.
            45..78 => (self.seconds(9.6, 0.695), GapKind::UserTurn),
            _ => (self.seconds(2.5, 0.8), GapKind::Tool(ToolId(1))),
        };
        Step {
            added: self.around(added),
            output: self.around(output),
            gap,
            kind,
        }
    }

    /// Tokens with this mean.
    fn around(&mut self, mean: f64) -> u32 {
        self.tokens(mean * (-SPREAD * SPREAD / 2.0).exp(), SPREAD)
    }

    fn seconds(&mut self, median: f64, sigma: f64) -> Duration {
        Duration::from_secs_f64(self.lognormal(median, sigma))
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
        for shape in [Shape::Tau2Lognormal, Shape::Swe, Shape::Orch] {
            let draw = |seed| {
                let mut generator = Generator::new(shape, seed);
                (0..20).map(|_| generator.program()).collect::<Vec<_>>()
            };
            assert_eq!(draw(3), draw(3));
            assert_ne!(draw(3), draw(4));
        }
    }

    #[test]
    fn gaps_have_the_shares_of_the_description() {
        let mut generator = Generator::new(Shape::Swe, 1);
        let steps: Vec<_> = (0..100).flat_map(|_| generator.program().steps).collect();
        let share = |from: f64, to: f64| {
            let inside = |step: &&Step| (from..to).contains(&step.gap.as_secs_f64());
            steps.iter().filter(inside).count() * 100 / steps.len()
        };
        assert!((57..=63).contains(&share(0.0, 0.1)), "{}", share(0.0, 0.1));
        assert!((35..=41).contains(&share(0.4, 0.6)));
        assert!((1..=3).contains(&share(10.0, 40.0)));
    }
}
