//! A running bridge: engine, tunnel, registry and control plane, put together and taken apart.
//!
//! ```text
//! workers: prober + bridge's data path        control plane (tokio): http, registry prober, pump, admin
//! ```

use super::access;
use super::bind::{bind_error, cannot_listen, wait_for_ports};
use super::hooks::Hooks;
use super::listening::{Listening, Places};
use super::metrics;
use super::pump::{self, Bell, Hall};
use super::scouts;
use super::sessions::Sessions;
use super::takeover::Estate;
use crate::config::bridge::Bridge as Config;
use crate::doors::Doors;
use crate::doors::secret::listener::{Desks, House};
use crate::http_server::{self, HttpServer};
use crate::http_tls::Front;
use crate::keyring::Keyring;
use crate::office::{Floor, Office};
use crate::token_cmd::{protection, public_address};
use crate::{Failure, admin, machine};
use ringspan_engine::engine::Engine;
use ringspan_engine::health::Health;
use ringspan_engine::kernel::{Capabilities, Socket};
use ringspan_engine::worker::Workers;
use ringspan_registry::dns;
use ringspan_registry::events::Events;
use ringspan_registry::grpc::{self, GrpcServer};
use ringspan_registry::prober;
use ringspan_registry::push::Hub;
use ringspan_registry::push::udp::UdpPusher;
use ringspan_registry::{Options as RegistryOptions, Registry, http};
use ringspan_tunnel::bridge::{Bridge, BridgeHandle, BridgeOptions, Inherited, Listener};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The registry's file in the data folder.
pub(crate) const REGISTRY_FILE: &str = "registry.redb";
/// Connections to one worker's link port that have not proved who they are.
const HANDSHAKES_MAX: usize = 256;
/// Streams on one carrier.
const STREAMS_MAX: u16 = 16_384;
/// How often a bridge that ends looks whether it is alone.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How often the workers are looked at.
pub(super) const WATCH: Duration = Duration::from_millis(500);

/// A running bridge.
pub(crate) struct BridgeServer {
    pub(super) config: Config,
    pub(super) engine: Arc<Mutex<Engine>>,
    pub(super) capabilities: Capabilities,
    pub(super) handle: BridgeHandle,
    pub(super) doors: Doors,
    pub(super) registry: Registry,
    pub(super) hall: Arc<Hall>,
    pub(super) office: Arc<Office>,
    pub(super) http_address: SocketAddr,
    /// `None`: off.
    pub(super) grpc_address: Option<SocketAddr>,
    /// Empty: off.
    pub(super) dns_addresses: Vec<SocketAddr>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) http: JoinHandle<()>,
    pub(super) grpc: Option<JoinHandle<()>>,
    pub(super) dns: Option<JoinHandle<()>>,
    pub(super) pump: JoinHandle<()>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    /// Who is told of events.
    pub(super) hooks: Hooks,
    /// Who wants our place.
    pub(super) successors: Option<mpsc::Receiver<std::os::unix::net::UnixStream>>,
}

/// Ends the streams of events when the server stops: they have no end of their own.
async fn close(events: Events, mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    events.close();
}

impl BridgeServer {
    /// Opens, binds and starts everything, or says what is in the way. Needs a runtime.
    pub(crate) fn start(config: &Config) -> Result<BridgeServer, Failure> {
        BridgeServer::start_with(config, None)
    }

