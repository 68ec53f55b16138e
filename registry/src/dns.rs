//! DNS: services as A, AAAA and SRV records, over UDP and TCP, so that anything can find them that can resolve a name.
//! Promise: answers come from the snapshot and wait for nothing; bytes from outside cost at most the datagram or the connection
//! that they came in; memory is fixed, but for `connections_max` connections of a few KiB.
//! Uses `names` (what a name means), `pick` (which instances), `answer` (messages), `limit` (how often). The page for users is
//! docs/dns.md.
//!
//! ```text
//! socket ─► allowed? ─► rate (UDP) ─► answer ◄── snapshot
//! ```

mod answer;
mod limit;
mod names;
mod pick;
mod stats;

pub use self::stats::Stats;

use self::answer::{Way, Zone};
use self::limit::{Grant, Limit};
use self::stats::Unanswered;
use crate::service::Registry;
use hickory_proto::rr::Name;
use ipnet::IpNet;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Where names are, unless somebody says otherwise: `internal` is kept for private use by ICANN's resolution 2024.07.29.06.
pub const ZONE_DEFAULT: &str = "ringspan.internal.";
/// How long an answer may be kept, unless somebody says otherwise.
pub const TTL_DEFAULT: Duration = Duration::from_secs(2);
/// Instances in an answer, unless somebody says otherwise: eight of SRV with their addresses fit a datagram.
pub const ANSWERS_DEFAULT: u8 = 8;
/// Answers a second to a network over UDP, unless somebody says otherwise: ten times what a resolver of a busy host asks.
pub const RATE_DEFAULT: u32 = 1000;
/// Connections over TCP, unless somebody says otherwise.
pub const CONNECTIONS_DEFAULT: u16 = 256;
/// Longest name of a zone, so that services fit before it.
const ZONE_BYTES_MAX: usize = 128;
/// Longest query: a name, an OPT and a signature are a quarter of it. A longer datagram is cut, and so malformed.
const QUERY_BYTES_MAX: usize = 2048;
/// A connection that asks nothing, or does not take its answer, for so long is closed (RFC 7766, section 6.2.3: seconds).
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Of all connections, one address may have a quarter, and two in any case.
const SHARE: usize = 4;
/// When the server stops, a connection that has just come has this long to ask; others are closed when they are answered.
const STOP_MAX: Duration = Duration::from_millis(500);
/// After a failed accept or receive: time for what is missing to come.
const PAUSE: Duration = Duration::from_millis(50);

/// A domain under which services are.
#[derive(Clone, PartialEq, Eq)]
pub struct ZoneName(pub(crate) Name);

impl FromStr for ZoneName {
    type Err = String;

    /// Reads `ringspan.internal`, with the last dot or without.
    fn from_str(text: &str) -> Result<ZoneName, String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !text.chars().all(is_name) {
            return Err("a domain is of letters, digits, hyphens and dots".into());
        }
        let mut name = Name::from_ascii(text).map_err(|e| e.to_string())?.to_lowercase();
        name.set_fqdn(true);
        if name.is_root() || name.len() > ZONE_BYTES_MAX {
            return Err(format!("a zone has a name, of at most {ZONE_BYTES_MAX} bytes"));
        }
        Ok(ZoneName(name))
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How services are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Under which domain.
    pub zone: ZoneName,
    /// How long an answer may be kept, also one that there is nothing. Whole seconds.
    pub ttl: Duration,
    /// Instances in one answer, at least 1.
    pub answers_max: u8,
    /// Answers a second over UDP to the networks of /24 and /56; 0: any number.
    pub rate: u32,
    /// Connections over TCP at a time.
    pub connections_max: u16,
    /// Who may ask; `None`: everybody.
    pub allow: Option<Vec<IpNet>>,
    /// Namespaces that are shown; `None`: all.
    pub namespaces: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            zone: ZONE_DEFAULT.parse().expect("it is a domain"),
            ttl: TTL_DEFAULT,
            answers_max: ANSWERS_DEFAULT,
            rate: RATE_DEFAULT,
            connections_max: CONNECTIONS_DEFAULT,
            allow: None,
            namespaces: None,
        }
    }
}

/// Bound sockets: one for datagrams and a listener at each address.
#[derive(Debug)]
pub struct Server {
    sockets: Vec<(UdpSocket, TcpListener)>,
}

/// What every socket needs.
struct Shared {
    zone: Zone,
    options: Options,
    registry: Registry,
    stats: Arc<Stats>,
    /// Connections by address.
    peers: Mutex<HashMap<IpAddr, usize>>,
    places: Arc<Semaphore>,
}

impl Server {
    /// Of sockets that are bound, both of a pair at one address.
    pub fn on(sockets: Vec<(UdpSocket, TcpListener)>) -> Server {
        Server { sockets }
    }

