//! Events that wait for their receiver. Bounded: where there is no room the oldest goes, since the latest say how things
//! are now; how many went is counted and told.

use super::super::Event;
use super::Stats;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// See the module. One who puts in, one who takes out.
pub(super) struct Queue {
    max: usize,
    inner: Mutex<Inner>,
    news: Notify,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Event>,
    missed: u64,
    closed: bool,
}

/// What goes together.
pub(super) struct Batch {
    /// One or more, in order.
    pub(super) events: Vec<Event>,
    /// Lost since the batch before.
    pub(super) missed: u64,
}

impl Queue {
    pub(super) fn new(max: usize, stats: Arc<Stats>) -> Queue {
        Queue { max: max.max(1), inner: Mutex::default(), news: Notify::new(), stats }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change of it is whole even if a holder panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, events: impl Iterator<Item = Event>) {
        let mut inner = self.inner();
        let mut dropped = 0;
        for event in events {
            if inner.waiting.len() >= self.max {
                inner.waiting.pop_front();
                dropped += 1;
            }
            inner.waiting.push_back(event);
        }
        inner.missed += dropped;
        self.stats.dropped.fetch_add(dropped, Relaxed);
        self.stats.waiting.store(inner.waiting.len() as u64, Relaxed);
        drop(inner);
        self.news.notify_one();
    }

    /// So many never came here.
    pub(super) fn miss(&self, missed: u64) {
        self.inner().missed += missed;
        self.stats.dropped.fetch_add(missed, Relaxed);
    }

    /// There will be no more.
    pub(super) fn close(&self) {
        self.inner().closed = true;
        self.news.notify_one();
    }

    /// The oldest ones, at most `max`, as soon as there is one; `None`: none is left, and there will be no more.
    pub(super) async fn take(&self, max: usize) -> Option<Batch> {
        loop {
            {
                let mut inner = self.inner();
                if !inner.waiting.is_empty() {
                    let count = inner.waiting.len().min(max.max(1));
                    let events = inner.waiting.drain(..count).collect();
                    self.stats.waiting.store(inner.waiting.len() as u64, Relaxed);
                    return Some(Batch { events, missed: std::mem::take(&mut inner.missed) });
                }
                if inner.closed {
                    return None;
                }
            }
            self.news.notified().await;
        }
    }
}
