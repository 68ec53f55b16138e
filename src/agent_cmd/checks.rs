//! The agent's checks: a target of the engine for each backend, and what is known of each; several sessions share them.
//! Promise: a backend that is in the old and the new configuration is checked on without a gap in what is known of it.

use crate::config::expose::{Backend, Expose};
use ringspan_engine::check::Check;
use ringspan_engine::engine::Probes;
use ringspan_engine::health::Health;
use ringspan_engine::kernel::monotonic_now;
use ringspan_engine::mailbox::Full;
use ringspan_engine::target::{Policy, Target, TargetId, Transition};
use ringspan_tunnel::health_feed::BackendHealth;
use std::sync::Arc;
use std::time::Duration;

/// A worker whose mailbox is full has taken some of it by then.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Checks {
    probes: Probes,
    entries: Vec<Entry>,
    next: u64,
}

struct Entry {
    /// The engine's name for it, never used again.
    key: u64,
    service: String,
    backend: Backend,
    /// `None`: nobody asks it.
    target: Option<TargetId>,
    expose: Expose,
    state: BackendHealth,
}

impl Checks {
    /// Of nothing.
    pub(super) fn new(probes: Probes) -> Checks {
        Checks { probes, entries: Vec::new(), next: 0 }
    }

    /// Checks these, too, each as it says now; their keys, in their order.
    pub(super) async fn want(&mut self, exposes: &[Expose]) -> Vec<u64> {
        let mut keys = Vec::new();
        for expose in exposes {
            let known = self.entries.iter().position(|e| e.service == expose.service && e.backend == expose.backend);
            let at = match known {
                Some(at) => at,
                None => {
                    let state =
                        BackendHealth { health: Health::Unknown, code: None, since: monotonic_now(), rtt_us: None };
                    let (service, backend) = (expose.service.clone(), expose.backend.clone());
                    self.entries.push(Entry {
                        key: self.next,
                        service,
                        backend,
                        target: None,
                        expose: expose.clone(),
                        state,
                    });
                    self.next += 1;
                    self.entries.len() - 1
                }
            };
            self.check(at, expose).await;
            keys.push(self.entries[at].key);
        }
        keys
    }

    async fn check(&mut self, at: usize, expose: &Expose) {
        let entry = &mut self.entries[at];
        entry.expose = expose.clone();
        let ask = expose.check.ask.clone();
        let unasked = matches!(ask, Check::None);
        if !unasked && expose.backend.address().is_none() {
            // Not the engine's: whoever checks it tells the session itself.
            return;
        }
        match (expose.backend.address().filter(|_| !unasked), entry.target) {
            (None, target) => {
                // Nobody asks it: it is as well as we are.
                entry.target = None;
                if entry.state.health != Health::Up || target.is_some() {
                    entry.state =
                        BackendHealth { health: Health::Up, code: None, since: monotonic_now(), rtt_us: None };
                }
                if let Some(id) = target {
                    self.remove(id).await;
                }
            }
            (Some(_), Some(id)) => {
                let policy: Arc<Policy> = expose.check.policy.into();
                while self.probes.update(id, policy.clone()).is_err() {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                while self.probes.recheck(id, ask.clone()).is_err() {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
            }
            (Some(address), None) => {
                let mut target = Target {
                    address,
                    check: ask,
                    policy: expose.check.policy.into(),
                    initial: entry.state.health,
                    count: None,
                    key: entry.key,
                    group: 0,
                };
                let id = loop {
                    match self.probes.add(target) {
                        Ok(id) => break id,
                        Err(Full(back)) => target = back,
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                };
                self.entries[at].target = Some(id);
            }
        }
    }

    async fn remove(&self, id: TargetId) {
        while self.probes.remove(id).is_err() {
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }

    /// Checks only these from now on.
    pub(super) async fn keep(&mut self, keys: &[u64]) {
        let (kept, gone) = std::mem::take(&mut self.entries).into_iter().partition(|e| keys.contains(&e.key));
        self.entries = kept;
        let gone: Vec<Entry> = gone;
        for entry in gone {
            if let Some(id) = entry.target {
                self.remove(id).await;
            }
        }
    }

    /// What is known of a backend.
    pub(super) fn state(&self, key: u64) -> Option<BackendHealth> {
        self.entries.iter().find(|e| e.key == key).map(|e| e.state)
    }

    /// A verdict has changed: what it is about and what is known now. `None`: it is not checked any more.
    pub(super) fn on_transition(&mut self, t: &Transition) -> Option<(&Expose, BackendHealth)> {
        let entry = self.entries.iter_mut().find(|e| e.key == t.key && e.target.is_some())?;
        let rtt_us = u32::try_from(t.rtt_ns / 1000).ok();
        entry.state = BackendHealth { health: t.to, code: Some(t.code), since: monotonic_now(), rtt_us };
        Some((&entry.expose, entry.state))
    }
}
