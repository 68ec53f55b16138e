//! Sentences about the prober that must hold in every simulated world. Each runs on 64 seeds (`SIM_SEED=n` replays
//! one; the seed of a failure is printed).

use super::*;
use crate::check::Check;
use crate::health::{Health, Held, Thresholds, Verdict};
use crate::io::{Io, Mode};
use crate::outcome::{Code, Fault};
use crate::sim::{Behaviour, Faults, World};
use crate::slab::Key;
use crate::target::{Policy, Target};
use crate::time::Instant;
use fastrand::Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

mod bench;
mod invariants;
mod policies;
mod story;
mod verify;

pub(crate) use bench::{Bench, Setup};
use bench::{address, any_behaviour, any_faults, any_mode, policy};

const BEGIN: Instant = Instant::from_ns(1_000_000_000_000);
/// Ticks of the wheel round up, and cancels take up to 2 ms in the simulator.
const TICKS: Duration = Duration::from_millis(3);

fn for_seeds(claim: impl Fn(u64)) {
    let seeds = match std::env::var("SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("SIM_SEED is a number")],
        Err(_) => (0..64).collect(),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| claim(seed))) {
            eprintln!("replay with SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Every probe started comes out once, or is abandoned with its target; every outcome is a sample; the health changes
/// told are those that a naive reading of the samples gives, in order and none lost, however small the mailbox;
/// nothing stays in flight and no lane busy; repeated completions are recognised. In worlds with every trouble at
/// once, and targets coming, going and changing.
#[test]
fn every_probe_has_one_outcome() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let rogue = if rng.bool() { 0.05 } else { 0.0 };
        let setup = Setup {
            in_flight_max: rng.u32(1..200),
            rate_max: rng.bool().then(|| rng.u32(50..2000)),
            transitions_max: rng.usize(1..20),
            faults: Faults { rogue, ..any_faults(&mut rng) },
            ..Setup::default()
        };
        let mut bench = Bench::new(seed, setup);
        let (mut live, mut targets): (Vec<(u64, Key)>, HashMap<u64, Target>) = Default::default();
        for round in 0..60u64 {
            for number in 0..rng.u64(..8) {
                let key = round * 100 + number;
                let target = Target {
                    address: address(key, &mut rng),
                    check: Check::Tcp(any_mode(&mut rng)),
                    policy: policy(rng.u64(100..2000), rng.u64(1..1500), rng.u8(1..4), rng.u8(1..4)).into(),
                    initial: rng.choice([Health::Unknown, Health::Up, Health::Down]).expect("three"),
                    count: rng.bool().then(|| rng.u32(..5)),
                    key,
                    group: 0,
                };
                bench.sim.io.world.set(target.address, any_behaviour(&mut rng));
                live.push((key, bench.add(target.clone())));
                targets.insert(key, target);
            }
            for _ in 0..rng.u64(..4) {
                if live.is_empty() {
                    break;
                }
                let at = rng.usize(..live.len());
                let (key, name) = live[at];
                let target = targets.get_mut(&key).expect("added");
                match rng.u8(..4) {
                    0 => {
                        bench.send(Command::Remove(name));
                        live.swap_remove(at);
                    }
                    1 => {
                        let Policy { interval, timeout, .. } = policy(rng.u64(100..2000), rng.u64(1..1500), 1, 1);
                        target.policy = Policy { interval, timeout, ..*target.policy }.into();
                        bench.send(Command::Update(name, target.policy.clone()));
                    }
                    _ => bench.sim.io.world.set(target.address, any_behaviour(&mut rng)),
                }
            }
            bench.run_for(Duration::from_millis(rng.u64(1..500)));
        }
        let counters = bench.stop();
        assert_eq!(counters.started, counters.finished() + counters.abandoned, "{counters:?}");
        assert_eq!(bench.samples.len() as u64, counters.finished());
        for code in Code::ALL {
            let samples = bench.samples.iter().filter(|sample| sample.code == *code).count();
            assert_eq!(samples as u64, counters.outcome(*code), "{code:?}");
        }
        assert_eq!((counters.in_flight, bench.sim.io.in_flight(), bench.sim.io.lanes_busy()), (0, 0, 0));
        assert!(bench.sim.io.visits().len() as u64 <= counters.started);
        assert!(rogue > 0.0 || counters.completions_stale == 0);
        assert_eq!(bench.transitions.len() as u64, counters.transitions);
        assert_replayed(&bench, &targets);
    });
}

