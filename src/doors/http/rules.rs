//! What a proxy does to the headers of what it passes on: takes away what belongs to one connection, says who asked, and
//! carries out the operator's edits. Pure.

use crate::config::http::Edits;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use std::net::IpAddr;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Addresses in an X-Forwarded-For that are looked at, from the right: nobody has more proxies of his own.
const HOPS_MAX: usize = 32;

/// Takes away what is for the next hop alone (RFC 9110 §7.6.1), and what frames the message: hyper frames it anew.
/// `TE: trailers` stays: we do pass trailers on.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let has_trailers = headers.get_all(header::TE).iter().any(|v| has_word(v, "trailers"));
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A visitor who names these would take away what others rely on.
        .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING))
        .collect();
    for name in named {
        headers.remove(name);
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Only the chunks count (RFC 9112 §6.3): a length beside them is somebody's mistake, or worse.
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if has_trailers {
        // Whoever sends TE says that it is for this connection (RFC 9110 §10.1.4).
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// How a message is coded, of which hyper takes off one `chunked` and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// In nothing more than chunks.
    Plain,
    /// Chunked twice, or not at all after all: two readers may find its end in two places.
    Unclear,
    /// In something that would have to be taken off first (RFC 9112 §6.1).
    Foreign,
}

/// What Transfer-Encoding says.
pub(super) fn coding_of(headers: &HeaderMap) -> Coding {
    let lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let all: Vec<&str> = lines.flat_map(|line| line.to_str().unwrap_or_default().split(',')).map(str::trim).collect();
    let is = |word: &str| all.iter().filter(|coding| coding.eq_ignore_ascii_case(word)).count();
    match (all.len(), is("chunked")) {
        (0, _) | (1, 1) => Coding::Plain,
        (_, 2..) => Coding::Unclear,
        _ if is("identity") + is("") > 0 => Coding::Unclear,
        _ => Coding::Foreign,
    }
}

/// The protocol that a request wants to change to. HTTP/2 in the clear is none: what rides in it would pass every rule
/// here unseen.
pub(super) fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(header::CONNECTION).iter().any(|v| has_word(v, "upgrade"));
    let mut all = headers.get_all(header::UPGRADE).iter();
    match (asks, all.next(), all.next()) {
        (true, Some(protocol), None) if !has_word(protocol, "h2c") => Some(protocol.clone()),
        _ => None,
    }
}

/// Whether a list has this word, in any case.
fn has_word(value: &HeaderValue, word: &str) -> bool {
    value.to_str().is_ok_and(|text| text.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
}

/// Who asked, as the backend is told.
pub(super) struct Asker<'a> {
    pub(super) ip: IpAddr,
    pub(super) is_tls: bool,
    /// As the visitor wrote it.
    pub(super) host: &'a str,
}

/// Says who asked. What is there already is believed only if a trusted proxy sent it. Returns who the visitor is taken
/// to be.
pub(super) fn tell_asker(
    headers: &mut HeaderMap,
    asker: &Asker<'_>,
    trusted: &[IpNet],
    with_forwarded: bool,
) -> IpAddr {
    let trusts = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let ip = asker.ip.to_canonical();
    let is_trusted = trusts(&ip);
    let proto = if asker.is_tls { "https" } else { "http" };
    if !is_trusted {
        for name in [FOR, PROTO, HOST, header::FORWARDED] {
            headers.remove(name);
        }
    }
    let before: Vec<&str> = headers.get_all(FOR).iter().filter_map(|v| v.to_str().ok()).collect();
    let before = before.join(", ");
    let mut real = ip;
    for hop in before.rsplit(',').take(HOPS_MAX) {
        if !trusts(&real) {
            break;
        }
        let Some(hop) = address(hop.trim()) else { break };
        real = hop;
    }
    let chain = if before.is_empty() { ip.to_string() } else { format!("{before}, {ip}") };
    insert(headers, FOR, &chain);
    insert(headers, REAL_IP, &real.to_string());
    if !headers.contains_key(PROTO) {
        insert(headers, PROTO, proto);
    }
    if !headers.contains_key(HOST) && !asker.host.is_empty() {
        insert(headers, HOST, asker.host);
    }
    if with_forwarded {
        // RFC 7239 §6: an IPv6 address stands in brackets and quotes; a host may have a colon: quotes.
        let node = if ip.is_ipv6() { format!("\"[{ip}]\"") } else { ip.to_string() };
        let host = if asker.host.is_empty() { String::new() } else { format!(";host=\"{}\"", asker.host) };
        if let Ok(value) = HeaderValue::try_from(format!("for={node}{host};proto={proto}")) {
            headers.append(header::FORWARDED, value);
        }
    }
    real
}

/// An address with or without port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').split(']').next().unwrap_or_default();
    let parsed = text.parse().ok().or_else(|| bare.parse().ok());
    parsed.or_else(|| text.parse().ok().map(|a: std::net::SocketAddr| a.ip())).map(|ip: IpAddr| ip.to_canonical())
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// The operator's edits, ready.
#[derive(Debug, Default)]
pub(super) struct Ready {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

impl Ready {
    /// From what the configuration has checked.
    pub(super) fn new(edits: &Edits) -> Ready {
        let name = |name: &String| name.parse::<HeaderName>().expect("the configuration has checked header names");
        let pair = |(n, value): &(String, crate::config::agent::Secret)| {
            let mut value = HeaderValue::try_from(&value.0).expect("the configuration has checked header values");
            value.set_sensitive(true);
            (name(n), value)
        };
        Ready {
            remove: edits.remove.iter().map(name).collect(),
            set: edits.set.iter().map(pair).collect(),
            add: edits.add.iter().map(pair).collect(),
        }
    }

