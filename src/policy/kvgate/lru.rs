//! A list in order of last use, in one slab: every change is O(1) and allocates only when the list has never been
//! as long before.

use crate::policy::{ProgramId, Time};

/// No node.
pub(super) const NIL: u32 = u32::MAX;

/// Whose tokens a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// An idle program's private context.
    Program(ProgramId),
    /// The prefix that a group of programs shares, by the group's number.
    Prefix(u16),
    /// Nobody: the program is over, or never had a name. The tokens stay until they are evicted.
    Nobody,
}

/// One segment of cache that nothing running uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    prev: u32,
    next: u32,
    /// Ascends along the list; 0 marks a free node.
    seq: u64,
    /// Whose it is.
    pub(super) owner: Owner,
    /// Its length, evicted parts included.
    pub(super) tokens: u32,
    /// Which class of gap its program is in.
    pub(super) class: u16,
    /// Its program's group.
    pub(super) group: u16,
    /// The program's next request is at the gate.
    pub(super) wanted: bool,
    /// When it was last used.
    pub(super) since: Time,
}

/// A node that may be gone by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    at: u32,
    seq: u64,
}

/// The list, oldest first.
#[derive(Debug)]
pub(super) struct Lru {
    nodes: Vec<Node>,
    free: u32,
    oldest: u32,
    youngest: u32,
    next_seq: u64,
    len: usize,
}

impl Lru {
    pub(super) const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: NIL,
            oldest: NIL,
            youngest: NIL,
            next_seq: 1,
            len: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The node at `at`, which must be in the list.
    pub(super) fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    /// Where the node is, if it is still in the list.
    pub(super) fn find(&self, handle: Handle) -> Option<u32> {
        let node = self.nodes.get(handle.at as usize)?;
        (node.seq == handle.seq).then_some(handle.at)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Node> {
        let at = self.find(handle)?;
        self.nodes.get_mut(at as usize)
    }

    pub(super) const fn oldest(&self) -> u32 {
        self.oldest
    }

    pub(super) const fn youngest(&self) -> u32 {
        self.youngest
    }

    pub(super) fn next(&self, at: u32) -> u32 {
        self.node(at).next
    }

    pub(super) fn prev(&self, at: u32) -> u32 {
        self.node(at).prev
    }

    /// Adds the youngest segment.
    pub(super) fn push(&mut self, owner: Owner, tokens: u32, since: Time) -> Handle {
        let seq = self.next_seq;
        self.next_seq += 1;
        let node = Node {
            prev: self.youngest,
            next: NIL,
            seq,
            owner,
            tokens,
            class: 0,
            group: 0,
            wanted: false,
            since,
        };
        let at = self.place(node);
        match self.nodes.get_mut(self.youngest as usize) {
            Some(before) => before.next = at,
            None => self.oldest = at,
        }
        self.youngest = at;
        self.len += 1;
        Handle { at, seq }
    }

    /// Takes the node at `at` out, which must be in the list.
    pub(super) fn remove(&mut self, at: u32) {
        let Node { prev, next, .. } = *self.node(at);
        match self.nodes.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.oldest = next,
        }
        match self.nodes.get_mut(next as usize) {
            Some(after) => after.prev = prev,
            None => self.youngest = prev,
        }
        let node = &mut self.nodes[at as usize];
        node.seq = 0;
        node.next = self.free;
        self.free = at;
        self.len -= 1;
    }

    fn place(&mut self, node: Node) -> u32 {
        if self.free == NIL {
            self.nodes.push(node);
            return u32::try_from(self.nodes.len() - 1).unwrap_or(NIL);
        }
        let at = self.free;
        self.free = self.nodes[at as usize].next;
        self.nodes[at as usize] = node;
        at
    }
}

impl Node {
    /// Its place in the order of last use.
    pub(super) const fn seq(&self) -> u64 {
        self.seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(lru: &Lru) -> Vec<u32> {
        let mut seen = Vec::new();
        let mut at = lru.oldest();
        while at != NIL {
            seen.push(lru.node(at).tokens);
            at = lru.next(at);
        }
        seen
    }

    #[test]
    fn order_survives_removal_anywhere_and_a_stale_handle_finds_nothing() {
        let mut lru = Lru::new();
        let handles: Vec<_> = (1..=4)
            .map(|n| lru.push(Owner::Nobody, n, Time::ZERO))
            .collect();
        for (gone, left) in [(1, vec![1, 3, 4]), (0, vec![3, 4]), (3, vec![3])] {
            let at = lru.find(handles[gone]).unwrap();
            lru.remove(at);
            assert_eq!(tokens(&lru), left);
            assert_eq!(lru.find(handles[gone]), None);
        }
        lru.push(Owner::Nobody, 9, Time::ZERO);
        assert_eq!(tokens(&lru), [3, 9]);
        assert_eq!(
            (lru.len(), lru.nodes.len()),
            (2, 4),
            "the slot is used again"
        );
        assert_eq!(lru.find(handles[3]), None, "by another node");
    }
}
