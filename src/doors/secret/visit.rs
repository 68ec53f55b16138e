//! The agent's sides of a secret service: who visits opens a local port, who exposes takes the visitors in.
//!
//! ```text
//! client ─▶ local port ─▶ visiting agent ═══ TLS by the shared secret, through the bridge ═══▶ exposing agent ─▶ backend
//! ```

use super::greet::Greeting;
use super::key::{SecretKey, nobody};
use crate::config::visit::Visit;
use crate::doors::listening::{self, Ear};
use crate::doors::proxy::dial::reason_of;
use crate::doors::road::Road;
use crate::doors::tally::Few;
use crate::inherit;
use arc_swap::ArcSwap;
use ringspan_engine::kernel::{Socket, handover};
use ringspan_tunnel::address::Address;
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::hello::{AgentHello, AgentStep, Carrier, Expose, Introduction, SessionId, VERSIONS};
use ringspan_tunnel::identity::AgentKey;
use ringspan_tunnel::tls::{ClientTls, Tls};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Reaching the bridge, its handshake, and that with the other agent.
const REACH_MAX: Duration = Duration::from_secs(15);
/// The other agent's handshake, as seen by who exposes; a little less than the data path waits for an answer.
const MEET_MAX: Duration = Duration::from_secs(10);
/// One direction's buffer: a TLS record (RFC 8446 §5.1).
const COPY_BYTES: usize = 16 << 10;
/// Clients of one local port at once. The next ones wait in the kernel's queue.
const CLIENTS_MAX: usize = 4096;

/// Local ports that lead to secret services, until this is dropped.
#[derive(Default)]
pub(crate) struct Visits {
    open: Vec<(Visit, Port)>,
    /// They accept nobody any more; each ends with its last client.
    leaving: Vec<JoinHandle<()>>,
    /// The way to the bridge, for the next client.
    road: Arc<ArcSwap<Road>>,
}

