//! Recycled sockets by pool, and the targets that wait for one. A pool is a mode and a family: six of them.
//! Lanes are opened lazily, a batch at a time, and the one used last is used next: its memory is still warm.
//! Promise: a pool that cannot get a lane never holds up another pool.

use crate::io::{Errno, Family, Io, LaneKind, Mode};
use crate::slab::Key;
use crate::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// Lanes opened at a time: at about 2 µs a socket, a batch takes no longer than a few probes do.
const BATCH: u32 = 64;
/// After the kernel refused a lane, the first time to ask again; doubled up to [`RETRY_MAX`] while it refuses.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// The longest.
const RETRY_MAX: Duration = Duration::from_secs(1);

const POOLS: [(Mode, Family); 6] = [
    (Mode::HalfOpen, Family::V4),
    (Mode::HalfOpen, Family::V6),
    (Mode::Full, Family::V4),
    (Mode::Full, Family::V6),
    (Mode::Graceful, Family::V4),
    (Mode::Graceful, Family::V6),
];

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

/// See the module.
pub(crate) struct Lanes {
    pools: [Pool; POOLS.len()],
    /// The pool that is asked first, so that each gets its turn.
    next: usize,
    lanes_max: u32,
    waiting: usize,
}

#[derive(Default)]
struct Pool {
    free: Vec<u32>,
    due: VecDeque<Key>,
    opened: u32,
    retry_at: Instant,
    retry: Duration,
    refusal: Option<Errno>,
}

impl Lanes {
    /// No lanes yet; at most `lanes_max` in each pool.
    pub(crate) fn new(lanes_max: u32) -> Lanes {
        Lanes { pools: Default::default(), next: 0, lanes_max, waiting: 0 }
    }

    /// A target is due: it stands in its pool's queue.
    pub(crate) fn on_due(&mut self, mode: Mode, family: Family, target: Key) {
        let pool = POOLS.iter().position(|pool| *pool == (mode, family)).expect("every mode and family has a pool");
        self.pools[pool].due.push_back(target);
        self.waiting += 1;
    }

    /// How many stand in the queues.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Lanes that were opened.
    pub(crate) fn opened(&self) -> u64 {
        self.pools.iter().map(|pool| u64::from(pool.opened)).sum()
    }

    /// When a pool whose turn has not come for want of a lane may ask the kernel for one again; always after `now`.
    pub(crate) fn retry_at(&self, now: Instant) -> Option<Instant> {
        let waits =
            |pool: &&Pool| !pool.due.is_empty() && pool.opened < self.lanes_max && !pool.may_start(now, self.lanes_max);
        self.pools.iter().filter(waits).map(|pool| pool.retry_at).min()
    }

    /// Who starts next, and on which lane. Pools take turns.
    pub(crate) fn take(&mut self, now: Instant, io: &mut dyn Io) -> Turn {
        for step in 0..POOLS.len() {
            let number = (self.next + step) % POOLS.len();
            let pool = &mut self.pools[number];
            if pool.due.is_empty() || !pool.may_start(now, self.lanes_max) {
                continue;
            }
            self.next = (number + 1) % POOLS.len();
            if pool.free.is_empty() && now >= pool.retry_at {
                pool.open(POOLS[number], now, self.lanes_max, io);
            }
            let lane = pool.free.pop();
            if lane.is_none() && pool.opened > 0 {
                continue;
            }
            let target = pool.due.pop_front().expect("looked at above");
            self.waiting -= 1;
            return match lane {
                Some(lane) => Turn::Start { target, lane, pool: number as u8 },
                None => Turn::Refused { target, errno: pool.refusal.expect("without a lane there was a refusal") },
            };
        }
        Turn::Nobody
    }

    /// A lane can be used again.
    pub(crate) fn give_back(&mut self, pool: u8, lane: u32) {
        self.pools[usize::from(pool)].free.push(lane);
    }

    /// Drops those from the queues of whom `is_live` is false.
    pub(crate) fn retain(&mut self, is_live: impl Fn(Key) -> bool) {
        for pool in &mut self.pools {
            pool.due.retain(|target| is_live(*target));
        }
        self.waiting = self.pools.iter().map(|pool| pool.due.len()).sum();
    }
}

impl Pool {
    /// A lane is free, or the kernel may be asked, or there is nothing to wait for and the target must be told.
    fn may_start(&self, now: Instant, lanes_max: u32) -> bool {
        !self.free.is_empty() || self.opened == 0 || (self.opened < lanes_max && now >= self.retry_at)
    }

    fn open(&mut self, (mode, family): (Mode, Family), now: Instant, lanes_max: u32, io: &mut dyn Io) {
        match io.open_lanes(LaneKind::knock(mode, family), BATCH.min(lanes_max - self.opened)) {
            Ok(lanes) => {
                self.opened += lanes.len() as u32;
                self.free.extend(lanes.rev());
                (self.refusal, self.retry) = (None, Duration::ZERO);
            }
            Err(error) => {
                let errno = Errno(error.raw_os_error().unwrap_or(libc::ENOMEM));
                if self.refusal != Some(errno) {
                    tracing::warn!(?mode, ?family, lanes = self.opened, error = %errno, "no more sockets for probes");
                }
                self.retry = (self.retry * 2).clamp(RETRY_MIN, RETRY_MAX);
                (self.refusal, self.retry_at) = (Some(errno), now + self.retry);
            }
        }
    }
}
