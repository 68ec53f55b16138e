//! Who comes to the bridge, and through what: gates, visitors on their way, and connections that the control plane brings.

use super::directory::SessionKey;
use crate::frame::Reason;
use crate::hello::ServiceName;
use crate::mux::OpenInfo;
use crate::outliers::Place;
use crate::plane::{Arrival, CarrierMode};
use ringspan_engine::kernel::Socket;
use ringspan_engine::time::Instant;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a visitor came through: a listener, or one route of a listener that reads what it carries. Shared by all its
/// visitors; what is counted, limited or chosen for them is told by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// What people call it: in logs and metrics.
    pub name: String,
    /// What its visitors get.
    pub service: ServiceName,
    /// By which kind of carrier they go.
    pub carrier: CarrierMode,
}

/// Told once whether a visitor's backend was reached, or why not. On a worker's thread: must not block.
pub type OnPlaced = Box<dyn FnOnce(Result<(), Reason>) + Send>;

/// A visitor that the control plane brings: [`BridgeHandle::admit`](super::BridgeHandle::admit).
pub struct Entry {
    /// Connected, a stream: the visitor's own, or one end of [`Socket::pair`].
    pub socket: Socket,
    /// What it came through.
    pub gate: Arc<Gate>,
    /// Who it is: limits and source hashes go by it.
    pub visitor: Option<SocketAddr>,
    /// Sent to the backend before the socket's own bytes.
    pub prefix: Vec<u8>,
    /// `host:port` for a backend that reaches many.
    pub target: Option<String>,
    /// Whether the backend was reached. `None`: nobody waits for it.
    pub on_placed: Option<OnPlaced>,
}

/// What is known of a visitor until its backend is reached: enough to find it another.
pub(crate) struct Ticket {
    pub(super) gate: Arc<Gate>,
    /// Who it is.
    pub(super) visitor: Option<SocketAddr>,
    pub(super) on_placed: Option<OnPlaced>,
    /// Written to it when its backend is reached, before the backend's bytes. A few: the socket has room.
    pub(crate) greeting: Option<Box<[u8]>>,
    /// Where it was sent last.
    pub(super) at: Option<Place>,
    /// Backends that could not be reached for it.
    pub(super) tried: Vec<Place>,
    /// How often it has been sent to a backend.
    pub(super) sent: u8,
    /// When it was first; `None`: it has not been.
    pub(super) since: Option<Instant>,
    /// Whether what it said may be said again although nobody knows whether it was heard.
    pub(crate) resend: bool,
    /// Whether [`Event::Placed`](crate::plane::Event::Placed) is wanted.
    pub(crate) wants_news: bool,
}

impl Ticket {
    /// By which kind of carrier it goes.
    pub(crate) fn carrier(&self) -> CarrierMode {
        self.gate.carrier
    }

    fn new(gate: Arc<Gate>, visitor: Option<SocketAddr>, on_placed: Option<OnPlaced>) -> Box<Ticket> {
        let wants_news = on_placed.is_some();
        let (at, tried, since) = (None, Vec::new(), None);
        let greeting = None;
        Box::new(Ticket { gate, visitor, on_placed, greeting, at, tried, sent: 0, since, resend: false, wants_news })
    }

    /// Whether the agent is to say at once that the backend is reached.
    pub(crate) fn asks(&self) -> bool {
        self.on_placed.is_some()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ticket { gate, visitor, sent, .. } = self;
        f.debug_struct("Ticket").field("gate", gate).field("visitor", visitor).field("sent", sent).finish()
    }
}

/// A visitor on its way to a carrier, perhaps on another worker.
pub(super) struct Visitor {
    pub(super) socket: Socket,
    pub(super) arrival: Arrival,
    pub(super) ticket: Box<Ticket>,
}

impl Visitor {
    /// One that a listener accepted.
    pub(super) fn accepted(socket: Socket, gate: Arc<Gate>) -> Visitor {
        Visitor { socket, arrival: Arrival::default(), ticket: Ticket::new(gate, None, None) }
    }
}

impl From<Entry> for Visitor {
    fn from(entry: Entry) -> Visitor {
        let Entry { socket, gate, visitor, prefix, target, on_placed } = entry;
        let info = OpenInfo { visitor: target.as_ref().and(visitor), target };
        let ticket = Ticket::new(gate, visitor, on_placed);
        Visitor { socket, arrival: Arrival { prefix, header: Vec::new(), info, tell: ticket.asks() }, ticket }
    }
}

/// A visitor for a backend, on its way to a worker that has a carrier of the agent.
pub(super) struct Handed {
    pub(super) visitor: Visitor,
    pub(super) session: SessionKey,
    pub(super) backend: u16,
}
