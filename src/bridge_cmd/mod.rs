//! `ringspan bridge`: puts engine, tunnel, registry and control plane together and keeps them until a signal.
//!
//! ```text
//! workers (pinned): prober + bridge's data path        control plane (tokio): http, registry prober, pump, admin
//! ```
//! [`BridgeServer`] is all of it without flags and signals; `ringspan demo` runs the same one.

mod listeners;
mod metrics;
mod pump;
mod sessions;
mod takeover;

use crate::config::bridge::Bridge as Config;
use crate::doors::Doors;
use crate::doors::secret::listener::House;
use crate::http_server::HttpServer;
use crate::keyring::Keyring;
use crate::machine::Signals;
use crate::office::{Floor, Office};
use crate::token_cmd::{protection, public_address};
use crate::watch_file::{WatchFile, Why};
use crate::{Ending, Failure, admin, cli, machine};
use pump::{Bell, Hall};
use ringspan_engine::engine::{Engine, Options as EngineOptions};
use ringspan_engine::health::Health;
use ringspan_engine::kernel::handover::Waiting;
use ringspan_engine::kernel::{Capabilities, Socket};
use ringspan_engine::worker::Workers;
use ringspan_registry::prober;
use ringspan_registry::push::Hub;
use ringspan_registry::push::udp::UdpPusher;
use ringspan_registry::{Options as RegistryOptions, Registry, http};
use ringspan_tunnel::bridge::{Bridge, BridgeError, BridgeHandle, BridgeOptions, Inherited};
use ringspan_tunnel::identity::{AgentId, AgentName};
use sessions::Sessions;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use takeover::{Estate, Predecessor, Successor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The registry's file in the data folder.
const REGISTRY_FILE: &str = "registry.redb";
/// Connections to one worker's link port that have not proved who they are.
const HANDSHAKES_MAX: usize = 256;
/// Streams on one carrier.
const STREAMS_MAX: u16 = 16_384;
/// Visitors of a bridge whose place another one has taken have this long: a working day's longest calls.
const DRAIN_MAX: Duration = Duration::from_secs(12 * 3600);
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
        let mut watch = WatchFile::new(args.config.as_deref());
        let mut upgrade = signal(SignalKind::user_defined2()).expect("a runtime with signals can listen for them");
        crate::inherit::put(ringspan_engine::kernel::handover::listen_fds());
        let folder = config.data_dir.clone();
        let predecessor = match args.takeover {
            false => None,
            true => tokio::task::spawn_blocking(move || Predecessor::ask(&folder)).await.map_err(panicked)??,
        };
        let mut server = BridgeServer::start_with(&config, predecessor.is_some())?;
        if args.config.is_none() {
            tracing::info!(
                data_dir = %config.data_dir.display(),
                "no --config: data in this folder, listening on loopback alone. Try: ringspan token create"
            );
        }
        if let Some(mut predecessor) = predecessor {
            predecessor.say("ready");
            takeover::agents_are_here(&server, &predecessor.estate).await;
            server.let_in()?;
            predecessor.say("serving");
            tracing::info!("taken over: visitors are accepted");
        }
        for waiting in crate::inherit::rest() {
            tracing::warn!(address = %waiting.address, udp = waiting.is_udp, "an inherited socket that nobody wants");
        }
        machine::notify_supervisor();
        let mut successors = server.successors.take();
        let ending = loop {
            let event = tokio::select! {
                () = signals.caught() => break Ending::Good,
                () = server.broken() => break Ending::Down,
                why = watch.due() => Event::Reload(why),
                _ = upgrade.recv() => Event::Upgrade,
                Some(stream) = recv(&mut successors) => Event::Successor(stream),
            };
            match event {
                Event::Reload(why) => {
                    if let Some(file) = &args.config {
                        // It has been told.
                        let _ = server.reload(file, why).await;
                    }
                }
                Event::Upgrade => start_successor(),
                Event::Successor(stream) => {
                    let now = server.real_config();
                    let estate = server.estate();
                    let (retired, result) = server.hand_over(stream).await;
                    let Err(error) = result else {
                        tokio::select! {
                            () = signals.caught() => {}
                            () = retired.drained() => {}
                        }
                        retired.stop().await;
                        return Ok(Ending::Good);
                    };
                    tracing::error!(%error, "whoever was to take over did not: starting over, with the same sockets");
                    crate::inherit::put(retired.sockets()?);
                    server = BridgeServer::start_with(&now, true)?;
                    successors = server.successors.take();
                    retired.handle.call_over("the bridge starts over");
                    takeover::agents_are_here(&server, &estate).await;
                    server.let_in()?;
                    tokio::spawn(async move {
                        let mut retired = retired;
                        retired.leave();
                        retired.drained().await;
                        retired.stop().await;
                    });
                }
            }
        };
        server.stop().await;
        Ok(ending)
    })
}

