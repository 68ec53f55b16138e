//! Nacos v1, what operators and consoles call: services, clusters, health by hand, the server's own state.

use super::envelope::code;
use super::params::Params;
use super::{App, Sorry, checkers};
use crate::model::{Cluster, GROUP_DEFAULT, Invalid, Metadata, NAMESPACE_DEFAULT, Name, cluster_name};
use crate::selector::service::ServiceSelector;
use crate::snapshot::ServiceView;
use crate::table::Command;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The longest page of a list: about a megabyte of names.
const PAGE_LEN_MAX: usize = 10_000;

pub(super) fn routes() -> Router<App> {
    let service = get(service).post(create_service).put(update_service).delete(delete_service);
    let health = put(set_health);
    Router::new()
        .route("/nacos/v1/ns/service", service)
        .route("/nacos/v1/ns/service/list", get(service_list))
        .route("/nacos/v1/ns/cluster", put(put_cluster))
        .route("/nacos/v1/ns/health", health.clone())
        .route("/nacos/v1/ns/health/instance", health)
        .route("/nacos/v1/ns/health/server", get(server_health))
        .route("/nacos/v1/ns/health/checkers", get(all_checkers))
        .route("/nacos/v1/ns/operator/metrics", get(operator_metrics))
        .route("/nacos/v1/console/health/readiness", get(ok))
        .route("/nacos/v1/console/health/liveness", get(ok))
        .route("/nacos/v1/console/server/state", get(server_state))
}

async fn ok() -> &'static str {
    "OK"
}

pub(super) async fn service_list(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let page_no: usize = params.parse("pageNo", "a number from 1")?.unwrap_or(1);
    let page_len = params.parse("pageSize", "a number from 1")?.unwrap_or(20).min(PAGE_LEN_MAX);
    if page_no == 0 || page_len == 0 {
        return Err(Invalid::new("pageNo", "pages are counted from 1, and have at least 1 name.").into());
    }
    let or = |text: Option<&str>, default: &str| text.unwrap_or(default).to_owned();
    let namespace = or(params.text("namespaceId"), NAMESPACE_DEFAULT);
    let group = or(params.text("groupName"), GROUP_DEFAULT);
    let skip = (page_no - 1).saturating_mul(page_len);
    let (count, page) = app.registry.snapshot().page(&namespace, &group, skip, page_len);
    let doms: Vec<&str> = page.iter().map(|v| &**v.key.name()).collect();
    Ok(Json(json!({ "count": count, "doms": doms })))
}

async fn service(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let key = params.service()?;
    let Some(view) = app.registry.snapshot().service(&key) else {
        let refusal = crate::table::Refusal::NoService { service: key };
        return Err(Sorry::new(StatusCode::NOT_FOUND, refusal.to_string()));
    };
    Ok(Json(json!({
        "namespaceId": &**key.namespace(),
        "groupName": &**key.group(),
        "name": &**key.name(),
        "protectThreshold": view.protect_threshold(),
        "metadata": view.meta.as_ref().map_or_else(Metadata::new, |m| m.metadata.clone()),
        "selector": selector(&view),
        "clusters": clusters(&view),
    })))
}

/// A service's selector, as Nacos shows it.
pub(super) fn selector(view: &ServiceView) -> Value {
    view.meta.as_ref().map_or_else(|| ServiceSelector::None.shown(), |m| m.selector.shown())
}

pub(super) fn clusters(view: &ServiceView) -> Vec<Value> {
    let configured = view.meta.iter().flat_map(|m| m.clusters.keys());
    let names: BTreeSet<_> = view.instances.iter().map(|i| i.record.id.cluster()).chain(configured).collect();
    let of = |name: &Name| view.meta.as_ref().and_then(|m| m.clusters.get(name)).cloned().unwrap_or_default();
    let show = |name: &Name| {
        let Cluster { checker, metadata } = of(name);
        json!({ "name": &**name, "healthChecker": checkers::show(&checker.how), "metadata": metadata })
    };
    names.into_iter().map(show).collect()
}

pub(super) async fn create_service(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    put_service(app, params, true).await
}

pub(super) async fn update_service(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    put_service(app, params, false).await
}

async fn put_service(app: App, params: Params, create: bool) -> Result<&'static str, Sorry> {
    let service = params.service()?;
    let selector = params.text("selector").map(ServiceSelector::read).transpose()?;
    // A kind belongs to what is there: a service that is being made has no instances yet, and takes either.
    if let (Some(ephemeral), false) = (params.flag("ephemeral")?, create) {
        app.registry.submit(Command::Convert { service: service.clone(), ephemeral }).await?;
    }
    let command = Command::PutService {
        service,
        protect_threshold: params.parse("protectThreshold", "a number from 0 to 1")?,
        metadata: params.metadata("metadata")?,
        selector,
        create,
    };
    app.registry.submit(command).await?;
    Ok("ok")
}

pub(super) async fn delete_service(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    app.registry.submit(Command::DeleteService { service: params.service()? }).await?;
    Ok("ok")
}

pub(super) async fn put_cluster(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    params.required("clusterName")?;
    let checker = checkers::read(&params)?;
    let settings = Cluster { checker, metadata: params.metadata("metadata")?.unwrap_or_default() };
    let cluster = cluster_name(params.cluster())?;
    app.registry.submit(Command::PutCluster { service: params.service()?, cluster, settings }).await?;
    Ok("ok")
}

pub(super) async fn set_health(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let Some(healthy) = params.flag("healthy")?.or(params.flag("valid")?) else {
        return Err(
            Sorry::new(StatusCode::BAD_REQUEST, "Param 'healthy' is required.").with_code(code::HEALTHY_MISSING)
        );
    };
    let command = Command::SetHealth { service: params.service()?, id: params.instance()?, healthy };
    app.registry.submit(command).await?;
    Ok("ok")
}

async fn server_health() -> Json<Value> {
    Json(json!({ "msg": "ringspan's registry is up" }))
}

/// The checkers that are served.
pub(super) async fn all_checkers() -> Json<Value> {
    Json(checkers::kinds())
}

pub(super) async fn operator_metrics(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    if params.flag("onlyStatus")?.unwrap_or(true) {
        return Ok(Json(json!({ "status": "UP" })));
    }
    let (services, instances) = app.registry.snapshot().counts();
    let clients = app.clients.count();
    Ok(Json(json!({
        "status": "UP",
        "serviceCount": services,
        "instanceCount": instances,
        "subscribeCount": app.hub.count(),
        "clientCount": clients,
        "connectionBasedClientCount": clients,
    })))
}

pub(super) async fn server_state() -> Json<Value> {
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "standalone_mode": "standalone",
        "function_mode": "naming",
        "server": "ringspan",
    }))
}
