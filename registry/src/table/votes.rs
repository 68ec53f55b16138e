//! Instances with several vantages, or with others than would check them without being asked: who is asked, what each
//! found, and what is believed then.
//!
//! ```text
//! settings change ─► convene: a vote for each vantage     agent comes, goes ─► its votes are unknown
//! Heard, Witnessed ─► one vote ─► verdict ─► belief       beats late ─► down, whatever the votes say
//! ```

use super::{Change, Changes, Delta, Entry, Refusal, Table};
use crate::health::{BeatTimes, Fate, Health, HealthRecord, Reason};
use crate::model::{Instance, InstanceId, Name, ServiceKey, ServiceMeta, Vantage};
use crate::panel::{Ballot, Panel, answers_to};
use ringspan_engine::time::Instant;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who is meant by an agent's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The one that answers to it and is connected.
    Here(Name),
    /// Nobody.
    Gone,
    /// More than one.
    Twice,
}

impl Standing {
    /// Why it has nothing to say yet.
    fn reason(&self) -> Reason {
        match self {
            Standing::Here(_) => Reason::Unseen,
            Standing::Gone => Reason::AgentGone,
            Standing::Twice => Reason::AgentTwice,
        }
    }
}

impl Table {
    /// An instance that the registry or an agent was asked to look at: what the agent of this session found.
    pub(super) fn witnessed(
        &mut self,
        now: Instant,
        agent: &Name,
        session: u64,
        deltas: &[Delta],
    ) -> Result<Changes, Refusal> {
        self.check_present(agent, session)?;
        let mut changes = Changes::default();
        for delta in deltas {
            let ballot = self.entry(&delta.service, &delta.id).and_then(|e| e.ballot.clone());
            let names: Vec<Name> =
                ballot.iter().flat_map(|b| b.agents()).filter(|n| answers_to(agent, n)).cloned().collect();
            for name in names {
                if self.standing(&name) == Standing::Here(agent.clone()) {
                    self.vote(now, delta, &Vantage::Agent(name), &mut changes);
                }
            }
        }
        Ok(changes)
    }

    /// Takes one vantage's word, if it is asked for it.
    pub(super) fn vote(&mut self, now: Instant, delta: &Delta, vantage: &Vantage, changes: &mut Changes) {
        let Delta { service, id, health, reason, rtt_ns, due } = delta;
        let hear = |h: HealthRecord| HealthRecord { due: *due, ..h.heard(now, *health, *reason, *rtt_ns) };
        self.change_votes(now, service, id, |v| (*v == *vantage).then_some(&hear), changes);
    }

    /// Which agent is meant by this name.
    pub(super) fn standing(&self, name: &Name) -> Standing {
        // Those that begin with it stand in a row; whoever bears just this name goes before those with digits behind.
        if self.agents.get(name).is_some_and(|a| a.connected) {
            return Standing::Here(name.clone());
        }
        let row = self.agents.range(name.clone()..).take_while(|(agent, _)| agent.starts_with(&**name));
        let mut here = row.filter(|(agent, a)| a.connected && answers_to(agent, name)).map(|(agent, _)| agent);
        match (here.next(), here.next()) {
            (None, _) => Standing::Gone,
            (Some(one), None) => Standing::Here(one.clone()),
            (Some(_), Some(_)) => Standing::Twice,
        }
    }

    /// Names under which this agent is asked to look at something, and who is meant by each.
    pub(super) fn standings(&self, agent: &Name) -> BTreeMap<Name, Standing> {
        let names = self.watched.keys().filter(|name| answers_to(agent, name));
        names.map(|name| (name.clone(), self.standing(name))).collect()
    }

    /// After agents came or went: whoever is meant by a name now is somebody else than `before`, so what that vantage
    /// found is nothing.
    pub(super) fn reseat(&mut self, now: Instant, before: &BTreeMap<Name, Standing>, changes: &mut Changes) {
        for (name, before) in before {
            let after = self.standing(name);
            if after == *before {
                continue;
            }
            let unknown = |h: HealthRecord| h.heard(now, Health::Unknown, after.reason(), 0);
            for (service, id) in self.watched.get(name).cloned().unwrap_or_default() {
                let of = |v: &Vantage| matches!(v, Vantage::Agent(n) if n == name).then_some(&unknown);
                self.change_votes(now, &service, &id, of, changes);
            }
        }
    }

    /// The ballot of an instance with this record under these settings.
    pub(super) fn convene(
        &self,
        now: Instant,
        record: &Instance,
        meta: Option<&ServiceMeta>,
        before: Option<&Arc<Ballot>>,
    ) -> Option<Arc<Ballot>> {
        let panel = Panel::effective(record, meta)?;
        if let Some(before) = before.filter(|b| b.is_of(&panel)) {
            return Some(before.clone());
        }
        Some(Ballot::new(&panel, before.map(|b| &**b), now, |vantage| match vantage {
            Vantage::Registry => Reason::Unseen,
            Vantage::Agent(name) => self.standing(name).reason(),
        }))
    }

