//! The bridge: visitors come to its listeners, agents to its link port, and a visitor's bytes ride a link to a backend.
//!
//! ```text
//!             worker 0          worker 1                 control plane
//! visitors ─▶ listener          listener   (one SO_REUSEPORT socket each)
//! agents   ─▶ link port         link port
//!             plane  ◀─mail─▶   plane      ──events──▶   BridgeEvents
//!                ▲                 ▲       ◀─mail, snapshots── BridgeHandle
//! ```
//! Promises: a visitor gets a stream at once or is reset at once, with the reason counted; a lost agent is used by no
//! worker from the moment one of them knows (the [`directory`] is a snapshot that the losing worker replaces, before
//! the control plane has heard); nobody who has not proved who it is holds more than a few KiB for 10 s.
//!
//! The control plane decides who may come in ([`BridgeEvent::Hello`] → [`BridgeHandle::decide`]) and where services
//! live ([`BridgeHandle::set_routes`]); nothing here waits for it.

mod agents;
mod directory;
mod ears;
mod entry;
mod greeting;
mod listening;
mod roster;
mod visitors;
mod worker;

use crate::frame::Reason;
use crate::health_feed::Change;
use crate::hello::{Applicant, Refusal, Welcome};
use crate::identity::AgentId;
use crate::memory::{Budget, MemoryLimits};
use crate::outliers::Outliers;
use crate::plane::Carrier;
pub use crate::plane::{CarrierMode, Mover, PlaneOptions};
use crate::routes::Routes;
use crate::slots::Key;
use crate::stats::{Stats, WorkerStats};
use crate::tls::ServerTls;
use crate::watch_feed::{Sight, Watch};
use arc_swap::ArcSwap;
use directory::Directory;
pub use ears::{Closing, Inherited};
use ears::{Ears, Step, Steps};
pub(crate) use entry::Ticket;
pub use entry::{Entry, Gate, OnPlaced};
use entry::{Handed, Visitor};
use ringspan_engine::kernel::Socket;
use ringspan_engine::mailbox::{Full, Receiver, Sender, Wake, mailbox};
use ringspan_engine::resident::Resident;
use ringspan_engine::time::Instant;
use ringspan_engine::worker::Seat;
use roster::{Order, Roster};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Connections the kernel queues for us while a worker is in the middle of a turn; net.core.somaxconn caps it.
const BACKLOG: i32 = 4096;

/// A visitor that has said nothing for this long is asked by TCP whether it is still there: a phone that went out of
/// reach should not keep its stream for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Letters between workers and from the control plane: a burst of handed-over visitors. Full: the visitor is refused.
const MAIL_MAX: usize = 4096;

/// Events the control plane has not taken yet. Full: the worker keeps its own until there is room.
const EVENTS_MAX: usize = 16_384;

/// What a bridge needs to know to start.
pub struct BridgeOptions {
    /// Where agents connect.
    pub link: SocketAddr,
    /// `None`: no TLS on the link port.
    pub tls: Option<ServerTls>,
    /// Where visitors connect.
    pub listeners: Vec<Listener>,
    /// Connections to one worker's link port that have not proved who they are, at once. Default 256; for one more
    /// the one that has been silent longest is closed and counted.
    pub handshakes_max: usize,
    /// Streams on one carrier, 1 to 65,535. Default 16,384.
    pub streams_max: u16,
    /// What its streams may take.
    pub memory: MemoryLimits,
    /// Name and version of this software, told to agents.
    pub software: String,
    /// How bytes are moved.
    pub plane: PlaneOptions,
}

/// One public address.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where visitors connect.
    pub address: SocketAddr,
    /// What it is called, and what visitors get.
    pub gate: Arc<Gate>,
}

/// Why a bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// An address could not be listened on.
    #[error("listener \"{listener}\": cannot listen on {address}: {error}{}", remedy(.error))]
    Bind {
        /// Its name; `link` for the link port.
        listener: String,
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ". Another process has it: stop that one (ss -ltnp shows it), or take another port",
        io::ErrorKind::PermissionDenied => {
            ". Ports below 1024 need CAP_NET_BIND_SERVICE, or sysctl net.ipv4.ip_unprivileged_port_start"
        }
        io::ErrorKind::AddrNotAvailable => ". This machine has no such address: ip address shows those it has",
        _ => "",
    }
}

/// One connection of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId {
    worker: u16,
    key: Key,
}

