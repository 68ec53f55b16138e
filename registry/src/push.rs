//! Who wants to hear of a service, and hears of it: subscribers of any protocol, told soon after each change.
//! Promise: a subscriber that is told anything is told the latest; changes within [`GATHER`] are told once; what two
//! subscribers are told alike is written once. Nobody waits for a slow subscriber: it is told later, or is dropped.
//!
//! ```text
//! registry ── changes ──► dirty services ──(2 ms)──► one Update each ──► every Subscriber of the service
//! ```

pub mod udp;

use crate::model::{Name, ServiceKey};
use crate::service::Registry;
use crate::snapshot::ServiceView;
use crate::table::{Change, Changes};
use crate::wire;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Changes that come within this time of the first are told together: a deployment changes many instances at once, and a
/// person does not notice two milliseconds. (Nacos waits 500, so that its subscribers are half a second late.)
pub const GATHER: Duration = Duration::from_millis(2);

/// Subscriptions in all. 200 bytes each, and what their protocol keeps; one more is refused.
pub const SUBSCRIPTIONS_MAX: usize = 1_000_000;

/// Somebody who is told. Called on the control plane's threads: must not block.
pub trait Subscriber: Send + Sync {
    /// The service is so now. `false`: it is gone, and is not to be told again.
    fn on_update(&self, update: &Update) -> bool;
}

/// How a service is now, as one selection of its clusters sees it.
pub struct Update {
    /// Which service.
    pub service: ServiceKey,
    /// The selection, letter by letter as the subscriber named it.
    pub clusters: Name,
    /// When it was read, milliseconds since 1970.
    pub at_ms: u64,
    info: wire::ServiceInfo,
    grouped: OnceLock<Arc<str>>,
    bare: OnceLock<Arc<str>>,
    /// As a datagram: one for all that get one.
    packed: OnceLock<Option<Arc<[u8]>>>,
}

impl Update {
    /// Reads it now.
    pub fn read(registry: &Registry, service: &ServiceKey, clusters: &Name) -> Update {
        let view = registry.snapshot().service(service);
        Update::of(registry, view.as_deref(), service, clusters)
    }

    fn of(registry: &Registry, view: Option<&ServiceView>, service: &ServiceKey, clusters: &Name) -> Update {
        let at_ms = registry.unix_ms(registry.now());
        let info = wire::service_info(service, view, clusters, false, at_ms);
        let (grouped, bare, packed) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Update { service: service.clone(), clusters: clusters.clone(), at_ms, info, grouped, bare, packed }
    }

    /// Nacos' ServiceInfo as JSON, its name with its group.
    pub fn grouped(&self) -> &Arc<str> {
        self.grouped.get_or_init(|| json(&self.info))
    }

    /// The same with the bare name, as it goes over gRPC.
    pub fn bare(&self) -> &Arc<str> {
        self.bare.get_or_init(|| {
            let mut info = self.info.clone();
            info.name = self.service.name().to_string();
            json(&info)
        })
    }
}

fn json(info: &wire::ServiceInfo) -> Arc<str> {
    serde_json::to_string(info).expect("strings, numbers and maps are JSON").into()
}

/// Names one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

struct Subscription {
    clusters: Name,
    /// Shown to people: who it is.
    label: String,
    subscriber: Arc<dyn Subscriber>,
}

/// What the subscriptions have come to, for metrics.
#[derive(Debug, Default)]
pub struct PushStats {
    /// Updates handed to subscribers.
    pub pushes: AtomicU64,
    /// Rounds: dirty services that were told of.
    pub rounds: AtomicU64,
    /// Nanoseconds from the first change of a round to the last subscriber told, summed over rounds.
    pub round_ns: AtomicU64,
}

/// All subscriptions. Clones are the same.
#[derive(Clone, Default)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    topics: Mutex<Topics>,
    next: AtomicU64,
    stats: PushStats,
    /// An operator has switched pushes off.
    off: AtomicBool,
    /// Pushes have been switched on again: everybody is to be told.
    switched_on: Notify,
}

#[derive(Default)]
struct Topics {
    by_service: HashMap<ServiceKey, HashMap<SubscriptionId, Subscription>>,
    count: usize,
}

/// There are as many subscriptions as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {SUBSCRIPTIONS_MAX} subscriptions, which is all that may be; unsubscribe some")]
pub struct TooMany;

