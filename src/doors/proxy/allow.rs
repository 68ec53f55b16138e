//! Where a proxy may go: an allow-list of networks, addresses and names, each with ports. What it does not say is denied.
//!
//! ```text
//! "10.0.0.0/8:80,443"   "192.0.2.7:22"   "[2001:db8::/32]:*"   "db.lan:5432"   "*.lan:8000-8999"   "*:443"
//! "10.0.0.53:53/udp": datagrams. Without that word a rule is for connections alone.
//! ```
//! Promise: a name cannot smuggle. What a name rule lets in is looked up, and the address is judged again: one that
//! means this machine or this link (loopback, link-local, unspecified, multicast) is reached only where a rule for
//! addresses says so. Pure: no look-up here.

use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Rules in one list: a list that nobody can read protects nobody.
pub(crate) const RULES_MAX: usize = 1024;

/// Longest name of a host (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allow(Vec<Rule>);

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    host: Host,
    ports: Vec<RangeInclusive<u16>>,
    transport: Transport,
}

/// What a target is asked for over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How the bridge marks a target that is to hear datagrams. No host begins so: an agent that does not know it denies it.
const UDP: &str = "udp:";

impl Transport {
    /// What the agent is asked for.
    pub(crate) fn name(self, target: &Target) -> String {
        match self {
            Transport::Tcp => target.to_string(),
            Transport::Udp => format!("{UDP}{target}"),
        }
    }

    /// What the bridge asks for.
    ///
    /// # Errors
    /// As [`Target`]'s.
    pub(crate) fn read(text: &str) -> Result<(Transport, Target), &'static str> {
        match text.strip_prefix(UDP) {
            Some(target) => target.parse().map(|target| (Transport::Udp, target)),
            None => text.parse().map(|target| (Transport::Tcp, target)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// Addresses.
    Net(IpNet),
    /// This name and no other.
    Name(String),
    /// Names that end so, with a dot before: `*.lan`.
    Under(String),
    /// Any name: `*`. Of addresses, those that a name may mean.
    Any,
}

/// Where somebody wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// An address.
    Address(IpAddr, u16),
    /// A name, in lower case and without a dot at its end.
    Name(String, u16),
}

impl Target {
    /// An address if the host is one, in whatever clothes.
    ///
    /// # Errors
    /// A sentence: what a host cannot be.
    pub(crate) fn new(host: &str, port: u16) -> Result<Target, &'static str> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if port == 0 {
            return Err("nothing listens on port 0");
        }
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Target::Address(ip.to_canonical(), port));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(good) || dots {
            return Err("the host is neither an address nor a name");
        }
        // inet_aton takes "0x7f.1", "127.1" and "2130706433" for addresses; a resolver might, too. No top-level domain
        // begins with a digit (RFC 3696 §2).
        if name.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit())) {
            return Err("the host is an address in a form that is not taken");
        }
        Ok(Target::Name(name, port))
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Target::Address(_, port) | Target::Name(_, port) => *port,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Address(ip, port) => write!(f, "{}", std::net::SocketAddr::new(*ip, *port)),
            Target::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Target, &'static str> {
        let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
        if host.contains(':') && !host.starts_with('[') {
            return Err("an IPv6 address stands in brackets");
        }
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or("its port is not a number from 1 to 65535")?;
        Target::new(host, port)
    }
}

impl Allow {
    /// A list of these.
    pub(crate) fn new(rules: Vec<Rule>) -> Allow {
        Allow(rules)
    }

    /// Whether the target may be asked for: an address by the rules for addresses; a name by those for names, or where
    /// its addresses decide because there are rules for addresses on this port.
    pub(crate) fn may_ask(&self, over: Transport, target: &Target) -> bool {
        match target {
            Target::Address(ip, port) => self.takes_address(over, *ip, *port, false),
            Target::Name(name, port) => {
                self.takes_name(over, name, *port) || self.on(over, *port).any(|rule| matches!(rule.host, Host::Net(_)))
            }
        }
    }

