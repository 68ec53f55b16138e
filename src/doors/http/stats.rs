//! Counters of http and https listeners, for /metrics. Labels are the configuration's words, never a visitor's.

use hyper::StatusCode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::fmt;
use std::time::Duration;

/// Seconds: from a cached answer nearby to a download that takes minutes.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    listener: String,
    route: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: String,
}

/// Of all doors together. Clones are the same counters.
#[derive(Clone, Debug)]
pub(crate) struct HttpStats {
    requests: Family<Request, Counter>,
    seconds: Family<Listener, Histogram, fn() -> Histogram>,
    connections: Family<Listener, Gauge>,
    refused: Family<Listener, Counter>,
    unread: Family<Listener, Counter>,
    dials: Family<Listener, Counter>,
}

impl Default for HttpStats {
    fn default() -> HttpStats {
        HttpStats {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            connections: Family::default(),
            refused: Family::default(),
            unread: Family::default(),
            dials: Family::default(),
        }
    }
}

impl HttpStats {
    /// A request has been answered to the end, or as far as it went.
    pub(super) fn on_request(&self, listener: &str, route: &str, status: StatusCode, took: Duration) {
        let class = match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&Request { listener: listener.into(), route: route.into(), class }).inc();
        self.seconds.get_or_create(&Listener { listener: listener.into() }).observe(took.as_secs_f64());
    }

    /// A visitor's connection is there.
    pub(super) fn on_connected(&self, listener: &str) -> Connected {
        let gauge = self.connections.get_or_create_owned(&Listener { listener: listener.into() });
        gauge.inc();
        Connected(gauge)
    }

    /// A visitor was closed at once.
    pub(super) fn on_refused(&self, listener: &str) {
        self.refused.get_or_create(&Listener { listener: listener.into() }).inc();
    }

    /// What came is no request, or not a whole one.
    pub(super) fn on_unread(&self, listener: &str) {
        self.unread.get_or_create(&Listener { listener: listener.into() }).inc();
    }

    /// A connection to a backend was asked for.
    pub(super) fn on_dial(&self, listener: &str) {
        self.dials.get_or_create(&Listener { listener: listener.into() }).inc();
    }

    /// Writes all series.
    pub(crate) fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        family(encoder, "http_visits", "Requests answered, by listener, route and status", &self.requests)?;
        family(encoder, "http_visit_seconds", "From a request's head to the end of its answer", &self.seconds)?;
        family(encoder, "http_visitors", "Connections of visitors", &self.connections)?;
        family(encoder, "http_visitors_refused", "Visitors closed at once", &self.refused)?;
        family(
            encoder,
            "http_bad_heads",
            "HTTP/1 connections that ended at a head which could not be read, was too large or did not come in time",
            &self.unread,
        )?;
        family(
            encoder,
            "http_dials",
            "Connections to backends asked for; the other requests used a kept one",
            &self.dials,
        )
    }
}

fn family<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &M,
) -> fmt::Result {
    let kind: MetricType = M::TYPE;
    metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

/// Counted while it lives.
pub(super) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
