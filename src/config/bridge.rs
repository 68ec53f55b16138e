//! bridge.toml: its keys, their ranges and defaults. The table for people is docs/configuration.md.

use super::access::{self, Access};
use super::affinity::{RawCores, affinity};
use super::agent_limits::{AgentRules, RawAgent, check_agents};
use super::balance::{Policies, RawService, check_services};
use super::carrier;
use super::dns::{Dns, RawDns, check_dns};
use super::doors::{Door, Keys, check_door, fits, unix_path};
use super::drain::{DRAIN_DEFAULT, DRAIN_TAKEOVER_DEFAULT, check_drain};
use super::limits::{RawLimits, check_limits, networks};
use super::memory::{RawMemory, check_memory};
use super::registry::{RawRegistry, check_registry};
use super::webhook::{Webhook, check_webhooks};
use super::{Document, Error, grpc, http, ports, unit};
use crate::cli::{Backend, DATA_DIR_DEFAULT};
use ipnet::IpNet;
use ringspan_engine::cores::Cores;
use ringspan_engine::engine::Options as EngineOptions;
use ringspan_engine::target::TargetId;
use ringspan_tunnel::address::Address;
use ringspan_tunnel::bridge::CarrierMode;
use ringspan_tunnel::limits::Limiter;
use ringspan_tunnel::memory::MemoryLimits;
use serde::Deserialize;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;

/// The registry's port: the one every Nacos client knows.
pub(crate) const HTTP_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8848);
/// The link's port: the one NPS users know.
pub(crate) const LINK_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8024);
/// What a target's number has room for.
const WORKERS_MAX: i64 = TargetId::WORKERS_MAX as i64;

/// A bridge's configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    /// Keyring, registry, certificate, admin socket.
    pub(crate) data_dir: PathBuf,
    /// Registry APIs and metrics.
    pub(crate) http_listen: SocketAddr,
    /// Who may use the registry.
    pub(crate) access: Access,
    /// The registry's gRPC; `None`: off.
    pub(crate) grpc_listen: Option<SocketAddr>,
    /// Services as names; `None`: off.
    pub(crate) dns: Option<Dns>,
    /// Where agents connect.
    pub(crate) link: Link,
    /// Where visitors connect.
    pub(crate) listeners: Vec<Listener>,
    /// How services spread and limit their visitors.
    pub(crate) policies: Policies,
    /// What agents may carry.
    pub(crate) agents: AgentRules,
    /// Threads and kernel interface.
    pub(crate) engine: Engine,
    /// What its streams may take.
    pub(crate) memory: MemoryLimits,
    /// Visitors have this long when the bridge stops.
    pub(crate) drain: Duration,
    /// The same when another process has taken over.
    pub(crate) drain_takeover: Duration,
    /// The cluster that its registry is a member of; `None`: a store of its own in `data_dir`.
    pub(crate) cluster: Option<ringspan_registry::cluster::Options>,
    /// Who is told of events.
    pub(crate) webhooks: Vec<Webhook>,
}

/// Where agents connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The address we listen on.
    pub(crate) listen: SocketAddr,
    /// What tokens tell agents to dial, if it is another than `listen`.
    pub(crate) public: Option<Address>,
    /// How the link is protected.
    pub(crate) tls: Tls,
    /// Whether the kernel may encrypt it.
    pub(crate) ktls: bool,
}

/// How the link is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// A certificate of our own making, pinned by the token.
    Auto,
    /// The operator's certificate, pinned by the token too.
    Files {
        /// PEM, the leaf first.
        cert: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// In the clear.
    Off,
}

/// Where visitors connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// For logs and metrics.
    pub(crate) name: String,
    /// The public address; 0.0.0.0:0 of one that listens at a path.
    pub(crate) listen: SocketAddr,
    /// Whose backends get the visitors.
    pub(crate) service: String,
    /// What it speaks.
    pub(crate) door: Door,
    /// By which kind of carrier they go.
    pub(crate) carrier: CarrierMode,
    /// What its visitors may do.
    pub(crate) limiter: Option<Arc<Limiter>>,
    /// From whom a PROXY header is taken, and then from each connection.
    pub(crate) proxy_from: Option<Vec<IpNet>>,
}

