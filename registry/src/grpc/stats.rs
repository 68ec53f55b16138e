//! What clients over gRPC have come to, for metrics. Counters only grow.
//! Promise: as many series as are named here, whatever clients send.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed it, or it broke.
    Closed,
    /// It had nothing to say and did not answer either.
    Silent,
    /// It did not take what was to be pushed.
    Stalled,
    /// Its account has gone, or may not read any more what it subscribes to.
    Denied,
    /// The server stopped.
    Stopped,
}

impl End {
    const ALL: [End; 5] = [End::Closed, End::Silent, End::Stalled, End::Denied, End::Stopped];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            End::Closed => "closed",
            End::Silent => "silent",
            End::Stalled => "stalled",
            End::Denied => "denied",
            End::Stopped => "stopped",
        }
    }
}

/// Kinds of requests that are counted by name; the others are one.
const KINDS: [&str; 10] = [
    "HealthCheckRequest",
    "ServerCheckRequest",
    "InstanceRequest",
    "BatchInstanceRequest",
    "PersistentInstanceRequest",
    "ServiceQueryRequest",
    "ServiceListRequest",
    "SubscribeServiceRequest",
    "NamingFuzzyWatchRequest",
    "other",
];

/// See the module.
#[derive(Debug, Default)]
pub struct GrpcStats {
    requests: [[AtomicU64; 2]; KINDS.len()],
    ends: [AtomicU64; End::ALL.len()],
    connections: AtomicU64,
    refused: AtomicU64,
    pushes: AtomicU64,
    acks: AtomicU64,
    ack_us: AtomicU64,
    unacked: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl GrpcStats {
    pub(super) fn on_connection(&self) {
        add(&self.connections, 1);
    }
    pub(super) fn on_refused(&self) {
        add(&self.refused, 1);
    }
    pub(super) fn on_end(&self, end: End) {
        let at = End::ALL.iter().position(|e| *e == end).expect("every end is listed");
        add(&self.ends[at], 1);
    }
    pub(super) fn on_request(&self, kind: &str, good: bool) {
        let at = KINDS.iter().position(|k| *k == kind).unwrap_or(KINDS.len() - 1);
        add(&self.requests[at][usize::from(good)], 1);
    }
    pub(super) fn on_push(&self) {
        add(&self.pushes, 1);
    }
    pub(super) fn on_ack(&self, after: Duration) {
        add(&self.acks, 1);
        add(&self.ack_us, u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
    }
    pub(super) fn on_unacked(&self, pushes: u64) {
        add(&self.unacked, pushes);
    }

    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        get(&self.connections)
    }
    /// Connections closed at once, because there were as many as may be.
    pub fn refused(&self) -> u64 {
        get(&self.refused)
    }
    /// Connections that ended, by the word for why.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> {
        End::ALL.iter().zip(&self.ends).map(|(end, count)| (end.as_str(), get(count)))
    }
    /// Requests answered: kind, "ok" or "error", how many.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let of = |(kind, counts): (&&'static str, &[AtomicU64; 2])| {
            [(*kind, "error", get(&counts[0])), (*kind, "ok", get(&counts[1]))]
        };
        KINDS.iter().zip(&self.requests).flat_map(of)
    }
    /// Pushes written to streams.
    pub fn pushes(&self) -> u64 {
        get(&self.pushes)
    }
    /// Pushes acknowledged.
    pub fn acks(&self) -> u64 {
        get(&self.acks)
    }
    /// From push to acknowledgement, summed. Seconds.
    pub fn ack_seconds(&self) -> f64 {
        get(&self.ack_us) as f64 / 1e6
    }
    /// Pushes that were not acknowledged in time.
    pub fn unacked(&self) -> u64 {
        get(&self.unacked)
    }
}
