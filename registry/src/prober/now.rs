//! Probes out of turn: somebody wants to know now how an instance is, and does not want to wait for its turn.
//! Promise: whoever looks at it - our own engine, agents that were asked to - asks once, within 100 ms; what is found counts at
//! once, as a first probe's outcome does. A question that is under way is not asked a second time: who comes later shares
//! the answer. Never more than [`ERRANDS_MAX`] are under way.
//!
//! ```text
//! ProbeNow ── order (bounded) ──► errand: one urgent question for each who looks ──► found by all ──► answer
//!                                    └─ an agent that goes meanwhile found nothing
//! ```

use super::{Finding, Key, Prober, Probing, Vantages};
use crate::checker::{Asked, How, Manner, Pace};
use crate::health::{Health, Reason};
use crate::model::{InstanceId, Name, ServiceKey, Vantage};
use crate::panel::answers_to;
use crate::service::Registry;
use ringspan_engine::policy::{INTERVAL_MIN, Policy};
use std::collections::HashMap;
use std::num::NonZeroU8;
use tokio::sync::{mpsc, oneshot};

/// Orders on their way to the prober; the next one is told that it is busy.
const ORDERS_LEN: usize = 64;
/// Instances that are probed out of turn at a time; one more is told so.
pub const ERRANDS_MAX: usize = 256;

/// Where probes out of turn are asked for. Clones are the same.
#[derive(Clone)]
pub struct ProbeNow {
    orders: mpsc::Sender<Order>,
}

/// The prober's end: for [`run_on`](super::run_on).
pub struct ProbeOrders(pub(super) mpsc::Receiver<Order>);

/// Both ends.
pub fn probe_now() -> (ProbeNow, ProbeOrders) {
    let (orders, receiver) = mpsc::channel(ORDERS_LEN);
    (ProbeNow { orders }, ProbeOrders(receiver))
}

pub(super) struct Order {
    key: Key,
    reply: oneshot::Sender<Result<Vec<Found>, NotNow>>,
}

/// What one of those who look has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Who.
    pub vantage: Vantage,
    /// How it is.
    pub health: Health,
    /// Why.
    pub reason: Reason,
    /// The round trip, nanoseconds; 0 if there was none.
    pub rtt_ns: u64,
}

/// Why nothing is probed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It is not registered.
    #[error("there is no such instance")]
    NoInstance,
    /// Another member of the cluster looks at it.
    #[error("member {0} of the cluster probes this instance; ask it there (GET /api/v1/cluster has its address)")]
    Elsewhere(String),
    /// Nobody looks at it.
    #[error(
        "nobody here probes this instance: its checker is none, checks are switched off, it lives by its beats or its \
         agent's own word, or the agents that are to look at it are not connected to this server"
    )]
    Nobody,
    /// Enough is under way.
    #[error("{ERRANDS_MAX} instances are being probed out of turn; try again")]
    Busy,
    /// There is no prober, or no longer.
    #[error("this server probes nothing")]
    Stopped,
}

impl ProbeNow {
    /// Has an instance probed now, by all who look at it, and waits for what they find: 100 ms and its checker's timeout.
    /// When this returns `Ok` the registry has heard it, too. If the future is dropped, the probe is made all the same.
    ///
    /// # Errors
    /// [`NotNow`].
    pub async fn ask(&self, service: ServiceKey, id: InstanceId) -> Result<Vec<Found>, NotNow> {
        let (reply, answer) = oneshot::channel();
        self.orders.try_send(Order { key: (service, id), reply }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NotNow::Busy,
            mpsc::error::TrySendError::Closed(_) => NotNow::Stopped,
        })?;
        answer.await.unwrap_or(Err(NotNow::Stopped))
    }
}

/// The question that is asked once: as the steady one, and decided by the first outcome. Its first probe is due within its
/// interval, which is the shortest there is.
pub(super) fn once(asked: &Asked, own: &Policy) -> Asked {
    let timeout_ms = u32::try_from(asked.how.policy(own).timeout.as_millis()).unwrap_or(u32::MAX);
    let interval_ms = u32::try_from(INTERVAL_MIN.as_millis()).unwrap_or(u32::MAX);
    let pace = Pace { interval_ms, timeout_ms, rise: NonZeroU8::MIN, fall: NonZeroU8::MIN };
    let how = How { kind: asked.how.kind.clone(), manner: Some(Manner::Fixed(pace)) };
    Asked { address: asked.address, how: how.into() }
}

