//! Nacos, what operators and newer clients ask beside naming: the cluster's nodes, the switches.
//! Promise: what is answered is true; a switch that would switch nothing says so.

use super::envelope::enveloped;
use super::params::Params;
use super::{App, Sorry, nacos_admin};
use crate::checker::{CHECKS_KEY, MANNER_KEY, Manner};
use crate::model::cluster_name;
use crate::table::{Command, Refusal};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::convert::Infallible;

pub(super) fn routes() -> Router<App> {
    let enveloped_switches = get(enveloped(switches)).put(enveloped(set_switch));
    let switches = get(switches).put(set_switch);
    let mut routes = Router::new();
    for path in ["/nacos/v1/ns/operator/switches", "/nacos/v1/ns/ops/switches"] {
        routes = routes.route(path, switches.clone());
    }
    for path in ["/nacos/v2/ns/operator/switches", "/nacos/v2/ns/ops/switches", "/nacos/v3/admin/ns/ops/switches"] {
        routes = routes.route(path, enveloped_switches.clone());
    }
    for path in ["/nacos/v2/console/health/readiness", "/nacos/v2/console/health/liveness"] {
        routes = routes.route(path, get(enveloped(ok)));
    }
    routes
        .route("/nacos/v1/ns/ops/metrics", get(nacos_admin::operator_metrics))
        .route("/nacos/v1/ns/operator/servers", get(servers))
        .route("/nacos/v1/ns/operator/distro/client", get(responsible))
        .route("/nacos/v1/core/cluster/nodes", get(nodes_v1))
        .route("/nacos/v1/core/cluster/self", get(self_v1))
        .route("/nacos/v2/core/cluster/node/list", get(nodes))
        .route("/nacos/v2/core/cluster/node/self", get(this_node))
        .route("/nacos/v2/core/cluster/node/self/health", get(enveloped(up)))
        .route("/nacos/v3/admin/core/cluster/node/list", get(nodes))
        .route("/nacos/v3/admin/core/cluster/node/self", get(this_node))
        .route("/nacos/v3/admin/core/cluster/node/self/health", get(enveloped(up)))
}

async fn ok(_: State<App>, _: Params) -> Result<&'static str, Sorry> {
    Ok("ok")
}

async fn up(_: State<App>, _: Params) -> Result<&'static str, Sorry> {
    Ok("UP")
}

/// This node as its caller reached it: by the request's Host.
struct Node {
    ip: String,
    port: u16,
}

impl<S: Send + Sync> FromRequestParts<S> for Node {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Node, Infallible> {
        let host = parts.headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("127.0.0.1:8848");
        let authority = host.parse::<axum::http::uri::Authority>().ok();
        let ip = authority.as_ref().map_or("127.0.0.1", |a| a.host()).to_owned();
        Ok(Node { ip, port: authority.and_then(|a| a.port_u16()).unwrap_or(80) })
    }
}

impl Node {
    fn address(&self) -> String {
        format!("{}:{}", self.ip, self.port)
    }

    fn show(&self) -> Value {
        json!({
            "ip": self.ip,
            "port": self.port,
            "state": "UP",
            "address": self.address(),
            "extendInfo": { "version": env!("CARGO_PKG_VERSION"), "server": "ringspan" },
            "failAccessCnt": 0,
            "abilities": {},
        })
    }
}

