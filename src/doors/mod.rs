//! Doors: what has to read or speak another protocol before or around a stream, on the control plane's threads.
//!
//! ```text
//! bridge: listener ──▶ door ──admit(Entry)──▶ plane        plane ──Ask──▶ Backends ──answer(Socket)──▶ plane :agent
//! ```
//! The plane moves the bytes; a door gives it connected sockets. Where there is nothing left to read, that is the
//! visitor's own socket; where every byte has to be looked at, one end of a pair whose other end the door pumps.

pub(crate) mod backends;
pub(crate) mod http;
mod listening;
mod proxied;
pub(crate) mod proxy;
pub(crate) mod road;
pub(crate) mod secret;
pub(crate) mod tally;
mod threshold;
pub(crate) mod udp;
pub(crate) mod unix;

use crate::Failure;
use crate::config::bridge::Listener;
use crate::config::doors::Door as Kind;
use crate::inherit::{self, AtPath};
use http::hosts::Hosts;
use http::link::Links;
use http::{HttpDoor, HttpStats};
pub(crate) use listening::Closing;
use proxy::ProxyListener;
use ringspan_engine::kernel::handover;
use ringspan_tunnel::bridge::Gate;
use secret::listener::{House, VisitListener};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use threshold::Threshold;
use udp::listener::UdpListener;
use unix::UnixListener;

/// Requests under way have this long when their http listener is gone from the file: nobody waits for them.
const DRAIN: Duration = Duration::from_secs(3600);

/// The bridge's doors that are open. Dropping one closes it.
pub(crate) struct Doors {
    house: House,
    tally: Arc<Tally>,
    http: HttpStats,
    links: Links,
    hosts: Hosts,
    open: Vec<Open>,
}

/// A listener that is open.
struct Open {
    listener: Listener,
    threshold: Arc<Threshold>,
    door: Door,
}

enum Door {
    Udp(UdpListener),
    Proxy(ProxyListener),
    Http(HttpDoor),
    Visit(VisitListener),
    Unix(UnixListener),
}

impl Doors {
    /// None is open yet.
    pub(crate) fn new(house: House) -> Doors {
        let links = Links::new(house.clone());
        Doors {
            house,
            tally: Arc::default(),
            http: HttpStats::default(),
            links,
            hosts: Hosts::default(),
            open: Vec::new(),
        }
    }

    /// Makes it so that exactly these listeners are open, of those that are doors: what has changed is closed and
    /// opened anew, what has not is left alone. Needs a runtime.
    ///
    /// # Errors
    /// The first that cannot be opened, with key, address and reason; the others are open.
    pub(crate) fn apply(&mut self, wanted: &[Listener]) -> Result<(), Failure> {
        let mut failed = Ok(());
        self.reload(wanted, &mut failed);
        let all = std::mem::take(&mut self.open);
        let (kept, gone) = all.into_iter().partition(|open| wanted.contains(&open.listener));
        self.open = kept;
        let kept = self.keep_sockets(&gone, wanted);
        for Open { listener, door, .. } in gone {
            match door {
                Door::Http(door) => drop(tokio::spawn(door.stop(DRAIN))),
                Door::Unix(door) if wanted.iter().any(|w| same_place(w, &listener)) => door.leave(),
                Door::Udp(_) | Door::Proxy(_) | Door::Visit(_) | Door::Unix(_) => {}
            }
        }
        for listener in wanted {
            if self.open.iter().any(|open| open.listener == *listener) {
                continue;
            }
            match self.start(listener) {
                Ok(Some((threshold, door))) => self.open.push(Open { listener: listener.clone(), threshold, door }),
                Ok(None) => {}
                Err(failure) if failed.is_ok() => failed = Err(failure),
                Err(failure) => tracing::warn!(%failure, "a listener stays closed"),
            }
        }
        // Of one that could not be opened again nothing is left open.
        for address in kept {
            while inherit::tcp(address).is_some() || inherit::udp(address).is_some() {}
        }
        failed
    }

