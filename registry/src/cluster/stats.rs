//! How a member gets on with its etcd: counters that are read at each scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// All counters of a member, since its start.
#[derive(Debug, Default)]
pub struct ClusterStats {
    /// Calls that etcd answered; of its watch, which is one call without an end, nothing.
    pub(crate) calls: AtomicU64,
    pub(crate) call_ns: AtomicU64,
    /// Calls that no endpoint answered, or that were refused.
    pub(crate) calls_failed: AtomicU64,
    /// Times the lease was renewed, and could not be.
    pub(crate) renewals: AtomicU64,
    pub(crate) renewals_failed: AtomicU64,
    /// Times the lease had run out: the others had our share.
    pub(crate) leases_lost: AtomicU64,
    /// Times the watch broke, and times it had missed what etcd has forgotten.
    pub(crate) watch_breaks: AtomicU64,
    pub(crate) reread: AtomicU64,
    /// Changes of ours that came back by the watch, and how long that took after etcd had said that they are done.
    pub(crate) landed: AtomicU64,
    pub(crate) landing_ns: AtomicU64,
    /// Times others were faster.
    pub(crate) conflicts: AtomicU64,
}

impl ClusterStats {
    pub(crate) fn on_call(&self, answered: bool, took: Duration) {
        if answered {
            count(&self.calls);
            add(&self.call_ns, took);
        } else {
            count(&self.calls_failed);
        }
    }

    pub(crate) fn on_landed(&self, took: Duration) {
        count(&self.landed);
        add(&self.landing_ns, took);
    }

    /// Name, help and value of each series; times in seconds.
    pub fn series(&self) -> [(&'static str, &'static str, f64); 11] {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let seconds = |counter: &AtomicU64| of(counter) / 1e9;
        [
            ("cluster_etcd_calls", "Calls that etcd answered", of(&self.calls)),
            ("cluster_etcd_call_seconds", "Time that etcd took for them", seconds(&self.call_ns)),
            ("cluster_etcd_calls_failed", "Calls that no endpoint of etcd answered", of(&self.calls_failed)),
            ("cluster_lease_renewals", "Times this member's lease was renewed", of(&self.renewals)),
            ("cluster_lease_renewals_failed", "Times it could not be renewed", of(&self.renewals_failed)),
            ("cluster_leases_lost", "Times it had run out: the others had this member's share", of(&self.leases_lost)),
            ("cluster_watch_breaks", "Times the watch of etcd broke", of(&self.watch_breaks)),
            ("cluster_rereads", "Times everything was read again: etcd had forgotten changes", of(&self.reread)),
            ("cluster_changes", "Batches of this member's changes that are in etcd and came back", of(&self.landed)),
            ("cluster_watch_lag_seconds", "Time that the watch took to bring them back", seconds(&self.landing_ns)),
            ("cluster_conflicts", "Times another member was faster, and a batch was done again", of(&self.conflicts)),
        ]
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn add(counter: &AtomicU64, took: Duration) {
    counter.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}
