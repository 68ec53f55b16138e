//! The direct carriers of one worker of the agent: connected ahead, as many as the bridge wants to have waiting for each
//! of the worker's links, each with a stream sooner or later.
//! Promise: never more than `direct_max` in all, whatever the bridge asks for; a bridge that cannot be reached is asked
//! again with growing pauses; those of a link that is gone are not replaced.
//!
//! ```text
//! dialing ──▶ TLS, HELLO ──▶ waiting ──OPEN──▶ busy ──▶ gone
//! ```

use super::REACH_MAX;
use super::worker::{AgentWorker, LINK_DIAL_MAX, NOT_REACHED, OP_LINK_DIAL, hello_step};
use crate::frame::Reason;
use crate::hello::{self, AgentHello, AgentStep, CarrierUse, VERSIONS};
use crate::plane::dialer;
use crate::slots::{Key, Slots};
use crate::tls::{Binding, Tls};
use ringspan_engine::io::{Errno, Op};
use ringspan_engine::kernel::Socket;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::net::SocketAddr;
use std::time::Duration;

/// Set in the index of a token: the connect is of a direct carrier.
pub(super) const SPARE_PLACE: u32 = 1 << 20;

/// Direct carriers on their way at once: a handshake costs both sides signatures, and streams go on meanwhile.
const STARTING_MAX: usize = 8;

/// Pauses after failures: from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Spares {
    /// Of this worker.
    max: usize,
    wants: Vec<Want>,
    calls: Slots<Call>,
    failures: u32,
    pause_until: Option<Instant>,
}

/// What the bridge wants for one link.
struct Want {
    link: Key,
    place: hello::Carrier,
    /// `None`: the control plane connects.
    to: Option<SocketAddr>,
    count: usize,
}

struct Call {
    link: Key,
    state: State,
}

enum State {
    Dialing {
        socket: Socket,
        deadline: Instant,
    },
    /// The control plane connects.
    Asked {
        deadline: Instant,
    },
    Greeting {
        key: Key,
        hello: Option<Box<AgentHello>>,
    },
    Waiting {
        key: Key,
    },
    Busy {
        key: Key,
    },
}

impl State {
    fn key(&self) -> Option<Key> {
        match self {
            State::Dialing { .. } | State::Asked { .. } => None,
            State::Greeting { key, .. } | State::Waiting { key } | State::Busy { key } => Some(*key),
        }
    }
}

impl Spares {
    pub(super) fn new(max: usize) -> Spares {
        Spares { max, ..Spares::default() }
    }

    fn call_of(&mut self, key: Key) -> Option<Key> {
        self.calls.iter().find(|(_, call)| call.state.key() == Some(key)).map(|(at, _)| at)
    }

    /// Whether the carrier is one of these.
    pub(super) fn has(&mut self, key: Key) -> bool {
        self.call_of(key).is_some()
    }

    /// Whether a connect is in flight.
    pub(super) fn is_dialing(&self) -> bool {
        self.calls.iter().any(|(_, call)| matches!(call.state, State::Dialing { .. }))
    }

    fn failed(&mut self, now: Instant) {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures += 1;
        self.pause_until = Some(now + pause);
    }
}

impl AgentWorker {
    /// The bridge wants `count` direct carriers to wait for streams of this link.
    pub(super) fn on_spares_wanted(&mut self, link: Key, count: u16) {
        let Some((place, to)) = self.direct_place(link) else { return };
        self.spares.wants.retain(|want| want.link != link);
        if count > 0 {
            self.spares.wants.push(Want { link, place, to, count: count.into() });
        }
    }

    /// The link is gone, or gets no new streams.
    pub(super) fn forget_spares(&mut self, link: Key) {
        self.spares.wants.retain(|want| want.link != link);
    }

