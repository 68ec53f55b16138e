//! The agent's backends that the plane does not dial by itself: each time it asks, a connected socket, or why there is
//! none. Promise: every question is answered once, and a backend that is slow to answer holds up no other.

use super::tally::Tally;
use super::udp;
use crate::config::expose::{Backend, Expose};
use ringspan_tunnel::agent::{AgentHandle, AskId, Backend as Way};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::mux::OpenInfo;
use std::sync::Arc;

/// How the plane reaches a backend.
pub(crate) fn way(backend: &Backend) -> Way {
    match backend {
        Backend::Tcp(address) => Way::Tcp(*address),
        Backend::Udp(_) => Way::Ask,
    }
}

/// See the module.
pub(crate) struct Backends {
    handle: AgentHandle,
    list: Vec<Backend>,
    tally: Arc<Tally>,
    /// What was said of it already: dropped, unsent.
    told: (u64, u64),
}

impl Backends {
    /// Of these, in their order.
    pub(crate) fn new(handle: AgentHandle, exposes: &[Expose]) -> Backends {
        Backends {
            handle,
            list: exposes.iter().map(|e| e.backend.clone()).collect(),
            tally: Arc::default(),
            told: (0, 0),
        }
    }

    /// Answers one question. Needs a runtime.
    pub(crate) fn on_ask(&self, ask: AskId, backend: u16, _info: OpenInfo) {
        match self.list.get(usize::from(backend)) {
            Some(Backend::Udp(to)) => match udp::backend::connect(*to, self.tally.clone()) {
                Ok((socket, carry)) => {
                    tokio::spawn(carry);
                    self.handle.answer(ask, Ok(socket));
                }
                Err(reason) => self.handle.answer(ask, Err(reason)),
            },
            Some(Backend::Tcp(_)) | None => self.handle.answer(ask, Err(Reason::UnknownBackend)),
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
