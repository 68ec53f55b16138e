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
mod events;
mod greeting;
mod handle;
mod listening;
mod roster;
mod steering;
mod visitors;
mod worker;

use crate::hello::{Applicant, Welcome};
use crate::identity::AgentId;
use crate::memory::MemoryLimits;
use crate::outliers::Outliers;
use crate::plane::{Carrier, Shares};
pub use crate::plane::{CarrierMode, Mover, PlaneOptions};
use crate::routes::Routes;
use crate::slots::Key;
use crate::stats::{Stats, WorkerStats};
use crate::tls::ServerTls;
use arc_swap::ArcSwap;
use directory::Directory;
pub use ears::{Closing, Inherited};
use ears::{Ears, Step, Steps};
pub(crate) use entry::Ticket;
pub use entry::{Entry, Gate, OnPlaced};
use entry::{Handed, Visitor};
use events::Raw;
pub use events::{BridgeEvent, BridgeEvents, Decision};
pub use handle::BridgeHandle;
use ringspan_engine::kernel::Socket;
use ringspan_engine::mailbox::{Sender, Wake, mailbox};
use ringspan_engine::resident::Resident;
use ringspan_engine::worker::Seat;
use roster::Roster;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
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
    /// Where only some workers have a link to where a listener's visitors go, the kernel is asked to give new visitors to
    /// those, at most a second later: none has to be handed over. Default true.
    pub steer: bool,
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

struct Shared {
    routes: ArcSwap<Routes>,
    directory: ArcSwap<Directory>,
    outliers: ArcSwap<Outliers>,
    mail: Vec<Sender<Mail>>,
    /// Whose turn it is to take what the control plane brings.
    turn: AtomicUsize,
    stats: Vec<Arc<WorkerStats>>,
    shares: Shares,
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
            shares: Shares::new(options.memory),
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
