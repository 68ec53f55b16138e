//! Nacos v1, what consoles and scripts look things up with: the catalog, statuses, names, metadata of many at once.
//! The truth is told here: no protection threshold forges anything.

use super::params::{Params, cluster_or_default};
use super::{App, Sorry, checkers, nacos_admin};
use crate::health::Health;
use crate::model::{
    CLUSTER_DEFAULT, Checker, Cluster, InstanceId, Invalid, Metadata, NAMESPACE_DEFAULT, ServiceKey, Vantage,
};
use crate::snapshot::{InstanceView, ServiceView};
use crate::table::{Command, Patch, Refusal};
use crate::wire::{self as view, Host};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// The longest page.
const PAGE_LEN_MAX: usize = 1_000;
/// Instances whose metadata one call may change.
const BATCH_LEN_MAX: usize = 1_000;

pub(super) fn routes() -> Router<App> {
    let batch = put(put_metadata).delete(delete_metadata);
    Router::new()
        .route("/nacos/v1/ns/catalog/services", get(services))
        .route("/nacos/v1/ns/catalog/serviceList", get(services))
        .route("/nacos/v1/ns/catalog/service", get(service))
        .route("/nacos/v1/ns/catalog/instances", get(instances))
        .route("/nacos/v1/ns/service/names", get(names))
        .route("/nacos/v1/ns/service/selector/types", get(selector_types))
        .route("/nacos/v1/ns/instance/statuses", get(statuses))
        .route("/nacos/v1/ns/instance/metadata/batch", batch)
        .route("/nacos/v1/console/namespaces", get(namespaces))
}

struct Page {
    skip: usize,
    take: usize,
}

fn page(params: &Params) -> Result<Page, Sorry> {
    let number: usize = params.parse("pageNo", "a number from 1")?.unwrap_or(1);
    let take = params.parse("pageSize", "a number from 1")?.unwrap_or(100).min(PAGE_LEN_MAX);
    if number == 0 || take == 0 {
        return Err(Invalid::new("pageNo", "pages are counted from 1, and have at least 1 entry.").into());
    }
    Ok(Page { skip: (number - 1).saturating_mul(take), take })
}

/// `serviceNameParam` and `groupNameParam` are parts of the names that are wanted.
pub(super) async fn services(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let Page { skip, take } = page(&params)?;
    let namespace = params.text("namespaceId").unwrap_or(NAMESPACE_DEFAULT);
    let (name, group) =
        (params.text("serviceNameParam").unwrap_or_default(), params.text("groupNameParam").unwrap_or_default());
    let only_filled = params.flag("hasIpCount")?.unwrap_or(false);
    let wanted = |v: &Arc<ServiceView>| {
        **v.key.namespace() == *namespace
            && v.key.name().contains(name)
            && v.key.group().contains(group)
            && (!only_filled || !v.instances.is_empty())
    };
    let all: Vec<_> = app.registry.snapshot().services().into_iter().filter(wanted).collect();
    let show = |v: &Arc<ServiceView>| {
        json!({
            "name": &**v.key.name(),
            "groupName": &**v.key.group(),
            "clusterCount": nacos_admin::clusters(v).len(),
            "ipCount": v.instances.len(),
            "healthyInstanceCount": v.count(Health::Up),
            "triggerFlag": "false",
        })
    };
    let list: Vec<Value> = all.iter().skip(skip).take(take).map(show).collect();
    Ok(Json(json!({ "count": all.len(), "serviceList": list })))
}

/// The service, or 404.
pub(super) fn found(app: &App, key: ServiceKey) -> Result<Arc<ServiceView>, Sorry> {
    app.registry.snapshot().service(&key).ok_or_else(|| {
        let sorry = Sorry::from(Refusal::NoService { service: key });
        Sorry { status: StatusCode::NOT_FOUND, ..sorry }
    })
}

async fn service(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let view = found(&app, params.service()?)?;
    let metadata = view.meta.as_ref().map_or_else(Metadata::new, |m| m.metadata.clone());
    let cluster = |shown: Value| {
        let name = shown["name"].as_str().unwrap_or(CLUSTER_DEFAULT);
        let settings = view.meta.as_ref().and_then(|m| m.clusters.get(name)).cloned().unwrap_or_default();
        let Cluster { checker: Checker { how, port }, metadata } = settings;
        json!({
            "name": name,
            "serviceName": &**view.key.name(),
            "healthChecker": checkers::show(&how),
            "defaultPort": 80,
            "defaultCheckPort": port.unwrap_or(80),
            "useIpPort4Check": port.is_none(),
            "metadata": metadata,
        })
    };
    Ok(Json(json!({
        "service": {
            "name": &**view.key.name(),
            "groupName": &**view.key.group(),
            "protectThreshold": view.protect_threshold(),
            "selector": nacos_admin::selector(&view),
            "metadata": metadata,
        },
        "clusters": nacos_admin::clusters(&view).into_iter().map(cluster).collect::<Vec<_>>(),
    })))
}

/// The instances of a service as they are, a page of them.
pub(super) async fn instances(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let Page { skip, take } = page(&params)?;
    let view = found(&app, params.service()?)?;
    let cluster = params.text("clusterName").or(params.text("cluster"));
    let wanted = |i: &&InstanceView| cluster.is_none_or(|c| **i.record.id.cluster() == *c);
    let all: Vec<&InstanceView> = view.instances.iter().filter(wanted).collect();
    let show = |i: &&InstanceView| view::host(&view.key, &i.record, view::is_healthy(i));
    let list: Vec<Host> = all.iter().skip(skip).take(take).map(show).collect();
    Ok(Json(json!({ "list": list, "count": all.len() })))
}

