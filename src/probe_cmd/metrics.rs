//! /metrics and /healthz of `ringspan probe --listen`, in OpenMetrics text.
//! Promise: the number of series is bounded by codes, groups and `metrics_targets`, never by targets; a scrape that the
//! run does not answer within [`ANSWER_MAX`] is a 503.

use super::lines;
use crate::http_server::HttpServer;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use ringspan_engine::health::Health;
use ringspan_engine::histogram::Histogram;
use ringspan_engine::outcome::Code;
use ringspan_engine::stats::Stats;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// A run answers between two looks at its engine, within a tenth of a second; one that loads a million targets takes
/// longer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Scrapes that may wait; more are refused.
const ASKS_MAX: usize = 16;
/// Upper ends of buckets, seconds: three to a decade, from what loopback takes to the longest timeout.
const BUCKETS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 60.0,
];

/// What the server asks a run.
pub(super) enum Ask {
    /// The whole page.
    Metrics(oneshot::Sender<String>),
    /// Whether every prober is alive.
    Health(oneshot::Sender<bool>),
}

/// One target's series.
#[derive(Clone, Debug)]
pub(super) struct Of {
    pub(super) target: String,
    pub(super) kind: &'static str,
    pub(super) health: Health,
    /// The deciding probe's code, empty if none.
    pub(super) code: &'static str,
    pub(super) rtt_us: u32,
    pub(super) cert_days: Option<i16>,
}

/// What a page is made of.
#[derive(Debug)]
pub(super) struct Scrape {
    pub(super) stats: Stats,
    /// Names of the groups, 1 first.
    pub(super) groups: Vec<String>,
    /// Up, down, unknown.
    pub(super) tally: [u64; 3],
    /// Targets whose name has no address.
    pub(super) unresolved: u64,
    /// Empty if there are too many.
    pub(super) targets: Vec<Of>,
    pub(super) rss_bytes: u64,
    pub(super) cpu_s: f64,
}

