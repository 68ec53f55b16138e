//! What each network is given: so many starts a second, so many probes in flight; who is over its share waits in its
//! own queue. Pure: `now` comes in.
//!
//! ```text
//! due ──its network has room──────────────► admitted ──on_start──► started ──on_end──► over
//!  └──has none, or others wait there already──► queue of its network ──release, in order──► admitted
//! ```
//! Promises: a capped network holds up nobody else, and its own targets are admitted in the order in which they were
//! due; no step looks at all networks or all who wait. A network is in the table while it has targets waiting, admitted
//! or started, or its rate remembers a start: at most one entry for each of those, 128 bytes with its place in the index.
//!
//! Rates are kept as in [`Pace`](crate::probe::Pace): one number, the time at which the bucket will be full.

use crate::slab::{Key, Slab};
use crate::time::Instant;
use crate::wheel::Wheel;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// A /24 of IPv4 or a /64 of IPv6. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Net {
    version: u8,
    prefix: u64,
}

impl Net {
    /// The network of an address.
    pub(crate) fn of(ip: IpAddr) -> Net {
        match ip {
            IpAddr::V4(ip) => Net { version: 4, prefix: u64::from(ip.to_bits() >> 8) },
            IpAddr::V6(ip) => Net { version: 6, prefix: (ip.to_bits() >> 64) as u64 },
        }
    }
}

/// How far starts may run ahead of an even rate, as in [`Pace`](crate::probe::Pace).
const BURST: Duration = Duration::from_millis(5);
/// Targets released in one turn: as many as commands taken.
const RELEASE_BATCH: usize = 512;
/// How many queued names may find nothing before the queues are swept.
const DEAD_SLACK: usize = 1024;

/// A network's number while it is in the table; kept by whoever is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

impl Ticket {
    /// Of one who needed no admission.
    pub(crate) const NONE: Ticket = Ticket(u32::MAX);
}

struct Share {
    net: Net,
    /// Started and not over.
    flying: u32,
    /// Admitted and not started.
    admitted: u32,
    full_at: Instant,
    waiting: VecDeque<Key>,
    /// It stands in `ready`.
    is_ready: bool,
}

/// See the module.
pub(crate) struct Nets {
    /// Time between two starts at the cap; zero: no cap.
    spacing: Duration,
    /// At the same time; `u32::MAX`: no cap.
    in_flight_max: u32,
    index: HashMap<Net, Key>,
    shares: Slab<Share>,
    /// When a share's rate lets the next one go, or forgets the last.
    clock: Wheel,
    /// Shares that may have somebody to release, in turn.
    ready: VecDeque<u32>,
    fired: Vec<u32>,
    waiting: usize,
}

impl Nets {
    /// This worker's share of both caps among `workers`; `None` if there is no cap.
    pub(crate) fn new(rate: Option<u32>, in_flight: Option<u32>, workers: usize) -> Option<Nets> {
        if rate.is_none() && in_flight.is_none() {
            return None;
        }
        let workers = workers.max(1) as u64;
        let ns = |rate: u32| (1_000_000_000 * workers / u64::from(rate.max(1))).max(1);
        Some(Nets {
            spacing: Duration::from_nanos(rate.map_or(0, ns)),
            in_flight_max: in_flight.map_or(u32::MAX, |max| (max / workers as u32).max(1)),
            index: HashMap::new(),
            shares: Slab::new(u32::MAX - 1),
            clock: Wheel::new(Instant::ZERO),
            ready: VecDeque::new(),
            fired: Vec::new(),
            waiting: 0,
        })
    }

    /// Time begins.
    pub(crate) fn start(&mut self, now: Instant) {
        self.clock = Wheel::new(now);
    }

    /// How many wait for their network.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// A target is due. Returns whether it is admitted; if not it is handed out by [`release`](Nets::release) when its
    /// turn has come. Whoever is admitted is told of once, by [`on_start`](Nets::on_start) or
    /// [`on_gone`](Nets::on_gone).
    pub(crate) fn admit(&mut self, now: Instant, net: Net, target: Key) -> bool {
        let key = match self.index.get(&net) {
            Some(key) => *key,
            None => {
                let full_at = Instant::ZERO;
                let waiting = VecDeque::new();
                let share = Share { net, flying: 0, admitted: 0, full_at, waiting, is_ready: false };
                let key = self.shares.insert(share).expect("fewer networks than targets");
                self.index.insert(net, key);
                key
            }
        };
        let share = self.shares.get_mut(key).expect("the index names shares in use");
        if share.waiting.is_empty() && share.room(now, self.spacing, self.in_flight_max) > 0 {
            share.admitted += 1;
            return true;
        }
        share.waiting.push_back(target);
        self.waiting += 1;
        self.look_at(now, key.index);
        false
    }

