//! One bridge of an agent, and our sessions there: the one that takes visitors, the next one, and older ones that finish
//! theirs.
//!
//! ```text
//! new configuration ─▶ coming ──first carrier up──▶ current ──next one up──▶ leaving ──last visitor gone──▶ over
//!                         └──refused──▶ over; the current one stays
//! ```
//! Promise: there is a current session from the start to the end; a configuration that the bridge refuses changes nothing.

use super::checks::Checks;
use super::link::Link;
use super::watches::{Allowed, Watches};
use crate::Failure;
use crate::config::agent_link::AgentLink;
use crate::config::expose::{Backend as Way, Expose, Heading};
use crate::doors::backends::{self, Backends};
use crate::doors::road::Road;
use arc_swap::ArcSwap;
use ringspan_engine::check::Check;
use ringspan_engine::engine::Probes;
use ringspan_engine::health::Health;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::target::{Policy, Transition};
use ringspan_engine::worker::Lodging;
use ringspan_tunnel::agent::{Agent, AgentEvent, AgentEvents, AgentHandle, AgentOptions, Backend, CallId, Reach};
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::hello::{Expose as Offer, Introduction, Opened, Refusal, RefusalCode, SessionId};
use ringspan_tunnel::identity::AgentName;
use ringspan_tunnel::memory::MemoryLimits;
use ringspan_tunnel::tls::ClientTls;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A visitor of a backend that does not answer waits this long: below a browser's patience, above a lost SYN's retry.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A bridge's name is looked up again this often: it may have moved.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// The same while it has no address at all.
const RESOLVE_SOON: Duration = Duration::from_secs(2);
/// A bridge that knows sessions lets the older one drain within a round trip; one that has not by now is told to.
const RETIRE_MAX: Duration = Duration::from_secs(5);

/// What a session is made of; two that are equal need no second session.
#[derive(Clone, Debug, PartialEq)]
struct Terms {
    offers: Vec<Offer>,
    backends: Vec<Backend>,
    doors: Vec<Door>,
    carriers: u8,
    ktls: bool,
    direct_max: u16,
    road: Road,
}

/// What a session's doors go by as long as it lives, of one backend: who may go where, with which secret. The bridge need
/// not know of it; a session that began with another one would go on with that.
#[derive(Clone, Debug, PartialEq)]
struct Door {
    backend: Way,
    heading: Option<Heading>,
    /// Of one that the engine does not check.
    check: Option<Policy>,
}

impl Door {
    fn of(expose: &Expose) -> Door {
        let Expose { backend, heading, check, .. } = expose;
        let is_ours = backend.address().is_none() && !matches!(check.ask, Check::None);
        Door { backend: backend.clone(), heading: *heading, check: is_ours.then_some(check.policy) }
    }
}

/// Where sessions live, and who is told of them.
#[derive(Clone)]
pub(super) struct House {
    pub(super) lodging: Lodging,
    pub(super) bell: Arc<super::Bell>,
    pub(super) memory: MemoryLimits,
    pub(super) probes: Probes,
    /// Networks that bridges may have us look at.
    pub(super) allowed: Allowed,
}

struct Session {
    handle: AgentHandle,
    events: AgentEvents,
    terms: Terms,
    exposes: Vec<Expose>,
    /// The checks' keys, in the order of the exposes.
    keys: Vec<u64>,
    doors: Backends,
    /// What the bridge has us look at.
    watches: Watches,
    /// Leaving: since when. Taken once the bridge has been told.
    retired: Option<Instant>,
}

/// See the module.
pub(super) struct Uplink {
    link: Link,
    state_dir: PathBuf,
    current: Session,
    coming: Option<Session>,
    leaving: Vec<Session>,
    house: House,
    addresses: Arc<ArcSwap<Vec<SocketAddr>>>,
    resolver: Option<tokio::task::JoinHandle<()>>,
    /// Whether the file names it.
    pub(super) is_in_file: bool,
    /// Whether it has let us in.
    pub(super) was_up: bool,
}

