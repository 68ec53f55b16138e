//! The bridge's side of secret services: a listener where visiting agents come in. Each proves who it is as on the link;
//! whoever the keyring knows, with a scope that covers the service, becomes a visitor of it. What it says then is
//! encrypted between the two agents: the bridge carries it and cannot read it. Agents whose network lets nothing else out
//! come in the WebSockets of an http listener: their HELLO says which listener is meant, and its limits hold.

use super::greet::Greeting;
use crate::doors::listening::{self, Closing, Ear};
use crate::doors::road::pump;
use crate::doors::tally::Few;
use crate::doors::threshold::{Anteroom, Seat, Threshold};
use crate::keyring::Keyring;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::{BridgeHandle, Entry, Gate};
use ringspan_tunnel::hello::{
    Applicant, BridgeHello, BridgeStep, Limits, Refusal, RefusalCode, ServiceName, VERSIONS, Welcome,
};
use ringspan_tunnel::identity::AgentId;
use ringspan_tunnel::keys::random;
use ringspan_tunnel::limits::Pass;
use ringspan_tunnel::tls::{ServerTls, Tls};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// As on the link.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at once, as on a worker's link port. For one more, the one that has lasted longest ends.
pub(crate) const HANDSHAKES_MAX: usize = 256;

/// What a listener of visiting agents needs.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) handle: BridgeHandle,
    pub(crate) keyring: Arc<Keyring>,
    /// The link's.
    pub(crate) tls: Option<ServerTls>,
    /// Listeners of visiting agents that are open.
    pub(crate) desks: Desks,
}

/// Clones are the same ones.
#[derive(Clone, Default)]
pub(crate) struct Desks(Arc<Mutex<Vec<Desk>>>);

/// What a listener's visitors come through.
#[derive(Clone)]
struct Desk {
    gate: Arc<Gate>,
    threshold: Arc<Threshold>,
}

impl Desks {
    fn all(&self) -> MutexGuard<'_, Vec<Desk>> {
        // Each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, service: &str) -> Option<Desk> {
        self.all().iter().find(|desk| desk.gate.service.as_str() == service).cloned()
    }
}

/// A listener that runs until it is dropped.
pub(crate) struct VisitListener {
    address: SocketAddr,
    closing: Closing,
    task: JoinHandle<()>,
    gate: Arc<Gate>,
    desks: Desks,
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
        let (address, closing) = (listener.local_addr()?, listener.closing());
        let desks = house.desks.clone();
        desks.all().push(Desk { gate: gate.clone(), threshold: threshold.clone() });
        let task = tokio::spawn(accept(listener, gate.clone(), Arc::new(house), threshold));
        Ok(VisitListener { address, closing, task, gate, desks })
    }

    /// Where agents connect, with the real port if 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells when its socket is closed.
    pub(crate) fn closing(&self) -> Closing {
        self.closing.clone()
    }
}

impl Drop for VisitListener {
    fn drop(&mut self) {
        self.task.abort();
        self.desks.all().retain(|desk| !Arc::ptr_eq(&desk.gate, &self.gate));
    }
}

