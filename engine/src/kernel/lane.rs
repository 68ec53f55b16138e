//! The sockets of lanes, whoever drives them: how they are opened for each [`Way`], how a call is closed with a clean
//! end, what TCP measured, and when a socket could have met itself.

use super::socket::{RawAddr, Shutdown, Socket, check};
use crate::io::{Family, LaneKind, Mode, TcpFacts, Way};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};

/// How much unread data a clean end throws away, at 64 KiB a time: closing with data unread would be a reset
/// (RFC 2525 section 2.17). A peer that has sent more gets the reset.
const DISCARDS_MAX: usize = 16;

impl LaneKind {
    /// Whether the socket is recycled with connect(AF_UNSPEC). The others are used once. A datagram socket would keep
    /// what the last peer said too late (net/ipv4/udp.c, __udp_disconnect, leaves the queue as it is).
    pub(super) fn is_recycled(self) -> bool {
        match self.way {
            Way::Knock(mode) => mode != Mode::Graceful,
            Way::Stream => true,
            Way::Datagram | Way::Ping => false,
        }
    }

    pub(super) fn talks(self) -> bool {
        !matches!(self.way, Way::Knock(_))
    }
}

/// A fresh non-blocking socket for a lane of this kind.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM (socket(2)); EADDRNOTAVAIL: the source is not this machine's; EAFNOSUPPORT: it is of another
/// family, or the machine has none of this one; EACCES: no ping sockets for this user (icmp(7)).
pub(super) fn open(kind: LaneKind) -> io::Result<Socket> {
    let socket = match kind.way {
        Way::Knock(_) | Way::Stream => Socket::tcp(kind.family)?,
        Way::Datagram => fresh(kind.family, libc::IPPROTO_UDP)?,
        Way::Ping => match kind.family {
            Family::V4 => fresh(kind.family, libc::IPPROTO_ICMP)?,
            Family::V6 => fresh(kind.family, libc::IPPROTO_ICMPV6)?,
        },
    };
    match kind.way {
        Way::Knock(Mode::HalfOpen) => {
            // Any value holds the final ACK back, and connect(AF_UNSPEC) does not clear it.
            socket.set(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5i32)?;
            socket.reset_on_close()?;
        }
        Way::Knock(Mode::Full) => socket.reset_on_close()?,
        Way::Stream => {
            socket.set_nodelay()?;
            // A few segments each way need no pacing. Refused where there is no Reno: then the system's choice stays.
            let _ = socket.set_unpaced();
        }
        Way::Knock(Mode::Graceful) | Way::Datagram | Way::Ping => {}
    }
    if let Some(source) = kind.source {
        bind(&socket, kind.family, source)?;
    }
    Ok(socket)
}

/// Whether there can be lanes of a kind that opens a socket for each use: not permitted and not ours are known before.
///
/// # Errors
/// As [`open`].
pub(super) fn try_open(kind: LaneKind) -> io::Result<()> {
    if !kind.is_recycled() && (kind.talks() || kind.source.is_some()) { open(kind).map(drop) } else { Ok(()) }
}

fn fresh(family: Family, protocol: i32) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes integers.
    let fd = check(unsafe { libc::socket(domain, kind, protocol) })?;
    // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
    Ok(Socket::from_owned(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Binds to the address and leaves the port to connect(2), so that two lanes may speak from one port to two peers. The
/// address stays when the socket is recycled (SOCK_BINDADDR_LOCK: net/ipv4/tcp.c, tcp_disconnect).
fn bind(socket: &Socket, family: Family, source: IpAddr) -> io::Result<()> {
    let address = SocketAddr::new(source, 0);
    if Family::of(&address) != family {
        return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    }
    socket.set(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1i32)?;
    let raw = RawAddr::new(&address);
    // SAFETY: the pointer and the length describe `raw`, which outlives the call.
    check(unsafe { libc::bind(socket.raw(), raw.as_ptr(), raw.len()) })?;
    Ok(())
}

/// Whether the ACK that ends the handshake waits for the first words, so that both are one segment: right where we speak
/// first, since they follow at once; where the server speaks first it would wait for an answer, 200 ms at most. The bit
/// that does it is the one of half-open knocks (net/ipv4/tcp_input.c, tcp_rcv_synsent_state_process); it outlives
/// connect(AF_UNSPEC), so the caller remembers what it set. Measured on loopback: see bench/README.md, `bench probe`.
pub(super) fn let_ack_wait(socket: &Socket, wait: bool) {
    // An option that every TCP has; without it there is one segment more.
    let _ = socket.set(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, i32::from(wait));
}

/// Closes with a FIN, whatever is unread.
pub(super) fn close_cleanly(socket: Socket) {
    socket.shutdown(Shutdown::Write);
    for _ in 0..DISCARDS_MAX {
        match socket.discard(1 << 16) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}

/// What TCP has measured on the connection so far (tcp(7), TCP_INFO); `None` where there is no connection.
pub(super) fn tcp_facts(socket: &Socket) -> Option<TcpFacts> {
    // SAFETY: tcp_info is plain integers; all zeroes is a value of it.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    let into = (&raw mut info).cast();
    // SAFETY: pointer and length describe `info`, which outlives the call; a kernel that knows less writes less.
    check(unsafe { libc::getsockopt(socket.raw(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut len) }).ok()?;
    Some(TcpFacts { rtt_us: info.tcpi_rtt, retransmits: info.tcpi_total_retrans })
}

/// Whether a connect to `to` may come back to its own socket: the kernel may choose the very port that it calls, and a
/// socket that sends a SYN to itself is connected (simultaneous open, RFC 9293 section 3.5), once in about 28,000
/// connects to a closed port of ours in the range of chosen ports (ip(7), ip_local_port_range). Without a source of the
/// lane's own 127.0.0.1 and ::1 alone: a connect to another of 127.0.0.0/8 comes from 127.0.0.1, and this machine's other
/// addresses are not known here.
pub(super) fn may_meet_itself(source: Option<IpAddr>, to: &SocketAddr) -> bool {
    /// The range starts no lower than this on any machine that has not been told otherwise (Documentation/networking/
    /// ip-sysctl.rst: 32768); a lower one that an administrator set is still mostly above it.
    const CHOSEN_PORT_MIN: u16 = 10_000;
    let is_source = match (source, to.ip()) {
        (Some(source), ip) => ip == source,
        (None, IpAddr::V4(ip)) => ip == Ipv4Addr::LOCALHOST,
        (None, IpAddr::V6(ip)) => ip == Ipv6Addr::LOCALHOST,
    };
    is_source && to.port() >= CHOSEN_PORT_MIN
}
