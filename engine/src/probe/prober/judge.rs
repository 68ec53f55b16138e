//! What came of a probe: belief, statistics, results, and the target's next slot.

use super::Prober;
use super::flights::SLOW;
use crate::check::{Detail, Phases};
use crate::health::{Health, Held};
use crate::histogram::record;
use crate::io::{Errno, TcpFacts};
use crate::outcome::{Code, Fault};
use crate::probe::flock;
use crate::probe::guard::{self, Sign};
use crate::probe::nets::Net;
use crate::probe::watched::{Climate, News, Ruling, Watched};
use crate::slab::Key;
use crate::target::{Sample, TargetId, Transition};
use crate::time::Instant;
use std::time::Duration;

/// One probe's outcome, as its flight tells it.
pub(super) struct Outcome {
    pub(super) code: Code,
    pub(super) errno: Option<Errno>,
    pub(super) detail: Detail,
    pub(super) started: Instant,
    pub(super) phases: Phases,
    /// How long the connection took to be made, where that is known.
    pub(super) connect: Option<Duration>,
    /// What the kernel measured, where it was asked.
    pub(super) facts: Option<TcpFacts>,
}

impl Outcome {
    /// A code, and when the probe started that came to it.
    pub(super) fn of(code: Code, started: Instant) -> Outcome {
        Outcome {
            code,
            errno: None,
            detail: Detail::default(),
            started,
            phases: Phases::default(),
            connect: None,
            facts: None,
        }
    }
}

