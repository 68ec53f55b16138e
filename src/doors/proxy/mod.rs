//! Proxies into the agent's network: listeners that ask where to, agents that decide whether and connect.
//!
//! ```text
//! visitor ─SOCKS5 | CONNECT─▶ listener (bridge) ─OPEN {target}─▶ agent: allow-list, look-up, allow-list, connect
//!         ◀── reply, then the target's bytes, spliced ──────────┘
//! ```
//! Promises: the reply is written before the target's first byte and after the target was reached, with the true reason
//! when it was not; nobody who has not said where to holds more than a few KiB for 10 s; the visitor's own socket goes to
//! the data path, nothing is copied here.

pub(crate) mod allow;
mod associate;
pub(crate) mod connect;
pub(crate) mod dial;
pub(crate) mod socks;
pub(crate) mod users;

use super::listening::{self, Closing, Ear, linger_away};
use super::proxied::Who;
use super::tally::{Few, Tally};
use super::threshold::{Anteroom, Threshold};
use crate::config::doors::{Greeting, ProxyListener as Config};
use allow::{Target, Transport};
use connect::{Answer, Connect, ESTABLISHED};
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::{BridgeHandle, Entry, Gate};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::limits::Pass;
use socks::{Reply, Socks, reply};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// From accept to the end of the handshake: as long as an agent has for its own.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at once, per listener: at 10 KiB each. For one more, the one that has lasted longest ends.
const HANDSHAKES_MAX: usize = 1024;
/// Visitors at once whose targets are being dialled, per listener; more wait for their turn. Each takes less than 5 s.
const DIALS_MAX: usize = 1024;
/// One read of a handshake.
const READ_BYTES: usize = 2048;

/// What a handshake wants next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send this, then bring more.
    More { send: Vec<u8> },
    /// Send this; the visitor wants to go there, and these bytes of it are for the target.
    Done { send: Vec<u8>, target: Target, rest: Vec<u8> },
    /// Send this; the visitor wants to send datagrams.
    Associate { send: Vec<u8> },
    /// Send this and close.
    Failed { send: Vec<u8>, why: Why },
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Who it is was not said, or is not known.
    Login,
    /// What was said makes no sense.
    Protocol(&'static str),
}

impl Why {
    const fn as_str(self) -> &'static str {
        match self {
            Why::Login => "the login is missing or wrong",
            Why::Protocol(why) => why,
        }
    }
}

/// A listener that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct ProxyListener {
    address: SocketAddr,
    closing: Closing,
    task: JoinHandle<()>,
}

/// What a visitor wants.
enum Asked {
    /// A connection, and these bytes of it were read.
    Connect(Target, Vec<u8>),
    /// To send datagrams.
    Associate,
}

struct Shared {
    gate: Arc<Gate>,
    config: Config,
    handle: BridgeHandle,
    tally: Arc<Tally>,
    threshold: Arc<Threshold>,
    room: Arc<Anteroom>,
    dials: Semaphore,
    associations: Arc<Semaphore>,
    told: Few,
}

impl ProxyListener {
    /// Binds and starts. Needs a runtime.
    pub(crate) fn start(
        address: SocketAddr,
        config: Config,
        gate: Arc<Gate>,
        handle: BridgeHandle,
        tally: Arc<Tally>,
        threshold: Arc<Threshold>,
    ) -> io::Result<ProxyListener> {
        let listener = listening::tcp(address)?;
        let (address, closing) = (listener.local_addr()?, listener.closing());
        let (room, dials) = (Anteroom::new(HANDSHAKES_MAX), Semaphore::new(DIALS_MAX));
        let associations = Arc::new(Semaphore::new(config.associations_max));
        let told = Few::default();
        let shared = Shared { gate, config, handle, tally, threshold, room, dials, associations, told };
        let shared = Arc::new(shared);
        Ok(ProxyListener { address, closing, task: tokio::spawn(accept(listener, shared)) })
    }

    /// Where visitors connect, with the real port if 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells when its socket is closed.
    pub(crate) fn closing(&self) -> Closing {
        self.closing.clone()
    }
}

