//! Which workers hold carriers of which agent: a snapshot that every worker reads and the worker that gains or loses a
//! carrier replaces. Rare (a carrier lives for days), so copying the whole map is cheap against a lock on each visitor.

use crate::identity::AgentId;
use arc_swap::ArcSwap;
use std::collections::HashMap;

/// Carriers of each agent's newest session, by worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    agents: HashMap<AgentId, Entry>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    generation: u64,
    /// Carriers on each worker, as far as one has any.
    carriers: Vec<u32>,
}

impl Directory {
    /// A worker with a carrier of this agent, other than `but`.
    pub(super) fn worker_of(&self, agent: &AgentId, but: usize) -> Option<usize> {
        let entry = self.agents.get(agent)?;
        (0..entry.carriers.len()).find(|&worker| worker != but && entry.carriers[worker] > 0)
    }

    fn add(&mut self, agent: AgentId, generation: u64, worker: usize) {
        let entry = self.agents.entry(agent).or_default();
        if generation > entry.generation {
            // A newer session: what the old one exposed may stand for other backends now.
            *entry = Entry { generation, carriers: Vec::new() };
        }
        if generation == entry.generation {
            entry.carriers.resize(entry.carriers.len().max(worker + 1), 0);
            entry.carriers[worker] += 1;
        }
    }

    fn remove(&mut self, agent: &AgentId, generation: u64, worker: usize) {
        let Some(entry) = self.agents.get_mut(agent).filter(|e| e.generation == generation) else { return };
        if let Some(count) = entry.carriers.get_mut(worker) {
            *count = count.saturating_sub(1);
        }
        if entry.carriers.iter().all(|&count| count == 0) {
            self.agents.remove(agent);
        }
    }
}

/// A worker has one more carrier of the agent.
pub(super) fn gain(shared: &ArcSwap<Directory>, agent: AgentId, generation: u64, worker: usize) {
    shared.rcu(|old| {
        let mut new = Directory::clone(old);
        new.add(agent, generation, worker);
        new
    });
}

/// A worker has one carrier of the agent less.
pub(super) fn lose(shared: &ArcSwap<Directory>, agent: AgentId, generation: u64, worker: usize) {
    shared.rcu(|old| {
        let mut new = Directory::clone(old);
        new.remove(&agent, generation, worker);
        new
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    /// A worker is named only while it holds a carrier of the newest session, and never the one that asks.
    #[test]
    fn only_living_carriers_are_named() {
        let agent = AgentId::of(&SigningKey::generate().public());
        let shared = ArcSwap::default();
        let ask = |but| Directory::worker_of(&shared.load(), &agent, but);
        gain(&shared, agent, 1, 0);
        gain(&shared, agent, 1, 1);
        assert_eq!((ask(0), ask(1), ask(9)), (Some(1), Some(0), Some(0)));
        gain(&shared, agent, 2, 1);
        assert_eq!((ask(0), ask(1)), (Some(1), None));
        lose(&shared, agent, 1, 1);
        assert_eq!(ask(0), Some(1));
        lose(&shared, agent, 2, 1);
        assert_eq!((ask(0), shared.load().agents.len()), (None, 0));
    }
}
