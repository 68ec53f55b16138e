//! Of which kind a service's instances are: `GET` and `PUT /api/v1/services/{namespace}/{group}/{name}/kind`.
//! Persistent ones become ephemeral, and back, without being deregistered: nobody's list is empty meanwhile.

use super::params::Params;
use super::{App, Sorry};
use crate::model::{Invalid, ServiceKey, Vantage};
use crate::snapshot::ServiceView;
use crate::table::{Change, Command, Refusal};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/api/v1/services/{namespace}/{group}/{name}/kind", get(kind).put(convert))
}

#[derive(Serialize)]
struct Kind {
    /// "persistent", "ephemeral"; "none": the service has no instances of its own.
    kind: &'static str,
    /// How many instances were of the other kind a moment ago.
    converted: usize,
}

fn kind_of(view: &ServiceView) -> &'static str {
    let mut own = view.instances.iter().filter(|i| i.record.vantage == Vantage::Registry);
    match own.next().map(|i| i.record.ephemeral) {
        None => "none",
        Some(true) => "ephemeral",
        Some(false) => "persistent",
    }
}

fn find(app: &App, key: &ServiceKey) -> Result<std::sync::Arc<ServiceView>, Sorry> {
    app.registry
        .snapshot()
        .service(key)
        .ok_or_else(|| Sorry::new(StatusCode::NOT_FOUND, Refusal::NoService { service: key.clone() }.to_string()))
}

async fn kind(
    State(app): State<App>,
    Path((namespace, group, name)): Path<(String, String, String)>,
) -> Result<Json<Kind>, Sorry> {
    let key = ServiceKey::new(&namespace, &group, &name)?;
    Ok(Json(Kind { kind: kind_of(&*find(&app, &key)?), converted: 0 }))
}

/// `?kind=persistent` or `?kind=ephemeral`.
async fn convert(
    State(app): State<App>,
    Path((namespace, group, name)): Path<(String, String, String)>,
    params: Params,
) -> Result<Json<Kind>, Sorry> {
    let service = ServiceKey::new(&namespace, &group, &name)?;
    find(&app, &service)?;
    let ephemeral = match params.required("kind")? {
        "ephemeral" => true,
        "persistent" => false,
        _ => return Err(Invalid::new("kind", "it should be persistent or ephemeral.").into()),
    };
    let changes = app.registry.submit(Command::Convert { service: service.clone(), ephemeral }).await?;
    let converted = changes.list.iter().filter(|c| matches!(c, Change::Instance { .. })).count();
    Ok(Json(Kind { kind: kind_of(&*find(&app, &service)?), converted }))
}