/// Replays each target's samples through the plainest reading of rise and fall.
fn assert_replayed(bench: &Bench, targets: &HashMap<u64, Target>) {
    for (key, target) in targets {
        let Thresholds { rise, fall } = target.policy.thresholds;
        let (mut health, mut run) = (target.initial, 0u8);
        let mut expected = Vec::new();
        for sample in bench.samples.iter().filter(|sample| sample.key == *key) {
            if sample.code.fault() == Fault::Prober || sample.held == Held::Frozen {
                assert_eq!(sample.health, health);
                continue;
            }
            let says = if sample.code.is_up() { Health::Up } else { Health::Down };
            run = if says == health { 0 } else { run + 1 };
            let needed = match (health, says) {
                (Health::Unknown, _) => 1,
                (_, Health::Up) => rise.get(),
                _ => fall.get(),
            };
            if says != health && run >= needed {
                expected.push((health, says, sample.code, run));
                (health, run) = (says, 0);
            }
            assert_eq!(sample.health, health, "key {key}");
        }
        let told: Vec<_> = bench
            .transitions
            .iter()
            .filter(|(_, change)| change.key == *key)
            .map(|(_, change)| (change.from, change.to, change.code, change.streak))
            .collect();
        assert_eq!(told, expected, "key {key}");
    }
}

/// A dead target is reported within its phase (less than an interval), `fall - 1` intervals and a timeout, when the
/// prober is well: whatever "dead" looks like, in any mix with the living.
#[test]
fn dead_targets_are_reported_in_time() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::new(seed, Setup::default());
        let mut bounds = HashMap::new();
        for key in 0..60 {
            let interval_ms = rng.u64(100..3000);
            let timeout_ms = rng.u64(1..=interval_ms);
            let fall = rng.u8(1..6);
            let target = Target {
                address: address(key, &mut rng),
                check: Check::Tcp(any_mode(&mut rng)),
                policy: policy(interval_ms, timeout_ms, 2, fall).into(),
                initial: Health::Up,
                count: None,
                key,
                group: 0,
            };
            let rtt = 1..rng.u64(2..2_000_000);
            let behaviour = match rng.u8(..5) {
                0 => Behaviour::BlackHole,
                1 => Behaviour::Closed(rtt),
                2 => Behaviour::Resetting(rtt),
                3 => Behaviour::Unreachable(rtt),
                _ => Behaviour::Open(1..1000 * timeout_ms - 100),
            };
            if !matches!(behaviour, Behaviour::Open(_)) {
                let bound = Duration::from_millis(interval_ms * u64::from(fall) + timeout_ms) + TICKS;
                bounds.insert(key, BEGIN + bound);
            }
            bench.sim.io.world.set(target.address, behaviour);
            bench.add(target.clone());
        }
        bench.run_for(Duration::from_secs(25));
        for (at, change) in &bench.transitions {
            assert_eq!(change.to, Health::Down);
            let bound = bounds.remove(&change.key).expect("a dead one, and told once");
            assert!(*at <= bound, "key {} told {:?} late", change.key, at.since(bound));
        }
        assert_eq!(bounds.len(), 0, "every dead one is reported");
        assert_eq!(bench.counters().missed, 0);
    });
}

