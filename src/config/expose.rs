//! `[[expose]]` of agent.toml: one backend, how it is reached and how it is checked.

use super::check::{Check, RawCheck, check_check};
use super::{Document, Error, unit};
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
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
}

impl Backend {
    /// Where the engine can check it.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Backend::Tcp(address) | Backend::Udp(address) => Some(*address),
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
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExpose {
    service: Spanned<String>,
    r#type: Option<Spanned<String>>,
    address: Spanned<String>,
    check: Option<RawCheck>,
}

/// Checks one; `known` are those before it.
pub(super) fn check_expose(doc: &Document, raw: &RawExpose, known: &[Expose]) -> Result<Expose, Error> {
    let service = doc.value(&raw.service, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\"")?;
    let is_udp = match &raw.r#type {
        None => false,
        Some(kind) => {
            let read = |text: &str| match text {
                "tcp" => Ok(false),
                "udp" => Ok(true),
                _ => Err("no such type of backend".to_owned()),
            };
            doc.value(kind, read, "\"tcp\" or \"udp\"")?
        }
    };
    let address = doc.value(&raw.address, unit::address, "\"127.0.0.1:8081\"")?;
    if address.port() == 0 {
        return Err(doc.wrong(raw.address.span(), "nothing can listen on port 0", "the backend's port"));
    }
    let backend = if is_udp { Backend::Udp(address) } else { Backend::Tcp(address) };
    if known.iter().any(|e| e.service == service && e.backend == backend) {
        let problem = format!("service {service:?} has this backend already");
        return Err(doc.wrong(raw.address.span(), problem, "another address, or remove one of the two"));
    }
    let check = check_check(doc, raw.check.as_ref(), &backend)?;
    Ok(Expose { service, backend, check })
}
