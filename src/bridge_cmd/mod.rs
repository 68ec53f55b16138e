//! `ringspan bridge`: puts engine, tunnel, registry and control plane together and keeps them until a signal.
//!
//! ```text
//! workers (pinned): prober + bridge's data path        control plane (tokio): http, registry prober, pump, admin
//! ```
//! [`BridgeServer`] is all of it without flags and signals; `ringspan demo` runs the same one.

mod metrics;
mod pump;
mod sessions;

use crate::config::bridge::Bridge as Config;
use crate::config::doors::Door;
use crate::doors::secret::listener::House;
use crate::doors::{self, Doors};
use crate::http_server::HttpServer;
use crate::keyring::Keyring;
use crate::machine::Signals;
use crate::office::{Floor, Office};
use crate::token_cmd::{protection, public_address};
use crate::{Ending, Failure, admin, cli, machine};
use pump::{Bell, Hall};
use ringspan_engine::engine::{Engine, Options as EngineOptions};
use ringspan_engine::health::Health;
use ringspan_engine::kernel::Capabilities;
use ringspan_engine::worker::Workers;
use ringspan_registry::prober;
use ringspan_registry::push::Hub;
use ringspan_registry::push::udp::UdpPusher;
use ringspan_registry::{Options as RegistryOptions, Registry, http};
use ringspan_tunnel::bridge::{Bridge, BridgeError, BridgeHandle, BridgeOptions, Listener};
use ringspan_tunnel::identity::{AgentId, AgentName};
use sessions::Sessions;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The registry's file in the data folder.
const REGISTRY_FILE: &str = "registry.redb";
/// Connections to one worker's link port that have not proved who they are.
const HANDSHAKES_MAX: usize = 256;
/// Streams on one carrier.
const STREAMS_MAX: u16 = 16_384;
/// How often the workers are looked at.
const WATCH: Duration = Duration::from_millis(500);

/// Runs the subcommand until a signal.
pub(crate) fn run(args: &cli::Bridge) -> Result<Ending, Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    };
    machine::prepare();
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::catch();
        let server = BridgeServer::start(&config)?;
        if args.config.is_none() {
            tracing::info!(
                data_dir = %config.data_dir.display(),
                "no --config: data in this folder, listening on loopback alone. Try: ringspan token create"
            );
        }
        let ending = tokio::select! {
            () = signals.caught() => Ending::Good,
            () = server.broken() => Ending::Down,
        };
        server.stop().await;
        Ok(ending)
    })
}

/// The registry's cluster of an agent.
pub(crate) fn cluster(name: &AgentName, agent: AgentId) -> String {
    sessions::cluster(name, agent)
}

