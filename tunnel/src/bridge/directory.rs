//! Which workers hold carriers of which session of an agent: a snapshot that every worker reads and the worker that gains or loses a
//! carrier replaces. Rare (a carrier lives for days), so copying the whole map is cheap against a lock on each visitor.

use crate::hello::SessionId;
use crate::identity::AgentId;
use arc_swap::ArcSwap;
use std::collections::HashMap;

/// A session of an agent: what a backend's number means is said by it.
pub(super) type SessionKey = (AgentId, u64);

/// Carriers of each session that take visitors, by worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    sessions: HashMap<SessionKey, Vec<u32>>,
    /// Which of them an agent's own word for its session means.
    ids: HashMap<SessionId, SessionKey>,
}

impl Directory {
    /// A worker with a carrier of this session, other than `but`.
    pub(super) fn worker_of(&self, session: &SessionKey, but: usize) -> Option<usize> {
        let carriers = self.sessions.get(session)?;
        (0..carriers.len()).find(|&worker| worker != but && carriers[worker] > 0)
    }

    /// The workers that have a carrier of this session.
    pub(super) fn workers_of(&self, session: &SessionKey) -> impl Iterator<Item = usize> {
        let carriers = self.sessions.get(session).map_or(&[][..], Vec::as_slice);
        (0..).zip(carriers).filter(|(_, count)| **count > 0).map(|(worker, _)| worker)
    }

    /// The number of this session of the agent, if it has a carrier.
    pub(super) fn generation_of(&self, agent: &AgentId, id: SessionId) -> Option<u64> {
        self.ids.get(&id).filter(|(whose, _)| whose == agent).map(|(_, generation)| *generation)
    }

    fn add(&mut self, session: SessionKey, id: SessionId, worker: usize) {
        self.ids.insert(id, session);
        let carriers = self.sessions.entry(session).or_default();
        carriers.resize(carriers.len().max(worker + 1), 0);
        carriers[worker] += 1;
    }

    fn remove(&mut self, session: &SessionKey, worker: usize) {
        let Some(carriers) = self.sessions.get_mut(session) else { return };
        if let Some(count) = carriers.get_mut(worker) {
            *count = count.saturating_sub(1);
        }
        if carriers.iter().all(|&count| count == 0) {
            self.sessions.remove(session);
            self.ids.retain(|_, its| its != session);
        }
    }
}

/// A worker has one more carrier of the session.
pub(super) fn gain(shared: &ArcSwap<Directory>, session: SessionKey, id: SessionId, worker: usize) {
    shared.rcu(|old| {
        let mut new = Directory::clone(old);
        new.add(session, id, worker);
        new
    });
}

/// A worker has one carrier of the session less.
pub(super) fn lose(shared: &ArcSwap<Directory>, session: SessionKey, worker: usize) {
    shared.rcu(|old| {
        let mut new = Directory::clone(old);
        new.remove(&session, worker);
        new
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    /// A worker is named only while it holds a carrier of that very session, and never the one that asks.
    #[test]
    fn only_living_carriers_are_named() {
        let agent = AgentId::of(&SigningKey::generate().public());
        let (shared, ids) = (ArcSwap::default(), [SessionId::generate(), SessionId::generate()]);
        let ask = |session, but| Directory::worker_of(&shared.load(), &(agent, session), but);
        gain(&shared, (agent, 1), ids[0], 0);
        gain(&shared, (agent, 1), ids[0], 1);
        assert_eq!((ask(1, 0), ask(1, 1), ask(1, 9)), (Some(1), Some(0), Some(0)));
        gain(&shared, (agent, 2), ids[1], 1);
        assert_eq!((ask(2, 0), ask(2, 1), ask(1, 1)), (Some(1), None, Some(0)));
        let of = |id| Directory::generation_of(&shared.load(), &agent, id);
        assert_eq!((of(ids[0]), of(ids[1]), of(SessionId::generate())), (Some(1), Some(2), None));
        let other = AgentId::of(&SigningKey::generate().public());
        assert_eq!(shared.load().generation_of(&other, ids[0]), None, "another agent's word is not believed");
        lose(&shared, (agent, 1), 1);
        assert_eq!((ask(2, 0), ask(1, 0)), (Some(1), None));
        lose(&shared, (agent, 2), 1);
        lose(&shared, (agent, 1), 0);
        assert_eq!((ask(2, 0), shared.load().sessions.len(), shared.load().ids.len()), (None, 0, 0));
    }
}
