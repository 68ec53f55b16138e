//! What a service asks for when one of its backends is to be picked.

use crate::limits::Limiter;
use crate::outliers::EjectPolicy;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How one of several backends is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// Weighted round robin: each listener of each worker by itself.
    #[default]
    RoundRobin,
    /// The fewest visitors at the moment, for its weight. Over all workers: two that pick in the same microsecond may
    /// pick the same.
    LeastConnections,
    /// Always the same for one visitor address, as long as it is there: rendezvous hashing.
    SourceHash,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How one of several is picked.
    pub balance: Balance,
    /// With fewer healthy backends than this, the next priority is used as well. Default 1.
    pub healthy_min: u16,
    /// With less than this share healthy, in percent, all backends are used, whatever their health: the few that are
    /// left would only be overrun (Envoy's panic threshold, Nacos' protection threshold). Default 0: never.
    pub panic_percent: u8,
    /// When a backend that visitors cannot reach gets none for a while.
    pub eject: EjectPolicy,
    /// Other backends that a visitor is sent to when the first cannot be reached, 0 to 10. Default 3.
    pub retries: u8,
    /// Send a visitor on although its link broke after it had spoken: the backend may have heard it, and now another
    /// hears it as well. Default false.
    pub resend: bool,
    /// What its visitors may do.
    pub limiter: Option<Arc<Limiter>>,
}

impl Policy {
    /// Whether a visitor's address matters: then a connection cannot be shared by several.
    pub fn asks_who(&self) -> bool {
        self.balance == Balance::SourceHash || self.limiter.as_ref().is_some_and(|limiter| limiter.asks_who())
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            balance: Balance::default(),
            healthy_min: 1,
            panic_percent: 0,
            eject: EjectPolicy::default(),
            retries: 3,
            resend: false,
            limiter: None,
        }
    }
}

/// The visitors of one backend at the moment, over all workers. Clones count the same; kept from snapshot to snapshot.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicU32>);

impl Load {
    /// How many there are.
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// One more, until the guard is dropped.
    pub fn enter(&self) -> LoadGuard {
        self.0.fetch_add(1, Relaxed);
        LoadGuard(self.0.clone())
    }
}

/// It says nothing of which backend this is.
impl PartialEq for Load {
    fn eq(&self, _: &Load) -> bool {
        true
    }
}

impl Eq for Load {}

/// One visitor of a backend.
#[derive(Debug)]
pub struct LoadGuard(Arc<AtomicU32>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