    /// One who was admitted starts; the ticket goes back with [`on_end`](Nets::on_end).
    pub(crate) fn on_start(&mut self, now: Instant, net: Net) -> Ticket {
        let Some(key) = self.index.get(&net).copied() else { return Ticket::NONE };
        let share = self.shares.get_mut(key).expect("the index names shares in use");
        share.admitted = share.admitted.saturating_sub(1);
        share.flying += 1;
        share.full_at = share.full_at.max(now) + self.spacing;
        self.look_at(now, key.index);
        Ticket(key.index)
    }

    /// One who was admitted does not start.
    pub(crate) fn on_gone(&mut self, now: Instant, net: Net) {
        let Some(key) = self.index.get(&net).copied() else { return };
        let share = self.shares.get_mut(key).expect("the index names shares in use");
        share.admitted = share.admitted.saturating_sub(1);
        self.look_at(now, key.index);
    }

    /// One who has started is over.
    pub(crate) fn on_end(&mut self, now: Instant, ticket: Ticket) {
        if ticket == Ticket::NONE {
            return;
        }
        let (_, share) = self.shares.at_mut(ticket.0).expect("a share stays while somebody holds its ticket");
        share.flying -= 1;
        self.look_at(now, ticket.0);
    }

    /// Hands out those whose turn has come, a bounded number; each is admitted if `out` says that it is still there.
    /// Returns whether there may be more.
    pub(crate) fn release(&mut self, now: Instant, mut out: impl FnMut(Key) -> bool) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let mut more = self.clock.advance(now, RELEASE_BATCH, &mut fired);
        fired.drain(..).for_each(|index| self.look_at(now, index));
        self.fired = fired;
        for _ in 0..RELEASE_BATCH {
            let Some(index) = self.ready.pop_front() else { return more };
            let Some((_, share)) = self.shares.at_mut(index) else { continue };
            share.is_ready = false;
            if share.room(now, self.spacing, self.in_flight_max) > 0
                && let Some(target) = share.waiting.pop_front()
            {
                share.admitted += u32::from(out(target));
                self.waiting -= 1;
            }
            // One at a time, so that networks take turns.
            self.look_at(now, index);
        }
        more |= !self.ready.is_empty();
        more
    }

    /// When to [`release`](Nets::release) next if nothing happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.clock.next_expiry()
    }

    /// Names in the queues may find nothing, for their targets are gone; drops them when they are many. `live`: targets
    /// that there are.
    pub(crate) fn sweep(&mut self, now: Instant, live: usize, is_live: impl Fn(Key) -> bool) {
        if self.waiting <= 2 * live + DEAD_SLACK {
            return;
        }
        self.waiting = 0;
        for key in self.shares.keys().collect::<Vec<_>>() {
            let share = self.shares.get_mut(key).expect("just listed");
            share.waiting.retain(|target| is_live(*target));
            self.waiting += share.waiting.len();
            self.look_at(now, key.index);
        }
    }

    /// After a change: the share is ready, or waits for the clock or for one in flight, or is forgotten.
    fn look_at(&mut self, now: Instant, index: u32) {
        let Some((key, share)) = self.shares.at_mut(index) else { return };
        let has_room = share.room(now, self.spacing, self.in_flight_max) > 0;
        if !share.waiting.is_empty() && has_room {
            if !share.is_ready {
                share.is_ready = true;
                self.ready.push_back(index);
            }
            return;
        }
        let is_idle = share.flying == 0 && share.admitted == 0 && share.waiting.is_empty();
        if !share.waiting.is_empty() {
            // Full in flight: the next end looks here again. Only the rate needs the clock.
            let at = share.full_at - BURST;
            if at > now {
                self.clock.arm(index, at);
            }
        } else if is_idle && share.full_at > now {
            self.clock.arm(index, share.full_at);
        } else if is_idle && !share.is_ready {
            let net = share.net;
            self.clock.disarm(index);
            self.shares.remove(key);
            self.index.remove(&net);
        }
    }
}

impl Share {
    /// How many more may be admitted now.
    fn room(&self, now: Instant, spacing: Duration, in_flight_max: u32) -> u32 {
        let by_flight = in_flight_max.saturating_sub(self.flying + self.admitted);
        if spacing.is_zero() {
            return by_flight;
        }
        let ahead = (now + BURST).since(self.full_at.max(now)).as_nanos() as u64;
        let may = self.full_at.since(now) <= BURST;
        let by_rate = if may { ahead / spacing.as_nanos() as u64 + 1 } else { 0 };
        by_flight.min(u32::try_from(by_rate).unwrap_or(u32::MAX).saturating_sub(self.admitted))
    }
}

#[cfg(test)]
mod tests;
