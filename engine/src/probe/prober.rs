//! The prober of one worker: keeps the schedule, starts what is due within its limits, judges what comes back.
//! Promises: one outcome per probe started, unless its target is removed or changed first; the prober's own trouble
//! never counts against a target; a slot that was missed is counted and never made up for; no more probes in flight, and
//! no more started a second, than the options say. Reads no clock: `now` comes with each call.
//! Owns the turn; `commands` takes orders, `flights` moves probes from start to end, `judge` says what came of them.
//! Uses `watched` (targets), `flight` (a probe's states), `lanes` (sockets and queues), `pace` (limits), `outbox`
//! (results).

mod commands;
mod flights;
mod judge;

pub(crate) use commands::Command;

use crate::io::{Completion, Event as IoEvent};
use crate::mailbox::Receiver;
use crate::probe::flight::Flight;
use crate::probe::flock::Flock;
use crate::probe::guard::Guard;
use crate::probe::lanes::Lanes;
use crate::probe::names::Names;
use crate::probe::nets::Nets;
use crate::probe::outbox::Outbox;
use crate::probe::pace::Pace;
use crate::probe::watched::{Stage, Watched};
use crate::resident::{Cx, Next, Resident};
use crate::slab::{Key, Slab};
use crate::stats::{Counters, Numbers};
use crate::target::TargetId;
use crate::time::Instant;
use crate::token::Token;
use crate::wheel::Wheel;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Timers fired in one turn, of each wheel.
const TIMERS_BATCH: usize = 512;
/// A worker that comes this much later than it meant to has stalled: more than its own turns ever take.
const STALL_MIN: Duration = Duration::from_millis(5);
/// While probes are in flight the prober looks at the clock this often: a stall shows only as a turn that comes later
/// than it was meant to, and one that hides in a long wait would be taken for a peer's slowness. 50 idle turns a second
/// are below a thousandth of a core.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// What a prober is made of.
pub(crate) struct ProberParts {
    /// Which worker.
    pub(crate) worker: u8,
    /// Probes in flight at most, at least 1.
    pub(crate) in_flight_max: u32,
    /// How many groups of targets are counted apart.
    pub(crate) groups: usize,
    pub(crate) pace: Pace,
    /// Caps for each network, if there are any.
    pub(crate) nets: Option<Nets>,
    pub(crate) guard: Guard,
    /// The targets of all workers.
    pub(crate) flock: Arc<Flock>,
    pub(crate) outbox: Outbox,
    pub(crate) commands: Receiver<Command>,
    /// Whoever wants the numbers leaves a return address.
    pub(crate) asks: Receiver<SyncSender<Numbers>>,
    /// Where the numbers stay when the prober has stopped.
    pub(crate) legacy: Arc<ArcSwapOption<Numbers>>,
    pub(crate) names: Arc<Names>,
}

/// See the module.
pub(crate) struct Prober {
    parts: ProberParts,
    watched: Slab<Watched>,
    schedule: Wheel,
    flights: Slab<Flight>,
    deadlines: Wheel,
    lanes: Lanes,
    numbers: Numbers,
    /// Names that found no room on their way back.
    names_freed: Vec<Key>,
    /// When this prober meant to have the floor again.
    promised: Option<Instant>,
    /// How much later than meant it had the floor last.
    lag: Duration,
    /// All stalls so far, summed up.
    stalled: Duration,
    /// After a stall: how many more turns to only collect answers, before deadlines are believed.
    hold: u32,
    held: bool,
    /// Completions since the last turn.
    answers: u32,
    /// When this prober last looked at its own health.
    looked_at: Instant,
    fired: Vec<u32>,
    /// When a prober that is behind may start a few although there is little room.
    gulp_at: Instant,
    released: Vec<Key>,
    /// Who asked for the numbers and waits.
    asked: Vec<SyncSender<Numbers>>,
    stopping: bool,
}

impl Prober {
    /// A prober with nothing to do.
    pub(crate) fn new(parts: ProberParts) -> Prober {
        let in_flight_max = parts.in_flight_max.clamp(1, Token::INDEX_MAX);
        Prober {
            watched: Slab::new(TargetId::TARGETS_MAX),
            schedule: Wheel::new(Instant::ZERO),
            flights: Slab::new(in_flight_max),
            deadlines: Wheel::new(Instant::ZERO),
            lanes: Lanes::new(in_flight_max),
            numbers: Numbers::with_groups(parts.groups),
            names_freed: Vec::new(),
            promised: None,
            lag: Duration::ZERO,
            stalled: Duration::ZERO,
            hold: 0,
            held: false,
            answers: 0,
            looked_at: Instant::ZERO,
            fired: Vec::new(),
            gulp_at: Instant::ZERO,
            released: Vec::new(),
            asked: Vec::new(),
            stopping: false,
            parts,
        }
    }

    /// The numbers as they are now.
    fn numbers(&self) -> Numbers {
        Numbers { counters: self.counters(), ..self.numbers.clone() }
    }

    /// The counters as they were at the last turn.
    pub(crate) fn counters(&self) -> Counters {
        let capped = self.parts.nets.as_ref().map_or(0, Nets::waiting) as u64;
        let (freezes, frozen) = self.parts.guard.freezes(self.looked_at);
        Counters {
            transitions: self.parts.outbox.transitions_made,
            samples_dropped: self.parts.outbox.samples_dropped,
            targets: u64::from(self.watched.len()),
            in_flight: u64::from(self.flights.len()),
            waiting: self.lanes.waiting() as u64 + capped,
            capped,
            lanes: self.lanes.opened(),
            freezes,
            frozen_ns: frozen.as_nanos() as u64,
            workers_frozen: u64::from(self.parts.guard.is_frozen()),
            // There is one alarm for all: the first worker tells it.
            alarm: u64::from(self.parts.worker == 0 && self.parts.flock.is_raised()),
            ..self.numbers.counters.clone()
        }
    }