    /// After a service's settings changed: who is asked, and what is asked, may be something else for each instance.
    pub(super) fn reconvene(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        before: Option<&ServiceMeta>,
        changes: &mut Changes,
    ) {
        let Some(known) = self.services.get(service) else { return };
        let meta = known.meta.clone();
        let checker =
            |meta: Option<&ServiceMeta>, cluster: &str| meta.map_or_else(Default::default, |m| m.checker(cluster));
        let mut asked_otherwise = BTreeMap::<Name, bool>::new();
        let mut todo = Vec::new();
        for (id, entry) in known.instances.iter().filter(|(_, e)| e.record.vantage == Vantage::Registry) {
            let is_other = *asked_otherwise
                .entry(id.cluster().clone())
                .or_insert_with(|| checker(before, id.cluster()) != checker(meta.as_deref(), id.cluster()));
            // What another checker found says nothing of what this one will.
            let old = if is_other { None } else { entry.ballot.as_ref() };
            let ballot = self.convene(now, &entry.record, meta.as_deref(), old);
            if ballot != entry.ballot || (is_other && !entry.record.ephemeral) {
                todo.push((id.clone(), ballot));
            }
        }
        for (id, ballot) in todo {
            let had = self.entry(service, &id).is_some_and(|e| e.ballot.is_some());
            let has = ballot.is_some();
            self.set_ballot(service, &id, ballot, changes);
            if has || had {
                self.conclude(now, service, &id, changes);
            } else {
                self.believe(service, &id, |_| HealthRecord::unseen(now), changes);
            }
        }
    }

    /// Puts another ballot in an entry, and notes it.
    pub(super) fn set_ballot(
        &mut self,
        service: &ServiceKey,
        id: &InstanceId,
        after: Option<Arc<Ballot>>,
        changes: &mut Changes,
    ) {
        let before = self.entry(service, id).and_then(|e| e.ballot.clone());
        if before != after {
            self.swap_ballot(service, id, after.clone());
            changes.list.push(Change::Votes { service: service.clone(), id: id.clone(), before, after });
        }
    }

    /// The same without a note.
    pub(super) fn swap_ballot(&mut self, service: &ServiceKey, id: &InstanceId, after: Option<Arc<Ballot>>) {
        let Some(entry) = self.entry_mut(service, id) else { return };
        let before = std::mem::replace(&mut entry.ballot, after.clone());
        self.index(service, id, before.as_deref(), false);
        self.index(service, id, after.as_deref(), true);
    }

    /// Notes under whose names an instance is looked at, or no longer is.
    pub(super) fn index(&mut self, service: &ServiceKey, id: &InstanceId, ballot: Option<&Ballot>, is_in: bool) {
        for name in ballot.into_iter().flat_map(Ballot::agents) {
            if is_in {
                self.watched.entry(name.clone()).or_default().insert((service.clone(), id.clone()));
            } else if let Some(all) = self.watched.get_mut(name) {
                all.remove(&(service.clone(), id.clone()));
                if all.is_empty() {
                    self.watched.remove(name);
                }
            }
        }
    }

    /// Believes what the votes say; what the beats say, where nobody else is asked any more.
    pub(super) fn conclude(&mut self, now: Instant, service: &ServiceKey, id: &InstanceId, changes: &mut Changes) {
        let Some(entry) = self.entry(service, id) else { return };
        let after = entry.verdict(now);
        self.believe(
            service,
            id,
            |h| HealthRecord { due: after.due, ..h.heard(now, after.health, after.reason, after.rtt_ns) },
            changes,
        );
    }

    /// Changes the votes that `hear` has a word for, and concludes.
    fn change_votes<'a, F: Fn(HealthRecord) -> HealthRecord + 'a>(
        &mut self,
        now: Instant,
        service: &ServiceKey,
        id: &InstanceId,
        hear: impl Fn(&Vantage) -> Option<&'a F>,
        changes: &mut Changes,
    ) {
        let Some(mut ballot) = self.entry(service, id).and_then(|e| e.ballot.clone()) else { return };
        for vote in &mut Arc::make_mut(&mut ballot).votes {
            if let Some(hear) = hear(&vote.vantage) {
                vote.health = hear(vote.health);
            }
        }
        self.set_ballot(service, id, Some(ballot), changes);
        self.conclude(now, service, id, changes);
    }
}

impl Entry {
    /// What is to be believed now of an instance with a ballot, or of an ephemeral one.
    pub(super) fn verdict(&self, now: Instant) -> HealthRecord {
        let is_late = self.record.ephemeral
            && self.client.is_none()
            && !matches!(BeatTimes::of(&self.record.metadata).fate(self.beat, now), Fate::Well { .. });
        match (&self.ballot, is_late) {
            (_, true) => self.health.heard(now, Health::Down, Reason::BeatLate, 0),
            (Some(ballot), false) => {
                let (health, vote) = ballot.verdict();
                HealthRecord { health, ..vote }
            }
            (None, false) if self.record.ephemeral => {
                let reason = if self.client.is_some() { Reason::Connected } else { Reason::Beat };
                self.health.heard(now, Health::Up, reason, 0)
            }
            (None, false) => HealthRecord::unseen(now),
        }
    }
}
