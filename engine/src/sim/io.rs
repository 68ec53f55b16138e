//! The simulated [`Io`]: virtual time that moves when its user waits, and completions in random order.

use crate::io::{Completion, End, Errno, Event, Io, Lane, LaneKind, Leg, Op, TcpFacts, Trouble, Way};
use crate::sim::call::Call;
use crate::sim::lane::{SimLane, State};
use crate::sim::{Faults, World};
use crate::time::Instant;
use crate::token::Token;
use fastrand::Rng;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

/// An operation that was cancelled ends within this many microseconds.
const CANCEL_US: Range<u64> = 0..2000;
/// A call is ended within this many microseconds.
const HANG_US: Range<u64> = 0..200;
/// So many of the last completions can be repeated by a rogue.
const REPEATS_MAX: usize = 256;

/// One knock or one call, as the network saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// When the prober asked for it.
    pub at: Instant,
    /// Whose door.
    pub to: SocketAddr,
    /// What for.
    pub way: Way,
    /// When its lane was free again; `None`: not yet.
    pub over: Option<Instant>,
    /// How a call was ended; `None` for knocks.
    pub end: Option<End>,
}

/// See the module above.
pub struct SimIo {
    /// Who is out there.
    pub world: World,
    /// What goes wrong here.
    pub faults: Faults,
    now: Instant,
    rng: Rng,
    /// Chances of the rogue alone: the world is the same with it and without.
    rogue_rng: Rng,
    lanes: Vec<SimLane>,
    queue: Vec<Request>,
    /// What is in flight.
    ops: HashMap<Token, Flying>,
    /// Those whose end is decided, by its time and a random number.
    ends: BTreeMap<(Instant, u64), Token>,
    /// Calls that will be connected: lane and serial.
    connects: BTreeMap<(Instant, u64), (Lane, u64, Token)>,
    delivered: Vec<(Token, Kind)>,
    repeats: u64,
    visits: Vec<Visit>,
    busy: usize,
    busy_most: usize,
}

enum Request {
    Submit(Token, Op),
    Cancel(Token),
}

struct Flying {
    lane: Lane,
    place: Option<(Instant, u64)>,
    ending: Ending,
}

/// How an operation will end, once its time is known.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Knocked(Result<(), Errno>),
    Trouble(Leg, Errno),
    Cancelled,
    Hear,
    Hung,
}

#[derive(Clone, Copy)]
enum Kind {
    Knocked,
    Heard,
    Hung,
}

impl SimIo {
    /// A world that begins at `begin`, with all its chances drawn from `seed`.
    pub fn new(seed: u64, begin: Instant, world: World, faults: Faults) -> SimIo {
        SimIo {
            world,
            faults,
            now: begin,
            rng: Rng::with_seed(seed),
            rogue_rng: Rng::with_seed(!seed),
            lanes: Vec::new(),
            queue: Vec::new(),
            ops: HashMap::new(),
            ends: BTreeMap::new(),
            connects: BTreeMap::new(),
            delivered: Vec::new(),
            repeats: 0,
            visits: Vec::new(),
            busy: 0,
            busy_most: 0,
        }
    }

    /// Every knock and every call so far, in the order they were asked for.
    pub fn visits(&self) -> &[Visit] {
        &self.visits
    }

    /// Operations in flight now.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Lanes with a knock in flight or a call not yet hung up, now.
    pub fn lanes_busy(&self) -> usize {
        self.busy
    }

    /// The most lanes that were ever busy at a time.
    pub fn lanes_busy_most(&self) -> usize {
        self.busy_most
    }