impl Uplink {
    /// Settles who we are there and starts; the link comes up by itself. Needs a runtime.
    pub(super) async fn start(
        config: &AgentLink,
        exposes: &[Expose],
        checks: &mut Checks,
        house: House,
    ) -> Result<Uplink, Failure> {
        let link = Link::settle(config)?;
        let addresses = Arc::new(ArcSwap::from_pointee(link.bridge.ip().into_iter().collect()));
        let terms = terms(&link, config, exposes)?;
        let current = session(&link, terms, exposes, checks, &addresses, &house).await?;
        // A proxy knows where the bridge is, or a WebSocket does not ask.
        let resolver =
            if config.road.is_detour() { None } else { resolver(&link, addresses.clone(), house.bell.clone()) };
        let state_dir = config.state_dir.clone();
        let (coming, leaving) = (None, Vec::new());
        let (is_in_file, was_up) = (true, false);
        Ok(Uplink { link, state_dir, current, coming, leaving, house, addresses, resolver, is_in_file, was_up })
    }

    /// Which identity this is.
    pub(super) fn state_dir(&self) -> &PathBuf {
        &self.state_dir
    }

    /// What we are called there.
    pub(super) fn name(&self) -> &AgentName {
        &self.link.identity.name
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Whether it has let us in by now.
    pub(super) fn look(&mut self) {
        self.was_up |= self.current.handle.stats().carriers_up > 0;
    }

    /// Sessions there are: each has a place on each worker.
    pub(super) fn sessions(&self) -> usize {
        1 + usize::from(self.coming.is_some()) + self.leaving.len()
    }

    /// The checks that its sessions need.
    pub(super) fn keys(&self) -> impl Iterator<Item = u64> {
        self.all().flat_map(|session| session.keys.iter().copied())
    }

    fn all(&self) -> impl Iterator<Item = &Session> {
        [&self.current].into_iter().chain(&self.coming).chain(&self.leaving)
    }

    /// Offers these from now on: in a session of its own if they differ from what is offered.
    pub(super) async fn change(
        &mut self,
        config: &AgentLink,
        exposes: &[Expose],
        checks: &mut Checks,
    ) -> Result<(), Failure> {
        self.link.take_token(config);
        if self.resolver.is_none() && !config.road.is_detour() {
            self.resolver = resolver(&self.link, self.addresses.clone(), self.house.bell.clone());
        }
        let terms = terms(&self.link, config, exposes)?;
        let newest = self.coming.as_ref().unwrap_or(&self.current);
        if newest.terms == terms {
            checks.want(exposes).await;
            return Ok(());
        }
        let next = session(&self.link, terms, exposes, checks, &self.addresses, &self.house).await?;
        if let Some(session) = self.coming.replace(next) {
            self.leave(session, true);
        }
        Ok(())
    }

    /// A session that takes no more visitors. `at_once`: the bridge never had it, or is told so now.
    fn leave(&mut self, mut session: Session, at_once: bool) {
        if at_once {
            session.handle.drain();
        } else {
            session.handle.retire();
            session.retired = Some(Instant::now());
        }
        self.leaving.push(session);
    }

    /// Visitors and backends that are connected.
    pub(super) fn visitors(&self) -> u64 {
        self.all().map(|session| session.handle.stats().streams_open).sum()
    }

    /// What streams may take from now on.
    pub(super) fn set_memory(&self, limits: MemoryLimits) {
        self.all().for_each(|session| session.handle.set_memory(limits));
    }

    /// No more visitors at all.
    pub(super) fn drain(&self) {
        self.all().for_each(|session| session.handle.drain());
    }

    /// Whether nobody is carried any more.
    pub(super) fn is_drained(&self) -> bool {
        self.all().all(|session| {
            let stats = session.handle.stats();
            (stats.streams_open, stats.carriers_up) == (0, 0)
        })
    }

    /// What is known of a backend has changed.
    pub(super) fn tell_health(&self, key: u64, checks: &Checks) {
        let Some(state) = checks.state(key) else { return };
        for session in self.all() {
            if let Some(index) = session.keys.iter().position(|k| *k == key) {
                session.handle.set_health(index as u16, state);
            }
        }
    }

    /// A verdict, perhaps on a place that the bridge has us look at.
    pub(super) fn tell_sight(&self, t: &Transition) {
        self.all().for_each(|session| session.watches.on_transition(t));
    }

    /// It may look elsewhere from now on.
    pub(super) fn reconsider(&mut self) {
        for session in [&mut self.current].into_iter().chain(&mut self.coming).chain(&mut self.leaving) {
            session.watches.reconsider();
        }
    }

    /// Now and then.
    pub(super) fn tick(&mut self) {
        for session in &mut self.leaving {
            if session.retired.is_some_and(|since| since.elapsed() >= RETIRE_MAX) {
                session.retired = None;
                session.handle.drain();
            }
        }
        for session in [&mut self.current].into_iter().chain(&mut self.coming).chain(&mut self.leaving) {
            session.doors.tell();
            session.watches.press_on();
            session.handle.set_bridge(self.addresses.load().to_vec());
        }
        self.leaving.retain(|session| {
            let stats = session.handle.stats();
            session.retired.is_some() || (stats.streams_open, stats.carriers_up) != (0, 0)
        });
    }

    /// Works off what the sessions say; why this bridge is lost for good, if it is.
    pub(super) fn take_events(&mut self) -> Option<Failure> {
        while let Some(event) = self.current.events.try_event() {
            if let Some(refusal) = on_event(&mut self.current, event, &mut self.link, &self.state_dir)
                && let Some(failure) = is_final(&self.link, &refusal)
            {
                return Some(failure);
            }
        }
        let mut verdict = None;
        if let Some(coming) = &mut self.coming {
            while let Some(event) = coming.events.try_event() {
                if matches!(event, AgentEvent::Up { .. }) {
                    verdict = Some(Ok(()));
                }
                if let Some(refusal) = on_event(coming, event, &mut self.link, &self.state_dir)
                    && is_final(&self.link, &refusal).is_some()
                {
                    verdict = Some(Err(refusal));
                }
            }
        }
        match (verdict, self.coming.take()) {
            (Some(Ok(())), Some(next)) => {
                let old = std::mem::replace(&mut self.current, next);
                let bridge = &self.link.bridge;
                tracing::info!(%bridge, exposes = self.current.exposes.len(), "the new configuration is in force");
                self.leave(old, false);
            }
            (Some(Err(refusal)), Some(next)) => {
                let bridge = &self.link.bridge;
                tracing::error!(%bridge, why = %refusal, "the bridge refuses the new configuration: the old one stays");
                self.leave(next, true);
            }
            (_, coming) => self.coming = coming,
        }
        for session in &mut self.leaving {
            while let Some(event) = session.events.try_event() {
                match event {
                    AgentEvent::Ask { ask, backend, info } => session.doors.on_ask(ask, backend, info),
                    AgentEvent::Reach { call } => reach(session, &self.link, call),
                    AgentEvent::Watch(orders) => session.watches.on_orders(orders),
                    event => tracing::debug!(?event, "an older session"),
                }
            }
        }
        None
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if let Some(resolver) = &self.resolver {
            resolver.abort();
        }
    }
}

fn terms(link: &Link, config: &AgentLink, exposes: &[Expose]) -> Result<Terms, Failure> {
    let terms = Terms {
        offers: exposes.iter().map(offer).collect::<Result<_, _>>()?,
        backends: exposes.iter().map(|e| backends::way(&e.backend)).collect(),
        doors: exposes.iter().map(Door::of).collect(),
        carriers: config.carriers,
        ktls: config.ktls,
        // In a WebSocket nothing is spliced and nothing can end one way: a connection for each stream would gain nothing.
        direct_max: if config.road.websocket.is_some() { 0 } else { config.direct_max },
        road: config.road.clone(),
    };
    introduction(link, &terms).check(terms.carriers).map_err(|e| Failure::Usage(format!("[[expose]]: {e}")))?;
    Ok(terms)
}

fn introduction(link: &Link, terms: &Terms) -> Introduction {
    Introduction {
        identity: link.identity.clone(),
        token: link.token.clone(),
        session: SessionId::generate(),
        exposes: terms.offers.clone(),
        watches: ringspan_tunnel::watch_feed::WATCHES_MAX,
        software: format!("ringspan/{}", env!("CARGO_PKG_VERSION")),
    }
}

async fn session(
    link: &Link,
    terms: Terms,
    exposes: &[Expose],
    checks: &mut Checks,
    addresses: &ArcSwap<Vec<SocketAddr>>,
    house: &House,
) -> Result<Session, Failure> {
    let options = AgentOptions {
        bridge: addresses.load().to_vec(),
        host: link.bridge.host(),
        tls: match link.trust {
            Trust::Plain => None,
            Trust::Pinned(fingerprint) => Some(ClientTls::pinned(fingerprint).with_ktls(terms.ktls)),
        },
        introduction: introduction(link, &terms),
        carriers: terms.carriers,
        backends: terms.backends.clone(),
        dial_timeout: DIAL_TIMEOUT,
        memory: house.memory,
        direct_max: terms.direct_max,
        plane: crate::machine::plane_options(),
        reach: if terms.road.is_detour() { Reach::Ask } else { Reach::Dial },
    };
    let keys = checks.want(exposes).await;
    let Agent { residents, handle, events } =
        Agent::new(options, &house.lodging.seats(), house.bell.clone() as Arc<dyn Wake>);
    // The first thing that the bridge hears is what is known already.
    for (index, key) in (0u16..).zip(&keys) {
        if let Some(state) = checks.state(*key).filter(|state| state.health != Health::Unknown) {
            handle.set_health(index, state);
        }
    }
    house.lodging.move_in(residents).map_err(|_| Failure::Run("a worker takes no one in: does it hang?".into()))?;
    let mut doors = Backends::new(handle.clone(), exposes);
    doors.check(exposes);
    let watches = Watches::new(house.probes.clone(), house.allowed.clone(), handle.clone());
    Ok(Session { handle, events, terms, exposes: exposes.to_vec(), keys, doors, watches, retired: None })
}

/// Looks a bridge's name up again and again. `None`: it is an address.
fn resolver(
    link: &Link,
    addresses: Arc<ArcSwap<Vec<SocketAddr>>>,
    bell: Arc<super::Bell>,
) -> Option<tokio::task::JoinHandle<()>> {
    if link.bridge.ip().is_some() {
        return None;
    }
    let bridge = link.bridge.clone();
    Some(tokio::spawn(async move {
        loop {
            let name = bridge.clone();
            let found = tokio::task::spawn_blocking(move || Link::resolve(&name)).await.unwrap_or_default();
            let pause = if found.is_empty() { RESOLVE_SOON } else { RESOLVE_EVERY };
            // An address that worked is better than none.
            if !found.is_empty() {
                addresses.store(Arc::new(found));
                bell.wake();
            }
            tokio::time::sleep(pause).await;
        }
    }))
}

/// Logs and answers; a refusal, if it was one.
fn on_event(session: &mut Session, event: AgentEvent, link: &mut Link, state_dir: &std::path::Path) -> Option<Refusal> {
    match event {
        AgentEvent::Up { carrier, welcome } => {
            tracing::info!(carrier, bridge = %link.bridge, software = welcome.software, "link up");
            // The others of the link say the same.
            if carrier == 0 {
                tell_opened(session, welcome.opened.as_deref());
            }
            link.on_welcome(state_dir);
        }
        AgentEvent::Down { carrier, was_up, reason, detail, retry, tell } => {
            let what = if was_up { "link lost" } else { "no link" };
            let bridge = &link.bridge;
            if tell {
                tracing::warn!(carrier, %bridge, %reason, detail, ?retry, "{what}: trying again");
            } else {
                tracing::debug!(carrier, %bridge, %reason, detail, ?retry, "{what}: trying again");
            }
        }
        AgentEvent::Refused { carrier, refusal, retry, tell } => {
            if tell && is_final(link, &refusal).is_none() {
                tracing::warn!(carrier, code = ?refusal.code, ?retry, why = %refusal, "refused: trying again");
            }
            return Some(refusal);
        }
        AgentEvent::Reach { call } => reach(session, link, call),
        AgentEvent::Watch(orders) => session.watches.on_orders(orders),
        AgentEvent::Ask { ask, backend, info } => session.doors.on_ask(ask, backend, info),
        AgentEvent::DialFailed { backend, reason } => {
            let expose = session.exposes.get(usize::from(backend));
            let (service, address) = expose.map(|e| (e.service.as_str(), e.backend.to_string())).unzip();
            tracing::debug!(service, address, %reason, "a visitor's dial failed");
        }
    }
    None
}

/// What has become of the listeners and hosts that the bridge was asked for.
fn tell_opened(session: &Session, opened: Option<&[Opened]>) {
    let wants = session.terms.offers.iter().any(|offer| offer.listen.is_some() || offer.http_host.is_some());
    match opened {
        None if wants => tracing::error!("the bridge opens no listeners for agents: it is of an older version"),
        None => {}
        Some(all) => {
            for Opened { backend, at, error } in all {
                let service = session.exposes.get(usize::from(*backend)).map(|expose| expose.service.as_str());
                match error {
                    None => tracing::info!(at, service, "the bridge listens for us"),
                    Some(why) => tracing::error!(at, service, why, "the bridge does not listen for us"),
                }
            }
        }
    }
}

/// Connects to the bridge by the session's road, now or later.
fn reach(session: &Session, link: &Link, call: CallId) {
    let (road, bridge, handle) = (session.terms.road.clone(), link.bridge.clone(), session.handle.clone());
    tokio::spawn(async move {
        handle.reached(call, road.reach(&bridge).await.map_err(|error| (error.reason, error.text)));
    });
}

/// Whether trying again cannot help, and what to say then.
fn is_final(link: &Link, refusal: &Refusal) -> Option<Failure> {
    use RefusalCode::*;
    let text = format!("bridge {}: {refusal}", link.bridge);
    match refusal.code {
        UnknownToken | WrongSecret | TokenExpired | TokenRevoked | TokenUsedUp | ServiceOutOfScope
        | ListenOutOfScope => Some(Failure::Usage(text)),
        AgentRevoked => Some(Failure::Run(text)),
        UnknownAgent if link.is_enrolled => {
            Some(Failure::Run(format!("{text}. This agent has joined before: does the bridge have its old data_dir?")))
        }
        UnknownAgent => Some(Failure::Usage(text)),
        VersionMismatch | TooBusy | Internal | TooSlow | Protocol | Other => None,
    }
}

fn offer(expose: &Expose) -> Result<Offer, Failure> {
    let service = expose.service.clone().try_into();
    let service = service.map_err(|e| Failure::Usage(format!("[[expose]] service {:?}: {e}", expose.service)))?;
    let (weight, priority, proxy_protocol) = (expose.weight, expose.priority, expose.proxy_protocol);
    let (listen, http_host) = (expose.listen, expose.http_host.clone());
    let offer = Offer::new(service, expose.backend.to_string());
    Ok(Offer { weight, priority, proxy_protocol, listen, http_host, ..offer })
}
