//! Nacos v1's push: a client that lists a service and names a UDP port is sent each change of it there, for as long as it
//! goes on listing.
//! Promises: datagrams go only to the address that the request itself came from, so that nobody can be made to send to a
//! third; a datagram that is not acknowledged is sent once more after [`RETRY_AFTER`]; who is slow or gone costs one
//! datagram.
//!
//! ```text
//! ──► {"type":"dom","data":"<ServiceInfo as a string>","lastRefTime":1700000000000}     gzip from 1 KiB on
//! ◄── {"type":"push-ack","lastRefTime":1700000000000,"data":""}
//! ```

use super::{Hub, Subscriber, SubscriptionId, TooMany, Update};
use crate::model::{Name, ServiceKey};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

/// A client that has not listed for this long is no subscriber any more: clients list each 10 s (cacheMillis).
pub const SILENT_MAX: Duration = Duration::from_secs(30);
/// A datagram without an acknowledgement is sent again after this, once; as Nacos does.
pub const RETRY_AFTER: Duration = Duration::from_secs(10);
/// From this size on a datagram is compressed.
const GZIP_BYTES_MIN: usize = 1024;
/// The largest UDP payload over IPv4. What does not fit is not pushed: the client lists it within 10 s.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Clients that Nacos pushes to, by the beginning of their User-Agent.
const AGENTS: [&str; 6] =
    ["Nacos-Java-Client", "Nacos-Go-Client", "Nacos-CSharp-Client", "Nacos-C-Client", "vip-client4cpp", "Nacos-DNS"];

/// Whether a client of this User-Agent understands pushes.
pub fn understands(user_agent: &str) -> bool {
    AGENTS.iter().any(|agent| user_agent.starts_with(agent))
}

/// One socket, and who is sent to from it.
pub struct UdpPusher {
    socket: UdpSocket,
    hub: Hub,
    clients: Mutex<HashMap<ClientKey, Arc<Client>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    to: SocketAddr,
    service: ServiceKey,
    clusters: Name,
}

struct Client {
    key: ClientKey,
    pusher: Weak<UdpPusher>,
    state: Mutex<State>,
}

struct State {
    id: Option<SubscriptionId>,
    listed: Instant,
    /// The latest datagram, until it is acknowledged or has been sent twice.
    pending: Option<Pending>,
}

struct Pending {
    at_ms: u64,
    datagram: Arc<[u8]>,
    sent: Instant,
    again: bool,
}

impl UdpPusher {
    /// Binds a socket of its own at an address like that of the HTTP port, with a port that the kernel chooses.
    ///
    /// # Errors
    /// bind(2)'s. Panics outside of a runtime.
    pub fn bind(like: SocketAddr, hub: Hub) -> io::Result<Arc<UdpPusher>> {
        let socket = std::net::UdpSocket::bind(SocketAddr::new(like.ip(), 0))?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Arc::new(UdpPusher { socket, hub, clients: Mutex::default() }))
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<ClientKey, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has listed a service and wants changes of it at `to`: subscribes it, or renews what it has.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn renew(
        self: &Arc<Self>,
        service: &ServiceKey,
        clusters: &str,
        to: SocketAddr,
        agent: &str,
    ) -> Result<(), TooMany> {
        let key = ClientKey { to, service: service.clone(), clusters: Name::from(clusters) };
        let client = {
            let mut clients = self.clients();
            if let Some(client) = clients.get(&key) {
                client.state().listed = Instant::now();
                return Ok(());
            }
            let state = State { id: None, listed: Instant::now(), pending: None };
            let client = Arc::new(Client { key: key.clone(), pusher: Arc::downgrade(self), state: Mutex::new(state) });
            clients.insert(key.clone(), client.clone());
            client
        };
        match self.hub.subscribe(service, clusters, format!("{to} {agent}"), client.clone()) {
            Ok(id) => {
                client.state().id = Some(id);
                Ok(())
            }
            Err(too_many) => {
                self.clients().remove(&key);
                Err(too_many)
            }
        }
    }

    /// Takes acknowledgements, sends again, and forgets who has gone; for ever. Spawn it once.
    pub async fn run(self: Arc<Self>) {
        let mut look = tokio::time::interval(Duration::from_secs(1));
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                heard = self.socket.recv_from(&mut buffer) => match heard {
                    Ok((n, from)) => self.on_datagram(from, &buffer[..n]),
                    // Of an earlier datagram: nobody listens there any more.
                    Err(error) => tracing::debug!(%error, "push: udp"),
                },
                _ = look.tick() => self.look(Instant::now()),
            }
        }
    }

    /// An acknowledgement, or noise.
    fn on_datagram(&self, from: SocketAddr, bytes: &[u8]) {
        let Ok(ack) = serde_json::from_slice::<Value>(bytes) else { return };
        let (Some("push-ack"), Some(at_ms)) = (ack["type"].as_str(), ack["lastRefTime"].as_u64()) else { return };
        for client in self.clients().values().filter(|client| client.key.to == from) {
            let mut state = client.state();
            if state.pending.as_ref().is_some_and(|pending| pending.at_ms == at_ms) {
                state.pending = None;
            }
        }
    }

    fn look(&self, now: Instant) {
        let mut gone = Vec::new();
        for client in self.clients().values() {
            let mut state = client.state();
            if now.duration_since(state.listed) >= SILENT_MAX {
                gone.push(client.clone());
                continue;
            }
            let due = |p: &Pending| now.duration_since(p.sent) >= RETRY_AFTER;
            if let Some(pending) = state.pending.take_if(|p| due(p)) {
                // Full buffers or no way there: it lists before long.
                let _ = self.socket.try_send_to(&pending.datagram, client.key.to);
                state.pending = (!pending.again).then_some(Pending { sent: now, again: true, ..pending });
            }
        }
        for client in gone {
            self.forget(&client);
        }
    }

    fn forget(&self, client: &Client) {
        self.clients().remove(&client.key);
        let id = client.state().id;
        if let Some(id) = id {
            self.hub.unsubscribe(&client.key.service, id);
        }
    }

    /// Where it sends from.
    ///
    /// # Errors
    /// None that a live socket gives.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Client {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Client {
    fn on_update(&self, update: &Update) -> bool {
        let Some(pusher) = self.pusher.upgrade() else { return false };
        let Some(datagram) = update.packed.get_or_init(|| pack(update)).clone() else { return true };
        // Full buffers: it is sent again.
        let _ = pusher.socket.try_send_to(&datagram, self.key.to);
        self.state().pending = Some(Pending { at_ms: update.at_ms, datagram, sent: Instant::now(), again: false });
        true
    }
}

/// The datagram of an update; `None`: too large for one.
fn pack(update: &Update) -> Option<Arc<[u8]>> {
    // The time stays below 2^53: what JavaScript reads as a number, it sends back as it was.
    let plain = json!({ "type": "dom", "data": &**update.grouped(), "lastRefTime": update.at_ms }).to_string();
    let bytes = if plain.len() < GZIP_BYTES_MIN {
        plain.into_bytes()
    } else {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain.as_bytes()).ok()?;
        encoder.finish().ok()?
    };
    (bytes.len() <= DATAGRAM_BYTES_MAX).then(|| bytes.into())
}
