//! The thread that owns the table. It applies records while the disk is busy with those before them.

use super::disk::{ALL, Disk, Ended};
use super::news::HealthNews;
use super::{Clock, Message};
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::table::{Change, Changes, Command, Refusal, Table};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Commands of one commit. More would make the first of them wait for the last; fewer would waste fsyncs.
pub(super) const BATCH_LEN: usize = 1_024;
/// Commands that are applied and not stored yet, at most and for one batch more: those of a commit, and those of the next.
const AHEAD_MAX: usize = 2 * BATCH_LEN;
/// Ephemeral instances looked at in one go, so that the expiry of a million does not stop beats for long.
const TICK_LEN: usize = 4_096;
/// Changes of several commands that subscribers are told of at once. Each telling wakes them all; more at once would keep
/// more in memory for one who lags.
const TOGETHER_MAX: usize = 32;
/// How often deadlines are looked at: against the shortest default, 15 s, nobody notices a tenth of a second.
const TICK: Duration = Duration::from_millis(100);

/// One command whose submitter waits for the disk.
pub(super) struct Waiting {
    pub(super) command: Command,
    pub(super) outcome: Result<Arc<Changes>, Refusal>,
    pub(super) reply: oneshot::Sender<Result<Arc<Changes>, Refusal>>,
}

pub(super) type Batch = Vec<Waiting>;

/// Owns the table.
pub(super) struct Writer {
    pub(super) table: Table,
    snapshot: Arc<Snapshot>,
    changes: broadcast::Sender<Arc<Changes>>,
    pub(super) clock: Clock,
    store: Option<Store>,
    news: HealthNews,
}

impl Writer {
    pub(super) fn new(
        table: Table,
        snapshot: Arc<Snapshot>,
        changes: broadcast::Sender<Arc<Changes>>,
        clock: Clock,
        store: Option<Store>,
    ) -> Writer {
        Writer { table, snapshot, changes, clock, store, news: HealthNews::default() }
    }

