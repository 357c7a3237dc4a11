//! What a program that lost its room can expect: how long it queues, and whether it returns at all.

use std::collections::VecDeque;

/// The mean of the last durations seen, such as the queueing delays of returns whose context was gone.
#[derive(Clone, Debug, Default)]
pub struct RecentMean {
    /// Seconds, oldest first.
    window: VecDeque<f64>,
}

impl RecentMean {
    /// Durations in the mean.
    pub const WINDOW: usize = 100;

    /// No duration is known; the mean is 0.
    pub const fn new() -> Self {
        Self {
            window: VecDeque::new(),
        }
    }

    /// Adds one duration, in seconds.
    pub fn observe(&mut self, secs: f64) {
        if self.window.len() == Self::WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(secs);
    }

    /// The mean in seconds; 0 while nothing is known. O(window).
    #[expect(clippy::cast_precision_loss, reason = "a window is small")]
    pub fn mean_s(&self) -> f64 {
        // Not `sum()`, which is -0.0 of nothing.
        let sum = self.window.iter().fold(0.0, |sum, secs| sum + secs);
        sum / self.window.len().max(1) as f64
    }
}

/// How well the number of steps done tells the number of steps left, over all ended programs: minus their
/// correlation, −1 to 1. 1 when every program has the same length, 0 when the end comes out of the blue.
///
/// Source: the memoryfulness of "Continuum" (arXiv 2511.02230).
#[derive(Clone, Copy, Debug, Default)]
pub struct Foresight {
    /// Sums of 1, x, y, x², y², xy over every step of every program: x steps done, y steps left.
    sums: [f64; 6],
}

impl Foresight {
    /// No program has ended.
    pub const fn new() -> Self {
        Self { sums: [0.0; 6] }
    }

    /// Adds an ended program of `steps` steps, all of them at once by the closed sums over 1 to `steps`.
    pub fn observe(&mut self, steps: u32) {
        let n = f64::from(steps);
        let program = [
            n,
            n * (n + 1.0) / 2.0,
            n * (n - 1.0) / 2.0,
            n * (n + 1.0) * (2.0 * n + 1.0) / 6.0,
            (n - 1.0) * n * (2.0 * n - 1.0) / 6.0,
            (n * n * n - n) / 6.0,
        ];
        for (sum, new) in self.sums.iter_mut().zip(program) {
            *sum += new;
        }
    }

    /// Minus the correlation; 1 while it is undefined.
    pub fn get(&self) -> f64 {
        let [n, x, y, xx, yy, xy] = self.sums;
        let spread = (n * xx - x * x) * (n * yy - y * y);
        if spread <= 0.0 {
            return 1.0;
        }
        -(n * xy - x * y) / spread.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foresight(lengths: &[u32]) -> f64 {
        let mut foresight = Foresight::new();
        for steps in lengths {
            foresight.observe(*steps);
        }
        foresight.get()
    }

    #[test]
    fn the_end_of_equal_programs_is_foreseen_and_that_of_mixed_ones_less() {
        for (lengths, eta) in [
            (&[][..], 1.0),
            (&[3, 3, 3, 3], 1.0),
            (&[1, 5], 0.5),
            (&[2, 4, 8, 16], 0.304_348),
        ] {
            let got = foresight(lengths);
            assert!((got - eta).abs() < 1e-6, "{lengths:?}: {got}");
        }
    }

    #[test]
    fn only_the_last_delays_count() {
        let mut delay = RecentMean::new();
        assert!(delay.mean_s().abs() < 1e-9);
        delay.observe(1e6);
        for _ in 0..RecentMean::WINDOW {
            delay.observe(3.0);
        }
        assert!((delay.mean_s() - 3.0).abs() < 1e-9);
    }
}
