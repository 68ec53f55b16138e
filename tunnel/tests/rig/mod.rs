//! A bridge and an agent in one process, on real workers and real sockets, with a control plane that lets everybody in
//! and routes by health. Nothing here sleeps: waits are for events, and a wait that lasts a minute fails the test.

#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod backend;
pub(crate) mod cable;

use ringspan_engine::health::Health;
use ringspan_engine::kernel::{Backend as IoBackend, Socket, TIER_VARIABLE, Tier};
use ringspan_engine::mailbox::Wake;
use ringspan_engine::outcome::Code;
use ringspan_engine::time::Instant as EngineInstant;
use ringspan_engine::worker::{WorkerOptions, Workers};
use ringspan_tunnel::agent::{Agent, AgentEvent, AgentHandle, AgentOptions, Backend as AgentBackend, Reach};
use ringspan_tunnel::bridge::{
    Bridge, BridgeEvent, BridgeEvents, BridgeHandle, BridgeOptions, CarrierMode, Gate, Inherited, Listener,
    PlaneOptions,
};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::health_feed::BackendHealth;
use ringspan_tunnel::hello::{Expose, Introduction, Limits, ServiceName, SessionId, Welcome};
use ringspan_tunnel::identity::{AgentId, AgentKey, AgentName};
use ringspan_tunnel::memory::MemoryLimits;
use ringspan_tunnel::mux::OpenInfo;
use ringspan_tunnel::routes::{Backend, Load, Policy, Routes};
use ringspan_tunnel::stats::Stats;
use ringspan_tunnel::tls::{ClientTls, ServerTls};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Long enough for a debug build on a busy machine; reached only by a bug.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Rings a thread that waits for events.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    cond: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.cond.notify_all();
    }
}

impl Bell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.cond.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// What was logged, for tests to wait on.
#[derive(Default)]
pub(crate) struct Log {
    lines: Mutex<Vec<String>>,
    cond: Condvar,
}

impl Log {
    fn add(&self, line: String) {
        self.lines.lock().unwrap().push(line);
        self.cond.notify_all();
    }

    /// Waits until `n` lines hold the text.
    pub(crate) fn wait_for(&self, text: &str, n: usize) {
        let started = Instant::now();
        let mut lines = self.lines.lock().unwrap();
        while lines.iter().filter(|line| line.contains(text)).count() < n {
            assert!(started.elapsed() < PATIENCE, "no {n} lines with {text:?} in {lines:#?}");
            lines = self.cond.wait_timeout(lines, Duration::from_secs(1)).unwrap().0;
        }
    }