async fn accept(listener: Ear, gate: Arc<Gate>, house: Arc<House>, threshold: Arc<Threshold>) {
    let (room, few) = (Anteroom::new(HANDSHAKES_MAX), Arc::new(Few::default()));
    loop {
        match listener.accept().await {
            Ok((mut stream, peer)) => {
                let (gate, house, few, room) = (gate.clone(), house.clone(), few.clone(), room.clone());
                let threshold = threshold.clone();
                tokio::spawn(async move {
                    let Ok((who, pass)) = threshold.visitor(&mut stream, peer).await else {
                        return drop(stream.set_zero_linger());
                    };
                    let peer = who.visitor;
                    let seat = room.sit();
                    let serve = async {
                        let whose = |asked: &ServiceName| match *asked == gate.service {
                            true => Ok((gate.clone(), pass)),
                            false => Err(Refusal::with(RefusalCode::ServiceOutOfScope, "it is not this listener's")),
                        };
                        let (stream, gate, pass) = house.greet(stream, whose).await?;
                        house.let_in(Socket::from_owned(stream.into_std()?.into()), peer, gate, pass)
                    };
                    if let Err(error) = in_time(serve, &seat).await
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

/// A handshake has its time, and its seat.
async fn in_time(serve: impl Future<Output = io::Result<()>>, seat: &Seat) -> io::Result<()> {
    tokio::select! {
        result = serve => result,
        () = tokio::time::sleep(HANDSHAKE_MAX) => Err(io::ErrorKind::TimedOut.into()),
        () = seat.lost() => Err(io::Error::other("its place in the handshake was given to another")),
    }
}

/// Where a visitor goes, and what its listener's limits count.
type Admitted = (Arc<Gate>, Option<Pass>);

impl House {
    /// Takes in a visiting agent that has come through a WebSocket: this is the near end of its pair.
    pub(crate) async fn serve(&self, socket: Socket, peer: SocketAddr, seat: &Seat) -> io::Result<()> {
        let stream = pump::end(socket)?;
        let serve = async {
            let (stream, gate, pass): (UnixStream, _, _) = self.greet(stream, |asked| self.meant(asked, peer)).await?;
            self.let_in(Socket::from_owned(stream.into_std()?.into()), peer, gate, pass)
        };
        in_time(serve, seat).await
    }

    /// The listener of the service that is asked for.
    fn meant(&self, asked: &ServiceName, peer: SocketAddr) -> Result<Admitted, Refusal> {
        let none = "the bridge has no listener of type visit for it";
        let desk = self.desks.of(asked.as_str());
        let desk = desk.ok_or_else(|| Refusal::with(RefusalCode::ServiceOutOfScope, none))?;
        let pass = desk.threshold.enter(Some(peer.ip()));
        let pass = pass.map_err(|reason| Refusal::with(RefusalCode::TooBusy, reason.sentence()))?;
        Ok((desk.gate, pass))
    }

    /// The handshake: the connection as it is then, and where it goes: `whose`, asked when the keyring has let it in, so that
    /// strangers learn nothing.
    async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        whose: impl FnOnce(&ServiceName) -> Result<Admitted, Refusal>,
    ) -> io::Result<(S, Arc<Gate>, Option<Pass>)> {
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
        let agent = applicant.agent;
        let decision = self.decide(*applicant).await.and_then(|service| whose(&service));
        let answer = decision.as_ref().map(|_| welcome(agent, software)).map_err(Refusal::clone);
        if let Some(message) = hello.on_decision(&answer) {
            greeting.send(&message).await?;
        }
        let (gate, pass) = decision.map_err(io::Error::other)?;
        Ok((greeting.end()?, gate, pass))
    }

    fn let_in(&self, socket: Socket, peer: SocketAddr, gate: Arc<Gate>, pass: Option<Pass>) -> io::Result<()> {
        let entry = Entry { visitor: Some(peer), pass, ..Entry::new(socket, gate) };
        self.handle.admit(entry).map_err(|_| io::Error::other("the workers have too much mail"))
    }

    /// The rule of the link, for the one service that it asks for. A visiting agent is one that has joined already.
    async fn decide(&self, applicant: Applicant) -> Result<ServiceName, Refusal> {
        let [asked] = applicant.exposes.as_slice() else {
            return Err(Refusal::with(RefusalCode::ServiceOutOfScope, "a visit is of one service"));
        };
        let (keyring, service) = (self.keyring.clone(), asked.service.clone());
        let asked = service.clone();
        let answer = tokio::task::spawn_blocking(move || keyring.admit_visit(&applicant, asked.as_str())).await;
        match answer {
            Ok(Ok(decision)) => decision.map(|()| service),
            Ok(Err(_)) | Err(_) => Err(Refusal::of(RefusalCode::Internal)),
        }
    }
}

fn welcome(agent: AgentId, software: String) -> Welcome {
    // Nothing of a link's is agreed on: the connection is the visitor's own from here on.
    Welcome { agent, generation: 0, limits: Limits { window_bytes: 0, frame_bytes_max: 0 }, software, opened: None }
}
