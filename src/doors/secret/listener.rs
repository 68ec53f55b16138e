//! The bridge's side of secret services: a listener where visiting agents come in. Each proves who it is as on the link;
//! whoever the keyring knows, with a scope that covers the service, becomes a visitor of it. What it says then is
//! encrypted between the two agents: the bridge carries it and cannot read it.

use super::greet::Greeting;
use crate::doors::listening;
use crate::doors::tally::Few;
use crate::doors::threshold::{Anteroom, Threshold};
use crate::keyring::Keyring;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::{BridgeHandle, Entry, Gate};
use ringspan_tunnel::hello::{Applicant, BridgeHello, BridgeStep, Limits, Refusal, RefusalCode, VERSIONS, Welcome};
use ringspan_tunnel::identity::AgentId;
use ringspan_tunnel::keys::random;
use ringspan_tunnel::limits::Pass;
use ringspan_tunnel::tls::{ServerTls, Tls};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// As on the link.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at once, as on a worker's link port. For one more, the one that has lasted longest ends.
const HANDSHAKES_MAX: usize = 256;

/// What a listener of visiting agents needs.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) handle: BridgeHandle,
    pub(crate) keyring: Arc<Keyring>,
    /// The link's.
    pub(crate) tls: Option<ServerTls>,
}

/// A listener that runs until it is dropped.
pub(crate) struct VisitListener {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl VisitListener {
    /// Binds and starts. Needs a runtime.
    pub(crate) fn start(
        address: SocketAddr,
        gate: Arc<Gate>,
        house: House,
        threshold: Arc<Threshold>,
    ) -> io::Result<VisitListener> {
        let listener = listening::tcp(address)?;
        let address = listener.local_addr()?;
        Ok(VisitListener { address, task: tokio::spawn(accept(listener, gate, Arc::new(house), threshold)) })
    }

    /// Where agents connect, with the real port if 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for VisitListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, gate: Arc<Gate>, house: Arc<House>, threshold: Arc<Threshold>) {
    let (room, few) = (Anteroom::new(HANDSHAKES_MAX), Arc::new(Few::default()));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(pass) = threshold.enter(Some(peer.ip())) else {
                    let _ = stream.set_zero_linger();
                    continue;
                };
                let (gate, house, few, seat) = (gate.clone(), house.clone(), few.clone(), room.sit());
                tokio::spawn(async move {
                    let result = tokio::select! {
                        result = house.serve(stream, peer, &gate, pass) => result,
                        () = tokio::time::sleep(HANDSHAKE_MAX) => Err(io::ErrorKind::TimedOut.into()),
                        () = seat.lost() => Err(io::Error::other("its place in the handshake was given to another")),
                    };
                    if let Err(error) = result
                        && let Some(unsaid) = few.one_more()
                    {
                        tracing::warn!(listener = gate.name, %peer, %error, unsaid, "visiting agent refused");
                    }
                });
            }
            Err(error) => listening::pause(&gate.name, &error).await,
        }
    }
}

impl House {
    async fn serve(&self, stream: TcpStream, peer: SocketAddr, gate: &Arc<Gate>, pass: Option<Pass>) -> io::Result<()> {
        let tls = match &self.tls {
            None => Tls::plain(),
            Some(tls) => tls.accept().map_err(io::Error::other)?,
        };
        let (mut greeting, binding) = Greeting::begin(stream, tls).await?;
        let software = format!("ringspan/{}", env!("CARGO_PKG_VERSION"));
        let (mut hello, challenge) = BridgeHello::new(VERSIONS, random(), binding, &software);
        greeting.send(&challenge).await?;
        let (kind, payload) = greeting.receive().await?;
        let applicant = match hello.on_message(kind, &payload) {
            BridgeStep::Decide(applicant) => applicant,
            BridgeStep::Refuse(message, refusal) => {
                greeting.send(&message).await?;
                return Err(io::Error::other(refusal));
            }
            BridgeStep::Over => return Err(io::ErrorKind::InvalidData.into()),
        };
        let decision = self.decide(*applicant, gate).await;
        let refusal = decision.as_ref().err().cloned();
        if let Some(message) = hello.on_decision(&decision.map(|agent| welcome(agent, software))) {
            greeting.send(&message).await?;
        }
        if let Some(refusal) = refusal {
            return Err(io::Error::other(refusal));
        }
        let entry = Entry {
            visitor: Some(peer),
            pass,
            ..Entry::new(Socket::from_owned(greeting.end()?.into_std()?.into()), gate.clone())
        };
        self.handle.admit(entry).map_err(|_| io::Error::other("the workers have too much mail"))
    }

    /// The rule of the link, for one service: this listener's. A visiting agent is one that has joined already.
    async fn decide(&self, applicant: Applicant, gate: &Gate) -> Result<AgentId, Refusal> {
        let asks = matches!(applicant.exposes.as_slice(), [one] if one.service == gate.service);
        if !asks {
            return Err(Refusal::with(RefusalCode::ServiceOutOfScope, "it is not this listener's"));
        }
        let (keyring, service, agent) = (self.keyring.clone(), gate.service.clone(), applicant.agent);
        let answer = tokio::task::spawn_blocking(move || keyring.admit_visit(&applicant, service.as_str())).await;
        match answer {
            Ok(Ok(Ok(()))) => Ok(agent),
            Ok(Ok(Err(refusal))) => Err(refusal),
            Ok(Err(_)) | Err(_) => Err(Refusal::of(RefusalCode::Internal)),
        }
    }
}

fn welcome(agent: AgentId, software: String) -> Welcome {
    // Nothing of a link's is agreed on: the connection is the visitor's own from here on.
    Welcome { agent, generation: 0, limits: Limits { window_bytes: 0, frame_bytes_max: 0 }, software, opened: None }
}
