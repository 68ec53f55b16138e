//! What the streams of a whole process may take together: growth of their windows, and bytes that wait for slow receivers.
//! Promise: neither exceeds its limit but by what was already promised; what happens then is said at each limit. Shared
//! by all workers: atomics that are touched when a window grows (a handful of times in a stream's life) and when a far
//! socket does not take its bytes at once, never for a byte that passes straight through.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The limits of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// One stream's window, each way, grows to at most this. 64 KiB to 256 MiB. Default 16 MiB: 1 Gbit/s over 130 ms,
    /// 100 Mbit/s over 1.3 s.
    pub window_bytes_max: u32,
    /// All windows of one carrier together grow by at most this beyond what they start with. Default 64 MiB. Beyond:
    /// they stay as they are.
    pub carrier_growth_bytes_max: u64,
    /// The same, for all carriers of the process. Default 256 MiB.
    pub growth_bytes_max: u64,
    /// Bytes that arrived and wait for slow receivers, in memory and in pipes. Default 512 MiB. From half of it on no
    /// window grows and grown ones shrink; at the limit the stream that holds most is reset.
    pub held_bytes_max: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        MemoryLimits {
            window_bytes_max: 16 << 20,
            carrier_growth_bytes_max: 64 << 20,
            growth_bytes_max: 256 << 20,
            held_bytes_max: 512 << 20,
        }
    }
}

/// What is taken now. One for each process, behind an `Arc`.
#[derive(Debug)]
pub struct Budget {
    window_bytes_max: AtomicU32,
    carrier_growth_bytes_max: AtomicU64,
    growth_bytes_max: AtomicU64,
    held_bytes_max: AtomicU64,
    growth: AtomicU64,
    held: AtomicU64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::new(MemoryLimits::default())
    }
}

impl Budget {
    /// Nothing is taken yet.
    pub fn new(limits: MemoryLimits) -> Budget {
        let MemoryLimits { window_bytes_max, carrier_growth_bytes_max, growth_bytes_max, held_bytes_max } = limits;
        Budget {
            window_bytes_max: window_bytes_max.into(),
            carrier_growth_bytes_max: carrier_growth_bytes_max.into(),
            growth_bytes_max: growth_bytes_max.into(),
            held_bytes_max: held_bytes_max.into(),
            growth: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// The limits.
    pub fn limits(&self) -> MemoryLimits {
        MemoryLimits {
            window_bytes_max: self.window_bytes_max.load(Relaxed),
            carrier_growth_bytes_max: self.carrier_growth_bytes_max.load(Relaxed),
            growth_bytes_max: self.growth_bytes_max.load(Relaxed),
            held_bytes_max: self.held_bytes_max.load(Relaxed),
        }
    }

    /// Other limits from now on. What is taken beyond them is given back as its streams end.
    pub fn set_limits(&self, limits: MemoryLimits) {
        self.window_bytes_max.store(limits.window_bytes_max, Relaxed);
        self.carrier_growth_bytes_max.store(limits.carrier_growth_bytes_max, Relaxed);
        self.growth_bytes_max.store(limits.growth_bytes_max, Relaxed);
        self.held_bytes_max.store(limits.held_bytes_max, Relaxed);
    }

    /// Takes `bytes` of growth, or nothing: then the window stays as it is.
    pub(crate) fn take_growth(&self, bytes: u64) -> bool {
        let max = self.growth_bytes_max.load(Relaxed);
        !self.is_tight()
            && self
                .growth
                .fetch_update(Relaxed, Relaxed, |taken| taken.checked_add(bytes).filter(|sum| *sum <= max))
                .is_ok()
    }

    /// Gives growth back.
    pub(crate) fn give_growth(&self, bytes: u64) {
        self.growth.fetch_sub(bytes, Relaxed);
    }

    /// `bytes` wait, or wait no longer.
    pub(crate) fn on_held(&self, before: usize, after: usize) {
        match after.checked_sub(before) {
            Some(0) => {}
            Some(more) => drop(self.held.fetch_add(more as u64, Relaxed)),
            None => drop(self.held.fetch_sub((before - after) as u64, Relaxed)),
        }
    }

    /// How much growth is taken, in bytes.
    pub fn growth_bytes(&self) -> u64 {
        self.growth.load(Relaxed)
    }

    /// How many bytes wait.
    pub fn held_bytes(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// More than half of what may wait does: it is time to be stingy.
    pub(crate) fn is_tight(&self) -> bool {
        self.held_bytes() > self.held_bytes_max.load(Relaxed) / 2
    }

    /// More waits than may.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.held_bytes() > self.held_bytes_max.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Growth stops at its limit and while too much waits; what is given back can be taken again.
    #[test]
    fn growth_has_two_limits() {
        let limits = MemoryLimits { growth_bytes_max: 100, held_bytes_max: 1000, ..MemoryLimits::default() };
        let budget = Budget::new(limits);
        assert!(budget.take_growth(60) && !budget.take_growth(41) && budget.take_growth(40));
        budget.give_growth(50);
        budget.on_held(0, 501);
        assert!(budget.is_tight() && !budget.take_growth(1) && !budget.is_exceeded());
        budget.on_held(501, 1001);
        assert!(budget.is_exceeded());
        budget.on_held(1001, 500);
        assert!(budget.take_growth(50) && !budget.take_growth(1));
        assert_eq!((budget.growth_bytes(), budget.held_bytes()), (100, 500));
        budget.set_limits(MemoryLimits { growth_bytes_max: 101, ..limits });
        assert!(budget.take_growth(1) && !budget.take_growth(1), "what was taken still counts");
    }
}
