//! Who comes to the bridge, and through what: gates, visitors on their way, and connections that the control plane brings.

use super::directory::SessionKey;
use crate::frame::Reason;
use crate::hello::ServiceName;
use crate::mux::OpenInfo;
use crate::plane::Arrival;
use ringspan_engine::kernel::Socket;
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

/// A visitor on its way to a carrier, perhaps on another worker.
pub(super) struct Visitor {
    pub(super) socket: Socket,
    pub(super) gate: Arc<Gate>,
    pub(super) arrival: Arrival,
    pub(super) on_placed: Option<OnPlaced>,
    /// How often a worker to which it was handed had lost the carrier.
    pub(super) hops: u8,
}

impl Visitor {
    /// One that a listener accepted.
    pub(super) fn accepted(socket: Socket, gate: Arc<Gate>) -> Visitor {
        Visitor { socket, gate, arrival: Arrival::default(), on_placed: None, hops: 0 }
    }
}

impl From<Entry> for Visitor {
    fn from(entry: Entry) -> Visitor {
        let Entry { socket, gate, visitor, prefix, target, on_placed } = entry;
        let info = OpenInfo { visitor: target.as_ref().and(visitor), target };
        Visitor { socket, gate, arrival: Arrival { prefix, info, tell: on_placed.is_some() }, on_placed, hops: 0 }
    }
}

/// A visitor for a backend, on its way to a worker that has a carrier of the agent.
pub(super) struct Handed {
    pub(super) visitor: Visitor,
    pub(super) session: SessionKey,
    pub(super) backend: u16,
}
