//! One target's health: rise and fall over the outcomes of its probes.
//! Pure: no socket, no clock.

use crate::outcome::{Code, Fault};
use std::num::NonZeroU8;

/// What we believe of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not enough has been seen yet.
    Unknown,
    /// Visitors may be sent.
    Up,
    /// No visitors.
    Down,
}

/// What kept an outcome from having its usual effect on the belief.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Held {
    /// Nothing: rise and fall decide.
    #[default]
    No,
    /// The target has flapped and is held down until its penalty is low enough (`Policy::damping`).
    Damped,
    /// The prober itself is sick: this failure does not count.
    Frozen,
    /// Too many targets want to go down at once: this one needs one more failure (`MassFlip::Hold`).
    Unconfirmed,
}

/// How many outcomes in a row change our mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Consecutive successes before "up" (HAProxy's `rise`). 1 to 255, default 2.
    pub rise: NonZeroU8,
    /// Consecutive failures before "down" (HAProxy's `fall`). 1 to 255, default 3: with a 5 s interval and a 1 s
    /// timeout a dead target is reported within 16 s.
    pub fall: NonZeroU8,
}

impl Thresholds {
    /// Rise 2, fall 3, as HAProxy has it.
    pub const DEFAULT: Thresholds =
        Thresholds { rise: NonZeroU8::new(2).expect("2 is not 0"), fall: NonZeroU8::new(3).expect("3 is not 0") };
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds::DEFAULT
    }
}

/// Belief and the run of outcomes that speaks against it. From `Unknown` the first outcome decides at once, so that a
/// freshly started checker knows its world after one round (Envoy's rule for the first check).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    health: Health,
    /// Outcomes in a row against `health`; 0 after one in its favour.
    against: u8,
}

impl Verdict {
    /// A verdict that starts from `health`.
    pub const fn new(health: Health) -> Verdict {
        Verdict { health, against: 0 }
    }

    /// What we believe now.
    pub const fn health(self) -> Health {
        self.health
    }

    /// Outcomes in a row that speak against the belief.
    pub const fn against(self) -> u8 {
        self.against
    }

    /// Takes one outcome. Returns the new belief if it changed. The prober's own trouble is no outcome of the target.
    pub fn on_outcome(&mut self, code: Code, thresholds: Thresholds) -> Option<Health> {
        let up = match code.fault() {
            Fault::Nobody => true,
            Fault::Target => false,
            Fault::Prober => return None,
        };
        let (needed, next) = match (self.health, up) {
            (Health::Unknown, true) => (1, Health::Up),
            (Health::Unknown, false) => (1, Health::Down),
            (Health::Up, true) | (Health::Down, false) => {
                self.against = 0;
                return None;
            }
            (Health::Up, false) => (thresholds.fall.get(), Health::Down),
            (Health::Down, true) => (thresholds.rise.get(), Health::Up),
        };
        self.against = self.against.saturating_add(1);
        if self.against < needed {
            return None;
        }
        *self = Verdict::new(next);
        Some(next)
    }

    /// Takes an outcome that would have changed the belief and must not yet: it stands against it with the others.
    pub fn hold(&mut self) {
        self.against = self.against.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Code::{L4Ok, L4Refused, L4Timeout, Late, SockErr};
    use Health::{Down, Unknown, Up};
    use proptest::prelude::*;

    fn thresholds(rise: u8, fall: u8) -> Thresholds {
        Thresholds { rise: NonZeroU8::new(rise).expect("not 0"), fall: NonZeroU8::new(fall).expect("not 0") }
    }

    /// Every belief with every run against it meets every kind of outcome: what changes, and what is then believed.
    #[test]
    fn every_state_and_outcome() {
        let table = [
            // belief, against, outcome → change, against afterwards (rise 2, fall 3)
            (Unknown, 0, L4Ok, Some(Up), 0),
            (Unknown, 0, L4Timeout, Some(Down), 0),
            (Unknown, 0, SockErr, None, 0),
            (Up, 0, L4Ok, None, 0),
            (Up, 0, L4Refused, None, 1),
            (Up, 1, L4Refused, None, 2),
            (Up, 2, L4Refused, Some(Down), 0),
            (Up, 2, L4Ok, None, 0),
            (Up, 2, Late, None, 2),
            (Up, 2, SockErr, None, 2),
            (Down, 0, L4Timeout, None, 0),
            (Down, 0, L4Ok, None, 1),
            (Down, 1, L4Ok, Some(Up), 0),
            (Down, 1, L4Timeout, None, 0),
            (Down, 1, SockErr, None, 1),
        ];
        for (health, against, code, change, after) in table {
            let mut verdict = Verdict { health, against };
            assert_eq!(verdict.on_outcome(code, thresholds(2, 3)), change, "{health:?} {against} {code:?}");
            assert_eq!(verdict, Verdict { health: change.unwrap_or(health), against: after }, "{health:?} {code:?}");
        }
    }

    proptest! {
        /// Whatever happens, a change needs exactly its threshold of outcomes in a row, the prober's own trouble left
        /// out; so the last `needed` of the outcomes that count all agree with the new belief.
        #[test]
        fn a_change_needs_its_run(
            (rise, fall) in (1..6u8, 1..6u8),
            codes in prop::collection::vec(prop::sample::select(Code::ALL), 0..200),
        ) {
            let (mut verdict, mut seen) = (Verdict::new(Health::Up), Vec::new());
            for code in codes {
                if code.fault() != Fault::Prober {
                    seen.push(code.is_up());
                }
                let before = verdict.health();
                if let Some(health) = verdict.on_outcome(code, thresholds(rise, fall)) {
                    prop_assert_ne!(health, before);
                    let needed = usize::from(if health == Up { rise } else { fall });
                    prop_assert!(seen.len() >= needed);
                    prop_assert!(seen[seen.len() - needed..].iter().all(|up| *up == (health == Up)));
                    seen.clear();
                }
                prop_assert!(verdict.against() < rise.max(fall));
            }
        }

        /// With every threshold at 255 the count neither wraps nor panics.
        #[test]
        fn the_count_never_wraps(codes in prop::collection::vec(prop::sample::select(Code::ALL), 0..2000)) {
            let mut verdict = Verdict::new(Health::Up);
            for code in codes {
                verdict.on_outcome(code, thresholds(255, 255));
            }
        }
    }
}
