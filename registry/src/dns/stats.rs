//! What was asked, what came of it, and how long it took: counters that are read at each scrape.
//! Promise: the number of series is fixed.

use hickory_proto::rr::RecordType;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    A,
    Aaaa,
    Srv,
    Any,
    Other,
}

impl Kind {
    const ALL: [(Kind, &'static str); 5] =
        [(Kind::A, "A"), (Kind::Aaaa, "AAAA"), (Kind::Srv, "SRV"), (Kind::Any, "ANY"), (Kind::Other, "other")];

    pub(super) fn of(asked: RecordType) -> Kind {
        match asked {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            RecordType::SRV => Kind::Srv,
            RecordType::ANY => Kind::Any,
            _ => Kind::Other,
        }
    }
}

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With records.
    Answered,
    /// The name is there, such records are not.
    NoData,
    NoName,
    Malformed,
    NotImplemented,
    Refused,
    BadVersion,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 7] = [
        (Outcome::Answered, "NOERROR"),
        (Outcome::NoData, "NODATA"),
        (Outcome::NoName, "NXDOMAIN"),
        (Outcome::Malformed, "FORMERR"),
        (Outcome::NotImplemented, "NOTIMP"),
        (Outcome::Refused, "REFUSED"),
        (Outcome::BadVersion, "BADVERS"),
    ];
}

/// Why something was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// No query.
    NoQuery,
    /// `allow` does not name its sender.
    NotAllowed,
    /// Past the rate limit: told to come over TCP.
    Slipped,
    /// Past the rate limit.
    Dropped,
    /// A connection that there was no room for.
    Connection,
}

impl Unanswered {
    const ALL: [(Unanswered, &'static str); 5] = [
        (Unanswered::NoQuery, "no_query"),
        (Unanswered::NotAllowed, "not_allowed"),
        (Unanswered::Slipped, "rate_slipped"),
        (Unanswered::Dropped, "rate_dropped"),
        (Unanswered::Connection, "connection_refused"),
    ];
}

/// All counters of a server.
#[derive(Debug, Default)]
pub struct Stats {
    answers: [[AtomicU64; Outcome::ALL.len()]; Kind::ALL.len()],
    unanswered: [AtomicU64; Unanswered::ALL.len()],
    answer_ns: AtomicU64,
    pub(super) connections: AtomicU64,
}

impl Stats {
    pub(super) fn answered(&self, kind: Kind, outcome: Outcome, took: Duration) {
        self.answers[kind as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.answer_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn unanswered(&self, why: Unanswered) {
        self.unanswered[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the series.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let help = "Answers, by type and result; NODATA: the name is there, such records are not";
        let mut family = encoder.encode_descriptor("dns_queries", help, None, MetricType::Counter)?;
        for ((_, kind), outcomes) in Kind::ALL.iter().zip(&self.answers) {
            for ((_, rcode), count) in Outcome::ALL.iter().zip(outcomes) {
                let labels = [("type", *kind), ("rcode", *rcode)];
                ConstCounter::new(of(count)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "What was not answered, by reason";
        let mut family = encoder.encode_descriptor("dns_unanswered", help, None, MetricType::Counter)?;
        for ((_, reason), count) in Unanswered::ALL.iter().zip(&self.unanswered) {
            ConstCounter::new(of(count)).encode(family.encode_family(&[("reason", *reason)])?)?;
        }
        let help = "Time from a query's arrival to its answer being ready";
        let family = encoder.encode_descriptor("dns_answer_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(of(&self.answer_ns) as f64 / 1e9).encode(family)?;
        let family = encoder.encode_descriptor("dns_connections", "Connections over TCP", None, MetricType::Gauge)?;
        ConstGauge::new(of(&self.connections) as f64).encode(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind, outcome and reason counts in its own place.
    #[test]
    fn places() {
        assert!(Kind::ALL.iter().enumerate().all(|(n, (kind, _))| *kind as usize == n));
        assert!(Outcome::ALL.iter().enumerate().all(|(n, (outcome, _))| *outcome as usize == n));
        assert!(Unanswered::ALL.iter().enumerate().all(|(n, (why, _))| *why as usize == n));
    }
}
