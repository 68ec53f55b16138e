//! Keeps what is checked in step with what is registered, at the engine and at the agents that were asked to look, and
//! brings back what they find.
//! Promise: an address is asked the same thing once, however many services have it; every instance at it hears the
//! verdict, also one that comes later. Nothing is lost when the engine, an agent's link or the registry is busy: it
//! waits here, bounded by the instances there are.
//!
//! ```text
//!                        ┌── keeper: instance → question → target ──► engine  (transitions ring the Bell)
//! registry ── changes ──►│
//!    ▲                   └── a keeper for each connected agent ─────► Vantages (their sightings ring it, too)
//!    └── Heard, Witnessed ──── last finding of each ◄─────────────────┘
//! ```

mod keeper;
pub mod now;
#[cfg(test)]
mod tests;

use crate::checker::{Asked, How};
use crate::cluster::Shares;
use crate::health::{Health, Reason};
use crate::model::{InstanceId, Name, ServiceKey, Vantage};
use crate::panel::answers_to;
use crate::service::Registry;
use crate::snapshot::ServiceView;
use crate::table::{Change, Changes, Command, Refusal};
use keeper::{Asker, Keeper};
use now::{Errand, ProbeOrders, probe_now};
use ringspan_engine::check::Check;
use ringspan_engine::engine::{Feed, Probes};
use ringspan_engine::health::Thresholds;
use ringspan_engine::kernel::monotonic_now;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::target::{Policy, Target, TargetId, Transition};
use ringspan_engine::time::Instant;
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// News that come within this time of the last are told together: when thousands are registered or die at once, each
/// telling costs two threads a wake-up, and what it tells of was found out by a probe every few seconds.
const GATHER: Duration = Duration::from_millis(2);
/// How long to wait before a full engine is asked again: it takes thousands of commands a millisecond.
const RETRY: Duration = Duration::from_millis(5);

/// Agents that look where the registry asks them to. What is asked of a session that is over is lost with it: the
/// registry asks the next one anew.
pub trait Vantages: Send {
    /// The agent of this session looks at this from now on, and says so under this key: at least once, and then
    /// whenever its mind changes. `false`: no room for the order now, try again.
    fn watch(&mut self, agent: &Name, session: u64, key: u64, asked: &Asked) -> bool;
    /// It no longer does. `false`: no room for the order now, try again.
    fn unwatch(&mut self, agent: &Name, session: u64, key: u64) -> bool;
    /// Takes what they said since the last call, in order for each agent. The [`Bell`] is rung when there is something.
    fn sightings(&mut self, into: &mut Vec<Sighting>);
}

/// What an agent found.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// Its name, as in [`Registry::agent_up`].
    pub agent: Name,
    /// Its session.
    pub session: u64,
    /// What it was asked to look at.
    pub key: u64,
    /// What it found.
    pub finding: Finding,
}

/// What was found at an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// The verdict.
    pub health: Health,
    /// Why.
    pub reason: Reason,
    /// The deciding probe's round trip, nanoseconds; 0 if there was none.
    pub rtt_ns: u64,
    /// When the deciding probe was due, on the engine's clock; `None` if that is not known.
    pub due: Option<Instant>,
}

/// No agents at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVantages;

impl Vantages for NoVantages {
    fn watch(&mut self, _: &Name, _: u64, _: u64, _: &Asked) -> bool {
        true
    }
    fn unwatch(&mut self, _: &Name, _: u64, _: u64) -> bool {
        true
    }
    fn sightings(&mut self, _: &mut Vec<Sighting>) {}
}

/// Runs until the registry stops, without agents. Spawn it on the control plane's runtime; at most one for a registry.
pub async fn run(registry: Registry, engine: impl Probing, bell: Bell, policy: Policy) {
    run_with(registry, engine, NoVantages, bell, policy).await;
}

/// Runs until the registry stops. Spawn it on the control plane's runtime; at most one for a registry.
pub async fn run_with(registry: Registry, engine: impl Probing, vantages: impl Vantages, bell: Bell, policy: Policy) {
    run_on(registry, engine, vantages, bell, policy, probe_now().1).await;
}

