//! How soon an idle program returns: its return rate, by class of gap and by how long it has been idle.
//!
//! A class is what the program does meanwhile (which tool, or a user's turn), told apart by the prefix that its
//! kind of programs shares. The rate at age t is the most that waiting on can yield: over all horizons s, returns
//! within (t, t+s] per second of waiting in it. So a kind that returns in half a second or not for a minute is
//! waited for half a second, and then no more.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::policy::{GapKind, ProgramId, Time, ToolId};

/// Classes told apart; further ones are judged by their kind alone, and further kinds together.
const CLASSES: usize = 256;
/// Gaps kept per class.
const RING: usize = 128;
/// Gaps before a class is judged by its own.
const FEW: usize = 8;
/// Ages at which the rate is kept: four to the octave from [`FIRST_AGE_S`] on, up to about ten minutes.
const AGES: usize = 80;
/// Returns that a horizon has at least.
const LEAST_RETURNS: usize = 3;
/// Gaps by which the rates are judged.
const JUDGED: f32 = 128.0;
/// Returns per gap that are taken for promised and come before any is seen: as much as 8 gaps of [`JUDGED`].
const UNJUDGED: f32 = 0.06;
/// Part of what the rates promise that is enough: the best of several horizons promises a little too much.
const ENOUGH: f32 = 0.75;
const FIRST_AGE_S: f32 = 1.0 / 1024.0;
/// A return that is foretold is at least this far off.
const LEAST_LEFT_S: f64 = 1e-3;
/// A group that has no number of its own.
pub(super) const NO_GROUP: u16 = u16::MAX;
/// The class of everything.
const ALL: u16 = 0;

/// The gaps of one class, and the rates that follow.
#[derive(Clone, Debug)]
struct Class {
    /// The class that judges while this one has few gaps.
    parent: u16,
    /// Seconds, in order of observation from `next` on, round and round; a program that never returned: infinity.
    ring: Vec<f32>,
    next: usize,
    /// The same, ascending.
    sorted: Vec<f32>,
    /// Changes since the rates were drawn.
    stale: usize,
    /// Returns per second at each age.
    rates: [f32; AGES],
    /// The horizon that gives the rate at age 0, in seconds; none before the rates are drawn.
    horizon_s: Option<f32>,
    /// Returns within that horizon per gap, as they came and as that rate promised them; the latest count most.
    came: f32,
    promised: f32,
}

impl Class {
    fn new(parent: u16) -> Self {
        Self {
            parent,
            ring: Vec::new(),
            next: 0,
            sorted: Vec::new(),
            stale: 0,
            // Of a gap of unknown kind, it is known that old ones last: half of those left return in its own age.
            rates: std::array::from_fn(|at| 1.0 / (1.0 + age_s(at))),
            horizon_s: None,
            came: 0.0,
            promised: 0.0,
        }
    }

    /// Holds a gap against the rate that was drawn before it, and asked for: others decided nothing.
    ///
    /// Waiting for the return or the horizon, whichever is first, the rate times the wait is what it promises. The horizon
    /// is stretched a little: a regular tool that becomes slower answers just beyond it, and not far too late.
    fn judge(&mut self, gap: f32) {
        let Some(horizon_s) = self.horizon_s else {
            return;
        };
        let horizon_s = horizon_s / ENOUGH;
        let came = f32::from(u8::from(gap <= horizon_s));
        let promised = self.rates[0] * gap.min(horizon_s);
        self.came += (came - self.came) / JUDGED;
        self.promised += (promised - self.promised) / JUDGED;
    }

    /// Factor on the rates: 1 while [`ENOUGH`] of what they promise comes, below that in proportion.
    fn trust(&self) -> f32 {
        let part = (self.came + UNJUDGED) / (self.promised + UNJUDGED);
        (part / ENOUGH).min(1.0)
    }

    fn push(&mut self, gap: f32) {
        if self.ring.len() < RING {
            self.ring.push(gap);
        } else {
            let old = std::mem::replace(&mut self.ring[self.next], gap);
            self.next = (self.next + 1) % RING;
            let at = self.sorted.partition_point(|x| *x < old);
            self.sorted.remove(at);
        }
        let at = self.sorted.partition_point(|x| *x < gap);
        self.sorted.insert(at, gap);
        self.stale += 1;
    }

    /// The rate at `age`; drawn anew once a quarter of the gaps has changed.
    fn rate(&mut self, age: Duration) -> f32 {
        if self.stale * 4 > self.sorted.len() {
            self.stale = 0;
            self.draw();
        }
        self.rates[slot(age)]
    }

    /// O(ages · gaps).
    fn draw(&mut self) {
        for (at, rate) in self.rates.iter_mut().enumerate() {
            let age = age_s(at);
            let from = self.sorted.partition_point(|gap| *gap < age);
            let (best, horizon_s) = best_rate(&self.sorted[from..], age);
            *rate = best;
            if at == 0 {
                self.horizon_s = Some(horizon_s);
            }
        }
    }
}

