//! Listening sockets: bound for all workers at once, taken over from another process, and changed while visitors come.
//!
//! ```text
//! set_listeners ──▶ Ears (one owner, behind a mutex) ──steps──▶ each worker: listen │ other gate │ stop, then close
//! ```
//! Promises: a change is whole or not at all; a visitor that the kernel has accepted before its listener was taken away
//! is still carried; nothing here is on the path of a visitor (workers look at their steps only when told to).

use super::entry::Gate;
use super::{BACKLOG, BridgeError, KEEPALIVE_IDLE, Listener};
use ringspan_engine::kernel::Socket;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Listening sockets that somebody else has bound: a supervisor, or the bridge that ran before. Whoever listens on the
/// address of one gets it, connections that wait in its queue and all.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(SocketAddr, Socket)>,
}

impl Inherited {
    /// Keeps a listening TCP socket.
    ///
    /// # Errors
    /// Those of getsockname(2): it has no internet address.
    pub fn add(&mut self, socket: Socket) -> io::Result<SocketAddr> {
        let address = socket.local_addr()?;
        self.sockets.push((address, socket));
        Ok(address)
    }

    /// All sockets of this address.
    pub fn take(&mut self, address: SocketAddr) -> Vec<Socket> {
        let (taken, left) = std::mem::take(&mut self.sockets).into_iter().partition(|(at, _)| *at == address);
        self.sockets = left;
        let taken: Vec<(SocketAddr, Socket)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    /// The addresses of what nobody has taken.
    pub fn left(&self) -> Vec<SocketAddr> {
        let mut left: Vec<_> = self.sockets.iter().map(|(address, _)| *address).collect();
        left.dedup();
        left
    }
}

/// A listener that was taken away, while workers still have its sockets.
#[derive(Clone, Debug)]
pub struct Closing {
    /// Where it listened.
    pub address: SocketAddr,
    life: Weak<()>,
}

impl Closing {
    /// Whether all sockets are closed: the address is free.
    pub fn is_over(&self) -> bool {
        self.life.strong_count() == 0
    }
}

/// One listening socket of a worker.
pub(super) struct Ear {
    /// Its listener, the same on all workers.
    pub(super) id: u32,
    pub(super) socket: Socket,
    /// `None`: agents connect here.
    pub(super) gate: Option<Arc<Gate>>,
    /// The first of several that share an address: how many they are. Its worker steers them all
    /// ([`steering`](super::steering)).
    pub(super) leads: Option<usize>,
    /// Dropped with the socket: the owner learns that the address is free.
    pub(super) _life: Arc<()>,
}

/// What a worker is to do about its sockets.
pub(super) enum Step {
    /// Listens, too.
    Add(Ear),
    /// Visitors of this listener get something else from now on.
    Gate { id: u32, gate: Arc<Gate> },
    /// Accepts no more, takes in who waits in the queue, and closes.
    Close { id: u32 },
    /// Closes without a look at the queue: another process has the same socket.
    Leave { visitors: bool },
    /// Whether visitors are accepted.
    Hold { hold: bool },
}

/// One worker's steps.
#[derive(Default)]
pub(super) struct Steps {
    fresh: AtomicBool,
    list: Mutex<Vec<Step>>,
}

impl Steps {
    pub(super) fn push(&self, step: Step) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        self.fresh.store(true, Ordering::Release);
    }

