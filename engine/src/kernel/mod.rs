//! The one place that talks to the kernel, and all the unsafe there is.
//!
//! Above it everything is safe: descriptors are owned ([`Socket`], [`Pipe`]), operations are [`Op`](crate::io::Op)s.
#![expect(unsafe_code, reason = "system calls; the rest of the project denies it")]

mod socket;
mod waker;

pub use socket::{Fd, Pipe, SPLICE_BYTES_MAX, Shutdown, Socket};
pub use waker::Waker;
