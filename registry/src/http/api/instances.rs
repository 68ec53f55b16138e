//! `/api/v1/instances` and the instances of one service: who is there, how each is and why, and what is said of it.

use super::asked::{Body, OfInstance, OfService, Page, Query};
use super::operation::{Operation, param};
use super::problem::Problem;
use super::scan;
use super::seen::{Seen, Tally, is_of};
use super::settings::{InstanceBody, InstancePatch};
use crate::health::{Health, health_str};
use crate::http::{App, REQUEST_TIME_MAX};
use crate::model::{Instance, InstanceId, ServiceKey};
use crate::prober::now::{Found, NotNow};
use crate::selector::Selector;
use crate::snapshot::{InstanceView, ServiceView};
use crate::table::{Change, Changes, Command, Refusal};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

const OF_SERVICE: &str = "/api/v1/services/{namespace}/{group}/{name}/instances";
const PATH: &str = "/api/v1/services/{namespace}/{group}/{name}/instances/{cluster}/{host}/{port}";

pub(super) fn operations() -> Vec<Operation> {
    let picks = [param::LABEL, param::HEALTH, param::CLUSTER, param::ENABLED, param::EPHEMERAL];
    vec![
        Operation::new("get", "/api/v1/instances", get(list_all))
            .says("listAllInstances", "instances", "Instances of all services, a page at a time. With `health=down,unknown`: what is unwell, and why.")
            .takes(&[param::NAMESPACE_OR_ALL, param::GROUP_OF_LIST, param::SERVICE_OF_LIST])
            .takes(&picks)
            .takes(&param::PAGE)
            .answers(200, "The page, how many there are in all, and how those are.", "InstancePage")
            .tagged(),
        Operation::new("get", OF_SERVICE, get(list))
            .says("listInstances", "instances", "Instances of a service, a page at a time, ordered by cluster, host and port.")
            .takes(&picks)
            .takes(&param::PAGE)
            .takes(&[param::FRESH])
            .answers(200, "The page, how many there are in all, and how those are.", "InstancePage")
            .tagged()
            .refuses(&["no-service"]),
        Operation::new("get", PATH, get(show))
            .says("getInstance", "instances", "An instance, and what each vantage found of it.")
            .takes(&[param::FRESH])
            .answers(200, "The instance.", "Instance")
            .tagged()
            .refuses(&["no-service", "no-instance"]),
        Operation::new("put", PATH, put(register))
            .says(
                "putInstance",
                "instances",
                "Registers an instance, or puts this record in the place of the one that is there; with `checker`, its cluster's checker in the same step. The same again changes nothing, but is a beat of an ephemeral one. The host is an IP address.",
            )
            .addresses()
            .body("InstanceSettings")
            .answers(201, "It is new.", "Instance")
            .answers(200, "It was there.", "Instance")
            .writes()
            .refuses(&["wrong-kind", "of-agent"]),
        Operation::new("patch", PATH, patch(change))
            .says("patchInstance", "instances", "Changes what is named (RFC 7396): null takes a key of the metadata away.")
            .body("InstancePatch")
            .answers(200, "The instance as it is now.", "Instance")
            .writes()
            .refuses(&["no-service", "no-instance", "of-agent"]),
        Operation::new("delete", PATH, delete(deregister))
            .says("deleteInstance", "instances", "Deregisters an instance.")
            .done(204, "It is gone.")
            .writes()
            .refuses(&["no-service", "no-instance", "of-agent"]),
        Operation::new("put", "/api/v1/services/{namespace}/{group}/{name}/instances/{cluster}/{host}/{port}/health", put(set_health))
            .says("putInstanceHealth", "instances", "Sets the health of an instance whose cluster has the checker `none`.")
            .body("ManualHealth")
            .answers(200, "The instance as it is now.", "Instance")
            .writes()
            .refuses(&["no-service", "no-instance", "still-checked"]),
        Operation::new("post", "/api/v1/services/{namespace}/{group}/{name}/instances/{cluster}/{host}/{port}/beat", post(beat))
            .says("beatInstance", "instances", "An ephemeral instance says that it lives. A persistent one may, too; its checker decides.")
            .done(204, "It is known.")
            .writes()
            .refuses(&["no-service", "no-instance"]),
        Operation::new("post", "/api/v1/services/{namespace}/{group}/{name}/instances/{cluster}/{host}/{port}/probe", post(probe))
            .says(
                "probeInstance",
                "instances",
                "Has an instance probed now, by all who check it, within 100 ms. What they find counts at once, as a first probe's outcome does.",
            )
            .answers(200, "What each of them found, and the instance as it is now.", "Probed")
            .answers(202, "It takes longer than 8 s: the instance as it is so far. What is found will count all the same.", "Probed")
            .refuses(&["no-service", "no-instance", "not-probed"]),
    ]
}

