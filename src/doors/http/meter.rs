//! What a listener's limits make of one visitor's connection: bytes go later, silence and age end it.
//! Promise: what is not read stops its sender (TCP's window closes); bytes count as they are on the wire, TLS included.

use ringspan_engine::kernel::monotonic_now;
use ringspan_tunnel::limits::{Pass, Way};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

/// One connection's; kept as long as it lasts.
#[derive(Debug)]
pub(super) struct Meter {
    pass: Pass,
    began: Instant,
    /// Milliseconds from the beginning to the last byte, either way.
    moved_ms: AtomicU64,
}

impl Meter {
    /// Of a visitor that was let in just now.
    pub(super) fn new(pass: Pass) -> Arc<Meter> {
        Arc::new(Meter { pass, began: Instant::now(), moved_ms: AtomicU64::new(0) })
    }

    /// Ends when the connection has been silent or has lasted for too long.
    pub(super) async fn over(&self) {
        let (idle, total) = (self.pass.idle(), self.pass.total());
        loop {
            let moved = self.began + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
            let ends = [idle.map(|idle| moved + idle), total.map(|total| self.began + total)];
            match ends.into_iter().flatten().min() {
                None => return std::future::pending().await,
                Some(end) if end <= Instant::now() => return,
                Some(end) => tokio::time::sleep_until(end.into()).await,
            }
        }
    }

    fn moved(&self, way: Way, n: usize) {
        self.moved_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.pass.spend(way, monotonic_now(), n);
    }
}

/// One way of a connection.
#[derive(Debug)]
pub(super) struct Gauge {
    meter: Arc<Meter>,
    way: Way,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Gauge {
    /// Of one way.
    pub(super) fn new(meter: &Arc<Meter>, way: Way) -> Gauge {
        Gauge { meter: meter.clone(), way, waiting: None }
    }

    /// How many bytes may go now; pending until some may.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(timer) = &mut self.waiting {
                std::task::ready!(timer.as_mut().poll(cx));
                self.waiting = None;
            }
            let now = monotonic_now();
            match self.meter.pass.wait(self.way, now) {
                None => return Poll::Ready(self.meter.pass.slice(self.way)),
                // A timer has whole milliseconds; a little late is the mean all the same.
                Some(at) => self.waiting = Some(Box::pin(sleep(at.since(now)))),
            }
        }
    }

    /// So many went.
    pub(super) fn went(&mut self, n: usize) {
        self.meter.moved(self.way, n);
    }
}
