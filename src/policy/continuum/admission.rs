//! Who runs next, and where: Continuum's queue order, and what starting a request means.

use std::cmp::Reverse;
use std::time::Duration;

use super::programs::{Program, Run};
use super::{Continuum, Note, StartWhy, UnpinWhy};
use crate::policy::ledger::Footprint;
use crate::policy::roster::Flight;
use crate::policy::waiting::Place;
use crate::policy::{
    Arrival, BackendId, Decisions, HoldReason, ProgramId, RejectReason, RequestId, Time, Tokens,
};

/// How many held requests one decision looks at with backfill, so that its cost stays bounded.
const BACKFILL_DEPTH: usize = 256;

/// Who goes before whom, whatever their programs' seniority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// The backend failed the step: it has waited its turn before.
    Retry,
    /// The program's room is kept for this request.
    Pinned,
    /// Everyone else.
    Other,
}

/// A held request's place: class, then the program's seniority. Requests of one program go in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Class, u64);

impl Key {
    pub(super) const fn as_retry(self) -> Self {
        Self(Class::Retry, self.1)
    }
}

/// A request that is about to start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub(super) arrival: Arrival,
    /// Its place in the queue; `None` for a request that is not scheduled.
    pub(super) key: Option<Key>,
    /// Since when it has waited.
    pub(super) since: Time,
}

impl Leaving {
    /// A request that belongs to no program that is known.
    pub(super) const fn anonymous(since: Time, mut arrival: Arrival) -> Self {
        arrival.program = None;
        Self {
            arrival,
            key: None,
            since,
        }
    }
}

/// Where a request goes, and why now.
type Start = (BackendId, StartWhy);

impl Continuum {
    /// Holds a request of a known program that arrived at `since`, before anyone decides about it.
    pub(super) fn enqueue(&mut self, since: Time, key: Key, arrival: Arrival) {
        let Some(id) = arrival.program else {
            return;
        };
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        program.held += 1;
        self.holding += u32::from(program.held == 1);
        self.waiting.push(since, key, arrival);
        self.newcomers.push(arrival.request);
        self.pins.call(id, true);
    }

    /// Says what became of the arrivals that were enqueued and that are still held.
    pub(super) fn settle_newcomers(&mut self, out: &mut Decisions) {
        while let Some(request) = self.newcomers.pop() {
            let Some(held) = self.waiting.get(request) else {
                continue;
            };
            let arrival = held.arrival;
            let Some(id) = arrival.program else {
                continue;
            };
            if self.waiting.is_over() {
                self.waiting.remove(request);
                self.uncall(id);
                out.reject(request, RejectReason::QueueFull);
            } else {
                let why = self.why_held(&arrival, id);
                out.hold(request, why);
            }
        }
    }

    fn why_held(&mut self, arrival: &Arrival, id: ProgramId) -> HoldReason {
        let need = self.need(arrival);
        let up = || self.roster.up().map(|(backend, _)| backend);
        if up().any(|b| self.fits(b, id, need)) {
            return HoldReason::BehindOlder;
        }
        if up().all(|b| self.is_full(b)) {
            return HoldReason::ConcurrencyLimit;
        }
        let guarded = up().any(|b| !self.is_full(b) && self.fits_ledger(b, id, need));
        self.notes.counts.guarded += u64::from(guarded);
        HoldReason::NoRoom
    }

    /// Starts every held request whose turn it is.
    pub(super) fn pump(&mut self, now: Time, out: &mut Decisions) {
        let mut place: Option<Place<Key>> = None;
        let mut seen = 0;
        self.unblock();
        while let Some((next, request)) = self.waiting.next(place)
            && let Some(held) = self.waiting.get(request)
            && let Some(id) = held.arrival.program
        {
            let arrival = held.arrival;
            let late = self.waiting.is_expired(now, held);
            seen += 1;
            if let Some(start) = self.judge(&arrival, id, late) {
                self.start_held(now, request, start, out);
                self.unblock();
                (place, seen) = (None, 0);
            } else if self.config.backfill {
                if seen == BACKFILL_DEPTH {
                    return;
                }
                self.unblock();
                place = Some(next);
            } else if self.all_blocked() {
                return;
            } else {
                place = Some(next);
            }
        }
    }

