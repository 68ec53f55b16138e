//! Counters of one worker's data path. The worker alone writes them (no contention: a cache line pair each), anybody
//! reads. All of them only rise, but for the gauges, which say so.

use crate::frame::Reason;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub(crate) fn add(&self, n: u64) {
        // One writer: a load and a store are enough, and cheaper than a locked add.
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes from a gauge.
    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Sets a gauge.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// What it says now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// See the module.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerStats {
            $($(#[$doc])* pub $name: Counter,)*
            /// Streams and visitors that ended for each [`Reason`], by its number.
            pub reasons: [Counter; Reason::ALL.len()],
        }

        /// The sum over all workers, at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Streams and visitors that ended for each [`Reason`], by its number.
            pub reasons: [u64; Reason::ALL.len()],
        }

        impl Stats {
            /// Adds one worker's.
            pub fn add(&mut self, worker: &WorkerStats) {
                $(self.$name += worker.$name.get();)*
                for (sum, counter) in self.reasons.iter_mut().zip(&worker.reasons) {
                    *sum += counter.get();
                }
            }
        }
    };
}

stats! {
    /// Gauge: carriers that passed the handshake.
    carriers_up
    /// Carriers whose TLS records the kernel makes.
    carriers_ktls
    /// Gauge: link connections still in the handshake.
    handshakes_open
    /// Streams opened.
    streams_total
    /// Gauge: sockets of visitors or backends that are open.
    streams_open
    /// Bytes from the local sockets into carriers.
    bytes_to_link
    /// Bytes from carriers into the local sockets.
    bytes_from_link
    /// Of both, bytes that were spliced; the rest was copied.
    bytes_spliced
    /// Bytes that had to wait in memory for a slow receiver.
    bytes_spilled
    /// Gauge: bytes that wait now, in memory or in pipes.
    bytes_held
    /// DATA frames sent.
    frames_sent
    /// DATA frames received.
    frames_received
    /// System calls that wrote to a carrier.
    link_writes
    /// System calls that read from a carrier.
    link_reads
    /// Visitors handed to another worker.
    handovers
    /// Visitors closed without a stream.
    visitors_refused
    /// Times a visitor whose backend was not reached was sent to another
    visitors_retried
    /// Times a backend was given no visitors for a while
    ejections
    /// Link connections refused or dropped before they were up.
    handshakes_failed
    /// Dials of backends that failed.
    dials_failed
    /// Gauge: direct carriers that wait for a stream.
    direct_spare
    /// Gauge: direct carriers with a stream.
    direct_open
    /// Streams that found no direct carrier waiting.
    direct_missed
    /// Streams that left the mux for a direct carrier.
    streams_moved
    /// Turns whose bulk rested after them, for small messages
    bulk_rests
    /// Gauge: pipes that exist.
    pipes
}

impl WorkerStats {
    /// Counts an end.
    pub(crate) fn count(&self, reason: Reason) {
        self.reasons[reason as usize].add(1);
    }
}
