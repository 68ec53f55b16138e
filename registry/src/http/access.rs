//! What every request passes: how often its address may ask, who asks, and whether he may.
//! Promise: what is not in the table below is for administrators alone, so a route that somebody forgets to enter is closed.
//! Where access is open and nothing is limited or noted, a request passes at the price of a look at three flags.
//!
//! A change is asked about twice: here, and with the command's own namespace in [`Registry::submit`], which is what counts.
//!
//! [`Registry::submit`]: crate::service::Registry::submit

use super::api::ALL;
use super::params::{Params, is_form};
use super::{App, BODY_BYTES_MAX, Sorry, envelope, pass_on};
use crate::access::{Access, Action, Actor, Principal, Unknown, Version};
use crate::model::NAMESPACE_DEFAULT;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use http_body::Frame;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Everybody: whether the server is well, and how to log in.
    Nothing,
    /// Whoever has an account.
    Account,
    /// Who may do this in the namespace that is named here.
    In(Place, Action),
    /// Administrators.
    Admin,
}

/// Where a request names its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Parameter `namespaceId`; the default one if it is not there.
    Nacos,
    /// The same; if it is not there, all of them are meant.
    NacosOrAll,
    /// Before `##` in parameter `key`.
    Key,
    /// `{namespace}` in the path.
    Path,
    /// Parameter `namespace`; the default one if it is not there.
    Own,
    /// Parameter `namespace`: several with commas, each of which may end in `*`; none means all of them.
    OwnList,
    /// All of them.
    All,
}

/// The table. `route` is as the router has it.
pub(super) fn need(route: &str, method: &Method) -> Need {
    let is_get = matches!(*method, Method::GET | Method::HEAD);
    let action = if is_get { Action::Read } else { Action::Write };
    let account_or_admin = if is_get { Need::Account } else { Need::Admin };
    match route {
        "/nacos/v1/auth/login" | "/nacos/v1/auth/users/login" | "/nacos/v3/auth/user/login" => Need::Nothing,
        "/nacos/v1/console/health/liveness"
        | "/nacos/v1/console/health/readiness"
        | "/nacos/v1/console/server/state"
        | "/nacos/v2/console/health/liveness"
        | "/nacos/v2/console/health/readiness"
        | "/nacos/v3/admin/core/state"
        | "/nacos/v3/admin/core/state/liveness"
        | "/nacos/v3/admin/core/state/readiness"
        | "/api/v1/health"
            if is_get =>
        {
            Need::Nothing
        }
        "/api/v1/login" => Need::Nothing,
        "/api/v1/me" | "/api/v1/openapi.json" | "/metrics" => account_or_admin,
        // The handler asks whether it is one's own password.
        "/nacos/v1/auth/users" | "/nacos/v3/auth/user" if *method == Method::PUT => Need::Account,
        "/nacos/v1/auth/users"
        | "/nacos/v1/auth/users/search"
        | "/nacos/v1/auth/roles"
        | "/nacos/v1/auth/permissions" => Need::Admin,
        // Names of those that the caller may read, and no others.
        "/nacos/v1/console/namespaces" | "/nacos/v2/console/namespace/list" | "/nacos/v3/admin/core/namespace/list" => {
            account_or_admin
        }
        // The handler asks: the namespace is within the path.
        "/nacos/v2/ns/instance/statuses/{key}" => account_or_admin,
        "/nacos/v1/ns/service/names" => Need::In(Place::NacosOrAll, action),
        "/nacos/v1/ns/instance/statuses" => Need::In(Place::Key, action),
        "/nacos/v2/ns/client" | "/nacos/v2/ns/client/list" | "/nacos/v2/ns/client/publish/list" => {
            Need::In(Place::All, action)
        }
        "/api/v1/events" => Need::In(Place::OwnList, action),
        "/api/v1/services" | "/api/v1/instances" => Need::In(Place::Own, action),
        // An agent's backends may be of any namespace.
        "/api/v1/agents" | "/api/v1/agents/{agent}" => Need::In(Place::All, action),
        "/api/v1/cluster" => account_or_admin,
        // Those that the caller may read, and no others.
        "/api/v1/namespaces" => account_or_admin,
        _ if route.contains("{namespace}") => Need::In(Place::Path, action),
        _ => match route.strip_prefix("/nacos/").and_then(|rest| rest.split_once('/')) {
            Some(("v1" | "v2", rest)) => nacos(rest, action, account_or_admin),
            Some(("v3", rest)) => match rest.strip_prefix("client/").or(rest.strip_prefix("admin/")) {
                Some(rest) => nacos(rest, action, account_or_admin),
                None => Need::Admin,
            },
            _ => Need::Admin,
        },
    }
}