impl Scrape {
    /// The page.
    pub(super) fn page(self) -> String {
        let mut registry = prometheus_client::registry::Registry::with_prefix("ringspan_probe");
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("a String takes everything");
        page
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let (total, c) = (&self.stats.total, &self.stats.total.counters);
        let mut family = e.encode_descriptor("outcomes", "Finished probes, by outcome", None, MetricType::Counter)?;
        for code in Code::ALL {
            ConstCounter::new(c.outcome(*code)).encode(family.encode_family(&[("code", code.as_str())])?)?;
        }
        let mut family = e.encode_descriptor("targets", "Targets, by what is believed", None, MetricType::Gauge)?;
        for (health, count) in [Health::Up, Health::Down, Health::Unknown].into_iter().zip(self.tally) {
            let labels = [("health", lines::health(health))];
            ConstGauge::new(count as f64).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, value) in [
            ("targets_unresolved", "Targets whose name has no address", self.unresolved),
            ("in_flight", "Probes in flight", c.in_flight),
            ("waiting", "Targets that are due and wait for their turn", c.waiting),
            ("capped", "Targets that are due and wait because their network has its share", c.capped),
            ("workers_frozen", "Workers that believe no failure because the prober is sick", c.workers_frozen),
            ("alarm", "1 while too many targets at once want to go down", c.alarm),
            ("memory_bytes", "Resident memory of the process", self.rss_bytes),
        ] {
            ConstGauge::new(value as f64).encode(e.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, value) in [
            ("started", "Probes started", c.started),
            ("missed", "Slots skipped: the probe before was not over, or the prober too late", c.missed),
            ("transitions", "Changes of what is believed", c.transitions),
            ("answers_late", "Answers that came after their verdict", c.answers_late),
            ("syn_retransmitted", "Probes whose SYN had to be sent again, as far as is known", c.syn_retransmitted),
            ("failures_frozen", "Failures not believed because the prober was sick", c.frozen),
            ("failures_held", "Failures held until confirmed, during an alarm", c.held),
            ("freezes", "Times a worker's prober was found sick", c.freezes),
            ("alarms", "Times too many targets at once wanted to go down", c.alarms),
            ("pauses", "Times the prober lacked descriptors or memory", c.pauses),
            ("stalls", "Times a worker came 5 ms late or more", c.stalls),
        ] {
            ConstCounter::new(value).encode(e.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in [
            ("frozen_seconds", "Time workers have been frozen", c.frozen_ns as f64 / 1e9),
            ("cpu_seconds", "CPU of the process, user and system", self.cpu_s),
        ] {
            ConstCounter::new(value).encode(e.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, histogram) in [
            ("rtt_seconds", "Start to outcome of the probes that were answered", &total.rtt),
            ("lateness_seconds", "Actual minus scheduled start: the prober's own lateness", &total.lateness),
            ("kernel_rtt_seconds", "SYN to SYN/ACK as the kernel measured it, sampled", &total.kernel_rtt),
            ("connect_seconds", "Until the connection was made, of talking checks", &total.connect),
            ("tls_seconds", "Until the TLS handshake was over", &total.tls),
            ("first_byte_seconds", "Until the first byte of the answer", &total.first_byte),
        ] {
            buckets(e.encode_descriptor(name, help, None, MetricType::Histogram)?, histogram)?;
        }
        self.group_series(e)?;
        self.target_series(e)
    }
}

impl Scrape {
    fn group_series(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let groups = || {
            let counted = self.groups.iter().zip(&self.stats.total.groups);
            counted.filter_map(|(name, numbers)| Some((name.as_str(), numbers.as_deref()?)))
        };
        if groups().next().is_none() {
            return Ok(());
        }
        let help = "Finished probes of a group, by outcome";
        let mut family = e.encode_descriptor("group_outcomes", help, None, MetricType::Counter)?;
        for (name, numbers) in groups() {
            for (code, count) in Code::ALL.iter().zip(numbers.outcomes).filter(|(_, count)| *count > 0) {
                let labels = [("group", name), ("code", code.as_str())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Start to outcome of a group's probes that were answered";
        let mut family = e.encode_descriptor("group_rtt_seconds", help, None, MetricType::Histogram)?;
        for (name, numbers) in groups() {
            buckets(family.encode_family(&[("group", name)])?, &numbers.rtt)?;
        }
        Ok(())
    }

    fn target_series(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.targets.is_empty() {
            return Ok(());
        }
        let mut series = |name, help, value: &dyn Fn(&Of) -> Option<f64>| -> fmt::Result {
            let mut family = e.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for of in &self.targets {
                let labels = [("target", of.target.as_str()), ("kind", of.kind)];
                if let Some(value) = value(of) {
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
            Ok(())
        };
        series("target_up", "1 up, 0 down; absent while nothing is known", &|of| match of.health {
            Health::Up => Some(1.0),
            Health::Down => Some(0.0),
            Health::Unknown => None,
        })?;
        series("target_changed_rtt_seconds", "Round trip of the probe that decided last", &|of| {
            (!of.code.is_empty()).then(|| f64::from(of.rtt_us) / 1e6)
        })?;
        let days = "Days until the certificate expires, as the probe that decided last saw it";
        series("target_cert_days", days, &|of| of.cert_days.map(f64::from))
    }
}

/// A histogram of microseconds in the buckets that Prometheus knows.
fn buckets(mut to: MetricEncoder<'_>, of: &Histogram) -> fmt::Result {
    let mut counts: Vec<(f64, u64)> = BUCKETS.iter().map(|end| (*end, 0)).chain([(f64::INFINITY, 0)]).collect();
    for step in of.iter_recorded() {
        // The value is the highest of those that hdrhistogram does not tell apart: it never goes a bucket too low.
        let seconds = step.value_iterated_to() as f64 / 1e6;
        let bucket = BUCKETS.partition_point(|end| *end < seconds);
        counts[bucket].1 += step.count_since_last_iteration();
    }
    to.encode_histogram::<NoLabelSet>(of.mean() * of.len() as f64 / 1e6, of.len(), &counts, None)
}

/// Binds, and serves until `stop` says so. What is asked comes out of the receiver.
pub(super) fn serve(address: SocketAddr, stop: watch::Receiver<bool>) -> std::io::Result<mpsc::Receiver<Ask>> {
    let server = HttpServer::bind(address, None)?;
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let bound = server.address()?;
    if !bound.ip().is_loopback() {
        tracing::warn!(address = %bound, "/metrics can be read by others: there are no accounts. Try: 127.0.0.1, or a firewall");
    }
    eprintln!("ringspan: metrics on http://{bound}/metrics");
    let router = Router::new().route("/metrics", get(page)).route("/healthz", get(healthz)).with_state(asks);
    tokio::spawn(server.serve(router, stop));
    Ok(asked)
}

async fn ask<T>(asks: &mpsc::Sender<Ask>, what: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (to, answer) = oneshot::channel();
    asks.try_send(what(to)).ok()?;
    tokio::time::timeout(ANSWER_MAX, answer).await.ok()?.ok()
}

async fn page(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    match ask(&asks, Ask::Metrics).await {
        Some(page) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], page).into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "the run is too busy to answer\n").into_response(),
    }
}

async fn healthz(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    match ask(&asks, Ask::Health).await {
        Some(true) => "ok\n".into_response(),
        Some(false) => (StatusCode::SERVICE_UNAVAILABLE, "a prober has died\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the run is too busy to answer\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every probe is in one bucket; sums and groups are there; what is unknown has no series.
    #[test]
    fn a_page_counts_right() {
        let mut stats = Stats::default();
        for us in [30, 80, 3000, 59_000_000] {
            stats.total.rtt.record(us).expect("in range");
        }
        stats.total.counters.outcomes[Code::L7Status as usize] = 4;
        let of = |target: &str, health| Of {
            target: target.into(),
            kind: "http",
            health,
            code: "L7OK",
            rtt_us: 1500,
            cert_days: Some(-3),
        };
        let targets = vec![of("a\"b", Health::Up), of("c", Health::Unknown)];
        let (groups, tally, unresolved, rss_bytes, cpu_s) = (vec![], [1, 0, 1], 1, 7, 0.5);
        let page = Scrape { stats, groups, tally, unresolved, targets, rss_bytes, cpu_s }.page();
        for say in [
            "ringspan_probe_outcomes_total{code=\"L7STS\"} 4\n",
            "ringspan_probe_targets{health=\"unknown\"} 1.0\n",
            "ringspan_probe_rtt_seconds_bucket{le=\"0.00005\"} 1\n",
            "ringspan_probe_rtt_seconds_bucket{le=\"0.0001\"} 2\n",
            "ringspan_probe_rtt_seconds_bucket{le=\"0.005\"} 3\n",
            "ringspan_probe_rtt_seconds_bucket{le=\"60.0\"} 4\n",
            "ringspan_probe_rtt_seconds_bucket{le=\"+Inf\"} 4\n",
            "ringspan_probe_target_up{target=\"a\\\"b\",kind=\"http\"} 1.0\n",
            "ringspan_probe_target_cert_days{target=\"c\",kind=\"http\"} -3.0\n",
            "ringspan_probe_cpu_seconds_total 0.5\n",
        ] {
            assert!(page.contains(say), "{say:?} is not in\n{page}");
        }
        assert!(!page.contains("target_up{target=\"c\""), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }
}
