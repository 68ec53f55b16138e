//! Agents' backends: instances that only their agent can see.
//!
//! ```text
//!           up(session, all it exposes)         gone(session)                     forget
//! (unknown) ──────────────────────────► connected ─────────► gone: all unknown ──────────► (removed)
//!                                         ▲   heard(session)      │
//!                                         └───── up(newer) ◄──────┘
//! ```

use super::{Change, Changes, Delta, Entry, Exposed, Refusal, Table};
use crate::health::{Health, HealthRecord, Reason};
use crate::model::{InstanceId, Name, ServiceKey, Vantage, cluster_name};
use ringspan_engine::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Table {
    pub(super) fn agent_up(
        &mut self,
        now: Instant,
        agent: &Name,
        session: u64,
        exposed: Vec<Exposed>,
    ) -> Result<Changes, Refusal> {
        cluster_name(agent)?;
        self.check_session(agent, session)?;
        let vantage = Vantage::Agent(agent.clone());
        let mut wanted = BTreeMap::new();
        for e in exposed {
            let instance = e.instance(agent)?;
            wanted.insert((e.service, instance.id.clone()), Arc::new(instance));
        }
        let mut new = 0;
        let mut new_services = BTreeSet::new();
        for (service, id) in wanted.keys() {
            match self.entry(service, id) {
                Some(entry) if entry.record.vantage != vantage => {
                    let what = format!("{id} of service {service} is registered by somebody else already.");
                    return Err(crate::model::Invalid::new("service", what).into());
                }
                Some(_) => {}
                None => {
                    new += 1;
                    if !self.services.contains_key(service) {
                        new_services.insert(service);
                    }
                }
            }
        }
        let had = self.agents.get(agent).map(|a| a.instances.clone()).unwrap_or_default();
        self.check_room(new, new_services.len())?;

        let mut changes = Changes::default();
        let standings = self.standings(agent);
        self.set_agent(agent, Some((session, true)), &mut changes);
        self.reseat(now, &standings, &mut changes);
        for (service, id) in had {
            if !wanted.contains_key(&(service.clone(), id.clone())) {
                let before = self.entry(&service, &id).cloned();
                self.replace(&service, before, None, &mut changes);
            }
        }
        for ((service, id), record) in wanted {
            let before = self.entry(&service, &id).cloned();
            match before {
                Some(before) if before.record == record => {}
                Some(before) => {
                    let after = Entry { record, away: false, ..before.clone() };
                    self.replace(&service, Some(before), Some(after), &mut changes);
                }
                None => self.replace(&service, None, Some(Entry::new(now, record)), &mut changes),
            }
            // A new session starts from nothing: its own snapshot of health follows.
            self.believe(&service, &id, |h| h.heard(now, Health::Unknown, Reason::Unseen, 0), &mut changes);
        }
        Ok(changes)
    }

    /// News are believed of the latest session alone, and while it is there.
    pub(super) fn check_present(&self, agent: &Name, session: u64) -> Result<(), Refusal> {
        let (latest, connected) = self.agents.get(agent).map_or((0, false), |a| (a.session, a.connected));
        if session != latest || !connected {
            return Err(Refusal::StaleSession { agent: agent.clone(), session, latest });
        }
        Ok(())
    }

    pub(super) fn agent_heard(
        &mut self,
        now: Instant,
        agent: &Name,
        session: u64,
        deltas: &[Delta],
    ) -> Result<Changes, Refusal> {
        self.check_present(agent, session)?;
        let mut changes = Changes::default();
        for delta in deltas {
            if self.agents[agent].instances.contains(&(delta.service.clone(), delta.id.clone())) {
                self.hear(now, delta, &mut changes);
            }
        }
        Ok(changes)
    }

    pub(super) fn agent_gone(&mut self, now: Instant, agent: &Name, session: u64) -> Changes {
        let mut changes = Changes::default();
        let Some(known) = self.agents.get(agent) else { return changes };
        if known.session != session || !known.connected {
            return changes;
        }
        let instances = known.instances.clone();
        let standings = self.standings(agent);
        self.set_agent(agent, Some((session, false)), &mut changes);
        self.reseat(now, &standings, &mut changes);
        for (service, id) in instances {
            let gone = |h: HealthRecord| h.heard(now, Health::Unknown, Reason::AgentGone, 0);
            self.believe(&service, &id, gone, &mut changes);
        }
        changes
    }

    pub(super) fn agent_forget(&mut self, now: Instant, agent: &Name) -> Changes {
        let mut changes = Changes::default();
        let Some(known) = self.agents.get(agent) else { return changes };
        for (service, id) in known.instances.clone() {
            let before = self.entry(&service, &id).cloned();
            self.replace(&service, before, None, &mut changes);
        }
        let standings = self.standings(agent);
        self.set_agent(agent, None, &mut changes);
        self.reseat(now, &standings, &mut changes);
        changes
    }

    /// Agents that have instances or are connected: name, session, whether connected, how many instances.
    pub fn agents(&self) -> impl Iterator<Item = (&Name, u64, bool, &BTreeSet<(ServiceKey, InstanceId)>)> {
        self.agents.iter().map(|(name, a)| (name, a.session, a.connected, &a.instances))
    }

    fn check_session(&self, agent: &Name, session: u64) -> Result<(), Refusal> {
        let latest = self.agents.get(agent).map_or(0, |a| a.session);
        if session == 0 || session < latest {
            return Err(Refusal::StaleSession { agent: agent.clone(), session, latest });
        }
        Ok(())
    }

    pub(super) fn set_agent(&mut self, agent: &Name, after: Option<(u64, bool)>, changes: &mut Changes) {
        let before = self.agents.get(agent).map(|a| (a.session, a.connected));
        match after {
            None => drop(self.agents.remove(agent)),
            Some((session, connected)) => {
                let known = self.agents.entry(agent.clone()).or_default();
                (known.session, known.connected) = (session, connected);
            }
        }
        if before != after {
            changes.list.push(Change::Agent { agent: agent.clone(), before, after });
        }
    }
}
