//! One client: its connection, what it has introduced itself as, what it subscribes to, and whether it still answers.
//! Promise: when its connection has ended, so have its subscriptions and instances, whatever was under way.
//!
//! ```text
//! accepted ──setup──► introduced ──silence──► asked ──anything said──► introduced
//!    └─silence─► closed                         └─no answer─► closed
//! ```

use super::Limits;
use super::body::Budget;
use super::outbox::{Outbox, Topic};
use super::payload::Payload;
use super::stats::{End, GrpcStats};
use super::words::{Sorry, code};
use crate::access::{Access, Action, Principal, Version};
use crate::model::{Name, ServiceKey};
use crate::push::{Hub, Subscriber, SubscriptionId, Update};
use crate::service::Registry;
use crate::table::{ClientId, Command, Refusal};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::RwLock;

/// Bytes of unfinished requests of one connection: the largest one, and some beside it.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// How long to wait before a busy registry is told again that a client has gone.
const RETRY: Duration = Duration::from_millis(100);

/// What all clients of a server share.
pub(super) struct House {
    pub(super) registry: Registry,
    pub(super) access: Access,
    pub(super) hub: Hub,
    pub(super) limits: Limits,
    pub(super) clients: Clients,
    /// Bytes of unfinished requests of all connections.
    pub(super) bytes: Arc<Budget>,
}

/// Everybody who is connected over gRPC. Clones are the same.
#[derive(Clone, Default)]
pub struct Clients {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    all: Mutex<BTreeMap<ClientId, Arc<Client>>>,
    next: AtomicU64,
    stats: GrpcStats,
}

/// A connected client, for people.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// Its connection: when it came (Unix milliseconds), from which address and port.
    pub connection: String,
    /// The connection's other end.
    pub peer: SocketAddr,
    /// What it says it is, `Nacos-Go-Client:v2.3.5`; empty before it has said anything.
    pub version: String,
    /// How many services it subscribes to.
    pub subscriptions: usize,
}

impl Clients {
    fn all(&self) -> MutexGuard<'_, BTreeMap<ClientId, Arc<Client>>> {
        self.inner.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// What they have come to.
    pub fn stats(&self) -> &GrpcStats {
        &self.inner.stats
    }

    /// Who they are, in the order in which they came.
    pub fn list(&self) -> Vec<ClientInfo> {
        self.all().values().map(|client| client.info()).collect()
    }
}

/// One connection. See the module.
pub(super) struct Client {
    pub(super) id: ClientId,
    /// Nacos' connection id.
    pub(super) name: String,
    pub(super) peer: SocketAddr,
    pub(super) house: Arc<House>,
    pub(super) outbox: Outbox,
    /// Bytes of its unfinished requests.
    pub(super) bytes: Arc<Budget>,
    /// Whether commands may still be submitted for it. Held for reading while one is, so that the last one,
    /// [`Command::ClientGone`], comes after all others.
    open: RwLock<bool>,
    published: AtomicBool,
    desk: Mutex<Desk>,
}

struct Desk {
    /// It has its one stream.
    has_stream: bool,
    /// What it says it is, once it has.
    version: Option<Name>,
    /// `None`: it has ended.
    subscriptions: Option<HashMap<Arc<Topic>, SubscriptionId>>,
    heard: Instant,
    /// Who asked last, and in which state of the accounts that was looked at last.
    principal: Option<(Principal, Version)>,
    /// It was asked whether it is there, and has said nothing since.
    asked: Option<Instant>,
}

/// What is to be done about a client's silence.
pub(super) enum Look {
    /// Look again then, or earlier.
    Wait(Instant),
    /// Close the connection.
    End(End),
}

