//! Services as domain names: Nacos' names have capitals, dots and `@@`, and may be of any script; DNS compares letters in either
//! case and keeps the dot for itself.
//! Promise: every name that fits (labels of 63 bytes, 255 in all) has a domain name that leads to it and to nothing else, and
//! [`words`] and [`service_labels`] undo each other.
//! Pure: no socket, no clock.
//!
//! ```text
//! SERVICE[.GROUP[.NAMESPACE]].svc.ZONE          CLUSTER._cluster.SERVICE….svc.ZONE
//! _SERVICE._tcp[.GROUP[.NAMESPACE]].svc.ZONE    10-0-0-7.SERVICE….host.ZONE
//! ```
//! In the form with group and namespace a service's dots are dots. Any byte may be written as `_xHH`, two hexadecimal digits: what
//! is no small letter, digit, hyphen or underscore has to be. A capital letter that is not written so is found only if it is
//! clear who is meant: see [`super::answer`].

use crate::model::{GROUP_DEFAULT, NAMESPACE_DEFAULT, ServiceKey};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest label: RFC 1035, section 2.3.4.
const LABEL_BYTES_MAX: usize = 63;
/// Between a cluster and its service.
const CLUSTER: &str = "_cluster";
/// What RFC 2782 writes behind a service.
const PROTOCOLS: [&str; 2] = ["_tcp", "_udp"];

/// One label, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// What it says; letters that were not escaped are small.
    pub(super) text: String,
    /// Something in it was escaped.
    pub(super) escaped: bool,
    /// A capital letter was: its writer means it.
    pub(super) exact: bool,
}

/// Which service is meant, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) cluster: Option<Word>,
    pub(super) service: Word,
    pub(super) group: Option<Word>,
    pub(super) namespace: Option<Word>,
    /// Written as RFC 2782 has it: only SRV is asked there.
    pub(super) is_srv: bool,
}

/// What a name below the zone means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The zone itself.
    Apex,
    /// `ns`: who answers here.
    Server,
    /// Nothing is there, but below it something is.
    Parent,
    /// A service, or what may lie above one: one word may be a namespace, two a group and its namespace.
    Service(Path),
    /// The address of an instance of it.
    Host(IpAddr, Path),
    /// There is no such name.
    Nothing,
}

/// Reads the labels in front of the zone, the first one first.
pub(super) fn meaning(labels: &[&[u8]]) -> Meaning {
    let Some((tree, front)) = labels.split_last() else { return Meaning::Apex };
    if tree.eq_ignore_ascii_case(b"ns") && front.is_empty() {
        return Meaning::Server;
    }
    if tree.eq_ignore_ascii_case(b"svc") {
        return if front.is_empty() { Meaning::Parent } else { service(front) };
    }
    if !tree.eq_ignore_ascii_case(b"host") {
        return Meaning::Nothing;
    }
    match front {
        [] => Meaning::Parent,
        [address, path @ ..] => match (host_address(address), service(path)) {
            (Some(address), Meaning::Service(path)) if path.cluster.is_none() && !path.is_srv => {
                Meaning::Host(address, path)
            }
            // What lies above an instance's address is a name without records, and not worth a search.
            _ => service_above(front),
        },
    }
}

/// Names under `host` that are no address: they may have addresses below.
fn service_above(front: &[&[u8]]) -> Meaning {
    if matches!(service(front), Meaning::Service(_)) { Meaning::Parent } else { Meaning::Nothing }
}

