//! The agent's side of a UDP conversation: one stream from the bridge, one connected UDP socket to the backend.
//! Promise: what comes faster than the link takes is dropped and counted; a backend that is not there (ICMP) ends the
//! conversation, and the visitor's next datagram begins another one, perhaps elsewhere.

use super::frames::Outbox;
use super::header::Headed;
use super::listener::read_more;
use super::socket::{Path, Udp};
use crate::config::expose::{Heading, UDP_QUEUE_BYTES};
use crate::doors::tally::Tally;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::frame::Reason;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use tokio::net::UnixStream;

/// A socket for the plane, and what carries its datagrams to and from the backend until either side ends. Needs a
/// runtime.
///
/// # Errors
/// [`Reason::DialLocal`], [`Reason::DialUnreachable`].
pub(crate) fn connect(
    to: SocketAddr,
    heading: Option<Heading>,
    tally: Arc<Tally>,
) -> Result<(Socket, impl Future<Output = ()>), Reason> {
    let udp = Udp::connect(to).map_err(|error| match error.kind() {
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Reason::DialUnreachable,
        _ => Reason::DialLocal,
    })?;
    let (inside, outside) = Socket::pair().map_err(|_| Reason::DialLocal)?;
    let stream = UnixStream::from_std(StdStream::from(outside.into_owned())).map_err(|_| Reason::DialLocal)?;
    let carry = async move {
        let why = carry(&udp, to, heading, &stream, &tally).await;
        tracing::trace!(backend = %to, why, "conversation over");
    };
    Ok((inside, carry))
}

async fn carry(
    udp: &Udp,
    to: SocketAddr,
    heading: Option<Heading>,
    stream: &UnixStream,
    tally: &Tally,
) -> &'static str {
    let path = Path { peer: to, local: None };
    let (mut inbox, mut out) = (Vec::new(), Outbox::new(UDP_QUEUE_BYTES));
    let mut headed = heading.map(|heading| (Headed::new(heading), Vec::new()));
    loop {
        tokio::select! {
            ready = stream.readable() => {
                if ready.is_err() {
                    return "the stream broke";
                }
                match read_more(stream, &mut inbox) {
                    Ok(0) => return "the visitor's side ended",
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(_) => return "the stream broke",
                }
                let ready = match &mut headed {
                    None => &mut inbox,
                    Some((headed, ready)) => match headed.advance(&mut inbox, ready) {
                        Ok(lost) => {
                            tally.datagrams_lost.add(lost);
                            ready
                        }
                        Err(_) => return "the visitor's side sent no PROXY header",
                    },
                };
                loop {
                    let Ok(sent) = udp.try_send(ready, path) else { return "the visitor's side sent no datagrams" };
                    tally.datagrams_out.add(sent.datagrams);
                    tally.datagrams_lost.add(sent.lost);
                    ready.drain(..sent.taken);
                    if sent.is_refused {
                        return "nothing listens at the backend";
                    }
                    if !sent.is_blocked {
                        break;
                    }
                    let _ = udp.writable().await;
                }
                if ready.is_empty() {
                    *ready = Vec::new();
                }
            }
            ready = udp.readable() => {
                let received = ready.and_then(|()| udp.try_recv(|_, datagram| {
                    tally.datagrams_in.add(1);
                    if !out.push(datagram) {
                        tally.datagrams_full.add(1);
                    }
                }));
                match received {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => return "nothing listens at the backend",
                    Err(_) => return "the backend cannot be reached",
                }
                flush(stream, &mut out);
            }
            _ = stream.writable(), if !out.is_empty() => flush(stream, &mut out),
        }
    }
}

fn flush(stream: &UnixStream, out: &mut Outbox) {
    while !out.is_empty() {
        match stream.try_write(out.pending()) {
            Ok(n) => out.took(n),
            // A broken stream is found when it is read.
            Err(_) => return,
        }
    }
}