/// The members of the cluster; without one, this node.
fn all_nodes(app: &App, node: &Node) -> Value {
    let members = app.registry.members();
    if members.is_empty() {
        return json!([node.show()]);
    }
    let show = |(name, url): &(String, String)| {
        let authority = url.split("://").last().unwrap_or(url).trim_end_matches('/');
        let (ip, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
        let node = Node { ip: ip.trim_matches(['[', ']']).to_owned(), port: port.parse().unwrap_or(80) };
        let mut shown = node.show();
        shown["address"] = authority.into();
        shown["extendInfo"]["name"] = name.as_str().into();
        shown
    };
    members.iter().map(show).collect()
}

async fn servers(State(app): State<App>, node: Node) -> Json<Value> {
    Json(json!({ "servers": all_nodes(&app, &node) }))
}

async fn responsible(node: Node) -> Json<Value> {
    Json(json!({ "responsibleServer": node.address() }))
}

async fn nodes_v1(State(app): State<App>, node: Node) -> Json<Value> {
    Json(json!({ "code": 200, "message": null, "data": all_nodes(&app, &node) }))
}

async fn self_v1(node: Node) -> Json<Value> {
    Json(json!({ "code": 200, "message": null, "data": node.show() }))
}

async fn nodes(State(app): State<App>, node: Node) -> axum::response::Response {
    super::envelope::good(all_nodes(&app, &node))
}

async fn this_node(node: Node) -> axum::response::Response {
    super::envelope::good(node.show())
}

/// Entries that Nacos takes and that have no meaning here.
const WITHOUT_EFFECT: [&str; 23] = [
    "distroThreshold",
    "clientBeatInterval",
    "pushVersion",
    "pushCacheMillis",
    "defaultCacheMillis",
    "masters",
    "distro",
    "serviceStatusSynchronizationPeriodMillis",
    "serverStatusSynchronizationPeriodMillis",
    "healthCheckTimes",
    "disableAddIP",
    "sendBeatOnly",
    "limitedUrlMap",
    "enableStandalone",
    "overriddenServerStatus",
    "defaultInstanceEphemeral",
    "distroServerExpiredMillis",
    "lightBeatEnabled",
    "autoChangeHealthCheckEnabled",
    "httpHealthParams",
    "tcpHealthParams",
    "mysqlHealthParams",
    "batch",
];

/// Of one service or cluster, if the request names one.
fn switch_domain(app: &App, params: &Params) -> Result<Value, Sorry> {
    let (mut checks, mut manner) = (*app.registry.checks().borrow(), None);
    if params.text("serviceName").is_some() {
        let service = params.service()?;
        super::access::check_read(service.namespace())?;
        let Some(view) = app.registry.snapshot().service(&service) else {
            return Err(Refusal::NoService { service }.into());
        };
        let meta = view.meta.as_deref().cloned().unwrap_or_default();
        checks &= meta.has_checks_on(params.cluster());
        manner = meta.checker(params.cluster()).how.manner;
    }
    Ok(json!({
        "name": "00-00---000-NACOS_SWITCH_DOMAIN-000---00-00",
        "pushEnabled": app.hub.is_on(),
        "healthCheckEnabled": checks,
        "manner": if manner == Some(Manner::Nacos) { "nacos" } else { "own" },
        "lightBeatEnabled": true,
        "clientBeatInterval": 5_000,
        "defaultCacheMillis": 10_000,
        "defaultInstanceEphemeral": true,
        "distroEnabled": false,
        "enableStandalone": true,
        "withoutEffect": WITHOUT_EFFECT,
    }))
}

async fn switches(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    Ok(Json(switch_domain(&app, &params)?))
}

/// `pushEnabled` and `check` switch this process; `check` and `manner` of a service or a cluster that is named are part of
/// its settings. What Nacos has besides is taken, and does nothing, as the list of switches says.
async fn set_switch(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let (entry, value) = (params.required("entry")?, params.required("value")?);
    match entry {
        "pushEnabled" => {
            let Some(on) = params.flag("value")? else { return Err(bad_value(entry, value)) };
            app.hub.switch(on);
            tracing::info!(on, "pushes are switched");
            Ok("ok")
        }
        "check" | "healthCheckEnabled" => {
            let Some(on) = params.flag("value")? else { return Err(bad_value(entry, value)) };
            if params.text("serviceName").is_some() {
                return steer(&app, &params, CHECKS_KEY, if on { "on" } else { "off" }).await;
            }
            app.registry.switch_checks(on);
            tracing::info!(on, "checks are switched");
            Ok("ok")
        }
        "manner" => steer(&app, &params, MANNER_KEY, value).await,
        _ if WITHOUT_EFFECT.contains(&entry) => Ok("ok"),
        _ => Err(Sorry::new(StatusCode::BAD_REQUEST, format!("update entry {entry:?} is no switch that is known"))),
    }
}

/// Sets what steers a service, or a cluster of it.
async fn steer(app: &App, params: &Params, key: &'static str, value: &str) -> Result<&'static str, Sorry> {
    let cluster = params.text("clusterName").map(cluster_name).transpose()?;
    if cluster.is_some() && key == MANNER_KEY {
        let text = "a cluster's manner is its checker's: PUT cluster with healthChecker";
        return Err(Sorry::new(StatusCode::BAD_REQUEST, text));
    }
    let command = Command::Steer { service: params.service()?, cluster, key, value: Some(value.to_owned()) };
    app.registry.submit(command).await?;
    Ok("ok")
}

fn bad_value(entry: &str, value: &str) -> Sorry {
    Sorry::new(StatusCode::BAD_REQUEST, format!("{entry}: {value:?} is neither true nor false"))
}
