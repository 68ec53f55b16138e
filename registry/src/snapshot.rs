//! What readers see: one immutable view for each service, and a cell of health for each instance.
//! Promise: a reader never waits for the disk and never sees what is not stored yet. The lock is held for one lookup or
//! one page of names, and by the one writer for one insertion; a view, once taken, needs none. Health moves by changing
//! a cell: 10 000 flips copy no list.
//! Uses `table`'s changes. No socket, no clock.

mod alike;

use self::alike::Alike;
use crate::checker::{Asked, Checker};
use crate::health::{Health, HealthRecord, Reason};
use crate::model::{Instance, InstanceId, Name, ServiceKey, ServiceMeta, Vantage};
use crate::panel::{Ballot, Panel};
use crate::table::{Change, Changes, Entry, Table};
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A service as it is now, but for health, which moves.
#[derive(Debug)]
pub struct ServiceView {
    /// Which one.
    pub key: ServiceKey,
    /// Its settings, if somebody configured it.
    pub meta: Option<Arc<ServiceMeta>>,
    /// Its instances, ordered by id.
    pub instances: Vec<InstanceView>,
    /// Which of all views that there have been.
    number: u64,
    /// How often the health of an instance has moved since.
    moved: AtomicU64,
}

/// Tells two states of a service apart: what was made of one is good for as long as its stamp is the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    view: u64,
    moved: u64,
}

/// An instance as it is now.
#[derive(Clone, Debug)]
pub struct InstanceView {
    /// What it is.
    pub record: Arc<Instance>,
    cell: Arc<ArcSwap<Cell>>,
}

/// What moves.
#[derive(Clone, Debug)]
struct Cell {
    health: HealthRecord,
    ballot: Option<Arc<Ballot>>,
}

impl InstanceView {
    fn new(entry: &Entry) -> InstanceView {
        let cell = Cell { health: entry.health, ballot: entry.ballot.clone() };
        InstanceView { record: entry.record.clone(), cell: Arc::new(ArcSwap::from_pointee(cell)) }
    }

    /// How it is at this moment.
    pub fn health(&self) -> HealthRecord {
        self.cell.load().health
    }

    /// What each vantage found, if others check it than would without being asked.
    pub fn ballot(&self) -> Option<Arc<Ballot>> {
        self.cell.load().ballot.clone()
    }

    /// Whether somebody who was to look has not been heard of yet.
    pub(crate) fn is_unseen(&self) -> bool {
        let cell = self.cell.load();
        match &cell.ballot {
            Some(ballot) => ballot.votes.iter().any(|v| v.health.reason == Reason::Unseen),
            None => cell.health.reason == Reason::Unseen,
        }
    }

    /// What each vantage found: one of them where nobody else was asked, named after who says so.
    pub fn votes(&self) -> Vec<(String, HealthRecord)> {
        match self.ballot() {
            Some(ballot) => ballot.votes.iter().map(|v| (v.vantage.to_string(), v.health)).collect(),
            None if self.record.ephemeral => vec![("beats".into(), self.health())],
            None => vec![(self.record.vantage.to_string(), self.health())],
        }
    }
}

impl ServiceView {
    fn new(key: ServiceKey, meta: Option<Arc<ServiceMeta>>, instances: Vec<InstanceView>) -> ServiceView {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        ServiceView { key, meta, instances, number, moved: AtomicU64::new(0) }
    }

