//! Keeps the engine's targets in step with the registry's persistent instances, and brings back what it finds.
//! Promise: an address is asked the same thing once, however many services have it; every instance at it hears the
//! verdict, also one that comes later. Nothing is lost when the engine or the registry is busy: it waits here, bounded by the instances
//! there are.
//!
//! ```text
//! registry ── changes ──► [ instance → question → target ] ── add, remove ──► engine
//!          ◄── Heard ──── [       last finding          ] ◄── transitions ── (rings the Bell)
//! ```

#[cfg(test)]
mod tests;

use crate::checker::{Asked, How};
use crate::health::{Health, Reason};
use crate::model::{InstanceId, ServiceKey};
use crate::service::Registry;
use crate::snapshot::ServiceView;
use crate::table::{Change, Changes, Command, Delta, Refusal};
use ringspan_engine::check::Check;
use ringspan_engine::engine::{Feed, Probes};
use ringspan_engine::health::Thresholds;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::target::{Policy, Target, TargetId, Transition};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// How persistent instances are probed: each 5 s, a timeout of 1 s, up after 2, down after 3. A dead instance is
/// reported within 16 s; 10 000 of them cost 2 000 handshakes a second, a fifth of what Nacos makes for them.
pub fn policy_default() -> Policy {
    Policy { interval: Duration::from_secs(5), thresholds: Thresholds::default(), ..Policy::DEFAULT }
}

/// The engine, as the prober needs it.
pub trait Probing: Send {
    /// Starts to probe. `None`: the engine's mailbox is full, try again.
    fn add(&mut self, target: Target) -> Option<TargetId>;
    /// Stops to probe. `false`: the engine's mailbox is full, try again.
    fn remove(&mut self, id: TargetId) -> bool;
    /// Takes what changed since the last call.
    fn transitions(&mut self, into: &mut Vec<Transition>);
}

/// A running engine.
impl Probing for (Probes, Feed) {
    fn add(&mut self, target: Target) -> Option<TargetId> {
        self.0.add(target).ok()
    }
    fn remove(&mut self, id: TargetId) -> bool {
        self.0.remove(id).is_ok()
    }
    fn transitions(&mut self, into: &mut Vec<Transition>) {
        self.1.transitions(into);
    }
}

/// Rung by the engine when there are transitions: give it to `Engine::start` as its `wake`.
#[derive(Clone, Default)]
pub struct Bell {
    rung: Arc<Notify>,
}

impl Wake for Bell {
    fn wake(&self) {
        self.rung.notify_one();
    }
}

/// How long to wait before a full engine is asked again: it takes thousands of commands a millisecond.
const RETRY: Duration = Duration::from_millis(5);

/// Runs until the registry stops. Spawn it on the control plane's runtime; at most one for a registry.
pub async fn run(registry: Registry, engine: impl Probing, bell: Bell, policy: Policy) {
    // First subscribe, then look: what happens in between is seen twice, not never.
    let mut changes = registry.subscribe();
    let mut prober = Prober::new(engine, policy);
    prober.look_at_all(&registry);
    loop {
        prober.press_on();
        prober.listen();
        if !prober.news.is_empty() {
            match registry.submit(Command::Heard { deltas: prober.news.clone() }).await {
                Ok(_) => prober.news.clear(),
                Err(Refusal::Stopped) => return,
                // Busy: the news stay, and go with the next.
                Err(refusal) => tracing::warn!(%refusal, news = prober.news.len(), "prober: news wait"),
            }
        }
        tokio::select! {
            change = changes.recv() => {
                let mut next = Ok(change);
                while let Ok(change) = next {
                    match change {
                        Ok(change) => prober.on_changes(&registry, &change),
                        Err(RecvError::Lagged(_)) => prober.look_at_all(&registry),
                        Err(RecvError::Closed) => return,
                    }
                    next = match changes.try_recv() {
                        Ok(change) => Ok(Ok(change)),
                        Err(TryRecvError::Lagged(n)) => Ok(Err(RecvError::Lagged(n))),
                        Err(TryRecvError::Empty | TryRecvError::Closed) => Err(()),
                    };
                }
            }
            () = bell.rung.notified() => {}
            () = tokio::time::sleep(RETRY), if !prober.is_settled() => {}
        }
    }
}

/// Checks kept ready: more than most have; beyond it they are made anew.
const CHECKS_MAX: usize = 4096;

type Key = (ServiceKey, InstanceId);

struct Prober<E> {
    engine: E,
    policy: Arc<Policy>,
    /// What each instance is asked, and where.
    asked: HashMap<Key, Asked>,
    targets: HashMap<Asked, Probed>,
    /// What the engine does for each question. Targets hold their own, so forgetting one costs no more than making it anew.
    checks: HashMap<Arc<How>, (Check, Arc<Policy>)>,
    /// The target's `key` in the engine, to what it is. A key is never used twice, so that late news of a target that
    /// was removed are not taken for its successor's.
    keys: HashMap<u64, Asked>,
    key_next: u64,
    /// What could not be added yet, and targets that could not be removed yet.
    to_add: Vec<Asked>,
    to_remove: Vec<TargetId>,
    /// What the registry is to hear.
    news: Vec<Delta>,
}

/// One address that is asked something.
struct Probed {
    key: u64,
    /// `None`: not in the engine yet.
    id: Option<TargetId>,
    last: Option<Finding>,
    instances: BTreeSet<Key>,
}

#[derive(Clone, Copy)]
struct Finding {
    health: Health,
    reason: Reason,
    rtt_ns: u64,
}

