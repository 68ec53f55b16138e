//! Visitors of a listener that expects a PROXY header: until it has come, who they are is not known.
//! Promise: only who is trusted is listened to; a header that is late, wrong or too long costs its connection; what
//! follows it in the same packet goes to the backend. At most [`WAITING_MAX`] wait on a worker: more are refused.

use super::entry::{Gate, Visitor};
use super::worker::{BridgeWorker, OP_GREETING};
use crate::frame::Reason;
use crate::proxy_header::{self, BYTES_MAX, HEADER_MAX, Header, WAITING_MAX};
use crate::slots::{Key, Slots};
use ringspan_engine::io::{Interest, Op};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

/// A visitor that has yet to say who it is.
pub(super) struct Greeting {
    socket: Socket,
    gate: Arc<Gate>,
    listener: u32,
    peer: Option<SocketAddr>,
    bytes: Vec<u8>,
    deadline: Instant,
    /// Given up; its poll is on the way home.
    over: bool,
}

pub(super) type Greetings = Slots<Greeting>;

impl BridgeWorker {
    /// A listener accepted somebody who is to bring a header.
    pub(super) fn greet(&mut self, cx: &mut Cx<'_>, listener: u32, socket: Socket, gate: Arc<Gate>) {
        let peer = socket.peer_addr().ok();
        let trusted = gate.proxy_from.as_deref().unwrap_or_default();
        let is_trusted = peer.is_some_and(|peer| trusted.iter().any(|net| net.contains(&peer.ip().to_canonical())));
        if !is_trusted || self.greetings.len() >= WAITING_MAX {
            return self.refuse(Visitor::accepted(socket, gate), Reason::ProxyHeader);
        }
        let deadline = cx.now + HEADER_MAX;
        let greeting = Greeting { socket, gate, listener, peer, bytes: Vec::new(), deadline, over: false };
        let key = self.greetings.insert(greeting);
        // It is mostly there already.
        self.on_greeting(cx, key);
    }

    /// Something came.
    pub(super) fn on_greeting(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(greeting) = self.greetings.get_mut(key) else { return };
        if greeting.over || self.stopping {
            return self.give_up(key);
        }
        let mut buffer = [0; BYTES_MAX];
        loop {
            match greeting.socket.recv(&mut buffer) {
                Ok(0) => return self.give_up(key),
                Ok(n) => greeting.bytes.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let fd = greeting.socket.fd();
                    let token = cx.token(OP_GREETING, key.generation, key.index);
                    return cx.io.submit(token, Op::Poll { fd, interest: Interest::Read });
                }
                Err(_) => return self.give_up(key),
            }
            match proxy_header::read(&greeting.bytes) {
                Ok(None) => {}
                Ok(Some((header, len))) => return self.introduce(cx.now, key, header, len),
                Err(error) => {
                    tracing::debug!(listener = greeting.gate.name, peer = ?greeting.peer, %error, "no visitor");
                    return self.give_up(key);
                }
            }
        }
    }

    fn introduce(&mut self, now: Instant, key: Key, header: Header, len: usize) {
        let Some(Greeting { socket, gate, listener, peer, mut bytes, .. }) = self.greetings.remove(key) else { return };
        let mut visitor = Visitor::accepted(socket, gate);
        bytes.drain(..len);
        visitor.arrival.prefix = bytes;
        (visitor.ticket.visitor, visitor.ticket.target) = match header {
            Header::From { source, destination } => (Some(source), Some(destination)),
            Header::Nobody => (peer, None),
        };
        self.enter(now, listener, visitor);
    }

    fn give_up(&mut self, key: Key) {
        if let Some(Greeting { socket, gate, .. }) = self.greetings.remove(key) {
            self.refuse(Visitor::accepted(socket, gate), Reason::ProxyHeader);
        }
    }

    /// Those that have waited too long, or all of them, are given up.
    pub(super) fn end_greetings(&mut self, cx: &mut Cx<'_>, all: bool) {
        for key in self.greetings.keys() {
            if let Some(greeting) = self.greetings.get_mut(key)
                && !greeting.over
                && (all || greeting.deadline <= cx.now)
            {
                greeting.over = true;
                cx.io.cancel(cx.token(OP_GREETING, key.generation, key.index));
            }
        }
    }
}
