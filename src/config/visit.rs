//! `[[visit]]` of agent.toml: a secret service of another agent, at a local port.

use super::{Document, Error, unit};
use crate::doors::secret::key::SecretKey;
use ringspan_tunnel::address::Address;
use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

/// One local port.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Visit {
    /// The service, as the other agent exposes it.
    pub(crate) service: String,
    /// Where our clients connect.
    pub(crate) listen: SocketAddr,
    /// The bridge's listener of type `visit`; `None`: the link's WebSocket leads to it.
    pub(crate) via: Option<Address>,
    /// What the other agent holds, too.
    pub(crate) key: SecretKey,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVisit {
    service: Spanned<String>,
    listen: Spanned<String>,
    via: Option<Spanned<String>>,
    secret_file: Spanned<String>,
}

impl Visit {
    /// Where it leads, for people.
    pub(crate) fn way(&self) -> String {
        self.via.as_ref().map_or_else(|| "the link's websocket".to_owned(), Address::to_string)
    }
}

/// Checks one. `has_websocket`: the first link's.
pub(super) fn check_visit(doc: &Document, raw: &RawVisit, has_websocket: bool) -> Result<Visit, Error> {
    if raw.via.is_none() && !has_websocket {
        let problem = "via is missing, and [link] has no websocket that could lead there";
        return Err(doc.wrong(raw.service.span(), problem, "via = \"bridge.example.com:8025\""));
    }
    if raw.listen.get_ref().starts_with("unix:") {
        let problem = "it is a path, and a visit is at an address and a port";
        return Err(doc.wrong(raw.listen.span(), problem, "\"127.0.0.1:5432\""));
    }
    let via = raw.via.as_ref().map(|via| doc.value(via, unit::host_port, "\"bridge.example.com:8025\""));
    Ok(Visit {
        service: doc.value(&raw.service, |n| unit::service_name(n).map(|()| n.to_owned()), "\"db\"")?,
        listen: doc.value(&raw.listen, unit::address, "\"127.0.0.1:5432\"")?,
        via: via.transpose()?,
        key: secret(doc, &raw.secret_file)?,
    })
}

/// Reads the file of a secret.
pub(super) fn secret(doc: &Document, raw: &Spanned<String>) -> Result<SecretKey, Error> {
    doc.value(
        raw,
        |text| SecretKey::read(&doc.path_of(text)),
        "(umask 077; openssl rand -base64 32 > db.key), and the same file at the other agent",
    )
}
