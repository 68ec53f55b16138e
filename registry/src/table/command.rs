//! What can be asked of the table, what comes of it, and why it may say no.

use super::ClientId;
use super::edits::{InstanceEdit, Onto, ServiceEdit};
use crate::health::{Health, HealthRecord, Reason};
use crate::model::{Cluster, Instance, InstanceId, Invalid, Metadata, Name, ServiceKey, ServiceMeta, Vantage};
use crate::panel::Ballot;
use crate::selector::service::ServiceSelector;
use ringspan_engine::time::Instant;
use std::sync::Arc;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Put an instance in, or put this record in the place of the one with its id.
    Register {
        /// Into which service; it comes to be if it is not there.
        service: ServiceKey,
        /// The whole record. Its vantage is the registry.
        instance: Instance,
    },
    /// Take an instance out. One that is not there is no error.
    Deregister {
        /// Out of which service.
        service: ServiceKey,
        /// Which one.
        id: InstanceId,
        /// Refuse if it is of the other kind.
        ephemeral: Option<bool>,
    },
    /// Change parts of a record.
    Update {
        /// Of which service.
        service: ServiceKey,
        /// Of which instance.
        id: InstanceId,
        /// What to change.
        patch: Patch,
    },
    /// Configure a service.
    PutService {
        /// Which one.
        service: ServiceKey,
        /// New threshold; `None` leaves it.
        protect_threshold: Option<f64>,
        /// New metadata; `None` leaves it.
        metadata: Option<Metadata>,
        /// New selector; `None` leaves it.
        selector: Option<ServiceSelector>,
        /// Whether it must be new (`true`) or must be there already (`false`).
        create: bool,
    },
    /// Forget a service's settings. Refused while it has instances.
    DeleteService {
        /// Which one.
        service: ServiceKey,
    },
    /// Configure a cluster of a service that is there.
    PutCluster {
        /// Of which service.
        service: ServiceKey,
        /// Which cluster.
        cluster: Name,
        /// Its settings, whole.
        settings: Cluster,
    },
    /// Change parts of a service's settings, its clusters among them.
    EditService {
        /// Which one.
        service: ServiceKey,
        /// Whether it must be there, and what becomes of what is not named.
        onto: Onto,
        /// What to change.
        edit: ServiceEdit,
    },
    /// Change parts of an instance's record.
    EditInstance {
        /// Of which service.
        service: ServiceKey,
        /// Of which instance.
        id: InstanceId,
        /// What to change.
        edit: InstanceEdit,
    },
    /// Set one pair of the metadata of a service that is there, or of one of its clusters, and leave the rest.
    Steer {
        /// Which service.
        service: ServiceKey,
        /// Which cluster; `None`: the service itself.
        cluster: Option<Name>,
        /// The key: one of those that steer the registry.
        key: &'static str,
        /// `None`: take it out.
        value: Option<String>,
    },
    /// Set health by hand. Refused where a checker works.
    SetHealth {
        /// Of which service.
        service: ServiceKey,
        /// Of which instance.
        id: InstanceId,
        /// The verdict.
        healthy: bool,
    },
    /// A connected client has ephemeral instances: they live as long as it does. One that somebody else had at the same
    /// address is this client's from now on.
    ClientPublish {
        /// Which connection. It must not be one that [`Command::ClientGone`] has ended.
        client: ClientId,
        /// Into which service; it comes to be if it is not there.
        service: ServiceKey,
        /// Whole records. Their vantage is the registry; `ephemeral` is taken to be set.
        instances: Vec<Instance>,
        /// Whether whatever else it has published in this service is withdrawn.
        only: bool,
    },
    /// A client takes an ephemeral instance out. One that is not there, or another client's by now, is no error.
    ClientWithdraw {
        /// Which connection.
        client: ClientId,
        /// Out of which service.
        service: ServiceKey,
        /// Which one.
        id: InstanceId,
    },
    /// A client's connection has ended: what it published, and nobody has taken over, is removed.
    ClientGone {
        /// Which connection.
        client: ClientId,
    },
    /// An ephemeral instance says that it lives.
    Beat {
        /// Of which service.
        service: ServiceKey,
        /// Which one.
        id: InstanceId,
    },
    /// The registry's prober has news. News of instances that it may not judge are ignored.
    Heard {
        /// In the order they came about.
        deltas: Vec<Delta>,
    },
    /// An agent has looked where the registry asked it to. Of an older session than the latest it is refused; what is
    /// said of instances of which it was not asked is ignored.
    Witnessed {
        /// Its name.
        agent: Name,
        /// Its session.
        session: u64,
        /// In the order they came about.
        deltas: Vec<Delta>,
    },
    /// Makes all instances of a service that nobody else owns persistent, or ephemeral.
    Convert {
        /// Which service.
        service: ServiceKey,
        /// What they are to be.
        ephemeral: bool,
    },
    /// Time has passed: look at ephemeral instances whose deadline has come.
    Tick {
        /// Look at no more than this many; [`Table::due`](super::Table::due) tells whether there are more.
        max: usize,
    },
    /// An agent has connected, and this is all it exposes: whatever else it did is gone.
    AgentUp {
        /// Its name.
        agent: Name,
        /// Its session: each connection has a higher one than those before it.
        session: u64,
        /// What it exposes.
        exposed: Vec<Exposed>,
    },
    /// An agent has news.
    AgentHeard {
        /// Its name.
        agent: Name,
        /// Its session. News of an older one than the latest are refused.
        session: u64,
        /// In the order they came about.
        deltas: Vec<Delta>,
    },
    /// An agent's session has ended: all it exposes is unknown now. If a newer session is there, nothing happens.
    AgentGone {
        /// Its name.
        agent: Name,
        /// The session that ended.
        session: u64,
    },
    /// An agent will not come back: what it exposed is removed.
    AgentForget {
        /// Its name.
        agent: Name,
    },
}