/// The most returns per second of waiting that any horizon gives, among `gaps` longer than `age`, ascending; and that
/// horizon, in seconds from `age` on.
///
/// The best of many horizons is best partly by chance, and most so where few returns make it: horizons with less than
/// an eighth of the gaps are left out.
#[expect(clippy::cast_precision_loss, reason = "a ring is short")]
fn best_rate(gaps: &[f32], age: f32) -> (f32, f32) {
    let finite = gaps.partition_point(|gap| gap.is_finite());
    let least = (gaps.len() / 8).max(LEAST_RETURNS).min(finite);
    let (mut waited, mut best, mut horizon_s) = (0.0, 0.0, 0.0);
    for (before, gap) in gaps[..finite].iter().enumerate() {
        let gap = gap - age;
        waited += gap;
        let rest = (gaps.len() - before - 1) as f32 * gap;
        let rate = (before + 1) as f32 / (waited + rest).max(1e-3);
        if before + 1 >= least && rate > best {
            (best, horizon_s) = (rate, gap);
        }
    }
    (best, horizon_s)
}

/// The youngest age of a slot, in seconds; the first begins at 0.
fn age_s(at: usize) -> f32 {
    if at == 0 {
        return 0.0;
    }
    let bits = FIRST_AGE_S.to_bits() + (u32::try_from(at - 1).unwrap_or(0) << 21);
    f32::from_bits(bits)
}

/// The slot of an age: the exponent and two bits of the mantissa count quarter octaves.
fn slot(age: Duration) -> usize {
    let past = age
        .as_secs_f32()
        .to_bits()
        .checked_sub(FIRST_AGE_S.to_bits());
    past.map_or(0, |bits| ((bits >> 21) as usize + 1).min(AGES - 1))
}

/// The return rates of all classes.
#[derive(Debug)]
pub(super) struct Returns {
    classes: Vec<Class>,
    index: BTreeMap<(u16, GapKind), u16>,
    /// When idle programs return, where the future is known: only in a simulation.
    foretold: BTreeMap<ProgramId, Time>,
    /// Factor on the gaps that are believed in: other than 1 only in a simulation.
    believed: f32,
}

impl Returns {
    pub(super) fn new() -> Self {
        Self {
            classes: vec![Class::new(ALL)],
            index: BTreeMap::new(),
            foretold: BTreeMap::new(),
            believed: 1.0,
        }
    }

    pub(super) fn foretell(&mut self, id: ProgramId, returns_at: Time) {
        self.foretold.insert(id, returns_at);
    }

    #[expect(clippy::cast_possible_truncation, reason = "a factor, not a count")]
    pub(super) const fn believe(&mut self, factor: f64) {
        self.believed = factor as f32;
    }

    /// The class of gaps of `kind` among the programs of `group`.
    pub(super) fn class(&mut self, group: u16, kind: GapKind) -> u16 {
        if let Some(class) = self.index.get(&(group, kind)) {
            return *class;
        }
        // A class and its parent may be new.
        if self.classes.len() + 2 > CLASSES {
            let coarser = [(NO_GROUP, kind), (NO_GROUP, GapKind::Tool(ToolId::OTHER))];
            let known = coarser.iter().find_map(|key| self.index.get(key));
            return known.copied().unwrap_or(ALL);
        }
        let parent = match group {
            NO_GROUP => ALL,
            _ => self.class(NO_GROUP, kind),
        };
        let class = u16::try_from(self.classes.len()).unwrap_or(ALL);
        self.classes.push(Class::new(parent));
        self.index.insert((group, kind), class);
        class
    }

    /// A program of `class` returned after `gap`.
    pub(super) fn observe(&mut self, class: u16, gap: Duration) {
        self.push(class, gap.as_secs_f32());
    }

    /// A program of `class` ended without returning.
    pub(super) fn observe_end(&mut self, class: u16) {
        self.push(class, f32::INFINITY);
    }

    fn push(&mut self, class: u16, gap: f32) {
        let believed = self.believed * gap;
        let mut at = class;
        loop {
            let class = &mut self.classes[usize::from(at)];
            class.judge(gap);
            class.push(believed);
            if class.parent == at {
                return;
            }
            at = class.parent;
        }
    }

    /// Returns per second to be expected of program `id`, which is idle since `since` in a gap of `class`.
    pub(super) fn rate(&mut self, id: ProgramId, class: u16, since: Time, now: Time) -> f64 {
        if let Some(returns_at) = self.foretold.get(&id) {
            return 1.0 / returns_at.since(now).as_secs_f64().max(LEAST_LEFT_S);
        }
        self.learnt_rate(class, since, now)
    }

