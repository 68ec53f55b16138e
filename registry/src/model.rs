//! What can be in the registry: namespaces, groups, services, clusters, instances.
//! Promise: a value of these types is valid. Names are checked once, here, with Nacos' limits; nothing below asks again.
//! Pure: no socket, no clock.
//!
//! ```text
//! namespace "public" ─ group "DEFAULT_GROUP" ─ service "web" ─ cluster "DEFAULT" ─ instance 10.0.0.7:8080
//! ```

pub use crate::checker::Checker;
use crate::checker::{Asked, Manner, checks_of};
use crate::panel::Panel;
use crate::selector::service::ServiceSelector;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

/// A checked name. Shared, because the same few names occur in every record.
pub type Name = Arc<str>;
/// Free key and value pairs of an instance, a cluster or a service.
pub type Metadata = BTreeMap<String, String>;

/// The namespace of whoever names none.
pub const NAMESPACE_DEFAULT: &str = "public";
/// The group of whoever names none.
pub const GROUP_DEFAULT: &str = "DEFAULT_GROUP";
/// The cluster of whoever names none.
pub const CLUSTER_DEFAULT: &str = "DEFAULT";
/// Between group and service in a grouped name.
pub const GROUP_SEPARATOR: &str = "@@";
/// Nacos' limit on a namespace, in characters.
pub const NAMESPACE_LEN_MAX: usize = 64;
/// Nacos' limit on a group, in characters.
pub const GROUP_LEN_MAX: usize = 128;
/// Nacos' limit on a service name, in characters.
pub const SERVICE_LEN_MAX: usize = 512;
/// Nacos' limit on a cluster, in characters. Agents' names are cluster names, so it is theirs too.
pub const CLUSTER_LEN_MAX: usize = 64;
/// Nacos' limit on an address, in characters.
pub const HOST_LEN_MAX: usize = 128;
/// Nacos' limit on metadata: keys and values together, in bytes.
pub const METADATA_BYTES_MAX: usize = 1024;
/// Nacos' upper bound of a weight; the lower one is 0.
pub const WEIGHT_MAX: f64 = 10_000.0;
/// What an instance weighs unless it says otherwise.
pub const WEIGHT_DEFAULT: f64 = 1.0;

/// A value that cannot be in the registry. The message is what the caller reads: parameter, problem, remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Param '{param}' is illegal, {problem}")]
pub struct Invalid {
    /// The parameter, by its name in the Nacos API.
    pub param: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl Invalid {
    pub(crate) fn new(param: &'static str, problem: impl Into<String>) -> Invalid {
        Invalid { param, problem: problem.into() }
    }
}

fn check_name(param: &'static str, text: &str, len_max: usize, allowed: fn(char) -> bool) -> Result<Name, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new(param, "it must not be empty."));
    }
    if text.chars().count() > len_max {
        return Err(Invalid::new(param, format!("the param length should not exceed {len_max}.")));
    }
    match text.chars().find(|&c| !allowed(c)) {
        Some(c) => Err(Invalid::new(param, format!("illegal characters should not appear in the param: {c:?}."))),
        None => Ok(shared(text)),
    }
}

/// By letters, which most often need not be looked at: what is called alike shares its name.
fn compare(a: &Name, b: &Name) -> Ordering {
    if Arc::ptr_eq(a, b) { Ordering::Equal } else { a.cmp(b) }
}

/// A name; those that nearly everything has are one text for all.
fn shared(text: &str) -> Name {
    static USUAL: LazyLock<[Name; 3]> =
        LazyLock::new(|| [NAMESPACE_DEFAULT, GROUP_DEFAULT, CLUSTER_DEFAULT].map(Name::from));
    USUAL.iter().find(|name| ***name == *text).map_or_else(|| Name::from(text), Name::clone)
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

fn is_group(c: char) -> bool {
    is_word(c) || matches!(c, ':' | '.')
}

/// An agent may be called after its host, so a dot is good too.
fn is_cluster(c: char) -> bool {
    is_word(c) || c == '.'
}

/// Nacos takes nearly anything here, Dubbo's `providers:com.acme.Api:1.0:` among it.
fn is_service(c: char) -> bool {
    !c.is_control() && !c.is_whitespace()
}

/// Names a service. Ordered by namespace, then group, then name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    namespace: Name,
    group: Name,
    name: Name,
}

