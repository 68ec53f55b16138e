//! What our own API shows: the truth, with nothing made up for anybody's sake. Times in Unix milliseconds, round trips in
//! microseconds.

use super::settings::{CheckerBody, PanelBody};
use crate::checker::Checker;
use crate::health::{Health, HealthRecord, health_str};
use crate::model::{Metadata, ServiceKey};
use crate::service::Registry;
use crate::snapshot::{InstanceView, ServiceView};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A service in a list.
#[derive(Serialize)]
pub(super) struct Summary {
    namespace: String,
    group: String,
    name: String,
    /// Whether somebody configured it: then it stays when its last instance goes.
    configured: bool,
    protect_threshold: f64,
    metadata: Metadata,
    instance_count: usize,
    #[serde(flatten)]
    tally: Tally,
}

/// How many are how.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Tally {
    pub(super) up: usize,
    pub(super) down: usize,
    pub(super) unknown: usize,
}

impl Tally {
    pub(super) fn of(view: &ServiceView) -> Tally {
        let mut tally = Tally::default();
        view.instances.iter().for_each(|i| tally.add(i.health().health));
        tally
    }

    pub(super) fn add(&mut self, health: Health) {
        match health {
            Health::Up => self.up += 1,
            Health::Down => self.down += 1,
            Health::Unknown => self.unknown += 1,
        }
    }
}

impl Summary {
    pub(super) fn of(view: &ServiceView) -> Summary {
        Summary {
            namespace: view.key.namespace().to_string(),
            group: view.key.group().to_string(),
            name: view.key.name().to_string(),
            configured: view.meta.is_some(),
            protect_threshold: view.protect_threshold(),
            metadata: view.meta.as_ref().map_or_else(Metadata::new, |m| m.metadata.clone()),
            instance_count: view.instances.len(),
            tally: Tally::of(view),
        }
    }
}

/// One service.
#[derive(Serialize)]
pub(super) struct Detail {
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_by: Option<PanelBody>,
    /// The labels of its selector, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    same_labels: Option<Vec<String>>,
    /// Those that were configured, and those that instances are in.
    clusters: BTreeMap<String, ClusterSeen>,
    /// The first thousand.
    instances: Vec<Seen>,
}

#[derive(Serialize)]
struct ClusterSeen {
    /// What is asked there, the service's manner taken in.
    checker: CheckerBody,
    metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_by: Option<PanelBody>,
}

impl Detail {
    pub(super) fn of(registry: &Registry, view: &ServiceView, instances_max: usize) -> Detail {
        let meta = view.meta.as_deref();
        let configured = meta.into_iter().flat_map(|m| m.clusters.keys());
        let names: BTreeSet<_> = configured.chain(view.instances.iter().map(|i| i.record.id.cluster())).collect();
        let cluster = |name: &crate::model::Name| {
            let known = meta.and_then(|m| m.clusters.get(name));
            let checker = meta.map_or_else(Checker::default, |m| m.checker(name));
            let metadata = known.map(|c| c.metadata.clone()).unwrap_or_default();
            ClusterSeen { checker: CheckerBody::of(&checker), checked_by: PanelBody::of(&metadata), metadata }
        };
        Detail {
            summary: Summary::of(view),
            checked_by: meta.and_then(|m| PanelBody::of(&m.metadata)),
            same_labels: meta.and_then(|m| m.selector.labels()).map(|s| s.labels().map(str::to_owned).collect()),
            clusters: names.into_iter().map(|name| (name.to_string(), cluster(name))).collect(),
            instances: view.instances.iter().take(instances_max).map(|i| Seen::of(registry, view, i)).collect(),
        }
    }
}

/// An instance, its health, and why.
#[derive(Serialize)]
pub(super) struct Seen {
    namespace: String,
    group: String,
    service: String,
    cluster: String,
    host: String,
    port: u16,
    weight: f64,
    enabled: bool,
    ephemeral: bool,
    /// Whose instance it is: "registry", or "agent:NAME".
    vantage: String,
    /// What each of those found who check it.
    vantages: Vec<Voice>,
    /// How many of them have to find it well.
    quorum: u8,
    /// Where it is probed from the registry; absent if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    probed: Option<String>,
    #[serde(flatten)]
    health: Verdict,
    metadata: Metadata,
}

/// What is believed.
#[derive(Serialize)]
struct Verdict {
    health: &'static str,
    reason: &'static str,
    why: &'static str,
    since_ms: u64,
    rtt_us: u64,
}

/// What one vantage found.
#[derive(Serialize)]
struct Voice {
    /// "registry", "beats", or "agent:NAME".
    vantage: String,
    #[serde(flatten)]
    health: Verdict,
}

impl Verdict {
    fn of(registry: &Registry, h: HealthRecord) -> Verdict {
        Verdict {
            health: health_str(h.health),
            reason: h.reason.as_str(),
            why: h.reason.sentence(),
            since_ms: registry.unix_ms(h.since),
            rtt_us: h.rtt_ns / 1_000,
        }
    }
}

impl Seen {
    pub(super) fn of(registry: &Registry, view: &ServiceView, i: &InstanceView) -> Seen {
        let record = &i.record;
        let voice = |(vantage, h): (String, HealthRecord)| Voice { vantage, health: Verdict::of(registry, h) };
        Seen {
            namespace: view.key.namespace().to_string(),
            group: view.key.group().to_string(),
            service: view.key.name().to_string(),
            cluster: record.id.cluster().to_string(),
            host: record.id.host().to_string(),
            port: record.id.port(),
            weight: record.weight,
            enabled: record.enabled,
            ephemeral: record.ephemeral,
            vantage: record.vantage.to_string(),
            vantages: i.votes().into_iter().map(voice).collect(),
            quorum: i.ballot().map_or(1, |b| b.quorum),
            probed: view.probed(record).map(|asked| asked.address.to_string()),
            health: Verdict::of(registry, i.health()),
            metadata: record.metadata.clone(),
        }
    }
}

/// Whether this is the service meant.
pub(super) fn is_of(key: &ServiceKey, namespace: Option<&str>, group: Option<&str>) -> bool {
    namespace.is_none_or(|n| n == &**key.namespace()) && group.is_none_or(|g| g == &**key.group())
}
