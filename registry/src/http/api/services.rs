//! `/api/v1/services`: lists, settings, checkers, conversion.

use super::asked::{Body, OfService, Query};
use super::operation::{Operation, param};
use super::problem::Problem;
use super::seen::{Detail, Summary, is_of};
use super::settings::{ServiceBody, ServicePatch};
use super::{INSTANCES_SHOWN, scan};
use crate::http::App;
use crate::model::{ServiceKey, Vantage};
use crate::table::edits::Onto;
use crate::table::{Change, Command, Refusal};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, put};
use serde::Serialize;

const PATH: &str = "/api/v1/services/{namespace}/{group}/{name}";
const KIND_PATH: &str = "/api/v1/services/{namespace}/{group}/{name}/kind";

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::new("get", "/api/v1/services", get(list))
            .says("listServices", "services", "Services, a page at a time, ordered by namespace, group and name.")
            .takes(&[param::NAMESPACE_OR_ALL, param::GROUP_OF_LIST, param::NAME_PART, param::LABEL, param::HEALTH_ANY])
            .takes(&param::PAGE)
            .answers(200, "The page, and how many there are in all.", "ServicePage")
            .tagged(),
        Operation::new("get", PATH, get(show))
            .says("getService", "services", "A service: settings, clusters with their checkers, and its first 1000 instances.")
            .takes(&[param::FRESH])
            .answers(200, "The service.", "Service")
            .tagged()
            .refuses(&["no-service"]),
        Operation::new("put", PATH, put(replace))
            .says("putService", "services", "Configures a service, wholly: what is not named is the default. The same again changes nothing.")
            .body("ServiceSettings")
            .answers(201, "It is new.", "Service")
            .answers(200, "It was there.", "Service")
            .writes(),
        Operation::new("patch", PATH, patch(change))
            .says("patchService", "services", "Changes what is named (RFC 7396): null takes a key, a cluster or a checker away.")
            .body("ServicePatch")
            .answers(200, "The service as it is now.", "Service")
            .writes()
            .refuses(&["no-service"]),
        Operation::new("delete", PATH, delete(remove))
            .says("deleteService", "services", "Forgets a service's settings. It must have no instances.")
            .done(204, "It is gone.")
            .writes()
            .refuses(&["no-service", "not-empty"]),
        Operation::new("get", KIND_PATH, get(kind))
            .says("getKind", "services", "Of which kind the instances are that the service has itself.")
            .answers(200, "The kind.", "Kind")
            .refuses(&["no-service"]),
        Operation::new("put", KIND_PATH, put(convert))
            .says(
                "putKind",
                "services",
                "Makes all instances that the service has itself persistent, or ephemeral. What is believed of each stays until those who decide then have spoken.",
            )
            .takes(&[param::KIND])
            .answers(200, "The kind, and how many were of the other one.", "Kind")
            .writes()
            .refuses(&["no-service"]),
    ]
}

#[derive(Serialize)]
struct ServicePage {
    count: usize,
    page: usize,
    size: usize,
    services: Vec<Summary>,
}

async fn list(State(app): State<App>, query: Query) -> Result<Json<ServicePage>, Problem> {
    query.only(&["namespace", "group", "name", "label", "health", "page", "size"])?;
    let (namespace, group, page) = (query.namespace()?, query.group()?, query.page()?);
    let name = query.name("name")?.map(|n| n.to_lowercase());
    let (label, health) = (query.label()?, query.health()?);
    scan(move || {
        let (mut count, mut services) = (0, Vec::new());
        for view in app.registry.snapshot().services() {
            let is_named = |part: &String| view.key.name().to_lowercase().contains(part.as_str());
            let is_labelled = || match &view.meta {
                Some(meta) => label.matches(&meta.metadata),
                None => label.matches(&Default::default()),
            };
            let is_so = || health.is_empty() || view.instances.iter().any(|i| health.contains(&i.health().health));
            if is_of(&view.key, namespace.as_deref(), group.as_deref())
                && name.as_ref().is_none_or(is_named)
                && is_labelled()
                && is_so()
            {
                if count >= page.skip() && services.len() < page.size {
                    services.push(Summary::of(&view));
                }
                count += 1;
            }
        }
        Json(ServicePage { count, page: page.page, size: page.size, services })
    })
    .await
}

/// `?fresh=true`: with every change that any member of a cluster had acknowledged before.
async fn show(State(app): State<App>, OfService(key): OfService, query: Query) -> Result<Json<Detail>, Problem> {
    query.only(&["fresh"])?;
    if query.flag("fresh")? == Some(true) {
        app.registry.fresh().await?;
    }
    detail(&app, &key)
}

fn detail(app: &App, key: &ServiceKey) -> Result<Json<Detail>, Problem> {
    let Some(view) = app.registry.snapshot().service(key) else {
        return Err(Refusal::NoService { service: key.clone() }.into());
    };
    Ok(Json(Detail::of(&app.registry, &view, INSTANCES_SHOWN)))
}

async fn replace(
    State(app): State<App>,
    OfService(service): OfService,
    query: Query,
    Body(body): Body<ServiceBody>,
) -> Result<Response, Problem> {
    query.only(&[])?;
    let was_there = app.registry.snapshot().service(&service).is_some();
    let command = Command::EditService { service: service.clone(), onto: Onto::Anything, edit: body.edit()? };
    app.registry.submit(command).await?;
    let status = if was_there { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, detail(&app, &service)?).into_response())
}

async fn change(
    State(app): State<App>,
    OfService(service): OfService,
    query: Query,
    Body(body): Body<ServicePatch>,
) -> Result<Json<Detail>, Problem> {
    query.only(&[])?;
    let command = Command::EditService { service: service.clone(), onto: Onto::Present, edit: body.edit()? };
    app.registry.submit(command).await?;
    detail(&app, &service)
}

async fn remove(State(app): State<App>, OfService(service): OfService, query: Query) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    app.registry.submit(Command::DeleteService { service }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
struct Kind {
    /// "persistent", "ephemeral"; "none": the service has no instances of its own.
    kind: &'static str,
    /// How many instances were of the other kind a moment ago.
    converted: usize,
}

fn kind_of(app: &App, key: &ServiceKey) -> Result<&'static str, Problem> {
    let Some(view) = app.registry.snapshot().service(key) else {
        return Err(Refusal::NoService { service: key.clone() }.into());
    };
    let mut own = view.instances.iter().filter(|i| i.record.vantage == Vantage::Registry);
    Ok(match own.next().map(|i| i.record.ephemeral) {
        None => "none",
        Some(true) => "ephemeral",
        Some(false) => "persistent",
    })
}

async fn kind(State(app): State<App>, OfService(key): OfService, query: Query) -> Result<Json<Kind>, Problem> {
    query.only(&[])?;
    Ok(Json(Kind { kind: kind_of(&app, &key)?, converted: 0 }))
}

/// Nobody's list is empty meanwhile.
async fn convert(State(app): State<App>, OfService(service): OfService, query: Query) -> Result<Json<Kind>, Problem> {
    query.only(&["kind"])?;
    let ephemeral = match query.text("kind") {
        Some("ephemeral") => true,
        Some("persistent") => false,
        _ => return Err(Problem::param("kind", "kind: it should be persistent or ephemeral")),
    };
    let changes = app.registry.submit(Command::Convert { service: service.clone(), ephemeral }).await?;
    let converted = changes.list.iter().filter(|c| matches!(c, Change::Instance { .. })).count();
    Ok(Json(Kind { kind: kind_of(&app, &service)?, converted }))
}