/// Threads and kernel interface; the same section in both files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    /// `None`: one a core.
    pub(crate) workers: Option<NonZeroU16>,
    /// io_uring, epoll, or the better one.
    pub(crate) backend: Backend,
    /// Workers wake without pushing others aside.
    pub(crate) batch: bool,
    /// Which cores the workers are kept on; `None`: none, the kernel places them.
    pub(crate) affinity: Option<Cores>,
}

impl Engine {
    /// The same for the engine: as many workers as cores, unless the file says otherwise.
    pub(crate) fn options(&self) -> EngineOptions {
        let defaults = EngineOptions::default();
        let one_a_core = self.affinity.as_ref().map_or(defaults.workers, |cores| cores.as_slice().len());
        EngineOptions {
            workers: self.workers.map_or(one_a_core, |n| n.get().into()),
            backend: self.backend.into(),
            batch: self.batch,
            // Kept on a core, a worker waits for it while others are free: visitors, backends and whatever else the machine
            // runs go where the kernel puts them.
            pin: self.affinity.is_some(),
            cores: self.affinity.clone().unwrap_or_else(|| defaults.cores.clone()),
            ..defaults
        }
    }
}

impl Default for Engine {
    fn default() -> Engine {
        Engine { workers: None, backend: Backend::Auto, batch: true, affinity: None }
    }
}

impl Default for Bridge {
    /// What a bridge without a file does: loopback only.
    fn default() -> Bridge {
        Bridge {
            data_dir: DATA_DIR_DEFAULT.into(),
            http_listen: HTTP_LISTEN_DEFAULT,
            access: Access::default(),
            grpc_listen: grpc::beside(HTTP_LISTEN_DEFAULT),
            dns: None,
            link: Link { listen: LINK_LISTEN_DEFAULT, public: None, tls: Tls::Auto, ktls: true },
            listeners: Vec::new(),
            policies: Policies::new(),
            agents: AgentRules::default(),
            engine: Engine::default(),
            memory: MemoryLimits::default(),
            drain: DRAIN_DEFAULT,
            drain_takeover: DRAIN_TAKEOVER_DEFAULT,
            cluster: None,
            webhooks: Vec::new(),
        }
    }
}

