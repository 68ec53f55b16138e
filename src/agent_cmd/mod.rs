//! `ringspan agent`: checks its backends with the engine, tells the bridge, carries visitors to them.
//!
//! ```text
//! workers (pinned): prober ── transitions ──► set_health ──► data path: health feed, carriers, dials
//! ```
//! How it ends: a signal, 0; a token or an exposed service that the bridge refuses, 2; an identity that the bridge has
//! revoked or does not know, 1. A bridge that is away, busy, or of another version is tried again for ever.

mod link;

use crate::config::agent::{Agent as Config, CARRIERS_DEFAULT, Secret};
use crate::config::bridge::Engine as EngineConfig;
use crate::config::carrier::DIRECT_MAX_DEFAULT;
use crate::config::check::CHECK_DEFAULT;
use crate::config::expose::Expose;
use crate::doors::backends::{self, Backends};
use crate::doors::secret::visit::Visits;
use crate::machine::Signals;
use crate::{Ending, Failure, cli, machine};
use link::Link;
use ringspan_engine::check::Check;
use ringspan_engine::engine::{Engine, Feed, Options as EngineOptions};
use ringspan_engine::health::Health;
use ringspan_engine::kernel::monotonic_now;
use ringspan_engine::mailbox::{Full, Wake};
use ringspan_engine::target::{Target, Transition};
use ringspan_engine::worker::Workers;
use ringspan_tunnel::agent::{Agent, AgentEvent, AgentEvents, AgentHandle, AgentOptions};
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::health_feed::BackendHealth;
use ringspan_tunnel::hello::{Expose as Offer, Introduction, Refusal, RefusalCode, SessionId};
use ringspan_tunnel::tls::ClientTls;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A visitor of a backend that does not answer waits this long: below a browser's patience, above a lost SYN's retry.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A bridge's name is looked up again this often: it may have moved.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// The same while it has no address at all.
const RESOLVE_SOON: Duration = Duration::from_secs(2);
/// How often the workers are looked at.
const WATCH: Duration = Duration::from_millis(500);

/// Runs the subcommand until a signal or a refusal.
pub(crate) fn run(args: &cli::Agent) -> Result<Ending, Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file)?,
        None => of_flags(args)?,
    };
    machine::prepare();
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::catch();
        let mut server = AgentServer::start(config)?;
        let ending = tokio::select! {
            () = signals.caught() => Ok(Ending::Good),
            failure = server.serve() => Err(failure),
        };
        server.stop().await;
        ending
    })
}

fn of_flags(args: &cli::Agent) -> Result<Config, Failure> {
    if args.expose.is_empty() {
        return Err(Failure::Usage(
            "nothing to offer. Try: --expose web=127.0.0.1:8080, or --config agent.toml".into(),
        ));
    }
    let expose = |(service, address): &(String, std::net::SocketAddr)| {
        Expose::new(service.clone(), (*address).into(), CHECK_DEFAULT)
    };
    Ok(Config {
        token: args.token.as_ref().map(|t| Secret(t.trim().to_owned())),
        token_file_missing: None,
        state_dir: args.state_dir.clone().unwrap_or_else(|| cli::STATE_DIR_DEFAULT.into()),
        carriers: CARRIERS_DEFAULT,
        ktls: true,
        direct_max: DIRECT_MAX_DEFAULT,
        exposes: args.expose.iter().map(expose).collect(),
        visits: Vec::new(),
        engine: EngineConfig::default(),
        memory: ringspan_tunnel::memory::MemoryLimits::default(),
    })
}

/// Rung by the workers: verdicts have changed, or the link has.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// A running agent.
pub(crate) struct AgentServer {
    engine: Engine,
    feed: Feed,
    handle: AgentHandle,
    events: AgentEvents,
    bell: Arc<Bell>,
    link: Link,
    state_dir: PathBuf,
    exposes: Vec<Expose>,
    backends: Backends,
    _visits: Visits,
    transitions: Vec<Transition>,
}

