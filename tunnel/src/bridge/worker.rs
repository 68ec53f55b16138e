//! The bridge on one worker: what it has, and its turn. It takes agents in ([`agents`](super::agents)) and sends visitors
//! to where their service lives ([`visitors`](super::visitors)); both come through its listening sockets
//! ([`listening`](super::listening)).
//!
//! ```text
//! link connection:  TLS ─▶ HELLO ─▶ decided by the control plane ─▶ up here, or moved to worker (agent + carrier mod workers)
//! visitor:          route ─▶ a carrier here │ handed to a worker with one │ reset
//! ```

use super::agents::{Guest, Peer};
use super::directory::SessionKey;
use super::greeting::Greetings;
use super::listening::{Listening, OP_ACCEPT};
use super::steering::Steering;
use super::{BridgeEvent, BridgeOptions, Mail, Raw, Shared};
use crate::frame::{Kind, Reason};
use crate::mux::Side;
use crate::plane::{Event, OP_ROLE, Plane, TICK, tame};
use crate::routes::Cursor;
use crate::slots::Key;
use crate::stats::WorkerStats;
use crate::tls::ServerTls;
use ringspan_engine::io::{Completion, Event as IoEvent};
use ringspan_engine::mailbox::{Full, Receiver, Sender};
use ringspan_engine::resident::{Cx, Next, Resident};
use ringspan_engine::time::Instant;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Waits for a PROXY header.
pub(super) const OP_GREETING: u8 = OP_ROLE + 1;

/// Said to an agent whose carrier needs a successor.
const WORN: &str = "the TLS keys of this connection have encrypted most of what they may";

/// What one worker of the bridge owns from the start.
pub(super) struct Own {
    pub(super) index: usize,
    pub(super) mail: Receiver<Mail>,
    pub(super) events: Sender<Raw>,
}

/// See the module.
pub(super) struct BridgeWorker {
    pub(super) own: Own,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) plane: Plane,
    pub(super) tls: Option<ServerTls>,
    pub(super) software: String,
    /// By the index of their accept; never used again.
    pub(super) listening: BTreeMap<u32, Listening>,
    pub(super) next_ear: u32,
    pub(super) steering: Steering,
    /// Visitors wait in the kernel's queues.
    pub(super) hold: bool,
    pub(super) handshakes_max: usize,
    pub(super) streams_max: u16,
    pub(super) guests: HashMap<Key, Guest>,
    /// Guests that have come so far.
    pub(super) arrivals: u64,
    pub(super) peers: HashMap<Key, Peer>,
    /// Direct carriers that are up, with a stream or waiting for one.
    pub(super) directs: HashMap<Key, Peer>,
    /// The same by session: what visitors are sent to.
    pub(super) links: HashMap<SessionKey, Vec<Key>>,
    /// Whose turn it is for what the control plane brings.
    pub(super) entry_cursor: Cursor,
    /// Visitors that have yet to say who they are.
    pub(super) greetings: Greetings,
    /// Events the control plane had no room for.
    pub(super) unsent: VecDeque<Raw>,
    pub(super) refused: HashMap<(String, Reason), u64>,
    pub(super) failed: HashMap<Reason, (u64, String)>,
    /// Accepts that ended (no descriptors) and are tried again.
    pub(super) rearm: Vec<u32>,
    pub(super) report_at: Instant,
    /// Accepts nobody any more.
    pub(super) leaving: bool,
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
                shared.shares.clone(),
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
            steering: Steering::new(options.steer),
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

    pub(super) fn tell(&mut self, raw: Raw) {
        if !self.unsent.is_empty() {
            self.unsent.push_back(raw);
        } else if let Err(Full(raw)) = self.own.events.send(raw) {
            self.unsent.push_back(raw);
        }
    }

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
            self.steer();
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
