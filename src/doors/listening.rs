//! Listening sockets of doors, and how a visitor is let go: what all of them have in common.

use ringspan_engine::kernel::Socket;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
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

/// A TCP listener whose visitors are as those of the data path's own. Needs a runtime.
pub(super) fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
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
    TcpListener::from_std(listener)
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
