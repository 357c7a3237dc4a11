//! How long tool gaps are, by kind: their mean, and how long it pays to wait for one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::policy::{GapKind, ToolId};

/// Two waits whose benefits differ by less than this many seconds are equal.
const TIE_S: f64 = 1e-9;

/// The last gaps of one kind, or of all.
#[derive(Clone, Debug, Default)]
struct Samples {
    /// Microseconds, oldest first.
    ring: VecDeque<u32>,
    /// The same, ascending.
    sorted: Vec<u32>,
    sum_us: u64,
    curve: Curve,
    /// Changes since `curve` was drawn.
    stale: usize,
}

impl Samples {
    fn push(&mut self, us: u32, bound: usize) {
        if self.ring.len() >= bound
            && let Some(oldest) = self.ring.pop_front()
        {
            self.sum_us -= u64::from(oldest);
            let at = self.sorted.partition_point(|&x| x < oldest);
            self.sorted.remove(at);
        }
        self.ring.push_back(us);
        self.sum_us += u64::from(us);
        let at = self.sorted.partition_point(|&x| x < us);
        self.sorted.insert(at, us);
        self.stale += 1;
    }

    fn mean_s(&self) -> Option<f64> {
        let mean = float(self.sum_us) / float(self.ring.len() as u64);
        (!self.ring.is_empty()).then_some(mean / 1e6)
    }

    /// Draws the curve anew once one in 64 samples has changed: exact below 128 samples, and O(1) amortised.
    fn best_wait_s(&mut self, benefit_s: f64) -> f64 {
        if self.stale > self.ring.len() / 64 {
            self.curve.draw(&self.sorted);
            self.stale = 0;
        }
        self.curve.best_wait_s(benefit_s)
    }
}

/// The upper concave hull of an empirical distribution of gaps. For every benefit, the wait that pays most is one
/// of its corners.
#[derive(Clone, Debug, Default)]
struct Curve {
    /// Corners: a wait in seconds and the part of gaps that are over by then, both ascending. The first is at 0 s.
    corners: Vec<(f64, f64)>,
}

impl Curve {
    fn draw(&mut self, sorted: &[u32]) {
        self.corners.clear();
        self.corners.push((0.0, 0.0));
        let count = float(sorted.len() as u64);
        let mut over = 0;
        for same in sorted.chunk_by(|a, b| a == b) {
            let Some(&us) = same.first() else { continue };
            over += same.len() as u64;
            self.corner((float(us.into()) / 1e6, float(over) / count));
        }
    }

    /// Adds a point further right, and drops the corners that then lie on or under the hull.
    fn corner(&mut self, new: (f64, f64)) {
        if new.0 <= 0.0 {
            self.corners.clear();
        }
        while let [.., before, last] = self.corners[..] {
            let over =
                (last.1 - before.1) * (new.0 - last.0) - (new.1 - last.1) * (last.0 - before.0);
            if over > 0.0 {
                break;
            }
            self.corners.pop();
        }
        self.corners.push(new);
    }

    /// The wait with the highest `P(over by then) · benefit − wait`, the shorter of equals, in seconds.
    fn best_wait_s(&self, benefit_s: f64) -> f64 {
        // Along a concave curve the benefit of the next corner falls: the first step that does not pay ends it.
        let pays = |pair: &[(f64, f64)]| match pair {
            [from, to] => (to.1 - from.1) * benefit_s - (to.0 - from.0) > TIE_S,
            _ => false,
        };
        let mut steps = 0;
        let mut rest = self.corners.len().saturating_sub(1);
        while rest > 0 {
            let half = rest / 2;
            if pays(&self.corners[steps + half..=steps + half + 1]) {
                steps += half + 1;
                rest -= half + 1;
            } else {
                rest = half;
            }
        }
        self.corners.get(steps).map_or(0.0, |corner| corner.0)
    }
}

/// How long tool gaps of each kind were: finish of a step to the program's next arrival.
///
/// Bounded twice: the oldest gap of a full ring is dropped, and kinds past the bound share one ring.
#[derive(Clone, Debug, Default)]
pub struct GapHistory {
    kinds: BTreeMap<GapKind, Samples>,
    all: Samples,
}

impl GapHistory {
    /// Gaps kept per kind.
    pub const RING: usize = 1024;
    /// Gaps kept over all kinds together.
    pub const RING_OF_ALL: usize = 4096;
    /// Kinds kept apart; further tools count as [`ToolId::OTHER`].
    pub const KINDS: usize = 1024;

    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one gap of `kind`; kept in whole microseconds, up to an hour and eleven minutes.
    pub fn observe(&mut self, kind: GapKind, gap: Duration) {
        let us = u32::try_from(gap.as_micros()).unwrap_or(u32::MAX);
        let kind = self.fold(kind);
        self.kinds.entry(kind).or_default().push(us, Self::RING);
        self.all.push(us, Self::RING_OF_ALL);
    }

