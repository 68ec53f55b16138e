//! A real bridge, a real agent with an echo behind it, a visitor that stays, and a control plane as small as can be.

use ringspan_engine::health::Health;
use ringspan_engine::kernel::Backend;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::outcome::Code;
use ringspan_engine::time::Instant;
use ringspan_engine::worker::{WorkerOptions, Workers};
use ringspan_tunnel::address::Address;
use ringspan_tunnel::agent::{Agent, AgentEvent, AgentHandle, AgentOptions, Reach};
use ringspan_tunnel::bridge::{
    Bridge, BridgeEvent, BridgeHandle, BridgeOptions, CarrierMode, Gate, Listener, PlaneOptions,
};
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::health_feed::BackendHealth;
use ringspan_tunnel::hello::{
    Admission, AgentRecord, Applicant, Expose, Introduction, Limits, ServiceName, SessionId, Welcome, admit,
};
use ringspan_tunnel::identity::{AgentId, AgentKey};
use ringspan_tunnel::routes::{Backend as Place, Routes};
use ringspan_tunnel::tls::{ClientTls, ServerTls};
use ringspan_tunnel::token::{GrantTerms, JoinGrant, JoinToken, TokenId};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long anything is waited for before a test gives up. No test depends on how long it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Rung by a worker, waited for by the control plane.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_all();
    }
}

impl Bell {
    /// Until it rings; now and then without, so that a stop is seen.
    fn wait(&self) {
        let rung = self.rung.lock().unwrap();
        let (mut rung, _) = self.heard.wait_timeout_while(rung, Duration::from_millis(100), |rung| !*rung).unwrap();
        *rung = false;
    }
}

/// What has happened, as text, to wait for.
#[derive(Default)]
pub(crate) struct Journal {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Journal {
    fn note(&self, line: String) {
        self.lines.lock().unwrap().push(line);
        self.more.notify_all();
    }

    /// The first line after `from` that holds all the words, and the place after it.
    pub(crate) fn wait_from(&self, from: usize, words: &[&str]) -> (String, usize) {
        let lines = self.lines.lock().unwrap();
        let find = |lines: &[String]| {
            let found = lines.iter().skip(from).position(|line| words.iter().all(|word| line.contains(word)));
            found.map(|at| (lines[from + at].clone(), from + at + 1))
        };
        let (lines, out) = self.more.wait_timeout_while(lines, PATIENCE, |lines| find(lines).is_none()).unwrap();
        assert!(!out.timed_out(), "nothing with {words:?} in {lines:#?}");
        find(&lines).expect("the wait ended because it is there")
    }

    pub(crate) fn wait(&self, words: &[&str]) -> String {
        self.wait_from(0, words).0
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    pub(crate) fn holds(&self, words: &[&str]) -> bool {
        self.lines.lock().unwrap().iter().any(|line| words.iter().all(|word| line.contains(word)))
    }
}

#[derive(Default)]
struct Keyring {
    grants: HashMap<TokenId, JoinGrant>,
    agents: HashMap<AgentId, AgentRecord>,
    sessions: HashMap<(AgentId, SessionId), u64>,
    present: HashMap<AgentId, (u64, Box<Applicant>, Vec<Health>)>,
}

/// A thread that a flag stops.
struct Helper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn spawn(bell: Arc<Bell>, mut turn: impl FnMut() + Send + 'static) -> Helper {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                bell.wait();
                turn();
            }
        });
        Helper { stop, thread: Some(thread) }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running bridge.
pub(crate) struct World {
    pub(crate) handle: BridgeHandle,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) journal: Arc<Journal>,
    keyring: Arc<Mutex<Keyring>>,
    // In the order they end.
    _workers: Workers,
    _control: Helper,
    _folder: tempfile::TempDir,
}

