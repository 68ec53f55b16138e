//! `http` and `https` listeners of bridge.toml: routes, headers, passwords, certificates, limits. The table for people
//! is docs/configuration.md; what it all does is docs/http.md.
//! Promise: what is here can be carried out as it stands; files are opened again when a listener starts.

use super::agent::Secret;
use super::{Document, Error, unit};
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// Largest page of the operator's own: it stays in memory and is sent whole.
const PAGE_BYTES_MAX: u64 = 256 << 10;
/// Statuses that have pages.
const PAGES: [&str; 8] = ["400", "401", "404", "413", "429", "502", "503", "504"];
/// Headers that say how a message is framed or where it goes: set by us alone, or the two sides may read two messages
/// where one was sent (RFC 9112 §11.2).
const OURS: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

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

/// Changes to headers, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits {
    /// Names.
    pub(crate) remove: Vec<String>,
    /// In place of those that are there.
    pub(crate) set: Vec<(String, Secret)>,
    /// Besides them.
    pub(crate) add: Vec<(String, Secret)>,
}

/// Who may pass (RFC 7617).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// Without a colon.
    pub(crate) user: String,
    /// As it is sent.
    pub(crate) password: Secret,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, ***)", self.user)
    }
}

/// What holds for a whole listener. Defaults: docs/configuration.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Visitors' connections at once; more wait in the kernel's queue.
    pub(crate) connections_max: u32,
    /// Request line and headers.
    pub(crate) head_bytes_max: u32,
    /// Headers of a request.
    pub(crate) headers_max: u32,
    /// From the connect, or the end of the answer before, to the end of a request's head; also for TLS' handshake.
    pub(crate) timeout_head: Duration,
    /// From the request to the head of the backend's answer.
    pub(crate) timeout_answer: Duration,
    /// Without a byte moving, either way.
    pub(crate) timeout_idle: Duration,
    /// From the request's head to the end of the answer.
    pub(crate) timeout_total: Option<Duration>,
    /// Whether connections to backends serve more than one request.
    pub(crate) reuse: bool,
    /// Connections kept for a service.
    pub(crate) idle_max: u32,
    /// How long each is kept unused.
    pub(crate) idle_time: Duration,
    /// Header with a number for each request.
    pub(crate) request_id: Option<String>,
    /// A line in the log for each request.
    pub(crate) access_log: bool,
    /// `Forwarded` (RFC 7239) besides X-Forwarded-*.
    pub(crate) forwarded: bool,
    /// Proxies before us, whose word about the visitor is taken.
    pub(crate) trusted: Vec<IpNet>,
    /// Every request is sent to https at this port.
    pub(crate) redirect_https: Option<u16>,
    /// Longest request body where the route does not say.
    pub(crate) body_bytes_max: Option<u64>,
    /// Own pages, by status.
    pub(crate) pages: BTreeMap<u16, PathBuf>,
    /// At this path, of whatever host, agents come in.
    pub(crate) agents: Option<String>,
    /// Agents may ask for hosts here, as far as their tokens allow.
    pub(crate) agent_hosts: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connections_max: 8192,
            head_bytes_max: 32 << 10,
            headers_max: 100,
            timeout_head: Duration::from_secs(30),
            timeout_answer: Duration::from_secs(60),
            timeout_idle: Duration::from_secs(300),
            timeout_total: None,
            reuse: true,
            idle_max: 64,
            idle_time: Duration::from_secs(30),
            request_id: None,
            access_log: false,
            forwarded: false,
            trusted: Vec::new(),
            redirect_https: None,
            body_bytes_max: None,
            pages: BTreeMap::new(),
            agents: None,
            agent_hosts: false,
        }
    }
}

/// `[[listener.route]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    host: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    service: Spanned<String>,
    passthrough: Option<Spanned<bool>>,
    #[serde(default)]
    strip_prefix: bool,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawEdits {
    remove: Vec<Spanned<String>>,
    set: Vec<Spanned<String>>,
    add: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLogin {
    user: Spanned<String>,
    password: Option<Spanned<String>>,
    password_file: Option<Spanned<String>>,
}

/// One of `tls = [...]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCert {
    cert: Spanned<String>,
    key: Spanned<String>,
}

