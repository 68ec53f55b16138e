//! The agents on one worker of the bridge: from a stranger's connection to a carrier that takes visitors, and to its end.
//! Promise: a stranger holds little, and not for long; a carrier that is lost gets no visitor from then on, from no worker.

use super::directory;
use super::listening::End;
use super::worker::BridgeWorker;
use super::{BridgeEvent, Decision, Mail, Raw, Transfer};
use crate::frame::{Kind, Reason};
use crate::hello::{self, Applicant, BridgeHello, BridgeStep, CarrierUse, VERSIONS};
use crate::identity::AgentId;
use crate::keys;
use crate::mux::Limits;
use crate::plane::hello_kind;
use crate::slots::Key;
use crate::tls::{Binding, ServerTls, Tls};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use std::net::SocketAddr;

/// A connection that is not up yet.
pub(super) struct Guest {
    /// Its number among those that came: the lowest has been here longest.
    pub(super) arrival: u64,
    pub(super) peer: Option<SocketAddr>,
    pub(super) hello: Option<BridgeHello>,
    /// The one the control plane decides about.
    pub(super) applicant: Option<Box<Applicant>>,
    /// Let in, and on the way to another worker.
    pub(super) welcome: Option<(Vec<u8>, hello::Welcome)>,
}

/// A carrier that is up.
pub(super) struct Peer {
    pub(super) agent: AgentId,
    pub(super) generation: u64,
    /// No new visitors are sent to it.
    pub(super) leaving: bool,
    /// Which connection of its link it is.
    pub(super) place: hello::Carrier,
}

impl BridgeWorker {
    pub(super) fn on_link(&mut self, cx: &mut Cx<'_>, socket: Socket, peer: Option<SocketAddr>) {
        while self.guests.len() >= self.handshakes_max {
            // The one that has been silent longest makes room: an honest agent needs a few round trips, so a crowd of
            // idlers does not keep it out.
            let silent = self.guests.iter().filter(|(_, guest)| guest.applicant.is_none());
            let Some((&oldest, &Guest { peer: its, .. })) = silent.min_by_key(|(_, guest)| guest.arrival) else {
                return self.failed(Reason::HandshakesMax, peer, Reason::HandshakesMax.sentence());
            };
            self.guests.remove(&oldest);
            self.failed(Reason::HandshakesMax, its, Reason::HandshakesMax.sentence());
            self.plane.drop_carrier(cx, oldest, Reason::HandshakesMax, String::new());
        }
        let tls = match self.tls.as_ref().map(ServerTls::accept) {
            None => Tls::plain(),
            Some(Ok(tls)) => tls,
            Some(Err(error)) => return self.failed(Reason::HandshakeBad, peer, &error.to_string()),
        };
        let key = self.plane.add_carrier(cx, socket, tls);
        self.arrivals += 1;
        self.guests.insert(key, Guest { arrival: self.arrivals, peer, hello: None, applicant: None, welcome: None });
        self.stats.handshakes_open.set(self.guests.len() as u64);
    }

    pub(super) fn failed(&mut self, reason: Reason, peer: Option<SocketAddr>, sentence: &str) {
        self.stats.handshakes_failed.add(1);
        self.stats.count(reason);
        let (count, example) = self.failed.entry(reason).or_default();
        *count += 1;
        *example = match peer {
            Some(peer) => format!("{peer}: {sentence}"),
            None => sentence.to_owned(),
        };
    }

    pub(super) fn on_ready(&mut self, key: Key, binding: Binding) {
        let Some(guest) = self.guests.get_mut(&key) else { return };
        let (hello, challenge) = BridgeHello::new(VERSIONS, keys::random(), binding, &self.software);
        guest.hello = Some(hello);
        self.plane.send(key, Kind::Hello, challenge.kind as u16, challenge.payload);
    }

    pub(super) fn on_hello(&mut self, cx: &mut Cx<'_>, key: Key, aux: u16, payload: &[u8]) {
        let Some(guest) = self.guests.get_mut(&key) else {
            return self.plane.dismiss(cx, key, Reason::Protocol, "HELLO after the welcome");
        };
        let Some(hello) = &mut guest.hello else { return };
        let step = match hello_kind(aux) {
            Some(kind) => hello.on_message(kind, payload),
            None => hello.on_nonsense("unknown HELLO step"),
        };
        match step {
            BridgeStep::Decide(applicant) => {
                guest.applicant = Some(applicant.clone());
                if applicant.carrier.used == CarrierUse::Direct {
                    let decision = self.decide_direct(&applicant);
                    return self.on_decision(cx, key, &decision);
                }
                let link = super::LinkId { worker: self.own.index as u16, key };
                let peer = guest.peer;
                self.tell(Raw::Event(BridgeEvent::Hello { link, peer, applicant }));
                // Not resumed: nothing more is read until the control plane has decided.
            }
            BridgeStep::Refuse(message, refusal) => {
                self.plane.send(key, Kind::Hello, message.kind as u16, message.payload);
                self.plane.dismiss(cx, key, Reason::HandshakeBad, &refusal.to_string());
            }
            BridgeStep::Over => {}
        }
    }

