//! All targets together: when too many of those that are up want to go down at once, something else than the targets
//! may be the matter: a switch, a firewall rule, a name that everybody depends on, or ourselves.
//! One for all workers: counters that are touched when a target's health changes, never by a probe. Pure: `now` comes in.
//!
//! ```text
//! calm ──falls > X % of those up, and ten at least, in one interval (10 to 60 s)──► alarm
//! alarm ──falls in the last such time <= X/2 %──► calm
//! ```

use crate::engine::MassFlip;
use crate::time::Instant;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Seconds that are counted apart.
const SECONDS: usize = 64;
/// Falls are counted together over one interval of the target that falls, within these bounds, seconds.
const WINDOW_S: (u64, u64) = (10, 60);
const _: () = assert!(WINDOW_S.1 < SECONDS as u64);
/// Fewer falls than this are never too many: with thirty targets a quarter is soon reached.
pub(crate) const FALLS_MIN: u64 = 10;
/// In one second's counter: the second above, the falls below.
const FALLS_BITS: u32 = 24;
const FALLS_MASK: u64 = (1 << FALLS_BITS) - 1;

/// A change of the alarm, for whoever made it to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// So many fell, of so many that were up, within this time.
    Raised { falls: u64, of: u64, within: Duration },
    /// It lasted so long.
    Cleared(Duration),
}

/// See the module.
pub(crate) struct Flock {
    policy: MassFlip,
    percent: u64,
    /// Targets that are up and do not want to go down.
    standing: AtomicU64,
    seconds: [AtomicU64; SECONDS],
    /// When the alarm was raised, nanoseconds; 0: there is none.
    raised_at: AtomicU64,
    /// Over how many seconds the falls that raised it were counted.
    window_s: AtomicU64,
}

impl Flock {
    /// Nobody yet. `percent` is held between 1 and 100.
    pub(crate) fn new(policy: MassFlip, percent: u8) -> Flock {
        Flock {
            policy,
            percent: u64::from(percent.clamp(1, 100)),
            standing: AtomicU64::new(0),
            seconds: [const { AtomicU64::new(0) }; SECONDS],
            raised_at: AtomicU64::new(0),
            window_s: AtomicU64::new(WINDOW_S.0),
        }
    }

    /// A target stands from now on, or no longer.
    pub(crate) fn on_change(&self, stood: bool, stands: bool) {
        match (stood, stands) {
            (false, true) => self.standing.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.standing.fetch_sub(1, Ordering::Relaxed),
            (false, false) | (true, true) => return,
        };
    }

    /// A standing target wants to go down. Returns whether that raises the alarm.
    pub(crate) fn on_fall(&self, now: Instant, interval: Duration) -> Option<Shift> {
        if self.policy == MassFlip::Off {
            return None;
        }
        let second = now.ns() / 1_000_000_000;
        let counter = &self.seconds[second as usize % SECONDS];
        let add = |old: u64| match old >> FALLS_BITS {
            // Of a worker whose clock reading is a little older: it counts in the newer second.
            of if of >= second => Some(old + u64::from(old & FALLS_MASK < FALLS_MASK)),
            _ => Some(second << FALLS_BITS | 1),
        };
        let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let window_s = interval.as_secs().clamp(WINDOW_S.0, WINDOW_S.1);
        let falls = self.falls(second, window_s);
        // Those that stand, this one among them, and those that have fallen before it.
        let of = self.standing.load(Ordering::Relaxed) + falls - 1;
        if falls < FALLS_MIN || falls * 100 <= of * self.percent {
            return None;
        }
        self.raised_at.compare_exchange(0, now.ns().max(1), Ordering::Relaxed, Ordering::Relaxed).ok()?;
        self.window_s.store(window_s, Ordering::Relaxed);
        Some(Shift::Raised { falls, of, within: Duration::from_secs(window_s) })
    }

    /// Whether the alarm can be cleared by now.
    pub(crate) fn look(&self, now: Instant) -> Option<Shift> {
        let raised_at = self.raised_at.load(Ordering::Relaxed);
        if raised_at == 0 {
            return None;
        }
        let falls = self.falls(now.ns() / 1_000_000_000, self.window_s.load(Ordering::Relaxed));
        let of = self.standing.load(Ordering::Relaxed) + falls;
        if falls >= FALLS_MIN && falls * 200 > of * self.percent {
            return None;
        }
        self.raised_at.compare_exchange(raised_at, 0, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(Shift::Cleared(now.since(Instant::from_ns(raised_at))))
    }

    /// When to [`look`](Flock::look) again if nothing happens.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.is_raised().then(|| now + Duration::from_secs(1))
    }

