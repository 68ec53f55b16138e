//! Which agents are there and what their backends are like, from the reports of all workers: the first carrier of a
//! session makes an agent come, the last one makes it go, and a newer session takes an older one's place. Pure.

use super::{BridgeEvent, LinkId, Raw};
use crate::health_feed::{HealthView, Heard};
use crate::hello::Applicant;
use crate::identity::AgentId;
use crate::watch_feed::{Lookout, Seen, WATCHES_MAX, Watch};
use ringspan_engine::time::Instant;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

#[derive(Default)]
pub(super) struct Roster {
    agents: HashMap<AgentId, Present>,
    /// Newer sessions of agents that are there: they take over with their first word on health.
    coming: HashMap<AgentId, Coming>,
    due: VecDeque<BridgeEvent>,
    /// Agents that have orders to be sent.
    ordered: BTreeSet<AgentId>,
}

struct Present {
    generation: u64,
    carriers: u32,
    health: HealthView,
    lookout: Lookout,
    /// Places it will look at, at most.
    watches: u16,
    watching: u16,
    /// The carrier that carries its feeds.
    feed: Option<LinkId>,
}

struct Coming {
    present: Present,
    applicant: Box<Applicant>,
    peer: Option<SocketAddr>,
}

/// What is to be done about a report.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The agent's links of sessions before this one get no new visitors, as soon as routes name the newer one.
    Replace { agent: AgentId, below: u64 },
    /// The same at once: no routes name them.
    Retire { agent: AgentId, below: u64 },
    /// Send this HEALTH payload.
    Answer { link: LinkId, payload: Vec<u8> },
    /// End this link: it broke the protocol.
    End { link: LinkId, detail: String },
}

impl Roster {
    /// The next event of those that reports have made.
    pub(super) fn next(&mut self) -> Option<BridgeEvent> {
        self.due.pop_front()
    }

    /// Takes a report.
    pub(super) fn on_raw(&mut self, raw: Raw) -> Option<Order> {
        match raw {
            Raw::Event(event) => {
                self.due.push_back(event);
                None
            }
            Raw::Up { applicant, generation, peer, at } => self.on_up(applicant, generation, peer, at),
            Raw::Down { agent, generation, reason, detail } => {
                if let Some(coming) = self.coming.get_mut(&agent).filter(|c| c.present.generation == generation) {
                    coming.present.carriers -= 1;
                    if coming.present.carriers == 0 {
                        self.coming.remove(&agent);
                    }
                    return None;
                }
                let present = self.agents.get_mut(&agent).filter(|present| present.generation == generation)?;
                present.carriers -= 1;
                match present.carriers {
                    // Nobody is left to wait with: the newer session is what there is.
                    0 if self.coming.contains_key(&agent) => return self.take_over(agent),
                    0 => {
                        self.agents.remove(&agent);
                        self.due.push_back(BridgeEvent::AgentGone { agent, generation, reason, detail });
                    }
                    count => self.due.push_back(BridgeEvent::Carriers { agent, count }),
                }
                None
            }
            Raw::Health { link, agent, generation, payload, at } => {
                self.on_health(link, agent, generation, &payload, at)
            }
        }
    }

    fn on_up(
        &mut self,
        applicant: Box<Applicant>,
        generation: u64,
        peer: Option<SocketAddr>,
        at: Instant,
    ) -> Option<Order> {
        let agent = applicant.agent;
        if let Some(coming) = self.coming.get_mut(&agent).filter(|c| c.present.generation == generation) {
            coming.present.carriers += 1;
            return None;
        }
        let newest = self.coming.get(&agent).map_or(0, |coming| coming.present.generation);
        match self.agents.get_mut(&agent) {
            Some(present) if present.generation == generation => {
                present.carriers += 1;
                let count = present.carriers;
                self.due.push_back(BridgeEvent::Carriers { agent, count });
                None
            }
            // A carrier of a session that has been replaced, or is about to be.
            Some(present) if present.generation.max(newest) > generation => {
                let below = if present.generation > generation { present.generation } else { newest };
                (present.generation > generation).then_some(Order::Retire { agent, below })
            }
            older => {
                let health = HealthView::new(generation, applicant.exposes.len() as u16, at);
                let (lookout, watches) = (Lookout::new(generation), applicant.watches.min(WATCHES_MAX));
                let present = Present { generation, carriers: 1, health, lookout, watches, watching: 0, feed: None };
                if older.is_some() {
                    self.coming.insert(agent, Coming { present, applicant, peer });
                } else {
                    self.agents.insert(agent, present);
                    self.due.push_back(BridgeEvent::AgentUp { agent, applicant, generation, peer });
                }
                None
            }
        }
    }

