//! The cheapest relays there are. For bulk: splice(2) from a socket through a pipe into a socket, poll(2) when it would
//! block; one direction, one connection, one thread. For many small messages: epoll(7), edge-triggered, and for each
//! message one recv(2) and one send(2); all connections on one thread.

use super::probe::new_epoll;
use crate::kernel::socket::check;
use crate::kernel::{Pipe, Shutdown, Socket};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

/// Moves everything from one stream to the other through a pipe of `pipe_bytes`, and returns how many bytes that was
/// when `from` has ended. The far stream then gets its clean end.
///
/// # Errors
/// Those of pipe(2), splice(2) and poll(2).
pub fn splice_relay(from: TcpStream, to: TcpStream, pipe_bytes: usize) -> io::Result<u64> {
    // splice(2) from a socket waits by the descriptor's own flag, whatever SPLICE_F_NONBLOCK says (net/ipv4/tcp.c,
    // tcp_splice_read).
    from.set_nonblocking(true)?;
    to.set_nonblocking(true)?;
    let (from, to) = (Socket::from_owned(OwnedFd::from(from)), Socket::from_owned(OwnedFd::from(to)));
    let pipe = Pipe::new(pipe_bytes)?;
    let mut total = 0;
    loop {
        // The pipe is empty here, so "would block" can only mean that the source is.
        match pipe.fill(&from, pipe_bytes) {
            Ok(0) => {
                to.shutdown(Shutdown::Write);
                return Ok(total);
            }
            Ok(filled) => {
                drain(&pipe, &to, filled)?;
                total += filled as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&from, libc::POLLIN)?,
            Err(e) => return Err(e),
        }
    }
}

fn drain(pipe: &Pipe, to: &Socket, mut left: usize) -> io::Result<()> {
    while left > 0 {
        match pipe.drain(to, left, false) {
            Ok(moved) => left -= moved,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(to, libc::POLLOUT)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(socket: &Socket, events: libc::c_short) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: socket.fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: the pointer and the count of one describe `entry`, which outlives the call.
    match unsafe { libc::poll(&raw mut entry, 1, -1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Bytes of one message at most: the rest of a longer one stays until the next comes.
const MESSAGE_BYTES: usize = 64 << 10;
/// Events of one epoll_wait(2).
const EVENTS: usize = 512;
/// In an event: it is the listener's.
const OF_LISTENER: u64 = u64::MAX;

/// Relays messages between each visitor of `listener` and a connection of its own to `to`, for ever. It lacks all that a
/// relay needs: a message that does not fit its receiver's buffer at once, and an end of either side, end both.
///
/// # Errors
/// Those of epoll(7); `to` does not accept.
pub fn message_relay(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = new_epoll()?;
    watch(&epoll, listener, libc::EPOLLIN, OF_LISTENER)?;
    // By descriptor: the socket, and its partner's descriptor.
    let mut pairs: Vec<Option<(Socket, usize)>> = Vec::new();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    let mut message = vec![0; MESSAGE_BYTES];
    loop {
        // SAFETY: pointer and length describe `events`, which outlives the call.
        let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, -1) };
        for event in &events[..usize::try_from(ready).unwrap_or(0)] {
            let fd = event.u64;
            if fd == OF_LISTENER {
                while let Ok((visitor, _)) = listener.accept() {
                    pair(&epoll, &mut pairs, visitor, TcpStream::connect(to)?)?;
                }
                continue;
            }
            let fd = fd as usize;
            let Some((socket, partner)) = pairs.get(fd).and_then(Option::as_ref) else { continue };
            // An end that came with the last message has no event of its own.
            let ends = event.events & libc::EPOLLRDHUP as u32 != 0;
            let is_over = loop {
                let moved = socket.recv(&mut message).and_then(|n| {
                    let (partner, _) = pairs[*partner].as_ref().expect("they come and go together");
                    Ok(n > 0 && partner.send(&message[..n], false)? == n)
                });
                match moved {
                    Ok(true) if ends => {}
                    Ok(went) => break !went,
                    Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
                }
            };
            if is_over {
                let partner = *partner;
                (pairs[fd], pairs[partner]) = (None, None);
            }
        }
    }
}

fn pair(
    epoll: &OwnedFd,
    pairs: &mut Vec<Option<(Socket, usize)>>,
    visitor: TcpStream,
    backend: TcpStream,
) -> io::Result<()> {
    let (a, b) = (visitor.as_raw_fd() as usize, backend.as_raw_fd() as usize);
    pairs.resize_with(pairs.len().max(a.max(b) + 1), || None);
    for (stream, partner) in [(visitor, b), (backend, a)] {
        stream.set_nodelay(true)?;
        let fd = stream.as_raw_fd() as usize;
        pairs[fd] = Some((Socket::from_owned(OwnedFd::from(stream)), partner));
    }
    for fd in [a, b] {
        let (socket, _) = pairs[fd].as_ref().expect("just put there");
        watch(epoll, &socket.fd, libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET, fd as u64)?;
    }
    Ok(())
}

fn watch(epoll: &OwnedFd, file: &impl AsRawFd, events: i32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    // SAFETY: the pointer describes `event`, which outlives the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, file.as_raw_fd(), &raw mut event) })?;
    Ok(())
}
