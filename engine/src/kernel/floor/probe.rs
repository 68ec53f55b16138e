//! What one TCP connect probe costs in the kernel, by method: loops that keep `in_flight` probes going until `count`
//! have come out, against the given targets in turn.

use crate::io::Family;
use crate::kernel::socket::{RawAddr, Socket, check, take_error};
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Probes put into the ring per system call: enough that the call hardly shows, few enough that the first is not old
/// when the last is ready.
const BATCH: usize = 64;
/// Completions that one wait asks for.
const REAP: usize = 32;
/// Answers to TCP_DEFER_ACCEPT on a client socket: any value above 0 holds the final ACK back (net/ipv4/tcp_input.c,
/// tcp_rcv_synsent_state_process).
const DEFER_SECONDS: i32 = 5;

/// A fresh client socket that resets when it is closed.
pub(super) fn client(family: Family) -> io::Result<Socket> {
    let socket = Socket::tcp(family)?;
    socket.reset_on_close()?;
    Ok(socket)
}

pub(super) fn raw_addresses(targets: &[SocketAddr]) -> Vec<RawAddr> {
    assert!(!targets.is_empty(), "a floor needs something to probe");
    targets.iter().map(RawAddr::new).collect()
}

/// The usual hand-written loop: socket, connect, epoll, SO_ERROR, close with a reset. Returns how many were up.
///
/// # Errors
/// No descriptor, or epoll(7) refuses.
pub(super) fn epoll(count: usize, in_flight: usize, targets: &[SocketAddr]) -> io::Result<usize> {
    let addresses = raw_addresses(targets);
    let mut sockets: Vec<Option<Socket>> = (0..in_flight).map(|_| None).collect();
    let mut free: Vec<usize> = (0..in_flight).collect();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; in_flight.min(256)];
    let epoll = new_epoll()?;
    let (mut started, mut done, mut up) = (0, 0, 0);
    while done < count {
        while started < count
            && let Some(slot) = free.pop()
        {
            let (target, address) = (started % targets.len(), &addresses[started % targets.len()]);
            let socket = client(Family::of(&targets[target]))?;
            started += 1;
            // SAFETY: pointer and length describe `address`, which outlives the call.
            let result = unsafe { libc::connect(socket.fd.as_raw_fd(), address.as_ptr(), address.len()) };
            if result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINPROGRESS) {
                up += usize::from(result == 0);
                done += 1;
                free.push(slot);
                continue;
            }
            watch(&epoll, &socket, slot)?;
            sockets[slot] = Some(socket);
        }
        // SAFETY: pointer and length describe `events`, which outlives the call.
        let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, -1) };
        for event in &events[..usize::try_from(ready).unwrap_or(0)] {
            let slot = event.u64 as usize;
            let socket = sockets[slot].take().expect("epoll names a socket that is open");
            up += usize::from(take_error(socket.fd.as_raw_fd())? == 0);
            done += 1;
            free.push(slot);
        }
    }
    Ok(up)
}

pub(super) fn new_epoll() -> io::Result<OwnedFd> {
    // SAFETY: epoll_create1(2) takes an integer.
    let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(epoll) })
}

fn watch(epoll: &OwnedFd, socket: &Socket, slot: usize) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLOUT as u32, u64: slot as u64 };
    let (epoll, fd) = (epoll.as_raw_fd(), socket.fd.as_raw_fd());
    // SAFETY: the pointer describes `event`, which outlives the call.
    match unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn ring(in_flight: usize) -> io::Result<IoUring> {
    let entries = (BATCH * 2).next_power_of_two() as u32;
    let mut builder = IoUring::builder();
    builder.setup_cqsize((in_flight * 4).next_power_of_two().clamp(256, 65_536) as u32);
    let plain = builder.clone();
    // Linux 6.1; older kernels run the completions in the caller's interrupts.
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(entries).or_else(|_| plain.build(entries))
}

/// Puts an entry into the ring; there is room, or the caller has mistaken itself.
///
/// # Safety
/// What the entry points to must stay until its completion has been reaped or the ring is gone.
pub(super) unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: handed on to the caller.
    unsafe { ring.submission().push(entry) }.expect("a batch fits the ring");
}

