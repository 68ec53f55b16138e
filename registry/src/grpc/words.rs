//! What Nacos' clients say in JSON, and how answers are written.
//! Promise: what is null or left out has Nacos' default; unknown fields are ignored, since newer clients send more; no
//! answer holds a null, which Python's client refuses, nor lacks a field that the Rust one insists on.

use crate::http::metadata_of;
use crate::model::{Instance, InstanceId, Invalid, ServiceKey, WEIGHT_DEFAULT};
use crate::table::Refusal;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Nacos' error codes over gRPC (api/exception/NacosException.java, remote/response).
pub(super) mod code {
    pub(crate) const UNREGISTERED: u16 = 301;
    pub(crate) const NO_HANDLER: u16 = 302;
    pub(crate) const INVALID_PARAM: u16 = 400;
    /// Clients log in again.
    pub(crate) const NO_RIGHT: u16 = 403;
    pub(crate) const NOT_FOUND: u16 = 404;
    pub(crate) const CONFLICT: u16 = 409;
    pub(crate) const SERVER: u16 = 500;
    pub(crate) const OVER_THRESHOLD: u16 = 503;
}

/// An answer other than "done".
#[derive(Debug)]
pub(super) struct Sorry {
    pub(super) code: u16,
    pub(super) text: String,
}

impl Sorry {
    pub(super) fn new(code: u16, text: impl Into<String>) -> Sorry {
        Sorry { code, text: text.into() }
    }
}

impl From<Refusal> for Sorry {
    fn from(refusal: Refusal) -> Sorry {
        let code = match &refusal {
            Refusal::Denied { .. } => code::NO_RIGHT,
            Refusal::NoInstance { .. } | Refusal::NoService { .. } => code::NOT_FOUND,
            Refusal::OfAgent { .. } | Refusal::StaleSession { .. } => code::CONFLICT,
            Refusal::Store(_) | Refusal::Stopped => code::SERVER,
            Refusal::TooMany { .. } | Refusal::Busy { .. } => code::OVER_THRESHOLD,
            // Everything else is about what was asked.
            _ => code::INVALID_PARAM,
        };
        Sorry { code, text: refusal.to_string() }
    }
}

impl From<Invalid> for Sorry {
    fn from(invalid: Invalid) -> Sorry {
        Sorry::from(Refusal::from(invalid))
    }
}

/// The fields of every request that is served, each in some of them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Asked {
    pub(super) request_id: Option<Value>,
    namespace: Option<String>,
    service_name: Option<String>,
    group_name: Option<String>,
    pub(super) r#type: Option<String>,
    instance: Option<SaidInstance>,
    instances: Option<Vec<SaidInstance>>,
    cluster: Option<String>,
    clusters: Option<String>,
    healthy_only: Option<bool>,
    /// Python's word for it.
    health_only: Option<bool>,
    subscribe: Option<bool>,
    pub(super) page_no: Option<usize>,
    pub(super) page_size: Option<usize>,
    pub(super) client_version: Option<String>,
    /// That it is there is what counts.
    pub(super) ability_table: Option<IgnoredAny>,
}

/// An instance as a client says it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SaidInstance {
    ip: Option<String>,
    port: Option<u16>,
    weight: Option<f64>,
    healthy: Option<bool>,
    enabled: Option<bool>,
    cluster_name: Option<String>,
    metadata: Value,
}

impl Asked {
    pub(super) fn read(json: &[u8]) -> Result<Asked, Sorry> {
        // Some clients send no body at all where there is nothing to say.
        if json.is_empty() {
            return Ok(Asked::default());
        }
        serde_json::from_slice(json)
            .map_err(|e| Sorry::new(code::INVALID_PARAM, format!("the request is no JSON that can be read: {e}")))
    }

    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    pub(super) fn group(&self) -> &str {
        self.group_name.as_deref().unwrap_or_default()
    }

    pub(super) fn service(&self) -> Result<ServiceKey, Sorry> {
        let name = self.service_name.as_deref().unwrap_or_default();
        Ok(ServiceKey::new(self.namespace(), self.group(), name)?)
    }

    pub(super) fn clusters(&self) -> &str {
        self.clusters.as_deref().or(self.cluster.as_deref()).unwrap_or_default()
    }

    pub(super) fn healthy_only(&self) -> bool {
        self.healthy_only.or(self.health_only).unwrap_or(false)
    }

    pub(super) fn subscribe(&self) -> bool {
        self.subscribe.unwrap_or(true)
    }

    pub(super) fn instance(&self, ephemeral: bool) -> Result<Instance, Sorry> {
        let said = self.instance.as_ref().ok_or_else(|| Invalid::new("instance", "it is required."))?;
        Ok(said.read(ephemeral)?)
    }

    pub(super) fn instances(&self) -> Result<Vec<Instance>, Sorry> {
        let said = self.instances.as_deref().ok_or_else(|| Invalid::new("instances", "they are required."))?;
        Ok(said.iter().map(|s| s.read(true)).collect::<Result<_, _>>()?)
    }
}

impl SaidInstance {
    fn read(&self, ephemeral: bool) -> Result<Instance, Invalid> {
        let ip = self.ip.as_deref().ok_or_else(|| Invalid::new("ip", "it is required."))?;
        let port = self.port.ok_or_else(|| Invalid::new("port", "it is required."))?;
        let id = InstanceId::new(self.cluster_name.as_deref().unwrap_or_default(), ip, port)?;
        Ok(Instance {
            weight: self.weight.unwrap_or(WEIGHT_DEFAULT),
            enabled: self.enabled.unwrap_or(true),
            ephemeral,
            claims_healthy: self.healthy.unwrap_or(true),
            metadata: metadata_of("metadata", self.metadata.clone())?,
            ..Instance::new(id)
        })
    }
}

/// A good answer. `more`: further members of the object, each with a comma before it.
pub(super) fn good(request_id: Option<&Value>, more: &str) -> String {
    let id = id_of(request_id);
    format!(r#"{{"resultCode":200,"errorCode":0,"success":true{id}{more}}}"#)
}

/// Nacos' ErrorResponse.
pub(super) fn bad(request_id: Option<&Value>, sorry: &Sorry) -> String {
    let (id, code, text) = (id_of(request_id), sorry.code, Value::from(&*sorry.text));
    format!(r#"{{"resultCode":500,"errorCode":{code},"success":false,"message":{text}{id}}}"#)
}

/// The request's number as it said it, and nothing if it said none.
fn id_of(request_id: Option<&Value>) -> String {
    match request_id {
        Some(id @ (Value::String(_) | Value::Number(_))) => format!(r#","requestId":{id}"#),
        _ => String::new(),
    }
}
