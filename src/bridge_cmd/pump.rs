//! Takes the bridge's events as they come and carries out what they ask for: decisions by the clerk, routes at once,
//! the registry by the scribe, the log in words.
//!
//! ```text
//! BridgeEvents ──► pump ──► routes (snapshot, no waiting)
//!                   ├─────► clerk: keyring (may wait for the disk) ──► decide
//!                   └─────► scribe: registry, in order
//! ```
//! A full clerk refuses ("too busy", the agent comes back); a full scribe makes the pump wait, and the workers keep
//! their events meanwhile.

use super::listening::Listening;
use super::scouts::{Sightings, WatchOrder};
use super::sessions::{Order, Sessions};
use crate::keyring::Keyring;
use crate::office::{Answer, Floor, Request, unix_now};
use crate::{registry_cmd, user_cmd};
use ringspan_engine::health::Health;
use ringspan_engine::mailbox::Wake;
use ringspan_registry::Registry;
use ringspan_registry::access::Access;
use ringspan_registry::table::Refusal as RegistryRefusal;
use ringspan_registry::transfer::Counts;
use ringspan_tunnel::bridge::{BridgeEvent, BridgeEvents, BridgeHandle, LinkId};
use ringspan_tunnel::credit::WINDOW_BYTES_INITIAL;
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::health_feed::Change;
use ringspan_tunnel::hello::{Applicant, Expose, Limits, Refusal, RefusalCode, Welcome};
use ringspan_tunnel::identity::AgentId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Agents that may wait for the keyring: at a millisecond each, the last one's 10 s are not over.
const CLERK_QUEUE: usize = 4096;
/// Orders that may wait for the registry.
const SCRIBE_QUEUE: usize = 4096;
/// Failed dials are counted for this long before they are told: a dead backend under load is one line a second.
const DIALS_TOLD: Duration = Duration::from_secs(1);

/// Rung by the workers when there are events.
#[derive(Default)]
pub(super) struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// What pump, clerk and office share.
pub(super) struct Hall {
    pub(super) handle: BridgeHandle,
    pub(super) keyring: Arc<Keyring>,
    pub(super) registry: Registry,
    pub(super) access: Access,
    pub(super) sessions: Mutex<Sessions>,
    pub(super) listening: Listening,
    pub(super) software: String,
    pub(super) runtime: tokio::runtime::Handle,
    /// Routes are to be made anew, although no agent has changed.
    pub(super) stale: AtomicBool,
    pub(super) bell: Arc<Bell>,
}

impl Hall {
    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        // A panic while it was held has been logged; the state is whole, each change is one step.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is believed of a service's backend at this address.
    pub(super) fn health(&self, service: &str, address: SocketAddr) -> Option<Health> {
        self.sessions().health(service, &address.to_string())
    }

    /// Whether the agent is here.
    pub(super) fn knows(&self, agent: AgentId) -> bool {
        self.sessions().is_connected(agent)
    }

    /// Links of those who are here, by the names the registry knows them by.
    pub(super) fn links(&self) -> std::collections::BTreeMap<String, ringspan_registry::http::AgentLink> {
        self.sessions().links()
    }

    /// Who is here.
    pub(super) fn connected(&self) -> Vec<AgentId> {
        self.sessions().connected()
    }

    /// Services and agents have other rules: routes follow, in their turn.
    pub(super) fn change(&self, change: impl FnOnce(&mut Sessions)) {
        change(&mut self.sessions());
        self.stale.store(true, Ordering::Release);
        self.bell.wake();
    }

    /// Ends the links of a revoked agent.
    fn throw_out(&self, agent: AgentId) {
        self.handle.disconnect_agent(agent, &Refusal::of(RefusalCode::AgentRevoked).sentence);
    }

    /// Reads the keyring and answers. Blocks.
    fn decide(&self, link: LinkId, peer: Option<SocketAddr>, applicant: &Applicant) {
        let (agent, name) = (applicant.agent, &applicant.name);
        let decision = match self.keyring.admit(applicant, unix_now()) {
            Ok(Ok(admitted)) => {
                if admitted.enrolled_now {
                    tracing::info!(%agent, %name, token = %admitted.record.token, peer = shown(peer), "agent enrolled");
                }
                let generation = {
                    let mut sessions = self.sessions();
                    sessions.joined(agent, admitted.record.name.clone(), admitted.record.token);
                    sessions.ticket(agent, applicant.session)
                };
                let limits = Limits {
                    window_bytes: WINDOW_BYTES_INITIAL,
                    frame_bytes_max: ringspan_tunnel::mux::Limits::default().frame_bytes_max,
                };
                let opened = Some(self.listening.claim(applicant, generation));
                Ok(Welcome { agent, generation, limits, software: self.software.clone(), opened })
            }
            Ok(Err(refusal)) => {
                tracing::warn!(%agent, %name, peer = shown(peer), code = ?refusal.code, why = %refusal, "agent refused");
                Err(refusal)
            }
            Err(error) => {
                tracing::error!(%agent, %error, "agent refused: the keyring failed");
                Err(Refusal::of(RefusalCode::Internal))
            }
        };
        self.handle.decide(link, decision);
    }
}

