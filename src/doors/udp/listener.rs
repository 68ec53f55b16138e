//! A UDP listener of the bridge: each visitor's address is a conversation of its own, and each conversation one stream.
//!
//! ```text
//! visitors ══datagrams══▶ recv ──▶ session (visitor, our address) ──frames──▶ pair ──▶ plane ──▶ agent
//!          ◀═════════════════════════ session's task ◀──frames── pair ◀──
//! ```
//! Promises: a conversation waits for no other (a queue each; what does not fit is dropped and counted); answers leave
//! from the address that was asked; memory is bounded by sessions times bytes queued; a conversation that nobody has
//! answered gives its place back after [`UNANSWERED_MAX`].

use super::frames::{self, Outbox};
use super::header::{self, Said};
use super::names::{Name, Names};
use super::socket::{Path, Udp};
use crate::config::doors::UdpListener as Config;
use crate::doors::tally::Tally;
use crate::doors::threshold::Threshold;
use ipnet::IpNet;
use ringspan_engine::kernel::Socket;
use ringspan_tunnel::bridge::{BridgeHandle, Entry, Gate};
use ringspan_tunnel::limits::Pass;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A conversation that had no answer ends after this at the latest: who sends from invented addresses takes places for
/// no longer. The kernel's own connection tracking gives such a one 30 s (nf_conntrack_udp_timeout).
const UNANSWERED_MAX: Duration = Duration::from_secs(10);
/// How long it is known whom a proxy named, after a conversation of that one would have ended: UDP mappings of NATs last as
/// long (RFC 4787, REQ-5), and a port that was given to another by then tells its header.
const NAME_TIME: Duration = Duration::from_secs(300);
/// One read of a conversation's stream.
const READ_BYTES: usize = 64 << 10;
/// After an error of the socket that is nobody's datagram: the system is short of something.
const PAUSE: Duration = Duration::from_millis(20);

/// A listener that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct UdpListener {
    address: SocketAddr,
    task: JoinHandle<()>,
    shared: Arc<Shared>,
}

struct Shared {
    udp: Udp,
    gate: Arc<Gate>,
    config: Config,
    handle: BridgeHandle,
    tally: Arc<Tally>,
    threshold: Arc<Threshold>,
    address: SocketAddr,
    sessions: Mutex<Table>,
    epoch: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "udp {}", self.gate.name)
    }
}

/// Whose conversation it is: an address's, or that of whom a proxy at the address speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    path: Path,
    /// As a PROXY header says it.
    source: Option<SocketAddr>,
}

/// The conversations that there are, and whom proxies have named.
struct Table {
    all: HashMap<Key, Arc<Session>>,
    names: Names,
}

impl Table {
    /// This one is who the path's datagrams are from.
    fn name(&mut self, path: Path, name: Name, now_ms: u64) {
        let Table { all, names } = self;
        names.say(path, name, now_ms, |path, name| all.contains_key(&Key { path: *path, source: name.source }));
    }
}

struct Session {
    path: Path,
    key: Key,
    stream: UnixStream,
    out: Mutex<Outbox>,
    /// The task is to wait for room in the stream.
    full: Notify,
    /// Ends the task.
    stop: Notify,
    /// Milliseconds from the listener's start to the latest datagram, in either direction.
    seen_ms: AtomicU64,
    is_answered: AtomicBool,
}

impl UdpListener {
    /// Binds and starts. Needs a runtime.
    pub(crate) fn start(
        address: SocketAddr,
        config: Config,
        gate: Arc<Gate>,
        handle: BridgeHandle,
        tally: Arc<Tally>,
        threshold: Arc<Threshold>,
    ) -> io::Result<UdpListener> {
        let udp = Udp::bind(address)?;
        let address = udp.local_addr()?;
        let names = Names::new((config.idle_timeout + NAME_TIME).as_millis() as u64);
        let (sessions, epoch) = (Mutex::new(Table { all: HashMap::new(), names }), Instant::now());
        let shared = Arc::new(Shared { udp, gate, config, handle, tally, threshold, address, sessions, epoch });
        let task = tokio::spawn(receive(shared.clone()));
        Ok(UdpListener { address, task, shared })
    }

