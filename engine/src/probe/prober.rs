//! The prober of one worker: keeps the schedule, starts what is due within its limits, judges what comes back.
//! Promises: one outcome per probe started, unless its target is removed first; the prober's own trouble never counts
//! against a target; a slot that was missed is counted and never made up for; no more probes in flight, and no more
//! started a second, than the options say. Reads no clock: `now` comes with each call.
//! Uses `watched` (targets), `tcp` (probes), `lanes` (sockets and queues), `pace` (limits), `outbox` (results).

use crate::check::{Detail, Phases};
use crate::health::Held;
use crate::histogram::record;
use crate::io::{Completion, Errno, Event as IoEvent, Lane, Op};
use crate::mailbox::Receiver;
use crate::outcome::Code;
use crate::probe::lanes::{Lanes, Turn};
use crate::probe::names::Names;
use crate::probe::outbox::Outbox;
use crate::probe::pace::Pace;
use crate::probe::tcp::{self, Flight};
use crate::probe::watched::{Stage, Watched};
use crate::resident::{Cx, Next, Resident};
use crate::slab::{Key, Slab};
use crate::stats::{Counters, Numbers};
use crate::target::{Policy, Sample, Target, TargetId, Transition};
use crate::time::Instant;
use crate::token::Token;
use crate::wheel::Wheel;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Probes started in one turn. Connects in one io_uring_enter run one after another, about 5 µs each on loopback, and
/// their answers are looked at afterwards: the batch is an error of the measured round trip. A batch of 4 measures a
/// median of 20 µs where one of 32 measures 160 µs, at the same CPU per probe (bench `probe_cost`, Linux 6.18, AMD
/// EPYC).
const START_BATCH: usize = 4;
/// Commands taken in one turn: about 0.2 ms of work.
const COMMANDS_BATCH: usize = 512;
/// Timers fired in one turn, of each wheel.
const TIMERS_BATCH: usize = 512;
/// A worker that comes this much later than it meant to has stalled: more than its own turns ever take.
const STALL_MIN: Duration = Duration::from_millis(5);
/// The one kind of operation.
const OP_KNOCK: u8 = 0;

/// What a prober is asked to do.
pub(crate) enum Command {
    /// Probe this, under this name.
    Add(Key, Target),
    /// Forget it.
    Remove(Key),
    /// Probe it otherwise from now on.
    Update(Key, Arc<Policy>),
}

