//! Nacos' accounts: login, and as much of the administration of users, roles and permissions as scripts use.
//! Promise: a login says the same of a user who is not there as of a wrong password; no answer holds a password or a hash.
//! Nacos' resources (`NAMESPACE:*:*`, with an action of r, w or rw) are permissions of a namespace here. Headers by which
//! Nacos' servers know each other (`serverIdentity`, `User-Agent: Nacos-Server`) mean nothing.

use super::envelope::enveloped;
use super::params::{Caller, Params};
use super::{App, Sorry};
use crate::access::{Access, Actor, Change, Listed, LoginError, Password, Refused};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// What Nacos hands out while its authentication is off.
const NO_TOKEN: &str = "AUTH_DISABLED";
/// Nacos' longest page.
const PAGE_LEN_MAX: usize = 500;
/// Nacos' word for its administrators.
const ROLE_ADMIN: &str = "ROLE_ADMIN";
/// Roles begin with this in lists of grants.
const ROLE: &str = "role:";

pub(super) fn routes() -> Router<App> {
    let mut routes = Router::new();
    for path in ["/nacos/v1/auth/login", "/nacos/v1/auth/users/login", "/nacos/v3/auth/user/login"] {
        routes = routes.route(path, post(login));
    }
    let users = get(users).post(v1(add_user)).put(v1(set_password)).delete(v1(remove_user));
    let roles = get(roles).post(v1(grant_role)).delete(v1(revoke_role));
    let permissions = get(permissions).post(v1(grant)).delete(v1(revoke));
    let v3_users = get(enveloped(users_of)).post(enveloped(add_user)).put(enveloped(set_password));
    let v3_roles = get(enveloped(roles_of)).post(enveloped(grant_role)).delete(enveloped(revoke_role));
    let v3_permissions = get(enveloped(permissions_of)).post(enveloped(grant)).delete(enveloped(revoke));
    routes
        .route("/nacos/v1/auth/users", users)
        .route("/nacos/v1/auth/users/search", get(search))
        .route("/nacos/v1/auth/roles", roles)
        .route("/nacos/v1/auth/permissions", permissions)
        .route("/nacos/v3/auth/user", v3_users.delete(enveloped(remove_user)))
        .route("/nacos/v3/auth/user/list", get(enveloped(users_of)))
        .route("/nacos/v3/auth/role", v3_roles)
        .route("/nacos/v3/auth/role/list", get(enveloped(roles_of)))
        .route("/nacos/v3/auth/permission", v3_permissions)
        .route("/nacos/v3/auth/permission/list", get(enveloped(permissions_of)))
}

