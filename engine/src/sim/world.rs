//! The made-up network: how each host behaves, and what goes wrong on the prober's own side.

use crate::io::{Errno, TcpFacts, Way};
use crate::sim::host::Host;
use fastrand::Rng;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// After this long without an answer Linux gives a connect up (tcp_syn_retries = 6, tcp(7)).
const SYN_GIVE_UP: Duration = Duration::from_secs(127);
/// A lost SYN is sent again after this long (RFC 6298, 2.1).
const SYN_AGAIN: Duration = Duration::from_secs(1);
/// A lost segment of a connection is sent again after this long at least (Linux, TCP_RTO_MIN).
const SEGMENT_AGAIN: Duration = Duration::from_millis(200);

/// How a host answers. Times in microseconds, drawn evenly. Who is called and only accepts says nothing afterwards; a
/// datagram is refused by `Closed` and `Resetting` (ICMP, port unreachable), and an echo request answered by all but
/// `BlackHole`, `Unreachable` and `NoPort`.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Accepts.
    Open(Range<u64>),
    /// Refuses.
    Closed(Range<u64>),
    /// Never answers.
    BlackHole,
    /// Accepts, but each SYN, datagram or echo is lost with this probability, 0 to 1.
    Lossy(f64, Range<u64>),
    /// Answers with a reset that the kernel reports as ECONNRESET (6.14 to 6.15.7).
    Resetting(Range<u64>),
    /// A router says that it cannot be reached.
    Unreachable(Range<u64>),
    /// Our own kernel has no port left for it.
    NoPort,
    /// Accepts and talks.
    Speaks(Speech),
}

/// A host that talks, and the way its words take.
#[derive(Clone, Debug)]
pub struct Speech {
    /// How long it takes to be connected, microseconds; as long for a word to arrive, either way together.
    pub rtt_us: Range<u64>,
    /// What it says.
    pub host: Arc<dyn Host>,
    /// Into what pieces its words fall.
    pub cut: Cut,
    /// Each piece is lost with this probability: sent again on a stream, gone as a datagram.
    pub loss: f64,
    /// Each datagram comes twice with this probability.
    pub twice: f64,
}

impl Speech {
    /// Whole words over a good network.
    pub fn new(rtt_us: Range<u64>, host: impl Host + 'static) -> Speech {
        Speech { rtt_us, host: Arc::new(host), cut: Cut::Whole, loss: 0.0, twice: 0.0 }
    }
}

/// How what is said in one go arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As it was said.
    Whole,
    /// In pieces of so many bytes, so many microseconds apart.
    Pieces(usize, u64),
    /// In pieces drawn anew each time, up to a millisecond apart.
    Any,
}

/// How a host meets a lane's call.
pub(crate) struct Meeting {
    /// When connect(2) is over ...
    pub(crate) after: Duration,
    /// ... and how.
    pub(crate) result: Result<(), Errno>,
    /// What the kernel would measure.
    pub(crate) facts: TcpFacts,
    /// What then.
    pub(crate) manner: Manner,
}

/// What a host does when it is spoken to.
pub(crate) enum Manner {
    /// Nothing.
    Silent,
    /// Talks.
    Talks(Speech),
    /// Sends an ICMP error after so long.
    Refuses(Duration, Errno),
    /// Answers an echo request after so long.
    Echoes(Duration),
}

fn draw(rng: &mut Rng, range: &Range<u64>) -> Duration {
    Duration::from_micros(if range.is_empty() { range.start } else { rng.u64(range.clone()) })
}

impl Behaviour {
    /// When and how a TCP connect to it ends.
    fn connect(&self, rng: &mut Rng) -> (Duration, Result<(), Errno>, u32) {
        match self {
            Behaviour::Open(rtt) => (draw(rng, rtt), Ok(()), 0),
            Behaviour::Speaks(speech) => (draw(rng, &speech.rtt_us), Ok(()), 0),
            Behaviour::Closed(rtt) => (draw(rng, rtt), Err(Errno(libc::ECONNREFUSED)), 0),
            Behaviour::BlackHole => (SYN_GIVE_UP, Err(Errno(libc::ETIMEDOUT)), 6),
            Behaviour::Lossy(loss, rtt) => {
                let (rtt, mut wait, mut again, mut times) = (draw(rng, rtt), Duration::ZERO, SYN_AGAIN, 0);
                while rng.f64() < *loss && wait < SYN_GIVE_UP {
                    wait += again;
                    again *= 2;
                    times += 1;
                }
                match wait < SYN_GIVE_UP {
                    true => (wait + rtt, Ok(()), times),
                    false => (SYN_GIVE_UP, Err(Errno(libc::ETIMEDOUT)), times),
                }
            }
            Behaviour::Resetting(rtt) => (draw(rng, rtt), Err(Errno(libc::ECONNRESET)), 0),
            Behaviour::Unreachable(rtt) => (draw(rng, rtt), Err(Errno(libc::EHOSTUNREACH)), 0),
            Behaviour::NoPort => (Duration::ZERO, Err(Errno(libc::EADDRNOTAVAIL)), 0),
        }
    }

