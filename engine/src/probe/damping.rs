//! A flapping target's penalty: grows with each change of its verdict, halves with time, and holds it down while high
//! (RFC 2439, section 4). Pure: `now` comes in.
//!
//! ```text
//! penalty ─ +1000 per change, halved every half_life, at most 4 x suppress
//! free ──penalty > suppress──► held ──penalty < reuse──► free
//! ```

use crate::policy::{Damping, HALF_LIFE_MAX, HALF_LIFE_MIN, SUPPRESS_MAX, SUPPRESS_MIN};
use crate::time::Instant;

/// What one change of the verdict adds.
const PENALTY: f32 = 1000.0;
/// The penalty is at most so many times `suppress`: held for log2(4 x suppress / reuse) half-lives after the last
/// change, however long it has flapped.
const CEILING: f32 = 4.0;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Damper {
    /// As it was at `at`.
    penalty: f32,
    at: Instant,
    held: bool,
}

impl Damper {
    /// The verdict changes or does not; returns whether the target is held down from now on.
    pub(crate) fn on_outcome(&mut self, now: Instant, changed: bool, damping: Damping) -> bool {
        let half_life = damping.half_life.clamp(HALF_LIFE_MIN, HALF_LIFE_MAX);
        let suppress = damping.suppress.clamp(SUPPRESS_MIN, SUPPRESS_MAX);
        let reuse = damping.reuse.clamp(1, suppress - 1);
        let half_lives = now.since(self.at).as_secs_f64() / half_life.as_secs_f64();
        self.penalty *= (-half_lives).exp2() as f32;
        self.at = now;
        if changed {
            self.penalty = (self.penalty + PENALTY).min(CEILING * f32::from(suppress));
        }
        self.held = match self.held {
            false => self.penalty > f32::from(suppress),
            true => self.penalty >= f32::from(reuse),
        };
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const DAMPING: Damping = Damping { half_life: Duration::from_secs(10), suppress: 2000, reuse: 500 };

    fn at(seconds: u64) -> Instant {
        Instant::from_ns((1000 + seconds) * 1_000_000_000)
    }

    /// Two changes within a second are too few, the third suppresses; 1000, 1933 and 2804 (each after a tenth of
    /// a half-life); and 25 s later, 2.5 half-lives, 496 is below 500.
    #[test]
    fn flapping_holds_and_time_frees() {
        let mut damper = Damper::default();
        let steps = [
            (0, true, false),
            (1, true, false),
            (2, true, true),
            (12, false, true),
            (22, false, true),
            (26, false, true),
            (27, false, false),
            (29, false, false),
        ];
        for (second, changed, held) in steps {
            assert_eq!(damper.on_outcome(at(second), changed, DAMPING), held, "at {second} s: {damper:?}");
        }
    }

    /// A target that changes seldom is never held.
    #[test]
    fn seldom_is_never_held() {
        let mut damper = Damper::default();
        assert!((0..100).all(|n| !damper.on_outcome(at(n * 10), true, DAMPING)), "{damper:?}");
    }

    proptest! {
        /// However a target has flapped, it is free log2(4 x suppress / reuse) half-lives after its last change.
        #[test]
        fn nobody_is_held_for_ever(
            half_life in 1..3600u64, suppress in 1000..60_000u16, part in 1..1000u16,
            changes in prop::collection::vec(0..5u64, 0..300),
        ) {
            let reuse = (u32::from(suppress) * u32::from(part) / 1001).max(1) as u16;
            let damping = Damping { half_life: Duration::from_secs(half_life), suppress, reuse };
            let (mut damper, mut second) = (Damper::default(), 0);
            for wait in changes {
                second += wait;
                damper.on_outcome(at(second), true, damping);
            }
            let half_lives = (4.0 * f64::from(suppress) / f64::from(reuse)).log2();
            let after = (half_lives * half_life as f64).ceil() as u64 + 1;
            prop_assert!(!damper.on_outcome(at(second + after), false, damping));
        }
    }
}
