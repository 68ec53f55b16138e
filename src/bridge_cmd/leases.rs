//! Addresses and hosts that agents have asked the bridge for: who has which, and for how long.
//!
//! ```text
//! free ──claim──▶ coming ──first carrier up──▶ held ──last one gone──▶ away ──grace──▶ free
//!                    └────── COMING_MAX ──────▶ free          └──claim──▶ held
//! the process before us: held ──inherit──▶ away
//! ```
//! Promises: a place has one service; whoever asked first has it until it is free; agents with the same service share it.
//! Pure: `now` comes in.

use ringspan_tunnel::identity::AgentId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// An agent that was promised a place has this long to come up: what its handshake may take.
const COMING_MAX: Duration = Duration::from_secs(10);
/// Places of one agent that is away stay its own, and open, for this long: a restart, an update, a short outage.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// What an agent may ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Place {
    /// A TCP listener.
    Listen(SocketAddr),
    /// Requests for a host, at listeners that let agents have theirs.
    Host(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Listen(address) => write!(f, "{address}"),
            Place::Host(host) => f.write_str(host),
        }
    }
}

/// A place that goes from one process to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leased {
    /// What it is.
    pub(super) place: Place,
    /// Whose visitors come there.
    pub(super) service: String,
    /// Who has it.
    pub(super) agents: Vec<AgentId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<Place, Lease>);

#[derive(Debug)]
struct Lease {
    service: String,
    /// Of a newer session of the only holder: from when that one is up.
    next: Option<(AgentId, u64, String)>,
    holders: Vec<Holder>,
}

#[derive(Debug)]
struct Holder {
    agent: AgentId,
    generation: u64,
    /// `None`: it has a link.
    until: Option<Instant>,
}

impl Leases {
    /// A session of an agent asks for a place. Whether that is news.
    ///
    /// # Errors
    /// Who has it.
    pub(super) fn claim(
        &mut self,
        agent: AgentId,
        generation: u64,
        place: &Place,
        service: &str,
        now: Instant,
    ) -> Result<bool, String> {
        let until = Some(now + COMING_MAX);
        let holder = Holder { agent, generation, until };
        let Some(lease) = self.0.get_mut(place) else {
            let lease = Lease { service: service.to_owned(), next: None, holders: vec![holder] };
            self.0.insert(place.clone(), lease);
            return Ok(true);
        };
        if lease.service != service {
            if let Some(other) = lease.holders.iter().find(|holder| holder.agent != agent) {
                return Err(format!("agent {} has it, for service {:?}", other.agent, lease.service));
            }
            if lease.holders.iter().all(|holder| holder.generation != generation) {
                lease.next = Some((agent, generation, service.to_owned()));
            }
        }
        match lease.holders.iter_mut().find(|holder| (holder.agent, holder.generation) == (agent, generation)) {
            Some(known) => {
                if known.until.is_some() {
                    known.until = until;
                }
            }
            None => lease.holders.push(holder),
        }
        Ok(false)
    }

    /// Takes back what [`claim`](Leases::claim) gave: it could not be opened.
    pub(super) fn unclaim(&mut self, agent: AgentId, generation: u64, place: &Place) {
        if let Some(lease) = self.0.get_mut(place) {
            lease.holders.retain(|holder| (holder.agent, holder.generation) != (agent, generation));
            if lease.holders.is_empty() {
                self.0.remove(place);
            }
        }
    }

    /// The session has a link: what older ones of the agent had and this one has not asked for is free. Whether
    /// anything has changed that others see.
    pub(super) fn on_up(&mut self, agent: AgentId, generation: u64) -> bool {
        let mut changed = false;
        self.0.retain(|_, lease| {
            for holder in lease.holders.iter_mut().filter(|holder| holder.agent == agent) {
                if holder.generation == generation {
                    holder.until = None;
                }
            }
            lease.holders.retain(|holder| holder.agent != agent || holder.generation >= generation);
            if let Some((_, _, service)) = lease.next.take_if(|next| (next.0, next.1) == (agent, generation)) {
                (lease.service, changed) = (service, true);
            }
            changed |= lease.holders.is_empty();
            !lease.holders.is_empty()
        });
        changed
    }

    /// The session has no link any more.
    pub(super) fn on_gone(&mut self, agent: AgentId, generation: u64, now: Instant) {
        let holders = self.0.values_mut().flat_map(|lease| &mut lease.holders);
        for holder in holders.filter(|holder| (holder.agent, holder.generation) == (agent, generation)) {
            holder.until = Some(now + GRACE);
        }
    }

