//! How much of the traffic comes without a program.
//!
//! Such requests cannot be held. Where many do, holding the others back saves no room: those take it, and whoever has
//! an identity waits behind whoever has none. Then nobody is held.

/// Requests of which the share is taken, the older ones fading; all of them while there have been fewer.
const MOST: f64 = 128.0;
/// Requests before the share tells anything.
const LEAST: f64 = 16.0;
/// Share above which nobody is held, and the one below which the gate is in force again.
const SHARES: (f64, f64) = (0.15, 0.05);

/// The share of requests without a program among the last hundred or so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strangers {
    share: f64,
    /// Requests seen, up to [`MOST`].
    seen: f64,
    rule: bool,
}

impl Strangers {
    pub(super) const fn new() -> Self {
        Self {
            share: 0.0,
            seen: 0.0,
            rule: false,
        }
    }

    /// A request came. Those that are held count too, or the others would seem more than they are.
    pub(super) fn observe(&mut self, is_stranger: bool) {
        self.seen = (self.seen + 1.0).min(MOST);
        self.share += (f64::from(u8::from(is_stranger)) - self.share) / self.seen;
        let bound = if self.rule { SHARES.1 } else { SHARES.0 };
        self.rule = self.seen >= LEAST && self.share > bound;
    }

    /// The share, 0–1.
    pub(super) const fn share(self) -> f64 {
        self.share
    }

    /// Whether they are so many that the gate opens.
    pub(super) const fn rule(self) -> bool {
        self.rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_for_many_strangers_and_closes_when_they_are_few() {
        let mut strangers = Strangers::new();
        let mut last = |every: u32| {
            for n in 0..1000 {
                strangers.observe(n % every == 0);
            }
            strangers.rule()
        };
        assert!(!last(10));
        assert!(last(2));
        assert!(last(10), "fewer, but not few");
        assert!(!last(50));
    }

    #[test]
    fn a_crowd_of_strangers_is_noticed_from_its_first_requests_and_one_of_them_is_no_crowd() {
        let rules_after = |requests: u32, every: u32| {
            let mut strangers = Strangers::new();
            (0..requests).for_each(|n| strangers.observe(n % every == 0));
            strangers.rule()
        };
        assert!(rules_after(16, 2));
        assert!(!rules_after(15, 2), "too few to tell");
        assert!(!rules_after(16, 16));
    }
}
