//! The simulated [`Io`]: virtual time that moves when its user waits, and completions in random order.

use crate::io::{Completion, Errno, Event, Family, Io, Lane, LaneKind, Mode, Op, TcpFacts, Way};
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

/// One knock, as the network saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// When the prober asked for it.
    pub at: Instant,
    /// Whose door.
    pub to: SocketAddr,
}

/// See the module above.
pub struct SimIo {
    /// Who is out there.
    pub world: World,
    /// What goes wrong here.
    pub faults: Faults,
    now: Instant,
    rng: Rng,
    lanes: Vec<SimLane>,
    queue: Vec<Request>,
    /// What is in flight, by the time it ends and a random number.
    flying: BTreeMap<(Instant, u64), Flying>,
    places: HashMap<u64, (Instant, u64)>,
    delivered: Vec<Token>,
    knocks: Vec<Knock>,
    flying_most: usize,
}

struct SimLane {
    mode: Mode,
    family: Family,
    busy: bool,
}

enum Request {
    Submit(Token, Op),
    Cancel(Token),
}

struct Flying {
    token: Token,
    lane: Lane,
    result: Result<(), Errno>,
}

impl SimIo {
    /// A world that begins at `begin`, with all its chances drawn from `seed`.
    pub fn new(seed: u64, begin: Instant, world: World, faults: Faults) -> SimIo {
        SimIo {
            world,
            faults,
            now: begin,
            rng: Rng::with_seed(seed),
            lanes: Vec::new(),
            queue: Vec::new(),
            flying: BTreeMap::new(),
            places: HashMap::new(),
            delivered: Vec::new(),
            knocks: Vec::new(),
            flying_most: 0,
        }
    }

    /// Every knock so far, in the order they were asked for.
    pub fn knocks(&self) -> &[Knock] {
        &self.knocks
    }

    /// Operations in flight now.
    pub fn in_flight(&self) -> usize {
        self.flying.len() + self.queue.iter().filter(|request| matches!(request, Request::Submit(..))).count()
    }

    /// The most that were ever in flight at a time.
    pub fn in_flight_most(&self) -> usize {
        self.flying_most
    }

    /// Lanes with a knock in flight now.
    pub fn lanes_busy(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.busy).count()
    }

    /// The worker is not given the CPU for so long, here and now.
    pub fn sleep(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn stall(&mut self) {
        if self.rng.f64() < self.faults.stall {
            let us = self.rng.u64(self.faults.stall_us.clone());
            self.now = self.now + Duration::from_micros(us);
        }
    }

    fn launch(&mut self, token: Token, lane: Lane, to: &SocketAddr) {
        let (after, result) = if self.rng.f64() < self.faults.local_error {
            (Duration::ZERO, Err(Errno(*self.rng.choice(&self.faults.local_errors).expect("errors to draw from"))))
        } else {
            self.world.behaviour(to).answer(&mut self.rng)
        };
        self.place(self.now + after, Flying { token, lane, result });
        self.flying_most = self.flying_most.max(self.flying.len());
    }

    fn place(&mut self, end: Instant, flying: Flying) {
        let place = (end, self.rng.u64(..));
        self.places.insert(flying.token.raw(), place);
        self.flying.insert(place, flying);
    }

    /// Ends it soon: mostly as cancelled, sometimes with the answer it would have got.
    fn launch_cancel(&mut self, token: Token) {
        let Some(place) = self.places.remove(&token.raw()) else { return };
        let mut flying = self.flying.remove(&place).expect("both maps name the same operations");
        let soon = self.now + Duration::from_micros(self.rng.u64(CANCEL_US));
        if place.0 > soon && self.rng.u8(..4) > 0 {
            flying.result = Err(Errno(libc::ECANCELED));
        }
        self.place(soon.min(place.0), flying);
    }
}

impl Io for SimIo {
    fn now(&self) -> Instant {
        self.now
    }

    fn open_lanes(&mut self, kind: LaneKind, count: u32) -> io::Result<Range<u32>> {
        let (Way::Knock(mode), family) = (kind.way, kind.family) else {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        };
        let opened = self.lanes.len() as u32;
        let room = self.faults.lanes_max.map_or(count, |max| max.saturating_sub(opened)).min(count);
        if room == 0 {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.lanes.extend((0..room).map(|_| SimLane { mode, family, busy: false }));
        Ok(opened..opened + room)
    }

    fn outgoing(&mut self, lane: Lane) -> &mut Vec<u8> {
        unreachable!("{lane:?} does not talk: none that does can be opened")
    }

    fn heard(&self, lane: Lane) -> &[u8] {
        unreachable!("{lane:?} does not talk: none that does can be opened")
    }

    fn connected_at(&self, _lane: Lane) -> Option<Instant> {
        None
    }

    fn tcp_facts(&mut self, _lane: Lane) -> Option<TcpFacts> {
        None
    }

    fn submit(&mut self, token: Token, op: Op) {
        let Op::Knock { lane, to, .. } = op else { panic!("the simulated network knows knocks only, not {op:?}") };
        let slot = &mut self.lanes[lane.0 as usize];
        assert!(!slot.busy, "lane {lane:?} ({:?}) is used while its last knock is in flight", slot.mode);
        assert_eq!(slot.family, Family::of(&to), "lane {lane:?} is of the other family than {to}");
        slot.busy = true;
        let twice = |request: &Request| matches!(request, Request::Submit(other, _) if *other == token);
        assert!(!self.places.contains_key(&token.raw()) && !self.queue.iter().any(twice), "{token:?} is in flight");
        self.knocks.push(Knock { at: self.now, to });
        self.queue.push(Request::Submit(token, op));
    }

    fn cancel(&mut self, token: Token) {
        self.queue.push(Request::Cancel(token));
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        self.stall();
        for request in std::mem::take(&mut self.queue) {
            match request {
                Request::Submit(token, Op::Knock { lane, to, .. }) => self.launch(token, lane, &to),
                Request::Submit(..) => unreachable!("refused by submit"),
                Request::Cancel(token) => self.launch_cancel(token),
            }
        }
        let first = self.flying.first_key_value().map(|((end, _), _)| *end);
        if let Some(until) = deadline.into_iter().chain(first).min() {
            self.now = self.now.max(until);
        }
        self.stall();
        let mut due: Vec<_> = self.flying.range(..=(self.now, u64::MAX)).map(|(place, _)| *place).collect();
        self.rng.shuffle(&mut due);
        due.truncate(self.faults.collect_max.unwrap_or(usize::MAX));
        for place in due {
            let Flying { token, lane, result } = self.flying.remove(&place).expect("listed just now");
            self.places.remove(&token.raw());
            self.lanes[lane.0 as usize].busy = false;
            self.delivered.push(token);
            completions.push(Completion { token, event: Event::Knocked(result) });
        }
        if self.rng.f64() < self.faults.rogue && !self.delivered.is_empty() {
            let token = self.delivered[self.rng.usize(..self.delivered.len())];
            if !self.places.contains_key(&token.raw()) {
                completions.push(Completion { token, event: Event::Knocked(Ok(())) });
            }
        }
    }
}
