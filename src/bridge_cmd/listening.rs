//! The bridge's TCP listeners and hosts: those of its file, and those that agents have asked for.
//! Promises: the file goes first: what it has nobody else gets, and what it takes later an agent loses; an agent's
//! listener that cannot be opened costs that agent this listener and nobody anything else; one that another process had for
//! an agent is open before the agent has come over.

use super::bind::bind_error;
use super::leases::{Leased, Leases, Place};
use super::listeners::plain;
use crate::Failure;
use crate::config::bridge::{Listener as Wanted, collide};
use crate::config::doors::Door;
use crate::config::http::HostPattern;
use crate::doors::http::hosts::Hosts;
use ringspan_tunnel::bridge::{BridgeError, BridgeHandle, Closing, Gate, Listener};
use ringspan_tunnel::hello::{Applicant, Opened};
use ringspan_tunnel::identity::AgentId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// See the module. Clones are the same one.
#[derive(Clone)]
pub(super) struct Listening {
    handle: BridgeHandle,
    hosts: Hosts,
    state: Arc<Mutex<Places>>,
}

/// Who has what.
pub(super) struct Places {
    file: Vec<Wanted>,
    leases: Leases,
    /// Gates are made once: what goes by them goes on.
    gates: HashMap<(SocketAddr, String), Arc<Gate>>,
}

impl Places {
    /// The file's, and of what agents had at the process before what the file leaves to them, and whose sockets have
    /// come along.
    pub(super) fn new(file: Vec<Wanted>, estate: &[Leased], has_come: impl Fn(SocketAddr) -> bool) -> Places {
        let mut leases = Leases::default();
        for leased in estate {
            let is_here = match &leased.place {
                Place::Listen(address) => has_come(*address),
                Place::Host(_) => true,
            };
            if is_here && owner(&file, &leased.place).is_none() {
                tracing::info!(place = %leased.place, service = leased.service, "an agent's listener is taken over");
                leases.inherit(leased.clone(), Instant::now());
            }
        }
        Places { file, leases, gates: HashMap::new() }
    }

    /// All listeners, and the hosts of agents with their services.
    pub(super) fn wanted(&mut self) -> Result<(Vec<Listener>, HashMap<String, String>), Failure> {
        let mut listeners = plain(&self.file)?;
        let (mut hosts, mut gates) = (HashMap::new(), HashMap::new());
        for (place, service) in self.leases.all() {
            match place {
                Place::Host(host) => {
                    hosts.insert(host.clone(), service.to_owned());
                }
                Place::Listen(address) => {
                    let key = (*address, service.to_owned());
                    let gate = self.gates.get(&key).cloned().map_or_else(
                        || {
                            let name = service.to_owned().try_into();
                            let name = name.map_err(|e| Failure::Run(format!("{address}: service {service:?}: {e}")));
                            name.map(|name| Arc::new(Gate::new(format!("agents-{address}"), name)))
                        },
                        Ok,
                    )?;
                    listeners.push(Listener { address: *address, gate: gate.clone() });
                    gates.insert(key, gate);
                }
            }
        }
        self.gates = gates;
        Ok((listeners, hosts))
    }
}

impl Listening {
    /// With these, which are open.
    pub(super) fn new(handle: BridgeHandle, hosts: Hosts, mut places: Places) -> Result<Listening, Failure> {
        hosts.set(places.wanted()?.1);
        Ok(Listening { handle, hosts, state: Arc::new(Mutex::new(places)) })
    }

    /// What agents have, for the next process.
    pub(super) fn estate(&self) -> Vec<Leased> {
        self.state().leases.estate()
    }

    fn state(&self) -> MutexGuard<'_, Places> {
        // Each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file has these now; the ones that are being closed.
    pub(super) fn set_file(&self, file: &[Wanted]) -> Result<Vec<Closing>, Failure> {
        let mut guard = self.state();
        let state = &mut *guard;
        let old = std::mem::replace(&mut state.file, file.to_vec());
        let taken: Vec<Place> = state.leases.all().map(|(place, _)| place.clone()).collect();
        for place in taken {
            if let Some(whose) = owner(&state.file, &place)
                && state.leases.take(&place)
            {
                tracing::warn!(%place, listener = whose, "an agent's listener gives way to one of the file");
            }
        }
        let closing = self.publish(state).map_err(|error| Failure::Run(bind_error(&error)));
        if closing.is_err() {
            state.file = old;
        }
        closing
    }

