//! Nacos v2 (`/nacos/v2/ns`), the v3 client paths (`/nacos/v3/client/ns`) and the v3 administration of naming
//! (`/nacos/v3/admin/ns`): the handlers of v1 in an [`envelope`](super::envelope), and what they show otherwise.

use super::envelope::enveloped;
use super::nacos::{beat, deregister, detail, list, register, update};
use super::nacos_admin::{
    clusters, create_service, delete_service, operator_metrics, put_cluster, selector, set_health, update_service,
};
use super::nacos_catalog::{delete_metadata, found, instances, put_metadata, statuses_by};
use super::params::Params;
use super::{App, Sorry, checkers, envelope};
use crate::model::{CLUSTER_DEFAULT, GROUP_DEFAULT, Invalid, Metadata, NAMESPACE_DEFAULT, Vantage};
use crate::snapshot::{InstanceView, ServiceView};
use crate::table::{Command, Refusal};
use crate::wire::{self as view, ServiceInfo};
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

/// Nacos' longest page of v2.
const PAGE_LEN_MAX: usize = 500;

pub(super) fn routes() -> Router<App> {
    Router::new().merge(v2()).merge(v3_client()).merge(v3_admin())
}

fn v2() -> Router<App> {
    let instance =
        post(enveloped(register)).delete(enveloped(deregister)).put(enveloped(update)).patch(enveloped(update));
    let service = post(enveloped(create_service)).put(enveloped(update_service)).delete(enveloped(delete_service));
    let health = put(enveloped(set_health));
    Router::new()
        .route("/nacos/v2/ns/instance", instance.get(enveloped(detail)))
        .route("/nacos/v2/ns/instance/list", get(enveloped(v2_list)))
        .route("/nacos/v2/ns/instance/beat", put(enveloped(beat)))
        .route("/nacos/v2/ns/instance/metadata/batch", put(enveloped(put_metadata)).delete(enveloped(delete_metadata)))
        .route("/nacos/v2/ns/instance/statuses/{key}", get(statuses_of))
        .route("/nacos/v2/console/namespace/list", get(namespace_list))
        .route("/nacos/v3/admin/core/namespace/list", get(namespace_list))
        .route("/nacos/v2/ns/service", service.get(enveloped(service_detail)))
        .route("/nacos/v2/ns/service/list", get(enveloped(service_names)))
        .route("/nacos/v2/ns/health", health.clone())
        .route("/nacos/v2/ns/health/instance", health)
        .route("/nacos/v2/ns/catalog/instances", get(enveloped(instances)))
        .route("/nacos/v2/ns/operator/metrics", get(enveloped(operator_metrics)))
        .route("/nacos/v2/ns/ops/metrics", get(enveloped(operator_metrics)))
        .route("/nacos/v2/ns/client/list", get(enveloped(client_list)))
        .route("/nacos/v2/ns/client", get(enveloped(client)))
        .route("/nacos/v2/ns/client/publish/list", get(enveloped(client_publishes)))
        .route("/nacos/v2/ns/client/subscribe/list", get(enveloped(client_subscribes)))
        .route("/nacos/v2/ns/client/service/publisher/list", get(enveloped(publishers)))
        .route("/nacos/v2/ns/client/service/subscriber/list", get(enveloped(subscriber_list)))
}

fn v3_client() -> Router<App> {
    Router::new()
        .route("/nacos/v3/client/ns/instance", post(enveloped(register_or_renew)).delete(enveloped(deregister)))
        .route("/nacos/v3/client/ns/instance/list", get(enveloped(v3_list)))
}