impl Bridge {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<Bridge, Error> {
        check(&Document::read(path)?)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    data_dir: Option<Spanned<String>>,
    http: Option<RawHttp>,
    dns: Option<Spanned<RawDns>>,
    link: Option<RawLink>,
    engine: Option<RawEngine>,
    memory: Option<RawMemory>,
    registry: Option<Spanned<RawRegistry>>,
    #[serde(default)]
    listener: Vec<Spanned<RawListener>>,
    #[serde(default)]
    service: Vec<RawService>,
    #[serde(default)]
    agent: Vec<Spanned<RawAgent>>,
    drain: Option<Spanned<String>>,
    drain_takeover: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    listen: Option<Spanned<String>>,
    grpc_listen: Option<Spanned<String>>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    listen: Option<Spanned<String>>,
    public: Option<Spanned<String>>,
    tls: Option<Spanned<toml::Value>>,
    ktls: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEngine {
    workers: Option<Spanned<i64>>,
    backend: Option<Spanned<String>>,
    scheduling: Option<Spanned<String>>,
    affinity: Option<Spanned<RawCores>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListener {
    name: Spanned<String>,
    r#type: Spanned<String>,
    listen: Spanned<String>,
    service: Option<Spanned<String>>,
    #[serde(default)]
    route: Vec<http::RawRoute>,
    #[serde(default)]
    tls: Vec<http::RawCert>,
    passthrough: Option<Spanned<bool>>,
    http: Option<Spanned<http::RawOptions>>,
    idle_timeout: Option<Spanned<String>>,
    sessions_max: Option<Spanned<i64>>,
    auth: Option<Spanned<String>>,
    users: Option<Spanned<Vec<Spanned<String>>>>,
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    associations_max: Option<Spanned<i64>>,
    mode: Option<Spanned<String>>,
    carrier: Option<Spanned<String>>,
    limits: Option<Spanned<RawLimits>>,
    proxy_protocol_from: Option<Spanned<Vec<Spanned<String>>>>,
}

/// Checks a whole document.
pub(crate) fn check(doc: &Document) -> Result<Bridge, Error> {
    let raw: Raw = doc.parse()?;
    let data_dir = match &raw.data_dir {
        Some(dir) => doc.value(dir, |text| Ok(doc.path_of(text)), "\"/var/lib/ringspan\"")?,
        None => doc.path_of(DATA_DIR_DEFAULT),
    };
    let mut bridge = Bridge { data_dir, ..Bridge::default() };
    let mut taken = Taken { doc, by: Vec::new() };
    let (http_cert, http_key) = raw.http.as_ref().map_or((None, None), |http| (http.cert.as_ref(), http.key.as_ref()));
    let registry = raw.registry.as_ref().map(Spanned::get_ref);
    let said = access::Raw {
        auth: registry.and_then(|r| r.auth.as_ref()),
        session: registry.and_then(|r| r.session.as_ref()),
        rate_limit: registry.and_then(|r| r.rate_limit.as_ref()),
        rate_limit_user: registry.and_then(|r| r.rate_limit_user.as_ref()),
        audit: registry.and_then(|r| r.audit.as_ref()),
        cert: http_cert,
        key: http_key,
    };
    bridge.access = access::check(doc, &said)?;
    let (http_at, grpc_at) = raw.http.map_or((None, None), |http| (http.listen, http.grpc_listen));
    if let Some(listen) = &http_at {
        bridge.http_listen = doc.value(listen, unit::address, "\"127.0.0.1:8848\"")?;
    }
    taken.take(Transport::Tcp, bridge.http_listen, "[http] listen", http_at.as_ref())?;
    bridge.grpc_listen = grpc::check(doc, grpc_at.as_ref(), http_at.as_ref(), bridge.http_listen)?;
    if let Some(address) = bridge.grpc_listen {
        taken.take(Transport::Tcp, address, "[http] grpc_listen", grpc_at.as_ref().or(http_at.as_ref()))?;
    }
    if let Some(link) = raw.link {
        bridge.link = check_link(doc, &link, &mut taken)?;
    } else {
        taken.take(Transport::Tcp, bridge.link.listen, "[link] listen", None)?;
    }
    bridge.dns = check_dns(doc, raw.dns.as_ref(), |address, at| {
        taken.take(Transport::Tcp, address, "[dns] listen", at)?;
        taken.take(Transport::Udp, address, "[dns] listen", at)
    })?;
    bridge.engine = check_engine(doc, raw.engine.as_ref())?;
    bridge.policies = check_services(doc, &raw.service)?;
    bridge.agents = check_agents(doc, &raw.agent)?;
    bridge.memory = check_memory(doc, raw.memory.as_ref())?;
    bridge.drain = check_drain(doc, raw.drain.as_ref(), DRAIN_DEFAULT)?;
    bridge.drain_takeover = check_drain(doc, raw.drain_takeover.as_ref(), DRAIN_TAKEOVER_DEFAULT)?;
    bridge.webhooks = check_webhooks(doc, raw.registry.as_ref())?;
    bridge.cluster = check_registry(doc, raw.registry.as_ref(), bridge.http_listen)?;
    let mut names = HashSet::new();
    for spanned in &raw.listener {
        let listener = spanned.get_ref();
        let name = doc.value(&listener.name, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\"")?;
        if !names.insert(name.clone()) {
            return Err(doc.wrong(listener.name.span(), "another listener has this name", "a name of its own"));
        }
        let limiter = check_limits(doc, listener.limits.as_ref().map(Spanned::get_ref))?;
        let proxy_from = match &listener.proxy_protocol_from {
            None => None,
            Some(from) => Some(networks(doc, Some(from.get_ref()))?),
        };
        let keys = Keys {
            idle_timeout: listener.idle_timeout.as_ref(),
            sessions_max: listener.sessions_max.as_ref(),
            auth: listener.auth.as_ref(),
            users: listener.users.as_ref(),
            allow: listener.allow.as_ref(),
            associations_max: listener.associations_max.as_ref(),
            mode: listener.mode.as_ref(),
        };
        if let Some(is_tls) = http::is_tls(listener.r#type.get_ref()) {
            fits(doc, &listener.r#type, false, &keys)?;
            if let Some(carrier) = &listener.carrier {
                let problem = "an http listener's streams go by what they carry";
                return Err(doc.wrong(carrier.span(), problem, "no carrier key here"));
            }
            if unix_path(doc, &listener.listen)?.is_some() {
                let problem = "a listener that speaks HTTP cannot be at a path";
                return Err(doc.wrong(listener.listen.span(), problem, "\"0.0.0.0:80\""));
            }
            let listen = doc.value(&listener.listen, unit::address, "\"0.0.0.0:80\"")?;
            taken.take(Transport::Tcp, listen, &format!("listener {name:?}"), Some(&listener.listen))?;
            let parts = http::RawParts {
                at: &listener.name,
                service: listener.service.as_ref(),
                routes: &listener.route,
                tls: &listener.tls,
                passthrough: listener.passthrough.as_ref(),
                options: listener.http.as_ref().map(Spanned::get_ref),
            };
            let door = http::check(doc, &name, is_tls, &parts)?;
            let service = door.routes.last().map(|route| route.service.clone()).unwrap_or_default();
            bridge.listeners.push(Listener {
                name,
                listen,
                service,
                door: Door::Http(Box::new(door)),
                carrier: http::CARRIER,
                limiter,
                proxy_from,
            });
            continue;
        }
        const NO_HTTP: (&str, &str) = ("this type of listener reads no HTTP", "type = \"http\" or \"https\"");
        if let Some(http) = &listener.http {
            return Err(doc.wrong_table(http.span(), NO_HTTP.0, NO_HTTP.1));
        }
        if let Some(at) = of_http(listener) {
            return Err(doc.wrong(at, NO_HTTP.0, NO_HTTP.1));
        }
        let path = unix_path(doc, &listener.listen)?;
        let is_unix = path.is_some();
        let door = check_door(doc, &listener.r#type, path, keys)?;
        let listens = match is_unix {
            true => vec![SocketAddr::from(([0, 0, 0, 0], 0))],
            false => ports::addresses(doc, &listener.listen, "\"0.0.0.0:8080\"")?,
        };
        let transport = if let Door::Udp(_) = door { Transport::Udp } else { Transport::Tcp };
        let carrier = carrier::carrier(doc, listener.carrier.as_ref())?;
        let Some(service) = &listener.service else { return Err(doc.missing(spanned.span(), "service")) };
        no_path(doc, listener, is_unix)?;
        for &listen in &listens {
            taken.take(transport, listen, &format!("listener {name:?}"), Some(&listener.listen))?;
            let service = ports::service(doc, service, &listens, listen.port())?;
            let name = if listens.len() == 1 { name.clone() } else { format!("{name}-{}", listen.port()) };
            if listens.len() > 1 && !names.insert(name.clone()) {
                let problem = format!("another listener is called {name:?}");
                return Err(doc.wrong(listener.name.span(), problem, "a name of its own"));
            }
            let (limiter, proxy_from) = (limiter.clone(), proxy_from.clone());
            bridge.listeners.push(Listener { name, listen, service, door: door.clone(), carrier, limiter, proxy_from });
        }
    }
    Ok(bridge)
}

/// The first value of a listener that only one which speaks HTTP has.
fn of_http(listener: &RawListener) -> Option<std::ops::Range<usize>> {
    let RawListener { route, tls, passthrough, .. } = listener;
    let passthrough = passthrough.as_ref().map(Spanned::span);
    let route = route.first().map(http::RawRoute::span);
    passthrough.or(route).or(tls.first().map(http::RawCert::span))
}

/// PROXY headers are believed by where they come from, which nobody does at a path; a key that does nothing would be a lie.
fn no_path(doc: &Document, raw: &RawListener, is_unix: bool) -> Result<(), Error> {
    match &raw.proxy_protocol_from {
        Some(from) if is_unix => Err(doc.wrong(
            from.span(),
            "who comes to a Unix socket has no address",
            "listen = \"IP:PORT\", or remove it",
        )),
        _ => Ok(()),
    }
}

/// The `[engine]` section of either file.
pub(super) fn check_engine(doc: &Document, raw: Option<&RawEngine>) -> Result<Engine, Error> {
    let mut engine = Engine::default();
    let Some(raw) = raw else { return Ok(engine) };
    if let Some(workers) = &raw.workers {
        let n = doc.number(workers, 1..=WORKERS_MAX)?;
        engine.workers = u16::try_from(n).ok().and_then(NonZeroU16::new);
    }
    if let Some(backend) = &raw.backend {
        let read = |text: &str| match text {
            "auto" => Ok(Backend::Auto),
            "io_uring" => Ok(Backend::IoUring),
            "epoll" => Ok(Backend::Epoll),
            _ => Err("no such backend".into()),
        };
        engine.backend = doc.value(backend, read, "\"auto\", \"io_uring\" or \"epoll\"")?;
    }
    if let Some(scheduling) = &raw.scheduling {
        let read = |text: &str| match text {
            "batch" => Ok(true),
            "normal" => Ok(false),
            _ => Err("no such scheduling".into()),
        };
        engine.batch = doc.value(scheduling, read, "\"batch\" or \"normal\"")?;
    }
    engine.affinity = raw.affinity.as_ref().map(|raw| affinity(doc, raw, &Cores::allowed())).transpose()?;
    Ok(engine)
}

fn check_link(doc: &Document, raw: &RawLink, taken: &mut Taken<'_>) -> Result<Link, Error> {
    let mut link = Bridge::default().link;
    if let Some(listen) = &raw.listen {
        link.listen = doc.value(listen, unit::address, "\"0.0.0.0:8024\"")?;
    }
    taken.take(Transport::Tcp, link.listen, "[link] listen", raw.listen.as_ref())?;
    if let Some(public) = &raw.public {
        link.public = Some(doc.value(public, unit::host_port, "\"bridge.example.com:8024\"")?);
    }
    link.ktls = super::ktls::check(doc, raw.ktls.as_ref())?;
    let Some(tls) = &raw.tls else { return Ok(link) };
    let wrong = |problem: &str, remedy: &str| Err(doc.wrong(tls.span(), problem, remedy));
    const FORMS: &str = "\"auto\", \"off\", or { cert = \"cert.pem\", key = \"key.pem\" }";
    link.tls = match tls.get_ref() {
        toml::Value::String(word) => match word.as_str() {
            "auto" => Tls::Auto,
            "off" if link.listen.ip().is_loopback() || raw.insecure => Tls::Off,
            "off" => {
                return wrong(
                    &format!(
                        "the link listens on {}, which others can reach, and would carry tokens in the clear",
                        link.listen
                    ),
                    "\"auto\"; or insecure = true in [link] if another layer encrypts",
                );
            }
            _ => return wrong("no such way to protect the link", FORMS),
        },
        toml::Value::Table(table) => {
            if let Some(key) = table.keys().find(|k| !matches!(k.as_str(), "cert" | "key")) {
                return wrong(&format!("unknown key {key:?}"), FORMS);
            }
            let file = |key: &str| match table.get(key).and_then(toml::Value::as_str) {
                None => Err(doc.wrong(tls.span(), format!("{key:?} is missing or no string"), FORMS)),
                Some(text) => {
                    let path = doc.path_of(text);
                    match std::fs::File::open(&path) {
                        Ok(_) => Ok(path),
                        Err(e) => Err(doc.wrong(
                            tls.span(),
                            format!("{key} file {}: {e}", path.display()),
                            "the path of a readable PEM file, or tls = \"auto\"",
                        )),
                    }
                }
            };
            Tls::Files { cert: file("cert")?, key: file("key")? }
        }
        _ => return wrong("it is neither a word nor a table", FORMS),
    };
    Ok(link)
}

/// Which address is whose: two listeners on one address are a mistake that the kernel reports late and unclearly.
struct Taken<'a> {
    doc: &'a Document,
    by: Vec<(Transport, SocketAddr, String)>,
}

/// TCP and UDP have their ports each for itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Taken<'_> {
    fn take(
        &mut self,
        transport: Transport,
        address: SocketAddr,
        by: &str,
        at: Option<&Spanned<String>>,
    ) -> Result<(), Error> {
        let mut others = self.by.iter().filter(|(its, ..)| *its == transport);
        if let Some((_, other, whose)) = others.find(|(_, other, _)| collide(*other, address)) {
            let span = at.map_or(0..0, Spanned::span);
            return Err(self.doc.wrong(span, format!("{whose} has this address already ({other})"), "another port"));
        }
        self.by.push((transport, address, by.to_owned()));
        Ok(())
    }
}

/// Whether two listeners cannot have these: one port of one family, and one address or any. Port 0 asks the kernel for
/// a free one: never the same twice. IPv6 listeners take no IPv4 (IPV6_V6ONLY).
pub(crate) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let same_address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && same_address
}