/// CONNECT on a fresh socket, then close(2), which resets. Returns how many were up.
///
/// # Errors
/// No descriptor, or io_uring is refused.
pub(super) fn uring(count: usize, in_flight: usize, targets: &[SocketAddr]) -> io::Result<usize> {
    let addresses = raw_addresses(targets);
    let mut ring = ring(in_flight)?;
    let mut sockets: Vec<Option<Socket>> = (0..in_flight).map(|_| None).collect();
    let mut free: Vec<usize> = (0..in_flight).collect();
    let (mut started, mut done, mut up) = (0, 0, 0);
    while done < count {
        for _ in 0..BATCH {
            let Some(slot) = (started < count).then(|| free.pop()).flatten() else { break };
            let (target, address) = (started % targets.len(), &addresses[started % targets.len()]);
            let socket = client(Family::of(&targets[target]))?;
            let connect = opcode::Connect::new(types::Fd(socket.fd.as_raw_fd()), address.as_ptr(), address.len());
            // SAFETY: `addresses` is declared before `ring` and therefore outlives it.
            unsafe { push(&mut ring, &connect.build().user_data(slot as u64)) };
            sockets[slot] = Some(socket);
            started += 1;
        }
        ring.submit_and_wait((in_flight - free.len()).clamp(1, REAP))?;
        for completion in ring.completion() {
            let slot = completion.user_data() as usize;
            up += usize::from(completion.result() == 0);
            drop(sockets[slot].take());
            free.push(slot);
            done += 1;
        }
    }
    Ok(up)
}

/// One pool of registered sockets used again and again: CONNECT, hard-linked to CONNECT(AF_UNSPEC), the final ACK held
/// back by TCP_DEFER_ACCEPT, so that the server's application sees nothing. Returns how many were up.
///
/// # Errors
/// No descriptor, or io_uring is refused.
pub(super) fn reuse_half(count: usize, in_flight: usize, targets: &[SocketAddr]) -> io::Result<usize> {
    /// Set in the first link's user_data.
    const CONNECT: u64 = 1 << 63;
    let addresses = raw_addresses(targets);
    let nowhere = RawAddr::unspec();
    let family = Family::of(&targets[0]);
    assert!(targets.iter().all(|t| Family::of(t) == family), "this floor recycles sockets of one family");
    let sockets = (0..in_flight).map(|_| client(family)).collect::<io::Result<Vec<_>>>()?;
    for socket in &sockets {
        socket.set(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, DEFER_SECONDS)?;
    }
    let mut ring = ring(in_flight)?;
    let raw: Vec<RawFd> = sockets.iter().map(|s| s.fd.as_raw_fd()).collect();
    ring.submitter().register_files(&raw)?;
    let mut free: Vec<u32> = (0..in_flight as u32).collect();
    let (mut started, mut done, mut up) = (0, 0, 0);
    while done < count {
        for _ in 0..BATCH {
            let Some(slot) = (started < count).then(|| free.pop()).flatten() else { break };
            let address = &addresses[started % addresses.len()];
            let go = opcode::Connect::new(types::Fixed(slot), address.as_ptr(), address.len()).build();
            let back = opcode::Connect::new(types::Fixed(slot), nowhere.as_ptr(), nowhere.len()).build();
            // SAFETY: `addresses` and `nowhere` are declared before `ring` and therefore outlive it.
            unsafe {
                push(&mut ring, &go.flags(squeue::Flags::IO_HARDLINK).user_data(CONNECT | u64::from(slot)));
                push(&mut ring, &back.user_data(u64::from(slot)));
            }
            started += 1;
        }
        ring.submit_and_wait((in_flight - free.len()).clamp(1, REAP))?;
        for completion in ring.completion() {
            let tag = completion.user_data();
            if tag & CONNECT != 0 {
                up += usize::from(completion.result() == 0);
            } else {
                free.push(tag as u32);
                done += 1;
            }
        }
    }
    Ok(up)
}

#[cfg(test)]
mod tests {

    use std::net::TcpListener;

    /// Each floor counts the open port's probes as up and the closed port's as not, all of them.
    #[test]
    fn floors_tell_open_from_closed() {
        let open = TcpListener::bind("127.0.0.1:0").expect("a port");
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
        let targets = [open.local_addr().expect("bound"), closed.local_addr().expect("bound")];
        drop(closed);
        for (name, floor) in super::super::PROBES {
            match floor(100, 10, &targets) {
                Ok(up) => assert_eq!(up, 50, "{name}"),
                // Where io_uring is refused or missing there is no such floor.
                Err(e) => {
                    assert!(
                        *name != "epoll" && matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)),
                        "{name}: {e}"
                    );
                }
            }
        }
    }
}
