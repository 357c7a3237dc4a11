//! What one backend's cache holds, as the gate believes: running requests, and a mirror of vLLM's free queue.
//!
//! vLLM keeps the blocks of an ended request until it needs them, and takes the longest unused first; of one request
//! the end goes before the beginning. So what is idle is a list of segments in order of last use, and a *frontier*
//! moves along it: segments before it are gone, the one at it is gone in part. How far the frontier is depends on
//! the capacity. Several candidates of it are followed side by side, each with its own frontier along the same list
//! (a larger cache holds everything that a smaller one does), so that the one that foretells best can be told
//! ([`super::capacity`]).

use super::capacity::CANDIDATES;
use super::lru::{Handle, Lru, NIL, Node, Owner};
use crate::policy::{Time, Tokens};

/// Tokens of one segment that are there, by candidate capacity.
pub(super) type Here = [u32; CANDIDATES.len()];

/// The least tokens that a segment can have: a block. Bounds the number of segments by the capacity.
const BLOCK: u32 = 16;

/// How far eviction has come if the capacity were `capacity`.
#[derive(Clone, Copy, Debug)]
struct Frontier {
    capacity: u64,
    /// The oldest segment that is not wholly gone.
    first: u32,
    /// Tokens of it that are gone.
    bite: u32,
    /// Tokens that are there, over all segments.
    kept: u64,
}

/// A shared prefix on this backend.
#[derive(Clone, Copy, Debug, Default)]
struct Prefix {
    /// Running requests that use it.
    users: u32,
    /// Its length while it is used.
    tokens: u32,
    /// Where it stands while nothing uses it.
    idle: Option<Handle>,
}

/// One backend's cache.
#[derive(Debug)]
pub(super) struct Shadow {
    lru: Lru,
    frontiers: [Frontier; CANDIDATES.len()],
    /// Which candidate is believed.
    believed: usize,
    /// What the backend reports; `None` while unknown, and then nothing idle is followed.
    reported: Option<Tokens>,
    /// Private tokens of running requests.
    running: u64,
    /// Tokens of prefixes that running requests use.
    shared: u64,
    prefixes: Vec<Prefix>,
    /// Segments from this place on are protected.
    cut: u64,
    /// Tokens of protected segments.
    protected: u64,
}

impl Shadow {
    pub(super) fn new() -> Self {
        let frontier = Frontier {
            capacity: u64::MAX,
            first: NIL,
            bite: 0,
            kept: 0,
        };
        Self {
            lru: Lru::new(),
            frontiers: [frontier; CANDIDATES.len()],
            believed: super::capacity::REPORTED,
            reported: None,
            running: 0,
            shared: 0,
            prefixes: Vec::new(),
            cut: u64::MAX,
            protected: 0,
        }
    }

    /// From here on, the candidate is believed.
    pub(super) const fn believe(&mut self, candidate: usize) {
        self.believed = candidate;
    }

    /// The backend reports its capacity.
    pub(super) fn set_capacity(&mut self, reported: Option<Tokens>) {
        self.reported = reported;
        for (frontier, factor) in self.frontiers.iter_mut().zip(CANDIDATES) {
            frontier.capacity = reported.map_or(u64::MAX, |tokens| {
                Tokens::from_f64(tokens.as_f64() * factor).0
            });
        }
        self.trim();
    }

    /// The backend's cache is empty; what runs is left to end.
    pub(super) fn clear(&mut self) {
        while self.lru.oldest() != NIL {
            self.lru.remove(self.lru.oldest());
        }
        for frontier in &mut self.frontiers {
            (frontier.first, frontier.bite, frontier.kept) = (NIL, 0, 0);
        }
        for prefix in &mut self.prefixes {
            prefix.idle = None;
        }
        self.protect(u64::MAX, 0);
    }

    pub(super) const fn is_known(&self) -> bool {
        self.reported.is_some()
    }

    /// The capacity that is believed, in tokens.
    pub(super) fn capacity(&self) -> u64 {
        self.frontiers[self.believed].capacity
    }

    /// Private tokens of running requests.
    pub(super) const fn running(&self) -> u64 {
        self.running
    }

    /// Tokens of running requests, shared prefixes included.
    pub(super) const fn in_use(&self) -> u64 {
        self.running + self.shared
    }

