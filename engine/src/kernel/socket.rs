//! Owned sockets and pipes with the non-blocking calls a data path needs.
//! Promise: no method blocks; `WouldBlock` means "poll, then try again". SIGPIPE is never raised (MSG_NOSIGNAL on
//! sends; std ignores the signal at start, which covers splice(2)).

use crate::io::Family;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// A borrowed descriptor number for an [`Op`](crate::io::Op). Using one after its owner closed it is a logic error, not
/// a memory error: the kernel answers EBADF or acts on another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fd(pub(crate) i32);

/// A stream socket (TCP, v4 or v6; also a listening one). Closed on drop.
#[derive(Debug)]
pub struct Socket {
    pub(crate) fd: OwnedFd,
}

/// Which way a shutdown goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// No more writes: the peer reads a clean end (FIN).
    Write,
    /// Neither way; every poll on the socket ends.
    Both,
}

/// Most bytes one splice may move: large enough for any pipe, small enough that one call cannot hold the thread long.
pub const SPLICE_BYTES_MAX: usize = 1 << 20;

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A socket address as the kernel wants it.
#[derive(Clone, Copy)]
pub(crate) struct RawAddr {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddr {
    pub(crate) fn new(address: &SocketAddr) -> RawAddr {
        // SAFETY: sockaddr_storage is plain integers; all zeroes is a value of it.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let len = match address {
            SocketAddr::V4(a) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is at least as large and as aligned as any sockaddr (POSIX).
                unsafe { ptr::write((&raw mut storage).cast(), raw) };
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(a) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: a.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: a.scope_id(),
                };
                // SAFETY: as above.
                unsafe { ptr::write((&raw mut storage).cast(), raw) };
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        RawAddr { storage, len: len as libc::socklen_t }
    }

