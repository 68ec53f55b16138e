//! The registry as the rest of the process sees it: commands in, acknowledged when stored; snapshots and changes out.
//! Promise: an acknowledged change is on disk. Health, beats and reads never wait for the disk.
//! Uses `table`, `store`, `snapshot`. One thread owns the table; a second one waits for the disk.
//!
//! ```text
//! submit ─► records (bounded) ──► apply ─► disk: all that came during one commit are the next ─┬─► publish ─► acknowledge
//!              │                     │                                                          └─► failed: revert, refuse
//!              └─► volatile (bounded) ─► apply ─► publish                                            (what came on top: anew)
//! ```
//! Records are applied while the disk is busy with those before them, so that its next commit waits for nobody (group
//! commit); they are published when they are stored. A full queue makes the submitter wait, up to [`SUBMIT_WAIT_MAX`], then it
//! is refused as busy.

mod clustered;
mod disk;
mod news;
#[cfg(test)]
mod tests;
mod writer;

use crate::access;
use crate::cluster::etcd::{Op, Txn};
use crate::cluster::{ClusterStats, Options as ClusterOptions, Shares};
use crate::model::{Name, cluster_name};
use crate::snapshot::Snapshot;
use crate::store::{OpenError, Store, StoreStats};
use crate::table::{Changes, Command, Delta, Exposed, Limits, Refusal, Table};
use ringspan_engine::time::Instant;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How long a submitter waits for room in a full queue before it is told that the registry is busy.
pub const SUBMIT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Commands that may wait in each of the two queues: a second's worth at ten times the rate that a disk takes them.
const QUEUE_LEN: usize = 16_384;
/// Messages that a slow subscriber may lag behind; then it is told so and reads the snapshot anew.
const SUBSCRIPTION_LEN: usize = 4_096;

/// How to open a registry.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The file of persistent records; `None`: in memory only, for tests and demonstrations.
    pub path: Option<PathBuf>,
    /// How much it will hold.
    pub limits: Limits,
    /// A member of a cluster: records are in etcd, and `path` is not used.
    pub cluster: Option<ClusterOptions>,
}

/// A registry. Clones are handles to the same one.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    records: mpsc::Sender<Message>,
    volatile: mpsc::Sender<Message>,
    changes: broadcast::Sender<Arc<Changes>>,
    snapshot: Arc<Snapshot>,
    store: Arc<StoreStats>,
    clock: Clock,
    membership: Option<clustered::Membership>,
    checks: watch::Sender<bool>,
    running: Mutex<Option<Running>>,
}

/// The writer's thread. It ends when `stop` is dropped.
struct Running {
    stop: oneshot::Sender<Infallible>,
    thread: std::thread::JoinHandle<()>,
}

/// A command on its way to the table, and where its submitter waits.
struct Message {
    command: Command,
    reply: oneshot::Sender<Result<Arc<Changes>, Refusal>>,
}

/// One clock for a registry: monotonic inside, wall time for people.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: std::time::Instant,
    start_unix_ms: u64,
}

impl Clock {
    fn start() -> Clock {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: std::time::Instant::now(), start_unix_ms: u64::try_from(unix.as_millis()).unwrap_or(0) }
    }

    fn now(self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    fn unix_ms(self, at: Instant) -> u64 {
        self.start_unix_ms + at.ns() / 1_000_000
    }
}

impl Registry {
    /// Opens the store, loads what is in it, and starts the registry's two threads. Needs no runtime.
    ///
    /// # Errors
    /// [`OpenError`] if the file cannot be opened or read, or is another process's.
    pub fn open(options: &Options) -> Result<Registry, OpenError> {
        if let Some(cluster) = &options.cluster {
            return Registry::join(cluster, options.limits);
        }
        let store = options.path.as_deref().map(Store::open).transpose()?;
        Registry::with_store(options.limits, store)
    }

    fn join(cluster: &ClusterOptions, limits: Limits) -> Result<Registry, OpenError> {
        let clock = Clock::start();
        let (changes, _) = broadcast::channel(SUBSCRIPTION_LEN);
        let (records, records_rx) = mpsc::channel(QUEUE_LEN);
        let (volatile, volatile_rx) = mpsc::channel(QUEUE_LEN);
        let (stop, stopped) = oneshot::channel();
        let queues = (records_rx, volatile_rx);
        let started = clustered::start(cluster, limits, clock, changes.clone(), queues, stopped)?;
        let clustered::Started { snapshot, membership, thread } = started;
        let running = Mutex::new(Some(Running { stop, thread }));
        let (store, membership) = (Arc::default(), Some(membership));
        let checks = watch::Sender::new(true);
        let inner = Inner { records, volatile, changes, snapshot, store, clock, membership, checks, running };
        Ok(Registry { inner: Arc::new(inner) })
    }

