//! The agent: keeps a link to its bridge and dials the backends that its visitors are for.
//!
//! ```text
//! worker 0: carriers 0, 2, ...  + the health feed      worker 1: carriers 1, 3, ...
//!     carrier: idle ──backoff──▶ dialing ──▶ TLS, HELLO ──▶ up ──lost──▶ idle
//! ```
//! Promises: a link that is lost is tried again for ever, with backoff and jitter; a backend that cannot be reached
//! costs its visitor at most `dial_timeout`; the bridge knows the health of every backend as soon as a carrier is up,
//! and each change of it in order.

mod feed;
mod spares;
mod worker;

use crate::frame::Reason;
use crate::health_feed::BackendHealth;
use crate::hello::{Introduction, Refusal, Welcome};
use crate::memory::MemoryLimits;
use crate::mux::OpenInfo;
use crate::plane::Shares;
pub use crate::plane::{Backend, PlaneOptions};
use crate::slots::Key;
use crate::stats::{Stats, WorkerStats};
use crate::tls::ClientTls;
use crate::watch_feed::{Orders, Sight};
use arc_swap::ArcSwap;
use ringspan_engine::kernel::Socket;
use ringspan_engine::mailbox::{Receiver, Sender, Wake, mailbox};
use ringspan_engine::resident::Resident;
use ringspan_engine::worker::Seat;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Letters between workers: a few for each carrier that comes or goes.
const MAIL_MAX: usize = 1024;

/// Events the control plane has not taken yet. Full: the oldest news would be stale anyway; new ones are dropped and
/// counted, the state itself is in the stats.
const EVENTS_MAX: usize = 4096;

/// What an agent needs to know to start.
pub struct AgentOptions {
    /// The bridge's link port; several addresses are tried in turn. See [`AgentHandle::set_bridge`].
    pub bridge: Vec<SocketAddr>,
    /// Its name, for SNI.
    pub host: String,
    /// `None`: no TLS.
    pub tls: Option<ClientTls>,
    /// Who we are and what we expose. [`Introduction::check`] it first.
    pub introduction: Introduction,
    /// Connections to the bridge, 1 to 16. Default 2: one for each of two workers there.
    pub carriers: u8,
    /// How each of the exposed backends is reached, in their order.
    pub backends: Vec<Backend>,
    /// A dial that takes longer is a failure. Default 5 s.
    pub dial_timeout: Duration,
    /// What its streams may take.
    pub memory: MemoryLimits,
    /// Direct carriers there may be, waiting or with a stream; 0: streams stay on the link's carriers. Default 256.
    pub direct_max: u16,
    /// How bytes are moved.
    pub plane: PlaneOptions,
    /// Who makes the connections to the bridge. Default: the workers.
    pub reach: Reach,
}

/// Who makes the connections to the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The workers: a TCP connection to one of [`AgentOptions::bridge`].
    #[default]
    Dial,
    /// The control plane: [`AgentEvent::Reach`] asks for each. For bridges behind proxies and other detours.
    Ask,
}

/// What the control plane hears.
#[derive(Debug)]
pub enum AgentEvent {
    /// A carrier is up.
    Up {
        /// Which, from 0.
        carrier: u8,
        /// The bridge's words.
        welcome: Welcome,
    },
    /// A carrier ended, or could not be made.
    Down {
        /// Which, from 0.
        carrier: u8,
        /// Whether it was up.
        was_up: bool,
        /// Why.
        reason: Reason,
        /// The same for people.
        detail: String,
        /// When it is tried again.
        retry: Duration,
        /// Whether this is news.
        tell: bool,
    },
    /// The bridge said no.
    Refused {
        /// Which, from 0.
        carrier: u8,
        /// Why, and what to do.
        refusal: Refusal,
        /// When it is tried again.
        retry: Duration,
        /// Whether this is news.
        tell: bool,
    },
    /// A connection to the bridge is wanted: [`AgentHandle::reached`] within [`REACH_MAX`]. Of [`Reach::Ask`] alone.
    Reach {
        /// What to answer to.
        call: CallId,
    },
    /// A visitor for a backend that the control plane connects to: [`AgentHandle::answer`] within `dial_timeout`.
    Ask {
        /// What to answer to.
        ask: AskId,
        /// The backend's number.
        backend: u16,
        /// What the bridge said of the visitor: untrusted as the visitor itself.
        info: OpenInfo,
    },
    /// What the bridge wants us to look at from now on: answer each with [`AgentHandle::set_sight`], at least once.
    Watch(Orders),
    /// A backend could not be reached for a visitor.
    DialFailed {
        /// Its number.
        backend: u16,
        /// Why.
        reason: Reason,
    },
}

