//! How many, how fast, how long, and who: the limits of a listener, a service or a visitor's address.
//!
//! ```text
//! accept ──▶ Limiter::enter(address): lists, connections at once, new ones a second ──▶ Pass (ends: one less)
//! bytes  ──▶ Pass::wait(up | down, now): not yet? ──▶ read nothing until then ──▶ Pass::spend(n)
//! ```
//! Promise: what is not limited costs nothing. Counts and rates are atomics that all workers share, so they are exact:
//! no worker has a share of its own to run out of. A rate is one number, the time at which all that was let through is
//! paid for (the generic cell rate algorithm): the mean never exceeds the limit by more than one burst, and for bytes
//! by one read of each of the streams that share it. Time comes in; the lists and the table of visitors are locked for a
//! moment at accept, and only where they are configured. A change of the rules ([`Limiter::change`]) forgets no count.

use crate::frame::Reason;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use ringspan_engine::time::Instant;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Different visitor addresses that one limiter remembers. Full: one that has no connection and has not used up any of
/// its rate is forgotten for the newcomer; if there is none the newcomer is refused (`visitors_max`), since it cannot be
/// told from a flood.
pub const VISITORS_MAX: usize = 65_536;

/// Bytes that may go at once although a rate is set: what the rate gives in a tenth of a second, and at least this.
const BURST_BYTES_MIN: u64 = 16 << 10;

/// One set of numbers. 0 everywhere means: not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: u32,
    /// New connections a second.
    pub rate: u32,
    /// New connections at once although a rate is set; 0: as many as `rate`.
    pub burst: u32,
    /// Bytes a second from the visitors.
    pub up_bytes: u64,
    /// Bytes a second to the visitors.
    pub down_bytes: u64,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// Who may come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// If it is not empty, only these.
    pub allow: Vec<IpNet>,
    /// Never these, unless a longer prefix in `allow` says otherwise.
    pub deny: Vec<IpNet>,
}

impl Lists {
    /// The longest prefix that holds the address decides; of two equally long ones `deny`. In none: whoever is not in
    /// `allow` stays out if there is one, and comes in if there is none. IPv4 in IPv6 dress is IPv4.
    pub fn lets_in(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let longest =
            |list: &[IpNet]| list.iter().filter(|net| net.contains(&address)).map(|net| net.prefix_len()).max();
        match (longest(&self.allow), longest(&self.deny)) {
            (Some(allow), Some(deny)) => allow > deny,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => self.allow.is_empty(),
        }
    }
}

/// All that one listener or service limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// For all its visitors together.
    pub all: Limits,
    /// For each visitor address by itself.
    pub visitor: Limits,
    /// What counts as one visitor: bits of an IPv4 and of an IPv6 address. Default 32 and 64: an IPv6 customer has a
    /// whole /64.
    pub visitor_bits: Option<(u8, u8)>,
    /// Who may come in.
    pub lists: Lists,
    /// A stream on which nothing is said for this long ends. `None`: never.
    pub idle: Option<Duration>,
    /// A stream ends after this long, whatever it does. `None`: never.
    pub total: Option<Duration>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the visitor.
    Up,
    /// To the visitor.
    Down,
}

/// When all that was let through is paid for, in nanoseconds of the engine's clock.
#[derive(Debug, Default)]
struct Paid(AtomicU64);

impl Paid {
    /// Lets `cost` through if no more than `ahead` is owed then.
    fn admit(&self, now: u64, cost: u64, ahead: u64) -> bool {
        let next = |paid: u64| Some(paid.max(now).saturating_add(cost)).filter(|paid| paid - now <= ahead);
        self.0.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    fn spend(&self, now: u64, cost: u64) {
        let next = |paid: u64| Some(paid.max(now).saturating_add(cost));
        let _always = self.0.fetch_update(Relaxed, Relaxed, next);
    }

    /// When no more than `ahead` is owed; `None`: it is so now.
    fn ready_at(&self, now: u64, ahead: u64) -> Option<u64> {
        let at = self.0.load(Relaxed).saturating_sub(ahead);
        (at > now).then_some(at)
    }
}

const SECOND: u64 = 1_000_000_000;

fn cost(count: u64, each_second: u64) -> u64 {
    u64::try_from(u128::from(count) * u128::from(SECOND) / u128::from(each_second)).unwrap_or(u64::MAX)
}

/// One set of numbers that may change.
#[derive(Debug, Default)]
struct Numbers {
    connections_max: AtomicU32,
    rate: AtomicU32,
    burst: AtomicU32,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

impl Numbers {
    fn set(&self, limits: &Limits) {
        self.connections_max.store(limits.connections_max, Relaxed);
        self.rate.store(limits.rate, Relaxed);
        self.burst.store(limits.burst, Relaxed);
        self.up_bytes.store(limits.up_bytes, Relaxed);
        self.down_bytes.store(limits.down_bytes, Relaxed);
    }
}

/// Counts of one set of numbers, shared by all workers.
#[derive(Debug, Default)]
struct Tally {
    limits: Numbers,
    connections: AtomicU32,
    arrivals: Paid,
    up: Paid,
    down: Paid,
}

impl Tally {
    fn new(limits: &Limits) -> Arc<Tally> {
        let tally = Tally::default();
        tally.limits.set(limits);
        Arc::new(tally)
    }