    /// The capacity that the backend reports.
    pub(super) const fn reported(&self) -> Option<Tokens> {
        self.reported
    }

    /// Segments followed.
    pub(super) const fn segments(&self) -> usize {
        self.lru.len()
    }

    /// Tokens that running requests leave.
    pub(super) fn left_by_running(&self) -> u64 {
        let used = self.running + self.shared;
        self.capacity().saturating_sub(used)
    }

    /// Tokens that neither running requests nor protected segments take.
    pub(super) fn room(&self) -> u64 {
        self.left_by_running().saturating_sub(self.protected)
    }

    /// Everything that is there.
    pub(super) fn resident(&self) -> u64 {
        self.running + self.shared + self.frontiers[self.believed].kept
    }

    /// Protects the segments from `cut` on, which hold `tokens`.
    pub(super) const fn protect(&mut self, cut: u64, tokens: u64) {
        self.cut = cut;
        self.protected = tokens;
    }

    /// Counts a request that starts with `private` tokens of its own.
    pub(super) fn start(&mut self, private: u32) {
        self.running += u64::from(private);
        self.trim();
    }

    /// Takes it off again.
    pub(super) fn finish(&mut self, private: u32) {
        self.running = self.running.saturating_sub(u64::from(private));
    }

    /// A running request uses the prefix of `group`, which has `tokens`. What of it was there is returned.
    pub(super) fn use_prefix(&mut self, group: u16, tokens: u32) -> Here {
        let prefix = *self.prefix(group);
        let here = if prefix.users > 0 {
            [prefix.tokens; CANDIDATES.len()]
        } else {
            self.shared += u64::from(tokens);
            let idle = prefix.idle;
            idle.map_or([0; CANDIDATES.len()], |idle| self.take(idle))
        };
        let prefix = self.prefix(group);
        prefix.tokens = if prefix.users == 0 {
            tokens
        } else {
            prefix.tokens
        };
        prefix.users += 1;
        prefix.idle = None;
        self.trim();
        here
    }

    /// A running request that used the prefix of `group` has ended.
    pub(super) fn leave_prefix(&mut self, now: Time, group: u16) {
        let prefix = self.prefix(group);
        prefix.users = prefix.users.saturating_sub(1);
        if prefix.users > 0 {
            return;
        }
        let tokens = prefix.tokens;
        self.shared = self.shared.saturating_sub(u64::from(tokens));
        let idle = self.push(Owner::Prefix(group), tokens, now);
        self.prefix(group).idle = idle;
    }

    /// The length of a prefix in use is now known better.
    pub(super) fn resize_prefix(&mut self, group: u16, tokens: u32) {
        let prefix = self.prefix(group);
        if prefix.users > 0 {
            let old = std::mem::replace(&mut prefix.tokens, tokens);
            self.shared = (self.shared + u64::from(tokens)).saturating_sub(u64::from(old));
            self.trim();
        }
    }

    /// Whether a running request uses the prefix of `group`.
    pub(super) fn is_used(&self, group: u16) -> bool {
        let prefix = self.prefixes.get(usize::from(group));
        prefix.is_some_and(|prefix| prefix.users > 0)
    }

    /// Tokens of room that a prefix of `tokens` would take: none while it is used or protected.
    pub(super) fn prefix_need(&self, group: u16, tokens: u32) -> u32 {
        let Some(prefix) = self.prefixes.get(usize::from(group)) else {
            return tokens;
        };
        if prefix.users > 0 {
            return 0;
        }
        let idle = prefix.idle.and_then(|idle| self.lru.find(idle));
        match idle {
            Some(at) if self.lru.node(at).seq() >= self.cut => {
                tokens.saturating_sub(self.here(at, self.believed))
            }
            Some(_) | None => tokens,
        }
    }

    /// Forgets the prefix of a group whose number is used again.
    pub(super) fn forget_prefix(&mut self, group: u16) {
        let idle = self.prefixes.get_mut(usize::from(group));
        if let Some(idle) = idle.and_then(|prefix| prefix.idle.take()) {
            self.disown(idle);
        }
    }

