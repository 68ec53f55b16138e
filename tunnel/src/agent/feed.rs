//! The health feed on worker 0: the table, and which carrier carries it. When that one is lost another takes over with
//! a snapshot; when none is left nobody is told until the next welcome. A carrier that comes up after a loss takes over, too: of
//! those that seem to be up it is the one that is, and the others may be waiting for their silence to be noticed.

use super::Shared;
use crate::health_feed::{FeedError, HealthSource};
use crate::slots::Key;
use crate::watch_feed::{Orders, Scout};
use ringspan_engine::time::Instant;
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Orders that the control plane has not taken yet; a bridge that sends more is not one of ours.
const ORDERS_MAX: usize = 256;

pub(super) struct Feed {
    source: HealthSource,
    scout: Scout,
    orders: VecDeque<Orders>,
    /// Carriers that are up, the one that carries the feed first.
    carriers: Vec<Listener>,
    /// One was lost, and none has come up since.
    has_lost: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Listener {
    worker: usize,
    key: Key,
    generation: u64,
}

impl Feed {
    pub(super) fn new(backends: u16, now: Instant) -> Feed {
        Feed {
            source: HealthSource::new(backends, now),
            scout: Scout::default(),
            orders: VecDeque::new(),
            carriers: Vec::new(),
            has_lost: false,
        }
    }

    pub(super) fn on_up(&mut self, worker: usize, key: Key, generation: u64) {
        let listener = Listener { worker, key, generation };
        let has_lost = std::mem::take(&mut self.has_lost);
        // A newer session at the bridge takes over: what the older one hears, it may ignore.
        let takes_over =
            |first: &Listener| first.generation < generation || (has_lost && first.generation == generation);
        if self.carriers.first().is_none_or(takes_over) {
            self.carriers.insert(0, listener);
            self.welcome(generation);
        } else {
            self.carriers.push(listener);
        }
    }

    pub(super) fn on_down(&mut self, worker: usize, key: Key) {
        let Some(at) = self.carriers.iter().position(|l| (l.worker, l.key) == (worker, key)) else { return };
        self.carriers.remove(at);
        self.has_lost = true;
        match self.carriers.first() {
            None => {
                self.source.on_link_lost();
                self.orders.clear();
                self.orders.push_back(self.scout.on_link_lost());
            }
            Some(first) if at == 0 => {
                let generation = first.generation;
                self.welcome(generation);
            }
            Some(_) => {}
        }
    }

    fn welcome(&mut self, generation: u64) {
        self.source.on_welcome(generation);
        if let Some(void) = self.scout.on_welcome(generation) {
            self.orders.clear();
            self.orders.push_back(void);
        }
    }

    pub(super) fn on_message(&mut self, payload: &[u8]) -> Result<(), FeedError> {
        match self.scout.on_message(payload)? {
            None => self.source.on_message(payload),
            Some(orders) if orders == Orders::default() => Ok(()),
            Some(_) if self.orders.len() >= ORDERS_MAX => Err(FeedError::new("more orders than anybody can carry out")),
            Some(orders) => {
                self.orders.push_back(orders);
                Ok(())
            }
        }
    }

    /// Hands orders on, as long as there is room for them.
    pub(super) fn give_orders(&mut self, mut give: impl FnMut(Orders) -> bool) {
        while let Some(orders) = self.orders.pop_front() {
            if !give(orders.clone()) {
                self.orders.push_front(orders);
                return;
            }
        }
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
        let seen = std::mem::take(&mut *shared.sights.lock().unwrap_or_else(PoisonError::into_inner));
        for sight in seen.into_values() {
            self.scout.set(sight);
        }
    }

    /// The next payload and who sends it.
    pub(super) fn next(&mut self, now: Instant) -> Option<(usize, Key, Vec<u8>)> {
        let first = *self.carriers.first()?;
        let payload = self.source.next_message(now).or_else(|| self.scout.next_message(now))?;
        Some((first.worker, first.key, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        Key { index, generation: 1 }
    }

    /// Who carries the feed after each step, and with a snapshot if it is another one: a newcomer only after a loss, of
    /// the same session or a newer one.
    #[test]
    fn who_carries_the_feed() {
        let now = Instant::ZERO;
        let mut feed = Feed::new(1, now);
        let says = |feed: &mut Feed| {
            feed.next(now).map(|(_, key, payload)| (key.index, payload.starts_with(b"{\"snapshot\"")))
        };
        feed.on_up(0, key(1), 7);
        assert_eq!(says(&mut feed), Some((1, true)));
        feed.on_up(0, key(2), 7);
        assert_eq!(says(&mut feed), None, "nothing is lost: the first goes on");
        feed.on_down(0, key(1));
        assert_eq!(says(&mut feed), Some((2, true)));
        // The second one's silence is not noticed yet.
        feed.on_up(0, key(3), 7);
        assert_eq!(says(&mut feed), Some((3, true)));
        feed.on_up(0, key(4), 7);
        feed.on_down(0, key(2));
        assert_eq!(says(&mut feed), None, "one of the others");
        feed.on_up(0, key(5), 6);
        assert_eq!(says(&mut feed), None, "of an older session");
        feed.on_up(0, key(6), 8);
        assert_eq!(says(&mut feed), Some((6, true)));
    }
}
