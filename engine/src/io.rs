//! What a worker asks of the kernel, and what comes back. The only language `kernel/` and everything above it share.
//!
//! An [`Io`] is one worker's own: `Ring` (io_uring), `Epoll` (where io_uring is refused) and `SimIo` (seeded, in
//! memory, virtual time) are told apart by nothing but speed. Its promises:
//!
//! 1. Every submitted [`Op`] ends in exactly one final [`Completion`] with its token; `Accept` alone also has
//!    non-final ones ([`Event::Accepted`] with `Ok`).
//! 2. `cancel` makes an operation end soon; the completion still comes, and a success that was faster is reported as
//!    success. Cancelling a token that has ended is harmless.
//! 3. Nothing is completed inside `submit` or `cancel`: completions come from `wait` alone.
//! 4. Bytes of a caller's own socket are not moved through an `Io`. It says when the socket is ready; the resident then
//!    calls the non-blocking methods of [`Socket`](crate::kernel::Socket) and [`Pipe`](crate::kernel::Pipe) on this
//!    thread. (IORING_OP_SPLICE always hops to a kernel worker thread: kernel `io_uring/splice.c`, REQ_F_FORCE_ASYNC.)
//! 5. Lanes are the exception: a talking lane has two buffers that belong to the `Io`, so that connect, send and receive
//!    can be one chain in the kernel and nothing a caller owns is ever lent to it.
//!
//! What a lane costs here: about 110 bytes, and 150 more if it talks; from its first call on [`HEAR_MAX`] bytes to hear
//! with and as much as it has ever said at a time. Lanes are used last in, first out, so 16,000 lanes of which 512 are
//! ever in a call at a time hold 2 MiB of such buffers, not 64. The kernel's socket costs more: about 2.5 KiB.

use crate::kernel::{Fd, Socket};
use crate::time::Instant;
use crate::token::Token;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// One operation. Small and `Copy`: an `Io` keeps what the kernel needs of it.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Connect a lane's socket to `to` and free the lane again, whatever came of it. Ends in [`Event::Knocked`] when
    /// the lane can be used once more. One operation per lane at a time.
    Knock {
        /// Which recycled socket.
        lane: Lane,
        /// Where to knock; its family must be the lane's.
        to: SocketAddr,
        /// Ask the kernel what it measured ([`Io::tcp_facts`]) before the connection is dropped. Costs a system call
        /// and a turn between connect and reset: for a sample of the knocks, not for all. A half-open knock has a round
        /// trip too: TCP takes the sample when the SYN/ACK comes (net/ipv4/tcp_input.c, tcp_rcv_synsent_state_process
        /// calls tcp_ack), before the ACK that is held back.
        look: bool,
    },
    /// Connect a talking lane's socket to `to`, say what its outgoing buffer holds ([`Io::outgoing`]; may be nothing),
    /// and wait for the first bytes of the answer. Ends in [`Event::Heard`]. The lane stays connected, whatever came of
    /// it, until [`Op::Hang`]. One operation per lane at a time. What cannot be begun is a failure of [`Leg::Connect`]:
    /// EBUSY an operation is in flight, EISCONN the last call was not hung up, EMSGSIZE the outgoing buffer is too full,
    /// EOPNOTSUPP the lane only knocks, EMFILE and the like a new socket was needed and is not to be had.
    Call {
        /// A lane of [`Way::Stream`], [`Way::Datagram`] or [`Way::Ping`], not in a call.
        lane: Lane,
        /// Whom to call; its family must be the lane's.
        to: SocketAddr,
    },
    /// Say what the outgoing buffer holds (may be nothing), then wait for more bytes. Ends in [`Event::Heard`]. Without a
    /// call that has been answered the connect it is a failure of [`Leg::Say`], ENOTCONN.
    Talk {
        /// A lane in a call.
        lane: Lane,
    },
    /// End the call and make the lane ready for the next. Ends in [`Event::Hung`]; cannot be cancelled. Nothing of the old
    /// call reaches the next one. On a lane that is in no call it does nothing; while an operation is in flight it is a
    /// mistake of the caller, and panics.
    Hang {
        /// A lane in a call, or one whose call failed.
        lane: Lane,
        /// How.
        end: End,
    },
    /// connect(2) on a fresh non-blocking socket. Ends in [`Event::Connected`].
    Connect {
        /// The caller's socket; it must stay open until the completion.
        fd: Fd,
        /// Where to.
        to: SocketAddr,
    },
    /// Accept connections until cancelled or failed: an [`Event::Accepted`] each, `Err` ends it. The accepted sockets
    /// are non-blocking and close-on-exec.
    Accept {
        /// A listening socket; it must stay open until the final completion.
        fd: Fd,
    },
    /// Wait once until the socket is ready in one of the named ways, or has failed or been shut. Ends in
    /// [`Event::Ready`]. May wake spuriously. Before closing the socket cancel it or shut the socket down: a poll in
    /// flight keeps the file open. One `Poll` at a time per socket *and direction*: two polls, one for reading and
    /// one for writing, may be in flight on one socket under different tokens.
    Poll {
        /// Any pollable descriptor; it must stay open until the completion.
        fd: Fd,
        /// What to wait for.
        interest: Interest,
    },
}

