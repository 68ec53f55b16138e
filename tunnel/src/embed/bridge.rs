//! A bridge inside another program: it lets in whoever brings a token that it has made, and sends visitors to what their
//! agents say is up. What it knows of agents goes with it: each start makes new tokens.

use super::{Bell, EmbedError, Threads};
use crate::address::Address;
use crate::bridge::{
    Bridge, BridgeEvent, BridgeEvents, BridgeHandle, BridgeOptions, Gate, LinkId, Listener, PlaneOptions,
};
use crate::credit::WINDOW_BYTES_INITIAL;
use crate::fingerprint::Trust;
use crate::hello::{
    Admission, AgentRecord, Applicant, Expose, Limits, NotAService, Refusal, RefusalCode, SessionId, Welcome, admit,
};
use crate::identity::AgentId;
use crate::memory::MemoryLimits;
use crate::routes::{Backend, Load, Routes};
use crate::stats::Stats;
use crate::tls::ServerTls;
use crate::token::{GrantTerms, JoinGrant, JoinToken, Scope, TokenId};
use ringspan_engine::health::Health;
use ringspan_engine::worker::Workers;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// As `ringspan bridge` has it.
const HANDSHAKES_MAX: usize = 256;
/// As `ringspan bridge` has it.
const STREAMS_MAX: u16 = 16_384;

/// What a bridge is to be like.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// Where agents connect. Default 127.0.0.1, a free port: [`BridgeHost::link_address`].
    pub link: SocketAddr,
    /// What its key is kept in; `None`: no TLS, for loopback and networks that encrypt already.
    pub key_dir: Option<PathBuf>,
    /// Services and where their visitors connect. Default none.
    pub listeners: Vec<(String, SocketAddr)>,
    /// Threads that move bytes, from 1 on. Default 1.
    pub workers: usize,
}

impl Default for BridgeConfig {
    fn default() -> BridgeConfig {
        let link = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        BridgeConfig { link, key_dir: None, listeners: Vec::new(), workers: 1 }
    }
}

/// A running bridge. Dropping it stops it.
pub struct BridgeHost {
    handle: BridgeHandle,
    trust: Trust,
    known: Arc<Mutex<Known>>,
    _threads: Threads,
}

/// Who may come in.
#[derive(Default)]
struct Known {
    grants: HashMap<TokenId, JoinGrant>,
    agents: HashMap<AgentId, AgentRecord>,
}

impl BridgeHost {
    /// Binds and starts.
    ///
    /// # Errors
    /// A port that is taken, a service's name that is none, a key that cannot be read, no threads.
    pub fn start(config: &BridgeConfig) -> Result<BridgeHost, EmbedError> {
        let tls = config.key_dir.as_deref().map(ServerTls::self_signed).transpose()?;
        let trust = tls.as_ref().map_or(Trust::Plain, |tls| Trust::Pinned(tls.fingerprint()));
        let listener = |(name, address): &(String, SocketAddr)| -> Result<Listener, NotAService> {
            let gate = Arc::new(Gate::new(name.clone(), name.clone().try_into()?));
            Ok(Listener { address: *address, gate })
        };
        let listeners: Result<_, _> = config.listeners.iter().map(listener).collect();
        let options = BridgeOptions {
            link: config.link,
            tls,
            listeners: listeners.map_err(|error| EmbedError::Exposes(error.to_string()))?,
            handshakes_max: HANDSHAKES_MAX,
            steer: true,
            streams_max: STREAMS_MAX,
            memory: MemoryLimits::default(),
            software: concat!("ringspan-tunnel/", env!("CARGO_PKG_VERSION")).into(),
            plane: PlaneOptions::default(),
        };
        let bell = Arc::new(Bell::default());
        let seats = Workers::plan(config.workers.max(1))?;
        let Bridge { residents, handle, events } = Bridge::new(&options, &seats, bell.clone())?;
        let known = Arc::new(Mutex::new(Known::default()));
        let mut control = Control {
            handle: handle.clone(),
            events,
            known: known.clone(),
            sessions: HashMap::new(),
            agents: HashMap::new(),
            software: options.software.clone(),
        };
        let threads = Threads::start(seats, residents, bell, move || control.step())?;
        Ok(BridgeHost { handle, trust, known, _threads: threads })
    }