/// What is below a version of Nacos' API.
fn nacos(rest: &str, action: Action, account_or_admin: Need) -> Need {
    match rest {
        "ns/operator/switches" | "ns/ops/switches" => account_or_admin,
        "ns/operator/metrics"
        | "ns/ops/metrics"
        | "ns/operator/servers"
        | "ns/operator/distro/client"
        | "ns/health/server"
        | "ns/health/checkers"
        | "ns/service/selector/types" => account_or_admin,
        _ if rest.starts_with("core/cluster/") => account_or_admin,
        _ if ["ns/instance", "ns/service", "ns/catalog", "ns/cluster", "ns/health", "ns/client/service"]
            .iter()
            .any(|family| rest.strip_prefix(family).is_some_and(|r| r.is_empty() || r.starts_with('/'))) =>
        {
            Need::In(Place::Nacos, action)
        }
        _ => Need::Admin,
    }
}

/// See the module.
pub(super) async fn enter(app: &App, request: Request, next: Route) -> Response {
    let access = &app.access;
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    if let Some(peer) = peer
        && let Err(wait) = access.admit_address(peer.ip())
    {
        return too_many(request.uri().path(), wait);
    }
    let via = "http";
    if !access.is_required() {
        if access.audit().is_none() {
            return pass_on(next, request).await;
        }
        let actor = Actor { access: access.clone(), principal: Principal::anybody(), peer, via };
        return actor.scope(pass_on(next, request)).await;
    }
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        // There is no such path, and that is no secret.
        return pass_on(next, request).await;
    };
    let need = need(route.as_str(), request.method());
    if need == Need::Nothing {
        let actor = Actor { access: access.clone(), principal: Principal::nobody(), peer, via };
        return actor.scope(pass_on(next, request)).await;
    }
    let (mut parts, body) = request.into_parts();
    let (body, form) = match form_of(&parts, body).await {
        Ok(both) => both,
        Err(sorry) => return answer(parts.uri.path(), &sorry, &[]),
    };
    // Our own API takes its parameters from the query alone: what a form says beside it is not what will be done.
    let is_own = parts.uri.path().starts_with("/api/v1/");
    let form = if is_own { axum::body::Bytes::new() } else { form };
    let params = Params::read(parts.uri.query().unwrap_or_default(), &form);
    let token = token_of(&parts, &params);
    let what = || format!("{} {}", parts.method, route.as_str());
    let principal = match access.principal(token.as_deref()) {
        Ok(principal) => principal,
        Err(unknown) => {
            access.note_denied(None, peer, via, &what(), unknown.as_str());
            return unknown_answer(parts.uri.path(), unknown);
        }
    };
    if let Err(wait) = access.admit_principal(&principal) {
        return too_many(parts.uri.path(), wait);
    }
    let path = if let Need::In(Place::Path, _) = need { path_of(&mut parts).await } else { None };
    if let Err(missing) = judge(&principal, need, &params, path.as_deref()) {
        access.note_denied(Some(&principal), peer, via, &format!("{} {}", parts.method, route.as_str()), &missing);
        let text = format!("authorization failed! {missing}");
        return answer(parts.uri.path(), &Sorry::new(StatusCode::FORBIDDEN, text), &[]);
    }
    let actor = Actor { access: access.clone(), principal: principal.clone(), peer, via };
    let response = actor.scope(pass_on(next, Request::from_parts(parts, body))).await;
    let content_type = response.headers().get(header::CONTENT_TYPE);
    if content_type.is_none_or(|t| t != mime_of_streams()) {
        return response;
    }
    let access = access.clone();
    let seen = access.version();
    response.map(|body| Body::new(Watched { body, access, principal, seen, need, params, path }))
}

fn mime_of_streams() -> HeaderValue {
    HeaderValue::from_static("text/event-stream")
}

/// A body without an end, which ends when its reader may not read it any more.
struct Watched {
    body: Body,
    access: Access,
    principal: Principal,
    /// The state of the accounts that was looked at last.
    seen: Version,
    need: Need,
    params: Params,
    path: Option<String>,
}

impl Watched {
    fn is_shut_out(&mut self) -> bool {
        let version = self.access.version();
        if self.seen == version {
            return false;
        }
        self.seen = version;
        let again = self.access.again(&self.principal);
        again.is_none_or(|p| judge(&p, self.need, &self.params, self.path.as_deref()).is_err())
    }
}

impl HttpBody for Watched {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.filter(|_| !self.is_shut_out()))
    }
}