impl Floor for Hall {
    fn is_connected(&self, agent: AgentId) -> bool {
        self.sessions().is_connected(agent)
    }

    fn disconnect(&self, agent: AgentId) -> bool {
        let was_connected = {
            let mut sessions = self.sessions();
            sessions.revoke(agent);
            sessions.is_connected(agent)
        };
        self.throw_out(agent);
        was_connected
    }

    fn forget(&self, cluster: String) {
        let registry = self.registry.clone();
        self.runtime.spawn(async move {
            if let Err(refusal) = registry.agent_forget(&cluster).await {
                tracing::warn!(cluster, %refusal, "the registry keeps a revoked agent's instances");
            }
        });
    }

    fn export(&self, to: &Path) -> Result<Counts, String> {
        registry_cmd::export_to(&self.registry, to)
    }

    fn accounts(&self, request: Request) -> Answer {
        self.runtime.block_on(user_cmd::answer(&self.access, request))
    }

    fn import(&self, from: &Path) -> Result<Counts, String> {
        self.runtime.block_on(registry_cmd::import_from(&self.registry, from))
    }
}

/// Runs until the process stops.
pub(super) async fn run(
    hall: Arc<Hall>,
    mut events: BridgeEvents,
    mut watches: mpsc::Receiver<WatchOrder>,
    sightings: Sightings,
) {
    let clerk = start_clerk(hall.clone());
    let scribe = start_scribe(hall.registry.clone());
    let mut dials = HashMap::<(AgentId, u16, Reason), u64>::new();
    let mut tell = tokio::time::interval(DIALS_TOLD);
    loop {
        // What is told is told when it is true: after the routes are set.
        let (mut orders, mut tales) = (Vec::new(), Vec::<Tale>::new());
        while let Some(event) = events.try_event() {
            match event {
                BridgeEvent::Hello { link, peer, applicant } => {
                    if let Err(full) = clerk.try_send((link, peer, applicant)) {
                        let (link, ..) = full.into_inner();
                        hall.handle.decide(link, Err(Refusal::of(RefusalCode::TooBusy)));
                    }
                }
                BridgeEvent::DialFailed { agent, backend, reason } => {
                    *dials.entry((agent, backend, reason)).or_default() += 1;
                }
                BridgeEvent::Sighted { agent, generation, sights } => {
                    if let Some(cluster) = hall.sessions().cluster_of(agent, generation) {
                        sightings.add(cluster, generation, &sights);
                    }
                }
                event => {
                    if let BridgeEvent::AgentUp { agent, .. } | BridgeEvent::Carriers { agent, .. } = &event
                        && hall.sessions().is_revoked(*agent)
                    {
                        hall.throw_out(*agent);
                    }
                    match &event {
                        BridgeEvent::AgentUp { agent, generation, .. } => hall.listening.on_up(*agent, *generation),
                        BridgeEvent::AgentGone { agent, generation, .. } => hall.listening.on_gone(*agent, *generation),
                        _ => {}
                    }
                    orders.extend(on_change(&mut hall.sessions(), event, &mut tales));
                }
            }
        }
        if hall.stale.swap(false, Ordering::Acquire) || !orders.is_empty() {
            hall.handle.set_routes(Arc::new(hall.sessions().routes()));
        }
        tales.into_iter().for_each(|tale| tale());
        for order in orders {
            // Only a stopped registry closes it.
            let _closed = scribe.send(order).await;
        }
        tokio::select! {
            () = hall.bell.0.notified() => {}
            Some(order) = watches.recv() => {
                let mut next = Some(order);
                while let Some(order) = next {
                    carry_out(&hall, &mut events, &sightings, order);
                    next = watches.try_recv().ok();
                }
            }
            _ = tell.tick() => {
                tell_dials(&hall.sessions(), &mut dials);
                hall.listening.tick();
            }
        }
    }
}

/// Asks an agent to look somewhere, or no longer. One that is gone need not be asked: the registry knows.
fn carry_out(hall: &Hall, events: &mut BridgeEvents, sightings: &Sightings, order: WatchOrder) {
    let WatchOrder { cluster, generation, key, watch } = order;
    let Some(agent) = hall.sessions().agent_of(&cluster, generation) else { return };
    match watch {
        None => events.unwatch(agent, generation, key),
        Some(watch) => {
            if !events.watch(agent, generation, watch) {
                sightings.unable(&cluster, generation, key);
            }
        }
    }
}

/// A line of the log, not yet written.
type Tale = Box<dyn FnOnce() + Send>;