impl Command {
    /// Whether this can only change health, which is never stored: it need not wait for a disk.
    pub fn is_volatile(&self) -> bool {
        match self {
            Command::Beat { .. }
            | Command::Heard { .. }
            | Command::Tick { .. }
            | Command::AgentHeard { .. }
            | Command::Witnessed { .. }
            | Command::AgentGone { .. }
            | Command::SetHealth { .. } => true,
            Command::Register { .. }
            | Command::Deregister { .. }
            | Command::Update { .. }
            | Command::PutService { .. }
            | Command::DeleteService { .. }
            | Command::PutCluster { .. }
            | Command::EditService { .. }
            | Command::EditInstance { .. }
            | Command::Steer { .. }
            | Command::ClientPublish { .. }
            | Command::ClientWithdraw { .. }
            | Command::ClientGone { .. }
            | Command::Convert { .. }
            | Command::AgentUp { .. }
            | Command::AgentForget { .. } => false,
        }
    }
}

/// Parts of a record to change; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// 0 to 10 000.
    pub weight: Option<f64>,
    /// Whether clients may see it.
    pub enabled: Option<bool>,
    /// All of it, not a merge.
    pub metadata: Option<Metadata>,
}

/// One piece of news of an instance's health.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Of which service.
    pub service: ServiceKey,
    /// Of which instance.
    pub id: InstanceId,
    /// The belief.
    pub health: Health,
    /// Why.
    pub reason: Reason,
    /// The deciding probe's RTT, nanoseconds; 0 if there was none.
    pub rtt_ns: u64,
    /// When the deciding probe was due, on the registry's clock; `None` if that is not known.
    pub due: Option<Instant>,
}

/// One backend that an agent exposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Exposed {
    /// As which service.
    pub service: ServiceKey,
    /// Where, seen from the agent: an address or a name that the agent resolves.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
    /// 0 to 10 000.
    pub weight: f64,
    /// Free pairs.
    pub metadata: Metadata,
}

impl Exposed {
    /// The instance's id: an agent's backends are in the cluster that has its name.
    ///
    /// # Errors
    /// [`Invalid`] if the host or the port is none.
    pub fn id(&self, agent: &str) -> Result<InstanceId, Invalid> {
        InstanceId::new(agent, &self.host, self.port)
    }

    pub(super) fn instance(&self, agent: &Name) -> Result<Instance, Invalid> {
        let instance = Instance {
            weight: self.weight,
            // Whether it is well is for the agent to say; nobody else's word counts.
            claims_healthy: false,
            metadata: self.metadata.clone(),
            vantage: Vantage::Agent(agent.clone()),
            ..Instance::new(self.id(agent)?)
        };
        instance.check()?;
        Ok(instance)
    }
}

/// How much the table will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instances in all. Default 1 000 000: about 0.7 GB (measured: 70 MB for 100 000).
    pub instances_max: usize,
    /// Services in all. Default 200 000.
    pub services_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { instances_max: 1_000_000, services_max: 200_000 }
    }
}

/// All that is known of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is.
    pub record: Arc<Instance>,
    /// How it is.
    pub health: HealthRecord,
    /// What each vantage found, if others check it than would without being asked.
    pub ballot: Option<Arc<Ballot>>,
    /// When it last beat, if it is ephemeral; when it came, otherwise.
    pub(super) beat: Instant,
    /// When to look at it again; only if it lives by beats.
    pub(super) look_again: Option<Instant>,
    /// Whose connection it lives by; `None`: nobody's, by beats or for ever.
    pub(super) client: Option<ClientId>,
    /// Another member of the cluster listens for it: see `elsewhere`.
    pub(super) away: bool,
}

/// All that one command changed, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Before and after of each thing.
    pub list: Vec<Change>,
}

impl Entry {
    /// Whose connection the instance lives by; `None`: nobody's, it lives by beats or for ever.
    pub fn client(&self) -> Option<ClientId> {
        self.client
    }
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether something changed that outlives the process: it must be on disk before anybody hears of it.
    pub fn is_durable(&self) -> bool {
        self.list.iter().any(Change::is_durable)
    }
}

