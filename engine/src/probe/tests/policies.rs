//! Sentences about policies, storms and sickness, each in a simulated world: what is asked for is done, and what is not
//! asked for delays nothing.

use super::bench::policy;
use super::{BEGIN, Bench, Setup, TICKS, for_seeds};
use crate::check::Check;
use crate::engine::MassFlip;
use crate::health::{Health, Held};
use crate::io::Mode;
use crate::outcome::Code;
use crate::sim::{Behaviour, Faults};
use crate::target::{Adaptive, Damping, Policy, Sample, Target};
use crate::time::Instant;
use fastrand::Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

const OPEN: Behaviour = Behaviour::Open(100..2000);

/// Target `key` of the network `net`, up at first.
fn target(net: u8, key: u64, policy: Policy) -> Target {
    let port = 1000 + key as u16;
    Target {
        address: ([10, 1, net, 1 + (key % 250) as u8], port).into(),
        check: Check::Tcp(Mode::HalfOpen),
        policy: policy.into(),
        initial: Health::Up,
        count: None,
        key,
        group: 0,
    }
}

/// `count` targets in `nets` networks, all of them answering.
fn populate(bench: &mut Bench, count: u64, nets: u64, policy: Policy) -> Vec<SocketAddr> {
    let all: Vec<_> = (0..count).map(|key| target((key % nets) as u8, key, policy)).collect();
    for target in &all {
        bench.sim.io.world.set(target.address, OPEN);
        bench.add(target.clone());
    }
    all.into_iter().map(|target| target.address).collect()
}

fn become_all(bench: &mut Bench, addresses: &[SocketAddr], behaviour: &Behaviour) {
    addresses.iter().for_each(|address| bench.sim.io.world.set(*address, behaviour.clone()));
}

/// The scheduled slots of one target's probes, seconds after its first.
fn slots(bench: &Bench, key: u64) -> Vec<f64> {
    let slot = |(at, sample): (&Instant, &Sample)| at.ns() - sample.rtt_ns - sample.lateness_ns;
    let of_key = bench.judged.iter().zip(&bench.samples).filter(|(_, sample)| sample.key == key);
    let slots: Vec<u64> = of_key.map(slot).collect();
    slots.iter().map(|slot| (slot - slots[0]) as f64 / 1e9).collect()
}

/// The prober's own network goes: everything is unreachable at once, everywhere. No target is blamed, however long it
/// lasts. Afterwards one network is really gone, and that is found.
#[test]
fn a_lost_uplink_is_nobodys_death() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::new(seed, Setup::default());
        let all = populate(&mut bench, 300, 12, policy(rng.u64(500..3000), 400, 2, 3));
        bench.run_for(Duration::from_secs(10));
        become_all(&mut bench, &all, &Behaviour::Unreachable(10..2000));
        bench.run_for(Duration::from_secs(rng.u64(5..60)));
        assert_eq!(bench.transitions.len(), 0, "{:?}", bench.transitions[0]);
        let counters = bench.counters();
        assert!(counters.frozen > 0 && counters.workers_frozen == 1 && counters.freezes == 1, "{counters:?}");
        become_all(&mut bench, &all, &OPEN);
        bench.run_for(Duration::from_secs(10));
        assert_eq!(bench.counters().workers_frozen, 0, "well again");
        let gone: Vec<_> =
            all.iter().filter(|address| address.ip().to_string().starts_with("10.1.0.")).copied().collect();
        become_all(&mut bench, &gone, &Behaviour::Unreachable(10..2000));
        bench.run_for(Duration::from_secs(15));
        assert_eq!(bench.transitions.len(), gone.len());
        assert!(bench.transitions.iter().all(|(_, change)| change.key % 12 == 0 && change.to == Health::Down));
    });
}

