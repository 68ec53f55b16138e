//! What happens in the registry, told as it happens: who came and went, whose health changed, why, and how long after the
//! probe was due.
//! Promise: events are numbered without a gap and kept for those who come back: the last [`KEPT`]. Nobody who reads slowly
//! holds up anybody: who falls behind further than that is told to look anew.
//!
//! ```text
//! changes ──► events (a bounded ring, numbered) ──► readers, each with its own place in the ring: streams, webhooks
//! ```

mod filter;
mod stream;
#[cfg(test)]
mod tests;
pub mod webhook;

pub use filter::{Filter, KINDS};
pub(crate) use stream::stream;

use crate::health::{HealthRecord, health_str};
use crate::model::{InstanceId, Name, ServiceKey};
use crate::service::Registry;
use crate::table::{Change, Changes};
use ringspan_engine::time::Instant;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

/// Events that are kept: a minute of a large registry's day, 4 MiB.
pub const KEPT: usize = 8_192;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Numbered from 1 in each run of the registry. Whoever sends it says it in a way of its own.
    #[serde(skip)]
    pub number: u64,
    /// What: `health`, `registered`, `changed`, `removed`, `service` (settings) or `agent`.
    pub event: &'static str,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Of which service; not of agents.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// Of which instance; not of services and agents.
    #[serde(flatten)]
    pub instance: Option<Which>,
    /// Of `health`.
    #[serde(flatten)]
    pub health: Option<Turn>,
    /// Of `agent`.
    #[serde(flatten)]
    pub agent: Option<Agent>,
}

/// Names a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Its namespace.
    pub namespace: Name,
    /// Its group.
    pub group: Name,
    /// Its name.
    pub service: Name,
}

/// Names an instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Which {
    /// Its cluster.
    pub cluster: Name,
    /// Its address.
    pub host: Name,
    /// Its port.
    pub port: u16,
}

/// A change of health.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Turn {
    /// What was believed: `up`, `down`, `unknown`.
    pub was: &'static str,
    /// What is believed.
    pub is: &'static str,
    /// Why, in a word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub why: &'static str,
    /// The deciding probe's round trip, microseconds; 0 if none did.
    pub rtt_us: u64,
    /// From the time at which the deciding probe was due to this event, microseconds; absent if no probe decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
}

/// An agent came or went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agent {
    /// Its name.
    pub agent: Name,
    /// Whether it is connected.
    pub connected: bool,
}

/// All events. Clones are the same.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    /// Tells the runs of a registry apart: numbers of another one mean nothing here.
    run: u64,
    ring: Mutex<Ring>,
    /// The number of the latest event; `u64::MAX`: there will be no more.
    latest: watch::Sender<u64>,
    /// Of the webhooks that run.
    hooks: Mutex<Vec<Weak<webhook::Stats>>>,
}

#[derive(Default)]
struct Ring {
    kept: VecDeque<Noted>,
    latest: u64,
    /// How often a reader was told that it missed something.
    lapped: u64,
}

/// Events as they are kept: as the changes they are made of. Most are never read.
struct Noted {
    /// The number of the first of them.
    first: u64,
    changes: Arc<Changes>,
    at: Instant,
    at_ms: u64,
}

impl Noted {
    fn events(&self) -> impl Iterator<Item = Event> {
        let changes = self.changes.list.iter().filter_map(|change| event(self.at, self.at_ms, change));
        changes.zip(self.first..).map(|(event, number)| Event { number, ..event })
    }
}

/// What is new to a reader.
#[derive(Debug, PartialEq)]
enum News {
    /// These, in order.
    Events(Vec<Event>),
    /// So many that it has not read are not kept any more.
    Missed(u64),
}

/// A place in the ring.
struct Reader {
    events: Events,
    latest: watch::Receiver<u64>,
    /// The last event that was read.
    at: u64,
}

impl Reader {
    /// Who reads what happens from now on.
    fn new(events: &Events) -> Reader {
        let latest = events.inner.latest.subscribe();
        Reader { events: events.clone(), latest, at: events.latest() }
    }

    /// The number of the last event that was read, or is known to be missing.
    fn at(&self) -> u64 {
        self.at
    }

    /// Goes on behind this event.
    fn go_back(&mut self, number: u64) {
        self.at = number;
    }

    /// At most `max` events, as soon as there is one; `None`: there will be no more. Nothing is lost if this is dropped.
    async fn next(&mut self, max: usize) -> Option<News> {
        loop {
            // Noted first, then looked: what comes in between wakes us.
            let is_over = *self.latest.borrow_and_update() == u64::MAX;
            match self.events.after(self.at, max) {
                News::Events(batch) => match batch.last() {
                    Some(last) => {
                        self.at = last.number;
                        return Some(News::Events(batch));
                    }
                    None if is_over => return None,
                    None => self.latest.changed().await.ok()?,
                },
                News::Missed(missed) => {
                    self.at += missed;
                    return Some(News::Missed(missed));
                }
            }
        }
    }
}

impl Default for Events {
    fn default() -> Events {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let run = u64::try_from(now.as_millis()).unwrap_or(0);
        let latest = watch::channel(0).0;
        Events { inner: Arc::new(Inner { run, ring: Mutex::default(), latest, hooks: Mutex::default() }) }
    }
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Each change of it is whole even if a holder panicked.
        self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what happens until the registry stops. Spawn it on the control plane's runtime; once.
    pub async fn run(self, registry: Registry) {
        let mut changes = registry.subscribe();
        loop {
            match changes.recv().await {
                Ok(changes) => {
                    let now = registry.now();
                    self.add(changes, now, registry.unix_ms(now));
                }
                // Nobody knows what is missing: whoever reads has to look anew.
                Err(RecvError::Lagged(missed)) => self.skip(missed),
                Err(RecvError::Closed) => break,
            }
        }
        self.close();
    }