    /// Closes these of those that are open; who is inside goes on. Their addresses are free when all of what is returned is over.
    pub(crate) fn close(&mut self, goes: impl Fn(&Listener) -> bool) -> Vec<Closing> {
        let (gone, kept) = std::mem::take(&mut self.open).into_iter().partition(|open| goes(&open.listener));
        self.open = kept;
        let gone: Vec<Open> = gone;
        let closing = gone.iter().filter_map(|open| open.door.closing()).collect();
        for Open { door, .. } in gone {
            if let Door::Http(door) = door {
                tokio::spawn(door.stop(DRAIN));
            }
        }
        closing
    }

    /// Keeps the sockets of those that are closed and opened anew at the same place: who waits there waits on, and
    /// nobody is refused meanwhile. Their addresses.
    fn keep_sockets(&self, gone: &[Open], wanted: &[Listener]) -> Vec<SocketAddr> {
        let again = gone.iter().filter(|gone| wanted.iter().any(|w| same_place(w, &gone.listener)));
        let mut addresses = Vec::new();
        for Open { door, .. } in again {
            match door {
                // A copy that cannot be had is a moment in which nobody listens.
                Door::Unix(unix) => inherit::put_paths(unix.copy().into_iter().collect()),
                door => addresses.extend(door.address()),
            }
        }
        if !addresses.is_empty() {
            let sockets = handover::waiting_sockets().unwrap_or_default();
            inherit::put(sockets.into_iter().filter(|w| addresses.contains(&w.address)).collect());
        }
        addresses
    }

    /// Copies of what waits for visitors at paths.
    pub(crate) fn paths(&self) -> io::Result<Vec<AtPath>> {
        let unix =
            self.open.iter().filter_map(|open| if let Door::Unix(unix) = &open.door { Some(unix) } else { None });
        unix.map(UnixListener::copy).collect()
    }

    /// What is at paths is another process's from now on.
    pub(crate) fn leave_paths(&mut self) {
        let all = std::mem::take(&mut self.open).into_iter();
        self.open = all
            .filter_map(|Open { listener, threshold, door }| match door {
                Door::Unix(unix) => {
                    unix.leave();
                    None
                }
                door => Some(Open { listener, threshold, door }),
            })
            .collect();
    }

    /// Gives listeners that stay where they are their new limits, and http listeners the rest of their configuration:
    /// nobody's connection is closed for it.
    fn reload(&mut self, wanted: &[Listener], failed: &mut Result<(), Failure>) {
        for Open { listener: open, threshold, door } in &mut self.open {
            let same = |l: &&Listener| l.name == open.name && l.listen == open.listen && *l != &*open;
            let Some(listener) = wanted.iter().find(same) else { continue };
            let reloaded = match (&*door, &listener.door) {
                (Door::Http(door), Kind::Http(config)) => door.reload(config),
                _ if (Listener { limiter: open.limiter.clone(), ..listener.clone() }) == *open => Ok(()),
                _ => continue,
            };
            match reloaded {
                Ok(()) => {
                    threshold.set(listener.limiter.as_ref(), listener.proxy_from.as_ref());
                    *open = listener.clone();
                }
                Err(why) => *failed = Err(Failure::Run(format!("listener {:?}: {why}", listener.name))),
            }
        }
    }

    /// Closes all doors. Http listeners take no new requests, and those under way have until then to finish; `udp`
    /// conversations, which have no end that could be waited for, end; other visitors are the data path's already.
    pub(crate) async fn drain(&mut self, until: tokio::time::Instant) {
        let patience = until.saturating_duration_since(tokio::time::Instant::now());
        let mut ending = tokio::task::JoinSet::new();
        for Open { door, .. } in std::mem::take(&mut self.open) {
            if let Door::Http(door) = door {
                ending.spawn(door.stop(patience));
            }
        }
        while ending.join_next().await.is_some() {}
    }