    fn enter(&self, now: Instant) -> Result<(), Reason> {
        let connections_max = self.limits.connections_max.load(Relaxed);
        let take = |n: u32| if connections_max == 0 || n < connections_max { Some(n + 1) } else { None };
        self.connections.fetch_update(Relaxed, Relaxed, take).map_err(|_| Reason::ConnectionsMax)?;
        let rate = self.limits.rate.load(Relaxed);
        if rate > 0 {
            let burst = Some(self.limits.burst.load(Relaxed)).filter(|burst| *burst > 0).unwrap_or(rate);
            if !self.arrivals.admit(now.ns(), cost(1, rate.into()), cost(burst.into(), rate.into())) {
                self.leave();
                return Err(Reason::RateMax);
            }
        }
        Ok(())
    }

    fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    fn rate(&self, way: Way) -> (&Paid, u64) {
        match way {
            Way::Up => (&self.up, self.limits.up_bytes.load(Relaxed)),
            Way::Down => (&self.down, self.limits.down_bytes.load(Relaxed)),
        }
    }

    /// Whether forgetting it would change nothing.
    fn is_idle(&self, now: Instant) -> bool {
        let owes = |paid: &Paid| paid.0.load(Relaxed) > now.ns();
        self.connections.load(Relaxed) == 0 && !owes(&self.arrivals) && !owes(&self.up) && !owes(&self.down)
    }
}

/// The limits of one listener or service, and what is used of them. Shared by all workers and doors.
pub struct Limiter {
    rules: ArcSwap<Rules>,
    all: Arc<Tally>,
    visitors: Mutex<HashMap<IpAddr, Arc<Tally>>>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("rules", &self.rules()).finish_non_exhaustive()
    }
}

impl PartialEq for Limiter {
    fn eq(&self, other: &Limiter) -> bool {
        *self.rules() == *other.rules()
    }
}

impl Eq for Limiter {}

impl Limiter {
    /// Nobody is in yet.
    pub fn new(rules: Rules) -> Arc<Limiter> {
        let all = Tally::new(&rules.all);
        Arc::new(Limiter { rules: ArcSwap::from_pointee(rules), all, visitors: Mutex::default() })
    }

    /// What it keeps.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Keeps other rules from now on; who is in stays in and goes on being counted. A number that takes another's place
    /// holds for everybody at once; lists, times, and a number where there was none hold for those who come.
    pub fn change(&self, rules: Rules) {
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.rules();
        self.all.limits.set(&rules.all);
        if old.visitor_bits == rules.visitor_bits {
            visitors.values().for_each(|tally| tally.limits.set(&rules.visitor));
        } else {
            // One address is another visitor now.
            visitors.clear();
        }
        self.rules.store(Arc::new(rules));
    }

    /// Whether the visitor's address matters.
    pub fn asks_who(&self) -> bool {
        let rules = self.rules.load();
        rules.lists != Lists::default() || !rules.visitor.is_none()
    }

    /// Lets a visitor in, until the pass is dropped. One whose address is not known is let in by lists only if there is
    /// no `allow`, and shares its visitor's limits with all others of that kind.
    ///
    /// # Errors
    /// [`Reason::Denied`], [`Reason::ConnectionsMax`], [`Reason::RateMax`], [`Reason::VisitorsMax`].
    pub fn enter(self: &Arc<Self>, now: Instant, address: Option<IpAddr>) -> Result<Pass, Reason> {
        let rules = self.rules.load();
        let is_welcome = address.map_or(rules.lists.allow.is_empty(), |address| rules.lists.lets_in(address));
        if !is_welcome {
            return Err(Reason::Denied);
        }
        let mut pass = Pass { tallies: Vec::new(), idle: rules.idle, total: rules.total };
        if !rules.visitor.is_none() {
            let tally = self.visitor(now, address)?;
            tally.enter(now)?;
            pass.tallies.push(tally);
        }
        if !rules.all.is_none() {
            self.all.enter(now)?;
            pass.tallies.push(self.all.clone());
        }
        Ok(pass)
    }

