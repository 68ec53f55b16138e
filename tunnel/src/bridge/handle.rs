//! How the control plane steers a bridge: every word becomes letters to the workers or a snapshot that they read.

use super::ears::{Closing, Step};
use super::entry::{Entry, Visitor};
use super::{BridgeError, Decision, LinkId, Listener, Mail, Shared};
use crate::identity::AgentId;
use crate::memory::MemoryLimits;
use crate::routes::Routes;
use crate::stats::Stats;
use ringspan_engine::kernel::Socket;
use ringspan_engine::mailbox::Full;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Steers a bridge. Clones steer the same one.
#[derive(Clone)]
pub struct BridgeHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) link_address: SocketAddr,
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
        self.shared.shares.budget.set_limits(limits);
    }

    /// Counters, summed over the workers.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}
