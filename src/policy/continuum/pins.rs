//! Virtual pins: the room of idle programs that Continuum keeps until their time-to-live ends.
//!
//! A pin is a parked footprint in the ledger plus an expiry. While a request of its program waits, the pin is
//! *called*: it does not expire, because the request that it was kept for has come.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::policy::ledger::{Footprint, Ledger};
use crate::policy::slots::Slots;
use crate::policy::{BackendId, ProgramId, Time, Tokens};

/// One program's pin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    expires: Time,
    /// The whole context that it keeps.
    pub(super) tokens: Tokens,
    /// A request of the program waits.
    called: bool,
    /// Its time-to-live is known; until then it only bridges the moment between a step's end and its tool gap.
    pub(super) confirmed: bool,
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

    pub(super) fn contains(&self, id: ProgramId) -> bool {
        self.pins.get(id.index()).is_some()
    }

    /// Keeps `footprint` on `backend` until `expires`, unconfirmed.
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
            tokens: footprint.tokens,
            called: false,
            confirmed: false,
        };
        self.pins.insert(id.index(), pin);
        self.expiries.push(Reverse((expires, id)));
    }

    /// Gives the program's room up; returns the pin that there was.
    pub(super) fn drop(&mut self, ledger: &mut Ledger, id: ProgramId) -> Option<Pin> {
        let pin = self.pins.remove(id.index())?;
        ledger.unpark(id);
        self.tidy();
        Some(pin)
    }

    /// Confirms a pin until `expires`; returns the tokens that it keeps.
    pub(super) fn confirm(&mut self, id: ProgramId, expires: Time) -> Option<Tokens> {
        let pin = self.pins.get_mut(id.index())?;
        pin.expires = expires;
        pin.confirmed = true;
        let tokens = pin.tokens;
        self.expiries.push(Reverse((expires, id)));
        self.tidy();
        Some(tokens)
    }

    /// Tokens that the program's pin keeps.
    pub(super) fn tokens(&self, id: ProgramId) -> Option<Tokens> {
        self.pins.get(id.index()).map(|pin| pin.tokens)
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