    /// What comes of a lane's connect to it.
    pub(crate) fn meet(&self, way: Way, rng: &mut Rng) -> Meeting {
        if let Way::Datagram | Way::Ping = way {
            // A datagram socket finds its port at connect(2); with none left that is EAGAIN (net/ipv4/af_inet.c).
            let result = if let Behaviour::NoPort = self { Err(Errno(libc::EAGAIN)) } else { Ok(()) };
            let manner = self.manner(way, rng);
            return Meeting { after: Duration::ZERO, result, facts: TcpFacts::default(), manner };
        }
        let (after, result, retransmits) = self.connect(rng);
        let rtt_us = match self {
            Behaviour::Lossy(..) => after.as_micros() as u32 % SYN_AGAIN.as_micros() as u32,
            _ => after.as_micros() as u32,
        };
        let facts = TcpFacts { rtt_us: rtt_us.max(1), retransmits };
        Meeting { after, result, facts, manner: self.manner(way, rng) }
    }

    fn manner(&self, way: Way, rng: &mut Rng) -> Manner {
        match (way, self) {
            (Way::Stream | Way::Datagram, Behaviour::Speaks(speech)) => Manner::Talks(speech.clone()),
            (Way::Datagram, Behaviour::Closed(rtt) | Behaviour::Resetting(rtt)) => {
                Manner::Refuses(draw(rng, rtt), Errno(libc::ECONNREFUSED))
            }
            (Way::Datagram | Way::Ping, Behaviour::Unreachable(rtt)) => {
                Manner::Refuses(draw(rng, rtt), Errno(libc::EHOSTUNREACH))
            }
            (Way::Ping, Behaviour::Open(rtt) | Behaviour::Closed(rtt) | Behaviour::Resetting(rtt)) => {
                Manner::Echoes(draw(rng, rtt))
            }
            (Way::Ping, Behaviour::Lossy(loss, rtt)) if rng.f64() >= *loss => Manner::Echoes(draw(rng, rtt)),
            (Way::Ping, Behaviour::Speaks(speech)) => Manner::Echoes(draw(rng, &speech.rtt_us)),
            _ => Manner::Silent,
        }
    }
}

impl Speech {
    /// How long a word takes to arrive.
    pub(crate) fn flight(&self, rng: &mut Rng) -> Duration {
        draw(rng, &self.rtt_us) / 2
    }

    /// The pieces in which `bytes` arrive, each with what it waits for besides the one before it.
    pub(crate) fn pieces(&self, bytes: &[u8], rng: &mut Rng) -> Vec<(Duration, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (size, apart_us) = match self.cut {
                Cut::Whole => (rest.len(), 0),
                Cut::Pieces(size, apart_us) => (size.clamp(1, rest.len()), apart_us),
                Cut::Any => (rng.usize(1..=rest.len()), rng.u64(..1000)),
            };
            let (piece, after) = rest.split_at(size);
            let mut wait = if pieces.is_empty() { Duration::ZERO } else { Duration::from_micros(apart_us) };
            let mut again = SEGMENT_AGAIN;
            while rng.f64() < self.loss && again < SYN_GIVE_UP {
                wait += again;
                again *= 2;
            }
            pieces.push((wait, piece.to_vec()));
            rest = after;
        }
        pieces
    }
}

/// Who is out there. An address nobody gave a behaviour is a black hole.
#[derive(Clone, Debug, Default)]
pub struct World {
    hosts: HashMap<SocketAddr, Behaviour>,
}

impl World {
    /// From now on the host at `address` behaves so. Calls that are under way go on as they began.
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
    /// It stalls only after a wait, never between asking for something and its departure.
    pub stalls_after: bool,
    /// An operation fails with one of these, with [`local_error`](Faults::local_error)'s probability: a knock at its
    /// connect, a call or a talk at any leg.
    pub local_errors: Vec<i32>,
    /// See above, 0 to 1.
    pub local_error: f64,
    /// Lanes that can be opened in all; then EMFILE.
    pub lanes_max: Option<u32>,
    /// Completions handed out by one wait at most; the rest come with the next.
    pub collect_max: Option<usize>,
    /// Repeats a completion that has been delivered, with this probability a wait: what no `Io` may do.
    pub rogue: f64,
    /// Ping sockets are not permitted: EACCES.
    pub pings_forbidden: bool,
    /// Sources that are not this machine's: EADDRNOTAVAIL.
    pub sources_unknown: Vec<IpAddr>,
}