    /// There will be no more: readers end.
    pub fn close(&self) {
        self.inner.latest.send_replace(u64::MAX);
    }

    fn add(&self, changes: Arc<Changes>, at: Instant, at_ms: u64) {
        let count = changes.list.iter().filter(|change| kind(change).is_some()).count() as u64;
        if count == 0 {
            return;
        }
        let mut ring = self.ring();
        let first = ring.latest + 1;
        ring.latest += count;
        ring.kept.push_back(Noted { first, changes, at, at_ms });
        let oldest = ring.oldest();
        while ring.kept.get(1).is_some_and(|next| next.first <= oldest) {
            ring.kept.pop_front();
        }
        let latest = ring.latest;
        drop(ring);
        self.tell(latest);
    }

    fn skip(&self, missed: u64) {
        let mut ring = self.ring();
        ring.latest += missed;
        ring.kept.clear();
        let latest = ring.latest;
        drop(ring);
        self.tell(latest);
    }

    fn tell(&self, latest: u64) {
        self.inner.latest.send_if_modified(|known| {
            let news = *known != u64::MAX && *known != latest;
            if news {
                *known = latest;
            }
            news
        });
    }

    /// At most `max` events after this one; may be none yet.
    fn after(&self, number: u64, max: usize) -> News {
        let mut ring = self.ring();
        let oldest = ring.oldest();
        if number + 1 < oldest {
            ring.lapped += 1;
            return News::Missed(oldest - 1 - number);
        }
        let from = ring.kept.partition_point(|noted| noted.first <= number + 1).saturating_sub(1);
        let events = ring.kept.iter().skip(from).flat_map(Noted::events);
        News::Events(events.skip_while(|event| event.number <= number).take(max).collect())
    }

    /// An event's name, unique over runs.
    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.inner.run)
    }

    /// The number behind an [`id`](Events::id); `None`: it is of another run, or nothing that we ever said.
    fn read_id(&self, id: &str) -> Option<u64> {
        let (run, number) = id.split_once('-')?;
        let number = number.parse().ok().filter(|number| *number <= self.latest())?;
        (run.parse() == Ok(self.inner.run)).then_some(number)
    }

    /// The number of the latest event.
    fn latest(&self) -> u64 {
        self.ring().latest
    }

    /// What the webhooks that run have done, in the order they were started.
    pub fn hooks(&self) -> Vec<Arc<webhook::Stats>> {
        self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    fn add_hook(&self, stats: &Arc<webhook::Stats>) {
        let mut hooks = self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        hooks.retain(|hook| hook.strong_count() > 0);
        hooks.push(Arc::downgrade(stats));
    }

    /// How many events there were, and how often a reader was told that it missed some.
    pub fn counts(&self) -> (u64, u64) {
        let ring = self.ring();
        (ring.latest, ring.lapped)
    }
}

impl Ring {
    /// The number of the oldest event that is there to be read; the next one's, if none is.
    fn oldest(&self) -> u64 {
        let kept = self.kept.front().map_or(self.latest + 1, |noted| noted.first);
        kept.max((self.latest + 1).saturating_sub(KEPT as u64))
    }
}

/// What kind of event a change is; `None`: none.
fn kind(change: &Change) -> Option<&'static str> {
    match change {
        Change::Instance { before: None, .. } => Some("registered"),
        Change::Instance { after: None, .. } => Some("removed"),
        Change::Instance { before: Some(before), after: Some(after), .. } => {
            (before.record != after.record).then_some("changed")
        }
        Change::Service { .. } => Some("service"),
        Change::Health { before, after, .. } => (before.health != after.health).then_some("health"),
        Change::Agent { .. } => Some("agent"),
        Change::Votes { .. } => None,
    }
}

/// The event that a change is, if it is one.
fn event(at: Instant, at_ms: u64, change: &Change) -> Option<Event> {
    let blank =
        Event { number: 0, event: kind(change)?, at_ms, place: None, instance: None, health: None, agent: None };
    let place = |s: &ServiceKey| {
        let (namespace, group) = (s.namespace().clone(), s.group().clone());
        Some(Place { namespace, group, service: s.name().clone() })
    };
    let which =
        |id: &InstanceId| Some(Which { cluster: id.cluster().clone(), host: id.host().clone(), port: id.port() });
    Some(match change {
        Change::Instance { service, id, .. } => Event { place: place(service), instance: which(id), ..blank },
        Change::Service { service, .. } => Event { place: place(service), ..blank },
        Change::Health { service, id, before, after } => {
            let HealthRecord { health, reason, rtt_ns, due, .. } = *after;
            let latency_us = due.map(|due| u64::try_from(at.since(due).as_micros()).unwrap_or(u64::MAX));
            let turn = Turn {
                was: health_str(before.health),
                is: health_str(health),
                reason: reason.as_str(),
                why: reason.sentence(),
                rtt_us: rtt_ns / 1_000,
                latency_us,
            };
            Event { place: place(service), instance: which(id), health: Some(turn), ..blank }
        }
        Change::Agent { agent, after, .. } => {
            let connected = after.is_some_and(|(_, connected)| connected);
            Event { agent: Some(Agent { agent: agent.clone(), connected }), ..blank }
        }
        Change::Votes { .. } => blank,
    })
}
