//! Virtual pins: the room of idle programs that Continuum keeps until their time-to-live ends.
//!
//! A pin is a parked footprint in the ledger plus an expiry. While a request of its program waits, the pin is
//! *called*: it does not expire, because the request that it was kept for has come.

use std::collections::BTreeSet;

use crate::policy::ledger::{Footprint, Ledger};
use crate::policy::slots::Slots;
use crate::policy::{BackendId, ProgramId, Time};

#[derive(Clone, Copy, Debug)]
struct Pin {
    expires: Time,
    backend: BackendId,
    /// The program's seniority.
    seq: u64,
    /// A request of the program waits.
    called: bool,
}

/// All pins. The footprints live in the ledger that each call is given.
#[derive(Debug, Default)]
pub(super) struct Pins {
    pins: Slots<Pin>,
    /// Pins that were not called, by expiry.
    expiries: BTreeSet<(Time, ProgramId)>,
    /// By backend, the most senior program first.
    by_age: BTreeSet<(BackendId, u64, ProgramId)>,
}

impl Pins {
    pub(super) const fn new() -> Self {
        Self {
            pins: Slots::new(),
            expiries: BTreeSet::new(),
            by_age: BTreeSet::new(),
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.pins.len()
    }

    /// The backend where the program's room is kept.
    pub(super) fn backend(&self, id: ProgramId) -> Option<BackendId> {
        Some(self.pins.get(id.index())?.backend)
    }

    /// Keeps `footprint` on `backend` until `expires`.
    pub(super) fn keep(
        &mut self,
        ledger: &mut Ledger,
        (id, seq): (ProgramId, u64),
        (backend, footprint): (BackendId, Footprint),
        expires: Time,
    ) {
        self.drop(ledger, id);
        ledger.park(id, backend, footprint);
        let called = false;
        let pin = Pin {
            expires,
            backend,
            seq,
            called,
        };
        self.pins.insert(id.index(), pin);
        self.expiries.insert((expires, id));
        self.by_age.insert((backend, seq, id));
    }

    /// Gives the program's room up; returns whether there was any.
    pub(super) fn drop(&mut self, ledger: &mut Ledger, id: ProgramId) -> bool {
        let Some(pin) = self.pins.remove(id.index()) else {
            return false;
        };
        ledger.unpark(id);
        self.expiries.remove(&(pin.expires, id));
        self.by_age.remove(&(pin.backend, pin.seq, id));
        true
    }

    /// Moves the expiry of a pin.
    pub(super) fn extend(&mut self, id: ProgramId, expires: Time) {
        let Some(pin) = self.pins.get_mut(id.index()) else {
            return;
        };
        let old = std::mem::replace(&mut pin.expires, expires);
        if !pin.called {
            self.expiries.remove(&(old, id));
            self.expiries.insert((expires, id));
        }
    }

    /// Says whether a request of the program waits: then its pin does not expire.
    pub(super) fn call(&mut self, id: ProgramId, called: bool) {
        let Some(pin) = self.pins.get_mut(id.index()) else {
            return;
        };
        pin.called = called;
        if called {
            self.expiries.remove(&(pin.expires, id));
        } else {
            self.expiries.insert((pin.expires, id));
        }
    }

    /// The next pin to expire.
    pub(super) fn next_expiry(&self) -> Option<(Time, ProgramId)> {
        self.expiries.first().copied()
    }

    /// The pin on `backend` whose program arrived last, other than `spared`.
    pub(super) fn youngest(
        &self,
        backend: BackendId,
        spared: Option<ProgramId>,
    ) -> Option<ProgramId> {
        let on = self
            .by_age
            .range((backend, 0, ProgramId(0))..=(backend, u64::MAX, ProgramId(u32::MAX)));
        let mut ids = on.rev().map(|(_, _, id)| *id);
        ids.find(|id| Some(*id) != spared)
    }
}