    /// The bound on holding: sends what has waited long enough behind others, or refuses it when no backend is up.
    pub(super) fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now)
            && let Some(held) = self.waiting.get(request)
            && let Some(id) = held.arrival.program
        {
            let Some(backend) = self.best_backend(id, |_| true) else {
                self.waiting.remove(request);
                self.uncall(id);
                out.reject(request, RejectReason::NoBackend);
                continue;
            };
            self.start_held(now, request, (backend, StartWhy::HoldTimeout), out);
        }
    }

    /// Whether a request with this key would be the first in the queue.
    pub(super) fn leads(&self, key: Key) -> bool {
        let first = self.waiting.next(None);
        first.is_none_or(|((first, _), _)| key < first)
    }

    /// Where `arrival` can start now, nobody being ahead of it.
    pub(super) fn place_for(&mut self, arrival: &Arrival, id: ProgramId) -> Option<Start> {
        self.unblock();
        self.judge(arrival, id, false)
    }

    fn start_held(&mut self, now: Time, request: RequestId, start: Start, out: &mut Decisions) {
        let Some(held) = self.waiting.remove(request) else {
            return;
        };
        if let Some(id) = held.arrival.program {
            self.uncall(id);
        }
        let leaving = Leaving {
            arrival: held.arrival,
            key: Some(held.key),
            since: held.since,
        };
        self.start(now, &leaving, start, out);
    }

    /// Sends a request that is not held (any more) to a backend; its program's pin becomes its room.
    pub(super) fn start(
        &mut self,
        now: Time,
        leaving: &Leaving,
        (backend, why): Start,
        out: &mut Decisions,
    ) {
        let Arrival {
            request,
            program,
            last_step,
            ..
        } = leaving.arrival;
        let mut run = Run {
            admitted: now,
            prefill: None,
            pinned: None,
            last_step,
        };
        let mut priority = None;
        if let Some(id) = program {
            self.note_delay(id, now.since(leaving.since));
            priority = self.priority(id, leaving.key, last_step);
            run.pinned = self.hand_off(id, backend);
        }
        let need = self.need(&leaving.arrival);
        self.ledger.start(request, backend, need);
        self.runs.insert(request.index(), run);
        self.evict(backend);
        self.roster.start(request, Flight { backend, program });
        self.notes.add(Note::Started {
            request,
            backend,
            why,
        });
        out.admit_ranked(request, backend, priority);
    }

    /// Learns how long a program queued whose context was no longer kept.
    fn note_delay(&mut self, id: ProgramId, queued: Duration) {
        let returns = |p: &Program| p.steps > 0 && p.in_flight == 0;
        let lost = self.pinned_on(id).is_none();
        if lost && self.programs.get(id.index()).is_some_and(returns) {
            self.estimates.delay.observe(queued.as_secs_f64());
        }
    }

    /// The program's pin and its cached context turn into a running request on `backend`. Returns what a pin kept
    /// there, and its place in the order of eviction.
    fn hand_off(&mut self, id: ProgramId, backend: BackendId) -> Option<(Tokens, u64)> {
        let segment = self.eviction.take(id, backend);
        let pin = self.pins.drop(&mut self.ledger, id);
        let pinned = pin.is_some_and(|pin| pin.confirmed);
        if pin.is_some() {
            self.reclass(id);
        }
        self.notes.counts.handed_off += u64::from(pinned);
        let program = self.programs.get_mut(id.index())?;
        program.in_flight += 1;
        program.home = Some(backend);
        program.between = false;
        let segment = segment.filter(|_| pinned)?;
        Some((segment.tokens, segment.stamp))
    }

    /// The place that vLLM's own queue gives the program: class, then its first arrival in milliseconds.
    fn priority(&self, id: ProgramId, key: Option<Key>, last_step: bool) -> Option<i64> {
        let program = self.programs.get(id.index())?;
        let class = match key?.0 {
            Class::Retry => 0_i64,
            Class::Pinned => 1,
            Class::Other => 2 - i64::from(last_step),
        };
        let millis = program.since.as_nanos() / 1_000_000;
        Some((class << 40) + i64::try_from(millis).unwrap_or(i64::MAX >> 1))
    }

    /// One request of the program waits no longer. Without any, its pin may expire again.
    pub(super) fn uncall(&mut self, id: ProgramId) {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        program.held -= 1;
        if program.held == 0 {
            self.holding -= 1;
            self.pins.call(id, false);
        }
    }

    /// The backend where the program's room is kept.
    pub(super) fn pinned_on(&self, id: ProgramId) -> Option<BackendId> {
        self.ledger.parked(id).map(|(backend, _)| backend)
    }

    /// Gives the program's pin up, and the precedence that came with it.
    pub(super) fn unpin(&mut self, id: ProgramId, why: UnpinWhy) {
        let Some(pin) = self.pins.drop(&mut self.ledger, id) else {
            return;
        };
        self.reclass(id);
        if pin.confirmed {
            self.notes.add(Note::Unpinned {
                program: id,
                tokens: pin.tokens,
                why,
            });
        }
    }

    /// Moves the program's held requests to the class that its pin gives them.
    pub(super) fn reclass(&mut self, id: ProgramId) {
        let Some(&program) = self.programs.get(id.index()) else {
            return;
        };
        if program.held == 0 {
            return;
        }
        let to = self.key(id);
        let from = match to.0 {
            Class::Pinned => Key(Class::Other, program.seq),
            Class::Other | Class::Retry => Key(Class::Pinned, program.seq),
        };
        while let Some(held) = self.waiting.first_from(from)
            && held.key == from
        {
            self.waiting.rekey(held.arrival.request, to);
        }
        self.pins.call(id, true);
    }

    /// The backend that suits the program best among those that are `open`: its home, else the roomiest.
    fn best_backend(&self, id: ProgramId, open: impl Fn(BackendId) -> bool) -> Option<BackendId> {
        let home = self.programs.get(id.index()).and_then(|p| p.home);
        let up = self.roster.up().filter(|(backend, _)| open(*backend));
        let best = up.min_by_key(|&(backend, _)| {
            let away = Some(backend) != home;
            (away, Reverse(self.room(backend)), backend)
        });
        best.map(|(backend, _)| backend)
    }

    /// The place of a request of the program that is no retry.
    pub(super) fn key(&self, id: ProgramId) -> Key {
        let class = match self.pinned_on(id) {
            Some(_) => Class::Pinned,
            None => Class::Other,
        };
        let seq = self.programs.get(id.index()).map_or(u64::MAX, |p| p.seq);
        Key(class, seq)
    }

    /// Tries the backends open to a request in order of preference, and claims those that it must wait for. One
    /// that was held for as long as allowed goes to the first of them.
    fn judge(&mut self, arrival: &Arrival, id: ProgramId, late: bool) -> Option<Start> {
        let need = self.need(arrival);
        let pinned = self.pinned_on(id);
        let open = |blocked: &[bool], b: BackendId| {
            !blocked[b.index()] && pinned.is_none_or(|home| home == b)
        };
        while let Some(backend) = self.best_backend(id, |b| open(&self.blocked, b)) {
            if late {
                return Some((backend, StartWhy::HoldTimeout));
            }
            if self.fits(backend, id, need) || self.relieve(backend, id, need) {
                return Some((backend, StartWhy::Fits));
            }
            if self.is_oversize(backend, need) {
                return Some((backend, StartWhy::Oversize));
            }
            self.blocked[backend.index()] = true;
        }
        None
    }

    /// Usable tokens that nothing occupies; the most there can be while the capacity is unknown.
    fn room(&self, backend: BackendId) -> Tokens {
        let usable = self.usable(backend).unwrap_or(Tokens(u64::MAX));
        usable - self.ledger.sums(backend).total()
    }

    /// Prompt and room for the output, in whole blocks.
    fn need(&self, arrival: &Arrival) -> Footprint {
        let tokens = arrival.prompt + Tokens(self.config.out_reserve_tokens);
        Footprint {
            tokens: tokens.round_up_to(self.config.block_tokens),
            shared: arrival.shared,
        }
    }

    fn unblock(&mut self) {
        self.blocked.clear();
        self.blocked.resize(self.roster.len(), false);
    }

    fn all_blocked(&self) -> bool {
        self.roster.up().all(|(id, _)| self.blocked[id.index()])
    }
}
