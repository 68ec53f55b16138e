//! The health feed on worker 0: the table, and which carrier carries it. When that one is lost another takes over with
//! a snapshot; when none is left nobody is told until the next welcome.

use super::Shared;
use crate::health_feed::{FeedError, HealthSource};
use crate::slots::Key;
use ringspan_engine::time::Instant;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

pub(super) struct Feed {
    source: HealthSource,
    /// Carriers that are up, the one that carries the feed first.
    carriers: Vec<Listener>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Listener {
    worker: usize,
    key: Key,
    generation: u64,
}

impl Feed {
    pub(super) fn new(backends: u16, now: Instant) -> Feed {
        Feed { source: HealthSource::new(backends, now), carriers: Vec::new() }
    }

    pub(super) fn on_up(&mut self, worker: usize, key: Key, generation: u64) {
        let listener = Listener { worker, key, generation };
        // A newer session at the bridge takes over: what the older one hears, it may ignore.
        if self.carriers.first().is_none_or(|first| first.generation < generation) {
            self.carriers.insert(0, listener);
            self.source.on_welcome(generation);
        } else {
            self.carriers.push(listener);
        }
    }

    pub(super) fn on_down(&mut self, worker: usize, key: Key) {
        let Some(at) = self.carriers.iter().position(|l| (l.worker, l.key) == (worker, key)) else { return };
        self.carriers.remove(at);
        match self.carriers.first() {
            None => self.source.on_link_lost(),
            Some(first) if at == 0 => self.source.on_welcome(first.generation),
            Some(_) => {}
        }
    }

    pub(super) fn on_message(&mut self, payload: &[u8]) -> Result<(), FeedError> {
        self.source.on_message(payload)
    }

    /// Takes the news that the control plane left.
    pub(super) fn take_news(&mut self, shared: &Shared) {
        if !shared.fresh.swap(false, Ordering::Acquire) {
            return;
        }
        let news = std::mem::take(&mut *shared.health.lock().unwrap_or_else(PoisonError::into_inner));
        for (backend, state) in news {
            self.source.set(backend, state);
        }
    }

    /// The next payload and who sends it.
    pub(super) fn next(&mut self, now: Instant) -> Option<(usize, Key, Vec<u8>)> {
        let first = *self.carriers.first()?;
        Some((first.worker, first.key, self.source.next_message(now)?))
    }
}
