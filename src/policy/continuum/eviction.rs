//! The order in which each backend evicts: a model of vLLM's least-recently-used list of cached contexts.
//!
//! vLLM frees a finished request's blocks to the back of one list and allocates from its front. A pin is only a
//! promise of the gate: a context is safe exactly as long as what is newly allocated fits into what lies before
//! it. A *segment* is what one ended step left behind; it is garbage once its program has ended or moved.

use std::mem::replace;

use crate::policy::slots::Slots;
use crate::policy::{BackendId, ProgramId, Tokens};

/// No node.
const END: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    owner: Option<ProgramId>,
    backend: BackendId,
    tokens: Tokens,
    /// Grows with every segment: who is nearer to the front has the lower one.
    stamp: u64,
    prev: u32,
    next: u32,
}

/// One backend's list.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    tokens: Tokens,
}

impl List {
    const EMPTY: Self = Self {
        first: END,
        last: END,
        tokens: Tokens::ZERO,
    };
}

/// A context taken out of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) owner: Option<ProgramId>,
    pub(super) tokens: Tokens,
    pub(super) stamp: u64,
}

/// The lists of all backends. Every change is O(1) and allocates only to grow. Their length is bounded by what a
/// backend can cache, because whoever parks also evicts.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    nodes: Vec<Node>,
    free: Vec<u32>,
    lists: Vec<List>,
    of: Slots<u32>,
    next_stamp: u64,
}