    /// Whether the alarm is raised.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised_at.load(Ordering::Relaxed) != 0
    }

    /// Whether a fall must be confirmed by one more failure.
    pub(crate) fn holds(&self) -> bool {
        self.policy == MassFlip::Hold && self.is_raised()
    }

    /// Falls in the last `window_s` seconds, the present one included.
    fn falls(&self, second: u64, window_s: u64) -> u64 {
        let counted = |counter: &AtomicU64| {
            let counter = counter.load(Ordering::Relaxed);
            let is_within = (counter >> FALLS_BITS) + window_s > second;
            if is_within { counter & FALLS_MASK } else { 0 }
        };
        self.seconds.iter().map(counted).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Instant {
        Instant::from_ns((1 << 40) + ms * 1_000_000)
    }

    fn flock(policy: MassFlip, standing: u64) -> Flock {
        let flock = Flock::new(policy, 25);
        (0..standing).for_each(|_| flock.on_change(false, true));
        flock
    }

    /// One target falls, and stands no more.
    fn fall(flock: &Flock, ms: u64, interval: Duration) -> Option<Shift> {
        let shift = flock.on_fall(at(ms), interval);
        flock.on_change(true, false);
        shift
    }

    /// A quarter of a hundred is not yet too many, one more is; the alarm is told once, lasts while falls go on, and
    /// ends when the window has passed.
    #[test]
    fn more_than_a_quarter_raises_it() {
        let flock = flock(MassFlip::Hold, 100);
        for n in 0..25 {
            assert_eq!(fall(&flock, n * 100, INTERVAL), None, "fall {n}");
        }
        assert!(!flock.holds());
        let within = Duration::from_secs(10);
        assert_eq!(fall(&flock, 2500, INTERVAL), Some(Shift::Raised { falls: 26, of: 100, within }));
        assert_eq!(fall(&flock, 2600, INTERVAL), None, "told once");
        assert!(flock.holds());
        assert_eq!(flock.look(at(9000)), None);
        assert_eq!(flock.look(at(14_000)), Some(Shift::Cleared(Duration::from_millis(11_500))));
        assert!(!flock.is_raised());
    }

    /// Slow dying is no mass: a fall a second among a hundred.
    #[test]
    fn slow_dying_is_none() {
        let flock = flock(MassFlip::Alarm, 100);
        assert!((0..60).all(|n| fall(&flock, n * 1000, INTERVAL).is_none()));
    }

    /// With a long interval falls are counted over as long: thirty of a hundred in thirty seconds.
    #[test]
    fn the_window_is_an_interval() {
        for (interval_s, raised) in [(5, false), (30, true), (3600, true)] {
            let flock = flock(MassFlip::Alarm, 100);
            let shifts = (0..30).filter_map(|n| fall(&flock, n * 1000, Duration::from_secs(interval_s))).count();
            assert_eq!(shifts == 1, raised, "{interval_s} s");
        }
    }

    /// Few targets: nine of nine are none, ten of ten are. And off is off, and an alarm alone holds nobody.
    #[test]
    fn few_are_none() {
        let count = |policy, standing| {
            let flock = flock(policy, standing);
            (0..standing).filter_map(|_| fall(&flock, 0, INTERVAL)).count()
        };
        assert_eq!([count(MassFlip::Alarm, 9), count(MassFlip::Alarm, 10), count(MassFlip::Off, 10)], [0, 1, 0]);
        let flock = flock(MassFlip::Alarm, 10);
        assert_eq!((0..10).filter_map(|_| fall(&flock, 0, INTERVAL)).count(), 1);
        assert!(flock.is_raised() && !flock.holds());
    }

    proptest! {
        /// The count of falls is that of the window's seconds, whatever gaps there are.
        #[test]
        fn falls_are_those_of_the_window(waits in prop::collection::vec(0..20_000u64, 1..200), window_s in 10..=60u64) {
            let (flock, mut ms, mut seen) = (flock(MassFlip::Alarm, 1000), 0, Vec::new());
            for wait in waits {
                ms += wait;
                flock.on_fall(at(ms), INTERVAL);
                let second = at(ms).ns() / 1_000_000_000;
                seen.push(second);
                let expected = seen.iter().filter(|of| **of + window_s > second).count();
                prop_assert_eq!(flock.falls(second, window_s), expected as u64);
            }
        }
    }
}
