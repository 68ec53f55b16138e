//! Parameters as Nacos takes them: from the query or from a form body, for every verb; the query wins.
//! Promise: what a handler gets is of its type and within the model's limits, or the request is answered with 400.

use super::envelope::code;
use super::{App, Sorry};
use crate::model::{CLUSTER_DEFAULT, InstanceId, Invalid, Metadata, ServiceKey};
use axum::body::{Bytes, HttpBody};
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use std::convert::Infallible;
use std::net::SocketAddr;

/// Who asks.
pub(super) struct Caller {
    /// The connection's other end; `None` where no connection is (tests).
    pub(super) peer: Option<SocketAddr>,
    /// Its User-Agent, without control characters, at most 100 of them; empty if it says none.
    pub(super) agent: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
        let agent = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        // Nacos' clients say it twice, and some in this header alone.
        let agent = if agent.is_empty() {
            parts.headers.get("client-version").and_then(|v| v.to_str().ok()).unwrap_or_default()
        } else {
            agent
        };
        Ok(Caller { peer, agent: agent.chars().filter(|c| !c.is_control() && *c != ' ').take(100).collect() })
    }
}

/// The parameters of one request.
#[derive(Default)]
pub(super) struct Params {
    /// Names and values one behind the other, decoded: a text for each would be ten allocations for a registration.
    text: String,
    /// Where a name begins, where its value does, and where that ends.
    pairs: Vec<[usize; 3]>,
}

impl FromRequest<App> for Params {
    type Rejection = Sorry;

    async fn from_request(request: Request, app: &App) -> Result<Params, Sorry> {
        let query = request.uri().query().unwrap_or_default();
        let mut params = Params::read(query, &[]);
        if request.body().is_end_stream() {
            return Ok(params);
        }
        let is_form = is_form(request.headers());
        let body = Bytes::from_request(request, app).await;
        let body = body.map_err(|e| Sorry::new(e.status(), format!("the body cannot be read: {}", e.body_text())))?;
        if is_form {
            params.add(&body);
        }
        Ok(params)
    }
}

/// A body without a type is taken for a form: some clients send none with PUT and DELETE.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    content_type.is_none_or(|t| t.starts_with("application/x-www-form-urlencoded"))
}

impl Params {
    /// Reads a query and a form.
    pub(super) fn read(query: &str, form: &[u8]) -> Params {
        let mut params = Params { text: String::with_capacity(query.len() + form.len()), pairs: Vec::with_capacity(8) };
        params.add(query.as_bytes());
        params.add(form);
        params
    }

    /// What comes later loses against what is there.
    fn add(&mut self, encoded: &[u8]) {
        for (name, value) in form_urlencoded::parse(encoded) {
            let begin = self.text.len();
            self.text.push_str(&name);
            let middle = self.text.len();
            self.text.push_str(&value);
            self.pairs.push([begin, middle, self.text.len()]);
        }
    }

    /// A parameter that is there and not empty, trimmed.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        // The first of several wins. There are few: a table would cost more than it saves.
        let [_, from, to] = *self.pairs.iter().find(|[from, to, _]| self.text[*from..*to] == *name)?;
        Some(self.text[from..to].trim()).filter(|value| !value.is_empty())
    }

    /// A parameter that must be there.
    pub(super) fn required(&self, name: &'static str) -> Result<&str, Sorry> {
        self.text(name).ok_or_else(|| {
            Sorry::new(StatusCode::BAD_REQUEST, format!("Param '{name}' is required."))
                .with_code(code::PARAMETER_MISSING)
        })
    }

    /// A number, or whatever else parses.
    pub(super) fn parse<T: std::str::FromStr>(&self, name: &'static str, what: &str) -> Result<Option<T>, Invalid> {
        let read = |text: &str| text.parse().map_err(|_| Invalid::new(name, format!("{text:?} is not {what}.")));
        self.text(name).map(read).transpose()
    }

    /// Yes or no. Python's SDK sends `True`; Nacos takes `on`, `yes`, `t` and `y` too.
    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, Invalid> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let is_one_of = |words: [&str; 6]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
        if is_one_of(["true", "on", "yes", "t", "y", "1"]) {
            Ok(Some(true))
        } else if is_one_of(["false", "off", "no", "f", "n", "0"]) {
            Ok(Some(false))
        } else {
            Err(Invalid::new(name, format!("{text:?} is neither true nor false.")))
        }
    }

    /// Pairs: a JSON object, or `k=v,k=v`.
    pub(super) fn metadata(&self, name: &'static str) -> Result<Option<Metadata>, Invalid> {
        let Some(text) = self.text(name) else { return Ok(None) };
        if text.starts_with('{') {
            let value =
                serde_json::from_str(text).map_err(|e| Invalid::new(name, format!("it is no JSON object: {e}.")))?;
            return metadata_of(name, value).map(Some);
        }
        let pair = |pair: &str| pair.split_once('=').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
        let pairs = text.split(',').filter(|p| !p.trim().is_empty()).map(pair).collect::<Option<_>>();
        pairs.map(Some).ok_or_else(|| Invalid::new(name, "it should be a JSON object, or k=v,k=v."))
    }

    /// The service that a request is about.
    pub(super) fn service(&self) -> Result<ServiceKey, Sorry> {
        let name = self.required("serviceName")?;
        Ok(ServiceKey::new(self.namespace(), self.text("groupName").unwrap_or_default(), name)?)
    }

    /// The namespace, empty for the default one.
    pub(super) fn namespace(&self) -> &str {
        self.text("namespaceId").unwrap_or_default()
    }

    /// The cluster that a request names, or the default one.
    pub(super) fn cluster(&self) -> &str {
        cluster_or_default(self.text("clusterName").or(self.text("cluster")))
    }

    /// The instance that a request is about.
    pub(super) fn instance(&self) -> Result<InstanceId, Sorry> {
        let host = self.required("ip")?;
        self.required("port")?;
        let port = self.parse("port", "a port, 1 to 65535")?.unwrap_or(0);
        Ok(InstanceId::new(self.cluster(), host, port)?)
    }
}

/// Python's SDK 1.x registers an instance without a cluster in one called "None" (its formatted null), but beats and
/// deregisters without naming any. Both mean the default cluster.
pub(super) fn cluster_or_default(cluster: Option<&str>) -> &str {
    match cluster {
        None | Some("" | "None") => CLUSTER_DEFAULT,
        Some(cluster) => cluster,
    }
}

/// Pairs from a JSON object; values that are no strings are taken as they are written.
pub(crate) fn metadata_of(name: &'static str, value: serde_json::Value) -> Result<Metadata, Invalid> {
    match value {
        serde_json::Value::Null => Ok(Metadata::new()),
        serde_json::Value::Object(pairs) => Ok(pairs
            .into_iter()
            .map(|(key, value)| match value {
                serde_json::Value::String(text) => (key, text),
                other => (key, other.to_string()),
            })
            .collect()),
        _ => Err(Invalid::new(name, "it should be a JSON object.")),
    }
}
