//! Records as bytes, and back. What is read is checked as if it came from a stranger.

use crate::checker::How;
use crate::model::{
    Checker, Cluster, Instance, InstanceId, Metadata, Name, ServiceKey, ServiceMeta, Vantage, cluster_name,
};
use crate::selector::service::{LabelSelector, ServiceSelector};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// An instance's value; its key holds the names.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredInstance {
    weight: f64,
    enabled: bool,
    claims_healthy: bool,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
    /// The agent's name, if it is an agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
}

/// A service's settings; its key holds the names.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredService {
    protect_threshold: f64,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
    /// The expression of a label selector, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label_selector: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    clusters: BTreeMap<String, StoredCluster>,
}

#[derive(Serialize, Deserialize)]
struct StoredCluster {
    checker: StoredChecker,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
}

/// What is asked, and where.
#[derive(Serialize, Deserialize)]
struct StoredChecker {
    #[serde(flatten)]
    how: How,
    #[serde(default)]
    check_port: Option<u16>,
}

pub(crate) fn service_key(service: &ServiceKey) -> Vec<u8> {
    names_of(service, 0).into_bytes()
}

pub(crate) fn instance_key(service: &ServiceKey, id: &InstanceId) -> Vec<u8> {
    let mut key = names_of(service, id.cluster().len() + id.host().len() + 8);
    for part in [id.cluster(), id.host()] {
        key.push('\0');
        key.push_str(part);
    }
    write!(key, "\0{}", id.port()).expect("a text grows");
    key.into_bytes()
}

/// A service's names, and room for `more` bytes.
fn names_of(service: &ServiceKey, more: usize) -> String {
    let (namespace, group, name) = (service.namespace(), service.group(), service.name());
    let mut key = String::with_capacity(namespace.len() + group.len() + name.len() + 2 + more);
    key.push_str(namespace);
    for part in [group, name] {
        key.push('\0');
        key.push_str(part);
    }
    key
}

pub(crate) fn instance(instance: &Instance) -> Vec<u8> {
    json(&stored_instance(instance))
}

pub(crate) fn stored_instance(instance: &Instance) -> StoredInstance {
    let agent = match &instance.vantage {
        Vantage::Agent(name) => Some(name.to_string()),
        Vantage::Registry => None,
    };
    StoredInstance {
        weight: instance.weight,
        enabled: instance.enabled,
        claims_healthy: instance.claims_healthy,
        metadata: instance.metadata.clone(),
        agent,
    }
}

pub(crate) fn service(meta: &ServiceMeta) -> Vec<u8> {
    json(&stored_service(meta))
}

pub(crate) fn stored_service(meta: &ServiceMeta) -> StoredService {
    let clusters = meta.clusters.iter().map(|(name, c)| {
        let checker = StoredChecker { how: How::clone(&c.checker.how), check_port: c.checker.port };
        (name.to_string(), StoredCluster { checker, metadata: c.metadata.clone() })
    });
    StoredService {
        protect_threshold: meta.protect_threshold,
        metadata: meta.metadata.clone(),
        label_selector: meta.selector.labels().map(|s| s.expression().to_owned()),
        clusters: clusters.collect(),
    }
}

pub(crate) fn read_instance(key: &[u8], value: &[u8]) -> Result<(ServiceKey, Instance), String> {
    instance_of(key, serde_json::from_slice(value).map_err(text)?, false)
}

pub(crate) fn read_instance_key(key: &[u8]) -> Result<(ServiceKey, InstanceId), String> {
    let [namespace, group, name, cluster, host, port] = split(key)?;
    let service = ServiceKey::new(namespace, group, name).map_err(text)?;
    Ok((service, InstanceId::new(cluster, host, port.parse().map_err(text)?).map_err(text)?))
}

pub(crate) fn instance_of(
    key: &[u8],
    stored: StoredInstance,
    ephemeral: bool,
) -> Result<(ServiceKey, Instance), String> {
    let (service, id) = read_instance_key(key)?;
    let instance = Instance {
        id,
        weight: stored.weight,
        enabled: stored.enabled,
        ephemeral,
        claims_healthy: stored.claims_healthy,
        metadata: stored.metadata,
        vantage: stored.agent.map_or(Vantage::Registry, |name| Vantage::Agent(Name::from(name))),
    };
    instance.check().map_err(text)?;
    Ok((service, instance))
}

pub(crate) fn read_service_key(key: &[u8]) -> Result<ServiceKey, String> {
    let [namespace, group, name] = split(key)?;
    ServiceKey::new(namespace, group, name).map_err(text)
}

pub(crate) fn read_service(key: &[u8], value: &[u8]) -> Result<(ServiceKey, ServiceMeta), String> {
    let service = read_service_key(key)?;
    Ok((service, service_of(serde_json::from_slice(value).map_err(text)?)?))
}

pub(crate) fn service_of(stored: StoredService) -> Result<ServiceMeta, String> {
    let label = |expression: String| LabelSelector::parse(&expression).map(ServiceSelector::Label);
    let selector = stored.label_selector.map(label).transpose().map_err(text)?.unwrap_or_default();
    let mut meta = ServiceMeta {
        protect_threshold: stored.protect_threshold,
        metadata: stored.metadata,
        selector,
        clusters: BTreeMap::new(),
    };
    for (name, c) in stored.clusters {
        let StoredChecker { how, check_port } = c.checker;
        let checker = Checker::new(how.kind, how.manner, check_port).map_err(text)?;
        meta.clusters.insert(cluster_name(&name).map_err(text)?, Cluster { checker, metadata: c.metadata });
    }
    meta.check().map_err(text)?;
    Ok(meta)
}

fn split<const N: usize>(key: &[u8]) -> Result<[&str; N], String> {
    let parts: Vec<&str> = std::str::from_utf8(key).map_err(text)?.split('\0').collect();
    parts.try_into().map_err(|parts: Vec<&str>| format!("the key has {} names, {N} were expected", parts.len()))
}

pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and maps with string keys are JSON")
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