    /// What a failed test wants to know.
    fn show(&self, whose: &str) {
        if std::thread::panicking() {
            println!("{whose}: {:#?}", self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        }
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) io: IoBackend,
    pub(crate) tls: bool,
    /// Whether the kernel gets the keys, where it can use them.
    pub(crate) ktls: bool,
    pub(crate) workers: usize,
    pub(crate) carriers: u8,
    pub(crate) window_bytes: u32,
    pub(crate) memory: MemoryLimits,
    pub(crate) carrier: CarrierMode,
    /// Whether visitors come to where links are. Off, so that some are handed over.
    pub(crate) steers: bool,
}

pub(crate) const MEMORY: MemoryLimits = MemoryLimits {
    window_bytes_max: 16 << 20,
    carrier_growth_bytes_max: 64 << 20,
    growth_bytes_max: 256 << 20,
    held_bytes_max: 512 << 20,
};

pub(crate) const RING: Shape = Shape {
    io: IoBackend::Ring,
    tls: false,
    ktls: true,
    workers: 2,
    carriers: 2,
    window_bytes: 256 << 10,
    memory: MEMORY,
    carrier: CarrierMode::Mux,
    steers: false,
};
pub(crate) const EPOLL: Shape = Shape { io: IoBackend::Epoll, ..RING };

/// Both kinds of `Io`, with and without TLS.
pub(crate) const SHAPES: [Shape; 4] = [RING, EPOLL, Shape { tls: true, ..RING }, Shape { tls: true, ..EPOLL }];

/// Streams leave the mux early, so that small ones show what happens then.
fn soon_bulk() -> PlaneOptions {
    PlaneOptions { move_bytes: 512 << 10, ..PlaneOptions::default() }
}

/// What the shape asks for; where the tests are held at epoll (`RINGSPAN_IO_TIER=epoll`), that.
fn io(shape: Shape) -> IoBackend {
    let is_held = std::env::var(TIER_VARIABLE).is_ok_and(|tier| tier == Tier::Epoll.as_str());
    if is_held { IoBackend::Epoll } else { shape.io }
}

pub(crate) struct BridgeRig {
    workers: Option<Workers>,
    pub(crate) handle: BridgeHandle,
    pub(crate) log: Arc<Log>,
    tls: Option<ServerTls>,
    io: IoBackend,
    stop: Arc<AtomicBool>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
    policies: Policies,
    _data: tempfile::TempDir,
}

/// By service; the default for the others.
type Policies = Arc<Mutex<HashMap<String, Arc<Policy>>>>;

/// A bridge with one listener for each service.
pub(crate) fn bridge(shape: Shape, services: &[&str]) -> BridgeRig {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listeners = services.iter().map(|name| Listener {
        address: local,
        gate: Arc::new(Gate { carrier: shape.carrier, ..Gate::new(*name, service(name)) }),
    });
    let bridge = bridge_inheriting(shape, listeners.collect(), Inherited::default());
    bridge.handle.hold_visitors(false);
    bridge
}

/// A bridge with these listeners, and listening sockets from elsewhere; it holds its visitors.
pub(crate) fn bridge_inheriting(shape: Shape, listeners: Vec<Listener>, inherited: Inherited) -> BridgeRig {
    let data = tempfile::tempdir().unwrap();
    let tls = shape.tls.then(|| ServerTls::self_signed(data.path()).unwrap().with_ktls(shape.ktls));
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let options = BridgeOptions {
        link: local,
        tls: tls.clone(),
        listeners,
        handshakes_max: 64,
        steer: shape.steers,
        streams_max: 16_384,
        memory: shape.memory,
        software: "test".into(),
        plane: soon_bulk(),
    };
    let bell = Arc::new(Bell::default());
    let seats = Workers::plan(shape.workers).unwrap();
    let Bridge { residents, handle, events } = Bridge::inheriting(&options, &seats, bell.clone(), inherited).unwrap();
    handle.hold_visitors(true);
    let seats = seats.into_iter().zip(residents).map(|(seat, resident)| (seat, vec![resident])).collect();
    let workers = Workers::start(&WorkerOptions { backend: io(shape), pin: false, batch: false }, seats).unwrap();
    let (log, stop) = (Arc::new(Log::default()), Arc::new(AtomicBool::new(false)));
    let policies = Policies::default();
    let office = Office {
        events,
        handle: handle.clone(),
        log: log.clone(),
        window_bytes: shape.window_bytes,
        generations: HashMap::new(),
        agents: HashMap::new(),
        loads: HashMap::new(),
        policies: policies.clone(),
    };
    let thread = {
        let (bell, stop) = (bell.clone(), stop.clone());
        std::thread::spawn(move || office.run(&bell, &stop))
    };
    let (workers, thread, io) = (Some(workers), Some(thread), io(shape));
    BridgeRig { workers, handle, log, tls, io, stop, bell, thread, policies, _data: data }
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::try_from(name.to_owned()).unwrap()
}

/// The control plane.
struct Office {
    events: BridgeEvents,
    handle: BridgeHandle,
    log: Arc<Log>,
    window_bytes: u32,
    generations: HashMap<SessionId, u64>,
    agents: HashMap<AgentId, (u64, Vec<Expose>, Vec<Health>)>,
    loads: HashMap<(AgentId, u64, usize), Load>,
    policies: Policies,
}

impl Office {
    fn run(mut self, bell: &Bell, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            while let Some(event) = self.events.try_event() {
                self.on_event(event);
            }
            bell.wait();
        }
    }

