//! A visitor whose backend has given no sign yet: what it said is kept, so that another backend can be told the same.
//! Promise: a backend that was reached is never replaced by another; nothing a visitor said is lost or said twice to
//! one backend; what is kept of one visitor is bounded, and then its reading waits. When its link is lost, a visitor
//! that has said nothing goes to another backend, however long it has been there; one that has spoken is reset, since
//! nobody knows whether it was heard.
//!
//! ```text
//! stream opened ──DATA or OPENED──▶ placed: what was kept is forgotten
//!      │ 64 KiB kept, or 2 s after its first words without a sign: the agent is asked for OPENED
//!      └──RST with a reason why it was not reached, or carrier lost──▶ Bounced: the role finds another backend
//! ```
//! The first DATA is the sign mostly, so a visitor that is answered costs no frame for this.

use super::endpoint::Stage;
use super::{Event, Fare, Plane};
use crate::bridge::Ticket;
use crate::frame::Reason;
use crate::mux::{OpenInfo, Side};
use crate::slots::Key;
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// Bytes of a visitor that are kept; then it waits for a sign. A request and its head are less; an upload asks for a
/// sign and waits one round trip.
pub(super) const KEPT_BYTES_MAX: usize = 64 << 10;
/// Without a sign for this long after the first words the agent is asked for one: a backend that only listens gives none
/// by itself, and what is kept for it would stay for as long as it listens. Of a visitor that says nothing nothing is
/// kept, and without a sign it stays free to go elsewhere: nobody is asked.
const ASK_AFTER: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Unplaced {
    /// What goes, or went, to the backend: the prefix, then what was read of the socket.
    kept: Vec<u8>,
    /// Whether some of it has left for the link.
    said: bool,
    /// The agent was asked for a sign.
    asked: bool,
    info: OpenInfo,
    ticket: Box<Ticket>,
}

/// A visitor that comes or comes back: what is said of it, and before its own bytes.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    /// Before the socket's own bytes.
    pub(crate) prefix: Vec<u8>,
    /// To the backend alone that it goes to now: before the prefix.
    pub(crate) header: Vec<u8>,
    pub(crate) info: OpenInfo,
    /// Whether an OPENED is to be asked for at once.
    pub(crate) tell: bool,
    /// What counts and limits it, if anything does.
    pub(crate) fare: Option<Box<Fare>>,
}

/// A visitor whose backend was not reached.
#[derive(Debug)]
pub(crate) struct Bounced {
    pub(crate) socket: Socket,
    pub(crate) arrival: Arrival,
    pub(crate) ticket: Box<Ticket>,
    pub(crate) reason: Reason,
}

impl Unplaced {
    pub(super) fn new(prefix: &[u8], info: OpenInfo, asked: bool, ticket: Box<Ticket>) -> Box<Unplaced> {
        Box::new(Unplaced { kept: prefix.to_vec(), said: false, asked, info, ticket })
    }

    /// Whether its failure says something about the backend: not if the visitor chose where it leads.
    pub(super) fn is_telling(&self) -> bool {
        self.info.target.is_none()
    }

    /// How many more bytes of its socket may go out.
    pub(super) fn room(&self) -> usize {
        KEPT_BYTES_MAX.saturating_sub(self.kept.len())
    }

    /// These bytes of the socket go out. Returns whether they are its first words.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> bool {
        self.kept.extend_from_slice(bytes);
        self.on_said()
    }

    /// Some of the prefix goes out. Returns whether these are its first words.
    pub(super) fn on_said(&mut self) -> bool {
        !std::mem::replace(&mut self.said, true)
    }

    pub(super) fn into_ticket(self) -> Box<Ticket> {
        self.ticket
    }

    /// Whether another backend may be told the same for this reason: surely this one has not heard it, or the operator
    /// says that hearing it twice does no harm.
    fn may_leave(&self, reason: Reason) -> bool {
        reason.is_unreached() || (reason.is_link() && (!self.said || self.ticket.resend))
    }
}

impl Plane {
    /// Bridge: the backend of the endpoint's stream was reached.
    pub(super) fn on_placed(&mut self, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        let Some(mut unplaced) = e.unplaced.take() else { return };
        if let (Some(greeting), Some(socket)) = (unplaced.ticket.greeting.take(), &e.socket) {
            // The first bytes of a fresh socket: it has room. One that is broken shows at the next operation.
            let _ = socket.send(&greeting, false);
        }
        let was_full = unplaced.room() == 0;
        if unplaced.ticket.wants_news {
            self.events.push(Event::Placed { ticket: unplaced.ticket, result: Ok(()) });
        }
        if was_full {
            self.source_ready(key);
        }
    }

    /// Remembers to ask for a sign.
    pub(super) fn expect_sign(&mut self, key: Key, now: Instant) {
        self.signs.push_back((now + ASK_AFTER, key));
    }

    /// Asks for the signs that are late.
    pub(super) fn ask_for_signs(&mut self, now: Instant) {
        while let Some((_, key)) = self.signs.pop_front_if(|(due, _)| *due <= now) {
            self.ask_for_sign(key);
        }
    }

    /// Asks the agent to say OPENED as soon as the backend is reached, once.
    pub(super) fn ask_for_sign(&mut self, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        let Some(unplaced) = e.unplaced.as_mut().filter(|unplaced| !unplaced.asked) else { return };
        unplaced.asked = true;
        let (carrier, stream) = (e.carrier, e.stream);
        if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.opened(stream);
            self.queue(carrier);
        }
    }

    /// Agent: the bridge asks whether the backend of this stream is reached.
    pub(super) fn on_asked_for_sign(&mut self, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        match e.stage {
            Stage::Dialing { .. } => e.tell = true,
            Stage::Open => {
                let (carrier, stream) = (e.carrier, e.stream);
                if let Some(c) = self.carriers.get_mut(carrier) {
                    c.mux.opened(stream);
                    self.queue(carrier);
                }
            }
            Stage::Closing | Stage::Leaving(_) => {}
        }
    }

    /// The stream ended without our doing: the visitor is given back if another backend may have it, else reset.
    pub(super) fn turn_away(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason) {
        let may_leave = |e: &&mut super::endpoint::Endpoint| {
            e.stage == Stage::Open && e.unplaced.as_ref().is_some_and(|unplaced| unplaced.may_leave(reason))
        };
        match self.endpoints.get_mut(key).filter(may_leave) {
            Some(_) if self.side == Side::Opener => self.close_as(cx, key, Stage::Leaving(reason)),
            _ => self.abort(cx, key, reason),
        }
    }

    /// Its operations are home, and it is nobody's any more.
    pub(super) fn on_home(&mut self, key: Key) {
        let Some(e) = self.endpoints.remove(key) else { return };
        let Stage::Leaving(reason) = e.stage else { return };
        let (Some(socket), Some(unplaced)) = (e.socket, e.unplaced) else { return };
        let Unplaced { kept, info, ticket, .. } = *unplaced;
        let arrival = Arrival { prefix: kept, header: Vec::new(), info, tell: ticket.asks(), fare: e.fare };
        let bounced = Bounced { socket, arrival, ticket, reason };
        self.events.push(Event::Bounced(Box::new(bounced)));
    }
}
