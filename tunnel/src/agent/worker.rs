//! The agent on one worker: its share of the carriers, and the dialing of backends (which the plane does by itself).

mod dialing;

use super::feed::Feed;
use super::spares::{SPARE_PLACE, Spares};
use super::{AgentEvent, AgentOptions, CallId, Mail, Reach, Shared};
use crate::backoff::Backoff;
use crate::frame::{Kind, Reason};
use crate::hello::{self, AgentHello, AgentStep, Introduction, VERSIONS};
use crate::mux::{Limits, Side};
use crate::plane::{Event, OP_ROLE, Plane, hello_kind, tame};
use crate::slots::Key;
use crate::stats::WorkerStats;
use crate::tls::{Binding, Tls, TlsError};
use ringspan_engine::io::{Completion, Event as IoEvent};
use ringspan_engine::kernel::Socket;
use ringspan_engine::mailbox::{Receiver, Sender};
use ringspan_engine::resident::{Cx, Next, Resident};
use ringspan_engine::time::Instant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Connects to the bridge; the index is the carrier's place here.
pub(super) const OP_LINK_DIAL: u8 = OP_ROLE;

/// A bridge that does not answer the connect is given up after this and dialed again at once: the kernel doubles the
/// time between two packets of one dial, so a new dial finds a network that is back sooner. Longer than any round trip
/// over land, sea or geostationary satellite (0.6 s), with one packet lost.
pub(super) const LINK_DIAL_MAX: Duration = Duration::from_secs(2);

/// What is said of a control plane that has not connected in time.
pub(super) const NOT_REACHED: &str = "the bridge was not reached in time";

/// What one worker of the agent owns from the start.
pub(super) struct Own {
    pub(super) index: usize,
    pub(super) mail: Receiver<Mail>,
    pub(super) events: Sender<AgentEvent>,
}

/// One carrier of ours, in whatever state.
struct Line {
    number: u8,
    backoff: Backoff,
    /// Connections tried so far: the number of the present one.
    attempts: usize,
    /// Where the present one goes to.
    to: Option<SocketAddr>,
    state: State,
}

enum State {
    Idle {
        until: Instant,
    },
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
    Up {
        key: Key,
    },
}

pub(super) struct AgentWorker {
    own: Own,
    options: Arc<AgentOptions>,
    shared: Arc<Shared>,
    stats: Arc<WorkerStats>,
    pub(super) plane: Plane,
    lines: Vec<Line>,
    pub(super) spares: Spares,
    /// On worker 0.
    feed: Option<Feed>,
    random: fastrand::Rng,
    /// Carriers that end with their last stream, and are no line's any more.
    draining: Vec<Key>,
    /// We are to go: no line is dialed again.
    leaving: bool,
    stopping: bool,
}

impl AgentWorker {
    pub(super) fn new(options: &Arc<AgentOptions>, own: Own, shared: Arc<Shared>) -> AgentWorker {
        let stats = shared.stats[own.index].clone();
        let numbers = (0..options.carriers).filter(|number| usize::from(*number) % shared.mail.len() == own.index);
        let line = |number| Line {
            number,
            backoff: Backoff::default(),
            attempts: 0,
            to: None,
            state: State::Idle { until: Instant::ZERO },
        };
        AgentWorker {
            plane: Plane::new(
                Side::Accepter,
                stats.clone(),
                shared.shares.clone(),
                options.backends.clone(),
                options.dial_timeout,
                &options.plane,
            ),
            spares: Spares::new(usize::from(options.direct_max).div_ceil(shared.mail.len())),
            lines: numbers.map(line).collect(),
            own,
            options: options.clone(),
            shared,
            stats,
            feed: None,
            random: fastrand::Rng::new(),
            draining: Vec::new(),
            leaving: false,
            stopping: false,
        }
    }

    fn tell(&self, event: AgentEvent) {
        let _ = self.try_tell(event);
    }

    /// Whether there was room for it.
    fn try_tell(&self, event: AgentEvent) -> bool {
        let told = self.own.events.send(event).is_ok();
        if !told {
            tracing::debug!("the control plane does not listen: an event was dropped");
        }
        told
    }

    /// Asks the control plane for a connection; whether there was room for the question.
    pub(super) fn ask_for(&self, place: u32, generation: u32) -> bool {
        self.try_tell(AgentEvent::Reach { call: CallId { worker: self.own.index as u16, place, generation } })
    }

