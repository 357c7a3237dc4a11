//! Virtual pins: the room of idle programs that Continuum keeps until their time-to-live ends.
//!
//! A pin is a parked footprint in the ledger plus an expiry. While a request of its program waits, the pin is
//! *called*: it does not expire, because the request that it was kept for has come.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::policy::ledger::{Footprint, Ledger};
use crate::policy::slots::Slots;
use crate::policy::{BackendId, ProgramId, Time};

#[derive(Clone, Copy, Debug)]
struct Pin {
    expires: Time,
    /// A request of the program waits.
    called: bool,
}

/// All pins. The footprints live in the ledger that each call is given.
#[derive(Debug, Default)]
pub(super) struct Pins {
    pins: Slots<Pin>,
    /// Expiries, earliest first. Those that no longer hold stay until they reach the top, which always holds, or
    /// until they outnumber the pins.
    expiries: BinaryHeap<Reverse<(Time, ProgramId)>>,
}

impl Pins {
    pub(super) const fn new() -> Self {
        Self {
            pins: Slots::new(),
            expiries: BinaryHeap::new(),
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.pins.len()
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
        ledger.park(id, backend, footprint, seq);
        let pin = Pin {
            expires,
            called: false,
        };
        self.pins.insert(id.index(), pin);
        self.expiries.push(Reverse((expires, id)));
    }

    /// Gives the program's room up; returns whether there was any.
    pub(super) fn drop(&mut self, ledger: &mut Ledger, id: ProgramId) -> bool {
        if self.pins.remove(id.index()).is_none() {
            return false;
        }
        ledger.unpark(id);
        self.tidy();
        true
    }

    /// Moves the expiry of a pin.
    pub(super) fn extend(&mut self, id: ProgramId, expires: Time) {
        let Some(pin) = self.pins.get_mut(id.index()) else {
            return;
        };
        pin.expires = expires;
        self.expiries.push(Reverse((expires, id)));
        self.tidy();
    }

    /// Says whether a request of the program waits: then its pin does not expire.
    pub(super) fn call(&mut self, id: ProgramId, called: bool) {
        let Some(pin) = self.pins.get_mut(id.index()) else {
            return;
        };
        pin.called = called;
        if !called {
            self.expiries.push(Reverse((pin.expires, id)));
        }
        self.tidy();
    }

    /// The next pin to expire.
    pub(super) fn next_expiry(&self) -> Option<(Time, ProgramId)> {
        self.expiries.peek().map(|Reverse(expiry)| *expiry)
    }

    /// Keeps the top of `expiries` one that holds, and the whole no larger than twice the pins.
    fn tidy(&mut self) {
        let pins = &self.pins;
        let holds = |Reverse((expires, id)): &Reverse<(Time, ProgramId)>| {
            let pin = pins.get(id.index());
            pin.is_some_and(|pin| pin.expires == *expires && !pin.called)
        };
        while self.expiries.peek().is_some_and(|top| !holds(top)) {
            self.expiries.pop();
        }
        if self.expiries.len() > 2 * pins.len() + 64 {
            self.expiries.retain(holds);
        }
    }
}