impl ServiceKey {
    /// A service by its three names. An empty namespace or group means the default one. A `name` of the form
    /// `group@@service` brings its own group, which wins, as in Nacos.
    ///
    /// # Errors
    /// [`Invalid`] if a name is empty, too long, or has characters that Nacos refuses.
    pub fn new(namespace: &str, group: &str, name: &str) -> Result<ServiceKey, Invalid> {
        let (group, name) = name.split_once(GROUP_SEPARATOR).unwrap_or((group, name));
        let name = check_name("serviceName", name, SERVICE_LEN_MAX, is_service)?;
        if name.contains(GROUP_SEPARATOR) {
            return Err(Invalid::new("serviceName", "it should have at most one '@@', between group and name."));
        }
        Ok(ServiceKey {
            namespace: check_name("namespaceId", or_default(namespace, NAMESPACE_DEFAULT), NAMESPACE_LEN_MAX, is_word)?,
            group: check_name("groupName", or_default(group, GROUP_DEFAULT), GROUP_LEN_MAX, is_group)?,
            name,
        })
    }

    /// A service of the default namespace; `name` may bring its group.
    ///
    /// # Errors
    /// As [`ServiceKey::new`].
    pub fn public(name: &str) -> Result<ServiceKey, Invalid> {
        ServiceKey::new("", "", name)
    }

    /// The namespace.
    pub fn namespace(&self) -> &Name {
        &self.namespace
    }

    /// The group.
    pub fn group(&self) -> &Name {
        &self.group
    }

    /// The bare name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// `group@@name`, as most of Nacos' answers carry it.
    pub fn grouped(&self) -> String {
        format!("{}{GROUP_SEPARATOR}{}", self.group, self.name)
    }

    /// The least key a service of this namespace and group can have: where a range over them starts.
    pub(crate) fn first_of(namespace: Name, group: Name) -> ServiceKey {
        ServiceKey { namespace, group, name: Name::from("") }
    }
}

impl Ord for ServiceKey {
    fn cmp(&self, other: &ServiceKey) -> Ordering {
        let by_group = || compare(&self.group, &other.group);
        compare(&self.namespace, &other.namespace).then_with(by_group).then_with(|| compare(&self.name, &other.name))
    }
}

impl PartialOrd for ServiceKey {
    fn partial_cmp(&self, other: &ServiceKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{GROUP_SEPARATOR}{}", self.namespace, self.group, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Checks a cluster's name, which is also what an agent may be called.
///
/// # Errors
/// [`Invalid`] if it is empty, longer than [`CLUSTER_LEN_MAX`], or not of letters, digits, `-`, `_` and `.`.
pub fn cluster_name(text: &str) -> Result<Name, Invalid> {
    check_name("clusterName", text, CLUSTER_LEN_MAX, is_cluster)
}

/// Names an instance within its service. Ordered by cluster, then host, then port.
#[derive(Clone, PartialEq, Eq)]
pub struct InstanceId {
    head: Head,
    cluster: Name,
    host: Name,
    port: u16,
}

impl InstanceId {
    /// An instance by cluster (empty: the default one), host and port. An IP address is stored in its canonical
    /// form, so `::1` and `0:0:0:0:0:0:0:1` are one instance; any other host is kept as it is.
    ///
    /// # Errors
    /// [`Invalid`] if a name is too long or has characters that cannot be in it, or if the port is 0.
    pub fn new(cluster: &str, host: &str, port: u16) -> Result<InstanceId, Invalid> {
        let cluster = cluster_name(or_default(cluster, CLUSTER_DEFAULT))?;
        let host = match host.parse::<IpAddr>() {
            // There is one way to write these.
            Ok(IpAddr::V4(_)) => shared(host),
            Ok(IpAddr::V6(ip)) => Name::from(ip.to_string()),
            Err(_) => check_name("ip", host, HOST_LEN_MAX, is_cluster)?,
        };
        if port == 0 {
            return Err(Invalid::new("port", "it should be 1 to 65535."));
        }
        Ok(InstanceId { head: Head::of(&host), cluster, host, port })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// The address, as text.
    pub fn host(&self) -> &Name {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, if it is one and not a host name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl Ord for InstanceId {
    fn cmp(&self, other: &InstanceId) -> Ordering {
        let by_tail = || if self.head.is_all() { Ordering::Equal } else { compare(&self.host, &other.host) };
        let by_host = || self.head.cmp(&other.head).then_with(by_tail);
        compare(&self.cluster, &other.cluster).then_with(by_host).then_with(|| self.port.cmp(&other.port))
    }
}

impl Hash for InstanceId {
    /// Of what need not be fetched from elsewhere; few hosts are in two clusters of one service.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.head.hash(state);
        if !self.head.is_all() {
            self.host.hash(state);
        }
        self.port.hash(state);
    }
}

/// How a host begins, zeros behind it, as numbers that are ordered as texts are. It is all of an IPv4 address, so that
/// looking one up among others fetches none of their texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Head([u64; 2]);

impl Head {
    fn of(host: &str) -> Head {
        let mut bytes = [0; 16];
        let len = host.len().min(16);
        bytes[..len].copy_from_slice(&host.as_bytes()[..len]);
        let number = u128::from_be_bytes(bytes);
        Head([(number >> 64) as u64, number as u64])
    }

    /// Whether there is nothing behind it: no host has a zero in it.
    fn is_all(self) -> bool {
        self.0[1] as u8 == 0
    }
}

impl PartialOrd for InstanceId {
    fn partial_cmp(&self, other: &InstanceId) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{} in {}", self.host, self.port, self.cluster)
        } else {
            write!(f, "{}:{} in {}", self.host, self.port, self.cluster)
        }
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// From where an instance can be reached, so: who may say whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vantage {
    /// The registry's own engine (persistent instances) or the instance's own beats (ephemeral ones).
    Registry,
    /// The agent of this name, on whose side of the tunnel the instance lives.
    Agent(Name),
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vantage::Registry => f.write_str("registry"),
            Vantage::Agent(name) => write!(f, "agent:{name}"),
        }
    }
}

/// The record of an instance. Health is not in it: see [`crate::health`].
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Which one.
    pub id: InstanceId,
    /// Its share of the visitors. 0 to [`WEIGHT_MAX`], default [`WEIGHT_DEFAULT`]; 0 is listed but gets none.
    pub weight: f64,
    /// Whether clients may see it; `false` takes it out of every list without forgetting it.
    pub enabled: bool,
    /// Ephemeral: lives by its beats and in memory only. Persistent: lives on disk until deregistered, and is probed.
    pub ephemeral: bool,
    /// What the registrant said of its health. Nacos' view shows it until the first verdict; nothing else does.
    pub claims_healthy: bool,
    /// Free pairs; `preserved.*` keys steer the registry.
    pub metadata: Metadata,
    /// Who may say whether it is well.
    pub vantage: Vantage,
}

