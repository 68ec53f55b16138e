//! `[[expose]]` of agent.toml: one backend, how it is reached and how it is checked.

use super::check::{Check, RawCheck, check_check};
use super::doors::{check_allow, unix_path};
use super::visit::secret;
use super::{Document, Error, ports};
use crate::doors::proxy::allow::Allow;
use crate::doors::secret::key::SecretKey;
use ringspan_tunnel::hello::EXPOSES_MAX;
use ringspan_tunnel::proxy_header::Version;
use ringspan_tunnel::rights::is_host;
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use toml::Spanned;

/// Bytes of datagrams from a UDP backend that wait for the link, per conversation: four of the largest, or a burst of
/// two hundred of Ethernet's. More are dropped, as any queue of the Internet does.
pub(crate) const UDP_QUEUE_BYTES: usize = 256 << 10;

/// One backend.
#[derive(Clone, Debug)]
pub(crate) struct Expose {
    /// The service it belongs to.
    pub(crate) service: String,
    /// How it is reached.
    pub(crate) backend: Backend,
    /// How it is checked.
    pub(crate) check: Check,
    /// Its share of visitors, 1 to 100. Default 1.
    pub(crate) weight: u8,
    /// 0 first. Default 0.
    pub(crate) priority: u8,
    /// The PROXY header that it wants to hear.
    pub(crate) proxy_protocol: Option<Version>,
    /// Of a UDP backend: where the header stands.
    pub(crate) heading: Option<Heading>,
    /// Where the bridge is asked to listen for it.
    pub(crate) listen: Option<SocketAddr>,
    /// The host whose requests the bridge is asked for.
    pub(crate) http_host: Option<String>,
}

/// Which datagrams begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heading {
    /// The first of a conversation.
    First,
    /// Each.
    Each,
}

impl Expose {
    /// One of weight 1, without further wishes.
    pub(crate) fn new(service: String, backend: Backend, check: Check) -> Expose {
        let (proxy_protocol, heading, listen, http_host) = (None, None, None, None);
        Expose { service, backend, check, weight: 1, priority: 0, proxy_protocol, heading, listen, http_host }
    }
}

/// How a backend is reached. Shown as the bridge and its registry call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A TCP connection for each visitor.
    Tcp(SocketAddr),
    /// A UDP socket for each visitor's conversation.
    Udp(SocketAddr),
    /// A connection to a socket of this machine's file system for each visitor.
    Unix(PathBuf),
    /// A TCP connection for each visitor that proves to hold the secret.
    Secret { address: SocketAddr, key: SecretKey },
    /// Where the visitor wants to, if the list has it.
    Proxy(Arc<Allow>),
}

impl Backend {
    /// Where the engine can check it.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Backend::Tcp(address) | Backend::Udp(address) | Backend::Secret { address, .. } => Some(*address),
            Backend::Unix(_) | Backend::Proxy(_) => None,
        }
    }
}