    fn line_of(&self, key: Key) -> Option<usize> {
        self.lines.iter().position(|line| match line.state {
            State::Greeting { key: k, .. } | State::Up { key: k } => k == key,
            State::Idle { .. } | State::Dialing { .. } | State::Asked { .. } => false,
        })
    }

    fn place(&self, at: usize) -> hello::Carrier {
        let line = &self.lines[at];
        let (serial, relayed) = (line.attempts as u32, self.options.reach == Reach::Ask);
        hello::Carrier { serial, relayed, ..hello::Carrier::mux(line.number, self.options.carriers) }
    }

    /// What a direct carrier of this link says of itself, and where it connects to; the control plane knows if this does
    /// not.
    pub(super) fn direct_place(&self, link: Key) -> Option<(hello::Carrier, Option<SocketAddr>)> {
        let at = self.line_of(link)?;
        Some((self.place(at), self.lines[at].to))
    }

    /// One more connection to the bridge.
    pub(super) fn add_carrier(&mut self, cx: &mut Cx<'_>, socket: Socket, tls: Tls) -> Key {
        let key = self.plane.add_carrier(cx, socket, tls);
        if self.options.reach == Reach::Ask {
            self.plane.is_relayed(key);
        }
        key
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping || self.leaving
    }

    /// A cipher for one more connection to the bridge.
    pub(super) fn link_tls(&self) -> Option<Result<Tls, TlsError>> {
        self.options.tls.as_ref().map(|tls| tls.connect(&self.options.host))
    }

    /// Who we are, without what we offer.
    pub(super) fn bare_introduction(&self) -> Introduction {
        Introduction { exposes: Vec::new(), token: None, ..self.options.introduction.clone() }
    }

    fn on_ready(&mut self, carrier: Key, binding: Binding) {
        let Some(at) = self.line_of(carrier) else { return };
        let place = self.place(at);
        if let State::Greeting { hello, .. } = &mut self.lines[at].state {
            *hello = Some(Box::new(AgentHello::new(self.options.introduction.clone(), VERSIONS, place, binding)));
        }
    }

    fn on_hello(&mut self, cx: &mut Cx<'_>, key: Key, aux: u16, payload: &[u8]) {
        let Some(at) = self.line_of(key) else { return };
        let State::Greeting { hello: Some(hello), .. } = &mut self.lines[at].state else {
            return self.plane.dismiss(cx, key, Reason::Protocol, "HELLO after the welcome");
        };
        match hello_step(&mut self.plane, cx, key, hello, (aux, payload)) {
            AgentStep::Welcomed(welcome) => {
                self.lines[at].state = State::Up { key };
                self.lines[at].backoff.on_welcome(cx.now);
                self.plane.raise(cx.now, key, Limits::agreed(&welcome.limits, u16::MAX));
                self.stats.carriers_up.add(1);
                let (worker, generation) = (self.own.index, welcome.generation);
                self.tell_feed(cx, Mail::Up { worker, key, generation });
                self.tell(AgentEvent::Up { carrier: self.lines[at].number, welcome });
                // Now what came right behind the welcome: the first visitors.
                self.plane.resume(cx, key);
            }
            AgentStep::Refused(refusal) => {
                let line = &mut self.lines[at];
                let wait = line.backoff.on_refused(&refusal, cx.now, self.random.u64(..));
                line.state = State::Idle { until: cx.now + wait.delay };
                let (carrier, retry, tell) = (line.number, wait.delay, wait.tell);
                let detail = refusal.to_string();
                self.tell(AgentEvent::Refused { carrier, refusal, retry, tell });
                self.plane.drop_carrier(cx, key, Reason::Refused, detail);
            }
            AgentStep::Send(_) | AgentStep::Over => {}
        }
    }

    /// The bridge sends no new streams here: the line looks for a new connection, this one ends with its last stream.
    fn on_draining(&mut self, cx: &mut Cx<'_>, key: Key, detail: String) {
        let Some(at) = self.line_of(key) else { return };
        if let State::Up { .. } = self.lines[at].state {
            self.draining.push(key);
            self.forget_spares(key);
            self.on_lost(cx, key, Reason::Draining, detail);
        }
    }

    /// Nothing new: the bridge is told, streams go on.
    fn leave(&mut self, cx: &mut Cx<'_>) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        self.cancel_spares(cx);
        for at in 0..self.lines.len() {
            match self.lines[at].state {
                State::Idle { .. } | State::Asked { .. } => {}
                State::Dialing { .. } => {
                    cx.io.cancel(cx.token(OP_LINK_DIAL, self.lines[at].attempts as u32, at as u32))
                }
                State::Greeting { key, .. } => {
                    self.plane.dismiss(cx, key, Reason::Stopping, Reason::Stopping.sentence())
                }
                State::Up { key } => self.plane.say_draining(key, Reason::Stopping.sentence()),
            }
        }
    }

