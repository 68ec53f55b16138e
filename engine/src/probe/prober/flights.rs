//! Probes from their start to their end: lanes are taken, operations submitted, and what the kernel says is handed to
//! the flight's transitions, whose steps are done here.

use super::Prober;
use super::judge::Outcome;
use crate::check::{Detail, Phases};
use crate::io::{End, Errno, Io, Lane, Leg, Op, Trouble, Way};
use crate::outcome::Code;
use crate::probe::flight::{self, Call, Flight, Step};
use crate::probe::lanes::Turn;
use crate::probe::nets::{Net, Ticket};
use crate::probe::patience::{Patience, Progress};
use crate::probe::talk::{self, Finding, Next, Peer, Phase};
use crate::probe::watched::Stage;
use crate::resident::Cx;
use crate::slab::Key;
use crate::target::Proxy;
use crate::time::Instant;
use crate::token::Token;
use std::time::Duration;

/// Probes started in one turn. Connects in one io_uring_enter run one after another, about 5 µs each on loopback, and
/// their answers are looked at afterwards: the batch is an error of the measured round trip. A batch of 4 measures a
/// median of 20 µs where one of 32 measures 160 µs, at the same CPU per probe (bench `probe_cost`, Linux 6.18, AMD
/// EPYC).
const START_BATCH: usize = 4;
/// Probes started in one turn by a prober that is behind, with more than so many waiting. Its round trips are no finer than
/// its queue any more; what counts is to catch up, and a server that is woken once for a gulp costs both sides less than
/// one that is woken for each.
const GULP: usize = 32;
/// How long a prober that is behind and at its limit of probes in flight lets room gather before it starts a few.
const GULP_WAIT: Duration = Duration::from_micros(250);
/// One in so many knocks asks the kernel what it measured: a system call and a turn more.
const KNOCKS_PER_LOOK: u64 = 64;
/// One in so many calls does: a system call.
const CALLS_PER_LOOK: u64 = 16;
/// What looks slow: from here on a SYN may have been lost (RFC 6298, 2: the first retransmission after 1 s).
pub(super) const SLOW: Duration = Duration::from_millis(900);
/// Version 2 of the PROXY protocol's signature, then: version 2 and LOCAL, unspecified family, no addresses.
const PROXY_V2_LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
/// Version 1 for a connection that carries nobody's traffic.
const PROXY_V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

impl Prober {
    /// A target is due: it stands in a queue if its network has room for its probe, else the network's own.
    pub(super) fn admit(&mut self, now: Instant, key: Key) {
        if let Some(nets) = &mut self.parts.nets {
            let watched = self.watched.get_mut(key).expect("the caller has just looked at it");
            if !nets.admit(now, Net::of(watched.ip()), key) {
                return;
            }
            watched.set_admitted();
        }
        self.queue(now, key);
    }

    /// Queues those whose networks have room again. Returns whether there may be more.
    pub(super) fn release(&mut self, now: Instant) -> bool {
        let Some(nets) = &mut self.parts.nets else { return false };
        let mut released = std::mem::take(&mut self.released);
        let watched = &mut self.watched;
        let more = nets.release(now, |key| {
            let Some(watched) = watched.get_mut(key) else { return false };
            watched.set_admitted();
            released.push(key);
            true
        });
        released.drain(..).for_each(|key| self.queue(now, key));
        self.released = released;
        more
    }

    /// The room that a target's network has made for its probe is not used.
    pub(super) fn leave(&mut self, now: Instant, key: Key) {
        if let (Some(nets), Some(watched)) = (&mut self.parts.nets, self.watched.get_mut(key))
            && watched.take_admitted()
        {
            nets.on_gone(now, Net::of(watched.ip()));
        }
    }

    /// A target that is due stands in the queue of the lanes it needs.
    fn queue(&mut self, now: Instant, key: Key) {
        let watched = self.watched.get_mut(key).expect("the caller has just looked at it");
        let Some(kind) = watched.kind() else {
            watched.stage = Stage::Finished;
            self.leave(now, key);
            return;
        };
        if self.lanes.on_due(kind, key).is_err() {
            self.refuse(now, key, None);
        }
    }

