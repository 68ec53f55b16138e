//! The registry over HTTP: Nacos v1 under /nacos, our own API under /api/v1, metrics at /metrics.
//! Promise: whatever comes in, a clear answer goes out, within the time and size limits here.
//! There is no authentication yet: whoever reaches the port may change everything, so the listener belongs on loopback.

use crate::service::Registry;
use axum::Router;
use ringspan_engine::outcome::Code;
use std::sync::Arc;
use std::time::Duration;

/// What /metrics shows of the engine. All counters are cumulative.
#[derive(Clone, Debug, Default)]
pub struct ProbeStats {
    /// Finished probes by outcome.
    pub by_code: Vec<(Code, u64)>,
    /// Probes in flight.
    pub in_flight: u64,
    /// Starts that were skipped because the probe before was still in flight.
    pub missed: u64,
    /// Samples that nobody read in time.
    pub samples_dropped: u64,
    /// RTT of successful probes.
    pub rtt: Quantiles,
    /// Actual minus scheduled start.
    pub lateness: Quantiles,
}

/// A distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantiles {
    /// How many values.
    pub count: u64,
    /// Their sum, nanoseconds.
    pub sum_ns: f64,
    /// Median, nanoseconds.
    pub p50_ns: u64,
    /// 90th percentile, nanoseconds.
    pub p90_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// Largest, nanoseconds.
    pub max_ns: u64,
}

/// What the router needs besides the registry.
#[derive(Clone, Default)]
pub struct Options {
    /// Asked at each scrape of /metrics; `None`: no engine, no series of it.
    pub probe_stats: Option<Arc<dyn Fn() -> ProbeStats + Send + Sync>>,
}

/// A request must be read and answered within this: above the time that a submitter may wait for room in the registry's
/// queue, [`SUBMIT_WAIT_MAX`](crate::service::SUBMIT_WAIT_MAX), so that its clearer answer wins.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// The largest body: a registration is below 4 KiB, a batch of metadata for a thousand instances below this.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// All of the registry's HTTP. The root package may merge routes of its own into it (`Router::merge`), for instance
/// /api/v1/agents.
pub fn router(registry: Registry, options: Options) -> Router {
    let _ = options.probe_stats;
    Router::new().with_state(registry)
}
