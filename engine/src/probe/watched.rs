//! One target as its worker keeps it: compact, because there may be a hundred thousand.
//!
//! ```text
//! Waiting ──its slot comes──► Due ──started──► Flying ──outcome──► Waiting | Finished
//! ```
//! Slots of the schedule are absolute: `phase + k x interval` on the monotonic clock, with a phase drawn from the
//! target's key and address. So targets spread evenly over the interval, a late probe does not push its successors,
//! and a skipped slot is skipped for good.

use crate::check::Check;
use crate::health::{Thresholds, Verdict};
use crate::io::{Family, LaneKind};
use crate::outcome::Fault;
use crate::slab::Key;
use crate::target::{INTERVAL_MAX, INTERVAL_MIN, Policy, TIMEOUT_MAX, TIMEOUT_MIN, Target};
use crate::time::Instant;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Where a target is between two probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its next slot is in the schedule.
    Waiting,
    /// Its slot has come and it stands in the due queue.
    Due,
    /// A probe of it is in flight, by this key.
    Flying(Key),
    /// It has had all its probes and is kept until removed.
    Finished,
}

/// See the module.
pub(crate) struct Watched {
    address: SocketAddr,
    check: Check,
    policy: Arc<Policy>,
    pub(crate) key: u64,
    /// The slot it waits for, is due since, or was last probed for.
    pub(crate) slot: Instant,
    pub(crate) stage: Stage,
    interval_ms: u32,
    /// Probes still to make; `None`: without end.
    left: Option<u32>,
    timeout_ms: u16,
    /// Probes in a row that told nothing of the target and were not counted as made.
    excused: u8,
    /// Its next probe asks the kernel what it measured.
    pub(crate) look: bool,
    /// The slot it is due since is none of the schedule's.
    is_forced: bool,
    /// Which histograms it counts in; 0: none.
    pub(crate) group: u16,
    pub(crate) thresholds: Thresholds,
    pub(crate) verdict: Verdict,
}

/// Probes in a row that the prober's own trouble may spoil before one counts as made: whoever asked for one probe gets
/// an answer about the target after a stall of some intervals, and an end where the trouble does not pass.
const EXCUSED_MAX: u8 = 5;

/// A hundred thousand targets on one worker, with their timers, stay below 16 MB.
const _: () = assert!(size_of::<Watched>() <= 112);

impl Watched {
    /// The target, waiting for its first slot at or after `now`.
    pub(crate) fn new(target: &Target, now: Instant) -> Watched {
        let idle = target.count == Some(0) || target.check.way().is_none();
        let mut watched = Watched {
            address: target.address,
            check: target.check.clone(),
            policy: target.policy.clone(),
            key: target.key,
            slot: now,
            stage: if idle { Stage::Finished } else { Stage::Waiting },
            interval_ms: 0,
            left: target.count,
            timeout_ms: 0,
            excused: 0,
            look: false,
            is_forced: false,
            group: target.group,
            thresholds: target.policy.thresholds,
            verdict: Verdict::new(target.initial),
        };
        watched.set_policy(&target.policy);
        watched.slot = watched.first_slot(now);
        watched
    }

    /// Takes over another policy; the current slot stays.
    pub(crate) fn set_policy(&mut self, policy: &Arc<Policy>) {
        self.policy = policy.clone();
        let interval = policy.interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
        let timeout = policy.timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        self.interval_ms = u32::try_from(ms_up(interval)).expect("clamped to an hour");
        self.timeout_ms = u16::try_from(ms_up(timeout)).expect("clamped to a minute");
        self.thresholds = policy.thresholds;
    }

    /// Takes over another check; the current slot stays.
    pub(crate) fn set_check(&mut self, check: &Check) {
        self.check = check.clone();
    }

    /// Whether it has a check, and probes left to make.
    pub(crate) fn is_to_be_probed(&self) -> bool {
        self.check.way().is_some() && self.left != Some(0)
    }

    /// Its next probe is due now, whatever the schedule says; the ones after keep to the schedule.
    pub(crate) fn force(&mut self, now: Instant) {
        (self.stage, self.slot, self.is_forced) = (Stage::Due, now, true);
    }

    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.interval_ms))
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.timeout_ms))
    }

    /// Where its probes go.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.policy.port {
            Some(port) => SocketAddr::new(self.address.ip(), port),
            None => self.address,
        }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn check(&self) -> &Check {
        &self.check
    }

    /// Which lanes its probes need; `None`: it is not probed.
    pub(crate) fn kind(&self) -> Option<LaneKind> {
        let way = self.check.way()?;
        Some(LaneKind { way, family: Family::of(&self.address), source: self.policy.source })
    }

    /// The first slot at or after `now`.
    pub(crate) fn first_slot(&self, now: Instant) -> Instant {
        let interval = self.interval().as_nanos() as u64;
        let phase = (spread(self.key, &self.address) % u64::from(self.interval_ms)) * 1_000_000;
        let past = (now.ns() + interval - phase) % interval;
        now + Duration::from_nanos(if past == 0 { 0 } else { interval - past })
    }

    /// The probe for the current slot came out at `now`: counts it, and moves on to the next slot that has not passed.
    /// A probe that the prober spoilt is not counted, [`EXCUSED_MAX`] times in a row at most. Returns how many slots
    /// were skipped, or `None` if that was the last probe.
    pub(crate) fn next_slot(&mut self, now: Instant, fault: Fault) -> Option<u64> {
        let is_excused = fault == Fault::Prober && self.excused < EXCUSED_MAX;
        self.excused = if is_excused { self.excused + 1 } else { 0 };
        if let Some(left) = &mut self.left
            && !is_excused
        {
            *left -= 1;
            if *left == 0 {
                self.stage = Stage::Finished;
                return None;
            }
        }
        if self.check.way().is_none() {
            self.stage = Stage::Finished;
            return Some(0);
        }
        self.stage = Stage::Waiting;
        if std::mem::take(&mut self.is_forced) {
            self.slot = self.first_slot(now);
            return Some(0);
        }
        let interval = self.interval();
        let next = self.slot + interval;
        let missed = now.since(next).as_nanos().div_ceil(interval.as_nanos()) as u64;
        self.slot = next + Duration::from_nanos(missed * interval.as_nanos() as u64);
        Some(missed)
    }
}