    /// Adds the youngest segment; `None` while the capacity is unknown.
    pub(super) fn push(&mut self, owner: Owner, tokens: u32, now: Time) -> Option<Handle> {
        self.reported?;
        let tokens = tokens.max(BLOCK);
        let handle = self.lru.push(owner, tokens, now);
        for frontier in &mut self.frontiers {
            frontier.kept += u64::from(tokens);
            if frontier.first == NIL {
                (frontier.first, frontier.bite) = (self.lru.youngest(), 0);
            }
        }
        self.protected += if self.cut == u64::MAX {
            0
        } else {
            u64::from(tokens)
        };
        self.trim();
        Some(handle)
    }

    /// Takes a segment out and says what of it was there.
    pub(super) fn take(&mut self, handle: Handle) -> Here {
        let Some(at) = self.lru.find(handle) else {
            return [0; CANDIDATES.len()];
        };
        let here = std::array::from_fn(|candidate| self.here(at, candidate));
        let next = self.lru.next(at);
        for (frontier, here) in self.frontiers.iter_mut().zip(here) {
            frontier.kept -= u64::from(here);
            if frontier.first == at {
                (frontier.first, frontier.bite) = (next, 0);
            }
        }
        if self.lru.node(at).seq() >= self.cut {
            let here = u64::from(here[self.believed]);
            self.protected = self.protected.saturating_sub(here);
        }
        self.lru.remove(at);
        here
    }

    /// Tokens of a segment that are believed to be there.
    pub(super) fn warm(&self, handle: Handle) -> u32 {
        let at = self.lru.find(handle);
        at.map_or(0, |at| self.here(at, self.believed))
    }

    /// The same, if it is protected; else none.
    pub(super) fn warm_protected(&self, handle: Handle) -> u32 {
        let at = self.lru.find(handle);
        let at = at.filter(|at| self.lru.node(*at).seq() >= self.cut);
        at.map_or(0, |at| self.here(at, self.believed))
    }

    /// The segment behind a handle, to be described.
    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Node> {
        self.lru.get_mut(handle)
    }

    /// The program of a segment is over.
    pub(super) fn disown(&mut self, handle: Handle) {
        if let Some(node) = self.lru.get_mut(handle) {
            node.owner = Owner::Nobody;
        }
    }

    /// Segments that are there, with the tokens that are, youngest first.
    pub(super) fn youngest_first(&self) -> impl Iterator<Item = (&Node, u32)> {
        let first = self.frontiers[self.believed].first;
        let mut at = if first == NIL {
            NIL
        } else {
            self.lru.youngest()
        };
        std::iter::from_fn(move || {
            let here = at;
            if here == NIL {
                return None;
            }
            at = if here == first {
                NIL
            } else {
                self.lru.prev(here)
            };
            Some((self.lru.node(here), self.here(here, self.believed)))
        })
    }

    fn here(&self, at: u32, candidate: usize) -> u32 {
        let frontier = &self.frontiers[candidate];
        let node = self.lru.node(at);
        if frontier.first == NIL {
            return 0;
        }
        let first = self.lru.node(frontier.first).seq();
        match node.seq().cmp(&first) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => node.tokens - frontier.bite,
            std::cmp::Ordering::Greater => node.tokens,
        }
    }

    fn prefix(&mut self, group: u16) -> &mut Prefix {
        let at = usize::from(group);
        if self.prefixes.len() <= at {
            self.prefixes.resize_with(at + 1, Prefix::default);
        }
        &mut self.prefixes[at]
    }

    /// Moves every frontier on until what is there fits, and drops what is gone for all candidates.
    fn trim(&mut self) {
        let used = self.running + self.shared;
        for frontier in &mut self.frontiers {
            frontier.advance(used, &self.lru);
        }
        let last = self.frontiers[CANDIDATES.len() - 1].first;
        while self.lru.oldest() != last && self.lru.oldest() != NIL {
            self.lru.remove(self.lru.oldest());
        }
    }
}

