//! The bridge on one worker: takes agents in, sends visitors to where their service lives.
//!
//! ```text
//! link connection:  TLS ─▶ HELLO ─▶ decided by the control plane ─▶ up here, or moved to worker (carrier mod workers)
//! visitor:          route ─▶ a carrier here │ handed to a worker with one │ reset
//! ```

use super::directory::SessionKey;
use super::ears::{Ear, Step};
use super::entry::{Handed, Ticket, Visitor};
use super::greeting::Greetings;
use super::{BridgeEvent, BridgeOptions, Decision, Mail, Raw, Shared, Transfer, directory};
use crate::frame::{Kind, Reason};
use crate::hello::{self, Applicant, BridgeHello, BridgeStep, CarrierUse, VERSIONS};
use crate::identity::AgentId;
use crate::keys;
use crate::mux::{Limits, Side};
use crate::outliers::{Outliers, Place};
use crate::plane::{Bounced, Event, Fare, OP_ROLE, Plane, TICK, hello_kind, tame};
use crate::routes::{Backend, Balance, Cursor, NoRoute, Policy};
use crate::slots::Key;
use crate::stats::WorkerStats;
use crate::tls::{Binding, ServerTls, Tls};
use ringspan_engine::io::{Completion, Errno, Event as IoEvent, Op};
use ringspan_engine::kernel::Socket;
use ringspan_engine::mailbox::{Full, Receiver, Sender};
use ringspan_engine::resident::{Cx, Next, Resident};
use ringspan_engine::time::Instant;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Accepts visitors or agents; the index is the ear's.
const OP_ACCEPT: u8 = OP_ROLE;
/// Waits for a PROXY header.
pub(super) const OP_GREETING: u8 = OP_ROLE + 1;
/// Who waits in the queue of a listener that is taken away is taken in; more than this the kernel does not keep.
const QUEUE_MAX: usize = super::BACKLOG as usize;

/// A visitor is sent to no other backend after this: whoever waits longer has mostly gone. Two dials that nobody answers.
const PLACING_MAX: Duration = Duration::from_secs(15);

/// Said to an agent whose carrier needs a successor.
const WORN: &str = "the TLS keys of this connection have encrypted most of what they may";

/// What one worker of the bridge owns from the start.
pub(super) struct Own {
    pub(super) index: usize,
    pub(super) mail: Receiver<Mail>,
    pub(super) events: Sender<Raw>,
}

/// A connection that is not up yet.
struct Guest {
    /// Its number among those that came: the lowest has been here longest.
    arrival: u64,
    peer: Option<SocketAddr>,
    hello: Option<BridgeHello>,
    /// The one the control plane decides about.
    applicant: Option<Box<Applicant>>,
    /// Let in, and on the way to another worker.
    welcome: Option<(Vec<u8>, hello::Welcome)>,
}

/// A listening socket and what is done with it.
struct Listening {
    ear: Ear,
    /// Whose turn it is.
    cursor: Cursor,
    /// The kernel has an accept of ours.
    armed: bool,
    end: End,
}

/// How a listening socket ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It does not.
    Open,
    /// Those in its queue are taken in.
    Close,
    /// Somebody else takes them in.
    Leave,
}

/// A carrier that is up.
struct Peer {
    agent: AgentId,
    generation: u64,
    /// No new visitors are sent to it.
    leaving: bool,
    /// Which connection of its link it is.
    place: hello::Carrier,
}

pub(super) struct BridgeWorker {
    own: Own,
    shared: Arc<Shared>,
    stats: Arc<WorkerStats>,
    plane: Plane,
    tls: Option<ServerTls>,
    software: String,
    /// By the index of their accept; never used again.
    listening: BTreeMap<u32, Listening>,
    next_ear: u32,
    /// Visitors wait in the kernel's queues.
    hold: bool,
    handshakes_max: usize,
    streams_max: u16,
    guests: HashMap<Key, Guest>,
    /// Guests that have come so far.
    arrivals: u64,
    peers: HashMap<Key, Peer>,
    /// Direct carriers that are up, with a stream or waiting for one.
    directs: HashMap<Key, Peer>,
    /// The same by session: what visitors are sent to.
    links: HashMap<SessionKey, Vec<Key>>,
    /// Whose turn it is for what the control plane brings.
    entry_cursor: Cursor,
    /// Visitors that have yet to say who they are.
    pub(super) greetings: Greetings,
    /// Events the control plane had no room for.
    unsent: VecDeque<Raw>,
    refused: HashMap<(String, Reason), u64>,
    failed: HashMap<Reason, (u64, String)>,
    /// Accepts that ended (no descriptors) and are tried again.
    rearm: Vec<u32>,
    report_at: Instant,
    /// Accepts nobody any more.
    leaving: bool,
    pub(super) stopping: bool,
}

