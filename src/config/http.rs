//! `http` and `https` listeners of bridge.toml: routes, headers, passwords, certificates, limits. The table for people
//! is docs/configuration.md; what it all does is docs/http.md.
//! Promise: what is here can be carried out as it stands; files are opened again when a listener starts.

mod edits;
mod options;

use super::{Document, Error, unit};
pub(crate) use edits::{Edits, Login};
use edits::{RawEdits, RawLogin, check_edits, check_login};
pub(crate) use options::Options;
pub(super) use options::RawOptions;
use options::check_options;
use ringspan_tunnel::bridge::CarrierMode;
use serde::Deserialize;
use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use toml::Spanned;

/// How streams to backends ride: they are kept for many visitors, whose questions and answers are cheapest in frames.
pub(crate) const CARRIER: CarrierMode = CarrierMode::Mux;

/// One listener that speaks HTTP, or looks who is asked for in a TLS greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpListener {
    /// For logs and metrics.
    pub(crate) name: String,
    /// `https`: TLS first.
    pub(crate) is_tls: bool,
    /// Where requests go; the order is of no importance.
    pub(crate) routes: Vec<Route>,
    /// By the names in them; the first is for visitors that name none of them.
    pub(crate) certs: Vec<CertFiles>,
    /// The rest.
    pub(crate) options: Options,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertFiles {
    /// The leaf first.
    pub(crate) cert: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
}

/// Which requests, to which service, changed how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// For metrics and logs: host and path as written.
    pub(crate) label: String,
    /// Which hosts.
    pub(crate) host: HostPattern,
    /// Which paths: this one and those below it. Starts with `/`; ends with one only if it is `/`.
    pub(crate) path: String,
    /// Whose backends.
    pub(crate) service: String,
    /// TLS is not ended here: the visitor's bytes go to the backend as they are.
    pub(crate) passthrough: bool,
    /// The backend does not see `path`.
    pub(crate) strip_prefix: bool,
    /// The Host header that the backend sees.
    pub(crate) rewrite_host: Option<String>,
    /// Of what the backend sees.
    pub(crate) request_headers: Edits,
    /// Of what the visitor sees.
    pub(crate) response_headers: Edits,
    /// Who may; empty: everybody.
    pub(crate) logins: Vec<Login>,
    /// Longest request body.
    pub(crate) body_bytes_max: Option<u64>,
}

/// Which hosts a route is for. Names are lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HostPattern {
    /// This one.
    Exact(String),
    /// Every name that ends with this: `.example.com`.
    Below(String),
    /// All.
    Any,
}

/// `[[listener.route]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    host: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    service: Spanned<String>,
    passthrough: Option<Spanned<bool>>,
    strip_prefix: Option<Spanned<bool>>,
    rewrite_host: Option<Spanned<String>>,
    #[serde(default)]
    request_headers: RawEdits,
    #[serde(default)]
    response_headers: RawEdits,
    #[serde(default)]
    basic_auth: Vec<RawLogin>,
    body_bytes_max: Option<Spanned<i64>>,
}

impl RawRoute {
    /// Something of it.
    pub(super) fn span(&self) -> Range<usize> {
        self.service.span()
    }
}

impl RawCert {
    /// Something of it.
    pub(super) fn span(&self) -> Range<usize> {
        self.cert.span()
    }
}

/// One of `tls = [...]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCert {
    cert: Spanned<String>,
    key: Spanned<String>,
}

/// What only listeners of this kind have.
pub(super) struct RawParts<'a> {
    /// The whole listener's place, for what is missing.
    pub(super) at: &'a Spanned<String>,
    /// Where all goes that no route takes.
    pub(super) service: Option<&'a Spanned<String>>,
    pub(super) routes: &'a [RawRoute],
    pub(super) tls: &'a [RawCert],
    pub(super) passthrough: Option<&'a Spanned<bool>>,
    pub(super) options: Option<&'a RawOptions>,
}

/// Whether a listener of this type is one of ours, and has TLS.
pub(super) fn is_tls(kind: &str) -> Option<bool> {
    match kind {
        "http" => Some(false),
        "https" => Some(true),
        _ => None,
    }
}