    /// Starts what may start. Returns whether to come back at once: because more may start, and because a probe leaves
    /// only with the next wait. A worker that loses the CPU between the two must see that it has, or the probe's
    /// timeout would pass before its SYN is sent.
    pub(super) fn start_due(&mut self, cx: &mut Cx<'_>) -> bool {
        let now = cx.now;
        let batch = match self.lanes.waiting() {
            0..=GULP => START_BATCH,
            _ if self.room() < GULP && now < self.gulp_at => return false,
            _ => GULP,
        };
        for started in 0..batch {
            if self.lanes.waiting() == 0 || self.flights.is_full() || self.parts.pace.blocked_until(now).is_some() {
                return started > 0;
            }
            match self.lanes.take(now, cx.io) {
                Turn::Start { target, lane, pool } => {
                    self.gulp_at = now + GULP_WAIT;
                    self.start(cx, target, Lane(lane), pool);
                }
                Turn::Refused { target, errno } => {
                    if self.watched.get(target).is_some() {
                        self.refuse(now, target, Some(errno));
                    }
                }
                Turn::Nobody => return started > 0,
            }
        }
        true
    }

    /// How many more probes may fly.
    fn room(&self) -> usize {
        (self.parts.in_flight_max.saturating_sub(self.flights.len())) as usize
    }

    /// A probe that cannot be made, for want of something of ours.
    fn refuse(&mut self, now: Instant, target: Key, errno: Option<Errno>) {
        self.leave(now, target);
        self.on_started(now, target);
        self.judge(now, target, Outcome { errno, ..Outcome::of(Code::SockErr, now) });
    }

    fn start(&mut self, cx: &mut Cx<'_>, target: Key, lane: Lane, pool: u8) {
        let kind = self.lanes.kind(pool);
        let Some(watched) = self.watched.get_mut(target) else {
            self.lanes.give_back(pool, lane.0);
            return;
        };
        if watched.kind() != Some(kind) {
            // It was given another check or another source while it stood in this queue.
            self.lanes.give_back(pool, lane.0);
            self.queue(cx.now, target);
            return;
        }
        let (now, to) = (cx.now, watched.address());
        let is_knock = matches!(kind.way, Way::Knock(_));
        let per_look = if is_knock { KNOCKS_PER_LOOK } else { CALLS_PER_LOOK };
        let sampled = self.numbers.counters.started.is_multiple_of(per_look);
        let look = watched.take_look() || sampled;
        let ticket = match &mut self.parts.nets {
            Some(nets) if watched.take_admitted() => nets.on_start(now, Net::of(watched.ip())),
            _ => Ticket::NONE,
        };
        let call = talk::talk(watched.check()).map(|talk| Call {
            talk,
            called: now,
            connected: None,
            first_heard: None,
            facts: None,
            trouble: None,
        });
        let flight = Flight {
            target,
            stage: if is_knock { flight::Stage::Knocking } else { flight::Stage::Talking },
            started: now,
            stalled_before: self.stalled,
            delayed: Duration::ZERO,
            lane,
            pool,
            ticket,
            op: 0,
            end: End::Reset,
            look,
            patience: Patience::new(watched.timeout(), &watched.policy().timeouts),
            call,
        };
        let first = flight.patience.first(now, now);
        let key = self.flights.insert(flight).expect("asked before the turn was taken");
        watched.stage = Stage::Flying(key);
        self.deadlines.arm(key.index, first);
        if is_knock {
            cx.io.submit(cx.token(0, key.generation, key.index), Op::Knock { lane, to, look });
        } else {
            self.call(cx, key);
        }
        self.on_started(now, target);
    }

    fn on_started(&mut self, now: Instant, target: Key) {
        self.parts.pace.on_start(now);
        let slot = self.watched.get(target).expect("the caller has just looked at it").slot;
        let numbers = &mut self.numbers;
        numbers.counters.started += 1;
        crate::histogram::record(&mut numbers.lateness, now.since(slot));
    }

    /// Opens the conversation and calls.
    fn call(&mut self, cx: &mut Cx<'_>, key: Key) {
        let flight = self.flights.get_mut(key).expect("the caller has just looked at it");
        let watched = self.watched.get(flight.target).expect("a removed target's probe is withdrawn");
        let (to, lane) = (watched.address(), flight.lane);
        let call = flight.call.as_mut().expect("whoever is Talking has a conversation");
        let say = cx.io.outgoing(lane);
        say.clear();
        if watched.kind().is_some_and(|kind| kind.way == Way::Stream) {
            match watched.policy().proxy {
                None => {}
                Some(Proxy::V1) => say.extend_from_slice(PROXY_V1_UNKNOWN),
                Some(Proxy::V2) => say.extend_from_slice(&PROXY_V2_LOCAL),
            }
        }
        call.talk.open(cx.now, &Peer { address: to }, say);
        (call.called, call.connected, call.first_heard) = (cx.now, None, None);
        let op = Op::Call { lane, to };
        cx.io.submit(token(cx, key, flight), op);
    }

