//! What `GET /metrics` shows: kvgate's own series. The backends' series stand in [`super::merge`].
//!
//! Handles are resolved once, at start-up: noting something costs an atomic addition. Two look-ups by label
//! remain, of policy values and of error words; neither is on the way of a request that succeeds.

use parking_lot::Mutex;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::route_series::RouteSeries;
use crate::policy::{BackendId, HoldReason, Outcome, PolicySnapshot};

/// Buckets of every latency histogram, in seconds: agents' steps last from milliseconds to minutes.
const LATENCY_BUCKETS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Where a request was when its client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientGone {
    /// Held at the gate.
    Held,
    /// On a backend.
    Running,
}

/// kvgate's own series, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: RequestSeries,
    backends: Vec<BackendSeries>,
    policy: PolicySeries,
    /// Requests past the policy.
    pub routes: RouteSeries,
    retries: IntCounter,
    records_dropped: IntCounter,
}

const OUTCOMES: [Outcome; 5] = [
    Outcome::Stop,
    Outcome::Length,
    Outcome::ToolCalls,
    Outcome::Cancelled,
    Outcome::Failed,
];

/// How many requests, how they ended, and how long they took.
#[derive(Debug)]
struct RequestSeries {
    total: IntCounterVec,
    /// The counters of `total`, one per entry of [`OUTCOMES`].
    outcomes: [IntCounter; OUTCOMES.len()],
    /// One per [`HoldReason`], in the order of [`HoldReason::ALL`].
    hold: [Histogram; HoldReason::ALL.len()],
    ttft: Histogram,
    duration: Histogram,
    gone_held: IntCounter,
    gone_running: IntCounter,
}

impl RequestSeries {
    fn new(family: &Family) -> prometheus::Result<Self> {
        let total = family.counters(
            "kvgate_requests_total",
            "Requests that are over, by outcome.",
            &["outcome"],
        )?;
        let hold = family.histograms(
            "kvgate_hold_seconds",
            "Time held at the gate, by the reason given.",
            &["reason"],
        )?;
        let gone = family.counters(
            "kvgate_client_gone_total",
            "Clients that left early, by where the request was.",
            &["state"],
        )?;
        let ttft = "Arrival to first token of successful requests, hold included.";
        let duration = "Arrival to end of successful requests, hold included.";
        Ok(Self {
            outcomes: OUTCOMES.map(|outcome| total.with_label_values(&[outcome.as_str()])),
            total,
            hold: HoldReason::ALL.map(|reason| hold.with_label_values(&[reason.as_str()])),
            ttft: family.histogram("kvgate_ttft_seconds", ttft)?,
            duration: family.histogram("kvgate_request_seconds", duration)?,
            gone_held: gone.with_label_values(&["held"]),
            gone_running: gone.with_label_values(&["running"]),
        })
    }
}

/// The series of one backend.
#[derive(Debug)]
struct BackendSeries {
    in_flight: IntGauge,
    up: IntGauge,
    scrape_failures: IntCounter,
}

impl BackendSeries {
    /// One entry per backend, in the order of `urls`.
    fn all(family: &Family, urls: &[String]) -> prometheus::Result<Vec<Self>> {
        let label = &["backend"];
        let in_flight = family.gauges(
            "kvgate_in_flight",
            "Requests sent to the backend and not finished.",
            label,
        )?;
        let up = family.gauges("kvgate_backend_up", "1 while the backend answers.", label)?;
        let failures = family.counters(
            "kvgate_scrape_failures_total",
            "Scrapes of the backend's metrics that failed.",
            label,
        )?;
        let of = |url: &String| Self {
            in_flight: in_flight.with_label_values(&[url]),
            up: up.with_label_values(&[url]),
            scrape_failures: failures.with_label_values(&[url]),
        };
        Ok(urls.iter().map(of).collect())
    }
}

