//! The table as one would write it without caring for speed: two lists, searched from end to end.
//! It shares the table's types and none of its code.

use super::*;
use crate::health::Fate;
use crate::model::Checker;

#[derive(Default)]
pub(super) struct Naive {
    instances: Vec<Row>,
    metas: Vec<(ServiceKey, ServiceMeta)>,
    agents: Vec<(Name, u64, bool)>,
}

struct Row {
    service: ServiceKey,
    record: Instance,
    health: Health,
    reason: Reason,
    beat: Instant,
    client: Option<ClientId>,
}

/// What both must agree on.
type Seen = (Vec<(ServiceKey, String, Health, Reason)>, Vec<(ServiceKey, ServiceMeta)>, usize);

pub(super) fn seen(table: &Table) -> Seen {
    let (mut rows, mut metas) = (Vec::new(), Vec::new());
    for (key, meta, entries) in table.services() {
        metas.extend(meta.map(|m| (key.clone(), ServiceMeta::clone(m))));
        rows.extend(entries.map(|e| (key.clone(), format!("{:?}", e.record), e.health.health, e.health.reason)));
    }
    rows.sort_by_key(|r| format!("{r:?}"));
    (rows, metas, table.instance_count())
}

impl Naive {
    pub(super) fn seen(&self) -> Seen {
        let row = |r: &Row| (r.service.clone(), format!("{:?}", r.record), r.health, r.reason);
        let mut rows: Vec<_> = self.instances.iter().map(row).collect();
        rows.sort_by_key(|r| format!("{r:?}"));
        let mut metas = self.metas.clone();
        metas.sort_by(|a, b| a.0.cmp(&b.0));
        (rows, metas, self.instances.len())
    }

    fn row(&mut self, service: &ServiceKey, id: &InstanceId) -> Option<&mut Row> {
        self.instances.iter_mut().find(|r| r.service == *service && r.record.id == *id)
    }

    fn exists(&self, service: &ServiceKey) -> bool {
        self.instances.iter().any(|r| r.service == *service) || self.metas.iter().any(|m| m.0 == *service)
    }

    fn checker(&self, service: &ServiceKey, id: &InstanceId) -> Checker {
        let meta = self.metas.iter().find(|m| m.0 == *service);
        meta.and_then(|m| m.1.clusters.get(id.cluster())).map_or_else(Checker::default, |c| c.checker.clone())
    }

    fn meta(&mut self, service: &ServiceKey) -> &mut ServiceMeta {
        if !self.metas.iter().any(|m| m.0 == *service) {
            self.metas.push((service.clone(), ServiceMeta::default()));
        }
        &mut self.metas.iter_mut().find(|m| m.0 == *service).unwrap().1
    }