    /// Starts what is wanted and allowed; returns when to look again.
    pub(super) fn dial_spares(&mut self, cx: &mut Cx<'_>) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut by = |at: Instant| next = Some(next.map_or(at, |n| n.min(at)));
        let (mut starting, mut late) = (0, Vec::new());
        for (at, call) in self.spares.calls.iter() {
            match &call.state {
                State::Dialing { deadline, .. } if *deadline <= cx.now => {
                    // The completion says that it was cancelled.
                    cx.io.cancel(cx.token(OP_LINK_DIAL, at.generation, SPARE_PLACE | at.index));
                }
                State::Asked { deadline } if *deadline <= cx.now => late.push(at),
                State::Dialing { deadline, .. } | State::Asked { deadline } => {
                    by(*deadline);
                    starting += 1;
                }
                State::Greeting { .. } => starting += 1,
                State::Waiting { .. } | State::Busy { .. } => {}
            }
        }
        for at in late {
            self.spares.calls.remove(at);
            tracing::debug!(error = NOT_REACHED, "no direct carrier");
            self.spares.failed(cx.now);
        }
        if let Some(until) = self.spares.pause_until {
            if until > cx.now {
                by(until);
                return next;
            }
            self.spares.pause_until = None;
        }
        for at in 0..self.spares.wants.len() {
            let Want { link, to, count, .. } = self.spares.wants[at];
            let is_spare = |call: &Call| call.link == link && !matches!(call.state, State::Busy { .. });
            let mut have = self.spares.calls.iter().filter(|(_, call)| is_spare(call)).count();
            while have < count && starting < STARTING_MAX && self.spares.calls.len() < self.spares.max {
                match to.map(|to| dialer(&to).map(|socket| (socket, to))) {
                    None => {
                        let deadline = cx.now + REACH_MAX;
                        by(deadline);
                        let key = self.spares.calls.insert(Call { link, state: State::Asked { deadline } });
                        if !self.ask_for(SPARE_PLACE | key.index, key.generation) {
                            self.spares.calls.remove(key);
                            self.spares.failed(cx.now);
                            return next;
                        }
                    }
                    Some(Ok((socket, to))) => {
                        let deadline = cx.now + LINK_DIAL_MAX;
                        by(deadline);
                        let fd = socket.fd();
                        let state = State::Dialing { socket, deadline };
                        let key = self.spares.calls.insert(Call { link, state });
                        let token = cx.token(OP_LINK_DIAL, key.generation, SPARE_PLACE | key.index);
                        cx.io.submit(token, Op::Connect { fd, to });
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "no socket for a direct carrier");
                        self.spares.failed(cx.now);
                        return next;
                    }
                }
                (have, starting) = (have + 1, starting + 1);
            }
        }
        next
    }

    pub(super) fn on_spare_dialed(&mut self, cx: &mut Cx<'_>, at: Key, result: Result<(), Errno>) {
        let Some(call) = self.spares.calls.remove(at) else { return };
        let State::Dialing { socket, .. } = call.state else { return };
        self.greet_spare(cx, call.link, result.map(|()| socket).map_err(|errno| errno.to_string()));
    }

    /// The control plane has connected, or not.
    pub(super) fn on_spare_reached(&mut self, cx: &mut Cx<'_>, at: Key, answer: Result<Socket, (Reason, String)>) {
        if let Some(Call { state: State::Asked { .. }, .. }) = self.spares.calls.get_mut(at)
            && let Some(call) = self.spares.calls.remove(at)
        {
            self.greet_spare(cx, call.link, answer.map_err(|(_, detail)| detail));
        }
    }

    fn greet_spare(&mut self, cx: &mut Cx<'_>, link: Key, socket: Result<Socket, String>) {
        if self.is_stopping() {
            return;
        }
        let ready = socket.and_then(|socket| match self.link_tls() {
            None => Ok((socket, Tls::plain())),
            Some(tls) => tls.map(|tls| (socket, tls)).map_err(|error| error.to_string()),
        });
        match ready {
            Ok((socket, tls)) => {
                let key = self.add_carrier(cx, socket, tls);
                self.spares.calls.insert(Call { link, state: State::Greeting { key, hello: None } });
            }
            Err(error) => {
                tracing::debug!(error, "no direct carrier");
                self.spares.failed(cx.now);
            }
        }
    }

    /// Its cipher is there: the handshake begins, with nothing exposed, since the link has done that.
    pub(super) fn on_spare_ready(&mut self, carrier: Key, binding: Binding) {
        let introduction = self.bare_introduction();
        let Some(at) = self.spares.call_of(carrier) else { return };
        let Some(call) = self.spares.calls.get_mut(at) else { return };
        let Some(want) = self.spares.wants.iter().find(|want| want.link == call.link) else { return };
        let place = hello::Carrier { used: CarrierUse::Direct, ..want.place };
        if let State::Greeting { hello, .. } = &mut call.state {
            *hello = Some(Box::new(AgentHello::new(introduction, VERSIONS, place, binding)));
        }
    }

    pub(super) fn on_spare_hello(&mut self, cx: &mut Cx<'_>, key: Key, aux: u16, payload: &[u8]) {
        let Some(at) = self.spares.call_of(key) else { return };
        let Some(call) = self.spares.calls.get_mut(at) else { return };
        let State::Greeting { hello: Some(hello), .. } = &mut call.state else {
            return self.plane.drop_carrier(cx, key, Reason::Protocol, "HELLO out of place".into());
        };
        match hello_step(&mut self.plane, cx, key, hello, (aux, payload)) {
            AgentStep::Welcomed(_) => {
                call.state = State::Waiting { key };
                let link = call.link;
                self.spares.failures = 0;
                self.plane.raise_direct(key, link);
                self.plane.resume(cx, key);
            }
            AgentStep::Refused(refusal) => {
                tracing::debug!(%refusal, "no direct carrier");
                self.plane.drop_carrier(cx, key, Reason::Refused, refusal.to_string());
            }
            AgentStep::Send(_) | AgentStep::Over => {}
        }
    }

    /// A stream has taken it.
    pub(super) fn on_spare_taken(&mut self, key: Key) {
        if let Some(at) = self.spares.call_of(key)
            && let Some(call) = self.spares.calls.get_mut(at)
        {
            call.state = State::Busy { key };
        }
    }

    /// It has ended: with its stream, by the bridge's wish, or before it was up.
    pub(super) fn on_spare_gone(&mut self, now: Instant, key: Key) {
        let Some(at) = self.spares.call_of(key) else { return };
        if let Some(Call { state: State::Greeting { .. } | State::Waiting { .. }, .. }) = self.spares.calls.remove(at) {
            self.spares.failed(now);
        }
    }

    pub(super) fn cancel_spares(&mut self, cx: &mut Cx<'_>) {
        self.spares.wants.clear();
        for (at, call) in self.spares.calls.iter() {
            if let State::Dialing { .. } = call.state {
                cx.io.cancel(cx.token(OP_LINK_DIAL, at.generation, SPARE_PLACE | at.index));
            }
        }
    }
}
