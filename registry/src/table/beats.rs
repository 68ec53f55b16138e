//! Health as it moves: beats, news from the prober, time passing.

use super::{Change, Changes, Delta, Refusal, Table};
use crate::health::{BeatTimes, Fate, Health, HealthRecord, Reason};
use crate::model::{InstanceId, ServiceKey, Vantage};
use ringspan_engine::time::Instant;

impl Delta {
    /// What is believed after hearing this.
    fn heard(&self, now: Instant, known: HealthRecord) -> HealthRecord {
        HealthRecord { due: self.due, ..known.heard(now, self.health, self.reason, self.rtt_ns) }
    }
}

impl Table {
    pub(super) fn beat(&mut self, now: Instant, service: &ServiceKey, id: &InstanceId) -> Result<Changes, Refusal> {
        let mut changes = Changes::default();
        let Some(entry) = self.entry_mut(service, id) else {
            return Err(Refusal::NoInstance { service: service.clone(), id: id.clone() });
        };
        // A persistent instance may beat as it likes; its health is the checker's.
        if entry.record.ephemeral {
            // The deadline stays where it is: whoever meets it looks at the last beat. So a beat costs one lookup.
            entry.beat = now;
            match (entry.ballot.is_some(), entry.health.reason) {
                (false, _) => self.believe(service, id, |h| h.heard(now, Health::Up, Reason::Beat, 0), &mut changes),
                (true, Reason::BeatLate) => self.conclude(now, service, id, &mut changes),
                // It lives; whether it is well is for others to say.
                (true, _) => {}
            }
        }
        Ok(changes)
    }

    pub(super) fn heard(&mut self, now: Instant, deltas: &[Delta]) -> Changes {
        let mut changes = Changes::default();
        for delta in deltas {
            let Some(known) = self.services.get_mut(&delta.service) else { continue };
            let Some(entry) = known.instances.get_mut(&delta.id) else { continue };
            if let Some(ballot) = &entry.ballot {
                if ballot.has(&Vantage::Registry) {
                    self.vote(now, delta, &Vantage::Registry, &mut changes);
                }
                continue;
            }
            let is_ours = entry.record.vantage == Vantage::Registry && !entry.record.ephemeral;
            if is_ours && known.meta.as_ref().is_none_or(|m| m.asked(&delta.id).is_some()) {
                let believed = delta.heard(now, entry.health);
                entry.believe(&delta.service, &delta.id, believed, &mut changes);
            }
        }
        changes
    }

    pub(super) fn hear(&mut self, now: Instant, delta: &Delta, changes: &mut Changes) {
        self.believe(&delta.service, &delta.id, |known| delta.heard(now, known), changes);
    }

    pub(super) fn tick(&mut self, now: Instant, max: usize) -> Changes {
        let mut changes = Changes::default();
        for _ in 0..max {
            let Some((at, service, id)) = self.deadlines.first().cloned() else { break };
            if at > now {
                break;
            }
            let entry = self.entry(&service, &id).expect("a deadline is of an instance that is there");
            match BeatTimes::of(&entry.record.metadata).fate(entry.beat, now) {
                Fate::Well { look_again } => self.look_again(&service, &id, at, look_again),
                Fate::Late { look_again } => {
                    self.believe(&service, &id, |h| h.heard(now, Health::Down, Reason::BeatLate, 0), &mut changes);
                    self.look_again(&service, &id, at, look_again);
                }
                Fate::Gone => {
                    let before = entry.clone();
                    self.take(&service, &id);
                    changes.list.push(Change::Instance { service, id, before: Some(before), after: None });
                }
            }
        }
        changes
    }

    fn look_again(&mut self, service: &ServiceKey, id: &InstanceId, was: Instant, at: Instant) {
        self.deadlines.remove(&(was, service.clone(), id.clone()));
        self.deadlines.insert((at, service.clone(), id.clone()));
        self.entry_mut(service, id).expect("it was there a moment ago").look_again = Some(at);
    }
}