/// One instance that somebody waits for.
pub(super) struct Errand {
    reply: oneshot::Sender<Result<Vec<Found>, NotNow>>,
    waiting: Vec<Waiting>,
    found: Vec<Found>,
}

/// One who looks.
struct Waiting {
    /// As the instance's panel names it.
    vantage: Vantage,
    /// The agent and its session; `None`: our own engine.
    agent: Option<(Name, u64)>,
    /// The question.
    key: u64,
}

impl Waiting {
    fn found(&self, Finding { health, reason, rtt_ns, .. }: Finding) -> Found {
        Found { vantage: self.vantage.clone(), health, reason, rtt_ns }
    }
}

impl<E: Probing, V: Vantages> Prober<E, V> {
    pub(super) fn on_order(&mut self, registry: &Registry, Order { key, reply }: Order) {
        // Whoever does not wait any more has gone already: that is no trouble of ours.
        let refuse = |reply: oneshot::Sender<_>, why| drop(reply.send(Err(why)));
        let view = registry.snapshot().service(&key.0);
        let Some((view, instance)) = view.as_ref().and_then(|view| Some((view, view.instance(&key.1)?))) else {
            return refuse(reply, NotNow::NoInstance);
        };
        if self.errands.len() >= ERRANDS_MAX {
            return refuse(reply, NotNow::Busy);
        }
        let ours = self.keeper.hurry(&key).map(|key| Waiting { vantage: Vantage::Registry, agent: None, key });
        let panel = view.panel(&instance.record);
        let named = |agent: &Name| {
            let means = |v: &&Vantage| matches!(v, Vantage::Agent(name) if answers_to(agent, name));
            let named = panel.as_ref().and_then(|panel| panel.vantages().iter().find(means));
            named.cloned().unwrap_or_else(|| Vantage::Agent(agent.clone()))
        };
        let posts = self.posts.iter_mut().filter_map(|(agent, post)| {
            let key = post.keeper.hurry(&key)?;
            Some(Waiting { vantage: named(agent), agent: Some((agent.clone(), post.session)), key })
        });
        let waiting: Vec<Waiting> = ours.into_iter().chain(posts).collect();
        if waiting.is_empty() {
            let elsewhere = self.shares.keeper(&key.1).filter(|_| self.is_on && !self.shares.is_ours(&key.1));
            let why = elsewhere.map_or(NotNow::Nobody, |member| NotNow::Elsewhere(member.to_owned()));
            return refuse(reply, why);
        }
        self.errands.push(Errand { reply, waiting, found: Vec::new() });
    }

    /// Answers those whose instance has been looked at by all. The registry has heard the news before.
    pub(super) fn settle(&mut self) {
        // Whatever is asked out of turn is asked for an errand.
        if self.errands.is_empty() {
            return;
        }
        let done: HashMap<u64, Finding> = self.keeper.take_done();
        let mut of_posts: HashMap<Name, HashMap<u64, Finding>> = HashMap::new();
        for (agent, post) in &mut self.posts {
            let done = post.keeper.take_done();
            if !done.is_empty() {
                of_posts.insert(agent.clone(), done);
            }
        }
        let gone = Finding { health: Health::Unknown, reason: Reason::AgentGone, rtt_ns: 0, due: None };
        let posts = &self.posts;
        let finding = |waiting: &Waiting| match &waiting.agent {
            None => done.get(&waiting.key).copied(),
            Some((agent, session)) => match posts.get(agent).filter(|post| post.session == *session) {
                None => Some(gone),
                Some(_) => of_posts.get(agent).and_then(|done| done.get(&waiting.key)).copied(),
            },
        };
        for errand in &mut self.errands {
            let found = &mut errand.found;
            errand.waiting.retain(|waiting| match finding(waiting) {
                Some(finding) => {
                    found.push(waiting.found(finding));
                    false
                }
                None => true,
            });
        }
        for errand in self.errands.extract_if(.., |errand| errand.waiting.is_empty()) {
            drop(errand.reply.send(Ok(errand.found)));
        }
    }
}
