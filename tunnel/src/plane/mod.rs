//! The data path of one worker: its carriers, its streams' sockets, and the turn that moves bytes between them.
//! Promise: nothing blocks; a slow socket stops its own stream and nothing else; everything opened is closed.
//!
//! ```text
//! completions only set "ready" ──▶ turn: read carriers (rx) ──▶ sockets
//!                                        sockets ──▶ write carriers (tx), many frames in one send
//! ```
//! It knows nothing of agents, listeners or routes: its role ([`bridge`](crate::bridge) or [`agent`](crate::agent))
//! gives it carriers and visitors and takes its [`Event`]s.

mod carrier;
mod companions;
mod direct;
mod endpoint;
mod ends;
mod fare;
mod load;
mod naps;
mod offload;
mod options;
mod pipes;
mod raw;
mod rest;
mod rx;
mod signs;
mod spares;
mod streams;
mod tick;
mod turn;
mod tx;
mod unplaced;

pub(crate) use carrier::Carrier;
use carrier::Phase;
#[cfg(test)]
pub(crate) use carrier::unsent_bytes;
pub(crate) use endpoint::dial_reason;
use endpoint::{Endpoint, Stage};
pub(crate) use fare::Fare;
use fare::{LOOKS_MIN, Look};
use naps::Naps;
use options::Settled;
pub use options::{CarrierMode, Mover, PlaneOptions};
use pipes::Pipes;
use rest::{Rest, Talk};
use signs::Signs;
use turn::TURN_BYTES;
use unplaced::Unplaced;
pub(crate) use unplaced::{Arrival, Bounced};

use crate::bridge::Ticket;
use crate::frame::{Kind, Reason};
use crate::hello;
use crate::memory::{Budget, MemoryLimits};
use crate::mux::{Limits, Mux, OpenInfo, Side};
use crate::slots::{Key, Slots};
use crate::stats::WorkerStats;
use crate::tls::{Binding, Tls};
use ringspan_engine::io::{Event as IoEvent, Family};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use ringspan_engine::token::Token;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const OP_CARRIER_READ: u8 = 0;
const OP_CARRIER_WRITE: u8 = 1;
const OP_READ: u8 = 2;
const OP_WRITE: u8 = 3;
const OP_DIAL: u8 = 4;
/// Operations below this are the plane's, from it on the role's.
pub(crate) const OP_ROLE: u8 = 5;

/// Unsent bytes a carrier's socket may hold at first: later ones wait in the mux, where small streams overtake large
/// ones. 128 KiB are 10 ms at 100 Mbit/s. [`Carrier::on_second`] makes it follow what the carrier really sends.
const NOTSENT_BYTES: u32 = 128 << 10;
/// How often silence, handshakes and dials are looked at.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// One read of a carrier and one batch of small frames are at most this long; four TLS records.
const SCRATCH_BYTES: usize = 64 << 10;

/// What the role must know.
#[derive(Debug)]
pub(crate) enum Event {
    /// The carrier's bytes are safe with the peer that has this binding: HELLO may flow.
    Ready { carrier: Key, binding: Binding },
    /// A whole control payload came. Before the carrier is up, nothing more is read until [`Plane::resume`].
    Control { carrier: Key, kind: Kind, aux: u16, payload: Vec<u8> },
    /// The carrier's keys have encrypted most of what they may: it needs a successor. Comes once for each direction.
    Worn { carrier: Key },
    /// The carrier is gone, and its streams with it.
    Lost { carrier: Key, reason: Reason, detail: String },
    /// The peer ended a stream to this backend for that reason; `early`: before any sign that it was reached,
    /// and the backend's fault if anybody's.
    StreamReset { carrier: Key, backend: u16, reason: Reason, early: bool },
    /// We could not reach this backend.
    DialFailed { backend: u16, reason: Reason },
    /// Agent: the control plane is to give a connected socket with [`Plane::answer`].
    Asked { endpoint: Key, backend: u16, info: OpenInfo },
    /// Bridge: whether a visitor's backend was reached. Of a ticket that wants news exactly once, unless it bounces.
    Placed { ticket: Box<Ticket>, result: Result<(), Reason> },
    /// Bridge: a visitor whose backend was not reached.
    Bounced(Box<Bounced>),
    /// Agent: the bridge wants so many direct carriers to wait for streams of this one.
    SpareWanted { carrier: Key, count: u16 },
    /// Agent: a direct carrier no longer waits: it has a stream.
    DirectTaken { carrier: Key },
    /// A direct carrier has ended with its stream.
    DirectOver { carrier: Key },
    /// A carrier that was asked to move has left this worker.
    Moved { carrier: Key, body: Box<Carrier>, to: usize },
}