    /// Whether a connection may be made to an address that this target turned out to be.
    pub(crate) fn may_connect(&self, over: Transport, target: &Target, ip: IpAddr) -> bool {
        let by_name = match target {
            Target::Address(..) => false,
            Target::Name(name, port) => self.takes_name(over, name, *port),
        };
        self.takes_address(over, ip.to_canonical(), target.port(), by_name)
    }

    fn on(&self, over: Transport, port: u16) -> impl Iterator<Item = &Rule> {
        self.0.iter().filter(move |rule| rule.transport == over && rule.ports.iter().any(|range| range.contains(&port)))
    }

    fn takes_name(&self, over: Transport, name: &str, port: u16) -> bool {
        self.on(over, port).any(|rule| match &rule.host {
            Host::Any => true,
            Host::Name(its) => its == name,
            Host::Under(its) => {
                name.strip_suffix(its.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            Host::Net(_) => false,
        })
    }

    fn takes_address(&self, over: Transport, ip: IpAddr, port: u16, by_name: bool) -> bool {
        let ordinary = is_ordinary(ip);
        (by_name && ordinary)
            || self.on(over, port).any(|rule| match &rule.host {
                Host::Net(net) => net.contains(&ip),
                Host::Any => ordinary,
                Host::Name(_) | Host::Under(_) => false,
            })
    }
}

/// Whether an address means another machine: no loopback, no link-local (where clouds keep their secrets,
/// 169.254.169.254), nothing unspecified, multicast or broadcast.
fn is_ordinary(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    match ip {
        // 0.0.0.0/8 is "this network": Linux takes all of it for itself.
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_broadcast() && ip.octets()[0] != 0,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    }
}

/// A network as addresses are compared: an IPv4 one in IPv6 dress (`::ffff:10.0.0.0/104`) is what it is.
///
/// # Errors
/// Its length cannot be meant: a list with it would never match.
pub(crate) fn plain(net: IpNet) -> Result<IpNet, String> {
    match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len()) {
            (None, _) => Ok(net),
            (Some(ip), 96..=128) => IpNet::new(ip.into(), v6.prefix_len() - 96).map_err(|e| e.to_string()),
            (Some(_), n) => Err(format!("/{n} of an IPv4 address in IPv6 dress: 96 to 128 bits, or plain IPv4")),
        },
        IpNet::V4(_) => Ok(net),
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let (text, transport) = match (text.strip_suffix("/udp"), text.strip_suffix("/tcp")) {
            (Some(text), _) => (text, Transport::Udp),
            (None, tcp) => (tcp.unwrap_or(text), Transport::Tcp),
        };
        let (host, ports) = text.rsplit_once(':').ok_or("it has no ports, as in 10.0.0.0/8:80,443")?;
        let range = |part: &str| -> Option<RangeInclusive<u16>> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first > 0 && first <= last).then_some(first..=last)
        };
        let ports = match ports.trim() {
            "*" => vec![1..=u16::MAX],
            list => {
                list.split(',').map(range).collect::<Option<_>>().ok_or("its ports are not as in 80, 8000-8999 or *")?
            }
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if host.contains(':') && bare.is_none() {
            return Err("IPv6 stands in brackets, as in [2001:db8::/32]:443".into());
        }
        let text = bare.unwrap_or(host);
        let host = if text == "*" {
            Host::Any
        } else if let Ok(net) = text.parse::<IpNet>() {
            if net.trunc() != net {
                return Err(format!("its network has bits beyond its length: {} would be right", net.trunc()));
            }
            Host::Net(plain(net)?)
        } else if let Ok(ip) = text.parse::<IpAddr>() {
            Host::Net(ip.to_canonical().into())
        } else if let Some(end) = text.strip_prefix("*.") {
            Host::Under(name(end)?)
        } else {
            Host::Name(name(text)?)
        };
        Ok(Rule { host, ports, transport })
    }
}