    fn on_lost(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason, detail: String) {
        if self.spares.has(key) {
            tracing::debug!(%reason, detail, "a direct carrier is gone");
            return self.on_spare_gone(cx.now, key);
        }
        self.forget_spares(key);
        if self.draining.contains(&key) && self.line_of(key).is_none() {
            self.draining.retain(|k| *k != key);
            return;
        }
        let Some(at) = self.line_of(key) else { return };
        self.stats.count(reason);
        if let State::Up { .. } = self.lines[at].state {
            self.stats.carriers_up.sub(1);
            let worker = self.own.index;
            self.tell_feed(cx, Mail::Down { worker, key });
        } else {
            self.stats.handshakes_failed.add(1);
        }
        self.retry(cx, at, reason, detail);
    }

    fn tell_feed(&mut self, cx: &mut Cx<'_>, mail: Mail) {
        if self.feed.is_some() {
            self.on_mail(cx, mail);
        } else if self.shared.mail[0].send(mail).is_err() {
            tracing::warn!("worker 0 takes no mail: health reports may be late");
        }
    }

    fn on_mail(&mut self, cx: &mut Cx<'_>, mail: Mail) {
        match (mail, &mut self.feed) {
            (Mail::Reached { call, answer }, _) => self.on_reached(cx, call, answer),
            (Mail::Answer { key, answer }, _) => self.plane.answer(cx, key, answer),
            (Mail::Send { key, payload }, _) => self.plane.send(key, Kind::Health, 0, payload),
            (Mail::Broken { key, detail }, _) => self.plane.dismiss(cx, key, Reason::Protocol, &detail),
            (Mail::Up { worker, key, generation }, Some(feed)) => feed.on_up(worker, key, generation),
            (Mail::Down { worker, key }, Some(feed)) => feed.on_down(worker, key),
            (Mail::Heard { worker, key, payload }, Some(feed)) => {
                if let Err(error) = feed.on_message(&payload) {
                    self.send_mail(cx, worker, Mail::Broken { key, detail: error.to_string() });
                }
            }
            (Mail::Up { .. } | Mail::Down { .. } | Mail::Heard { .. }, None) => {
                unreachable!("feed mail goes to worker 0, which has the feed")
            }
        }
    }

    fn send_mail(&mut self, cx: &mut Cx<'_>, worker: usize, mail: Mail) {
        if worker == self.own.index {
            self.on_mail(cx, mail);
        } else if self.shared.mail[worker].send(mail).is_err() {
            tracing::warn!(worker, "a worker takes no mail: health reports may be late");
        }
    }

    fn run_feed(&mut self, cx: &mut Cx<'_>) {
        if let Some(feed) = &mut self.feed {
            feed.take_news(&self.shared);
            feed.give_orders(|orders| self.own.events.send(AgentEvent::Watch(orders)).is_ok());
        }
        while let Some((worker, key, payload)) = self.feed.as_mut().and_then(|feed| feed.next(cx.now)) {
            self.send_mail(cx, worker, Mail::Send { key, payload });
        }
    }