impl Finding {
    fn delta(self, (service, id): &Key) -> Delta {
        let Finding { health, reason, rtt_ns } = self;
        Delta { service: service.clone(), id: id.clone(), health, reason, rtt_ns }
    }
}

impl<E: Probing> Prober<E> {
    fn new(engine: E, policy: Policy) -> Prober<E> {
        Prober {
            engine,
            policy: policy.into(),
            asked: HashMap::new(),
            targets: HashMap::new(),
            checks: HashMap::new(),
            keys: HashMap::new(),
            key_next: 1,
            to_add: Vec::new(),
            to_remove: Vec::new(),
            news: Vec::new(),
        }
    }

    /// Whether nothing waits for room somewhere.
    fn is_settled(&self) -> bool {
        self.to_add.is_empty() && self.to_remove.is_empty() && self.news.is_empty()
    }

    fn on_changes(&mut self, registry: &Registry, changes: &Changes) {
        for change in &changes.list {
            match change {
                Change::Instance { service, id, .. } => {
                    let view = registry.snapshot().service(service);
                    self.look_at(view.as_deref(), (service.clone(), id.clone()));
                }
                Change::Service { service, .. } => {
                    if let Some(view) = registry.snapshot().service(service) {
                        self.look_at_service(&view);
                    }
                }
                // The registry wants to hear afresh, and the engine may have nothing new to say.
                Change::Health { service, id, after, .. } if after.reason == Reason::Unseen => {
                    self.remind((service.clone(), id.clone()));
                }
                Change::Health { .. } | Change::Agent { .. } => {}
            }
        }
    }

    fn look_at_all(&mut self, registry: &Registry) {
        for view in registry.snapshot().services() {
            self.look_at_service(&view);
        }
        let known: Vec<Key> = self.asked.keys().cloned().collect();
        for key in known {
            let view = registry.snapshot().service(&key.0);
            self.look_at(view.as_deref(), key);
        }
    }

    fn look_at_service(&mut self, view: &ServiceView) {
        for instance in &view.instances {
            self.look_at(Some(view), (view.key.clone(), instance.record.id.clone()));
        }
    }

    /// Makes what is probed for one instance what it should be.
    fn look_at(&mut self, view: Option<&ServiceView>, key: Key) {
        let instance = view.and_then(|v| v.instance(&key.1));
        let wanted = instance.and_then(|i| view.and_then(|v| v.probed(&i.record)));
        if self.asked.get(&key) != wanted.as_ref() {
            self.leave(&key);
            if let Some(asked) = wanted {
                self.join(key.clone(), asked);
            }
        }
        if instance.is_some_and(|i| i.health().reason == Reason::Unseen) {
            self.remind(key);
        }
    }

    fn join(&mut self, key: Key, asked: Asked) {
        let target = self.targets.entry(asked.clone()).or_insert_with(|| {
            let key = self.key_next;
            self.key_next += 1;
            self.keys.insert(key, asked.clone());
            self.to_add.push(asked.clone());
            Probed { key, id: None, last: None, instances: BTreeSet::new() }
        });
        target.instances.insert(key.clone());
        self.asked.insert(key, asked);
    }

    fn leave(&mut self, key: &Key) {
        let Some(asked) = self.asked.remove(key) else { return };
        let target = self.targets.get_mut(&asked).expect("what an instance is asked is probed");
        target.instances.remove(key);
        if target.instances.is_empty() {
            let target = self.targets.remove(&asked).expect("it was there a moment ago");
            self.keys.remove(&target.key);
            match target.id {
                Some(id) => self.to_remove.push(id),
                None => self.to_add.retain(|a| *a != asked),
            }
        }
    }

    /// Says again what was found at an instance's address.
    fn remind(&mut self, key: Key) {
        let target = self.asked.get(&key).and_then(|asked| self.targets.get(asked));
        if let Some(finding) = target.and_then(|t| t.last) {
            self.news.push(finding.delta(&key));
        }
    }

    /// Adds and removes what could not be so far. Removals first: they make room.
    fn press_on(&mut self) {
        let engine = &mut self.engine;
        let mut room = true;
        self.to_remove.retain(|id| {
            room = room && engine.remove(*id);
            !room
        });
        while let Some(asked) = self.to_add.last() {
            if self.checks.len() >= CHECKS_MAX {
                self.checks.clear();
            }
            let (check, policy) = self.checks.entry(asked.how.clone()).or_insert_with_key(|how| {
                let check = how.check().expect("a checker that was taken can be carried out");
                let policy = if how.manner.is_none() { self.policy.clone() } else { how.policy(&self.policy).into() };
                (check, policy)
            });
            let target = self.targets.get_mut(asked).expect("what is to be added is wanted");
            let wanted = Target {
                address: asked.address,
                check: check.clone(),
                policy: policy.clone(),
                initial: Health::Unknown,
                count: None,
                key: target.key,
                group: 0,
            };
            target.id = self.engine.add(wanted);
            if target.id.is_none() {
                break;
            }
            self.to_add.pop();
        }
    }

    /// Takes what the engine found.
    fn listen(&mut self) {
        let mut heard = Vec::new();
        self.engine.transitions(&mut heard);
        for t in heard {
            let target = self.keys.get(&t.key).and_then(|asked| self.targets.get_mut(asked));
            let Some(target) = target else { continue };
            let reason = Reason::Probe { code: t.code, errno: t.errno };
            let finding = Finding { health: t.to, reason, rtt_ns: t.rtt_ns };
            target.last = Some(finding);
            self.news.extend(target.instances.iter().map(|key| finding.delta(key)));
        }
    }
}
