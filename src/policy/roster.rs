//! The backends as a policy sees them: who is up, how large, how loaded; and where each admitted request runs.
//!
//! Routing rules that only one policy uses stay in that policy.

use super::slots::Slots;
use super::{BackendId, BackendSample, Event, ProgramId, RequestId, Tokens};

/// One backend.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// Whether it answers.
    pub up: bool,
    /// Tokens its KV cache holds; `None` while unknown.
    pub kv_capacity: Option<Tokens>,
    /// Requests that were admitted to it and have not finished. Those that a crash ends still finish by their
    /// own events, so the count survives a restart of the backend.
    pub in_flight: u32,
    /// The last scrape since it came up.
    pub sample: Option<BackendSample>,
}

/// One request that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Where it runs.
    pub backend: BackendId,
    /// Its program; `None` for a request without identity.
    pub program: Option<ProgramId>,
}

/// All backends, in [`BackendId`] order, and the requests in flight.
#[derive(Debug, Default)]
pub struct Roster {
    backends: Vec<Backend>,
    flights: Slots<Flight>,
}

impl Roster {
    /// A roster that knows no backend.
    pub const fn new() -> Self {
        Self {
            backends: Vec::new(),
            flights: Slots::new(),
        }
    }

    /// Takes note of what `event` says about backends; other events pass without effect.
    pub fn observe(&mut self, event: &Event) {
        match *event {
            Event::BackendUp {
                backend,
                kv_capacity,
            } => {
                let entry = self.entry(backend);
                entry.up = true;
                entry.kv_capacity = kv_capacity.or(entry.kv_capacity);
            }
            Event::BackendDown { backend } => {
                let entry = self.entry(backend);
                entry.up = false;
                entry.sample = None;
            }
            Event::Sample(sample) => self.entry(sample.backend).sample = Some(sample),
            Event::Arrive(_)
            | Event::Rearrive { .. }
            | Event::Adopt(_)
            | Event::FirstToken { .. }
            | Event::Finish { .. }
            | Event::ToolGap { .. }
            | Event::Release { .. }
            | Event::Tick => {}
        }
    }

    /// How many backends were ever named; ids run from 0 up to here.
    pub const fn len(&self) -> usize {
        self.backends.len()
    }

    /// Whether no backend was ever named.
    pub const fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Every backend ever named, up or down, in id order.
    pub fn ids(&self) -> impl Iterator<Item = BackendId> + use<> {
        (0..=u16::MAX).map(BackendId).take(self.backends.len())
    }

    /// The backend, if it is known and up.
    pub fn get_up(&self, backend: BackendId) -> Option<&Backend> {
        self.backends.get(backend.index()).filter(|b| b.up)
    }

    /// Requests in flight on `backend`, up or down.
    pub fn in_flight(&self, backend: BackendId) -> u32 {
        self.backends
            .get(backend.index())
            .map_or(0, |b| b.in_flight)
    }

    /// Where a request runs, if it does.
    pub fn flight(&self, request: RequestId) -> Option<Flight> {
        self.flights.get(request.index()).copied()
    }

    /// Every backend that is up, in id order.
    pub fn up(&self) -> impl Iterator<Item = (BackendId, &Backend)> {
        self.ids()
            .zip(&self.backends)
            .filter(|(_, backend)| backend.up)
    }

    /// The backend with the fewest requests in flight, the lowest id among equals; `None` when none is up.
    pub fn least_in_flight(&self) -> Option<BackendId> {
        let least = self
            .up()
            .min_by_key(|(id, backend)| (backend.in_flight, *id));
        least.map(|(id, _)| id)
    }

    /// Counts an admitted request.
    pub fn start(&mut self, request: RequestId, flight: Flight) {
        self.entry(flight.backend).in_flight += 1;
        self.flights.insert(request.index(), flight);
    }

    /// Forgets a request that ended; `None` if it was not in flight.
    pub fn finish(&mut self, request: RequestId) -> Option<Flight> {
        let flight = self.flights.remove(request.index())?;
        let entry = self.entry(flight.backend);
        entry.in_flight = entry.in_flight.saturating_sub(1);
        Some(flight)
    }

    fn entry(&mut self, backend: BackendId) -> &mut Backend {
        if self.backends.len() <= backend.index() {
            self.backends
                .resize_with(backend.index() + 1, Backend::default);
        }
        &mut self.backends[backend.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(roster: &mut Roster, id: u16) {
        roster.observe(&Event::BackendUp {
            backend: BackendId(id),
            kv_capacity: None,
        });
    }

    const fn on(id: u16) -> Flight {
        Flight {
            backend: BackendId(id),
            program: None,
        }
    }

    #[test]
    fn the_lowest_id_wins_a_tie_and_a_backend_that_is_down_never_wins() {
        let mut roster = Roster::new();
        assert_eq!(roster.least_in_flight(), None);
        up(&mut roster, 0);
        up(&mut roster, 1);
        assert_eq!(roster.least_in_flight(), Some(BackendId(0)));
        roster.start(RequestId(0), on(0));
        assert_eq!(roster.least_in_flight(), Some(BackendId(1)));
        roster.observe(&Event::BackendDown {
            backend: BackendId(1),
        });
        assert_eq!(roster.least_in_flight(), Some(BackendId(0)));
    }

    #[test]
    fn requests_of_a_crashed_backend_still_count_until_they_end() {
        let mut roster = Roster::new();
        up(&mut roster, 0);
        roster.start(RequestId(0), on(0));
        roster.observe(&Event::BackendDown {
            backend: BackendId(0),
        });
        up(&mut roster, 0);
        assert_eq!(roster.in_flight(BackendId(0)), 1);
        assert_eq!(roster.finish(RequestId(0)), Some(on(0)));
        assert_eq!(roster.finish(RequestId(0)), None);
        assert_eq!(roster.in_flight(BackendId(0)), 0);
    }
}