    /// Take it before you look: what moves meanwhile makes it another.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { view: self.number, moved: self.moved.load(Ordering::Acquire) }
    }

    /// One instance.
    pub fn instance(&self, id: &InstanceId) -> Option<&InstanceView> {
        self.instances.binary_search_by(|i| i.record.id.cmp(id)).ok().map(|at| &self.instances[at])
    }

    /// Share of healthy instances below which Nacos' view shows all of them; 0: never.
    pub fn protect_threshold(&self) -> f64 {
        self.meta.as_ref().map_or(0.0, |m| m.protect_threshold)
    }

    /// What the registry asks an instance of this service, if it does.
    pub fn probed(&self, record: &Instance) -> Option<Asked> {
        let ours = match self.panel(record) {
            Some(panel) => panel.vantages().contains(&Vantage::Registry),
            None => record.vantage == Vantage::Registry && !record.ephemeral,
        };
        self.asked(record).filter(|_| ours)
    }

    /// Who checks an instance of this service, if others do than would without being asked.
    pub fn panel(&self, record: &Instance) -> Option<Panel> {
        Panel::effective(record, self.meta.as_deref())
    }

    /// What is to be asked of it, whoever asks; `None`: nothing.
    pub fn asked(&self, record: &Instance) -> Option<Asked> {
        match &self.meta {
            Some(meta) => meta.asked(&record.id),
            None => Checker::default().asked(&record.id),
        }
    }

    /// Instances with this health.
    pub fn count(&self, health: Health) -> usize {
        self.instances.iter().filter(|i| i.health().health == health).count()
    }
}

/// An agent as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentView {
    /// Its name.
    pub name: Name,
    /// Its latest session.
    pub session: u64,
    /// Whether that session lasts.
    pub connected: bool,
}

/// What readers see. See the module.
#[derive(Debug, Default)]
pub struct Snapshot {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    services: BTreeMap<ServiceKey, Arc<ServiceView>>,
    alike: Alike,
    agents: BTreeMap<Name, AgentView>,
    instance_count: usize,
}

impl Snapshot {
    /// All of a table.
    pub(crate) fn of(table: &Table) -> Snapshot {
        let mut inner = Inner::default();
        for (key, meta, entries) in table.services() {
            let instances: Vec<_> = entries.map(InstanceView::new).collect();
            inner.instance_count += instances.len();
            let view = ServiceView::new(key.clone(), meta.cloned(), instances);
            inner.alike.insert(key);
            inner.services.insert(key.clone(), Arc::new(view));
        }
        for (name, session, connected, _) in table.agents() {
            inner.agents.insert(name.clone(), AgentView { name: name.clone(), session, connected });
        }
        Snapshot { inner: RwLock::new(inner) }
    }

    /// A service, if it is there.
    pub fn service(&self, key: &ServiceKey) -> Option<Arc<ServiceView>> {
        self.read().services.get(key).cloned()
    }

    /// The service whose names differ from these in the case of letters alone; `None`: there is none, or more than one.
    pub fn service_alike(&self, key: &ServiceKey) -> Option<Arc<ServiceView>> {
        let inner = self.read();
        match inner.alike.of(key) {
            [one] => inner.services.get(one).cloned(),
            _ => None,
        }
    }

    /// Whether a namespace, or a group of it, has any service.
    pub fn has(&self, namespace: &str, group: Option<&str>) -> bool {
        let first = ServiceKey::first_of(Name::from(namespace), Name::from(group.unwrap_or_default()));
        let inner = self.read();
        let next = inner.services.range(first..).next();
        next.is_some_and(|(k, _)| **k.namespace() == *namespace && group.is_none_or(|g| **k.group() == *g))
    }

    /// One page of the services of a namespace and group, in order, and how many there are in all.
    pub fn page(&self, namespace: &str, group: &str, skip: usize, take: usize) -> (usize, Vec<Arc<ServiceView>>) {
        let first = ServiceKey::first_of(Name::from(namespace), Name::from(group));
        let inner = self.read();
        let ours = inner.services.range((Bound::Included(first), Bound::Unbounded));
        let ours = ours.take_while(|(k, _)| **k.namespace() == *namespace && **k.group() == *group);
        let (mut count, mut page) = (0, Vec::new());
        for (_, view) in ours {
            if count >= skip && page.len() < take {
                page.push(view.clone());
            }
            count += 1;
        }
        (count, page)
    }

    /// Every service there is, in order.
    pub fn services(&self) -> Vec<Arc<ServiceView>> {
        self.read().services.values().cloned().collect()
    }

