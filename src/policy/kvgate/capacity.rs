//! How large the cache is: the candidate that foretells best what the backend reports as cached.
//!
//! A backend's capacity, the token counts behind the gate's estimates, and requests that pass it by are all known
//! with some error, and every such error acts like a wrong capacity. So [`CANDIDATES`] are followed side by side,
//! and each finished step says how well each of them foretold its `cached_tokens`.
//!
//! Where contexts are hardly ever found again, that tells nothing. Then the backend's usage does: the part of its
//! cache that running requests take, against the tokens that the gate counts for them.

/// Candidate capacities, as parts of the reported one, ascending.
pub(super) const CANDIDATES: [f64; 9] = [0.70, 0.77, 0.84, 0.92, 1.0, 1.08, 1.17, 1.26, 1.36];
/// The candidate that takes the report at its word.
pub(super) const REPORTED: usize = 4;
/// Programs with a shorter context tell little: fixed parts of the prompt weigh too much.
const LEAST_TOKENS: u32 = 1_000;
/// Weight left to a step's evidence after one more has come.
const KEEP: f64 = 1.0 - 1.0 / 256.0;
/// Steps before anything but the report is believed.
const LEAST_STEPS: f64 = 32.0;
/// How many fewer contexts a candidate must get wrong to be believed instead: more than chance makes of the few steps
/// that tell two candidates apart.
const MARGIN: f64 = 4.0;
/// Samples of usage before they tell anything.
const LEAST_SAMPLES: f64 = 16.0;
/// Usage below this part of the cache tells too little of its size.
const LEAST_USAGE: f64 = 0.1;
/// Relative difference that counting tokens in blocks, and output as it comes, may make.
const TOLERANCE: f64 = 0.1;
/// A believed candidate that errs by more than this part of the context is no good, and trusted again below half.
const DISTRUST: f64 = 0.5;

/// How well each candidate has foretold one backend's reports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// Mean error of each candidate, as a part of the context, 0–1; weighted sums.
    errors: [f64; CANDIDATES.len()],
    weight: f64,
    /// Sums over samples of usage: how many, tokens counted by the gate, and tokens by the report.
    usage: [f64; 3],
    believed: usize,
    distrusted: bool,
}

impl Capacity {
    pub(super) const fn new() -> Self {
        Self {
            errors: [0.0; CANDIDATES.len()],
            weight: 0.0,
            usage: [0.0; 3],
            believed: REPORTED,
            distrusted: false,
        }
    }

    /// The candidate that is believed.
    pub(super) const fn believed(&self) -> usize {
        self.believed
    }

    /// Whether even that one foretells badly.
    pub(super) const fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// Mean error of the believed candidate, as a part of the context, 0–1.
    pub(super) fn error(&self) -> f64 {
        self.errors[self.believed] / self.weight.max(1.0)
    }

    /// A step was reported to have found `cached` of the `context` private tokens that its program left; the
    /// candidates had foretold `foretold`.
    pub(super) fn observe(&mut self, context: u32, cached: u32, foretold: &super::shadow::Here) {
        if context < LEAST_TOKENS {
            return;
        }
        let part = |tokens: u32| f64::from(tokens.min(context)) / f64::from(context);
        let seen = part(cached);
        for (error, foretold) in self.errors.iter_mut().zip(foretold) {
            *error = *error * KEEP + (part(*foretold) - seen).abs();
        }
        self.weight = self.weight * KEEP + 1.0;
        self.judge();
    }

    /// A sample: running requests take the part `usage` of what the backend reports as its capacity, and the gate
    /// counts `counted` tokens for them.
    pub(super) fn observe_usage(&mut self, usage: f64, reported: f64, counted: f64) {
        if usage < LEAST_USAGE {
            return;
        }
        for (sum, new) in self.usage.iter_mut().zip([1.0, counted, usage * reported]) {
            *sum = *sum * KEEP + new;
        }
        self.judge();
    }

    /// The candidate that usage speaks for.
    fn by_usage(&self) -> usize {
        let [samples, counted, reported] = self.usage;
        let ratio = counted / reported.max(1.0);
        if samples < LEAST_SAMPLES || (ratio - 1.0).abs() < TOLERANCE {
            return REPORTED;
        }
        let distance = |at: &usize| (CANDIDATES[*at] - ratio).abs();
        let nearest = (0..CANDIDATES.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.unwrap_or(REPORTED)
    }

    fn judge(&mut self) {
        let prior = self.by_usage();
        if self.weight < LEAST_STEPS {
            self.believed = prior;
            return;
        }
        let better = |a: usize, b: usize| {
            if self.errors[b] < self.errors[a] {
                b
            } else {
                a
            }
        };
        let best = (0..CANDIDATES.len()).fold(self.believed, better);
        if self.errors[self.believed] - self.errors[best] > MARGIN {
            self.believed = best;
        }
        if self.errors[prior] - self.errors[self.believed] < MARGIN / 2.0 {
            self.believed = prior;
        }
        let error = self.error();
        self.distrusted = error > DISTRUST || (self.distrusted && error > DISTRUST / 2.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_that_foretells_best_is_believed() {
        let mut capacity = Capacity::new();
        let foretold = [0, 0, 0, 2000, 2000, 2000, 2000, 2000, 2000];
        for _ in 0..40 {
            capacity.observe(2000, 0, &foretold);
        }
        assert!(
            capacity.believed() < 3,
            "the cache is smaller than reported"
        );
        for _ in 0..600 {
            capacity.observe(2000, 2000, &[0, 0, 0, 0, 0, 0, 2000, 2000, 2000]);
        }
        assert!(capacity.believed() >= 6, "now it is larger");
    }

    #[test]
    fn noise_moves_nothing_and_nonsense_is_distrusted_until_it_ends() {
        let mut capacity = Capacity::new();
        for step in 0..1000 {
            capacity.observe(2000, 1900 + step % 100, &[2000; 9]);
        }
        assert_eq!(capacity.believed(), REPORTED);
        assert!(!capacity.is_distrusted());
        for _ in 0..1000 {
            capacity.observe(2000, 0, &[2000; 9]);
        }
        assert!(capacity.is_distrusted());
        for _ in 0..1000 {
            capacity.observe(2000, 2000, &[2000; 9]);
        }
        assert!(!capacity.is_distrusted());
    }
}