    /// The newer session of the agent is the agent from now on.
    fn take_over(&mut self, agent: AgentId) -> Option<Order> {
        let Coming { present, applicant, peer } = self.coming.remove(&agent)?;
        let generation = present.generation;
        self.agents.insert(agent, present);
        self.due.push_back(BridgeEvent::AgentUp { agent, applicant, generation, peer });
        Some(Order::Replace { agent, below: generation })
    }

    /// Lets an agent look at this, too. `false`: it cannot, or looks at as much as it may.
    pub(super) fn watch(&mut self, agent: AgentId, generation: u64, watch: Watch) -> bool {
        let Some(present) = self.agents.get_mut(&agent).filter(|p| p.generation == generation) else { return true };
        let taken = present.watching < present.watches && present.lookout.watch(watch);
        if taken {
            present.watching += 1;
            self.ordered.insert(agent);
        }
        taken
    }

    /// It need not look at this any longer.
    pub(super) fn unwatch(&mut self, agent: AgentId, generation: u64, key: u64) {
        let Some(present) = self.agents.get_mut(&agent).filter(|p| p.generation == generation) else { return };
        if present.lookout.unwatch(key) {
            present.watching -= 1;
            self.ordered.insert(agent);
        }
    }

    /// The next orders to send, and to whom.
    pub(super) fn orders(&mut self) -> Option<(LinkId, Vec<u8>)> {
        while let Some(agent) = self.ordered.first().copied() {
            let present = self.agents.get_mut(&agent);
            // Without a carrier they wait for one.
            if let Some(Present { lookout, feed: Some(feed), .. }) = present
                && let Some(payload) = lookout.next_message()
            {
                return Some((*feed, payload));
            }
            self.ordered.remove(&agent);
        }
        None
    }

    fn on_health(
        &mut self,
        link: LinkId,
        agent: AgentId,
        generation: u64,
        payload: &[u8],
        at: Instant,
    ) -> Option<Order> {
        let is_coming = self.coming.get(&agent).is_some_and(|c| c.present.generation == generation);
        let present = if is_coming {
            self.coming.get_mut(&agent).map(|coming| &mut coming.present)
        } else {
            self.agents.get_mut(&agent).filter(|present| present.generation == generation)
        }?;
        // The agent begins on each carrier that takes the feeds over with a snapshot.
        if present.feed != Some(link) && (present.feed.is_none() || payload.starts_with(b"{\"snapshot\"")) {
            present.feed = Some(link);
            present.lookout.on_carrier();
            if present.watching > 0 {
                self.ordered.insert(agent);
            }
        }
        match present.lookout.on_message(payload, at) {
            Ok(Seen::NotOurs) => {}
            Ok(Seen::Sights(sights)) => {
                if !sights.is_empty() {
                    self.due.push_back(BridgeEvent::Sighted { agent, generation, sights });
                }
                return None;
            }
            Err(error) => return Some(Order::End { link, detail: error.to_string() }),
        }
        match present.health.on_message(payload, at) {
            Ok(Heard::Changes(changes)) => {
                let order = if is_coming { self.take_over(agent) } else { None };
                if !changes.is_empty() {
                    self.due.push_back(BridgeEvent::Health { agent, generation, changes });
                }
                order
            }
            Ok(Heard::Ignored) => None,
            Ok(Heard::Gap(payload)) => Some(Order::Answer { link, payload }),
            Err(error) => Some(Order::End { link, detail: error.to_string() }),
        }
    }
}
