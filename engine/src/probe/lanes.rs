//! Recycled sockets by pool, and the targets that wait for one. A pool is a [`LaneKind`]: a way, a family, a source.
//! Pools appear when their first target is due. Lanes are opened lazily, a batch at a time, and the one used last is
//! used next: its memory is still warm.
//! Promises: a pool that cannot get a lane never holds up another pool; pools that can start take turns; a turn costs
//! the same however many pools there are.
//!
//! ```text
//!         due, and a lane or the right to ask for one            neither: waits for a lane that comes back,
//! idle ──────────────────────────────────────────────► ready ──────────► blocked     or for its retry
//!   ▲──────────────── nobody due any more ───────────────┘ ▲─────────────────┘
//! ```

use crate::io::{Errno, Family, Io, LaneKind, Mode, Way};
use crate::slab::Key;
use crate::time::Instant;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Lanes opened at a time: at about 2 µs a socket, a batch takes no longer than a few probes do.
const BATCH: u32 = 64;
/// Kinds of lanes one worker keeps: twelve without a source (six ways, two families); the rest are sources of the
/// policies, and nobody has two hundred addresses to probe from.
pub(crate) const KINDS_MAX: usize = 256;
/// After the kernel refused a lane, the first time to ask again; doubled up to [`RETRY_MAX`] while it refuses.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// The longest.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Kinds without a source have their place in a table; those with one are looked up.
const SOURCELESS: usize = 12;

/// A place to start the next probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// This target, on this lane.
    Start {
        /// The target.
        target: Key,
        /// The socket.
        lane: u32,
        /// Where the lane comes from.
        pool: u8,
    },
    /// This target would be next, but its pool has not a single socket and the kernel gives none.
    Refused {
        /// The target.
        target: Key,
        /// Why.
        errno: Errno,
    },
    /// Nobody is due whose pool has a lane free.
    Nobody,
}

/// There are [`KINDS_MAX`] kinds of lanes already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyKinds;

/// See the module.
pub(crate) struct Lanes {
    pools: Vec<Pool>,
    /// The pools of kinds without a source.
    sourceless: [Option<u8>; SOURCELESS],
    /// Those of kinds with one.
    sourced: HashMap<LaneKind, u8>,
    /// Pools that may start something, in turn.
    ready: VecDeque<u8>,
    lanes_max: u32,
    /// Lanes opened beyond each pool's first batch.
    shared: u32,
    waiting: usize,
    warned: bool,
}

struct Pool {
    kind: LaneKind,
    free: Vec<u32>,
    due: VecDeque<Key>,
    opened: u32,
    is_ready: bool,
    retry_at: Instant,
    retry: Duration,
    refusal: Option<Errno>,
}

impl Lanes {
    /// No lanes yet. At most `lanes_max` in each pool, and in all pools together no more than that beyond the first
    /// [`BATCH`] of each, which are every pool's own.
    pub(crate) fn new(lanes_max: u32) -> Lanes {
        Lanes {
            pools: Vec::new(),
            sourceless: [None; SOURCELESS],
            sourced: HashMap::new(),
            ready: VecDeque::new(),
            lanes_max: lanes_max.max(1),
            shared: 0,
            waiting: 0,
            warned: false,
        }
    }

    /// A target is due: it stands in its pool's queue.
    ///
    /// # Errors
    /// [`TooManyKinds`]: it is not in any queue.
    pub(crate) fn on_due(&mut self, kind: LaneKind, target: Key) -> Result<(), TooManyKinds> {
        let number = self.pool_of(kind)?;
        self.pools[usize::from(number)].due.push_back(target);
        self.waiting += 1;
        self.look_at(number);
        Ok(())
    }

    /// How many stand in the queues.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Lanes that were opened.
    pub(crate) fn opened(&self) -> u64 {
        self.pools.iter().map(|pool| u64::from(pool.opened)).sum()
    }

    /// What the lanes of a pool are for.
    pub(crate) fn kind(&self, pool: u8) -> LaneKind {
        self.pools[usize::from(pool)].kind
    }

    /// When a pool whose turn has not come for want of a lane may ask the kernel for one again; always after `now`.
    /// Looks at every pool: for the end of a turn in which nothing more could be started.
    pub(crate) fn retry_at(&self, now: Instant) -> Option<Instant> {
        let waits = |pool: &&Pool| !pool.due.is_empty() && !pool.is_ready && pool.retry_at > now;
        self.pools.iter().filter(waits).filter(|pool| self.room(pool) > 0).map(|pool| pool.retry_at).min()
    }