    /// Where visitors send to, with the real port if 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for UdpListener {
    fn drop(&mut self) {
        self.task.abort();
        let all = std::mem::take(&mut self.shared.sessions().all);
        for session in all.values() {
            session.stop.notify_one();
        }
    }
}

/// Takes datagrams for as long as the listener lives.
async fn receive(shared: Arc<Shared>) {
    let mut touched: Vec<Arc<Session>> = Vec::new();
    loop {
        let received = match shared.udp.readable().await {
            Ok(()) => shared.udp.try_recv(|path, datagram| shared.on_datagram(path, datagram, &mut touched)),
            Err(error) => Err(error),
        };
        for session in touched.drain(..) {
            session.flush();
        }
        match received {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(listener = shared.gate.name, %error, "receiving failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, Table> {
        // Each change of the map is one step: a panic elsewhere leaves it whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn on_datagram(self: &Arc<Shared>, path: Path, datagram: &[u8], touched: &mut Vec<Arc<Session>>) {
        self.tally.datagrams_in.add(1);
        let (key, asked, datagram) = match &self.gate.proxy_from {
            None => (Key { path, source: None }, None, datagram),
            Some(from) => match self.named(from, path, datagram) {
                Some(named) => named,
                None => return self.tally.headers_bad.add(1),
            },
        };
        let known = match touched.last() {
            Some(last) if last.key == key => Some(last.clone()),
            _ => self.sessions().all.get(&key).cloned(),
        };
        let Some(session) = known.or_else(|| self.open(key, asked)) else { return };
        session.seen_ms.store(self.now_ms(), Ordering::Relaxed);
        if !session.out().push(datagram) {
            self.tally.datagrams_full.add(1);
        }
        if touched.last().is_none_or(|last| !Arc::ptr_eq(last, &session)) {
            touched.push(session);
        }
    }

    /// Whose datagram it is that came from a proxy, which address it was sent to, and what the visitor said. `None`:
    /// nobody's: it does not come from one of ours, or does not say.
    fn named<'a>(&self, from: &[IpNet], path: Path, datagram: &'a [u8]) -> Option<(Key, Option<SocketAddr>, &'a [u8])> {
        let ip = path.peer.ip().to_canonical();
        if !from.iter().any(|net| net.contains(&ip)) {
            return None;
        }
        let mut sessions = self.sessions();
        // Before anybody asks whether this one may come in: what follows without a header is not the one's before.
        let (name, datagram) = match header::read(datagram) {
            Some(Said::From(said, datagram)) => {
                let (source, asked) = said.unzip();
                (Name { source, asked }, datagram)
            }
            Some(Said::Bare) => (sessions.names.of(&path)?, datagram),
            None => {
                // It named somebody.
                sessions.names.forget(&path);
                return None;
            }
        };
        sessions.name(path, name, self.now_ms());
        Some((Key { path, source: name.source }, name.asked, datagram))
    }

    /// A visitor that was not here, or not for long.
    fn open(self: &Arc<Shared>, key: Key, asked: Option<SocketAddr>) -> Option<Arc<Session>> {
        let path = key.path;
        if self.sessions().all.len() >= self.config.sessions_max {
            self.tally.sessions_refused.add(1);
            return None;
        }
        let visitor = key.source.unwrap_or(path.peer);
        let pass = self.threshold.enter(Some(visitor.ip())).ok()?;
        let session = match self.admit(key, asked, pass) {
            Ok(session) => Arc::new(session),
            Err(error) => {
                tracing::debug!(listener = self.gate.name, visitor = %path.peer, %error, "no stream for a visitor");
                self.tally.sessions_refused.add(1);
                return None;
            }
        };
        self.tally.sessions.add(1);
        self.sessions().all.insert(key, session.clone());
        let (shared, its) = (self.clone(), session.clone());
        tokio::spawn(async move {
            let why = shared.serve(&its).await;
            let mut sessions = shared.sessions();
            if sessions.all.get(&key).is_some_and(|now| Arc::ptr_eq(now, &its)) {
                sessions.all.remove(&key);
            }
            drop(sessions);
            tracing::trace!(listener = shared.gate.name, visitor = %path.peer, why, "conversation over");
        });
        Some(session)
    }

    fn admit(&self, key: Key, asked: Option<SocketAddr>, pass: Option<Pass>) -> io::Result<Session> {
        let path = key.path;
        let (inside, outside) = Socket::pair()?;
        let stream = UnixStream::from_std(StdStream::from(outside.into_owned()))?;
        let here = path.local.map_or(self.address, |ip| SocketAddr::new(ip, self.address.port()));
        let asked = asked.or(Some(here));
        let entry = Entry {
            visitor: Some(key.source.unwrap_or(path.peer)),
            asked,
            is_datagrams: true,
            pass,
            ..Entry::new(inside, self.gate.clone())
        };
        self.handle.admit(entry).map_err(|_| io::Error::other("the workers have too much mail"))?;
        Ok(Session {
            path,
            key,
            stream,
            out: Mutex::new(Outbox::new(self.config.queue_bytes)),
            full: Notify::new(),
            stop: Notify::new(),
            seen_ms: AtomicU64::new(self.now_ms()),
            is_answered: AtomicBool::new(false),
        })
    }

    /// Carries a conversation until it is over; says why.
    async fn serve(&self, session: &Session) -> &'static str {
        // Bytes of datagrams that are not whole, or that the socket had no room for.
        let mut inbox: Vec<u8> = Vec::new();
        let timer = tokio::time::sleep_until(self.epoch);
        tokio::pin!(timer);
        loop {
            let has_more = !session.out().is_empty();
            tokio::select! {
                () = session.stop.notified() => return "the listener has stopped",
                ready = session.stream.readable() => {
                    if ready.is_err() {
                        return "the stream broke";
                    }
                    match read_more(&session.stream, &mut inbox) {
                        Ok(0) => return "the backend's side ended",
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        Err(_) => return "the stream broke",
                    }
                    session.seen_ms.store(self.now_ms(), Ordering::Relaxed);
                    session.is_answered.store(true, Ordering::Relaxed);
                    if self.deliver(session, &mut inbox).await.is_err() {
                        return "the backend's side sent no datagrams";
                    }
                }
                _ = session.stream.writable(), if has_more => session.flush(),
                () = session.full.notified() => {}
                () = &mut timer => {
                    let end = self.end_of(session);
                    if end <= Instant::now() {
                        return "nothing was said for too long";
                    }
                    timer.as_mut().reset(end);
                }
            }
        }
    }

    /// Sends what came whole to the visitor; waits while the socket has no room.
    async fn deliver(&self, session: &Session, inbox: &mut Vec<u8>) -> Result<(), frames::TooLong> {
        loop {
            let sent = self.udp.try_send(inbox, session.path)?;
            self.tally.datagrams_out.add(sent.datagrams);
            self.tally.datagrams_lost.add(sent.lost);
            inbox.drain(..sent.taken);
            if !sent.is_blocked {
                inbox.shrink_to(READ_BYTES);
                if inbox.is_empty() {
                    *inbox = Vec::new();
                }
                return Ok(());
            }
            let _ = self.udp.writable().await;
        }
    }

    fn end_of(&self, session: &Session) -> Instant {
        let patience = match session.is_answered.load(Ordering::Relaxed) {
            true => self.config.idle_timeout,
            false => self.config.idle_timeout.min(UNANSWERED_MAX),
        };
        self.epoch + Duration::from_millis(session.seen_ms.load(Ordering::Relaxed)) + patience
    }
}

impl Session {
    fn out(&self) -> MutexGuard<'_, Outbox> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the stream what it takes now; the task waits for the rest.
    fn flush(&self) {
        let mut out = self.out();
        while !out.is_empty() {
            match self.stream.try_write(out.pending()) {
                Ok(n) => out.took(n),
                // A broken stream is found by the task, which reads it.
                Err(_) => break,
            }
        }
        if !out.is_empty() {
            self.full.notify_one();
        }
    }
}

/// Reads what is there, at most [`READ_BYTES`], behind what is in `inbox`. 0: the end.
pub(in crate::doors) fn read_more(stream: &UnixStream, inbox: &mut Vec<u8>) -> io::Result<usize> {
    thread_local! {
        static CHUNK: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; READ_BYTES]);
    }
    CHUNK.with_borrow_mut(|chunk| {
        let n = stream.try_read(chunk)?;
        inbox.extend_from_slice(&chunk[..n]);
        Ok(n)
    })
}