/// What a running bridge is asked for.
enum Event {
    Reload(Why),
    Upgrade,
    Successor(std::os::unix::net::UnixStream),
}

async fn recv<T>(queue: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    queue.as_mut()?.recv().await
}

fn panicked(error: tokio::task::JoinError) -> Failure {
    Failure::Run(error.to_string())
}

/// SIGUSR2: the program that is on disk now, with our own arguments, takes over.
fn start_successor() {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if !arguments.iter().any(|a| a == "--takeover") {
        arguments.push("--takeover".into());
    }
    // A program that was replaced on disk is "/path (deleted)" to the kernel: the path is what we want.
    let program = std::env::current_exe().map(|path| match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(path) => path.into(),
        None => path,
    });
    match program.and_then(|program| std::process::Command::new(program).args(arguments).spawn()) {
        Ok(mut child) => {
            tracing::info!(pid = child.id(), "SIGUSR2: a new bridge is to take over");
            std::thread::spawn(move || child.wait());
        }
        Err(error) => tracing::error!(%error, "SIGUSR2: a new bridge cannot be started"),
    }
}

/// The registry's cluster of an agent.
pub(crate) fn cluster(name: &AgentName, agent: AgentId) -> String {
    sessions::cluster(name, agent)
}

/// A running bridge.
pub(crate) struct BridgeServer {
    config: Config,
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
    pump: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    /// Who wants our place.
    successors: Option<mpsc::Receiver<std::os::unix::net::UnixStream>>,
}

impl BridgeServer {
    /// Opens, binds and starts everything, or says what is in the way. Needs a runtime.
    pub(crate) fn start(config: &Config) -> Result<BridgeServer, Failure> {
        BridgeServer::start_with(config, false)
    }

