//! `[[expose]]` of agent.toml: one backend, how it is reached and how it is checked.

use super::check::{Check, RawCheck, check_check};
use super::doors::{check_allow, unix_path};
use super::{Document, Error, unit};
use crate::doors::proxy::allow::Allow;
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
    /// Where the visitor wants to, if the list has it.
    Proxy(Arc<Allow>),
}

impl Backend {
    /// Where the engine can check it.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Backend::Tcp(address) | Backend::Udp(address) => Some(*address),
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
    check: Option<RawCheck>,
}

/// Checks one; `known` are those before it.
pub(super) fn check_expose(doc: &Document, raw: &RawExpose, known: &[Expose]) -> Result<Expose, Error> {
    let service = doc.value(&raw.service, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\"")?;
    let backend = backend(doc, raw)?;
    let at = raw.address.as_ref().or(raw.r#type.as_ref()).map_or(0..0, Spanned::span);
    if known.iter().any(|e| e.service == service && e.backend == backend) {
        let problem = format!("service {service:?} has this backend already");
        return Err(doc.wrong(at, problem, "another address, or remove one of the two"));
    }
    let check = check_check(doc, raw.check.as_ref(), &backend)?;
    Ok(Expose { service, backend, check })
}

/// The types there are.
const TYPES: &str = "\"tcp\", \"udp\", \"unix\" or \"proxy\"";

fn backend(doc: &Document, raw: &RawExpose) -> Result<Backend, Error> {
    let kind = raw.r#type.as_ref().map(|kind| kind.get_ref().as_str());
    let span = raw.r#type.as_ref().map_or_else(|| raw.service.span(), Spanned::span);
    if let (Some(allow), false) = (&raw.allow, kind == Some("proxy")) {
        return Err(doc.wrong(allow.span(), "only a proxy is asked where to", "type = \"proxy\""));
    }
    if kind == Some("proxy") {
        if let Some(address) = &raw.address {
            return Err(doc.wrong(address.span(), "a proxy has no address of its own", "remove it"));
        }
        let Some(allow) = &raw.allow else {
            let problem = "where may it go? Nothing is allowed that allow does not say";
            return Err(doc.wrong(span, problem, "allow = [\"10.0.0.0/8:80,443\", \"*.lan:5432\"]"));
        };
        return Ok(Backend::Proxy(Arc::new(check_allow(doc, allow)?)));
    }
    let Some(address) = &raw.address else {
        return Err(doc.wrong(raw.service.span(), "its backend has no address", "address = \"127.0.0.1:8081\""));
    };
    let path = unix_path(doc, address)?;
    Ok(match (kind, path) {
        (None | Some("unix"), Some(path)) => Backend::Unix(path),
        (Some("unix"), None) => {
            return Err(doc.wrong(address.span(), "it is no path of a socket", "\"unix:/run/app.sock\""));
        }
        (None | Some("tcp"), None) => Backend::Tcp(internet(doc, address)?),
        (Some("udp"), None) => Backend::Udp(internet(doc, address)?),
        (Some("tcp" | "udp"), Some(_)) => return Err(doc.wrong(span, "the address is a path", "\"unix\"")),
        (Some(_), _) => return Err(doc.wrong(span, "no such type of backend", TYPES)),
    })
}

fn internet(doc: &Document, raw: &Spanned<String>) -> Result<SocketAddr, Error> {
    let address = doc.value(raw, unit::address, "\"127.0.0.1:8081\"")?;
    if address.port() == 0 {
        return Err(doc.wrong(raw.span(), "nothing can listen on port 0", "the backend's port"));
    }
    Ok(address)
}
