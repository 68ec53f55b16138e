//! How a line of an agent comes up: dialed here or by the control plane, encrypted, greeted; and when it is tried again.
//! Promise: each line has one connection at most that is on its way; one that does not answer is given up in time.

use super::super::spares::SPARE_PLACE;
use super::super::{AgentEvent, CallId, REACH_MAX, Reach};
use super::{AgentWorker, LINK_DIAL_MAX, NOT_REACHED, OP_LINK_DIAL, State};
use crate::frame::Reason;
use crate::plane::{dial_reason, dialer};
use crate::slots::Key;
use crate::tls::Tls;
use ringspan_engine::io::{Errno, Op};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;

impl AgentWorker {
    /// Starts what is due; returns when the next is.
    pub(super) fn dial_due(&mut self, cx: &mut Cx<'_>) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for at in 0..self.lines.len() {
            let due = match &self.lines[at].state {
                State::Idle { until } => *until,
                State::Dialing { deadline, .. } | State::Asked { deadline } => *deadline,
                State::Greeting { .. } | State::Up { .. } => continue,
            };
            if due > cx.now {
                next = Some(next.map_or(due, |n| n.min(due)));
            } else if let State::Dialing { .. } = self.lines[at].state {
                // The completion says that it was cancelled, and the line goes on from there.
                let generation = self.lines[at].attempts as u32;
                cx.io.cancel(cx.token(OP_LINK_DIAL, generation, at as u32));
            } else if let State::Asked { .. } = self.lines[at].state {
                self.retry(cx, at, Reason::DialTimeout, NOT_REACHED.to_owned());
            } else if self.options.reach == Reach::Ask {
                self.ask(cx, at);
            } else {
                self.dial(cx, at);
            }
        }
        next
    }

    /// Has the control plane connect.
    fn ask(&mut self, cx: &mut Cx<'_>, at: usize) {
        self.lines[at].attempts += 1;
        let generation = self.lines[at].attempts as u32;
        if self.ask_for(at as u32, generation) {
            self.lines[at].state = State::Asked { deadline: cx.now + REACH_MAX };
        } else {
            self.retry(cx, at, Reason::DialLocal, "the control plane does not listen".to_owned());
        }
    }

    /// The control plane has connected, or not.
    pub(super) fn on_reached(&mut self, cx: &mut Cx<'_>, call: CallId, answer: Result<Socket, (Reason, String)>) {
        if call.place & SPARE_PLACE != 0 {
            let at = Key { index: call.place & !SPARE_PLACE, generation: call.generation };
            return self.on_spare_reached(cx, at, answer);
        }
        let at = call.place as usize;
        let Some(line) = self.lines.get_mut(at).filter(|line| line.attempts as u32 == call.generation) else { return };
        let State::Asked { .. } = line.state else { return };
        line.state = State::Idle { until: cx.now };
        match answer {
            _ if self.stopping || self.leaving => {}
            Ok(socket) => self.greet(cx, at, socket),
            Err((reason, detail)) => self.retry(cx, at, reason, detail),
        }
    }

    fn dial(&mut self, cx: &mut Cx<'_>, at: usize) {
        let bridge = self.shared.bridge.load();
        let line = &mut self.lines[at];
        line.attempts += 1;
        let started = match bridge.get(line.attempts % bridge.len().max(1)) {
            None => Err("the bridge's address is not known".to_owned()),
            Some(to) => dialer(to).map(|socket| (socket, *to)).map_err(|error| error.to_string()),
        };
        match started {
            Ok((socket, to)) => {
                let fd = socket.fd();
                let token = cx.token(OP_LINK_DIAL, line.attempts as u32, at as u32);
                line.to = Some(to);
                line.state = State::Dialing { socket, deadline: cx.now + LINK_DIAL_MAX };
                cx.io.submit(token, Op::Connect { fd, to });
            }
            Err(detail) => self.retry(cx, at, Reason::DialLocal, detail),
        }
    }

    pub(super) fn on_dialed(&mut self, cx: &mut Cx<'_>, at: usize, result: Result<(), Errno>) {
        let Some(line) = self.lines.get_mut(at) else { return };
        let late = matches!(line.state, State::Dialing { deadline, .. } if deadline <= cx.now);
        let idle = State::Idle { until: cx.now };
        let State::Dialing { socket, .. } = std::mem::replace(&mut line.state, idle) else { return };
        if self.stopping {
            return;
        }
        if let Err(errno) = result {
            let reason = match dial_reason(errno) {
                _ if late => Reason::DialTimeout,
                out @ (Reason::DialTimeout | Reason::DialUnreachable) => out,
                _ => Reason::LinkLost,
            };
            let detail = if late { "the bridge does not answer".to_owned() } else { errno.to_string() };
            return self.retry(cx, at, reason, detail);
        }
        self.greet(cx, at, socket);
    }

    /// A connection is there: TLS, if there is to be any, and the handshake.
    pub(super) fn greet(&mut self, cx: &mut Cx<'_>, at: usize, socket: Socket) {
        let tls = match self.options.tls.as_ref().map(|tls| tls.connect(&self.options.host)) {
            None => Tls::plain(),
            Some(Ok(tls)) => tls,
            Some(Err(error)) => return self.retry(cx, at, Reason::HandshakeBad, error.to_string()),
        };
        let key = self.add_carrier(cx, socket, tls);
        self.lines[at].state = State::Greeting { key, hello: None };
    }

    /// The line is down: tells, and waits.
    pub(super) fn retry(&mut self, cx: &mut Cx<'_>, at: usize, reason: Reason, detail: String) {
        let line = &mut self.lines[at];
        let was_up = matches!(line.state, State::Up { .. });
        let random = self.random.u64(..);
        let wait = match reason {
            Reason::DialTimeout | Reason::DialUnreachable => line.backoff.on_unanswered(cx.now, random),
            Reason::Draining => line.backoff.on_called(cx.now, random),
            _ => line.backoff.on_lost(cx.now, random),
        };
        line.state = State::Idle { until: cx.now + wait.delay };
        let (carrier, retry, tell) = (line.number, wait.delay, wait.tell);
        self.tell(AgentEvent::Down { carrier, was_up, reason, detail, retry, tell });
    }
}
