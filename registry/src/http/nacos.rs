//! Nacos v1, what clients call: instances, lists, beats.

use super::params::{Caller, Params, cluster_or_default, metadata_of};
use super::{App, Sorry, checkers};
use crate::checker::CHECKER_KEY;
use crate::health::BeatTimes;
use crate::model::{Instance, InstanceId, ServiceKey, WEIGHT_DEFAULT};
use crate::push::udp::understands;
use crate::table::{Command, Patch, Refusal};
use crate::wire::{self as view, ServiceInfo};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use http_body::{Frame, SizeHint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(super) fn routes() -> Router<App> {
    let instance = get(detail).post(register).delete(deregister).put(update).patch(update);
    Router::new()
        .route("/nacos/v1/ns/instance", instance)
        .route("/nacos/v1/ns/instance/list", get(list_and_subscribe))
        .route("/nacos/v1/ns/service/subscribers", get(subscribers))
        .route("/nacos/v1/ns/instance/beat", put(beat))
}

pub(super) async fn register(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let mut metadata = params.metadata("metadata")?.unwrap_or_default();
    if params.text("healthChecker").is_some() {
        // So the first probe is the one that was asked for.
        metadata.insert(CHECKER_KEY.to_owned(), checkers::read_inline(&params)?);
    }
    let instance = Instance {
        weight: params.parse("weight", "a number")?.unwrap_or(WEIGHT_DEFAULT),
        enabled: params.flag("enabled")?.or(params.flag("enable")?).unwrap_or(true),
        ephemeral: params.flag("ephemeral")?.unwrap_or(true),
        claims_healthy: params.flag("healthy")?.unwrap_or(true),
        metadata,
        ..Instance::new(params.instance()?)
    };
    app.registry.submit(Command::Register { service: params.service()?, instance }).await?;
    Ok("ok")
}

pub(super) async fn deregister(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let (service, id, ephemeral) = (params.service()?, params.instance()?, params.flag("ephemeral")?);
    app.registry.submit(Command::Deregister { service, id, ephemeral }).await?;
    Ok("ok")
}

/// PUT and PATCH alike change what is named and leave the rest.
pub(super) async fn update(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let patch = Patch {
        weight: params.parse("weight", "a number")?,
        enabled: params.flag("enabled")?.or(params.flag("enable")?),
        metadata: params.metadata("metadata")?,
    };
    app.registry.submit(Command::Update { service: params.service()?, id: params.instance()?, patch }).await?;
    Ok("ok")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detail {
    service: String,
    ip: String,
    port: u16,
    cluster_name: String,
    weight: f64,
    healthy: bool,
    enabled: bool,
    ephemeral: bool,
    instance_id: String,
    metadata: BTreeMap<String, String>,
}

pub(super) async fn detail(State(app): State<App>, params: Params) -> Result<Json<Detail>, Sorry> {
    let (service, id) = (params.service()?, params.instance()?);
    let view = app.registry.snapshot().service(&service);
    let Some(instance) = view.as_ref().and_then(|v| v.instance(&id)) else {
        return Err(Refusal::NoInstance { service, id }.into());
    };
    let record = &instance.record;
    Ok(Json(Detail {
        service: service.grouped(),
        ip: id.host().to_string(),
        port: id.port(),
        cluster_name: id.cluster().to_string(),
        weight: record.weight,
        healthy: view::is_healthy(instance),
        enabled: record.enabled,
        ephemeral: record.ephemeral,
        instance_id: view::instance_id(&service, record),
        metadata: record.metadata.clone(),
    }))
}

/// A list, and a subscription if the client names a UDP port for pushes.
async fn list_and_subscribe(State(app): State<App>, caller: Caller, params: Params) -> Result<Response, Sorry> {
    let port: u16 = params.parse("udpPort", "a port, 0 for none")?.unwrap_or(0);
    if let (Some(udp), Some(peer), true) = (&app.udp, caller.peer, port != 0 && understands(&caller.agent)) {
        // The address is the request's own: what the client says of it (clientIP) could be anybody's.
        let to = SocketAddr::new(peer.ip(), port);
        let clusters = params.text("clusters").unwrap_or_default();
        if let Err(refused) = udp.renew(&params.service()?, clusters, to, &caller.agent) {
            tracing::warn!(%to, %refused, "push: a client is not subscribed; it polls");
        }
    }
    let (service, clusters, healthy_only) = question(&params)?;
    let now = app.registry.unix_ms(app.registry.now());
    Ok(match app.registry.snapshot().service(&service) {
        Some(view) => {
            let pieces = app.lists.list(&view, clusters, healthy_only, now);
            ([(header::CONTENT_TYPE, "application/json")], Body::new(Pieces(pieces.into_iter()))).into_response()
        }
        None => Json(view::service_info(&service, None, clusters, healthy_only, now)).into_response(),
    })
}

/// A body of pieces that are sent as they are, without being put together.
struct Pieces(std::array::IntoIter<Bytes, 2>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_slice().iter().map(|piece| piece.len() as u64).sum())
    }
}