impl Frontier {
    fn advance(&mut self, used: u64, lru: &Lru) {
        while self.first != NIL {
            let over = (used + self.kept).saturating_sub(self.capacity);
            if over == 0 {
                return;
            }
            let left = lru.node(self.first).tokens - self.bite;
            if over < u64::from(left) {
                self.bite += u32::try_from(over).unwrap_or(left);
                self.kept -= over;
                return;
            }
            self.kept -= u64::from(left);
            self.bite = 0;
            self.first = lru.next(self.first);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::capacity::REPORTED;
    use super::*;
    use crate::policy::ProgramId;

    fn shadow(capacity: u64) -> Shadow {
        let mut shadow = Shadow::new();
        shadow.set_capacity(Some(Tokens(capacity)));
        shadow
    }

    fn push(shadow: &mut Shadow, id: u32, tokens: u32) -> Handle {
        let owner = Owner::Program(ProgramId(id));
        shadow.push(owner, tokens, Time::ZERO).unwrap()
    }

    #[test]
    fn the_longest_unused_goes_first_and_its_end_before_its_beginning() {
        let mut shadow = shadow(1000);
        let (a, b) = (push(&mut shadow, 0, 400), push(&mut shadow, 1, 300));
        shadow.start(500);
        assert_eq!((shadow.warm(a), shadow.warm(b)), (200, 300));
        shadow.start(300);
        assert_eq!((shadow.warm(a), shadow.warm(b)), (0, 200));
        shadow.finish(800);
        assert_eq!(shadow.warm(b), 200, "what is gone stays gone");
    }

    #[test]
    fn a_larger_capacity_would_have_kept_more() {
        let mut shadow = shadow(1000);
        let a = push(&mut shadow, 0, 400);
        shadow.start(900);
        let here = shadow.take(a);
        assert!(here.is_sorted(), "{here:?}");
        assert_eq!(here[REPORTED], 100);
        assert!(here[0] == 0 && here[CANDIDATES.len() - 1] > 300, "{here:?}");
    }

    #[test]
    fn a_prefix_is_counted_once_and_outlives_the_contexts_that_hang_on_it() {
        let mut shadow = shadow(1000);
        assert_eq!(shadow.use_prefix(0, 300)[REPORTED], 0);
        assert_eq!(shadow.use_prefix(0, 300)[REPORTED], 300);
        assert_eq!(shadow.left_by_running(), 700);
        shadow.leave_prefix(Time::ZERO, 0);
        let a = push(&mut shadow, 0, 400);
        shadow.leave_prefix(Time::ZERO, 0);
        assert_eq!(shadow.left_by_running(), 1000);
        shadow.start(700);
        assert_eq!(shadow.warm(a), 0);
        assert_eq!(shadow.use_prefix(0, 300)[REPORTED], 300);
    }

    #[test]
    fn room_is_what_neither_runs_nor_is_protected() {
        let mut shadow = shadow(1000);
        push(&mut shadow, 0, 200);
        let b = push(&mut shadow, 1, 300);
        let cut = shadow.get_mut(b).unwrap().seq();
        shadow.protect(cut, 300);
        shadow.start(100);
        assert_eq!(shadow.room(), 600);
        assert_eq!(shadow.warm_protected(b), 300);
        shadow.take(b);
        assert_eq!(shadow.room(), 900);
    }

    proptest! {
        /// The frontier equals dropping from the front of a plain list.
        #[test]
        fn the_frontier_equals_a_plain_queue(
            moves in prop::collection::vec((0_u8..3, 16_u32..400), 1..80),
        ) {
            let mut shadow = shadow(1000);
            let mut plain: Vec<(Handle, u32)> = Vec::new();
            let mut running = 0;
            for (kind, tokens) in moves {
                match kind {
                    0 => {
                        let handle = push(&mut shadow, 0, tokens);
                        plain.push((handle, tokens));
                    }
                    1 if !plain.is_empty() => {
                        let (handle, left) = plain.remove(tokens as usize % plain.len());
                        prop_assert_eq!(shadow.take(handle)[REPORTED], left);
                    }
                    _ if running == 0 => {
                        shadow.start(tokens);
                        running = tokens;
                    }
                    _ => {
                        shadow.finish(running);
                        running = 0;
                    }
                }
                let mut over = (plain.iter().map(|(_, t)| t).sum::<u32>() + running).saturating_sub(1000);
                for (_, left) in &mut plain {
                    let gone = over.min(*left);
                    *left -= gone;
                    over -= gone;
                }
                for (handle, left) in &plain {
                    prop_assert_eq!(shadow.warm(*handle), *left);
                }
            }
        }
    }
}
