//! The agents that are connected, what they expose, and how it is: what routes and registry are told.
//! Promise: a lost agent's backends are unroutable in the next [`Sessions::routes`]; news of an older session change
//! nothing. Pure: events in, orders for the registry out.

use crate::config::agent_limits::AgentRules;
use crate::config::balance::Policies;
use ringspan_engine::health::Health;
use ringspan_registry::health::Reason;
use ringspan_registry::http::AgentLink;
use ringspan_registry::model::{Metadata, ServiceKey};
use ringspan_registry::table::{Delta, Exposed};
use ringspan_tunnel::health_feed::Change;
use ringspan_tunnel::hello::{Applicant, Expose, SessionId};
use ringspan_tunnel::identity::{AgentId, AgentName};
use ringspan_tunnel::limits::{Limiter, Rules};
use ringspan_tunnel::routes::{Backend, Load, Routes};
use ringspan_tunnel::token::TokenId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Hex digits of an agent's id in its cluster's name: 32 bits tell apart what people call by one name.
const CLUSTER_ID_DIGITS: usize = 8;
/// Letters of the agent's name in its cluster's name; the longest cluster Nacos takes has 64.
const CLUSTER_NAME_LEN: usize = 40;

/// What the registry has to hear, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// An agent has connected with exactly these.
    Up {
        /// The agent's cluster.
        cluster: String,
        /// The session's number.
        generation: u64,
        /// Its backends.
        exposed: Vec<Exposed>,
    },
    /// How some of its backends are.
    Health {
        /// The agent's cluster.
        cluster: String,
        /// The session's number.
        generation: u64,
        /// In order.
        deltas: Vec<Delta>,
    },
    /// Nobody knows how its backends are.
    Gone {
        /// The agent's cluster.
        cluster: String,
        /// The session's number.
        generation: u64,
    },
}

/// See the module.
pub(super) struct Sessions {
    agents: BTreeMap<AgentId, Session>,
    /// The number given to each agent's latest session, before its first carrier is up. At most one for each agent
    /// that was ever admitted.
    tickets: HashMap<AgentId, (SessionId, u64)>,
    next: u64,
    /// Revoked in this run: an agent that was admitted a moment before may still come up a moment later.
    revoked: HashSet<AgentId>,
    policies: Policies,
    rules: AgentRules,
    /// Of agents that were ever admitted, how they joined: what an agent calls itself later is not what it is limited by.
    joined: HashMap<AgentId, (AgentName, TokenId)>,
    /// Of agents that were ever here: one that comes back finds its counts.
    limiters: HashMap<Counted, Arc<Limiter>>,
}

/// Whose visitors are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Counted {
    Agent(AgentId),
    Token(TokenId),
}

struct Session {
    cluster: String,
    generation: u64,
    exposes: Vec<Expose>,
    health: Vec<Health>,
    /// Visitors of each.
    loads: Vec<Load>,
    limiter: Option<Arc<Limiter>>,
    link: AgentLink,
}

impl Sessions {
    /// Nobody is connected. Sessions are numbered from `first` on: later than any number of an earlier run, so that
    /// the registry never takes a new session for an old one.
    pub(super) fn new(first: u64) -> Sessions {
        Sessions {
            agents: BTreeMap::new(),
            tickets: HashMap::new(),
            next: first.max(1),
            revoked: HashSet::new(),
            policies: Policies::new(),
            rules: AgentRules::default(),
            joined: HashMap::new(),
            limiters: HashMap::new(),
        }
    }

    /// The number of this session of an admitted agent: the same for all its carriers.
    pub(super) fn ticket(&mut self, agent: AgentId, session: SessionId) -> u64 {
        match self.tickets.get(&agent) {
            Some((known, generation)) if *known == session => *generation,
            Some(_) | None => {
                let generation = self.next;
                self.next += 1;
                self.tickets.insert(agent, (session, generation));
                generation
            }
        }
    }

    /// The agent has joined by this name, with this token.
    pub(super) fn joined(&mut self, agent: AgentId, name: AgentName, token: TokenId) {
        self.joined.insert(agent, (name, token));
    }

    /// The first carrier of a session is up.
    pub(super) fn on_up(&mut self, applicant: &Applicant, generation: u64) -> Order {
        let cluster = cluster(&applicant.name, applicant.agent);
        let exposes = applicant.exposes.clone();
        let exposed = exposes.iter().filter_map(exposed).collect();
        let health = vec![Health::Unknown; exposes.len()];
        let loads = exposes.iter().map(|_| Load::default()).collect();
        let limiter = self.limiter_of(applicant.agent);
        let link = AgentLink {
            id: applicant.agent.to_string(),
            name: applicant.name.to_string(),
            software: applicant.software.clone(),
            peer: None,
            since_ms: 0,
            carriers: 1,
        };
        let session = Session { cluster: cluster.clone(), generation, exposes, health, loads, limiter, link };
        self.agents.insert(applicant.agent, session);
        Order::Up { cluster, generation, exposed }
    }

