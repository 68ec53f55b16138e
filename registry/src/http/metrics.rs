//! /metrics: what an operator's graphs are made of, in OpenMetrics text.
//! Promise: the number of series is bounded by routes, codes and states, never by services or instances.

use super::{App, Sorry};
use crate::access::Access;
use crate::events::Events;
use crate::grpc::Clients;
use crate::health::{Health, health_str};
use crate::model::Vantage;
use crate::push::Hub;
use crate::service::Registry;
use axum::extract::{MatchedPath, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use ringspan_engine::histogram::Histogram;
use ringspan_engine::outcome::Code;
use ringspan_engine::stats::{Numbers, Stats};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the engine's numbers come from.
pub type ProbeStats = Arc<dyn Fn() -> Stats + Send + Sync>;

/// Series of others, written at each scrape behind ours.
pub type MoreSeries = Arc<dyn Fn(DescriptorEncoder<'_>) -> fmt::Result + Send + Sync>;

/// All series, and the counters that live between scrapes.
pub(super) struct Metrics {
    series: prometheus_client::registry::Registry,
    requests: Family<Request, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: Route,
    status: u16,
}

/// A route as the router has it; `None`: no route.
#[derive(Clone, Debug)]
struct Route(Option<MatchedPath>);

impl Route {
    fn as_str(&self) -> &str {
        self.0.as_ref().map_or("other", MatchedPath::as_str)
    }
}

impl PartialEq for Route {
    fn eq(&self, other: &Route) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Route {}

impl Hash for Route {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl EncodeLabelValue for Route {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl Metrics {
    pub(super) fn new(
        registry: Registry,
        hub: Hub,
        clients: Clients,
        events: Events,
        access: Access,
        probe_stats: Option<ProbeStats>,
        more: Option<MoreSeries>,
    ) -> Metrics {
        let requests = Family::default();
        let mut series = prometheus_client::registry::Registry::with_prefix("ringspan");
        series.register("http_requests", "HTTP requests answered, by method, route and status", requests.clone());
        series.register_collector(Box::new(Scrape { registry, hub, clients, events, access, probe_stats, more }));
        Metrics { series, requests }
    }

    /// Counts an answer. Paths that are no route, and methods of the sender's invention, share a series.
    pub(super) fn count(&self, method: &Method, route: Option<MatchedPath>, status: StatusCode) {
        let method = KNOWN.iter().find(|(known, _)| known == method).map_or("other", |(_, name)| name);
        let labels = Request { method, route: Route(route), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
    }
}

/// Methods with a series of their own.
const KNOWN: [(Method, &str); 7] = [
    (Method::GET, "GET"),
    (Method::POST, "POST"),
    (Method::PUT, "PUT"),
    (Method::DELETE, "DELETE"),
    (Method::PATCH, "PATCH"),
    (Method::HEAD, "HEAD"),
    (Method::OPTIONS, "OPTIONS"),
];

pub(super) async fn scrape(State(app): State<App>) -> Response {
    // The engine's numbers are asked for and waited for, and a million instances take a while to count.
    let encode = move || {
        let mut body = String::new();
        text::encode(&mut body, &app.metrics.series).map(|()| body)
    };
    match tokio::task::spawn_blocking(encode).await {
        Ok(Ok(body)) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Ok(Err(e)) => Sorry::new(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {e}")).into_response(),
        Err(e) => Sorry::new(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {e}")).into_response(),
    }
}

/// Reads at scrape time what others count.
struct Scrape {
    registry: Registry,
    hub: Hub,
    clients: Clients,
    events: Events,
    access: Access,
    probe_stats: Option<ProbeStats>,
    more: Option<MoreSeries>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.registry_series(&mut encoder)?;
        self.cluster_series(&mut encoder)?;
        grpc_series(&mut encoder, &self.clients)?;
        event_series(&mut encoder, &self.events)?;
        access_series(&mut encoder, &self.access)?;
        if let Some(stats) = &self.probe_stats {
            probe_series(&mut encoder, &stats().total)?;
        }
        match &self.more {
            Some(more) => more(encoder),
            None => Ok(()),
        }
    }
}

impl Scrape {
    /// Nothing without a cluster.
    fn cluster_series(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(stats) = self.registry.cluster_stats() else { return Ok(()) };
        let members = self.registry.members().len();
        gauge(encoder, "cluster_members", "Members that live, this one too", members as f64)?;
        let shares = self.registry.shares().borrow().clone();
        let services = self.registry.snapshot().services();
        let probed = services.iter().flat_map(|s| s.instances.iter().filter(|i| s.probed(&i.record).is_some()));
        let held = probed.filter(|i| shares.is_ours(&i.record.id)).count();
        gauge(encoder, "cluster_share_instances", "Instances that are this member's to probe", held as f64)?;
        for (name, help, value) in stats.series() {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(family)?;
        }
        Ok(())
    }

    fn registry_series(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let services = self.registry.snapshot().services();
        gauge(encoder, "registry_services", "Services in the registry", services.len() as f64)?;
        const KINDS: [&str; 3] = ["persistent", "ephemeral", "agent"];
        const HEALTHS: [Health; 3] = [Health::Up, Health::Down, Health::Unknown];
        let mut counts = [[0_u64; HEALTHS.len()]; KINDS.len()];
        for instance in services.iter().flat_map(|s| &s.instances) {
            let kind = match (&instance.record.vantage, instance.record.ephemeral) {
                (Vantage::Registry, false) => 0,
                (Vantage::Registry, true) => 1,
                (Vantage::Agent(_), _) => 2,
            };
            let is = instance.health().health;
            let health = HEALTHS.iter().position(|h| *h == is).expect("every health is listed");
            counts[kind][health] += 1;
        }
        let help = "Instances, by who judges them and what is believed of them";
        let mut family = encoder.encode_descriptor("registry_instances", help, None, MetricType::Gauge)?;
        for (kind, counts) in KINDS.iter().zip(counts) {
            for (health, count) in HEALTHS.iter().zip(counts) {
                let labels = [("kind", *kind), ("health", health_str(*health))];
                ConstGauge::new(count as f64).encode(family.encode_family(&labels)?)?;
            }
        }
        let agents = self.registry.snapshot().agents();
        let connected = agents.iter().filter(|a| a.connected).count();
        gauge(encoder, "registry_agents_connected", "Agents with a session", connected as f64)?;
        let pushes = self.hub.stats();
        gauge(encoder, "registry_subscriptions", "Subscriptions to services", self.hub.count() as f64)?;
        let help = "Updates handed to subscribers";
        counter(encoder, "registry_pushes", help, pushes.pushes.load(Ordering::Relaxed))?;
        let help = "Changed services that subscribers were told of";
        counter(encoder, "registry_push_rounds", help, pushes.rounds.load(Ordering::Relaxed))?;
        let store = self.registry.store_stats();
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let waiting = of(&store.waiting) as f64;
        gauge(encoder, "registry_store_waiting", "Commands that wait to be stored", waiting)?;
        counter(encoder, "registry_store_commits", "Batches stored: one fsync each", of(&store.commits))?;
        counter(encoder, "registry_store_commands", "Commands in those batches", of(&store.commands))?;
        counter(encoder, "registry_store_failures", "Batches that could not be stored", of(&store.failures))?;
        let seconds = of(&store.commit_ns) as f64 / 1e9;
        let help = "Time spent storing";
        let family = encoder.encode_descriptor("registry_store_commit_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(seconds).encode(family)
    }
}

fn grpc_series(encoder: &mut DescriptorEncoder<'_>, clients: &Clients) -> Result<(), fmt::Error> {
    let stats = clients.stats();
    gauge(encoder, "grpc_connections", "Clients connected over gRPC", clients.count() as f64)?;
    counter(encoder, "grpc_connections_accepted", "Connections accepted", stats.connections())?;
    counter(encoder, "grpc_connections_refused", "Connections closed at once: there were too many", stats.refused())?;
    let help = "Connections that ended: closed by the client, silent, stalled (it did not read), stopped (by us)";
    let mut family = encoder.encode_descriptor("grpc_connections_ended", help, None, MetricType::Counter)?;
    for (reason, count) in stats.ends() {
        ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
    }
    let help = "Requests answered, by type and outcome";
    let mut family = encoder.encode_descriptor("grpc_requests", help, None, MetricType::Counter)?;
    for (kind, outcome, count) in stats.requests() {
        ConstCounter::new(count).encode(family.encode_family(&[("type", kind), ("outcome", outcome)])?)?;
    }
    counter(encoder, "grpc_pushes", "Pushes written to clients' streams", stats.pushes())?;
    counter(encoder, "grpc_push_acks", "Pushes acknowledged", stats.acks())?;
    counter(encoder, "grpc_pushes_unacknowledged", "Pushes not acknowledged within 5 s", stats.unacked())?;
    let help = "Time from a push to its acknowledgement";
    let family = encoder.encode_descriptor("grpc_push_ack_seconds", help, None, MetricType::Counter)?;
    ConstCounter::new(stats.ack_seconds()).encode(family)
}

fn access_series(encoder: &mut DescriptorEncoder<'_>, access: &Access) -> Result<(), fmt::Error> {
    let help = "Requests refused: no token (missing), no good one (invalid, expired), no permission (rights)";
    let mut family = encoder.encode_descriptor("access_denied", help, None, MetricType::Counter)?;
    for (reason, count) in access.denied() {
        ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
    }
    let help = "Requests refused because of a rate, of an address or of a user";
    let mut family = encoder.encode_descriptor("access_limited", help, None, MetricType::Counter)?;
    let (addresses, users) = access.limited();
    for (by, count) in [("address", addresses), ("user", users)] {
        ConstCounter::new(count).encode(family.encode_family(&[("by", by)])?)?;
    }
    let mut family = encoder.encode_descriptor("access_logins", "Logins", None, MetricType::Counter)?;
    for (outcome, count) in access.logins() {
        ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome)])?)?;
    }
    counter(encoder, "audit_lines_lost", "Lines of the audit that could not be written", access.audit_lost())
}

fn event_series(encoder: &mut DescriptorEncoder<'_>, events: &Events) -> Result<(), fmt::Error> {
    let (count, missed) = events.counts();
    counter(encoder, "registry_events", "Changes of health and membership that were told", count)?;
    let help = "Times that a reader of events was told that it had missed some";
    counter(encoder, "registry_events_readers_behind", help, missed)?;
    let hooks = events.hooks();
    let help = "Events for a webhook: delivered, dropped (no room), refused (a final status), given_up (tried enough)";
    let mut family = encoder.encode_descriptor("webhook_events", help, None, MetricType::Counter)?;
    for hook in &hooks {
        for (outcome, count) in hook.events() {
            let labels = [("hook", hook.name.as_str()), ("outcome", outcome)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let help = "Attempts to deliver, by how they ended";
    let mut family = encoder.encode_descriptor("webhook_attempts", help, None, MetricType::Counter)?;
    for hook in &hooks {
        for (end, count) in hook.attempts() {
            let labels = [("hook", hook.name.as_str()), ("end", end)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let help = "Events that wait for their receiver";
    let mut family = encoder.encode_descriptor("webhook_waiting", help, None, MetricType::Gauge)?;
    for hook in &hooks {
        let waiting = hook.waiting.load(Ordering::Relaxed) as f64;
        ConstGauge::new(waiting).encode(family.encode_family(&[("hook", hook.name.as_str())])?)?;
    }
    Ok(())
}

fn probe_series(encoder: &mut DescriptorEncoder<'_>, numbers: &Numbers) -> Result<(), fmt::Error> {
    let counters = &numbers.counters;
    let mut family = encoder.encode_descriptor("probes", "Finished probes, by outcome", None, MetricType::Counter)?;
    for code in Code::ALL {
        let labels = [("code", code.as_str())];
        ConstCounter::new(counters.outcome(*code)).encode(family.encode_family(&labels)?)?;
    }
    gauge(encoder, "probe_targets", "Addresses that are probed", counters.targets as f64)?;
    gauge(encoder, "probes_in_flight", "Probes in flight", counters.in_flight as f64)?;
    counter(encoder, "probes_missed", "Starts skipped: the probe before was not over", counters.missed)?;
    counter(encoder, "probe_pauses", "Times the prober lacked descriptors or memory", counters.pauses)?;
    counter(encoder, "probe_stalls", "Times a worker came 5 ms late or more", counters.stalls)?;
    quantiles(encoder, "probe_rtt_seconds", "Round trips of answered probes, since the start", &numbers.rtt)?;
    quantiles(encoder, "probe_lateness_seconds", "Actual minus scheduled start, since the start", &numbers.lateness)
}

/// Of a histogram of microseconds.
fn quantiles(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, of: &Histogram) -> Result<(), fmt::Error> {
    let mut family = e.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (label, quantile) in [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)] {
        let seconds = of.value_at_quantile(quantile) as f64 / 1e6;
        ConstGauge::new(seconds).encode(family.encode_family(&[("quantile", label)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    let family: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(family)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    let family: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(family)
}