/// One question of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AskId {
    worker: u16,
    key: Key,
}

/// One connection to the bridge that a worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    worker: u16,
    /// The carrier's place there, marked if it is a direct one.
    place: u32,
    generation: u32,
}

/// A control plane that has not brought a connection by then is asked for another: twice what a proxy far away takes to
/// resolve a name, to connect and to answer.
pub const REACH_MAX: Duration = Duration::from_secs(20);

/// Letters to workers; but for answers all about the health feed.
enum Mail {
    /// The control plane's answer to an [`AgentEvent::Reach`].
    Reached { call: CallId, answer: Result<Socket, (Reason, String)> },
    /// The control plane's answer to an [`AgentEvent::Ask`].
    Answer { key: Key, answer: Result<Socket, Reason> },
    /// To worker 0: a carrier can carry the feed.
    Up { worker: usize, key: Key, generation: u64 },
    /// To worker 0: it no longer can.
    Down { worker: usize, key: Key },
    /// To worker 0: the bridge asks for a snapshot.
    Heard { worker: usize, key: Key, payload: Vec<u8> },
    /// To the carrier's worker.
    Send { key: Key, payload: Vec<u8> },
    /// To the carrier's worker: the bridge broke the protocol.
    Broken { key: Key, detail: String },
}

struct Shared {
    bridge: ArcSwap<Vec<SocketAddr>>,
    mail: Vec<Sender<Mail>>,
    stats: Vec<Arc<WorkerStats>>,
    shares: Shares,
    /// News of backends for worker 0: the latest word on each, so it is bounded and loses no state. Not on the data
    /// path: the worker looks only when `fresh` says so, which is when a verdict changed.
    health: Mutex<BTreeMap<u16, BackendHealth>>,
    /// The same of places that the bridge wants us to look at.
    sights: Mutex<BTreeMap<u64, Sight>>,
    fresh: AtomicBool,
    leaving: AtomicBool,
    retiring: AtomicBool,
}

/// An agent that is not running yet: give the residents to the workers, one per seat in order.
pub struct Agent {
    /// One per seat.
    pub residents: Vec<Box<dyn Resident>>,
    /// For whoever steers it.
    pub handle: AgentHandle,
    /// For whoever listens to it.
    pub events: AgentEvents,
}

impl Agent {
    /// Prepares everything. `wake` is rung when there are events.
    pub fn new(options: AgentOptions, seats: &[Seat], wake: Arc<dyn Wake>) -> Agent {
        let (events, receiver) = mailbox(EVENTS_MAX, wake);
        let wakes = seats.iter().map(|seat| Arc::new(seat.waker.clone()) as Arc<dyn Wake>);
        let (mail, boxes): (Vec<_>, Vec<_>) = wakes.clone().map(|wake| mailbox(MAIL_MAX, wake)).unzip();
        let shared = Arc::new(Shared {
            bridge: ArcSwap::from_pointee(options.bridge.clone()),
            mail,
            stats: seats.iter().map(|_| Arc::default()).collect(),
            shares: Shares::new(options.memory),
            health: Mutex::default(),
            sights: Mutex::default(),
            fresh: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
        });
        let options = Arc::new(options);
        let residents = boxes
            .into_iter()
            .enumerate()
            .map(|(index, mail)| {
                let own = worker::Own { index, mail, events: events.clone() };
                Box::new(worker::AgentWorker::new(&options, own, shared.clone())) as Box<dyn Resident>
            })
            .collect();
        let wakes: Arc<[Arc<dyn Wake>]> = wakes.collect();
        let first = wakes.first().cloned();
        Agent { residents, handle: AgentHandle { shared, first, wakes }, events: AgentEvents { receiver } }
    }
}

