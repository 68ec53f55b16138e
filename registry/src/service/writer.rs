//! The thread that owns the table, and the one that waits for the disk.

use super::news::HealthNews;
use super::{Clock, Message};
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::table::{Change, Changes, Command, Refusal, Table};
use std::convert::Infallible;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Commands of one commit. More would make the first of them wait for the last; fewer would waste fsyncs.
const BATCH_LEN: usize = 1_024;
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

/// A batch that has been applied.
enum Begun {
    /// The disk has it.
    UnderWay(Batch),
    /// Nothing in it is to be stored.
    Done(Batch),
}

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
        let mut under_way: Option<Batch> = None;
        let mut stopping = false;
        while !stopping || under_way.is_some() {
            tokio::select! {
                result = Disk::done(&mut disk), if under_way.is_some() => {
                    let stored = under_way.take().expect("the arm is armed only then");
                    if result.is_ok() && !stopping {
                        // First the disk's next work: telling about the last can go on beside it.
                        while batch.len() < BATCH_LEN && let Ok(message) = records.try_recv() {
                            batch.push(message);
                        }
                    }
                    let next = self.begin(&mut batch, disk.as_ref());
                    self.settle(stored, result);
                    under_way = self.or_settle(next);
                }
                _ = &mut stop, if !stopping => stopping = true,
                _ = volatile.recv_many(&mut news, BATCH_LEN), if !stopping => self.apply_volatile(&mut news),
                _ = records.recv_many(&mut batch, BATCH_LEN), if under_way.is_none() && !stopping => {
                    let next = self.begin(&mut batch, disk.as_ref());
                    under_way = self.or_settle(next);
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

    /// Applies a batch, and gives the disk what is to be stored of it.
    fn begin(&mut self, batch: &mut Vec<Message>, disk: Option<&Disk>) -> Begun {
        let applied = self.apply_batch(batch);
        match disk.filter(|_| applied.iter().flat_map(|w| &w.outcome).any(|c| c.is_durable())) {
            Some(disk) => {
                disk.commit(&applied);
                Begun::UnderWay(applied)
            }
            None => Begun::Done(applied),
        }
    }

    /// What is under way; what needs no disk is settled.
    fn or_settle(&mut self, begun: Begun) -> Option<Batch> {
        match begun {
            Begun::UnderWay(batch) => Some(batch),
            Begun::Done(batch) => {
                self.settle(batch, Ok(()));
                None
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

    /// The batch is stored, or it is not: tell everybody.
    pub(super) fn settle(&mut self, mut batch: Batch, stored: Result<(), String>) {
        if let Err(problem) = stored {
            tracing::warn!(commands = batch.len(), problem, "registry cannot store; what needs storing is refused");
            self.refuse(&mut batch, &problem);
        }
        self.publish(batch.iter().flat_map(|w| &w.outcome));
        for Waiting { outcome, reply, .. } in batch {
            // Who does not wait any more does not need the answer.
            let _gone = reply.send(outcome);
        }
    }

    /// Undoes the batch, then does again what needs no disk.
    fn refuse(&mut self, batch: &mut Batch, problem: &str) {
        for waiting in batch.iter().rev() {
            if let Ok(changes) = &waiting.outcome {
                self.table.revert(changes);
            }
        }
        self.show_again(batch.iter().flat_map(|w| &w.outcome));
        let now = self.clock.now();
        for waiting in batch {
            waiting.outcome = match self.table.apply(now, waiting.command.clone()) {
                Ok(changes) if changes.is_durable() => {
                    self.table.revert(&changes);
                    Err(Refusal::Store(problem.to_owned()))
                }
                outcome => outcome.map(Arc::new),
            };
        }
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
        let mut together: Option<Arc<Changes>> = None;
        for changes in changes.into_iter().filter(|c| !c.is_empty()) {
            for change in &changes.list {
                log(change);
                self.news.tell(now, change);
            }
            together = match together {
                None => Some(changes.clone()),
                Some(so_far) if so_far.list.len() + changes.list.len() > TOGETHER_MAX => {
                    self.tell(so_far);
                    Some(changes.clone())
                }
                Some(mut so_far) => {
                    Arc::make_mut(&mut so_far).list.extend_from_slice(&changes.list);
                    Some(so_far)
                }
            };
        }
        together.into_iter().for_each(|changes| self.tell(changes));
    }

    fn tell(&self, changes: Arc<Changes>) {
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

/// The thread that waits for the disk, so that the table's does not. One batch at a time.
struct Disk {
    work: std_mpsc::SyncSender<Vec<Arc<Changes>>>,
    done: mpsc::Receiver<Result<(), String>>,
    thread: JoinHandle<()>,
}

impl Disk {
    fn start(mut store: Store) -> std::io::Result<Disk> {
        let (work, todo) = std_mpsc::sync_channel::<Vec<Arc<Changes>>>(1);
        let (report, done) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name("registry-store".into()).spawn(move || {
            while let Ok(batch) = todo.recv() {
                if report.blocking_send(store.commit(&batch)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Disk { work, done, thread })
    }

    fn commit(&self, batch: &Batch) {
        let changes = batch.iter().flat_map(|w| &w.outcome).filter(|c| c.is_durable()).cloned().collect();
        // If that thread is gone, `done` says so.
        let _gone = self.work.send(changes);
    }

    /// The result of the batch under way.
    async fn done(disk: &mut Option<Disk>) -> Result<(), String> {
        match disk {
            Some(disk) => disk.done.recv().await.unwrap_or_else(|| Err("the store's thread is gone".into())),
            None => Ok(()),
        }
    }

    fn stop(self) {
        drop((self.work, self.done));
        if self.thread.join().is_err() {
            tracing::error!("the registry's store thread panicked");
        }
    }
}
