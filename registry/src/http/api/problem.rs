//! What is said when the answer is no: problem details (RFC 9457), `application/problem+json`.
//! Promise: every answer of 400 and above under /api/v1 is one, whoever gave it, and says what would be right.

use crate::http::Sorry;
use crate::model::Invalid;
use crate::table::Refusal;
use axum::body::{self, Body};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The media type.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Sentences are shorter; what is longer was not written for people.
const SENTENCE_BYTES_MAX: usize = 8 << 10;

/// A refusal.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    /// Names the kind of problem: `urn:ringspan:problem:` and a word.
    r#type: String,
    /// The status in words.
    title: &'static str,
    status: u16,
    /// What is wrong, and what would be right.
    detail: String,
    /// The parameter or field that is wrong, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<String>,
}

/// Words of `type`, each with its status. The document lists them.
pub(super) const KINDS: &[(&str, u16)] = &[
    ("invalid", 400),
    ("unauthorized", 401),
    ("forbidden", 403),
    ("not-found", 404),
    ("no-service", 404),
    ("no-instance", 404),
    ("no-agent", 404),
    ("method-not-allowed", 405),
    ("wrong-kind", 409),
    ("of-agent", 409),
    ("stale-session", 409),
    ("service-exists", 409),
    ("not-empty", 409),
    ("still-checked", 409),
    ("not-probed", 409),
    ("too-large", 413),
    ("unsupported-media-type", 415),
    ("too-many-requests", 429),
    ("not-stored", 500),
    ("internal", 500),
    ("not-implemented", 501),
    ("busy", 503),
    ("full", 507),
];

impl Problem {
    /// One of [`KINDS`].
    pub(super) fn new(kind: &str, detail: impl Into<String>) -> Problem {
        let status = KINDS.iter().find(|(word, _)| *word == kind).map_or(500, |(_, status)| *status);
        let title = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or_default();
        Problem { r#type: format!("urn:ringspan:problem:{kind}"), title, status, detail: detail.into(), param: None }
    }

    /// A parameter or a field of the body that cannot be.
    pub(super) fn param(param: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem { param: Some(param.into()), ..Problem::new("invalid", detail) }
    }

    /// What somebody else's answer with this status means.
    fn of_status(status: StatusCode, detail: String) -> Problem {
        let kind = match status.as_u16() {
            503 => "busy",
            500 => "internal",
            409 => "wrong-kind",
            404 => "not-found",
            code => KINDS.iter().find(|(_, of)| *of == code).map_or("invalid", |(word, _)| *word),
        };
        Problem {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or_default(),
            ..Problem::new(kind, detail)
        }
    }

    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let text = serde_json::to_vec(&self).expect("strings and numbers are JSON");
        (self.status(), [(header::CONTENT_TYPE, PROBLEM_JSON)], text).into_response()
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Problem {
        // The model speaks of parameters by Nacos' names.
        let ours = match invalid.param {
            "serviceName" => "name",
            "namespaceId" => "namespace",
            "groupName" => "group",
            "clusterName" => "cluster",
            "ip" => "host",
            "healthChecker" => "checker",
            "protectThreshold" => "protect_threshold",
            "checkPort" => "checker.port",
            "intervalMs" => "checker.manner.interval_ms",
            "timeoutMs" => "checker.manner.timeout_ms",
            "expectedResponseCode" => "checker.expected",
            "password" => "checker.password",
            other => other,
        };
        Problem::param(ours, format!("{ours}: {}", invalid.problem))
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let kind = match refusal {
            Refusal::Invalid(invalid) => return invalid.into(),
            Refusal::Kind { ephemeral, .. } => {
                let (is, other) = if ephemeral { ("ephemeral", "persistent") } else { ("persistent", "ephemeral") };
                let detail = format!(
                    "the service's instances are {is}, so none that is {other} can join them; convert the service \
                     first, or use another name"
                );
                return Problem::new("wrong-kind", detail);
            }
            Refusal::WrongKind { .. } => "wrong-kind",
            Refusal::Denied { .. } => "forbidden",
            Refusal::OfAgent { .. } => "of-agent",
            Refusal::NoService { ref service } => {
                let detail = format!("there is no service {service}; GET /api/v1/services lists those there are");
                return Problem::new("no-service", detail);
            }
            Refusal::NoInstance { ref service, ref id } => {
                return Problem::new("no-instance", format!("service {service} has no instance {id}"));
            }
            Refusal::ServiceExists { .. } => "service-exists",
            Refusal::NotEmpty { ref service } => {
                let detail = format!("service {service} still has instances; deregister them first");
                return Problem::new("not-empty", detail);
            }
            Refusal::StillChecked { .. } => "still-checked",
            Refusal::StaleSession { .. } => "stale-session",
            Refusal::TooMany { .. } => "full",
            Refusal::Store(_) => "not-stored",
            Refusal::Busy { .. } | Refusal::Unavailable(_) | Refusal::Stopped => "busy",
        };
        Problem::new(kind, refusal.to_string())
    }
}

impl From<Sorry> for Problem {
    fn from(sorry: Sorry) -> Problem {
        Problem::of_status(sorry.status, sorry.text)
    }
}

/// Whether a path is of this API.
pub(crate) fn is_ours(path: &str) -> bool {
    path.starts_with("/api/v1")
}

/// Makes a problem of a refusal that is none yet: of layers, of the router, of body limits.
pub(crate) async fn refusal_as_problem(response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let is_problem = kind.is_some_and(|k| k.starts_with(PROBLEM_JSON));
    if response.status().as_u16() < 400 || is_problem {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = body::to_bytes(body, SENTENCE_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let text = if text.is_empty() { parts.status.canonical_reason().unwrap_or_default().to_owned() } else { text };
    let problem = Problem::of_status(parts.status, text);
    let text = serde_json::to_vec(&problem).expect("strings and numbers are JSON");
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(text))
}
