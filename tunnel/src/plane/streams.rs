//! The sockets of streams on one worker: dialed, waited for, written when there is room, closed once and for all.
//! Promise: a socket is closed only when none of its operations is in flight any more.

use super::carrier::Carrier;
use super::endpoint::{Armed, Endpoint, Stage};
use super::load::Load;
use super::{Backend, Event, OP_DIAL, OP_READ, OP_WRITE, Plane, dialer};
use crate::frame::Reason;
use crate::limits;
use crate::moving::Way;
use crate::mux::OpenInfo;
use crate::slots::Key;
use ringspan_engine::io::{Interest, Op};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;

impl Plane {
    /// The bridge opened a stream: its backend is dialed here, or asked of the control plane.
    pub(super) fn dial(
        &mut self,
        cx: &mut Cx<'_>,
        (carrier, id): (Key, u32),
        backend: u16,
        tell: bool,
        info: OpenInfo,
    ) {
        let direct = self.carriers.get(carrier).is_some_and(|c| !matches!(c.load, Load::Mux(_)));
        let started = match self.backends.get(usize::from(backend)) {
            None => Err(Reason::UnknownBackend),
            Some(Backend::Tcp(to)) => dialer(to).map(|socket| Some((socket, *to))).map_err(|_| Reason::DialLocal),
            Some(Backend::Ask) => Ok(None),
        };
        let started = match started {
            Ok(started) => started,
            Err(reason) => {
                if let Some(c) = self.carriers.get_mut(carrier) {
                    c.mux.reset(id, reason);
                }
                if direct {
                    self.refuse_direct(carrier, reason);
                }
                self.stats.dials_failed.add(1);
                self.stats.count(reason);
                self.events.push(Event::DialFailed { backend, reason });
                return;
            }
        };
        let (socket, to) = started.unzip();
        let fd = socket.as_ref().map(Socket::fd);
        let mut endpoint = Endpoint::new(socket, carrier, backend, Stage::Dialing { deadline: cx.now + self.dial_max });
        endpoint.stream = id;
        endpoint.tell = tell;
        endpoint.armed = Armed { dial: fd.is_some(), ..Armed::default() };
        let key = self.endpoints.insert(endpoint);
        if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.adopt(id, key);
        }
        if direct {
            self.accept_direct(carrier, key);
        }
        self.stats.streams_total.add(1);
        self.stats.streams_open.add(1);
        match (fd, to) {
            (Some(fd), Some(to)) => {
                cx.io.submit(cx.token(OP_DIAL, key.generation, key.index), Op::Connect { fd, to });
            }
            _ => self.events.push(Event::Asked { endpoint: key, backend, info }),
        }
    }

    /// The answer to an [`Event::Asked`]; too late is harmless.
    pub(crate) fn answer(&mut self, cx: &mut Cx<'_>, key: Key, answer: Result<Socket, Reason>) {
        let waits = |e: &&mut Endpoint| matches!(e.stage, Stage::Dialing { .. }) && e.socket.is_none();
        let Some(e) = self.endpoints.get_mut(key).filter(waits) else { return };
        match answer {
            Ok(socket) => {
                e.socket = Some(socket);
                self.on_connected(cx, key);
            }
            Err(reason) => self.dial_failed(cx, key, reason),
        }
    }

    pub(super) fn on_connected(&mut self, cx: &mut Cx<'_>, key: Key) {
        if let Some(e) = self.endpoints.get_mut(key) {
            e.stage = Stage::Open;
            if let Some(direct) = e.direct {
                self.answer_direct(direct);
            } else if std::mem::take(&mut e.tell) {
                let (carrier, stream) = (e.carrier, e.stream);
                if let Some(c) = self.carriers.get_mut(carrier) {
                    c.mux.opened(stream);
                    self.queue(carrier);
                }
            }
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
        if let (Some(direct), Way::Direct) = (e.direct, e.moving.out()) {
            if let Some(raw) = self.carriers.get_mut(direct).and_then(Carrier::raw) {
                raw.ready = true;
                self.queue(direct);
            }
        } else if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.source_ready(stream);
            self.queue(carrier);
        }
    }

    /// Bridge: a stream has carried `n` more bytes, either way: bulk leaves the mux.
    pub(super) fn on_carried(&mut self, key: Key, n: usize, now: Instant) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        self.rest.on_piece(&self.shares.talk, &mut e.pieces, n, now);
        // Many small pieces are questions and answers, however long they go on: they are cheaper in frames, together.
        if !e.may_move || n < self.options.small_bytes {
            return;
        }
        e.carried += n as u64;
        if e.carried >= self.options.move_bytes {
            self.consider_move(key);
        }
    }

    pub(super) fn flush(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        let held = e.held_bytes();
        let max =
            e.fare.as_ref().filter(|fare| fare.paced).map_or(usize::MAX, |fare| fare.pass.slice(limits::Way::Down));
        let result = e.flush(max, &mut self.pipes);
        let waiting = e.held_bytes();
        self.on_held(held, waiting);
        if let Ok(n) = &result {
            self.pay(key, limits::Way::Down, cx.now, *n);
        }
        let Some(e) = self.endpoints.get(key) else { return };
        match result {
            Ok(n) => {
                let (carrier, stream) = (e.carrier, e.stream);
                let direct = e.direct.filter(|_| e.held_bytes() == 0);
                self.stats.bytes_from_link.add(n as u64);
                if let Some(c) = self.carriers.get_mut(carrier) {
                    c.mux.delivered(stream, n as u32, waiting, cx.now);
                    self.queue(carrier);
                }
                if let Some(direct) = direct {
                    self.wake_direct(direct);
                }
                self.on_carried(key, n, cx.now);
                self.settle(cx, key);
            }
            Err(_) => self.fail(cx, key, Reason::SocketReset),
        }
    }

    /// After something was written or ended: waits for room, passes the end on, or closes.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        let waits = e.wants_write() && e.is_paced() && self.must_wait(key, cx.now);
        let Some(e) = self.endpoints.get_mut(key) else { return };
        if e.wants_write() && !waits {
            e.armed.write = true;
            let fd = e.open_socket().fd();
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
            let fd = e.open_socket().fd();
            cx.io.submit(cx.token(OP_READ, key.generation, key.index), Op::Poll { fd, interest: Interest::Read });
        }
    }

    /// Our socket failed: tells the peer, and resets.
    pub(super) fn fail(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason) {
        let Some(e) = self.endpoints.get_mut(key) else { return };
        let (carrier, stream) = (e.carrier, e.stream);
        if let Stage::Dialing { .. } = e.stage
            && let Some(direct) = e.direct.take()
        {
            self.refuse_direct(direct, reason);
        }
        if let Some(c) = self.carriers.get_mut(carrier) {
            c.mux.reset(stream, reason);
            self.queue(carrier);
        }
        self.stats.count(reason);
        self.abort(cx, key, reason);
    }

    /// Resets the socket: what is unsent is dropped, and its peer knows.
    pub(super) fn abort(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason) {
        if let Some(e) = self.endpoints.get_mut(key).filter(|e| e.is_live()) {
            if let Some(socket) = &e.socket {
                let _ = socket.reset_on_close();
            }
            if let Some(unplaced) = e.unplaced.take() {
                self.events.push(Event::Placed { ticket: unplaced.into_ticket(), result: Err(reason) });
            }
            if let Some(direct) = e.direct.take() {
                self.end_direct(cx, direct, true);
            }
        }
        self.close_endpoint(cx, key);
    }

    pub(super) fn close_endpoint(&mut self, cx: &mut Cx<'_>, key: Key) {
        self.close_as(cx, key, Stage::Closing);
    }

    pub(super) fn close_as(&mut self, cx: &mut Cx<'_>, key: Key, stage: Stage) {
        let Some(e) = self.endpoints.get_mut(key).filter(|e| e.is_live()) else { return };
        let held = e.forget(&mut self.pipes);
        e.stage = stage;
        let armed_now = e.armed;
        let (direct, link) = (e.direct.take(), e.carrier);
        let awaits = e.moving.needs_direct() && !e.moving.is_bound();
        self.on_held(held, 0);
        self.stats.streams_open.sub(1);
        for (armed, op) in [(armed_now.read, OP_READ), (armed_now.write, OP_WRITE), (armed_now.dial, OP_DIAL)] {
            if armed {
                cx.io.cancel(cx.token(op, key.generation, key.index));
            }
        }
        if let Some(direct) = direct {
            self.end_direct(cx, direct, false);
        } else if awaits {
            self.forget_awaited(link, key);
        }
        self.reap_endpoint(key);
    }

    pub(super) fn reap_endpoint(&mut self, key: Key) {
        if self.endpoints.get(key).is_some_and(|e| !e.armed.any()) {
            self.on_home(key);
        }
    }
}