/// The same, and probes out of turn what `orders` asks for.
pub async fn run_on(
    registry: Registry,
    engine: impl Probing,
    vantages: impl Vantages,
    bell: Bell,
    policy: Policy,
    ProbeOrders(mut orders): ProbeOrders,
) {
    // First subscribe, then look: what happens in between is seen twice, not never.
    let mut changes = registry.subscribe();
    let mut shares = registry.shares();
    let mut checks = registry.checks();
    let mut prober = Prober::new(engine, vantages, policy);
    prober.shares = shares.borrow_and_update().clone();
    prober.is_on = *checks.borrow_and_update();
    prober.look_at_all(&registry);
    // The first news go at once, those that follow within a moment go together.
    let mut next_news = tokio::time::Instant::now();
    loop {
        prober.press_on();
        prober.listen(registry.now());
        let news = if tokio::time::Instant::now() >= next_news { prober.news() } else { Vec::new() };
        if !news.is_empty() {
            next_news = tokio::time::Instant::now() + GATHER;
        }
        for (agent, command) in news {
            match registry.submit(command).await {
                Ok(_) => prober.told(agent.as_ref()),
                Err(Refusal::Stopped) => return,
                // Its session is over: nobody wants to know.
                Err(Refusal::StaleSession { .. }) => prober.told(agent.as_ref()),
                // Busy: the news stay, and go with the next.
                Err(refusal) => tracing::warn!(%refusal, "prober: news wait"),
            }
        }
        // Whoever is answered finds it in the registry.
        if !prober.has_news() {
            prober.settle();
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
            Ok(()) = shares.changed() => {
                prober.shares = shares.borrow_and_update().clone();
                prober.look_at_all(&registry);
            }
            Ok(()) = checks.changed() => {
                prober.is_on = *checks.borrow_and_update();
                prober.look_at_all(&registry);
            }
            () = bell.rung.notified() => {}
            () = tokio::time::sleep_until(next_news), if prober.has_news() => {}
            Some(order) = orders.recv() => prober.on_order(&registry, order),
            () = tokio::time::sleep(RETRY), if !prober.is_settled() => {}
        }
    }
}

/// Checks kept ready: more than most have; beyond it they are made anew.
const CHECKS_MAX: usize = 4096;

type Key = (ServiceKey, InstanceId);

/// The engine of this process.
struct Local<E> {
    engine: E,
    policy: Arc<Policy>,
    /// What the engine does for each question. Targets hold their own, so forgetting one costs no more than making it anew.
    checks: HashMap<Arc<How>, (Check, Arc<Policy>)>,
}

impl<E: Probing> Asker for Local<E> {
    fn ask(&mut self, key: u64, asked: &Asked, believed: Health) -> Option<TargetId> {
        if self.checks.len() >= CHECKS_MAX {
            self.checks.clear();
        }
        let (check, policy) = self.checks.entry(asked.how.clone()).or_insert_with_key(|how| {
            let check = how.check().expect("a checker that was taken can be carried out");
            let policy = if how.manner.is_none() { self.policy.clone() } else { how.policy(&self.policy).into() };
            (check, policy)
        });
        self.engine.add(Target {
            address: asked.address,
            check: check.clone(),
            policy: policy.clone(),
            initial: believed,
            count: None,
            key,
            group: 0,
        })
    }

    fn ask_once(&mut self, key: u64, asked: &Asked) -> Option<TargetId> {
        let once = now::once(asked, &self.policy);
        let check = once.how.check().expect("a checker that was taken can be carried out");
        let policy = once.how.policy(&self.policy).into();
        let initial = Health::Unknown;
        self.engine.add(Target { address: once.address, check, policy, initial, count: None, key, group: 0 })
    }

    fn leave_off(&mut self, id: TargetId) -> bool {
        self.engine.remove(id)
    }
}

/// A connected agent.
struct Post {
    session: u64,
    keeper: Keeper,
}

/// An agent, as one who is asked.
struct Remote<'a, V> {
    vantages: &'a mut V,
    agent: &'a Name,
    session: u64,
}

impl<V: Vantages> Asker for Remote<'_, V> {
    fn ask(&mut self, key: u64, asked: &Asked, _believed: Health) -> Option<TargetId> {
        self.vantages.watch(self.agent, self.session, key, asked).then_some(TargetId(key))
    }

    fn ask_once(&mut self, key: u64, asked: &Asked) -> Option<TargetId> {
        // Agents have the registry's own manner, too.
        self.ask(key, &now::once(asked, &policy_default()), Health::Unknown)
    }

    fn leave_off(&mut self, TargetId(key): TargetId) -> bool {
        self.vantages.unwatch(self.agent, self.session, key)
    }
}

