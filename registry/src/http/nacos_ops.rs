//! Nacos, what operators and newer clients ask beside naming: the cluster's nodes, the switches.
//! Promise: what is answered is true: the one node is this one; a switch that would switch nothing says so.

use super::envelope::enveloped;
use super::params::Params;
use super::{App, Sorry, nacos_admin};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::convert::Infallible;

pub(super) fn routes() -> Router<App> {
    let switches = get(switches).put(set_switch);
    let enveloped_switches = get(enveloped(switches_of)).put(enveloped(set_switch));
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

async fn servers(node: Node) -> Json<Value> {
    Json(json!({ "servers": [node.show()] }))
}

async fn responsible(node: Node) -> Json<Value> {
    Json(json!({ "responsibleServer": node.address() }))
}

async fn nodes_v1(node: Node) -> Json<Value> {
    Json(json!({ "code": 200, "message": null, "data": [node.show()] }))
}

async fn self_v1(node: Node) -> Json<Value> {
    Json(json!({ "code": 200, "message": null, "data": node.show() }))
}

async fn nodes(node: Node) -> axum::response::Response {
    super::envelope::good(json!([node.show()]))
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

fn switch_domain(app: &App) -> Value {
    json!({
        "name": "00-00---000-NACOS_SWITCH_DOMAIN-000---00-00",
        "pushEnabled": app.hub.is_on(),
        "healthCheckEnabled": true,
        "lightBeatEnabled": true,
        "clientBeatInterval": 5_000,
        "defaultCacheMillis": 10_000,
        "defaultInstanceEphemeral": true,
        "distroEnabled": false,
        "enableStandalone": true,
        "withoutEffect": WITHOUT_EFFECT,
    })
}

async fn switches(State(app): State<App>) -> Json<Value> {
    Json(switch_domain(&app))
}

async fn switches_of(State(app): State<App>, _: Params) -> Result<Json<Value>, Sorry> {
    Ok(Json(switch_domain(&app)))
}

/// `pushEnabled` switches; what Nacos has besides is taken, and does nothing, as the list of switches says.
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
            let text = "checks are not switched for all at once here; give a cluster the checker NONE instead";
            Err(Sorry::new(StatusCode::NOT_IMPLEMENTED, text))
        }
        _ if WITHOUT_EFFECT.contains(&entry) => Ok("ok"),
        _ => Err(Sorry::new(StatusCode::BAD_REQUEST, format!("update entry {entry:?} is no switch that is known"))),
    }
}

fn bad_value(entry: &str, value: &str) -> Sorry {
    Sorry::new(StatusCode::BAD_REQUEST, format!("{entry}: {value:?} is neither true nor false"))
}
