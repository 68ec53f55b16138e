//! Doors: what has to read or speak another protocol before or around a stream, on the control plane's threads.
//!
//! ```text
//! bridge: listener ──▶ door ──admit(Entry)──▶ plane        plane ──Ask──▶ Backends ──answer(Socket)──▶ plane :agent
//! ```
//! The plane moves the bytes; a door gives it connected sockets. Where there is nothing left to read, that is the
//! visitor's own socket; where every byte has to be looked at, one end of a pair whose other end the door pumps.

pub(crate) mod backends;
mod listening;
pub(crate) mod proxy;
pub(crate) mod tally;
pub(crate) mod udp;
pub(crate) mod unix;

use crate::Failure;
use crate::config::bridge::Listener;
use crate::config::doors::Door as Kind;
use proxy::ProxyListener;
use ringspan_tunnel::bridge::{BridgeHandle, Gate};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tally::Tally;
use udp::listener::UdpListener;
use unix::UnixListener;

/// The bridge's doors that are open. Dropping one closes it.
pub(crate) struct Doors {
    handle: BridgeHandle,
    tally: Arc<Tally>,
    open: Vec<(Listener, Door)>,
}

enum Door {
    Udp(UdpListener),
    Proxy(ProxyListener),
    /// Kept for its end.
    Unix(#[expect(dead_code, reason = "it listens while it lives")] UnixListener),
}

impl Doors {
    /// None is open yet.
    pub(crate) fn new(handle: BridgeHandle) -> Doors {
        Doors { handle, tally: Arc::default(), open: Vec::new() }
    }

    /// Makes it so that exactly these listeners are open, of those that are doors: what has changed is closed and
    /// opened anew, what has not is left alone. Needs a runtime.
    ///
    /// # Errors
    /// The first that cannot be opened, with key, address and reason; the others are open.
    pub(crate) fn apply(&mut self, wanted: &[Listener]) -> Result<(), Failure> {
        self.open.retain(|(listener, _)| wanted.contains(listener));
        let mut failed = Ok(());
        for listener in wanted {
            if self.open.iter().any(|(open, _)| open == listener) {
                continue;
            }
            match self.start(listener) {
                Ok(Some(door)) => self.open.push((listener.clone(), door)),
                Ok(None) => {}
                Err(failure) if failed.is_ok() => failed = Err(failure),
                Err(failure) => tracing::warn!(%failure, "a listener stays closed"),
            }
        }
        failed
    }

    fn start(&self, listener: &Listener) -> Result<Option<Door>, Failure> {
        let gate = gate(listener)?;
        let busy = |error: io::Error| {
            let key = format!("[[listener]] {:?} listen", listener.name);
            Failure::Run(match &listener.door {
                Kind::Unix(unix) => format!("{key} = \"unix:{}\": {error}", unix.path.display()),
                _ => crate::bridge_cmd::cannot_listen(&key, listener.listen, &error),
            })
        };
        let (handle, tally) = (self.handle.clone(), self.tally.clone());
        Ok(match &listener.door {
            Kind::Tcp => None,
            Kind::Udp(config) => {
                let door = UdpListener::start(listener.listen, *config, gate, handle, tally);
                Some(Door::Udp(door.map_err(busy)?))
            }
            Kind::Proxy(config) => {
                let door = ProxyListener::start(listener.listen, config.clone(), gate, handle, tally);
                Some(Door::Proxy(door.map_err(busy)?))
            }
            Kind::Unix(config) => {
                let door = UnixListener::start(&config.path, config.mode, gate, handle);
                Some(Door::Unix(door.map_err(busy)?))
            }
        })
    }

    /// Names and addresses of those that are open and have one, with the real port where 0 was asked for.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.open.iter().filter_map(|(listener, door)| {
            let address = match door {
                Door::Udp(udp) => udp.address(),
                Door::Proxy(proxy) => proxy.address(),
                Door::Unix(_) => return None,
            };
            Some((listener.name.as_str(), address))
        })
    }

    /// What all of them have counted.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }
}

/// What a listener's visitors come through.
pub(crate) fn gate(listener: &Listener) -> Result<Arc<Gate>, Failure> {
    let service = listener.service.clone().try_into();
    let service = service.map_err(|e| Failure::Usage(format!("listener {:?}: {e}", listener.name)))?;
    Ok(Arc::new(Gate { name: listener.name.clone(), service }))
}
