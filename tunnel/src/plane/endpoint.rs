//! The local socket of one stream: a visitor's on the bridge, a backend's on the agent.
//! Promise: bytes reach the socket in the order they came, in pipes or in memory while it is slow; the clean end is
//! passed on only after the last of them; a reset stays a reset.
//!
//! ```text
//! Dialing ──connected──▶ Open ──both ways over, or reset──▶ Closing (operations in flight come home) ──▶ gone
//! ```

use super::fare::Fare;
use super::pipes::Pipes;
use super::rest::Pieces;
use super::unplaced::Unplaced;
use crate::frame::Reason;
use crate::limits::Way;
use crate::moving::Moving;
use crate::slots::Key;
use ringspan_engine::io::Errno;
use ringspan_engine::kernel::{Pipe, Shutdown, Socket};
use ringspan_engine::time::Instant;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};

/// Spilled bytes are gathered in pieces of at most this size.
const SPILL_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A connect is in flight; what arrives is held.
    Dialing {
        /// Give up then.
        deadline: Instant,
    },
    Open,
    /// No longer anybody's: waits for its operations to come home, then the socket is closed.
    Closing,
    /// The same, then the socket goes back to the role: its backend was not reached.
    Leaving(Reason),
}

#[derive(Debug)]
enum Held {
    Bytes { bytes: Vec<u8>, at: usize },
    Pipe { pipe: Pipe, left: usize },
}

/// What comes behind bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Unknown,
    End,
    Failure,
}

/// Which of its operations are in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Armed {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) dial: bool,
}

impl Armed {
    pub(super) fn any(self) -> bool {
        self.read || self.write || self.dial
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `None` only while the control plane is asked for one.
    pub(super) socket: Option<Socket>,
    pub(super) carrier: Key,
    /// Its stream on that carrier; the mux may have forgotten it.
    pub(super) stream: u32,
    /// Which backend the stream goes to: its number at the agent.
    pub(super) backend: u16,
    pub(super) stage: Stage,
    pub(super) armed: Armed,
    /// Its end came with the bytes that are to be read, or before them.
    pub(super) end_is_near: bool,
    /// The socket's end was read and FIN was sent.
    pub(super) read_ended: bool,
    /// The peer's FIN came: when nothing is held, the socket is shut for writing.
    pub(super) fin_due: bool,
    shut: bool,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Moves its bytes through a pipe.
    pub(super) splices: bool,
    /// Reads in a row that speak for the other mover.
    pub(super) streak: u8,
    wrote: bool,
    nodelay: bool,
    /// Where its bytes go and come from, if not on the mux.
    pub(super) moving: Moving,
    pub(super) direct: Option<Key>,
    /// Bridge: it leaves the mux when it has carried enough, and this is how much it has.
    pub(super) may_move: bool,
    pub(super) carried: u64,
    pub(super) pieces: Pieces,
    /// A direct carrier was asked for.
    pub(super) asked: bool,
    /// Bytes that go to the link before the socket's own.
    pub(super) prefix: Vec<u8>,
    /// Agent: the bridge waits to hear whether the backend is reached.
    pub(super) tell: bool,
    /// Bridge: nothing says yet that the backend is reached.
    pub(super) unplaced: Option<Box<Unplaced>>,
    /// Bridge: what counts and limits it, if anything does.
    pub(super) fare: Option<Box<Fare>>,
}

impl Endpoint {
    pub(super) fn new(socket: Option<Socket>, carrier: Key, backend: u16, stage: Stage) -> Endpoint {
        Endpoint {
            socket,
            carrier,
            stream: 0,
            backend,
            stage,
            armed: Armed::default(),
            end_is_near: false,
            read_ended: false,
            fin_due: false,
            shut: false,
            held: VecDeque::new(),
            held_bytes: 0,
            splices: false,
            streak: 0,
            wrote: false,
            nodelay: false,
            moving: Moving::MUX,
            direct: None,
            may_move: false,
            carried: 0,
            pieces: Pieces::default(),
            asked: false,
            prefix: Vec::new(),
            tell: false,
            unplaced: None,
            fare: None,
        }
    }

    /// The socket of an endpoint that is open.
    pub(super) fn open_socket(&self) -> &Socket {
        self.socket.as_ref().expect("an open endpoint has a socket")
    }

    /// The socket already has TCP_NODELAY (a visitor's inherits it from its listener).
    pub(super) fn with_nodelay(mut self) -> Endpoint {
        self.nodelay = true;
        self
    }

    /// Whether its bytes may go to the link without being looked at.
    pub(super) fn may_splice(&self) -> bool {
        let is_paced = self.fare.as_ref().is_some_and(|fare| fare.pass.limits(Way::Up));
        self.splices && self.prefix.is_empty() && self.unplaced.is_none() && !is_paced
    }

