//! What agents may do at a bridge beyond exposing services: visit secret ones, and have listeners opened for them. In the
//! token's grant, and from there in the agent's record.
//! Pure. Nothing is allowed that is not listed.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Longest name of a host (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Secret services that may be visited, by exact name, beside those that may be exposed.
    #[serde(default)]
    pub visits: BTreeSet<String>,
    /// Addresses that the bridge may listen on for it.
    #[serde(default)]
    pub listens: BTreeSet<Ports>,
    /// Hosts that the bridge's http listeners may send to it.
    #[serde(default)]
    pub http_hosts: BTreeSet<Hosts>,
}

impl Rights {
    /// Whether nothing is allowed.
    pub fn is_nothing(&self) -> bool {
        *self == Rights::default()
    }

    /// Whether the bridge may listen there.
    pub fn may_listen(&self, address: SocketAddr) -> bool {
        self.listens.iter().any(|ports| ports.covers(address))
    }

    /// Whether the host may be had.
    pub fn may_have(&self, host: &str) -> bool {
        self.http_hosts.iter().any(|hosts| hosts.covers(host))
    }

    /// What either allows.
    #[must_use]
    pub fn and(&self, other: &Rights) -> Rights {
        Rights {
            visits: self.visits.union(&other.visits).cloned().collect(),
            listens: self.listens.union(&other.listens).copied().collect(),
            http_hosts: self.http_hosts.union(&other.http_hosts).cloned().collect(),
        }
    }
}

/// A list for people; `nothing` if it is empty.
pub(crate) fn listed<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

/// Ports of one address: `0.0.0.0:2200-2210`. The unspecified address is each of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    ip: IpAddr,
    first: u16,
    last: u16,
}

impl Ports {
    fn covers(&self, address: SocketAddr) -> bool {
        let same = self.ip == address.ip() || self.ip.is_unspecified() && self.ip.is_ipv4() == address.is_ipv4();
        same && (self.first..=self.last).contains(&address.port())
    }
}

/// The text is neither address nor range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no IP:PORT or IP:FIRST-LAST, as in 0.0.0.0:2200-2210 or [::]:2200")]
pub struct NotPorts;

impl FromStr for Ports {
    type Err = NotPorts;

    fn from_str(text: &str) -> Result<Ports, NotPorts> {
        let (start, last) = match text.rsplit_once('-') {
            Some((start, last)) => (start, Some(last.parse().map_err(|_| NotPorts)?)),
            None => (text, None),
        };
        let first: SocketAddr = start.parse().map_err(|_| NotPorts)?;
        let last = last.unwrap_or(first.port());
        let good = first.port() > 0 && last >= first.port();
        if good { Ok(Ports { ip: first.ip(), first: first.port(), last }) } else { Err(NotPorts) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", SocketAddr::new(self.ip, self.first))?;
        if self.last == self.first { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

/// One host, or all below one: `a.example.org`, `*.example.org`. Lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hosts(String);

impl Hosts {
    fn covers(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host == self.0,
        }
    }
}

/// The text is no name of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no host, as in a.example.org or *.example.org: lower case, no port")]
pub struct NotHosts;

impl FromStr for Hosts {
    type Err = NotHosts;

    fn from_str(text: &str) -> Result<Hosts, NotHosts> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        if is_host(name) { Ok(Hosts(text.to_owned())) } else { Err(NotHosts) }
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether it is one host's name: labels of letters, digits and hyphens, lower case, without a port.
pub fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= HOST_BYTES_MAX && name.split('.').all(label)
}

macro_rules! as_text {
    ($($name:ty)*) => {
        $(impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<'de, str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        })*
    };
}
as_text!(Ports Hosts);

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(listens: &[&str], hosts: &[&str]) -> Rights {
        Rights {
            visits: BTreeSet::new(),
            listens: listens.iter().map(|text| text.parse().unwrap()).collect(),
            http_hosts: hosts.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    /// What each form covers, and what it does not.
    #[test]
    fn what_is_covered() {
        let all = rights(&["0.0.0.0:2200-2210", "127.0.0.1:80", "[::]:443"], &["*.example.org", "b.test"]);
        for (address, may) in [
            ("0.0.0.0:2200", true),
            ("10.0.0.1:2210", true),
            ("0.0.0.0:2211", false),
            ("0.0.0.0:2199", false),
            ("127.0.0.1:80", true),
            ("0.0.0.0:80", false),
            ("127.0.0.2:80", false),
            ("[::1]:443", true),
            ("[::1]:2200", false),
            ("0.0.0.0:443", false),
        ] {
            assert_eq!(all.may_listen(address.parse().unwrap()), may, "{address}");
        }
        for (host, may) in [
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("example.org", false),
            ("aexample.org", false),
            ("b.test", true),
            ("a.b.test", false),
        ] {
            assert_eq!(all.may_have(host), may, "{host}");
        }
        assert!(Rights::default().is_nothing() && !Rights::default().may_have("a"));
    }

    /// Forms that are none, and that all others read back as they are written.
    #[test]
    fn forms() {
        for text in ["", "80", "a:80", "0.0.0.0:0", "0.0.0.0:5-4", "0.0.0.0:5-", "::80", "0.0.0.0:1-70000"] {
            assert_eq!(text.parse::<Ports>(), Err(NotPorts), "{text}");
        }
        for text in ["", "*", "*.", "*.*.a", "A.b", "a:80", "a..b", "-a", "a b", "a.*"] {
            assert_eq!(text.parse::<Hosts>(), Err(NotHosts), "{text}");
        }
        let all = rights(&["0.0.0.0:2200-2210", "[::1]:80"], &["*.example.org"]);
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(json, r#"{"visits":[],"listens":["0.0.0.0:2200-2210","[::1]:80"],"http_hosts":["*.example.org"]}"#);
        assert_eq!(serde_json::from_str::<Rights>(&json).unwrap(), all);
        assert_eq!(serde_json::from_str::<Rights>("{}").unwrap(), Rights::default());
        assert_eq!(
            all.and(&rights(&[], &["b.test"])),
            rights(&["[::1]:80", "0.0.0.0:2200-2210"], &["b.test", "*.example.org"])
        );
    }
}