    /// Completions that were repeated by [`Faults::rogue`].
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// The worker is not given the CPU for so long, here and now.
    pub fn sleep(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn lane(&mut self, lane: Lane) -> &mut SimLane {
        &mut self.lanes[lane.0 as usize]
    }

    fn stall(&mut self) {
        if self.rng.f64() < self.faults.stall {
            let us = self.rng.u64(self.faults.stall_us.clone());
            self.now = self.now + Duration::from_micros(us);
        }
    }

    /// A local error, if this is the time for one.
    fn local_error(&mut self) -> Option<Errno> {
        let strikes = self.rng.f64() < self.faults.local_error;
        strikes.then(|| Errno(*self.rng.choice(&self.faults.local_errors).expect("errors to draw from")))
    }

    // Operations begin.

    fn launch(&mut self, token: Token, op: Op) {
        match op {
            Op::Knock { lane, to, look } => {
                let way = self.lane(lane).way();
                if let Some(errno) = self.local_error() {
                    self.lane(lane).facts = None;
                    return self.place(token, self.now, Ending::Knocked(Err(errno)));
                }
                let meeting = self.world.behaviour(&to).meet(way, &mut self.rng);
                self.lane(lane).facts = (look && meeting.result.is_ok()).then_some(meeting.facts);
                self.place(token, self.now + meeting.after, Ending::Knocked(meeting.result));
            }
            Op::Call { lane, to } => self.launch_call(token, lane, &to),
            Op::Talk { lane } => {
                if let Some(errno) = self.local_error() {
                    let leg = if self.rng.bool() { Leg::Say } else { Leg::Hear };
                    return self.place(token, self.now, Ending::Trouble(leg, errno));
                }
                self.say(token, lane, self.now);
            }
            Op::Hang { .. } => {
                let after = Duration::from_micros(self.rng.u64(HANG_US));
                self.place(token, self.now + after, Ending::Hung);
            }
            op => unreachable!("{op:?} is refused by submit"),
        }
    }

    fn launch_call(&mut self, token: Token, lane: Lane, to: &SocketAddr) {
        let way = self.lane(lane).way();
        let meeting = self.world.behaviour(to).meet(way, &mut self.rng);
        let at = self.now + meeting.after;
        let refused = meeting.result.err();
        let serial = self.lane(lane).serial + 1;
        self.lane(lane).serial = serial;
        self.lane(lane).call = Some(Call::new(way, meeting));
        if let Some(errno) = self.local_error() {
            let leg = *self.rng.choice(&[Leg::Connect, Leg::Say, Leg::Hear]).expect("three");
            let at = if leg == Leg::Connect { self.now } else { at };
            return self.place(token, at, Ending::Trouble(leg, errno));
        }
        match refused {
            Some(errno) => self.place(token, at, Ending::Trouble(Leg::Connect, errno)),
            None => {
                self.connects.insert((at, self.rng.u64(..)), (lane, serial, token));
            }
        }
    }

    /// Says what the lane has to say, and decides when the operation ends, if that is known.
    fn say(&mut self, token: Token, lane: Lane, at: Instant) {
        let slot = &mut self.lanes[lane.0 as usize];
        let call = slot.call.as_mut().expect("a lane that speaks is in a call");
        if !slot.say.is_empty()
            && let Err(errno) = call.on_said(at, &slot.say, &mut self.rng)
        {
            return self.place(token, at, Ending::Trouble(Leg::Say, errno));
        }
        if let Some(first) = call.first() {
            self.place(token, first.max(at), Ending::Hear);
        }
    }

    /// The connections that were made by now.
    fn connect_due(&mut self) {
        while let Some((&(at, _), &(lane, serial, token))) = self.connects.first_key_value()
            && at <= self.now
        {
            self.connects.pop_first();
            let slot = &mut self.lanes[lane.0 as usize];
            if slot.serial == serial && slot.state == State::Speaking {
                let call = slot.call.as_mut().expect("a lane that speaks is in a call");
                call.on_connected(at, self.now, &mut self.rng);
                self.say(token, lane, at);
            }
        }
    }

    /// It ends at `at`, unless it has been decided that it ends before.
    fn place(&mut self, token: Token, at: Instant, ending: Ending) {
        let place = (at, self.rng.u64(..));
        let flying = self.ops.get_mut(&token).expect("in flight");
        if let Some(before) = flying.place {
            if before.0 <= at {
                return;
            }
            self.ends.remove(&before);
        }
        (flying.place, flying.ending) = (Some(place), ending);
        self.ends.insert(place, token);
    }

    /// Ends it soon: mostly as cancelled, sometimes with the answer it would have got.
    fn launch_cancel(&mut self, token: Token) {
        let soon = self.now + Duration::from_micros(self.rng.u64(CANCEL_US));
        let Some(flying) = self.ops.get(&token) else { return };
        let cancelled = match flying.ending {
            Ending::Hung => return,
            Ending::Knocked(result) if self.rng.u8(..4) == 0 => Ending::Knocked(result),
            Ending::Knocked(_) => Ending::Knocked(Err(Errno(libc::ECANCELED))),
            Ending::Trouble(..) | Ending::Cancelled | Ending::Hear => Ending::Cancelled,
        };
        self.place(token, soon, cancelled);
    }

    // Operations end.

    fn deliver(&mut self, token: Token) -> Completion {
        let Flying { lane, ending, .. } = self.ops.remove(&token).expect("what ends is in flight");
        let now = self.now;
        let slot = &mut self.lanes[lane.0 as usize];
        let connected = slot.call.as_ref().is_some_and(|call| call.connected.is_some());
        let heard = match ending {
            Ending::Knocked(result) => {
                slot.facts = slot.facts.filter(|_| result.is_ok());
                return self.over(token, lane, Kind::Knocked, Event::Knocked(result));
            }
            Ending::Hung => return self.over(token, lane, Kind::Hung, Event::Hung),
            Ending::Trouble(leg, errno) => Err(Trouble { leg, errno }),
            Ending::Cancelled => {
                let leg = if connected { Leg::Hear } else { Leg::Connect };
                Err(Trouble { leg, errno: Errno(libc::ECANCELED) })
            }
            Ending::Hear => {
                let call = slot.call.as_mut().expect("a lane that speaks is in a call");
                call.hear(now, &mut slot.heard, &mut self.rng).map_err(|errno| Trouble { leg: Leg::Hear, errno })
            }
        };
        slot.state = if heard.is_ok() { State::Quiet } else { State::Failed };
        slot.say.clear();
        self.remember(token, Kind::Heard);
        Completion { token, event: Event::Heard(heard) }
    }

    /// The lane is free.
    fn over(&mut self, token: Token, lane: Lane, kind: Kind, event: Event) -> Completion {
        let now = self.now;
        let slot = self.lane(lane);
        slot.state = State::Idle;
        slot.call = None;
        slot.say.clear();
        let visit = slot.visit;
        self.visits[visit].over = Some(now);
        self.busy -= 1;
        self.remember(token, kind);
        Completion { token, event }
    }

    fn remember(&mut self, token: Token, kind: Kind) {
        if self.delivered.len() < REPEATS_MAX {
            return self.delivered.push((token, kind));
        }
        let at = self.rogue_rng.usize(..REPEATS_MAX);
        self.delivered[at] = (token, kind);
    }

    /// What no `Io` may do: a completion of an operation that has had its own.
    fn repeat(&mut self) -> Option<Completion> {
        let (token, kind) = *self.rogue_rng.choice(&self.delivered)?;
        let trouble = Trouble { leg: Leg::Hear, errno: Errno(libc::ECONNRESET) };
        let is_success = self.rogue_rng.bool();
        let event = match kind {
            Kind::Knocked => Event::Knocked(Ok(())),
            Kind::Hung => Event::Hung,
            Kind::Heard => Event::Heard(if is_success { Ok(self.rogue_rng.usize(..10)) } else { Err(trouble) }),
        };
        let is_free = !self.ops.contains_key(&token);
        self.repeats += u64::from(is_free);
        is_free.then_some(Completion { token, event })
    }

    /// Lets time pass until something ends, a connection is made and that wakes the worker, or `deadline`.
    fn pass(&mut self, deadline: Option<Instant>) {
        loop {
            self.connect_due();
            let end = self.ends.first_key_value().map(|((at, _), _)| *at);
            let connect = self.connects.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = [end, connect, deadline].into_iter().flatten().min() else { return };
            if next <= self.now {
                return;
            }
            self.now = next;
            let is_woken = connect == Some(next) && self.rng.bool();
            if is_woken || deadline == Some(next) || end == Some(next) {
                return self.connect_due();
            }
        }
    }
}

impl Io for SimIo {
    fn now(&self) -> Instant {
        self.now
    }

