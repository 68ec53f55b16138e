//! The writer of a clustered registry: the same table, with etcd in the place of the disk.
//!
//! ```text
//!                        ┌────────────── others were faster: revert, wait for what they did ◄─────┐
//!                        ▼                                                                        │
//! records ─► batch ─► applied ─► sending ─► landing: wait until the watch has brought it ─► published, acknowledged
//!                                   └─► no answer: revert, refuse. If it arrived all the same, the watch will say so
//! ```
//! Nobody is told that there is nothing to do (it is gone already, it is there like that) for what this member knew: it may be
//! behind. A batch with such a command writes a barrier first, follows the watch up to it, and is applied again.
//! News from the watch wait while a batch is being sent, so that a revert meets the table as the batch left it. Health goes
//! on all the time, and to the others in batches of its own.

use super::writer::{Batch, Waiting, Writer};
use super::{Clock, Message};
use crate::cluster::etcd::{Etcd, Op, Txn};
use crate::cluster::feed::{self, Feed, News};
use crate::cluster::keys::{self, StoredMember};
use crate::cluster::stats::count;
use crate::cluster::{Cluster, OPS_MAX, Options, Shares};
use crate::snapshot::Snapshot;
use crate::store::OpenError;
use crate::table::{Changes, Command, Limits, Refusal, Table};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

/// How long a start waits for an etcd that answers.
const START_TIME_MAX: Duration = Duration::from_secs(10);
/// A transaction that etcd has not answered by then is given up: before the client's own patience of 10 s is.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);
/// Others were faster so many times in a row: a client is told to try again.
const ATTEMPTS_MAX: u32 = 16;
/// Longest wait for news of those who were faster.
const FOLLOW_TIME_MAX: Duration = Duration::from_millis(100);
/// Verdicts are written this often at most.
const FLUSH: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(100);
/// How often what failed without anybody waiting for it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
const TICK_LEN: usize = 16;
const INBOX_LEN: usize = 1_024;

/// What the rest of the registry needs of a member.
#[derive(Clone)]
pub(super) struct Membership {
    pub(super) etcd: Arc<Etcd>,
    pub(super) applied: watch::Receiver<i64>,
    pub(super) shares: watch::Receiver<Arc<Shares>>,
    /// What is written to find out how far the others are.
    pub(super) barrier: Vec<u8>,
    pub(super) members: watch::Receiver<Vec<(String, String)>>,
    /// This member's name.
    pub(super) me: String,
}

/// A thread that has read everything.
pub(super) struct Started {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) membership: Membership,
    pub(super) thread: JoinHandle<()>,
}

/// Reads everything, joins, and starts the writer's thread. Blocks until etcd has answered.
pub(super) fn start(
    options: &Options,
    limits: Limits,
    clock: Clock,
    changes: broadcast::Sender<Arc<Changes>>,
    (records, volatile): (mpsc::Receiver<Message>, mpsc::Receiver<Message>),
    stop: oneshot::Receiver<Infallible>,
) -> Result<Started, OpenError> {
    let options = options.clone();
    let (report, reported) = std_mpsc::sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
    let thread = std::thread::Builder::new().name("registry".into()).spawn(move || {
        runtime.block_on(async move {
            let (member, snapshot, membership) = match Member::join(&options, limits, clock, changes).await {
                Ok(joined) => joined,
                Err(problem) => {
                    let _gone = report.send(Err(problem));
                    return;
                }
            };
            if report.send(Ok((snapshot, membership))).is_ok() {
                member.run(records, volatile, stop).await;
            }
        });
    });
    let thread = thread.map_err(OpenError::Thread)?;
    match reported.recv() {
        Ok(Ok((snapshot, membership))) => Ok(Started { snapshot, membership, thread }),
        Ok(Err(problem)) => Err(OpenError::Etcd { problem }),
        Err(_) => Err(OpenError::Etcd { problem: "the thread has ended".into() }),
    }
}

enum Sent {
    /// It is in etcd, as of this revision.
    Done(i64),
    /// It is not: something it rests on has changed, at this revision or before.
    Conflict(i64),
    /// Nobody knows.
    Failed(String),
    /// A barrier was written; what is so once the watch has come so far, is so.
    Barrier(i64),
}