    /// The same, in the place of another one; then visitors wait until [`let_in`](BridgeServer::let_in).
    pub(super) fn start_with(config: &Config, before: Option<&Estate>) -> Result<BridgeServer, Failure> {
        let hold = before.is_some();
        let run = |text: String| Failure::Run(text);
        let keyring = Arc::new(Keyring::open_patiently(&config.data_dir).map_err(|e| run(e.to_string()))?);
        let (tls, trust) = protection(config)?;
        let registry = Registry::open(&registry_options(config)).map_err(|e| run(e.to_string()))?;
        wait_for_ports(config);
        let access = access::open(config)?;
        let front = config.access.tls.as_ref().map(Front::start).transpose();
        let front = front.map_err(|e| run(format!("[http] cert, key: {e}")))?;
        let http_server = HttpServer::bind(config.http_listen, front.clone())
            .map_err(|e| run(cannot_listen("[http] listen", config.http_listen, &e)))?;
        let http_address = http_server.address().map_err(|e| run(e.to_string()))?;
        let grpc_listener = config.grpc_listen.map(|address| {
            http_server::listener(address).map_err(|e| run(cannot_listen("[http] grpc_listen", address, &e)))
        });
        let grpc_server = grpc_listener.transpose()?.map(|listener| {
            GrpcServer::on(listener).with_access(access.clone()).with_tls(front.as_ref().map(Front::wrap))
        });
        let grpc_address = grpc_server.as_ref().map(GrpcServer::address).transpose().map_err(|e| run(e.to_string()))?;
        let dns_sockets = config.dns.iter().flat_map(|dns| &dns.listen).map(|&address| {
            crate::dns_sockets::bind(address).map_err(|e| run(cannot_listen("[dns] listen", address, &e)))
        });
        let dns_server = dns::Server::on(dns_sockets.collect::<Result<_, _>>()?);
        let dns_addresses = dns_server.addresses().map_err(|e| run(e.to_string()))?;
        let admin = admin::Admin::listen(&config.data_dir)
            .map_err(|e| run(format!("{}: {e}", config.data_dir.join(admin::SOCKET).display())))?;

        let engine_options = config.engine.options();
        let software = format!("ringspan/{}", env!("CARGO_PKG_VERSION"));
        let (link_bell, probe_bell) = (Arc::new(Bell::default()), prober::Bell::default());
        let seats = Workers::plan(engine_options.workers).map_err(|e| run(format!("eventfd: {e}")))?;
        let leases = before.map_or(&[][..], |estate| &estate.leases);
        let mut places = Places::new(config.listeners.clone(), leases, crate::inherit::has);
        let options = bridge_options(config, places.wanted()?.0, tls.clone(), &software);
        let mut inherited = Inherited::default();
        for address in options.listeners.iter().map(|l| l.address).chain([options.link]) {
            while let Some(fd) = crate::inherit::tcp(address) {
                inherited.add(Socket::from_owned(fd)).map_err(|e| run(e.to_string()))?;
            }
        }
        let bridge = Bridge::inheriting(&options, &seats, link_bell.clone(), inherited);
        let Bridge { residents, handle, events } = bridge.map_err(|e| run(bind_error(&e)))?;
        if hold {
            handle.hold_visitors(true);
        }
        let planned = seats.into_iter().zip(residents.into_iter().map(|resident| vec![resident])).collect();
        let (engine, feed) =
            Engine::start_on(&engine_options, Arc::new(probe_bell.clone()), planned).map_err(|e| run(e.to_string()))?;
        let desks = Desks::default();
        let house = House { handle: handle.clone(), keyring: keyring.clone(), tls, desks };
        let mut doors = Doors::new(house);
        if !hold {
            doors.apply(&config.listeners)?;
        }
        let (probes, capabilities) = (engine.probes(), engine.capabilities().clone());
        let engine = Arc::new(Mutex::new(engine));

        let mut sessions = Sessions::new(first_session());
        sessions.set_policies(config.policies.clone());
        sessions.set_rules(config.agents.clone());
        let hall = Arc::new(Hall {
            handle: handle.clone(),
            keyring: keyring.clone(),
            registry: registry.clone(),
            access: access.clone(),
            listening: Listening::new(handle.clone(), doors.hosts(), places)?,
            sessions: Mutex::new(sessions),
            software,
            runtime: tokio::runtime::Handle::current(),
            stale: AtomicBool::new(false),
            bell: link_bell,
        });
        let mut listening = config.clone();
        listening.link.listen = handle.link_address();
        let office = Arc::new(Office {
            keyring,
            address: public_address(&listening),
            trust,
            floor: Some(hall.clone() as Arc<dyn Floor>),
        });
        let (stop, stopping) = watch::channel(false);
        let asked = engine.clone();
        let probe_stats: http::ProbeStats =
            Arc::new(move || asked.lock().unwrap_or_else(PoisonError::into_inner).stats());
        let dns_stats = Arc::new(dns::Stats::default());
        let (hub, clients) = (Hub::default(), grpc::Clients::default());
        let happenings = Events::default();
        let udp = UdpPusher::bind(http_address, hub.clone()).map_err(|e| run(format!("udp pushes: {e}")))?;
        let known = hall.clone();
        let links: http::AgentLinks = Arc::new(move || known.links());
        let (probe_now, probe_orders) = prober::now::probe_now();
        let router = http::router(
            registry.clone(),
            http::Options {
                probe_stats: Some(probe_stats),
                hub: hub.clone(),
                udp: Some(udp.clone()),
                clients: clients.clone(),
                access: access.clone(),
                events: happenings.clone(),
                agents: Some(links),
                probe_now: Some(probe_now),
                more: Some(metrics::of(
                    handle.clone(),
                    doors.tally(),
                    doors.http_stats(),
                    config.dns.is_some().then(|| dns_stats.clone()),
                )),
            },
        );
        let http = tokio::spawn(http_server.serve(router, stopping.clone()));
        let grpc = grpc_server.map(|server| {
            let limits = grpc::Limits::default();
            tokio::spawn(server.serve(registry.clone(), hub.clone(), clients, limits, stopping.clone()))
        });
        let dns = config
            .dns
            .as_ref()
            .map(|dns| tokio::spawn(dns_server.serve(registry.clone(), dns.options.clone(), dns_stats, stopping)));
        let (asked, successors) = mpsc::channel(1);
        let (scouts, watches, sightings) = scouts::scouts(probe_bell.clone());
        let pump = tokio::spawn(pump::run(hall.clone(), events, watches, sightings));
        // They listen before anything can happen.
        let mut hooks = Hooks::new(happenings.clone());
        hooks.apply(&config.webhooks, &registry);
        let tasks = vec![
            tokio::spawn(hub.run(registry.clone())),
            tokio::spawn(happenings.clone().run(registry.clone())),
            tokio::spawn(close(happenings, stop.subscribe())),
            tokio::spawn(udp.run()),
            tokio::spawn(prober::run_on(
                registry.clone(),
                (probes, feed),
                scouts,
                probe_bell,
                prober::policy_default(),
                probe_orders,
            )),
            tokio::spawn(admin.serve(office.clone(), asked)),
        ];
        let server = BridgeServer {
            config: config.clone(),
            engine,
            capabilities,
            handle,
            doors,
            registry,
            hall,
            office,
            http_address,
            grpc_address,
            dns_addresses,
            stop,
            http,
            grpc,
            dns,
            pump,
            tasks,
            hooks,
            successors: Some(successors),
        };
        server.tell(config);
        Ok(server)
    }