    fn on_event(&mut self, event: BridgeEvent) {
        match event {
            BridgeEvent::Hello { link, applicant, .. } => {
                let next = self.generations.len() as u64 + 1;
                let generation = *self.generations.entry(applicant.session).or_insert(next);
                let limits = Limits { window_bytes: self.window_bytes, frame_bytes_max: 256 << 10 };
                let welcome =
                    Welcome { agent: applicant.agent, generation, limits, software: "test".into(), opened: None };
                self.handle.decide(link, Ok(welcome));
            }
            BridgeEvent::AgentUp { agent, applicant, generation, .. } => {
                let unknown = vec![Health::Unknown; applicant.exposes.len()];
                // A newer session says at once how its backends are: until then visitors go where they went.
                if self.agents.insert(agent, (generation, applicant.exposes, unknown)).is_none() {
                    self.publish();
                }
                self.log.add(format!("up {agent}"));
            }
            BridgeEvent::AgentGone { agent, generation, reason, detail } => {
                if self.agents.get(&agent).is_some_and(|known| known.0 == generation) {
                    self.agents.remove(&agent);
                }
                self.publish();
                self.log.add(format!("gone {agent} {reason} {detail}"));
            }
            BridgeEvent::Health { agent, generation, changes } => {
                if let Some(known) = self.agents.get_mut(&agent).filter(|known| known.0 == generation) {
                    for change in &changes {
                        known.2[usize::from(change.backend)] = change.after.health;
                    }
                }
                self.publish();
                for change in changes {
                    self.log.add(format!("health {agent} {} {:?}", change.backend, change.after.health));
                }
            }
            BridgeEvent::Sighted { agent, sights, .. } => self.log.add(format!("sighted {agent} {}", sights.len())),
            BridgeEvent::Carriers { agent, count } => self.log.add(format!("carriers {agent} {count}")),
            BridgeEvent::DialFailed { backend, reason, .. } => self.log.add(format!("dial failed {backend} {reason}")),
            BridgeEvent::Ejected { agent, backend, reason, .. } => {
                self.log.add(format!("ejected {agent} {backend} {reason}"));
            }
            BridgeEvent::VisitorsRefused { listener, reason, count } => {
                for _ in 0..count {
                    self.log.add(format!("refused {listener} {reason}"));
                }
            }
            BridgeEvent::HandshakesFailed { reason, count, example } => {
                for _ in 0..count {
                    self.log.add(format!("handshake {reason} {example}"));
                }
            }
        }
    }

    fn publish(&mut self) {
        let mut services: HashMap<String, Vec<Backend>> = HashMap::new();
        for (&agent, (session, exposes, health)) in &self.agents {
            for (index, expose) in exposes.iter().enumerate() {
                let backend = Backend {
                    health: health[index],
                    priority: expose.priority,
                    proxy: expose.proxy_protocol,
                    load: self.loads.entry((agent, *session, index)).or_default().clone(),
                    ..Backend::new(agent, *session, index as u16)
                };
                services.entry(expose.service.as_str().to_owned()).or_default().push(backend);
            }
        }
        let policies = self.policies.lock().unwrap();
        let policy = |name: &str| policies.get(name).cloned().unwrap_or_default();
        self.handle.set_routes(Arc::new(Routes::with_policies(services, policy)));
    }
}

/// Waits until it is so.
pub(crate) fn until(mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "it never became so");
        std::thread::yield_now();
    }
}

impl BridgeRig {
    /// How the service's visitors are treated: from the next agent that comes up on.
    pub(crate) fn set_policy(&self, service: &str, policy: Policy) {
        self.policies.lock().unwrap().insert(service.into(), Arc::new(policy));
    }

