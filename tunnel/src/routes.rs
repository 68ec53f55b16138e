//! Where a visitor goes: a snapshot of services and their backends, published by the control plane, read by workers.
//!
//! A backend gets visitors while it is known to be up, and in no other state: one that was never seen healthy gets
//! none (its first check is at most one interval away, and the first visitor should not be the one to find out), and
//! an agent that is lost leaves its backends `Unknown`, so unroutable at once.
//!
//! Among those that are up it is by default weighted round robin, smoothly interleaved (weights 3 and 1: A A B A, as
//! nginx does it), worked out once per snapshot, so that a pick is an index and an addition. Least connections and the
//! hash of the visitor's address look at each backend that is up ([`policy`]). Pure; nothing here locks.
//!
//! ```text
//! weight 0 or not up: out ──▶ priorities 0, 1, … until healthy_min are there: active ──balance──▶ one
//!                                     the rest: spare, for visitors whom no active one could serve
//! ```

use crate::identity::AgentId;
use crate::limits::Limiter;
use crate::outliers::Place;
use crate::proxy_header;
use ringspan_engine::health::Health;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

mod policy;

pub use policy::{Balance, Load, LoadGuard, Policy};

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
    /// 0 first; a larger number is used only when too few of the smaller ones are healthy ([`Policy::healthy_min`]).
    pub priority: u8,
    /// The header that it wants to hear before the visitor's own bytes.
    pub proxy: Option<proxy_header::Version>,
    /// Visitors that it has now.
    pub load: Load,
    /// What all visitors of its agent may do together: numbers alone, no lists, times or visitors' own.
    pub limiter: Option<Arc<Limiter>>,
}

impl Backend {
    /// One of weight 1, unknown health, and no wishes.
    pub fn new(agent: AgentId, session: u64, index: u16) -> Backend {
        let (health, load) = (Health::Unknown, Load::default());
        Backend { agent, session, index, health, weight: 1, priority: 0, proxy: None, load, limiter: None }
    }

    /// What the hash of a visitor is mixed with: the same for each session of the agent.
    fn seed(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.agent, self.index).hash(&mut hasher);
        hasher.finish()
    }

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
    policy: Arc<Policy>,
    backends: Vec<Backend>,
    /// Indices into `backends`, of those that take visitors, in the order they are served.
    schedule: Box<[u32]>,
    /// The same, each once, with its seed.
    active: Box<[(u32, u64)]>,
    /// Of lower priority, the best first.
    spare: Box<[u32]>,
}

impl Service {
    fn new(backends: Vec<Backend>, policy: Arc<Policy>) -> Service {
        let count = |is: &dyn Fn(&Backend) -> bool| backends.iter().filter(|b| is(b)).count();
        let (wanted, up) = (count(&|b| b.weight > 0), count(&Backend::takes_visitors));
        let panics = up * 100 < wanted * usize::from(policy.panic_percent);
        let mut usable: Vec<u32> = (0u32..)
            .zip(&backends)
            .filter(|(_, b)| b.takes_visitors() || (panics && b.weight > 0))
            .map(|(i, _)| i)
            .collect();
        usable.sort_by_key(|i| backends[*i as usize].priority);
        let healthy_min = usize::from(policy.healthy_min.max(1));
        // Whole priorities, until there are enough.
        let mut split = usable.len().min(healthy_min);
        while split > 0 && split < usable.len() {
            let priority = |at: usize| backends[usable[at] as usize].priority;
            if priority(split) != priority(split - 1) {
                break;
            }
            split += 1;
        }
        let spare = usable.split_off(split);
        usable.sort_unstable();
        let schedule = schedule(&backends, &usable);
        let active = usable.iter().map(|i| (*i, backends[*i as usize].seed())).collect();
        Service { policy, schedule, active, spare: spare.into(), backends }
    }

    fn pick(
        &self,
        cursor: &mut Cursor,
        source: Option<IpAddr>,
        usable: &mut dyn FnMut(&Backend) -> bool,
    ) -> Option<&Backend> {
        let picked = match (self.policy.balance, source) {
            (Balance::LeastConnections, _) => self.least_loaded(cursor, usable),
            (Balance::SourceHash, Some(source)) => self.hashed(source, usable),
            (Balance::RoundRobin | Balance::SourceHash, _) => self.next(cursor, usable),
        };
        let spare = || self.spare.iter().map(|i| &self.backends[*i as usize]);
        picked.or_else(|| spare().find(|backend| usable(backend)))
    }

    fn next(&self, cursor: &mut Cursor, usable: &mut dyn FnMut(&Backend) -> bool) -> Option<&Backend> {
        for step in 0..self.schedule.len() {
            let at = cursor.0.wrapping_add(step) % self.schedule.len();
            let backend = &self.backends[self.schedule[at] as usize];
            if usable(backend) {
                cursor.0 = at + 1;
                return Some(backend);
            }
        }
        None
    }