/// What a [`Op::Poll`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, end of stream, or an error.
    Read,
    /// Room to write, or an error.
    Write,
}

/// What a lane's socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// TCP, for [`Op::Knock`].
    Knock(Mode),
    /// TCP, for [`Op::Call`].
    Stream,
    /// UDP, for [`Op::Call`]; each [`Event::Heard`] is one datagram, cut off at [`HEAR_MAX`]; of 0 bytes it is an empty one.
    /// Each call has a socket of its own: a recycled one would keep what the last peer said too late.
    Datagram,
    /// ICMP echo over a ping socket (icmp(7): net.ipv4.ping_group_range), for [`Op::Call`]; bytes are an ICMP message
    /// from its type on; the kernel fills in identifier and checksum, and only replies to this identifier are heard. No
    /// raw sockets, not even with CAP_NET_RAW. Each call has a socket, and so an identifier, of its own.
    Ping,
}

/// What lanes of one pool have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKind {
    /// What for.
    pub way: Way,
    /// Address family.
    pub family: Family,
    /// Local address to speak from, of the same family; `None`: the kernel chooses (ip(7), IP_BIND_ADDRESS_NO_PORT).
    pub source: Option<IpAddr>,
}

impl LaneKind {
    /// A knocking lane with no source of its own.
    pub const fn knock(mode: Mode, family: Family) -> LaneKind {
        LaneKind { way: Way::Knock(mode), family, source: None }
    }
}

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// connect(AF_UNSPEC): RST if the peer has not closed first; no TIME_WAIT. For datagrams: forget the peer.
    Reset,
    /// FIN. If the peer has not closed first this leaves a TIME_WAIT of 60 s on this side. The lane gets a new socket.
    /// Up to 1 MiB that was not heard is thrown away first, since closing on unread data is a reset (RFC 2525, 2.17).
    Fin,
}

/// Where a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    /// connect(2).
    Connect,
    /// send(2).
    Say,
    /// recv(2).
    Hear,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trouble {
    /// Where.
    pub leg: Leg,
    /// The kernel's errno; ECANCELED if the operation was cancelled first.
    pub errno: Errno,
}

/// What the kernel measured on a lane's connection (tcp(7), TCP_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFacts {
    /// Smoothed round trip, microseconds: right after a connect it is the one sample SYN to SYN/ACK (tcpi_rtt). 0: none.
    pub rtt_us: u32,
    /// Segments sent again (tcpi_total_retrans): right after a connect, SYNs.
    pub retransmits: u32,
}

/// Bytes one [`Event::Heard`] brings at most.
pub const HEAR_MAX: usize = 4096;
/// Bytes an outgoing buffer may hold: a request, a handshake message. More is an error of the caller.
pub const SAY_MAX: usize = 16 * 1024;

