//! The waiting queue: first come first served, or by priority.

use std::collections::{BTreeMap, VecDeque};

use super::sequence::{RequestId, Sequence};
use crate::policy::Time;

/// Who is admitted first, and who is preempted first (`--scheduling-policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// Arrival order. The last admitted is preempted first, and comes back to the front.
    #[default]
    Fcfs,
    /// Lower priority value first, then arrival. The worst running one is preempted first.
    Priority,
}

/// Rank under [`Scheduling::Priority`]: smaller goes first.
type Rank = (i64, Time, RequestId);

/// Requests that wait for admission, in order. Bounded by whoever submits: the engine refuses nothing.
#[derive(Debug)]
pub(super) enum WaitingQueue {
    Fcfs(VecDeque<Sequence>),
    Priority(BTreeMap<Rank, Sequence>),
}

impl WaitingQueue {
    pub(super) const fn new(scheduling: Scheduling) -> Self {
        match scheduling {
            Scheduling::Fcfs => Self::Fcfs(VecDeque::new()),
            Scheduling::Priority => Self::Priority(BTreeMap::new()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Fcfs(queue) => queue.len(),
            Self::Priority(queue) => queue.len(),
        }
    }

    /// A new arrival.
    pub(super) fn push(&mut self, sequence: Sequence) {
        match self {
            Self::Fcfs(queue) => queue.push_back(sequence),
            Self::Priority(queue) => {
                queue.insert(rank(&sequence), sequence);
            }
        }
    }

    /// A preempted sequence: to the front, or to its rank.
    pub(super) fn push_preempted(&mut self, sequence: Sequence) {
        match self {
            Self::Fcfs(queue) => queue.push_front(sequence),
            Self::Priority(_) => self.push(sequence),
        }
    }

    pub(super) fn front(&self) -> Option<&Sequence> {
        match self {
            Self::Fcfs(queue) => queue.front(),
            Self::Priority(queue) => queue.first_key_value().map(|(_, sequence)| sequence),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Sequence> {
        match self {
            Self::Fcfs(queue) => queue.pop_front(),
            Self::Priority(queue) => queue.pop_first().map(|(_, sequence)| sequence),
        }
    }

    /// Takes `id` out. O(n): only a client that leaves early asks for it.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        match self {
            Self::Fcfs(queue) => {
                let at = queue.iter().position(|sequence| sequence.id == id)?;
                queue.remove(at)
            }
            Self::Priority(queue) => {
                let rank = *queue.keys().find(|(_, _, waiting)| *waiting == id)?;
                queue.remove(&rank)
            }
        }
    }
}

fn rank(sequence: &Sequence) -> Rank {
    (sequence.priority, sequence.arrival, sequence.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::engine::core::hash::{BlockHash, Chain};
    use crate::harness::engine::core::output::{Finish, Output};
    use crate::harness::engine::core::sequence::Request;

    fn sequence(id: u64, priority: i64, arrival_ms: u64) -> Sequence {
        let request = Request {
            id: RequestId(id),
            prompt: Chain::new(16, BlockHash::root(b"")),
            priority,
            output: Output::filler(1, Finish::Length, 0),
        };
        Sequence::new(Time::from_millis(arrival_ms), request)
    }

    fn drain(mut queue: WaitingQueue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop().map(|sequence| sequence.id.0)).collect()
    }

    #[test]
    fn first_come_first_served_ignores_priority_and_takes_preempted_ones_at_the_front() {
        let mut queue = WaitingQueue::new(Scheduling::Fcfs);
        queue.push(sequence(1, 9, 0));
        queue.push(sequence(2, 0, 1));
        queue.push_preempted(sequence(3, 5, 2));
        assert_eq!(drain(queue), [3, 1, 2]);
    }

    #[test]
    fn priority_orders_by_value_then_arrival_even_for_preempted_ones() {
        let mut queue = WaitingQueue::new(Scheduling::Priority);
        queue.push(sequence(1, 9, 0));
        queue.push(sequence(2, 0, 2));
        queue.push(sequence(3, 0, 1));
        queue.push_preempted(sequence(4, 5, 0));
        assert_eq!(drain(queue), [3, 2, 4, 1]);
    }

    #[test]
    fn a_request_can_leave_from_the_middle_of_either_queue() {
        for scheduling in [Scheduling::Fcfs, Scheduling::Priority] {
            let mut queue = WaitingQueue::new(scheduling);
            for id in 1..=3 {
                queue.push(sequence(id, 0, id));
            }
            assert!(queue.remove(RequestId(2)).is_some());
            assert!(queue.remove(RequestId(2)).is_none());
            assert_eq!(queue.front().map(|s| s.id), Some(RequestId(1)));
            assert_eq!(drain(queue), [1, 3]);
        }
    }
}