    fn learnt_rate(&mut self, mut class: u16, since: Time, now: Time) -> f64 {
        for _ in 0..2 {
            let known = &self.classes[usize::from(class)];
            if known.sorted.len() >= FEW {
                break;
            }
            class = known.parent;
        }
        let class = &mut self.classes[usize::from(class)];
        f64::from(class.rate(now.since(since)) * class.trust())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LS: GapKind = GapKind::Tool(ToolId(1));

    fn at(secs: f64) -> Time {
        Time::from_secs_f64(secs)
    }

    fn rate(returns: &mut Returns, class: u16, age_s: f64) -> f64 {
        returns.rate(ProgramId(0), class, Time::ZERO, at(age_s))
    }

    #[test]
    fn slots_are_in_order_and_begin_where_they_say() {
        for slot_at in 1..AGES {
            let age = age_s(slot_at);
            assert!(age > age_s(slot_at - 1));
            assert_eq!(slot(Duration::from_secs_f32(age * 1.0001)), slot_at);
        }
        assert_eq!(slot(Duration::from_secs(100_000)), AGES - 1);
        assert!(age_s(AGES - 1) > 500.0);
    }

    #[test]
    fn a_gap_that_is_short_or_very_long_is_waited_for_while_it_can_be_short() {
        let mut returns = Returns::new();
        let class = returns.class(0, LS);
        for n in 0..100 {
            let gap = if n % 10 == 0 { 60.0 } else { 0.4 };
            returns.observe(class, Duration::from_secs_f64(gap));
        }
        assert!(rate(&mut returns, class, 0.0) > 2.0);
        assert!(rate(&mut returns, class, 0.39) > 5.0, "it is due");
        assert!(rate(&mut returns, class, 1.0) < 0.02, "it is not any more");
    }

    #[test]
    fn programs_that_never_return_lower_the_rate() {
        let mut returns = Returns::new();
        let (user, tool) = (returns.class(0, GapKind::UserTurn), returns.class(0, LS));
        for n in 0..64 {
            returns.observe(tool, Duration::from_secs(2));
            returns.observe(user, Duration::from_secs(2));
            if n % 2 == 0 {
                returns.observe_end(user);
            }
        }
        let ratio = rate(&mut returns, user, 0.0) / rate(&mut returns, tool, 0.0);
        assert!((0.6..0.7).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_new_class_is_judged_by_its_kind_and_a_new_kind_by_a_prior() {
        let mut returns = Returns::new();
        let class = returns.class(0, LS);
        for _ in 0..20 {
            returns.observe(class, Duration::from_secs(10));
        }
        let other = returns.class(1, LS);
        assert!(rate(&mut returns, other, 0.0) < 0.11);
        let mut fresh = Returns::new();
        assert!((rate(&mut fresh, 0, 0.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_foretold_return_counts_instead_of_the_class() {
        let mut returns = Returns::new();
        returns.foretell(ProgramId(0), at(10.0));
        assert!((rate(&mut returns, ALL, 8.0) - 0.5).abs() < 1e-9);
        assert!((rate(&mut returns, ALL, 10.0) - 1e3).abs() < 1e-6, "due");
        let other = returns.rate(ProgramId(1), ALL, Time::ZERO, at(8.0));
        assert!(other < 0.2, "nothing is foretold of it: {other}");
    }

    /// The rate at age 0 after many gaps of 1 to 16 s, if `factor` times as much is believed of each.
    fn rate_believing(factor: f64) -> f64 {
        let mut returns = Returns::new();
        returns.believe(factor);
        let class = returns.class(0, LS);
        let mut last = 0.0;
        for n in 0..600_u32 {
            let octaves = f64::from(n * 37 % 100) / 25.0;
            returns.observe(class, Duration::from_secs_f64(octaves.exp2()));
            last = rate(&mut returns, class, 0.0);
        }
        last
    }

    #[test]
    fn a_regular_tool_that_becomes_slower_keeps_its_rate() {
        let mut returns = Returns::new();
        let class = returns.class(0, LS);
        let mut gap_s = 1.0;
        for n in 0..600_u32 {
            gap_s *= 1.003;
            let jitter = f64::from(n * 37 % 100) / 1e4;
            returns.observe(class, Duration::from_secs_f64(gap_s * (1.0 + jitter)));
            rate(&mut returns, class, 0.0);
        }
        let ratio = rate(&mut returns, class, 0.0) * gap_s;
        assert!((0.9..1.5).contains(&ratio), "{ratio} returns in a gap");
    }

    #[test]
    fn rates_that_promise_more_than_comes_are_cut() {
        let honest = rate_believing(1.0);
        let (short, long) = (rate_believing(1.0 / 3.0), rate_believing(3.0));
        assert!(short < 1.3 * honest, "not three times {honest}: {short}");
        assert!(
            (long / honest - 1.0 / 3.0).abs() < 0.05,
            "cut, never raised"
        );
    }

    #[test]
    fn classes_are_bounded() {
        let mut returns = Returns::new();
        for group in 0..2000 {
            let class = returns.class(group, GapKind::Tool(ToolId(group)));
            returns.observe(class, Duration::from_secs(1));
        }
        assert!(returns.classes.len() <= CLASSES);
    }
}