    pub(crate) fn visit(&self, listener: usize) -> TcpStream {
        let stream = TcpStream::connect(self.handle.addresses()[listener].1).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// An agent of this bridge, up and with all its backends healthy.
    pub(crate) fn agent(&self, shape: Shape, backends: &[(&str, SocketAddr)]) -> AgentRig {
        let exposes = backends.iter().map(|(name, address)| Expose::new(service(name), address.to_string())).collect();
        self.agent_exposing(shape, exposes)
    }

    /// The same with wishes.
    pub(crate) fn agent_exposing(&self, shape: Shape, exposes: Vec<Expose>) -> AgentRig {
        let backends = exposes.len();
        let identity = AgentKey::generate(AgentName::try_from("test".to_owned()).unwrap());
        let agent = self.agent_of(identity, shape, self.handle.link_address(), exposes, None);
        self.wait_for(&agent, shape, backends);
        agent
    }

    /// An agent whose connections to the bridge are made by this.
    pub(crate) fn agent_reaching(&self, shape: Shape, backends: &[(&str, SocketAddr)], connect: Connect) -> AgentRig {
        let exposes = backends.iter().map(|(name, address)| Expose::new(service(name), address.to_string())).collect();
        let identity = AgentKey::generate(AgentName::try_from("test".to_owned()).unwrap());
        self.agent_of(identity, shape, self.handle.link_address(), exposes, Some(connect))
    }

    /// Until the agent is up with all its backends.
    pub(crate) fn wait_for(&self, agent: &AgentRig, shape: Shape, backends: usize) {
        let id = agent.id;
        for backend in 0..backends {
            self.log.wait_for(&format!("health {id} {backend} Up"), 1);
        }
        if shape.carriers > 1 {
            self.log.wait_for(&format!("carriers {id} {}", shape.carriers), 1);
        }
    }

    /// An agent that connects to another address, and is not waited for.
    pub(crate) fn agent_via(&self, shape: Shape, bridge: SocketAddr, backends: &[(&str, SocketAddr)]) -> AgentRig {
        self.agent_as(AgentKey::generate(AgentName::try_from("test".to_owned()).unwrap()), shape, bridge, backends)
    }

    /// The same with this identity.
    pub(crate) fn agent_as(
        &self,
        identity: AgentKey,
        shape: Shape,
        bridge: SocketAddr,
        backends: &[(&str, SocketAddr)],
    ) -> AgentRig {
        let exposes = backends.iter().map(|(name, address)| Expose::new(service(name), address.to_string())).collect();
        self.agent_of(identity, shape, bridge, exposes, None)
    }

    fn agent_of(
        &self,
        identity: AgentKey,
        shape: Shape,
        bridge: SocketAddr,
        exposes: Vec<Expose>,
        connect: Option<Connect>,
    ) -> AgentRig {
        let id = identity.id();
        let backends: Vec<SocketAddr> = exposes.iter().map(|expose| expose.address.parse().unwrap()).collect();
        let options = AgentOptions {
            bridge: vec![bridge],
            host: "localhost".into(),
            tls: self.tls.as_ref().map(|tls| ClientTls::pinned(tls.fingerprint()).with_ktls(shape.ktls)),
            introduction: Introduction {
                identity,
                token: None,
                session: SessionId::generate(),
                exposes,
                watches: 0,
                software: "test".into(),
            },
            carriers: shape.carriers,
            backends: backends.iter().map(|address| reached(*address)).collect(),
            dial_timeout: Duration::from_secs(5),
            memory: shape.memory,
            direct_max: 64,
            plane: soon_bulk(),
            reach: if connect.is_some() { Reach::Ask } else { Reach::Dial },
        };
        let bell = Arc::new(Bell::default());
        let seats = Workers::plan(shape.workers).unwrap();
        let Agent { residents, handle, mut events } = Agent::new(options, &seats, bell.clone());
        for backend in 0..backends.len() {
            let since = EngineInstant::from_ns(1);
            let up = BackendHealth { health: Health::Up, code: Some(Code::L4Ok), since, rtt_us: None };
            handle.set_health(backend as u16, up);
        }
        let seats = seats.into_iter().zip(residents).map(|(seat, resident)| (seat, vec![resident])).collect();
        let workers = Workers::start(&WorkerOptions { backend: self.io, pin: false, batch: false }, seats).unwrap();
        let (log, stop) = (Arc::new(Log::default()), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (bell, stop, log, handle) = (bell.clone(), stop.clone(), log.clone(), handle.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    while let Some(event) = events.try_event() {
                        if let AgentEvent::Ask { ask, info, .. } = &event {
                            handle.answer(*ask, dial(info));
                        }
                        if let (AgentEvent::Reach { call }, Some(connect)) = (&event, &connect) {
                            handle.reached(*call, connect());
                        }
                        log.add(agent_line(event));
                    }
                    bell.wait();
                }
            })
        };
        AgentRig { id, workers: Some(workers), handle, log, stop, bell, thread: Some(thread) }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.handle.stats()
    }
}