struct Prober<E, V> {
    local: Local<E>,
    keeper: Keeper,
    vantages: V,
    posts: BTreeMap<Name, Post>,
    /// Instances that agents are asked to look at: to be looked at again when agents come or go.
    of_agents: HashSet<Key>,
    /// Which instances are ours to probe, in a cluster.
    shares: Arc<Shares>,
    /// Whether anything is asked at all.
    is_on: bool,
    /// Probes out of turn that somebody waits for: at most [`now::ERRANDS_MAX`].
    errands: Vec<Errand>,
}

impl<E: Probing, V: Vantages> Prober<E, V> {
    fn new(engine: E, vantages: V, policy: Policy) -> Prober<E, V> {
        Prober {
            local: Local { engine, policy: policy.into(), checks: HashMap::new() },
            keeper: Keeper::new(),
            vantages,
            posts: BTreeMap::new(),
            of_agents: HashSet::new(),
            shares: Arc::default(),
            is_on: true,
            errands: Vec::new(),
        }
    }

    /// Whether nothing waits for room somewhere.
    fn is_settled(&self) -> bool {
        self.keeper.is_settled() && self.posts.values().all(|post| post.keeper.is_settled())
    }

    fn has_news(&self) -> bool {
        !self.keeper.news.is_empty() || self.posts.values().any(|post| !post.keeper.news.is_empty())
    }

    /// What the registry is to hear, and from whom (`None`: our own engine). It stays until [`Prober::told`].
    fn news(&self) -> Vec<(Option<Name>, Command)> {
        let own = (!self.keeper.news.is_empty()).then(|| (None, Command::Heard { deltas: self.keeper.news.clone() }));
        let posts = self.posts.iter().filter(|(_, post)| !post.keeper.news.is_empty()).map(|(agent, post)| {
            let (session, deltas) = (post.session, post.keeper.news.clone());
            (Some(agent.clone()), Command::Witnessed { agent: agent.clone(), session, deltas })
        });
        own.into_iter().chain(posts).collect()
    }

    /// The registry has heard all of it.
    fn told(&mut self, agent: Option<&Name>) {
        let keeper = match agent {
            None => Some(&mut self.keeper),
            Some(agent) => self.posts.get_mut(agent).map(|post| &mut post.keeper),
        };
        if let Some(keeper) = keeper {
            keeper.news.clear();
        }
    }

    fn on_changes(&mut self, registry: &Registry, changes: &Changes) {
        // All of a message is in the snapshot before the message comes; its changes are often of one service.
        let mut latest: Option<Arc<ServiceView>> = None;
        for change in &changes.list {
            match change {
                Change::Instance { service, id, .. } => {
                    if latest.as_ref().is_none_or(|view| view.key != *service) {
                        latest = registry.snapshot().service(service);
                    }
                    self.look_at(latest.as_deref(), (service.clone(), id.clone()));
                }
                Change::Service { service, .. } => {
                    if let Some(view) = registry.snapshot().service(service) {
                        self.look_at_service(&view);
                    }
                }
                // The registry wants to hear afresh, and those who look may have nothing new to say.
                Change::Health { service, id, after, .. } if after.reason == Reason::Unseen => {
                    self.remind(&(service.clone(), id.clone()));
                }
                Change::Votes { service, id, after: Some(ballot), .. }
                    if ballot.votes.iter().any(|v| v.health.reason == Reason::Unseen) =>
                {
                    self.remind(&(service.clone(), id.clone()));
                }
                Change::Agent { .. } => self.muster(registry),
                Change::Health { .. } | Change::Votes { .. } => {}
            }
        }
    }

