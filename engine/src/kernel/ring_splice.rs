//! splice(2) as an operation of io_uring, for measuring one against the other: [`Pipe`](super::Pipe)s of a thread that has
//! asked for it move their bytes by a ring of their own, one operation at a time, waited for in the call that submits it.
//! The kernel never runs IORING_OP_SPLICE on the submitting thread (io_uring/splice.c: -EAGAIN if it must not block, which
//! hands it to a thread of io-wq), so each piece wakes two threads; see bench/README.md for what that costs.

use super::socket::check_size;
use io_uring::{IoUring, opcode, types};
use std::cell::RefCell;
use std::io::{self, ErrorKind};

/// One operation at a time; the kernel wants at least one more place.
const ENTRIES: u32 = 2;

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// From now on this thread's pipes splice by a ring.
///
/// # Errors
/// The kernel gives no ring (io_uring_setup(2)), or one without IORING_OP_SPLICE: splice(2) is used as before.
pub fn splice_by_ring() -> io::Result<()> {
    let ring = IoUring::new(ENTRIES)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !probe.is_supported(opcode::Splice::CODE) {
        return Err(ErrorKind::Unsupported.into());
    }
    RING.set(Some(ring));
    Ok(())
}

/// The same as splice(2) without offsets. `None`: this thread has no ring for it.
pub(super) fn splice(from: i32, to: i32, len: usize, flags: libc::c_uint) -> Option<io::Result<usize>> {
    RING.with_borrow_mut(|ring| ring.as_mut().map(|ring| splice_on(ring, from, to, len, flags)))
}

fn splice_on(ring: &mut IoUring, from: i32, to: i32, len: usize, flags: libc::c_uint) -> io::Result<usize> {
    let len = u32::try_from(len).expect("a splice moves a pipe's worth at most");
    let entry = opcode::Splice::new(types::Fd(from), -1, types::Fd(to), -1, len).flags(flags).build();
    // SAFETY: the operation has no pointers; its descriptors are borrowed from owners who wait in this call.
    unsafe { ring.submission().push(&entry) }.expect("the one before has been reaped");
    loop {
        if let Err(error) = ring.submit_and_wait(1)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        if let Some(completion) = ring.completion().next() {
            let result = completion.result();
            return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { check_size(result as isize) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Pipe, Socket};

    /// By the ring as by the call: the same bytes, the same "not now", the same end; and other threads are not concerned.
    #[test]
    fn bytes_go_through() {
        std::thread::spawn(|| {
            if let Err(error) = splice_by_ring() {
                println!("not looked at: {error}");
                return;
            }
            let (a, b) = Socket::pair().unwrap();
            let (c, d) = Socket::pair().unwrap();
            let pipe = Pipe::new(64 << 10).unwrap();
            assert_eq!(pipe.fill(&b, 100).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!(a.send(b"some bytes", false).unwrap(), 10);
            assert_eq!(pipe.fill(&b, 4).unwrap(), 4);
            assert_eq!(pipe.fill(&b, 100).unwrap(), 6);
            assert_eq!(pipe.drain(&c, 10, false).unwrap(), 10);
            let mut got = [0; 16];
            assert_eq!(d.recv(&mut got).unwrap(), 10);
            assert_eq!(&got[..10], b"some bytes");
            drop(a);
            assert_eq!(pipe.fill(&b, 100).unwrap(), 0);
        })
        .join()
        .unwrap();
        assert!(splice(0, 1, 1, 0).is_none());
    }
}
