//! What a request of our own API says: path, query and body, read strictly.
//! Promise: a handler gets what it may have, of its type and within its bounds; anything else is a 400 that names the
//! parameter and what would be right. What is not known is refused, so that a slip of the pen is not taken for a wish.

use super::problem::Problem;
use crate::http::App;
use crate::model::{InstanceId, NAMESPACE_DEFAULT, ServiceKey};
use crate::selector::Selector;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header;
use axum::http::request::Parts;
use ringspan_engine::health::Health;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::str::FromStr;

/// The longest page, and the default one.
pub(super) const SIZE_MAX: usize = 1_000;
/// See [`SIZE_MAX`].
pub(super) const SIZE_DEFAULT: usize = 100;
/// The last page that can be asked for: more would be more than a registry holds.
pub(super) const PAGE_MAX: usize = 1_000_000;
/// In place of a namespace: all of them.
pub(in crate::http) const ALL: &str = "*";

/// The query, each parameter once.
pub(super) struct Query {
    pairs: BTreeMap<String, String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query, Problem> {
        let text = parts.uri.query().unwrap_or_default();
        let all: Vec<(String, String)> = serde_urlencoded::from_str(text)
            .map_err(|e| Problem::new("invalid", format!("the query cannot be read: {e}")))?;
        let mut pairs = BTreeMap::new();
        for (key, value) in all {
            if value.is_empty() {
                return Err(Problem::param(&key, format!("{key}: it is empty; give it a value or leave it out")));
            }
            if pairs.insert(key.clone(), value).is_some() {
                return Err(Problem::param(&key, format!("{key}: it is given twice")));
            }
        }
        Ok(Query { pairs })
    }
}

impl Query {
    /// Refuses whatever is not one of these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        // A token may be here, for those who cannot set a header: an EventSource of a browser's.
        let is_known = |key: &str| key == "accessToken" || known.contains(&key);
        match self.pairs.keys().find(|key| !is_known(key)) {
            None => Ok(()),
            Some(key) if known.is_empty() => {
                Err(Problem::param(key, format!("{key}: no query parameter is known here")))
            }
            Some(key) => {
                Err(Problem::param(key, format!("{key}: no such query parameter here; there are {}", known.join(", "))))
            }
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }

    fn parse<T: FromStr>(&self, key: &str, right: &str) -> Result<Option<T>, Problem> {
        let read =
            |text: &str| text.parse().map_err(|_| Problem::param(key, format!("{key}: {text:?} should be {right}")));
        self.text(key).map(read).transpose()
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Problem> {
        self.parse(key, "true or false")
    }

    /// Which page: how many to skip, how many to take.
    pub(super) fn page(&self) -> Result<Page, Problem> {
        let page = self.number("page", 1..=PAGE_MAX)?.unwrap_or(1);
        let size = self.number("size", 1..=SIZE_MAX)?.unwrap_or(SIZE_DEFAULT);
        Ok(Page { page, size })
    }

    fn number(&self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>, Problem> {
        let right = format!("a number from {} to {}", range.start(), range.end());
        let digits = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
        let wrong = |text: &str| Problem::param(key, format!("{key}: {text:?} should be {right}"));
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = Some(text).filter(digits).and_then(|t| t.parse().ok()).filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| wrong(text))
    }

    /// The namespace; `None`: all of them.
    pub(super) fn namespace(&self) -> Result<Option<String>, Problem> {
        match self.text("namespace") {
            Some(ALL) => Ok(None),
            Some(name) => Ok(Some(ServiceKey::new(name, "", "x")?.namespace().to_string())),
            None => Ok(Some(NAMESPACE_DEFAULT.to_owned())),
        }
    }

    /// The group; `None`: all of them.
    pub(super) fn group(&self) -> Result<Option<String>, Problem> {
        self.text("group").map(|name| Ok(ServiceKey::new("", name, "x")?.group().to_string())).transpose()
    }

    /// A name, or a part of one.
    pub(super) fn name(&self, key: &str) -> Result<Option<String>, Problem> {
        self.text(key).map(|name| bare(name).map(|key| key.name().to_string())).transpose()
    }

    /// Whose metadata.
    pub(super) fn label(&self) -> Result<Selector, Problem> {
        let read = |text: &str| text.parse().map_err(|e| Problem::param("label", format!("label: {e}")));
        self.text("label").map_or_else(|| Ok(Selector::default()), read)
    }

    /// Healths, separated by commas; none: any.
    pub(super) fn health(&self) -> Result<Vec<Health>, Problem> {
        let one = |word: &str| match word {
            "up" => Ok(Health::Up),
            "down" => Ok(Health::Down),
            "unknown" => Ok(Health::Unknown),
            other => Err(Problem::param("health", format!("health: {other:?} should be up, down or unknown"))),
        };
        self.text("health").map_or_else(|| Ok(Vec::new()), |text| text.split(',').map(one).collect())
    }
}

/// A page of a list.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) page: usize,
    pub(super) size: usize,
}