/// A recycled socket that belongs to the `Io`, opened by [`Io::open_lanes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane(pub u32);

/// How a knock ends the connection it made. Table in docs/probing.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// SYN, SYN/ACK, RST: the application never sees it. Default. TCP_DEFER_ACCEPT on the client holds the final ACK
    /// back (net/ipv4/tcp_input.c, tcp_rcv_synsent_state_process).
    HalfOpen,
    /// Full handshake, then RST: the application accepts a connection and finds it reset. No TIME_WAIT.
    Full,
    /// Full handshake, then FIN: the application reads a clean end. Leaves a TIME_WAIT of 60 s on this side.
    Graceful,
}

/// Address family of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family `address` needs.
    pub fn of(address: &SocketAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// An errno of the kernel, always positive (errno(3)).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// ECANCELED: whoever asked has taken it back (asm-generic/errno.h).
    pub const CANCELED: Errno = Errno(125);
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// How an operation came out.
#[derive(Debug)]
pub enum Event {
    /// A knock is over and its lane is free. `Err(ECANCELED)` if it was cancelled first.
    Knocked(Result<(), Errno>),
    /// A call or a talk is over: so many bytes were heard ([`Io::heard`]); 0: the peer has closed its side.
    Heard(Result<usize, Trouble>),
    /// A call has ended and its lane is free.
    Hung,
    /// A connect is over.
    Connected(Result<(), Errno>),
    /// `Ok`: one more connection, and the accept is still armed. `Err`: the accept is over.
    Accepted(Result<Socket, Errno>),
    /// A poll is over: ready, failed, shut or cancelled; the next read or write tells which.
    Ready {
        /// Behind what there is to be read comes the end: whoever has read less than was asked for may as well read on. A
        /// hint, of polls for reading; `false` is not a promise.
        ends: bool,
    },
}

/// One event of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The token the operation was submitted with.
    pub token: Token,
    /// What happened.
    pub event: Event,
}

/// One worker's access to the kernel. See the module for its promises.
pub trait Io {
    /// The clock, read now.
    fn now(&self) -> Instant;

    /// Opens up to `count` more lanes of one kind and returns their numbers, consecutive. Fewer than asked, but at least one, is
    /// success: the limit on open files is near. Lanes live as long as the `Io`.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM when not even one could be opened: local trouble, never a target's fault.
    /// EADDRNOTAVAIL when the source is not an address of this machine; EACCES when ping sockets are not permitted.
    fn open_lanes(&mut self, kind: LaneKind, count: u32) -> io::Result<Range<u32>>;

    /// What a talking lane will say with its next [`Op::Call`] or [`Op::Talk`]: emptied when the operation ends. Must not
    /// be touched while one is in flight. At most [`SAY_MAX`] bytes.
    fn outgoing(&mut self, lane: Lane) -> &mut Vec<u8>;

    /// What the lane heard last; valid from [`Event::Heard`] until the lane's next operation.
    fn heard(&self, lane: Lane) -> &[u8];

    /// When the connection of the lane's present call was seen to be made, read from the clock when its completion was
    /// collected; `None`: not yet, or no call.
    fn connected_at(&self, lane: Lane) -> Option<Instant>;

    /// What the kernel measured: of a talking lane, now, while it is in a call; of a knocking lane, at its last knock if
    /// that was told to look. `None`: nothing is known. A system call for talking lanes.
    fn tcp_facts(&mut self, lane: Lane) -> Option<TcpFacts>;

    /// Queues one operation. The token must not be in flight already. Never blocks and never fails: what cannot be
    /// done comes back as a completion with the errno.
    fn submit(&mut self, token: Token, op: Op);

    /// Asks that the operation with this token end soon.
    fn cancel(&mut self, token: Token);

    /// Hands everything queued to the kernel and waits until something completes, the worker's
    /// [`Waker`](crate::kernel::Waker) rings, or `deadline` (`None`: no deadline) has passed. Appends completions.
    /// A deadline in the past means: do not wait, only collect.
    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>);
}