/// `[listener.http]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOptions {
    connections_max: Option<Spanned<i64>>,
    head_bytes_max: Option<Spanned<i64>>,
    headers_max: Option<Spanned<i64>>,
    timeout_head: Option<Spanned<String>>,
    timeout_answer: Option<Spanned<String>>,
    timeout_idle: Option<Spanned<String>>,
    timeout_total: Option<Spanned<String>>,
    reuse: Option<bool>,
    idle_max: Option<Spanned<i64>>,
    idle_time: Option<Spanned<String>>,
    request_id: Option<Spanned<String>>,
    access_log: bool,
    forwarded: bool,
    trusted: Vec<Spanned<String>>,
    redirect_https: Option<Spanned<i64>>,
    body_bytes_max: Option<Spanned<i64>>,
    pages: BTreeMap<Spanned<String>, Spanned<String>>,
    agents: Option<Spanned<String>>,
    agent_hosts: bool,
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
    if let Some(service) = raw.service {
        let service = check_service(doc, service)?;
        if seen.insert((HostPattern::Any, "/".into())) {
            routes.push(Route { passthrough, ..plain_route(service) });
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
        if let Some(at) = inside.or(edited).or(raw.basic_auth.first().map(|l| &l.user)) {
            let problem = "a route that passes TLS through cannot see or change what is inside";
            return Err(doc.wrong(at.span(), problem, "host and service alone"));
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
        strip_prefix: raw.strip_prefix,
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

fn check_edits(doc: &Document, raw: &RawEdits) -> Result<Edits, Error> {
    let pair = |raw: &Spanned<String>| -> Result<(String, Secret), Error> {
        let text = doc.secret(raw)?;
        let (name, value) =
            unit::header(&text).map_err(|problem| doc.wrong_secret(raw.span(), problem, "\"X-Name: value\""))?;
        not_ours(&name).map_err(|(problem, remedy)| doc.wrong_secret(raw.span(), problem, remedy))?;
        Ok((name, Secret(value)))
    };
    let name = |raw: &Spanned<String>| {
        let name = doc.value(
            raw,
            |name| unit::header(&format!("{name}: x")).map(|_| name.to_owned()),
            "the name of a header, as in \"X-Name\"",
        )?;
        not_ours(&name).map_err(|(problem, remedy)| doc.wrong(raw.span(), problem, remedy))?;
        Ok(name)
    };
    Ok(Edits {
        remove: raw.remove.iter().map(name).collect::<Result<_, Error>>()?,
        set: raw.set.iter().map(pair).collect::<Result<_, _>>()?,
        add: raw.add.iter().map(pair).collect::<Result<_, _>>()?,
    })
}

fn not_ours(name: &str) -> Result<(), (String, &'static str)> {
    let lower = name.to_ascii_lowercase();
    if lower == "host" {
        return Err(("the Host header has a key of its own".into(), "rewrite_host = \"app.internal\""));
    }
    if OURS.contains(&lower.as_str()) {
        return Err((format!("{name} belongs to the connection, not to the message"), "another header"));
    }
    Ok(())
}

fn check_login(doc: &Document, raw: &RawLogin) -> Result<Login, Error> {
    let user = doc.value(
        &raw.user,
        |u| match u {
            "" => Err("a user has a name".to_owned()),
            u if u.contains(|c: char| c == ':' || c.is_control()) => Err("a user's name has no colon".to_owned()),
            u => Ok(u.to_owned()),
        },
        "\"alice\"",
    )?;
    let password = match (&raw.password, &raw.password_file) {
        (Some(password), None) => {
            let text = doc.secret(password)?;
            if text.is_empty() {
                return Err(doc.wrong_secret(password.span(), "it is empty", "\"${NAME}\", or password_file"));
            }
            text
        }
        (None, Some(file)) => {
            let read = |text: &str| {
                let path = doc.path_of(text);
                let content = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                match content.lines().next().unwrap_or_default() {
                    "" => Err(format!("{}: its first line is empty", path.display())),
                    line => Ok(line.to_owned()),
                }
            };
            doc.value(file, read, "the path of a file whose first line is the password")?
        }
        _ => {
            let remedy = "password = \"${NAME}\", or password_file = \"path\": one of them";
            return Err(doc.wrong(raw.user.span(), "this user needs one password", remedy));
        }
    };
    Ok(Login { user, password: Secret(password) })
}

fn check_options(doc: &Document, raw: &RawOptions) -> Result<Options, Error> {
    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_secs(86_400);
    let mut options = Options::default();
    let number = |to: &mut u32, raw: &Option<Spanned<i64>>, range: std::ops::RangeInclusive<i64>| {
        if let Some(raw) = raw {
            *to = u32::try_from(doc.number(raw, range)?).expect("the ranges fit");
        }
        Ok::<(), Error>(())
    };
    number(&mut options.connections_max, &raw.connections_max, 1..=1_000_000)?;
    number(&mut options.head_bytes_max, &raw.head_bytes_max, 8192..=1 << 20)?;
    number(&mut options.headers_max, &raw.headers_max, 10..=10_000)?;
    number(&mut options.idle_max, &raw.idle_max, 0..=100_000)?;
    let time =
        |raw: &Spanned<String>| doc.value(raw, |text| unit::duration_within(text, SECOND, DAY), "\"1s\" to \"1d\"");
    for (to, raw) in [
        (&mut options.timeout_head, &raw.timeout_head),
        (&mut options.timeout_answer, &raw.timeout_answer),
        (&mut options.timeout_idle, &raw.timeout_idle),
        (&mut options.idle_time, &raw.idle_time),
    ] {
        if let Some(raw) = raw {
            *to = time(raw)?;
        }
    }
    options.timeout_total = raw.timeout_total.as_ref().map(time).transpose()?;
    options.reuse = raw.reuse.unwrap_or(true);
    if let Some(raw) = &raw.request_id {
        let name = doc.value(raw, |n| unit::header(&format!("{n}: x")).map(|_| n.to_owned()), "\"X-Request-Id\"")?;
        not_ours(&name).map_err(|(problem, remedy)| doc.wrong(raw.span(), problem, remedy))?;
        options.request_id = Some(name);
    }
    (options.access_log, options.forwarded) = (raw.access_log, raw.forwarded);
    options.agent_hosts = raw.agent_hosts;
    for raw in &raw.trusted {
        let read = |text: &str| match (text.parse::<IpNet>(), text.parse::<std::net::IpAddr>()) {
            (Ok(net), _) => Ok(net),
            (_, Ok(ip)) => Ok(ip.into()),
            _ => Err("it is neither an address nor a network".to_owned()),
        };
        options.trusted.push(doc.value(raw, read, "\"10.0.0.0/8\"")?);
    }
    if let Some(raw) = &raw.redirect_https {
        options.redirect_https = u16::try_from(doc.number(raw, 1..=65535)?).ok();
    }
    options.body_bytes_max = body_bytes_max(doc, raw.body_bytes_max.as_ref())?;
    options.agents = raw.agents.as_ref().map(|raw| doc.value(raw, route_path, "\"/link\"")).transpose()?;
    for (status, file) in &raw.pages {
        if !PAGES.contains(&status.get_ref().as_str()) {
            let remedy = format!("one of {}", PAGES.join(", "));
            return Err(doc.wrong(file.span(), format!("{} has no page", status.get_ref()), remedy));
        }
        let read = |text: &str| {
            let path = doc.path_of(text);
            match std::fs::metadata(&path) {
                Ok(m) if !m.is_file() => Err(format!("{}: it is no file", path.display())),
                Ok(m) if m.len() > PAGE_BYTES_MAX => {
                    Err(format!("{}: it is larger than {PAGE_BYTES_MAX} bytes", path.display()))
                }
                Ok(_) => Ok(path),
                Err(e) => Err(format!("{}: {e}", path.display())),
            }
        };
        let path = doc.value(file, read, "the path of an HTML file")?;
        options.pages.insert(status.get_ref().parse().expect("it is one of PAGES"), path);
    }
    Ok(options)
}