fn v3_admin() -> Router<App> {
    let instance = post(enveloped(register)).delete(enveloped(deregister)).put(enveloped(update));
    let service = post(enveloped(create_service)).put(enveloped(update_service)).delete(enveloped(delete_service));
    Router::new()
        .route("/nacos/v3/admin/ns/instance", instance.get(enveloped(detail)))
        .route("/nacos/v3/admin/ns/instance/list", get(enveloped(v3_list)))
        .route("/nacos/v3/admin/ns/instance/partial", put(enveloped(update)))
        .route(
            "/nacos/v3/admin/ns/instance/metadata/batch",
            put(enveloped(put_metadata)).delete(enveloped(delete_metadata)),
        )
        .route("/nacos/v3/admin/ns/service", service.get(enveloped(v3_service)))
        .route("/nacos/v3/admin/ns/service/list", get(enveloped(v3_service_page)))
        .route("/nacos/v3/admin/ns/service/subscribers", get(enveloped(subscriber_page)))
        .route("/nacos/v3/admin/ns/service/selector/types", get(enveloped(selector_types)))
        .route("/nacos/v3/admin/ns/client/list", get(enveloped(client_list)))
        .route("/nacos/v3/admin/ns/client", get(enveloped(client)))
        .route("/nacos/v3/admin/ns/client/publish/list", get(enveloped(client_publishes)))
        .route("/nacos/v3/admin/ns/client/subscribe/list", get(enveloped(client_subscribes)))
        .route("/nacos/v3/admin/ns/client/service/publisher/list", get(enveloped(publishers)))
        .route("/nacos/v3/admin/ns/client/service/subscriber/list", get(enveloped(subscriber_list)))
        .route("/nacos/v3/admin/ns/cluster", put(enveloped(put_cluster)))
        .route("/nacos/v3/admin/ns/health/instance", put(enveloped(set_health)))
        .route("/nacos/v3/admin/ns/health/checkers", get(enveloped(all_checkers)))
        .route("/nacos/v3/admin/ns/ops/metrics", get(enveloped(operator_metrics)))
        .route("/nacos/v3/admin/core/state", get(enveloped(state)))
        .route("/nacos/v3/admin/core/state/liveness", get(enveloped(ok)))
        .route("/nacos/v3/admin/core/state/readiness", get(enveloped(ok)))
}

async fn ok(_: State<App>, _: Params) -> Result<&'static str, Sorry> {
    Ok("ok")
}

async fn state(_: State<App>, _: Params) -> Result<Json<Value>, Sorry> {
    Ok(super::nacos_admin::server_state().await)
}

async fn all_checkers(_: State<App>, _: Params) -> Result<Json<Value>, Sorry> {
    Ok(Json(checkers::kinds()))
}

/// v2 names its clusters `clusterName`, where v1 says `clusters`.
async fn v2_list(State(app): State<App>, params: Params) -> Result<Json<ServiceInfo>, Sorry> {
    if params.text("clusters").is_some() {
        return list(State(app), params).await;
    }
    info(&app, &params, params.text("clusterName").unwrap_or_default())
}

fn info(app: &App, params: &Params, clusters: &str) -> Result<Json<ServiceInfo>, Sorry> {
    let service = params.service()?;
    let healthy_only = params.flag("healthyOnly")?.unwrap_or(false);
    let view = app.registry.snapshot().service(&service);
    let now = app.registry.unix_ms(app.registry.now());
    Ok(Json(view::service_info(&service, view.as_deref(), clusters, healthy_only, now)))
}

/// v3 lists one cluster, the default one if none is named, and the instances alone.
async fn v3_list(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let Json(info) = info(&app, &params, params.text("clusterName").unwrap_or(CLUSTER_DEFAULT))?;
    Ok(Json(json!(info.hosts)))
}

/// `heartBeat=true` is a beat of an instance that is there; 21003 tells the client to register.
async fn register_or_renew(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    if !params.flag("heartBeat")?.unwrap_or(false) {
        return register(State(app), params).await;
    }
    app.registry.submit(Command::Beat { service: params.service()?, id: params.instance()? }).await?;
    Ok("ok")
}

fn cluster_map(view: &ServiceView) -> Map<String, Value> {
    let of = |cluster: Value| {
        let name = cluster["name"].as_str().unwrap_or(CLUSTER_DEFAULT).to_owned();
        let port = view.meta.as_ref().and_then(|m| m.clusters.get(&*name)).and_then(|c| c.checker.port);
        let shown = json!({
            "clusterName": name,
            "healthChecker": cluster["healthChecker"],
            "healthyCheckPort": port.unwrap_or(80),
            "useInstancePortForCheck": port.is_none(),
            "metadata": cluster["metadata"],
        });
        (name, shown)
    };
    clusters(view).into_iter().map(of).collect()
}

