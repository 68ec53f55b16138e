//! The agent's backends that the plane does not dial by itself: each time it asks, a connected socket, or why there is
//! none. Promise: every question is answered once, and a backend that is slow to answer holds up no other.

use super::proxy::allow::{Allow, Target, Transport};
use super::proxy::dial::{dial, look_up};
use super::secret::visit::take_in;
use super::tally::{Few, Tally};
use super::{udp, unix};
use crate::config::expose::{Backend, Expose, Heading};
use ringspan_engine::check::Check;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::agent::{AgentHandle, AskId, Backend as Way};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::mux::OpenInfo;
use std::sync::Arc;
use tokio::task::JoinSet;

/// How the plane reaches a backend.
pub(crate) fn way(backend: &Backend) -> Way {
    match backend {
        Backend::Tcp(address) => Way::Tcp(*address),
        Backend::Udp(_) | Backend::Unix(_) | Backend::Proxy(_) | Backend::Secret { .. } => Way::Ask,
    }
}

/// See the module.
pub(crate) struct Backends {
    handle: AgentHandle,
    list: Vec<Expose>,
    tally: Arc<Tally>,
    /// What was said of it already: dropped, unsent.
    told: (u64, u64),
    denied: Arc<Few>,
    checks: JoinSet<()>,
}

impl Backends {
    /// Of these, in their order.
    pub(crate) fn new(handle: AgentHandle, exposes: &[Expose]) -> Backends {
        let list = exposes.to_vec();
        let (tally, denied) = (Arc::default(), Arc::default());
        Backends { handle, list, tally, told: (0, 0), denied, checks: JoinSet::new() }
    }

    /// Checks those that the engine cannot check, until this is dropped. Needs a runtime.
    pub(crate) fn check(&mut self, exposes: &[Expose]) {
        for (number, expose) in exposes.iter().enumerate() {
            if let (Backend::Unix(path), false) = (&expose.backend, matches!(expose.check.ask, Check::None)) {
                let (policy, handle) = (expose.check.policy, self.handle.clone());
                self.checks.spawn(unix::check(path.clone(), policy, number as u16, handle));
            }
        }
    }

    /// Answers one question, now or later. Needs a runtime.
    pub(crate) fn on_ask(&self, ask: AskId, backend: u16, info: OpenInfo) {
        let handle = self.handle.clone();
        let expose = self.list.get(usize::from(backend));
        match expose.map(|expose| &expose.backend) {
            Some(Backend::Udp(to)) => match udp::backend::connect(*to, heading(expose), self.tally.clone()) {
                Ok((socket, carry)) => {
                    tokio::spawn(carry);
                    handle.answer(ask, Ok(socket));
                }
                Err(reason) => handle.answer(ask, Err(reason)),
            },
            Some(Backend::Unix(path)) => {
                let path = path.clone();
                tokio::spawn(async move { handle.answer(ask, unix::dial(&path).await) });
            }
            Some(Backend::Secret { address, key }) => {
                match take_in(key, expose.map_or("", |expose| &expose.service), *address, self.denied.clone()) {
                    Ok((socket, serve)) => {
                        tokio::spawn(serve);
                        handle.answer(ask, Ok(socket));
                    }
                    Err(reason) => handle.answer(ask, Err(reason)),
                }
            }
            Some(Backend::Proxy(allow)) => {
                let (allow, denied, tally) = (allow.clone(), self.denied.clone(), self.tally.clone());
                tokio::spawn(async move {
                    let target = info.target.as_deref().map(Transport::read);
                    let answer = match &target {
                        Some(Ok((Transport::Tcp, target))) => dial(&allow, target).await,
                        Some(Ok((Transport::Udp, target))) => send_to(&allow, target, tally).await,
                        Some(Err(_)) | None => Err(Reason::TargetDenied),
                    };
                    if let Err(reason) = &answer
                        && let Some(unsaid) = denied.one_more()
                    {
                        let (target, visitor) =
                            (target.and_then(Result::ok).map(|(over, t)| over.name(&t)), info.visitor);
                        tracing::warn!(target, ?visitor, %reason, unsaid, "proxy: not connected");
                    }
                    handle.answer(ask, answer);
                });
            }
            Some(Backend::Tcp(_)) | None => handle.answer(ask, Err(Reason::UnknownBackend)),
        }
    }

    /// Says in the log what was lost since the last time.
    pub(crate) fn tell(&mut self) {
        let (full, unsent) = (self.tally.datagrams_full.get(), self.tally.datagrams_lost.get());
        if (full, unsent) != self.told {
            let (dropped, unsent) = (full - self.told.0, unsent - self.told.1);
            tracing::warn!(dropped, unsent, "datagrams of UDP backends were lost: the link or the path is slower");
            self.told = (full, self.told.1 + unsent);
        }
    }
}

/// What a UDP backend wants to hear before datagrams.
fn heading(expose: Option<&Expose>) -> Option<Heading> {
    expose.and_then(|expose| expose.heading)
}

/// A socket whose datagrams go to a proxy's target, until either side ends.
async fn send_to(allow: &Allow, target: &Target, tally: Arc<Tally>) -> Result<Socket, Reason> {
    let to = look_up(allow, target).await?;
    let (socket, carry) = udp::backend::connect(to, None, tally)?;
    tokio::spawn(carry);
    Ok(socket)
}
