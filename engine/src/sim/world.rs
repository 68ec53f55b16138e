//! The made-up network: how each host behaves, and what goes wrong on the prober's own side.

use crate::io::Errno;
use fastrand::Rng;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

/// After this long without an answer Linux gives a connect up (tcp_syn_retries = 6, tcp(7)).
const SYN_GIVE_UP: Duration = Duration::from_secs(127);
/// A lost SYN is sent again after this long (RFC 6298, 2.1).
const SYN_AGAIN: Duration = Duration::from_secs(1);

/// How a host answers a connect. Times in microseconds, drawn evenly.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Accepts.
    Open(Range<u64>),
    /// Refuses.
    Closed(Range<u64>),
    /// Never answers.
    BlackHole,
    /// Accepts, but each SYN is lost with this probability, 0 to 1.
    Lossy(f64, Range<u64>),
    /// Answers with a reset that the kernel reports as ECONNRESET (6.14 to 6.15.7).
    Resetting(Range<u64>),
    /// A router says that it cannot be reached.
    Unreachable(Range<u64>),
    /// Our own kernel has no port left for it.
    NoPort,
}

impl Behaviour {
    /// When and how a connect to it ends.
    pub(crate) fn answer(&self, rng: &mut Rng) -> (Duration, Result<(), Errno>) {
        let mut after = |range: &Range<u64>| {
            Duration::from_micros(if range.is_empty() { range.start } else { rng.u64(range.clone()) })
        };
        match self {
            Behaviour::Open(rtt) => (after(rtt), Ok(())),
            Behaviour::Closed(rtt) => (after(rtt), Err(Errno(libc::ECONNREFUSED))),
            Behaviour::BlackHole => (SYN_GIVE_UP, Err(Errno(libc::ETIMEDOUT))),
            Behaviour::Lossy(loss, rtt) => {
                let (rtt, mut wait, mut again) = (after(rtt), Duration::ZERO, SYN_AGAIN);
                while rng.f64() < *loss && wait < SYN_GIVE_UP {
                    wait += again;
                    again *= 2;
                }
                if wait >= SYN_GIVE_UP { (SYN_GIVE_UP, Err(Errno(libc::ETIMEDOUT))) } else { (wait + rtt, Ok(())) }
            }
            Behaviour::Resetting(rtt) => (after(rtt), Err(Errno(libc::ECONNRESET))),
            Behaviour::Unreachable(rtt) => (after(rtt), Err(Errno(libc::EHOSTUNREACH))),
            Behaviour::NoPort => (Duration::ZERO, Err(Errno(libc::EADDRNOTAVAIL))),
        }
    }
}

/// Who is out there. An address nobody gave a behaviour is a black hole.
#[derive(Clone, Debug, Default)]
pub struct World {
    hosts: HashMap<SocketAddr, Behaviour>,
}

impl World {
    /// From now on the host at `address` behaves so.
    pub fn set(&mut self, address: SocketAddr, behaviour: Behaviour) {
        self.hosts.insert(address, behaviour);
    }

    pub(crate) fn behaviour(&self, address: &SocketAddr) -> &Behaviour {
        self.hosts.get(address).unwrap_or(&Behaviour::BlackHole)
    }
}

/// What goes wrong on the prober's own side. The default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The worker is not given the CPU: with this probability at each of the two ends of a wait...
    pub stall: f64,
    /// ... for so many microseconds.
    pub stall_us: Range<u64>,
    /// A connect fails at once with one of these, with [`local_error`](Faults::local_error)'s probability.
    pub local_errors: Vec<i32>,
    /// See above, 0 to 1.
    pub local_error: f64,
    /// Lanes that can be opened in all; then EMFILE.
    pub lanes_max: Option<u32>,
    /// Completions handed out by one wait at most; the rest come with the next.
    pub collect_max: Option<usize>,
    /// Repeats a completion that has been delivered, with this probability a wait: what no `Io` may do.
    pub rogue: f64,
}