    pub(super) fn on_decision(&mut self, cx: &mut Cx<'_>, key: Key, decision: &Decision) {
        let Some(guest) = self.guests.get_mut(&key) else { return };
        let Some(message) = guest.hello.as_mut().and_then(|hello| hello.on_decision(decision)) else { return };
        let welcome = match decision {
            Ok(welcome) => welcome.clone(),
            Err(refusal) => {
                self.plane.send(key, Kind::Hello, message.kind as u16, message.payload);
                self.plane.dismiss(cx, key, Reason::Refused, &refusal.to_string());
                return;
            }
        };
        // A link's carriers on different workers, and those of many links on all of them.
        let place = guest.applicant.as_ref().map_or(0, |a| a.agent.spread() + usize::from(a.carrier.index));
        let home = place % self.shared.mail.len();
        guest.welcome = Some((message.payload, welcome));
        if home == self.own.index {
            self.settle_in(cx, key);
        } else {
            self.plane.move_to(cx, key, home);
        }
    }

    /// A welcomed carrier is at home: it is told, and takes visitors from now on.
    pub(super) fn settle_in(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(Guest { peer, applicant: Some(applicant), welcome: Some((payload, welcome)), .. }) =
            self.guests.remove(&key)
        else {
            return;
        };
        self.stats.handshakes_open.set(self.guests.len() as u64);
        let (agent, generation, place) = (applicant.agent, welcome.generation, applicant.carrier);
        if place.relayed {
            self.plane.is_relayed(key);
        }
        if place.used == CarrierUse::Direct {
            return self.settle_direct(cx, key, Peer { agent, generation, leaving: false, place }, payload);
        }
        self.plane.send(key, Kind::Hello, hello::Kind::Welcome as u16, payload);
        self.plane.raise(cx.now, key, Limits::agreed(&welcome.limits, self.streams_max));
        self.plane.resume(cx, key);
        self.stats.carriers_up.add(1);
        self.peers.insert(key, Peer { agent, generation, leaving: false, place });
        // Whether it gets visitors is for the routes to say: they name sessions.
        self.links.entry((agent, generation)).or_default().push(key);
        directory::gain(&self.shared.directory, (agent, generation), applicant.session, self.own.index);
        self.tell(Raw::Up { applicant, generation, peer, at: cx.now });
    }

    /// A direct carrier may come in if the agent's present session has a link: whoever let that in has looked at the
    /// keyring, and whoever ends it ends this one.
    pub(super) fn decide_direct(&self, applicant: &Applicant) -> Decision {
        match self.shared.directory.load().generation_of(&applicant.agent, applicant.session) {
            Some(generation) => {
                let Limits { window_bytes, frame_bytes_max, .. } = Limits::default();
                let limits = hello::Limits { window_bytes, frame_bytes_max };
                Ok(hello::Welcome {
                    agent: applicant.agent,
                    generation,
                    limits,
                    software: self.software.clone(),
                    opened: None,
                })
            }
            None => Err(hello::Refusal::with(hello::RefusalCode::TooBusy, "a direct carrier without its link")),
        }
    }

    /// A welcomed direct carrier is at home: it waits for a stream of the link it belongs to.
    pub(super) fn settle_direct(&mut self, cx: &mut Cx<'_>, key: Key, peer: Peer, payload: Vec<u8>) {
        let its_link = |link: &&Key| {
            self.peers.get(link).is_some_and(|p| {
                let hello::Carrier { index, serial, .. } = p.place;
                p.generation == peer.generation && (index, serial) == (peer.place.index, peer.place.serial)
            })
        };
        let link =
            self.links.get(&(peer.agent, peer.generation)).and_then(|links| links.iter().find(its_link)).copied();
        let Some(link) = link.filter(|link| self.plane.is_link(*link)) else {
            return self.plane.dismiss(cx, key, Reason::LinkLost, "a direct carrier without its link");
        };
        self.plane.send(key, Kind::Hello, hello::Kind::Welcome as u16, payload);
        self.plane.raise_direct(key, link);
        self.plane.resume(cx, key);
        self.directs.insert(key, peer);
    }