/// The policy's state.
#[derive(Debug)]
struct PolicySeries {
    held: IntGauge,
    programs: IntGauge,
    paused: IntGauge,
    resident: Gauge,
    values: GaugeVec,
    estimates: GaugeVec,
    pins: IntCounterVec,
    /// Held while totals are carried over: two at once would count the difference twice.
    carrying: Mutex<()>,
}

impl PolicySeries {
    fn new(family: &Family) -> prometheus::Result<Self> {
        let resident = "Tokens of programs that the policy counts as resident.";
        Ok(Self {
            held: family.gauge("kvgate_held_requests", "Requests held at the gate now.")?,
            programs: family.gauge("kvgate_programs", "Programs known to the policy now.")?,
            paused: family.gauge(
                "kvgate_held_programs",
                "Programs that the policy holds back now: paused, or with a held request.",
            )?,
            resident: family.number("kvgate_resident_tokens", resident)?,
            values: family.numbers(
                "kvgate_policy_value",
                "Further numbers of the policy.",
                &["policy", "name"],
            )?,
            estimates: family.numbers(
                "kvgate_policy_estimate",
                "What the policy has learnt and decides by.",
                &["policy", "name"],
            )?,
            pins: family.counters(
                "kvgate_pins_total",
                "Reservations of idle programs' room that ended, by how.",
                &["policy", "outcome"],
            )?,
            carrying: Mutex::new(()),
        })
    }
}

impl Metrics {
    /// The series of a gate with these backends, by URL in [`BackendId`] order, and these routes past the policy.
    ///
    /// # Errors
    /// Never in practice: when a series' name is malformed or used twice.
    pub fn new(backends: &[String], routes: &[String]) -> prometheus::Result<Self> {
        let family = Family(Registry::new());
        let retries = "Transparent retries on a fresh connection.";
        let dropped = "Records lost because the writer's queue was full.";
        Ok(Self {
            requests: RequestSeries::new(&family)?,
            backends: BackendSeries::all(&family, backends)?,
            policy: PolicySeries::new(&family)?,
            routes: RouteSeries::new(&family, routes)?,
            retries: family.counter("kvgate_upstream_retries_total", retries)?,
            records_dropped: family.counter("kvgate_records_dropped_total", dropped)?,
            registry: family.0,
        })
    }

    /// A request that reached a backend, or was held, is over after `request_s` seconds, with its first token
    /// after `ttft_s`. Only successes enter the latency histograms: a quick failure is not a fast answer.
    pub fn finished(&self, outcome: Outcome, ttft_s: Option<f64>, request_s: f64) {
        if let Some(counter) = self.requests.outcomes.get(outcome as usize) {
            counter.inc();
        }
        if outcome.is_success() {
            self.requests.duration.observe(request_s);
            if let Some(ttft_s) = ttft_s {
                self.requests.ttft.observe(ttft_s);
            }
        }
    }

    /// The gate answered a request itself with this error word, which is one of a fixed set.
    pub fn refused(&self, error: &str) {
        self.requests.total.with_label_values(&[error]).inc();
    }

    /// A request that was held for `reason` was admitted, refused or left by its client after `hold_s` seconds.
    pub fn held_for(&self, reason: HoldReason, hold_s: f64) {
        if let Some(histogram) = self.requests.hold.get(reason as usize) {
            histogram.observe(hold_s);
        }
    }

    /// The client left before the end.
    pub fn client_gone(&self, state: ClientGone) {
        match state {
            ClientGone::Held => self.requests.gone_held.inc(),
            ClientGone::Running => self.requests.gone_running.inc(),
        }
    }

    /// A request was sent to `backend`.
    pub fn sent(&self, backend: BackendId) {
        if let Some(series) = self.backends.get(backend.index()) {
            series.in_flight.inc();
        }
    }

    /// A request sent to `backend` is over.
    pub fn returned(&self, backend: BackendId) {
        if let Some(series) = self.backends.get(backend.index()) {
            series.in_flight.dec();
        }
    }

    /// Whether `backend` answers.
    pub fn backend_up(&self, backend: BackendId, up: bool) {
        if let Some(series) = self.backends.get(backend.index()) {
            series.up.set(up.into());
        }
    }

