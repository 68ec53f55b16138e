//! The visitors on one worker of the bridge: which backend each is sent to, and to which next if nobody is there.
//! Promise: a visitor is placed, handed to a worker that can, or refused with its reason counted; never kept.

use super::directory::SessionKey;
use super::entry::{Handed, Ticket, Visitor};
use super::worker::BridgeWorker;
use super::{BridgeEvent, Mail, Raw, Shared};
use crate::frame::Reason;
use crate::outliers::{Outliers, Place};
use crate::plane::{Bounced, Fare, Plane};
use crate::routes::{Backend, Balance, NoRoute, Policy};
use crate::slots::Key;
use ringspan_engine::mailbox::Full;
use ringspan_engine::time::Instant;
use std::collections::HashMap;
use std::time::Duration;

/// A visitor is sent to no other backend after this: whoever waits longer has mostly gone. Two dials that nobody answers.
const PLACING_MAX: Duration = Duration::from_secs(15);

impl BridgeWorker {
    /// A listener's visitor: its limits, then a backend.
    pub(super) fn enter(&mut self, now: Instant, listener: u32, mut visitor: Visitor) {
        let gate = visitor.ticket.gate.clone();
        if let Some(limiter) = &gate.limiter {
            if gate.asks_who() && visitor.ticket.visitor.is_none() {
                visitor.ticket.visitor = visitor.socket.peer_addr().ok();
            }
            match limiter.enter(now, visitor.ticket.visitor.map(|address| address.ip())) {
                Ok(pass) if pass.is_free() => {}
                Ok(pass) => visitor.arrival.fare = Some(Fare::new(pass)),
                Err(reason) => return self.refuse(visitor, reason),
            }
        }
        self.on_visitor(now, Some(listener), visitor, None);
    }

    /// What the service lets a visitor do, the first time it is sent to a backend.
    pub(super) fn check(now: Instant, policy: &Policy, visitor: &mut Visitor) -> Result<(), Reason> {
        if visitor.ticket.since.is_some() {
            return Ok(());
        }
        visitor.ticket.since = Some(now);
        visitor.ticket.retries = policy.retries;
        visitor.ticket.resend = policy.resend;
        let limiter = policy.limiter.as_ref();
        let hashes = policy.balance == Balance::SourceHash;
        if (hashes || limiter.is_some_and(|limiter| limiter.asks_who())) && visitor.ticket.visitor.is_none() {
            visitor.ticket.visitor = visitor.socket.peer_addr().ok();
        }
        let Some(limiter) = limiter else { return Ok(()) };
        let mut pass = limiter.enter(now, visitor.ticket.visitor.map(|address| address.ip()))?;
        if let Some(fare) = visitor.arrival.fare.take() {
            pass.join(fare.pass);
        }
        if !pass.is_free() {
            visitor.arrival.fare = Some(Fare::new(pass));
        }
        Ok(())
    }

    /// Finds a backend for a visitor, on this worker if possible. `why`: what it is told if there is none left.
    pub(super) fn on_visitor(
        &mut self,
        now: Instant,
        listener: Option<u32>,
        mut visitor: Visitor,
        mut why: Option<Reason>,
    ) {
        let (routes, directory) = (self.shared.routes.load_full(), self.shared.directory.load_full());
        let outliers = self.shared.outliers.load_full();
        let (here, links) = (self.own.index, &self.links);
        let gate = visitor.ticket.gate.clone();
        let cursor = match listener.and_then(|index| self.listening.get_mut(&index)) {
            Some(listening) => &mut listening.cursor,
            None => &mut self.entry_cursor,
        };
        let service = gate.service.as_str();
        let policy = routes.policy(service).cloned().unwrap_or_default();
        if let Err(reason) = Self::check(now, &policy, &mut visitor) {
            return self.refuse(visitor, reason);
        }
        let source = visitor.ticket.visitor.map(|address| address.ip());
        loop {
            let tried = &visitor.ticket.tried;
            let usable = |b: &Backend| {
                let session = (b.agent, b.session);
                let linked = links.contains_key(&session) || directory.worker_of(&session, here).is_some();
                linked && !tried.contains(&(session, b.index))
            };
            let mut picked = routes.pick_for(service, cursor, source, |b| {
                usable(b) && !outliers.is_ejected(&((b.agent, b.session), b.index), now)
            });
            if picked == Err(NoRoute::NoBackend) && !outliers.is_empty() {
                // Better one that failed a moment ago than none.
                picked = routes.pick_for(service, cursor, source, usable);
            }
            let picked = match picked {
                Ok(backend) => backend,
                Err(NoRoute::NoService) => return self.refuse(visitor, why.unwrap_or(Reason::NoService)),
                Err(NoRoute::NoBackend) => return self.refuse(visitor, why.unwrap_or(Reason::NoBackend)),
            };
            let (session, backend) = ((picked.agent, picked.session), picked.index);
            if let Err(reason) = visitor.enter_agent(now, picked) {
                why = Some(reason);
                visitor.ticket.tried.push((session, backend));
                continue;
            }
            visitor.prepare(picked, policy.balance == Balance::LeastConnections);
            visitor.ticket.wants_news |= outliers.knows(&(session, backend));
            let given = match carrier_of(links, &self.plane, &session) {
                Some(key) => place(&mut self.plane, now, visitor, key, (session, backend)),
                None => hand_over(&self.shared, here, Box::new(Handed { visitor, session, backend })),
            };
            match given {
                Ok(()) => return,
                Err((back, reason)) => (visitor, why) = (back, Some(reason)),
            }
            visitor.ticket.tried.push((session, backend));
        }
    }