/// While many probes end in the prober's own trouble, the timeouts of the others are not believed; when it is over,
/// those that are still dead are found. With the freeze off they are found at once.
#[test]
fn a_sick_prober_accuses_nobody() {
    for_seeds(|seed| {
        for freeze in [true, false] {
            let faults = Faults { local_errors: vec![libc::EPERM, libc::EADDRNOTAVAIL], ..Faults::default() };
            let mut bench = Bench::new(seed, Setup { freeze, faults, ..Setup::default() });
            let all = populate(&mut bench, 200, 3, policy(1000, 300, 2, 3));
            bench.run_for(Duration::from_secs(5));
            bench.sim.io.faults.local_error = 0.5;
            bench.run_for(Duration::from_secs(2));
            become_all(&mut bench, &all, &Behaviour::BlackHole);
            bench.run_for(Duration::from_secs(20));
            assert_eq!(bench.transitions.is_empty(), freeze);
            assert_eq!(bench.counters().frozen > 0, freeze);
            bench.sim.io.faults.local_error = 0.0;
            bench.run_for(Duration::from_secs(12));
            assert_eq!(bench.transitions.len(), 200, "the dead are found");
        }
    });
}

/// Without being asked the alarm delays nothing: the same deaths are told at the same moments with it and without.
/// Held, whoever falls after it was raised falls one probe later, and all fall.
#[test]
fn an_alarm_delays_nothing_unasked() {
    for_seeds(|seed| {
        let told = |mass_flip| {
            let mut bench = Bench::new(seed, Setup { mass_flip, ..Setup::default() });
            let all = populate(&mut bench, 200, 7, policy(1000, 300, 2, 3));
            bench.run_for(Duration::from_secs(5));
            become_all(&mut bench, &all[..120], &Behaviour::BlackHole);
            bench.run_for(Duration::from_secs(10));
            let told: HashMap<u64, Instant> = bench.transitions.iter().map(|(at, change)| (change.key, *at)).collect();
            assert_eq!(told.len(), 120);
            let before = bench.counters();
            bench.run_for(Duration::from_secs(20));
            assert_eq!(bench.counters().alarm, 0, "the alarm ends");
            (told, before)
        };
        let (off, counters) = told(MassFlip::Off);
        assert_eq!((counters.alarms, counters.alarm), (0, 0));
        let (alarm, counters) = told(MassFlip::Alarm);
        assert_eq!((counters.alarms, counters.alarm, counters.held), (1, 1, 0));
        assert!(off.iter().all(|(key, at)| alarm[key].since(*at) + at.since(alarm[key]) < TICKS), "as without it");
        let (held, counters) = told(MassFlip::Hold);
        // Of 200 more than a quarter have fallen with the 51st: that one is the first to be held.
        assert_eq!((counters.alarms, counters.held), (1, 70));
        let later = off.iter().filter(|(key, at)| held[key].since(**at) > Duration::from_millis(900)).count();
        assert_eq!(later, 70);
    });
}

