//! When a target is probed next: the interval that its state asks for, the slot that follows, and what was skipped.
//! Pure: no clock, no chance. What is drawn at random is hashed from the target and its slot, so a run can be repeated.
//!
//! ```text
//! what is believed                     interval                              slots
//! up, nothing against it               interval                              on the grid: phase + k x interval
//! unknown, or outcomes against it      interval_fast, else interval          previous slot + interval_fast
//! down, nothing against it             interval_down, else interval,         previous slot + that
//!                                      doubled per failure up to backoff_max
//! adaptive is set                      normalised round trip                 previous slot + that
//! ```
//! Slots are counted from slots, never from when a probe left or came back, so a late probe does not push its
//! successors. Who comes back to the grid takes its last slot that is no more than one interval away: no gap is ever
//! longer than the interval (and twice its jitter), and an outage does not undo the even spread of targets.

use crate::health::{Health, Verdict};
use crate::outcome::Code;
use crate::policy::{Adaptive, BACKOFF_MAX, INTERVAL_MAX, INTERVAL_MIN, JITTER_PERCENT_MAX, Policy};
use crate::time::Instant;
use std::time::Duration;

const MS: u64 = 1_000_000;

/// The interval now, milliseconds, and where it is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tempo {
    /// From the target's own grid.
    Grid(u32),
    /// From the slot before.
    FromSlot(u32),
}

impl Tempo {
    /// For a target of which this is believed, which has failed `failures` times since it was found down, and whose
    /// normalised round trip is `normalized_ms` if it is adaptive.
    pub(crate) fn of(policy: &Policy, verdict: Verdict, failures: u8, normalized_ms: Option<u32>) -> Tempo {
        if let Some(ms) = normalized_ms {
            return Tempo::FromSlot(ms);
        }
        let steady = interval_ms(policy.interval);
        match (verdict.health(), verdict.against()) {
            (Health::Up, 0) => Tempo::Grid(steady),
            (Health::Down, 0) => {
                let times = (1u32 << failures.min(6)).min(u32::from(policy.backoff_max.clamp(1, BACKOFF_MAX)));
                match policy.interval_down {
                    None if times == 1 => Tempo::Grid(steady),
                    down => Tempo::FromSlot(down.map_or(steady, interval_ms) * times),
                }
            }
            _ => policy.interval_fast.map_or(Tempo::Grid(steady), |fast| Tempo::FromSlot(interval_ms(fast))),
        }
    }

    /// Milliseconds.
    pub(crate) fn interval_ms(self) -> u32 {
        let (Tempo::Grid(ms) | Tempo::FromSlot(ms)) = self;
        ms
    }
}

/// A target's place in time: where it stands, and what makes it differ from its neighbours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The slot it was last probed for, or waits for.
    pub(crate) slot: Instant,
    /// An even spread of all targets.
    pub(crate) hash: u64,
    /// Each slot is moved by up to so many percent of the interval, either way.
    pub(crate) jitter_percent: u8,
}

impl Place {
    /// The first slot at or after `now`, within one interval: hashed, so that neighbours do not start together.
    pub(crate) fn first(self, tempo: Tempo, now: Instant) -> Instant {
        let (interval, phase) = grid(tempo.interval_ms(), self.hash);
        let past = (now.ns() + interval - phase) % interval;
        Instant::from_ns(now.ns() + if past == 0 { 0 } else { interval - past })
    }

    /// The slot after this one that is not before `now`, and how many were skipped to find it.
    pub(crate) fn next(self, tempo: Tempo, now: Instant) -> (Instant, u64) {
        let (interval, phase) = grid(tempo.interval_ms(), self.hash);
        let slot = self.slot.ns();
        let reach_ms = u64::from(tempo.interval_ms()) * u64::from(self.jitter_percent.min(JITTER_PERCENT_MAX)) / 100;
        let next = match tempo {
            // A slot of the grid was moved by less than `reach`: the last slot up to there is the one it was.
            Tempo::Grid(_) => {
                let reached = slot + reach_ms * MS;
                reached - (reached + interval - phase) % interval + interval
            }
            Tempo::FromSlot(_) => slot + interval,
        };
        let missed = now.ns().saturating_sub(next).div_ceil(interval);
        let next = next + missed * interval;
        let moved = match reach_ms {
            0 => next,
            reach => next + (mix(self.hash ^ next) % (2 * reach)) * MS - reach * MS,
        };
        (Instant::from_ns(moved.max(now.ns().next_multiple_of(MS).min(next))), missed)
    }
}

fn grid(interval_ms: u32, hash: u64) -> (u64, u64) {
    (u64::from(interval_ms) * MS, hash % u64::from(interval_ms) * MS)
}

/// Whole milliseconds, rounded up, within the range of intervals.
pub(crate) fn interval_ms(interval: Duration) -> u32 {
    let ns = interval.clamp(INTERVAL_MIN, INTERVAL_MAX).as_nanos() as u64;
    u32::try_from(ns.div_ceil(MS)).expect("clamped to an hour")
}

/// What an outcome says to the adaptive interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    RoundTrip(u32),
    Busy,
    Failed,
}

impl Adaptive {
    /// Where a target begins that is told apart by `hash`: 2000 + random(0..random(0..5000)) ms (HealthCheckTaskV2:
    /// whatever the kind of check, the TCP checks' longest interval is meant).
    pub(crate) fn first_ms(self, hash: u64) -> u32 {
        let outer = mix(hash ^ 1) % 5000;
        2000 + (mix(hash ^ 2) % outer.max(1)) as u32
    }

    /// The next normalised interval after this outcome, milliseconds. `number` is the protocol's: an HTTP server that
    /// answers 503 or 302 is busy, not gone.
    pub(crate) fn next_ms(self, normalized_ms: u32, code: Code, number: u32, rtt: Duration) -> u32 {
        let told = match code {
            Code::L4Timeout | Code::L6Timeout | Code::L7Timeout => Told::Busy,
            Code::L7Status if matches!(number, 503 | 302) => Told::Busy,
            code if code.is_up() => Told::RoundTrip(rtt.as_millis().min(u128::from(u32::MAX)) as u32),
            Code::SockErr | Code::Late => return normalized_ms,
            _ => Told::Failed,
        };
        let rt = match told {
            Told::RoundTrip(ms) => u64::from(ms),
            Told::Busy => 2 * u64::from(normalized_ms),
            Told::Failed => u64::from(interval_ms(self.failed)),
        };
        let factor = u64::from(self.factor_permille.min(1000));
        let mean = (factor * u64::from(normalized_ms) + (1000 - factor) * rt) / 1000;
        let min = interval_ms(self.min);
        (mean as u32).clamp(min, interval_ms(self.max).max(min))
    }
}

/// Spreads what is near (the finalizer of splitmix64, Vigna 2015).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