    fn start(&self, listener: &Listener) -> Result<Option<(Arc<Threshold>, Door)>, Failure> {
        let busy = |error: io::Error| {
            let key = format!("[[listener]] {:?} listen", listener.name);
            Failure::Run(match &listener.door {
                Kind::Unix(unix) => format!("{key} = \"unix:{}\": {error}", unix.path.display()),
                _ => crate::bridge_cmd::cannot_listen(&key, listener.listen, &error),
            })
        };
        let (handle, tally) = (self.house.handle.clone(), self.tally.clone());
        let (limiter, proxies) = (listener.limiter.clone(), listener.proxy_from.clone());
        let threshold = Threshold::new(&listener.name, limiter, proxies, tally.clone());
        let threshold = Arc::new(threshold);
        if let Kind::Http(config) = &listener.door {
            // Its routes have gates of their own.
            let socket = listening::tcp(listener.listen).map_err(busy)?;
            let (stats, links, hosts) = (self.http.clone(), self.links.clone(), self.hosts.clone());
            let hall = http::Hall { handle, stats, threshold: threshold.clone(), links, hosts };
            let door = HttpDoor::start(socket, config, hall);
            let wrong = |why| Failure::Run(format!("listener {:?}: {why}", listener.name));
            return door.map(|door| Some((threshold, Door::Http(door)))).map_err(wrong);
        }
        let gate = gate(listener)?;
        let its = threshold.clone();
        let door = match &listener.door {
            Kind::Tcp | Kind::Http(_) => return Ok(None),
            Kind::Udp(config) => {
                let door = UdpListener::start(listener.listen, *config, gate, handle, tally, its);
                Door::Udp(door.map_err(busy)?)
            }
            Kind::Proxy(config) => {
                let door = ProxyListener::start(listener.listen, config.clone(), gate, handle, tally, its);
                Door::Proxy(door.map_err(busy)?)
            }
            Kind::Visit => {
                let door = VisitListener::start(listener.listen, gate, self.house.clone(), its);
                Door::Visit(door.map_err(busy)?)
            }
            Kind::Unix(config) => {
                let door = UnixListener::start(&config.path, config.mode, gate, handle, its);
                Door::Unix(door.map_err(busy)?)
            }
        };
        Ok(Some((threshold, door)))
    }

    /// Names and addresses of those that are open and have one, with the real port where 0 was asked for.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        let all = self.open.iter();
        all.filter_map(|open| open.door.address().map(|address| (open.listener.name.as_str(), address)))
    }

    /// Hosts that agents have asked for, for whoever keeps them.
    pub(crate) fn hosts(&self) -> Hosts {
        self.hosts.clone()
    }

    /// What http listeners have counted.
    pub(crate) fn http_stats(&self) -> HttpStats {
        self.http.clone()
    }

    /// What the others have counted.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }
}

impl Door {
    /// `None`: it listens at a path.
    fn address(&self) -> Option<SocketAddr> {
        Some(match self {
            Door::Udp(udp) => udp.address(),
            Door::Proxy(proxy) => proxy.address(),
            Door::Http(http) => http.address(),
            Door::Visit(visit) => visit.address(),
            Door::Unix(_) => return None,
        })
    }

    /// `None`: it has no TCP port.
    fn closing(&self) -> Option<Closing> {
        match self {
            Door::Proxy(proxy) => Some(proxy.closing()),
            Door::Http(http) => Some(http.closing()),
            Door::Visit(visit) => Some(visit.closing()),
            Door::Udp(_) | Door::Unix(_) => None,
        }
    }
}

/// Whether one can take over the other's socket.
fn same_place(a: &Listener, b: &Listener) -> bool {
    match (&a.door, &b.door) {
        (Kind::Unix(a), Kind::Unix(b)) => a.path == b.path,
        (Kind::Unix(_), _) | (_, Kind::Unix(_)) | (Kind::Tcp, _) | (_, Kind::Tcp) => false,
        (Kind::Udp(_), other) | (other, Kind::Udp(_)) if !matches!(other, Kind::Udp(_)) => false,
        _ => a.listen == b.listen && (a.listen.port() != 0 || a.name == b.name),
    }
}

/// What a listener's visitors come through.
pub(crate) fn gate(listener: &Listener) -> Result<Arc<Gate>, Failure> {
    let service = listener.service.clone().try_into();
    let service = service.map_err(|e| Failure::Usage(format!("listener {:?}: {e}", listener.name)))?;
    Ok(Arc::new(Gate {
        carrier: listener.carrier,
        limiter: listener.limiter.clone(),
        proxy_from: listener.proxy_from.clone(),
        ..Gate::new(listener.name.clone(), service)
    }))
}
