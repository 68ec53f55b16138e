//! A request's body that counts the bytes it has brought, for its connection and for all: a thousand half-sent requests
//! must not fill the memory.
//! Promise: what it counted is given back when it is dropped.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tonic::Status;

/// Bytes that may be held, and are.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    held: AtomicUsize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { max, held: AtomicUsize::new(0) })
    }

    /// Takes them, or nothing.
    fn take(&self, bytes: usize) -> bool {
        let take = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// See the module.
pub(super) struct Counted {
    body: Incoming,
    budgets: [Arc<Budget>; 2],
    taken: usize,
}

impl Counted {
    /// Counts against each of the budgets.
    pub(super) fn new(body: Incoming, budgets: [Arc<Budget>; 2]) -> Counted {
        Counted { body, budgets, taken: 0 }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let [own, all] = &self.budgets;
        if !own.take(bytes) {
            return false;
        }
        if !all.take(bytes) {
            own.give_back(bytes);
            return false;
        }
        self.taken += bytes;
        true
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            Some(Ok(frame)) => frame,
        };
        if self.take(frame.data_ref().map_or(0, Bytes::len)) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let text = "too many bytes of unfinished requests; finish some, or send smaller ones";
        Poll::Ready(Some(Err(Status::resource_exhausted(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        for budget in &self.budgets {
            budget.give_back(self.taken);
        }
    }
}