impl BridgeWorker {
    pub(super) fn new(options: &BridgeOptions, own: Own, shared: Arc<Shared>) -> BridgeWorker {
        let index = own.index;
        let stats = shared.stats[index].clone();
        BridgeWorker {
            plane: Plane::new(
                Side::Opener,
                stats.clone(),
                shared.budget.clone(),
                Vec::new(),
                Duration::ZERO,
                &options.plane,
            ),
            own,
            shared,
            stats,
            tls: options.tls.clone(),
            software: options.software.clone(),
            listening: BTreeMap::new(),
            next_ear: 0,
            hold: false,
            handshakes_max: options.handshakes_max,
            streams_max: options.streams_max,
            guests: HashMap::new(),
            arrivals: 0,
            peers: HashMap::new(),
            directs: HashMap::new(),
            links: HashMap::new(),
            entry_cursor: Cursor::starting_at(index),
            greetings: Greetings::default(),
            unsent: VecDeque::new(),
            refused: HashMap::new(),
            failed: HashMap::new(),
            rearm: Vec::new(),
            report_at: Instant::ZERO,
            leaving: false,
            stopping: false,
        }
    }

    fn tell(&mut self, raw: Raw) {
        if !self.unsent.is_empty() {
            self.unsent.push_back(raw);
        } else if let Err(Full(raw)) = self.own.events.send(raw) {
            self.unsent.push_back(raw);
        }
    }

    // Listening.

    fn accept(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(listening) = self.listening.get_mut(&index) else { return };
        let held = self.hold && listening.ear.gate.is_some();
        if !listening.armed && !held && listening.end == End::Open && !self.stopping && !self.leaving {
            listening.armed = true;
            cx.io.submit(cx.token(OP_ACCEPT, 0, index), Op::Accept { fd: listening.ear.socket.fd() });
        }
    }

    fn on_accepted(&mut self, cx: &mut Cx<'_>, index: u32, result: Result<Socket, Errno>) {
        let Some(listening) = self.listening.get_mut(&index) else { return };
        match result {
            Ok(socket) if self.stopping => drop(socket),
            Ok(socket) => match listening.ear.gate.clone() {
                None => {
                    let peer = socket.peer_addr().ok();
                    self.on_link(cx, socket, peer);
                }
                Some(gate) if gate.proxy_from.is_some() => self.greet(cx, index, socket, gate),
                Some(gate) => self.enter(cx.now, index, Visitor::accepted(socket, gate)),
            },
            Err(errno) => {
                listening.armed = false;
                let held = self.hold && listening.ear.gate.is_some();
                if listening.end != End::Open {
                    self.close(cx.now, index);
                } else if errno == Errno::CANCELED {
                    // Held for a moment only.
                    self.accept(cx, index);
                } else if !self.stopping && !held {
                    let listener = listening.ear.gate.as_ref().map_or("link", |gate| gate.name.as_str());
                    tracing::warn!(listener, %errno, "accepting paused for a second; is the limit on open files reached?");
                    self.rearm.push(index);
                }
            }
        }
    }

    fn on_steps(&mut self, cx: &mut Cx<'_>) {
        let mut steps = self.shared.steps[self.own.index].take();
        // Whoever is to be held is held before a new listener accepts.
        steps.sort_by_key(|step| !matches!(step, Step::Hold { .. }));
        for step in steps {
            match step {
                Step::Add(ear) => {
                    let index = self.next_ear;
                    self.next_ear += 1;
                    let cursor = Cursor::starting_at(self.own.index);
                    self.listening.insert(index, Listening { ear, cursor, armed: false, end: End::Open });
                    self.accept(cx, index);
                }
                Step::Gate { id, gate } => {
                    for listening in self.listening.values_mut().filter(|l| l.ear.id == id) {
                        listening.ear.gate = Some(gate.clone());
                    }
                }
                Step::Close { id } => self.end(cx, End::Close, |ear| ear.id == id),
                Step::Leave { visitors } => self.end(cx, End::Leave, |ear| ear.gate.is_some() == visitors),
                Step::Hold { hold } => {
                    self.hold = hold;
                    let indexes: Vec<u32> = self.listening.keys().copied().collect();
                    for index in indexes {
                        let listening = &self.listening[&index];
                        if hold && listening.armed && listening.ear.gate.is_some() {
                            cx.io.cancel(cx.token(OP_ACCEPT, 0, index));
                        } else {
                            self.accept(cx, index);
                        }
                    }
                }
            }
        }
    }