/// Name and password in the query or a form; the same answer in all versions, without an envelope.
pub(super) async fn login(State(app): State<App>, caller: Caller, params: Params) -> Result<Response, Sorry> {
    let (user, password) = (params.required("username")?, params.text("password").unwrap_or_default());
    let body = |token: &str, ttl_s: u64, is_admin: bool| {
        Json(json!({ "accessToken": token, "tokenTtl": ttl_s, "globalAdmin": is_admin, "username": user }))
    };
    if !app.access.is_required() {
        // True as far as it goes: whoever reaches the port may do everything.
        return Ok(body(NO_TOKEN, crate::access::SESSION_DEFAULT.as_secs(), true).into_response());
    }
    let result = app.access.log_in(caller.peer.map(|p| p.ip()), user, password).await;
    app.access.note_login(caller.peer, user, result.as_ref().map(drop).map_err(|e| *e));
    match result {
        Ok(session) => {
            let bearer = HeaderValue::try_from(format!("Bearer {}", session.token)).expect("a token is ASCII");
            let body = body(&session.token, session.ttl.as_secs(), session.is_admin);
            Ok(([(header::AUTHORIZATION, bearer)], body).into_response())
        }
        Err(LoginError::Wrong) => Err(Sorry::new(StatusCode::FORBIDDEN, LoginError::Wrong.to_string())),
        Err(error @ LoginError::TooMany(wait)) => {
            let after = [(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1))];
            Ok((after, Sorry::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())).into_response())
        }
        Err(error @ LoginError::Busy) => Err(Sorry::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

/// Who the caller is taken for.
pub(super) async fn me(State(app): State<App>) -> Json<Value> {
    let actor = Actor::current();
    let name = actor.as_ref().map_or("", |a| a.principal.name());
    let is_admin = actor.as_ref().is_none_or(|a| a.principal.is_admin());
    let listed = app.access.list().into_iter().find(|u| u.name == name);
    let grants = listed.map_or_else(Vec::new, |u| u.grants);
    Json(json!({ "user": name, "admin": is_admin, "grants": grants, "required": app.access.is_required() }))
}

impl From<Refused> for Sorry {
    fn from(refused: Refused) -> Sorry {
        let status = match &refused {
            Refused::Wrong(_) => StatusCode::BAD_REQUEST,
            Refused::NotThere(_) => StatusCode::NOT_FOUND,
            Refused::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Sorry::new(status, refused.to_string())
    }
}

/// A sentence in v1's envelope.
fn v1<H, F>(handler: H) -> impl Fn(State<App>, Params) -> Answer + Clone + Send + Sync + 'static
where
    H: Fn(State<App>, Params) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<&'static str, Sorry>> + Send,
{
    move |app, params| {
        let handler = handler.clone();
        Box::pin(async move {
            let said = handler(app, params).await?;
            Ok(Json(json!({ "code": 200, "message": null, "data": said })))
        })
    }
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<Json<Value>, Sorry>> + Send>>;

async fn add_user(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let user = params.required("username")?.to_owned();
    let password = Some(Password(params.required("password")?.to_owned()));
    app.access.change(Change::Add { user, password, grants: Vec::new() }).await?;
    Ok("create user ok!")
}

/// Administrators, and whoever it is himself.
async fn set_password(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let user = params.required("username")?.to_owned();
    let may = Actor::current().is_none_or(|a| a.principal.is_admin() || **a.principal.name() == *user);
    if !may {
        return Err(Sorry::new(StatusCode::FORBIDDEN, "authorization failed! This is somebody else's password"));
    }
    let password = Password(params.required("newPassword")?.to_owned());
    app.access.change(Change::Password { user, password }).await?;
    Ok("update user ok!")
}

async fn remove_user(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    app.access.change(Change::Remove { user: params.required("username")?.to_owned() }).await?;
    Ok("delete user ok!")
}

/// A role as it is granted.
fn role_grant(role: &str) -> String {
    if role == ROLE_ADMIN { crate::access::ADMIN.to_owned() } else { format!("{ROLE}{role}") }
}

/// In Nacos a role comes to be when somebody has it; here with its first permission. A user may have one that is to come.
async fn grant_role(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let (role, to) = (params.required("role")?, params.required("username")?.to_owned());
    let grants = vec![role_grant(role)];
    app.access.change(Change::Grant { to, grants }).await?;
    Ok("add role ok!")
}

async fn revoke_role(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let role = role_grant(params.required("role")?);
    match params.text("username") {
        Some(from) => drop(app.access.change(Change::Revoke { from: from.to_owned(), grants: vec![role] }).await?),
        None => {
            let grants = app.access.list().into_iter().find(|l| l.name == role).map(|l| l.grants);
            let grants = grants.ok_or_else(|| Sorry::new(StatusCode::NOT_FOUND, "there is no such role"))?;
            app.access.change(Change::Revoke { from: role, grants }).await?;
        }
    }
    Ok("delete role ok!")
}

/// `NAMESPACE:*:*` and an action as a permission.
fn permission_of(params: &Params) -> Result<String, Sorry> {
    let (resource, action) = (params.required("resource")?, params.required("action")?);
    let namespace = resource.strip_suffix(":*:*").unwrap_or(resource);
    if namespace.contains(':') {
        let text = format!("resource {resource:?}: permissions are of whole namespaces here, NAMESPACE:*:*");
        return Err(Sorry::new(StatusCode::BAD_REQUEST, text));
    }
    match action {
        "r" => Ok(format!("{namespace}:read")),
        "w" | "rw" => Ok(format!("{namespace}:write")),
        _ => Err(Sorry::new(StatusCode::BAD_REQUEST, format!("action {action:?}: it should be r, w or rw"))),
    }
}

async fn grant(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let (to, grants) = (format!("{ROLE}{}", params.required("role")?), vec![permission_of(&params)?]);
    app.access.change(Change::Grant { to, grants }).await?;
    Ok("add permission ok!")
}

async fn revoke(State(app): State<App>, params: Params) -> Result<&'static str, Sorry> {
    let (from, grants) = (format!("{ROLE}{}", params.required("role")?), vec![permission_of(&params)?]);
    app.access.change(Change::Revoke { from, grants }).await?;
    Ok("delete permission ok!")
}

/// A page, as Nacos writes it.
fn page(params: &Params, all: Vec<Value>) -> Result<Value, Sorry> {
    let number: usize = params.parse("pageNo", "a number from 1")?.unwrap_or(1).max(1);
    let size = params.parse("pageSize", "a number from 1")?.unwrap_or(100).clamp(1, PAGE_LEN_MAX);
    let count = all.len();
    let items: Vec<Value> = all.into_iter().skip((number - 1).saturating_mul(size)).take(size).collect();
    let pages = count.div_ceil(size);
    Ok(json!({ "totalCount": count, "pageNumber": number, "pagesAvailable": pages, "pageItems": items }))
}

/// Those that the parameter names, or all; `search=blur` takes a part of a name.
fn is_wanted(params: &Params, name: &'static str, found: &str) -> bool {
    let is_blurred = params.text("search") == Some("blur");
    params.text(name).is_none_or(|wanted| match is_blurred {
        true => found.contains(wanted.trim_matches('*')),
        false => found == wanted,
    })
}

fn is_role(listed: &Listed) -> bool {
    listed.name.starts_with(ROLE)
}

async fn users_of(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let all = app.access.list().into_iter().filter(|l| !is_role(l) && is_wanted(&params, "username", &l.name));
    Ok(Json(page(&params, all.map(|l| json!({ "username": l.name })).collect())?))
}

async fn users(app: State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    users_of(app, params).await
}

/// Names that hold `username`, as a list.
async fn search(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let part = params.required("username")?;
    let names = app.access.list().into_iter().filter(|l| !is_role(l) && l.name.contains(part)).map(|l| l.name);
    Ok(Json(json!(names.collect::<Vec<_>>())))
}

fn roles_in(access: &Access) -> Vec<(String, String)> {
    let users = access.list().into_iter().filter(|l| !is_role(l));
    let of = |user: Listed| {
        let roles = user.grants.into_iter().filter_map(|grant| match grant.strip_prefix(ROLE) {
            Some(role) => Some(role.to_owned()),
            None => (grant == crate::access::ADMIN).then(|| ROLE_ADMIN.to_owned()),
        });
        roles.map(|role| (role, user.name.clone())).collect::<Vec<_>>()
    };
    users.flat_map(of).collect()
}

async fn roles_of(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let all = roles_in(&app.access).into_iter();
    let wanted = all.filter(|(r, u)| is_wanted(&params, "role", r) && is_wanted(&params, "username", u));
    let all = wanted.map(|(role, user)| json!({ "role": role, "username": user })).collect();
    Ok(Json(page(&params, all)?))
}

async fn roles(app: State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    roles_of(app, params).await
}

async fn permissions_of(State(app): State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    let mut all = Vec::new();
    for listed in app.access.list() {
        let Some(role) = listed.name.strip_prefix(ROLE).filter(|r| is_wanted(&params, "role", r)) else { continue };
        for (namespace, action) in listed.grants.iter().filter_map(|g| g.rsplit_once(':')) {
            let action = if action == "write" { "rw" } else { "r" };
            all.push(json!({ "role": role, "resource": format!("{namespace}:*:*"), "action": action }));
        }
    }
    Ok(Json(page(&params, all)?))
}

async fn permissions(app: State<App>, params: Params) -> Result<Json<Value>, Sorry> {
    permissions_of(app, params).await
}