/// A network that swallows everything takes up its share of probes and no more: its own targets wait in order, everyone
/// else starts on the tick. And never more starts for a network than its rate allows.
#[test]
fn a_black_hole_holds_up_nobody_else() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let (cap, rate) = (rng.u32(1..20), rng.bool().then(|| rng.u32(50..400)));
        let setup = Setup { in_flight_per_net: Some(cap), rate_per_net: rate, ..Setup::default() };
        let mut bench = Bench::new(seed, setup);
        let plain = policy(1000, 900, 1, 1);
        for key in 0..100 {
            let one = target(9, key, plain);
            bench.sim.io.world.set(one.address, Behaviour::BlackHole);
            bench.add(one);
        }
        for key in 100..130 {
            let one = target(key as u8, key, plain);
            bench.sim.io.world.set(one.address, OPEN);
            bench.add(one);
        }
        bench.run_for(Duration::from_secs(20));
        let late = |sample: &&Sample| sample.lateness_ns > TICKS.as_nanos() as u64;
        let (hole, others): (Vec<&Sample>, Vec<_>) = bench.samples.iter().partition(|sample| sample.key < 100);
        assert_eq!(others.iter().filter(|sample| late(sample)).count(), 0);
        assert!(others.len() >= 19 * 30);
        assert!(hole.iter().any(late), "a hundred cannot all start");
        // At most `cap` in each timeout of 900 ms.
        let rounds = 20_000 / 900 + 2;
        assert!(hole.len() as u32 <= rounds * cap, "{} of {cap} at a time", hole.len());
        assert!(hole.len() as u32 >= 15 * cap.min(rate.unwrap_or(cap)), "and no fewer: {} of {cap}", hole.len());
        let starts: Vec<Instant> = bench.sim.io.visits().iter().filter(|v| v.to.port() < 1100).map(|v| v.at).collect();
        if let Some(rate) = rate {
            for window in starts.windows(20) {
                let time = window[19].since(window[0]) + Duration::from_millis(10);
                assert!(19.0 <= f64::from(rate) * time.as_secs_f64() + 2.01);
            }
        }
        let counters = bench.counters();
        assert!(counters.capped > 0 && counters.missed > 0 && counters.frozen == 0, "{counters:?}");
        // Everyone has had a turn, in order: nobody has had two more than another.
        let mut turns = HashMap::<u64, u32>::new();
        hole.iter().for_each(|sample| *turns.entry(sample.key).or_default() += 1);
        if hole.len() >= 200 {
            let (least, most) = (turns.values().min().copied(), turns.values().max().copied());
            assert_eq!(turns.len(), 100);
            assert!(most.unwrap_or(0) <= least.unwrap_or(0) + 2, "{least:?} {most:?}");
        }
    });
}

/// A change is confirmed at the fast interval, a dead target probed at the slow one, and back-off makes it rarer still,
/// until it answers.
#[test]
fn intervals_follow_the_state() {
    let mut bench = Bench::new(1, Setup::default());
    let secs = Duration::from_secs;
    let policy = Policy {
        interval_fast: Some(secs(1)),
        interval_down: Some(secs(4)),
        backoff_max: 3,
        ..policy(10_000, 500, 2, 3)
    };
    let one = target(1, 7, policy);
    bench.sim.io.world.set(one.address, OPEN);
    bench.add(one.clone());
    bench.run_for(secs(25));
    bench.sim.io.world.set(one.address, Behaviour::Closed(10..20));
    bench.run_for(secs(60));
    let (at, change) = bench.transitions[0];
    assert!(at.since(BEGIN) <= secs(25 + 10 + 2 + 1), "found within an interval and two fast ones");
    assert_eq!(change.streak, 3);
    bench.sim.io.world.set(one.address, OPEN);
    bench.run_for(secs(60));
    let slots = slots(&bench, 7);
    let gaps: Vec<f64> = slots.windows(2).map(|pair| (pair[1] - pair[0]).round()).collect();
    let fall = gaps.iter().position(|gap| *gap == 1.0).expect("a fast one");
    // Two fast ones to be sure; then down: 4, twice that, and three times as the policy's most.
    assert_eq!(gaps[..fall], vec![10.0; fall]);
    assert_eq!(gaps[fall..fall + 7], [1.0, 1.0, 4.0, 8.0, 12.0, 12.0, 12.0]);
    let rise = fall + 2 + gaps[fall + 2..].iter().position(|gap| *gap == 1.0).expect("fast again");
    // One fast one to be sure, then back to its own place on the grid, no further than an interval away.
    assert!(gaps[rise + 1] <= 10.0 && gaps[rise + 2..].iter().all(|gap| *gap == 10.0), "{gaps:?}");
    let grid = slots[0] - slots[slots.len() - 1];
    assert!((grid / 10.0 - (grid / 10.0).round()).abs() < 1e-6, "the same grid as before");
    assert_eq!(bench.transitions.len(), 2);
}