    /// A visitor that another worker handed over. If the carrier has gone meanwhile it is sent on like one that came
    /// back.
    pub(super) fn on_handed(&mut self, now: Instant, handed: Handed) {
        let Handed { visitor, session, backend } = handed;
        let rest = match carrier_of(&self.links, &self.plane, &session) {
            Some(key) => place(&mut self.plane, now, visitor, key, (session, backend)),
            None => Err((visitor, Reason::NoBackend)),
        };
        if let Err((mut visitor, reason)) = rest {
            visitor.ticket.sent = visitor.ticket.sent.saturating_add(1);
            self.send_on(now, visitor, reason);
        }
    }

    /// A visitor whose backend was not reached.
    pub(super) fn on_bounced(&mut self, now: Instant, bounced: Bounced) {
        let Bounced { socket, arrival, mut ticket, reason } = bounced;
        // Whether a target that the visitor chose can be reached is no matter of the backend's.
        let is_final = arrival.info.target.is_some() && reason.is_dial();
        if reason.is_unreached() {
            ticket.tried.extend(ticket.at);
        }
        let visitor = Visitor { socket, arrival, ticket };
        if is_final || self.stopping {
            self.refuse(visitor, reason);
        } else {
            self.send_on(now, visitor, reason);
        }
    }

    /// Tries another backend, unless it has been enough.
    pub(super) fn send_on(&mut self, now: Instant, visitor: Visitor, reason: Reason) {
        let Ticket { sent, since, retries, .. } = &*visitor.ticket;
        if *sent > *retries || since.is_some_and(|since| now.since(since) >= PLACING_MAX) {
            return self.refuse(visitor, reason);
        }
        self.stats.visitors_retried.add(1);
        self.on_visitor(now, None, visitor, Some(reason));
    }

    /// A visitor's backend was reached, or the visitor is over before it was.
    pub(super) fn on_placed(&mut self, now: Instant, ticket: &mut Ticket, result: Result<(), Reason>) {
        if let Some(place) = ticket.at
            && result.is_ok()
            && self.shared.outliers.load().knows(&place)
        {
            self.shared.outliers.rcu(|old| {
                let mut new = Outliers::clone(old);
                new.on_success(now, &place);
                new
            });
        }
        if let Some(tell) = ticket.on_placed.take() {
            tell(result);
        }
    }

    /// A stream ended before any sign of its backend.
    pub(super) fn on_failure(&mut self, now: Instant, key: Key, backend: u16, reason: Reason) {
        let Some(session) = self.peers.get(&key).map(|peer| (peer.agent, peer.generation)) else { return };
        let routes = self.shared.routes.load_full();
        let (place, agent) = ((session, backend), session.0);
        let peers = routes.peers_of(&place);
        let eject = routes.policy_of(&place).map(|policy| policy.eject).unwrap_or_default();
        let mut length = None;
        self.shared.outliers.rcu(|old| {
            let mut new = Outliers::clone(old);
            length = new.on_failure(now, place, reason, &eject, &peers);
            new
        });
        if let Some(length) = length {
            self.stats.ejections.add(1);
            self.tell(Raw::Event(BridgeEvent::Ejected { agent, backend, reason, length }));
        }
    }

    pub(super) fn refuse(&mut self, visitor: Visitor, reason: Reason) {
        let _ = visitor.socket.reset_on_close();
        self.stats.visitors_refused.add(1);
        self.stats.count(reason);
        *self.refused.entry((visitor.ticket.gate.name.clone(), reason)).or_default() += 1;
        if let Some(tell) = visitor.ticket.on_placed {
            tell(Err(reason));
        }
    }
}

/// The agent's least loaded carrier on this worker.
fn carrier_of(links: &HashMap<SessionKey, Vec<Key>>, plane: &Plane, session: &SessionKey) -> Option<Key> {
    match links.get(session)?.as_slice() {
        [only] => Some(*only),
        several => several.iter().copied().min_by_key(|key| plane.load(*key)),
    }
}

/// Gives a visitor a stream on that carrier; or back, with the reason.
#[expect(clippy::result_large_err, reason = "a box would cost an allocation for each visitor that is given back")]
fn place(
    plane: &mut Plane,
    now: Instant,
    visitor: Visitor,
    carrier: Key,
    backend: Place,
) -> Result<(), (Visitor, Reason)> {
    let Visitor { socket, arrival, mut ticket } = visitor;
    ticket.sent = ticket.sent.saturating_add(1);
    ticket.at = Some(backend);
    plane
        .add_visitor(now, socket, (carrier, backend.1), arrival, ticket)
        .map_err(|(socket, arrival, ticket)| (Visitor { socket, arrival, ticket }, Reason::StreamsMax))
}

/// Gives a visitor to a worker that has a carrier of the agent; or back, with the reason.
#[expect(clippy::result_large_err, reason = "a box would cost an allocation for each visitor that is given back")]
fn hand_over(shared: &Shared, here: usize, handed: Box<Handed>) -> Result<(), (Visitor, Reason)> {
    let Some(worker) = shared.directory.load().worker_of(&handed.session, here) else {
        return Err((handed.visitor, Reason::NoBackend));
    };
    match shared.mail[worker].send(Mail::Visitor(handed)) {
        Ok(()) => {
            shared.stats[here].handovers.add(1);
            Ok(())
        }
        Err(Full(Mail::Visitor(handed))) => Err((handed.visitor, Reason::HandoverFull)),
        Err(Full(_)) => unreachable!("a mailbox gives back what it was given"),
    }
}
