//! The cheapest relay there is: splice(2) from a socket through a pipe into a socket, poll(2) when it would block.
//! One direction, one connection, one thread.

use crate::kernel::{Pipe, Shutdown, Socket};
use std::io;
use std::net::TcpStream;
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