    /// How many services, and how many instances.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.read();
        (inner.services.len(), inner.instance_count)
    }

    /// Every agent that has connected or has instances, by name.
    pub fn agents(&self) -> Vec<AgentView> {
        self.read().agents.values().cloned().collect()
    }

    /// Shows readers what changed, in one new view for each service however many commands there were. `table` is asked
    /// for the health of instances that are new to them: news of it may have come while their records were on the way to
    /// the disk.
    pub(crate) fn publish<'a>(&self, table: &Table, changes: impl IntoIterator<Item = &'a Changes>) {
        let mut by_service = BTreeMap::<&ServiceKey, Vec<&Change>>::new();
        for change in changes.into_iter().flat_map(|c| &c.list) {
            match service_of(change) {
                Some(key) => by_service.entry(key).or_default().push(change),
                None => self.publish_agent(change),
            }
        }
        for (key, changes) in by_service {
            self.publish_service(table, key, &changes);
        }
    }

    fn publish_service(&self, table: &Table, key: &ServiceKey, changes: &[&Change]) {
        let old = self.service(key);
        if changes.iter().any(|c| !matches!(c, Change::Health { .. } | Change::Votes { .. })) {
            let (meta, instances) =
                old.as_ref().map_or_else(Default::default, |o| (o.meta.clone(), o.instances.clone()));
            let mut view = ServiceView::new(key.clone(), meta, instances);
            for change in changes {
                view.take(table, change);
            }
            let had = old.map_or(0, |o| o.instances.len());
            let mut inner = self.write();
            inner.instance_count = inner.instance_count + view.instances.len() - had;
            if view.meta.is_none() && view.instances.is_empty() {
                inner.services.remove(key);
                inner.alike.remove(key);
            } else {
                if had == 0 {
                    inner.alike.insert(key);
                }
                inner.services.insert(key.clone(), Arc::new(view));
            }
        } else if let Some(old) = old {
            changes.iter().for_each(|change| old.hear(change));
        }
    }

    fn publish_agent(&self, change: &Change) {
        let Change::Agent { agent, after, .. } = change else { return };
        let mut inner = self.write();
        match *after {
            None => drop(inner.agents.remove(agent)),
            Some((session, connected)) => {
                inner.agents.insert(agent.clone(), AgentView { name: agent.clone(), session, connected });
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // Poisoned would mean that a holder panicked; each insertion is complete in itself, so what is there is good.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceView {
    fn take(&mut self, table: &Table, change: &Change) {
        match change {
            Change::Service { after, .. } => self.meta = after.clone(),
            Change::Health { .. } | Change::Votes { .. } => self.hear(change),
            Change::Instance { service, id, after, .. } => {
                let at = self.instances.binary_search_by(|i| i.record.id.cmp(id));
                match (at, after) {
                    (Ok(at), None) => drop(self.instances.remove(at)),
                    (Err(_), None) => {}
                    (at, Some(entry)) => {
                        let latest = table.entry(service, id).unwrap_or(entry);
                        match at {
                            Ok(at) => {
                                let cell = Cell { health: latest.health, ballot: latest.ballot.clone() };
                                self.instances[at].cell.store(Arc::new(cell));
                                self.instances[at].record = entry.record.clone();
                            }
                            Err(at) => {
                                let view = InstanceView { record: entry.record.clone(), ..InstanceView::new(latest) };
                                self.instances.insert(at, view);
                            }
                        }
                    }
                }
            }
            Change::Agent { .. } => {}
        }
    }

    fn hear(&self, change: &Change) {
        // One thread publishes, so what is read is still there when it is stored.
        match change {
            Change::Health { id, after, .. } => {
                let Some(view) = self.instance(id) else { return };
                view.cell.store(Arc::new(Cell { health: *after, ballot: view.ballot() }));
                self.moved.fetch_add(1, Ordering::Release);
            }
            Change::Votes { id, after, .. } => {
                let Some(view) = self.instance(id) else { return };
                view.cell.store(Arc::new(Cell { health: view.health(), ballot: after.clone() }));
                self.moved.fetch_add(1, Ordering::Release);
            }
            Change::Instance { .. } | Change::Service { .. } | Change::Agent { .. } => {}
        }
    }
}

fn service_of(change: &Change) -> Option<&ServiceKey> {
    match change {
        Change::Instance { service, .. }
        | Change::Service { service, .. }
        | Change::Health { service, .. }
        | Change::Votes { service, .. } => Some(service),
        Change::Agent { .. } => None,
    }
}
