//! Listening sockets of doors, and how a visitor is let go: what all of them have in common.

use ringspan_engine::kernel::Socket;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// As the data path's own listeners have it; net.core.somaxconn caps it.
const BACKLOG: i32 = 4096;
/// As the data path's own listeners have it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// After a failed accept, mostly for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);
/// A visitor that is refused has this long to read why.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// A listener of a door.
pub(super) struct Ear {
    listener: TcpListener,
    // After the socket.
    life: Arc<()>,
}

/// One that is being closed, in a task of its own.
#[derive(Clone, Debug)]
pub(crate) struct Closing(Weak<()>);

impl Ear {
    /// The next visitor.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept().await
    }

    /// With the real port if 0 was asked for.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Tells when it is closed.
    pub(super) fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.life))
    }
}

impl Closing {
    /// Whether the socket is closed.
    pub(crate) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// A TCP listener whose visitors are as those of the data path's own. Needs a runtime.
pub(super) fn tcp(address: SocketAddr) -> io::Result<Ear> {
    let socket = match crate::inherit::tcp(address) {
        Some(inherited) => Socket::from_owned(inherited),
        None => Socket::listen(&address, BACKLOG)?,
    };
    // Accepted sockets inherit all of it; they would work without.
    let _ = socket.set_nodelay();
    let _ = socket.set_keepalive(KEEPALIVE_IDLE);
    if address.ip().is_loopback() {
        let _ = socket.set_unpaced();
    }
    let listener = StdListener::from(socket.into_owned());
    listener.set_nonblocking(true)?;
    Ok(Ear { listener: TcpListener::from_std(listener)?, life: Arc::default() })
}

/// Waits a little after a failed accept, and says so.
pub(super) async fn pause(listener: &str, error: &io::Error) {
    tracing::warn!(listener, %error, "accepting paused; is the limit on open files reached?");
    tokio::time::sleep(PAUSE).await;
}

/// Says the last words and closes so that they arrive: what the visitor still sends is read for a while, because a
/// close with unread bytes is a reset, which overtakes the words (RFC 9112 §9.6).
pub(super) async fn linger_away(mut stream: TcpStream, words: &[u8]) {
    let last = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        let mut rest = [0; 2048];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever does not listen is let go all the same.
    let _ = tokio::time::timeout(LINGER_MAX, last).await;
}