    /// Who starts next, and on which lane. Pools take turns.
    pub(crate) fn take(&mut self, now: Instant, io: &mut dyn Io) -> Turn {
        if self.ready.is_empty() && self.waiting > 0 {
            self.wake(now);
        }
        while let Some(number) = self.ready.pop_front() {
            let room = self.room(&self.pools[usize::from(number)]);
            let pool = &mut self.pools[usize::from(number)];
            pool.is_ready = false;
            if pool.due.is_empty() {
                continue;
            }
            if pool.free.is_empty() && room > 0 && now >= pool.retry_at {
                let before = pool.opened;
                pool.open(now, room.min(BATCH), io);
                self.shared += pool.opened.saturating_sub(BATCH) - before.saturating_sub(BATCH);
            }
            let lane = pool.free.pop();
            if lane.is_none() && pool.opened > 0 {
                continue;
            }
            let target = pool.due.pop_front().expect("looked at above");
            let refusal = pool.refusal;
            self.waiting -= 1;
            self.look_at(number);
            return match lane {
                Some(lane) => Turn::Start { target, lane, pool: number },
                None => Turn::Refused { target, errno: refusal.expect("without a lane there was a refusal") },
            };
        }
        Turn::Nobody
    }

    /// A lane can be used again.
    pub(crate) fn give_back(&mut self, pool: u8, lane: u32) {
        self.pools[usize::from(pool)].free.push(lane);
        self.look_at(pool);
    }

    /// Drops those from the queues of whom `is_live` is false.
    pub(crate) fn retain(&mut self, is_live: impl Fn(Key) -> bool) {
        for pool in &mut self.pools {
            pool.due.retain(|target| is_live(*target));
        }
        self.waiting = self.pools.iter().map(|pool| pool.due.len()).sum();
    }

    /// How many lanes a pool may still open.
    fn room(&self, pool: &Pool) -> u32 {
        let own = BATCH.min(self.lanes_max).saturating_sub(pool.opened);
        let left = self.lanes_max.saturating_sub(self.shared);
        if own > 0 { own } else { left.min(self.lanes_max - pool.opened.min(self.lanes_max)) }
    }

    /// Puts a pool into the ready queue if it belongs there: somebody is due, and a lane is free, or the kernel has
    /// never refused one, or there is nothing to wait for and the target must be told.
    fn look_at(&mut self, number: u8) {
        let room = self.room(&self.pools[usize::from(number)]);
        let pool = &mut self.pools[usize::from(number)];
        let may_start = !pool.free.is_empty() || pool.opened == 0 || (room > 0 && pool.refusal.is_none());
        if !pool.is_ready && !pool.due.is_empty() && may_start {
            pool.is_ready = true;
            self.ready.push_back(number);
        }
    }

    /// Makes those pools ready whose time to ask the kernel again has come.
    fn wake(&mut self, now: Instant) {
        for number in 0..self.pools.len() {
            let pool = &self.pools[number];
            if !pool.is_ready && !pool.due.is_empty() && now >= pool.retry_at && self.room(pool) > 0 {
                self.pools[number].is_ready = true;
                self.ready.push_back(number as u8);
            }
        }
    }

    fn pool_of(&mut self, kind: LaneKind) -> Result<u8, TooManyKinds> {
        let place = place_of(kind);
        let known = if kind.source.is_none() { self.sourceless[place] } else { self.sourced.get(&kind).copied() };
        if let Some(number) = known {
            return Ok(number);
        }
        if self.pools.len() == KINDS_MAX {
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(limit = KINDS_MAX, ?kind, "too many kinds of probe sockets: use fewer source addresses");
            }
            return Err(TooManyKinds);
        }
        let number = self.pools.len() as u8;
        self.pools.push(Pool {
            kind,
            free: Vec::new(),
            due: VecDeque::new(),
            opened: 0,
            is_ready: false,
            retry_at: Instant::ZERO,
            retry: Duration::ZERO,
            refusal: None,
        });
        match kind.source {
            None => self.sourceless[place] = Some(number),
            Some(_) => {
                self.sourced.insert(kind, number);
            }
        }
        Ok(number)
    }
}

/// A kind's place in the table of those without a source.
fn place_of(kind: LaneKind) -> usize {
    let way = match kind.way {
        Way::Knock(Mode::HalfOpen) => 0,
        Way::Knock(Mode::Full) => 1,
        Way::Knock(Mode::Graceful) => 2,
        Way::Stream => 3,
        Way::Datagram => 4,
        Way::Ping => 5,
    };
    way * 2 + usize::from(kind.family == Family::V6)
}

