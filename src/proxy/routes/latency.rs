//! How long a stand-in takes: lognormal latencies, each a function of the seed and of what was asked. Pure.

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::telemetry::step::Role;

/// Standard deviations between the median and the 90th percentile of a normal distribution.
const Z90: f64 = 1.281_551_565_5;

/// No latency is longer: what is drawn above it becomes it.
pub const MAX_LATENCY: Duration = Duration::from_secs(3600);

/// A lognormal distribution of latencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    distribution: LogNormal<f64>,
}

impl Latency {
    /// The distribution with this median and this 90th percentile, in seconds; `None` unless both are finite and
    /// positive and the median is not above the other.
    pub fn fit(median_s: f64, p90_s: f64) -> Option<Self> {
        let ascending = 0.0 < median_s && median_s <= p90_s && p90_s.is_finite();
        let spread = (p90_s / median_s).ln() / Z90;
        let distribution = ascending.then(|| LogNormal::new(median_s.ln(), spread).ok())??;
        Some(Self { distribution })
    }

    /// The latency of one call, in the run's time: the same for the same `seed`, program and `asked` bytes, whatever
    /// else is asked, and when.
    pub fn of(&self, seed: u64, program: Option<&str>, asked: &[u8]) -> Duration {
        let program = program.map_or(0, |name| xxh3_64(name.as_bytes()));
        let key = xxh3_64_with_seed(asked, seed) ^ program.rotate_left(1);
        let mut rng = ChaCha8Rng::seed_from_u64(key);
        let seconds = self.distribution.sample(&mut rng);
        Duration::try_from_secs_f64(seconds).map_or(MAX_LATENCY, |drawn| drawn.min(MAX_LATENCY))
    }
}

/// A stand-in by name: whom it stands for, how long that one takes, and what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Whose calls these are.
    pub role: Role,
    /// Half of its calls are faster, seconds.
    pub median_s: f64,
    /// Nine of ten of its calls are faster, seconds.
    pub p90_s: f64,
    /// What it answers.
    pub text: &'static str,
    /// After this many turns of its own it says [`STOP`].
    pub stop_after: Option<u32>,
}

/// With this a simulated user of tau2 ends its conversation.
pub const STOP: &str = "###STOP###";

const ADVICE: &str = "Follow the policy, look up what is missing with the tools, then act.";

impl Preset {
    /// The presets. Latencies are those seen in runs of the reference experiment in December 2025: gpt-oss-20b
    /// (963 calls) and Qwen3-32B (402 calls) as experts on H100s, gpt-5 as user simulator at OpenAI. Of the judge,
    /// which was gpt-5 too, no latencies were recorded apart: it takes the user's.
    pub const ALL: [Self; 4] = [
        Self {
            name: "expert",
            role: Role::Expert,
            median_s: 1.8,
            p90_s: 5.6,
            text: ADVICE,
            stop_after: None,
        },
        Self {
            name: "expert-qwen3-32b",
            role: Role::Expert,
            median_s: 4.6,
            p90_s: 8.9,
            text: ADVICE,
            stop_after: None,
        },
        Self {
            name: "user",
            role: Role::User,
            median_s: 9.6,
            p90_s: 23.4,
            text: "Yes, please go ahead.",
            stop_after: Some(6),
        },
        Self {
            name: "judge",
            role: Role::Judge,
            median_s: 9.6,
            p90_s: 23.4,
            text: r#"{"results": []}"#,
            stop_after: None,
        },
    ];

    /// The preset of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_depends_on_seed_program_and_question_and_on_nothing_else() {
        let latency = Latency::fit(1.8, 5.6).unwrap();
        let first = latency.of(1, Some("p"), b"question");
        assert_eq!(latency.of(1, Some("p"), b"question"), first);
        for (seed, program, asked) in [
            (2, Some("p"), &b"question"[..]),
            (1, Some("q"), b"question"),
            (1, None, b"question"),
            (1, Some("p"), b"another"),
        ] {
            assert_ne!(latency.of(seed, program, asked), first);
        }
    }

    #[test]
    fn drawn_latencies_have_the_presets_percentiles() {
        for preset in Preset::ALL {
            let latency = Latency::fit(preset.median_s, preset.p90_s).unwrap();
            let mut drawn: Vec<f64> = (0..2001_u32)
                .map(|n| latency.of(7, None, &n.to_le_bytes()).as_secs_f64())
                .collect();
            drawn.sort_by(f64::total_cmp);
            for (at, expected) in [(1000, preset.median_s), (1800, preset.p90_s)] {
                let ratio = drawn[at] / expected;
                assert!((0.9..1.1).contains(&ratio), "{}: {ratio}", preset.name);
            }
        }
    }

    #[test]
    fn percentiles_that_are_none_are_refused_and_a_boundless_draw_is_cut() {
        for (median_s, p90_s) in [
            (0.0, 1.0),
            (2.0, 1.0),
            (1.0, f64::INFINITY),
            (f64::NAN, 1.0),
        ] {
            assert_eq!(Latency::fit(median_s, p90_s), None, "{median_s} {p90_s}");
        }
        let endless = Latency::fit(1e300, 1e300).unwrap();
        assert_eq!(endless.of(0, None, b""), MAX_LATENCY);
    }
}