/// What the control plane hears, in order for each agent.
#[derive(Debug)]
pub enum BridgeEvent {
    /// Somebody proved to hold its own key and wants in: answer with [`BridgeHandle::decide`] within 10 s.
    Hello {
        /// Whom to answer.
        link: LinkId,
        /// From where it connects.
        peer: Option<SocketAddr>,
        /// Who it says it is, and what it offers.
        applicant: Box<Applicant>,
    },
    /// The first carrier of an agent's session is up: its backends are in reach, with health unknown. If an older
    /// session of the agent is there, it comes only when the new one has said how its backends are, and the
    /// [`Health`](BridgeEvent::Health) right behind it: set routes for both at once, and visitors see no gap.
    AgentUp {
        /// Who.
        agent: AgentId,
        /// As it introduced itself.
        applicant: Box<Applicant>,
        /// The session's number, from the [`Welcome`].
        generation: u64,
        /// From where.
        peer: Option<SocketAddr>,
    },
    /// The last carrier of the session is gone: its backends are out of reach. Visitors are no longer sent there.
    AgentGone {
        /// Who.
        agent: AgentId,
        /// Which session.
        generation: u64,
        /// Why the last carrier ended.
        reason: Reason,
        /// The same for people.
        detail: String,
    },
    /// One more connection of an agent is up, or one of several is gone; for the log.
    Carriers {
        /// Who.
        agent: AgentId,
        /// How many it has now.
        count: u32,
    },
    /// Backends of an agent changed their health, in order.
    Health {
        /// Who.
        agent: AgentId,
        /// Which session.
        generation: u64,
        /// What changed.
        changes: Vec<Change>,
    },
    /// What an agent sees where it was asked to look ([`BridgeEvents::watch`]), in order.
    Sighted {
        /// Who.
        agent: AgentId,
        /// Which session.
        generation: u64,
        /// What it sees now.
        sights: Vec<Sight>,
    },
    /// An agent could not reach a backend for a visitor.
    DialFailed {
        /// Who.
        agent: AgentId,
        /// The backend's place in what the agent exposes.
        backend: u16,
        /// Why.
        reason: Reason,
    },
    /// A backend gets no visitors of this bridge for a while: it could not be reached for some of them.
    Ejected {
        /// Who.
        agent: AgentId,
        /// The backend's place in what the agent exposes.
        backend: u16,
        /// Why.
        reason: Reason,
        /// For how long.
        length: Duration,
    },
    /// Visitors were reset without a stream in the last second.
    VisitorsRefused {
        /// The listener's name.
        listener: String,
        /// Why.
        reason: Reason,
        /// How many.
        count: u64,
    },
    /// Connections to the link port ended before they were up, in the last second.
    HandshakesFailed {
        /// Why.
        reason: Reason,
        /// How many.
        count: u64,
        /// The last one, for people: address and sentence.
        example: String,
    },
}

/// The answer to a [`BridgeEvent::Hello`].
pub type Decision = Result<Welcome, Refusal>;

enum Mail {
    Decide {
        key: Key,
        decision: Decision,
    },
    /// Brought by the control plane.
    Entry(Box<Visitor>),
    /// An agent's connection, brought by the control plane.
    Link {
        socket: Socket,
        peer: Option<SocketAddr>,
    },
    /// Handed over by another worker.
    Visitor(Box<Handed>),
    Carrier(Box<Transfer>),
    Health {
        key: Key,
        payload: Vec<u8>,
    },
    End {
        key: Key,
        detail: String,
    },
    /// Carriers of sessions before this one get no new streams.
    Retire {
        agent: AgentId,
        below: u64,
        sentence: String,
    },
    /// Agents are to make another link.
    CallOver {
        sentence: String,
    },
    /// Nobody is let in any more.
    Leave,
    Disconnect {
        agent: AgentId,
        below: u64,
        sentence: String,
    },
}

/// A welcomed carrier on its way to the worker that will own it.
struct Transfer {
    body: Box<Carrier>,
    /// The WELCOME as it is sent.
    payload: Vec<u8>,
    welcome: Welcome,
    applicant: Box<Applicant>,
    peer: Option<SocketAddr>,
}

/// What workers report; [`Roster`] makes [`BridgeEvent`]s of it.
enum Raw {
    Event(BridgeEvent),
    Up { applicant: Box<Applicant>, generation: u64, peer: Option<SocketAddr>, at: Instant },
    Health { link: LinkId, agent: AgentId, generation: u64, payload: Vec<u8>, at: Instant },
    Down { agent: AgentId, generation: u64, reason: Reason, detail: String },
}