/// Whether whoever asks may read this namespace, for handlers that know it better than the table.
pub(super) fn check_read(namespace: &str) -> Result<(), Sorry> {
    let namespace = if namespace.is_empty() { NAMESPACE_DEFAULT } else { namespace };
    match Actor::current() {
        Some(actor) if !actor.principal.may(namespace, Action::Read) => {
            let text = format!("authorization failed! No permission to read in namespace {namespace:?}");
            Err(Sorry::new(StatusCode::FORBIDDEN, text))
        }
        _ => Ok(()),
    }
}

/// Whether he may; else what he lacks.
fn judge(principal: &Principal, need: Need, params: &Params, path: Option<&str>) -> Result<(), String> {
    let within = |namespace: Option<&str>, action: Action| {
        let namespace = namespace.filter(|n| !n.is_empty()).unwrap_or(NAMESPACE_DEFAULT);
        match principal.may(namespace, action) {
            true => Ok(()),
            false => Err(format!("No permission to {} in namespace {namespace:?}", action.as_str())),
        }
    };
    let everywhere = |action: Action| match principal.may_everywhere(action) {
        true => Ok(()),
        false => Err(format!("No permission to {} in all namespaces; name one", action.as_str())),
    };
    match need {
        Need::Nothing | Need::Account => Ok(()),
        Need::Admin if principal.is_admin() => Ok(()),
        Need::Admin => Err("This is for administrators".into()),
        Need::In(place, action) => match place {
            Place::Nacos => within(params.text("namespaceId"), action),
            Place::NacosOrAll => match params.text("namespaceId") {
                None => everywhere(action),
                some => within(some, action),
            },
            Place::Key => within(params.text("key").and_then(|k| k.split_once("##")).map(|(n, _)| n), action),
            Place::Path => match path {
                None => everywhere(action),
                some => within(some, action),
            },
            Place::Own => match params.text("namespace") {
                Some(ALL) => everywhere(action),
                some => within(some, action),
            },
            Place::OwnList => {
                let list = params.text("namespace").unwrap_or_default();
                let mut list = list.split(',').map(str::trim).filter(|n| !n.is_empty()).peekable();
                match list.peek() {
                    None => everywhere(action),
                    Some(_) => list.try_for_each(|namespace| within(Some(namespace), action)),
                }
            }
            Place::All => everywhere(action),
        },
    }
}

/// `{namespace}` of the path.
async fn path_of(parts: &mut Parts) -> Option<String> {
    let params = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    params.iter().find(|(name, _)| *name == "namespace").map(|(_, value)| value.to_owned())
}

/// A form's bytes, and the body as it was; nothing of a body that is no form, which goes on unread.
async fn form_of(parts: &Parts, body: Body) -> Result<(Body, axum::body::Bytes), Sorry> {
    if body.is_end_stream() || !is_form(&parts.headers) {
        return Ok((body, axum::body::Bytes::new()));
    }
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        let text = format!("the body cannot be read; it may have {BODY_BYTES_MAX} bytes");
        Sorry::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    })?;
    Ok((Body::from(bytes.clone()), bytes))
}

/// `Authorization: Bearer TOKEN`, header or parameter `accessToken`: each client has its way.
fn token_of(parts: &Parts, params: &Params) -> Option<String> {
    let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = text("authorization").and_then(|v| {
        let (scheme, token) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer.or(text("accesstoken")).or(params.text("accessToken")).map(str::to_owned)
}

/// An error as the API that was called writes it.
fn answer(path: &str, sorry: &Sorry, headers: &[(header::HeaderName, HeaderValue)]) -> Response {
    let is_enveloped = path.starts_with("/nacos/v2/") || path.starts_with("/nacos/v3/");
    let mut response = if is_enveloped { envelope::bad(sorry) } else { sorry.clone().into_response() };
    for (name, value) in headers {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    response
}

/// Nacos says 403 and its clients log in again; elsewhere it is 401, as RFC 9110 §15.5.2 has it.
fn unknown_answer(path: &str, unknown: Unknown) -> Response {
    if path.starts_with("/nacos/") {
        return answer(path, &Sorry::new(StatusCode::FORBIDDEN, unknown.to_string()), &[]);
    }
    let challenge = (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer(path, &Sorry::new(StatusCode::UNAUTHORIZED, unknown.to_string()), &[challenge])
}

fn too_many(path: &str, wait: Duration) -> Response {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let text = format!("too many requests; try again in {seconds} s");
    let after = HeaderValue::from(seconds.max(1));
    answer(path, &Sorry::new(StatusCode::TOO_MANY_REQUESTS, text), &[(header::RETRY_AFTER, after)])
}
