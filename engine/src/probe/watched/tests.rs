//! Sentences about one target: its slots, its count, what it costs, and that its address comes back.

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

/// With its entry, its generation and its timer's links a target costs 120 bytes, a last thousand that is not full
/// aside; and what grows never costs twice, for nothing is moved: a slab and a wheel grow by a thousand at a time.
#[test]
fn a_target_costs_120_bytes() {
    let (mut slab, mut wheel) = (crate::slab::Slab::new(1 << 24), crate::wheel::Wheel::new(Instant::ZERO));
    let (one, empty) = (target(1, Duration::from_secs(30), None), slab.bytes() + wheel.bytes());
    let (mut count, mut most_at_once) = (0, 0);
    for key in 0..200_000u32 {
        let before = slab.bytes() + wheel.bytes();
        let watched = Watched::new(&one, Instant::ZERO);
        let slot = watched.slot;
        assert!(slab.insert_at(Key { index: key, generation: 0 }, watched));
        wheel.arm(key, slot);
        most_at_once = most_at_once.max(slab.bytes() + wheel.bytes() - before);
        count += 1;
    }
    let bytes = slab.bytes() + wheel.bytes() - empty;
    let each = bytes as f64 / f64::from(count);
    assert!((120.0..122.0).contains(&each), "{each}");
    assert!(most_at_once <= 1024 * 130, "grew by {most_at_once} bytes at once");
}

/// Addresses come back as they were given, whatever their family, scope and port; the policy's port goes before.
#[test]
fn addresses_come_back() {
    for text in ["1.2.3.4:5", "[::1]:65535", "[::ffff:1.2.3.4]:1", "[fe80::1%7]:80", "0.0.0.0:0"] {
        let mut one = target(1, Duration::from_secs(1), None);
        one.address = text.parse().expect("an address");
        assert_eq!(Watched::new(&one, Instant::ZERO).address(), one.address);
        Arc::make_mut(&mut one.policy).port = Some(9);
        assert_eq!(Watched::new(&one, Instant::ZERO).address().port(), 9);
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
