//! Wakes a worker from another thread: an eventfd that its `Io` polls.
//! Promise: a wake after the last look at the mailboxes is never lost.

use crate::kernel::Fd;
use crate::mailbox::Wake;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Clones wake the same worker.
#[derive(Clone)]
pub struct Waker {
    eventfd: Arc<OwnedFd>,
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
        Ok(Waker { eventfd: Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// For the `Io` that waits on it.
    pub fn fd(&self) -> Fd {
        Fd(self.eventfd.as_raw_fd())
    }

    /// Takes all wakes that are there; for the `Io`, after its poll said ready.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: the pointer and the length describe `count`, which outlives the call.
        unsafe { libc::read(self.eventfd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl Wake for Waker {
    fn wake(&self) {
        let one = 1u64;
        // SAFETY: the pointer and the length describe `one`, which outlives the call. EAGAIN (counter full) is as good
        // as success: the worker is being woken.
        unsafe { libc::write(self.eventfd.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}
