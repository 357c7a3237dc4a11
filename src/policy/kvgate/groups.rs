//! What programs with the same shared prefix have in common: its length, how much a step generates and adds, and
//! how often a program that went idle came back in time.

use std::collections::{BTreeMap, VecDeque};

use super::returns::NO_GROUP;
use crate::policy::{SharedPrefix, Tokens};

/// Groups known at most; programs of further ones count as without a shared prefix.
const GROUPS: u16 = 4_096;
/// Weight of one more step.
const WEIGHT: f64 = 0.05;
/// Weight of one more return.
const RETURN_WEIGHT: f64 = 0.03;
/// Reports of a prefix's length after which older ones are forgotten, one to two times over.
const REPORTS: u8 = 8;
/// Turns that are reserved for at most.
const TURNS: f64 = 6.0;

/// One group of programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    fingerprint: u64,
    /// Programs and requests that refer to it.
    users: u32,
    /// It stands among the unused.
    is_listed: bool,
    /// Length of the shared prefix.
    pub(super) prefix: u32,
    /// Whether a backend has computed it: what is sent before that finds less of it.
    pub(super) is_computed: bool,
    /// The least of the present reports of that length, and how many there are.
    reports: (u32, u8),
    /// The least of the [`REPORTS`] before.
    before: u32,
    /// Tokens that a step generates.
    output: f64,
    /// Tokens by which the prompt grows from step to step.
    growth: f64,
    /// Seconds from step to step: the run and the gap after it.
    cycle_s: f64,
    /// Part of the ends of steps after which the program came back and found its context.
    returns: f64,
}

impl Group {
    const fn new(fingerprint: u64, prefix: u32) -> Self {
        Self {
            fingerprint,
            users: 0,
            is_listed: false,
            prefix,
            is_computed: false,
            reports: (u32::MAX, 0),
            before: u32::MAX,
            output: 150.0,
            growth: 300.0,
            cycle_s: 2.0,
            returns: 0.5,
        }
    }

    /// A program went idle and returned, its context there or not; or it ended.
    pub(super) fn observe_return(&mut self, warm: bool) {
        self.returns += RETURN_WEIGHT * (f64::from(u8::from(warm)) - self.returns);
    }

    pub(super) fn observe_step(&mut self, output: Tokens) {
        self.output += WEIGHT * (output.as_f64() - self.output);
    }

    pub(super) fn observe_growth(&mut self, grown: f64) {
        self.growth += WEIGHT * (grown.max(0.0) - self.growth);
    }

    /// A backend on which the prefix was in use reported `cached` tokens for a program's first step. Other programs
    /// may share more of it than the prefix, so the least of the reports counts; but not for ever, for one that met
    /// a prefix which was only being computed tells too little. Returns whether it is news.
    pub(super) fn observe_prefix(&mut self, cached: u32) -> bool {
        if cached == 0 {
            return false;
        }
        let (least, count) = self.reports;
        self.reports = (least.min(cached), count + 1);
        let before = self.prefix;
        self.prefix = self.reports.0.min(self.before);
        if self.reports.1 == REPORTS {
            self.before = self.reports.0;
            self.reports = (u32::MAX, 0);
        }
        self.prefix != before
    }

    pub(super) fn observe_cycle(&mut self, secs: f64) {
        self.cycle_s += WEIGHT * (secs - self.cycle_s);
    }

    pub(super) const fn output(&self) -> f64 {
        self.output
    }

    /// Tokens by which a program is going to grow within `horizon_s` seconds, while it keeps its room: its turns until
    /// then (a geometric number at most) by its growth in each.
    pub(super) fn growth_within(&self, horizon_s: f64) -> f64 {
        let stays = self.returns.min(0.99);
        let turns = (stays / (1.0 - stays)).min(horizon_s / self.cycle_s.max(1e-3));
        turns.min(TURNS) * self.growth
    }
}

/// All groups, by number.
#[derive(Debug)]
pub(super) struct Groups {
    known: Vec<Group>,
    index: BTreeMap<u64, u16>,
    /// Groups that nobody referred to when they were put here.
    unused: VecDeque<u16>,
    /// Programs without a shared prefix.
    others: Group,
}