    fn end(&mut self, cx: &mut Cx<'_>, end: End, which: impl Fn(&Ear) -> bool) {
        let indexes: Vec<u32> = self.listening.iter().filter(|(_, l)| which(&l.ear)).map(|(index, _)| *index).collect();
        for index in indexes {
            let listening = self.listening.get_mut(&index).expect("just found");
            listening.end = end;
            if listening.armed {
                // Closed when the accept has come home.
                cx.io.cancel(cx.token(OP_ACCEPT, 0, index));
            } else {
                self.close(cx.now, index);
            }
        }
    }

    /// The last of a listening socket, whose accept is home.
    fn close(&mut self, now: Instant, index: u32) {
        let listening = &self.listening[&index];
        if listening.end == End::Close
            && let Some(gate) = listening.ear.gate.clone()
        {
            let waiting: Vec<Socket> =
                (0..QUEUE_MAX).map_while(|_| listening.ear.socket.accept_now().ok().flatten()).collect();
            for socket in waiting {
                if gate.proxy_from.is_some() {
                    // Its header would have to be waited for.
                    self.refuse(Visitor::accepted(socket, gate.clone()), Reason::ProxyHeader);
                } else {
                    self.enter(now, index, Visitor::accepted(socket, gate.clone()));
                }
            }
        }
        self.listening.remove(&index);
    }

    // Agents.