/// A living target is never reported down, whatever befalls the prober: no descriptors, no ports, no memory, no
/// permission, and stalls of many times the timeout, at any moment. Living: it answers within a quarter of the
/// timeout.
#[test]
fn living_targets_are_never_down() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let faults = Faults { stall: 0.05, ..any_faults(&mut rng) };
        let mut bench = Bench::new(seed, Setup { in_flight_max: rng.u32(1..200), faults, ..Setup::default() });
        // Alone, a target's probes are all that could tell its prober the time.
        let (targets, seconds) = rng.choice([(1, 1000), (3, 300), (100, 60)]).expect("three");
        for key in 0..targets {
            let timeout_ms = rng.u64(100..2000);
            let target = Target {
                address: address(key, &mut rng),
                check: Check::Tcp(any_mode(&mut rng)),
                policy: policy(rng.u64(100..3000), timeout_ms, 1, 1).into(),
                initial: Health::Up,
                count: None,
                key,
                group: 0,
            };
            bench.sim.io.world.set(target.address, Behaviour::Open(1..timeout_ms * 250));
            bench.add(target.clone());
        }
        bench.run_for(Duration::from_secs(seconds));
        assert!(bench.transitions.is_empty(), "{:?}", bench.transitions);
        assert!(bench.counters().finished() > 0);
    });
}

/// An answer that is there when the prober looks again wins over a deadline that has passed meanwhile, even where the
/// kernel hands out 16 answers at a time.
#[test]
fn an_answer_that_is_there_wins() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let faults = Faults { collect_max: Some(16), ..Faults::default() };
        let mut bench = Bench::new(seed, Setup { faults, ..Setup::default() });
        for key in 0..300 {
            let target = Target {
                address: address(key, &mut rng),
                check: Check::Tcp(Mode::HalfOpen),
                policy: policy(100, 100, 1, 1).into(),
                initial: Health::Up,
                count: None,
                key,
                group: 0,
            };
            bench.sim.io.world.set(target.address, Behaviour::Open(60_000..99_000));
            bench.add(target.clone());
        }
        for _ in 0..50 {
            bench.run_for(Duration::from_millis(rng.u64(50..150)));
            bench.sim.io.sleep(Duration::from_millis(45));
        }
        let counters = bench.counters();
        assert_eq!(counters.outcome(Code::L4Timeout), 0, "{counters:?}");
        assert!(counters.stalls > 0 && counters.outcome(Code::L4Ok) > 5000, "{counters:?}");
    });
}

/// Where there are some sockets, but fewer than targets due, those wait for their turn and get a true answer.
#[test]
fn few_sockets_are_shared() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let faults = Faults { lanes_max: Some(3), ..Faults::default() };
        let mut bench = Bench::new(seed, Setup { faults, ..Setup::default() });
        for key in 0..20 {
            let target = Target {
                address: ([127, 0, 0, 1], 1000 + key as u16).into(),
                check: Check::Tcp(Mode::HalfOpen),
                policy: policy(1000, 1000, 1, 1).into(),
                initial: Health::Up,
                count: None,
                key,
                group: 0,
            };
            bench.sim.io.world.set(target.address, Behaviour::Open(1..rng.u64(2..200_000)));
            bench.add(target.clone());
        }
        bench.run_for(Duration::from_secs(20));
        let counters = bench.counters();
        assert_eq!(counters.finished(), counters.outcome(Code::L4Ok), "{counters:?}");
        assert!(counters.finished() > 100 && bench.sim.io.lanes_busy_most() == 3, "{counters:?}");
    });
}

/// How many of these probes count as made: all but those the prober spoilt, of which at most five in a row are excused.
fn counted(faults: &[Fault]) -> usize {
    let spoilt = |run: &[Fault]| run.iter().all(|fault| *fault == Fault::Prober);
    let runs = faults.chunk_by(|a, b| spoilt(&[*a, *b]) || (*a != Fault::Prober && *b != Fault::Prober));
    runs.map(|run| if spoilt(run) { run.len() / 6 } else { run.len() }).sum()
}