impl Drop for ProxyListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: Ear, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((mut stream, peer)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    match shared.threshold.visitor(&mut stream, peer).await {
                        Ok((who, pass)) => shared.serve(stream, who, pass).await,
                        Err(_) => drop(stream.set_zero_linger()),
                    }
                });
            }
            Err(error) => listening::pause(&shared.gate.name, &error).await,
        }
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, mut stream: TcpStream, who: Who, pass: Option<Pass>) {
        let peer = who.visitor;
        let seat = self.room.sit();
        let asked = tokio::select! {
            asked = self.handshake(&mut stream) => asked,
            () = tokio::time::sleep(HANDSHAKE_MAX) => {
                return self.refused(peer, None, "the handshake was not done in time");
            }
            () = seat.lost() => return self.refused(peer, None, "its place in the handshake was given to another"),
        };
        let (target, rest) = match asked {
            Ok(Ok(Asked::Connect(target, rest))) => (target, rest),
            Ok(Ok(Asked::Associate)) => {
                drop(seat);
                return self.associate(stream, peer, pass).await;
            }
            Ok(Err((send, why))) => {
                self.refused(peer, None, why.as_str());
                return tokio::select! {
                    () = linger_away(stream, &send) => {}
                    () = seat.lost() => {}
                };
            }
            Err(_) => return,
        };
        drop(seat);
        // Never closed.
        let _turn = self.dials.acquire().await;
        if self.config.allow.as_ref().is_some_and(|allow| !allow.may_ask(Transport::Tcp, &target)) {
            self.refused(peer, Some(&target), "the listener's allow-list does not have it");
            return linger_away(stream, &self.answer(Reason::TargetDenied)).await;
        }
        match self.enter(stream, (who, pass), &target, rest).await {
            Ok(()) => self.tally.proxied.add(1),
            Err((stream, reason)) => {
                self.refused(peer, Some(&target), reason.as_str());
                if let Some(stream) = stream {
                    linger_away(stream, &self.answer(reason)).await;
                }
            }
        }
    }

    /// Serves a visitor that sends datagrams.
    async fn associate(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, pass: Option<Pass>) {
        let Ok(_place) = self.associations.clone().try_acquire_owned() else {
            let (code, why) = match self.config.associations_max {
                0 => (Reply::Command, "associations_max = 0: no UDP here"),
                _ => (Reply::Failure, "as many UDP associations as may be"),
            };
            self.refused(peer, None, why);
            return linger_away(stream, &reply(code)).await;
        };
        self.tally.proxied.add(1);
        match associate::serve(self.clone(), stream, peer, pass).await {
            Ok(why) => tracing::debug!(listener = self.gate.name, visitor = %peer, why, "UDP association over"),
            Err(error) => tracing::debug!(listener = self.gate.name, visitor = %peer, %error, "no UDP association"),
        }
    }

    /// What the visitor wants; or what to tell it, and why.
    async fn handshake(&self, stream: &mut TcpStream) -> io::Result<Result<Asked, (Vec<u8>, Why)>> {
        let users = self.config.users.as_ref();
        let (mut socks, mut connect) = (Socks::new(users), Connect::new(users));
        let mut buffer = [0; READ_BYTES];
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = match self.config.greeting {
                Greeting::Socks5 => socks.on_bytes(&buffer[..n]),
                Greeting::Connect => connect.on_bytes(&buffer[..n]),
            };
            match step {
                Step::More { send } => stream.write_all(&send).await?,
                Step::Done { send, target, rest } => {
                    stream.write_all(&send).await?;
                    return Ok(Ok(Asked::Connect(target, rest)));
                }
                Step::Associate { send } => {
                    stream.write_all(&send).await?;
                    return Ok(Ok(Asked::Associate));
                }
                Step::Failed { send, why } => return Ok(Err((send, why))),
            }
        }
    }

    /// Gives the visitor to the data path and waits until its target is reached; if it is not, the visitor comes back.
    async fn enter(
        &self,
        stream: TcpStream,
        (who, pass): (Who, Option<Pass>),
        target: &Target,
        rest: Vec<u8>,
    ) -> Result<(), (Option<TcpStream>, Reason)> {
        let local = |_: io::Error| (None, Reason::DialLocal);
        let stream = stream.into_std().map_err(local)?;
        // A second descriptor of the same connection: what is left to us if the first is refused.
        let ours = stream.try_clone().map_err(local)?;
        let (tell, told) = oneshot::channel();
        let entry = Entry {
            visitor: Some(who.visitor),
            asked: who.asked,
            prefix: rest,
            pass,
            target: Some(target.to_string()),
            on_placed: Some(Box::new(move |result| {
                // Nobody waits any more: the listener is gone.
                let _ = tell.send(result);
            })),
            ..Entry::new(Socket::from_owned(stream.into()), self.gate.clone())
        };
        let greeting = match self.config.greeting {
            Greeting::Socks5 => reply(Reply::Succeeded).to_vec(),
            Greeting::Connect => ESTABLISHED.to_vec(),
        };
        let result = match self.handle.admit_greeted(entry, greeting) {
            Ok(()) => told.await.unwrap_or(Err(Reason::Stopping)),
            Err(_) => Err(Reason::HandoverFull),
        };
        result.map_err(|reason| {
            // The data path has marked it to be reset; but there is something to say first.
            let _ = socket2::SockRef::from(&ours).set_linger(None);
            (TcpStream::from_std(ours).ok(), reason)
        })
    }

    fn answer(&self, reason: Reason) -> Vec<u8> {
        match self.config.greeting {
            Greeting::Socks5 => reply(Reply::of(reason)).to_vec(),
            Greeting::Connect => Answer::of(reason).with(reason.as_str()),
        }
    }

    fn refused(&self, visitor: SocketAddr, target: Option<&Target>, why: &str) {
        self.tally.proxy_refused.add(1);
        if let Some(unsaid) = self.told.one_more() {
            let (listener, target) = (&self.gate.name, target.map(ToString::to_string));
            tracing::warn!(listener, %visitor, target, why, unsaid, "proxy: refused");
        }
    }
}
