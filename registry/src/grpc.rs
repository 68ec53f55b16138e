//! The registry over gRPC, as Nacos' clients since 2.0 speak it: one connection each, by whose life their ephemeral
//! instances live, and on whose stream they are told of changes.
//! Promise: whatever comes in, an answer goes out, or the connection ends; a client that does not read, does not answer
//! or asks too much costs its own connection and a bounded amount of memory, nobody else.
//! Who asks brings a token in the payload's headers, where the registry is not open to all ([`access`](crate::access)).
//!
//! ```text
//! accept ─► hyper (h2) ─► tonic (framing) ─► answer ─► service          one Client for a connection
//!                                              │          │ changes
//!                    stream ◄── outbox ◄── client ◄── push hub
//! ```

mod answer;
mod body;
mod client;
mod outbox;
mod payload;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod words;

pub use client::Clients;
pub use server::{Bytes, GrpcServer, Wrap, Wrapping};
pub use stats::GrpcStats;

use std::time::Duration;

/// What clients may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time. One more is closed at once, and counted. Each costs a descriptor and some 40 KiB.
    pub connections_max: usize,
    /// Subscriptions of one connection.
    pub subscriptions_max: usize,
    /// A client that has said nothing for this long is asked whether it is there; one that has not even introduced itself
    /// is closed. Nacos': 20 s.
    pub silence_max: Duration,
    /// An answer to that question, and an acknowledgement of a push, come within this. Nacos': 5 s.
    pub answer_max: Duration,
    /// A client that has not taken what was to be pushed for this long is closed: it comes back and reads anew, which
    /// cures what waiting would not.
    pub stall_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 10_000,
            subscriptions_max: 10_000,
            silence_max: Duration::from_secs(20),
            answer_max: Duration::from_secs(5),
            stall_max: Duration::from_secs(30),
        }
    }
}