#[derive(Serialize)]
struct InstancePage {
    count: usize,
    #[serde(flatten)]
    tally: Tally,
    page: usize,
    size: usize,
    instances: Vec<Seen>,
}

/// Which instances are meant.
struct Pick {
    label: Selector,
    health: Vec<Health>,
    cluster: Option<String>,
    enabled: Option<bool>,
    ephemeral: Option<bool>,
    page: Page,
}

impl Pick {
    fn of(query: &Query) -> Result<Pick, Problem> {
        let cluster = query.text("cluster").map(crate::model::cluster_name).transpose()?;
        Ok(Pick {
            label: query.label()?,
            health: query.health()?,
            cluster: cluster.map(|c| c.to_string()),
            enabled: query.flag("enabled")?,
            ephemeral: query.flag("ephemeral")?,
            page: query.page()?,
        })
    }

    fn takes(&self, i: &InstanceView) -> bool {
        let record = &i.record;
        self.cluster.as_deref().is_none_or(|c| c == &**record.id.cluster())
            && self.enabled.is_none_or(|e| e == record.enabled)
            && self.ephemeral.is_none_or(|e| e == record.ephemeral)
            && (self.health.is_empty() || self.health.contains(&i.health().health))
            && self.label.matches(&record.metadata)
    }

    fn page<'a>(&self, app: &App, views: impl Iterator<Item = &'a Arc<ServiceView>>) -> Json<InstancePage> {
        let (mut count, mut tally, mut instances) = (0, Tally::default(), Vec::new());
        for view in views {
            for i in view.instances.iter().filter(|i| self.takes(i)) {
                if count >= self.page.skip() && instances.len() < self.page.size {
                    instances.push(Seen::of(&app.registry, view, i));
                }
                tally.add(i.health().health);
                count += 1;
            }
        }
        Json(InstancePage { count, tally, page: self.page.page, size: self.page.size, instances })
    }
}

const PICKS: [&str; 7] = ["label", "health", "cluster", "enabled", "ephemeral", "page", "size"];

async fn list_all(State(app): State<App>, query: Query) -> Result<Json<InstancePage>, Problem> {
    query.only(&[&["namespace", "group", "service"], &PICKS[..]].concat())?;
    let (namespace, group, service) = (query.namespace()?, query.group()?, query.name("service")?);
    let pick = Pick::of(&query)?;
    scan(move || {
        let mut all = app.registry.snapshot().services();
        all.retain(|view| {
            is_of(&view.key, namespace.as_deref(), group.as_deref())
                && service.as_deref().is_none_or(|s| s == &**view.key.name())
        });
        pick.page(&app, all.iter())
    })
    .await
}

async fn list(State(app): State<App>, OfService(key): OfService, query: Query) -> Result<Json<InstancePage>, Problem> {
    query.only(&[&PICKS[..], &["fresh"]].concat())?;
    let pick = Pick::of(&query)?;
    if query.flag("fresh")? == Some(true) {
        app.registry.fresh().await?;
    }
    let Some(view) = app.registry.snapshot().service(&key) else {
        return Err(Refusal::NoService { service: key }.into());
    };
    scan(move || pick.page(&app, std::iter::once(&view))).await
}

async fn show(
    State(app): State<App>,
    OfInstance(service, id): OfInstance,
    query: Query,
) -> Result<Json<Seen>, Problem> {
    query.only(&["fresh"])?;
    if query.flag("fresh")? == Some(true) {
        app.registry.fresh().await?;
    }
    seen(&app, &service, &id)
}

fn seen(app: &App, service: &ServiceKey, id: &InstanceId) -> Result<Json<Seen>, Problem> {
    let Some(view) = app.registry.snapshot().service(service) else {
        return Err(Refusal::NoService { service: service.clone() }.into());
    };
    match view.instance(id) {
        Some(instance) => Ok(Json(Seen::of(&app.registry, &view, instance))),
        None => Err(Refusal::NoInstance { service: service.clone(), id: id.clone() }.into()),
    }
}