    /// What an admitted session asks for is opened, or not. Blocks for a moment.
    pub(super) fn claim(&self, applicant: &Applicant, generation: u64) -> Vec<Opened> {
        let mut state = self.state();
        let mut all = Vec::new();
        for (backend, expose) in (0u16..).zip(&applicant.exposes) {
            let listen = expose.listen.map(Place::Listen);
            let host = expose.http_host.clone().map(Place::Host);
            for place in listen.into_iter().chain(host) {
                let service = expose.service.as_str();
                let error = self.open(&mut state, applicant.agent, generation, &place, service).err();
                match &error {
                    Some(why) => {
                        tracing::warn!(agent = %applicant.agent, %place, service, why, "an agent's listener is not opened");
                    }
                    None => tracing::debug!(agent = %applicant.agent, %place, service, "an agent's listener"),
                }
                all.push(Opened { backend, at: place.to_string(), error });
            }
        }
        all
    }

    fn open(
        &self,
        state: &mut Places,
        agent: AgentId,
        generation: u64,
        place: &Place,
        service: &str,
    ) -> Result<(), String> {
        if let Some(whose) = owner(&state.file, place) {
            return Err(format!("the bridge's own listener {whose:?} has it"));
        }
        if let Place::Listen(address) = place {
            // The kernel would let us have it twice (SO_REUSEPORT), and give each a part of those who come.
            if collide(self.handle.link_address(), *address) {
                return Err("the bridge's link port has it".into());
            }
            let real = self.handle.addresses();
            let of_file = |(name, at): &&(String, SocketAddr)| {
                collide(*at, *address) && state.file.iter().any(|l| l.name == *name)
            };
            if let Some((whose, _)) = real.iter().find(of_file) {
                return Err(format!("the bridge's own listener {whose:?} has it"));
            }
        }
        let has_door = |l: &Wanted| matches!(&l.door, Door::Http(http) if http.options.agent_hosts);
        if matches!(place, Place::Host(_)) && !state.file.iter().any(has_door) {
            return Err("the bridge has no http listener with agent_hosts = true".into());
        }
        if !state.leases.claim(agent, generation, place, service, Instant::now())? {
            return Ok(());
        }
        match self.publish(state) {
            Ok(_) => {
                tracing::info!(%agent, %place, service, "listener opened for an agent");
                Ok(())
            }
            Err(BridgeError::Bind { error, .. }) => {
                state.leases.unclaim(agent, generation, place);
                Err(format!("it cannot be listened on: {error}"))
            }
        }
    }

    /// A session has a link.
    pub(super) fn on_up(&self, agent: AgentId, generation: u64) {
        let mut state = self.state();
        if state.leases.on_up(agent, generation) {
            self.publish_or_tell(&mut state);
        }
    }

    /// A session has none any more.
    pub(super) fn on_gone(&self, agent: AgentId, generation: u64) {
        self.state().leases.on_gone(agent, generation, Instant::now());
    }

    /// Now and then.
    pub(super) fn tick(&self) {
        let mut state = self.state();
        let free = state.leases.expire(Instant::now());
        if !free.is_empty() {
            let places = free.iter().map(Place::to_string).collect::<Vec<_>>().join(", ");
            tracing::info!(places, "closed: the agents that asked for it are gone");
            self.publish_or_tell(&mut state);
        }
    }

    fn publish_or_tell(&self, state: &mut Places) {
        if let Err(error) = self.publish(state) {
            tracing::error!(%error, "listeners could not be changed");
        }
    }

    fn publish(&self, state: &mut Places) -> Result<Vec<Closing>, BridgeError> {
        let (listeners, hosts) =
            state.wanted().expect("configuration and handshake have checked the names of services");
        let closing = self.handle.set_listeners(&listeners)?;
        self.hosts.set(hosts);
        Ok(closing)
    }
}

/// The listener of the file that has this place.
fn owner<'a>(file: &'a [Wanted], place: &Place) -> Option<&'a str> {
    let has = |l: &&Wanted| match (place, &l.door) {
        (Place::Listen(_), Door::Udp(_) | Door::Unix(_)) => false,
        (Place::Listen(address), _) => collide(l.listen, *address),
        (Place::Host(host), Door::Http(http)) => {
            http.options.agent_hosts && http.routes.iter().any(|r| r.host == HostPattern::Exact(host.clone()))
        }
        (Place::Host(_), _) => false,
    };
    file.iter().find(has).map(|l| l.name.as_str())
}
