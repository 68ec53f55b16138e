//! The thread that waits for the disk, so that the table's does not.
//! Promise: what it is given is stored in order; what comes while a commit is under way is the next one, which begins at once,
//! without a word from anybody. After a commit that failed it stands still until it is told what is to be stored instead.
//! Uses `store`.

use super::writer::BATCH_LEN;
use crate::store::{Store, StoreStats};
use crate::table::{Changes, Refusal};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Ends that are not looked at yet. With more the thread waits, so that answers keep up with commits.
const ENDS_MAX: usize = 4;

/// More than wait at any time.
pub(super) const ALL: usize = usize::MAX;

/// What a command changed; `None`: it was refused.
type Item = Option<Arc<Changes>>;

/// See the module.
pub(super) struct Disk {
    shared: Arc<Shared>,
    stats: Arc<StoreStats>,
    ends: mpsc::Receiver<Ended>,
    thread: JoinHandle<()>,
}

/// How it went with the next `count` commands; [`ALL`]: with all there are.
pub(super) struct Ended {
    pub(super) count: usize,
    pub(super) result: Result<(), String>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    news: Condvar,
}

#[derive(Default)]
struct Inner {
    /// To be stored. As many as the table's thread lets wait.
    next: VecDeque<Item>,
    /// The last commit failed, and nobody has said yet how to go on.
    stands: bool,
    /// The thread waits for news.
    waits: bool,
    /// There will be no more.
    is_over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nobody panics while holding it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next commands to store; `None`: there will be no more.
    fn take(&self) -> Option<Vec<Item>> {
        let mut inner = self.lock();
        while inner.stands || inner.next.is_empty() {
            if inner.is_over {
                return None;
            }
            inner.waits = true;
            inner = self.news.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.waits = false;
        let count = inner.next.len().min(BATCH_LEN);
        Some(inner.next.drain(..count).collect())
    }
}

impl Disk {
    pub(super) fn start(mut store: Store) -> std::io::Result<Disk> {
        let shared = Arc::new(Shared::default());
        let (end, ends) = mpsc::channel(ENDS_MAX);
        let (todo, stats) = (shared.clone(), store.stats());
        let thread = std::thread::Builder::new().name("registry-store".into()).spawn(move || {
            while let Some(batch) = todo.take() {
                let changes: Vec<_> = batch.iter().flatten().filter(|c| c.is_durable()).cloned().collect();
                let result = if changes.is_empty() { Ok(()) } else { store.commit(&changes) };
                todo.lock().stands = result.is_err();
                store.stats().waiting.fetch_sub(batch.len() as u64, Relaxed);
                if end.blocking_send(Ended { count: batch.len(), result }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Disk { shared, stats, ends, thread })
    }

    /// Stores these, too.
    pub(super) fn push<'a>(&self, outcomes: impl Iterator<Item = &'a Result<Arc<Changes>, Refusal>>) {
        let mut inner = self.shared.lock();
        let known = inner.next.len();
        inner.next.extend(outcomes.map(|outcome| outcome.as_ref().ok().cloned()));
        self.stats.waiting.fetch_add((inner.next.len() - known) as u64, Relaxed);
        if inner.waits {
            self.shared.news.notify_one();
        }
    }

    /// After a failure: stores these, and nothing else of what it was given.
    pub(super) fn go_on<'a>(&self, outcomes: impl Iterator<Item = &'a Result<Arc<Changes>, Refusal>>) {
        let mut inner = self.shared.lock();
        self.stats.waiting.fetch_sub(inner.next.len() as u64, Relaxed);
        inner.next.clear();
        inner.stands = false;
        drop(inner);
        self.push(outcomes);
    }

    /// The end of what is under way.
    pub(super) async fn ended(disk: &mut Option<Disk>) -> Ended {
        let gone = || Ended { count: ALL, result: Err("the store's thread is gone".into()) };
        match disk {
            Some(disk) => disk.ends.recv().await.unwrap_or_else(gone),
            None => std::future::pending().await,
        }
    }

    /// The same, if it has ended.
    pub(super) fn try_ended(&mut self) -> Option<Ended> {
        self.ends.try_recv().ok()
    }

    pub(super) fn stop(self) {
        self.shared.lock().is_over = true;
        self.shared.news.notify_one();
        drop(self.ends);
        if self.thread.join().is_err() {
            tracing::error!("the registry's store thread panicked");
        }
    }
}
