//! Which of a route's endpoints takes the next request.
//!
//! The one with the fewest requests in flight; among equals they take turns. One that could not be connected to comes
//! after the others for a while: it fails fast, so it would always have the fewest.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::policy::Time;

/// How long an endpoint that could not be connected to comes last, in the run's time.
pub const REST: Duration = Duration::from_secs(5);

/// The endpoints of one route, by number.
#[derive(Debug)]
pub struct Balance(Arc<Mutex<Load>>);

#[derive(Debug)]
struct Load {
    endpoints: Vec<EndpointLoad>,
    /// Who is first among equals.
    turn: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct EndpointLoad {
    in_flight: u32,
    rests_until: Option<Time>,
}

/// A request's place at an endpoint, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    /// The endpoint's number.
    pub endpoint: usize,
    load: Arc<Mutex<Load>>,
}

impl Balance {
    /// `endpoints` of them, with nothing in flight.
    pub fn new(endpoints: usize) -> Self {
        let load = Load {
            endpoints: vec![EndpointLoad::default(); endpoints],
            turn: 0,
        };
        Self(Arc::new(Mutex::new(load)))
    }

    /// A place at the endpoint whose turn it is, of those not in `tried`; `None` when all are.
    pub fn seat(&self, now: Time, tried: &[usize]) -> Option<Seat> {
        let mut load = self.0.lock();
        let count = load.endpoints.len();
        let turns = (0..count).map(|step| (load.turn + step) % count);
        let endpoint = turns
            .filter(|endpoint| !tried.contains(endpoint))
            .min_by_key(|&endpoint| {
                let EndpointLoad {
                    in_flight,
                    rests_until,
                } = load.endpoints[endpoint];
                (rests_until.is_some_and(|until| now < until), in_flight)
            })?;
        load.turn = (endpoint + 1) % count;
        load.endpoints[endpoint].in_flight += 1;
        drop(load);
        Some(Seat {
            endpoint,
            load: Arc::clone(&self.0),
        })
    }

    /// The endpoint could not be connected to at `now`.
    pub fn rest(&self, now: Time, endpoint: usize) {
        if let Some(load) = self.0.lock().endpoints.get_mut(endpoint) {
            load.rests_until = Some(now + REST);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(load) = self.load.lock().endpoints.get_mut(self.endpoint) {
            load.in_flight -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(balance: &Balance, now_s: u64) -> Seat {
        balance.seat(Time::from_millis(now_s * 1000), &[]).unwrap()
    }

    #[test]
    fn the_least_loaded_endpoint_is_next_and_equals_take_turns() {
        let balance = Balance::new(3);
        let first: Vec<Seat> = (0..3).map(|_| seat(&balance, 0)).collect();
        assert_eq!(
            first.iter().map(|s| s.endpoint).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        // Two are busy; the third takes whatever comes until it is as busy.
        let mut seats = first;
        seats.remove(1);
        assert_eq!(seat(&balance, 0).endpoint, 1);
        assert_eq!(seat(&balance, 0).endpoint, 1);
        // All free again: turns go on where they were.
        drop(seats);
        let order = [0, 1, 2].map(|_| seat(&balance, 0).endpoint);
        assert_eq!(order, [2, 0, 1]);
    }

    #[test]
    fn an_endpoint_that_cannot_be_reached_comes_last_until_it_has_rested() {
        let balance = Balance::new(2);
        balance.rest(Time::from_millis(10_000), 0);
        let busy: Vec<Seat> = (0..3).map(|_| seat(&balance, 11)).collect();
        assert!(busy.iter().all(|seat| seat.endpoint == 1));
        // It is still there when nobody else is left to try.
        assert_eq!(
            balance
                .seat(Time::from_millis(11_000), &[1])
                .unwrap()
                .endpoint,
            0
        );
        assert!(balance.seat(Time::from_millis(11_000), &[1, 0]).is_none());
        assert_eq!(seat(&balance, 15).endpoint, 0);
    }
}
