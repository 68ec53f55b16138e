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
use super::socket::{Path, Udp};
use crate::config::doors::UdpListener as Config;
use crate::doors::tally::Tally;
use crate::doors::threshold::Threshold;
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
    threshold: Threshold,
    address: SocketAddr,
    sessions: Mutex<HashMap<Path, Arc<Session>>>,
    epoch: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "udp {}", self.gate.name)
    }
}

struct Session {
    path: Path,
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
        threshold: Threshold,
    ) -> io::Result<UdpListener> {
        let udp = Udp::bind(address)?;
        let address = udp.local_addr()?;
        let (sessions, epoch) = (Mutex::default(), Instant::now());
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
        for (_, session) in self.shared.sessions().drain() {
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
    fn sessions(&self) -> MutexGuard<'_, HashMap<Path, Arc<Session>>> {
        // Each change of the map is one step: a panic elsewhere leaves it whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn on_datagram(self: &Arc<Shared>, path: Path, datagram: &[u8], touched: &mut Vec<Arc<Session>>) {
        self.tally.datagrams_in.add(1);
        let known = match touched.last() {
            Some(last) if last.path == path => Some(last.clone()),
            _ => self.sessions().get(&path).cloned(),
        };
        let Some(session) = known.or_else(|| self.open(path)) else { return };
        session.seen_ms.store(self.now_ms(), Ordering::Relaxed);
        if !session.out().push(datagram) {
            self.tally.datagrams_full.add(1);
        }
        if touched.last().is_none_or(|last| !Arc::ptr_eq(last, &session)) {
            touched.push(session);
        }
    }

    /// A visitor that was not here, or not for long.
    fn open(self: &Arc<Shared>, path: Path) -> Option<Arc<Session>> {
        if self.sessions().len() >= self.config.sessions_max {
            self.tally.sessions_refused.add(1);
            return None;
        }
        let pass = self.threshold.enter(Some(path.peer.ip())).ok()?;
        let session = match self.admit(path, pass) {
            Ok(session) => Arc::new(session),
            Err(error) => {
                tracing::debug!(listener = self.gate.name, visitor = %path.peer, %error, "no stream for a visitor");
                self.tally.sessions_refused.add(1);
                return None;
            }
        };
        self.tally.sessions.add(1);
        self.sessions().insert(path, session.clone());
        let (shared, its) = (self.clone(), session.clone());
        tokio::spawn(async move {
            let why = shared.serve(&its).await;
            let mut sessions = shared.sessions();
            if sessions.get(&path).is_some_and(|now| Arc::ptr_eq(now, &its)) {
                sessions.remove(&path);
            }
            drop(sessions);
            tracing::trace!(listener = shared.gate.name, visitor = %path.peer, why, "conversation over");
        });
        Some(session)
    }

    fn admit(&self, path: Path, pass: Option<Pass>) -> io::Result<Session> {
        let (inside, outside) = Socket::pair()?;
        let stream = UnixStream::from_std(StdStream::from(outside.into_owned()))?;
        let asked = path.local.map(|ip| SocketAddr::new(ip, self.address.port())).or(Some(self.address));
        let entry = Entry {
            visitor: Some(path.peer),
            asked,
            is_datagrams: true,
            pass,
            ..Entry::new(inside, self.gate.clone())
        };
        self.handle.admit(entry).map_err(|_| io::Error::other("the workers have too much mail"))?;
        Ok(Session {
            path,
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