    /// The one with the fewest visitors for its weight; of several whose turn it is.
    fn least_loaded(&self, cursor: &mut Cursor, usable: &mut dyn FnMut(&Backend) -> bool) -> Option<&Backend> {
        let mut best: Option<(&Backend, u64, usize)> = None;
        for step in 0..self.active.len() {
            let at = cursor.0.wrapping_add(step) % self.active.len();
            let backend = &self.backends[self.active[at].0 as usize];
            // As it would be with this visitor; weights are at most 100, so parts of it are told apart.
            let load = (u64::from(backend.load.get()) + 1) * 1_000_000 / u64::from(backend.weight.max(1));
            if best.is_none_or(|(_, least, _)| load < least) && usable(backend) {
                best = Some((backend, load, at));
            }
        }
        best.map(|(backend, _, at)| {
            cursor.0 = at + 1;
            backend
        })
    }

    /// Weighted rendezvous hashing: each backend draws a number that depends on it and the visitor alone, and the best
    /// draw wins. Who is gone takes only its own visitors along, who comes takes only its share.
    fn hashed(&self, source: IpAddr, usable: &mut dyn FnMut(&Backend) -> bool) -> Option<&Backend> {
        let mut hasher = DefaultHasher::new();
        source.to_canonical().hash(&mut hasher);
        let visitor = hasher.finish();
        let draw = |(i, seed): &(u32, u64)| {
            let backend = &self.backends[*i as usize];
            // 53 bits, above 0 and below 1.
            let unit = ((mix(visitor ^ seed) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            (-unit.ln() / f64::from(backend.weight.clamp(1, WEIGHT_MAX)), backend)
        };
        let candidates = self.active.iter().map(draw).filter(|(_, backend)| usable(backend));
        candidates.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, backend)| backend)
    }
}

/// Spreads every bit over all (the finalizer of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
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
        Routes::with_policies(services, |_| Arc::default())
    }

    /// The same, with what each service asks for.
    pub fn with_policies<N: Into<Arc<str>>>(
        services: impl IntoIterator<Item = (N, Vec<Backend>)>,
        policy: impl Fn(&str) -> Arc<Policy>,
    ) -> Routes {
        let service = |(name, backends): (N, _)| {
            let name = name.into();
            let service = Service::new(backends, policy(&name));
            (name, service)
        };
        Routes { services: services.into_iter().map(service).collect() }
    }

    /// What the service asks for.
    pub fn policy(&self, service: &str) -> Option<&Arc<Policy>> {
        self.services.get(service).map(|service| &service.policy)
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
        usable: impl FnMut(&Backend) -> bool,
    ) -> Result<&Backend, NoRoute> {
        self.pick_for(service, cursor, None, usable)
    }

    /// The same for a visitor from this address: a service that balances by it needs it.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub fn pick_for(
        &self,
        service: &str,
        cursor: &mut Cursor,
        source: Option<IpAddr>,
        mut usable: impl FnMut(&Backend) -> bool,
    ) -> Result<&Backend, NoRoute> {
        let service = self.services.get(service).ok_or(NoRoute::NoService)?;
        service.pick(cursor, source, &mut usable).ok_or(NoRoute::NoBackend)
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
            services.insert(name.clone(), Service::new(backends, service.policy.clone()));
        }
        Routes { services }
    }

    /// The backends of a service, in the order they were given; `None` if there is no such service.
    pub fn backends(&self, service: &str) -> Option<&[Backend]> {
        self.services.get(service).map(|service| service.backends.as_slice())
    }

    /// Those of the service's backends that visitors are sent to: that are up (or all, where the service panics), of the
    /// priorities that are in use.
    pub fn active(&self, service: &str) -> impl Iterator<Item = &Backend> {
        let service = self.services.get(service);
        service.into_iter().flat_map(|service| service.active.iter().map(|(i, _)| &service.backends[*i as usize]))
    }

    /// What the first service that has this backend asks for.
    pub fn policy_of(&self, place: &Place) -> Option<&Arc<Policy>> {
        let has = |service: &&Service| service.backends.iter().any(|b| b.place() == *place);
        self.services.values().find(has).map(|service| &service.policy)
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
fn schedule(backends: &[Backend], active: &[u32]) -> Box<[u32]> {
    let weight = |i: u32| i64::from(backends[i as usize].weight.min(WEIGHT_MAX));
    let live: Vec<(u32, i64)> = active.iter().map(|i| (*i, weight(*i))).collect();
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
mod tests;
