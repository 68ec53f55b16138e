//! Which agents are there and what their backends are like, from the reports of all workers: the first carrier of a
//! session makes an agent come, the last one makes it go, and a newer session takes an older one's place. Pure.

use super::{BridgeEvent, LinkId, Raw};
use crate::health_feed::{HealthView, Heard};
use crate::identity::AgentId;
use ringspan_engine::time::Instant;
use std::collections::{HashMap, VecDeque};

#[derive(Default)]
pub(super) struct Roster {
    agents: HashMap<AgentId, Present>,
    due: VecDeque<BridgeEvent>,
}

struct Present {
    generation: u64,
    carriers: u32,
    health: HealthView,
}

/// What is to be done about a report.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The agent's links of sessions before this one get no new visitors.
    Replace { agent: AgentId, below: u64 },
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
            Raw::Up { applicant, generation, peer, at } => {
                let agent = applicant.agent;
                match self.agents.get_mut(&agent) {
                    Some(present) if present.generation == generation => {
                        present.carriers += 1;
                        let count = present.carriers;
                        self.due.push_back(BridgeEvent::Carriers { agent, count });
                        None
                    }
                    // A carrier of a session that has been replaced.
                    Some(present) if present.generation > generation => {
                        Some(Order::Replace { agent, below: present.generation })
                    }
                    older => {
                        let replaces = older.is_some();
                        let health = HealthView::new(generation, applicant.exposes.len() as u16, at);
                        self.agents.insert(agent, Present { generation, carriers: 1, health });
                        self.due.push_back(BridgeEvent::AgentUp { agent, applicant, generation, peer });
                        replaces.then_some(Order::Replace { agent, below: generation })
                    }
                }
            }
            Raw::Down { agent, generation, reason, detail } => {
                let present = self.agents.get_mut(&agent).filter(|present| present.generation == generation)?;
                present.carriers -= 1;
                match present.carriers {
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

    fn on_health(
        &mut self,
        link: LinkId,
        agent: AgentId,
        generation: u64,
        payload: &[u8],
        at: Instant,
    ) -> Option<Order> {
        let present = self.agents.get_mut(&agent).filter(|present| present.generation == generation)?;
        match present.health.on_message(payload, at) {
            Ok(Heard::Changes(changes)) if !changes.is_empty() => {
                self.due.push_back(BridgeEvent::Health { agent, generation, changes });
                None
            }
            Ok(Heard::Changes(_) | Heard::Ignored) => None,
            Ok(Heard::Gap(payload)) => Some(Order::Answer { link, payload }),
            Err(error) => Some(Order::End { link, detail: error.to_string() }),
        }
    }
}