/// What a prober is made of.
pub(crate) struct ProberParts {
    /// Which worker.
    pub(crate) worker: u8,
    /// Probes in flight at most, at least 1.
    pub(crate) in_flight_max: u32,
    pub(crate) pace: Pace,
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
    /// All stalls so far, summed up.
    stalled: Duration,
    /// After a stall: how many more turns to only collect answers, before deadlines are believed.
    hold: u32,
    held: bool,
    /// Completions since the last turn.
    answers: u32,
    fired: Vec<u32>,
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
            numbers: Numbers::default(),
            names_freed: Vec::new(),
            promised: None,
            stalled: Duration::ZERO,
            hold: 0,
            held: false,
            answers: 0,
            fired: Vec::new(),
            asked: Vec::new(),
            stopping: false,
            parts,
        }
    }

    /// The numbers as they are now.
    fn numbers(&self) -> Numbers {
        Numbers { counters: self.counters(), ..self.numbers.clone() }
    }

    /// The counters as they are now.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            transitions: self.parts.outbox.transitions_made,
            samples_dropped: self.parts.outbox.samples_dropped,
            targets: u64::from(self.watched.len()),
            in_flight: u64::from(self.flights.len()),
            waiting: self.lanes.waiting() as u64,
            lanes: self.lanes.opened(),
            ..self.numbers.counters.clone()
        }
    }

    fn count(&mut self) -> &mut Counters {
        &mut self.numbers.counters
    }

    // Commands.

    fn take_commands(&mut self, cx: &mut Cx<'_>) -> bool {
        for _ in 0..COMMANDS_BATCH {
            match self.parts.commands.try_recv() {
                Some(Command::Add(key, target)) => self.on_add(cx.now, key, &target),
                Some(Command::Remove(key)) => self.on_remove(cx, key),
                Some(Command::Update(key, policy)) => self.on_update(cx.now, key, &policy),
                None => return false,
            }
        }
        true
    }

    fn on_add(&mut self, now: Instant, key: Key, target: &Target) {
        let watched = Watched::new(target, now);
        let (slot, stage) = (watched.slot, watched.stage);
        let fresh = self.watched.insert_at(key, watched);
        assert!(fresh, "a name is given out once at a time");
        if stage == Stage::Waiting {
            self.schedule.arm(key.index, slot);
        }
    }

    fn on_remove(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some((watched, next)) = self.watched.remove_at(key) else { return };
        self.schedule.disarm(key.index);
        if let Stage::Flying(flight) = watched.stage {
            self.withdraw(cx, flight);
        }
        self.names_freed.push(next);
        // Whoever was due stays in its queue as a name that finds nothing; those must not pile up.
        if self.lanes.waiting() > 2 * self.watched.len() as usize + 1024 {
            let watched = &self.watched;
            self.lanes.retain(|key| watched.get(key).is_some());
        }
    }

    fn on_update(&mut self, now: Instant, key: Key, policy: &Arc<Policy>) {
        let Some(watched) = self.watched.get_mut(key) else { return };
        watched.set_policy(policy);
        if watched.stage == Stage::Waiting {
            watched.slot = watched.first_slot(now);
            self.schedule.arm(key.index, watched.slot);
        }
    }

    fn withdraw(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let (stage, step) = tcp::on_event(flight.stage, tcp::Event::Withdrawn);
        flight.stage = stage;
        if step == tcp::Step::Cancel {
            self.deadlines.disarm(key.index);
            cx.io.cancel(cx.token(OP_KNOCK, key.generation, key.index));
            self.count().abandoned += 1;
        }
    }

    // The schedule.

    fn queue_due(&mut self, now: Instant) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let more = self.schedule.advance(now, TIMERS_BATCH, &mut fired);
        for index in fired.drain(..) {
            let (key, watched) = self.watched.at_mut(index).expect("a target's timer is disarmed when it goes");
            watched.stage = Stage::Due;
            let kind = watched.kind().expect("who is not probed has no slots");
            let mode = if let crate::io::Way::Knock(mode) = kind.way { mode } else { crate::io::Mode::Full };
            self.lanes.on_due(mode, kind.family, key);
        }
        self.fired = fired;
        more
    }

    /// Starts what may start. Returns whether to come back at once: because more may start, and because a probe leaves
    /// only with the next wait. A worker that loses the CPU between the two must see that it has, or the probe's
    /// timeout would pass before its SYN is sent.
    fn start_due(&mut self, cx: &mut Cx<'_>) -> bool {
        let now = cx.now;
        for started in 0..START_BATCH {
            if self.lanes.waiting() == 0 || self.flights.is_full() || self.parts.pace.blocked_until(now).is_some() {
                return started > 0;
            }
            match self.lanes.take(now, cx.io) {
                Turn::Start { target, lane, pool } => self.start(cx, target, lane, pool),
                Turn::Refused { target, errno } => {
                    if self.watched.get(target).is_some() {
                        self.on_started(now, target);
                        self.judge(now, target, now, Code::SockErr, Some(errno));
                    }
                }
                Turn::Nobody => return started > 0,
            }
        }
        true
    }

    fn start(&mut self, cx: &mut Cx<'_>, target: Key, lane: u32, pool: u8) {
        let Some(watched) = self.watched.get_mut(target) else {
            self.lanes.give_back(pool, lane);
            return;
        };
        let timeout = watched.timeout();
        let flight = Flight {
            target,
            started: cx.now,
            stalled_before: self.stalled,
            lane,
            pool,
            stage: tcp::Stage::Flying,
            timeout_ms: timeout.as_millis() as u16,
        };
        let key = self.flights.insert(flight).expect("asked before the turn was taken");
        watched.stage = Stage::Flying(key);
        let to = watched.address();
        self.deadlines.arm(key.index, cx.now + timeout);
        cx.io.submit(cx.token(OP_KNOCK, key.generation, key.index), Op::Knock { lane: Lane(lane), to, look: false });
        self.on_started(cx.now, target);
    }

    fn on_started(&mut self, now: Instant, target: Key) {
        self.parts.pace.on_start(now);
        let slot = self.watched.get(target).expect("the caller has just looked at it").slot;
        let numbers = &mut self.numbers;
        numbers.counters.started += 1;
        record(&mut numbers.lateness, now.since(slot));
    }

    // Outcomes.

    fn on_deadlines(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let more = self.deadlines.advance(cx.now, TIMERS_BATCH, &mut fired);
        for index in fired.drain(..) {
            let (key, flight) = self.flights.at_mut(index).expect("a probe's deadline is disarmed when it ends");
            let timeout = Duration::from_millis(u64::from(flight.timeout_ms));
            let away = self.stalled - flight.stalled_before;
            let stalled = away.max(cx.now.since(flight.started + timeout)) > timeout / 2;
            let (stage, step) = tcp::on_event(flight.stage, tcp::Event::Deadline { stalled });
            flight.stage = stage;
            let (target, started) = (flight.target, flight.started);
            if let tcp::Step::JudgeAndCancel(code) = step {
                cx.io.cancel(cx.token(OP_KNOCK, key.generation, key.index));
                self.judge(cx.now, target, started, code, None);
            }
        }
        self.fired = fired;
        more
    }

    fn on_answer(&mut self, now: Instant, key: Key, answer: Result<(), Errno>) {
        let Some(flight) = self.flights.remove(key) else {
            self.count().completions_stale += 1;
            return;
        };
        self.lanes.give_back(flight.pool, flight.lane);
        match tcp::on_event(flight.stage, tcp::Event::Answer(answer)).1 {
            tcp::Step::Judge(code, errno) => {
                self.deadlines.disarm(key.index);
                self.judge(now, flight.target, flight.started, code, errno);
            }
            tcp::Step::Free { late } => self.count().answers_late += u64::from(late),
            tcp::Step::JudgeAndCancel(_) | tcp::Step::Cancel | tcp::Step::Nothing => {}
        }
    }

    /// A probe came out: belief, statistics, results, and the target's next slot.
    fn judge(&mut self, now: Instant, target: Key, started: Instant, code: Code, errno: Option<Errno>) {
        let rtt = now.since(started);
        let numbers = &mut self.numbers;
        numbers.counters.outcomes[code as usize] += 1;
        if tcp::is_answer(code) {
            record(&mut numbers.rtt, rtt);
            self.parts.pace.on_relief();
        } else if errno.is_some_and(tcp::is_shortage) && self.parts.pace.on_shortage(now) {
            numbers.counters.pauses += 1;
        }
        let watched = self.watched.get_mut(target).expect("a removed target's probe is withdrawn");
        let (from, against) = (watched.verdict.health(), watched.verdict.against());
        let id = TargetId::new(self.parts.worker, target);
        let rtt_ns = rtt.as_nanos() as u64;
        let errno = errno.map_or(0, |errno| errno.0);
        let lateness_ns = started.since(watched.slot).as_nanos() as u64;
        if let Some(to) = watched.verdict.on_outcome(code, watched.thresholds) {
            let (key, streak) = (watched.key, against + 1);
            self.parts.outbox.transition(Transition {
                id,
                key,
                from,
                to,
                held: Held::No,
                code,
                errno,
                detail: Detail::default(),
                rtt_ns,
                streak,
            });
        }
        let missed = watched.next_slot(now, code.fault());
        if self.parts.outbox.wants_samples() {
            let (key, health, last) = (watched.key, watched.verdict.health(), missed.is_none());
            let (detail, phases) = (Detail::default(), Phases::default());
            let sample = Sample {
                id,
                key,
                code,
                errno,
                rtt_ns,
                lateness_ns,
                detail,
                phases,
                kernel_rtt_us: 0,
                syn_retransmits: 0,
                health,
                held: Held::No,
                last,
            };
            self.parts.outbox.sample(now, sample);
        }
        match missed {
            Some(missed) => {
                self.numbers.counters.missed += missed;
                self.schedule.arm(target.index, watched.slot);
            }
            None => self.numbers.counters.ended += 1,
        }
    }

    // Turns.

    /// Takes note of how late this turn is. Returns whether deadlines must not be believed in it: after a stall the
    /// answers that came meanwhile are collected first, some with each wait (io_uring runs about 20 pieces of deferred
    /// work a call: io_uring/io_uring.c, IO_LOCAL_TW_DEFAULT_MAX). Between two such holds deadlines get one turn.
    fn on_lag(&mut self, now: Instant) -> bool {
        let lag = self.promised.map_or(Duration::ZERO, |promised| now.since(promised));
        let answers = std::mem::take(&mut self.answers);
        if lag >= STALL_MIN {
            self.stalled += lag;
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
        let mut next = [self.deadlines.next_expiry(), self.parts.outbox.next(now), None, None];
        if !self.stopping {
            next[2] = self.schedule.next_expiry();
            if self.lanes.waiting() > 0 && !self.flights.is_full() {
                next[3] = self.parts.pace.blocked_until(now).or_else(|| self.lanes.retry_at(now));
            }
        }
        next.into_iter().flatten().min().map_or(Next::Event, Next::At)
    }
}

impl Resident for Prober {
    fn on_start(&mut self, cx: &mut Cx<'_>) {
        self.schedule = Wheel::new(cx.now);
        self.deadlines = Wheel::new(cx.now);
    }

    fn on_completion(&mut self, cx: &mut Cx<'_>, completion: Completion) {
        self.answers += 1;
        let key = Key { index: completion.token.index(), generation: completion.token.generation() };
        match completion.event {
            IoEvent::Knocked(answer) => self.on_answer(cx.now, key, answer),
            event => panic!("the prober only knocks, and was answered {event:?}"),
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