/// A connection to the bridge, or why there is none.
pub(crate) type Connect = Box<dyn Fn() -> Result<Socket, (Reason, String)> + Send>;

/// Port 0: the control plane is asked.
fn reached(address: SocketAddr) -> AgentBackend {
    if address.port() == 0 { AgentBackend::Ask } else { address.into() }
}

/// The control plane's answer to an ask: a connection to the target.
fn dial(info: &OpenInfo) -> Result<Socket, Reason> {
    let target = info.target.as_deref().ok_or(Reason::UnknownBackend)?;
    TcpStream::connect(target).map(|stream| Socket::from_owned(stream.into())).map_err(|_| Reason::DialRefused)
}

fn agent_line(event: AgentEvent) -> String {
    match event {
        AgentEvent::Up { carrier, .. } => format!("up {carrier}"),
        AgentEvent::Down { carrier, reason, detail, .. } => format!("down {carrier} {reason} {detail}"),
        AgentEvent::Refused { carrier, refusal, .. } => format!("refused {carrier} {refusal}"),
        AgentEvent::Reach { .. } => "reach".into(),
        AgentEvent::Ask { backend, info, .. } => format!("asked {backend} {:?}", info.target),
        AgentEvent::Watch(orders) => format!("watch {}", orders.add.len()),
        AgentEvent::DialFailed { backend, reason } => format!("dial failed {backend} {reason}"),
    }
}

pub(crate) struct AgentRig {
    pub(crate) id: AgentId,
    workers: Option<Workers>,
    pub(crate) handle: AgentHandle,
    pub(crate) log: Arc<Log>,
    stop: Arc<AtomicBool>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl AgentRig {
    pub(crate) fn stop(self) {}
}

fn end(workers: &mut Option<Workers>, stop: &AtomicBool, bell: &Bell, thread: &mut Option<JoinHandle<()>>) {
    if let Some(workers) = workers.take() {
        if !std::thread::panicking() {
            assert!(workers.is_whole(), "a worker panicked");
        }
        workers.stop();
    }
    stop.store(true, Ordering::Release);
    bell.wake();
    let ended = thread.take().unwrap().join();
    assert!(ended.is_ok() || std::thread::panicking());
}

/// What a failed test wants to know, too: what is open, held or moved.
fn show(stats: &Stats) {
    if std::thread::panicking() {
        println!("{stats:?}");
    }
}

impl Drop for AgentRig {
    fn drop(&mut self) {
        self.log.show("agent");
        show(&self.handle.stats());
        end(&mut self.workers, &self.stop, &self.bell, &mut self.thread);
    }
}

impl Drop for BridgeRig {
    fn drop(&mut self) {
        self.log.show("bridge");
        show(&self.handle.stats());
        end(&mut self.workers, &self.stop, &self.bell, &mut self.thread);
    }
}