/// Names of services by namespace.
async fn names(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let mut by_namespace = serde_json::Map::new();
    let only = params.text("namespaceId");
    let mut count = 0;
    for view in app.registry.snapshot().services() {
        let namespace = view.key.namespace();
        if only.is_none_or(|o| **namespace == *o)
            && let Some(names) = by_namespace.entry(&**namespace).or_insert_with(|| json!([])).as_array_mut()
        {
            names.push(view.key.grouped().into());
            count += 1;
        }
    }
    Ok(Json(json!({ "count": count, "META-INF/services": by_namespace })))
}

async fn selector_types() -> Json<Value> {
    Json(json!({ "code": 200, "message": null, "data": ["none", "label"] }))
}

/// `key=namespace##group@@service`: addresses and health in few letters.
async fn statuses(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    statuses_by(&app, params.required("key")?).map(Json)
}

/// `namespace##group@@service`: address and health of each instance.
pub(super) fn statuses_by(app: &App, key: &str) -> Result<Value, Sorry> {
    let (namespace, name) = key.split_once("##").unwrap_or((NAMESPACE_DEFAULT, key));
    let service = ServiceKey::new(namespace, "", name)?;
    super::access::check_read(service.namespace())?;
    let view = found(app, service)?;
    let show = |i: &InstanceView| format!("{}:{}_{}", i.record.id.host(), i.record.id.port(), view::is_healthy(i));
    Ok(json!({ "ips": view.instances.iter().map(show).collect::<Vec<_>>() }))
}

/// One of `instances` in a batch.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    ip: String,
    port: u16,
    #[serde(default)]
    cluster_name: Option<String>,
}

pub(super) async fn put_metadata(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    batch(&app, &params, |old, new| old.into_iter().chain(new).collect()).await
}

pub(super) async fn delete_metadata(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    batch(&app, &params, |old, new| old.into_iter().filter(|(k, _)| !new.contains_key(k)).collect()).await
}

/// Changes the metadata of the named instances, or of all of a kind. One that is an agent's is left alone.
async fn batch(app: &App, params: &Params, change: fn(Metadata, Metadata) -> Metadata) -> Result<Json<Value>, Sorry> {
    let key = params.service()?;
    let view = found(app, key.clone())?;
    params.required("metadata")?;
    let metadata = params.metadata("metadata")?.unwrap_or_default();
    let named: Option<Vec<Named>> = match params.text("instances") {
        None => None,
        Some(text) => Some(
            serde_json::from_str(text)
                .map_err(|e| Invalid::new("instances", format!("it is no list of instances in JSON: {e}.")))?,
        ),
    };
    let ids = named.map(|named| {
        let id = |n: &Named| InstanceId::new(cluster_or_default(n.cluster_name.as_deref()), &n.ip, n.port);
        named.iter().map(id).collect::<Result<Vec<_>, _>>()
    });
    let ids = ids.transpose()?;
    let ephemeral = params.text("consistencyType").map(|kind| kind != "persist");
    let wanted = |i: &&InstanceView| {
        let ours = i.record.vantage == Vantage::Registry;
        ours && ephemeral.is_none_or(|e| e == i.record.ephemeral)
            && ids.as_ref().is_none_or(|ids| ids.contains(&i.record.id))
    };
    let all: Vec<&InstanceView> = view.instances.iter().filter(wanted).collect();
    if all.len() > BATCH_LEN_MAX {
        return Err(
            Invalid::new("instances", format!("{} are meant, at most {BATCH_LEN_MAX} at once.", all.len())).into()
        );
    }
    let mut updated = Vec::new();
    for instance in all {
        let (id, ephemeral) = (instance.record.id.clone(), instance.record.ephemeral);
        let changed = change(instance.record.metadata.clone(), metadata.clone());
        let patch = Patch { metadata: Some(changed), ..Patch::default() };
        let name = format!(
            "{}:{}:unknown:{}:{}",
            id.host(),
            id.port(),
            id.cluster(),
            if ephemeral { "ephemeral" } else { "persist" }
        );
        match app.registry.submit(Command::Update { service: key.clone(), id, patch }).await {
            Ok(_) => updated.push(name),
            // It went meanwhile.
            Err(Refusal::NoInstance { .. } | Refusal::NoService { .. }) => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Ok(Json(json!({ "updated": updated })))
}

/// Namespaces exist by being named: the default one, and those that have services.
pub(super) async fn namespaces(State(app): State<App>) -> Json<Value> {
    let mut seen: std::collections::BTreeMap<String, usize> = [(NAMESPACE_DEFAULT.to_owned(), 0)].into();
    let actor = crate::access::Actor::current();
    let may = |namespace: &str| actor.as_ref().is_none_or(|a| a.principal.may(namespace, crate::access::Action::Read));
    for view in app.registry.snapshot().services().into_iter().filter(|v| may(v.key.namespace())) {
        *seen.entry(view.key.namespace().to_string()).or_default() += 1;
    }
    let show = |(name, count): (&String, &usize)| {
        let kind = if name == NAMESPACE_DEFAULT { 0 } else { 2 };
        json!({ "namespace": name, "namespaceShowName": name, "quota": 200, "configCount": 0, "serviceCount": count, "type": kind })
    };
    Json(json!({ "code": 200, "message": null, "data": seen.iter().map(show).collect::<Vec<_>>() }))
}
