//! A connection that has changed its protocol (101): bytes both ways, until both have ended or nothing has moved for
//! too long. Each direction ends by itself.

use super::Phase;
use super::forward::Visit;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

/// What one direction holds at most.
const BUFFER_BYTES: usize = 16 << 10;

/// Carries bytes from when both sides have changed over.
pub(super) async fn carry(visitor: OnUpgrade, backend: OnUpgrade, idle: Duration, visit: Visit) {
    let (visitor, backend) = match tokio::try_join!(visitor, backend) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(visitor = %visit.peer, %error, "upgrade"),
    };
    let mut phase = visit.phase.clone();
    let carried = tokio::select! {
        carried = both_ways(TokioIo::new(visitor), TokioIo::new(backend), idle) => carried,
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => return,
        () = visit.guest.over() => return,
    };
    if let Err(error) = carried {
        // The visitor is to read an error, no end. (Its socket goes with the halves, which are gone: best effort is
        // what its own protocol makes of it.)
        tracing::debug!(visitor = %visit.peer, %error, "upgraded connection");
    }
}

/// When anything moved last, in milliseconds since the beginning.
struct Clock(Instant, AtomicU64);

async fn both_ways<A, B>(a: A, b: B, idle: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let clock = Clock(Instant::now(), AtomicU64::new(0));
    let ((a_read, a_write), (b_read, b_write)) = (split(a), split(b));
    tokio::select! {
        done = async { tokio::try_join!(one_way(a_read, b_write, &clock), one_way(b_read, a_write, &clock)) } => done.map(drop),
        () = quiet(&clock, idle) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, clock: &Clock) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        clock.1.store(clock.0.elapsed().as_millis() as u64, Ordering::Relaxed);
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}

/// Ends when nothing has moved for so long.
async fn quiet(clock: &Clock, idle: Duration) {
    loop {
        let until = clock.0 + Duration::from_millis(clock.1.load(Ordering::Relaxed)) + idle;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until.into()).await;
    }
}