    /// A scrape of `backend` failed.
    pub fn scrape_failed(&self, backend: BackendId) {
        if let Some(series) = self.backends.get(backend.index()) {
            series.scrape_failures.inc();
        }
    }

    /// A request was sent again on a fresh connection.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// Records lost since the start, as [`super::Recorder::dropped`] counts them.
    pub fn records_dropped(&self, total: u64) {
        self.records_dropped
            .inc_by(total.saturating_sub(self.records_dropped.get()));
    }

    /// The policy's state now.
    pub fn policy(&self, snapshot: &PolicySnapshot) {
        self.policy.held.set(snapshot.held.into());
        self.policy.programs.set(snapshot.programs.into());
        self.policy.resident.set(snapshot.resident.as_f64());
        let series = &self.policy;
        series.paused.set(snapshot.paused.into());
        for (gauges, told) in [
            (&series.values, &snapshot.values),
            (&series.estimates, &snapshot.estimates),
        ] {
            for (name, value) in told {
                gauges
                    .with_label_values(&[snapshot.policy, name])
                    .set(*value);
            }
        }
        let _alone = series.carrying.lock();
        for (outcome, total) in &snapshot.pins {
            let pins = series.pins.with_label_values(&[snapshot.policy, outcome]);
            pins.inc_by(total.saturating_sub(pins.get()));
        }
    }

    /// Another policy took over: what the last one told of itself is no longer so.
    pub fn policy_switched(&self) {
        self.policy.values.reset();
        self.policy.estimates.reset();
        self.policy.pins.reset();
    }

    /// Every series in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, and each family holds one kind of metric.
        let _infallible = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

/// Makes series and registers them.
pub(super) struct Family(Registry);

impl Family {
    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        series: C,
    ) -> prometheus::Result<C> {
        self.0.register(Box::new(series.clone()))?;
        Ok(series)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    pub(super) fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }

    pub(super) fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn number(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.register(Gauge::new(name, help)?)
    }

    fn numbers(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        self.register(Histogram::with_opts(latency(name, help))?)
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<HistogramVec> {
        self.register(HistogramVec::new(latency(name, help), labels)?)
    }
}

fn latency(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Tokens;

    fn fresh() -> Metrics {
        Metrics::new(
            &["http://a:1".to_owned(), "http://b:2".to_owned()],
            &["gpt-5".to_owned()],
        )
        .unwrap()
    }

    /// Whether the rendered text has this line.
    fn shows(metrics: &Metrics, line: &str) -> bool {
        metrics.render().lines().any(|shown| shown == line)
    }

    #[test]
    fn every_series_is_there_before_anything_happened() {
        let text = fresh().render();
        for series in [
            "kvgate_requests_total{outcome=\"tool_calls\"} 0",
            "kvgate_held_requests 0",
            "kvgate_hold_seconds_count{reason=\"concurrency_limit\"} 0",
            "kvgate_ttft_seconds_count 0",
            "kvgate_request_seconds_count 0",
            "kvgate_in_flight{backend=\"http://b:2\"} 0",
            "kvgate_backend_up{backend=\"http://a:1\"} 0",
            "kvgate_programs 0",
            "kvgate_upstream_retries_total 0",
            "kvgate_records_dropped_total 0",
            "kvgate_scrape_failures_total{backend=\"http://a:1\"} 0",
            "kvgate_resident_tokens 0",
            "kvgate_client_gone_total{state=\"held\"} 0",
            "kvgate_route_requests_total{outcome=\"stop\",route=\"gpt-5\"} 0",
            "kvgate_route_in_flight{route=\"gpt-5\"} 0",
            "kvgate_route_seconds_count{route=\"gpt-5\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series}\n{text}");
        }
    }