    /// The same; with `hold`, visitors wait until [`let_in`](BridgeServer::let_in).
    fn start_with(config: &Config, hold: bool) -> Result<BridgeServer, Failure> {
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
            batch: config.engine.batch,
            ..defaults
        };
        let software = format!("ringspan/{}", env!("CARGO_PKG_VERSION"));
        let (link_bell, probe_bell) = (Arc::new(Bell::default()), prober::Bell::default());
        let seats = Workers::plan(engine_options.workers).map_err(|e| run(format!("eventfd: {e}")))?;
        let options = bridge_options(config, tls.clone(), &software)?;
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
        let house = House { handle: handle.clone(), keyring: keyring.clone(), tls };
        let mut doors = Doors::new(house);
        if !hold {
            doors.apply(&config.listeners)?;
        }
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
        let (asked, successors) = mpsc::channel(1);
        let pump = tokio::spawn(pump::run(hall.clone(), events, link_bell));
        let tasks = vec![
            tokio::spawn(hub.run(registry.clone())),
            tokio::spawn(udp.run()),
            tokio::spawn(prober::run(registry.clone(), (probes, feed), probe_bell, prober::policy_default())),
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
            stop,
            http,
            pump,
            tasks,
            successors: Some(successors),
        };
        server.tell(config);
        Ok(server)
    }

    /// Reads the configuration again and does what it says. A bad one changes nothing. What was done, or what is wrong.
    pub(crate) async fn reload(&mut self, file: &Path, why: Why) -> Result<Vec<String>, Failure> {
        let done = match Config::read(file) {
            Ok(config) => self.apply(config).await,
            Err(error) => Err(error.into()),
        };
        match &done {
            Ok(told) if told.is_empty() => {
                tracing::info!(file = %file.display(), ?why, "configuration read again: the same")
            }
            Ok(told) => {
                told.iter().for_each(|line| tracing::info!("{line}"));
                tracing::info!(file = %file.display(), ?why, changes = told.len(), "configuration read again");
            }
            Err(failure) => tracing::error!(%failure, ?why, "configuration not read again: the old one stays"),
        }
        done
    }

    /// Goes over to another configuration, as far as a running bridge can.
    async fn apply(&mut self, config: Config) -> Result<Vec<String>, Failure> {
        let config = self.as_running(config);
        let told = listeners::change(&self.handle, &mut self.doors, &self.config.listeners, &config.listeners).await?;
        for (what, same) in [
            ("data_dir", self.config.data_dir == config.data_dir),
            ("[http]", self.config.http_listen == config.http_listen),
            ("[link]", self.config.link == config.link),
            ("[engine]", self.config.engine == config.engine),
        ] {
            if !same {
                tracing::warn!("{what} has changed: that takes a restart. Try: ringspan bridge again beside this one");
            }
        }
        self.config.listeners = config.listeners;
        Ok(told)
    }

    /// The same, where an address that we have is spelled as it was asked for: port 0 asks for any, and got that one.
    fn as_running(&self, mut config: Config) -> Config {
        let real = self.real_config();
        let keep = |asked: SocketAddr, real: SocketAddr, new: &mut SocketAddr| {
            if *new == real {
                *new = asked;
            }
        };
        keep(self.config.http_listen, real.http_listen, &mut config.http_listen);
        keep(self.config.link.listen, real.link.listen, &mut config.link.listen);
        for (old, real) in self.config.listeners.iter().zip(&real.listeners) {
            if let Some(new) = config.listeners.iter_mut().find(|l| l.name == old.name) {
                keep(old.listen, real.listen, &mut new.listen);
            }
        }
        config
    }

    /// Visitors may come in, from now on.
    fn let_in(&mut self) -> Result<(), Failure> {
        self.handle.hold_visitors(false);
        self.doors.apply(&self.config.listeners)
    }

    /// The configuration, with the real port where 0 was asked for.
    fn real_config(&self) -> Config {
        let mut config = self.config.clone();
        (config.http_listen, config.link.listen) = (self.http_address, self.link_address());
        let doors = self.doors.addresses().map(|(name, address)| (name.to_owned(), address));
        for (name, address) in self.handle.addresses().into_iter().chain(doors) {
            if let Some(listener) = config.listeners.iter_mut().find(|l| l.name == name) {
                listener.listen = address;
            }
        }
        config
    }

    /// Who and what would be missed.
    fn estate(&self) -> Estate {
        let routes = self.handle.routes();
        let is_up = |b: &ringspan_tunnel::routes::Backend| b.health == Health::Up;
        let served = routes.services().filter(|(_, backends)| backends.iter().any(is_up));
        let services = served.map(|(name, _)| name.to_owned()).collect();
        Estate { agents: self.hall.connected(), services, ..Estate::default() }
    }

    /// Gives everything but the visitors to another process; whether it has taken it.
    async fn hand_over(self, stream: std::os::unix::net::UnixStream) -> (Retired, std::io::Result<()>) {
        tracing::info!("another process takes over");
        let estate = self.estate();
        let doors = self.doors.addresses().map(|(_, address)| address);
        let addresses: HashSet<SocketAddr> = self
            .handle
            .addresses()
            .into_iter()
            .map(|(_, address)| address)
            .chain(doors)
            .chain([self.http_address, self.link_address()])
            .collect();
        // Copies: whatever happens, they do not go with us.
        let sockets = takeover::sockets(&addresses);
        self.handle.leave_listeners(false);
        let _ = self.stop.send(true);
        let _ = self.http.await;
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        let (registry, keyring) = (self.registry, self.hall.keyring.clone());
        let _ = tokio::task::spawn_blocking(move || {
            registry.stop();
            keyring.close();
        })
        .await;
        let mut retired = Retired {
            engine: self.engine,
            handle: self.handle,
            doors: Some(self.doors),
            pump: self.pump,
            sockets: None,
        };
        let result = match sockets {
            Ok(sockets) => retired.introduce(stream, estate, sockets).await,
            Err(error) => Err(error),
        };
        if result.is_ok() {
            retired.leave();
        }
        (retired, result)
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
        for task in tasks.into_iter().chain([self.pump]) {
            task.abort();
            let _ = task.await;
        }
        let _ = tokio::task::spawn_blocking(move || registry.stop()).await;
        tracing::info!("bridge has stopped");
    }
}