    /// The mean gap of `kind` in seconds; `None` when none was seen.
    pub fn mean_s(&self, kind: GapKind) -> Option<f64> {
        self.kinds.get(&self.fold(kind))?.mean_s()
    }

    /// The mean gap over all kinds in seconds; 0 when none was seen.
    pub fn mean_of_all_s(&self) -> f64 {
        self.all.mean_s().unwrap_or_default()
    }

    /// How many gaps are known, over all kinds.
    pub fn len(&self) -> usize {
        self.all.ring.len()
    }

    /// Whether no gap is known.
    pub fn is_empty(&self) -> bool {
        self.all.ring.is_empty()
    }

    /// The wait for the end of a gap of `kind`, in seconds, that pays most when waiting costs its own length and
    /// a gap that is over in time saves `benefit_s`: the argument of max `P(gap ≤ wait) · benefit − wait`.
    ///
    /// A kind with at most `few` gaps is judged by the gaps of all kinds. From 128 gaps on, the distribution may
    /// lag by one gap in 64. Source: "Continuum" (arXiv 2511.02230), the utility of a time-to-live.
    pub fn best_wait_s(&mut self, kind: GapKind, few: usize, benefit_s: f64) -> f64 {
        let kind = self.fold(kind);
        match self.kinds.get_mut(&kind) {
            Some(samples) if samples.ring.len() > few => samples.best_wait_s(benefit_s),
            Some(_) | None => self.all.best_wait_s(benefit_s),
        }
    }

    fn fold(&self, kind: GapKind) -> GapKind {
        if self.kinds.len() < Self::KINDS || self.kinds.contains_key(&kind) {
            return kind;
        }
        GapKind::Tool(ToolId::OTHER)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53 microseconds")]
const fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LS: GapKind = GapKind::Tool(ToolId(1));
    const NEW: GapKind = GapKind::Tool(ToolId(2));

    fn history(gaps_s: &[f64]) -> GapHistory {
        let mut history = GapHistory::new();
        for gap in gaps_s {
            history.observe(LS, Duration::from_secs_f64(*gap));
        }
        history
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_full_ring_forgets_its_oldest_gap() {
        let mut history = GapHistory::new();
        assert_eq!(history.mean_s(GapKind::UserTurn), None);
        history.observe(GapKind::UserTurn, Duration::from_secs(3000));
        for _ in 0..GapHistory::RING {
            history.observe(GapKind::UserTurn, Duration::from_secs(1));
        }
        let mean = history.mean_s(GapKind::UserTurn).unwrap();
        assert!(close(mean, 1.0), "{mean}");
    }

    #[test]
    fn tools_past_the_bound_share_one_history() {
        let mut history = GapHistory::new();
        for tool in 0..3000 {
            history.observe(GapKind::Tool(ToolId(tool)), Duration::from_secs(1));
        }
        assert!(history.kinds.len() <= GapHistory::KINDS + 1);
        assert!(history.mean_s(GapKind::Tool(ToolId(2999))).is_some());
    }

    #[test]
    fn waiting_pays_as_long_as_it_saves_more_than_it_costs() {
        let mut history = history(&[0.5, 0.5, 1.0, 8.0]);
        for (benefit, wait) in [(3.0, 1.0), (33.0, 8.0), (0.3, 0.0), (-12.0, 0.0)] {
            let best = history.best_wait_s(LS, 0, benefit);
            assert!(close(best, wait), "{benefit}: {best}");
        }
    }

    #[test]
    fn of_two_equally_good_waits_the_shorter_one_is_taken() {
        let mut history = history(&[0.5, 0.5, 1.0, 8.0, 0.2, 0.2]);
        assert!(
            close(history.best_wait_s(NEW, 4, 3.0), 0.5),
            "judged by all"
        );
    }

    #[test]
    fn nothing_known_is_not_waited_for() {
        assert!(close(GapHistory::new().best_wait_s(LS, 0, 100.0), 0.0));
    }

    proptest! {
        #[test]
        fn the_best_wait_equals_the_best_of_all(
            gaps in prop::collection::vec(0_u32..40, 1..100),
            benefit in -5.0..50.0_f64,
        ) {
            let gaps: Vec<f64> = gaps.into_iter().map(|gap| f64::from(gap) / 8.0).collect();
            let worth = |wait: f64| {
                let over = gaps.iter().filter(|gap| **gap <= wait).count();
                float(over as u64) / float(gaps.len() as u64) * benefit - wait
            };
            let best = gaps.iter().copied().map(worth).fold(worth(0.0), f64::max);
            let found = worth(history(&gaps).best_wait_s(LS, 0, benefit));
            prop_assert!((best - found).abs() < 1e-6, "{best} is possible, {found} was found");
        }
    }
}
