//! What is probed, and what is said about it: the vocabulary between the engine and those who use it.

use crate::health::{Health, Thresholds};
use crate::io::Mode;
use crate::outcome::Code;
use std::net::SocketAddr;
use std::time::Duration;

/// The engine's name for a target: its worker and slot, with a generation so that a removed target's name is never
/// taken for its successor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

/// What a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// A TCP handshake, ended as `Mode` says.
    Tcp(Mode),
}

/// How often, how long, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From the start of one probe to the start of the next. 100 ms to 1 h, default 1 s (probe) or 5 s (registry).
    pub interval: Duration,
    /// A probe that has not come out by then has failed. 1 ms to 60 s, default 1 s. May be longer than the interval:
    /// slots that come due while a probe is in flight are skipped and counted as missed.
    pub timeout: Duration,
    /// Rise and fall.
    pub thresholds: Thresholds,
}

/// The shortest interval a policy may ask for: a tenth of a second is 10 probes a second for one target; whoever
/// wants more wants a benchmark.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest interval.
pub const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The shortest timeout: one tick of the wheel.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// The longest timeout.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// One thing to probe.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// What.
    pub check: Check,
    /// How often, how long, how many.
    pub policy: Policy,
    /// What to believe before the first outcome.
    pub initial: Health,
    /// Stop after this many probes; `None`: go on until removed.
    pub count: Option<u32>,
    /// The caller's own name for it: handed back with every sample and transition.
    pub key: u64,
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
    /// From the submission of the connect to its completion; the timeout's length when it timed out. Nanoseconds.
    pub rtt_ns: u64,
    /// Actual minus scheduled start. Nanoseconds.
    pub lateness_ns: u64,
    /// What is believed after it.
    pub health: Health,
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
    /// What is believed now.
    pub to: Health,
    /// The outcome that decided.
    pub code: Code,
    /// The errno behind the code, 0 if none.
    pub errno: i32,
    /// The deciding probe's RTT. Nanoseconds.
    pub rtt_ns: u64,
    /// How many outcomes in a row decided, and how many were needed: "3 of 3".
    pub streak: u8,
}