    fn look_at_all(&mut self, registry: &Registry) {
        self.muster(registry);
        for view in registry.snapshot().services() {
            self.look_at_service(&view);
        }
        let known: Vec<Key> = self.keeper.instances().chain(&self.of_agents).cloned().collect();
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

    /// Takes in which agents are connected.
    fn muster(&mut self, registry: &Registry) {
        let agents = registry.snapshot().agents();
        let here: BTreeMap<&Name, u64> = agents.iter().filter(|a| a.connected).map(|a| (&a.name, a.session)).collect();
        self.posts.retain(|name, post| here.get(name) == Some(&post.session));
        for (name, session) in here {
            self.posts.entry(name.clone()).or_insert_with(|| Post { session, keeper: Keeper::new() });
        }
        for key in self.of_agents.clone() {
            let view = registry.snapshot().service(&key.0);
            self.look_at(view.as_deref(), key);
        }
    }

    /// The connected agent that is meant by this name: if it is one.
    fn agent(&self, name: &Name) -> Option<Name> {
        if self.posts.contains_key(name) {
            return Some(name.clone());
        }
        let mut all = self.posts.range(name.clone()..).take_while(|(agent, _)| agent.starts_with(&**name));
        let all: Vec<&Name> = all.by_ref().map(|(agent, _)| agent).filter(|agent| answers_to(agent, name)).collect();
        <[&Name; 1]>::try_from(all).ok().map(|[one]| one.clone())
    }

    /// Makes what is asked of one instance, and of whom, what it should be.
    fn look_at(&mut self, view: Option<&ServiceView>, key: Key) {
        let found = view.and_then(|v| v.instance(&key.1).map(|i| (v, i)));
        let ours = found.filter(|(_, i)| self.shares.is_ours(&i.record.id));
        // Another member may have judged it before: its verdict stands until ours differs for long enough.
        let believed = ours.map(|(_, i)| i.health()).filter(|h| matches!(h.reason, Reason::Probe { .. }));
        let believed = believed.map(|h| Finding { health: h.health, reason: h.reason, rtt_ns: h.rtt_ns, due: None });
        let probed = ours.filter(|_| self.is_on).and_then(|(v, i)| v.probed(&i.record));
        self.keeper.set(&key, probed, believed);
        let panel = found.and_then(|(v, i)| v.panel(&i.record));
        let names = panel.iter().flat_map(|p| p.vantages()).filter_map(|vantage| match vantage {
            Vantage::Agent(name) => Some(name),
            Vantage::Registry => None,
        });
        let names: Vec<Name> = names.cloned().collect();
        let is_new = !names.is_empty() && self.of_agents.insert(key.clone());
        if is_new || (!self.of_agents.is_empty() && self.of_agents.contains(&key)) {
            let wanted: HashSet<Name> = names.iter().filter_map(|name| self.agent(name)).collect();
            let asked = found.filter(|_| self.is_on).and_then(|(v, i)| v.asked(&i.record));
            for (agent, post) in &mut self.posts {
                post.keeper.set(&key, asked.clone().filter(|_| wanted.contains(agent)), None);
            }
        }
        if names.is_empty() {
            self.of_agents.remove(&key);
        }
        if found.is_some_and(|(_, i)| i.is_unseen()) {
            self.remind(&key);
        }
    }

    /// Says again what was found at an instance's address.
    fn remind(&mut self, key: &Key) {
        self.keeper.remind(key);
        if self.of_agents.contains(key) {
            self.posts.values_mut().for_each(|post| post.keeper.remind(key));
        }
    }

    /// Adds and removes what could not be so far.
    fn press_on(&mut self) {
        self.keeper.press_on(&mut self.local);
        for (agent, Post { session, keeper }) in &mut self.posts {
            keeper.press_on(&mut Remote { vantages: &mut self.vantages, agent, session: *session });
        }
    }

    /// Takes what was found; `now` is the registry's.
    fn listen(&mut self, now: Instant) {
        let mut heard = Vec::new();
        self.local.engine.transitions(&mut heard);
        let engine_now = monotonic_now();
        let ours = |due: Instant| now - engine_now.since(due);
        for t in heard {
            let reason = Reason::Probe { code: t.code, errno: t.errno };
            let finding = Finding { health: t.to, reason, rtt_ns: t.rtt_ns, due: Some(ours(t.due)) };
            self.keeper.found(t.key, finding);
        }
        let mut seen = Vec::new();
        self.vantages.sightings(&mut seen);
        for Sighting { agent, session, key, finding } in seen {
            if let Some(post) = self.posts.get_mut(&agent).filter(|post| post.session == session) {
                post.keeper.found(key, Finding { due: finding.due.map(ours), ..finding });
            }
        }
    }
}
