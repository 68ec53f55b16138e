//! What other members of a cluster have put into the table, and whose turn it is to listen for an instance's beats.
//! An instance is *away* when another member listens for it: here no deadline of its runs out.
//! These are facts, not commands: they are not refused, and limits do not hold them back.

use super::{Change, Changes, Entry, Table};
use crate::health::{Health, HealthRecord, Reason};
use crate::model::{Instance, InstanceId, Name, ServiceKey, ServiceMeta, Vantage};
use ringspan_engine::time::Instant;
use std::sync::Arc;

impl Table {
    /// An instance is as `record` says; `away`: another member has it. What was believed of it stays.
    pub(crate) fn mirror(&mut self, now: Instant, service: &ServiceKey, record: Instance, away: bool) -> Changes {
        let mut changes = Changes::default();
        let (id, record) = (record.id.clone(), Arc::new(record));
        if let (Vantage::Agent(agent), true) = (&record.vantage, away) {
            self.agent_moved(agent, &mut changes);
        }
        match self.entry(service, &id).cloned() {
            Some(before) if before.record == record => self.set_away(now, service, &id, away),
            Some(before) => {
                let ballot = self.convene(now, &record, self.meta(service).map(|m| &**m), before.ballot.as_ref());
                let mut after = Entry { record, away, ballot, ..before.clone() };
                after.beat = now;
                after.client = after.client.filter(|_| !away);
                after.rearm(now);
                self.replace(service, Some(before), Some(after), &mut changes);
            }
            None => {
                let mut entry = Entry::new(now, record);
                entry.away = away;
                entry.rearm(now);
                entry.ballot = self.convene(now, &entry.record, self.meta(service).map(|m| &**m), None);
                if entry.ballot.is_some() {
                    entry.health = entry.verdict(now);
                }
                if let Vantage::Agent(_) = entry.record.vantage {
                    entry.health.reason = Reason::AgentGone;
                }
                self.replace(service, None, Some(entry), &mut changes);
            }
        }
        changes
    }

    /// An instance is gone.
    pub(crate) fn mirror_gone(&mut self, service: &ServiceKey, id: &InstanceId) -> Changes {
        let mut changes = Changes::default();
        if let Some(before) = self.entry(service, id).cloned() {
            self.replace(service, Some(before), None, &mut changes);
        }
        changes
    }

    /// A service's settings are these.
    pub(crate) fn mirror_service(&mut self, now: Instant, service: &ServiceKey, after: Option<ServiceMeta>) -> Changes {
        let mut changes = Changes::default();
        let (before, after) = (self.meta(service).cloned(), after.map(Arc::new));
        if before != after {
            self.put_meta(service, after.clone());
            changes.list.push(Change::Service { service: service.clone(), before: before.clone(), after });
            // Others may be asked from now on; what is believed then comes from whoever they are connected to.
            self.reconvene(now, service, before.as_deref(), &mut changes);
        }
        changes
    }

    /// Another member believes this of an instance.
    pub(crate) fn mirror_health(
        &mut self,
        now: Instant,
        (service, id): (&ServiceKey, &InstanceId),
        (health, reason, rtt_ns): (Health, Reason, u64),
    ) -> Changes {
        let mut changes = Changes::default();
        self.believe(service, id, |h: HealthRecord| h.heard(now, health, reason, rtt_ns), &mut changes);
        changes
    }

    /// Whether another member listens for this instance's beats.
    pub(crate) fn is_away(&self, service: &ServiceKey, id: &InstanceId) -> bool {
        self.entry(service, id).is_some_and(|e| e.away)
    }

    /// Who listens for this instance's beats from now on. Coming here starts its time anew: nobody knows when it beat.
    pub(crate) fn set_away(&mut self, now: Instant, service: &ServiceKey, id: &InstanceId, away: bool) {
        let Some(before) = self.entry(service, id).filter(|e| e.away != away) else { return };
        let mut after = Entry { away, beat: now, ..before.clone() };
        after.client = after.client.filter(|_| !away);
        after.rearm(now);
        self.take(service, id);
        self.put(service, after);
    }

    /// The agent has connected to another member: what the end of its old session says of its backends is of the past.
    fn agent_moved(&mut self, agent: &Name, changes: &mut Changes) {
        let session = self.agents.get(agent).filter(|a| a.connected).map(|a| a.session);
        if let Some(session) = session {
            self.set_agent(agent, Some((session, false)), changes);
        }
    }
}