    fn count(&mut self) -> &mut Counters {
        &mut self.numbers.counters
    }

    /// Those whose slot has come stand in the queues.
    fn queue_due(&mut self, now: Instant) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let more = self.schedule.advance(now, TIMERS_BATCH, &mut fired);
        for index in fired.drain(..) {
            let (key, watched) = self.watched.at_mut(index).expect("a target's timer is disarmed when it goes");
            watched.stage = Stage::Due;
            self.parts.guard.on_slot(now, now.since(watched.slot), watched.timeout());
            self.admit(now, key);
        }
        self.fired = fired;
        more
    }

    /// Takes note of how late this turn is. Returns whether deadlines must not be believed in it: after a stall the
    /// answers that came meanwhile are collected first, some with each wait (io_uring runs about 20 pieces of deferred
    /// work a call: io_uring/io_uring.c, IO_LOCAL_TW_DEFAULT_MAX). Between two such holds deadlines get one turn.
    fn on_lag(&mut self, now: Instant) -> bool {
        self.lag = self.promised.map_or(Duration::ZERO, |promised| now.since(promised));
        let answers = std::mem::take(&mut self.answers);
        if self.lag >= STALL_MIN {
            self.stalled += self.lag;
            self.count().stalls += 1;
            if !self.held {
                self.hold = 2 + self.flights.len() / 16;
            }
        } else if answers == 0 {
            self.hold = 0;
        }
        self.hold = self.hold.saturating_sub(1);
        self.held = self.hold > 0;
        self.held
    }

    fn give_names_back(&mut self) {
        while let Some(key) = self.names_freed.pop() {
            if !self.parts.names.give_back(key) {
                self.names_freed.push(key);
                return;
            }
        }
    }

    fn answer_asks(&mut self) {
        for to in std::mem::take(&mut self.asked) {
            // Who asked may have gone away.
            let _ = to.try_send(self.numbers());
        }
    }

    fn turn(&mut self, cx: &mut Cx<'_>) -> Next {
        let now = cx.now;
        let mut more = self.on_lag(now);
        if !more {
            more = self.on_deadlines(cx);
        }
        // The numbers count every command that was sent before they were asked for.
        self.asked.extend(std::iter::from_fn(|| self.parts.asks.try_recv()));
        if self.take_commands(cx) {
            more = true;
        } else if !self.asked.is_empty() {
            self.answer_asks();
        }
        if !self.stopping {
            self.look_around(now);
            more |= self.release(now);
            more |= self.queue_due(now);
            more |= self.start_due(cx);
        }
        self.parts.outbox.flush(now);
        self.give_names_back();
        if self.stopping && self.flights.is_empty() {
            self.parts.outbox.close(now);
            self.parts.legacy.store(Some(Arc::new(self.numbers())));
            return Next::Done;
        }
        if more {
            return Next::Now;
        }
        let mut next = [None; 9];
        (next[0], next[1]) = (self.deadlines.next_expiry(), self.parts.outbox.next(now));
        if !self.stopping {
            next[2] = self.schedule.next_expiry();
            next[4] = self.parts.nets.as_ref().and_then(Nets::next);
            next[5] = self.parts.guard.next();
            next[6] = self.parts.flock.next(now);
            if self.lanes.waiting() > 0 && !self.flights.is_full() {
                next[3] = self.parts.pace.blocked_until(now).or_else(|| self.lanes.retry_at(now));
                next[8] = (self.gulp_at > now).then_some(self.gulp_at);
            }
        }
        next[7] = (!self.flights.is_empty()).then(|| now + HEARTBEAT);
        next.into_iter().flatten().min().map_or(Next::Event, Next::At)
    }
}

impl Resident for Prober {
    fn on_start(&mut self, cx: &mut Cx<'_>) {
        self.schedule = Wheel::new(cx.now);
        if let Some(nets) = &mut self.parts.nets {
            nets.start(cx.now);
        }
        self.deadlines = Wheel::new(cx.now);
    }

    fn on_completion(&mut self, cx: &mut Cx<'_>, completion: Completion) {
        self.answers += 1;
        let token = completion.token;
        let key = Key { index: token.index(), generation: token.generation() };
        if self.flights.get(key).is_none_or(|flight| flight.op != token.op()) {
            self.count().completions_stale += 1;
            return;
        }
        match completion.event {
            IoEvent::Knocked(answer) => self.on_knocked(cx, key, answer),
            IoEvent::Heard(heard) => self.on_heard(cx, key, heard),
            IoEvent::Hung => self.on_hung(cx, key),
            event => panic!("the prober knocks and calls, and was answered {event:?}"),
        }
    }

    fn on_turn(&mut self, cx: &mut Cx<'_>) -> Next {
        let next = self.turn(cx);
        self.promised = match next {
            Next::Now => Some(cx.now),
            Next::At(at) => Some(at.max(cx.now)),
            Next::Event | Next::Done => None,
        };
        next
    }

    fn on_stop(&mut self, cx: &mut Cx<'_>) {
        self.stopping = true;
        let flying: Vec<Key> = self.flights.keys().collect();
        for key in flying {
            self.withdraw(cx, key);
        }
        self.parts.legacy.store(Some(Arc::new(self.numbers())));
    }
}

#[cfg(test)]
mod tests;