/// A bridge whose place another one has taken: it carries its visitors to their end.
struct Retired {
    engine: Arc<Mutex<Engine>>,
    handle: BridgeHandle,
    doors: Option<Doors>,
    pump: JoinHandle<()>,
    /// Copies of everything it listened on.
    sockets: Option<Vec<Waiting>>,
}

impl Retired {
    async fn introduce(
        &mut self,
        stream: std::os::unix::net::UnixStream,
        estate: Estate,
        sockets: Vec<Waiting>,
    ) -> std::io::Result<()> {
        let successor = Arc::new(Successor::new(stream)?);
        let sockets = Arc::new(sockets);
        let (to, what) = (successor.clone(), sockets.clone());
        let ready = tokio::task::spawn_blocking(move || {
            to.give(estate, &what)?;
            to.wait("ready")
        })
        .await
        .map_err(std::io::Error::other);
        self.sockets = Arc::into_inner(sockets);
        ready??;
        self.handle.call_over("another process takes over this bridge");
        tokio::task::spawn_blocking(move || successor.wait("serving")).await.map_err(std::io::Error::other)?
    }

    /// Accepts nobody any more.
    fn leave(&mut self) {
        self.handle.leave_listeners(true);
        if let Some(doors) = self.doors.take() {
            // Requests under way are finished.
            tokio::spawn(doors.stop());
        }
        self.sockets = None;
        tracing::info!(visitors = self.handle.stats().streams_open, "handed over: what is left are these visitors");
    }

    /// What it listened on, for another start.
    fn sockets(&self) -> Result<Vec<Waiting>, Failure> {
        let copy = |w: &Waiting| Ok(Waiting { address: w.address, is_udp: w.is_udp, fd: w.fd.try_clone()? });
        let all = self.sockets.iter().flatten().map(copy).collect::<std::io::Result<_>>();
        all.map_err(|e| Failure::Run(format!("the listening sockets cannot be kept: {e}")))
    }

    /// Ends with the last visitor, or when they have had long enough.
    async fn drained(&self) {
        let until = tokio::time::Instant::now() + DRAIN_MAX;
        // Whoever was accepted in the last moment is a stream within a turn.
        tokio::time::sleep(WATCH).await;
        while self.handle.stats().streams_open > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(WATCH).await;
        }
    }

    async fn stop(self) {
        let engine = self.engine;
        let _ = tokio::task::spawn_blocking(move || engine.lock().unwrap_or_else(PoisonError::into_inner).stop()).await;
        self.pump.abort();
        tracing::info!("the old bridge has stopped");
    }
}

fn bridge_options(
    config: &Config,
    tls: Option<ringspan_tunnel::tls::ServerTls>,
    software: &str,
) -> Result<BridgeOptions, Failure> {
    Ok(BridgeOptions {
        link: config.link.listen,
        tls,
        listeners: listeners::plain(&config.listeners)?,
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
