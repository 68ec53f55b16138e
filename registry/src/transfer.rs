//! What is in a registry as text, out and in: for backups, for moving, for people.
//!
//! The format is JSON, an object a line, UTF-8:
//! ```text
//! {"ringspan_registry":1}                                                      the first line: the format's number
//! {"namespace":"public","group":"DEFAULT_GROUP","service":"web",               a line for each service
//!  "settings":{"protect_threshold":0.0,"metadata":{..},"clusters":{"DEFAULT":{"checker":{"type":"TCP"},..}}},
//!  "instances":[{"cluster":"DEFAULT","host":"10.0.0.7","port":8080,"weight":1.0,"enabled":true,"claims_healthy":true,
//!                "metadata":{..}}]}
//! {"services":1,"instances":1}                                                 the last line: a file without it is cut off
//! ```
//! `settings` is there if somebody configured the service. Persistent instances alone: ephemeral ones come back by
//! themselves, and so do agents' backends.
//! Promise: what is written is of one moment. What is read is read whole and checked before anything is changed; then it is
//! put in, service by service. Doing it again changes nothing, and what else there is stays.

use crate::model::{Instance, ServiceKey, ServiceMeta, Vantage};
use crate::service::Registry;
use crate::store::codec::{self, StoredInstance, StoredService};
use crate::table::{Command, Refusal};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Write};
use std::sync::Arc;

/// Which format this is.
const FORMAT: u32 = 1;
/// Commands that are under way at a time: they share commits.
const AT_ONCE: usize = 512;
/// Longest line: a service of 100 000 instances with all the metadata they may have.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// A service with its settings and instances, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// Which one.
    pub service: ServiceKey,
    /// If it is configured.
    pub settings: Option<ServiceMeta>,
    /// Persistent ones.
    pub instances: Vec<Instance>,
}

/// How much was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Services.
    pub services: usize,
    /// Instances in them.
    pub instances: usize,
}

