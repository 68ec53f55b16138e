//! The registry over HTTP: Nacos v1 under /nacos, our own API under /api/v1, metrics at /metrics.
//! Promise: whatever comes in, a clear answer goes out, within the time and size limits here; a bad request costs its
//! sender, nobody else.
//! Whoever asks is asked who he is ([`access`]), where the registry is not open to all.
//! A browser that some other site steers is refused ([`guard`]).

mod access;
mod api;
mod checkers;
mod envelope;
mod metrics;
mod nacos;
mod nacos_admin;
mod nacos_auth;
mod nacos_catalog;
mod nacos_ops;
mod nacos_v2;
mod params;
#[cfg(test)]
mod tests;

pub use api::{AgentLink, AgentLinks};
pub use metrics::{MoreSeries, ProbeStats};
pub(crate) use params::metadata_of;

use crate::access::Access;
use crate::events::Events;
use crate::grpc::Clients;
use crate::prober::now::ProbeNow;
use crate::push::Hub;
use crate::push::udp::UdpPusher;
use crate::service::Registry;
use crate::table::Refusal;
use crate::wire::kept::Kept;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use http_body_util::Limited;
use metrics::Metrics;
use std::convert::Infallible;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::layer::layer_fn;
use tower::{Service, ServiceExt};

/// What the router needs besides the registry.
#[derive(Clone, Default)]
pub struct Options {
    /// Asked at each scrape of /metrics, on a thread that may block ([`Engine::stats`] does, for a millisecond);
    /// `None`: no engine, no series of it.
    ///
    /// [`Engine::stats`]: ringspan_engine::engine::Engine::stats
    pub probe_stats: Option<ProbeStats>,
    /// Who is told of changes; [`Hub::run`] it. Default: nobody is.
    pub hub: Hub,
    /// Who tells v1's clients of changes by UDP; [`UdpPusher::run`] it. `None`: they poll.
    pub udp: Option<Arc<UdpPusher>>,
    /// Who is connected over gRPC; give the same to [`GrpcServer::serve`](crate::grpc::GrpcServer::serve). Default: nobody.
    pub clients: Clients,
    /// What happens, for /api/v1/events; [`Events::run`] it. Default: nothing does.
    pub events: Events,
    /// Who may do what. Default: everybody everything.
    pub access: Access,
    /// Links of agents that are connected, for /api/v1/agents; asked on a thread that may wait. `None`: nobody knows.
    pub agents: Option<AgentLinks>,
    /// Who probes out of turn; its other end is for [`run_on`](crate::prober::run_on). `None`: nobody.
    pub probe_now: Option<ProbeNow>,
    /// Writes the series of what else runs in this process; on the same thread. `None`: nothing else.
    pub more: Option<MoreSeries>,
}

/// A request must be read and answered within this: above the time that a submitter may wait for room in the registry's
/// queue, so that its clearer answer wins.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
const _: () = assert!(REQUEST_TIME_MAX.as_millis() > crate::service::SUBMIT_WAIT_MAX.as_millis());
/// The largest body. A registration has at most 1 KiB of metadata and 1 KiB of names, each character escaped threefold.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// What every handler sees; copied for each request, so it is one pointer.
#[derive(Clone)]
struct App(Arc<Parts>);

/// See [`App`].
struct Parts {
    registry: Registry,
    metrics: Metrics,
    lists: Kept,
    hub: Hub,
    udp: Option<Arc<UdpPusher>>,
    clients: Clients,
    events: Events,
    access: Access,
    agents: Option<AgentLinks>,
    probe_now: Option<ProbeNow>,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// All of the registry's HTTP. The root package may merge routes of its own into it (`Router::merge`), for instance
/// /api/v1/agents.
pub fn router(registry: Registry, options: Options) -> Router {
    let Options { probe_stats, hub, udp, clients, events, access, agents, probe_now, more } = options;
    let metrics =
        Metrics::new(registry.clone(), hub.clone(), clients.clone(), events.clone(), access.clone(), probe_stats, more);
    let lists = Kept::default();
    let app = App(Arc::new(Parts { registry, metrics, lists, hub, udp, clients, events, access, agents, probe_now }));
    Router::new()
        .merge(nacos::routes())
        .merge(nacos_admin::routes())
        .merge(nacos_auth::routes())
        .merge(nacos_catalog::routes())
        .merge(nacos_ops::routes())
        .merge(nacos_v2::routes())
        .merge(api::routes())
        .route("/metrics", axum::routing::get(metrics::scrape))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(layer_fn({
            let app = app.clone();
            move |route| Passage { app: app.clone(), route }
        }))
        .with_state(app)
}

/// An answer other than "done": a status and a sentence. v1 says the sentence alone, as text, which is what Nacos' clients
/// log; v2 and v3 put it into an [`envelope`] with a code.
#[derive(Clone, Debug)]
struct Sorry {
    status: StatusCode,
    code: u32,
    text: String,
}

impl Sorry {
    fn new(status: StatusCode, text: impl Into<String>) -> Sorry {
        Sorry { status, code: envelope::code_of(status), text: text.into() }
    }