    fn visitor(&self, now: Instant, address: Option<IpAddr>) -> Result<Arc<Tally>, Reason> {
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: they change under it.
        let rules = self.rules.load();
        let key = address.map_or(Ipv6Addr::UNSPECIFIED.into(), |address| network(&rules, address.to_canonical()));
        if let Some(tally) = visitors.get(&key) {
            return Ok(tally.clone());
        }
        if visitors.len() >= VISITORS_MAX {
            // All that can go at once: the next newcomers find room without looking.
            visitors.retain(|_, tally| Arc::strong_count(tally) > 1 || !tally.is_idle(now));
            if visitors.len() >= VISITORS_MAX {
                return Err(Reason::VisitorsMax);
            }
        }
        let tally = Tally::new(&rules.visitor);
        visitors.insert(key, tally.clone());
        Ok(tally)
    }
}

fn network(rules: &Rules, address: IpAddr) -> IpAddr {
    let (four, six) = rules.visitor_bits.unwrap_or((32, 64));
    let bits = if address.is_ipv4() { four.min(32) } else { six.min(128) };
    IpNet::new(address, bits).map_or(address, |net| net.network())
}

/// Somebody who was let in. Dropped: one less.
#[derive(Debug, Default)]
pub struct Pass {
    tallies: Vec<Arc<Tally>>,
    idle: Option<Duration>,
    total: Option<Duration>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        for tally in &self.tallies {
            tally.leave();
        }
    }
}

impl Pass {
    /// Joins another pass of the same visitor: the stricter time counts, and both counts.
    pub fn join(&mut self, mut other: Pass) {
        self.tallies.append(&mut other.tallies);
        self.idle = [self.idle, other.idle].into_iter().flatten().min();
        self.total = [self.total, other.total].into_iter().flatten().min();
    }

    /// Leaves whatever it has joined past the first `count`.
    pub(crate) fn leave_past(&mut self, count: usize) {
        while self.tallies.len() > count {
            if let Some(tally) = self.tallies.pop() {
                tally.leave();
            }
        }
    }

    /// How many counts it is in.
    pub(crate) fn counts(&self) -> usize {
        self.tallies.len()
    }

    /// Whether nothing is counted or limited: it need not be kept.
    pub fn is_free(&self) -> bool {
        self.tallies.is_empty() && self.idle.is_none() && self.total.is_none()
    }

    /// Whether bytes of this way are limited.
    pub fn limits(&self, way: Way) -> bool {
        self.tallies.iter().any(|tally| tally.rate(way).1 > 0)
    }

    /// Silence that ends the stream.
    pub fn idle(&self) -> Option<Duration> {
        self.idle
    }

    /// Age that ends the stream.
    pub fn total(&self) -> Option<Duration> {
        self.total
    }

    /// When the next bytes may go; `None`: now.
    pub fn wait(&self, way: Way, now: Instant) -> Option<Instant> {
        let at = |tally: &Arc<Tally>| match tally.rate(way) {
            (_, 0) => None,
            (paid, rate) => paid.ready_at(now.ns(), cost(burst_bytes(rate), rate)),
        };
        self.tallies.iter().filter_map(at).max().map(Instant::from_ns)
    }

    /// Most bytes to take in one go, so that a small rate is not overdrawn for long.
    pub fn slice(&self, way: Way) -> usize {
        let rates = self.tallies.iter().map(|tally| tally.rate(way).1).filter(|rate| *rate > 0);
        rates.map(burst_bytes).min().map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// `n` bytes went.
    pub fn spend(&self, way: Way, now: Instant, n: usize) {
        for tally in &self.tallies {
            if let (paid, rate @ 1..) = tally.rate(way) {
                paid.spend(now.ns(), cost(n as u64, rate));
            }
        }
    }
}

fn burst_bytes(rate: u64) -> u64 {
    (rate / 10).max(BURST_BYTES_MIN.min(rate)).max(1)
}

#[cfg(test)]
mod tests;
