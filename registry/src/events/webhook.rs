//! Events told to other programs over HTTP: POSTed as JSON, signed, tried again until they are taken or given up.
//! Promise: the registry never waits for a receiver. Events go in order, each at least once; what a full queue or a dead
//! receiver loses is counted, and the next delivery says how much it was. A redirect is never followed.
//!
//! ```text
//! ring ─ filter ─► queue (bounded: the oldest goes) ─ batch ─► POST ─┬─ 2xx: taken
//!                                                     ▲             ├─ 408 425 429 5xx, no answer: again, later and later
//!                                                     └─────────────┘  any other status, or too often: given up, counted
//! ```
//! The signature is that of Standard Webhooks (standardwebhooks.com, `v1`), so that ready-made libraries verify it.

mod client;
mod queue;
mod sign;
mod stats;
#[cfg(test)]
mod tests;

pub use client::Destination;
pub use sign::Secret;
pub use stats::Stats;

use super::{Event, Events, Filter, News, Reader};
use crate::cluster::Shares;
use crate::model::InstanceId;
use bytes::Bytes;
use client::{Client, Trouble};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use queue::{Batch, Queue};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Read from the ring in one go.
const READ: usize = 256;
/// A receiver that asks for more patience than this (`Retry-After`) does not get it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// A receiver, and what it is told.
#[derive(Clone, Debug)]
pub struct Hook {
    /// In logs, metrics and deliveries.
    pub name: String,
    /// Where it listens.
    pub to: Destination,
    /// What deliveries are signed with; `None`: they are not.
    pub secret: Option<Secret>,
    /// Sent beside our own headers.
    pub headers: HeaderMap,
    /// What it is told.
    pub filter: Filter,
    /// In a cluster: of everything, not of this member's share alone.
    pub everything: bool,
    /// How long and how often.
    pub pace: Pace,
    /// Events that wait, at most; one more, and the oldest goes. From 1.
    pub queue_max: usize,
    /// Events in one delivery, at most. From 1.
    pub batch_max: usize,
}

/// How long and how often a delivery is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the first byte of the connection to the last byte of the answer. Default 5 s.
    pub timeout: Duration,
    /// How often it is tried again before it is given up. Default 8: about a minute and a half.
    pub retries: u32,
    /// Before the first of these; each next one waits twice as long. Default 500 ms.
    pub backoff: Duration,
    /// The longest of these waits. Default 60 s.
    pub backoff_max: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        let (backoff, backoff_max) = (Duration::from_millis(500), Duration::from_secs(60));
        Pace { timeout: Duration::from_secs(5), retries: 8, backoff, backoff_max }
    }
}

impl Pace {
    /// How long to wait after this many failures (from 1): twice as long each time, and of that at random between half
    /// and all, so that senders who failed together do not come back together. `part`: 0 to 1.
    fn wait(&self, failures: u32, part: f64) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let whole = self.backoff.saturating_mul(factor).min(self.backoff_max);
        whole.mul_f64(0.5 + part.clamp(0.0, 1.0) / 2.0)
    }
}

/// The body of a delivery.
#[derive(Serialize)]
struct Delivery<'a> {
    hook: &'a str,
    /// Events before these that it was not told of.
    missed: u64,
    events: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    id: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// How a delivery ended.
enum End {
    Taken,
    /// It will not be taken, however often it is sent.
    Refused,
    GivenUp,
}

impl Hook {
    /// To this receiver, of everything, unsigned, at the default pace.
    pub fn new(name: &str, to: Destination) -> Hook {
        Hook {
            name: name.to_owned(),
            to,
            secret: None,
            headers: HeaderMap::new(),
            filter: Filter::default(),
            everything: false,
            pace: Pace::default(),
            queue_max: 4096,
            batch_max: 100,
        }
    }

    /// Tells of what happens from this call on, until there will be no more events. Spawn what it gives on the control
    /// plane's runtime. `shares`: [`Registry::shares`](crate::Registry::shares).
    pub fn run(self, events: &Events, shares: watch::Receiver<Arc<Shares>>) -> impl Future<Output = ()> + Send + use<> {
        let (reader, events) = (Reader::new(events), events.clone());
        let stats = Arc::new(Stats::new(&self.name));
        events.add_hook(&stats);
        async move {
            let queue = Queue::new(self.queue_max, stats.clone());
            let sender = Sender { hook: &self, events: &events, stats: &stats };
            tokio::join!(collect(&self, reader, &shares, &queue), sender.run(&queue));
        }
    }
}

