//! Who comes to the bridge, and through what: gates, visitors on their way, and connections that the control plane brings.

use super::directory::SessionKey;
use crate::frame::Reason;
use crate::hello::ServiceName;
use crate::limits::{Limiter, Pass};
use crate::mux::OpenInfo;
use crate::outliers::Place;
use crate::plane::{Arrival, CarrierMode, Fare};
use crate::proxy_header::{self, Transport};
use crate::routes::Backend;
use ipnet::IpNet;
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
    /// What its visitors may do. Kept by the workers for listeners; a door keeps it by itself, at its own accept.
    pub limiter: Option<Arc<Limiter>>,
    /// From whom a PROXY header is taken, and then from each connection; `None`: from nobody.
    pub proxy_from: Option<Vec<IpNet>>,
}

impl Gate {
    /// One without limits and headers.
    pub fn new(name: impl Into<String>, service: ServiceName) -> Gate {
        Gate { name: name.into(), service, carrier: CarrierMode::default(), limiter: None, proxy_from: None }
    }

    /// Whether a visitor's address matters at once.
    pub(super) fn asks_who(&self) -> bool {
        self.limiter.as_ref().is_some_and(|limiter| limiter.asks_who())
    }
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
    /// What it connected to, for PROXY headers; `None`: what its socket says.
    pub asked: Option<SocketAddr>,
    /// Whether it speaks in datagrams, which are framed in the stream: PROXY headers say so.
    pub is_datagrams: bool,
    /// What its listener's limits let it do; they are the door's to ask, at its own accept. `None`: whatever it wants.
    pub pass: Option<Pass>,
    /// Sent to the backend before the socket's own bytes.
    pub prefix: Vec<u8>,
    /// `host:port` for a backend that reaches many.
    pub target: Option<String>,
    /// Whether the backend was reached. `None`: nobody waits for it.
    pub on_placed: Option<OnPlaced>,
}

impl Entry {
    /// Of nobody in particular, who says nothing before its socket does and is not waited for.
    pub fn new(socket: Socket, gate: Arc<Gate>) -> Entry {
        let (visitor, asked, pass) = (None, None, None);
        let (prefix, target, on_placed) = (Vec::new(), None, None);
        Entry { socket, gate, visitor, asked, is_datagrams: false, pass, prefix, target, on_placed }
    }
}

/// What is known of a visitor until its backend is reached: enough to find it another.
pub(crate) struct Ticket {
    pub(super) gate: Arc<Gate>,
    /// Who it is.
    pub(super) visitor: Option<SocketAddr>,
    /// What it connected to, if that is another than its socket says.
    pub(super) target: Option<SocketAddr>,
    /// Whether it speaks in datagrams.
    pub(super) is_datagrams: bool,
    pub(super) on_placed: Option<OnPlaced>,
    /// Written to it when its backend is reached, before the backend's bytes. A few: the socket has room.
    pub(crate) greeting: Option<Box<[u8]>>,
    /// Where it was sent last.
    pub(super) at: Option<Place>,
    /// Backends that could not be reached for it.
    pub(super) tried: Vec<Place>,
    /// How often it has been sent to a backend.
    pub(super) sent: u8,
    /// Other backends that may be tried.
    pub(super) retries: u8,
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
        Box::new(Ticket {
            gate,
            visitor,
            target: None,
            is_datagrams: false,
            on_placed,
            greeting,
            at,
            tried,
            sent: 0,
            retries: 0,
            since,
            resend: false,
            wants_news,
        })
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

    /// Is counted by the backend's agent, and by none other any more.
    ///
    /// # Errors
    /// [`Reason::ConnectionsMax`], [`Reason::RateMax`].
    pub(super) fn enter_agent(&mut self, now: Instant, backend: &Backend) -> Result<(), Reason> {
        if let Some(fare) = &mut self.arrival.fare {
            fare.set_agent(None);
        }
        let Some(limiter) = &backend.limiter else { return Ok(()) };
        let pass = limiter.enter(now, None)?;
        self.arrival.fare.get_or_insert_with(|| Fare::new(Pass::default())).set_agent(Some(pass));
        Ok(())
    }

    /// For this backend: the header that it wants to hear, and a place in its count if it is counted.
    pub(super) fn prepare(&mut self, backend: &Backend, counts: bool) {
        self.arrival.header = match backend.proxy {
            None => Vec::new(),
            Some(version) => {
                let source = self.ticket.visitor.or_else(|| self.socket.peer_addr().ok());
                let to = self.ticket.target.or_else(|| self.socket.local_addr().ok());
                let transport = if self.ticket.is_datagrams { Transport::Udp } else { Transport::Tcp };
                proxy_header::write(version, transport, source, to)
            }
        };
        if counts {
            let fare = self.arrival.fare.get_or_insert_with(|| Fare::new(Pass::default()));
            fare.load = Some(backend.load.enter());
        }
    }
}

impl From<Entry> for Visitor {
    fn from(entry: Entry) -> Visitor {
        let Entry { socket, gate, visitor, asked, is_datagrams, pass, prefix, target, on_placed } = entry;
        let info = OpenInfo { visitor: target.as_ref().and(visitor), target };
        let mut ticket = Ticket::new(gate, visitor, on_placed);
        (ticket.target, ticket.is_datagrams) = (asked, is_datagrams);
        let fare = pass.filter(|pass| !pass.is_free()).map(Fare::new);
        Visitor { socket, arrival: Arrival { prefix, info, fare, tell: ticket.asks(), ..Arrival::default() }, ticket }
    }
}

impl From<Visitor> for Entry {
    /// Of one that was not taken.
    fn from(Visitor { socket, arrival, ticket }: Visitor) -> Entry {
        let Ticket { gate, visitor, target: asked, is_datagrams, on_placed, .. } = *ticket;
        let Arrival { prefix, info, fare, .. } = arrival;
        let pass = fare.map(|fare| fare.pass);
        Entry { socket, gate, visitor, asked, is_datagrams, pass, prefix, target: info.target, on_placed }
    }
}

/// A visitor for a backend, on its way to a worker that has a carrier of the agent.
pub(super) struct Handed {
    pub(super) visitor: Visitor,
    pub(super) session: SessionKey,
    pub(super) backend: u16,
}
