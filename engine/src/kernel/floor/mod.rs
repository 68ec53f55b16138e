//! What the kernel itself costs: bare loops that do only the system calls. Feature `floor`; for bench/ alone.
//!
//! They have no scheduling, no timeouts, no state and no statistics. A figure of ours is worth quoting when it stands
//! beside one of these, measured in the same run: a real engine can come close to them and cannot beat them by much.

mod http;
mod probe;
mod relay;

pub use relay::{message_relay, splice_relay};

use std::io;
use std::net::SocketAddr;

/// A probe floor: makes `count` probes of the targets in turn, `in_flight` at a time, and returns how many were up.
pub type ProbeFloor = fn(count: usize, in_flight: usize, targets: &[SocketAddr]) -> io::Result<usize>;

/// The probe floors by name.
pub const PROBES: &[(&str, ProbeFloor)] =
    &[("epoll", probe::epoll), ("uring", probe::uring), ("reuse-half", probe::reuse_half)];

/// Floors of probes that ask something and read the answer, by name. Their targets speak HTTP.
pub const HTTP_PROBES: &[(&str, ProbeFloor)] = &[("http", http::http)];