struct Port {
    /// Dropped or said: no more clients.
    close: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Visits {
    /// Opens exactly these: what is the same goes on, and clients of what is gone are carried to their end. Needs a
    /// runtime.
    ///
    /// # Errors
    /// The first that cannot be opened; then nothing has changed.
    pub(crate) fn apply(
        &mut self,
        visits: &[Visit],
        identity: &AgentKey,
        trust: Trust,
        road: &Road,
    ) -> Result<(), (SocketAddr, io::Error)> {
        let mut fresh = Vec::new();
        for visit in visits {
            if self.open.iter().any(|(open, _)| open == visit) {
                continue;
            }
            let start = || {
                // The port of one that changes is there already.
                let before = self.open.iter().find(|(open, _)| open.listen == visit.listen && visit.listen.port() != 0);
                if before.is_some() {
                    let waiting = handover::waiting_sockets()?;
                    inherit::put(waiting.into_iter().filter(|w| w.address == visit.listen && !w.is_udp).collect());
                }
                let listener = listening::tcp(visit.listen)?;
                let address = listener.local_addr()?;
                let tls = visit.key.client(&visit.service).map_err(io::Error::other)?;
                let (identity, tls, road) = (identity.clone(), TlsConnector::from(tls), self.road.clone());
                let way = Way { visit: visit.clone(), identity, trust, tls, road };
                let (close, closed) = oneshot::channel();
                tracing::info!(service = visit.service, %address, via = visit.way(), "visiting a secret service");
                Ok((visit.clone(), Port { close, task: tokio::spawn(accept(listener, Arc::new(way), closed)) }))
            };
            match start() {
                Ok(port) => fresh.push(port),
                Err(error) => {
                    fresh.into_iter().for_each(|(_, port): (Visit, Port)| port.task.abort());
                    return Err((visit.listen, error));
                }
            }
        }
        let (stay, go) = std::mem::take(&mut self.open).into_iter().partition(|(open, _)| visits.contains(open));
        self.open = stay;
        self.road.store(Arc::new(road.clone()));
        self.open.extend(fresh);
        self.leave(go);
        Ok(())
    }

    /// Accepts nobody any more.
    pub(crate) fn drain(&mut self) {
        let all = std::mem::take(&mut self.open);
        self.leave(all);
    }

    /// Whether nobody is carried any more, once it drains.
    pub(crate) fn is_drained(&self) -> bool {
        self.leaving.iter().all(JoinHandle::is_finished)
    }

    fn leave(&mut self, ports: Vec<(Visit, Port)>) {
        self.leaving.retain(|task| !task.is_finished());
        for (visit, Port { close, task }) in ports {
            tracing::info!(service = visit.service, address = %visit.listen, "a port of a secret service is closed");
            // One that has ended by itself needs no word.
            let _ = close.send(());
            self.leaving.push(task);
        }
    }
}

impl Drop for Visits {
    fn drop(&mut self) {
        for task in self.open.iter().map(|(_, port)| &port.task).chain(&self.leaving) {
            task.abort();
        }
    }
}

struct Way {
    visit: Visit,
    identity: AgentKey,
    trust: Trust,
    tls: TlsConnector,
    /// Its proxy leads to the bridge's listener, too.
    road: Arc<ArcSwap<Road>>,
}

async fn accept(listener: Ear, way: Arc<Way>, mut closed: oneshot::Receiver<()>) {
    let (places, few) = (Arc::new(Semaphore::new(CLIENTS_MAX)), Arc::new(Few::default()));
    // Ends its clients with itself.
    let mut clients = JoinSet::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            _ = &mut closed => break,
        };
        while clients.try_join_next().is_some() {}
        match accepted {
            Ok((client, _)) => {
                let (way, few) = (way.clone(), few.clone());
                clients.spawn(async move {
                    let reached = tokio::time::timeout(REACH_MAX, way.reach()).await;
                    match reached.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        Ok(service) => carry(client, service).await,
                        Err(error) => {
                            let _ = client.set_zero_linger();
                            if let Some(unsaid) = few.one_more() {
                                let (service, via) = (&way.visit.service, way.visit.way());
                                tracing::warn!(service, via, %error, unsaid, "the secret service was not reached");
                            }
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => listening::pause(&way.visit.service, &error).await,
        }
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
}

impl Way {
    /// A connection to the other agent, which both ends have proved to be who they should be.
    async fn reach(&self) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let via = self.visit.via.as_ref();
        let stream = self.road.load_full().visit(via).await.map_err(|error| io::Error::other(error.text))?;
        // Nobody looks at the name: the key is what counts.
        let host = via.map_or_else(|| "bridge".to_owned(), Address::host);
        let tls = match self.trust {
            Trust::Plain => Tls::plain(),
            Trust::Pinned(fingerprint) => ClientTls::pinned(fingerprint).connect(&host).map_err(io::Error::other)?,
        };
        let (mut greeting, binding) = Greeting::begin(stream, tls).await?;
        let service = self.visit.service.clone().try_into().map_err(io::Error::other)?;
        let introduction = Introduction {
            identity: self.identity.clone(),
            token: None,
            session: SessionId::generate(),
            exposes: vec![Expose::new(service, "visit".into())],
            watches: 0,
            software: format!("ringspan/{}", env!("CARGO_PKG_VERSION")),
        };
        let mut hello = AgentHello::new(introduction, VERSIONS, Carrier::mux(0, 1), binding);
        loop {
            let (kind, payload) = greeting.receive().await?;
            match hello.on_message(kind, &payload) {
                AgentStep::Send(message) => greeting.send(&message).await?,
                AgentStep::Welcomed(_) => break,
                AgentStep::Refused(refusal) => return Err(io::Error::other(refusal)),
                AgentStep::Over => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        self.tls.connect(nobody(), Whole(greeting.end()?)).await
    }
}

/// A connection whose halves end inside of its TLS (close_notify, RFC 8446 §6.1) and not on the way: what stands there, a
/// proxy, a WebSocket, may close both halves when it sees the end of one. It ends when it is dropped.
struct Whole<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Whole<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Whole<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Carries bytes between a client or a backend and the other agent until both halves have ended. What ends otherwise must
/// not look like an end: `near` is reset, and the TLS ends without close_notify, which the other agent's rustls calls
/// UnexpectedEof.
async fn carry(mut near: TcpStream, mut far: impl AsyncRead + AsyncWrite + Unpin) {
    // From the first, so that it is a reset also when this agent stops, or is killed.
    let _ = near.set_zero_linger();
    match copy_bidirectional_with_sizes(&mut near, &mut far, COPY_BYTES, COPY_BYTES).await {
        Ok(_) => {
            let _ = socket2::SockRef::from(&near).set_linger(None);
        }
        Err(error) => tracing::debug!(%error, "a visit of a secret service broke off"),
    }
}

/// A socket for the plane, and what takes the visitor in behind it: the handshake by the secret, then the backend. The
/// backend hears of nobody who has not proved to hold the secret.
///
/// # Errors
/// [`Reason::DialLocal`].
pub(crate) fn take_in(
    key: &SecretKey,
    service: &str,
    backend: SocketAddr,
    few: Arc<Few>,
) -> Result<(Socket, impl Future<Output = ()> + use<>), Reason> {
    let tls = TlsAcceptor::from(key.server(service).map_err(|_| Reason::DialLocal)?);
    let (inside, outside) = Socket::pair().map_err(|_| Reason::DialLocal)?;
    let stream = UnixStream::from_std(StdStream::from(outside.into_owned())).map_err(|_| Reason::DialLocal)?;
    let service = service.to_owned();
    let serve = async move {
        let meet = async {
            let visitor = tls.accept(Whole(stream)).await?;
            let backend = TcpStream::connect(backend).await?;
            backend.set_nodelay(true)?;
            io::Result::Ok((visitor, backend))
        };
        match tokio::time::timeout(MEET_MAX, meet).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((visitor, backend)) => carry(backend, visitor).await,
            Err(error) => {
                if let Some(unsaid) = few.one_more() {
                    let reason = reason_of(&error);
                    tracing::warn!(service, %backend, %error, %reason, unsaid, "a visitor of a secret service was not taken in");
                }
            }
        }
    };
    Ok((inside, serve))
}