/// One thing's before and after.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An instance came, went, or has a new record.
    Instance {
        /// Of which service.
        service: ServiceKey,
        /// Which one.
        id: InstanceId,
        /// `None`: it came.
        before: Option<Entry>,
        /// `None`: it went.
        after: Option<Entry>,
    },
    /// A service was configured, or its settings forgotten.
    Service {
        /// Which one.
        service: ServiceKey,
        /// `None`: it had none.
        before: Option<Arc<ServiceMeta>>,
        /// `None`: forgotten.
        after: Option<Arc<ServiceMeta>>,
    },
    /// An instance's health is another, or is so for another reason.
    Health {
        /// Of which service.
        service: ServiceKey,
        /// Of which instance.
        id: InstanceId,
        /// What was believed.
        before: HealthRecord,
        /// What is believed.
        after: HealthRecord,
    },
    /// What the vantages of an instance found is another, or others are asked. What is believed of it may be the same.
    Votes {
        /// Of which service.
        service: ServiceKey,
        /// Of which instance.
        id: InstanceId,
        /// `None`: nobody was asked.
        before: Option<Arc<Ballot>>,
        /// `None`: nobody is asked any more.
        after: Option<Arc<Ballot>>,
    },
    /// An agent connected, left or was forgotten.
    Agent {
        /// Its name.
        agent: Name,
        /// Session, and whether connected; `None`: it was not known.
        before: Option<(u64, bool)>,
        /// Session, and whether connected; `None`: forgotten.
        after: Option<(u64, bool)>,
    },
}

impl Change {
    /// Whether this must be on disk before anybody hears of it.
    pub fn is_durable(&self) -> bool {
        match self {
            Change::Instance { before, after, .. } => {
                let stored = |e: &Option<Entry>| e.as_ref().is_some_and(|e| !e.record.ephemeral);
                stored(before) || stored(after)
            }
            Change::Service { .. } => true,
            Change::Health { .. } | Change::Votes { .. } | Change::Agent { .. } => false,
        }
    }
}

/// Why a command was not carried out. The message is what the caller reads.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A value that cannot be.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The service has instances of the other kind.
    #[error(
        "Current service {} is {} service, can't register {} instance. Deregister its instances first, convert them \
         (PUT /api/v1/services/.../kind), or use another service name.",
        service.grouped(), kind(*ephemeral), kind(!*ephemeral)
    )]
    Kind {
        /// Which service.
        service: ServiceKey,
        /// Of which kind its instances are.
        ephemeral: bool,
    },
    /// A deregistration named the other kind.
    #[error("the instance is {}, not removed; deregister it with ephemeral={ephemeral}", kind(*ephemeral))]
    WrongKind {
        /// Of which kind it is.
        ephemeral: bool,
    },
    /// Whoever asked may not change this.
    #[error("authorization failed! No permission to write in namespace {namespace}")]
    Denied {
        /// Where.
        namespace: Name,
    },
    /// The instance is an agent's.
    #[error("the instance belongs to agent {agent}; change what that agent exposes instead")]
    OfAgent {
        /// Whose.
        agent: Name,
    },
    /// There is no such service.
    #[error("service not found, namespace: {}, serviceName: {}", service.namespace(), service.grouped())]
    NoService {
        /// Which one.
        service: ServiceKey,
    },
    /// There is no such instance.
    #[error("instance not found, serviceName: {}, instance: {id}", service.grouped())]
    NoInstance {
        /// Of which service.
        service: ServiceKey,
        /// Which one.
        id: InstanceId,
    },
    /// There is such a service already.
    #[error("specified service already exists, serviceName: {}", service.grouped())]
    ServiceExists {
        /// Which one.
        service: ServiceKey,
    },
    /// The service still has instances.
    #[error("Service {} is not empty, can't be delete. Please unregister instance first", service.grouped())]
    NotEmpty {
        /// Which one.
        service: ServiceKey,
    },
    /// A checker works on the instance's cluster, or its beats do.
    #[error("health check is still working on {id}; only where the cluster's checker is NONE can health be set")]
    StillChecked {
        /// Which instance.
        id: InstanceId,
    },
    /// The agent has a newer session.
    #[error("session {session} of agent {agent} is over, {latest} is the latest")]
    StaleSession {
        /// Which agent.
        agent: Name,
        /// The session that spoke.
        session: u64,
        /// The latest one.
        latest: u64,
    },
    /// The table is full.
    #[error("the registry holds {max} {what}, which is all it may; deregister some or raise the limit")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it may hold.
        max: usize,
    },
    /// Nothing was written, so nothing was changed.
    #[error("not stored, and so not done: {0}. Free space in the data directory or mend the disk, then try again")]
    Store(String),
    /// The cluster's store does not answer, or others were faster again and again.
    #[error("not stored for sure: {0}. It will show whether it was; try again")]
    Unavailable(String),
    /// Too many commands wait.
    #[error("the registry is busy: {waiting} commands wait; try again")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// The registry has been stopped.
    #[error("the registry is stopping")]
    Stopped,
}

const fn kind(ephemeral: bool) -> &'static str {
    if ephemeral { "ephemeral" } else { "persistent" }
}