    // What comes back.

    pub(super) fn on_knocked(&mut self, cx: &mut Cx<'_>, key: Key, answer: Result<(), Errno>) {
        self.on_flight(cx, key, flight::Event::Knocked(answer));
    }

    pub(super) fn on_hung(&mut self, cx: &mut Cx<'_>, key: Key) {
        self.on_flight(cx, key, flight::Event::Hung);
    }

    pub(super) fn on_heard(&mut self, cx: &mut Cx<'_>, key: Key, heard: Result<usize, Trouble>) {
        let flight = self.flights.get_mut(key).expect("the caller has just looked at it");
        let (Some(call), flight::Stage::Talking) = (&mut flight.call, flight.stage) else {
            let late = !matches!(heard, Err(Trouble { errno: Errno(libc::ECANCELED), .. }));
            return self.on_flight(cx, key, flight::Event::Silent { late });
        };
        flight.delayed += if self.lag < super::STALL_MIN { self.lag } else { Duration::ZERO };
        let lane = flight.lane;
        call.on_sign(cx.io, lane);
        let next = match heard {
            Ok(count) => {
                if count > 0 && call.first_heard.is_none() {
                    call.first_heard = Some(cx.now);
                    if call.facts.is_none() && (flight.look || cx.now.since(call.called) >= SLOW) {
                        call.facts = cx.io.tcp_facts(lane);
                    }
                }
                // The buffer changes hands, so that the conversation can read the one and write the other.
                let mut say = std::mem::take(cx.io.outgoing(lane));
                let next = call.talk.hear(cx.now, cx.io.heard(lane), &mut say);
                *cx.io.outgoing(lane) = say;
                match next {
                    // Whoever waits for more from a peer that has closed would wait, and wake, until its deadline.
                    Next::Hear | Next::Say if count == 0 && self.lanes.kind(flight.pool).way == Way::Stream => {
                        let closed = Trouble { leg: Leg::Hear, errno: Errno(libc::ECONNRESET) };
                        Next::Over(call.talk.on_trouble(closed))
                    }
                    next => next,
                }
            }
            Err(trouble) => {
                call.trouble = Some(trouble.errno);
                Next::Over(call.talk.on_trouble(trouble))
            }
        };
        self.on_flight(cx, key, flight::Event::Heard(next));
    }

    pub(super) fn on_deadlines(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let more = self.deadlines.advance(cx.now, super::TIMERS_BATCH, &mut fired);
        for index in fired.drain(..) {
            let (key, flight) = self.flights.at_mut(index).expect("a probe's deadline is disarmed when it ends");
            if let (Some(call), flight::Stage::Talking) = (&mut flight.call, flight.stage) {
                call.on_sign(cx.io, flight.lane);
            }
            let (deadline, patience) = flight.patience.deadline(&flight.progress());
            if deadline > cx.now {
                self.deadlines.arm(index, deadline);
                continue;
            }
            let away = self.stalled - flight.stalled_before + flight.delayed;
            let stalled = away.max(cx.now.since(deadline)) > patience / 2;
            self.on_flight(cx, key, flight::Event::Deadline { stalled });
        }
        self.fired = fired;
        more
    }

    /// Nobody wants to know what comes of it any more.
    pub(super) fn withdraw(&mut self, cx: &mut Cx<'_>, key: Key) {
        if self.flights.get(key).is_some() {
            self.on_flight(cx, key, flight::Event::Withdrawn);
        }
    }