    /// The address that makes connect(2) dissolve an association (connect(2): AF_UNSPEC).
    pub(crate) fn unspec() -> RawAddr {
        let mut raw = RawAddr::new(&SocketAddr::from(([0, 0, 0, 0], 0)));
        raw.storage.ss_family = libc::AF_UNSPEC as libc::sa_family_t;
        raw
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    fn to_std(self) -> io::Result<SocketAddr> {
        match libc::c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the kernel wrote a sockaddr_in, and the storage is large enough.
                let a: libc::sockaddr_in = unsafe { ptr::read((&raw const self.storage).cast()) };
                let ip = Ipv4Addr::from(a.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddrV4::new(ip, u16::from_be(a.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above, for sockaddr_in6.
                let a: libc::sockaddr_in6 = unsafe { ptr::read((&raw const self.storage).cast()) };
                let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
                Ok(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), a.sin6_flowinfo, a.sin6_scope_id).into())
            }
            _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }
}

impl Socket {
    /// A fresh non-blocking, close-on-exec TCP socket.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM, EAFNOSUPPORT (socket(2)).
    pub fn tcp(family: Family) -> io::Result<Socket> {
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes integers.
        let fd = check(unsafe { libc::socket(domain, kind, libc::IPPROTO_TCP) })?;
        // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
        Ok(Socket { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Takes over a descriptor that std or the kernel gave out. [`make_nonblocking`](Socket::make_nonblocking) it first
    /// if it may block: no method here promises not to otherwise.
    pub fn from_owned(fd: OwnedFd) -> Socket {
        Socket { fd }
    }

    /// Gives the descriptor away.
    pub fn into_owned(self) -> OwnedFd {
        self.fd
    }

    /// Two connected stream sockets, non-blocking and close-on-exec (socketpair(2), AF_UNIX): what is written to one is
    /// read from the other. For bytes that enter or leave a data path through a thread that has to read them.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let mut ends = [0i32; 2];
        // SAFETY: socketpair(2) writes two integers into `ends`.
        check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
        // SAFETY: both descriptors are fresh and nobody else's.
        Ok(unsafe { (Socket { fd: OwnedFd::from_raw_fd(ends[0]) }, Socket { fd: OwnedFd::from_raw_fd(ends[1]) }) })
    }

    /// O_NONBLOCK, as splice(2) on a stream socket wants it (fcntl(2)).
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn make_nonblocking(&self) -> io::Result<()> {
        set_nonblocking(self.raw(), true)
    }

    /// The opposite: what io_uring's accept wants of a listener ([`listen`](Socket::listen)).
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn make_blocking(&self) -> io::Result<()> {
        set_nonblocking(self.raw(), false)
    }

    /// A connection that waits in a listener's queue, if there is one (accept4(2)). The listener is left non-blocking:
    /// for one that is about to be closed.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ECONNABORTED and the like.
    pub fn accept_now(&self) -> io::Result<Option<Socket>> {
        set_nonblocking(self.raw(), true)?;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: with null pointers accept4(2) writes nothing.
        match check(unsafe { libc::accept4(self.raw(), ptr::null_mut(), ptr::null_mut(), flags) }) {
            // SAFETY: the call has just given us this descriptor, and nobody else owns it.
            Ok(fd) => Ok(Some(Socket { fd: unsafe { OwnedFd::from_raw_fd(fd) } })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A listening socket, alone on its address.
    /// The listener is blocking on purpose: io_uring's accept gives EAGAIN on a non-blocking one instead of waiting
    /// (io_uring/net.c, io_accept), and `Epoll` asks per call.
    ///
    /// # Errors
    /// EADDRINUSE, EACCES, EADDRNOTAVAIL (bind(2)), and those of [`tcp`](Socket::tcp).
    pub fn listen(address: &SocketAddr, backlog: i32) -> io::Result<Socket> {
        let socket = Socket::tcp(Family::of(address))?;
        socket.bind_listen(address, Some(backlog), false)?;
        Ok(socket)
    }

    /// One listening socket per worker on the same address (SO_REUSEPORT), each as [`listen`](Socket::listen) makes it. The
    /// address is first bound without sharing, so that a port which another process holds is an error even if that one
    /// shares too. Port 0 is chosen once for all of them. They listen in the order of their descriptors' numbers: whoever gets the sockets from
    /// [`waiting_sockets`](super::handover::waiting_sockets) knows by that each one's place ([`steer`](Socket::steer)).
    ///
    /// # Errors
    /// As [`listen`](Socket::listen).
    pub fn listen_group(address: &SocketAddr, backlog: i32, count: usize) -> io::Result<Vec<Socket>> {
        let family = Family::of(address);
        if count > 1 {
            Socket::tcp(family)?.bind_listen(address, None, false)?;
        }
        let mut group = (0..count.max(1)).map(|_| Socket::tcp(family)).collect::<io::Result<Vec<Socket>>>()?;
        // They are in that order already, unless another thread has closed something in between.
        group.sort_by_key(Socket::raw);
        let mut address = *address;
        for socket in &group {
            socket.bind_listen(&address, Some(backlog), count > 1)?;
            address = socket.local_addr()?;
        }
        Ok(group)
    }

    fn bind_listen(&self, address: &SocketAddr, backlog: Option<i32>, shared: bool) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1i32)?;
        if shared {
            self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1i32)?;
        }
        if address.is_ipv6() {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1i32)?;
        }
        let raw = RawAddr::new(address);
        // SAFETY: the pointer and the length describe `raw`, which outlives the call.
        check(unsafe { libc::bind(self.raw(), raw.as_ptr(), raw.len()) })?;
        if let Some(backlog) = backlog {
            // SAFETY: listen(2) and fcntl(2) take integers.
            unsafe {
                check(libc::listen(self.raw(), backlog))?;
                let flags = check(libc::fcntl(self.raw(), libc::F_GETFL))?;
                check(libc::fcntl(self.raw(), libc::F_SETFL, flags & !libc::O_NONBLOCK))?;
            }
        }
        Ok(())
    }

    /// For an [`Op`](crate::io::Op).
    pub fn fd(&self) -> Fd {
        Fd(self.raw())
    }

    pub(super) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Reads what is there (recv(2)). 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock`, ECONNRESET and the like.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (fd, at, len) = (self.raw(), buffer.as_mut_ptr(), buffer.len());
        let nobody = ptr::null_mut::<libc::sockaddr>();
        // SAFETY: pointer and length describe `buffer`, borrowed for the call; no address is asked for. Not recv(3): its
        // cancellation point, which nothing here uses, is one part in fifty of the data path.
        check_size(unsafe {
            libc::syscall(libc::SYS_recvfrom, fd, at, len, libc::MSG_DONTWAIT, nobody, nobody) as isize
        })
    }

    /// Writes what fits (send(2)). `more`: the rest of the message follows at once, do not send a small segment now
    /// (MSG_MORE); never set it on the last piece, it corks for 200 ms.
    ///
    /// # Errors
    /// `WouldBlock`, EPIPE, ECONNRESET.
    pub fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let nobody = ptr::null::<libc::sockaddr>();
        // SAFETY: pointer and length describe `bytes`, borrowed for the call; no address is given. Not send(3): see `recv`.
        check_size(unsafe {
            libc::syscall(libc::SYS_sendto, self.raw(), bytes.as_ptr(), bytes.len(), flags, nobody, 0) as isize
        })
    }

    /// Throws away up to `len` bytes without copying them out of the kernel (tcp(7), MSG_TRUNC). 0 is the end.
    ///
    /// # Errors
    /// As [`recv`](Socket::recv).
    pub fn discard(&self, len: usize) -> io::Result<usize> {
        // SAFETY: with MSG_TRUNC on TCP the kernel writes nothing; a null buffer is what tcp(7) shows.
        check_size(unsafe { libc::recv(self.raw(), ptr::null_mut(), len, libc::MSG_TRUNC | libc::MSG_DONTWAIT) })
    }

    /// shutdown(2). Errors are dropped: a socket that is already gone is shut.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: shutdown(2) takes integers.
        unsafe { libc::shutdown(self.raw(), how) };
    }

    /// Makes close send RST and drop what is unsent (SO_LINGER with 0 s): an abort stays an abort.
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn reset_on_close(&self) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 1, l_linger: 0 })
    }

    /// Takes [`reset_on_close`](Socket::reset_on_close) back: close says FIN, and what is unsent still goes out.
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn keep_on_close(&self) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 0, l_linger: 0 })
    }

    /// TCP_NODELAY: no waiting for full segments.
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1i32)
    }

    /// TCP_CONGESTION = reno, before connect(2) or on a listener (accepted sockets inherit it): for connections that
    /// stay on this machine. BBR, a common system-wide default, paces each segment with a high-resolution timer; on
    /// loopback there is nothing to be polite to, and the timers cost several times what the bytes do (measured: a
    /// spliced gigabyte through bridge and agent 0.87 CPU-s with bbr, 0.12 with reno). Reno is in every kernel and
    /// needs no privilege (tcp(7), tcp_allowed_congestion_control).
    ///
    /// # Errors
    /// None that a kernel with TCP gives.
    pub fn set_unpaced(&self) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_CONGESTION, *b"reno")
    }

    /// SO_KEEPALIVE with this idle time: a peer whose machine vanished is found out although nobody writes to it. On a
    /// listener, accepted sockets inherit it. Probes follow each other as the system says (tcp_keepalive_intvl).
    ///
    /// # Errors
    /// The socket is not TCP.
    pub fn set_keepalive(&self, idle: std::time::Duration) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle.as_secs().clamp(1, 32_767) as i32)?;
        self.set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1i32)
    }

    /// TCP_KEEPINTVL: so long, in whole seconds, from one keepalive probe to the next. As many go unanswered before the
    /// connection is over as the system says (tcp_keepalive_probes), or as TCP_USER_TIMEOUT has room for.
    ///
    /// # Errors
    /// The socket is not TCP.
    pub fn set_keepalive_interval(&self, every: std::time::Duration) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, every.as_secs().clamp(1, 32_767) as i32)
    }

    /// TCP_NOTSENT_LOWAT: "writable" means fewer than this many bytes are unsent, so that a scheduler above decides
    /// late (tcp(7)).
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn set_notsent_lowat(&self, bytes: u32) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
    }

    /// TCP_USER_TIMEOUT: unacknowledged data kills the connection after this long (tcp(7), RFC 5482).
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn set_user_timeout(&self, timeout: std::time::Duration) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, timeout.as_millis().min(i32::MAX as u128) as i32)
    }

    /// Drops the connection with a reset and makes the socket as good as new (connect(2): AF_UNSPEC).
    pub(crate) fn dissolve(&self) -> io::Result<()> {
        let nobody = RawAddr::unspec();
        // SAFETY: the pointer and the length describe `nobody`, which outlives the call.
        check(unsafe { libc::connect(self.raw(), nobody.as_ptr(), nobody.len()) })?;
        Ok(())
    }

    /// Any integer-like option; for the kernel folder's own use.
    pub(crate) fn set<T: Copy>(&self, level: i32, name: i32, value: T) -> io::Result<()> {
        set_option(self.raw(), level, name, value)
    }

    /// The pending error of the socket, cleared by asking (SO_ERROR).
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(match take_error(self.raw())? {
            0 => None,
            errno => Some(io::Error::from_raw_os_error(errno)),
        })
    }

    /// Who is at the other end (getpeername(2)).
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.name(libc::getpeername)
    }

    /// This end (getsockname(2)).
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.name(libc::getsockname)
    }

    fn name(
        &self,
        ask: unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int,
    ) -> io::Result<SocketAddr> {
        let mut raw = RawAddr::unspec();
        raw.len = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: both pointers describe `raw`, whose storage is as long as `len` says.
        check(unsafe { ask(self.raw(), (&raw mut raw.storage).cast(), &raw mut raw.len) })?;
        raw.to_std()
    }
}

pub(super) fn set_nonblocking(fd: i32, on: bool) -> io::Result<()> {
    // SAFETY: fcntl(2) with these commands takes and gives integers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        let wanted = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        if wanted != flags {
            check(libc::fcntl(fd, libc::F_SETFL, wanted))?;
        }
    }
    Ok(())
}

pub(crate) fn set_option<T: Copy>(fd: i32, level: i32, name: i32, value: T) -> io::Result<()> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) })?;
    Ok(())
}

/// Lets the kernel cut what a UDP socket sends into fragments where the path needs it, whatever was said before
/// (IP_MTU_DISCOVER and IPV6_MTU_DISCOVER = DONT, IPV6_DONTFRAG = 0; ip(7), RFC 3542).
///
/// # Errors
/// None that a live UDP socket gives.
pub fn let_fragment(socket: &impl AsRawFd) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let is_v6 = set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0i32).is_ok();
    if is_v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    }
    // On an IPv6 socket this is for IPv4 in its clothes, and a kernel may refuse it.
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
        .or_else(|e| if is_v6 { Ok(()) } else { Err(e) })
}

/// An integer option.
pub(crate) fn option(fd: i32, level: i32, name: i32) -> io::Result<i32> {
    let (mut value, mut len) = (0i32, mem::size_of::<i32>() as libc::socklen_t);
    // SAFETY: pointer and length describe `value`, which outlives the call.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

pub(crate) fn take_error(fd: i32) -> io::Result<i32> {
    let (mut errno, mut len) = (0i32, mem::size_of::<i32>() as libc::socklen_t);
    // SAFETY: pointer and length describe `errno`, which outlives the call.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut errno).cast(), &raw mut len) })?;
    Ok(errno)
}

/// A pipe for splice(2), non-blocking at both ends. Keep an exact count of the bytes in it: `WouldBlock` from a fill
/// means "the socket is empty" only if the pipe was empty, and drain until the counter says so, never until a return
/// value does.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    bytes_max: usize,
}

impl Pipe {
    /// A pipe that asks for `bytes` of capacity (F_SETPIPE_SZ) and takes what it gets: past
    /// /proc/sys/fs/pipe-user-pages-soft an ordinary user gets one or two pages (pipe(7)).
    ///
    /// # Errors
    /// EMFILE, ENFILE (pipe(2)).
    pub fn new(bytes: usize) -> io::Result<Pipe> {
        let mut ends = [0i32; 2];
        // SAFETY: pipe2 writes two integers into `ends`.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
        // SAFETY: both descriptors are fresh and nobody else's.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        let ask = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: fcntl(2) with these commands takes and gives integers. A refusal leaves the size as it was.
        let bytes_max = unsafe {
            libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, ask);
            check(libc::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ))? as usize
        };
        Ok(Pipe { read, write, bytes_max })
    }

    /// Nominal capacity in bytes. It is really a count of slots: large fragments make it hold more, small ones less.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Moves up to `len` bytes from the socket into the pipe. 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if the socket is empty or the pipe is full.
    pub fn fill(&self, from: &Socket, len: usize) -> io::Result<usize> {
        splice(from.raw(), self.write.as_raw_fd(), len, 0)
    }

    /// Moves up to `len` bytes from the pipe into the socket. `more`: the rest of the same message is already in the
    /// pipe and follows at once.
    ///
    /// # Errors
    /// `WouldBlock` if the socket is full; EPIPE, ECONNRESET.
    pub fn drain(&self, to: &Socket, len: usize, more: bool) -> io::Result<usize> {
        splice(self.read.as_raw_fd(), to.raw(), len, if more { libc::SPLICE_F_MORE } else { 0 })
    }

    /// Reads from the pipe into memory, for a stream that has to leave the splice path.
    ///
    /// # Errors
    /// `WouldBlock` if the pipe is empty.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: pointer and length describe `buffer`, borrowed for the call.
        check_size(unsafe { libc::read(self.read.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
    }
}

fn splice(from: i32, to: i32, len: usize, flags: libc::c_uint) -> io::Result<usize> {
    let (len, flags) = (len.min(SPLICE_BYTES_MAX), flags | libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE);
    if let Some(result) = super::ring_splice::splice(from, to, len, flags) {
        return result;
    }
    // SAFETY: splice(2) with null offsets takes integers; the descriptors are borrowed from live owners.
    check_size(unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), len, flags) })
}