impl World {
    /// Two workers, one listener for the service `echo`. With TLS on the best backend, without it on epoll: each is
    /// attacked on one of them.
    pub(crate) fn new(with_tls: bool) -> World {
        let folder = tempfile::tempdir().unwrap();
        let tls = with_tls.then(|| ServerTls::self_signed(folder.path()).unwrap());
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = Listener {
            address: anywhere,
            gate: Arc::new(Gate { carrier: CarrierMode::Auto, ..Gate::new("public", service("echo")) }),
        };
        let options = BridgeOptions {
            link: anywhere,
            tls: tls.clone(),
            listeners: vec![listener],
            handshakes_max: 256,
            steer: true,
            streams_max: 1024,
            memory: ringspan_tunnel::memory::MemoryLimits::default(),
            software: "adversary/bridge".into(),
            plane: PlaneOptions { move_bytes: 512 << 10, ..PlaneOptions::default() },
        };
        let bell = Arc::new(Bell::default());
        let seats = Workers::plan(2).unwrap();
        let bridge = Bridge::new(&options, &seats, bell.clone()).unwrap();
        let Bridge { residents, handle, mut events } = bridge;
        let seats = seats.into_iter().zip(residents).map(|(seat, resident)| (seat, vec![resident])).collect();
        let backend = if with_tls { Backend::Auto } else { Backend::Epoll };
        let workers = Workers::start(&WorkerOptions { backend, pin: false, batch: false }, seats).unwrap();
        let (keyring, journal) = (Arc::new(Mutex::new(Keyring::default())), Arc::new(Journal::default()));
        let (keys, notes, steer) = (keyring.clone(), journal.clone(), handle.clone());
        let control = Helper::spawn(bell, move || {
            while let Some(event) = events.try_event() {
                on_event(&mut keys.lock().unwrap(), &notes, &steer, event);
            }
        });
        World { handle, tls, journal, keyring, _workers: workers, _control: control, _folder: folder }
    }

    pub(crate) fn link(&self) -> SocketAddr {
        self.handle.link_address()
    }

    pub(crate) fn public(&self) -> SocketAddr {
        self.handle.addresses()[0].1
    }

    pub(crate) fn token(&self, terms: GrantTerms) -> JoinToken {
        let trust = self.tls.as_ref().map_or(Trust::Plain, |tls| Trust::Pinned(tls.fingerprint()));
        let (token, grant) = JoinToken::create(Address::from(self.link()), trust, terms, 1);
        self.keyring.lock().unwrap().grants.insert(grant.id, grant);
        token
    }

    pub(crate) fn introduction(&self, name: &str) -> Introduction {
        Introduction {
            identity: AgentKey::generate(name.to_owned().try_into().unwrap()),
            token: Some(self.token(GrantTerms::default())),
            session: SessionId::generate(),
            exposes: vec![Expose::new(service("echo"), "echo:7".into())],
            watches: 0,
            software: "adversary/agent".into(),
        }
    }

    /// An honest agent with an echo behind it, up and routable.
    pub(crate) fn agent(&self, name: &str) -> Honest {
        let introduction = self.introduction(name);
        let id = introduction.identity.id().to_string();
        let from = self.journal.len();
        let honest = Honest::start(self, introduction, self.tls.as_ref().map(ServerTls::fingerprint));
        let (_, from) = self.journal.wait_from(from, &["up", &id]);
        let state = BackendHealth { health: Health::Up, code: Some(Code::L4Ok), since: Instant::ZERO, rtt_us: Some(9) };
        honest.handle.set_health(0, state);
        self.journal.wait_from(from, &["health", &id, "Up"]);
        honest
    }