impl Page {
    /// How many come before it.
    pub(super) fn skip(self) -> usize {
        (self.page - 1).saturating_mul(self.size)
    }
}

/// A service's name that does not bring its group.
fn bare(name: &str) -> Result<ServiceKey, Problem> {
    if name.contains(crate::model::GROUP_SEPARATOR) {
        return Err(Problem::param("name", "name: the group has a place of its own, so there is no '@@' in a name"));
    }
    Ok(ServiceKey::public(name)?)
}

/// The service that a path names.
pub(super) struct OfService(pub(super) ServiceKey);

impl FromRequestParts<App> for OfService {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<OfService, Problem> {
        let path = read_path(parts, app).await?;
        service(&path).map(OfService)
    }
}

/// The instance that a path names.
pub(super) struct OfInstance(pub(super) ServiceKey, pub(super) InstanceId);

impl FromRequestParts<App> for OfInstance {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<OfInstance, Problem> {
        let path = read_path(parts, app).await?;
        let service = service(&path)?;
        let of = |key: &str| path.get(key).map(String::as_str).unwrap_or_default();
        let text = of("port");
        let wrong = || Problem::param("port", format!("port: {text:?} should be a number from 1 to 65535"));
        let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        let port = text.parse().ok().filter(|_| is_plain).ok_or_else(wrong)?;
        Ok(OfInstance(service, InstanceId::new(of("cluster"), of("host"), port)?))
    }
}

/// The agent that a path names.
pub(super) struct OfAgent(pub(super) String);

impl FromRequestParts<App> for OfAgent {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<OfAgent, Problem> {
        let path = read_path(parts, app).await?;
        let agent = path.get("agent").map(String::as_str).unwrap_or_default();
        let name = crate::model::cluster_name(agent);
        let name = name.map_err(|e| Problem::param("agent", format!("agent: {}", e.problem)))?;
        Ok(OfAgent(name.to_string()))
    }
}

async fn read_path(parts: &mut Parts, app: &App) -> Result<BTreeMap<String, String>, Problem> {
    let path = RawPathParams::from_request_parts(parts, app).await;
    let path = path.map_err(|e| Problem::new("invalid", format!("the path cannot be read: {}", e.body_text())))?;
    Ok(path.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn service(path: &BTreeMap<String, String>) -> Result<ServiceKey, Problem> {
    let of = |key: &str| path.get(key).map(String::as_str).unwrap_or_default();
    bare(of("name"))?;
    Ok(ServiceKey::new(of("namespace"), of("group"), of("name"))?)
}

/// A body in JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Body<T>, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !matches!(kind.as_str(), "application/json" | "application/merge-patch+json") {
            let detail = format!("Content-Type: {kind:?} should be application/json");
            return Err(Problem::new("unsupported-media-type", detail));
        }
        let bytes = Bytes::from_request(request, app).await;
        let bytes = bytes.map_err(|e| match e.status().as_u16() {
            413 => Problem::new("too-large", "the body is larger than 64 KiB"),
            _ => Problem::new("invalid", format!("the body cannot be read: {}", e.body_text())),
        })?;
        let wrong = |e: serde_json::Error| Problem::param("body", format!("the body: {e}"));
        let mut body = serde_json::from_slice(&bytes).map_err(wrong)?;
        if let Some(field) = misplaced_list("", "body", &body) {
            return Err(Problem::param(field, format!("{field}: it is a list, and none belongs there")));
        }
        whole_numbers(&mut body);
        serde_json::from_value(body).map(Body).map_err(wrong)
    }
}

/// The fields that are lists, each with what it is a field of.
const LISTS: [(&str, &str); 3] = [("body", "same_labels"), ("checker", "expected"), ("checked_by", "vantages")];

/// A list in any other place, by the field that holds it: serde would read one as the fields of a structure, in order.
fn misplaced_list<'a>(of: &str, field: &'a str, value: &'a Value) -> Option<&'a str> {
    match value {
        Value::Array(_) => (!LISTS.contains(&(of, field))).then_some(field),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| misplaced_list(field, name, value)),
        _ => None,
    }
}

/// `2.0` is an integer to JSON Schema (2020-12 §4.2.3), and JavaScript knows no other: made `2` wherever it stands. A field
/// that may have a fraction takes it either way.
fn whole_numbers(value: &mut Value) {
    /// What a float holds without a gap.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(n) if n.is_f64() => {
            if let Some(x) = n.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT) {
                *n = (x as i64).into();
            }
        }
        Value::Array(all) => all.iter_mut().for_each(whole_numbers),
        Value::Object(all) => all.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// For optional fields that must not be `null`: to leave one out is how not to name it.
pub(super) fn named<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    T::deserialize(from).map(Some)
}