/// Checks one listener.
pub(super) fn check(doc: &Document, name: &str, is_tls: bool, raw: &RawParts<'_>) -> Result<HttpListener, Error> {
    let options = match raw.options {
        Some(options) => check_options(doc, options)?,
        None => Options::default(),
    };
    let passthrough = raw.passthrough.is_some_and(|p| *p.get_ref());
    if let (Some(p), false) = (raw.passthrough, is_tls) {
        return Err(doc.wrong(p.span(), "only TLS can be passed through", "type = \"https\", or no passthrough"));
    }
    let mut routes = Vec::new();
    let mut seen = HashSet::new();
    for route in raw.routes {
        let checked = check_route(doc, route, is_tls, passthrough)?;
        if !seen.insert((checked.host.clone(), checked.path.clone())) {
            let at = route.path.as_ref().or(route.host.as_ref()).unwrap_or(&route.service);
            return Err(doc.wrong(at.span(), "another route has this host and path", "one route for each"));
        }
        routes.push(checked);
    }
    for route in routes.iter().filter(|r| !r.passthrough) {
        // By the name in the greeting the whole connection goes one way.
        if routes.iter().any(|r| r.passthrough && r.host == route.host) {
            let host = raw.routes.iter().filter_map(|r| r.host.as_ref()).find(|h| route.label.starts_with(h.get_ref()));
            let at = host.unwrap_or(raw.at);
            return Err(doc.wrong(
                at.span(),
                "a route of this host passes TLS through, another one does not",
                "passthrough on all of a host's routes or on none",
            ));
        }
    }
    if let Some(raw) = raw.service {
        let service = check_service(doc, raw)?;
        if !seen.insert((HostPattern::Any, "/".into())) {
            let problem = "a route without host and path takes all that would go there";
            return Err(doc.wrong(raw.span(), problem, "one of the two"));
        }
        routes.push(Route { passthrough, ..plain_route(service) });
    }
    if let Some(at) = raw.options.and_then(|options| options.redirect_https.as_ref()) {
        if is_tls {
            let problem = "what comes here comes over https already";
            return Err(doc.wrong(at.span(), problem, "redirect_https on the http listener"));
        }
        if !routes.is_empty() || options.agent_hosts {
            let problem = "every request is sent to https: none would come to a service of this listener";
            return Err(doc.wrong(at.span(), problem, "services on the https listener, or no redirect_https"));
        }
    }
    let is_for_agents = options.agents.is_some() || options.agent_hosts;
    if routes.is_empty() && options.redirect_https.is_none() && !is_for_agents {
        return Err(doc.wrong(
            raw.at.span(),
            "this listener has nowhere to send a request",
            "service = \"web\", or [[listener.route]] with host and service",
        ));
    }
    let all_passed = !is_for_agents && routes.iter().all(|r| r.passthrough);
    let certs = check_certs(doc, raw, is_tls, all_passed)?;
    Ok(HttpListener { name: name.to_owned(), is_tls, routes, certs, options })
}

/// All of a listener's requests to this service.
pub(crate) fn plain_route(service: String) -> Route {
    Route {
        label: "*".into(),
        host: HostPattern::Any,
        path: "/".into(),
        service,
        passthrough: false,
        strip_prefix: false,
        rewrite_host: None,
        request_headers: Edits::default(),
        response_headers: Edits::default(),
        logins: Vec::new(),
        body_bytes_max: None,
    }
}

fn check_service(doc: &Document, raw: &Spanned<String>) -> Result<String, Error> {
    doc.value(raw, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\"")
}

fn check_certs(doc: &Document, raw: &RawParts<'_>, is_tls: bool, all_passed: bool) -> Result<Vec<CertFiles>, Error> {
    if let (Some(first), false) = (raw.tls.first(), is_tls) {
        return Err(doc.wrong(first.cert.span(), "an http listener has no certificates", "type = \"https\""));
    }
    if is_tls && raw.tls.is_empty() && !all_passed {
        let remedy = "tls = [{ cert = \"site.pem\", key = \"site.key\" }], or passthrough = true";
        return Err(doc.wrong(raw.at.span(), "an https listener needs a certificate", remedy));
    }
    let open = |raw: &Spanned<String>| {
        let open = |text: &str| {
            let path = doc.path_of(text);
            match std::fs::File::open(&path) {
                Ok(_) => Ok(path),
                Err(e) => Err(format!("{}: {e}", path.display())),
            }
        };
        doc.value(raw, open, "the path of a readable PEM file")
    };
    raw.tls.iter().map(|c| Ok(CertFiles { cert: open(&c.cert)?, key: open(&c.key)? })).collect()
}

