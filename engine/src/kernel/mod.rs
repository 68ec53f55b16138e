//! The one place that talks to the kernel, and all the unsafe there is.
//!
//! Above it everything is safe: descriptors are owned ([`Socket`], [`Pipe`]), operations are [`Op`](crate::io::Op)s.
//! [`open`] gives a worker its [`Io`](crate::io::Io): the ring, or epoll where io_uring is refused.
#![expect(unsafe_code, reason = "system calls; the rest of the project denies it")]

mod epoll;
pub mod facts;
#[cfg(feature = "floor")]
pub mod floor;
pub mod handover;
pub mod ktls;
mod lane;
mod open;
mod ring;
mod ring_splice;
mod socket;
mod steering;
mod sys;
mod tokens;
mod waker;

pub use open::{Backend, Capabilities, OpenError, TIER_VARIABLE, Tier, open, open_tier};
pub use ring_splice::splice_by_ring;
pub use socket::{Fd, Pipe, SPLICE_BYTES_MAX, Shutdown, Socket, let_fragment};
pub use steering::STEERED_MAX;
pub use sys::{CpuOf, allowed_cores, batch_thread, cpu_time, monotonic_now, pin_thread};
pub use waker::Waker;

use crate::io::Errno;

/// Whether an error of accept(2) speaks of one connection, not of the listener or of us: the next one may be well.
/// (accept(2), "Error handling": Linux passes pending network errors of the new socket on.)
fn is_of_the_connection(errno: Errno) -> bool {
    matches!(
        errno.0,
        libc::EINTR
            | libc::ECONNABORTED
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
    )
}

#[cfg(test)]
mod tests;