struct Shared {
    routes: ArcSwap<Routes>,
    directory: ArcSwap<Directory>,
    outliers: ArcSwap<Outliers>,
    mail: Vec<Sender<Mail>>,
    /// Whose turn it is to take what the control plane brings.
    turn: AtomicUsize,
    stats: Vec<Arc<WorkerStats>>,
    budget: Arc<Budget>,
    /// Sessions of these agents below these numbers drain as soon as there are routes for the newer ones.
    replaced: Mutex<HashMap<AgentId, u64>>,
    ears: Ears,
    /// By worker.
    steps: Vec<Steps>,
}

/// A bridge that is bound and not running: give the residents to the workers, one per seat in order.
pub struct Bridge {
    /// One per seat.
    pub residents: Vec<Box<dyn Resident>>,
    /// For whoever steers it.
    pub handle: BridgeHandle,
    /// For whoever listens to it.
    pub events: BridgeEvents,
}

impl Bridge {
    /// Binds everything. `wake` is rung when there are events.
    ///
    /// # Errors
    /// [`BridgeError::Bind`], naming the listener.
    pub fn new(options: &BridgeOptions, seats: &[Seat], wake: Arc<dyn Wake>) -> Result<Bridge, BridgeError> {
        Bridge::inheriting(options, seats, wake, Inherited::default())
    }

    /// As [`new`](Bridge::new), with listening sockets that somebody else has bound in place of fresh ones where the
    /// address is theirs.
    ///
    /// # Errors
    /// As [`new`](Bridge::new).
    pub fn inheriting(
        options: &BridgeOptions,
        seats: &[Seat],
        wake: Arc<dyn Wake>,
        inherited: Inherited,
    ) -> Result<Bridge, BridgeError> {
        let ears = Ears::new(seats.len(), inherited);
        let (link_address, links) = ears.link(options.link)?;
        let (mut first, _) = ears.set(&options.listeners)?;
        for (steps, links) in first.iter_mut().zip(links) {
            steps.extend(links.into_iter().map(Step::Add));
        }
        let (events, raw) = mailbox(EVENTS_MAX, wake);
        let (mail, mut boxes): (Vec<_>, VecDeque<_>) =
            seats.iter().map(|seat| mailbox(MAIL_MAX, Arc::new(seat.waker.clone()) as Arc<dyn Wake>)).unzip();
        let shared = Arc::new(Shared {
            routes: ArcSwap::from_pointee(Routes::default()),
            directory: ArcSwap::default(),
            outliers: ArcSwap::default(),
            mail,
            turn: AtomicUsize::new(0),
            stats: seats.iter().map(|_| Arc::default()).collect(),
            budget: Arc::new(Budget::new(options.memory)),
            replaced: Mutex::default(),
            ears,
            steps: seats.iter().map(|_| Steps::default()).collect(),
        });
        shared.steps(first);
        let mut residents: Vec<Box<dyn Resident>> = Vec::new();
        for index in 0..seats.len() {
            let own = worker::Own { index, mail: boxes.pop_front().expect("one per seat"), events: events.clone() };
            residents.push(Box::new(worker::BridgeWorker::new(options, own, shared.clone())));
        }
        let handle = BridgeHandle { shared: shared.clone(), link_address };
        Ok(Bridge { residents, handle, events: BridgeEvents { raw, roster: Roster::default(), shared } })
    }
}

/// Steers a bridge. Clones steer the same one.
#[derive(Clone)]
pub struct BridgeHandle {
    shared: Arc<Shared>,
    link_address: SocketAddr,
}

impl BridgeHandle {
    /// Answers a [`BridgeEvent::Hello`]. Too late is harmless.
    pub fn decide(&self, link: LinkId, decision: Decision) {
        self.shared.mail(link, Mail::Decide { key: link.key, decision });
    }

    /// Where visitors go from now on.
    ///
    /// After an [`BridgeEvent::AgentUp`] of an agent that was there already, this is also the word for its older
    /// sessions to drain: no visitor is sent to the new one before its routes are known, nor to the old one after.
    pub fn set_routes(&self, routes: Arc<Routes>) {
        self.shared.routes.store(routes);
        let replaced = std::mem::take(&mut *self.shared.replaced.lock().unwrap_or_else(PoisonError::into_inner));
        for (agent, below) in replaced {
            self.shared.retire(agent, below, "replaced by a newer session of the same agent");
        }
    }