    /// A visitor with a stream that works.
    pub(crate) fn visitor(&self) -> Visitor {
        let socket = TcpStream::connect(self.public()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut visitor = Visitor { socket, count: 0 };
        visitor.ask();
        visitor
    }
}

pub(crate) fn service(name: &str) -> ServiceName {
    name.to_owned().try_into().unwrap()
}

fn on_event(keyring: &mut Keyring, journal: &Journal, bridge: &BridgeHandle, event: BridgeEvent) {
    match event {
        BridgeEvent::Hello { link, applicant, .. } => {
            let record = keyring.agents.get(&applicant.agent);
            let grant = applicant.token.and_then(|id| keyring.grants.get(&id));
            let decision = admit(&applicant, record, grant, 1).map(|admission| {
                if let Admission::Enrols { record, grant } = admission {
                    keyring.grants.insert(grant.id, grant);
                    keyring.agents.insert(record.id, record);
                }
                let next = keyring.sessions.len() as u64 + 1;
                let generation = *keyring.sessions.entry((applicant.agent, applicant.session)).or_insert(next);
                let limits = Limits { window_bytes: 256 << 10, frame_bytes_max: 64 << 10 };
                Welcome { agent: applicant.agent, generation, limits, software: String::new(), opened: None }
            });
            bridge.decide(link, decision);
        }
        BridgeEvent::AgentUp { agent, applicant, generation, .. } => {
            let health = vec![Health::Unknown; applicant.exposes.len()];
            keyring.present.insert(agent, (generation, applicant, health));
            journal.note(format!("up {agent} generation {generation}"));
        }
        BridgeEvent::AgentGone { agent, reason, detail, .. } => {
            keyring.present.remove(&agent);
            publish(keyring, bridge);
            journal.note(format!("gone {agent} {reason} {detail}"));
        }
        BridgeEvent::Health { agent, changes, .. } => {
            for change in changes {
                if let Some((.., health)) = keyring.present.get_mut(&agent) {
                    health[usize::from(change.backend)] = change.after.health;
                }
                // The routes first: who waits for the line may visit at once.
                publish(keyring, bridge);
                journal.note(format!("health {agent} {} {:?}", change.backend, change.after.health));
            }
        }
        other => journal.note(format!("{other:?}")),
    }
    publish(keyring, bridge);
}

fn publish(keyring: &Keyring, bridge: &BridgeHandle) {
    let mut services: HashMap<&str, Vec<Place>> = HashMap::new();
    for (agent, (session, applicant, health)) in &keyring.present {
        for ((index, expose), health) in (0u16..).zip(&applicant.exposes).zip(health) {
            let place = Place { health: *health, weight: expose.weight, ..Place::new(*agent, *session, index) };
            services.entry(expose.service.as_str()).or_default().push(place);
        }
    }
    bridge.set_routes(Arc::new(Routes::new(services)));
}

/// A running agent.
pub(crate) struct Honest {
    pub(crate) handle: AgentHandle,
    pub(crate) journal: Arc<Journal>,
    _workers: Workers,
    _control: Helper,
}

impl Honest {
    /// Whatever it pins; it need not come up.
    pub(crate) fn start(
        world: &World,
        introduction: Introduction,
        pin: Option<ringspan_tunnel::fingerprint::Fingerprint>,
    ) -> Honest {
        Honest::start_at(world.link(), introduction, pin)
    }

    /// The same, at any address.
    pub(crate) fn start_at(
        bridge: SocketAddr,
        introduction: Introduction,
        pin: Option<ringspan_tunnel::fingerprint::Fingerprint>,
    ) -> Honest {
        let options = AgentOptions {
            bridge: vec![bridge],
            host: "127.0.0.1".into(),
            tls: pin.map(ClientTls::pinned),
            introduction,
            carriers: 2,
            backends: vec![echo().into()],
            dial_timeout: Duration::from_secs(5),
            memory: ringspan_tunnel::memory::MemoryLimits::default(),
            direct_max: 8,
            plane: PlaneOptions { move_bytes: 512 << 10, ..PlaneOptions::default() },
            reach: Reach::Dial,
        };
        let bell = Arc::new(Bell::default());
        let seats = Workers::plan(1).unwrap();
        let Agent { residents, handle, mut events } = Agent::new(options, &seats, bell.clone());
        let seats = seats.into_iter().zip(residents).map(|(seat, resident)| (seat, vec![resident])).collect();
        let workers =
            Workers::start(&WorkerOptions { backend: Backend::Auto, pin: false, batch: false }, seats).unwrap();
        let journal = Arc::new(Journal::default());
        let notes = journal.clone();
        let control = Helper::spawn(bell, move || {
            while let Some(event) = events.try_event() {
                notes.note(match event {
                    AgentEvent::Down { detail, reason, .. } => format!("down {reason} {detail}"),
                    AgentEvent::Refused { refusal, .. } => format!("refused {refusal}"),
                    other => format!("{other:?}"),
                });
            }
        });
        Honest { handle, journal, _workers: workers, _control: control }
    }
}

/// An echo server for the life of the process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (socket.try_clone().unwrap(), socket);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    address
}

/// One visitor's stream through the tunnel.
pub(crate) struct Visitor {
    socket: TcpStream,
    count: u64,
}

impl Visitor {
    /// Says something new and hears it back: the very stream of before is alive and whole.
    pub(crate) fn ask(&mut self) {
        self.count += 1;
        let sent = [self.count.to_le_bytes(), (!self.count).to_le_bytes()].concat();
        self.socket.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        self.socket.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
    }
}
