//! When a probe may start, as far as the prober itself is concerned: its rate, and its pauses when the kernel is short
//! of something. Pure: `now` comes in.
//!
//! The rate is a token bucket written as one number (GCRA, ITU-T I.371): the time at which the bucket will be full.

use crate::time::Instant;
use std::time::Duration;

/// How far starts may run ahead of an even rate: five ticks of the wheel, so that a worker woken each tick keeps its
/// rate, and no more than five ticks' worth ever leave together.
const BURST: Duration = Duration::from_millis(5);
/// The first pause after the kernel was short of something.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// The longest pause: long enough to cost nothing, short enough that recovery is seen at once.
const PAUSE_MAX: Duration = Duration::from_millis(256);

/// See the module.
pub(crate) struct Pace {
    /// Time between two starts at the cap; `None`: no cap.
    spacing: Option<Duration>,
    full_at: Instant,
    paused_until: Instant,
    pause: Duration,
}

impl Pace {
    /// This worker's share of `rate_max` starts a second among `workers`.
    pub(crate) fn new(rate_max: Option<u32>, workers: usize) -> Pace {
        let spacing = rate_max.map(|rate| {
            let ns = 1_000_000_000u64 * workers.max(1) as u64 / u64::from(rate.max(1));
            Duration::from_nanos(ns.max(1))
        });
        Pace { spacing, full_at: Instant::ZERO, paused_until: Instant::ZERO, pause: PAUSE_MIN }
    }

    /// `None`: a probe may start now. Else when to ask again.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let rate_at = if self.spacing.is_some() { self.full_at - BURST } else { Instant::ZERO };
        let at = rate_at.max(self.paused_until);
        (at > now).then_some(at)
    }

    /// A probe has started.
    pub(crate) fn on_start(&mut self, now: Instant) {
        if let Some(spacing) = self.spacing {
            self.full_at = self.full_at.max(now) + spacing;
        }
    }

    /// The kernel was short of something: hold back, longer each time in a row. Returns whether this is a new pause;
    /// what was in flight together fails together, and is one reason.
    pub(crate) fn on_shortage(&mut self, now: Instant) -> bool {
        if self.paused_until > now {
            return false;
        }
        self.paused_until = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }

    /// A probe went through: the shortage is over.
    pub(crate) fn on_relief(&mut self) {
        self.pause = PAUSE_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In no stretch of time do more probes start than the rate allows for it and the burst; and who asks
        /// whenever told to gets the full rate.
        #[test]
        fn keeps_its_rate(rate in 1..100_000u32, workers in 1..8usize, asks in prop::collection::vec(0..3000u64, 1..300)) {
            let mut pace = Pace::new(Some(rate), workers);
            let share = f64::from(rate) / workers as f64;
            let (mut now, mut starts) = (Instant::from_ns(1 << 40), Vec::new());
            for ahead_us in asks {
                now = now + Duration::from_micros(ahead_us);
                for _ in 0..1000 {
                    if pace.blocked_until(now).is_some() { break; }
                    pace.on_start(now);
                    starts.push(now);
                }
            }
            for stretch in [1, 2, 10, 100, 1000] {
                for ends in starts.windows(stretch + 1).map(|window| (window[0], window[stretch])) {
                    let allowed = share * (ends.1.since(ends.0) + BURST).as_secs_f64() + 1.001;
                    prop_assert!(stretch as f64 <= allowed);
                }
            }
            let begin = now;
            for _ in 0..500 {
                while let Some(at) = pace.blocked_until(now) {
                    prop_assert!(at > now);
                    now = at;
                }
                pace.on_start(now);
            }
            prop_assert!(now.since(begin).as_secs_f64() <= 500.0 / share);
        }
    }

    /// Pauses double while the shortage lasts, are bounded, count once for all that fails together, and begin anew
    /// after relief.
    #[test]
    fn pauses_grow_and_end() {
        let mut pace = Pace::new(None, 1);
        let mut now = Instant::from_ns(1_000_000);
        let mut lengths = Vec::new();
        for _ in 0..12 {
            assert!(pace.on_shortage(now));
            assert!(!pace.on_shortage(now), "one shortage, one pause");
            let until = pace.blocked_until(now).expect("paused");
            lengths.push(until.since(now).as_millis());
            now = until;
            assert_eq!(pace.blocked_until(now), None);
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 256]);
        pace.on_relief();
        assert!(pace.on_shortage(now));
        assert_eq!(pace.blocked_until(now), Some(now + PAUSE_MIN));
    }
}
