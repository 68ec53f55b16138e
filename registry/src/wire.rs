//! Instances and services as Nacos shows them.
//! Promise: `healthy` is what is known, but where Nacos' contract asks for more: before the first verdict it is what the
//! registrant said, and below a service's protection threshold it is `true` for all that anybody can reach. What others
//! were asked to look at is not healthy before they have said so.

pub(crate) mod kept;

use crate::health::{BeatTimes, Health};
use crate::model::{CLUSTER_DEFAULT, Instance, ServiceKey, Vantage};
use crate::snapshot::{InstanceView, ServiceView};
use serde::Serialize;
use std::collections::BTreeMap;

/// How long a client may keep a list before it asks again. Milliseconds; Nacos' default.
const CACHE_MILLIS: u64 = 10_000;

/// Nacos' ServiceInfo.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceInfo {
    /// With its group; gRPC wants the bare one.
    pub(crate) name: String,
    group_name: String,
    /// What the request asked for, letter by letter: clients use it as part of a key.
    clusters: String,
    cache_millis: u64,
    last_ref_time: u64,
    checksum: &'static str,
    #[serde(rename = "allIPs")]
    all_ips: bool,
    pub(crate) reach_protection_threshold: bool,
    valid: bool,
    /// The last one: what is before it is written anew for each answer.
    pub(crate) hosts: Vec<Host>,
}

/// Nacos' Instance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Host {
    instance_id: String,
    pub(crate) ip: String,
    pub(crate) port: u16,
    weight: f64,
    pub(crate) healthy: bool,
    enabled: bool,
    ephemeral: bool,
    cluster_name: String,
    service_name: String,
    metadata: BTreeMap<String, String>,
    instance_heart_beat_interval: u64,
    instance_heart_beat_time_out: u64,
    ip_delete_timeout: u64,
    instance_id_generator: &'static str,
}

/// Whether Nacos' view calls it healthy, the protection threshold aside.
pub(crate) fn is_healthy(instance: &InstanceView) -> bool {
    match instance.health().health {
        Health::Up => true,
        Health::Down => false,
        Health::Unknown => instance.record.claims_healthy && instance.ballot().is_none(),
    }
}

/// `ip#port#cluster#group@@service`.
pub(crate) fn instance_id(service: &ServiceKey, record: &Instance) -> String {
    format!("{}#{}#{}#{}", record.id.host(), record.id.port(), record.id.cluster(), service.grouped())
}

pub(crate) fn host(service: &ServiceKey, record: &Instance, healthy: bool) -> Host {
    let times = BeatTimes::of(&record.metadata);
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Host {
        instance_id: instance_id(service, record),
        ip: record.id.host().to_string(),
        port: record.id.port(),
        weight: record.weight,
        healthy,
        enabled: record.enabled,
        ephemeral: record.ephemeral,
        cluster_name: record.id.cluster().to_string(),
        service_name: service.grouped(),
        metadata: record.metadata.clone(),
        instance_heart_beat_interval: ms(times.interval),
        instance_heart_beat_time_out: ms(times.timeout),
        ip_delete_timeout: ms(times.delete),
        instance_id_generator: "simple",
    }
}

/// The answer to a list: enabled instances of the clusters asked for (empty: all).
pub(crate) fn service_info(
    key: &ServiceKey,
    view: Option<&ServiceView>,
    clusters: &str,
    healthy_only: bool,
    now_unix_ms: u64,
) -> ServiceInfo {
    let (hosts, protect) = hosts(key, view, clusters, healthy_only);
    ServiceInfo { hosts, ..service_alone(key, clusters, protect, now_unix_ms) }
}

fn service_alone(key: &ServiceKey, clusters: &str, protect: bool, now_unix_ms: u64) -> ServiceInfo {
    ServiceInfo {
        name: key.grouped(),
        group_name: key.group().to_string(),
        clusters: clusters.to_owned(),
        cache_millis: CACHE_MILLIS,
        last_ref_time: now_unix_ms,
        checksum: "",
        all_ips: false,
        reach_protection_threshold: protect,
        valid: true,
        hosts: Vec::new(),
    }
}

/// What is listed, and whether the protection threshold is in force.
fn hosts(key: &ServiceKey, view: Option<&ServiceView>, clusters: &str, healthy_only: bool) -> (Vec<Host>, bool) {
    // "None" is Python's null, see `params::cluster_or_default`.
    let wanted: Vec<&str> = clusters.split(',').map(str::trim).filter(|c| !c.is_empty()).collect();
    let in_wanted =
        |c: &str| wanted.is_empty() || wanted.iter().any(|w| *w == c || (*w == "None" && c == CLUSTER_DEFAULT));
    let all: Vec<(&InstanceView, bool)> = view
        .into_iter()
        .flat_map(|v| &v.instances)
        .filter(|i| i.record.enabled && in_wanted(i.record.id.cluster()))
        .map(|i| (i, is_healthy(i)))
        .collect();
    let healthy = all.iter().filter(|(_, healthy)| *healthy).count();
    let threshold = view.map_or(0.0, ServiceView::protect_threshold);
    // Strictly below, so that the default of 0 means never; Nacos' "at or below" shows a service whose every instance
    // is dead as healthy throughout.
    let protect = !all.is_empty() && (healthy as f64) < threshold * all.len() as f64;
    let all = all.into_iter().map(|(i, healthy)| (i, healthy || (protect && is_reachable(i))));
    let hosts = all.filter(|(_, healthy)| *healthy || !healthy_only);
    (hosts.map(|(i, healthy)| host(key, &i.record, healthy)).collect(), protect)
}

/// Whether there may be a way to it. To the backends of an agent that is gone there is none, whatever a threshold says;
/// and of what agents were asked to look at, and is unknown, nobody says that there is one.
pub(crate) fn is_reachable(instance: &InstanceView) -> bool {
    let of_agents = match instance.record.vantage {
        Vantage::Agent(_) => true,
        Vantage::Registry => instance.ballot().is_some_and(|ballot| ballot.agents().next().is_some()),
    };
    !of_agents || instance.health().health != Health::Unknown
}
