//! Our own API: the truth, with nothing made up for anybody's sake. JSON, snake_case, times in Unix milliseconds.

use super::params::Params;
use super::{App, Sorry};
use crate::events::Filter;
use crate::health::{Health, HealthRecord, health_str};
use crate::model::{GROUP_DEFAULT, Invalid, Metadata, NAMESPACE_DEFAULT, ServiceKey};
use crate::snapshot::{InstanceView, ServiceView};
use crate::table::Refusal;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

/// The longest page.
const PAGE_LEN_MAX: usize = 1_000;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/v1/health", get(health))
        .route("/api/v1/services", get(services))
        .route("/api/v1/events", get(events))
        .route("/api/v1/services/{namespace}/{group}/{name}", get(service))
}

/// `?kinds=&namespace=&group=&service=`: lists with commas, but for the namespace, by which access is decided; `web-*` is
/// every name that begins so.
async fn events(State(app): State<App>, headers: HeaderMap, params: Params) -> Result<impl IntoResponse, Sorry> {
    let list = |name| {
        let words = params.text(name).unwrap_or_default().split(',').map(str::trim);
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let (namespaces, groups) = (params.text("namespace").map(str::to_owned).into_iter().collect(), list("group"));
    let filter = Filter { kinds: list("kinds"), namespaces, groups, services: list("service") };
    filter.check().map_err(|problem| Invalid::new("kinds", problem))?;
    // Browsers say it in the header when they come back; who cannot set one may say it in the query.
    let header = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    Ok(crate::events::stream(&app.events, filter, header.or(params.text("last_event_id"))))
}

#[derive(Serialize)]
struct Liveness {
    status: &'static str,
    version: &'static str,
    services: usize,
    instances: usize,
}

async fn health(State(app): State<App>) -> Json<Liveness> {
    let (services, instances) = app.registry.snapshot().counts();
    Json(Liveness { status: "up", version: env!("CARGO_PKG_VERSION"), services, instances })
}

#[derive(Serialize)]
struct Page {
    count: usize,
    services: Vec<Summary>,
}

#[derive(Serialize)]
struct Summary {
    namespace: String,
    group: String,
    name: String,
    protect_threshold: f64,
    instance_count: usize,
    up: usize,
    down: usize,
    unknown: usize,
}

impl Summary {
    fn of(view: &ServiceView) -> Summary {
        Summary {
            namespace: view.key.namespace().to_string(),
            group: view.key.group().to_string(),
            name: view.key.name().to_string(),
            protect_threshold: view.protect_threshold(),
            instance_count: view.instances.len(),
            up: view.count(Health::Up),
            down: view.count(Health::Down),
            unknown: view.count(Health::Unknown),
        }
    }
}

/// `?namespace=public&group=DEFAULT_GROUP&page=1&size=100`.
async fn services(State(app): State<App>, params: Params) -> Result<Json<Page>, Sorry> {
    let page: usize = params.parse("page", "a number from 1")?.unwrap_or(1);
    let size = params.parse("size", "a number from 1")?.unwrap_or(100).min(PAGE_LEN_MAX);
    let namespace = params.text("namespace").unwrap_or(NAMESPACE_DEFAULT);
    let group = params.text("group").unwrap_or(GROUP_DEFAULT);
    let skip = page.saturating_sub(1).saturating_mul(size);
    let (count, page) = app.registry.snapshot().page(namespace, group, skip, size);
    Ok(Json(Page { count, services: page.iter().map(|v| Summary::of(v)).collect() }))
}

#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    summary: Summary,
    metadata: Metadata,
    instances: Vec<Seen>,
}

/// An instance, its health, and why.
#[derive(Serialize)]
struct Seen {
    cluster: String,
    host: String,
    port: u16,
    weight: f64,
    enabled: bool,
    ephemeral: bool,
    /// Whose instance it is: "registry", or "agent:NAME".
    vantage: String,
    /// What each of those found who check it.
    vantages: Vec<Voice>,
    /// How many of them have to find it well.
    quorum: u8,
    /// Where it is probed from the registry; absent if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    probed: Option<String>,
    health: &'static str,
    reason: &'static str,
    why: &'static str,
    since_ms: u64,
    rtt_us: u64,
    metadata: Metadata,
}

/// What one vantage found.
#[derive(Serialize)]
struct Voice {
    /// "registry", "beats", or "agent:NAME".
    vantage: String,
    health: &'static str,
    reason: &'static str,
    why: &'static str,
    since_ms: u64,
    rtt_us: u64,
}

/// `?fresh=true`: with every change that any member of a cluster had acknowledged before.
async fn service(
    State(app): State<App>,
    Path((namespace, group, name)): Path<(String, String, String)>,
    params: Params,
) -> Result<Json<Detail>, Sorry> {
    let key = ServiceKey::new(&namespace, &group, &name)?;
    if params.flag("fresh")? == Some(true) {
        app.registry.fresh().await?;
    }
    let Some(view) = app.registry.snapshot().service(&key) else {
        return Err(Sorry::new(StatusCode::NOT_FOUND, Refusal::NoService { service: key }.to_string()));
    };
    let voice = |(vantage, h): (String, HealthRecord)| Voice {
        vantage,
        health: health_str(h.health),
        reason: h.reason.as_str(),
        why: h.reason.sentence(),
        since_ms: app.registry.unix_ms(h.since),
        rtt_us: h.rtt_ns / 1_000,
    };
    let seen = |i: &InstanceView| {
        let (record, health) = (&i.record, i.health());
        Seen {
            cluster: record.id.cluster().to_string(),
            host: record.id.host().to_string(),
            port: record.id.port(),
            weight: record.weight,
            enabled: record.enabled,
            ephemeral: record.ephemeral,
            vantage: record.vantage.to_string(),
            vantages: i.votes().into_iter().map(voice).collect(),
            quorum: i.ballot().map_or(1, |b| b.quorum),
            probed: view.probed(record).map(|asked| asked.address.to_string()),
            health: health_str(health.health),
            reason: health.reason.as_str(),
            why: health.reason.sentence(),
            since_ms: app.registry.unix_ms(health.since),
            rtt_us: health.rtt_ns / 1_000,
            metadata: record.metadata.clone(),
        }
    };
    Ok(Json(Detail {
        summary: Summary::of(&view),
        metadata: view.meta.as_ref().map_or_else(Metadata::new, |m| m.metadata.clone()),
        instances: view.instances.iter().map(seen).collect(),
    }))
}