    /// Starts the threads. They end when the other end of `stop` is dropped.
    pub(super) fn spawn(
        mut self,
        records: mpsc::Receiver<Message>,
        volatile: mpsc::Receiver<Message>,
        stop: oneshot::Receiver<Infallible>,
    ) -> std::io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let disk = self.store.take().map(Disk::start).transpose()?;
        std::thread::Builder::new().name("registry".into()).spawn(move || {
            runtime.block_on(self.run(records, volatile, stop, disk));
        })
    }

    async fn run(
        mut self,
        mut records: mpsc::Receiver<Message>,
        mut volatile: mpsc::Receiver<Message>,
        mut stop: oneshot::Receiver<Infallible>,
        mut disk: Option<Disk>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut news, mut batch) = (Vec::new(), Vec::new());
        // Applied, and on their way to the disk: in this order.
        let mut ahead = VecDeque::new();
        let mut stopping = false;
        while !stopping || !ahead.is_empty() {
            // First those whose wait is over.
            if let Some(ended) = disk.as_mut().and_then(Disk::try_ended) {
                self.on_ended(ended, &mut ahead, disk.as_ref());
                continue;
            }
            tokio::select! {
                ended = Disk::ended(&mut disk), if !ahead.is_empty() => self.on_ended(ended, &mut ahead, disk.as_ref()),
                _ = &mut stop, if !stopping => stopping = true,
                _ = volatile.recv_many(&mut news, BATCH_LEN), if !stopping => self.apply_volatile(&mut news),
                _ = records.recv_many(&mut batch, BATCH_LEN), if ahead.len() < AHEAD_MAX && !stopping => {
                    self.begin(&mut batch, &mut ahead, disk.as_ref());
                }
                // Nobody's time runs: no wake-ups, so that a registry at rest costs nothing.
                _ = tick.tick(), if self.table.due().is_some() || self.news.is_owing() => self.expire(),
            }
        }
        // Whoever still waits in a queue finds it closed, and is told that the registry is stopping.
        drop((records, volatile));
        if let Some(disk) = disk {
            disk.stop();
        }
    }

    /// Applies a batch, and gives it to the disk behind what waits for it already; what needs no disk is settled.
    fn begin(&mut self, batch: &mut Vec<Message>, ahead: &mut VecDeque<Waiting>, disk: Option<&Disk>) {
        let applied = self.apply_batch(batch);
        let is_durable = || applied.iter().flat_map(|w| &w.outcome).any(|c| c.is_durable());
        match disk.filter(|_| !ahead.is_empty() || is_durable()) {
            Some(disk) => {
                disk.push(applied.iter().map(|w| &w.outcome));
                ahead.extend(applied);
            }
            None => self.settle(applied),
        }
    }

    /// The disk has taken the first of those that wait for it, or has not.
    fn on_ended(&mut self, ended: Ended, ahead: &mut VecDeque<Waiting>, disk: Option<&Disk>) {
        let Ended { count, result } = ended;
        debug_assert!(count <= ahead.len() || count == ALL, "the disk tells of what it was given, once");
        let count = count.min(ahead.len());
        match result {
            Ok(()) => self.settle(ahead.drain(..count).collect()),
            Err(problem) => {
                let failed = self.refuse(ahead, count, &problem);
                self.settle(failed);
                if let Some(disk) = disk {
                    disk.go_on(ahead.iter().map(|w| &w.outcome));
                }
            }
        }
    }

    /// Applies a batch in order. The answers wait, also those of commands that changed nothing: they may have changed
    /// nothing because of one before them that is not stored yet.
    fn apply_batch(&mut self, batch: &mut Vec<Message>) -> Batch {
        let now = self.clock.now();
        let apply = |Message { command, reply }| {
            let outcome = self.table.apply(now, command.clone()).map(Arc::new);
            Waiting { command, outcome, reply }
        };
        batch.drain(..).map(apply).collect()
    }

    /// The batch is as it will be: tell everybody.
    pub(super) fn settle(&mut self, batch: Batch) {
        self.publish(batch.iter().flat_map(|w| &w.outcome));
        for Waiting { outcome, reply, .. } in batch {
            // Who does not wait any more does not need the answer.
            let _gone = reply.send(outcome);
        }
    }

    /// The disk has not taken the first `count`: undoes them and all that were applied on top of them, then does again
    /// what needs no disk, and those behind them anew. Gives the first.
    fn refuse(&mut self, ahead: &mut VecDeque<Waiting>, count: usize, problem: &str) -> Batch {
        tracing::warn!(commands = count, problem, "registry cannot store; what needs storing is refused");
        for waiting in ahead.iter().rev() {
            if let Ok(changes) = &waiting.outcome {
                self.table.revert(changes);
            }
        }
        self.show_again(ahead.iter().flat_map(|w| &w.outcome));
        let now = self.clock.now();
        let mut failed: Batch = ahead.drain(..count).collect();
        for waiting in &mut failed {
            waiting.outcome = match self.table.apply(now, waiting.command.clone()) {
                Ok(changes) if changes.is_durable() => {
                    self.table.revert(&changes);
                    Err(Refusal::Store(problem.to_owned()))
                }
                outcome => outcome.map(Arc::new),
            };
        }
        for waiting in ahead {
            waiting.outcome = self.table.apply(now, waiting.command.clone()).map(Arc::new);
        }
        failed
    }

    /// Shows readers instances as they are once these changes are undone: the batch before was published when these were
    /// in the table already, with the health and the votes that instances had there.
    fn show_again<'a>(&self, undone: impl Iterator<Item = &'a Arc<Changes>>) {
        let mut list = Vec::new();
        for change in undone.flat_map(|c| &c.list) {
            if let Change::Instance { service, id, before: Some(_), .. } = change
                && let Some(entry) = self.table.entry(service, id)
            {
                let (service, id, after) = (service.clone(), id.clone(), Some(entry.clone()));
                list.push(Change::Instance { service, id, before: None, after });
            }
        }
        self.snapshot.publish(&self.table, [&Changes { list }]);
    }

    fn apply_volatile(&mut self, news: &mut Vec<Message>) {
        let now = self.clock.now();
        for Message { command, reply } in news.drain(..) {
            let outcome = self.table.apply(now, command).map(Arc::new);
            self.publish(&outcome);
            let _gone = reply.send(outcome);
        }
    }

    fn expire(&mut self) {
        let now = self.clock.now();
        if self.table.due().is_some_and(|at| at <= now) {
            let changes = self.table.apply(now, Command::Tick { max: TICK_LEN }).expect("time cannot be refused");
            self.publish([&Arc::new(changes)]);
        }
        self.tell_rest();
    }

    /// Now and then: what the log has not said yet.
    pub(super) fn tell_rest(&mut self) {
        self.news.tell_rest(self.clock.now());
    }

    pub(super) fn publish<'a>(&mut self, changes: impl IntoIterator<Item = &'a Arc<Changes>> + Clone) {
        self.snapshot.publish(&self.table, changes.clone().into_iter().map(|c| &**c));
        let now = self.clock.now();
        let mut together: Vec<&Arc<Changes>> = Vec::with_capacity(TOGETHER_MAX);
        let mut length = 0;
        for changes in changes.into_iter().filter(|c| !c.is_empty()) {
            for change in &changes.list {
                log(change);
                self.news.tell(now, change);
            }
            if length + changes.list.len() > TOGETHER_MAX {
                self.tell(&mut together);
                length = 0;
            }
            length += changes.list.len();
            together.push(changes);
        }
        self.tell(&mut together);
    }

    fn tell(&self, together: &mut Vec<&Arc<Changes>>) {
        let changes = match together[..] {
            [] => return,
            [one] => one.clone(),
            _ => {
                let mut list = Vec::with_capacity(together.iter().map(|c| c.list.len()).sum());
                together.iter().for_each(|c| list.extend_from_slice(&c.list));
                Arc::new(Changes { list })
            }
        };
        together.clear();
        // Nobody listening is no trouble.
        let _nobody = self.changes.send(changes);
    }
}

/// Says what was registered: at debug, since their submitters know.
fn log(change: &Change) {
    match change {
        Change::Instance { service, id, before: None, .. } => {
            tracing::debug!(%service, instance = %id, "registered");
        }
        Change::Instance { service, id, after: None, .. } => {
            tracing::debug!(%service, instance = %id, "removed");
        }
        _ => {}
    }
}