fn service(front: &[&[u8]]) -> Meaning {
    let is = |label: &[u8], what: &str| label.eq_ignore_ascii_case(what.as_bytes());
    let is_protocol = |label: &[u8]| PROTOCOLS.iter().any(|p| is(label, p));
    let (cluster, front) = match front {
        [cluster, marker, rest @ ..] if is(marker, CLUSTER) => (Some(*cluster), rest),
        // `_cluster.web.svc`: clusters are below it.
        [marker, rest @ ..] if is(marker, CLUSTER) && !rest.is_empty() => return Meaning::Parent,
        _ => (None, front),
    };
    let (service, scope, is_srv) = match front.iter().position(|label| is_protocol(label)) {
        Some(0) => return Meaning::Parent,
        Some(at) => match front[0].strip_prefix(b"_") {
            Some(first) => {
                let mut service = vec![first];
                service.extend_from_slice(&front[1..at]);
                (service, &front[at + 1..], true)
            }
            None => return Meaning::Nothing,
        },
        None => {
            let scope = front.len().saturating_sub(1).min(2);
            let (service, scope) = front.split_at(front.len() - scope);
            (service.to_vec(), scope, false)
        }
    };
    if service.is_empty() || scope.len() > 2 {
        return Meaning::Nothing;
    }
    let word = |label: Option<&&[u8]>| match label {
        Some(label) => read(label).map(Some),
        None => Some(None),
    };
    let (Some(cluster), Some(group), Some(namespace)) =
        (word(cluster.as_ref()), word(scope.first()), word(scope.get(1)))
    else {
        return Meaning::Nothing;
    };
    match words(&service) {
        Some(service) => Meaning::Service(Path { cluster, service, group, namespace, is_srv }),
        None => Meaning::Nothing,
    }
}

/// Labels that are one name with dots.
pub(super) fn words(labels: &[&[u8]]) -> Option<Word> {
    let mut all = Word { text: String::new(), escaped: false, exact: false };
    for (nth, label) in labels.iter().enumerate() {
        let word = read(label)?;
        if nth > 0 {
            all.text.push('.');
        }
        all.text.push_str(&word.text);
        (all.escaped, all.exact) = (all.escaped || word.escaped, all.exact || word.exact);
    }
    Some(all)
}

/// One label; `None`: what it says is no text.
fn read(label: &[u8]) -> Option<Word> {
    let (mut bytes, mut escaped, mut exact) = (Vec::with_capacity(label.len()), false, false);
    let mut rest = label;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(value) = escape(rest) {
            (escaped, exact) = (true, exact || value.is_ascii_uppercase());
            bytes.push(value);
            rest = &rest[4..];
        } else {
            bytes.push(byte.to_ascii_lowercase());
            rest = after;
        }
    }
    Some(Word { text: String::from_utf8(bytes).ok()?, escaped, exact })
}

/// The byte that an `_xHH` in front stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'_', b'x' | b'X', high, low, ..] = *bytes else { return None };
    let digit = |byte: u8| (byte as char).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// A text as one label; `None`: it is too long for one.
pub(super) fn label(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut label = String::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let is_plain = match byte {
            b'a'..=b'z' | b'0'..=b'9' => true,
            // A label begins and ends with no hyphen (RFC 952), and with an underscore begins what is no service.
            b'-' => at > 0 && at + 1 < bytes.len(),
            b'_' => at > 0 && escape(&bytes[at..]).is_none(),
            _ => false,
        };
        if is_plain {
            label.push(byte as char);
        } else {
            label.push_str(&format!("_x{byte:02x}"));
        }
    }
    (!label.is_empty() && label.len() <= LABEL_BYTES_MAX).then_some(label)
}

/// The labels that lead to a service, in front of `svc` or `host`; `None`: one of them would be too long.
pub(super) fn service_labels(key: &ServiceKey) -> Option<Vec<String>> {
    let name = key.name();
    let group = match &**key.group() {
        // By itself this would be the default one: it is escaped where no need is.
        "default_group" => Some("_x64efault_group".to_owned()),
        GROUP_DEFAULT => None,
        group => Some(label(group)?),
    };
    let namespace =
        (**key.namespace() != *NAMESPACE_DEFAULT).then(|| label(key.namespace()).ok_or(())).transpose().ok()?;
    let pieces: Vec<&str> = name.split('.').collect();
    let has_dots = pieces.len() > 1 && pieces.iter().all(|piece| !piece.is_empty());
    let mut labels = match has_dots {
        true => pieces.into_iter().map(label).collect::<Option<Vec<_>>>()?,
        false => vec![label(name)?],
    };
    match (group, namespace, has_dots) {
        (None, None, false) => {}
        (Some(group), None, false) => labels.push(group),
        (group, namespace, _) => {
            labels.push(group.unwrap_or_else(|| GROUP_DEFAULT.to_ascii_lowercase()));
            labels.push(namespace.unwrap_or_else(|| NAMESPACE_DEFAULT.to_owned()));
        }
    }
    Some(labels)
}