impl Pool {
    fn open(&mut self, now: Instant, count: u32, io: &mut dyn Io) {
        match io.open_lanes(self.kind, count) {
            Ok(lanes) => {
                self.opened += lanes.len() as u32;
                self.free.extend(lanes.rev());
                (self.refusal, self.retry) = (None, Duration::ZERO);
            }
            Err(error) => {
                let errno = Errno(error.raw_os_error().unwrap_or(libc::ENOMEM));
                if self.refusal != Some(errno) {
                    let (kind, lanes) = (self.kind, self.opened);
                    tracing::warn!(?kind, lanes, error = %errno, "no more sockets for probes");
                }
                self.retry = (self.retry * 2).clamp(RETRY_MIN, RETRY_MAX);
                (self.refusal, self.retry_at) = (Some(errno), now + self.retry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Faults, SimIo, World};
    use std::net::{IpAddr, Ipv4Addr};

    const NOW: Instant = Instant::from_ns(1 << 40);

    fn io(lanes_max: Option<u32>) -> SimIo {
        SimIo::new(1, NOW, World::default(), Faults { lanes_max, ..Faults::default() })
    }

    fn kind(number: u32) -> LaneKind {
        let source = IpAddr::from(Ipv4Addr::from(0x7f09_0000 + number));
        LaneKind { way: Way::Stream, family: Family::V4, source: Some(source) }
    }

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    /// Who starts next, until nobody can.
    fn started(lanes: &mut Lanes, now: Instant, io: &mut SimIo) -> Vec<(u32, u32, u8)> {
        std::iter::from_fn(|| match lanes.take(now, io) {
            Turn::Start { target, lane, pool } => Some((target.index, lane, pool)),
            Turn::Refused { .. } | Turn::Nobody => None,
        })
        .collect()
    }

    /// Every kind without a source has a place of its own.
    #[test]
    fn places_are_distinct() {
        let modes = [Mode::HalfOpen, Mode::Full, Mode::Graceful].map(Way::Knock);
        let ways = modes.into_iter().chain([Way::Stream, Way::Datagram, Way::Ping]);
        let kinds = ways.flat_map(|way| [Family::V4, Family::V6].map(|family| LaneKind { way, family, source: None }));
        let mut places: Vec<_> = kinds.map(place_of).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..SOURCELESS));
    }

    /// Pools take turns, however many stand in the queue of one; in a pool, first come first served.
    #[test]
    fn pools_take_turns() {
        let (mut lanes, mut io) = (Lanes::new(1000), io(None));
        for number in 0..30 {
            lanes.on_due(kind(if number < 20 { 0 } else { number % 2 + 1 }), key(number)).expect("few kinds");
        }
        let order: Vec<_> = started(&mut lanes, NOW, &mut io).into_iter().map(|(target, ..)| target).collect();
        assert_eq!(order[..9], [0, 20, 21, 1, 22, 23, 2, 24, 25]);
        assert_eq!((order.len(), lanes.waiting(), lanes.opened()), (30, 0, 3 * u64::from(BATCH)));
    }

    /// A pool that has no lane left waits for one to come back; one that the kernel gives none is told so at once, asks
    /// again when it is time, and neither holds up the others.
    #[test]
    fn nobody_holds_up_the_others() {
        let (mut lanes, mut io) = (Lanes::new(1000), io(Some(BATCH)));
        (0..100).for_each(|number| lanes.on_due(kind(0), key(number)).expect("few kinds"));
        let first = started(&mut lanes, NOW, &mut io);
        assert_eq!((first.len(), lanes.waiting()), (64, 36));
        lanes.on_due(kind(1), key(200)).expect("few kinds");
        let refused = Turn::Refused { target: key(200), errno: Errno(libc::EMFILE) };
        assert_eq!(lanes.take(NOW, &mut io), refused);
        assert_eq!(lanes.take(NOW, &mut io), Turn::Nobody);
        assert_eq!(lanes.retry_at(NOW), Some(NOW + RETRY_MIN));
        lanes.give_back(first[7].2, first[7].1);
        assert_eq!(started(&mut lanes, NOW, &mut io), [(64, first[7].1, 0)]);
        io.faults.lanes_max = None;
        assert_eq!(started(&mut lanes, NOW, &mut io), [], "it is not time yet");
        assert_eq!(started(&mut lanes, NOW + RETRY_MIN, &mut io).len(), 35);
        lanes.on_due(kind(1), key(201)).expect("few kinds");
        assert_eq!(started(&mut lanes, NOW + RETRY_MIN, &mut io).len(), 1);
        assert_eq!(lanes.retry_at(NOW + RETRY_MIN), None);
    }

    /// The first batch of each pool is its own; beyond it the pools share what there is.
    #[test]
    fn every_pool_has_a_batch_of_its_own() {
        let (mut lanes, mut io) = (Lanes::new(100), io(None));
        for pool in 0..4 {
            (0..200).for_each(|number| lanes.on_due(kind(pool), key(1000 * pool + number)).expect("few kinds"));
            started(&mut lanes, NOW, &mut io);
        }
        let opened: Vec<_> = lanes.pools.iter().map(|pool| pool.opened).collect();
        assert_eq!(opened, [100, 100, 92, 64]);
        assert_eq!(lanes.retry_at(NOW), None, "nothing to ask the kernel for");
    }

    /// One kind more than there may be is refused, and those that are known are not; who is gone leaves its queue.
    #[test]
    fn kinds_are_bounded() {
        let mut lanes = Lanes::new(10);
        for number in 0..KINDS_MAX as u32 {
            lanes.on_due(kind(number), key(number)).expect("room");
        }
        assert_eq!(lanes.on_due(kind(1000), key(1000)), Err(TooManyKinds));
        assert_eq!(lanes.on_due(kind(7), key(1007)), Ok(()));
        assert_eq!(lanes.waiting(), KINDS_MAX + 1);
        lanes.retain(|target| target.index >= 1000);
        assert_eq!(lanes.waiting(), 1);
        assert_eq!(started(&mut lanes, NOW, &mut io(None)), [(1007, 0, 7)]);
    }
}
