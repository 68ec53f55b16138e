//! Sockets under hyper: a peer that takes nothing costs itself, and a torn stream is no end of a stream.

use super::meter::{Gauge, Meter};
use ringspan_tunnel::limits::Way;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep};

/// What is read at once of a peer whose bytes are counted.
const PIECE_BYTES: usize = 16 << 10;

/// Set by whoever finds that what was sent is not all there is: the socket is then reset, not closed.
pub(super) type Torn = Arc<AtomicBool>;

/// A socket with a bound on how long a write may wait.
pub(super) struct Patient<T: Ends> {
    inner: T,
    timeout: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    torn: Torn,
    /// Nothing more is written: whether the other side is closed or has ended its half cannot be told apart any more.
    is_shut: bool,
    /// From the peer and to it, where its bytes are counted.
    gauges: Option<Box<(Gauge, Gauge)>>,
}

/// How a kind of socket ends.
pub(super) trait Ends {
    /// The peer is to read an error.
    fn reset(&self);
    /// The end that was just read is none: the other side was closed without one.
    fn is_torn(&self) -> bool;
}

impl Ends for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }

    fn is_torn(&self) -> bool {
        // TCP says it: ECONNRESET.
        false
    }
}

/// One end of a pair whose other end the tunnel has. A backend's FIN is a shutdown of that end's writing; a backend's
/// reset closes it, and a pair has no other word for that (unix(7)).
impl Ends for UnixStream {
    fn reset(&self) {}

    fn is_torn(&self) -> bool {
        // EPIPE comes before the length is looked at (net/unix/af_unix.c, unix_stream_sendmsg).
        self.try_write(&[]).is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl<T: Ends> Patient<T> {
    /// Writes that wait for `timeout` fail.
    pub(super) fn new(inner: T, timeout: Duration, torn: Torn) -> Patient<T> {
        Patient { inner, timeout, waiting: None, torn, is_shut: false, gauges: None }
    }

    /// Its bytes are counted and wait for their time.
    pub(super) fn metered(mut self, meter: Option<&Arc<Meter>>) -> Patient<T> {
        self.gauges = meter.map(|meter| Box::new((Gauge::new(meter, Way::Up), Gauge::new(meter, Way::Down))));
        self
    }

    fn waited<R>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let timeout = self.timeout;
        let timer = self.waiting.get_or_insert_with(|| Box::pin(sleep(timeout)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Ends> Drop for Patient<T> {
    fn drop(&mut self) {
        if self.torn.load(Ordering::Relaxed) {
            self.inner.reset();
        }
    }
}

impl<T: Ends + AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let this = &mut *self;
        let poll = match &mut this.gauges {
            None => Pin::new(&mut this.inner).poll_read(cx, buf),
            Some(gauges) => {
                let may = std::task::ready!(gauges.0.poll_room(cx));
                let mut piece = [0; PIECE_BYTES];
                let mut piece = ReadBuf::new(&mut piece[..may.min(room).min(PIECE_BYTES)]);
                let poll = Pin::new(&mut this.inner).poll_read(cx, &mut piece);
                if poll.is_ready() {
                    gauges.0.went(piece.filled().len());
                    buf.put_slice(piece.filled());
                }
                poll
            }
        };
        match poll {
            Poll::Ready(Ok(()))
                if room > 0 && buf.filled().len() == before && !self.is_shut && self.inner.is_torn() =>
            {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            poll => poll,
        }
    }
}

impl<T: Ends + AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let poll = match &mut this.gauges {
            None => Pin::new(&mut this.inner).poll_write(cx, bytes),
            Some(gauges) => {
                // Who is made to wait has not stopped taking.
                let may = std::task::ready!(gauges.1.poll_room(cx)).min(bytes.len());
                let poll = Pin::new(&mut this.inner).poll_write(cx, &bytes[..may]);
                if let Poll::Ready(Ok(n)) = &poll {
                    gauges.1.went(*n);
                }
                poll
            }
        };
        self.waited(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gauges.is_some() {
            let first = bytes.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
            return self.poll_write(cx, first);
        }
        let poll = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.waited(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.torn.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let poll = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.is_shut |= matches!(poll, Poll::Ready(Ok(())));
        poll
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_engine::kernel::{Shutdown, Socket};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Socket, Patient<UnixStream>) {
        let (theirs, ours) = Socket::pair().unwrap();
        let ours = UnixStream::from_std(ours.into_owned().into()).unwrap();
        (theirs, Patient::new(ours, Duration::from_millis(20), Torn::default()))
    }

    /// A pair that the other side has shut ends; one that it has closed is torn. What was sent before is read in both.
    #[tokio::test]
    async fn a_closed_pair_is_torn() {
        let (theirs, mut ours) = pair();
        theirs.send(b"all", false).unwrap();
        theirs.shutdown(Shutdown::Write);
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"all");

        let (theirs, mut ours) = pair();
        theirs.send(b"part", false).unwrap();
        drop(theirs);
        let mut read = Vec::new();
        let error = ours.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((read.as_slice(), error.kind()), (&b"part"[..], io::ErrorKind::ConnectionReset));

        // Who has ended first is answered, and then both have ended.
        let (theirs, mut ours) = pair();
        ours.shutdown().await.unwrap();
        theirs.send(b"answer", false).unwrap();
        drop(theirs);
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"answer");
    }

    /// A peer that takes nothing is given up; one that takes something is waited for anew.
    #[tokio::test]
    async fn a_write_waits_so_long() {
        let (_theirs, mut ours) = pair();
        let error = ours.write_all(&vec![0; 16 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
