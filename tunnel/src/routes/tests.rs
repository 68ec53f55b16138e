//! Claim: only the living are visited, each as often as it should be, and a change moves few.

use super::*;
use crate::keys::PublicKey;
use proptest::prelude::*;

fn agent(n: u8) -> AgentId {
    AgentId::of(&PublicKey::from_bytes([n; 32]))
}

fn backend(index: u16, health: Health, weight: u8) -> Backend {
    Backend { health, weight, ..Backend::new(agent((index % 4) as u8), 1, index) }
}

fn picks(routes: &Routes, n: usize) -> Vec<u16> {
    let mut cursor = Cursor::default();
    (0..n).map(|_| routes.pick("web", &mut cursor, |_| true).unwrap().index).collect()
}

/// Only what is up takes visitors: not what is down, not what was never seen, not what is drained.
#[test]
fn only_the_living_are_visited() {
    let routes = Routes::new([(
        "web",
        vec![
            backend(0, Health::Unknown, 1),
            backend(1, Health::Up, 1),
            backend(2, Health::Down, 1),
            backend(3, Health::Up, 0),
            backend(4, Health::Up, 1),
        ],
    )]);
    assert_eq!(picks(&routes, 5), [1, 4, 1, 4, 1]);
    let mut cursor = Cursor::default();
    assert_eq!(routes.pick("db", &mut cursor, |_| true), Err(NoRoute::NoService));
    assert_eq!(routes.pick("web", &mut cursor, |_| false), Err(NoRoute::NoBackend));
    let none = routes.without_agent(agent(1)).with_health(agent(0), 4, Health::Down);
    assert_eq!(none.pick("web", &mut cursor, |_| true), Err(NoRoute::NoBackend));
    let back = none.with_health(agent(2), 2, Health::Up);
    assert_eq!(back.pick("web", &mut cursor, |_| true).unwrap().index, 2);
}

/// Weights interleave instead of bursting.
#[test]
fn weights_interleave() {
    let routes = Routes::new([("web", vec![backend(0, Health::Up, 75), backend(1, Health::Up, 25)])]);
    assert_eq!(picks(&routes, 8), [0, 0, 1, 0, 0, 0, 1, 0]);
}

/// A visitor whose backend could not be dialled gets each other one once, then nothing.
#[test]
fn each_is_tried_once() {
    let routes = Routes::new([("web", (0..5).map(|i| backend(i, Health::Up, 1 + (i % 3) as u8)).collect())]);
    let (mut cursor, mut tried) = (Cursor::starting_at(3), Vec::new());
    while let Ok(backend) = routes.pick("web", &mut cursor, |b| !tried.contains(&b.index)) {
        tried.push(backend.index);
    }
    tried.sort_unstable();
    assert_eq!(tried, [0, 1, 2, 3, 4]);
}

/// A cursor from a larger snapshot is good for a smaller one, and a huge one wraps.
#[test]
fn cursors_outlive_snapshots() {
    let routes = Routes::new([("web", vec![backend(0, Health::Up, 1)])]);
    for start in [0, 1, 999, usize::MAX] {
        let mut cursor = Cursor(start);
        assert_eq!(routes.pick("web", &mut cursor, |_| true).unwrap().index, 0);
    }
}

proptest! {
    /// Over one round of the schedule each live backend gets exactly its share, and nobody waits longer than twice
    /// its fair distance.
    #[test]
    fn shares_are_exact(list in proptest::collection::vec((0u8..3, 0u8..=100), 1..12)) {
        let backends: Vec<Backend> = (0u16..).zip(&list).map(|(i, (health, weight))| {
            backend(i, [Health::Up, Health::Down, Health::Unknown][usize::from(*health)], *weight)
        }).collect();
        let routes = Routes::new([("web", backends.clone())]);
        let round = routes.services["web"].schedule.len();
        let live: Vec<&Backend> = backends.iter().filter(|b| b.takes_visitors()).collect();
        prop_assert_eq!(round == 0, live.is_empty());
        if round > 0 {
            let served = picks(&routes, round);
            let total: usize = live.iter().map(|b| usize::from(b.weight)).sum();
            for b in &live {
                let turns = served.iter().filter(|i| **i == b.index).count();
                prop_assert_eq!(turns * total, usize::from(b.weight) * round);
                let twice = [&served[..], &served[..]].concat();
                let gap = twice.split(|i| *i == b.index).map(<[u16]>::len).max().unwrap();
                prop_assert!(gap <= 2 * total.div_ceil(usize::from(b.weight)), "gap {}", gap);
            }
            prop_assert_eq!(served.len(), round);
        }
    }
}

fn routes(backends: Vec<Backend>, policy: Policy) -> Routes {
    let policy = Arc::new(policy);
    Routes::with_policies([("web", backends)], |_| policy.clone())
}

fn from(n: u32) -> Option<IpAddr> {
    Some(std::net::Ipv4Addr::from(0x0a00_0000 + n).into())
}

