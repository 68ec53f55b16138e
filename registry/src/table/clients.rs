//! Connected clients' instances: ephemeral ones that live as long as a connection does, and need no beats.
//!
//! ```text
//!            publish                          withdraw, or gone (the connection has ended)
//! (absent) ──────────► there, the client's ─────────────────────────────► (absent)
//!                        ▲            │ another client, or a beating one, registers the same address: it is theirs now,
//!                        └────────────┘ and the first one's end does not touch it
//! ```

use super::{Changes, Entry, Refusal, Table};
use crate::health::{Health, Reason};
use crate::model::{Instance, InstanceId, ServiceKey, Vantage};
use ringspan_engine::time::Instant;
use std::collections::BTreeSet;
use std::sync::Arc;

/// One connection of a client, in this process: a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl Table {
    pub(super) fn client_publish(
        &mut self,
        now: Instant,
        client: ClientId,
        service: &ServiceKey,
        mut instances: Vec<Instance>,
        only: bool,
    ) -> Result<Changes, Refusal> {
        let mut checkers = Vec::new();
        for instance in &mut instances {
            let checker = crate::checker::take(&mut instance.metadata)?;
            checkers.extend(checker.map(|checker| (instance.id.cluster().clone(), checker)));
        }
        let mut new = BTreeSet::new();
        for instance in &instances {
            instance.check()?;
            match self.entry(service, &instance.id) {
                None => drop(new.insert(&instance.id)),
                Some(Entry { record, .. }) => {
                    if let Vantage::Agent(agent) = &record.vantage {
                        return Err(Refusal::OfAgent { agent: agent.clone() });
                    }
                }
            }
        }
        let known = self.services.get(service);
        if known.is_some_and(|s| s.persistent > 0) {
            return Err(Refusal::Kind { service: service.clone(), ephemeral: false });
        }
        if !new.is_empty() {
            self.check_room(new.len(), usize::from(known.is_none()))?;
        }
        let mut changes = Changes::default();
        let meta = self.meta(service).cloned();
        for instance in &instances {
            let well = if instance.claims_healthy { Health::Up } else { Health::Down };
            let record = Arc::new(Instance { ephemeral: true, ..instance.clone() });
            let before = self.entry(service, &instance.id).cloned();
            let known = before.as_ref().and_then(|b| b.ballot.as_ref());
            let ballot = self.convene(now, &record, meta.as_deref(), known);
            let (has_ballot, look_again, client) = (ballot.is_some(), None, Some(client));
            let mut after = match &before {
                Some(before) => Entry { record, beat: now, look_again, ballot, client, away: false, ..before.clone() },
                None => Entry { look_again, ballot, client, ..Entry::new(now, record) },
            };
            if before.is_none() && has_ballot {
                after.health = after.verdict(now);
            }
            let same = before.as_ref().is_some_and(|b| b.record == after.record && b.client == after.client);
            if !same {
                self.replace(service, before, Some(after), &mut changes);
            }
            if has_ballot {
                self.conclude(now, service, &instance.id, &mut changes);
            } else {
                self.believe(service, &instance.id, |h| h.heard(now, well, Reason::Connected, 0), &mut changes);
            }
        }
        if only {
            let keep: BTreeSet<&InstanceId> = instances.iter().map(|i| &i.id).collect();
            for (of, id) in self.of_client(client) {
                if of == *service && !keep.contains(&id) {
                    self.drop_entry(&of, &id, &mut changes);
                }
            }
        }
        self.put_checkers(now, service, checkers, changes)
    }

    pub(super) fn client_withdraw(
        &mut self,
        client: ClientId,
        service: &ServiceKey,
        id: &InstanceId,
    ) -> Result<Changes, Refusal> {
        let mut changes = Changes::default();
        match self.entry(service, id) {
            None => {}
            Some(Entry { record, .. }) if !record.ephemeral => return Err(Refusal::WrongKind { ephemeral: false }),
            // Somebody else's by now, who lives.
            Some(Entry { client: Some(other), .. }) if *other != client => {}
            Some(_) => self.drop_entry(service, id, &mut changes),
        }
        Ok(changes)
    }

    pub(super) fn client_gone(&mut self, client: ClientId) -> Changes {
        let mut changes = Changes::default();
        for (service, id) in self.of_client(client) {
            self.drop_entry(&service, &id, &mut changes);
        }
        changes
    }

    fn of_client(&self, client: ClientId) -> BTreeSet<(ServiceKey, InstanceId)> {
        self.clients.get(&client).cloned().unwrap_or_default()
    }

    fn drop_entry(&mut self, service: &ServiceKey, id: &InstanceId, changes: &mut Changes) {
        let before = self.entry(service, id).cloned();
        self.replace(service, before, None, changes);
    }
}