    /// Visitors may come in, from now on.
    pub(super) fn let_in(&mut self) -> Result<(), Failure> {
        self.handle.hold_visitors(false);
        self.doors.apply(&self.config.listeners)
    }

    /// The configuration, with the real port where 0 was asked for.
    pub(super) fn real_config(&self) -> Config {
        let mut config = self.config.clone();
        (config.http_listen, config.link.listen) = (self.http_address, self.link_address());
        config.grpc_listen = self.grpc_address;
        if let Some(dns) = &mut config.dns {
            dns.listen = self.dns_addresses.clone();
        }
        let doors = self.doors.addresses().map(|(name, address)| (name.to_owned(), address));
        for (name, address) in self.handle.addresses().into_iter().chain(doors) {
            if let Some(listener) = config.listeners.iter_mut().find(|l| l.name == name) {
                listener.listen = address;
            }
        }
        config
    }

    /// Who and what would be missed.
    pub(super) fn estate(&self) -> Estate {
        let routes = self.handle.routes();
        let is_up = |b: &ringspan_tunnel::routes::Backend| b.health == Health::Up;
        let served = routes.services().filter(|(_, backends)| backends.iter().any(is_up));
        let services = served.map(|(name, _)| name.to_owned()).collect();
        Estate { agents: self.hall.connected(), services, leases: self.hall.listening.estate(), ..Estate::default() }
    }

    fn tell(&self, config: &Config) {
        let (link, data_dir) = (self.link_address(), config.data_dir.display());
        let doors = self.doors.addresses().map(|(name, address)| (name.to_owned(), address));
        for (name, address) in self.handle.addresses().into_iter().chain(doors) {
            let service = config.listeners.iter().find(|l| l.name == name).map(|l| l.service.as_str());
            tracing::info!(name, %address, service, "listener");
        }
        access::tell(config);
        for address in &self.dns_addresses {
            let zone = config.dns.as_ref().map(|dns| tracing::field::display(&dns.options.zone));
            tracing::info!(%address, zone, "dns");
            if !address.ip().is_loopback() && config.dns.as_ref().is_some_and(|dns| dns.options.allow.is_none()) {
                tracing::warn!(%address, "whoever reaches DNS may ask for every service. Try: [dns] allow, namespaces");
            }
        }
        let tls = self.office.trust != ringspan_tunnel::fingerprint::Trust::Plain;
        let grpc = self.grpc_address.map(tracing::field::display);
        tracing::info!(http = %self.http_address, grpc, %link, tls, %data_dir, io = %self.capabilities, "bridge is up");
        if tls {
            crate::machine::tell_ktls(config.link.ktls);
        }
    }