    fn with_store(limits: Limits, store: Option<Store>) -> Result<Registry, OpenError> {
        let clock = Clock::start();
        let mut table = Table::new(limits);
        if let Some(store) = &store {
            store.load(clock.now(), &mut table)?;
        }
        let snapshot = Arc::new(Snapshot::of(&table));
        let (changes, _) = broadcast::channel(SUBSCRIPTION_LEN);
        let (records, records_rx) = mpsc::channel(QUEUE_LEN);
        let (volatile, volatile_rx) = mpsc::channel(QUEUE_LEN);
        let stats = store.as_ref().map(Store::stats).unwrap_or_default();
        let writer = writer::Writer::new(table, snapshot.clone(), changes.clone(), clock, store);
        let (stop, stopped) = oneshot::channel();
        let thread = writer.spawn(records_rx, volatile_rx, stopped).map_err(OpenError::Thread)?;
        let running = Mutex::new(Some(Running { stop, thread }));
        let (store, membership, checks) = (stats, None, watch::Sender::new(true));
        let inner = Inner { records, volatile, changes, snapshot, store, clock, membership, checks, running };
        Ok(Registry { inner: Arc::new(inner) })
    }

    /// Carries out a command. When this returns `Ok`, what changed is on disk (if it is such that outlives the process)
    /// and readers see it. If the future is dropped after it was first polled, the command may be carried out all the
    /// same.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing has changed then. [`Refusal::Denied`] if whoever has the request in hand (the
    /// [`Actor`](crate::access::Actor) that this is called by) may not write in the command's namespace.
    pub async fn submit(&self, command: Command) -> Result<Arc<Changes>, Refusal> {
        let noted = access::guarded(&command)?;
        let outcome = self.carry_out(command).await;
        if let Some(noted) = noted {
            noted.end(&outcome);
        }
        outcome
    }

