//! What is read from a request's head, and what is changed in it for a backend.

use super::forward::Refusal;
use super::table::without_prefix;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, StatusCode, Uri, Version};

pub(super) const BAD_HOST: &str = "The request does not say clearly which host it is for.";

/// Whom the request is for: the address line's word before the header's (RFC 9112 §3.2.2), which in HTTP/2 has to be the
/// same (RFC 9113 §8.3.1). What could be read in two ways is not passed on at all.
pub(super) fn authority(parts: &Parts) -> Result<String, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "This is no proxy for other hosts."));
    }
    let bad = || Refusal::new(StatusCode::BAD_REQUEST, BAD_HOST);
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let text = match (parts.uri.authority(), host) {
        _ if more.is_some() => return Err(bad()),
        (Some(authority), Some(host)) if parts.version >= Version::HTTP_2 && !is_same(authority, host) => {
            return Err(bad());
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| bad())?,
        (None, None) if parts.version == Version::HTTP_11 => return Err(bad()),
        (None, None) => "",
    };
    let is_good = text.is_empty() || !text.contains('@') && text.parse::<Authority>().is_ok();
    if is_good { Ok(text.to_owned()) } else { Err(bad()) }
}

/// Whether both name one host; a port that is not said is any scheme's own.
fn is_same(authority: &Authority, host: &HeaderValue) -> bool {
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let (ours, theirs) = (authority.port_u16(), host.port_u16());
    let is_usual = |port: Option<u16>| matches!(port, None | Some(80 | 443));
    authority.host().eq_ignore_ascii_case(host.host())
        && (ours == theirs || ours.is_none() != theirs.is_none() && is_usual(ours.or(theirs)))
}

pub(super) fn to_https(host: &str, port: u16, uri: &Uri) -> Refusal {
    let mut refusal = Refusal::new(StatusCode::PERMANENT_REDIRECT, "This address is served over https.");
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = uri.path_and_query().map(PathAndQuery::as_str).filter(|path| path.starts_with('/')).unwrap_or("/");
    refusal.location = HeaderValue::try_from(format!("https://{host}{port}{path}")).ok();
    if host.is_empty() || refusal.location.is_none() {
        return Refusal::new(StatusCode::BAD_REQUEST, BAD_HOST);
    }
    refusal
}

pub(super) fn strip(uri: &mut Uri, prefix: &str) -> Option<()> {
    let path = without_prefix(uri.path(), prefix)?;
    let stripped = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    *uri = stripped.parse().ok()?;
    Some(())
}

/// As a backend is asked: path and query alone.
pub(super) fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().map_or(Uri::from_static("/"), |path| Uri::from(path.clone()))
}

/// HTTP/2 may cut the Cookie header up; HTTP/1 has one (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut header::HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(one) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, one);
    }
}

/// RFC 9110 §9.2.2.
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}