fn ms_up(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}

/// An even spread of keys and addresses, near ones too (the finalizer of splitmix64, Vigna 2015).
fn spread(key: u64, address: &SocketAddr) -> u64 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let mixed = [ip as u64, (ip >> 64) as u64, u64::from(address.port())]
        .into_iter()
        .fold(key, |sum, part| mix(sum).wrapping_add(part));
    mix(mixed)
}

fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;
    use crate::io::Mode;
    use proptest::prelude::*;

    fn target(key: u64, interval: Duration, count: Option<u32>) -> Target {
        Target {
            address: ([127, 0, 0, 1], 80).into(),
            check: Check::Tcp(Mode::HalfOpen),
            policy: Policy { interval, ..Policy::DEFAULT }.into(),
            initial: Health::Unknown,
            count,
            key,
            group: 0,
        }
    }

    proptest! {
        /// The first slot is within one interval, on a whole millisecond, and the same however often one asks;
        /// later slots keep its phase, are never in the past, and what is skipped is counted.
        #[test]
        fn slots_are_absolute(
            key: u64,
            interval_ms in 100..10_000u64,
            start in 1..1u64 << 50,
            delays in prop::collection::vec(0..60_000_000_000u64, 1..20),
        ) {
            let (interval, mut now) = (Duration::from_millis(interval_ms), Instant::from_ns(start));
            let mut watched = Watched::new(&target(key, interval, None), now);
            prop_assert!(watched.slot >= now && watched.slot.since(now) < interval);
            prop_assert_eq!(watched.slot.ns() % 1_000_000, 0);
            prop_assert_eq!(watched.first_slot(watched.slot), watched.slot);
            let phase = watched.slot.ns() % interval.as_nanos() as u64;
            for delay in delays {
                let before = watched.slot;
                now = watched.slot + Duration::from_nanos(delay);
                let missed = watched.next_slot(now, Fault::Nobody).expect("without end");
                prop_assert!(watched.slot >= now && watched.slot > before);
                prop_assert!(watched.slot.since(now) < interval || watched.slot == before + interval);
                prop_assert_eq!(watched.slot.ns() % interval.as_nanos() as u64, phase);
                prop_assert_eq!(watched.slot.since(before), interval * (missed as u32 + 1));
            }
        }
    }

    /// Neighbours do not start together: 10,000 consecutive keys, or addresses, put 7 to 13 in each of 1000 ms.
    #[test]
    fn first_slots_spread_over_the_interval() {
        for by_key in [true, false] {
            let mut per_10_ms = [0u32; 100];
            for n in 0..10_000u64 {
                let mut one = target(if by_key { n } else { 0 }, Duration::from_secs(1), None);
                if !by_key {
                    one.address.set_port(1000 + n as u16);
                }
                let slot = Watched::new(&one, Instant::from_ns(77 << 30)).slot;
                per_10_ms[(slot.ns() / 10_000_000 % 100) as usize] += 1;
            }
            assert!(per_10_ms.iter().all(|n| (60..=140).contains(n)), "{per_10_ms:?}");
        }
    }

    /// `count` probes, then no more; none at all for 0.
    #[test]
    fn a_count_ends() {
        let now = Instant::from_ns(1 << 40);
        let mut watched = Watched::new(&target(1, Duration::from_secs(1), Some(2)), now);
        assert_eq!(watched.next_slot(watched.slot, Fault::Target), Some(0));
        assert_eq!(watched.next_slot(watched.slot, Fault::Nobody), None);
        assert_eq!(watched.stage, Stage::Finished);
        assert_eq!(Watched::new(&target(1, Duration::from_secs(1), Some(0)), now).stage, Stage::Finished);
    }

    /// What the prober spoilt is made again, but not for ever; and an outcome of the target begins the patience anew.
    #[test]
    fn spoilt_probes_are_made_again() {
        let now = Instant::from_ns(1 << 40);
        let mut watched = Watched::new(&target(1, Duration::from_secs(1), Some(2)), now);
        for _ in 0..EXCUSED_MAX {
            assert_eq!(watched.next_slot(watched.slot, Fault::Prober), Some(0));
        }
        assert_eq!(watched.next_slot(watched.slot, Fault::Nobody), Some(0));
        for _ in 0..EXCUSED_MAX {
            assert_eq!(watched.next_slot(watched.slot, Fault::Prober), Some(0));
        }
        assert_eq!(watched.next_slot(watched.slot, Fault::Prober), None);
    }
}