/// Takes an event in; the order it makes, if routes or registry have to know, and what to tell of it.
fn on_change(sessions: &mut Sessions, event: BridgeEvent, tales: &mut Vec<Tale>) -> Option<Order> {
    match event {
        BridgeEvent::AgentUp { agent, applicant, generation, peer } => {
            let order = sessions.on_up(&applicant, generation);
            sessions.came(agent, peer, unix_now() * 1000);
            tales.push(Box::new(move || {
                let Applicant { name, exposes, software, .. } = &*applicant;
                let exposes = exposes.iter().map(|e| format!("{}={}", e.service, e.address)).collect::<Vec<_>>();
                tracing::info!(%agent, %name, peer = shown(peer), exposes = exposes.join(","), software, "agent up");
            }));
            Some(order)
        }
        BridgeEvent::AgentGone { agent, generation, reason, detail } => {
            let order = sessions.on_gone(agent, generation)?;
            tales.push(Box::new(move || {
                tracing::warn!(%agent, %reason, detail, "agent gone: its backends take no visitors");
            }));
            Some(order)
        }
        BridgeEvent::Health { agent, generation, changes } => {
            let order = sessions.on_health(agent, generation, &changes)?;
            for change in changes {
                let Some(expose) = sessions.backend(agent, change.backend).cloned() else { continue };
                tales.push(Box::new(move || tell_health(&expose, agent, &change)));
            }
            Some(order)
        }
        BridgeEvent::Carriers { agent, count } => {
            sessions.carriers(agent, count);
            tracing::debug!(%agent, count, "carriers");
            None
        }
        BridgeEvent::Ejected { agent, backend, reason, length } => {
            let expose = sessions.backend(agent, backend);
            let (service, address) = expose.map(|e| (e.service.as_str(), e.address.as_str())).unzip();
            tracing::warn!(service, address, %agent, %reason, ?length, "backend ejected: visitors go to others");
            None
        }
        BridgeEvent::VisitorsRefused { listener, reason, count } => {
            tracing::warn!(listener, %reason, count, why = reason.sentence(), "visitors refused");
            None
        }
        BridgeEvent::HandshakesFailed { reason, count, example } => {
            tracing::warn!(%reason, count, example, why = reason.sentence(), "link: handshakes failed");
            None
        }
        BridgeEvent::Hello { .. } | BridgeEvent::DialFailed { .. } | BridgeEvent::Sighted { .. } => None,
    }
}

fn tell_health(expose: &Expose, agent: AgentId, change: &Change) {
    let (service, address) = (&expose.service, &expose.address);
    let code = change.after.code.map_or("unseen", |code| code.as_str());
    match (change.before.health, change.after.health) {
        (before, after) if before == after => tracing::debug!(%service, address, %agent, code, "backend checked"),
        (_, Health::Up) => tracing::info!(%service, address, %agent, code, "backend up"),
        (_, Health::Down) => {
            let why = change.after.code.map_or("", |code| code.sentence());
            tracing::warn!(%service, address, %agent, code, why, "backend down: it takes no new visitors");
        }
        (_, Health::Unknown) => tracing::info!(%service, address, %agent, "backend unknown: it takes no new visitors"),
    }
}

fn tell_dials(sessions: &Sessions, dials: &mut HashMap<(AgentId, u16, Reason), u64>) {
    for ((agent, backend, reason), count) in dials.drain() {
        let expose = sessions.backend(agent, backend);
        let (service, address) = expose.map_or(("?", "?"), |expose| (expose.service.as_str(), expose.address.as_str()));
        tracing::warn!(service, address, %agent, %reason, count, why = reason.sentence(), "dials failed");
    }
}

type Application = (LinkId, Option<SocketAddr>, Box<Applicant>);

/// Answers agents one after the other, on a thread that may wait for the disk.
fn start_clerk(hall: Arc<Hall>) -> mpsc::Sender<Application> {
    let (queue, mut waiting) = mpsc::channel::<Application>(CLERK_QUEUE);
    tokio::task::spawn_blocking(move || {
        while let Some((link, peer, applicant)) = waiting.blocking_recv() {
            hall.decide(link, peer, &applicant);
        }
    });
    queue
}

/// Tells the registry, in order.
fn start_scribe(registry: Registry) -> mpsc::Sender<Order> {
    let (queue, mut waiting) = mpsc::channel::<Order>(SCRIBE_QUEUE);
    tokio::spawn(async move {
        while let Some(order) = waiting.recv().await {
            let result = match order {
                Order::Up { cluster, generation, exposed } => registry.agent_up(&cluster, generation, exposed).await,
                Order::Health { cluster, generation, deltas } => {
                    registry.agent_health(&cluster, generation, deltas).await
                }
                Order::Gone { cluster, generation } => registry.agent_gone(&cluster, generation).await,
            };
            match result {
                Ok(()) => {}
                Err(RegistryRefusal::Stopped) => return,
                // Visitors are carried all the same: routes do not depend on the registry.
                Err(refusal) => tracing::warn!(%refusal, "the registry did not take an agent's news"),
            }
        }
    });
    queue
}

fn shown(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "?".to_owned(), |peer| peer.to_string())
}
