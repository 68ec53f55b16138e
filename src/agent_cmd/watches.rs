//! What a bridge's registry asks this agent to look at: a target of the engine for each place that the configuration lets
//! it look at, for as long as the session lasts.
//! Promise: nothing outside of `[checks] allow` is ever probed; each place that is asked for is answered, if only by why
//! nobody looks.

use arc_swap::ArcSwap;
use ipnet::IpNet;
use ringspan_engine::check::Check;
use ringspan_engine::engine::Probes;
use ringspan_engine::health::Health;
use ringspan_engine::kernel::monotonic_now;
use ringspan_engine::target::{Target, TargetId, Transition};
use ringspan_registry::checker::How;
use ringspan_registry::prober::policy_default;
use ringspan_tunnel::agent::AgentHandle;
use ringspan_tunnel::health_feed::BackendHealth;
use ringspan_tunnel::watch_feed::{Blind, Orders, Sight, WATCHES_MAX, Watch};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Engine's keys of places; those of backends are below.
const KEYS: u64 = 1 << 63;
/// The next one: sessions share the engine.
static NEXT: AtomicU64 = AtomicU64::new(KEYS);

/// Networks that bridges may have us look at.
pub(super) type Allowed = Arc<ArcSwap<Vec<IpNet>>>;

/// See the module. One for each session.
pub(super) struct Watches {
    probes: Probes,
    allowed: Allowed,
    handle: AgentHandle,
    /// Engine's keys, to the bridge's.
    keys: HashMap<u64, u64>,
    /// What the bridge asked for, whether anybody looks or not.
    wanted: HashMap<u64, Watch>,
    /// The bridge's keys, to the engine's and its name for the target, once it has one.
    places: HashMap<u64, (u64, Option<TargetId>)>,
    /// What the engine had no room for.
    to_add: Vec<Target>,
    to_remove: Vec<TargetId>,
}

impl Watches {
    /// Of a session that looks at nothing yet.
    pub(super) fn new(probes: Probes, allowed: Allowed, handle: AgentHandle) -> Watches {
        let (keys, wanted, places) = (HashMap::new(), HashMap::new(), HashMap::new());
        Watches { probes, allowed, handle, keys, wanted, places, to_add: Vec::new(), to_remove: Vec::new() }
    }

    /// Does what the bridge wants.
    pub(super) fn on_orders(&mut self, orders: Orders) {
        let Orders { reset, add, remove, .. } = orders;
        let gone = if reset { self.wanted.keys().copied().collect() } else { remove };
        for key in gone {
            self.wanted.remove(&key);
            self.forget(key);
        }
        for watch in add {
            let key = watch.key;
            if self.wanted.len() >= WATCHES_MAX.into() || self.wanted.contains_key(&key) {
                self.say(key, Blind::Unable);
                continue;
            }
            self.wanted.insert(key, watch.clone());
            self.try_look(watch);
        }
        self.press_on();
    }

    /// Other networks are allowed: looks where it may now, and no longer where it may not.
    pub(super) fn reconsider(&mut self) {
        for watch in self.wanted.values().cloned().collect::<Vec<_>>() {
            match (self.places.contains_key(&watch.key), self.may_look(&watch)) {
                (true, false) => {
                    self.forget(watch.key);
                    self.say(watch.key, Blind::Denied);
                }
                (false, true) => self.try_look(watch),
                (true, true) | (false, false) => {}
            }
        }
        self.press_on();
    }

    fn may_look(&self, watch: &Watch) -> bool {
        let ip = watch.address.ip().to_canonical();
        self.allowed.load().iter().any(|net| net.contains(&ip))
    }

    fn try_look(&mut self, watch: Watch) {
        let (key, address) = (watch.key, watch.address);
        if let Err(blind) = self.look(watch) {
            tracing::warn!(%address, ?blind, "the bridge asks to look at a place: nobody does");
            self.say(key, blind);
        }
    }

    /// Tells the bridge that nobody looks there.
    fn say(&self, key: u64, blind: Blind) {
        let health = BackendHealth { health: Health::Unknown, code: None, since: monotonic_now(), rtt_us: None };
        self.handle.set_sight(Sight { key, health, blind: Some(blind) });
    }

    fn look(&mut self, watch: Watch) -> Result<(), Blind> {
        if !self.may_look(&watch) {
            return Err(Blind::Denied);
        }
        let how: How = serde_json::from_value(watch.check).map_err(|_| Blind::Unable)?;
        let check = how.check().ok().filter(|check| !matches!(check, Check::None)).ok_or(Blind::Unable)?;
        let policy = how.policy(&policy_default());
        policy.check().map_err(|_| Blind::Unable)?;
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(address = %watch.address, "looked at for the bridge");
        self.keys.insert(key, watch.key);
        self.places.insert(watch.key, (key, None));
        self.to_add.push(Target {
            address: watch.address,
            check,
            policy: policy.into(),
            initial: Health::Unknown,
            count: None,
            key,
            group: 0,
        });
        Ok(())
    }

    fn forget(&mut self, key: u64) {
        let Some((engine_key, id)) = self.places.remove(&key) else { return };
        self.keys.remove(&engine_key);
        match id {
            Some(id) => self.to_remove.push(id),
            None => self.to_add.retain(|target| target.key != engine_key),
        }
    }

    /// Gives the engine what it had no room for.
    pub(super) fn press_on(&mut self) {
        self.to_remove.retain(|id| self.probes.remove(*id).is_err());
        while let Some(target) = self.to_add.pop() {
            let engine_key = target.key;
            match self.probes.add(target) {
                Ok(id) => {
                    let place = self.keys.get(&engine_key).and_then(|key| self.places.get_mut(key));
                    place.expect("what is to be added is wanted").1 = Some(id);
                }
                Err(full) => {
                    self.to_add.push(full.0);
                    return;
                }
            }
        }
    }

    /// A verdict, perhaps on one of ours.
    pub(super) fn on_transition(&self, t: &Transition) {
        let Some(key) = self.keys.get(&t.key) else { return };
        let rtt_us = u32::try_from(t.rtt_ns / 1000).ok();
        // When it was due, so that whoever measures counts from there.
        let health = BackendHealth { health: t.to, code: Some(t.code), since: t.due, rtt_us };
        self.handle.set_sight(Sight { key: *key, health, blind: None });
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        let ids = self.places.values().filter_map(|(_, id)| *id).chain(std::mem::take(&mut self.to_remove));
        for id in ids {
            // An engine that has no room for it is about to stop; else the probe costs little and is heard by nobody.
            let _full = self.probes.remove(id);
        }
    }
}
