//! What is probed, and what is said about it: the vocabulary between the engine and those who use it.

pub use crate::policy::*;

use crate::check::{Check, Detail, Phases};
use crate::health::{Health, Held};
use crate::outcome::Code;
use crate::slab::Key;
use crate::time::Instant;
use std::net::SocketAddr;
use std::sync::Arc;

/// The engine's name for a target: its worker and slot, with a generation so that a removed target's name is never
/// taken for its successor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

impl TargetId {
    /// Workers an id can name: 8 bits.
    pub const WORKERS_MAX: usize = 256;
    /// Targets one worker can name: 24 bits, sixteen million.
    pub const TARGETS_MAX: u32 = 1 << 24;

    pub(crate) fn new(worker: u8, key: Key) -> TargetId {
        debug_assert!(key.index < Self::TARGETS_MAX);
        TargetId(u64::from(worker) << 56 | u64::from(key.generation) << 24 | u64::from(key.index))
    }

    /// Which worker probes it, counted from 0.
    pub fn worker(self) -> usize {
        (self.0 >> 56) as usize
    }

    pub(crate) fn key(self) -> Key {
        Key { index: (self.0 as u32) & (Self::TARGETS_MAX - 1), generation: (self.0 >> 24) as u32 }
    }
}

/// One thing to probe.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// What.
    pub check: Check,
    /// How often, how long, how many. Shared: a million targets of one policy hold one copy.
    pub policy: Arc<Policy>,
    /// What to believe before the first outcome.
    pub initial: Health,
    /// Stop after this many probes; `None`: go on until removed. A probe that the prober's own trouble spoilt is made
    /// again and not counted, five times in a row at most.
    pub count: Option<u32>,
    /// The caller's own name for it: handed back with every sample and transition.
    pub key: u64,
    /// Which histograms it counts in, besides the whole's: see [`Options`](crate::engine::Options)`::groups`. Default 0:
    /// none.
    pub group: u16,
}

/// One probe's outcome. Samples may be dropped when nobody reads fast enough; drops are counted.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Whose.
    pub id: TargetId,
    /// The target's `key`.
    pub key: u64,
    /// What came of it.
    pub code: Code,
    /// The errno behind the code, 0 if none.
    pub errno: i32,
    /// From the start of the probe to its answer; until its verdict when none came. Nanoseconds.
    pub rtt_ns: u64,
    /// Actual minus scheduled start. Nanoseconds.
    pub lateness_ns: u64,
    /// What the protocol said.
    pub detail: Detail,
    /// How long each part took. All 0 for knocks.
    pub phases: Phases,
    /// The kernel's own round trip of the handshake (tcpi_rtt), microseconds; 0: not sampled.
    pub kernel_rtt_us: u32,
    /// SYNs that had to be sent again, as far as is known: measured where the kernel was asked, else read from an RTT of
    /// 1, 3 or 7 s (RFC 6298).
    pub syn_retransmits: u8,
    /// What is believed after it.
    pub health: Health,
    /// What kept it from having its usual effect on `health`.
    pub held: Held,
    /// This was the last of the target's `count` probes.
    pub last: bool,
}

/// A change of mind. Never lost: if the mailbox is full it waits on the worker.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    /// Whose.
    pub id: TargetId,
    /// The target's `key`.
    pub key: u64,
    /// What was believed.
    pub from: Health,
    /// What is believed now. The same as `from`, down, where a target would now be up and is held down instead: told
    /// once, with `held`.
    pub to: Health,
    /// `Damped` if the target is down because it has flapped; else `No`.
    pub held: Held,
    /// The outcome that decided.
    pub code: Code,
    /// The errno behind the code, 0 if none.
    pub errno: i32,
    /// What the protocol said.
    pub detail: Detail,
    /// The deciding probe's RTT. Nanoseconds.
    pub rtt_ns: u64,
    /// When the deciding probe was due, on the engine's clock (CLOCK_MONOTONIC).
    pub due: Instant,
    /// How many outcomes in a row decided, as many as were needed: "3 of 3"; 1 when nothing was believed before.
    pub streak: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An id's parts come back at both ends of their ranges.
    #[test]
    fn an_id_gives_back_its_parts() {
        for worker in [0, 255] {
            for index in [0, TargetId::TARGETS_MAX - 1] {
                for generation in [0, 1, u32::MAX] {
                    let key = Key { index, generation };
                    let id = TargetId::new(worker, key);
                    assert_eq!((id.worker(), id.key()), (usize::from(worker), key));
                }
            }
        }
    }
}
