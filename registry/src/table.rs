//! The only mutable truth: which services and instances there are, and what is believed of them.
//! Promise: [`Table::apply`] is a pure function of table, time and command. The same commands at the same times make the
//! same table; a refused command changes nothing; [`Table::revert`] undoes changes exactly. No socket, clock or thread.
//!
//! ```text
//! Command ─ apply(now) ─► Ok(Changes: before and after of each thing) ─► store, snapshot, subscribers
//!                     └─► Err(Refusal: what is wrong and what would be right)
//! ```

mod agents;
mod beats;
mod clients;
mod command;
pub mod edits;
mod elsewhere;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod votes;

pub use clients::ClientId;
pub use command::{Change, Changes, Command, Delta, Entry, Exposed, Limits, Patch, Refusal};

use crate::health::{BeatTimes, Health, HealthRecord, Reason};
use crate::model::{Instance, InstanceId, Name, ServiceKey, ServiceMeta, Vantage};
use edits::ServiceEdit;
use ringspan_engine::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All services and instances. See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    services: BTreeMap<ServiceKey, Service>,
    /// Agents that have ever been heard of and not been forgotten.
    agents: BTreeMap<Name, Agent>,
    /// What each connected client has published and nobody has taken over; no empty sets.
    clients: BTreeMap<ClientId, BTreeSet<(ServiceKey, InstanceId)>>,
    /// Instances that agents were asked to look at, by the name the agent was called.
    watched: BTreeMap<Name, BTreeSet<(ServiceKey, InstanceId)>>,
    /// When to look at each instance that lives by beats again: exactly one entry for each, [`Entry::look_again`].
    deadlines: BTreeSet<(Instant, ServiceKey, InstanceId)>,
    instance_count: usize,
    limits: Limits,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Service {
    /// Present if somebody configured the service.
    meta: Option<Arc<ServiceMeta>>,
    instances: BTreeMap<InstanceId, Entry>,
    /// How many of the instances are ephemeral.
    ephemeral: usize,
    /// How many are persistent and the registry's own (an agent's count for neither kind).
    persistent: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Agent {
    /// The latest session heard of. An older one's news is stale.
    session: u64,
    connected: bool,
    instances: BTreeSet<(ServiceKey, InstanceId)>,
}

impl Table {
    /// An empty table that refuses to grow beyond `limits`.
    pub fn new(limits: Limits) -> Table {
        Table { limits, ..Table::default() }
    }

    /// Carries out `command` at `now`.
    ///
    /// # Errors
    /// A [`Refusal`], and then nothing has changed.
    pub fn apply(&mut self, now: Instant, command: Command) -> Result<Changes, Refusal> {
        match command {
            Command::Register { service, instance } => self.register(now, &service, instance),
            Command::Deregister { service, id, ephemeral } => self.deregister(&service, &id, ephemeral),
            Command::Update { service, id, patch } => self.update(now, &service, &id, patch),
            Command::PutService { service, protect_threshold, metadata, selector, create } => {
                let edit = ServiceEdit { protect_threshold, selector, ..ServiceEdit::default() };
                self.put_service(now, service, edit, metadata, create)
            }
            Command::DeleteService { service } => self.delete_service(&service),
            Command::PutCluster { service, cluster, settings } => self.put_cluster(now, &service, cluster, settings),
            Command::EditService { service, onto, edit } => self.edit_service(now, &service, onto, edit),
            Command::EditInstance { service, id, edit } => self.edit_instance(now, &service, &id, edit),
            Command::Steer { service, cluster, key, value } => self.steer(now, &service, cluster, key, value),
            Command::SetHealth { service, id, healthy } => self.set_health(now, &service, &id, healthy),
            Command::ClientPublish { client, service, instances, only } => {
                self.client_publish(now, client, &service, instances, only)
            }
            Command::ClientWithdraw { client, service, id } => self.client_withdraw(client, &service, &id),
            Command::ClientGone { client } => Ok(self.client_gone(client)),
            Command::Beat { service, id } => self.beat(now, &service, &id),
            Command::Convert { service, ephemeral } => self.convert(now, &service, ephemeral),
            Command::Heard { deltas } => Ok(self.heard(now, &deltas)),
            Command::Witnessed { agent, session, deltas } => self.witnessed(now, &agent, session, &deltas),
            Command::Tick { max } => Ok(self.tick(now, max)),
            Command::AgentUp { agent, session, exposed } => self.agent_up(now, &agent, session, exposed),
            Command::AgentHeard { agent, session, deltas } => self.agent_heard(now, &agent, session, &deltas),
            Command::AgentGone { agent, session } => Ok(self.agent_gone(now, &agent, session)),
            Command::AgentForget { agent } => Ok(self.agent_forget(now, &agent)),
        }
    }

    /// Undoes `changes`, which must be the latest ones to these records; changes of health in between are kept for
    /// instances that stay, and lost with those that go.
    pub fn revert(&mut self, changes: &Changes) {
        for change in changes.list.iter().rev() {
            match change {
                Change::Instance { service, id, before, .. } => {
                    let now = self.entry(service, id).map(|e| (e.health, e.ballot.clone()));
                    self.take(service, id);
                    if let Some(before) = before {
                        let mut entry = before.clone();
                        if let Some((health, ballot)) = now {
                            entry.health = health;
                            let seats = |b: &Option<Arc<crate::panel::Ballot>>| {
                                b.as_ref()
                                    .map(|b| (b.quorum, b.votes.iter().map(|v| v.vantage.clone()).collect::<Vec<_>>()))
                            };
                            if seats(&ballot) == seats(&entry.ballot) {
                                entry.ballot = ballot;
                            }
                        }
                        self.put(service, entry);
                    }
                }
                Change::Service { service, before, .. } => self.put_meta(service, before.clone()),
                Change::Health { service, id, before, .. } => {
                    if let Some(entry) = self.entry_mut(service, id) {
                        entry.health = *before;
                    }
                }
                Change::Votes { service, id, before, .. } => self.swap_ballot(service, id, before.clone()),
                Change::Agent { agent, before, .. } => match before {
                    None => drop(self.agents.remove(agent)),
                    Some((session, connected)) => {
                        let known = self.agents.entry(agent.clone()).or_default();
                        (known.session, known.connected) = (*session, *connected);
                    }
                },
            }
        }
    }

    /// Puts a stored instance back, as it was before the process stopped. What its health is remains to be seen.
    pub fn restore_instance(&mut self, now: Instant, service: &ServiceKey, instance: Instance) {
        self.take(service, &instance.id);
        let mut entry = Entry::new(now, Arc::new(instance));
        if let Vantage::Agent(_) = entry.record.vantage {
            entry.health.reason = Reason::AgentGone;
        }
        entry.ballot = self.convene(now, &entry.record, self.meta(service).map(|m| &**m), None);
        if entry.ballot.is_some() {
            entry.health = entry.verdict(now);
        }
        self.put(service, entry);
    }

    /// Puts a stored service's settings back: before its instances.
    pub fn restore_service(&mut self, service: &ServiceKey, meta: ServiceMeta) {
        self.put_meta(service, Some(Arc::new(meta)));
    }

    /// Every service with its settings and instances, in order.
    pub fn services(
        &self,
    ) -> impl Iterator<Item = (&ServiceKey, Option<&Arc<ServiceMeta>>, impl Iterator<Item = &Entry>)> {
        self.services.iter().map(|(key, s)| (key, s.meta.as_ref(), s.instances.values()))
    }

    /// What is known of an instance.
    pub fn entry(&self, service: &ServiceKey, id: &InstanceId) -> Option<&Entry> {
        self.services.get(service)?.instances.get(id)
    }

    /// A service's settings, if somebody configured it.
    pub fn meta(&self, service: &ServiceKey) -> Option<&Arc<ServiceMeta>> {
        self.services.get(service)?.meta.as_ref()
    }

    /// How many instances there are.
    pub fn instance_count(&self) -> usize {
        self.instance_count
    }

    /// When a [`Command::Tick`] will next have something to do.
    pub fn due(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    fn register(&mut self, now: Instant, service: &ServiceKey, mut instance: Instance) -> Result<Changes, Refusal> {
        let checker = crate::checker::take(&mut instance.metadata)?;
        instance.check()?;
        if let Vantage::Agent(agent) = &instance.vantage {
            return Err(Refusal::OfAgent { agent: agent.clone() });
        }
        let known = self.services.get(service);
        let before = known.and_then(|s| s.instances.get(&instance.id)).cloned();
        if let Some(Vantage::Agent(agent)) = before.as_ref().map(|e| &e.record.vantage) {
            return Err(Refusal::OfAgent { agent: agent.clone() });
        }
        let (ephemeral, persistent) = known.map_or((0, 0), |s| (s.ephemeral, s.persistent));
        let others = if instance.ephemeral { persistent } else { ephemeral };
        if others > 0 {
            return Err(Refusal::Kind { service: service.clone(), ephemeral: !instance.ephemeral });
        }
        if before.is_none() {
            self.check_room(1, usize::from(known.is_none()))?;
        }
        // Nearly always it is one change, and a list makes room for four.
        let mut changes = Changes { list: Vec::with_capacity(1) };
        let (id, ephemeral, well) = (instance.id.clone(), instance.ephemeral, instance.claims_healthy);
        let meta = known.and_then(|s| s.meta.clone());
        let ballot = |before| self.convene(now, &instance, meta.as_deref(), before);
        match before {
            Some(before) if !ephemeral && *before.record == instance => {}
            Some(before) => {
                // From now on it lives by beats, whoever's connection it lived by.
                let ballot = ballot(before.ballot.as_ref());
                let mut after =
                    Entry { record: Arc::new(instance), ballot, client: None, away: false, ..before.clone() };
                if ephemeral {
                    after.beat = now;
                    after.rearm(now);
                }
                self.replace(service, Some(before), Some(after), &mut changes);
            }
            None => {
                let ballot = ballot(None);
                let mut entry = Entry { ballot, ..Entry::new(now, Arc::new(instance)) };
                if entry.ballot.is_some() {
                    entry.health = entry.verdict(now);
                }
                self.replace(service, None, Some(entry), &mut changes);
            }
        }
        // What was believed of a persistent instance stays: it was about the address, and the address is the same.
        match self.entry(service, &id).map(|e| e.ballot.is_some()) {
            Some(true) => self.conclude(now, service, &id, &mut changes),
            _ if ephemeral => {
                let health = if well { Health::Up } else { Health::Down };
                self.believe(service, &id, |h| h.heard(now, health, Reason::Beat, 0), &mut changes);
            }
            _ => {}
        }
        let checkers = checker.map(|checker| (id.cluster().clone(), checker)).into_iter().collect();
        self.put_checkers(now, service, checkers, changes)
    }

    fn deregister(
        &mut self,
        service: &ServiceKey,
        id: &InstanceId,
        ephemeral: Option<bool>,
    ) -> Result<Changes, Refusal> {
        let mut changes = Changes::default();
        let Some(entry) = self.entry(service, id) else { return Ok(changes) };
        if let Vantage::Agent(agent) = &entry.record.vantage {
            return Err(Refusal::OfAgent { agent: agent.clone() });
        }
        if ephemeral.is_some_and(|e| e != entry.record.ephemeral) {
            return Err(Refusal::WrongKind { ephemeral: entry.record.ephemeral });
        }
        let before = entry.clone();
        self.replace(service, Some(before), None, &mut changes);
        Ok(changes)
    }

    fn update(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        id: &InstanceId,
        patch: Patch,
    ) -> Result<Changes, Refusal> {
        let Some(known) = self.services.get(service) else {
            return Err(Refusal::NoService { service: service.clone() });
        };
        let Some(before) = known.instances.get(id).cloned() else {
            return Err(Refusal::NoInstance { service: service.clone(), id: id.clone() });
        };
        if let Vantage::Agent(agent) = &before.record.vantage {
            return Err(Refusal::OfAgent { agent: agent.clone() });
        }
        let mut record = Instance::clone(&before.record);
        record.weight = patch.weight.unwrap_or(record.weight);
        record.enabled = patch.enabled.unwrap_or(record.enabled);
        record.metadata = patch.metadata.unwrap_or(record.metadata);
        record.check()?;
        let mut changes = Changes::default();
        if record != *before.record {
            let ballot = self.convene(now, &record, self.meta(service).map(|m| &**m), before.ballot.as_ref());
            let had = before.ballot.is_some();
            let mut after = Entry { record: Arc::new(record), ballot, ..before.clone() };
            let has = after.ballot.is_some();
            after.rearm(now);
            self.replace(service, Some(before), Some(after), &mut changes);
            if has || had {
                self.conclude(now, service, id, &mut changes);
            }
        }
        Ok(changes)
    }

    fn check_room(&self, instances: usize, services: usize) -> Result<(), Refusal> {
        if self.instance_count + instances > self.limits.instances_max {
            return Err(Refusal::TooMany { what: "instances", max: self.limits.instances_max });
        }
        if self.services.len() + services > self.limits.services_max {
            return Err(Refusal::TooMany { what: "services", max: self.limits.services_max });
        }
        Ok(())
    }

    /// Puts `after` where `before` was, and notes it.
    fn replace(&mut self, service: &ServiceKey, before: Option<Entry>, after: Option<Entry>, changes: &mut Changes) {
        let id = before.as_ref().or(after.as_ref()).expect("a change has a side").record.id.clone();
        // All of a service's instances, and all who hear of them, share its names.
        let known = self.services.get_key_value(service).map(|(known, _)| known.clone());
        let service = known.unwrap_or_else(|| service.clone());
        if before.is_some() {
            self.take(&service, &id);
        }
        if let Some(entry) = &after {
            self.put(&service, entry.clone());
        }
        changes.list.push(Change::Instance { service, id, before, after });
    }

    /// Notes and sets a new belief, if it is one.
    fn believe(
        &mut self,
        service: &ServiceKey,
        id: &InstanceId,
        hear: impl FnOnce(HealthRecord) -> HealthRecord,
        changes: &mut Changes,
    ) {
        let Some(entry) = self.entry_mut(service, id) else { return };
        entry.believe(service, id, hear(entry.health), changes);
    }

    fn entry_mut(&mut self, service: &ServiceKey, id: &InstanceId) -> Option<&mut Entry> {
        self.services.get_mut(service)?.instances.get_mut(id)
    }

    /// Puts an entry that is not there into every index.
    fn put(&mut self, service: &ServiceKey, entry: Entry) {
        let id = entry.record.id.clone();
        if let Some(at) = entry.look_again {
            self.deadlines.insert((at, service.clone(), id.clone()));
        }
        if let Vantage::Agent(agent) = &entry.record.vantage {
            let agent = self.agents.entry(agent.clone()).or_default();
            agent.instances.insert((service.clone(), id.clone()));
        }
        if let Some(client) = entry.client {
            self.clients.entry(client).or_default().insert((service.clone(), id.clone()));
        }
        self.index(service, &id, entry.ballot.as_deref(), true);
        let known = match self.services.get_mut(service) {
            Some(known) => known,
            None => self.services.entry(service.clone()).or_default(),
        };
        known.count(&entry.record, 1);
        let old = known.instances.insert(id, entry);
        assert!(old.is_none(), "an entry is taken out before another takes its place");
        self.instance_count += 1;
    }

    /// Takes an entry out of every index; the service goes with its last one, unless somebody configured it.
    fn take(&mut self, service: &ServiceKey, id: &InstanceId) {
        let Some(known) = self.services.get_mut(service) else { return };
        let Some(entry) = known.instances.remove(id) else { return };
        known.count(&entry.record, -1);
        if known.instances.is_empty() && known.meta.is_none() {
            self.services.remove(service);
        }
        if let Some(at) = entry.look_again {
            self.deadlines.remove(&(at, service.clone(), id.clone()));
        }
        if let Vantage::Agent(agent) = &entry.record.vantage
            && let Some(agent) = self.agents.get_mut(agent)
        {
            agent.instances.remove(&(service.clone(), id.clone()));
        }
        if let Some(client) = entry.client
            && let Some(published) = self.clients.get_mut(&client)
        {
            published.remove(&(service.clone(), id.clone()));
            if published.is_empty() {
                self.clients.remove(&client);
            }
        }
        self.index(service, id, entry.ballot.as_deref(), false);
        self.instance_count -= 1;
    }

    fn put_meta(&mut self, service: &ServiceKey, meta: Option<Arc<ServiceMeta>>) {
        let known = self.services.entry(service.clone()).or_default();
        known.meta = meta;
        if known.meta.is_none() && known.instances.is_empty() {
            self.services.remove(service);
        }
    }
}

impl Service {
    fn count(&mut self, record: &Instance, by: isize) {
        let counter = match (&record.vantage, record.ephemeral) {
            (Vantage::Agent(_), _) => return,
            (Vantage::Registry, true) => &mut self.ephemeral,
            (Vantage::Registry, false) => &mut self.persistent,
        };
        *counter = counter.checked_add_signed(by).expect("no more instances go than came");
    }
}

impl Entry {
    /// Notes and sets a new belief, if it is one.
    fn believe(&mut self, service: &ServiceKey, id: &InstanceId, after: HealthRecord, changes: &mut Changes) {
        let before = self.health;
        if after != before {
            self.health = after;
            changes.list.push(Change::Health { service: service.clone(), id: id.clone(), before, after });
        }
    }

    /// A fresh entry: an ephemeral instance is what it says it is, any other one is yet to be seen.
    fn new(now: Instant, record: Arc<Instance>) -> Entry {
        let unseen = HealthRecord::unseen(now);
        let health = match (record.ephemeral, record.claims_healthy) {
            (true, true) => unseen.heard(now, Health::Up, Reason::Beat, 0),
            (true, false) => unseen.heard(now, Health::Down, Reason::Beat, 0),
            (false, _) => unseen,
        };
        let mut entry = Entry { record, health, ballot: None, beat: now, look_again: None, client: None, away: false };
        entry.rearm(now);
        entry
    }

    /// Sets when to look again, from the record's times.
    fn rearm(&mut self, now: Instant) {
        use crate::health::Fate;
        let by_beats = self.record.ephemeral && self.client.is_none() && !self.away;
        self.look_again = by_beats.then(|| match BeatTimes::of(&self.record.metadata).fate(self.beat, now) {
            Fate::Well { look_again } | Fate::Late { look_again } => look_again,
            Fate::Gone => now,
        });
    }
}
