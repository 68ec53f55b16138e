//! Which of a listener's sockets the kernel gives new visitors to: those of workers that have a link to where they go, if
//! only some have. Otherwise a visitor of another worker has to be handed over, which wakes two workers for one visitor.
//! Promise: it matters only to who accepts, never to where a visitor is sent; where the kernel refuses, or a link is lost
//! a moment ago, or inherited sockets are not in the order in which they were bound, visitors are handed over as before.
//! Looked at once a second, and only if something has changed.
//!
//! Measured with an agent whose link is one carrier, a bridge of two workers on two cores, and a connection for each
//! request: 5 to 14 % more connections a second, as with one worker (Linux 6.18, 2026-11).

use super::directory::Directory;
use super::worker::BridgeWorker;
use crate::routes::Routes;
use std::sync::Arc;

/// What one worker has seen.
pub(super) struct Steering {
    is_on: bool,
    seen: Option<(Arc<Routes>, Arc<Directory>)>,
}

impl Steering {
    pub(super) fn new(is_on: bool) -> Steering {
        Steering { is_on, seen: None }
    }

    /// Something else has changed.
    pub(super) fn look_again(&mut self) {
        self.seen = None;
    }
}

impl BridgeWorker {
    /// Steers the listeners of which this worker has the first socket.
    pub(super) fn steer(&mut self) {
        let (routes, directory) = (self.shared.routes.load_full(), self.shared.directory.load_full());
        let is_seen = |(r, d): &(Arc<Routes>, Arc<Directory>)| Arc::ptr_eq(r, &routes) && Arc::ptr_eq(d, &directory);
        if !self.steering.is_on || self.steering.seen.as_ref().is_some_and(is_seen) {
            return;
        }
        let workers = self.shared.mail.len();
        for listening in self.listening.values_mut() {
            let (Some(gate), Some(count)) = (&listening.ear.gate, listening.ear.leads) else { continue };
            let near = near(&routes, &directory, gate.service.as_str(), workers, count);
            if listening.steered.as_ref() != Some(&near) {
                // The first word may be to take back one that an inherited socket has, and there may be none.
                if let Err(error) = listening.ear.socket.steer(&near)
                    && !near.is_empty()
                {
                    tracing::debug!(listener = gate.name, %error, "visitors are spread over all workers");
                }
                listening.steered = Some(near);
            }
        }
        self.steering.seen = Some((routes, directory));
    }
}

/// Which of a listener's `count` sockets (worker after worker has one) belong to workers that have a link to an active
/// backend of the service. None: it does not matter, since none or all do.
fn near(routes: &Routes, directory: &Directory, service: &str, workers: usize, count: usize) -> Vec<u16> {
    let mut has = vec![false; workers];
    for backend in routes.active(service) {
        for worker in directory.workers_of(&(backend.agent, backend.session)) {
            has[worker] = true;
        }
    }
    let near: Vec<u16> = (0..count).filter(|n| has[n % workers]).filter_map(|n| u16::try_from(n).ok()).collect();
    if near.len() == count { Vec::new() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::directory;
    use crate::hello::SessionId;
    use crate::identity::AgentId;
    use crate::keys::SigningKey;
    use crate::routes::Backend;
    use arc_swap::ArcSwap;
    use ringspan_engine::health::Health;

    /// Links of agents by worker, backends by agent and health → sockets that are steered to.
    #[test]
    fn visitors_come_where_links_are() {
        let agents = [0, 1].map(|_| AgentId::of(&SigningKey::generate().public()));
        let (up, down) = (Health::Up, Health::Down);
        type Row<'a> = (&'a [(usize, usize)], &'a [(usize, Health)], usize, &'a [u16]);
        let table: [Row<'_>; 9] = [
            (&[(0, 1)], &[(0, up)], 4, &[1]),
            (&[(0, 1), (0, 3)], &[(0, up)], 4, &[1, 3]),
            (&[(0, 0), (1, 2)], &[(0, up), (1, up)], 4, &[0, 2]),
            (&[(0, 0), (1, 2)], &[(0, down), (1, up)], 4, &[2]),
            (&[(0, 0), (0, 1), (0, 2), (0, 3)], &[(0, up)], 4, &[]),
            (&[(1, 0)], &[(0, up)], 4, &[]),
            (&[(0, 0)], &[(0, down)], 4, &[]),
            // Inherited: more sockets than workers, and fewer.
            (&[(0, 1)], &[(0, up)], 6, &[1, 5]),
            (&[(0, 1), (0, 3)], &[(0, up)], 3, &[1]),
        ];
        for (links, backends, count, wanted) in table {
            let shared = ArcSwap::default();
            for (agent, worker) in links {
                directory::gain(&shared, (agents[*agent], 1), SessionId::generate(), *worker);
            }
            let backends = backends.iter().map(|(agent, health)| {
                let mut backend = Backend::new(agents[*agent], 1, 0);
                backend.health = *health;
                backend
            });
            let routes = Routes::new([("web", backends.collect())]);
            assert_eq!(near(&routes, &shared.load(), "web", 4, count), wanted, "{links:?}");
            assert!(near(&routes, &shared.load(), "other", 4, count).is_empty());
        }
    }
}