impl AgentServer {
    /// Settles who we are, starts the workers and the checks; the link comes up by itself. Needs a runtime.
    pub(crate) fn start(config: Config) -> Result<AgentServer, Failure> {
        let run = |text: String| Failure::Run(text);
        let link = Link::settle(&config)?;
        let introduction = Introduction {
            identity: link.identity.clone(),
            token: link.token.clone(),
            session: SessionId::generate(),
            exposes: config.exposes.iter().map(offer).collect::<Result<_, _>>()?,
            software: format!("ringspan/{}", env!("CARGO_PKG_VERSION")),
        };
        introduction.check(config.carriers).map_err(|e| Failure::Usage(format!("[[expose]]: {e}")))?;
        let options = AgentOptions {
            bridge: link.bridge.ip().into_iter().collect(),
            host: link.bridge.host(),
            tls: match link.trust {
                Trust::Plain => None,
                Trust::Pinned(fingerprint) => Some(ClientTls::pinned(fingerprint).with_ktls(config.ktls)),
            },
            introduction,
            carriers: config.carriers,
            backends: config.exposes.iter().map(|e| backends::way(&e.backend)).collect(),
            dial_timeout: DIAL_TIMEOUT,
            memory: config.memory,
            direct_max: config.direct_max,
            plane: machine::plane_options(),
        };
        let defaults = EngineOptions::default();
        let engine_options = EngineOptions {
            workers: config.engine.workers.map_or(defaults.workers, |n| n.get().into()),
            backend: config.engine.backend.into(),
            ..defaults
        };
        let bell = Arc::new(Bell::default());
        let seats = Workers::plan(engine_options.workers).map_err(|e| run(format!("eventfd: {e}")))?;
        let Agent { residents, handle, events } = Agent::new(options, &seats, bell.clone());
        let planned = seats.into_iter().zip(residents.into_iter().map(|resident| vec![resident])).collect();
        let (engine, feed) =
            Engine::start_on(&engine_options, bell.clone(), planned).map_err(|e| run(e.to_string()))?;
        tracing::info!(
            agent = %link.identity.id(),
            name = %link.identity.name,
            bridge = %link.bridge,
            tls = link.trust != Trust::Plain,
            backends = config.exposes.len(),
            io = %engine.capabilities(),
            "agent is up"
        );
        if link.trust != Trust::Plain {
            crate::machine::tell_ktls(config.ktls);
        }
        let visits = Visits::start(&config.visits, &link.identity, link.trust)
            .map_err(|(address, error)| run(crate::bridge_cmd::cannot_listen("[[visit]] listen", address, &error)))?;
        let Config { state_dir, exposes, .. } = config;
        let (backends, transitions) = (Backends::new(handle.clone(), &exposes), Vec::new());
        Ok(AgentServer {
            engine,
            feed,
            handle,
            events,
            bell,
            link,
            state_dir,
            exposes,
            backends,
            _visits: visits,
            transitions,
        })
    }

    /// Serves until the bridge refuses us for good, or a worker dies.
    pub(crate) async fn serve(&mut self) -> Failure {
        self.check_backends().await;
        self.backends.check(&self.exposes);
        let mut watch = tokio::time::interval(WATCH);
        let resolver = self.start_resolver();
        let failure = loop {
            self.tell_health();
            if let Some(failure) = self.take_events() {
                break failure;
            }
            tokio::select! {
                () = self.bell.0.notified() => {}
                _ = watch.tick() => {
                    self.backends.tell();
                    if !self.engine.is_whole() {
                        break Failure::Run("a worker has died; its panic stands above in the log".into());
                    }
                }
            }
        };
        if let Some(resolver) = resolver {
            resolver.abort();
        }
        failure
    }

    /// Stops the workers: streams end, the bridge hears a clean end.
    pub(crate) async fn stop(mut self) {
        tracing::info!("agent stops");
        let _ = tokio::task::spawn_blocking(move || self.engine.stop()).await;
    }

