//! Bodies on their way: never held, only watched. One that stops moving is given up, one that is too long is cut, and
//! whoever waits for it is told which.

use super::io::Torn;
use super::streams::Open;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until};

/// Whatever ends a body early.
pub(super) type Wrong = Box<dyn std::error::Error + Send + Sync>;

/// Of requests and answers alike.
pub(super) type Body = UnsyncBoxBody<Bytes, Wrong>;

/// One piece.
pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// None.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Why a body was not passed on whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fault {
    /// It was, or still may be.
    None = 0,
    /// Longer than allowed.
    TooLong = 1,
    /// Nothing came for too long.
    Idle = 2,
    /// Whoever sent it broke off.
    Broken = 3,
}

/// What is known of a body while somebody else has it.
#[derive(Debug)]
pub(super) struct Progress {
    since: Instant,
    /// Milliseconds after `since` at which it last moved.
    moved_ms: AtomicU64,
    fault: AtomicU8,
    ended: std::sync::atomic::AtomicBool,
    on_end: tokio::sync::Notify,
    /// Of HTTP/2: moves with it.
    stream: Option<Arc<Open>>,
}

impl Progress {
    /// Begins now; of a body on `stream`, where the visitor speaks HTTP/2.
    pub(super) fn new(stream: Option<Arc<Open>>) -> Arc<Progress> {
        Arc::new(Progress {
            since: Instant::now(),
            moved_ms: AtomicU64::new(0),
            fault: AtomicU8::new(0),
            ended: false.into(),
            on_end: tokio::sync::Notify::new(),
            stream,
        })
    }

    fn on_moved(&self) {
        if let Some(stream) = &self.stream {
            stream.on_moved();
        }
        self.moved_ms.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// When it last moved.
    pub(super) fn moved_at(&self) -> Instant {
        self.since + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed))
    }

    /// Whether all of it has been passed on.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// What went wrong.
    pub(super) fn fault(&self) -> Fault {
        match self.fault.load(Ordering::Relaxed) {
            1 => Fault::TooLong,
            2 => Fault::Idle,
            3 => Fault::Broken,
            _ => Fault::None,
        }
    }

    /// There is no body, or no more of it.
    pub(super) fn end(&self) {
        self.on_moved();
        self.ended.store(true, Ordering::Relaxed);
        self.on_end.notify_one();
    }

    /// Waits until all of it has been passed on. For one that waits.
    pub(super) async fn end_of(&self) {
        while !self.has_ended() {
            self.on_end.notified().await;
        }
    }
}

/// The bounds of one body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Without a byte.
    pub(super) idle: Duration,
    /// For all of it.
    pub(super) until: Option<Instant>,
    /// Of all of it.
    pub(super) bytes_max: Option<u64>,
}

/// A body being passed on. What is attached lives as long as it does.
pub(super) struct Flow<G> {
    inner: Incoming,
    bounds: Bounds,
    left: u64,
    progress: Arc<Progress>,
    /// Told when this body breaks, where its receiver could take that for its end.
    torn: Option<Torn>,
    timer: Option<Pin<Box<Sleep>>>,
    _guest: G,
}

impl<G> Flow<G> {
    /// Watches a body.
    pub(super) fn new(
        inner: Incoming,
        bounds: Bounds,
        progress: Arc<Progress>,
        torn: Option<Torn>,
        guest: G,
    ) -> Flow<G> {
        Flow { inner, bounds, left: bounds.bytes_max.unwrap_or(u64::MAX), progress, torn, timer: None, _guest: guest }
    }

    fn fail(&mut self, fault: Fault, why: &'static str) -> Poll<Option<Result<Frame<Bytes>, Wrong>>> {
        self.on_fault(fault);
        Poll::Ready(Some(Err(why.into())))
    }

    fn on_fault(&mut self, fault: Fault) {
        self.progress.fault.store(fault as u8, Ordering::Relaxed);
        if let Some(torn) = &self.torn {
            torn.store(true, Ordering::Relaxed);
        }
    }

    fn deadline(&self) -> Instant {
        let idle = Instant::now() + self.bounds.idle;
        self.bounds.until.map_or(idle, |until| until.min(idle))
    }
}

impl<G: Unpin> hyper::body::Body for Flow<G> {
    type Data = Bytes;
    type Error = Wrong;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Wrong>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left.checked_sub(bytes) {
                    None => return this.fail(Fault::TooLong, "the body is longer than allowed"),
                    Some(left) => this.left = left,
                }
                if this.inner.is_end_stream() {
                    this.progress.end();
                } else {
                    this.progress.on_moved();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.on_fault(Fault::Broken);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.progress.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let deadline = this.deadline();
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => this.fail(Fault::Idle, "the body stopped coming"),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