impl Instance {
    /// A persistent, enabled instance of default weight, seen by the registry.
    pub fn new(id: InstanceId) -> Instance {
        Instance {
            id,
            weight: WEIGHT_DEFAULT,
            enabled: true,
            ephemeral: false,
            claims_healthy: true,
            metadata: Metadata::new(),
            vantage: Vantage::Registry,
        }
    }

    /// Checks what the types cannot: weight, size of the metadata, and an address that its vantage can use.
    ///
    /// # Errors
    /// [`Invalid`], for the first of them that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        check_weight(self.weight)?;
        check_metadata(&self.metadata)?;
        Panel::of(&self.metadata)?;
        match (&self.vantage, self.ephemeral) {
            // An agent resolves names on its own side; the registry does not resolve at all.
            (Vantage::Agent(_), false) => Ok(()),
            (Vantage::Agent(_), true) => Err(Invalid::new("ephemeral", "an agent's backends are persistent.")),
            (Vantage::Registry, _) if self.id.ip().is_some() => Ok(()),
            (Vantage::Registry, _) => Err(Invalid::new(
                "ip",
                format!("{:?} is no IP address; register what the name resolves to.", self.id.host),
            )),
        }
    }
}

/// Checks a weight.
///
/// # Errors
/// [`Invalid`] outside of 0 to [`WEIGHT_MAX`].
pub fn check_weight(weight: f64) -> Result<(), Invalid> {
    if (0.0..=WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    Err(Invalid::new("weight", format!("{weight} is not in the range 0.0 to {WEIGHT_MAX:.1}.")))
}

/// Checks the size of metadata.
///
/// # Errors
/// [`Invalid`] above [`METADATA_BYTES_MAX`].
pub fn check_metadata(metadata: &Metadata) -> Result<(), Invalid> {
    let bytes: usize = metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes <= METADATA_BYTES_MAX {
        return Ok(());
    }
    Err(Invalid::new("metadata", format!("the param length should not exceed {METADATA_BYTES_MAX}, it is {bytes}.")))
}

/// A cluster's own settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// How its persistent instances are checked.
    pub checker: Checker,
    /// Free pairs.
    pub metadata: Metadata,
}

/// A service's own settings. A service that somebody configured has them and stays while empty; one that came to be
/// by a registration has none and goes with its last instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceMeta {
    /// Below this share of healthy instances Nacos' view shows all of them, so that the living few are not trampled.
    /// 0 to 1, default 0: never.
    pub protect_threshold: f64,
    /// Free pairs.
    pub metadata: Metadata,
    /// Nacos' selector: kept and shown.
    pub selector: ServiceSelector,
    /// Clusters that were configured. Any other one has the defaults.
    pub clusters: BTreeMap<Name, Cluster>,
}

