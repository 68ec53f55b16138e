//! Where a redirect leads (RFC 9110, 10.2.2), as far as it can be followed on a connection to the same address.

use crate::probe::http::settings::{Asked, HttpCheck, Method, is_host, is_path, put_address};
use std::net::SocketAddr;

/// What to ask for instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    pub(super) method: Method,
    pub(super) path: String,
    /// `None`: the host that is asked anyway.
    pub(super) host: Option<String>,
}

/// Where `location` leads from what was asked. `None`: nowhere that is followed.
pub(super) fn resolve(
    check: &HttpCheck,
    asked: &Asked<'_>,
    address: SocketAddr,
    status: u16,
    location: &str,
    any_host: bool,
) -> Option<Elsewhere> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = if check.default_port() == 443 { "https://" } else { "http://" };
    let place = match location.get(..scheme.len()) {
        Some(start) if start.eq_ignore_ascii_case(scheme) => Some(&location[scheme.len()..]),
        _ => location.strip_prefix("//"),
    };
    let (host, path) = match place {
        Some(place) => {
            let end = place.find(['/', '?']).unwrap_or(place.len());
            (Some(&place[..end]), &place[end..])
        }
        // Another scheme: a colon before the first slash.
        None if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) => return None,
        None => (None, location),
    };
    let path = match path {
        "" if host.is_none() => asked.path.to_owned(),
        "" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path if host.is_some() => format!("/{path}"),
        query if query.starts_with('?') => format!("{}{query}", asked.path.split('?').next().unwrap_or("/")),
        relative => {
            let base = asked.path.split('?').next().unwrap_or("/");
            format!("{}/{relative}", base.rsplit_once('/').map_or("", |(folder, _)| folder))
        }
    };
    let ours = asked.host.map_or_else(
        || {
            let mut text = Vec::new();
            put_address(address, check.default_port(), &mut text);
            String::from_utf8_lossy(&text).into_owned()
        },
        str::to_owned,
    );
    let host = match host {
        Some(host) if !is_host(host) => return None,
        Some(host) if same(host, &ours, check.default_port()) => asked.host.map(str::to_owned),
        Some(host) if any_host => Some(host.to_owned()),
        Some(_) => return None,
        None => asked.host.map(str::to_owned),
    };
    // RFC 9110, 15.4: what every browser makes of 301 and 302 after a POST, and 303 always.
    let method = match (status, asked.method) {
        (301..=303, Method::Post) => Method::Get,
        (303, Method::Options) => Method::Get,
        (_, method) => method,
    };
    is_path(&path).then_some(Elsewhere { method, path, host })
}

/// Whether two texts of a Host header mean the same place.
fn same(one: &str, other: &str, default_port: u16) -> bool {
    let port = format!(":{default_port}");
    let bare = |host: &str| host.strip_suffix(&port).unwrap_or(host).trim_end_matches('.').to_ascii_lowercase();
    bare(one) == bare(other)
}
