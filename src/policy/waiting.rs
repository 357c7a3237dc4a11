//! Requests held at the gate: ordered by a key of the policy's choice, each with a deadline.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::slots::Slots;
use super::{Arrival, RequestId, Time};

/// One held request.
#[derive(Clone, Copy, Debug)]
pub struct Held<K> {
    /// Where it stands in the queue; smaller goes first.
    pub key: K,
    /// The request, as it arrived.
    pub arrival: Arrival,
    /// When the hold began.
    pub since: Time,
    /// Breaks ties between equal keys in order of arrival.
    seq: u64,
}

/// A position in the queue; positions compare in queue order.
pub type Place<K> = (K, u64);

/// A bounded queue. Every change is O(log n), amortised, and allocates little.
#[derive(Debug)]
pub struct Waiting<K> {
    held: Slots<Held<K>>,
    order: BTreeMap<Place<K>, RequestId>,
    /// By age. Every hold is equally long, so the oldest has the earliest deadline. Entries of requests that have
    /// left stay until they reach the front, which is always held, or until they outnumber the held ones.
    by_age: VecDeque<(u64, RequestId)>,
    next_seq: u64,
    bound: usize,
    hold: Duration,
}

impl<K: Copy + Ord> Waiting<K> {
    /// An empty queue for `bound` requests, each held for at most `hold`.
    pub const fn new(bound: u32, hold: Duration) -> Self {
        Self {
            held: Slots::new(),
            order: BTreeMap::new(),
            by_age: VecDeque::new(),
            next_seq: 0,
            bound: bound as usize,
            hold,
        }
    }

    /// How many requests are held.
    pub const fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether no request is held.
    pub const fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether the bound is reached: one more request has to be refused.
    pub const fn is_full(&self) -> bool {
        self.len() >= self.bound
    }

    /// Whether the bound is passed. A policy may push first, admit what it can, and refuse the newcomer if the
    /// queue is then still too long; it must do so within one event.
    pub const fn is_over(&self) -> bool {
        self.len() > self.bound
    }

    /// Holds a request from `now` on.
    pub fn push(&mut self, now: Time, key: K, arrival: Arrival) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let held = Held {
            key,
            arrival,
            since: now,
            seq,
        };
        self.order.insert((key, seq), arrival.request);
        self.by_age.push_back((seq, arrival.request));
        self.held.insert(arrival.request.index(), held);
    }

    /// Takes a request out, because it is admitted, refused or cancelled; `None` if it is not held.
    pub fn remove(&mut self, request: RequestId) -> Option<Held<K>> {
        let held = self.held.remove(request.index())?;
        self.order.remove(&(held.key, held.seq));
        self.tidy();
        Some(held)
    }

    /// Moves a held request to another place, keeping its age.
    pub fn rekey(&mut self, request: RequestId, key: K) {
        let Some(held) = self.held.get_mut(request.index()) else {
            return;
        };
        self.order.remove(&(held.key, held.seq));
        held.key = key;
        self.order.insert((key, held.seq), request);
    }

    /// The held request, if it is held.
    pub fn get(&self, request: RequestId) -> Option<&Held<K>> {
        self.held.get(request.index())
    }

    /// Where a held request stands.
    pub fn place(&self, request: RequestId) -> Option<Place<K>> {
        let held = self.get(request)?;
        Some((held.key, held.seq))
    }

    /// The first request after `place`, or the first of all, with its own place.
    pub fn next(&self, place: Option<Place<K>>) -> Option<(Place<K>, RequestId)> {
        let from = place.map_or(Unbounded, Excluded);
        let (place, request) = self.order.range((from, Unbounded)).next()?;
        Some((*place, *request))
    }

    /// The first request whose key is `key` or greater.
    pub fn first_from(&self, key: K) -> Option<&Held<K>> {
        let (_, request) = self.order.range((key, 0)..).next()?;
        self.get(*request)
    }

    /// The request that has been held longest.
    pub fn oldest(&self) -> Option<&Held<K>> {
        let (_, request) = self.by_age.front()?;
        self.get(*request)
    }

    /// A request that has been held for as long as allowed, the oldest first.
    pub fn expired(&self, now: Time) -> Option<RequestId> {
        let (_, request) = self.by_age.front()?;
        (self.deadline()? <= now).then_some(*request)
    }

    /// Whether a request has been held for as long as allowed.
    pub fn is_expired(&self, now: Time, held: &Held<K>) -> bool {
        held.since + self.hold <= now
    }

    /// When the next hold reaches its bound.
    pub fn deadline(&self) -> Option<Time> {
        let (_, request) = self.by_age.front()?;
        Some(self.get(*request)?.since + self.hold)
    }

    /// Keeps the front of `by_age` a held request, and the whole no longer than twice the queue.
    fn tidy(&mut self) {
        let held = &self.held;
        let stays = |(seq, request): &(u64, RequestId)| {
            held.get(request.index()).is_some_and(|h| h.seq == *seq)
        };
        while self.by_age.front().is_some_and(|front| !stays(front)) {
            self.by_age.pop_front();
        }
        if self.by_age.len() > 2 * held.len() + 64 {
            self.by_age.retain(stays);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Tokens;

    fn arrival(request: u32) -> Arrival {
        Arrival {
            request: RequestId(request),
            program: None,
            prompt: Tokens(10),
            shared: None,
            name_hash: 0,
            last_step: false,
        }
    }

    fn order(waiting: &Waiting<u8>) -> Vec<u32> {
        let mut place = None;
        let mut seen = Vec::new();
        while let Some((next, request)) = waiting.next(place) {
            seen.push(request.0);
            place = Some(next);
        }
        seen
    }

    #[test]
    fn equal_keys_go_in_order_of_arrival_even_when_ids_are_reused() {
        let mut waiting = Waiting::new(9, Duration::from_secs(1));
        waiting.push(Time::ZERO, 2, arrival(7));
        waiting.push(Time::ZERO, 1, arrival(8));
        waiting.push(Time::ZERO, 1, arrival(3));
        assert_eq!(order(&waiting), [8, 3, 7]);
        waiting.rekey(RequestId(7), 0);
        assert_eq!(order(&waiting), [7, 8, 3]);
    }

    #[test]
    fn a_cancelled_request_leaves_no_trace() {
        let mut waiting = Waiting::new(1, Duration::from_secs(1));
        waiting.push(Time::ZERO, 0_u8, arrival(0));
        assert!(waiting.is_full());
        assert!(waiting.remove(RequestId(0)).is_some());
        assert!(waiting.remove(RequestId(0)).is_none());
        assert_eq!((waiting.len(), waiting.deadline()), (0, None));
        assert!(order(&waiting).is_empty());
    }

    #[test]
    fn the_oldest_hold_expires_first_whatever_its_key() {
        let mut waiting = Waiting::new(9, Duration::from_secs(2));
        waiting.push(Time::from_millis(500), 9_u8, arrival(0));
        waiting.push(Time::from_millis(900), 1, arrival(1));
        assert_eq!(waiting.deadline(), Some(Time::from_millis(2500)));
        assert_eq!(waiting.expired(Time::from_millis(2499)), None);
        assert_eq!(waiting.expired(Time::from_millis(2500)), Some(RequestId(0)));
    }
}