    pub(super) fn take(&self) -> Vec<Step> {
        if !self.fresh.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Running {
    id: u32,
    asked: SocketAddr,
    bound: SocketAddr,
    gate: Arc<Gate>,
    life: Weak<()>,
}

/// Who listens where; the owner's side.
pub(super) struct Ears {
    state: Mutex<State>,
    workers: usize,
}

#[derive(Default)]
struct State {
    running: Vec<Running>,
    /// Of the link's sockets.
    link: Option<Closing>,
    next: u32,
    inherited: Inherited,
}

impl Ears {
    pub(super) fn new(workers: usize, inherited: Inherited) -> Ears {
        Ears { state: Mutex::new(State { inherited, ..State::default() }), workers }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where agents connect, for each worker.
    pub(super) fn link(&self, address: SocketAddr) -> Result<(SocketAddr, Vec<Vec<Ear>>), BridgeError> {
        let mut state = self.state();
        let (bound, sockets) = state.bind("link", address, self.workers)?;
        state.next += 1;
        let (id, life) = (state.next, Arc::new(()));
        state.link = Some(Closing { address: bound, life: Arc::downgrade(&life) });
        Ok((bound, self.deal(id, None, sockets, &life)))
    }

    /// Listens on exactly these from now on; steps for each worker. A listener goes on if its address stays (with port
    /// 0: name and address); an address that goes is closed.
    pub(super) fn set(&self, wanted: &[Listener]) -> Result<(Vec<Vec<Step>>, Vec<Closing>), BridgeError> {
        let mut state = self.state();
        // Port 0 asks for any port: once for each name. Whoever asks for the port that was given has it already.
        let same = |running: &Running, listener: &Listener| match listener.address.port() {
            0 => running.asked == listener.address && running.gate.name == listener.gate.name,
            _ => running.bound == listener.address,
        };
        // Bound first: if one fails, nothing has changed.
        let mut fresh = Vec::new();
        for listener in wanted {
            if !state.running.iter().any(|running| same(running, listener)) {
                let (bound, sockets) = state.bind(&listener.gate.name, listener.address, self.workers)?;
                fresh.push((listener, bound, sockets));
            }
        }
        let mut steps: Vec<Vec<Step>> = (0..self.workers).map(|_| Vec::new()).collect();
        let mut closing = Vec::new();
        state.running.retain_mut(|running| match wanted.iter().find(|listener| same(running, listener)) {
            None => {
                steps.iter_mut().for_each(|steps| steps.push(Step::Close { id: running.id }));
                closing.push(Closing { address: running.bound, life: running.life.clone() });
                false
            }
            Some(Listener { gate, .. }) => {
                if *gate != running.gate {
                    running.gate = gate.clone();
                    let step = || Step::Gate { id: running.id, gate: gate.clone() };
                    steps.iter_mut().for_each(|steps| steps.push(step()));
                }
                true
            }
        });
        for (Listener { address, gate }, bound, sockets) in fresh {
            state.next += 1;
            let (id, life) = (state.next, Arc::new(()));
            let running = Running { id, asked: *address, bound, gate: gate.clone(), life: Arc::downgrade(&life) };
            state.running.push(running);
            for (steps, ears) in steps.iter_mut().zip(self.deal(id, Some(gate), sockets, &life)) {
                steps.extend(ears.into_iter().map(Step::Add));
            }
        }
        // In the order they were asked for.
        state.running.sort_by_key(|running| wanted.iter().position(|listener| same(running, listener)));
        Ok((steps, closing))
    }

    /// What ends when the link's sockets are left, or with `visitors` all others.
    pub(super) fn leaving(&self, visitors: bool) -> Vec<Closing> {
        let state = self.state();
        let closing = |running: &Running| Closing { address: running.bound, life: running.life.clone() };
        if visitors { state.running.iter().map(closing).collect() } else { state.link.iter().cloned().collect() }
    }

    /// Names and real addresses.
    pub(super) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.state().running.iter().map(|running| (running.gate.name.clone(), running.bound)).collect()
    }

    /// Inherited sockets that no listener has asked for.
    pub(super) fn left(&self) -> Vec<SocketAddr> {
        self.state().inherited.left()
    }

    /// Shares sockets out to the workers: more sockets than workers, and some listen on several; fewer, and some listen
    /// on none: their visitors come from others.
    fn deal(&self, id: u32, gate: Option<&Arc<Gate>>, sockets: Vec<Socket>, life: &Arc<()>) -> Vec<Vec<Ear>> {
        let mut ears: Vec<Vec<Ear>> = (0..self.workers).map(|_| Vec::new()).collect();
        let count = sockets.len();
        for (n, socket) in sockets.into_iter().enumerate() {
            let leads = (n == 0 && count > 1).then_some(count);
            ears[n % self.workers].push(Ear { id, socket, gate: gate.cloned(), leads, _life: life.clone() });
        }
        ears
    }
}

impl State {
    /// Inherited sockets if there are, else fresh ones, one a worker.
    fn bind(
        &mut self,
        name: &str,
        address: SocketAddr,
        count: usize,
    ) -> Result<(SocketAddr, Vec<Socket>), BridgeError> {
        let mut group = self.inherited.take(address);
        if group.is_empty() {
            group = Socket::listen_group(&address, BACKLOG, count).map_err(|error| BridgeError::Bind {
                listener: name.into(),
                address,
                error,
            })?;
        }
        let mut seen = HashSet::new();
        for socket in &group {
            // Accepted sockets inherit all of it: the kernel clones the listener. They would work without.
            let _ = socket.set_nodelay();
            let _ = socket.set_keepalive(KEEPALIVE_IDLE);
            if address.ip().is_loopback() {
                let _ = socket.set_unpaced();
            }
            seen.extend(socket.local_addr());
        }
        Ok((seen.into_iter().next().unwrap_or(address), group))
    }
}
