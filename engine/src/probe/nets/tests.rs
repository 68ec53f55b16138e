//! Sentences about networks' shares: caps hold, nobody is held up by another network, order is kept, nothing is lost,
//! and the table is empty when all is over.

use super::*;
use fastrand::Rng;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BEGIN: Instant = Instant::from_ns(1 << 40);

fn net(number: u8) -> Net {
    Net::of([10, 0, number, 1].into())
}

fn key(index: u32) -> Key {
    Key { index, generation: 0 }
}

fn took<T>(into: &mut Vec<T>, one: T) -> bool {
    into.push(one);
    true
}

/// Neighbours in a /24 or a /64 are one network; others are not, and IPv4 is never IPv6.
#[test]
fn networks_are_told_apart() {
    let of = |ip: &str| Net::of(ip.parse().expect("an address"));
    assert_eq!(of("10.1.2.3"), of("10.1.2.255"));
    assert_ne!(of("10.1.2.3"), of("10.1.3.3"));
    assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
    assert_ne!(of("2001:db8:1:2::4"), of("2001:db8:1:3::4"));
    assert_ne!(of("::"), of("0.0.0.0"));
    assert_ne!(of("0.0.0.0"), Net::default());
}

/// A network at its cap holds back its own, in order, and nobody else; each end lets the next one go.
#[test]
fn a_capped_network_waits_alone() {
    let mut nets = Nets::new(None, Some(2), 1).expect("a cap");
    nets.start(BEGIN);
    assert_eq!([0, 1, 2, 3].map(|n| nets.admit(BEGIN, net(1), key(n))), [true, true, false, false]);
    assert!(nets.admit(BEGIN, net(2), key(9)));
    assert_eq!(nets.waiting(), 2);
    let mut out = Vec::new();
    assert!(!nets.release(BEGIN, |key| took(&mut out, key)));
    assert_eq!(out, []);
    let ticket = nets.on_start(BEGIN, net(1));
    nets.on_gone(BEGIN, net(1));
    nets.release(BEGIN, |key| took(&mut out, key));
    assert_eq!(out, [key(2)], "one did not start after all");
    nets.on_end(BEGIN, ticket);
    nets.release(BEGIN, |key| took(&mut out, key));
    assert_eq!((out, nets.waiting()), (vec![key(2), key(3)], 0));
}

/// No cap, no table.
#[test]
fn without_caps_there_is_nothing() {
    assert!(Nets::new(None, None, 1).is_none());
}

/// What a run through random orders saw.
struct Run {
    /// Starts by network.
    starts: BTreeMap<u8, Vec<(Instant, u32)>>,
    flying_most: u32,
}

/// Targets come due at random, are started when admitted, sometimes late or never, and end at random.
fn run(seed: u64, rate: Option<u32>, in_flight: Option<u32>) -> Run {
    let mut rng = Rng::with_seed(seed);
    let mut nets = Nets::new(rate, in_flight, 1).expect("a cap");
    let mut now = BEGIN;
    nets.start(now);
    let net_of: Vec<u8> = (0..400).map(|_| rng.u8(..5)).collect();
    let (mut admitted, mut flying): (Vec<u32>, Vec<(u32, Ticket)>) = Default::default();
    let mut seen = Run { starts: BTreeMap::new(), flying_most: 0 };
    let mut due = 0..400u32;
    let mut gone = 0;
    loop {
        for _ in 0..rng.u32(..6) {
            if let Some(target) = due.next()
                && nets.admit(now, net(net_of[target as usize]), key(target))
            {
                admitted.push(target);
            }
        }
        while nets.release(now, |key| took(&mut admitted, key.index)) {}
        // In the order in which they were admitted, as the lanes' queues are.
        for _ in 0..rng.usize(..=admitted.len()) {
            let target = admitted.remove(0);
            let number = net_of[target as usize];
            if rng.u8(..10) == 0 {
                nets.on_gone(now, net(number));
                gone += 1;
                continue;
            }
            flying.push((target, nets.on_start(now, net(number))));
            seen.starts.entry(number).or_default().push((now, target));
            let of_net = flying.iter().filter(|(target, _)| net_of[*target as usize] == number).count();
            seen.flying_most = seen.flying_most.max(of_net as u32);
        }
        for _ in 0..rng.usize(..=flying.len()) {
            let (_, ticket) = flying.swap_remove(rng.usize(..flying.len()));
            nets.on_end(now, ticket);
        }
        if due.is_empty() && admitted.is_empty() && flying.is_empty() && nets.waiting() == 0 {
            break;
        }
        now = now + Duration::from_micros(rng.u64(..3000));
    }
    let started: usize = seen.starts.values().map(Vec::len).sum();
    assert_eq!(started + gone, 400, "nobody is lost");
    // When the rates have forgotten, so has the table.
    for _ in 0..3 {
        now = now + Duration::from_secs(400);
        while nets.release(now, |_| unreachable!("nobody waits")) {}
    }
    assert_eq!((nets.shares.len(), nets.index.len(), nets.next()), (0, 0, None));
    seen
}

proptest! {
    /// In flight: never more than the cap. Started: never more in any stretch of time than the rate allows for it, the
    /// burst, and those whom the lanes let wait after they were admitted, a burst at most. In order, within a network.
    #[test]
    fn caps_hold_and_nothing_is_lost(
        seed: u64, rate in prop::option::of(20..5000u32), in_flight in prop::option::of(1..20u32),
    ) {
        prop_assume!(rate.is_some() || in_flight.is_some());
        let run = run(seed, rate, in_flight);
        prop_assert!(run.flying_most <= in_flight.unwrap_or(u32::MAX));
        for starts in run.starts.values() {
            prop_assert!(starts.is_sorted_by_key(|(_, target)| *target), "in the order in which they were due");
            let Some(rate) = rate.map(f64::from) else { continue };
            for (first, (begin, _)) in starts.iter().enumerate() {
                for (last, (end, _)) in starts.iter().enumerate().skip(first) {
                    let time = (end.since(*begin) + 2 * BURST).as_secs_f64();
                    prop_assert!((last - first) as f64 <= rate * time + 2.001);
                }
            }
        }
    }
}

/// Names whose targets are gone do not pile up in the queues.
#[test]
fn dead_names_are_swept() {
    let mut nets = Nets::new(None, Some(1), 1).expect("a cap");
    nets.start(BEGIN);
    assert_eq!((0..10_000).filter(|n| nets.admit(BEGIN, net(1), key(*n))).count(), 1);
    nets.sweep(BEGIN, 10_000, |_| unreachable!("not yet many"));
    nets.sweep(BEGIN, 10, |key| key.index < 10);
    assert_eq!(nets.waiting(), 9, "the first one is admitted");
}