/// Why an import was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The text cannot be read. Nothing was changed.
    #[error("line {line}: {problem}. Nothing was changed")]
    Text {
        /// From 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// The registry refused something.
    #[error("{what}: {refusal}. {done} of {all} services are in; to go on, import the same again")]
    Refused {
        /// Which service.
        what: ServiceKey,
        /// Why.
        refusal: Box<Refusal>,
        /// Services that are in.
        done: usize,
        /// Services in all.
        all: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    ringspan_registry: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    namespace: String,
    group: String,
    service: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<StoredService>,
    instances: Vec<LineInstance>,
}

#[derive(Serialize, Deserialize)]
struct LineInstance {
    cluster: String,
    host: String,
    port: u16,
    #[serde(flatten)]
    record: StoredInstance,
}

/// Writes all that outlives the process.
///
/// # Errors
/// The writer's.
pub fn export(registry: &Registry, out: &mut dyn Write) -> io::Result<Counts> {
    let views = registry.snapshot().services();
    let ours = views.iter().map(|view| Moved {
        service: view.key.clone(),
        settings: view.meta.as_deref().cloned(),
        instances: view
            .instances
            .iter()
            .filter(|i| !i.record.ephemeral && i.record.vantage == Vantage::Registry)
            .map(|i| Instance::clone(&i.record))
            .collect(),
    });
    write(ours.filter(|moved| moved.settings.is_some() || !moved.instances.is_empty()), out)
}

/// Writes these services.
///
/// # Errors
/// The writer's.
pub fn write(services: impl Iterator<Item = Moved>, out: &mut dyn Write) -> io::Result<Counts> {
    let mut line = |value: Vec<u8>| out.write_all(&value).and_then(|()| out.write_all(b"\n"));
    let mut counts = Counts::default();
    line(codec::json(&Head { ringspan_registry: FORMAT }))?;
    for Moved { service, settings, instances } in services {
        counts.services += 1;
        counts.instances += instances.len();
        let instances = instances.iter().map(|instance| LineInstance {
            cluster: instance.id.cluster().to_string(),
            host: instance.id.host().to_string(),
            port: instance.id.port(),
            record: codec::stored_instance(instance),
        });
        line(codec::json(&Line {
            namespace: service.namespace().to_string(),
            group: service.group().to_string(),
            service: service.name().to_string(),
            settings: settings.as_ref().map(codec::stored_service),
            instances: instances.collect(),
        }))?;
    }
    line(codec::json(&counts))?;
    out.flush()?;
    Ok(counts)
}

/// Reads what [`export`] has written, and checks all of it.
///
/// # Errors
/// [`TransferError::Text`], with the line.
pub fn read(from: &mut dyn BufRead) -> Result<Vec<Moved>, TransferError> {
    let (mut all, mut counts, mut end) = (Vec::new(), Counts::default(), None);
    for number in 1.. {
        let wrong = |problem: String| TransferError::Text { line: number, problem };
        let mut text = Vec::new();
        io::Read::take(&mut *from, LINE_BYTES_MAX).read_until(b'\n', &mut text).map_err(|e| wrong(e.to_string()))?;
        let text = text.trim_ascii();
        if text.is_empty() {
            break;
        }
        if end.is_some() {
            return Err(wrong("there is something behind the end".into()));
        }
        if number == 1 {
            let head: Head = serde_json::from_slice(text).map_err(|_| {
                wrong("this is no export of a registry; its first line is {\"ringspan_registry\":1}".into())
            })?;
            if head.ringspan_registry != FORMAT {
                return Err(wrong(format!("format {}, this version reads {FORMAT}", head.ringspan_registry)));
            }
        } else if let Ok(counts) = serde_json::from_slice::<Counts>(text) {
            end = Some(counts);
        } else {
            let line: Line = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
            let moved = line.check().map_err(wrong)?;
            counts.services += 1;
            counts.instances += moved.instances.len();
            all.push(moved);
        }
    }
    match end {
        Some(said) if said == counts => Ok(all),
        Some(said) => Err(TransferError::Text {
            line: all.len() + 2,
            problem: format!("it says {said:?}, and there are {counts:?}"),
        }),
        None => Err(TransferError::Text { line: all.len() + 1, problem: "the end is missing: it was cut off".into() }),
    }
}

impl Line {
    fn check(self) -> Result<Moved, String> {
        let text = |e: crate::model::Invalid| e.to_string();
        let service = ServiceKey::new(&self.namespace, &self.group, &self.service).map_err(text)?;
        let instances = self.instances.into_iter().map(|LineInstance { cluster, host, port, record }| {
            let id = crate::model::InstanceId::new(&cluster, &host, port).map_err(text)?;
            let (_, instance) = codec::instance_of(&codec::instance_key(&service, &id), record, false)?;
            match instance.vantage {
                Vantage::Registry => Ok(instance),
                Vantage::Agent(name) => Err(format!("{} is agent {name}'s; it will bring it itself", instance.id)),
            }
        });
        let instances = instances.collect::<Result<Vec<_>, String>>()?;
        let settings = self.settings.map(codec::service_of).transpose()?;
        Ok(Moved { service, settings, instances })
    }
}

/// Puts services into a registry: settings and clusters as they are given, instances beside those that are there, in the
/// place of those with the same address. Needs a runtime.
///
/// # Errors
/// [`TransferError::Refused`] at the first service that cannot be put in whole.
pub async fn import(registry: &Registry, services: Vec<Moved>) -> Result<Counts, TransferError> {
    let mut counts = Counts::default();
    let all = services.len();
    for Moved { service, settings, instances } in services {
        let put = async {
            if let Some(settings) = settings {
                put_settings(registry, &service, settings).await?;
            }
            for some in instances.chunks(AT_ONCE) {
                let answers: Vec<_> = some
                    .iter()
                    .map(|instance| {
                        let (registry, service, instance) = (registry.clone(), service.clone(), instance.clone());
                        tokio::spawn(async move { registry.submit(Command::Register { service, instance }).await })
                    })
                    .collect();
                for answer in answers {
                    answer.await.unwrap_or(Err(Refusal::Stopped))?;
                }
            }
            Ok(())
        };
        let number = instances.len();
        if let Err(refusal) = put.await {
            return Err(TransferError::Refused {
                what: service,
                refusal: Box::new(refusal),
                done: counts.services,
                all,
            });
        }
        counts.services += 1;
        counts.instances += number;
    }
    Ok(counts)
}

async fn put_settings(registry: &Registry, service: &ServiceKey, settings: ServiceMeta) -> Result<(), Refusal> {
    let view = registry.snapshot().service(service);
    if view.as_ref().is_some_and(|v| v.meta.as_deref() == Some(&settings)) {
        return Ok(());
    }
    let put = Command::PutService {
        service: service.clone(),
        protect_threshold: Some(settings.protect_threshold),
        metadata: Some(settings.metadata),
        selector: Some(settings.selector),
        create: view.is_none(),
    };
    let _: Arc<_> = registry.submit(put).await?;
    for (cluster, settings) in settings.clusters {
        registry.submit(Command::PutCluster { service: service.clone(), cluster, settings }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