impl Groups {
    pub(super) const fn new() -> Self {
        Self {
            known: Vec::new(),
            index: BTreeMap::new(),
            unused: VecDeque::new(),
            others: Group::new(0, 0),
        }
    }

    /// The group of `shared`, and whether its number had another meaning before; counts one more user.
    pub(super) fn enter(&mut self, shared: Option<SharedPrefix>) -> (u16, bool) {
        let Some(shared) = shared else {
            return (NO_GROUP, false);
        };
        let tokens = u32::try_from(shared.tokens.0).unwrap_or(u32::MAX);
        let known = self.index.get(&shared.fingerprint).copied();
        let (id, reused) = match known {
            Some(id) => (id, false),
            None => self.place(Group::new(shared.fingerprint, tokens)),
        };
        if let Some(group) = self.known.get_mut(usize::from(id)) {
            group.users += 1;
        }
        (id, reused)
    }

    /// One user less.
    pub(super) fn leave(&mut self, id: u16) {
        let Some(group) = self.known.get_mut(usize::from(id)) else {
            return;
        };
        group.users = group.users.saturating_sub(1);
        if group.users == 0 && !group.is_listed {
            group.is_listed = true;
            self.unused.push_back(id);
        }
    }

    pub(super) fn get(&self, id: u16) -> &Group {
        self.known.get(usize::from(id)).unwrap_or(&self.others)
    }

    pub(super) fn get_mut(&mut self, id: u16) -> &mut Group {
        let others = &mut self.others;
        self.known.get_mut(usize::from(id)).unwrap_or(others)
    }

    fn place(&mut self, group: Group) -> (u16, bool) {
        let print = group.fingerprint;
        let len = u16::try_from(self.known.len()).unwrap_or(GROUPS);
        if len < GROUPS {
            self.known.push(group);
            self.index.insert(print, len);
            return (len, false);
        }
        while let Some(id) = self.unused.pop_front() {
            let old = &mut self.known[usize::from(id)];
            old.is_listed = false;
            if old.users == 0 {
                self.index.remove(&old.fingerprint);
                *old = group;
                self.index.insert(print, id);
                return (id, true);
            }
        }
        (NO_GROUP, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(groups: &mut Groups, fingerprint: u64) -> (u16, bool) {
        groups.enter(Some(SharedPrefix {
            fingerprint,
            tokens: Tokens(100),
        }))
    }

    #[test]
    fn a_number_is_used_again_only_when_nobody_refers_to_it() {
        let mut groups = Groups::new();
        for print in 0..u64::from(GROUPS) {
            assert_eq!(u64::from(enter(&mut groups, print).0), print);
        }
        assert_eq!(enter(&mut groups, 99_999), (NO_GROUP, false));
        groups.leave(7);
        assert_eq!(enter(&mut groups, 99_999), (7, true));
        assert_eq!(enter(&mut groups, 99_999), (7, false));
        assert_eq!(enter(&mut groups, 7).0, NO_GROUP);
    }

    #[test]
    fn a_report_of_a_prefix_that_was_only_half_computed_is_forgotten() {
        let mut group = Group::new(0, 4_699);
        assert!(group.observe_prefix(2_000), "the least counts");
        assert_eq!(group.prefix, 2_000);
        for _ in 0..2 * REPORTS {
            group.observe_prefix(4_704);
        }
        assert_eq!(group.prefix, 4_704);
        assert!(!group.observe_prefix(6_000), "one program may share more");
        assert_eq!(group.prefix, 4_704);
    }

    #[test]
    fn a_program_that_always_returns_in_time_is_expected_to_grow_for_long() {
        let mut group = Group::new(0, 0);
        for _ in 0..500 {
            group.observe_return(true);
            group.observe_growth(100.0);
        }
        assert!((group.growth_within(1e9) - TURNS * 100.0).abs() < 1.0);
        for _ in 0..500 {
            group.observe_return(false);
        }
        assert!(group.growth_within(1e9) < 1.0);
    }
}
