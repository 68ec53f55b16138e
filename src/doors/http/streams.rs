//! The streams of one HTTP/2 connection: how many are open, since when there has been none, and when bytes last moved on
//! one.
//! Promise: a connection is ended when nobody has asked anything for so long, or when answers wait for a visitor that
//! takes nothing of any; never while one is on its way.
//!
//! The second is for flow control: a stream whose visitor grants no window is not asked for its body (hyper looks at the
//! window first), so the body's own clock stands still, and a visitor that answers PINGs could hold backends for ever.
//! One that lets a stream wait and reads others is not meant: a player that pauses does so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For a visitor that has nothing more to take to read that it is to go.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    began: Instant,
    open: AtomicUsize,
    opened: AtomicU64,
    /// Milliseconds from the beginning to when one was closed last.
    closed_ms: AtomicU64,
    /// To when a body last moved, or a request came.
    moved_ms: AtomicU64,
}

/// A stream that is open while this lives.
#[derive(Debug)]
pub(super) struct Open(Arc<Streams>);

impl Streams {
    /// Of a connection that begins now.
    pub(super) fn new() -> Arc<Streams> {
        let (open, opened, closed_ms, moved_ms) = (0.into(), 0.into(), 0.into(), 0.into());
        Arc::new(Streams { began: Instant::now(), open, opened, closed_ms, moved_ms })
    }

    /// One more.
    pub(super) fn open(self: &Arc<Streams>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
        Open(self.clone())
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Ends when none has been open for `patience`, counted from `since` at the earliest, or when nothing has moved on
    /// those that are for `held`.
    async fn at_rest(&self, since: Instant, patience: Duration, held: Duration) {
        let at = |ms: &AtomicU64| self.began + Duration::from_millis(ms.load(Ordering::Relaxed));
        loop {
            let now = Instant::now();
            let due = match self.open.load(Ordering::Acquire) {
                0 => since.max(at(&self.closed_ms)) + patience,
                _ => (at(&self.moved_ms) + held).max(since + LAST_WORDS.min(held)),
            };
            if due <= now {
                return;
            }
            // One that is open now is looked at again before it can have been closed for so long.
            tokio::time::sleep_until(due.min(now + patience).into()).await;
        }
    }
}

impl Open {
    /// Bytes of its request or of its answer went on.
    pub(super) fn on_moved(&self) {
        self.0.moved_ms.store(self.0.now_ms(), Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Release);
    }
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The visitor is told that nothing more is answered, and may read what is left.
    Finish,
    /// It has had time for that.
    Go,
}

/// How long a connection may be at rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// Without a stream.
    pub(super) empty: Duration,
    /// For what has been answered and not yet taken.
    pub(super) idle: Duration,
    /// With streams on none of which anything moves.
    pub(super) held: Duration,
}

/// Says when a connection has been at rest for too long.
#[derive(Debug)]
pub(super) struct Clock {
    streams: Arc<Streams>,
    rest: Rest,
    told: Option<Instant>,
}

impl Clock {
    /// Of these streams.
    pub(super) fn new(streams: Arc<Streams>, rest: Rest) -> Clock {
        Clock { streams, rest, told: None }
    }

    /// Waits for the next word. Nothing is lost if nobody waits to the end.
    pub(super) async fn next(&mut self) -> Word {
        let Rest { empty, idle, held } = self.rest;
        let Some(told) = self.told else {
            self.streams.at_rest(self.streams.began, empty, held).await;
            self.told = Some(Instant::now());
            return Word::Finish;
        };
        let has_asked = self.streams.opened.load(Ordering::Relaxed) > 0;
        self.streams.at_rest(told, if has_asked { idle } else { LAST_WORDS }, held).await;
        Word::Go
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    const PATIENCE: Duration = Duration::from_millis(20);
    const REST: Rest = Rest { empty: PATIENCE, idle: PATIENCE, held: Duration::from_secs(3600) };

    /// A stream that is open holds the word back, however long; one that was closed counts from then.
    #[tokio::test]
    async fn rest_begins_with_the_last_stream() {
        let streams = Streams::new();
        let (first, second) = (streams.open(), streams.open());
        let mut clock = Clock::new(streams.clone(), REST);
        {
            let mut word = pin!(clock.next());
            drop(first);
            // A silent one beside it is told to finish, twice over.
            for _ in 0..2 {
                assert_eq!(Clock::new(Streams::new(), REST).next().await, Word::Finish);
                assert!(word.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        }
        let closed = Instant::now();
        drop(second);
        assert_eq!(clock.next().await, Word::Finish);
        assert!(closed.elapsed() + Duration::from_millis(1) >= PATIENCE, "{:?}", closed.elapsed());
        // A request that crossed the word is answered.
        let late = streams.open();
        {
            let mut word = pin!(clock.next());
            Clock::new(Streams::new(), REST).next().await;
            assert!(word.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(late);
        assert_eq!(clock.next().await, Word::Go);
    }

    /// Streams on which nothing moves are no reason to wait; one byte on any of them is.
    #[tokio::test]
    async fn streams_that_stand_still_are_given_up() {
        let streams = Streams::new();
        let (first, _second) = (streams.open(), streams.open());
        let rest = Rest { held: PATIENCE * 3, ..REST };
        let mut clock = Clock::new(streams.clone(), rest);
        {
            let mut word = pin!(clock.next());
            for _ in 0..4 {
                first.on_moved();
                let moved = Instant::now();
                assert_eq!(Clock::new(Streams::new(), REST).next().await, Word::Finish);
                let is_early = moved.elapsed() < rest.held;
                assert!(!is_early || word.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        }
        first.on_moved();
        let moved = Instant::now();
        assert_eq!(clock.next().await, Word::Finish);
        assert!(moved.elapsed() + Duration::from_millis(1) >= rest.held, "{:?}", moved.elapsed());
        assert_eq!(clock.next().await, Word::Go);
    }
}