/// How an agent reaches one of its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The plane connects to it.
    Tcp(SocketAddr),
    /// The control plane gives a connected socket, each time it is asked.
    Ask,
}

impl From<SocketAddr> for Backend {
    fn from(address: SocketAddr) -> Backend {
        Backend::Tcp(address)
    }
}

/// See the module.
pub(crate) struct Plane {
    side: Side,
    carriers: Slots<Carrier>,
    endpoints: Slots<Endpoint>,
    pipes: Pipes,
    scratch: Box<[u8]>,
    /// Carriers with something to read or write.
    work: Vec<Key>,
    /// Those of them without frames that the last turn had no time for, the one that waits longest first.
    bulk: VecDeque<Key>,
    events: Vec<Event>,
    stats: Arc<WorkerStats>,
    /// Bytes that wait for slow receivers on this worker.
    held_bytes: usize,
    shares: Shares,
    tick_at: Instant,
    /// The agent's backends, by number. Empty on the bridge.
    backends: Vec<Backend>,
    dial_max: Duration,
    moving: Vec<(Key, usize)>,
    /// Visitors that have spoken and whose backends had given no sign then, and when to ask for one, in order.
    signs: VecDeque<(Instant, Key)>,
    /// Carriers that were woken for nothing.
    naps: Naps,
    /// Limited streams, by when to look at them.
    looks: BinaryHeap<Reverse<(Instant, Key, Look)>>,
    /// So many, and those of streams that are over are forgotten.
    looks_max: usize,
    options: Settled,
    /// What one carrier may read, and write, in this turn.
    turn_bytes: usize,
    /// What carriers without frames have moved in this turn.
    bulk_bytes: usize,
    rest: Rest,
    /// Framed carriers with nothing but bulk to write, until the rest is over.
    rested: Vec<Key>,
}

/// What all planes of a process have together.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    /// What they may take.
    pub(crate) budget: Arc<Budget>,
    /// Whether anybody talks.
    pub(crate) talk: Arc<Talk>,
}

impl Shares {
    /// Of one process.
    pub(crate) fn new(limits: MemoryLimits) -> Shares {
        Shares { budget: Arc::new(Budget::new(limits)), talk: Arc::default() }
    }
}

impl Plane {
    pub(crate) fn new(
        side: Side,
        stats: Arc<WorkerStats>,
        shares: Shares,
        backends: Vec<Backend>,
        dial_max: Duration,
        options: &PlaneOptions,
    ) -> Plane {
        let options = options.settle();
        Plane {
            side,
            carriers: Slots::default(),
            endpoints: Slots::default(),
            pipes: Pipes::new(options.pipe_bytes),
            scratch: vec![0; SCRATCH_BYTES].into(),
            work: Vec::new(),
            bulk: VecDeque::new(),
            events: Vec::new(),
            stats,
            held_bytes: 0,
            shares,
            tick_at: Instant::ZERO,
            backends,
            dial_max,
            moving: Vec::new(),
            signs: VecDeque::new(),
            naps: Naps::new(),
            looks: BinaryHeap::new(),
            looks_max: LOOKS_MIN,
            options,
            turn_bytes: TURN_BYTES,
            bulk_bytes: 0,
            rest: Rest::default(),
            rested: Vec::new(),
        }
    }

    /// Takes the events that happened.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether everything is closed and every operation has come home.
    pub(crate) fn is_empty(&self) -> bool {
        self.carriers.is_empty() && self.endpoints.is_empty()
    }

    /// Takes a connected socket to a peer; it may only say HELLO until [`raise`](Plane::raise).
    pub(crate) fn add_carrier(&mut self, cx: &mut Cx<'_>, socket: Socket, tls: Tls) -> Key {
        // Failures of these show at the first read or write.
        let _ = socket.set_nodelay();
        let _ = socket.set_notsent_lowat(NOTSENT_BYTES);
        let signs = Signs::new(self.side, Signs::watch(&socket), cx.now);
        let carrier = Carrier::new(socket, tls, self.new_mux(), signs, cx.now);
        let binding = carrier.tls.as_ref().and_then(Tls::binding);
        let key = self.carriers.insert(carrier);
        self.announce(key, binding);
        self.queue(key);
        key
    }