/// A flapping target is held down, told so once, and told to be up when it has been quiet for long enough; without
/// damping every flap is told.
#[test]
fn a_flapping_target_is_held_down() {
    let secs = Duration::from_secs;
    for damped in [true, false] {
        let damping = Damping { half_life: secs(20), suppress: 2500, reuse: 1000 };
        let policy = Policy { damping: damped.then_some(damping), ..policy(500, 200, 1, 1) };
        let mut bench = Bench::new(1, Setup::default());
        let one = target(1, 7, policy);
        bench.add(one.clone());
        for up in [true, false, true, false, true, false, true] {
            bench.sim.io.world.set(one.address, if up { OPEN } else { Behaviour::Closed(10..20) });
            bench.run_for(secs(2));
        }
        let told: Vec<_> = bench.transitions.iter().map(|(_, change)| (change.from, change.to, change.held)).collect();
        use Health::{Down, Up};
        if !damped {
            assert_eq!(told.len(), 6);
            continue;
        }
        let expected = [(Up, Down, Held::No), (Down, Up, Held::No), (Up, Down, Held::No), (Down, Down, Held::Damped)];
        assert_eq!(told, expected);
        let last = bench.samples.last().expect("some");
        assert_eq!((last.code, last.health, last.held), (Code::L4Ok, Down, Held::Damped));
        // Six changes at most four times 2500; below 1000 after at most 3.4 half-lives.
        bench.run_for(secs(70));
        let (_, change) = bench.transitions[4];
        assert_eq!((change.from, change.to, change.held), (Down, Up, Held::No));
        assert_eq!(bench.transitions.len(), 5);
    }
}

/// A refusal turns a target down at once where the policy says so; a timeout does not.
#[test]
fn a_refusal_can_be_final() {
    let secs = Duration::from_secs;
    for (behaviour, outcomes) in [(Behaviour::Closed(10..20), 1), (Behaviour::BlackHole, 3)] {
        let mut bench = Bench::new(1, Setup::default());
        let one = target(1, 7, Policy { refusal_is_final: true, ..policy(1000, 500, 2, 3) });
        bench.sim.io.world.set(one.address, behaviour);
        bench.add(one);
        bench.run_for(secs(10));
        assert_eq!(bench.transitions.len(), 1);
        assert_eq!(u32::from(bench.transitions[0].1.streak), outcomes);
    }
}

/// Nacos' interval: a healthy target comes to one probe a second, a refused one back to five seconds.
#[test]
fn the_adaptive_interval_follows_the_target() {
    let mut bench = Bench::new(1, Setup::default());
    let one = target(1, 7, Policy { adaptive: Some(Adaptive::NACOS_TCP), ..policy(60_000, 500, 2, 3) });
    bench.sim.io.world.set(one.address, OPEN);
    bench.add(one.clone());
    bench.run_for(Duration::from_secs(60));
    bench.sim.io.world.set(one.address, Behaviour::Closed(10..20));
    bench.run_for(Duration::from_secs(120));
    let slots = slots(&bench, 7);
    let gaps: Vec<f64> = slots.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let settled = gaps.iter().position(|gap| *gap == 1.0).expect("settles");
    assert!(settled <= 7 && gaps[..settled].is_sorted_by(|a, b| a > b), "{gaps:?}");
    assert!(gaps.last().is_some_and(|gap| *gap > 4.9 && *gap <= 5.0), "{gaps:?}");
}

/// Jitter moves slots by no more than asked, either way, and never loses or doubles one.
#[test]
fn jitter_keeps_its_bounds() {
    let mut bench = Bench::new(1, Setup::default());
    let one = target(1, 7, Policy { jitter_percent: 20, ..policy(1000, 500, 2, 3) });
    bench.sim.io.world.set(one.address, OPEN);
    bench.add(one);
    bench.run_for(Duration::from_secs(100));
    let slots = slots(&bench, 7);
    assert!((99..=101).contains(&slots.len()));
    // The first is where the grid is.
    let off: Vec<f64> = slots.iter().enumerate().map(|(k, slot)| slot - k as f64).collect();
    assert!(off.iter().all(|off| off.abs() <= 0.2), "{off:?}");
    assert!(off.iter().any(|off| *off > 0.1) && off.iter().any(|off| *off < -0.1), "{off:?}");
}
