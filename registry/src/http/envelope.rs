//! Nacos v2 and v3 answers: `{"code":0,"message":"success","data":...}`, and errors as the same with a code and a status.
//! Promise: what v1 does, v2 and v3 do, by the same handlers; only the words around it differ.

use super::params::Params;
use super::{App, Sorry};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use std::future::Future;
use std::pin::Pin;

/// Nacos' error codes (api/model/v2/ErrorCode.java).
pub(super) mod code {
    pub(crate) const PARAMETER_MISSING: u32 = 10_000;
    pub(crate) const ACCESS_DENIED: u32 = 10_001;
    pub(crate) const PARAMETER_VALIDATE: u32 = 20_002;
    pub(crate) const RESOURCE_NOT_FOUND: u32 = 20_004;
    pub(crate) const RESOURCE_CONFLICT: u32 = 20_005;
    /// Ours: Nacos has none.
    pub(crate) const OVER_LIMIT: u32 = 429;
    pub(crate) const SERVICE_NAME: u32 = 21_000;
    pub(crate) const WEIGHT: u32 = 21_001;
    pub(crate) const INSTANCE_NOT_FOUND: u32 = 21_003;
    pub(crate) const INSTANCE: u32 = 21_004;
    pub(crate) const SERVICE_EXISTS: u32 = 21_007;
    pub(crate) const SERVICE_NOT_FOUND: u32 = 21_008;
    pub(crate) const SERVICE_DELETE: u32 = 21_009;
    pub(crate) const HEALTHY_MISSING: u32 = 21_010;
    pub(crate) const CHECK_STILL_RUNNING: u32 = 21_011;
    pub(crate) const SERVER: u32 = 30_000;
}

/// The message that goes with a code.
fn message(code: u32) -> &'static str {
    match code {
        code::PARAMETER_MISSING => "parameter missing",
        code::ACCESS_DENIED => "access denied",
        code::PARAMETER_VALIDATE => "parameter validate error",
        code::RESOURCE_NOT_FOUND => "resource not found",
        code::RESOURCE_CONFLICT => "resource conflict",
        code::OVER_LIMIT => "too many requests",
        code::SERVICE_NAME => "service name error",
        code::WEIGHT => "weight error",
        code::INSTANCE_NOT_FOUND => "instance not found",
        code::INSTANCE => "instance error",
        code::SERVICE_EXISTS => "service already exists",
        code::SERVICE_NOT_FOUND => "service not exist",
        code::SERVICE_DELETE => "service delete failure",
        code::HEALTHY_MISSING => "healthy param miss",
        code::CHECK_STILL_RUNNING => "health check still running",
        _ => "server error",
    }
}

/// The code of an answer that nobody gave a more precise one.
pub(super) fn code_of(status: StatusCode) -> u32 {
    match status {
        StatusCode::BAD_REQUEST => code::PARAMETER_VALIDATE,
        StatusCode::NOT_FOUND => code::RESOURCE_NOT_FOUND,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => code::ACCESS_DENIED,
        StatusCode::TOO_MANY_REQUESTS => code::OVER_LIMIT,
        StatusCode::CONFLICT => code::RESOURCE_CONFLICT,
        _ => code::SERVER,
    }
}

/// What a v1 handler answers, as data.
pub(super) trait Data {
    fn data(self) -> Value;
}

impl Data for &'static str {
    fn data(self) -> Value {
        self.into()
    }
}

impl<T: Serialize> Data for Json<T> {
    fn data(self) -> Value {
        serde_json::to_value(self.0).unwrap_or(Value::Null)
    }
}

/// `data` in its envelope.
pub(super) fn good(data: Value) -> Response {
    Json(json!({ "code": 0, "message": "success", "data": data })).into_response()
}

/// An error in its envelope.
pub(super) fn bad(sorry: &Sorry) -> Response {
    (sorry.status, Json(json!({ "code": sorry.code, "message": message(sorry.code), "data": sorry.text })))
        .into_response()
}

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A v1 handler that answers in an envelope.
pub(super) fn enveloped<H, F, T>(
    handler: H,
) -> impl Fn(State<App>, Result<Params, Sorry>) -> Answer + Clone + Send + Sync + 'static
where
    H: Fn(State<App>, Params) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<T, Sorry>> + Send,
    T: Data,
{
    move |app, params| {
        let handler = handler.clone();
        Box::pin(async move {
            let answer = match params {
                Ok(params) => handler(app, params).await,
                Err(sorry) => Err(sorry),
            };
            answer.map_or_else(|sorry| bad(&sorry), |good_one| good(good_one.data()))
        })
    }
}
