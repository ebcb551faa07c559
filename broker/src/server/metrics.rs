//! Counters for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;

/// All of them.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    attestations: Family<Labels, Counter>,
    releases: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram>,
    sessions: Gauge,
    audit_head: Gauge,
}

fn histogram() -> Histogram {
    // Half a millisecond to four seconds.
    Histogram::new(exponential_buckets(0.0005, 2.0, 14))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cloak_kbs");
        let requests = Family::default();
        let attestations = Family::default();
        let releases = Family::default();
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let sessions = Gauge::default();
        let audit_head = Gauge::default();
        registry.register("requests", "Answers, by endpoint and status", requests.clone());
        registry.register(
            "attestations",
            "Evidence judged, by kind and outcome",
            attestations.clone(),
        );
        registry.register("releases", "Secrets asked for, by outcome", releases.clone());
        registry.register(
            "request_seconds",
            "Time to an answer, by endpoint",
            seconds.clone(),
        );
        registry.register("sessions", "Sessions in memory", sessions.clone());
        registry.register(
            "audit_head",
            "Sequence number of the last audit record",
            audit_head.clone(),
        );
        Self {
            registry,
            requests,
            attestations,
            releases,
            seconds,
            sessions,
            audit_head,
        }
    }
}

impl Metrics {
    pub(super) fn answered(&self, endpoint: &str, status: u16, took: Duration) {
        let labels = vec![("endpoint", endpoint.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
        let labels = vec![("endpoint", endpoint.to_owned())];
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn attested(&self, kind: &str, granted: bool) {
        let labels = vec![("kind", kind.to_owned()), ("outcome", outcome(granted))];
        self.attestations.get_or_create(&labels).inc();
    }

    pub(super) fn released(&self, granted: bool) {
        self.releases
            .get_or_create(&vec![("outcome", outcome(granted))])
            .inc();
    }

    /// The text form, OpenMetrics 1.0.
    pub(super) fn text(&self, sessions: usize, audit_head: u64) -> Result<String, std::fmt::Error> {
        self.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.audit_head.set(i64::try_from(audit_head).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn outcome(granted: bool) -> String {
    if granted { "granted" } else { "refused" }.to_owned()
}