fn name(text: &str) -> Result<String, String> {
    match Target::new(text, 1) {
        Ok(Target::Name(name, _)) => Ok(name),
        _ => Err("its host is no network, address or name, as in 10.0.0.0/8, 192.0.2.7, db.lan or *.lan".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allow(rules: &[&str]) -> Allow {
        Allow::new(rules.iter().map(|rule| rule.parse().unwrap_or_else(|e| panic!("{rule}: {e}"))).collect())
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// What may be asked for: rules, target, answer.
    #[test]
    fn who_may_ask() {
        for (rules, asked, may) in [
            (&[] as &[&str], "192.0.2.7:80", false),
            (&[], "db.lan:80", false),
            (&["192.0.2.0/24:80"], "192.0.2.7:80", true),
            (&["192.0.2.0/24:80"], "192.0.2.7:81", false),
            (&["192.0.2.0/24:80"], "192.0.3.7:80", false),
            (&["192.0.2.0/24:80,443"], "192.0.2.7:443", true),
            (&["192.0.2.0/24:8000-8999"], "192.0.2.7:8999", true),
            (&["192.0.2.0/24:8000-8999"], "192.0.2.7:9000", false),
            (&["192.0.2.7:*"], "[::ffff:192.0.2.7]:5", true),
            (&["[::ffff:192.0.2.0/120]:*"], "192.0.2.7:5", true),
            (&["[::ffff:192.0.2.0/120]:*"], "[::ffff:192.0.2.7]:5", true),
            (&["[::ffff:192.0.2.0/120]:*"], "192.0.3.7:5", false),
            (&["[::ffff:0.0.0.0/96]:*"], "192.0.3.7:5", true),
            (&["127.0.0.1:*"], "[::1]:5", false),
            (&["[2001:db8::/32]:443"], "[2001:db8::1]:443", true),
            (&["db.lan:80"], "DB.LAN.:80", true),
            (&["db.lan:80"], "xdb.lan:80", false),
            (&["*.lan:80"], "db.lan:80", true),
            (&["*.lan:80"], "a.db.lan:80", true),
            (&["*.lan:80"], "lan:80", false),
            (&["*.lan:80"], "dblan:80", false),
            (&["*.lan:80"], "db.lan.evil:80", false),
            (&["*:80"], "anything.example:80", true),
            (&["*:80"], "192.0.2.7:80", true),
            (&["*:80"], "127.0.0.1:80", false),
            // A name may be asked for where addresses decide.
            (&["192.0.2.0/24:80"], "db.lan:80", true),
            (&["192.0.2.0/24:80"], "db.lan:81", false),
        ] {
            assert_eq!(allow(rules).may_ask(Transport::Tcp, &target(asked)), may, "{rules:?} {asked}");
        }
    }

    /// A rule is for connections or for datagrams, and the two do not speak for each other.
    #[test]
    fn datagrams_have_rules_of_their_own() {
        let list = allow(&["10.0.0.0/8:53/udp", "*.lan:53/tcp", "192.0.2.7:*"]);
        for (asked, tcp, udp) in
            [("10.0.0.53:53", false, true), ("10.0.0.53:54", false, false), ("192.0.2.7:53", true, false)]
        {
            let target = target(asked);
            assert_eq!(
                (list.may_ask(Transport::Tcp, &target), list.may_ask(Transport::Udp, &target)),
                (tcp, udp),
                "{asked}"
            );
        }
        let (name, ip) = (target("ns.lan:53"), IpAddr::from([10, 0, 0, 53]));
        assert!(list.may_connect(Transport::Tcp, &name, ip) && list.may_connect(Transport::Udp, &name, ip));
        assert!(!list.may_connect(Transport::Udp, &name, [10, 0, 0, 53].map(|n: u8| n.max(11)).into()));
        assert_eq!(Transport::read(&Transport::Udp.name(&name)), Ok((Transport::Udp, name.clone())));
        assert_eq!(Transport::read(&Transport::Tcp.name(&name)), Ok((Transport::Tcp, name)));
        assert!("udp:10.0.0.53:53".parse::<Target>().is_err(), "who does not know it denies it");
        assert!("10.0.0.53:53/icmp".parse::<Rule>().is_err());
    }

    /// What a name turns out to be is judged again.
    #[test]
    fn names_do_not_smuggle() {
        for (rules, asked, ip, may) in [
            (&["db.lan:80"] as &[&str], "db.lan:80", "10.1.2.3", true),
            (&["db.lan:80"], "db.lan:80", "127.0.0.1", false),
            (&["db.lan:80"], "db.lan:80", "::1", false),
            (&["db.lan:80"], "db.lan:80", "::ffff:127.0.0.1", false),
            (&["db.lan:80"], "db.lan:80", "0.0.0.0", false),
            (&["db.lan:80"], "db.lan:80", "0.1.2.3", false),
            (&["db.lan:80"], "db.lan:80", "169.254.169.254", false),
            (&["db.lan:80"], "db.lan:80", "fe80::1", false),
            (&["db.lan:80"], "db.lan:80", "224.0.0.1", false),
            (&["db.lan:80"], "db.lan:80", "255.255.255.255", false),
            (&["*:80"], "db.lan:80", "127.0.0.1", false),
            (&["db.lan:80", "127.0.0.0/8:80"], "db.lan:80", "127.0.0.1", true),
            (&["db.lan:80", "127.0.0.0/8:81"], "db.lan:80", "127.0.0.1", false),
            (&["10.0.0.0/8:80"], "any.example:80", "10.1.2.3", true),
            (&["10.0.0.0/8:80"], "any.example:80", "11.1.2.3", false),
        ] {
            let ip: IpAddr = ip.parse().expect("an address");
            assert_eq!(allow(rules).may_connect(Transport::Tcp, &target(asked), ip), may, "{rules:?} {asked} {ip}");
        }
    }

    /// What is no target, and what is no rule.
    #[test]
    fn what_is_wrong() {
        for text in
            ["a", "a:0", "a:65536", "a:+1", "::1:80", ":80", "a b:80", "a..b:80", "127.1:80", "0x7f.1:80", "1:80"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        for text in [
            "10.0.0.0/8",
            "10.0.0.1/8:80",
            "10.0.0.0/33:80",
            "[::ffff:0:0/95]:80",
            "[::ffff:10.0.0.0/8]:80",
            "::1:80",
            "a:b",
            "a:0",
            "a:9-8",
            "*.*:80",
            "a b:80",
            ":80",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }

    proptest! {
        /// No text panics; an empty list takes nothing; what a list takes, a longer one takes.
        #[test]
        fn lists(rule in ".{0,40}", asked in ".{0,40}", more in "(10|192)\\.[0-9]{1,2}\\.0\\.0/16:[0-9]{1,4}") {
            let asked = asked.parse::<Target>();
            let (rule, more) = (rule.parse::<Rule>(), more.parse::<Rule>());
            if let Ok(asked) = asked {
                prop_assert!(!Allow::default().may_ask(Transport::Tcp, &asked));
                if let (Ok(rule), Ok(more)) = (rule, more) && Allow::new(vec![rule.clone()]).may_ask(Transport::Tcp, &asked) {
                    prop_assert!(Allow::new(vec![rule, more]).may_ask(Transport::Tcp, &asked));
                }
            }
        }

        /// A target reads back as itself.
        #[test]
        fn targets_read_back(host in "[a-z][a-z0-9.-]{0,20}|[0-9.]{3,12}|\\[[0-9a-f:]{2,12}\\]", port: u16) {
            if let Ok(target) = Target::new(&host, port) {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
            }
        }
    }
}
