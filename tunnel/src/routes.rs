//! Where a visitor goes: a snapshot of services and their backends, published by the control plane, read by workers.
//!
//! A backend gets visitors while it is known to be up, and in no other state: one that was never seen healthy gets
//! none (its first check is at most one interval away, and the first visitor should not be the one to find out), and
//! an agent that is lost leaves its backends `Unknown`, so unroutable at once.
//!
//! Among those that are up it is weighted round robin, smoothly interleaved (weights 3 and 1: A A B A, as nginx does
//! it), worked out once per snapshot, so that a pick is an index and an addition. Pure; nothing here locks.

use crate::identity::AgentId;
use crate::outliers::Place;
use ringspan_engine::health::Health;
use std::collections::HashMap;
use std::sync::Arc;

/// Largest weight; larger ones are taken as this. With 100 the smallest share is 1 %.
pub const WEIGHT_MAX: u8 = 100;

/// Turns in a service's schedule at most. 256 backends with coprime weights stay below; past it, all weights count
/// as 1: an even spread is the right answer for that many.
const SCHEDULE_MAX: usize = 1 << 15;

/// One backend as the tunnel reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Which agent dials it.
    pub agent: AgentId,
    /// Which session of the agent has the list that `index` is a place in: the generation of its welcome.
    pub session: u64,
    /// Its place in the agent's list of exposed backends.
    pub index: u16,
    /// What is known of it.
    pub health: Health,
    /// Its share, 1 to [`WEIGHT_MAX`]; 0 takes no visitors (drained).
    pub weight: u8,
}

impl Backend {
    /// Which one.
    pub fn place(&self) -> Place {
        ((self.agent, self.session), self.index)
    }

    fn takes_visitors(&self) -> bool {
        self.weight > 0 && matches!(self.health, Health::Up)
    }
}

/// One service's backends and whose turn it is.
#[derive(Clone, Debug, Default)]
struct Service {
    backends: Vec<Backend>,
    /// Indices into `backends`, of those that take visitors, in the order they are served.
    schedule: Box<[u32]>,
}

impl Service {
    fn new(backends: Vec<Backend>) -> Service {
        Service { schedule: schedule(&backends), backends }
    }
}

/// The snapshot. Cheap to share, built anew for each change.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    services: HashMap<Arc<str>, Service>,
}

/// One place that picks, e.g. one listener on one worker: whose turn is next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(usize);

impl Cursor {
    /// Starts at another place for each worker, so that the first visitors of all workers do not meet at one backend.
    pub fn starting_at(worker: usize) -> Cursor {
        Cursor(worker)
    }
}

/// Why there is nobody to send a visitor to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The snapshot has no such service.
    #[error("no agent exposes this service")]
    NoService,
    /// It has, but none of its backends is up and usable.
    #[error("the service has no healthy backend with a link")]
    NoBackend,
}

impl Routes {
    /// From every service's backends. A service that comes twice keeps the last list.
    pub fn new<N: Into<Arc<str>>>(services: impl IntoIterator<Item = (N, Vec<Backend>)>) -> Routes {
        let services = services.into_iter().map(|(name, backends)| (name.into(), Service::new(backends))).collect();
        Routes { services }
    }

    /// The next backend of `service` that is up and that `usable` accepts: the caller knows which agents have a link
    /// on this worker, and which backends it has tried for this visitor already. One pass over the schedule at most.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub fn pick(
        &self,
        service: &str,
        cursor: &mut Cursor,
        mut usable: impl FnMut(&Backend) -> bool,
    ) -> Result<&Backend, NoRoute> {
        let Service { backends, schedule } = self.services.get(service).ok_or(NoRoute::NoService)?;
        for step in 0..schedule.len() {
            let at = cursor.0.wrapping_add(step) % schedule.len();
            let backend = &backends[schedule[at] as usize];
            if usable(backend) {
                cursor.0 = at + 1;
                return Ok(backend);
            }
        }
        Err(NoRoute::NoBackend)
    }

    /// The same without what `agent` offered: its link is gone.
    pub fn without_agent(&self, agent: AgentId) -> Routes {
        self.map(|backend| {
            if backend.agent == agent {
                backend.health = Health::Unknown;
            }
        })
    }

    /// The same with one backend's new health.
    pub fn with_health(&self, agent: AgentId, index: u16, health: Health) -> Routes {
        self.map(|backend| {
            if (backend.agent, backend.index) == (agent, index) {
                backend.health = health;
            }
        })
    }

    fn map(&self, mut change: impl FnMut(&mut Backend)) -> Routes {
        let mut services = HashMap::with_capacity(self.services.len());
        for (name, service) in &self.services {
            let mut backends = service.backends.clone();
            backends.iter_mut().for_each(&mut change);
            services.insert(name.clone(), Service::new(backends));
        }
        Routes { services }
    }

    /// The backends of a service, in the order they were given; `None` if there is no such service.
    pub fn backends(&self, service: &str) -> Option<&[Backend]> {
        self.services.get(service).map(|service| service.backends.as_slice())
    }

    /// The healthy backends of the services that this one belongs to.
    pub fn peers_of(&self, place: &Place) -> Vec<Place> {
        let of = |service: &&Service| service.backends.iter().any(|b| b.place() == *place);
        let backends = self.services.values().filter(of).flat_map(|service| &service.backends);
        backends.filter(|b| b.takes_visitors()).map(Backend::place).collect()
    }

    /// Every service with its backends, in no order.
    pub fn services(&self) -> impl Iterator<Item = (&str, &[Backend])> {
        self.services.iter().map(|(name, service)| (&**name, service.backends.as_slice()))
    }
}

/// Smooth weighted round robin: each turn everybody gains its weight, the richest serves and pays the total. The
/// schedule repeats after sum / gcd turns.
fn schedule(backends: &[Backend]) -> Box<[u32]> {
    let live: Vec<(u32, i64)> = (0u32..)
        .zip(backends)
        .filter(|(_, backend)| backend.takes_visitors())
        .map(|(i, backend)| (i, i64::from(backend.weight.min(WEIGHT_MAX))))
        .collect();
    let divisor = live.iter().fold(0, |a, (_, weight)| gcd(a, *weight)).max(1);
    let total: i64 = live.iter().map(|(_, weight)| weight / divisor).sum();
    if usize::try_from(total).is_ok_and(|total| total == live.len()) || total > SCHEDULE_MAX as i64 {
        return live.iter().map(|(i, _)| *i).collect();
    }
    let mut riches = vec![0i64; live.len()];
    (0..total)
        .map(|_| {
            let mut richest = 0;
            for (n, (_, weight)) in live.iter().enumerate() {
                riches[n] += weight / divisor;
                if riches[n] > riches[richest] {
                    richest = n;
                }
            }
            riches[richest] -= total;
            live[richest].0
        })
        .collect()
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PublicKey;
    use proptest::prelude::*;

    fn agent(n: u8) -> AgentId {
        AgentId::of(&PublicKey::from_bytes([n; 32]))
    }

    fn backend(index: u16, health: Health, weight: u8) -> Backend {
        Backend { agent: agent((index % 4) as u8), session: 1, index, health, weight }
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
}