    /// From where an agent came, and when: for people.
    pub(super) fn came(&mut self, agent: AgentId, peer: Option<SocketAddr>, at_ms: u64) {
        if let Some(session) = self.agents.get_mut(&agent) {
            (session.link.peer, session.link.since_ms) = (peer.map(|p| p.to_string()), at_ms);
        }
    }

    /// An agent has so many carriers now.
    pub(super) fn carriers(&mut self, agent: AgentId, count: u32) {
        if let Some(session) = self.agents.get_mut(&agent) {
            session.link.carriers = count;
        }
    }

    /// Links of those that are connected, by their clusters.
    pub(super) fn links(&self) -> BTreeMap<String, AgentLink> {
        self.agents.values().map(|s| (s.cluster.clone(), s.link.clone())).collect()
    }

    /// The last carrier of a session is gone. `None`: a newer one is there.
    pub(super) fn on_gone(&mut self, agent: AgentId, generation: u64) -> Option<Order> {
        self.agents.get(&agent).filter(|s| s.generation == generation)?;
        let session = self.agents.remove(&agent)?;
        Some(Order::Gone { cluster: session.cluster, generation })
    }

    /// Backends have changed. `None`: of a session that is not the agent's.
    pub(super) fn on_health(&mut self, agent: AgentId, generation: u64, changes: &[Change]) -> Option<Order> {
        let session = self.agents.get_mut(&agent).filter(|s| s.generation == generation)?;
        let mut deltas = Vec::new();
        for change in changes {
            let index = usize::from(change.backend);
            let (Some(health), Some(expose)) = (session.health.get_mut(index), session.exposes.get(index)) else {
                continue;
            };
            *health = change.after.health;
            let Some(exposed) = exposed(expose) else { continue };
            let Ok(id) = exposed.id(&session.cluster) else { continue };
            deltas.push(Delta {
                service: exposed.service,
                id,
                health: change.after.health,
                reason: match change.after.code {
                    Some(code) => Reason::Probe { code, errno: 0 },
                    None => Reason::Unseen,
                },
                rtt_ns: change.after.rtt_us.map_or(0, |us| u64::from(us) * 1000),
                due: None,
            });
        }
        Some(Order::Health { cluster: session.cluster.clone(), generation, deltas })
    }

    /// Which agent has this cluster and this session.
    pub(super) fn agent_of(&self, cluster: &str, generation: u64) -> Option<AgentId> {
        let mut all = self.agents.iter();
        all.find(|(_, s)| s.generation == generation && s.cluster == cluster).map(|(agent, _)| *agent)
    }

    /// The cluster of an agent, if this is its session.
    pub(super) fn cluster_of(&self, agent: AgentId, generation: u64) -> Option<&str> {
        self.agents.get(&agent).filter(|s| s.generation == generation).map(|s| s.cluster.as_str())
    }

    /// Service and address of a backend, for the log.
    pub(super) fn backend(&self, agent: AgentId, index: u16) -> Option<&Expose> {
        self.agents.get(&agent)?.exposes.get(usize::from(index))
    }

    /// What is believed of a service's backend at this address; of several agents' the best.
    pub(super) fn health(&self, service: &str, address: &str) -> Option<Health> {
        let rank = |health: &Health| match health {
            Health::Down => 0,
            Health::Unknown => 1,
            Health::Up => 2,
        };
        let all = self.agents.values().flat_map(|s| s.exposes.iter().zip(s.health.iter().copied()));
        all.filter(|(e, _)| e.service.as_str() == service && e.address == address).map(|(_, h)| h).max_by_key(rank)
    }

    /// Agents that have a link.
    pub(super) fn connected(&self) -> Vec<AgentId> {
        self.agents.keys().copied().collect()
    }

    /// Whether the agent has a link.
    pub(super) fn is_connected(&self, agent: AgentId) -> bool {
        self.agents.contains_key(&agent)
    }

    /// The agent is to stay out.
    pub(super) fn revoke(&mut self, agent: AgentId) {
        self.revoked.insert(agent);
    }

    /// Whether it is to stay out.
    pub(super) fn is_revoked(&self, agent: AgentId) -> bool {
        self.revoked.contains(&agent)
    }

    /// Every service with its backends, those of one agent in the agent's order.
    pub(super) fn routes(&self) -> Routes {
        let mut services: BTreeMap<&str, Vec<Backend>> = BTreeMap::new();
        for (agent, session) in &self.agents {
            for (index, (expose, health)) in session.exposes.iter().zip(&session.health).enumerate() {
                let number = u16::try_from(index).expect("an agent exposes at most 256 backends");
                services.entry(expose.service.as_str()).or_default().push(Backend {
                    health: *health,
                    weight: expose.weight,
                    priority: expose.priority,
                    proxy: expose.proxy_protocol,
                    load: session.loads[index].clone(),
                    limiter: session.limiter.clone(),
                    ..Backend::new(*agent, session.generation, number)
                });
            }
        }
        Routes::with_policies(services, |name| self.policies.get(name).cloned().unwrap_or_default())
    }