fn homes(routes: &Routes, visitors: u32) -> Vec<u16> {
    let pick = |n| routes.pick_for("web", &mut Cursor::default(), from(n), |_| true).unwrap().index;
    (0..visitors).map(pick).collect()
}

/// A backend that goes takes only its own visitors along; one that comes takes its share, from all alike; weights are
/// shares; and one visitor always meets the same.
#[test]
fn a_hash_moves_few() {
    let policy = || Policy { balance: Balance::SourceHash, ..Policy::default() };
    let of = |weights: &[(u16, u8)]| {
        routes(weights.iter().map(|(i, weight)| backend(*i, Health::Up, *weight)).collect(), policy())
    };
    let all: Vec<(u16, u8)> = (0..10).map(|i| (i, 1)).collect();
    let before = homes(&of(&all), 20_000);
    assert_eq!(before, homes(&of(&all), 20_000));
    for i in 0..10 {
        let share = before.iter().filter(|home| **home == i).count();
        assert!((1_700..2_300).contains(&share), "backend {i} has {share} of 20000");
    }
    let after = homes(&of(&all[..9]), 20_000);
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || *before == 9);
    }
    let heavy: Vec<(u16, u8)> = (0..10).map(|i| (i, if i == 3 { 11 } else { 1 })).collect();
    let share = homes(&of(&heavy), 20_000).iter().filter(|home| **home == 3).count();
    assert!((10_400..11_600).contains(&share), "11 of 20 parts have {share} of 20000");
    // In IPv6 dress it is the same visitor.
    let dressed = "::ffff:10.0.0.7".parse().ok();
    let picked = of(&all).pick_for("web", &mut Cursor::default(), dressed, |_| true).unwrap().index;
    assert_eq!(picked, before[7]);
}

/// The fewest visitors for the weight, whatever came before; all alike take turns.
#[test]
fn the_least_loaded_is_picked() {
    let list = vec![backend(0, Health::Up, 1), backend(1, Health::Up, 3), backend(2, Health::Up, 1)];
    let routes = routes(list, Policy { balance: Balance::LeastConnections, ..Policy::default() });
    let (mut cursor, mut guards) = (Cursor::default(), Vec::new());
    for _ in 0..50 {
        guards.push(routes.pick("web", &mut cursor, |_| true).unwrap().load.enter());
    }
    let loads = || routes.backends("web").unwrap().iter().map(|b| b.load.get()).collect::<Vec<_>>();
    assert_eq!(loads(), [10, 30, 10]);
    let busy: Vec<LoadGuard> = (0..20).map(|_| routes.backends("web").unwrap()[1].load.enter()).collect();
    for _ in 0..10 {
        let picked = routes.pick("web", &mut cursor, |_| true).unwrap();
        assert_ne!(picked.index, 1);
        guards.push(picked.load.enter());
    }
    drop(busy);
    drop(guards);
    assert_eq!(loads(), [0, 0, 0]);
}

/// A lower priority serves only when there are too few of the higher; spare ones serve whom no other could.
#[test]
fn priorities_and_panic() {
    let at = |index, health, priority| Backend { priority, ..backend(index, health, 1) };
    let served = |list: &[Backend], policy: &Policy| {
        let routes = routes(list.to_vec(), policy.clone());
        let (mut cursor, mut seen) = (Cursor::default(), Vec::new());
        for _ in 0..20 {
            seen.extend(routes.pick("web", &mut cursor, |_| true).map(|b| b.index));
        }
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    use Health::{Down, Up};
    let plain = Policy::default();
    let list = [at(0, Up, 0), at(1, Up, 0), at(2, Up, 1), at(3, Up, 2)];
    assert_eq!(served(&list, &plain), [0, 1]);
    assert_eq!(served(&list, &Policy { healthy_min: 3, ..plain.clone() }), [0, 1, 2]);
    assert_eq!(served(&list, &Policy { healthy_min: 9, ..plain.clone() }), [0, 1, 2, 3]);
    let list = [at(0, Down, 0), at(1, Down, 0), at(2, Up, 1), at(3, Up, 2)];
    assert_eq!(served(&list, &plain), [2]);
    let tried = routes(list.to_vec(), plain.clone());
    assert_eq!(tried.pick("web", &mut Cursor::default(), |b| b.index != 2).unwrap().index, 3);
    // Half of them are up: at 50 % all is calm, above it everybody is used.
    assert_eq!(served(&list, &Policy { panic_percent: 50, ..plain.clone() }), [2]);
    assert_eq!(served(&list, &Policy { panic_percent: 51, ..plain.clone() }), [0, 1]);
    let drained = [at(0, Down, 0), Backend { weight: 0, ..at(1, Up, 0) }];
    assert!(served(&drained, &plain).is_empty());
    assert_eq!(served(&drained, &Policy { panic_percent: 100, ..plain }), [0], "what is drained stays so");
}