    /// A token that lets any number of agents join until this bridge ends, to expose these services; none: any. It is a
    /// secret.
    pub fn token(&self, services: &[&str]) -> String {
        let scope = Scope::of(services.iter().map(|name| (*name).to_owned()));
        let terms = GrantTerms { scope, ..GrantTerms::default() };
        let address = Address::from(self.link_address());
        let (token, grant) = JoinToken::create(address, self.trust, terms, unix_now());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).grants.insert(grant.id, grant);
        token.to_paste()
    }

    /// Where agents connect.
    pub fn link_address(&self) -> SocketAddr {
        self.handle.link_address()
    }

    /// Where a service's visitors connect; `None`: it has no listener.
    pub fn address(&self, service: &str) -> Option<SocketAddr> {
        self.handle.addresses().into_iter().find(|(name, _)| name == service).map(|(_, address)| address)
    }

    /// Whether the service has a backend that is up.
    pub fn is_served(&self, service: &str) -> bool {
        let is_up = |backend: &Backend| backend.health == Health::Up;
        self.handle.routes().services().any(|(name, backends)| name == service && backends.iter().any(is_up))
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.handle.stats()
    }

    /// Everything else that a bridge can be asked for. Its decisions and routes are this host's to make.
    pub fn handle(&self) -> &BridgeHandle {
        &self.handle
    }
}

/// The control plane.
struct Control {
    handle: BridgeHandle,
    events: BridgeEvents,
    known: Arc<Mutex<Known>>,
    /// The number given to each agent's latest session.
    sessions: HashMap<AgentId, (SessionId, u64)>,
    agents: HashMap<AgentId, Present>,
    software: String,
}

/// An agent that has a link.
struct Present {
    generation: u64,
    backends: Vec<(Expose, Health, Load)>,
}

impl Control {
    fn step(&mut self) {
        let mut changed = false;
        while let Some(event) = self.events.try_event() {
            changed |= self.on_event(event);
        }
        if changed {
            self.handle.set_routes(Arc::new(self.routes()));
        }
    }

    /// Whether routes have changed.
    fn on_event(&mut self, event: BridgeEvent) -> bool {
        match event {
            BridgeEvent::Hello { link, applicant, .. } => self.decide(link, &applicant),
            BridgeEvent::AgentUp { agent, applicant, generation, .. } => {
                let backends = applicant.exposes.into_iter().map(|e| (e, Health::Unknown, Load::default())).collect();
                self.agents.insert(agent, Present { generation, backends });
                return true;
            }
            BridgeEvent::AgentGone { agent, generation, reason, detail } => {
                tracing::info!(%agent, %reason, detail, "agent gone");
                if self.agents.get(&agent).is_some_and(|present| present.generation == generation) {
                    self.agents.remove(&agent);
                    return true;
                }
            }
            BridgeEvent::Health { agent, generation, changes } => {
                let Some(present) = self.agents.get_mut(&agent).filter(|p| p.generation == generation) else {
                    return false;
                };
                for change in changes {
                    if let Some((_, health, _)) = present.backends.get_mut(usize::from(change.backend)) {
                        *health = change.after.health;
                    }
                }
                return true;
            }
            other => tracing::debug!(event = ?other, "bridge"),
        }
        false
    }

    fn decide(&mut self, link: LinkId, applicant: &Applicant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = applicant.token.and_then(|token| known.grants.get(&token));
        let admission = admit(applicant, known.agents.get(&applicant.agent), grant, unix_now());
        if let Ok(Admission::Enrols { record, grant }) = &admission {
            known.agents.insert(record.id, record.clone());
            known.grants.insert(grant.id, grant.clone());
        }
        drop(known);
        let decision = admission.map(|_| self.welcome(applicant));
        if let Err(Refusal { code, sentence, .. }) = &decision {
            tracing::warn!(agent = %applicant.agent, ?code, sentence, "agent refused");
            debug_assert_ne!(*code, RefusalCode::Other);
        }
        self.handle.decide(link, decision);
    }

    fn welcome(&mut self, applicant: &Applicant) -> Welcome {
        let next = self.sessions.values().map(|(_, generation)| generation).max().map_or(1, |last| last + 1);
        let session = self.sessions.entry(applicant.agent).or_insert((applicant.session, next));
        if session.0 != applicant.session {
            *session = (applicant.session, next);
        }
        let limits = Limits {
            window_bytes: WINDOW_BYTES_INITIAL,
            frame_bytes_max: crate::mux::Limits::default().frame_bytes_max,
        };
        Welcome { agent: applicant.agent, generation: session.1, limits, software: self.software.clone(), opened: None }
    }

    fn routes(&self) -> Routes {
        let mut services: HashMap<&str, Vec<Backend>> = HashMap::new();
        for (agent, present) in &self.agents {
            for (index, (expose, health, load)) in (0u16..).zip(&present.backends) {
                services.entry(expose.service.as_str()).or_default().push(Backend {
                    health: *health,
                    weight: expose.weight,
                    priority: expose.priority,
                    proxy: expose.proxy_protocol,
                    load: load.clone(),
                    ..Backend::new(*agent, present.generation, index)
                });
            }
        }
        Routes::with_policies(services, |_| Arc::default())
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