/// A service as v2 and v3 show it, but for the name of its namespace's field.
fn shown(app: &App, params: &Params, namespace: &str) -> Result<Json<Value>, Sorry> {
    let view = found(app, params.service()?)?;
    let mut shown = json!({
        "serviceName": &**view.key.name(),
        "groupName": &**view.key.group(),
        "clusterMap": cluster_map(&view),
        "metadata": view.meta.as_ref().map_or_else(Metadata::new, |m| m.metadata.clone()),
        "protectThreshold": view.protect_threshold(),
        "selector": selector(&view),
        "ephemeral": view.instances.iter().any(|i| i.record.ephemeral),
    });
    shown[namespace] = Value::from(&**view.key.namespace());
    Ok(Json(shown))
}

async fn service_detail(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    shown(&app, &params, "namespace")
}

async fn v3_service(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    shown(&app, &params, "namespaceId")
}

fn page_of(params: &Params) -> Result<(usize, usize), Sorry> {
    let number: usize = params.parse("pageNo", "a number from 1")?.unwrap_or(1);
    let len = params.parse("pageSize", "a number from 1 to 500")?.unwrap_or(20).min(PAGE_LEN_MAX);
    if number == 0 || len == 0 {
        return Err(Invalid::new("pageNo", "pages are counted from 1, and have at least 1 entry.").into());
    }
    Ok((number, len))
}

fn names_page(app: &App, params: &Params) -> Result<(usize, Vec<std::sync::Arc<ServiceView>>), Sorry> {
    let (number, len) = page_of(params)?;
    let namespace = params.text("namespaceId").unwrap_or(NAMESPACE_DEFAULT);
    let group = params.text("groupName").unwrap_or(GROUP_DEFAULT);
    Ok(app.registry.snapshot().page(namespace, group, (number - 1).saturating_mul(len), len))
}

async fn service_names(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let (count, page) = names_page(&app, &params)?;
    let names: Vec<&str> = page.iter().map(|v| &**v.key.name()).collect();
    Ok(Json(json!({ "count": count, "services": names })))
}

async fn v3_service_page(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let (number, len) = page_of(&params)?;
    let (count, page) = names_page(&app, &params)?;
    let show = |v: &std::sync::Arc<ServiceView>| {
        json!({
            "name": &**v.key.name(),
            "groupName": &**v.key.group(),
            "clusterCount": clusters(v).len(),
            "ipCount": v.instances.len(),
            "healthyInstanceCount": v.count(crate::health::Health::Up),
            "triggerFlag": "false",
        })
    };
    Ok(Json(json!({
        "totalCount": count,
        "pageNumber": number,
        "pagesAvailable": count.div_ceil(len),
        "pageItems": page.iter().map(show).collect::<Vec<_>>(),
    })))
}

/// Nacos' name of who publishes an instance: its address, and whether it lives by beats.
fn client_id(instance: &InstanceView) -> String {
    format!("{}:{}#{}", instance.record.id.host(), instance.record.id.port(), instance.record.ephemeral)
}

/// Whether the registry itself was told of it (an agent's backends are nobody's client).
fn has_client(instance: &&InstanceView) -> bool {
    instance.record.vantage == Vantage::Registry
}

async fn client_list(State(app): State<App>, _: Params) -> Result<Json<Value>, Sorry> {
    let services = app.registry.snapshot().services();
    let ids: std::collections::BTreeSet<String> =
        services.iter().flat_map(|v| v.instances.iter().filter(has_client).map(client_id)).collect();
    Ok(Json(json!(ids)))
}

/// The services of a client, and its instance in each.
fn published(app: &App, params: &Params) -> Result<Vec<Value>, Sorry> {
    let id = params.required("clientId")?;
    let mut all = Vec::new();
    for view in app.registry.snapshot().services() {
        for instance in view.instances.iter().filter(has_client).filter(|i| client_id(i) == id) {
            all.push(json!({
                "namespace": &**view.key.namespace(),
                "group": &**view.key.group(),
                "serviceName": &**view.key.name(),
                "registeredInstance": {
                    "ip": &**instance.record.id.host(),
                    "port": instance.record.id.port(),
                    "cluster": &**instance.record.id.cluster(),
                },
            }));
        }
    }
    if all.is_empty() {
        let text = format!("clientId [ {id} ] not exist");
        return Err(Sorry::new(axum::http::StatusCode::NOT_FOUND, text).with_code(envelope::code::RESOURCE_NOT_FOUND));
    }
    Ok(all)
}

