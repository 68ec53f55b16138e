//! A point on the monotonic clock, as a number.
//!
//! `std::time::Instant` cannot be built from a number, so a test could not say "at 5 ms". This one can: the worker
//! reads CLOCK_MONOTONIC once per turn and hands `now` inward; nothing below it may read a clock.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on CLOCK_MONOTONIC (clock_gettime(2)); in the simulator, on its virtual clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The clock's zero. A real clock is always past it.
    pub const ZERO: Instant = Instant(0);

    /// The point `ns` nanoseconds after the clock's zero.
    pub const fn from_ns(ns: u64) -> Instant {
        Instant(ns)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, d: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}