/// Slots that pass while a target is in flight, or while the prober is behind, are skipped and counted: each probe
/// belongs to a slot of its own, and probes plus skipped slots are all the slots there were.
#[test]
fn missed_slots_are_counted_not_made_up_for() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let faults = Faults { lanes_max: None, ..any_faults(&mut rng) };
        let mut bench = Bench::new(seed, Setup { in_flight_max: rng.u32(1..20), faults, ..Setup::default() });
        let mut targets = Vec::new();
        for key in 0..40 {
            let target = Target {
                address: address(key, &mut rng),
                check: Check::Tcp(Mode::HalfOpen),
                policy: policy(rng.u64(100..1000), rng.u64(1..3000), 1, 1).into(),
                initial: Health::Unknown,
                count: Some(12),
                key,
                group: 0,
            };
            bench.sim.io.world.set(target.address, any_behaviour(&mut rng));
            bench.add(target.clone());
            targets.push(target);
        }
        bench.run_for(Duration::from_secs(900));
        let mut missed = 0;
        for target in targets {
            let interval = target.policy.interval;
            let samples = bench.samples.iter().filter(|sample| sample.key == target.key);
            let knocks = bench.sim.io.visits().iter().filter(|knock| knock.to == target.address);
            let slots: Vec<_> = samples
                .clone()
                .zip(knocks)
                .map(|(sample, knock)| knock.at - Duration::from_nanos(sample.lateness_ns))
                .collect();
            let faults: Vec<_> = samples.clone().map(|sample| sample.code.fault()).collect();
            assert_eq!(faults.len(), slots.len());
            assert_eq!(counted(&faults), 12, "{faults:?}");
            assert!(samples.clone().next_back().expect("twelve").last);
            assert_eq!(samples.clone().filter(|sample| sample.last).count(), 1);
            for pair in slots.windows(2) {
                let apart = pair[1].since(pair[0]).as_nanos();
                assert!(apart > 0 && apart.is_multiple_of(interval.as_nanos()), "off the schedule");
                missed += apart / interval.as_nanos() - 1;
            }
        }
        assert_eq!(u128::from(bench.counters().missed), missed);
        assert_eq!(bench.counters().waiting, 0);
    });
}

/// Never more in flight than allowed, never more started than the rate allows for any stretch of time; and a rate
/// that suffices costs no slot.
#[test]
fn caps_hold() {
    for_seeds(|seed| {
        let mut rng = Rng::with_seed(seed);
        let (in_flight_max, rate) = (rng.u32(1..100), rng.u32(100..5000));
        let setup = Setup { in_flight_max, rate_max: Some(rate), ..Setup::default() };
        let mut bench = Bench::new(seed, setup);
        for key in 0..200 {
            let target = Target {
                address: address(key, &mut rng),
                check: Check::Tcp(any_mode(&mut rng)),
                policy: policy(100, 200, 1, 1).into(),
                initial: Health::Unknown,
                count: None,
                key,
                group: 0,
            };
            bench.sim.io.world.set(target.address, any_behaviour(&mut rng));
            bench.add(target.clone());
        }
        bench.run_for(Duration::from_secs(5));
        assert!(bench.sim.io.lanes_busy_most() <= in_flight_max as usize);
        let knocks = bench.sim.io.visits();
        for stretch in [1, 10, 100, 1000] {
            for ends in knocks.windows(stretch + 1) {
                let time = ends[stretch].at.since(ends[0].at) + Duration::from_millis(5);
                assert!(stretch as f64 <= f64::from(rate) * time.as_secs_f64() + 1.01);
            }
        }
        assert!(!knocks.is_empty());
    });
}