impl Client {
    pub(super) fn enter(house: &Arc<House>, peer: SocketAddr) -> Arc<Client> {
        let inner = &house.clients.inner;
        let id = ClientId(inner.next.fetch_add(1, Ordering::Relaxed) + 1);
        let unix_ms = house.registry.unix_ms(house.registry.now());
        let desk = Desk {
            has_stream: false,
            version: None,
            subscriptions: Some(HashMap::new()),
            heard: Instant::now(),
            principal: None,
            asked: None,
        };
        let client = Arc::new(Client {
            id,
            name: format!("{unix_ms}_{}_{}", peer.ip(), peer.port()),
            peer,
            house: house.clone(),
            outbox: Outbox::default(),
            bytes: Budget::new(REQUEST_BYTES_MAX),
            open: RwLock::new(true),
            published: AtomicBool::new(false),
            desk: Mutex::new(desk),
        });
        inner.stats.on_connection();
        house.clients.all().insert(id, client.clone());
        client
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> &GrpcStats {
        self.house.clients.stats()
    }

    fn info(&self) -> ClientInfo {
        let desk = self.desk();
        ClientInfo {
            connection: self.name.clone(),
            peer: self.peer,
            version: desk.version.as_ref().map(ToString::to_string).unwrap_or_default(),
            subscriptions: desk.subscriptions.as_ref().map_or(0, HashMap::len),
        }
    }

    /// It has said something.
    pub(super) fn on_heard(&self, now: Instant) {
        let mut desk = self.desk();
        (desk.heard, desk.asked) = (now, None);
    }

    /// Somebody has asked for something on it.
    pub(super) fn on_principal(&self, principal: &Principal) {
        self.desk().principal = Some((principal.clone(), self.house.access.version()));
    }

    /// Whether it subscribes to what it may not read any more, since accounts have changed.
    fn is_shut_out(&self) -> bool {
        let access = &self.house.access;
        if !access.is_required() {
            return false;
        }
        let mut desk = self.desk();
        let version = access.version();
        let Some((principal, seen)) = &mut desk.principal else { return false };
        let is_same = *seen == version;
        *seen = version;
        if is_same {
            return false;
        }
        let again = access.again(principal);
        let may = |topic: &Arc<Topic>| again.as_ref().is_some_and(|p| p.may(topic.0.namespace(), Action::Read));
        again.is_none() || desk.subscriptions.as_ref().is_some_and(|s| !s.keys().all(may))
    }

    /// Claims its one stream; `false`: it has one.
    pub(super) fn take_stream(&self) -> bool {
        !std::mem::replace(&mut self.desk().has_stream, true)
    }

    /// It says what it is; the first word counts.
    pub(super) fn introduce(&self, version: &str) {
        let version: String = version.chars().filter(|c| !c.is_control() && *c != ' ').take(100).collect();
        let mut desk = self.desk();
        if desk.version.is_none() {
            tracing::debug!(connection = self.name, version, "grpc: a client");
            desk.version = Some(version.into());
        }
    }

    /// Whether it has said what it is: before that it may only ask whether we are here.
    pub(super) fn is_introduced(&self) -> bool {
        self.desk().version.is_some()
    }

    /// Submits a command on its behalf, unless its connection has ended.
    pub(super) async fn submit(&self, command: Command) -> Result<(), Sorry> {
        let open = self.open.read().await;
        if !*open {
            return Err(Sorry::new(code::UNREGISTERED, "Connection is unregistered."));
        }
        if let Command::ClientPublish { .. } = command {
            self.published.store(true, Ordering::Relaxed);
        }
        self.house.registry.submit(command).await?;
        Ok(())
    }

    /// Tells it of each change of a service from now on.
    pub(super) fn subscribe(self: &Arc<Self>, service: &ServiceKey, clusters: &str) -> Result<Arc<Topic>, Sorry> {
        let topic = Arc::new((service.clone(), Name::from(clusters)));
        let mut desk = self.desk();
        let label = format!("{} {}", self.peer, desk.version.as_deref().unwrap_or("unknown"));
        let Some(subscriptions) = &mut desk.subscriptions else {
            return Err(Sorry::new(code::UNREGISTERED, "Connection is unregistered."));
        };
        if subscriptions.contains_key(&topic) {
            return Ok(topic);
        }
        let max = self.house.limits.subscriptions_max;
        if subscriptions.len() >= max {
            let text = format!("a connection may have {max} subscriptions, and this one has; unsubscribe some");
            return Err(Sorry::new(code::OVER_THRESHOLD, text));
        }
        let subscriber = Arc::new(Listener { client: Arc::downgrade(self), topic: topic.clone() });
        let id = self.house.hub.subscribe(service, clusters, label, subscriber);
        let id = id.map_err(|e| Sorry::new(code::OVER_THRESHOLD, e.to_string()))?;
        subscriptions.insert(topic.clone(), id);
        Ok(topic)
    }

    /// Tells it how a service is. `false`: it is gone.
    pub(super) fn push(&self, topic: &Arc<Topic>, update: &Update) -> bool {
        self.outbox.push(Instant::now(), topic, update.bare().clone())
    }

    pub(super) fn unsubscribe(&self, service: &ServiceKey, clusters: &str) {
        let topic = (service.clone(), Name::from(clusters));
        let id = self.desk().subscriptions.as_mut().and_then(|s| s.remove(&topic));
        if let Some(id) = id {
            self.house.hub.unsubscribe(service, id);
        }
    }

    fn subscribes(&self, topic: &Topic) -> bool {
        self.desk().subscriptions.as_ref().is_some_and(|s| s.contains_key(topic))
    }

    /// Looks whether it still reads and answers, and asks it if it has long been silent.
    pub(super) fn look(&self, now: Instant) -> Look {
        let limits = &self.house.limits;
        if self.is_shut_out() {
            return Look::End(End::Denied);
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let waiting = self.outbox.waiting_since();
        if waiting.is_some_and(|then| since(then) >= limits.stall_max) {
            return Look::End(End::Stalled);
        }
        let unacked = now.checked_sub(limits.answer_max).map_or(0, |then| self.outbox.overdue(then));
        self.stats().on_unacked(unacked);
        let mut desk = self.desk();
        match desk.asked {
            Some(asked) if since(asked) >= limits.answer_max => return Look::End(End::Silent),
            Some(_) => {}
            None if desk.version.is_none() => {
                if since(desk.heard) >= limits.silence_max {
                    return Look::End(End::Silent);
                }
            }
            None => {
                if since(desk.heard) >= limits.silence_max || unacked > 0 {
                    desk.asked = Some(now);
                    // No room means that it does not read: it will stall.
                    self.outbox.say(now, question("ClientDetectionRequest", ""));
                }
            }
        }
        let next = match desk.asked {
            Some(asked) => asked + limits.answer_max,
            None => desk.heard + limits.silence_max,
        };
        let others =
            [waiting.map(|t| t + limits.stall_max), self.outbox.awaited_since().map(|t| t + limits.answer_max)];
        let next = others.into_iter().flatten().fold(next, Instant::min);
        // A push that is written while nobody looks is late at most twice.
        Look::Wait(next.min(now + limits.answer_max))
    }

    /// Its connection has ended: nobody is told any more, and what it published goes.
    pub(super) async fn leave(&self, end: End) {
        self.stats().on_end(end);
        self.outbox.close();
        let subscriptions = self.desk().subscriptions.take().unwrap_or_default();
        for (topic, id) in subscriptions {
            self.house.hub.unsubscribe(&topic.0, id);
        }
        *self.open.write().await = false;
        if self.published.load(Ordering::Relaxed) {
            let gone = Command::ClientGone { client: self.id };
            while let Err(Refusal::Busy { .. }) = self.house.registry.submit(gone.clone()).await {
                tokio::time::sleep(RETRY).await;
            }
        }
        self.house.clients.all().remove(&self.id);
        tracing::debug!(connection = self.name, end = end.as_str(), "grpc: a client has gone");
    }
}

/// A message of the server's own that awaits an answer. `more`: further members, each with a comma before it.
pub(super) fn question(kind: &str, more: &str) -> Payload {
    Payload::new(kind, format!(r#"{{"headers":{{}},"requestId":"0","module":"internal"{more}}}"#))
}

/// One subscription of a client.
struct Listener {
    client: Weak<Client>,
    topic: Arc<Topic>,
}

impl Subscriber for Listener {
    fn on_update(&self, update: &Update) -> bool {
        let Some(client) = self.client.upgrade() else { return false };
        client.subscribes(&self.topic) && client.push(&self.topic, update)
    }
}
