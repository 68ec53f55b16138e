//! What one HTTP probe costs in the kernel: connect, ask, hear the first bytes, reset, on recycled sockets.

use super::probe::{client, push, raw_addresses, ring};
use crate::io::Family;
use crate::kernel::socket::RawAddr;
use io_uring::squeue::Flags;
use io_uring::{opcode, types};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

/// What is asked.
const QUESTION: &[u8] = b"GET /health HTTP/1.1\r\nHost: floor\r\nConnection: close\r\n\r\n";
/// How an answer begins that counts as "up".
const GOOD: &[u8] = b"HTTP/1.1 200";
/// Chains put into the ring per system call: three entries each, within [`ring`]'s size.
const BATCH: usize = 40;
/// Completions that one wait asks for.
const REAP: usize = 32;
/// In the user data: the completion is the receive's.
const HEARD: u64 = 1 << 62;
/// In the user data: the completion is the reset's.
const RESET: u64 = 1 << 63;

/// CONNECT, SEND and RECV in a chain, all silent but for the last or the one that fails; then CONNECT(AF_UNSPEC).
/// Returns how many were answered with a 200.
///
/// # Errors
/// No descriptor, or io_uring is refused or older than IOSQE_CQE_SKIP_SUCCESS (5.17).
pub(super) fn http(count: usize, in_flight: usize, targets: &[SocketAddr]) -> io::Result<usize> {
    let (addresses, nowhere) = (raw_addresses(targets), RawAddr::unspec());
    let family = Family::of(&targets[0]);
    assert!(targets.iter().all(|t| Family::of(t) == family), "this floor recycles sockets of one family");
    let mut answers = vec![[0u8; 512]; in_flight];
    let sockets = (0..in_flight).map(|_| client(family)).collect::<io::Result<Vec<_>>>()?;
    let mut ring = ring(in_flight)?;
    if !ring.params().is_feature_skip_cqe_on_success() {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let raw: Vec<RawFd> = sockets.iter().map(|s| s.fd.as_raw_fd()).collect();
    ring.submitter().register_files(&raw)?;
    let mut free: Vec<u32> = (0..in_flight as u32).collect();
    let mut over: Vec<u32> = Vec::new();
    let (mut started, mut done, mut up) = (0, 0, 0);
    while done < count {
        for slot in over.drain(..) {
            let back = opcode::Connect::new(types::Fixed(slot), nowhere.as_ptr(), nowhere.len()).build();
            if ring.submission().is_full() {
                ring.submit()?;
            }
            // SAFETY: `nowhere` is declared before `ring` and therefore outlives it.
            unsafe { push(&mut ring, &back.user_data(RESET | u64::from(slot))) };
        }
        for _ in 0..BATCH {
            let Some(slot) = (started < count).then(|| free.pop()).flatten() else { break };
            let (file, address) = (types::Fixed(slot), &addresses[started % addresses.len()]);
            let answer = &mut answers[slot as usize];
            let go = opcode::Connect::new(file, address.as_ptr(), address.len()).build();
            let ask = opcode::Send::new(file, QUESTION.as_ptr(), QUESTION.len() as u32).build();
            let hear = opcode::Recv::new(file, answer.as_mut_ptr(), answer.len() as u32).build();
            let silent = Flags::IO_LINK | Flags::SKIP_SUCCESS;
            let queue = ring.submission();
            let room = queue.capacity() - queue.len();
            drop(queue);
            if room < 3 {
                ring.submit()?;
            }
            // SAFETY: addresses and answers are declared before `ring` and therefore outlive it; an answer is looked at
            // only after its chain has come back.
            unsafe {
                push(&mut ring, &go.flags(silent).user_data(u64::from(slot)));
                push(&mut ring, &ask.flags(silent).user_data(u64::from(slot)));
                push(&mut ring, &hear.user_data(HEARD | u64::from(slot)));
            }
            started += 1;
        }
        ring.submit_and_wait((in_flight - free.len()).clamp(1, REAP))?;
        for completion in ring.completion() {
            let (tag, slot) = (completion.user_data(), completion.user_data() as u32);
            if tag & RESET != 0 {
                free.push(slot);
                done += 1;
                continue;
            }
            // A step that fails has the only completion of its chain: it silences those behind it.
            let is_good = tag & HEARD != 0 && answers[slot as usize].starts_with(GOOD);
            up += usize::from(is_good && completion.result() >= GOOD.len() as i32);
            over.push(slot);
        }
    }
    Ok(up)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// The floor counts a 200 as up, and a 503 and a closed port as not.
    #[test]
    fn the_floor_reads_the_status() {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (good, bad, closed) = (listen(), listen(), listen());
        let targets = [&good, &bad, &closed].map(|l| l.local_addr().expect("bound"));
        drop(closed);
        for (listener, answer) in [(good, "HTTP/1.1 200 OK\r\n\r\n"), (bad, "HTTP/1.1 503 No\r\n\r\n")] {
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.expect("a caller");
                    let _ = stream.read(&mut [0; 512]);
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
        match super::http(90, 10, &targets) {
            Ok(up) => assert_eq!(up, 30),
            Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)), "{e}"),
        }
    }
}