impl From<SocketAddr> for Backend {
    fn from(address: SocketAddr) -> Backend {
        Backend::Tcp(address)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Tcp(address) => write!(f, "{address}"),
            Backend::Udp(address) => write!(f, "udp://{address}"),
            Backend::Secret { address, .. } => write!(f, "secret://{address}"),
            Backend::Unix(path) => write!(f, "unix:{}", path.display()),
            Backend::Proxy(_) => write!(f, "proxy"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExpose {
    service: Spanned<String>,
    r#type: Option<Spanned<String>>,
    address: Option<Spanned<String>>,
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    secret_file: Option<Spanned<String>>,
    check: Option<RawCheck>,
    weight: Option<Spanned<i64>>,
    priority: Option<Spanned<i64>>,
    proxy_protocol: Option<Spanned<String>>,
    listen: Option<Spanned<String>>,
    http_host: Option<Spanned<String>>,
}

/// Checks one entry and adds its backends, one for each port, to `known`.
pub(super) fn check_expose(doc: &Document, raw: &RawExpose, known: &mut Vec<Expose>) -> Result<(), Error> {
    let backends = backends(doc, raw)?;
    let addresses: Vec<SocketAddr> = backends.iter().filter_map(Backend::address).collect();
    let at = raw.address.as_ref().or(raw.r#type.as_ref()).map_or(0..0, Spanned::span);
    if known.len() + backends.len() > EXPOSES_MAX {
        let problem =
            format!("{} backends up to here: an agent has at most {EXPOSES_MAX}", known.len() + backends.len());
        return Err(doc.wrong(at, problem, "fewer, or a second agent for the others"));
    }
    let weight = raw.weight.as_ref().map_or(Ok(1), |weight| doc.number(weight, 1..=100))? as u8;
    let priority = raw.priority.as_ref().map_or(Ok(0), |priority| doc.number(priority, 0..=255))? as u8;
    let version = |text: &str| match text {
        "v1" => Ok((Version::V1, None)),
        "v2" => Ok((Version::V2, Some(Heading::First))),
        "v2-each" => Ok((Version::V2, Some(Heading::Each))),
        _ => Err("no such version".into()),
    };
    let (proxy_protocol, heading) = match &raw.proxy_protocol {
        None => (None, None),
        Some(raw) => {
            let (version, heading) = doc.value(raw, version, "\"v1\", \"v2\" or \"v2-each\"")?;
            (Some(version), heading)
        }
    };
    let wanted = Wanted::check(doc, raw, &backends)?;
    for (number, backend) in backends.into_iter().enumerate() {
        let port = backend.address().map_or(0, |address| address.port());
        let service = ports::service(doc, &raw.service, &addresses, port)?;
        if known.iter().any(|e| e.service == service && e.backend == backend) {
            let problem = format!("service {service:?} has this backend already");
            return Err(doc.wrong(at, problem, "another address, or remove one of the two"));
        }
        let check = check_check(doc, raw.check.as_ref(), &backend)?;
        if let Some(raw) = &raw.proxy_protocol {
            let (problem, remedy) = match (&backend, heading) {
                (Backend::Proxy(_) | Backend::Secret { .. }, _) => {
                    ("only a TCP, UDP or Unix backend without a secret hears a header", "remove it")
                }
                (Backend::Udp(_), None) => ("version 1 has no word for UDP", "\"v2\" or \"v2-each\""),
                (Backend::Tcp(_) | Backend::Unix(_), Some(Heading::Each)) => ("a stream has one header", "\"v2\""),
                _ => ("", ""),
            };
            if !problem.is_empty() {
                return Err(doc.wrong(raw.span(), problem, remedy));
            }
        }
        let heading = heading.filter(|_| matches!(backend, Backend::Udp(_)));
        let (listen, http_host) = (wanted.listens.get(number).copied(), wanted.host.clone());
        let expose = Expose::new(service, backend, check);
        known.push(Expose { weight, priority, proxy_protocol, heading, listen, http_host, ..expose });
    }
    Ok(())
}

/// What the bridge is asked to open.
struct Wanted {
    /// One for each backend, or none.
    listens: Vec<SocketAddr>,
    host: Option<String>,
}

impl Wanted {
    fn check(doc: &Document, raw: &RawExpose, backends: &[Backend]) -> Result<Wanted, Error> {
        let asks = raw.listen.as_ref().or(raw.http_host.as_ref());
        let is_plain = backends.iter().all(|b| matches!(b, Backend::Tcp(_) | Backend::Unix(_)));
        if let (Some(asks), false) = (asks, is_plain) {
            let problem = "the bridge opens listeners for TCP and Unix backends without a secret";
            return Err(doc.wrong(asks.span(), problem, "a listener in the bridge's file"));
        }
        let mut listens = Vec::new();
        if let Some(raw) = &raw.listen {
            listens = ports::addresses(doc, raw, "\"0.0.0.0:2201\"")?;
            if listens.iter().any(|address| address.port() == 0) {
                return Err(doc.wrong(raw.span(), "visitors could not know the port", "a port that the token allows"));
            }
            if listens.len() != backends.len() {
                let problem = format!("{} ports for {} backends", listens.len(), backends.len());
                return Err(doc.wrong(raw.span(), problem, "as many ports here as in address"));
            }
        }
        let host = |text: &str| {
            let host = text.to_ascii_lowercase();
            if is_host(&host) { Ok(host) } else { Err("it is no name of a host".to_owned()) }
        };
        let host = raw.http_host.as_ref().map(|raw| doc.value(raw, host, "\"a.example.org\"")).transpose()?;
        Ok(Wanted { listens, host })
    }
}

/// The types there are.
const TYPES: &str = "\"tcp\", \"udp\", \"unix\" or \"proxy\"";

fn backends(doc: &Document, raw: &RawExpose) -> Result<Vec<Backend>, Error> {
    let kind = raw.r#type.as_ref().map(|kind| kind.get_ref().as_str());
    let span = raw.r#type.as_ref().map_or_else(|| raw.service.span(), Spanned::span);
    if let (Some(allow), false) = (&raw.allow, kind == Some("proxy")) {
        return Err(doc.wrong(allow.span(), "only a proxy is asked where to", "type = \"proxy\""));
    }
    if let (Some(secret), false) = (&raw.secret_file, matches!(kind, None | Some("tcp"))) {
        return Err(doc.wrong(secret.span(), "a secret service is of type \"tcp\"", "remove one of the two"));
    }
    if kind == Some("proxy") {
        if let Some(address) = &raw.address {
            return Err(doc.wrong(address.span(), "a proxy has no address of its own", "remove it"));
        }
        let Some(allow) = &raw.allow else {
            let problem = "where may it go? Nothing is allowed that allow does not say";
            return Err(doc.wrong(span, problem, "allow = [\"10.0.0.0/8:80,443\", \"*.lan:5432\"]"));
        };
        return Ok(vec![Backend::Proxy(Arc::new(check_allow(doc, allow)?))]);
    }
    let Some(address) = &raw.address else {
        return Err(doc.wrong(raw.service.span(), "its backend has no address", "address = \"127.0.0.1:8081\""));
    };
    let path = unix_path(doc, address)?;
    if let Some(file) = &raw.secret_file {
        if path.is_some() {
            let problem = "the backend of a secret service is no path";
            return Err(doc.wrong(address.span(), problem, "\"127.0.0.1:5432\"; or remove secret_file"));
        }
        let key = secret(doc, file)?;
        let secret = |address| Backend::Secret { address, key: key.clone() };
        return Ok(internet(doc, address)?.into_iter().map(secret).collect());
    }
    Ok(match (kind, path) {
        (None | Some("unix"), Some(path)) => vec![Backend::Unix(path)],
        (Some("unix"), None) => {
            return Err(doc.wrong(address.span(), "it is no path of a socket", "\"unix:/run/app.sock\""));
        }
        (None | Some("tcp"), None) => internet(doc, address)?.into_iter().map(Backend::Tcp).collect(),
        (Some("udp"), None) => internet(doc, address)?.into_iter().map(Backend::Udp).collect(),
        (Some("tcp" | "udp"), Some(_)) => return Err(doc.wrong(span, "the address is a path", "\"unix\"")),
        (Some(_), _) => return Err(doc.wrong(span, "no such type of backend", TYPES)),
    })
}

fn internet(doc: &Document, raw: &Spanned<String>) -> Result<Vec<SocketAddr>, Error> {
    let addresses = ports::addresses(doc, raw, "\"127.0.0.1:8081\"")?;
    if addresses.iter().any(|address| address.port() == 0) {
        return Err(doc.wrong(raw.span(), "nothing can listen on port 0", "the backend's port"));
    }
    Ok(addresses)
}