impl ServiceMeta {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Invalid`] if the threshold is outside of 0 to 1, or some metadata is too large.
    pub fn check(&self) -> Result<(), Invalid> {
        if !(0.0..=1.0).contains(&self.protect_threshold) {
            return Err(Invalid::new(
                "protectThreshold",
                format!("{} is not in the range 0 to 1.", self.protect_threshold),
            ));
        }
        Manner::of(&self.metadata)?;
        let mut all = std::iter::once(&self.metadata).chain(self.clusters.values().map(|c| &c.metadata));
        all.try_for_each(|metadata| {
            check_metadata(metadata)?;
            checks_of(metadata)?;
            Panel::of(metadata).map(drop)
        })
    }

    /// Whether instances of `cluster` are checked, if there is something that checks them.
    pub fn has_checks_on(&self, cluster: &str) -> bool {
        // What is stored has been checked.
        let of = |metadata: &Metadata| checks_of(metadata).ok().flatten();
        let of_cluster = self.clusters.get(cluster).and_then(|c| of(&c.metadata));
        of_cluster.or_else(|| of(&self.metadata)).unwrap_or(true)
    }

    /// What an instance of this service is asked now, by whoever checks it; `None`: nothing.
    pub fn asked(&self, id: &InstanceId) -> Option<Asked> {
        self.checker(id.cluster()).asked(id).filter(|_| self.has_checks_on(id.cluster()))
    }

    /// How instances of `cluster` are checked; in the service's manner, if the cluster has none of its own.
    pub fn checker(&self, cluster: &str) -> Checker {
        let checker = self.clusters.get(cluster).map_or_else(Checker::default, |c| c.checker.clone());
        // What is stored has been checked.
        checker.or_in_manner(Manner::of(&self.metadata).ok().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are taken or refused as Nacos does it: table.
    #[test]
    fn names() {
        let long = |n| "a".repeat(n);
        let cases: &[(&str, &str, &str, Result<&str, &str>)] = &[
            ("", "", "web", Ok("public/DEFAULT_GROUP@@web")),
            ("dev", "g", "web", Ok("dev/g@@web")),
            ("dev", "ignored", "g@@web", Ok("dev/g@@web")),
            ("", "a:b.c-d_e", "providers:com.acme.Api:1.0:", Ok("public/a:b.c-d_e@@providers:com.acme.Api:1.0:")),
            ("", "", "", Err("serviceName")),
            ("", "", "g@@", Err("serviceName")),
            ("", "", "g@@a@@b", Err("serviceName")),
            ("", "", "we b", Err("serviceName")),
            ("", "", "we\0b", Err("serviceName")),
            ("", "", &long(513), Err("serviceName")),
            ("", &long(129), "web", Err("groupName")),
            ("", "g/h", "web", Err("groupName")),
            (&long(65), "", "web", Err("namespaceId")),
            ("a b", "", "web", Err("namespaceId")),
        ];
        for (namespace, group, name, want) in cases {
            let got = ServiceKey::new(namespace, group, name);
            let got = got.map(|key| key.to_string()).map_err(|e| e.param);
            assert_eq!(got, want.map(str::to_owned), "{namespace:?} {group:?} {name:?}");
        }
    }

    /// An address is one instance however it is written, and port 0 is none.
    #[test]
    fn instance_ids() {
        let id = InstanceId::new("", "0:0:0:0:0:0:0:1", 80).unwrap();
        assert_eq!(id, InstanceId::new("DEFAULT", "::1", 80).unwrap());
        assert_eq!(id.to_string(), "[::1]:80 in DEFAULT");
        assert_eq!(InstanceId::new("", "10.0.0.1", 0).unwrap_err().param, "port");
        assert_eq!(InstanceId::new("", "", 80).unwrap_err().param, "ip");
        assert_eq!(InstanceId::new("a/b", "10.0.0.1", 80).unwrap_err().param, "clusterName");
        let name = InstanceId::new("", "db.local", 80).unwrap();
        assert_eq!(Instance::new(name.clone()).check().unwrap_err().param, "ip", "the registry does not resolve");
        let at_agent = Instance { vantage: Vantage::Agent(Name::from("a")), ..Instance::new(name) };
        assert_eq!(at_agent.check(), Ok(()), "an agent does");
    }

    /// Weights, thresholds and metadata are taken up to their limits and no further.
    #[test]
    fn limits() {
        let of = |weight| Instance { weight, ..Instance::new(InstanceId::new("", "10.0.0.1", 80).unwrap()) }.check();
        assert_eq!((of(0.0), of(10_000.0)), (Ok(()), Ok(())));
        for bad in [-0.1, 10_000.1, f64::NAN, f64::INFINITY] {
            assert_eq!(of(bad).unwrap_err().param, "weight", "{bad}");
        }
        let threshold = |t| ServiceMeta { protect_threshold: t, ..ServiceMeta::default() }.check().is_ok();
        assert_eq!([0.0, 1.0, 1.1, -0.1, f64::NAN].map(threshold), [true, true, false, false, false]);
        let metadata = |n: usize| check_metadata(&Metadata::from([("k".into(), "v".repeat(n - 1))])).is_ok();
        assert_eq!([1024, 1025].map(metadata), [true, false]);
    }
}