    /// Sockets of visitors that are open.
    pub(super) fn visitors(&self) -> u64 {
        self.handle.stats().streams_open
    }

    /// How long visitors have when the bridge stops.
    pub(super) fn drain_max(&self) -> Duration {
        self.config.drain
    }

    /// Where the registry's HTTP is.
    pub(crate) fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where agents connect.
    pub(crate) fn link_address(&self) -> SocketAddr {
        self.handle.link_address()
    }

    /// Where visitors connect, by listener.
    pub(crate) fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.handle.addresses().into_iter().find(|(n, _)| n == name).map(|(_, address)| address)
    }

    /// Which interface to the kernel runs.
    pub(crate) fn io(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What is believed of a service's backend at this address; `None`: no agent with a link exposes it.
    pub(crate) fn health(&self, service: &str, address: SocketAddr) -> Option<Health> {
        self.hall.health(service, address)
    }

    /// Answers what `ringspan token` asks.
    pub(crate) fn office(&self) -> Arc<Office> {
        self.office.clone()
    }

    /// Ends when a worker has ended that should not have: nothing can be promised any more.
    pub(crate) async fn broken(&self) {
        loop {
            tokio::time::sleep(WATCH).await;
            if !self.engine.lock().unwrap_or_else(PoisonError::into_inner).is_whole() {
                tracing::error!(
                    "a worker has died; its panic stands above. Stopping, so that a supervisor starts us anew"
                );
                return;
            }
        }
    }

    /// Lets nobody in any more, tells agents, and waits until the last visitor has gone, or for `patience`.
    pub(super) async fn drain(&mut self, patience: Duration) {
        self.handle.drain();
        let until = tokio::time::Instant::now() + patience;
        self.doors.drain(until).await;
        // Whoever was accepted in the last moment is a stream within a turn.
        tokio::time::sleep(WATCH.min(patience)).await;
        visitors_gone(&self.handle, until).await;
    }

    /// Stops in order: no new requests, then the workers, then the store.
    pub(crate) async fn stop(mut self) {
        tracing::info!("bridge stops");
        let _ = self.stop.send(true);
        self.doors.drain(tokio::time::Instant::now()).await;
        let _ = self.http.await;
        for server in [self.grpc, self.dns].into_iter().flatten() {
            let _ = server.await;
        }
        let (engine, registry, tasks) = (self.engine, self.registry, self.tasks);
        let access = self.hall.access.clone();
        let _ = tokio::task::spawn_blocking(move || engine.lock().unwrap_or_else(PoisonError::into_inner).stop()).await;
        for task in tasks.into_iter().chain([self.pump]) {
            task.abort();
            let _ = task.await;
        }
        let _ = tokio::task::spawn_blocking(move || {
            registry.stop();
            access.stop();
        })
        .await;
        tracing::info!("bridge has stopped");
    }
}

fn bridge_options(
    config: &Config,
    listeners: Vec<Listener>,
    tls: Option<ringspan_tunnel::tls::ServerTls>,
    software: &str,
) -> BridgeOptions {
    BridgeOptions {
        link: config.link.listen,
        tls,
        listeners,
        handshakes_max: HANDSHAKES_MAX,
        steer: true,
        streams_max: STREAMS_MAX,
        memory: config.memory,
        software: software.to_owned(),
        plane: machine::plane_options(),
    }
}

/// Microseconds since 1970: above every session number of an earlier run, unless the clock was set back, and then only
/// until it has caught up.
fn first_session() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::try_from(d.as_micros()).unwrap_or(1))
}

/// Ends with the last visitor, or then.
pub(super) async fn visitors_gone(handle: &BridgeHandle, until: tokio::time::Instant) {
    while handle.stats().streams_open > 0 && tokio::time::Instant::now() < until {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

/// Where the registry's records are, by the configuration.
pub(crate) fn registry_options(config: &Config) -> RegistryOptions {
    let path = Some(config.data_dir.join(REGISTRY_FILE));
    RegistryOptions { path, cluster: config.cluster.clone(), ..RegistryOptions::default() }
}
