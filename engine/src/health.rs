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

/// How many outcomes in a row change our mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Consecutive successes before "up" (HAProxy's `rise`). 1 to 255, default 2.
    pub rise: NonZeroU8,
    /// Consecutive failures before "down" (HAProxy's `fall`). 1 to 255, default 3: with a 5 s interval and a 1 s
    /// timeout a dead target is reported within 16 s.
    pub fall: NonZeroU8,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { rise: NonZeroU8::new(2).expect("2 is not 0"), fall: NonZeroU8::new(3).expect("3 is not 0") }
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
        self.against += 1;
        if self.against < needed {
            return None;
        }
        *self = Verdict::new(next);
        Some(next)
    }
}