    /// One event of one flight: the transition, and its step.
    fn on_flight(&mut self, cx: &mut Cx<'_>, key: Key, event: flight::Event) {
        let flight = self.flights.get_mut(key).expect("the caller has just looked at it");
        let (stage, step) = flight::on_event(flight.stage, event);
        flight.stage = stage;
        let (target, lane) = (flight.target, flight.lane);
        match step {
            Step::JudgeAndFree(code, errno) => {
                let facts = if flight.look { cx.io.tcp_facts(lane) } else { None };
                let outcome = Outcome { errno, facts, ..Outcome::of(code, flight.started) };
                self.free(cx.now, key);
                self.judge(cx.now, target, outcome);
            }
            Step::JudgeAndHang(finding) => {
                let outcome = outcome_of(cx, flight, &finding, true);
                submit_next(cx, key, flight, Op::Hang { lane, end: finding.end });
                self.deadlines.disarm(key.index);
                self.judge(cx.now, target, outcome);
            }
            Step::GiveUp { late, cancel } => {
                let finding = match &flight.call {
                    Some(call) if call.connected.is_some() => call.talk.at_deadline(),
                    _ => Finding::of(Code::L4Timeout),
                };
                let finding = Finding { code: if late { Code::Late } else { finding.code }, ..finding };
                let outcome = outcome_of(cx, flight, &finding, cancel);
                flight.end = finding.end;
                if cancel {
                    cx.io.cancel(token(cx, key, flight));
                }
                self.deadlines.disarm(key.index);
                self.judge(cx.now, target, outcome);
            }
            Step::Abandon { cancel } => {
                if cancel {
                    cx.io.cancel(token(cx, key, flight));
                }
                self.deadlines.disarm(key.index);
                self.count().abandoned += 1;
            }
            Step::Talk => {
                submit_next(cx, key, flight, Op::Talk { lane });
                if flight.patience.has_phases() {
                    self.deadlines.arm(key.index, flight.patience.deadline(&flight.progress()).0);
                }
            }
            Step::Redial => submit_next(cx, key, flight, Op::Hang { lane, end: End::Reset }),
            Step::Call => {
                flight.op = next_op(flight.op);
                self.call(cx, key);
                let flight = self.flights.get_mut(key).expect("looked at above");
                if flight.patience.has_phases() {
                    self.deadlines.arm(key.index, flight.patience.first(flight.started, cx.now));
                }
            }
            Step::Hang { late } => {
                let end = flight.end;
                submit_next(cx, key, flight, Op::Hang { lane, end });
                self.count().answers_late += u64::from(late);
            }
            Step::Free { late } => {
                self.free(cx.now, key);
                self.count().answers_late += u64::from(late);
            }
            Step::Nothing => {}
            Step::Stale => self.count().completions_stale += 1,
        }
    }

    fn free(&mut self, now: Instant, key: Key) {
        let flight = self.flights.remove(key).expect("the caller has just looked at it");
        if let Some(nets) = &mut self.parts.nets {
            nets.on_end(now, flight.ticket);
        }
        self.deadlines.disarm(key.index);
        self.lanes.give_back(flight.pool, flight.lane.0);
    }
}

impl Call {
    /// Looks whether the connection is made.
    fn on_sign(&mut self, io: &mut dyn Io, lane: Lane) {
        if self.connected.is_none() {
            self.connected = io.connected_at(lane);
        }
    }
}

impl Flight {
    fn progress(&self) -> Progress {
        let call = self.call.as_ref();
        Progress {
            started: self.started,
            called: call.map_or(self.started, |call| call.called),
            connected: call.and_then(|call| call.connected),
            tls: call.and_then(|call| call.talk.tls_at()),
            phase: call.map_or(Phase::Answer, |call| call.talk.phase()),
        }
    }
}

/// What is known of a flight at its verdict. `in_call`: its lane has a connection that the kernel can be asked about.
fn outcome_of(cx: &mut Cx<'_>, flight: &mut Flight, finding: &Finding, in_call: bool) -> Outcome {
    let mut outcome = Outcome { detail: finding.detail, ..Outcome::of(finding.code, flight.started) };
    let Some(call) = &mut flight.call else { return outcome };
    if outcome.detail == Detail::default() {
        outcome.detail = call.talk.detail();
    }
    if call.facts.is_none() && in_call && cx.now.since(call.called) >= SLOW {
        call.facts = cx.io.tcp_facts(flight.lane);
    }
    let us = |at: Option<Instant>| {
        at.map_or(0, |at| u32::try_from(at.since(flight.started).as_micros()).unwrap_or(u32::MAX).max(1))
    };
    outcome.phases =
        Phases { connect_us: us(call.connected), tls_us: us(call.talk.tls_at()), first_byte_us: us(call.first_heard) };
    outcome.errno = call.trouble;
    outcome.connect = call.connected.map(|at| at.since(call.called));
    outcome.facts = call.facts;
    outcome
}

/// The token of a flight's present operation.
fn token(cx: &Cx<'_>, key: Key, flight: &Flight) -> Token {
    cx.token(flight.op, key.generation, key.index)
}

fn next_op(op: u8) -> u8 {
    (op + 1) % Token::OPS_MAX
}

/// Submits a flight's next operation, under a token of its own.
fn submit_next(cx: &mut Cx<'_>, key: Key, flight: &mut Flight, op: Op) {
    flight.op = next_op(flight.op);
    cx.io.submit(token(cx, key, flight), op);
}
