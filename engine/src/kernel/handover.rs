//! Listening sockets on their way from one process to another: sent over a unix socket (SCM_RIGHTS, unix(7)), or left
//! open by a supervisor (the LISTEN_FDS protocol, sd_listen_fds(3)).

use super::socket::{Socket, check_size};
use std::collections::HashSet;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

/// Descriptors in one message: the kernel takes 253 (SCM_MAX_FD in net/scm.h); this stays well below.
pub const FDS_MAX: usize = 128;

/// First descriptor a supervisor passes (SD_LISTEN_FDS_START).
const LISTEN_FDS_START: RawFd = 3;

/// A socket that waits for others to speak first.
#[derive(Debug)]
pub struct Waiting {
    /// Where it is bound.
    pub address: SocketAddr,
    /// Datagrams; else it is a TCP listener.
    pub is_udp: bool,
    /// Its own copy of the descriptor.
    pub fd: OwnedFd,
}

/// Room for one control message with [`FDS_MAX`] descriptors, aligned as cmsg(3) wants it.
#[repr(align(8))]
struct Control([u8; 1024]);

/// Sends bytes with descriptors. `bytes` must not be empty, and be short: all are sent at once.
///
/// # Errors
/// Those of sendmsg(2); `InvalidInput` for more than [`FDS_MAX`].
pub fn send_fds(to: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {FDS_MAX} descriptors")));
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = Control([0; 1024]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let len = mem::size_of_val(&raw[..]);
    // SAFETY: the message points at `part` and `control`, which outlive the call; CMSG_SPACE of FDS_MAX descriptors (528
    // bytes) fits into `control`, which is aligned for a header; the kernel only reads what `part` points at.
    check_size(unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        if !raw.is_empty() {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(len as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len as u32) as _;
            ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), len);
        }
        libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    })
}

/// Receives bytes with the descriptors that came with them, close-on-exec. 0 bytes: the end.
///
/// # Errors
/// Those of recvmsg(2); `InvalidData` if more descriptors came than there is room for.
pub fn recv_fds(from: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 1024]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut fds = Vec::new();
    // SAFETY: the message points at `part`, which describes `bytes`, and at `control`; both outlive the call. The
    // kernel has filled `control` with whole messages when CMSG_* walk it, and each descriptor in one of SCM_RIGHTS is
    // fresh and ours alone.
    let (n, flags) = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        let n = check_size(libc::recvmsg(from.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC))?;
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let len = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                fds.extend(
                    (0..len / mem::size_of::<RawFd>()).map(|i| OwnedFd::from_raw_fd(first.add(i).read_unaligned())),
                );
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        (n, message.msg_flags)
    };
    if flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than there is room for"));
    }
    Ok((n, fds))
}

/// Copies of this process' sockets that listen, or that are bound to a port for datagrams of anybody, as /proc says: each
/// once, in the order of their numbers.
///
/// # Errors
/// No /proc.
pub fn waiting_sockets() -> io::Result<Vec<Waiting>> {
    // All numbers first: /proc would list the copies, too, where there is more than it says in one go.
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    numbers.sort_unstable();
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for fd in numbers {
        // "socket:[inode]", the same for all copies of one.
        let Ok(name) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { continue };
        if !name.as_os_str().as_encoded_bytes().starts_with(b"socket:") || !seen.insert(name) {
            continue;
        }
        // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC takes integers; a number that has been closed meanwhile is an error, and
        // one that it gives is fresh and ours alone.
        let copy = unsafe {
            match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, LISTEN_FDS_START) {
                -1 => continue,
                copy => OwnedFd::from_raw_fd(copy),
            }
        };
        found.extend(waiting(copy));
    }
    Ok(found)
}

/// Sockets that a supervisor has opened for this process, if LISTEN_PID says that they are for it. Once, and before the
/// process listens on anything of its own: whoever calls takes them, and is the only one in this process to have them.
pub fn listen_fds() -> Vec<Waiting> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i64>().ok());
    if number("LISTEN_PID") != Some(i64::from(std::process::id())) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, FDS_MAX as i64) as RawFd;
    (LISTEN_FDS_START..LISTEN_FDS_START + count).filter_map(taken).collect()
}

/// The socket behind a number that the environment names.
fn taken(fd: RawFd) -> Option<Waiting> {
    // SAFETY: fcntl(2) takes integers. The copy is fresh and ours alone; a number that is not what the environment says
    // it is stays its owner's, and goes to no program that is started.
    let copy = unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, LISTEN_FDS_START);
        if copy < 0 {
            return None;
        }
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        OwnedFd::from_raw_fd(copy)
    };
    let socket = waiting(copy)?;
    // SAFETY: it is a socket that waits for visitors, and the process has none of its own yet: it is the supervisor's,
    // left to us. Open, it would listen on when the copy is closed.
    unsafe { libc::close(fd) };
    Some(socket)
}

/// What kind of socket it is; `None`: none that waits.
fn waiting(fd: OwnedFd) -> Option<Waiting> {
    let option = |name| super::socket::option(fd.as_raw_fd(), libc::SOL_SOCKET, name).ok();
    let kind = option(libc::SO_TYPE)?;
    if !matches!(option(libc::SO_DOMAIN)?, libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let socket = Socket::from_owned(fd.try_clone().ok()?);
    let address = socket.local_addr().ok().filter(|address| address.port() != 0)?;
    let is_udp = match kind {
        libc::SOCK_STREAM if option(libc::SO_ACCEPTCONN)? == 1 => false,
        libc::SOCK_DGRAM if socket.peer_addr().is_err() => true,
        _ => return None,
    };
    Some(Waiting { address, is_udp, fd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    /// A listener that is sent is the same listener at the other end, with who waits in its queue; the ones of this
    /// process are found, and connected sockets are not among them.
    #[test]
    fn listeners_travel() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let (at, udp_at) = (listener.local_addr().expect("bound"), udp.local_addr().expect("bound"));
        let visitor = TcpStream::connect(at).expect("it listens");
        let found = waiting_sockets().expect("/proc is there");
        let mine = |w: &&Waiting| w.address == at || w.address == udp_at;
        let mut kinds: Vec<bool> = found.iter().filter(mine).map(|w| w.is_udp).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [false, true]);
        assert!(!found.iter().any(|w| Some(w.address) == visitor.local_addr().ok()));
        let (here, there) = UnixStream::pair().expect("a pair");
        assert_eq!(send_fds(&here, b"two", &[listener.as_fd(), udp.as_fd()]).expect("sent"), 3);
        drop((listener, found));
        let mut bytes = [0; 16];
        let (n, mut fds) = recv_fds(&there, &mut bytes).expect("received");
        assert_eq!((&bytes[..n], fds.len()), (&b"two"[..], 2));
        let again = TcpListener::from(fds.remove(0));
        assert_eq!(again.accept().expect("who waited").1, visitor.local_addr().expect("connected"));
        drop(here);
        assert_eq!(recv_fds(&there, &mut bytes).expect("the end").0, 0);
    }
}