async fn client(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    published(&app, &params)?;
    let id = params.required("clientId")?;
    let (address, ephemeral) = id.rsplit_once('#').unwrap_or((id, "true"));
    let (ip, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    Ok(Json(json!({
        "clientId": id,
        "ephemeral": ephemeral == "true",
        "lastUpdatedTime": app.registry.unix_ms(app.registry.now()),
        "clientType": "ipPort",
        "clientIp": ip,
        "clientPort": port,
    })))
}

async fn client_publishes(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    Ok(Json(json!(published(&app, &params)?)))
}

async fn publishers(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let service = params.service()?;
    let Some(view) = app.registry.snapshot().service(&service) else {
        return Err(Refusal::NoService { service }.into());
    };
    let show =
        |i: &InstanceView| json!({ "clientId": client_id(i), "ip": &**i.record.id.host(), "port": i.record.id.port() });
    Ok(Json(json!(view.instances.iter().filter(has_client).map(show).collect::<Vec<_>>())))
}

/// The address in a subscriber's label.
fn address_of(label: &str) -> &str {
    label.split_once(' ').map_or(label, |(address, _)| address)
}

/// Nacos' name of a subscriber: its connection's, over gRPC; its address, over UDP.
fn subscriber_id(app: &App, address: &str) -> String {
    let connected = app.clients.list().into_iter().find(|c| c.peer.to_string() == address);
    connected.map_or_else(|| format!("{address}#true"), |c| c.connection)
}

fn show_subscriber(app: &App, label: &str) -> Value {
    let address = address_of(label);
    let (ip, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let port: u16 = port.parse().unwrap_or(0);
    json!({ "clientId": subscriber_id(app, address), "ip": ip.trim_matches(['[', ']']), "port": port })
}

async fn subscriber_list(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let labels = app.hub.labels(&params.service()?);
    let shown: Vec<Value> = labels.iter().map(|label| show_subscriber(&app, label)).collect();
    Ok(Json(shown.into()))
}

async fn subscriber_page(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let (service, (number, len)) = (params.service()?, page_of(&params)?);
    let labels = app.hub.labels(&service);
    let show = |label: &String| {
        let mut shown = show_subscriber(&app, label);
        shown["address"] = address_of(label).into();
        shown["agent"] = label.split_once(' ').map_or("unknown", |(_, agent)| agent).into();
        shown["namespaceId"] = (&**service.namespace()).into();
        shown["groupName"] = (&**service.group()).into();
        shown["serviceName"] = (&**service.name()).into();
        shown
    };
    Ok(Json(json!({
        "totalCount": labels.len(),
        "pageNumber": number,
        "pagesAvailable": labels.len().div_ceil(len),
        "pageItems": labels.iter().skip((number - 1).saturating_mul(len)).take(len).map(show).collect::<Vec<_>>(),
    })))
}

/// The services of which a client is told.
async fn client_subscribes(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let id = params.required("clientId")?;
    let connected = app.clients.list().into_iter().find(|c| c.connection == id).map(|c| c.peer.to_string());
    let address = connected.unwrap_or_else(|| id.trim_end_matches("#true").to_owned());
    let show = |service: &crate::model::ServiceKey| json!({ "namespace": &**service.namespace(), "group": &**service.group(), "serviceName": &**service.name() });
    let services = app.hub.subscribed(|label| address_of(label) == address);
    Ok(Json(services.iter().map(show).collect::<Vec<_>>().into()))
}

/// The key is part of the path: `namespace##group@@service`.
async fn statuses_of(State(app): State<App>, Path(key): Path<String>) -> Response {
    statuses_by(&app, &key).map_or_else(|sorry| envelope::bad(&sorry), envelope::good)
}

/// A list as v1's, in the newer envelope.
async fn namespace_list(State(app): State<App>) -> Response {
    let Json(mut said) = super::nacos_catalog::namespaces(State(app)).await;
    envelope::good(said["data"].take())
}

async fn selector_types(_: State<App>, _: Params) -> Result<Json<Value>, Sorry> {
    Ok(Json(json!(["none", "label"])))
}