    #[test]
    fn handles_stand_for_the_label_that_they_are_indexed_by() {
        for outcome in OUTCOMES {
            let metrics = fresh();
            metrics.finished(outcome, None, 1.0);
            let line = format!(
                "kvgate_requests_total{{outcome=\"{}\"}} 1",
                outcome.as_str()
            );
            assert!(shows(&metrics, &line), "{line}");
        }
        for reason in HoldReason::ALL {
            let metrics = fresh();
            metrics.held_for(reason, 1.0);
            let line = format!(
                "kvgate_hold_seconds_count{{reason=\"{}\"}} 1",
                reason.as_str()
            );
            assert!(shows(&metrics, &line), "{line}");
        }
    }

    #[test]
    fn a_failure_counts_but_is_no_latency() {
        let metrics = fresh();
        metrics.finished(Outcome::Failed, Some(0.1), 0.2);
        metrics.finished(Outcome::Stop, Some(0.3), 0.4);
        metrics.refused("queue_full");
        assert!(shows(
            &metrics,
            "kvgate_requests_total{outcome=\"failed\"} 1"
        ));
        assert!(shows(
            &metrics,
            "kvgate_requests_total{outcome=\"queue_full\"} 1"
        ));
        assert!(shows(&metrics, "kvgate_ttft_seconds_sum 0.3"));
        assert!(shows(&metrics, "kvgate_request_seconds_count 1"));
    }

    #[test]
    fn each_backend_has_its_own_series() {
        let metrics = fresh();
        metrics.sent(BackendId(1));
        metrics.sent(BackendId(1));
        metrics.returned(BackendId(1));
        metrics.backend_up(BackendId(0), true);
        metrics.scrape_failed(BackendId(1));
        metrics.scrape_failed(BackendId(9));
        assert!(shows(
            &metrics,
            "kvgate_in_flight{backend=\"http://b:2\"} 1"
        ));
        assert!(shows(
            &metrics,
            "kvgate_backend_up{backend=\"http://a:1\"} 1"
        ));
        assert!(shows(
            &metrics,
            "kvgate_scrape_failures_total{backend=\"http://b:2\"} 1"
        ));
    }

    #[test]
    fn the_policys_state_is_shown_as_it_was_last_told() {
        let metrics = fresh();
        for held in [7, 2] {
            metrics.policy(&PolicySnapshot {
                policy: "thunderreact",
                held,
                programs: 3,
                resident: Tokens(4096),
                values: vec![("pauses", f64::from(held))],
                ..PolicySnapshot::default()
            });
        }
        assert!(shows(&metrics, "kvgate_held_requests 2"));
        assert!(shows(&metrics, "kvgate_resident_tokens 4096"));
        assert!(shows(
            &metrics,
            "kvgate_policy_value{name=\"pauses\",policy=\"thunderreact\"} 2"
        ));
    }

    #[test]
    fn a_policy_tells_estimates_and_pins_until_another_takes_over() {
        let metrics = fresh();
        for ttl in [3, 5] {
            metrics.policy(&PolicySnapshot {
                policy: "continuum",
                paused: 4,
                estimates: vec![("foresight", 0.5)],
                pins: vec![("ttl", ttl)],
                ..PolicySnapshot::default()
            });
        }
        let estimate = "kvgate_policy_estimate{name=\"foresight\",policy=\"continuum\"} 0.5";
        let pins = "kvgate_pins_total{outcome=\"ttl\",policy=\"continuum\"} 5";
        assert!(shows(&metrics, "kvgate_held_programs 4"));
        assert!(shows(&metrics, estimate) && shows(&metrics, pins));
        metrics.policy_switched();
        assert!(!shows(&metrics, estimate) && !shows(&metrics, pins));
    }

    #[test]
    fn a_total_told_twice_counts_once() {
        let metrics = fresh();
        metrics.records_dropped(5);
        metrics.records_dropped(5);
        metrics.client_gone(ClientGone::Running);
        metrics.retried();
        assert!(shows(&metrics, "kvgate_records_dropped_total 5"));
        assert!(shows(
            &metrics,
            "kvgate_client_gone_total{state=\"running\"} 1"
        ));
        assert!(shows(&metrics, "kvgate_upstream_retries_total 1"));
    }
}