impl Hub {
    fn topics(&self) -> MutexGuard<'_, Topics> {
        // Each change of it is one insertion or removal: whole even if a holder panicked.
        self.inner.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the subscriber of each change from now on. What the service is like at this moment it reads itself
    /// ([`Update::read`]), after this call, so that nothing falls between.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn subscribe(
        &self,
        service: &ServiceKey,
        clusters: &str,
        label: String,
        subscriber: Arc<dyn Subscriber>,
    ) -> Result<SubscriptionId, TooMany> {
        let mut topics = self.topics();
        if topics.count >= SUBSCRIPTIONS_MAX {
            return Err(TooMany);
        }
        let id = SubscriptionId(self.inner.next.fetch_add(1, Ordering::Relaxed));
        let subscription = Subscription { clusters: Name::from(clusters), label, subscriber };
        topics.by_service.entry(service.clone()).or_default().insert(id, subscription);
        topics.count += 1;
        Ok(id)
    }

    /// Ends it. One that is not there is no error.
    pub fn unsubscribe(&self, service: &ServiceKey, id: SubscriptionId) {
        let mut topics = self.topics();
        let Some(topic) = topics.by_service.get_mut(service) else { return };
        if topic.remove(&id).is_some() {
            if topic.is_empty() {
                topics.by_service.remove(service);
            }
            topics.count -= 1;
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.topics().count
    }

    /// Who subscribes to a service, for people: sorted.
    pub fn labels(&self, service: &ServiceKey) -> Vec<String> {
        let topics = self.topics();
        let mut labels: Vec<String> =
            topics.by_service.get(service).into_iter().flat_map(|t| t.values().map(|s| s.label.clone())).collect();
        labels.sort();
        labels
    }

    /// What those subscribe to whose label is of this kind: sorted. Looks at every subscription.
    pub fn subscribed(&self, is_meant: impl Fn(&str) -> bool) -> Vec<ServiceKey> {
        let topics = self.topics();
        let of = |t: &HashMap<SubscriptionId, Subscription>| t.values().any(|s| is_meant(&s.label));
        let mut all: Vec<ServiceKey> =
            topics.by_service.iter().filter(|(_, t)| of(t)).map(|(service, _)| service.clone()).collect();
        all.sort();
        all
    }

    /// Whether changes are pushed. They are, unless [`Hub::switch`] says otherwise.
    pub fn is_on(&self) -> bool {
        !self.inner.off.load(Ordering::Relaxed)
    }

    /// Pushes changes from now on, or does not. Who subscribes stays subscribed, and is told how things are when pushes
    /// are switched on again.
    pub fn switch(&self, on: bool) {
        let was_off = self.inner.off.swap(!on, Ordering::Relaxed);
        if on && was_off {
            self.inner.switched_on.notify_one();
        }
    }

    /// What has been done.
    pub fn stats(&self) -> &PushStats {
        &self.inner.stats
    }

    fn all(&self) -> BTreeSet<ServiceKey> {
        self.topics().by_service.keys().cloned().collect()
    }

    fn of(&self, service: &ServiceKey) -> Vec<(SubscriptionId, Name, Arc<dyn Subscriber>)> {
        let topics = self.topics();
        let topic = topics.by_service.get(service);
        let mut all: Vec<_> =
            topic.into_iter().flatten().map(|(id, s)| (*id, s.clusters.clone(), s.subscriber.clone())).collect();
        // In turns of who came first; the same selections in a row are written once.
        all.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
        all
    }

    /// Notes the services that somebody is to be told of. Who subscribes later looks for himself.
    fn note(&self, changes: &Changes, dirty: &mut BTreeSet<ServiceKey>) {
        let topics = self.topics();
        if topics.count > 0 {
            let told = changes.list.iter().filter_map(shown).filter(|service| topics.by_service.contains_key(service));
            dirty.extend(told.cloned());
        }
    }

    /// Tells all subscribers of a service how it is now.
    fn tell(&self, registry: &Registry, service: &ServiceKey) {
        let view = registry.snapshot().service(service);
        let mut update: Option<Update> = None;
        for (id, clusters, subscriber) in self.of(service) {
            let current = match &mut update {
                Some(update) if update.clusters == clusters => &*update,
                other => other.insert(Update::of(registry, view.as_deref(), service, &clusters)),
            };
            self.inner.stats.pushes.fetch_add(1, Ordering::Relaxed);
            if !subscriber.on_update(current) {
                self.unsubscribe(service, id);
            }
        }
    }

    /// Tells whoever subscribes, until the registry stops. Spawn it on the control plane's runtime; once for a hub.
    pub async fn run(self, registry: Registry) {
        let mut changes = registry.subscribe();
        loop {
            let mut dirty = BTreeSet::new();
            tokio::select! {
                received = changes.recv() => match received {
                    Ok(changes) => self.note(&changes, &mut dirty),
                    Err(RecvError::Lagged(_)) => dirty = self.all(),
                    Err(RecvError::Closed) => return,
                },
                () = self.inner.switched_on.notified() => dirty = self.all(),
            }
            let started = std::time::Instant::now();
            if dirty.is_empty() {
                continue;
            }
            tokio::time::sleep(GATHER).await;
            loop {
                match changes.try_recv() {
                    Ok(changes) => self.note(&changes, &mut dirty),
                    Err(TryRecvError::Lagged(_)) => dirty = self.all(),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Closed) => return,
                }
            }
            if !self.is_on() {
                continue;
            }
            for service in &dirty {
                self.tell(&registry, service);
                // A thousand services at once must not hold the runtime's thread for all of it.
                tokio::task::yield_now().await;
            }
            let stats = &self.inner.stats;
            stats.rounds.fetch_add(dirty.len() as u64, Ordering::Relaxed);
            let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            stats.round_ns.fetch_add(ns, Ordering::Relaxed);
        }
    }
}

/// The service whose list looks otherwise after a change. A health's new reason alone changes no list.
fn shown(change: &Change) -> Option<&ServiceKey> {
    match change {
        Change::Instance { service, .. } | Change::Service { service, .. } => Some(service),
        Change::Health { service, before, after, .. } if before.health != after.health => Some(service),
        Change::Health { .. } | Change::Votes { .. } | Change::Agent { .. } => None,
    }
}

#[cfg(test)]
mod tests;