async fn register(
    State(app): State<App>,
    OfInstance(service, id): OfInstance,
    query: Query,
    Body(mut body): Body<InstanceBody>,
) -> Result<Response, Problem> {
    query.only(&[])?;
    let metadata = body.take_metadata()?;
    let instance = Instance {
        weight: body.weight,
        enabled: body.enabled,
        ephemeral: body.ephemeral,
        claims_healthy: body.healthy,
        metadata,
        ..Instance::new(id.clone())
    };
    let changes = app.registry.submit(Command::Register { service: service.clone(), instance }).await?;
    let status = if is_new(&changes, &id) { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, seen(&app, &service, &id)?).into_response())
}

fn is_new(changes: &Changes, wanted: &InstanceId) -> bool {
    let came = |c: &Change| matches!(c, Change::Instance { id, before: None, .. } if id == wanted);
    changes.list.iter().any(came)
}

async fn change(
    State(app): State<App>,
    OfInstance(service, id): OfInstance,
    query: Query,
    Body(body): Body<InstancePatch>,
) -> Result<Json<Seen>, Problem> {
    query.only(&[])?;
    let command = Command::EditInstance { service: service.clone(), id: id.clone(), edit: body.edit()? };
    app.registry.submit(command).await?;
    seen(&app, &service, &id)
}

async fn deregister(
    State(app): State<App>,
    OfInstance(service, id): OfInstance,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    let command = Command::Deregister { service: service.clone(), id: id.clone(), ephemeral: None };
    let changes = app.registry.submit(command).await?;
    if changes.is_empty() {
        // It says which of the two is not there.
        let Json(_) = seen(&app, &service, &id)?;
        return Err(Refusal::NoInstance { service, id }.into());
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManualHealth {
    healthy: bool,
}

async fn set_health(
    State(app): State<App>,
    OfInstance(service, id): OfInstance,
    query: Query,
    Body(ManualHealth { healthy }): Body<ManualHealth>,
) -> Result<Json<Seen>, Problem> {
    query.only(&[])?;
    app.registry.submit(Command::SetHealth { service: service.clone(), id: id.clone(), healthy }).await?;
    seen(&app, &service, &id)
}

/// How long an answer waits for what is found: below the longest that any request may take.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(8);
const _: () = assert!(PROBE_WAIT_MAX.as_millis() < REQUEST_TIME_MAX.as_millis());

#[derive(Serialize)]
struct Probed {
    /// Whether all have answered.
    done: bool,
    found: Vec<FoundBy>,
    instance: Seen,
}

#[derive(Serialize)]
struct FoundBy {
    vantage: String,
    health: &'static str,
    reason: &'static str,
    why: &'static str,
    rtt_us: u64,
}

impl FoundBy {
    fn of(found: &Found) -> FoundBy {
        FoundBy {
            vantage: found.vantage.to_string(),
            health: health_str(found.health),
            reason: found.reason.as_str(),
            why: found.reason.sentence(),
            rtt_us: found.rtt_ns / 1_000,
        }
    }
}

async fn probe(State(app): State<App>, OfInstance(service, id): OfInstance, query: Query) -> Result<Response, Problem> {
    query.only(&[])?;
    // It says which of the two is not there.
    let Json(_) = seen(&app, &service, &id)?;
    let prober = app.probe_now.as_ref().ok_or(NotNow::Stopped)?;
    let asked = tokio::time::timeout(PROBE_WAIT_MAX, prober.ask(service.clone(), id.clone())).await;
    let (status, found) = match asked {
        Ok(found) => (StatusCode::OK, found?),
        Err(_elapsed) => (StatusCode::ACCEPTED, Vec::new()),
    };
    let Json(instance) = seen(&app, &service, &id)?;
    let probed = Probed { done: status == StatusCode::OK, found: found.iter().map(FoundBy::of).collect(), instance };
    Ok((status, Json(probed)).into_response())
}

impl From<NotNow> for Problem {
    fn from(not: NotNow) -> Problem {
        let kind = match not {
            NotNow::NoInstance => "no-instance",
            NotNow::Elsewhere(_) | NotNow::Nobody => "not-probed",
            NotNow::Busy | NotNow::Stopped => "busy",
        };
        Problem::new(kind, not.to_string())
    }
}

async fn beat(
    State(app): State<App>,
    OfInstance(service, id): OfInstance,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    app.registry.submit(Command::Beat { service, id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