    /// What counts all visitors of the agent, by the rules of now.
    fn limiter_of(&mut self, agent: AgentId) -> Option<Arc<Limiter>> {
        let own = |rules| (Counted::Agent(agent), rules);
        let joined = self.joined.get(&agent);
        let by_name = joined.and_then(|(name, _)| self.rules.by_name.get(name.as_str())).map(own);
        let by_token = joined.and_then(|(_, token)| {
            self.rules.by_token.get(&token.to_string()).map(|rules| (Counted::Token(*token), rules))
        });
        let (counted, rules) = by_name.or(by_token).or(self.rules.others.as_ref().map(own))?;
        if *rules == Rules::default() {
            return None;
        }
        let limiter = self.limiters.entry(counted).or_insert_with(|| Limiter::new(rules.clone()));
        if *limiter.rules() != *rules {
            limiter.change(rules.clone());
        }
        Some(limiter.clone())
    }

    /// What agents may carry from the next [`Sessions::routes`] on. Nobody's count is forgotten.
    pub(super) fn set_rules(&mut self, rules: AgentRules) {
        self.rules = rules;
        for agent in self.connected() {
            let limiter = self.limiter_of(agent);
            self.agents.get_mut(&agent).expect("just listed").limiter = limiter;
        }
    }

    /// How visitors of services are spread and limited from the next [`Sessions::routes`] on.
    pub(super) fn set_policies(&mut self, policies: Policies) {
        self.policies = policies;
    }
}

/// The registry's cluster of an agent: its name, as far as Nacos' clusters allow, and the beginning of its id.
pub(super) fn cluster(name: &AgentName, agent: AgentId) -> String {
    let tame = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = name.as_str().chars().map(tame).take(CLUSTER_NAME_LEN).collect();
    let id = agent.to_string();
    format!("{name}-{}", &id[..CLUSTER_ID_DIGITS])
}

/// As the registry takes it; `None` for a name or an address that the registry has no word for: visitors are carried
/// there all the same.
fn exposed(expose: &Expose) -> Option<Exposed> {
    // What is reached by two agents alone is nobody else's business.
    if expose.address.starts_with("secret://") {
        return None;
    }
    let address = expose.address.strip_prefix("udp://").unwrap_or(&expose.address);
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let service = ServiceKey::public(expose.service.as_str()).ok()?;
    Some(Exposed {
        service,
        host,
        port: port.parse().ok()?,
        weight: expose.weight.into(),
        metadata: Metadata::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::tests::{applicant, identity};
    use ringspan_engine::outcome::Code;
    use ringspan_engine::time::Instant;
    use ringspan_tunnel::health_feed::BackendHealth;
    use ringspan_tunnel::routes::Cursor;

    fn changed(health: Health) -> Change {
        let before = BackendHealth::unknown(Instant::ZERO);
        Change {
            backend: 0,
            before,
            after: BackendHealth { health, code: Some(Code::L4Ok), rtt_us: Some(7), ..before },
        }
    }

    fn is_routable(sessions: &Sessions) -> bool {
        sessions.routes().pick("web", &mut Cursor::default(), |_| true).is_ok()
    }

    /// A backend takes visitors while its agent's latest session says that it is up, and at no other time.
    #[test]
    fn routes_follow_sessions() {
        let (mut sessions, key) = (Sessions::new(100), identity());
        let (id, who) = (key.id(), applicant(&key, None));
        let ticket = sessions.ticket(id, who.session);
        assert_eq!((ticket, sessions.ticket(id, who.session)), (100, 100), "one number for all carriers");
        let Order::Up { exposed, .. } = sessions.on_up(&who, ticket) else { panic!("an agent is up") };
        assert_eq!((exposed[0].host.as_str(), exposed[0].port), ("127.0.0.1", 1));
        assert!(!is_routable(&sessions), "nothing is known yet");
        assert!(sessions.on_health(id, ticket, &[changed(Health::Up)]).is_some());
        assert!(is_routable(&sessions));
        assert!(sessions.on_health(id, ticket - 1, &[changed(Health::Down)]).is_none(), "old news");
        assert!(is_routable(&sessions));
        let newer = sessions.ticket(id, SessionId::generate());
        assert!(newer > ticket);
        sessions.on_up(&who, newer);
        assert!(!is_routable(&sessions), "a new session knows nothing yet");
        sessions.on_health(id, newer, &[changed(Health::Up)]);
        assert!(sessions.on_gone(id, ticket).is_none(), "the older session was replaced");
        assert!(is_routable(&sessions) && sessions.is_connected(id));
        assert!(sessions.on_gone(id, newer).is_some());
        assert!(!is_routable(&sessions) && !sessions.is_connected(id));
    }

    /// Whatever an agent is called, its cluster is one that the registry takes, and no other agent's.
    #[test]
    fn clusters_are_names() {
        let (a, b) = (identity().id(), identity().id());
        for text in ["box", "büro 1", &"x".repeat(64), "a.b_c@@d"] {
            let name: AgentName = text.to_owned().try_into().expect("a name");
            ringspan_registry::model::cluster_name(&cluster(&name, a)).expect("a cluster");
            assert_ne!(cluster(&name, a), cluster(&name, b));
        }
    }
}