    fn open_lanes(&mut self, kind: LaneKind, count: u32) -> io::Result<Range<u32>> {
        let opened = self.lanes.len() as u32;
        let room = self.faults.lanes_max.map_or(count, |max| max.saturating_sub(opened)).min(count);
        let errno = match kind.source {
            _ if kind.way == Way::Ping && self.faults.pings_forbidden => libc::EACCES,
            Some(source) if self.faults.sources_unknown.contains(&source) => libc::EADDRNOTAVAIL,
            _ if room == 0 => libc::EMFILE,
            _ => 0,
        };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.lanes.extend((0..room).map(|_| SimLane::new(kind)));
        Ok(opened..opened + room)
    }

    fn outgoing(&mut self, lane: Lane) -> &mut Vec<u8> {
        self.lane(lane).outgoing(lane)
    }

    fn heard(&self, lane: Lane) -> &[u8] {
        self.lanes[lane.0 as usize].heard(lane)
    }

    fn connected_at(&self, lane: Lane) -> Option<Instant> {
        self.lanes[lane.0 as usize].call.as_ref().and_then(|call| call.connected)
    }

    fn tcp_facts(&mut self, lane: Lane) -> Option<TcpFacts> {
        let slot = self.lane(lane);
        match slot.way() {
            Way::Knock(_) => slot.facts.filter(|_| slot.state == State::Idle),
            Way::Stream => slot.call.as_ref().filter(|call| call.connected.is_some()).map(|call| call.facts),
            Way::Datagram | Way::Ping => None,
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        assert!(!self.ops.contains_key(&token), "lane rule: {token:?} is in flight already");
        let (Op::Knock { lane, .. } | Op::Call { lane, .. } | Op::Talk { lane } | Op::Hang { lane, .. }) = op else {
            panic!("the simulated network has lanes only, not {op:?}")
        };
        let (now, visit) = (self.now, self.visits.len());
        let slot = self.lane(lane);
        slot.on_submit(&op);
        let way = slot.way();
        let ending = match op {
            Op::Knock { to, .. } | Op::Call { to, .. } => {
                slot.visit = visit;
                self.visits.push(Visit { at: now, to, way, over: None, end: None });
                self.busy += 1;
                self.busy_most = self.busy_most.max(self.busy);
                Ending::Hear
            }
            Op::Hang { end, .. } => {
                let visit = slot.visit;
                self.visits[visit].end = Some(end);
                Ending::Hung
            }
            _ => Ending::Hear,
        };
        self.ops.insert(token, Flying { lane, place: None, ending });
        self.queue.push(Request::Submit(token, op));
    }

    fn cancel(&mut self, token: Token) {
        self.queue.push(Request::Cancel(token));
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        if !self.faults.stalls_after {
            self.stall();
        }
        for request in std::mem::take(&mut self.queue) {
            match request {
                Request::Submit(token, op) => self.launch(token, op),
                Request::Cancel(token) => self.launch_cancel(token),
            }
        }
        self.pass(deadline);
        self.stall();
        self.connect_due();
        let mut due: Vec<_> = self.ends.range(..=(self.now, u64::MAX)).map(|(place, token)| (*place, *token)).collect();
        self.rng.shuffle(&mut due);
        due.truncate(self.faults.collect_max.unwrap_or(usize::MAX));
        // Before the honest ones: after them its token may be in use again, and nobody could tell.
        if self.rogue_rng.f64() < self.faults.rogue {
            completions.extend(self.repeat());
        }
        for (place, token) in due {
            self.ends.remove(&place);
            let completion = self.deliver(token);
            completions.push(completion);
        }
    }
}
