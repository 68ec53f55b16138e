//! The prober: targets that come due, probes in flight, and what is believed afterwards.
//!
//! ```text
//! Command ─► Watched ──schedule──► due queue ──lane, room, rate──► Flight ──answer or deadline──► Outbox
//!               ▲                                                    │
//!               └────────────── next slot of the schedule ◄──────────┘
//! ```
//! The prober is a [`Resident`](crate::resident::Resident): it speaks to the kernel through
//! [`Io`](crate::io::Io) alone, so it runs on io_uring, on epoll and in the simulator without knowing which.

mod damping;
pub(crate) mod expect;
mod flight;
mod flock;
mod guard;
pub(crate) mod http;
mod lanes;
pub(crate) mod mysql;
mod names;
mod nets;
mod outbox;
mod pace;
mod patience;
pub(crate) mod pattern;
pub(crate) mod ping;
mod prober;
mod rhythm;
pub(crate) mod talk;

pub(crate) mod tls;
pub(crate) mod udp;
mod watched;

pub(crate) use flock::Flock;
pub(crate) use guard::Guard;
pub(crate) use names::Names;
pub(crate) use nets::Nets;
pub(crate) use outbox::Outbox;
pub(crate) use pace::Pace;
pub(crate) use prober::{Command, Prober, ProberParts};

#[cfg(test)]
pub(crate) mod tests;