/// `10-0-0-7`, or the eight groups of an IPv6 address: `fd00-0-0-0-0-0-0-7`.
pub(super) fn host_label(address: IpAddr) -> String {
    match address {
        IpAddr::V4(ip) => ip.octets().map(|n| n.to_string()).join("-"),
        IpAddr::V6(ip) => ip.segments().map(|n| format!("{n:x}")).join("-"),
    }
}

fn host_address(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let address = match parts.len() {
        4 => IpAddr::from(Ipv4Addr::from(all::<u8, 4>(&parts, 10)?)),
        8 => IpAddr::from(Ipv6Addr::from(all::<u16, 8>(&parts, 16)?)),
        _ => return None,
    };
    // One address, one name.
    host_label(address).eq_ignore_ascii_case(text).then_some(address)
}

fn all<T: TryFrom<u32> + Copy + Default, const N: usize>(parts: &[&str], radix: u32) -> Option<[T; N]> {
    let mut out = [T::default(); N];
    for (to, part) in out.iter_mut().zip(parts) {
        *to = T::try_from(u32::from_str_radix(part, radix).ok()?).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_name(name: &str) -> Meaning {
        let labels: Vec<&[u8]> = name.split('.').filter(|l| !l.is_empty()).map(str::as_bytes).collect();
        meaning(&labels)
    }

    /// What each form of a name means: table. `cluster|service|group|namespace`.
    #[test]
    fn forms() {
        let cases = [
            ("", "apex"),
            ("ns", "server"),
            ("svc", "parent"),
            ("host", "parent"),
            ("web", "nothing"),
            ("web.ns", "nothing"),
            ("web.svc", "-|web|-|-"),
            ("WEB.Svc", "-|web|-|-"),
            ("web.g.svc", "-|web|g|-"),
            ("web.g.dev.svc", "-|web|g|dev"),
            ("com.acme.api.g.dev.svc", "-|com.acme.api|g|dev"),
            ("_x57eb.svc", "-|Web|-|-"),
            ("a_x2eb.svc", "-|a.b|-|-"),
            ("a_x2.svc", "-|a_x2|-|-"),
            ("a_xyz.svc", "-|a_xyz|-|-"),
            ("_web._tcp.svc", "-|web|-|- srv"),
            ("_web._udp.g.dev.svc", "-|web|g|dev srv"),
            ("_com.acme._tcp.g.dev.svc", "-|com.acme|g|dev srv"),
            ("_web._tcp.a.b.c.svc", "nothing"),
            ("web._tcp.svc", "nothing"),
            ("_._tcp.svc", "-||-|- srv"),
            ("_tcp.svc", "parent"),
            ("_tcp.g.dev.svc", "parent"),
            ("bj._cluster.web.svc", "bj|web|-|-"),
            ("bj._cluster._web._tcp.g.svc", "bj|web|g|- srv"),
            ("_cluster.web.svc", "parent"),
            ("_xff.svc", "nothing"),
            ("10-0-0-7.web.host", "10.0.0.7 -|web|-|-"),
            ("fd00-0-0-0-0-0-0-a.web.g.dev.host", "fd00::a -|web|g|dev"),
            ("010-0-0-7.web.host", "parent"),
            ("10-0-0-256.web.host", "parent"),
            ("web.host", "parent"),
            ("10-0-0-7._web._tcp.host", "nothing"),
        ];
        for (name, want) in cases {
            let path = |p: Path| {
                let word = |w: Option<Word>| w.map_or("-".to_owned(), |w| w.text);
                let srv = if p.is_srv { " srv" } else { "" };
                format!("{}|{}|{}|{}{srv}", word(p.cluster), p.service.text, word(p.group), word(p.namespace))
            };
            let got = match read_name(name) {
                Meaning::Apex => "apex".to_owned(),
                Meaning::Server => "server".into(),
                Meaning::Parent => "parent".into(),
                Meaning::Nothing => "nothing".into(),
                Meaning::Service(p) => path(p),
                Meaning::Host(ip, p) => format!("{ip} {}", path(p)),
            };
            assert_eq!(got, want, "{name}");
        }
    }

    /// Names as they are written: table.
    #[test]
    fn writing() {
        let of = |namespace: &str, group: &str, name: &str| {
            let key = ServiceKey::new(namespace, group, name).unwrap();
            service_labels(&key).map(|labels| labels.join("."))
        };
        assert_eq!(of("", "", "web").as_deref(), Some("web"));
        assert_eq!(of("", "", "Web").as_deref(), Some("_x57eb"));
        assert_eq!(of("", "g", "web").as_deref(), Some("web.g"));
        assert_eq!(of("dev", "", "web").as_deref(), Some("web.default_group.dev"));
        assert_eq!(of("", "", "com.acme.api").as_deref(), Some("com.acme.api.default_group.public"));
        assert_eq!(of("", "", ".a").as_deref(), Some("_x2ea"));
        assert_eq!(of("", "a.b", "-_x41-").as_deref(), Some("_x2d_x5fx41_x2d.a_x2eb"));
        assert_eq!(of("", "default_group", "web").as_deref(), Some("web._x64efault_group"));
        assert_eq!(of("", "", "_tcp").as_deref(), Some("_x5ftcp"));
        assert_eq!(of("", "", &"a".repeat(64)), None);
    }

    proptest! {
        /// Whatever a service is called, its name leads to it, in either case, and the form for SRV does as well.
        #[test]
        fn names_lead_back(
            namespace in "(public|[A-Za-z0-9_-]{1,12})",
            group in "(DEFAULT_GROUP|default_group|[A-Za-z0-9:._-]{1,12})",
            name in "([a-zA-Z0-9._-]{1,24}|[\u{21}-\u{7e}ä中]{1,9}|_x[0-9a-f]{2}|_(tcp|udp|cluster))",
        ) {
            let Ok(key) = ServiceKey::new(&namespace, &group, &name) else { return Ok(()) };
            let Some(labels) = service_labels(&key) else { return Ok(()) };
            prop_assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')));
            let plain = format!("{}.svc", labels.join("."));
            for asked in [plain.clone(), plain.to_ascii_uppercase()] {
                let Meaning::Service(path) = read_name(&asked) else { panic!("{asked}: {:?}", read_name(&asked)) };
                prop_assert!(!path.is_srv && path.cluster.is_none());
                prop_assert_eq!(&path.service.text, &**key.name());
                let group = path.group.map_or(GROUP_DEFAULT.to_owned(), |g| match (&*g.text, g.escaped) {
                    ("default_group", false) => GROUP_DEFAULT.to_owned(),
                    _ => g.text,
                });
                prop_assert_eq!(&group, &**key.group());
                prop_assert_eq!(path.namespace.map_or(NAMESPACE_DEFAULT.to_owned(), |n| n.text), &**key.namespace());
            }
        }

        /// Any label is read or refused, never a panic.
        #[test]
        fn any_labels(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..8)) {
            let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
            let _ = meaning(&labels);
        }

        /// An address's label is that address's and no other's.
        #[test]
        fn addresses(ip in any::<IpAddr>()) {
            prop_assert_eq!(host_address(host_label(ip).as_bytes()), Some(ip));
        }
    }
}