    fn new_mux(&self) -> Mux<Key> {
        Mux::within(self.side, Limits::default(), self.shares.budget.clone())
    }

    /// An endpoint held `before` bytes for its socket and holds `after` now.
    fn on_held(&mut self, before: usize, after: usize) {
        self.held_bytes = self.held_bytes + after - before;
        self.shares.budget.on_held(before, after);
    }

    fn announce(&mut self, key: Key, binding: Option<Binding>) {
        if let (Some(c), Some(binding)) = (self.carriers.get_mut(key), binding)
            && !c.announced
        {
            c.announced = true;
            self.events.push(Event::Ready { carrier: key, binding });
        }
    }

    /// The role has done with the HELLO that paused the carrier.
    pub(crate) fn resume(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.paused) else { return };
        c.paused = false;
        let stash = std::mem::take(&mut c.stash);
        if let Err(lost) = self.parse(cx, key, &stash) {
            self.lose(cx, key, lost);
        }
        self.queue(key);
    }

    /// Takes a carrier that [`move_to`](Plane::move_to) brought here.
    pub(crate) fn adopt_carrier(&mut self, carrier: Box<Carrier>) -> Key {
        let mut carrier = *carrier;
        carrier.phase = Phase::Hello;
        carrier.readable = true;
        carrier.queued = false;
        let key = self.carriers.insert(carrier);
        self.queue(key);
        key
    }

    /// The handshake is over: streams may flow.
    pub(crate) fn raise(&mut self, now: Instant, key: Key, limits: Limits) {
        if let Some(c) = self.carriers.get_mut(key) {
            c.phase = Phase::Up;
            c.mux.set_limits(limits);
            // Windows grow by the round trip: it is measured before there are any streams.
            c.mux.ping(now);
        }
    }

    /// How busy the carrier is, for comparison: megabytes in the last one to two seconds, then streams. A new stream is
    /// better off where no bulk is.
    pub(crate) fn load(&self, key: Key) -> (u64, usize) {
        self.carriers.get(key).map_or((0, 0), |c| ((c.bytes_last + c.mux.traffic()) >> 20, c.mux.streams()))
    }

    /// Sends a control payload.
    pub(crate) fn send(&mut self, key: Key, kind: Kind, aux: u16, payload: Vec<u8>) {
        if let Some(c) = self.carriers.get_mut(key) {
            c.mux.blob(kind, aux, payload);
            self.queue(key);
        }
    }

    /// Hands the carrier out as [`Event::Moved`] once its polls have come home. Only before streams flow.
    pub(crate) fn move_to(&mut self, cx: &mut Cx<'_>, key: Key, to: usize) {
        let Some(c) = self.carriers.get_mut(key) else { return };
        c.phase = Phase::Moving;
        self.moving.push((key, to));
        self.close_carrier(cx, key);
    }

    /// Gives a visitor a stream to the backend.
    ///
    /// # Errors
    /// The visitor back, if the carrier is full or gone.
    #[expect(
        clippy::result_large_err,
        reason = "a visitor comes back to be sent elsewhere at once; a box would cost them all"
    )]
    pub(crate) fn add_visitor(
        &mut self,
        now: Instant,
        socket: Socket,
        (key, backend): (Key, u16),
        arrival: Arrival,
        ticket: Box<Ticket>,
    ) -> Result<(), (Socket, Arrival, Box<Ticket>)> {
        let (mut socket, mut arrival, mut ticket) = (socket, arrival, ticket);
        let is_watched = arrival.fare.as_ref().is_some_and(|fare| fare.is_watched());
        if ticket.carrier() == CarrierMode::Direct && !is_watched && self.is_link(key) {
            match self.open_direct(socket, (key, backend), arrival, ticket) {
                Ok(()) => return Ok(()),
                Err(back) => (socket, arrival, ticket) = back,
            }
        }
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.phase == Phase::Up && !c.draining) else {
            return Err((socket, arrival, ticket));
        };
        let endpoint = self.endpoints.insert(Endpoint::new(Some(socket), key, backend, Stage::Open).with_nodelay());
        let e = self.endpoints.get_mut(endpoint).expect("just inserted");
        let Some(id) = c.mux.open_with(endpoint, backend, arrival.tell, &arrival.info) else {
            let socket = e.socket.take().expect("it came with one");
            self.endpoints.remove(endpoint);
            return Err((socket, arrival, ticket));
        };
        // A visitor usually speaks at once: its first bytes are looked for in this very turn, and ride with the OPEN.
        c.mux.source_ready(id);
        let Arrival { prefix, mut header, info, tell, fare } = arrival;
        (e.stream, e.fare) = (id, fare);
        e.may_move = ticket.carrier() != CarrierMode::Mux && !is_watched;
        e.unplaced = Some(Unplaced::new(&prefix, info, tell, ticket));
        e.prefix = if header.is_empty() {
            prefix
        } else {
            header.extend_from_slice(&prefix);
            header
        };
        self.stats.streams_total.add(1);
        self.stats.streams_open.add(1);
        self.begin_fare(endpoint, now);
        self.queue(key);
        Ok(())
    }

    fn queue(&mut self, key: Key) {
        if let Some(c) = self.carriers.get_mut(key)
            && !c.queued
        {
            c.queued = true;
            self.work.push(key);
        }
    }

    /// One of the plane's operations has an event. No bytes move here: all of a turn's are moved together.
    pub(crate) fn on_completion(&mut self, cx: &mut Cx<'_>, token: Token, event: IoEvent) {
        let key = Key { index: token.index(), generation: token.generation() };
        match token.op() {
            OP_CARRIER_READ | OP_CARRIER_WRITE => {
                let Some(c) = self.carriers.get_mut(key) else { return };
                if token.op() == OP_CARRIER_READ {
                    (c.read_armed, c.readable, c.woken) = (false, true, true);
                } else {
                    c.write_armed = false;
                }
                match c.phase {
                    Phase::Hello | Phase::Up => self.queue(key),
                    Phase::Closing | Phase::Moving => self.reap_carrier(key),
                }
            }
            op => {
                let Some(e) = self.endpoints.get_mut(key) else { return };
                match op {
                    OP_READ => e.armed.read = false,
                    OP_WRITE => e.armed.write = false,
                    _ => e.armed.dial = false,
                }
                if !e.is_live() {
                    self.reap_endpoint(key);
                    return;
                }
                match (op, event) {
                    (OP_READ, event) => {
                        e.end_is_near = matches!(event, IoEvent::Ready { ends: true });
                        self.source_ready(key);
                    }
                    (OP_WRITE, _) => self.flush(cx, key),
                    (_, IoEvent::Connected(Ok(()))) => self.on_connected(cx, key),
                    (_, IoEvent::Connected(Err(errno))) => self.dial_failed(cx, key, dial_reason(errno)),
                    _ => {}
                }
            }
        }
    }

    /// Whether something waits for the next turn.
    pub(crate) fn has_work(&self) -> bool {
        !self.work.is_empty() || (!self.bulk.is_empty() && !self.rest.is_on())
    }

    /// When the plane wants a turn at the latest.
    pub(crate) fn tick_at(&self) -> Instant {
        let look = self.looks.peek().map(|Reverse((at, ..))| *at);
        let nap = self.naps.front().map(|(at, _)| *at);
        let rest = self.rest.until().filter(|_| !self.bulk.is_empty() || !self.rested.is_empty());
        [look, nap, rest].into_iter().flatten().fold(self.tick_at, Instant::min)
    }
}

/// A socket to connect to that address.
pub(crate) fn dialer(to: &SocketAddr) -> io::Result<Socket> {
    let socket = Socket::tcp(Family::of(to))?;
    if to.ip().is_loopback() {
        socket.set_unpaced()?;
    }
    Ok(socket)
}

/// The HELLO step that the aux of its frame names.
pub(crate) fn hello_kind(aux: u16) -> Option<hello::Kind> {
    use hello::Kind;
    [Kind::Challenge, Kind::Auth, Kind::Welcome, Kind::Refused].into_iter().find(|kind| *kind as u16 == aux)
}

/// A sentence of the peer's, fit for a log: no control characters, no more than a line.
pub(crate) fn tame(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
    text.replace(char::is_control, "?")
}