impl Eviction {
    /// A step ended: its context goes to the back. What its program left on this backend before is part of it;
    /// what it left on another one becomes garbage.
    pub(super) fn park(&mut self, owner: Option<ProgramId>, backend: BackendId, tokens: Tokens) {
        if let Some(id) = owner
            && self.take(id, backend).is_none()
        {
            self.orphan(id);
        }
        if tokens == Tokens::ZERO {
            return;
        }
        let node = Node {
            owner,
            backend,
            tokens,
            stamp: self.next_stamp,
            prev: self.list(backend).last,
            next: END,
        };
        self.next_stamp += 1;
        let at = self.store(node);
        let list = self.list(backend);
        list.tokens += tokens;
        let before = replace(&mut list.last, at);
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.next = at,
            None => self.list(backend).first = at,
        }
        if let Some(id) = owner {
            self.of.insert(id.index(), at);
        }
    }

    /// The program's context on `backend` is used again.
    pub(super) fn take(&mut self, id: ProgramId, backend: BackendId) -> Option<Segment> {
        let at = *self.of.get(id.index())?;
        (self.nodes[at as usize].backend == backend).then(|| self.unlink(at))
    }

    /// Tokens of the program's context on `backend` that are still cached.
    pub(super) fn cached(&self, id: ProgramId, backend: BackendId) -> Tokens {
        let at = self.of.get(id.index()).copied();
        let node = at.and_then(|at| self.nodes.get(at as usize));
        let here = node.filter(|node| node.backend == backend);
        here.map_or(Tokens::ZERO, |node| node.tokens)
    }

    /// The program is over: its context stays as garbage.
    pub(super) fn orphan(&mut self, id: ProgramId) {
        if let Some(at) = self.of.remove(id.index()) {
            self.nodes[at as usize].owner = None;
        }
    }

    /// Everything in the list of `backend`.
    pub(super) fn tokens(&self, backend: BackendId) -> Tokens {
        let list = self.lists.get(backend.index());
        list.map_or(Tokens::ZERO, |list| list.tokens)
    }

    /// Takes up to `tokens` from the front, the last segment perhaps in part, and says what was hit.
    pub(super) fn evict(
        &mut self,
        backend: BackendId,
        mut tokens: Tokens,
        mut hit: impl FnMut(ProgramId, Tokens),
    ) {
        while tokens > Tokens::ZERO {
            let at = self.list(backend).first;
            let Some(node) = self.nodes.get_mut(at as usize).filter(|_| at != END) else {
                return;
            };
            let lost = node.tokens.min(tokens);
            let owner = node.owner;
            tokens -= lost;
            if lost == node.tokens {
                self.unlink(at);
            } else {
                node.tokens -= lost;
                self.list(backend).tokens -= lost;
            }
            if let Some(id) = owner {
                hit(id, lost);
            }
        }
    }

    /// The front segment, if it is older than `stamp`, taken out: a younger one is known to be gone.
    pub(super) fn take_older(&mut self, backend: BackendId, stamp: u64) -> Option<Segment> {
        let at = self.lists.get(backend.index())?.first;
        let node = self.nodes.get(at as usize).filter(|_| at != END)?;
        (node.stamp < stamp).then(|| self.unlink(at))
    }

    /// Whether `needed` new tokens fit into `free` and the segments before the first one that is `safe`. Without a
    /// safe one nothing is at stake. O(segments that would go).
    pub(super) fn spares(
        &self,
        backend: BackendId,
        (needed, free): (Tokens, Tokens),
        returning: ProgramId,
        safe: impl Fn(ProgramId) -> bool,
    ) -> bool {
        let mut room = free;
        let mut at = self.lists.get(backend.index()).map_or(END, |l| l.first);
        while room < needed
            && at != END
            && let Some(node) = self.nodes.get(at as usize)
        {
            let own = node.owner == Some(returning);
            if !own && node.owner.is_some_and(&safe) {
                return false;
            }
            if !own {
                room += node.tokens;
            }
            at = node.next;
        }
        true
    }

    /// The backend is gone, and everything that it cached.
    pub(super) fn clear(&mut self, backend: BackendId) {
        while self.take_older(backend, u64::MAX).is_some() {}
    }

    fn list(&mut self, backend: BackendId) -> &mut List {
        if self.lists.len() <= backend.index() {
            self.lists.resize(backend.index() + 1, List::EMPTY);
        }
        &mut self.lists[backend.index()]
    }

    fn store(&mut self, node: Node) -> u32 {
        if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            return at;
        }
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).unwrap_or(END)
    }

    fn unlink(&mut self, at: u32) -> Segment {
        let node = self.nodes[at as usize];
        let list = self.list(node.backend);
        list.tokens -= node.tokens;
        if list.first == at {
            list.first = node.next;
        }
        if list.last == at {
            list.last = node.prev;
        }
        if let Some(before) = self.nodes.get_mut(node.prev as usize) {
            before.next = node.next;
        }
        if let Some(after) = self.nodes.get_mut(node.next as usize) {
            after.prev = node.prev;
        }
        if let Some(id) = node.owner {
            self.of.remove(id.index());
        }
        self.free.push(at);
        Segment {
            owner: node.owner,
            tokens: node.tokens,
            stamp: node.stamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: BackendId = BackendId(0);
    const OTHER: BackendId = BackendId(1);
    const P: fn(u32) -> ProgramId = ProgramId;

    fn parked(segments: &[(u32, u64)]) -> Eviction {
        let mut model = Eviction::default();
        for (id, tokens) in segments {
            model.park(Some(P(*id)), B, Tokens(*tokens));
        }
        model
    }

    fn evicted(model: &mut Eviction, tokens: u64) -> Vec<(u32, u64)> {
        let mut hits = Vec::new();
        model.evict(B, Tokens(tokens), |id, lost| hits.push((id.0, lost.0)));
        hits
    }

    #[test]
    fn the_longest_idle_context_goes_first_and_the_last_one_only_in_part() {
        let mut model = parked(&[(1, 40), (2, 45)]);
        assert_eq!(evicted(&mut model, 50), [(1, 40), (2, 10)]);
        assert_eq!(model.cached(P(2), B), Tokens(35));
        assert_eq!(evicted(&mut model, 99), [(2, 35)]);
        assert_eq!(model.tokens(B), Tokens::ZERO);
    }

    #[test]
    fn a_return_takes_its_own_context_out_of_the_middle() {
        let mut model = parked(&[(1, 10), (2, 20), (3, 30)]);
        assert_eq!(model.take(P(2), OTHER), None, "it is elsewhere");
        let hit = model.take(P(2), B).map(|segment| segment.tokens);
        assert_eq!(hit, Some(Tokens(20)));
        assert_eq!(evicted(&mut model, 99), [(1, 10), (3, 30)]);
    }

    #[test]
    fn an_ended_or_moved_program_leaves_garbage_in_its_place() {
        let mut model = parked(&[(1, 10), (2, 20), (3, 30)]);
        model.orphan(P(1));
        model.park(Some(P(2)), OTHER, Tokens(25));
        assert_eq!(model.tokens(B), Tokens(60));
        assert_eq!(model.cached(P(2), OTHER), Tokens(25));
        assert_eq!(evicted(&mut model, 35), [(3, 5)]);
    }

    #[test]
    fn new_tokens_fit_before_the_first_safe_context_or_not() {
        let model = parked(&[(1, 10), (2, 20), (3, 30)]);
        let spares = |needed, free, returning, safe: u32| {
            let amounts = (Tokens(needed), Tokens(free));
            model.spares(B, amounts, P(returning), |id| id == P(safe))
        };
        assert!(spares(35, 5, 9, 3));
        assert!(!spares(36, 5, 9, 3));
        assert!(!spares(26, 5, 1, 3), "its own 10 are no room for others");
        assert!(spares(999, 0, 3, 3), "nobody else is safe");
    }

    #[test]
    fn what_is_older_than_a_lost_context_is_lost_too() {
        let mut model = parked(&[(1, 10), (2, 20), (3, 30)]);
        let lost = model.take(P(2), B).expect("it is there");
        let older = model.take_older(B, lost.stamp).and_then(|s| s.owner);
        assert_eq!(older, Some(P(1)));
        assert_eq!(model.take_older(B, lost.stamp), None);
        model.clear(B);
        assert_eq!(model.tokens(B), Tokens::ZERO);
    }
}
