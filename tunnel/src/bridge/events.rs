//! What the control plane hears of a bridge, and where it hears it. Workers report [`Raw`]s; the [`Roster`] makes events of
//! them, and orders to workers, which are sent on the way.

use super::roster::{Order, Roster};
use super::{LinkId, Mail, Shared};
use crate::frame::Reason;
use crate::health_feed::Change;
use crate::hello::{Applicant, Refusal, Welcome};
use crate::identity::AgentId;
use crate::watch_feed::{Sight, Watch};
use ringspan_engine::mailbox::Receiver;
use ringspan_engine::time::Instant;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

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

/// The bridge's events, for one listener.
pub struct BridgeEvents {
    pub(super) raw: Receiver<Raw>,
    pub(super) roster: Roster,
    pub(super) shared: Arc<Shared>,
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

/// What workers report; the [`Roster`] makes [`BridgeEvent`]s of it.
pub(super) enum Raw {
    Event(BridgeEvent),
    Up { applicant: Box<Applicant>, generation: u64, peer: Option<SocketAddr>, at: Instant },
    Health { link: LinkId, agent: AgentId, generation: u64, payload: Vec<u8>, at: Instant },
    Down { agent: AgentId, generation: u64, reason: Reason, detail: String },
}