    /// Frees what has been nobody's for too long; it.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Place> {
        let mut free = Vec::new();
        self.0.retain(|place, lease| {
            lease.holders.retain(|holder| holder.until.is_none_or(|until| until > now));
            if lease.holders.is_empty() {
                free.push(place.clone());
            }
            !lease.holders.is_empty()
        });
        free
    }

    /// Frees a place at once, whoever has it.
    pub(super) fn take(&mut self, place: &Place) -> bool {
        self.0.remove(place).is_some()
    }

    /// All of it, for the next process.
    pub(super) fn estate(&self) -> Vec<Leased> {
        let agents = |lease: &Lease| {
            let mut agents: Vec<AgentId> = lease.holders.iter().map(|holder| holder.agent).collect();
            agents.sort_unstable();
            agents.dedup();
            agents
        };
        let leased = |(place, lease): (&Place, &Lease)| Leased {
            place: place.clone(),
            service: lease.service.clone(),
            agents: agents(lease),
        };
        self.0.iter().map(leased).collect()
    }

    /// What the process before had: its agents are away, and have [`GRACE`] to come over. Any session of theirs is newer.
    pub(super) fn inherit(&mut self, Leased { place, service, agents }: Leased, now: Instant) {
        let holder = |agent| Holder { agent, generation: 0, until: Some(now + GRACE) };
        let holders: Vec<Holder> = agents.into_iter().map(holder).collect();
        if !holders.is_empty() {
            self.0.insert(place, Lease { service, next: None, holders });
        }
    }

    /// All places and their services.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Place, &str)> {
        self.0.iter().map(|(place, lease)| (place, lease.service.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_tunnel::keys::SigningKey;

    fn agent() -> AgentId {
        AgentId::of(&SigningKey::generate().public())
    }

    fn services(leases: &Leases) -> Vec<String> {
        leases.all().map(|(place, service)| format!("{place} {service}")).collect()
    }

    /// The life of a place: promised, held, away, free; and each way back.
    #[test]
    fn a_place_and_its_holder() {
        let (mut leases, a, start) = (Leases::default(), agent(), Instant::now());
        let place = Place::Listen(([0, 0, 0, 0], 2201).into());
        assert_eq!(leases.claim(a, 1, &place, "web", start), Ok(true));
        assert_eq!(leases.claim(a, 1, &place, "web", start), Ok(false), "the second carrier");
        assert!(leases.expire(start + COMING_MAX / 2).is_empty());
        assert_eq!(leases.expire(start + COMING_MAX), std::slice::from_ref(&place), "it has not come");
        assert_eq!(leases.claim(a, 2, &place, "web", start), Ok(true));
        assert!(!leases.on_up(a, 2));
        assert!(leases.expire(start + GRACE * 10).is_empty());
        leases.on_gone(a, 2, start);
        assert!(leases.expire(start + GRACE / 2).is_empty());
        assert_eq!(leases.claim(a, 3, &place, "web", start + GRACE / 2), Ok(false), "it is back");
        assert!(!leases.on_up(a, 3));
        leases.on_gone(a, 2, start);
        assert!(leases.expire(start + GRACE * 10).is_empty(), "an older session's end is old news");
        leases.on_gone(a, 3, start);
        assert_eq!(leases.expire(start + GRACE), [place]);
    }

    /// The first has it; the second is told who, and shares it if it has the same service.
    #[test]
    fn two_want_it() {
        let (mut leases, a, b, now) = (Leases::default(), agent(), agent(), Instant::now());
        let place = Place::Host("a.example.org".into());
        assert_eq!(leases.claim(a, 1, &place, "web", now), Ok(true));
        let error = leases.claim(b, 2, &place, "other", now).expect_err("it is taken");
        assert_eq!(error, format!("agent {a} has it, for service \"web\""));
        assert_eq!(leases.claim(b, 2, &place, "web", now), Ok(false));
        leases.on_up(a, 1);
        leases.on_up(b, 2);
        leases.on_gone(a, 1, now);
        assert!(leases.expire(now + GRACE).is_empty(), "the other one is there");
        leases.on_gone(b, 2, now);
        assert_eq!(leases.expire(now + GRACE), [place]);
    }

    /// One process after the other: what an agent had it has again when it comes over, with what it shares it with; what it
    /// does not ask for any more, and what nobody comes for, is free.
    #[test]
    fn from_one_process_to_the_next() {
        let (mut old, a, b, now) = (Leases::default(), agent(), agent(), Instant::now());
        let port = |port: u16| Place::Listen(([127, 0, 0, 1], port).into());
        for (agent, generation, p) in [(a, 7, 1), (a, 7, 2), (b, 8, 1), (b, 8, 3)] {
            old.claim(agent, generation, &port(p), "web", now).expect("it is free, or shared");
        }
        old.on_up(a, 7);
        let text = serde_json::to_string(&old.estate()).expect("JSON");
        let estate: Vec<Leased> = serde_json::from_str(&text).expect("JSON");
        let mut new = Leases::default();
        for leased in estate {
            new.inherit(leased, now);
        }
        assert_eq!(services(&new), services(&old));
        assert!(new.claim(agent(), 9, &port(2), "other", now).is_err(), "it is still another's");
        assert_eq!(new.claim(a, 9, &port(1), "web", now), Ok(false));
        assert!(new.on_up(a, 9), "it has not asked for the second");
        assert_eq!(services(&new), ["127.0.0.1:1 web", "127.0.0.1:3 web"]);
        assert_eq!(new.expire(now + GRACE), [port(3)], "the other agent has not come");
        assert_eq!(services(&new), ["127.0.0.1:1 web"]);
    }

    /// A new configuration of the same agent: what it drops is free when the new session is up, what it gives another
    /// service has that from then on.
    #[test]
    fn a_new_configuration() {
        let (mut leases, a, now) = (Leases::default(), agent(), Instant::now());
        let port = |port: u16| Place::Listen(([127, 0, 0, 1], port).into());
        for p in [1, 2, 3] {
            leases.claim(a, 1, &port(p), "web", now).expect("it is free");
        }
        leases.on_up(a, 1);
        leases.claim(a, 2, &port(2), "mail", now).expect("its own");
        leases.claim(a, 2, &port(3), "web", now).expect("its own");
        leases.claim(a, 2, &port(4), "web", now).expect("it is free");
        assert_eq!(services(&leases), ["127.0.0.1:1 web", "127.0.0.1:2 web", "127.0.0.1:3 web", "127.0.0.1:4 web"]);
        assert!(leases.on_up(a, 2));
        assert_eq!(services(&leases), ["127.0.0.1:2 mail", "127.0.0.1:3 web", "127.0.0.1:4 web"]);
        leases.unclaim(a, 2, &port(4));
        leases.on_gone(a, 1, now);
        assert!(leases.expire(now + GRACE * 2).is_empty());
        assert_eq!(services(&leases), ["127.0.0.1:2 mail", "127.0.0.1:3 web"]);
    }
}