    /// Brings a visitor. It gets a stream or is refused as if a listener had accepted it; the workers take turns.
    ///
    /// # Errors
    /// The entry back: the worker has [`MAIL_MAX`] letters waiting.
    pub fn admit(&self, entry: Entry) -> Result<(), Box<Entry>> {
        self.admit_greeted(entry, Vec::new())
    }

    /// As [`admit`](BridgeHandle::admit), and `greeting` is written to the visitor when its backend is reached, before the
    /// backend's first byte: the last word of a handshake that says whether it was. At most a few hundred bytes; only
    /// with an `on_placed`.
    ///
    /// # Errors
    /// As [`admit`](BridgeHandle::admit).
    pub fn admit_greeted(&self, entry: Entry, greeting: Vec<u8>) -> Result<(), Box<Entry>> {
        let worker = self.shared.turn.fetch_add(1, Ordering::Relaxed) % self.shared.mail.len();
        let mut visitor = Visitor::from(entry);
        visitor.ticket.greeting = (!greeting.is_empty()).then(|| greeting.into());
        match self.shared.mail[worker].send(Mail::Entry(Box::new(visitor))) {
            Ok(()) => Ok(()),
            Err(Full(Mail::Entry(visitor))) => Err(Box::new(Entry::from(*visitor))),
            Err(Full(_)) => unreachable!("a mailbox gives back what it was given"),
        }
    }

    /// Brings a connection on which an agent is about to speak, as if the link port had accepted it.
    ///
    /// # Errors
    /// The socket back: the worker has [`MAIL_MAX`] letters waiting.
    pub fn admit_link(&self, socket: Socket, peer: Option<SocketAddr>) -> Result<(), Socket> {
        let worker = self.shared.turn.fetch_add(1, Ordering::Relaxed) % self.shared.mail.len();
        match self.shared.mail[worker].send(Mail::Link { socket, peer }) {
            Ok(()) => Ok(()),
            Err(Full(Mail::Link { socket, .. })) => Err(socket),
            Err(Full(_)) => unreachable!("a mailbox gives back what it was given"),
        }
    }

    /// Where visitors go now.
    pub fn routes(&self) -> Arc<Routes> {
        self.shared.routes.load_full()
    }

    /// Ends all links of an agent; the sentence is told to it. It may come back, unless it is refused then.
    pub fn disconnect_agent(&self, agent: AgentId, sentence: &str) {
        self.shared.disconnect(agent, u64::MAX, sentence);
    }

    /// Sends no new visitors over the agent's links of sessions before `below`; each ends with its last visitor. The
    /// agent is told the sentence.
    pub fn drain_agent(&self, agent: AgentId, below: u64, sentence: &str) {
        self.shared.retire(agent, below, sentence);
    }

    /// Tells all agents to make another link at once: whoever has our link port now gets it. Visitors are still sent
    /// over the old ones until [`leave_listeners`](BridgeHandle::leave_listeners) or [`drain`](BridgeHandle::drain).
    pub fn call_over(&self, sentence: &str) {
        for mail in &self.shared.mail {
            if mail.send(Mail::CallOver { sentence: sentence.into() }).is_err() {
                tracing::warn!("a worker takes no mail: its agents stay");
            }
        }
    }

    /// Lets nobody in any more, neither visitors nor agents; those that are here go on. Agents are told, so that they
    /// look for another bridge at once. Over when [`Stats::streams_open`] is 0, or when the caller has waited enough.
    pub fn drain(&self) {
        for mail in &self.shared.mail {
            if mail.send(Mail::Leave).is_err() {
                tracing::warn!("a worker takes no mail: it goes on accepting");
            }
        }
    }

    /// Where agents connect, with the real port if 0 was asked for.
    pub fn link_address(&self) -> SocketAddr {
        self.link_address
    }