    /// Removes, sets, adds.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::agent::Secret;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    /// What is for one hop goes, with what `Connection` names; the framing cannot be named away.
    #[test]
    fn one_hop_only() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "close, X-Mine, Host, content-length"),
            ("connection", "x-other"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("x-stays", "1"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["connection", "host", "te", "x-stays"]);
        assert_eq!(headers["connection"], "te");
        assert_eq!(headers["te"], "trailers");
        let mut headers = map(&[("connection", "content-length"), ("content-length", "3")]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["content-length"]);
    }

    /// One `chunked` is what hyper takes off; what is more is foreign, or has no one meaning.
    #[test]
    fn codings() {
        for (lines, coding) in [
            (&[][..], Coding::Plain),
            (&["Chunked "], Coding::Plain),
            (&["gzip, chunked"], Coding::Foreign),
            (&["gzip", "chunked"], Coding::Foreign),
            (&["gzip"], Coding::Foreign),
            (&["chunked, chunked"], Coding::Unclear),
            (&["chunked", "chunked"], Coding::Unclear),
            (&["identity, chunked"], Coding::Unclear),
            (&[", chunked"], Coding::Unclear),
            (&["chunked;a=b, chunked"], Coding::Foreign),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("transfer-encoding", *line)).collect();
            assert_eq!(
                coding_of(&lines.iter().fold(HeaderMap::new(), |mut headers, (name, line)| {
                    headers.append(*name, line.parse().unwrap());
                    headers
                })),
                coding,
                "{lines:?}"
            );
        }
    }

    /// A protocol is changed where both headers ask for it, and never to h2c.
    #[test]
    fn upgrades() {
        for (lines, wanted) in [
            (&[("connection", "Upgrade"), ("upgrade", "websocket")][..], Some("websocket")),
            (&[("connection", "keep-alive, upgrade"), ("upgrade", "x/1")], Some("x/1")),
            (&[("upgrade", "websocket")], None),
            (&[("connection", "upgrade")], None),
            (&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")], None),
            (&[("connection", "upgrade"), ("upgrade", "websocket, h2c")], None),
            (&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], None),
        ] {
            let found = upgrade_of(&map(lines));
            assert_eq!(found.as_ref().map(|v| v.to_str().unwrap()), wanted, "{lines:?}");
        }
    }

    /// A stranger's word about himself is not passed on; a trusted proxy's is, and the last one that it did not write
    /// itself is the visitor.
    #[test]
    fn who_asked() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        /// Who connects, what the request says, and who it is then: address, chain, scheme.
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, &'a str, &'a str);
        let rows: &[Row<'_>] = &[
            ("192.0.2.1", &[], "192.0.2.1", "192.0.2.1", "http"),
            (
                "192.0.2.1",
                &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")],
                "192.0.2.1",
                "192.0.2.1",
                "http",
            ),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")],
                "1.2.3.4, 10.0.0.1",
                "1.2.3.4",
                "https",
            ),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.2")],
                "6.6.6.6, 1.2.3.4, 10.0.0.2, 10.0.0.1",
                "1.2.3.4",
                "http",
            ),
            ("10.0.0.1", &[("x-forwarded-for", "rubbish")], "rubbish, 10.0.0.1", "10.0.0.1", "http"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "[2001:db8::1]:80")],
                "[2001:db8::1]:80, 10.0.0.1",
                "2001:db8::1",
                "http",
            ),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "1.2.3.4")], "1.2.3.4, 10.0.0.1", "1.2.3.4", "http"),
        ];
        for (ip, lines, chain, real, proto) in rows {
            let mut headers = map(lines);
            let asker = Asker { ip: ip.parse().unwrap(), is_tls: false, host: "h:80" };
            let told = tell_asker(&mut headers, &asker, &trusted, false);
            assert_eq!(
                (headers["x-forwarded-for"].to_str().unwrap(), headers["x-real-ip"].to_str().unwrap()),
                (*chain, *real)
            );
            assert_eq!((told.to_string().as_str(), headers["x-forwarded-proto"].to_str().unwrap()), (*real, *proto));
            assert_eq!(headers["x-forwarded-host"], "h:80");
        }
        let mut headers = map(&[("forwarded", "for=evil")]);
        tell_asker(&mut headers, &Asker { ip: "::1".parse().unwrap(), is_tls: true, host: "h:80" }, &trusted, true);
        assert_eq!(headers["forwarded"], "for=\"[::1]\";host=\"h:80\";proto=https");
    }

    /// Edits go in the order remove, set, add.
    #[test]
    fn edits() {
        let pair = |name: &str, value: &str| (name.to_owned(), Secret(value.to_owned()));
        let ready = Ready::new(&Edits {
            remove: vec!["Cookie".into(), "X-Set".into()],
            set: vec![pair("X-Set", "1"), pair("X-Old", "new")],
            add: vec![pair("X-Old", "more")],
        });
        let mut headers = map(&[("cookie", "a"), ("x-old", "old"), ("x-old", "older"), ("x-kept", "1")]);
        ready.apply(&mut headers);
        assert_eq!(names(&headers), ["x-kept", "x-old", "x-set"]);
        let old: Vec<_> = headers.get_all("x-old").iter().collect();
        assert_eq!(old, ["new", "more"]);
    }
}
