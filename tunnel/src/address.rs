//! A place to dial: host and port, the host a name or an IP address, not yet resolved. Pure.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest host name (RFC 1035 §2.3.4, without the trailing dot).
const NAME_BYTES_MAX: usize = 253;

/// `host:port`. IPv6 addresses stand in brackets: `[::1]:8024`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Address {
    /// The host without brackets: for a resolver, or for SNI.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.clone(),
        }
    }

    /// 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, if no name has to be resolved first.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// Whether it needs no network: a loopback IP, or the name localhost (RFC 6761 §6.3).
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.is_loopback(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address { host: Host::Ip(address.ip()), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Why a text is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No port.
    #[error("\"{0}\" has no port. Write host:port, e.g. bridge.example.com:8024 or [2001:db8::1]:8024")]
    NoPort(String),
    /// A port that is none.
    #[error("\"{0}\": the port must be a number from 1 to 65535")]
    Port(String),
    /// IPv6 without brackets.
    #[error("\"{0}\" looks like IPv6: put the address in brackets, e.g. [2001:db8::1]:8024")]
    Brackets(String),
    /// A host that is none.
    #[error("\"{0}\": the host is neither an IP address nor a host name (letters, digits, '-', '_', '.')")]
    Host(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let shown = || text.chars().take(80).collect::<String>();
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError::NoPort(shown()))?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            let ip = inner.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok());
            // "[::1]" alone splits inside the brackets.
            let missing_port = text.ends_with(']');
            Host::Ip(IpAddr::V6(ip.ok_or_else(|| match missing_port {
                true => AddressError::NoPort(shown()),
                false => AddressError::Host(shown()),
            })?))
        } else if host.contains(':') {
            return Err(AddressError::Brackets(shown()));
        } else if let Ok(ip) = host.parse() {
            Host::Ip(ip)
        } else if is_name(host) {
            Host::Name(host.to_owned())
        } else {
            return Err(AddressError::Host(shown()));
        };
        // str::parse accepts "+1"; a port is digits.
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse::<u16>() {
            Ok(port) if digits && port != 0 => Ok(Address { host, port }),
            _ => Err(AddressError::Port(shown())),
        }
    }
}

/// Loosely RFC 1123 §2.1, with the underscore that container networks use. A name whose last label is all digits
/// would be a mistyped IPv4 address.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= NAME_BYTES_MAX && !last_is_number && host.split('.').all(label)
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of address survives its own text.
    #[test]
    fn text_round_trip() {
        for text in ["127.0.0.1:1", "[::1]:65535", "[2001:db8::7]:8024", "bridge.example.com:8024", "my_box:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert!("localhost:1".parse::<Address>().unwrap().is_loopback());
        assert!("[::1]:1".parse::<Address>().unwrap().is_loopback());
        assert_eq!("[::1]:1".parse::<Address>().unwrap().host(), "::1");
    }

    /// Each mistake has its own answer.
    #[test]
    fn mistakes_are_named() {
        let answer = |text: &str| text.parse::<Address>().unwrap_err();
        assert!(matches!(answer("host"), AddressError::NoPort(_)));
        assert!(matches!(answer("[::1]"), AddressError::NoPort(_)));
        assert!(matches!(answer("::1"), AddressError::Brackets(_)));
        assert!(matches!(answer("2001:db8::1:8024"), AddressError::Brackets(_)));
        for port in ["h:0", "h:65536", "h:", "h:+1", "h: 1", "h:-1", "h:x"] {
            assert!(matches!(answer(port), AddressError::Port(_)), "{port}");
        }
        for host in [":1", "a..b:1", "-a:1", "a b:1", "1.2.3:1", "1.2.3.4.5:1", "[1.2.3.4]:1", "[x]:1", "ä:1"] {
            assert!(matches!(answer(host), AddressError::Host(_)), "{host}");
        }
    }
}