/// A probe that timed out keeps its lane until the kernel gives it back, its answer then counts as late and changes
/// nothing, and its target goes on meanwhile.
#[test]
fn a_late_answer_changes_nothing() {
    for_seeds(|seed| {
        let mut world = World::default();
        let to: SocketAddr = ([127, 0, 0, 1], 80).into();
        world.set(to, Behaviour::Open(200_500..202_500));
        let mut bench = Bench::new(seed, Setup { world, ..Setup::default() });
        let target = Target {
            address: to,
            check: Check::Tcp(Mode::HalfOpen),
            policy: policy(300, 200, 1, 1).into(),
            initial: Health::Up,
            count: Some(20),
            key: 7,
            group: 0,
        };
        bench.add(target.clone());
        bench.run_for(Duration::from_secs(10));
        let counters = bench.counters();
        // An answer in the tick that rounds the deadline up is in time: a success before the verdict wins.
        assert!(counters.answers_late > 0, "{counters:?}");
        assert_eq!(counters.outcome(Code::L4Timeout) + counters.outcome(Code::L4Ok), 20);
        assert!(counters.answers_late <= counters.outcome(Code::L4Timeout));
        assert_replayed(&bench, &HashMap::from([(7, target)]));
    });
}

/// A removed target says nothing any more, its name comes back once, with another generation, and a command for the
/// old name does nothing to the new one.
#[test]
fn a_removed_target_is_silent() {
    let mut world = World::default();
    let to: SocketAddr = ([127, 0, 0, 1], 80).into();
    world.set(to, Behaviour::BlackHole);
    let mut bench = Bench::new(1, Setup { world, ..Setup::default() });
    let target = Target {
        address: to,
        check: Check::Tcp(Mode::HalfOpen),
        policy: policy(100, 1000, 1, 1).into(),
        initial: Health::Up,
        count: None,
        key: 7,
        group: 0,
    };
    let old = bench.add(target.clone());
    bench.run_for(Duration::from_millis(150));
    assert_eq!(bench.counters().in_flight, 1, "the first probe is on its way");
    bench.send(Command::Remove(old));
    bench.run_for(Duration::from_millis(50));
    assert_eq!((bench.counters().in_flight, bench.counters().abandoned, bench.counters().targets), (0, 1, 0));
    let new = bench.add(target.clone());
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
    bench.send(Command::Remove(old));
    bench.run_for(Duration::from_secs(3));
    assert_eq!(bench.counters().targets, 1);
    assert!(bench.transitions.iter().all(|(_, change)| change.id == crate::target::TargetId::new(0, new)));
    assert_eq!(bench.transitions.len(), 1);
}

/// Without one single descriptor every due target is told so, none is blamed, and when descriptors come back probing
/// goes on.
#[test]
fn no_descriptors_is_nobodys_death() {
    let mut world = World::default();
    let to: SocketAddr = ([127, 0, 0, 1], 80).into();
    world.set(to, Behaviour::Open(10..20));
    let faults = Faults { lanes_max: Some(0), ..Faults::default() };
    let mut bench = Bench::new(1, Setup { world, faults, ..Setup::default() });
    let target = Target {
        address: to,
        check: Check::Tcp(Mode::HalfOpen),
        policy: policy(1000, 500, 1, 1).into(),
        initial: Health::Unknown,
        count: None,
        key: 7,
        group: 0,
    };
    bench.add(target.clone());
    bench.run_for(Duration::from_secs(5));
    assert_eq!(bench.counters().outcome(Code::SockErr), 5);
    assert!(bench.samples.iter().all(|s| (s.errno, s.health) == (libc::EMFILE, Health::Unknown)));
    bench.sim.io.faults.lanes_max = None;
    bench.run_for(Duration::from_secs(5));
    assert_eq!((bench.counters().outcome(Code::L4Ok), bench.transitions.len()), (5, 1));
    assert_eq!(Verdict::new(bench.transitions[0].1.to).health(), Health::Up);
    assert!(bench.sim.io.now() > BEGIN);
}