    pub(super) fn on_moved(&mut self, key: Key, body: Box<crate::plane::Carrier>, to: usize) {
        let Some(Guest { peer, applicant: Some(applicant), welcome: Some((payload, welcome)), .. }) =
            self.guests.remove(&key)
        else {
            return;
        };
        self.stats.handshakes_open.set(self.guests.len() as u64);
        let transfer = Transfer { body, payload, welcome, applicant, peer };
        if self.shared.mail[to].send(Mail::Carrier(Box::new(transfer))).is_err() {
            self.failed(Reason::HandoverFull, peer, Reason::HandoverFull.sentence());
        }
    }

    pub(super) fn on_transfer(&mut self, cx: &mut Cx<'_>, transfer: Transfer) {
        if self.stopping {
            return;
        }
        let Transfer { body, payload, welcome, applicant, peer } = transfer;
        let key = self.plane.adopt_carrier(body);
        let guest = Guest {
            arrival: self.arrivals,
            peer,
            hello: None,
            applicant: Some(applicant),
            welcome: Some((payload, welcome)),
        };
        self.guests.insert(key, guest);
        self.settle_in(cx, key);
    }

    pub(super) fn on_lost(&mut self, key: Key, reason: Reason, detail: String) {
        if let Some(guest) = self.guests.remove(&key) {
            self.stats.handshakes_open.set(self.guests.len() as u64);
            self.failed(reason, guest.peer, &detail);
        } else if self.directs.remove(&key).is_some() {
            tracing::debug!(%reason, detail, "a direct carrier is gone");
        } else if let Some(Peer { agent, generation, leaving, .. }) = self.peers.remove(&key) {
            self.stats.carriers_up.sub(1);
            self.stats.count(reason);
            if !leaving {
                self.unlink(key, agent, generation);
            }
            self.tell(Raw::Down { agent, generation, reason, detail });
        }
    }

    /// No visitor is sent to this carrier from now on, by any worker.
    pub(super) fn unlink(&mut self, key: Key, agent: AgentId, generation: u64) {
        if let Some(links) = self.links.get_mut(&(agent, generation)) {
            links.retain(|k| *k != key);
            if links.is_empty() {
                self.links.remove(&(agent, generation));
            }
        }
        directory::lose(&self.shared.directory, (agent, generation), self.own.index);
    }

    /// The carrier goes when its last stream has ended, and gets no new ones.
    pub(super) fn retire(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.leaving) else { return };
        peer.leaving = true;
        let (agent, generation) = (peer.agent, peer.generation);
        self.unlink(key, agent, generation);
        self.plane.drain(key);
    }

    /// The same for all carriers of older sessions of the agent; it is told why.
    pub(super) fn retire_below(&mut self, agent: AgentId, below: u64, sentence: &str) {
        let is_meant = |p: &Peer| p.agent == agent && p.generation < below && !p.leaving;
        let keys: Vec<Key> = self.peers.iter().filter(|(_, p)| is_meant(p)).map(|(key, _)| *key).collect();
        for key in keys {
            self.plane.say_draining(key, sentence);
            self.retire(key);
        }
    }

    /// No more visitors and no more agents; those that are here go on. Agents are told, so that they look elsewhere.
    pub(super) fn leave(&mut self, cx: &mut Cx<'_>) {
        if self.leaving {
            return;
        }
        self.leaving = true;
        self.end(cx, End::Close, |_| true);
        for key in self.peers.keys() {
            self.plane.say_draining(*key, Reason::Stopping.sentence());
        }
    }

    pub(super) fn disconnect(&mut self, cx: &mut Cx<'_>, agent: AgentId, below: u64, sentence: &str) {
        let keys: Vec<Key> = self
            .peers
            .iter()
            .chain(&self.directs)
            .filter(|(_, p)| p.agent == agent && p.generation < below)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.plane.dismiss(cx, key, Reason::Disconnected, sentence);
        }
    }

    pub(super) fn on_health(&mut self, cx: &mut Cx<'_>, key: Key, payload: Vec<u8>) {
        let Some(peer) = self.peers.get(&key) else { return };
        let (agent, generation) = (peer.agent, peer.generation);
        if self.unsent.len() > super::EVENTS_MAX {
            // Lost health would be a lie for ever; a new link begins with a fresh snapshot.
            self.plane.dismiss(cx, key, Reason::MemoryMax, "the control plane does not keep up with health reports");
            return;
        }
        let link = super::LinkId { worker: self.own.index as u16, key };
        self.tell(Raw::Health { link, agent, generation, payload, at: cx.now });
    }
}