enum Stage {
    Sending(Pin<Box<dyn Future<Output = Sent>>>),
    /// Until the watch has come so far.
    Landing(i64, Instant),
    /// Reverted; until the watch has come so far, or for a moment.
    Following {
        revision: i64,
        until: Instant,
    },
    /// Reverted; until the watch has come to the barrier, or in vain.
    Confirming {
        revision: i64,
        until: Instant,
    },
}

struct UnderWay {
    batch: Batch,
    stage: Stage,
    attempts: u32,
    /// The table has followed to a barrier that was written after all of the batch was asked for.
    confirmed: bool,
}

struct Member {
    writer: Writer,
    cluster: Cluster,
    etcd: Arc<Etcd>,
    feed: Feed,
    under_way: Option<UnderWay>,
    /// Taken from the queue and not yet in a batch.
    inbox: VecDeque<Message>,
    /// When what nobody waits for may be tried again.
    quiet_until: Instant,
    /// What has to be done and could not be.
    owed: Vec<Command>,
    members: watch::Sender<Vec<(String, String)>>,
    barrier: Vec<u8>,
    /// Which shards are being written; what came of it.
    flushing: Option<(Vec<usize>, oneshot::Receiver<bool>)>,
    leave: oneshot::Sender<()>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Member {
    async fn join(
        options: &Options,
        limits: Limits,
        clock: Clock,
        changes: broadcast::Sender<Arc<Changes>>,
    ) -> Result<(Member, Arc<Snapshot>, Membership), String> {
        let etcd = Arc::new(Etcd::new(&options.etcd)?);
        let deadline = Instant::now() + START_TIME_MAX;
        let prefix = options.prefix.as_bytes();
        let (revision, kvs) = loop {
            match etcd.all(prefix).await {
                Ok(all) => break all,
                Err(status) if Instant::now() > deadline => {
                    return Err(format!("{:?}: {}", status.code(), status.message()));
                }
                Err(status) => tracing::debug!(%status, "etcd: cannot read everything yet"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let run = clock.start_unix_ms ^ (u64::from(std::process::id()) << 44);
        let mut cluster = Cluster::new(options, run);
        let mut table = Table::new(limits);
        cluster.reach(revision);
        cluster.take_all(clock.now(), &mut table, kvs);
        let snapshot = Arc::new(Snapshot::of(&table));
        let feed = feed::watch(etcd.clone(), prefix.to_vec(), revision);
        let (leave, left) = oneshot::channel();
        let member = (options.member.clone(), StoredMember { address: options.address.clone(), run });
        let keeper = tokio::spawn(feed::keep(etcd.clone(), prefix.to_vec(), member, left));
        let members = watch::Sender::new(Vec::new());
        let membership = Membership {
            etcd: etcd.clone(),
            applied: cluster.applied().subscribe(),
            shares: cluster.shares().subscribe(),
            barrier: [prefix, &keys::barrier_key(&options.member)].concat(),
            members: members.subscribe(),
            me: options.member.clone(),
        };
        let writer = Writer::new(table, snapshot.clone(), changes, clock, None);
        let member = Member {
            writer,
            cluster,
            etcd,
            feed,
            under_way: None,
            inbox: VecDeque::new(),
            quiet_until: Instant::now(),
            owed: Vec::new(),
            members,
            barrier: membership.barrier.clone(),
            flushing: None,
            leave,
            keeper,
        };
        Ok((member, snapshot, membership))
    }

    async fn run(
        mut self,
        mut records: mpsc::Receiver<Message>,
        mut volatile: mpsc::Receiver<Message>,
        mut stop: oneshot::Receiver<Infallible>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut flush = tokio::time::interval(FLUSH);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut news, mut fresh) = (Vec::new(), Vec::new());
        let mut stopping = false;
        while !stopping || self.under_way.is_some() {
            let is_sending = matches!(self.under_way, Some(UnderWay { stage: Stage::Sending(_), .. }));
            let following = match &self.under_way {
                Some(UnderWay { stage: Stage::Following { until, .. } | Stage::Confirming { until, .. }, .. }) => {
                    Some(*until)
                }
                _ => None,
            };
            let is_idle = self.under_way.is_none() && self.inbox.is_empty();
            tokio::select! {
                sent = sent(&mut self.under_way), if is_sending => self.on_sent(sent),
                some = self.feed.news.recv(), if !is_sending => match some {
                    Some(some) => self.on_news(some),
                    None => return,
                },
                () = tokio::time::sleep_until(following.unwrap_or_else(Instant::now)), if following.is_some() => {
                    self.on_waited();
                }
                _ = &mut stop, if !stopping => stopping = true,
                _ = volatile.recv_many(&mut news, INBOX_LEN), if !stopping => self.on_volatile(&mut news),
                _ = records.recv_many(&mut fresh, INBOX_LEN), if is_idle && !stopping => self.inbox.extend(fresh.drain(..)),
                _ = tick.tick() => self.on_tick(),
                _ = flush.tick() => self.on_flush(),
            }
            if self.under_way.is_none() && !stopping && !self.inbox.is_empty() {
                self.begin();
            }
        }
        drop((records, volatile));
        drop(self.leave);
        if tokio::time::timeout(SEND_TIME_MAX, self.keeper).await.is_err() {
            tracing::info!("etcd does not answer; this member's lease runs out by itself");
        }
    }

    /// Takes as many commands as fit into a transaction, and sends what they change.
    fn begin(&mut self) {
        let now = self.writer.clock.now();
        let (mut batch, mut cost) = (Batch::new(), 0);
        while cost < OPS_MAX
            && batch.len() < OPS_MAX
            && let Some(Message { command, reply }) = self.inbox.pop_front()
        {
            let outcome = self.writer.table.apply(now, command.clone()).map(Arc::new);
            cost += outcome.as_ref().map_or(0, |changes| Cluster::cost(changes));
            batch.push(Waiting { command, outcome, reply });
        }
        self.send(batch, 1, false);
    }

    fn send(&mut self, batch: Batch, attempts: u32, confirmed: bool) {
        if !confirmed && batch.iter().any(is_nothing_to_do) {
            return self.confirm(batch, attempts);
        }
        let changes = batch.iter().filter_map(|w| w.outcome.as_deref().ok());
        let txns = self.cluster.plan(&self.writer.table, changes);
        if txns.is_empty() {
            return self.settle(batch);
        }
        let etcd = self.etcd.clone();
        let sending = async move {
            match tokio::time::timeout(SEND_TIME_MAX, send_all(&etcd, txns)).await {
                Ok(sent) => sent,
                Err(_elapsed) => Sent::Failed("etcd does not answer".into()),
            }
        };
        self.under_way = Some(UnderWay { batch, stage: Stage::Sending(Box::pin(sending)), attempts, confirmed });
    }

    /// See the module.
    fn confirm(&mut self, batch: Batch, attempts: u32) {
        let (etcd, write) = (self.etcd.clone(), Op::put(self.barrier.clone(), Vec::new(), 0));
        let writing = async move {
            let txn = etcd.txn(Txn { compare: Vec::new(), success: vec![write] });
            match tokio::time::timeout(SEND_TIME_MAX, txn).await {
                Ok(Ok(answer)) => Sent::Barrier(answer.header.map_or(0, |h| h.revision)),
                Ok(Err(status)) => Sent::Failed(format!("etcd: {}", status.message())),
                Err(_elapsed) => Sent::Failed("etcd does not answer".into()),
            }
        };
        self.under_way = Some(UnderWay { batch, stage: Stage::Sending(Box::pin(writing)), attempts, confirmed: false });
    }

    fn on_sent(&mut self, sent: Sent) {
        let Some(UnderWay { mut batch, attempts, confirmed, .. }) = self.under_way.take() else { return };
        match sent {
            Sent::Done(revision) => {
                let stage = Stage::Landing(revision, Instant::now());
                self.under_way = Some(UnderWay { batch, stage, attempts, confirmed });
                self.go_on();
            }
            Sent::Barrier(revision) => {
                self.revert(&batch);
                let stage = Stage::Confirming { revision, until: Instant::now() + SEND_TIME_MAX };
                self.under_way = Some(UnderWay { batch, stage, attempts, confirmed: true });
                self.go_on();
            }
            Sent::Conflict(revision) if attempts < ATTEMPTS_MAX => {
                count(&self.etcd.stats().conflicts);
                tracing::debug!(commands = batch.len(), attempts, "others were faster; again");
                self.revert(&batch);
                let until = Instant::now() + FOLLOW_TIME_MAX;
                let stage = Stage::Following { revision, until };
                self.under_way = Some(UnderWay { batch, stage, attempts, confirmed });
                self.go_on();
            }
            Sent::Conflict(_) => self.refuse(&mut batch, "others change the same things all the time"),
            Sent::Failed(problem) => {
                tracing::warn!(commands = batch.len(), problem, "etcd did not store; what needs storing is refused");
                self.refuse(&mut batch, &problem);
            }
        }
    }

    fn revert(&mut self, batch: &Batch) {
        for changes in batch.iter().rev().filter_map(|w| w.outcome.as_ref().ok()) {
            self.writer.table.revert(changes);
        }
    }

    fn refuse(&mut self, batch: &mut Batch, problem: &str) {
        self.revert(batch);
        self.refuse_reverted(batch, problem);
    }

    fn refuse_reverted(&mut self, batch: &mut Batch, problem: &str) {
        self.quiet_until = Instant::now() + AGAIN;
        for waiting in batch.drain(..) {
            // Connections that have ended do not come back to ask again.
            if matches!(waiting.command, Command::ClientGone { .. } | Command::AgentForget { .. }) {
                self.owed.push(waiting.command);
            }
            let _gone = waiting.reply.send(Err(Refusal::Unavailable(problem.to_owned())));
        }
    }

    /// What was waited for has not come.
    fn on_waited(&mut self) {
        if let Some(UnderWay { stage: Stage::Confirming { .. }, .. }) = &self.under_way {
            let mut batch = self.under_way.take().map(|u| u.batch).unwrap_or_default();
            return self.refuse_reverted(&mut batch, "the watch of etcd is behind");
        }
        self.try_again();
    }

    /// The table has followed: what was reverted is applied to what is there now.
    fn try_again(&mut self) {
        let Some(UnderWay { mut batch, attempts, confirmed, .. }) = self.under_way.take() else { return };
        let now = self.writer.clock.now();
        for waiting in &mut batch {
            waiting.outcome = self.writer.table.apply(now, waiting.command.clone()).map(Arc::new);
        }
        self.send(batch, attempts + 1, confirmed);
    }

    /// What was sent has come back, or what it waited for has.
    fn go_on(&mut self) {
        let applied = *self.cluster.applied().borrow();
        match &self.under_way {
            Some(UnderWay { stage: Stage::Landing(revision, since), .. }) if applied >= *revision => {
                self.etcd.stats().on_landed(since.elapsed());
                let batch = self.under_way.take().map(|u| u.batch).unwrap_or_default();
                self.settle(batch);
            }
            Some(UnderWay {
                stage: Stage::Following { revision, .. } | Stage::Confirming { revision, .. }, ..
            }) if applied >= *revision => self.try_again(),
            Some(_) | None => {}
        }
    }

    fn settle(&mut self, batch: Batch) {
        for changes in batch.iter().filter_map(|w| w.outcome.as_deref().ok()) {
            self.cluster.note(&self.writer.table, changes);
        }
        self.writer.settle(batch);
    }

    fn on_news(&mut self, news: News) {
        let now = self.writer.clock.now();
        let (done, changes) = match news {
            News::All { revision, kvs } => (revision, self.cluster.take_all(now, &mut self.writer.table, kvs)),
            News::Events { revision, events } => {
                let mut changes = Vec::new();
                for event in &events {
                    let at = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                    // What comes after our own batch is told after it.
                    if matches!(&self.under_way, Some(UnderWay { stage: Stage::Landing(ours, _), .. }) if *ours < at) {
                        self.publish(std::mem::take(&mut changes));
                        self.cluster.reach(at - 1);
                        self.go_on();
                    }
                    changes.extend(self.cluster.take(now, &mut self.writer.table, event));
                }
                (revision, changes)
            }
        };
        self.publish(changes);
        self.cluster.reach(done);
        self.go_on();
        self.tell_members();
    }

    fn tell_members(&mut self) {
        let all: Vec<_> = self.cluster.members().map(|(name, at)| (name.to_owned(), at.to_owned())).collect();
        self.members.send_if_modified(|known| {
            let moved = *known != all;
            *known = all;
            moved
        });
    }

    fn publish(&mut self, changes: Vec<Changes>) {
        let changes: Vec<Arc<Changes>> = changes.into_iter().filter(|c| !c.is_empty()).map(Arc::new).collect();
        self.writer.publish(&changes);
    }

    fn on_volatile(&mut self, news: &mut Vec<Message>) {
        let now = self.writer.clock.now();
        for Message { command, reply } in news.drain(..) {
            // A client that has moved here: its instance is this member's from now on, and others are to know.
            if let Command::Beat { service, id } = &command
                && self.writer.table.is_away(service, id)
                && let Some(entry) = self.writer.table.entry(service, id)
            {
                if self.inbox.len() >= INBOX_LEN * 2 {
                    let _gone = reply.send(Err(Refusal::Busy { waiting: self.inbox.len() }));
                    continue;
                }
                let command = Command::Register { service: service.clone(), instance: (*entry.record).clone() };
                self.inbox.push_back(Message { command, reply });
                continue;
            }
            let outcome = self.writer.table.apply(now, command).map(Arc::new);
            if let Ok(changes) = &outcome {
                self.cluster.note(&self.writer.table, changes);
            }
            self.writer.publish(&outcome);
            let _gone = reply.send(outcome);
        }
    }

    /// Instances whose time is over, and what is owed: commands of our own. While etcd does not answer nothing expires.
    fn on_tick(&mut self) {
        self.writer.tell_rest();
        let now = self.writer.clock.now();
        if self.under_way.is_some() || Instant::now() < self.quiet_until {
            return;
        }
        let mut commands = std::mem::take(&mut self.owed);
        if self.writer.table.due().is_some_and(|at| at <= now) {
            commands.push(Command::Tick { max: TICK_LEN });
        }
        for command in commands {
            let (reply, _nobody) = oneshot::channel();
            self.inbox.push_back(Message { command, reply });
        }
        if self.flushing.is_none()
            && let Some(txn) = self.cluster.tidy(now)
        {
            self.write(Vec::new(), txn);
        }
    }

    fn on_flush(&mut self) {
        if let Some((_, done)) = &mut self.flushing {
            let Ok(well) = done.try_recv() else { return };
            let (shards, _) = self.flushing.take().expect("it was there a moment ago");
            if !well {
                self.cluster.again(shards);
                self.quiet_until = Instant::now() + AGAIN;
            }
        }
        if Instant::now() >= self.quiet_until
            && let Some((shards, txn)) = self.cluster.verdicts()
        {
            self.write(shards, txn);
        }
    }

    fn write(&mut self, shards: Vec<usize>, txn: Txn) {
        let (report, done) = oneshot::channel();
        let etcd = self.etcd.clone();
        tokio::spawn(async move {
            let well = matches!(tokio::time::timeout(SEND_TIME_MAX, etcd.txn(txn)).await, Ok(Ok(_)));
            let _gone = report.send(well);
        });
        self.flushing = Some((shards, done));
    }
}

/// Whether somebody waits to hear that there is nothing to do.
fn is_nothing_to_do(waiting: &Waiting) -> bool {
    let is_ours =
        matches!(waiting.command, Command::Tick { .. } | Command::ClientGone { .. } | Command::AgentForget { .. });
    !is_ours && !waiting.reply.is_closed() && waiting.outcome.as_ref().is_ok_and(|changes| changes.is_empty())
}

async fn sent(under_way: &mut Option<UnderWay>) -> Sent {
    match under_way {
        Some(UnderWay { stage: Stage::Sending(sending), .. }) => sending.await,
        _ => std::future::pending().await,
    }
}

async fn send_all(etcd: &Etcd, txns: Vec<Txn>) -> Sent {
    let mut revision = 0;
    for txn in txns {
        match etcd.txn(txn).await {
            Ok(answer) => {
                revision = answer.header.map_or(revision, |h| h.revision);
                if !answer.succeeded {
                    return Sent::Conflict(revision);
                }
            }
            Err(status) => return Sent::Failed(format!("etcd: {}", status.message())),
        }
    }
    Sent::Done(revision)
}
