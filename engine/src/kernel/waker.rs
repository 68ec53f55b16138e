//! Wakes a worker from another thread: a word that says whether it sleeps, and an eventfd that its `Io` polls then.
//! Promises: a wake after the last look at the mailboxes is never lost; one that finds the worker awake makes no system
//! call.
//!
//! ```text
//! owner    Awake ──park──▶ Parked ─── blocks ───┐        wake   Awake ──▶ Rung     it looks before it sleeps
//!            ▲   └ Rung: it does not block      │               Parked ─▶ Rung     and the eventfd is written
//!            └──────────── unpark ◀─────────────┘               Rung               somebody was quicker
//! ```
//! All changes are read-modify-write on one word, so they have one order: either the wake comes before `park`, which then
//! fails, or it finds `Parked`. And `unpark` acquires what each of the wakes before it has released: the messages.

use crate::kernel::Fd;
use crate::mailbox::Wake;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const PARKED: u8 = 1;
const RUNG: u8 = 2;

struct Bell {
    state: AtomicU8,
    eventfd: OwnedFd,
}

/// Clones wake the same worker.
#[derive(Clone)]
pub struct Waker {
    bell: Arc<Bell>,
}

impl Waker {
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM (eventfd(2)).
    pub fn new() -> io::Result<Waker> {
        // SAFETY: eventfd(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Waker { bell: Arc::new(Bell { state: AtomicU8::new(AWAKE), eventfd }) })
    }

    /// For the `Io` that waits on it.
    pub fn fd(&self) -> Fd {
        Fd(self.bell.eventfd.as_raw_fd())
    }

    /// For the `Io`, before it blocks. `false`: it must not, somebody has rung since [`unpark`](Waker::unpark).
    #[must_use]
    pub(super) fn park(&self) -> bool {
        self.bell.state.compare_exchange(AWAKE, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// For the `Io`, when it does not block any more: whether somebody has rung. The mailboxes are looked at next.
    pub(super) fn unpark(&self) -> bool {
        self.bell.state.swap(AWAKE, Ordering::AcqRel) == RUNG
    }

    /// Takes what was written to the eventfd, and says how often; for the `Io`, after its poll said ready.
    pub(super) fn clear(&self) -> u64 {
        let mut count = 0u64;
        // SAFETY: the pointer and the length describe `count`, which outlives the call. If nothing is there it stays 0.
        unsafe { libc::read(self.bell.eventfd.as_raw_fd(), (&raw mut count).cast(), 8) };
        count
    }
}

impl Wake for Waker {
    fn wake(&self) {
        if self.bell.state.swap(RUNG, Ordering::AcqRel) != PARKED {
            return;
        }
        let one = 1u64;
        // SAFETY: the pointer and the length describe `one`, which outlives the call. EAGAIN (counter full) is as good
        // as success: the worker is being woken.
        unsafe { libc::write(self.bell.eventfd.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever is awake costs no system call, whoever sleeps one, however many ring; and who was rung does not sleep.
    #[test]
    fn only_sleepers_are_written_to() {
        let waker = Waker::new().expect("an eventfd");
        let ring = || (0..3).for_each(|_| waker.wake());
        assert!(!waker.unpark());
        ring();
        assert_eq!((waker.clear(), waker.park()), (0, false));
        assert!(waker.unpark() && waker.park());
        ring();
        assert_eq!((waker.clear(), waker.unpark(), waker.unpark()), (1, true, false));
    }
}