/// What a list is asked for: service, clusters, whether only what is healthy.
fn question(params: &Params) -> Result<(ServiceKey, &str, bool), Sorry> {
    let clusters = params.text("clusters").unwrap_or_default();
    Ok((params.service()?, clusters, params.flag("healthyOnly")?.unwrap_or(false)))
}

/// A service that is not there has no instances; clients subscribe before servers register.
pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Json<ServiceInfo>, Sorry> {
    let (service, clusters, healthy_only) = question(&params)?;
    let view = app.registry.snapshot().service(&service);
    let now = app.registry.unix_ms(app.registry.now());
    Ok(Json(view::service_info(&service, view.as_deref(), clusters, healthy_only, now)))
}

/// Who is told of changes of a service, a page of them.
pub(super) async fn subscribers(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let service = params.service()?;
    let page: usize = params.parse("pageNo", "a number from 1")?.unwrap_or(1).max(1);
    let size = params.parse("pageSize", "a number from 1")?.unwrap_or(1000).clamp(1, 1000);
    let all = app.hub.labels(&service);
    let show = |label: &String| {
        let (address, agent) = label.split_once(' ').unwrap_or((label, "unknown"));
        let (ip, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        json!({
            "addrStr": address,
            "agent": agent,
            "app": "unknown",
            "ip": ip.trim_matches(['[', ']']),
            "port": port.parse::<u16>().unwrap_or(0),
            "namespaceId": &**service.namespace(),
            "serviceName": service.grouped(),
        })
    };
    let shown: Vec<Value> = all.iter().skip((page - 1).saturating_mul(size)).take(size).map(show).collect();
    Ok(Json(json!({ "subscribers": shown, "count": all.len() })))
}

/// The beat a client sends as JSON. What a client leaves out is null or absent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BeatBody {
    ip: String,
    port: u16,
    cluster: Option<String>,
    weight: Option<f64>,
    service_name: Option<String>,
    #[serde(default)]
    metadata: serde_json::Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BeatAnswer {
    client_beat_interval: u64,
    code: u32,
    light_beat_enabled: bool,
}

/// Nacos' "all is well".
const BEAT_OK: u32 = 10_200;
/// Nacos' "register again": the beat is of an instance that is not there, and says too little to register it.
const BEAT_UNKNOWN: u32 = 20_404;

/// A beat with a body registers an instance that is not there; a light one (names only) is told to register.
pub(super) async fn beat(State(app): State<App>, params: Params) -> Result<Json<BeatAnswer>, Sorry> {
    let full = params.text("beat").map(|text| full_beat(&params, text)).transpose()?;
    let (service, id) = match &full {
        Some((service, instance)) => (service.clone(), instance.id.clone()),
        None => (params.service()?, params.instance()?),
    };
    let answer = |interval: std::time::Duration, code| {
        let client_beat_interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Ok(Json(BeatAnswer { client_beat_interval, code, light_beat_enabled: true }))
    };
    match app.registry.submit(Command::Beat { service: service.clone(), id: id.clone() }).await {
        Ok(_) => {
            let view = app.registry.snapshot().service(&service);
            let instance = view.as_ref().and_then(|v| v.instance(&id));
            let times = instance.map(|i| BeatTimes::of(&i.record.metadata)).unwrap_or_default();
            answer(times.interval, BEAT_OK)
        }
        Err(Refusal::NoInstance { .. }) => match full {
            Some((service, instance)) => {
                let interval = BeatTimes::of(&instance.metadata).interval;
                app.registry.submit(Command::Register { service, instance }).await?;
                answer(interval, BEAT_OK)
            }
            None => answer(BeatTimes::default().interval, BEAT_UNKNOWN),
        },
        Err(refusal) => Err(refusal.into()),
    }
}

fn full_beat(params: &Params, text: &str) -> Result<(ServiceKey, Instance), Sorry> {
    let body: BeatBody = serde_json::from_str(text).map_err(|e| {
        Sorry::new(StatusCode::BAD_REQUEST, format!("Param 'beat' is illegal, it is no beat in JSON: {e}."))
    })?;
    let service = match (params.text("serviceName"), &body.service_name) {
        (None, Some(name)) => ServiceKey::new(params.namespace(), params.text("groupName").unwrap_or_default(), name)?,
        _ => params.service()?,
    };
    let instance = Instance {
        weight: body.weight.unwrap_or(WEIGHT_DEFAULT),
        ephemeral: true,
        metadata: metadata_of("metadata", body.metadata)?,
        ..Instance::new(InstanceId::new(cluster_or_default(body.cluster.as_deref()), &body.ip, body.port)?)
    };
    Ok((service, instance))
}