    /// Whether it was done.
    pub(super) fn apply(&mut self, now: Instant, command: &Command) -> bool {
        match command {
            Command::Register { service, instance } => {
                let ours = |r: &&Row| r.service == *service && r.record.vantage == Vantage::Registry;
                let mixed = self.instances.iter().filter(ours).any(|r| r.record.ephemeral != instance.ephemeral);
                if mixed || instance.weight > 10_000.0 {
                    return false;
                }
                let (health, reason) = match (instance.ephemeral, instance.claims_healthy) {
                    (true, true) => (Health::Up, Reason::Beat),
                    (true, false) => (Health::Down, Reason::Beat),
                    (false, _) => (Health::Unknown, Reason::Unseen),
                };
                match self.row(service, &instance.id) {
                    Some(row) => {
                        row.record = instance.clone();
                        row.client = None;
                        if instance.ephemeral {
                            (row.health, row.reason, row.beat) = (health, reason, now);
                        }
                    }
                    None => {
                        let (service, record) = (service.clone(), instance.clone());
                        self.instances.push(Row { service, record, health, reason, beat: now, client: None });
                    }
                }
                true
            }
            Command::Deregister { service, id, ephemeral } => {
                let wrong = |r: &mut Row| ephemeral.is_some_and(|e| e != r.record.ephemeral);
                if self.row(service, id).is_some_and(wrong) {
                    return false;
                }
                self.instances.retain(|r| r.service != *service || r.record.id != *id);
                true
            }
            Command::Update { service, id, patch } => match self.row(service, id) {
                Some(row) if patch.weight.is_none_or(|w| w <= 10_000.0) => {
                    row.record.weight = patch.weight.unwrap_or(row.record.weight);
                    row.record.enabled = patch.enabled.unwrap_or(row.record.enabled);
                    true
                }
                _ => false,
            },
            Command::PutService { service, protect_threshold, create, .. } => {
                if self.exists(service) == *create || protect_threshold.is_some_and(|t| t > 1.0) {
                    return false;
                }
                let meta = self.meta(service);
                meta.protect_threshold = protect_threshold.unwrap_or(meta.protect_threshold);
                true
            }
            Command::DeleteService { service } => {
                let empty = !self.instances.iter().any(|r| r.service == *service);
                let had = self.metas.len();
                self.metas.retain(|m| !empty || m.0 != *service);
                self.metas.len() < had
            }
            Command::PutCluster { service, cluster, settings } => {
                if !self.exists(service) {
                    return false;
                }
                let old = self.meta(service).clusters.insert(cluster.clone(), settings.clone());
                if old.map_or_else(Checker::default, |c| c.checker.clone()) != settings.checker {
                    for r in self.instances.iter_mut().filter(|r| r.service == *service) {
                        let probed = r.record.vantage == Vantage::Registry && !r.record.ephemeral;
                        if probed && r.record.id.cluster() == cluster {
                            (r.health, r.reason) = (Health::Unknown, Reason::Unseen);
                        }
                    }
                }
                true
            }
            Command::ClientPublish { client, service, instances, only } => {
                let ours = |r: &&Row| r.service == *service && r.record.vantage == Vantage::Registry;
                if self.instances.iter().filter(ours).any(|r| !r.record.ephemeral) {
                    return false;
                }
                if instances.iter().any(|i| i.weight > 10_000.0) {
                    return false;
                }
                for i in instances {
                    self.instances.retain(|r| r.service != *service || r.record.id != i.id);
                    let health = if i.claims_healthy { Health::Up } else { Health::Down };
                    let record = Instance { ephemeral: true, ..i.clone() };
                    let (service, reason, client) = (service.clone(), Reason::Connected, Some(*client));
                    self.instances.push(Row { service, record, health, reason, beat: now, client });
                }
                let named = |r: &Row| instances.iter().any(|i| i.id == r.record.id);
                let theirs = |r: &Row| r.client == Some(*client) && r.service == *service;
                self.instances.retain(|r| !*only || !theirs(r) || named(r));
                true
            }
            Command::ClientWithdraw { client, service, id } => {
                if self.row(service, id).is_some_and(|r| !r.record.ephemeral) {
                    return false;
                }
                let theirs = |r: &Row| r.client.is_none_or(|c| c == *client);
                self.instances.retain(|r| r.service != *service || r.record.id != *id || !theirs(r));
                true
            }
            Command::ClientGone { client } => {
                self.instances.retain(|r| r.client != Some(*client));
                true
            }
            Command::SetHealth { service, id, healthy } => {
                let by_hand = self.checker(service, id) == Checker::none();
                match self.row(service, id) {
                    Some(row) if by_hand && !row.record.ephemeral => {
                        row.health = if *healthy { Health::Up } else { Health::Down };
                        row.reason = Reason::Manual;
                        true
                    }
                    _ => false,
                }
            }
            Command::Beat { service, id } => match self.row(service, id) {
                Some(row) if row.record.ephemeral => {
                    (row.health, row.reason, row.beat) = (Health::Up, Reason::Beat, now);
                    true
                }
                found => found.is_some(),
            },
            // None of these is generated.
            Command::Witnessed { .. }
            | Command::Convert { .. }
            | Command::EditService { .. }
            | Command::EditInstance { .. }
            | Command::Steer { .. } => false,
            Command::Heard { deltas } => {
                for d in deltas {
                    let checked = self.checker(&d.service, &d.id) != Checker::none();
                    if let Some(row) = self.row(&d.service, &d.id)
                        && checked
                        && !row.record.ephemeral
                        && row.record.vantage == Vantage::Registry
                    {
                        (row.health, row.reason) = (d.health, d.reason);
                    }
                }
                true
            }
            Command::Tick { .. } => {
                let fate = |r: &Row| BeatTimes::of(&r.record.metadata).fate(r.beat, now);
                let by_beats = |r: &Row| r.record.ephemeral && r.client.is_none();
                self.instances.retain(|r| !by_beats(r) || fate(r) != Fate::Gone);
                for r in self.instances.iter_mut().filter(|r| by_beats(r)) {
                    if let Fate::Late { .. } = fate(r) {
                        (r.health, r.reason) = (Health::Down, Reason::BeatLate);
                    }
                }
                true
            }
            Command::AgentUp { agent, session, exposed } => {
                let latest = self.agents.iter().find(|a| a.0 == *agent).map_or(0, |a| a.1);
                if *session < latest {
                    return false;
                }
                self.agents.retain(|a| a.0 != *agent);
                self.agents.push((agent.clone(), *session, true));
                self.instances.retain(|r| r.record.vantage != Vantage::Agent(agent.clone()));
                for e in exposed {
                    let record = Instance {
                        claims_healthy: false,
                        vantage: Vantage::Agent(agent.clone()),
                        ..Instance::new(e.id(agent).unwrap())
                    };
                    if self.row(&e.service, &record.id).is_none() {
                        let (health, reason) = (Health::Unknown, Reason::Unseen);
                        self.instances.push(Row {
                            service: e.service.clone(),
                            record,
                            health,
                            reason,
                            beat: now,
                            client: None,
                        });
                    }
                }
                true
            }
            Command::AgentHeard { agent, session, deltas } => {
                if !self.agents.contains(&(agent.clone(), *session, true)) {
                    return false;
                }
                for d in deltas {
                    if let Some(row) = self.row(&d.service, &d.id) {
                        (row.health, row.reason) = (d.health, d.reason);
                    }
                }
                true
            }
            Command::AgentGone { agent, session } => {
                if let Some(known) = self.agents.iter_mut().find(|a| **a == (agent.clone(), *session, true)) {
                    known.2 = false;
                    for r in self.instances.iter_mut().filter(|r| r.record.vantage == Vantage::Agent(agent.clone())) {
                        (r.health, r.reason) = (Health::Unknown, Reason::AgentGone);
                    }
                }
                true
            }
            Command::AgentForget { agent } => {
                self.agents.retain(|a| a.0 != *agent);
                self.instances.retain(|r| r.record.vantage != Vantage::Agent(agent.clone()));
                true
            }
        }
    }
}
