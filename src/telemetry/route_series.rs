//! What `GET /metrics` shows of requests that take a route past the policy.

use prometheus::{Histogram, IntCounterVec, IntGauge};

use super::metrics::Family;

/// The series of every route, by its place among all.
#[derive(Debug)]
pub struct RouteSeries {
    total: IntCounterVec,
    routes: Vec<OneRoute>,
}

#[derive(Debug)]
struct OneRoute {
    name: String,
    in_flight: IntGauge,
    duration: Histogram,
}

impl RouteSeries {
    /// One entry per route, in the order of `names`.
    pub(super) fn new(family: &Family, names: &[String]) -> prometheus::Result<Self> {
        let label = &["route"];
        let total = family.counters(
            "kvgate_route_requests_total",
            "Requests of a route past the policy that are over, by outcome or by the cause of their failure.",
            &["route", "outcome"],
        )?;
        let in_flight = family.gauges(
            "kvgate_route_in_flight",
            "Requests of a route past the policy that are not over.",
            label,
        )?;
        let duration = family.histograms(
            "kvgate_route_seconds",
            "Arrival to end of a route's successful requests.",
            label,
        )?;
        let of = |name: &String| {
            // There before anything happened, so that a rate can be computed from the first request on.
            total.with_label_values(&[name.as_str(), "stop"]);
            OneRoute {
                name: name.clone(),
                in_flight: in_flight.with_label_values(&[name]),
                duration: duration.with_label_values(&[name]),
            }
        };
        let routes = names.iter().map(of).collect();
        Ok(Self { total, routes })
    }

    /// A request of the route at `index` has arrived.
    pub fn begun(&self, index: usize) {
        if let Some(route) = self.routes.get(index) {
            route.in_flight.inc();
        }
    }

    /// A request of the route at `index` is over with this word, which is one of a fixed set; `served_s` is how long
    /// it took, in seconds, if it succeeded.
    pub fn finished(&self, index: usize, outcome: &str, served_s: Option<f64>) {
        let Some(route) = self.routes.get(index) else {
            return;
        };
        route.in_flight.dec();
        self.total
            .with_label_values(&[route.name.as_str(), outcome])
            .inc();
        if let Some(seconds) = served_s {
            route.duration.observe(seconds);
        }
    }
}
