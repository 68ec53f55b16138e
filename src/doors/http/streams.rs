//! The streams of one HTTP/2 connection: how many are open, and since when there has been none.
//! Promise: a connection is ended when nobody has asked anything for so long, and never while an answer is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For a visitor that has asked nothing to read that it is to go.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    began: Instant,
    open: AtomicUsize,
    opened: AtomicU64,
    /// Milliseconds from the beginning to when one was closed last.
    closed_ms: AtomicU64,
}

/// A stream that is open while this lives.
#[derive(Debug)]
pub(super) struct Open(Arc<Streams>);

impl Streams {
    /// Of a connection that begins now.
    pub(super) fn new() -> Arc<Streams> {
        Arc::new(Streams { began: Instant::now(), open: 0.into(), opened: 0.into(), closed_ms: 0.into() })
    }

    /// One more.
    pub(super) fn open(self: &Arc<Streams>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Ends when none has been open for `patience`, counted from `since` at the earliest.
    async fn at_rest(&self, since: Instant, patience: Duration) {
        loop {
            let now = Instant::now();
            // One that is open now is looked at again before it can have been closed for so long.
            let from = match self.open.load(Ordering::Acquire) {
                0 => since.max(self.began + Duration::from_millis(self.closed_ms.load(Ordering::Relaxed))),
                _ => now,
            };
            if from + patience <= now {
                return;
            }
            tokio::time::sleep_until((from + patience).into()).await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed_ms.store(self.0.began.elapsed().as_millis() as u64, Ordering::Relaxed);
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

/// Says when a connection has been at rest for too long.
#[derive(Debug)]
pub(super) struct Clock {
    streams: Arc<Streams>,
    /// Without a stream.
    patience: Duration,
    /// For what has been answered and not yet taken.
    idle: Duration,
    told: Option<Instant>,
}

impl Clock {
    /// Of these streams.
    pub(super) fn new(streams: Arc<Streams>, patience: Duration, idle: Duration) -> Clock {
        Clock { streams, patience, idle, told: None }
    }

    /// Waits for the next word. Nothing is lost if nobody waits to the end.
    pub(super) async fn next(&mut self) -> Word {
        let Some(told) = self.told else {
            self.streams.at_rest(self.streams.began, self.patience).await;
            self.told = Some(Instant::now());
            return Word::Finish;
        };
        let has_asked = self.streams.opened.load(Ordering::Relaxed) > 0;
        self.streams.at_rest(told, if has_asked { self.idle } else { LAST_WORDS }).await;
        Word::Go
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    const PATIENCE: Duration = Duration::from_millis(20);

    /// A stream that is open holds the word back, however long; one that was closed counts from then.
    #[tokio::test]
    async fn rest_begins_with_the_last_stream() {
        let streams = Streams::new();
        let (first, second) = (streams.open(), streams.open());
        let mut clock = Clock::new(streams.clone(), PATIENCE, PATIENCE);
        {
            let mut word = pin!(clock.next());
            drop(first);
            // A silent one beside it is told to finish, twice over.
            for _ in 0..2 {
                assert_eq!(Clock::new(Streams::new(), PATIENCE, PATIENCE).next().await, Word::Finish);
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
            Clock::new(Streams::new(), PATIENCE, PATIENCE).next().await;
            assert!(word.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(late);
        assert_eq!(clock.next().await, Word::Go);
    }
}
