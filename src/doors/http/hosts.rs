//! Hosts that agents have asked for: which service each one's requests go to. One owner writes, listeners with
//! `agent_hosts` read.

use super::{Setup, Shared, Way};
use crate::config::http::{CARRIER, plain_route};
use arc_swap::ArcSwap;
use ringspan_tunnel::bridge::Gate;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// By host, lower case. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Arc<ArcSwap<HashMap<String, String>>>);

impl Hosts {
    /// These from the next request on.
    pub(crate) fn set(&self, hosts: HashMap<String, String>) {
        self.0.store(Arc::new(hosts));
    }
}

/// Ways that were made for them, in one configuration of one listener. At most one for each host there is.
#[derive(Default)]
pub(super) struct Ways(Mutex<HashMap<String, (String, Arc<Way>)>>);

/// The way of a host that an agent has asked for.
pub(super) fn way(shared: &Shared, setup: &Setup, host: &str) -> Option<Arc<Way>> {
    let hosts = shared.hall.hosts.0.load();
    let service = hosts.get(host)?;
    let mut ways = setup.agents_ways.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((its, way)) = ways.get(host)
        && its == service
    {
        return Some(way.clone());
    }
    ways.retain(|host, (service, _)| hosts.get(host) == Some(service));
    let name = service.clone().try_into().ok()?;
    let gate = Arc::new(Gate { carrier: CARRIER, ..Gate::new(setup.name.clone(), name) });
    let mut pools = shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = pools.entry(service.clone());
    let pool = pool.or_insert_with(|| Arc::new(super::Pool::new(shared.hall.handle.clone(), gate.clone()))).clone();
    let mut route = plain_route(service.clone());
    route.label = host.to_owned();
    let way = Arc::new(Way::new(&route, &setup.options, gate, pool));
    ways.insert(host.to_owned(), (service.clone(), way.clone()));
    Some(way)
}