/// Puts what the receiver wants to hear into its queue.
async fn collect(hook: &Hook, mut reader: Reader, shares: &watch::Receiver<Arc<Shares>>, queue: &Queue) {
    while let Some(news) = reader.next(READ).await {
        match news {
            News::Events(batch) => {
                let shares = shares.borrow().clone();
                let wanted = |e: &Event| hook.filter.takes(e) && (hook.everything || is_ours(&shares, e));
                queue.push(batch.into_iter().filter(wanted));
            }
            News::Missed(missed) => queue.miss(missed),
        }
    }
    queue.close();
}

/// Whether it is for this member to tell of it: of an instance the member that probes it, of a service the first one, of
/// an agent the one that it was connected to, which alone hears of it.
fn is_ours(shares: &Shares, event: &Event) -> bool {
    match &event.instance {
        Some(which) => InstanceId::new(&which.cluster, &which.host, which.port).is_ok_and(|id| shares.is_ours(&id)),
        None => event.agent.is_some() || shares.is_first(),
    }
}

struct Sender<'a> {
    hook: &'a Hook,
    events: &'a Events,
    stats: &'a Stats,
}

impl Sender<'_> {
    async fn run(&self, queue: &Queue) {
        let mut client = Client::new(self.hook.to.clone());
        // Told to the receiver until it has heard it.
        let mut missed = 0;
        while let Some(Batch { events, missed: more }) = queue.take(self.hook.batch_max).await {
            missed += more;
            let count = events.len() as u64;
            match self.deliver(&mut client, &events, missed).await {
                End::Taken => {
                    self.stats.delivered.fetch_add(count, Relaxed);
                    missed = 0;
                }
                End::Refused => {
                    self.stats.refused.fetch_add(count, Relaxed);
                    missed += count;
                }
                End::GivenUp => {
                    self.stats.given_up.fetch_add(count, Relaxed);
                    missed += count;
                }
            }
        }
    }

    async fn deliver(&self, client: &mut Client, events: &[Event], missed: u64) -> End {
        let Hook { name, pace, .. } = self.hook;
        let (first, last) = (events.first().map_or(0, |e| e.number), events.last().map_or(0, |e| e.number));
        // The same in each attempt: a receiver knows by it what it has taken already.
        let id = format!("{name}-{}-{last}", self.events.id(first));
        let told = events.iter().map(|event| Told { id: self.events.id(event.number), event }).collect();
        let body = serde_json::to_vec(&Delivery { hook: name, missed, events: told });
        let body = Bytes::from(body.expect("strings and numbers are JSON"));
        let mut failures = 0;
        loop {
            let sent =
                tokio::time::timeout(pace.timeout, client.post(&self.headers(&id, failures, &body), &body)).await;
            let trouble = match sent {
                Ok(Ok(())) => {
                    self.stats.attempt("taken");
                    if failures > 0 {
                        tracing::info!(hook = name, failures, "webhook: taken");
                    }
                    return End::Taken;
                }
                Ok(Err(trouble)) => trouble,
                Err(_elapsed) => {
                    client.close();
                    Trouble::Timeout(pace.timeout)
                }
            };
            failures += 1;
            self.stats.attempt(trouble.kind());
            let (events, last_of) = (events.len(), failures > pace.retries);
            match trouble.wait(RETRY_AFTER_MAX) {
                None => {
                    tracing::warn!(hook = name, %trouble, events, "webhook: refused; these events are not sent again");
                    return End::Refused;
                }
                Some(_) if last_of => {
                    tracing::warn!(hook = name, %trouble, failures, events, "webhook: given up; these events are lost");
                    return End::GivenUp;
                }
                Some(asked) => {
                    let wait = pace.wait(failures, fastrand::f64()).max(asked);
                    if failures == 1 {
                        tracing::warn!(hook = name, %trouble, ?wait, "webhook: not taken, will be sent again");
                    } else {
                        tracing::debug!(hook = name, %trouble, failures, ?wait, "webhook: not taken");
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// The headers of one attempt.
    fn headers(&self, id: &str, failures: u32, body: &[u8]) -> HeaderMap {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut headers = self.hook.headers.clone();
        let mut put = |name: &'static str, value: String| {
            // Names of hooks are checked to be letters and digits.
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("content-type", "application/json".into());
        put("user-agent", concat!("ringspan/", env!("CARGO_PKG_VERSION")).into());
        put("webhook-id", id.to_owned());
        put("webhook-timestamp", now.to_string());
        put("webhook-attempt", (failures + 1).to_string());
        if let Some(secret) = &self.hook.secret {
            put("webhook-signature", secret.sign(id, now, body));
        }
        headers
    }
}