    /// Where they are.
    ///
    /// # Errors
    /// A socket's.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(|(_, tcp)| tcp.local_addr()).collect()
    }

    /// Answers until `stop` says true or is gone; what has been read is answered.
    pub async fn serve(self, registry: Registry, options: Options, stats: Arc<Stats>, stop: watch::Receiver<bool>) {
        let here = self.addresses().unwrap_or_default();
        let here = here.into_iter().map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).collect();
        let shared = Arc::new(Shared {
            zone: Zone::new(&options, here),
            places: Arc::new(Semaphore::new(options.connections_max.into())),
            options,
            registry,
            stats,
            peers: Mutex::default(),
        });
        // They end with this function.
        let mut tasks = JoinSet::new();
        for (udp, tcp) in self.sockets {
            tasks.spawn(shared.clone().datagrams(udp, stop.clone()));
            tasks.spawn(shared.clone().connections(tcp, stop.clone()));
        }
        tasks.join_all().await;
    }
}

impl Shared {
    fn allows(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.options.allow.as_ref().is_none_or(|all| all.iter().any(|net| net.contains(&peer)))
    }

    async fn datagrams(self: Arc<Shared>, socket: UdpSocket, mut stop: watch::Receiver<bool>) {
        let (mut limit, mut chance) = (Limit::new(self.options.rate), fastrand::Rng::new());
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                () = stopped(&mut stop) => return,
            };
            let (n, peer) = match received {
                Ok(received) => received,
                // An ICMP error about an answer is told here too, and is no matter.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => {
                    tracing::warn!(%error, "dns: receive");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (query, came) = (&buffer[..n], self.registry.now());
            if !self.allows(peer.ip()) {
                self.stats.unanswered(Unanswered::NotAllowed);
                continue;
            }
            let bytes = match limit.ask(peer.ip(), came) {
                Grant::Answer => self.answer(query, Way::Udp, &mut chance),
                Grant::Slip => {
                    self.stats.unanswered(Unanswered::Slipped);
                    Zone::slip(query)
                }
                Grant::Drop => {
                    self.stats.unanswered(Unanswered::Dropped);
                    None
                }
            };
            if let Some(bytes) = bytes.filter(|b| !b.is_empty()) {
                // A peer that cannot be reached is its own trouble.
                if let Err(error) = socket.send_to(&bytes, peer).await {
                    tracing::debug!(%error, %peer, "dns: send");
                }
            }
        }
    }

    fn answer(&self, query: &[u8], way: Way, chance: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let came = self.registry.now();
        let Some(reply) = self.zone.answer(self.registry.snapshot(), query, way, chance) else {
            self.stats.unanswered(Unanswered::NoQuery);
            return None;
        };
        self.stats.answered(reply.kind, reply.outcome, Duration::from_nanos(self.registry.now().ns() - came.ns()));
        Some(reply.bytes)
    }

    async fn connections(self: Arc<Shared>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
                () = stopped(&mut stop) => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "dns: accept. Try: raise the limit on open files");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if !self.allows(peer.ip()) {
                self.stats.unanswered(Unanswered::NotAllowed);
                continue;
            }
            // Full: closed at once, so that the asker goes elsewhere.
            let place = self.places.clone().try_acquire_owned().ok().zip(self.guest(peer.ip().to_canonical()));
            let Some(place) = place else {
                self.stats.unanswered(Unanswered::Connection);
                continue;
            };
            let (shared, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = shared.connection(stream, stop).await {
                    tracing::trace!(%error, %peer, "dns: connection");
                }
                drop(place);
            });
        }
        drop(listener);
        tasks.join_all().await;
    }

    /// A place for a connection of this address; `None`: it has enough.
    fn guest(self: &Arc<Shared>, peer: IpAddr) -> Option<Guest> {
        let most = (usize::from(self.options.connections_max) / SHARE).max(2);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        self.stats.connections.fetch_add(1, Ordering::Relaxed);
        Some(Guest { shared: self.clone(), peer })
    }

    /// Answers query after query, in their order, until the peer closes or is silent, or the server stops.
    async fn connection(&self, stream: TcpStream, mut stop: watch::Receiver<bool>) -> io::Result<()> {
        let _ = stream.set_nodelay(true);
        let (mut stream, mut chance) = (BufReader::new(stream), fastrand::Rng::new());
        let (mut query, mut patience) = (vec![0; QUERY_BYTES_MAX], STOP_MAX);
        loop {
            let length = tokio::select! {
                biased;
                length = timeout(IDLE_MAX, stream.read_u16()) => usize::from(length??),
                () = async { stopped(&mut stop).await; tokio::time::sleep(patience).await } => return Ok(()),
            };
            patience = Duration::ZERO;
            let Some(query) = query.get_mut(..length) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a query of more than 2 KiB"));
            };
            timeout(IDLE_MAX, stream.read_exact(query)).await??;
            let Some(bytes) = self.answer(query, Way::Tcp, &mut chance) else { return Ok(()) };
            let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
            let whole = [&length.to_be_bytes()[..], &bytes].concat();
            timeout(IDLE_MAX, stream.get_mut().write_all(&whole)).await??;
        }
    }
}

/// Ends when the flag says true, or nobody can raise it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A connection that is counted.
struct Guest {
    shared: Arc<Shared>,
    peer: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
        self.shared.stats.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