    /// Where visitors connect: listener names and real addresses.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.shared.ears.addresses()
    }

    /// Listens on exactly these from now on. One whose address stays goes on as it is, with its new gate for the
    /// visitors that come from now on; one that is gone accepts nobody any more, and whoever it has accepted is carried
    /// on. Returns the ones that are being closed.
    ///
    /// # Errors
    /// [`BridgeError::Bind`], naming the listener; then nothing has changed.
    pub fn set_listeners(&self, listeners: &[Listener]) -> Result<Vec<Closing>, BridgeError> {
        let (steps, closing) = self.shared.ears.set(listeners)?;
        self.shared.steps(steps);
        Ok(closing)
    }

    /// Whether visitors wait in the kernel's queues (true) or are accepted (false, as at the start): for a bridge that
    /// knows that it will have routes in a moment.
    pub fn hold_visitors(&self, hold: bool) {
        self.shared.each(|| Step::Hold { hold });
    }

    /// Closes the link's listening sockets, or with `visitors` all others, without a look at who waits there: another
    /// process has the same sockets and takes them.
    ///
    /// That process should accept only when these are over. Of several accepts that wait on one socket the kernel wakes
    /// one for a connection (io_uring/opdef.c: accept polls with EPOLLEXCLUSIVE), and if that one is being cancelled the
    /// connection stays in the queue until the next one comes.
    pub fn leave_listeners(&self, visitors: bool) -> Vec<Closing> {
        let closing = self.shared.ears.leaving(visitors);
        self.shared.each(|| Step::Leave { visitors });
        closing
    }

    /// Inherited sockets that nobody has asked for; they are closed when the bridge ends.
    pub fn unclaimed(&self) -> Vec<SocketAddr> {
        self.shared.ears.left()
    }

    /// Other limits for what streams may take, from now on.
    pub fn set_memory(&self, limits: MemoryLimits) {
        self.shared.budget.set_limits(limits);
    }

    /// Counters, summed over the workers.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl Shared {
    fn steps(&self, steps: Vec<Vec<Step>>) {
        for (worker, steps) in steps.into_iter().enumerate().filter(|(_, steps)| !steps.is_empty()) {
            steps.into_iter().for_each(|step| self.steps[worker].push(step));
            self.mail[worker].wake();
        }
    }

    fn each(&self, step: impl Fn() -> Step) {
        self.steps(self.mail.iter().map(|_| vec![step()]).collect());
    }

    fn mail(&self, link: LinkId, mail: Mail) {
        if self.mail[usize::from(link.worker)].send(mail).is_err() {
            tracing::warn!(worker = link.worker, "a worker takes no mail: an agent was not answered");
        }
    }

    /// Ends the agent's links whose session is older than `below`.
    fn disconnect(&self, agent: AgentId, below: u64, sentence: &str) {
        for mail in &self.mail {
            if mail.send(Mail::Disconnect { agent, below, sentence: sentence.into() }).is_err() {
                tracing::warn!(%agent, "a worker takes no mail: an agent's links were not ended");
            }
        }
    }

    /// The agent's links whose session is older than `below` get no new visitors, and end with their last one.
    fn retire(&self, agent: AgentId, below: u64, sentence: &str) {
        for mail in &self.mail {
            if mail.send(Mail::Retire { agent, below, sentence: sentence.into() }).is_err() {
                tracing::warn!(%agent, "a worker takes no mail: an agent's older links go on");
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for worker in &self.stats {
            sum.add(worker);
        }
        sum
    }
}

/// The bridge's events, for one listener.
pub struct BridgeEvents {
    raw: Receiver<Raw>,
    roster: Roster,
    shared: Arc<Shared>,
}

impl BridgeEvents {
    /// Asks an agent to look at a place from now on; it says what it sees in [`BridgeEvent::Sighted`], at least once,
    /// for as long as this session lasts. `false`: it cannot, it looks at as much as it may, or the check is too long.
    /// Of a session that is not the agent's latest nothing is asked.
    pub fn watch(&mut self, agent: AgentId, generation: u64, watch: Watch) -> bool {
        let taken = self.roster.watch(agent, generation, watch);
        self.send_orders();
        taken
    }

    /// It need not look there any longer.
    pub fn unwatch(&mut self, agent: AgentId, generation: u64, key: u64) {
        self.roster.unwatch(agent, generation, key);
        self.send_orders();
    }

    fn send_orders(&mut self) {
        while let Some((link, payload)) = self.roster.orders() {
            self.shared.mail(link, Mail::Health { key: link.key, payload });
        }
    }

    /// The next event, if there is one.
    pub fn try_event(&mut self) -> Option<BridgeEvent> {
        loop {
            self.send_orders();
            if let Some(event) = self.roster.next() {
                return Some(event);
            }
            match self.roster.on_raw(self.raw.try_recv()?) {
                None => {}
                Some(Order::Replace { agent, below }) => {
                    self.shared.replaced.lock().unwrap_or_else(PoisonError::into_inner).insert(agent, below);
                }
                Some(Order::Retire { agent, below }) => {
                    self.shared.retire(agent, below, "replaced by a newer session of the same agent");
                }
                Some(Order::Answer { link, payload }) => {
                    self.shared.mail(link, Mail::Health { key: link.key, payload });
                }
                Some(Order::End { link, detail }) => self.shared.mail(link, Mail::End { key: link.key, detail }),
            }
        }
    }
}