    fn with_code(self, code: u32) -> Sorry {
        Sorry { code, ..self }
    }
}

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.text).into_response()
    }
}

impl From<Refusal> for Sorry {
    fn from(refusal: Refusal) -> Sorry {
        use envelope::code;
        let text = refusal.to_string();
        let bad = |code| (StatusCode::BAD_REQUEST, code);
        let (status, code) = match &refusal {
            Refusal::Invalid(invalid) => bad(match invalid.param {
                "serviceName" => code::SERVICE_NAME,
                "weight" => code::WEIGHT,
                _ => code::PARAMETER_VALIDATE,
            }),
            Refusal::Kind { .. } | Refusal::WrongKind { .. } => bad(code::INSTANCE),
            Refusal::NoService { .. } => bad(code::SERVICE_NOT_FOUND),
            Refusal::ServiceExists { .. } => bad(code::SERVICE_EXISTS),
            Refusal::NotEmpty { .. } => bad(code::SERVICE_DELETE),
            Refusal::StillChecked { .. } => bad(code::CHECK_STILL_RUNNING),
            Refusal::Denied { .. } => (StatusCode::FORBIDDEN, code::ACCESS_DENIED),
            Refusal::NoInstance { .. } => (StatusCode::NOT_FOUND, code::INSTANCE_NOT_FOUND),
            Refusal::OfAgent { .. } | Refusal::StaleSession { .. } => (StatusCode::CONFLICT, code::RESOURCE_CONFLICT),
            Refusal::TooMany { .. } => (StatusCode::INSUFFICIENT_STORAGE, code::SERVER),
            Refusal::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, code::SERVER),
            Refusal::Busy { .. } | Refusal::Unavailable(_) | Refusal::Stopped => {
                (StatusCode::SERVICE_UNAVAILABLE, code::SERVER)
            }
        };
        Sorry { status, code, text }
    }
}

impl From<crate::model::Invalid> for Sorry {
    fn from(invalid: crate::model::Invalid) -> Sorry {
        Refusal::from(invalid).into()
    }
}

async fn no_such_path(uri: Uri) -> Response {
    let path = uri.path();
    let nacos = |what: &str| {
        let text = format!("{what} is not served here; ringspan speaks Nacos' naming API. See docs/registry.md");
        Sorry::new(StatusCode::NOT_IMPLEMENTED, text)
    };
    let sorry = match path {
        _ if path.starts_with("/nacos/") && path.split('/').any(|part| part == "cs") => {
            nacos("Nacos' configuration management")
        }
        _ if path.starts_with("/nacos/") && path.split('/').any(|part| part == "auth") => {
            nacos("this part of Nacos' administration of accounts")
        }
        _ => Sorry::new(StatusCode::NOT_FOUND, format!("no such path: {path}. See docs/registry.md")),
    };
    if path.starts_with("/nacos/v2/") || path.starts_with("/nacos/v3/") {
        envelope::bad(&sorry)
    } else {
        sorry.into_response()
    }
}

async fn no_such_method(method: Method, uri: Uri) -> Sorry {
    Sorry::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

/// A route, and what every request to it passes, in and out. One layer for all of it, and one of our own: axum's for
/// functions boxes the route and copies it once more for each request.
#[derive(Clone)]
struct Passage {
    app: App,
    route: Route,
}

impl Service<Request> for Passage {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Passage { app, route } = self.clone();
        Box::pin(async move { Ok(pass(app, request, route).await) })
    }
}

/// Lets a request through, in good time, and counts it.
async fn pass(app: App, request: Request, next: Route) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let is_own = api::is_ours(request.uri().path());
    let response = match tokio::time::timeout(REQUEST_TIME_MAX, admit(&app, request, next)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            let text = format!(
                "no answer within {} s; whether it was done is not known, look before you repeat it",
                REQUEST_TIME_MAX.as_secs()
            );
            Sorry::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    };
    let response = if is_own { api::refusal_as_problem(response).await } else { response };
    app.metrics.count(&method, route, response.status());
    response
}

/// A change that a page of some other site asks a visitor's browser for is refused (such a request carries an `Origin` that
/// is not the host it goes to; programs send no `Origin` at all), and so is a body that is too large.
async fn admit(app: &App, request: Request, next: Route) -> Response {
    if request.method() != Method::GET && is_foreign(request.headers()) {
        let text = "requests that another site's page makes are refused".to_owned();
        return Sorry::new(StatusCode::FORBIDDEN, text).into_response();
    }
    let hint = request.body().size_hint();
    if hint.lower() > BODY_BYTES_MAX as u64 {
        let text = format!("the body cannot be read; it may have {BODY_BYTES_MAX} bytes");
        return Sorry::new(StatusCode::PAYLOAD_TOO_LARGE, text).into_response();
    }
    let request = match hint.exact() {
        Some(_) => request,
        // Who does not say how long it is, is stopped when it is too long.
        None => request.map(|body| Body::new(Limited::new(body, BODY_BYTES_MAX))),
    };
    access::enter(app, request, next).await
}

/// What the route answers.
async fn pass_on(route: Route, request: Request) -> Response {
    match route.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, host)| host);
    origin.is_none() || origin != text(header::HOST)
}