    /// Whether it is still somebody's.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Closing | Stage::Leaving(_))
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether its dial has taken too long.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Dialing { deadline } if deadline <= now)
    }

    /// Whether a poll for writing is due.
    pub(super) fn wants_write(&self) -> bool {
        self.stage == Stage::Open && !self.held.is_empty() && !self.armed.write
    }

    /// Nagle's algorithm only matters from the second write on (it holds a small segment back while an earlier one is
    /// unacknowledged), so a socket that is written once never pays for the option.
    fn before_write(&mut self) {
        if self.wrote && !self.nodelay {
            self.nodelay = true;
            // A failure shows at the write that follows.
            let _ = self.open_socket().set_nodelay();
        }
        self.wrote = true;
    }

    /// Whether nothing stands before new bytes, neither others nor a limit.
    fn writes_at_once(&self) -> bool {
        self.stage == Stage::Open && self.held.is_empty() && !self.is_paced()
    }

    /// Whether bytes to its socket are limited.
    pub(super) fn is_paced(&self) -> bool {
        self.fare.as_ref().is_some_and(|fare| fare.paced)
    }

    /// Writes what the socket takes now and holds the rest. Returns how much was written. `last`: the clean end follows at
    /// once, and may ride in the same segment.
    pub(super) fn write(&mut self, bytes: &[u8], last: bool) -> io::Result<usize> {
        let mut written = 0;
        if self.writes_at_once() {
            self.before_write();
            written = or_nothing(self.open_socket().send(bytes, last))?;
        }
        self.hold(&bytes[written..]);
        Ok(written)
    }

    /// Behind the first `n` bytes of the buffer, which were read a moment ago, the end is near: how many there are, and what
    /// comes behind them. (Not always the end: a read stops short at urgent data, tcp(7).)
    pub(super) fn read_on(&self, buffer: &mut [u8], n: usize) -> (usize, Behind) {
        match self.open_socket().recv(&mut buffer[n..]) {
            Ok(0) => (n, Behind::End),
            Ok(more) => (n + more, Behind::Unknown),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                (n, Behind::Unknown)
            }
            // The kernel tells it once: the next read would be a clean end.
            Err(_) => (n, Behind::Failure),
        }
    }

    fn hold(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.held_bytes += bytes.len();
        if let Some(Held::Bytes { bytes: last, .. }) = self.held.back_mut()
            && last.len() + bytes.len() <= SPILL_BYTES
        {
            last.extend_from_slice(bytes);
            return;
        }
        self.held.push_back(Held::Bytes { bytes: bytes.to_vec(), at: 0 });
    }

    /// Writes what the socket takes now of the `left` bytes in the pipe and holds the pipe if some stay.
    pub(super) fn write_pipe(&mut self, pipe: Pipe, left: usize, pipes: &mut Pipes) -> io::Result<usize> {
        let mut now = left;
        if self.writes_at_once() {
            self.before_write();
            now = match drain(&pipe, self.open_socket(), left) {
                Ok(now) => now,
                Err(error) => {
                    pipes.drop_full(pipe);
                    return Err(error);
                }
            };
        }
        if now == 0 {
            pipes.put(pipe);
            return Ok(left);
        }
        let held = if pipes.may_wait() {
            Held::Pipe { pipe, left: now }
        } else {
            Held::Bytes { bytes: pipes.empty(pipe, now)?, at: 0 }
        };
        self.held_bytes += now;
        self.held.push_back(held);
        Ok(left - now)
    }

    /// Writes what the socket takes now of what is held, `max` bytes at most. Returns how much.
    pub(super) fn flush(&mut self, max: usize, pipes: &mut Pipes) -> io::Result<usize> {
        let mut written = 0;
        let Some(socket) = &self.socket else { return Ok(0) };
        while let Some(front) = self.held.front_mut()
            && written < max
        {
            let room = max - written;
            let (n, left) = match front {
                Held::Bytes { bytes, at } => {
                    let end = bytes.len().min(at.saturating_add(room));
                    let n = or_nothing(socket.send(&bytes[*at..end], false))?;
                    *at += n;
                    (n, bytes.len() - *at)
                }
                Held::Pipe { pipe, left } => {
                    let piece = (*left).min(room);
                    let n = piece - drain(pipe, socket, piece)?;
                    *left -= n;
                    (n, *left)
                }
            };
            written += n;
            self.held_bytes -= n;
            if left > 0 {
                break;
            }
            if let Some(Held::Pipe { pipe, .. }) = self.held.pop_front() {
                pipes.put_waiting(pipe);
            }
        }
        if self.held.is_empty() {
            // Its list should not cost memory for the life of an idle stream.
            self.held = VecDeque::new();
        }
        self.wrote = true;
        Ok(written)
    }

    /// Drops what is held; returns how much it was.
    pub(super) fn forget(&mut self, pipes: &mut Pipes) -> usize {
        for held in self.held.drain(..) {
            if let Held::Pipe { pipe, .. } = held {
                pipes.drop_waiting(pipe);
            }
        }
        std::mem::take(&mut self.held_bytes)
    }

    /// Passes the clean end on when its time has come. Returns whether both ways are over.
    pub(super) fn settle(&mut self) -> bool {
        if self.stage != Stage::Open || !self.fin_due || !self.held.is_empty() {
            return false;
        }
        if !self.read_ended && !self.shut {
            self.shut = true;
            self.open_socket().shutdown(Shutdown::Write);
        }
        // Both over: closing says the end as well as shutdown(2) would, for a system call less.
        self.read_ended
    }
}

/// Moves `left` bytes out of the pipe as far as the socket takes them; returns how many stay.
pub(super) fn drain(pipe: &Pipe, socket: &Socket, mut left: usize) -> io::Result<usize> {
    while left > 0 {
        match pipe.drain(socket, left, false) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => left -= n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}

/// A call that would have blocked moved nothing.
pub(super) fn or_nothing(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

/// What a failed dial means to the other side.
pub(crate) fn dial_reason(errno: Errno) -> Reason {
    use ringspan_engine::outcome::Code;
    match Code::of_connect(errno) {
        Code::L4Refused | Code::L4Reset => Reason::DialRefused,
        Code::L4Timeout => Reason::DialTimeout,
        Code::L4Unreachable => Reason::DialUnreachable,
        _ => Reason::DialLocal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle stream costs what it must: this, its mux's part, its slots, and nothing on the heap.
    #[test]
    fn an_endpoint_is_small() {
        let bytes = size_of::<Endpoint>();
        assert!(bytes <= 160, "{bytes}");
    }
}
