//! Connections to the backends of one service: made through the tunnel, kept for the next request.
//!
//! A kept connection is used again while the set of backends that take visitors is the one it was made under: a backend
//! that has gone down keeps nobody's connection, and one that has come up gets its share. The one that was used last
//! comes first, so that a quiet listener lets go of the others.

use super::body::Body;
use super::io::{Patient, Torn};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use ringspan_engine::health::Health;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::{BridgeHandle, Entry, Gate};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::routes::Routes;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// See the module.
pub(super) struct Pool {
    handle: BridgeHandle,
    gate: Arc<Gate>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one used last is at the back.
    kept: VecDeque<Kept>,
    /// The routes that `backends` was made of.
    routes: Option<Arc<Routes>>,
    /// Which backends take visitors, as one number.
    backends: u64,
}

struct Kept {
    sender: SendRequest<Body>,
    since: Instant,
    backends: u64,
}

/// How connections are made and kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// How many are kept.
    pub(super) idle_max: usize,
    /// For how long.
    pub(super) idle_time: Duration,
    /// For how long a backend may take nothing.
    pub(super) timeout_idle: Duration,
    /// Bounds of an answer's head.
    pub(super) head_bytes_max: usize,
    pub(super) headers_max: usize,
}

/// A connection to a backend.
pub(super) struct Line {
    pub(super) sender: SendRequest<Body>,
    /// Whether it has served before.
    pub(super) is_reused: bool,
    backends: u64,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum NoLine {
    /// The tunnel says so.
    Refused(Reason),
    /// We have no descriptors left.
    Ours(std::io::Error),
}

impl Pool {
    /// Empty.
    pub(super) fn new(handle: BridgeHandle, gate: Arc<Gate>) -> Pool {
        Pool { handle, gate, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Each change is one step: what a panic left behind is whole.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the service, or a backend of it by its PROXY header, wants to know each visitor's address: then none may
    /// be kept.
    pub(super) fn asks_who(&self) -> bool {
        let (routes, service) = (self.handle.routes(), self.gate.service.as_str());
        let backends = routes.backends(service).unwrap_or_default();
        routes.policy(service).is_some_and(|policy| policy.asks_who()) || backends.iter().any(|b| b.proxy.is_some())
    }

    /// A kept connection, if one is good.
    pub(super) fn take(&self, manner: &Manner) -> Option<Line> {
        let mut idle = self.idle();
        let backends = idle.look(&self.handle, self.gate.service.as_str());
        while let Some(Kept { sender, since, backends: its }) = idle.kept.pop_back() {
            if sender.is_ready() && its == backends && since.elapsed() < manner.idle_time {
                return Some(Line { sender, is_reused: true, backends });
            }
        }
        None
    }

    /// A fresh connection to a backend that the tunnel chooses.
    pub(super) async fn dial(
        &self,
        manner: &Manner,
        visitor: Option<SocketAddr>,
        asked: Option<SocketAddr>,
    ) -> Result<Line, NoLine> {
        let backends = self.idle().look(&self.handle, self.gate.service.as_str());
        let (inside, outside) = Socket::pair().map_err(NoLine::Ours)?;
        let outside = UnixStream::from_std(outside.into_owned().into()).map_err(NoLine::Ours)?;
        let (tell, told) = oneshot::channel();
        let entry = Entry {
            visitor,
            // A connection that serves many is nobody's.
            asked: visitor.and(asked),
            on_placed: Some(Box::new(move |result| {
                // Nobody waits any more: the visitor has gone.
                let _ = tell.send(result);
            })),
            ..Entry::new(inside, self.gate.clone())
        };
        self.handle.admit(entry).map_err(|_full| NoLine::Refused(Reason::HandoverFull))?;
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err(NoLine::Refused(reason)),
            // Dropped untold: the worker is stopping.
            Err(_) => return Err(NoLine::Refused(Reason::Stopping)),
        }
        let io = TokioIo::new(Patient::new(outside, manner.timeout_idle, Torn::default()));
        let mut builder = http1::Builder::new();
        builder.max_header_size(manner.head_bytes_max).max_headers(manner.headers_max);
        let Ok((sender, connection)) = builder.handshake(io).await else {
            return Err(NoLine::Refused(Reason::SocketReset));
        };
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::trace!(%error, "http: backend connection");
            }
        });
        Ok(Line { sender, is_reused: false, backends })
    }

    /// Keeps a connection as soon as its answer has been read to the end; one that never gets there is closed.
    pub(super) fn keep(self: &Arc<Self>, line: Line, manner: Manner) {
        let pool = self.clone();
        let Line { mut sender, backends, .. } = line;
        tokio::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let mut idle = pool.idle();
            idle.kept.push_back(Kept { sender, since: Instant::now(), backends });
            while idle.kept.len() > manner.idle_max {
                idle.kept.pop_front();
            }
        });
    }

    /// Lets go of what has been unused for too long, or was closed at the other end.
    pub(super) fn sweep(&self, idle_time: Duration) {
        self.idle().kept.retain(|kept| !kept.sender.is_closed() && kept.since.elapsed() < idle_time);
    }
}

impl Idle {
    /// Which backends take visitors now.
    fn look(&mut self, handle: &BridgeHandle, service: &str) -> u64 {
        let routes = handle.routes();
        if !self.routes.as_ref().is_some_and(|known| Arc::ptr_eq(known, &routes)) {
            let mut hasher = DefaultHasher::new();
            let live = routes.backends(service).unwrap_or_default().iter();
            for backend in live.filter(|b| b.weight > 0 && b.health == Health::Up) {
                (backend.agent, backend.index, backend.weight).hash(&mut hasher);
            }
            self.backends = hasher.finish();
            self.routes = Some(routes);
        }
        self.backends
    }
}
