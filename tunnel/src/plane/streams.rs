//! The sockets of streams on one worker: dialed, waited for, written when there is room, closed once and for all.
//! Promise: a socket is closed only when none of its operations is in flight any more.

use super::endpoint::{Armed, Endpoint, Stage};
use super::{Event, OP_DIAL, OP_READ, OP_WRITE, Plane, dialer};
use crate::frame::Reason;
use crate::slots::Key;
use ringspan_engine::io::{Interest, Op};
use ringspan_engine::resident::Cx;

impl Plane {
    pub(super) fn dial(&mut self, cx: &mut Cx<'_>, carrier: Key, id: u32, backend: u16) {
        let started = match self.backends.get(usize::from(backend)) {
            None => Err(Reason::UnknownBackend),
            Some(to) => dialer(to).map(|socket| (socket, *to)).map_err(|_| Reason::DialLocal),
        };
        let (socket, to) = match started {
            Ok(started) => started,
            Err(reason) => {
                if let Some(c) = self.carriers.get_mut(carrier) {
                    c.mux.reset(id, reason);
                }
                self.stats.dials_failed.add(1);
                self.stats.count(reason);
                self.events.push(Event::DialFailed { backend, reason });
                return;
            }
        };
        let fd = socket.fd();
        let mut endpoint = Endpoint::new(socket, carrier, backend, Stage::Dialing { deadline: cx.now + self.dial_max });
        endpoint.stream = id;
        endpoint.armed = Armed { dial: true, ..Armed::default() };
        let key = self.endpoints.insert(endpoint);
        if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.adopt(id, key);
        }
        self.stats.streams_total.add(1);
        self.stats.streams_open.add(1);
        cx.io.submit(cx.token(OP_DIAL, key.generation, key.index), Op::Connect { fd, to });
    }

    pub(super) fn on_connected(&mut self, cx: &mut Cx<'_>, key: Key) {
        if let Some(e) = self.endpoints.get_mut(key) {
            e.stage = Stage::Open;
        }
        self.flush(cx, key);
        // The backend has not been asked yet: it will speak when it is ready, or at once if it speaks first.
        self.arm_read(cx, key);
    }

    pub(super) fn dial_failed(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason) {
        let Some(e) = self.endpoints.get(key) else { return };
        let backend = e.backend;
        self.stats.dials_failed.add(1);
        self.events.push(Event::DialFailed { backend, reason });
        self.fail(cx, key, reason);
    }

    pub(super) fn source_ready(&mut self, key: Key) {
        let Some(e) = self.endpoints.get(key) else { return };
        let (carrier, stream) = (e.carrier, e.stream);
        if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.source_ready(stream);
            self.queue(carrier);
        }
    }

    pub(super) fn flush(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        match e.flush(&mut self.pipes) {
            Ok(n) => {
                self.held_bytes -= n;
                let (carrier, stream) = (e.carrier, e.stream);
                self.stats.bytes_from_link.add(n as u64);
                if let Some(c) = self.carriers.get_mut(carrier) {
                    c.mux.delivered(stream, n as u32);
                    self.queue(carrier);
                }
                self.settle(cx, key);
            }
            Err(_) => self.fail(cx, key, Reason::SocketReset),
        }
    }

    /// After something was written or ended: waits for room, passes the end on, or closes.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        if e.wants_write() {
            e.armed.write = true;
            let fd = e.socket.fd();
            cx.io.submit(cx.token(OP_WRITE, key.generation, key.index), Op::Poll { fd, interest: Interest::Write });
        }
        if e.settle() {
            self.close_endpoint(cx, key);
        }
    }

    pub(super) fn arm_read(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        if e.stage == Stage::Open && !e.armed.read && !e.read_ended {
            e.armed.read = true;
            let fd = e.socket.fd();
            cx.io.submit(cx.token(OP_READ, key.generation, key.index), Op::Poll { fd, interest: Interest::Read });
        }
    }

    /// Our socket failed: tells the peer, and resets.
    pub(super) fn fail(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason) {
        let Some(e) = self.endpoints.get(key) else { return };
        let (carrier, stream) = (e.carrier, e.stream);
        if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.reset(stream, reason);
            self.queue(carrier);
        }
        self.stats.count(reason);
        self.abort(cx, key);
    }

    /// Resets the socket: what is unsent is dropped, and its peer knows.
    pub(super) fn abort(&mut self, cx: &mut Cx<'_>, key: Key) {
        if let Some(e) = self.endpoints.get(key) {
            let _ = e.socket.reset_on_close();
        }
        self.close_endpoint(cx, key);
    }

    pub(super) fn close_endpoint(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(e) = self.endpoints.get_mut(key).filter(|e| e.stage != Stage::Closing) else { return };
        self.held_bytes -= e.forget(&mut self.pipes);
        e.stage = Stage::Closing;
        self.stats.streams_open.sub(1);
        for (armed, op) in [(e.armed.read, OP_READ), (e.armed.write, OP_WRITE), (e.armed.dial, OP_DIAL)] {
            if armed {
                cx.io.cancel(cx.token(op, key.generation, key.index));
            }
        }
        self.reap_endpoint(key);
    }

    pub(super) fn reap_endpoint(&mut self, key: Key) {
        if self.endpoints.get(key).is_some_and(|e| !e.armed.any()) {
            self.endpoints.remove(key);
        }
    }
}
