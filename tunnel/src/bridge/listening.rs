//! The listening sockets of one worker of the bridge: what they accept, how they come and go.
//! Promise: whoever the kernel has taken in for a listener that goes is taken in here; one that is held keeps its queue.

use super::ears::{Ear, Step};
use super::entry::Visitor;
use super::worker::BridgeWorker;
use crate::frame::Reason;
use crate::plane::OP_ROLE;
use crate::routes::Cursor;
use ringspan_engine::io::{Errno, Op};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;

/// Accepts visitors or agents; the index is the ear's.
pub(super) const OP_ACCEPT: u8 = OP_ROLE;
/// Who waits in the queue of a listener that is taken away is taken in; more than this the kernel does not keep.
const QUEUE_MAX: usize = super::BACKLOG as usize;

/// A listening socket and what is done with it.
pub(super) struct Listening {
    pub(super) ear: Ear,
    /// Whose turn it is.
    pub(super) cursor: Cursor,
    /// The kernel has an accept of ours.
    pub(super) armed: bool,
    /// It has had one before.
    pub(super) used: bool,
    /// The sockets beside it that were last named to the kernel; `None`: it was told nothing.
    pub(super) steered: Option<Vec<u16>>,
    pub(super) end: End,
}

/// How a listening socket ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It does not.
    Open,
    /// Those in its queue are taken in.
    Close,
    /// Somebody else takes them in.
    Leave,
}

impl BridgeWorker {
    pub(super) fn accept(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(listening) = self.listening.get_mut(&index) else { return };
        let held = self.hold && listening.ear.gate.is_some();
        if !listening.armed && !held && listening.end == End::Open && !self.stopping && !self.leaving {
            listening.armed = true;
            if !std::mem::replace(&mut listening.used, true) {
                // io_uring's accept wants it so, whatever the one before used. Not earlier: the flag is the socket's, and
                // a process that still accepts there by epoll would stand still in an accept that finds nobody.
                let _ = listening.ear.socket.make_blocking();
            }
            cx.io.submit(cx.token(OP_ACCEPT, 0, index), Op::Accept { fd: listening.ear.socket.fd() });
        }
    }

    pub(super) fn on_accepted(&mut self, cx: &mut Cx<'_>, index: u32, result: Result<Socket, Errno>) {
        let Some(listening) = self.listening.get_mut(&index) else { return };
        match result {
            Ok(socket) if self.stopping => drop(socket),
            Ok(socket) => match listening.ear.gate.clone() {
                None => {
                    let peer = socket.peer_addr().ok();
                    self.on_link(cx, socket, peer);
                }
                Some(gate) if gate.proxy_from.is_some() => self.greet(cx, index, socket, gate),
                Some(gate) => self.enter(cx.now, index, Visitor::accepted(socket, gate)),
            },
            Err(errno) => {
                listening.armed = false;
                let held = self.hold && listening.ear.gate.is_some();
                if listening.end != End::Open {
                    self.close(cx.now, index);
                } else if errno == Errno::CANCELED {
                    // Held for a moment only.
                    self.accept(cx, index);
                } else if !self.stopping && !held {
                    let listener = listening.ear.gate.as_ref().map_or("link", |gate| gate.name.as_str());
                    tracing::warn!(listener, %errno, "accepting paused for a second; is the limit on open files reached?");
                    self.rearm.push(index);
                }
            }
        }
    }

    pub(super) fn on_steps(&mut self, cx: &mut Cx<'_>) {
        let mut steps = self.shared.steps[self.own.index].take();
        // Whoever is to be held is held before a new listener accepts.
        steps.sort_by_key(|step| !matches!(step, Step::Hold { .. }));
        for step in steps {
            match step {
                Step::Add(ear) => {
                    let index = self.next_ear;
                    self.next_ear += 1;
                    let cursor = Cursor::starting_at(self.own.index);
                    let listening = Listening { ear, cursor, armed: false, used: false, steered: None, end: End::Open };
                    self.listening.insert(index, listening);
                    self.steering.look_again();
                    self.accept(cx, index);
                }
                Step::Gate { id, gate } => {
                    for listening in self.listening.values_mut().filter(|l| l.ear.id == id) {
                        listening.ear.gate = Some(gate.clone());
                    }
                    self.steering.look_again();
                }
                Step::Close { id } => self.end(cx, End::Close, |ear| ear.id == id),
                Step::Leave { visitors } => self.end(cx, End::Leave, |ear| ear.gate.is_some() == visitors),
                Step::Hold { hold } => {
                    self.hold = hold;
                    let indexes: Vec<u32> = self.listening.keys().copied().collect();
                    for index in indexes {
                        let listening = &self.listening[&index];
                        if hold && listening.armed && listening.ear.gate.is_some() {
                            cx.io.cancel(cx.token(OP_ACCEPT, 0, index));
                        } else {
                            self.accept(cx, index);
                        }
                    }
                }
            }
        }
    }

    pub(super) fn end(&mut self, cx: &mut Cx<'_>, end: End, which: impl Fn(&Ear) -> bool) {
        let indexes: Vec<u32> = self.listening.iter().filter(|(_, l)| which(&l.ear)).map(|(index, _)| *index).collect();
        for index in indexes {
            let listening = self.listening.get_mut(&index).expect("just found");
            listening.end = end;
            if listening.armed {
                // Closed when the accept has come home.
                cx.io.cancel(cx.token(OP_ACCEPT, 0, index));
            } else {
                self.close(cx.now, index);
            }
        }
    }

    /// The last of a listening socket, whose accept is home.
    pub(super) fn close(&mut self, now: Instant, index: u32) {
        let listening = &self.listening[&index];
        if listening.end == End::Close
            && let Some(gate) = listening.ear.gate.clone()
        {
            let waiting: Vec<Socket> =
                (0..QUEUE_MAX).map_while(|_| listening.ear.socket.accept_now().ok().flatten()).collect();
            for socket in waiting {
                if gate.proxy_from.is_some() {
                    // Its header would have to be waited for.
                    self.refuse(Visitor::accepted(socket, gate.clone()), Reason::ProxyHeader);
                } else {
                    self.enter(now, index, Visitor::accepted(socket, gate.clone()));
                }
            }
        }
        self.listening.remove(&index);
    }

    pub(super) fn stop_accepting(&mut self, cx: &mut Cx<'_>) {
        for (index, _) in self.listening.iter().filter(|(_, listening)| listening.armed) {
            cx.io.cancel(cx.token(OP_ACCEPT, 0, *index));
        }
    }
}
