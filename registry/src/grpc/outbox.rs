//! What is to be written on a client's stream: a few messages in order, and of each subscription the latest state alone.
//! Promise: bounded. A client that reads slowly misses states in between, never the last one; nothing here waits.
//! Pure but for the waker: `now` comes in.

use super::payload::Payload;
use crate::model::{Name, ServiceKey};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::sync::Notify;

/// Messages in order that may wait. Questions to the client; more than one or two is a client that does not read.
const MESSAGES_MAX: usize = 64;
/// Pushes written and not acknowledged that are remembered; the oldest beyond it counts as not acknowledged.
const AWAITED_MAX: usize = 1024;

/// A service and the selection of clusters that a client subscribes to.
pub(super) type Topic = (ServiceKey, Name);

/// What comes off the box.
pub(super) enum Out {
    /// As it stands.
    Message(Payload),
    /// How a service is now: to be told under this number.
    Push(u64, Arc<Topic>, Arc<str>),
}

#[derive(Default)]
struct State {
    messages: VecDeque<Payload>,
    /// In the order in which they first became due.
    due: VecDeque<Arc<Topic>>,
    /// Their latest states: exactly those in `due`.
    latest: HashMap<Arc<Topic>, Arc<str>>,
    /// Since when something has waited here; `None`: nothing does.
    waiting: Option<Instant>,
    /// Numbers of pushes that were written, and when.
    awaited: VecDeque<(u64, Instant)>,
    /// Numbers forgotten for want of room, since [`Outbox::overdue`].
    forgotten: u64,
    number: u64,
    closed: bool,
    waker: Option<Waker>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// Told once: the box is closed.
    hung_up: Notify,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something after what waits. `false`: there is no room, or the box is closed.
    pub(super) fn say(&self, now: Instant, message: Payload) -> bool {
        self.put(now, |state| {
            let room = state.messages.len() < MESSAGES_MAX;
            if room {
                state.messages.push_back(message);
            }
            room
        })
    }

    /// The service is so now.
    pub(super) fn push(&self, now: Instant, topic: &Arc<Topic>, info: Arc<str>) -> bool {
        self.put(now, |state| {
            if state.latest.insert(topic.clone(), info).is_none() {
                state.due.push_back(topic.clone());
            }
            true
        })
    }

    fn put(&self, now: Instant, put: impl FnOnce(&mut State) -> bool) -> bool {
        let mut state = self.state();
        if state.closed || !put(&mut state) {
            return false;
        }
        state.waiting.get_or_insert(now);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The next thing to write; `None`: the box is closed and empty.
    pub(super) fn poll(&self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Out>> {
        let mut state = self.state();
        let out = if let Some(message) = state.messages.pop_front() {
            Out::Message(message)
        } else if let Some(topic) = state.due.pop_front() {
            let info = state.latest.remove(&topic).expect("what is due has a state");
            state.number += 1;
            let number = state.number;
            if state.awaited.len() == AWAITED_MAX {
                state.awaited.pop_front();
                state.forgotten += 1;
            }
            state.awaited.push_back((number, now));
            Out::Push(number, topic, info)
        } else if state.closed {
            return Poll::Ready(None);
        } else {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        // It reads: what is left has waited for its turn, not for the client.
        let empty = state.messages.is_empty() && state.due.is_empty();
        state.waiting = (!empty).then_some(now);
        Poll::Ready(Some(out))
    }

    /// A push was acknowledged: how long after it was written. `None`: it was not awaited.
    pub(super) fn on_ack(&self, number: u64, now: Instant) -> Option<std::time::Duration> {
        let mut state = self.state();
        let at = state.awaited.binary_search_by_key(&number, |(n, _)| *n).ok()?;
        let (_, written) = state.awaited.remove(at)?;
        Some(now.duration_since(written))
    }

    /// Forgets the pushes that were written before `then`; how many they were, with those forgotten for want of room.
    pub(super) fn overdue(&self, then: Instant) -> u64 {
        let mut state = self.state();
        let late = state.awaited.partition_point(|(_, written)| *written <= then);
        state.awaited.drain(..late);
        std::mem::take(&mut state.forgotten) + late as u64
    }

    /// When the oldest push that is not acknowledged was written.
    pub(super) fn awaited_since(&self) -> Option<Instant> {
        self.state().awaited.front().map(|(_, written)| *written)
    }

    /// Since when nothing has been taken although something waits.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.state().waiting
    }

    /// Nothing more will be said; what waits may still be taken.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.hung_up.notify_one();
    }

    /// Ends once when the box has been closed. For one task.
    pub(super) async fn hung_up(&self) {
        self.hung_up.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn take(outbox: &Outbox, now: Instant) -> Option<String> {
        let mut cx = Context::from_waker(Waker::noop());
        match outbox.poll(&mut cx, now) {
            Poll::Ready(Some(Out::Message(message))) => Some(message.kind().to_owned()),
            Poll::Ready(Some(Out::Push(number, topic, info))) => Some(format!("{number} {} {info}", topic.0.name())),
            Poll::Ready(None) => Some("end".into()),
            Poll::Pending => None,
        }
    }

    fn topic(name: &str) -> Arc<Topic> {
        Arc::new((ServiceKey::public(name).unwrap(), Name::from("")))
    }

    /// A slow reader gets the latest of each, once, in the order they became due; questions go first.
    #[test]
    fn the_latest_of_each() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let (a, b) = (topic("a"), topic("b"));
        for (topic, info) in [(&a, "1"), (&b, "1"), (&a, "2"), (&a, "3")] {
            assert!(outbox.push(now, topic, info.into()));
        }
        assert!(outbox.say(now, Payload::new("Question", String::new())));
        assert_eq!(outbox.waiting_since(), Some(now));
        let all: Vec<_> = std::iter::from_fn(|| take(&outbox, now)).collect();
        assert_eq!(all, ["Question", "1 a 3", "2 b 1"]);
        assert_eq!(outbox.waiting_since(), None);
        outbox.push(now, &a, "4".into());
        outbox.close();
        assert!(!outbox.push(now, &b, "2".into()), "closed");
        assert_eq!([take(&outbox, now), take(&outbox, now)], [Some("3 a 4".into()), Some("end".into())]);
    }

    /// Who never reads costs a bounded number of messages, who never acknowledges a bounded number of numbers.
    #[test]
    fn bounded() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let taken = (0..1_000).filter(|_| outbox.say(now, Payload::default())).count();
        assert_eq!(taken, MESSAGES_MAX);
        while take(&outbox, now).is_some() {}
        for n in 0..3_000 {
            outbox.push(now, &topic("a"), n.to_string().into());
            take(&outbox, now);
        }
        let before = now.checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(outbox.overdue(before), 3_000 - AWAITED_MAX as u64);
        let later = now + Duration::from_millis(7);
        assert_eq!(outbox.on_ack(2_999, later), Some(Duration::from_millis(7)));
        assert_eq!(outbox.on_ack(2_999, later), None, "twice");
        assert_eq!(outbox.on_ack(1, later), None, "forgotten");
        assert_eq!(outbox.overdue(now), AWAITED_MAX as u64 - 1);
        assert_eq!(outbox.awaited_since(), None);
    }
}