    async fn carry_out(&self, command: Command) -> Result<Arc<Changes>, Refusal> {
        let queue = if command.is_volatile() { &self.inner.volatile } else { &self.inner.records };
        let (reply, answer) = oneshot::channel();
        let message = Message { command, reply };
        match queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Err(Refusal::Stopped),
            Err(TrySendError::Full(message)) => {
                match tokio::time::timeout(SUBMIT_WAIT_MAX, queue.send(message)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_closed)) => return Err(Refusal::Stopped),
                    Err(_elapsed) => return Err(Refusal::Busy { waiting: queue.max_capacity() }),
                }
            }
        }
        answer.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// What there is. Costs nothing to hold.
    pub fn snapshot(&self) -> &Snapshot {
        &self.inner.snapshot
    }

    /// Every change from now on, in order, after it was stored and published; those of commands that were stored together
    /// may come together. Who lags more than 4096 messages behind is
    /// told so ([`broadcast::error::RecvError::Lagged`]) and should read the snapshot anew.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Changes>> {
        self.inner.changes.subscribe()
    }

    /// Who probes what, now and whenever it changes. Without a cluster everything is ours for ever.
    pub fn shares(&self) -> watch::Receiver<Arc<Shares>> {
        match &self.inner.membership {
            Some(membership) => membership.shares.clone(),
            None => watch::Sender::new(Arc::new(Shares::default())).subscribe(),
        }
    }

    /// Whether anything is checked at all, now and whenever that is switched.
    pub fn checks(&self) -> watch::Receiver<bool> {
        self.inner.checks.subscribe()
    }

    /// Switches all checks of this process: off, nobody is asked, and what is believed stands. They are on at first.
    pub fn switch_checks(&self, on: bool) {
        self.inner.checks.send_replace(on);
    }

    /// The members of the cluster that live: names, and where their HTTP APIs are. Empty without a cluster.
    pub fn members(&self) -> Vec<(String, String)> {
        self.inner.membership.as_ref().map(|m| m.members.borrow().clone()).unwrap_or_default()
    }

    /// This member's name; `None` without a cluster.
    pub fn member(&self) -> Option<&str> {
        self.inner.membership.as_ref().map(|m| &*m.me)
    }

    /// How this member gets on with its etcd; `None` without a cluster.
    pub fn cluster_stats(&self) -> Option<&ClusterStats> {
        self.inner.membership.as_ref().map(|m| m.etcd.stats())
    }

    /// When this returns `Ok`, the snapshot has every change that any member had acknowledged before the call: a
    /// linearizable read, at the price of a round trip to etcd. Without a cluster it always has.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] if etcd does not answer in time.
    pub async fn fresh(&self) -> Result<(), Refusal> {
        let Some(membership) = &self.inner.membership else { return Ok(()) };
        let follow = async {
            // A write of ours is behind everything that was acknowledged before it, and the watch brings it in its turn.
            let write = Op::put(membership.barrier.clone(), Vec::new(), 0);
            let answer = membership.etcd.txn(Txn { compare: Vec::new(), success: vec![write] }).await;
            let answer = answer.map_err(|e| Refusal::Unavailable(format!("etcd: {}", e.message())))?;
            let revision = answer.header.map_or(0, |h| h.revision);
            let mut applied = membership.applied.clone();
            applied.wait_for(|applied| *applied >= revision).await.map_err(|_closed| Refusal::Stopped)?;
            Ok(())
        };
        match tokio::time::timeout(SUBMIT_WAIT_MAX, follow).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Refusal::Unavailable("the watch of etcd is behind".into())),
        }
    }

    /// An agent has connected: `session` (1 or more, higher than its earlier ones) exposes exactly `exposed` as
    /// instances of the cluster that has the agent's name. Their health is unknown until [`Registry::agent_health`].
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the name, an address, a weight or metadata cannot be; [`Refusal::StaleSession`];
    /// [`Refusal::TooMany`]; [`Refusal::Store`] if what it exposes is new and cannot be stored.
    pub async fn agent_up(&self, agent: &str, session: u64, exposed: Vec<Exposed>) -> Result<(), Refusal> {
        let agent = cluster_name(agent)?;
        self.submit(Command::AgentUp { agent, session, exposed }).await.map(drop)
    }

    /// An agent has news of its backends' health: a snapshot after connecting, changes from then on. News of what it
    /// does not expose are ignored.
    ///
    /// # Errors
    /// [`Refusal::StaleSession`] if the session is not the agent's latest, or is over.
    pub async fn agent_health(&self, agent: &str, session: u64, deltas: Vec<Delta>) -> Result<(), Refusal> {
        let agent = cluster_name(agent)?;
        self.submit(Command::AgentHeard { agent, session, deltas }).await.map(drop)
    }

    /// An agent's session has ended: its backends stay registered, and nobody knows how they are. Nothing happens if a
    /// newer session is there.
    ///
    /// # Errors
    /// Only [`Refusal::Busy`] or [`Refusal::Stopped`].
    pub async fn agent_gone(&self, agent: &str, session: u64) -> Result<(), Refusal> {
        let agent = Name::from(agent);
        self.submit(Command::AgentGone { agent, session }).await.map(drop)
    }

    /// An agent will not come back (revoked, removed): its backends are deregistered.
    ///
    /// # Errors
    /// [`Refusal::Store`] if that cannot be stored.
    pub async fn agent_forget(&self, agent: &str) -> Result<(), Refusal> {
        self.submit(Command::AgentForget { agent: Name::from(agent) }).await.map(drop)
    }

    /// Now, on the registry's own clock.
    pub fn now(&self) -> Instant {
        self.inner.clock.now()
    }

    /// A point on the registry's clock as milliseconds since 1970.
    pub fn unix_ms(&self, at: Instant) -> u64 {
        self.inner.clock.unix_ms(at)
    }

    /// What the store has done so far.
    pub fn store_stats(&self) -> &StoreStats {
        &self.inner.store
    }

    /// Takes no more commands, finishes the batch that is under way, closes the store, and joins the threads. Commands
    /// that still wait are refused as [`Refusal::Stopped`]. Blocks for as long as the disk does. A second call does
    /// nothing.
    pub fn stop(&self) {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { stop, thread }) = running else { return };
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("the registry's writer panicked");
        }
    }
}