/// A running bridge.
pub(crate) struct BridgeServer {
    engine: Arc<Mutex<Engine>>,
    capabilities: Capabilities,
    handle: BridgeHandle,
    doors: Doors,
    registry: Registry,
    hall: Arc<Hall>,
    office: Arc<Office>,
    http_address: SocketAddr,
    stop: watch::Sender<bool>,
    http: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl BridgeServer {
    /// Opens, binds and starts everything, or says what is in the way. Needs a runtime.
    pub(crate) fn start(config: &Config) -> Result<BridgeServer, Failure> {
        let run = |text: String| Failure::Run(text);
        let keyring = Arc::new(Keyring::open(&config.data_dir).map_err(|e| run(e.to_string()))?);
        let (tls, trust) = protection(config)?;
        let path = Some(config.data_dir.join(REGISTRY_FILE));
        let registry =
            Registry::open(&RegistryOptions { path, ..RegistryOptions::default() }).map_err(|e| run(e.to_string()))?;
        let http_server = HttpServer::bind(config.http_listen)
            .map_err(|e| run(cannot_listen("[http] listen", config.http_listen, &e)))?;
        let http_address = http_server.address().map_err(|e| run(e.to_string()))?;
        let admin = admin::Admin::listen(&config.data_dir)
            .map_err(|e| run(format!("{}: {e}", config.data_dir.join(admin::SOCKET).display())))?;

        let defaults = EngineOptions::default();
        let engine_options = EngineOptions {
            workers: config.engine.workers.map_or(defaults.workers, |n| n.get().into()),
            backend: config.engine.backend.into(),
            ..defaults
        };
        let software = format!("ringspan/{}", env!("CARGO_PKG_VERSION"));
        let (link_bell, probe_bell) = (Arc::new(Bell::default()), prober::Bell::default());
        let seats = Workers::plan(engine_options.workers).map_err(|e| run(format!("eventfd: {e}")))?;
        let bridge = Bridge::new(&bridge_options(config, tls.clone(), &software)?, &seats, link_bell.clone());
        let Bridge { residents, handle, events } = bridge.map_err(|e| run(bind_error(&e)))?;
        let planned = seats.into_iter().zip(residents.into_iter().map(|resident| vec![resident])).collect();
        let (engine, feed) =
            Engine::start_on(&engine_options, Arc::new(probe_bell.clone()), planned).map_err(|e| run(e.to_string()))?;
        let house = House { handle: handle.clone(), keyring: keyring.clone(), tls };
        let mut doors = Doors::new(house);
        doors.apply(&config.listeners)?;
        let (probes, capabilities) = (engine.probes(), engine.capabilities().clone());
        let engine = Arc::new(Mutex::new(engine));

        let mut sessions = Sessions::new(first_session());
        sessions.set_policies(config.policies.clone());
        let hall = Arc::new(Hall {
            handle: handle.clone(),
            keyring: keyring.clone(),
            registry: registry.clone(),
            sessions: Mutex::new(sessions),
            software,
            runtime: tokio::runtime::Handle::current(),
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
        let hub = Hub::default();
        let udp = UdpPusher::bind(http_address, hub.clone()).map_err(|e| run(format!("udp pushes: {e}")))?;
        let router = http::router(
            registry.clone(),
            http::Options {
                probe_stats: Some(probe_stats),
                hub: hub.clone(),
                udp: Some(udp.clone()),
                more: Some(metrics::of(handle.clone(), doors.tally(), doors.http_stats())),
            },
        );
        let http = tokio::spawn(http_server.serve(router, stopping));
        let tasks = vec![
            tokio::spawn(pump::run(hall.clone(), events, link_bell)),
            tokio::spawn(hub.run(registry.clone())),
            tokio::spawn(udp.run()),
            tokio::spawn(prober::run(registry.clone(), (probes, feed), probe_bell, prober::policy_default())),
            tokio::spawn(admin.serve(office.clone())),
        ];
        let server = BridgeServer {
            engine,
            capabilities,
            handle,
            doors,
            registry,
            hall,
            office,
            http_address,
            stop,
            http,
            tasks,
        };
        server.tell(config);
        Ok(server)
    }

    fn tell(&self, config: &Config) {
        let (link, data_dir) = (self.link_address(), config.data_dir.display());
        let doors = self.doors.addresses().map(|(name, address)| (name.to_owned(), address));
        for (name, address) in self.handle.addresses().into_iter().chain(doors) {
            let service = config.listeners.iter().find(|l| l.name == name).map(|l| l.service.as_str());
            tracing::info!(name, %address, service, "listener");
        }
        if !self.http_address.ip().is_loopback() {
            tracing::warn!(http = %self.http_address, "the registry has no accounts: whoever reaches it may change it");
        }
        let tls = self.office.trust != ringspan_tunnel::fingerprint::Trust::Plain;
        tracing::info!(http = %self.http_address, %link, tls, %data_dir, io = %self.capabilities, "bridge is up");
        if tls {
            crate::machine::tell_ktls(config.link.ktls);
        }
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

    /// Stops in order: no new requests, then the workers, then the store.
    pub(crate) async fn stop(self) {
        tracing::info!("bridge stops");
        let _ = self.stop.send(true);
        self.doors.stop().await;
        let _ = self.http.await;
        let (engine, registry, tasks) = (self.engine, self.registry, self.tasks);
        let _ = tokio::task::spawn_blocking(move || engine.lock().unwrap_or_else(PoisonError::into_inner).stop()).await;
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        let _ = tokio::task::spawn_blocking(move || registry.stop()).await;
        tracing::info!("bridge has stopped");
    }
}

fn bridge_options(
    config: &Config,
    tls: Option<ringspan_tunnel::tls::ServerTls>,
    software: &str,
) -> Result<BridgeOptions, Failure> {
    let plain = config.listeners.iter().filter(|l| l.door == Door::Tcp);
    let listeners = plain.map(|l| Ok(Listener { address: l.listen, gate: doors::gate(l)? }));
    Ok(BridgeOptions {
        link: config.link.listen,
        tls,
        listeners: listeners.collect::<Result<_, Failure>>()?,
        handshakes_max: HANDSHAKES_MAX,
        streams_max: STREAMS_MAX,
        memory: config.memory,
        software: software.to_owned(),
        plane: machine::plane_options(),
    })
}

fn bind_error(error: &BridgeError) -> String {
    match error {
        BridgeError::Bind { listener, address, error } if listener == "link" => {
            cannot_listen("[link] listen", *address, error)
        }
        BridgeError::Bind { listener, address, error } => {
            cannot_listen(&format!("[[listener]] {listener:?} listen"), *address, error)
        }
    }
}

pub(crate) fn cannot_listen(key: &str, address: SocketAddr, error: &std::io::Error) -> String {
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => "stop the process that has it (ss -ltnp shows it), or take another port",
        std::io::ErrorKind::PermissionDenied => "a port above 1023, or CAP_NET_BIND_SERVICE for this program",
        std::io::ErrorKind::AddrNotAvailable => "an address that this machine has (ip address shows them)",
        _ => "ringspan doctor",
    };
    format!("{key} = \"{address}\": cannot listen: {error}. Try: {remedy}")
}

/// Microseconds since 1970: above every session number of an earlier run, unless the clock was set back, and then only
/// until it has caught up.
fn first_session() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::try_from(d.as_micros()).unwrap_or(1))
}
