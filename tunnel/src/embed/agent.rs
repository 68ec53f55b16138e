//! An agent inside another program: it joins with a token and carries visitors to TCP addresses.

use super::{Bell, EmbedError, Threads};
use crate::agent::{Agent, AgentEvent, AgentHandle, AgentOptions, Reach};
use crate::bridge::PlaneOptions;
use crate::fingerprint::Trust;
use crate::frame::Reason;
use crate::health_feed::BackendHealth;
use crate::hello::{Expose, Introduction, NotAService, SessionId};
use crate::identity::{AgentId, AgentKey, AgentName};
use crate::memory::MemoryLimits;
use crate::stats::Stats;
use crate::tls::ClientTls;
use crate::token::JoinToken;
use ringspan_engine::health::Health;
use ringspan_engine::kernel::monotonic_now;
use ringspan_engine::outcome::Code;
use ringspan_engine::worker::Workers;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// As `ringspan agent` has it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// As `ringspan agent` has it.
const DIRECT_MAX: u16 = 256;

/// What an agent is to be like.
#[derive(Clone)]
pub struct AgentConfig {
    /// From [`BridgeHost::token`](super::BridgeHost::token) or `ringspan token create`.
    pub token: String,
    /// Services and their backends.
    pub exposes: Vec<(String, SocketAddr)>,
    /// What it calls itself, 1 to 64 bytes. Default `agent`.
    pub name: String,
    /// Who it is at the bridge; `None`: somebody new, who joins with the token's next use.
    pub identity: Option<AgentKey>,
    /// Connections to the bridge, 1 to 16. Default 1.
    pub carriers: u8,
    /// Threads that move bytes, from 1 on. Default 1.
    pub workers: usize,
}

impl AgentConfig {
    /// With this token, exposing these.
    pub fn new(token: impl Into<String>, exposes: impl IntoIterator<Item = (String, SocketAddr)>) -> AgentConfig {
        let (token, exposes) = (token.into(), exposes.into_iter().collect());
        AgentConfig { token, exposes, name: "agent".into(), identity: None, carriers: 1, workers: 1 }
    }
}

/// A running agent: it finds its bridge again whenever it has lost it. Dropping it stops it.
pub struct AgentHost {
    handle: AgentHandle,
    id: AgentId,
    _threads: Threads,
}

impl AgentHost {
    /// Starts; the link comes up by itself. Looks the bridge's name up, once.
    ///
    /// # Errors
    /// A token or a service's name that is none, a bridge's name without an address, no threads.
    pub fn start(config: AgentConfig) -> Result<AgentHost, EmbedError> {
        let token: JoinToken = config.token.parse()?;
        let text = |error: &dyn std::fmt::Display| EmbedError::Exposes(error.to_string());
        let identity = match config.identity {
            Some(identity) => identity,
            None => AgentKey::generate(AgentName::try_from(config.name).map_err(|error| text(&error))?),
        };
        let expose = |(service, address): &(String, SocketAddr)| -> Result<Expose, NotAService> {
            Ok(Expose::new(service.clone().try_into()?, address.to_string()))
        };
        let bridge = match token.address.ip() {
            Some(known) => vec![known],
            None => (token.address.host().as_str(), token.address.port()).to_socket_addrs()?.collect(),
        };
        let (id, host, trust) = (identity.id(), token.address.host(), token.trust);
        let exposes: Result<_, _> = config.exposes.iter().map(expose).collect();
        let introduction = Introduction {
            identity,
            token: Some(token),
            session: SessionId::generate(),
            exposes: exposes.map_err(|error| text(&error))?,
            watches: 0,
            software: concat!("ringspan-tunnel/", env!("CARGO_PKG_VERSION")).into(),
        };
        introduction.check(config.carriers).map_err(EmbedError::Exposes)?;
        let options = AgentOptions {
            bridge,
            host,
            tls: match trust {
                Trust::Plain => None,
                Trust::Pinned(fingerprint) => Some(ClientTls::pinned(fingerprint)),
            },
            introduction,
            carriers: config.carriers,
            backends: config.exposes.iter().map(|(_, address)| (*address).into()).collect(),
            dial_timeout: DIAL_TIMEOUT,
            memory: MemoryLimits::default(),
            direct_max: DIRECT_MAX,
            plane: PlaneOptions::default(),
            reach: Reach::Dial,
        };
        let bell = Arc::new(Bell::default());
        let seats = Workers::plan(config.workers.max(1))?;
        let Agent { residents, handle, mut events } = Agent::new(options, &seats, bell.clone());
        for backend in 0..config.exposes.len() {
            handle.set_health(backend as u16, state(true));
        }
        let asked = handle.clone();
        let threads = Threads::start(seats, residents, bell, move || {
            while let Some(event) = events.try_event() {
                on_event(&asked, event);
            }
        })?;
        Ok(AgentHost { handle, id, _threads: threads })
    }

    /// Who it is at the bridge.
    pub fn id(&self) -> AgentId {
        self.id
    }

    /// Whether visitors may be sent to a backend, by its place in [`AgentConfig::exposes`]. They are from the start.
    /// Panics if there is no such backend.
    pub fn set_up(&self, backend: u16, is_up: bool) {
        self.handle.set_health(backend, state(is_up));
    }

    /// Whether it has a link.
    pub fn is_linked(&self) -> bool {
        self.handle.stats().carriers_up > 0
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.handle.stats()
    }
}

fn state(is_up: bool) -> BackendHealth {
    let (health, code) = if is_up { (Health::Up, Some(Code::L4Ok)) } else { (Health::Down, None) };
    BackendHealth { health, code, since: monotonic_now(), rtt_us: None }
}

fn on_event(handle: &AgentHandle, event: AgentEvent) {
    match event {
        AgentEvent::Ask { ask, .. } => handle.answer(ask, Err(Reason::UnknownBackend)),
        AgentEvent::Down { detail, reason, tell: true, .. } => tracing::warn!(%reason, detail, "no link"),
        AgentEvent::Refused { refusal, tell: true, .. } => tracing::warn!(why = %refusal, "refused"),
        other => tracing::debug!(event = ?other, "agent"),
    }
}