    fn on_events(&mut self, cx: &mut Cx<'_>) -> bool {
        let events = self.plane.take_events();
        let any = !events.is_empty();
        for event in events {
            match event {
                Event::Ready { carrier, binding } if self.spares.has(carrier) => self.on_spare_ready(carrier, binding),
                Event::Ready { carrier, binding } => self.on_ready(carrier, binding),
                Event::Control { carrier, kind: Kind::Hello, aux, payload } if self.spares.has(carrier) => {
                    self.on_spare_hello(cx, carrier, aux, &payload);
                }
                Event::SpareWanted { carrier, count } => self.on_spares_wanted(carrier, count),
                Event::DirectTaken { carrier } => self.on_spare_taken(carrier),
                Event::DirectOver { carrier } => self.on_spare_gone(cx.now, carrier),
                Event::Control { carrier, kind: Kind::Hello, aux, payload } => {
                    self.on_hello(cx, carrier, aux, &payload)
                }
                Event::Control { carrier, kind: Kind::Goaway, aux, payload } if Reason::of(aux) == Reason::Draining => {
                    self.on_draining(cx, carrier, tame(&payload));
                }
                Event::Control { carrier, kind: Kind::Goaway, aux, payload } => {
                    self.plane.drop_carrier(cx, carrier, Reason::of(aux), tame(&payload));
                }
                Event::Control { carrier, payload, .. } => {
                    let worker = self.own.index;
                    self.tell_feed(cx, Mail::Heard { worker, key: carrier, payload });
                }
                Event::Worn { carrier } => {
                    const WORN: &str = "the TLS keys of this connection have encrypted most of what they may";
                    self.plane.say_draining(carrier, WORN);
                    self.on_draining(cx, carrier, WORN.into());
                }
                Event::Lost { carrier, reason, detail } => self.on_lost(cx, carrier, reason, detail),
                Event::DialFailed { backend, reason } => self.tell(AgentEvent::DialFailed { backend, reason }),
                Event::Asked { endpoint, backend, info } => {
                    let ask = super::AskId { worker: self.own.index as u16, key: endpoint };
                    if !self.try_tell(AgentEvent::Ask { ask, backend, info }) {
                        self.plane.answer(cx, endpoint, Err(Reason::DialLocal));
                    }
                }
                Event::StreamReset { .. } | Event::Moved { .. } | Event::Placed { .. } | Event::Bounced(_) => {}
            }
        }
        any
    }
}

/// What the bridge's HELLO of that `aux` and payload means; an answer is sent at once.
pub(super) fn hello_step(
    plane: &mut Plane,
    cx: &mut Cx<'_>,
    key: Key,
    hello: &mut AgentHello,
    (aux, payload): (u16, &[u8]),
) -> AgentStep {
    let step = match hello_kind(aux) {
        Some(kind) => hello.on_message(kind, payload),
        None => hello.on_nonsense("unknown HELLO step"),
    };
    if let AgentStep::Send(message) = &step {
        plane.send(key, Kind::Hello, message.kind as u16, message.payload.clone());
        plane.resume(cx, key);
    }
    step
}

impl AgentWorker {
    /// Nothing is left that could have an event.
    fn is_over(&self) -> bool {
        let dialing = self.lines.iter().any(|line| matches!(line.state, State::Dialing { .. }));
        !dialing && !self.spares.is_dialing() && self.plane.is_empty()
    }
}

impl Resident for AgentWorker {
    fn on_start(&mut self, cx: &mut Cx<'_>) {
        if self.own.index == 0 {
            self.feed = Some(Feed::new(self.options.backends.len() as u16, cx.now));
        }
    }

    fn on_completion(&mut self, cx: &mut Cx<'_>, completion: Completion) {
        let Completion { token, event } = completion;
        match (token.op(), event) {
            (OP_LINK_DIAL, IoEvent::Connected(result)) if token.index() & SPARE_PLACE != 0 => {
                let at = Key { index: token.index() & !SPARE_PLACE, generation: token.generation() };
                self.on_spare_dialed(cx, at, result);
            }
            (OP_LINK_DIAL, IoEvent::Connected(result)) => self.on_dialed(cx, token.index() as usize, result),
            (_, event) => self.plane.on_completion(cx, token, event),
        }
    }

    fn on_turn(&mut self, cx: &mut Cx<'_>) -> Next {
        while let Some(mail) = self.own.mail.try_recv() {
            self.on_mail(cx, mail);
        }
        if self.shared.leaving.load(Ordering::Acquire) {
            self.leave(cx);
        }
        let going = self.leaving || self.shared.retiring.load(Ordering::Acquire);
        let due = if self.stopping || going {
            None
        } else {
            let (links, spares) = (self.dial_due(cx), self.dial_spares(cx));
            links.into_iter().chain(spares).min()
        };
        let busy = self.plane.turn(cx);
        let busy = self.on_events(cx) || busy;
        self.run_feed(cx);
        if busy || self.plane.has_work() {
            Next::Now
        } else if (self.stopping || going) && self.is_over() {
            Next::Done
        } else {
            let tick = self.plane.tick_at();
            Next::At(due.map_or(tick, |due| due.min(tick)))
        }
    }

    fn on_stop(&mut self, cx: &mut Cx<'_>) {
        self.stopping = true;
        self.cancel_spares(cx);
        for at in 0..self.lines.len() {
            if let State::Dialing { .. } = self.lines[at].state {
                cx.io.cancel(cx.token(OP_LINK_DIAL, self.lines[at].attempts as u32, at as u32));
            }
        }
        self.plane.stop(cx);
    }
}
