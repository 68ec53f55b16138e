//! The registry's vantages at agents: orders go to the pump, which has the link; what agents see comes back here.
//! Promise: orders of one session are carried out in order; of each place the latest word is kept until it is read, so it
//! is bounded by the places there are.

use ringspan_registry::checker::Asked;
use ringspan_registry::health::Reason;
use ringspan_registry::model::Name;
use ringspan_registry::prober::{Finding, Sighting, Vantages};
use ringspan_tunnel::watch_feed::{Blind, Sight, Watch};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Orders on their way to the pump; more wait at the prober.
const ORDERS: usize = 1024;

/// One order for an agent.
pub(super) struct WatchOrder {
    /// The agent's cluster.
    pub(super) cluster: Name,
    /// The session's number.
    pub(super) generation: u64,
    /// Names the place.
    pub(super) key: u64,
    /// `None`: look there no longer.
    pub(super) watch: Option<Watch>,
}

type Places = BTreeMap<(Name, u64, u64), Finding>;

/// What agents saw, until the prober reads it.
#[derive(Clone)]
pub(super) struct Sightings {
    places: Arc<Mutex<Places>>,
    bell: ringspan_registry::prober::Bell,
}

impl Sightings {
    /// An agent sees this.
    pub(super) fn add(&self, cluster: &str, generation: u64, sights: &[Sight]) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for sight in sights {
            let reason = match (sight.blind, sight.health.code) {
                (Some(Blind::Denied), _) => Reason::Denied,
                (Some(Blind::Unable), _) => Reason::Unable,
                (None, Some(code)) => Reason::Probe { code, errno: 0 },
                (None, None) => Reason::Unseen,
            };
            let rtt_ns = sight.health.rtt_us.map_or(0, |us| u64::from(us) * 1000);
            let finding = Finding { health: sight.health.health, reason, rtt_ns, due: Some(sight.health.since) };
            places.insert((Name::from(cluster), generation, sight.key), finding);
        }
        drop(places);
        ringspan_engine::mailbox::Wake::wake(&self.bell);
    }

    /// An agent cannot look there.
    pub(super) fn unable(&self, cluster: &Name, generation: u64, key: u64) {
        let finding =
            Finding { health: ringspan_engine::health::Health::Unknown, reason: Reason::Unable, rtt_ns: 0, due: None };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.insert((cluster.clone(), generation, key), finding);
        drop(places);
        ringspan_engine::mailbox::Wake::wake(&self.bell);
    }
}

/// For the prober.
pub(super) struct Scouts {
    orders: mpsc::Sender<WatchOrder>,
    sightings: Sightings,
}

/// The prober's end, and the pump's. `bell` is the prober's.
pub(super) fn scouts(bell: ringspan_registry::prober::Bell) -> (Scouts, mpsc::Receiver<WatchOrder>, Sightings) {
    let (orders, receiver) = mpsc::channel(ORDERS);
    let sightings = Sightings { places: Arc::default(), bell };
    (Scouts { orders, sightings: sightings.clone() }, receiver, sightings)
}

impl Vantages for Scouts {
    fn watch(&mut self, agent: &Name, session: u64, key: u64, asked: &Asked) -> bool {
        let check = serde_json::to_value(&*asked.how).expect("strings and numbers are JSON");
        let watch = Some(Watch { key, address: asked.address, check });
        self.orders.try_send(WatchOrder { cluster: agent.clone(), generation: session, key, watch }).is_ok()
    }

    fn unwatch(&mut self, agent: &Name, session: u64, key: u64) -> bool {
        let order = WatchOrder { cluster: agent.clone(), generation: session, key, watch: None };
        self.orders.try_send(order).is_ok()
    }

    fn sightings(&mut self, into: &mut Vec<Sighting>) {
        let places = std::mem::take(&mut *self.sightings.places.lock().unwrap_or_else(PoisonError::into_inner));
        into.extend(places.into_iter().map(|((agent, session, key), finding)| Sighting {
            agent,
            session,
            key,
            finding,
        }));
    }
}