    fn on_link(&mut self, cx: &mut Cx<'_>, socket: Socket, peer: Option<SocketAddr>) {
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

    fn failed(&mut self, reason: Reason, peer: Option<SocketAddr>, sentence: &str) {
        self.stats.handshakes_failed.add(1);
        self.stats.count(reason);
        let (count, example) = self.failed.entry(reason).or_default();
        *count += 1;
        *example = match peer {
            Some(peer) => format!("{peer}: {sentence}"),
            None => sentence.to_owned(),
        };
    }

    fn on_ready(&mut self, key: Key, binding: Binding) {
        let Some(guest) = self.guests.get_mut(&key) else { return };
        let (hello, challenge) = BridgeHello::new(VERSIONS, keys::random(), binding, &self.software);
        guest.hello = Some(hello);
        self.plane.send(key, Kind::Hello, challenge.kind as u16, challenge.payload);
    }

    fn on_hello(&mut self, cx: &mut Cx<'_>, key: Key, aux: u16, payload: &[u8]) {
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

    fn on_decision(&mut self, cx: &mut Cx<'_>, key: Key, decision: &Decision) {
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
        let carrier = guest.applicant.as_ref().map_or(0, |a| usize::from(a.carrier.index));
        let home = carrier % self.shared.mail.len();
        guest.welcome = Some((message.payload, welcome));
        if home == self.own.index {
            self.settle_in(cx, key);
        } else {
            self.plane.move_to(cx, key, home);
        }
    }

    /// A welcomed carrier is at home: it is told, and takes visitors from now on.
    fn settle_in(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(Guest { peer, applicant: Some(applicant), welcome: Some((payload, welcome)), .. }) =
            self.guests.remove(&key)
        else {
            return;
        };
        self.stats.handshakes_open.set(self.guests.len() as u64);
        let (agent, generation, place) = (applicant.agent, welcome.generation, applicant.carrier);
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
    fn decide_direct(&self, applicant: &Applicant) -> Decision {
        match self.shared.directory.load().generation_of(&applicant.agent, applicant.session) {
            Some(generation) => {
                let Limits { window_bytes, frame_bytes_max, .. } = Limits::default();
                let limits = hello::Limits { window_bytes, frame_bytes_max };
                Ok(hello::Welcome { agent: applicant.agent, generation, limits, software: self.software.clone() })
            }
            None => Err(hello::Refusal::with(hello::RefusalCode::TooBusy, "a direct carrier without its link")),
        }
    }

    /// A welcomed direct carrier is at home: it waits for a stream of the link it belongs to.
    fn settle_direct(&mut self, cx: &mut Cx<'_>, key: Key, peer: Peer, payload: Vec<u8>) {
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

    fn on_moved(&mut self, key: Key, body: Box<crate::plane::Carrier>, to: usize) {
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

    fn on_transfer(&mut self, cx: &mut Cx<'_>, transfer: Transfer) {
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

    fn on_lost(&mut self, key: Key, reason: Reason, detail: String) {
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
    fn unlink(&mut self, key: Key, agent: AgentId, generation: u64) {
        if let Some(links) = self.links.get_mut(&(agent, generation)) {
            links.retain(|k| *k != key);
            if links.is_empty() {
                self.links.remove(&(agent, generation));
            }
        }
        directory::lose(&self.shared.directory, (agent, generation), self.own.index);
    }

    /// The carrier goes when its last stream has ended, and gets no new ones.
    fn retire(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.leaving) else { return };
        peer.leaving = true;
        let (agent, generation) = (peer.agent, peer.generation);
        self.unlink(key, agent, generation);
        self.plane.drain(key);
    }

    /// The same for all carriers of older sessions of the agent; it is told why.
    fn retire_below(&mut self, agent: AgentId, below: u64, sentence: &str) {
        let is_meant = |p: &Peer| p.agent == agent && p.generation < below && !p.leaving;
        let keys: Vec<Key> = self.peers.iter().filter(|(_, p)| is_meant(p)).map(|(key, _)| *key).collect();
        for key in keys {
            self.plane.say_draining(key, sentence);
            self.retire(key);
        }
    }

    /// No more visitors and no more agents; those that are here go on. Agents are told, so that they look elsewhere.
    fn leave(&mut self, cx: &mut Cx<'_>) {
        if self.leaving {
            return;
        }
        self.leaving = true;
        self.end(cx, End::Close, |_| true);
        for key in self.peers.keys() {
            self.plane.say_draining(*key, Reason::Stopping.sentence());
        }
    }

    fn stop_accepting(&mut self, cx: &mut Cx<'_>) {
        for (index, _) in self.listening.iter().filter(|(_, listening)| listening.armed) {
            cx.io.cancel(cx.token(OP_ACCEPT, 0, *index));
        }
    }

    fn disconnect(&mut self, cx: &mut Cx<'_>, agent: AgentId, below: u64, sentence: &str) {
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

    // Visitors.

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
    fn check(now: Instant, policy: &Policy, visitor: &mut Visitor) -> Result<(), Reason> {
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
    fn on_visitor(&mut self, now: Instant, listener: Option<u32>, mut visitor: Visitor, mut why: Option<Reason>) {
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
    fn on_handed(&mut self, now: Instant, handed: Handed) {
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
    fn on_bounced(&mut self, now: Instant, bounced: Bounced) {
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
    fn send_on(&mut self, now: Instant, visitor: Visitor, reason: Reason) {
        let Ticket { sent, since, retries, .. } = &*visitor.ticket;
        if *sent > *retries || since.is_some_and(|since| now.since(since) >= PLACING_MAX) {
            return self.refuse(visitor, reason);
        }
        self.stats.visitors_retried.add(1);
        self.on_visitor(now, None, visitor, Some(reason));
    }

    /// A visitor's backend was reached, or the visitor is over before it was.
    fn on_placed(&mut self, now: Instant, ticket: &mut Ticket, result: Result<(), Reason>) {
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
    fn on_failure(&mut self, now: Instant, key: Key, backend: u16, reason: Reason) {
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

    // The turn.

    fn on_mail(&mut self, cx: &mut Cx<'_>) {
        while let Some(mail) = self.own.mail.try_recv() {
            match mail {
                Mail::Decide { key, decision } => self.on_decision(cx, key, &decision),
                Mail::Entry(visitor) if self.stopping => self.refuse(*visitor, Reason::Stopping),
                Mail::Entry(visitor) => self.on_visitor(cx.now, None, *visitor, None),
                Mail::Link { socket, .. } if self.stopping || self.leaving => drop(socket),
                Mail::Link { socket, peer } => self.on_link(cx, socket, peer),
                Mail::Visitor(handed) => self.on_handed(cx.now, *handed),
                Mail::Health { key, payload } => self.plane.send(key, Kind::Health, 0, payload),
                Mail::End { key, detail } => self.plane.dismiss(cx, key, Reason::Protocol, &detail),
                Mail::Carrier(transfer) => self.on_transfer(cx, *transfer),
                Mail::Retire { agent, below, sentence } => self.retire_below(agent, below, &sentence),
                Mail::CallOver { sentence } => {
                    for key in self.peers.keys() {
                        self.plane.say_draining(*key, &sentence);
                    }
                }
                Mail::Leave => self.leave(cx),
                Mail::Disconnect { agent, below, sentence } => self.disconnect(cx, agent, below, &sentence),
            }
        }
    }

    fn on_events(&mut self, cx: &mut Cx<'_>) -> bool {
        let events = self.plane.take_events();
        let any = !events.is_empty();
        for event in events {
            match event {
                Event::Ready { carrier, binding } => self.on_ready(carrier, binding),
                Event::Control { carrier, kind: Kind::Hello, aux, payload } => {
                    self.on_hello(cx, carrier, aux, &payload);
                }
                Event::Control { carrier, kind: Kind::Goaway, aux, .. } if Reason::of(aux) == Reason::Draining => {
                    self.retire(carrier);
                }
                Event::Control { carrier, kind: Kind::Goaway, aux, payload } => {
                    let detail = tame(&payload);
                    self.plane.drop_carrier(cx, carrier, Reason::of(aux), detail);
                }
                Event::Control { carrier, payload, .. } => self.on_health(cx, carrier, payload),
                Event::Worn { carrier } => {
                    tracing::info!("a carrier's TLS keys have done most of what they may: it is replaced");
                    self.plane.say_draining(carrier, WORN);
                    self.retire(carrier);
                }
                Event::Lost { carrier, reason, detail } => self.on_lost(carrier, reason, detail),
                Event::DirectOver { carrier } => drop(self.directs.remove(&carrier)),
                Event::SpareWanted { .. } | Event::DirectTaken { .. } => {}
                Event::Moved { carrier, body, to } => self.on_moved(carrier, body, to),
                Event::StreamReset { carrier, backend, reason, early } => {
                    if let Some(peer) = self.peers.get(&carrier).or_else(|| self.directs.get(&carrier))
                        && reason.is_dial()
                    {
                        let agent = peer.agent;
                        self.tell(Raw::Event(BridgeEvent::DialFailed { agent, backend, reason }));
                    }
                    if early && (reason.is_dial() || reason == Reason::SocketReset) {
                        self.on_failure(cx.now, carrier, backend, reason);
                    }
                }
                Event::Placed { mut ticket, result } => self.on_placed(cx.now, &mut ticket, result),
                Event::Bounced(bounced) => self.on_bounced(cx.now, *bounced),
                Event::DialFailed { .. } | Event::Asked { .. } => {}
            }
        }
        any
    }

    fn on_health(&mut self, cx: &mut Cx<'_>, key: Key, payload: Vec<u8>) {
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

    fn report(&mut self, cx: &mut Cx<'_>) {
        self.report_at = cx.now + TICK;
        while let Some(raw) = self.unsent.pop_front() {
            if let Err(Full(raw)) = self.own.events.send(raw) {
                self.unsent.push_front(raw);
                break;
            }
        }
        for ((listener, reason), count) in std::mem::take(&mut self.refused) {
            self.tell(Raw::Event(BridgeEvent::VisitorsRefused { listener, reason, count }));
        }
        for (reason, (count, example)) in std::mem::take(&mut self.failed) {
            self.tell(Raw::Event(BridgeEvent::HandshakesFailed { reason, count, example }));
        }
        for index in std::mem::take(&mut self.rearm) {
            self.accept(cx, index);
        }
    }
}

impl Resident for BridgeWorker {
    fn on_start(&mut self, cx: &mut Cx<'_>) {
        self.on_steps(cx);
    }

    fn on_completion(&mut self, cx: &mut Cx<'_>, completion: Completion) {
        let Completion { token, event } = completion;
        match (token.op(), event) {
            (OP_ACCEPT, IoEvent::Accepted(result)) => self.on_accepted(cx, token.index(), result),
            (OP_GREETING, _) => self.on_greeting(cx, Key { index: token.index(), generation: token.generation() }),
            (_, event) => self.plane.on_completion(cx, token, event),
        }
    }

    fn on_turn(&mut self, cx: &mut Cx<'_>) -> Next {
        self.on_steps(cx);
        self.on_mail(cx);
        if cx.now >= self.report_at && !self.stopping {
            self.end_greetings(cx, false);
            self.report(cx);
        }
        let busy = self.plane.turn(cx);
        let busy = self.on_events(cx) || busy;
        if busy || self.plane.has_work() {
            Next::Now
        } else if self.stopping
            && self.listening.values().all(|l| !l.armed)
            && self.greetings.is_empty()
            && self.plane.is_empty()
        {
            Next::Done
        } else {
            Next::At(self.plane.tick_at().min(self.report_at))
        }
    }

    fn on_stop(&mut self, cx: &mut Cx<'_>) {
        self.stopping = true;
        self.stop_accepting(cx);
        self.end_greetings(cx, true);
        self.plane.stop(cx);
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