/// Steers an agent. Clones steer the same one.
#[derive(Clone)]
pub struct AgentHandle {
    shared: Arc<Shared>,
    first: Option<Arc<dyn Wake>>,
    wakes: Arc<[Arc<dyn Wake>]>,
}

impl AgentHandle {
    /// Takes no new visitors: the bridge is told, and ends each link with its last stream (an [`AgentEvent::Down`]
    /// each). Over when [`Stats::carriers_up`] and [`Stats::streams_open`] are 0, or the caller has waited enough.
    /// Its residents are [`Done`](ringspan_engine::resident::Next::Done) then.
    pub fn drain(&self) {
        self.shared.leaving.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Makes no new connections, and lets go of those that the bridge drains: for a session that a newer one of the
    /// same agent takes the place of, which the bridge knows best when to do. It is over as after
    /// [`drain`](AgentHandle::drain).
    pub fn retire(&self) {
        self.shared.retiring.store(true, Ordering::Release);
        self.wake_all();
    }

    fn wake_all(&self) {
        for wake in &*self.wakes {
            wake.wake();
        }
    }

    /// A backend's verdict has changed: the bridge will hear of it, in order. Panics if there is no such backend.
    pub fn set_health(&self, backend: u16, state: BackendHealth) {
        self.shared.health.lock().unwrap_or_else(PoisonError::into_inner).insert(backend, state);
        self.shared.fresh.store(true, Ordering::Release);
        if let Some(wake) = &self.first {
            wake.wake();
        }
    }

    /// What we see of a place that the bridge wants us to look at has changed.
    pub fn set_sight(&self, sight: Sight) {
        self.shared.sights.lock().unwrap_or_else(PoisonError::into_inner).insert(sight.key, sight);
        self.shared.fresh.store(true, Ordering::Release);
        if let Some(wake) = &self.first {
            wake.wake();
        }
    }

    /// Answers an [`AgentEvent::Ask`]: a connected stream socket, which the data path makes its own, or why there is
    /// none. Too late is harmless.
    pub fn answer(&self, ask: AskId, answer: Result<Socket, Reason>) {
        let answer = answer.and_then(|socket| match socket.make_nonblocking() {
            Ok(()) => Ok(socket),
            Err(_) => Err(Reason::DialLocal),
        });
        if self.shared.mail[usize::from(ask.worker)].send(Mail::Answer { key: ask.key, answer }).is_err() {
            tracing::warn!(worker = ask.worker, "a worker takes no mail: a visitor waits until its dial is given up");
        }
    }

    /// Answers an [`AgentEvent::Reach`]: a connected stream socket on which the bridge's link port is about to be spoken
    /// to (TCP, or one end of [`Socket::pair`]), or why there is none, in a word and in a sentence. Too late is harmless.
    pub fn reached(&self, call: CallId, answer: Result<Socket, (Reason, String)>) {
        let answer = answer.and_then(|socket| match socket.make_nonblocking() {
            Ok(()) => Ok(socket),
            Err(error) => Err((Reason::DialLocal, error.to_string())),
        });
        if self.shared.mail[usize::from(call.worker)].send(Mail::Reached { call, answer }).is_err() {
            tracing::warn!(worker = call.worker, "a worker takes no mail: a connection to the bridge is lost");
        }
    }

    /// Where the bridge is, from the next attempt on: for a name that was resolved again.
    pub fn set_bridge(&self, addresses: Vec<SocketAddr>) {
        self.shared.bridge.store(Arc::new(addresses));
    }

    /// Other limits for what streams may take, from now on.
    pub fn set_memory(&self, limits: MemoryLimits) {
        self.shared.shares.budget.set_limits(limits);
    }

    /// Counters, summed over the workers.
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for worker in &self.shared.stats {
            sum.add(worker);
        }
        sum
    }
}

/// The agent's events, for one listener.
pub struct AgentEvents {
    receiver: Receiver<AgentEvent>,
}

impl AgentEvents {
    /// The next event, if there is one.
    pub fn try_event(&mut self) -> Option<AgentEvent> {
        self.receiver.try_recv()
    }
}