impl Prober {
    /// A probe came out.
    pub(super) fn judge(&mut self, now: Instant, target: Key, outcome: Outcome) {
        let Outcome { code, errno, detail, started, phases, .. } = outcome;
        let rtt = now.since(started);
        let watched = self.watched.get_mut(target).expect("a removed target's probe is withdrawn");
        let lateness = started.since(watched.slot);
        let answered = is_answer(code);
        let syn = SynAgain::of(&outcome, rtt);
        let numbers = &mut self.numbers;
        numbers.counters.outcomes[code as usize] += 1;
        numbers.counters.syn_retransmitted += u64::from(syn.count > 0);
        numbers.counters.syn_inferred += u64::from(syn.count > 0 && syn.inferred);
        if answered {
            record(&mut numbers.rtt, rtt);
            self.parts.pace.on_relief();
        } else if errno.is_some_and(is_shortage) && self.parts.pace.on_shortage(now) {
            numbers.counters.pauses += 1;
        }
        let kernel_rtt_us = outcome.facts.map_or(0, |facts| facts.rtt_us);
        let times = [
            (&mut numbers.kernel_rtt, kernel_rtt_us),
            (&mut numbers.connect, phases.connect_us),
            (&mut numbers.tls, phases.tls_us),
            (&mut numbers.first_byte, phases.first_byte_us),
        ];
        for (histogram, us) in times {
            if us > 0 {
                histogram.saturating_record(u64::from(us));
            }
        }
        if watched.group != 0 {
            numbers.on_group(watched.group, code, answered.then_some(rtt));
        }
        watched.set_look(is_slow(code, rtt, watched));
        let sign = Sign {
            code,
            rtt,
            net: Net::of(watched.ip()),
            is_always_spoilt: watched.is_always_spoilt(),
            is_down: watched.health() == Health::Down,
        };
        let shifted = self.parts.guard.on_outcome(now, sign);
        let flock = &self.parts.flock;
        let stood = watched.is_standing();
        let mut alarm = None;
        let climate = if self.parts.guard.is_frozen() {
            Climate::Frozen
        } else if watched.wants_down(code, detail.number) {
            alarm = flock.on_fall(now, watched.interval());
            if flock.holds() { Climate::Hold } else { Climate::Fair }
        } else {
            Climate::Fair
        };
        let Ruling { from, to, held, is_news, streak } =
            watched.on_outcome(now, News { code, number: detail.number, rtt }, climate);
        flock.on_change(stood, watched.is_standing());
        match held {
            Held::Frozen => numbers.counters.frozen += 1,
            Held::Unconfirmed => numbers.counters.held += 1,
            Held::Damped | Held::No => {}
        }
        let id = TargetId::new(self.parts.worker, target);
        let rtt_ns = rtt.as_nanos() as u64;
        let errno = errno.map_or(0, |errno| errno.0);
        let lateness_ns = lateness.as_nanos() as u64;
        if is_news {
            let (key, due) = (watched.key, watched.slot);
            let transition = Transition { id, key, from, to, held, code, errno, detail, rtt_ns, due, streak };
            self.parts.outbox.transition(transition);
        }
        let missed = watched.next_slot(now, code.fault());
        if self.parts.outbox.wants_samples() {
            let (key, health, last) = (watched.key, watched.health(), missed.is_none());
            let syn_retransmits = syn.count;
            let sample = Sample {
                id,
                key,
                code,
                errno,
                rtt_ns,
                lateness_ns,
                detail,
                phases,
                kernel_rtt_us,
                syn_retransmits,
                health,
                held,
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
        self.tell(shifted, alarm);
    }

    /// Looks at what all outcomes together say: of the prober itself, and of all targets.
    pub(super) fn look_around(&mut self, now: Instant) {
        self.looked_at = now;
        let (shifted, alarm) = (self.parts.guard.look(now), self.parts.flock.look(now));
        self.tell(shifted, alarm);
    }

    fn tell(&mut self, shifted: Option<guard::Shift>, alarm: Option<flock::Shift>) {
        let worker = self.parts.worker;
        match shifted {
            Some(guard::Shift::Frozen(symptom)) => {
                tracing::warn!(worker, %symptom, "the prober itself is sick: no failure counts against a target");
            }
            Some(guard::Shift::Thawed(lasted)) => {
                tracing::info!(worker, ?lasted, "the prober is well again: failures count");
            }
            None => {}
        }
        match alarm {
            Some(flock::Shift::Raised { falls, of, within }) => {
                self.numbers.counters.alarms += 1;
                tracing::warn!(falls, of, ?within, "too many targets want to go down at once");
            }
            Some(flock::Shift::Cleared(lasted)) => {
                tracing::info!(?lasted, "no longer do too many targets want to go down at once");
            }
            None => {}
        }
    }
}

/// Whether the kernel is short of something that every probe needs, so that waiting helps. A missing port is not such
/// a thing: ports are counted per destination (net/ipv4/inet_hashtables.c), and other targets may have plenty.
fn is_shortage(errno: Errno) -> bool {
    matches!(errno.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN)
}

/// Whether a code says that the target's host answered, so that the probe's time is a round trip.
fn is_answer(code: Code) -> bool {
    match code {
        Code::L4Timeout | Code::L4Unreachable | Code::L6Timeout | Code::L7Timeout | Code::SockErr | Code::Late => false,
        Code::L4Ok
        | Code::L4Refused
        | Code::L4Reset
        | Code::L6Ok
        | Code::L6Response
        | Code::L6Certificate
        | Code::L7Ok
        | Code::L7OkLogin
        | Code::L7Response
        | Code::L7Status
        | Code::L7Content => true,
    }
}

/// Whether a target's next probe should ask the kernel: this one timed out, took more than half of its time, or as
/// long as a lost SYN makes it take.
fn is_slow(code: Code, rtt: Duration, watched: &Watched) -> bool {
    code.fault() != Fault::Prober && (rtt >= SLOW || rtt > watched.timeout() / 2)
}

/// SYNs that had to be sent again.
struct SynAgain {
    count: u8,
    /// From the time it took, not from the kernel.
    inferred: bool,
}

impl SynAgain {
    /// Where the kernel was not asked the time tells: a connection that took 1, 3, 7, 15 or 31 s and less than 300 ms
    /// more has most likely lost its first 1 to 5 SYNs (RFC 6298: 1 s, doubled each time. Linux 6.5 resends each second
    /// at first, tcp_syn_linear_timeouts: then 3 s mean three, and this says two).
    fn of(outcome: &Outcome, rtt: Duration) -> SynAgain {
        let time = outcome.connect.or(outcome.code.is_up().then_some(rtt));
        let explained = time.map(|time| {
            let steps = [1000, 3000, 7000, 15_000, 31_000].map(Duration::from_millis);
            steps
                .iter()
                .position(|step| (*step..*step + INFERRED_WITHIN).contains(&time))
                .map_or(0, |place| place as u8 + 1)
        });
        match (outcome.facts, time) {
            // A call's segments may be sent again for other reasons: where the connection was quick no SYN was.
            (Some(_), Some(time)) if time < SLOW => SynAgain { count: 0, inferred: false },
            (Some(facts), _) => SynAgain { count: facts.retransmits.min(255) as u8, inferred: false },
            (None, _) => SynAgain { count: explained.unwrap_or(0), inferred: true },
        }
    }
}

/// How much longer than the retransmission timer a connection may take to be explained by it: the longest round trips
/// on Earth.
const INFERRED_WITHIN: Duration = Duration::from_millis(300);