    async fn check_backends(&self) {
        let probes = self.engine.probes();
        for (key, expose) in self.exposes.iter().enumerate() {
            if matches!(expose.check.ask, Check::None) {
                // Nobody asks it: it is as well as we are.
                let up = BackendHealth { health: Health::Up, code: None, since: monotonic_now(), rtt_us: None };
                self.handle.set_health(key as u16, up);
                continue;
            }
            let Some(address) = expose.backend.address() else { continue };
            let mut target = Target {
                address,
                check: expose.check.ask.clone(),
                policy: expose.check.policy.into(),
                initial: Health::Unknown,
                count: None,
                key: key as u64,
                group: 0,
            };
            while let Err(Full(back)) = probes.add(target) {
                target = back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Looks a bridge's name up again and again. `None`: it is an address.
    fn start_resolver(&self) -> Option<tokio::task::JoinHandle<()>> {
        if self.link.bridge.ip().is_some() {
            return None;
        }
        let (handle, bridge) = (self.handle.clone(), self.link.bridge.clone());
        Some(tokio::spawn(async move {
            loop {
                let name = bridge.clone();
                let found = tokio::task::spawn_blocking(move || Link::resolve(&name)).await.unwrap_or_default();
                let pause = if found.is_empty() { RESOLVE_SOON } else { RESOLVE_EVERY };
                // An address that worked is better than none.
                if !found.is_empty() {
                    handle.set_bridge(found);
                }
                tokio::time::sleep(pause).await;
            }
        }))
    }

    fn tell_health(&mut self) {
        self.feed.transitions(&mut self.transitions);
        for t in self.transitions.drain(..) {
            let Ok(backend) = u16::try_from(t.key) else { continue };
            let Some(expose) = self.exposes.get(usize::from(backend)) else { continue };
            log_transition(expose, &t);
            let rtt_us = u32::try_from(t.rtt_ns / 1000).ok();
            let state = BackendHealth { health: t.to, code: Some(t.code), since: monotonic_now(), rtt_us };
            self.handle.set_health(backend, state);
        }
    }

    fn take_events(&mut self) -> Option<Failure> {
        while let Some(event) = self.events.try_event() {
            match event {
                AgentEvent::Up { carrier, welcome } => {
                    tracing::info!(carrier, bridge = %self.link.bridge, software = welcome.software, "link up");
                    self.link.on_welcome(&self.state_dir);
                }
                AgentEvent::Down { carrier, was_up, reason, detail, retry, tell } => {
                    let what = if was_up { "link lost" } else { "no link" };
                    let bridge = &self.link.bridge;
                    if tell {
                        tracing::warn!(carrier, %bridge, %reason, detail, ?retry, "{what}: trying again");
                    } else {
                        tracing::debug!(carrier, %bridge, %reason, detail, ?retry, "{what}: trying again");
                    }
                }
                AgentEvent::Refused { carrier, refusal, retry, tell } => {
                    if let Some(failure) = self.is_final(&refusal) {
                        return Some(failure);
                    }
                    if tell {
                        tracing::warn!(carrier, code = ?refusal.code, ?retry, why = %refusal, "refused: trying again");
                    }
                }
                AgentEvent::Ask { ask, backend, info } => self.backends.on_ask(ask, backend, info),
                AgentEvent::DialFailed { backend, reason } => {
                    let expose = self.exposes.get(usize::from(backend));
                    let (service, address) = expose.map(|e| (e.service.as_str(), e.backend.to_string())).unzip();
                    tracing::debug!(service, address, %reason, "a visitor's dial failed");
                }
            }
        }
        None
    }

    /// Whether trying again cannot help, and what to say then.
    fn is_final(&self, refusal: &Refusal) -> Option<Failure> {
        use RefusalCode::*;
        let text = format!("bridge {}: {refusal}", self.link.bridge);
        match refusal.code {
            UnknownToken | WrongSecret | TokenExpired | TokenRevoked | TokenUsedUp | ServiceOutOfScope => {
                Some(Failure::Usage(text))
            }
            AgentRevoked => Some(Failure::Run(text)),
            UnknownAgent if self.link.is_enrolled => Some(Failure::Run(format!(
                "{text}. This agent has joined before: does the bridge have its old data_dir?"
            ))),
            UnknownAgent => Some(Failure::Usage(text)),
            VersionMismatch | TooBusy | Internal | TooSlow | Protocol | Other => None,
        }
    }
}

fn offer(expose: &Expose) -> Result<Offer, Failure> {
    let service = expose.service.clone().try_into();
    let service = service.map_err(|e| Failure::Usage(format!("[[expose]] service {:?}: {e}", expose.service)))?;
    let (weight, priority, proxy_protocol) = (expose.weight, expose.priority, expose.proxy_protocol);
    Ok(Offer { weight, priority, proxy_protocol, ..Offer::new(service, expose.backend.to_string()) })
}

fn log_transition(expose: &Expose, t: &Transition) {
    let thresholds = expose.check.policy.thresholds;
    let needed = match (t.from, t.to) {
        (Health::Unknown, _) => 1,
        (_, Health::Up) => thresholds.rise.get(),
        (_, Health::Down | Health::Unknown) => thresholds.fall.get(),
    };
    let (service, address, code) = (&expose.service, &expose.backend, t.code.as_str());
    let (after, last_us) = (format!("{} of {needed}", t.streak), t.rtt_ns / 1000);
    match t.to {
        Health::Up => tracing::info!(service, %address, after, last_us, "backend up {code}"),
        Health::Down => {
            tracing::warn!(service, %address, after, last_us, why = t.code.sentence(), "backend down {code}");
        }
        Health::Unknown => tracing::info!(service, %address, "backend unknown {code}"),
    }
}
