//! The webhooks that run, in step with the configuration.
//! Promise: one that the configuration has as it was goes on undisturbed, with its queue.

use crate::config::webhook::Webhook;
use ringspan_registry::Registry;
use ringspan_registry::events::Events;
use std::collections::BTreeMap;
use tokio::task::JoinHandle;

/// See the module.
pub(super) struct Hooks {
    events: Events,
    running: BTreeMap<String, Running>,
}

struct Running {
    digest: u64,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hooks {
    /// None yet.
    pub(super) fn new(events: Events) -> Hooks {
        Hooks { events, running: BTreeMap::new() }
    }

    /// Starts and stops what it takes for these to run, and no others; what was done. Needs a runtime.
    pub(super) fn apply(&mut self, wanted: &[Webhook], registry: &Registry) -> Vec<String> {
        let is_wanted = |name: &str| wanted.iter().any(|w| w.hook.name == *name);
        let gone: Vec<String> = self.running.keys().filter(|name| !is_wanted(name)).cloned().collect();
        let mut told = Vec::new();
        for name in gone {
            self.running.remove(&name);
            told.push(format!("webhook {name:?} is gone"));
        }
        for Webhook { hook, digest } in wanted {
            let old = self.running.get(&hook.name).map(|running| running.digest);
            if old == Some(*digest) {
                continue;
            }
            // The old one ends first: its counters leave /metrics with it.
            self.running.remove(&hook.name);
            let task = tokio::spawn(hook.clone().run(&self.events, registry.shares()));
            self.running.insert(hook.name.clone(), Running { digest: *digest, task });
            let what = if old.is_some() { "is another one: what waited for the old one is lost" } else { "is new" };
            told.push(format!("webhook {:?} {what}", hook.name));
        }
        told
    }
}