fn check_route(doc: &Document, raw: &RawRoute, is_tls: bool, all_passed: bool) -> Result<Route, Error> {
    let service = check_service(doc, &raw.service)?;
    let host = match &raw.host {
        Some(host) => doc.value(host, host_pattern, "\"www.example.com\" or \"*.example.com\"")?,
        None => HostPattern::Any,
    };
    let path = match &raw.path {
        Some(path) => doc.value(path, route_path, "\"/api\"")?,
        None => "/".into(),
    };
    let shown = raw.host.as_ref().map_or("*", |h| h.get_ref().as_str());
    let label = if path == "/" { shown.to_owned() } else { format!("{shown}{path}") };
    let passthrough = raw.passthrough.as_ref().map_or(all_passed, |p| *p.get_ref());
    if let (Some(p), false) = (&raw.passthrough, is_tls) {
        return Err(doc.wrong(p.span(), "only TLS can be passed through", "type = \"https\", or no passthrough"));
    }
    if passthrough {
        let inside = raw.path.as_ref().or(raw.rewrite_host.as_ref());
        let edits = [&raw.request_headers, &raw.response_headers];
        let edited = edits.iter().find_map(|e| e.remove.first().or(e.set.first()).or(e.add.first()));
        let at = inside.or(edited).or(raw.basic_auth.first().map(|l| &l.user)).map(Spanned::span);
        let at = at.or(raw.strip_prefix.as_ref().map(Spanned::span)).or(raw.body_bytes_max.as_ref().map(Spanned::span));
        if let Some(at) = at {
            let problem = "a route that passes TLS through cannot see or change what is inside";
            return Err(doc.wrong(at, problem, "host and service alone"));
        }
    }
    let rewrite_host = match &raw.rewrite_host {
        Some(host) => Some(doc.value(host, authority, "\"app.internal\"")?),
        None => None,
    };
    Ok(Route {
        label,
        host,
        path,
        service,
        passthrough,
        strip_prefix: raw.strip_prefix.as_ref().is_some_and(|strip| *strip.get_ref()),
        rewrite_host,
        request_headers: check_edits(doc, &raw.request_headers)?,
        response_headers: check_edits(doc, &raw.response_headers)?,
        logins: raw.basic_auth.iter().map(|login| check_login(doc, login)).collect::<Result<_, _>>()?,
        body_bytes_max: body_bytes_max(doc, raw.body_bytes_max.as_ref())?,
    })
}

fn body_bytes_max(doc: &Document, raw: Option<&Spanned<i64>>) -> Result<Option<u64>, Error> {
    raw.map(|n| doc.number(n, 1..=1 << 50).map(i64::unsigned_abs)).transpose()
}

fn host_pattern(text: &str) -> Result<HostPattern, String> {
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return Ok(HostPattern::Any);
    }
    let (name, below) = match lower.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (lower.as_str(), false),
    };
    let is_v6 = name.starts_with('[') && name.ends_with(']');
    if !is_v6 && name.contains(':') {
        return Err("a host has no port here: the listener has one".into());
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with('.') || name.ends_with('.') || name.len() > 253 {
        return Err("it is no host name".into());
    }
    if !(is_v6 || name.chars().all(good)) {
        return Err("a host name has letters, digits, '.', '-' and '_' only; others are written as xn--...".into());
    }
    Ok(if below { HostPattern::Below(format!(".{name}")) } else { HostPattern::Exact(name.to_owned()) })
}

fn route_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("a path starts with /".into());
    }
    if text.contains(['?', '#', '%', '\\']) || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err("a path has no ?, #, % or \\, no spaces, and ASCII only".into());
    }
    if text.contains("//") || text.split('/').any(|s| s == "." || s == "..") {
        return Err("a path has no empty segments, no . and no ..".into());
    }
    let trimmed = text.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/".into() } else { trimmed.to_owned() })
}

fn authority(text: &str) -> Result<String, String> {
    let good: bool = hyper::http::uri::Authority::try_from(text).is_ok_and(|a| !a.as_str().contains('@'));
    if good { Ok(text.to_owned()) } else { Err("it is no host, nor host:port".into()) }
}

#[cfg(test)]
mod tests;
