//! One target as its worker keeps it: compact, because there may be a million.
//!
//! ```text
//! Waiting ──its slot comes──► Due ──started──► Flying ──outcome──► Waiting | Finished
//! ```
//! What is believed of it goes through three hands: rise and fall ([`Verdict`]) make a verdict of outcomes, a flapping
//! target's penalty ([`Damper`]) may hold it down against that verdict, and what comes out is told. When it is probed
//! next is [`rhythm`](crate::probe::rhythm)'s.

use crate::check::Check;
use crate::health::{Health, Held, Thresholds, Verdict};
use crate::io::{Family, LaneKind};
use crate::outcome::{Code, Fault};
use crate::probe::damping::Damper;
use crate::probe::rhythm::{Place, Tempo, mix};
use crate::slab::Key;
use crate::target::{Policy, TIMEOUT_MAX, TIMEOUT_MIN, Target};
use crate::time::Instant;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

/// Where a target is between two probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its next slot is in the schedule.
    Waiting,
    /// Its slot has come and it stands in the due queue.
    Due,
    /// A probe of it is in flight, by this key.
    Flying(Key),
    /// It has had all its probes and is kept until removed.
    Finished,
}

/// See the module.
pub(crate) struct Watched {
    check: Check,
    policy: Arc<Policy>,
    pub(crate) key: u64,
    /// The slot it waits for, is due since, or was last probed for.
    pub(crate) slot: Instant,
    /// What only some policies need.
    memory: Option<Box<Memory>>,
    pub(crate) stage: Stage,
    /// Probes still to make; [`WITHOUT_END`].
    left: u32,
    /// IPv4's in the first four bytes. With the port, scope and `IS_V6`: 23 bytes where a `SocketAddr` has 32.
    ip: [u8; 16],
    scope: u32,
    port: u16,
    /// Which histograms it counts in; 0: none.
    pub(crate) group: u16,
    verdict: Verdict,
    /// What has been told of it.
    told: Health,
    /// Probes in a row that the prober's own trouble spoilt.
    spoilt: u8,
    /// Failures since it was found down.
    failures: u8,
    flags: u8,
}

/// What a damped or adaptive target remembers besides.
#[derive(Default)]
struct Memory {
    damper: Damper,
    is_damped: bool,
    /// It would be up and is held down, and that has been told.
    is_damping_told: bool,
    /// The adaptive interval; 0: not drawn yet.
    normalized_ms: u32,
}

/// The address is IPv6.
const IS_V6: u8 = 1;
/// The next probe asks the kernel what it measured.
const LOOK: u8 = 2;
/// The slot it is due since is none of the schedule's.
const FORCED: u8 = 4;
/// It wants to go down and waits for one more failure.
const UNCONFIRMED: u8 = 8;
/// Its network has made room for its next probe.
const ADMITTED: u8 = 16;

/// No `count`; a count of so many has no end either, nor would it before 13 years are over.
const WITHOUT_END: u32 = u32::MAX;

/// Probes in a row that the prober's own trouble may spoil before one counts as made: whoever asked for one probe gets
/// an answer about the target after a stall of some intervals, and an end where the trouble does not pass.
const EXCUSED_MAX: u8 = 5;
/// Spoilt ones are counted up to here and then from [`EXCUSED_MAX`] + 1 lower again, so that every sixth stays one.
const SPOILT_WRAP: u8 = 252;
const _: () = assert!(SPOILT_WRAP.is_multiple_of(EXCUSED_MAX + 1));

/// With generation, links and all, a target costs its worker 120 bytes (`tests::a_target_costs_120_bytes`).
const _: () = assert!(size_of::<Watched>() <= 96);
const _: () = assert!(size_of::<Option<Watched>>() == size_of::<Watched>());

/// What came of a probe, as far as the belief and the rhythm are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) code: Code,
    /// What the protocol said: an HTTP status.
    pub(crate) number: u32,
    pub(crate) rtt: Duration,
}

/// Whether a failure is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Climate {
    /// Yes.
    Fair,
    /// No: the prober is sick. A success still counts: an answer that came was given, however sick the asker. And a
    /// failure still ends a run of successes, so that nothing is turned up by successes with failures between them.
    Frozen,
    /// Not where it would turn the target down: it needs one more.
    Hold,
}

/// What an outcome made of the belief.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// What was told before.
    pub(crate) from: Health,
    /// What is believed now.
    pub(crate) to: Health,
    /// What kept the outcome from its usual effect.
    pub(crate) held: Held,
    /// To be told: `to` is new, or it is the first time that it is not Up for damping alone.
    pub(crate) is_news: bool,
    /// How many outcomes in a row decided.
    pub(crate) streak: u8,
}

impl Watched {
    /// The target, waiting for its first slot at or after `now`.
    pub(crate) fn new(target: &Target, now: Instant) -> Watched {
        let idle = target.count == Some(0) || target.check.way().is_none();
        let (ip, scope, version) = match target.address {
            SocketAddr::V4(v4) => {
                let mut ip = [0; 16];
                ip[..4].copy_from_slice(&v4.ip().octets());
                (ip, 0, 0)
            }
            SocketAddr::V6(v6) => (v6.ip().octets(), v6.scope_id(), IS_V6),
        };
        let mut watched = Watched {
            check: target.check.clone(),
            policy: target.policy.clone(),
            key: target.key,
            slot: now,
            memory: None,
            stage: if idle { Stage::Finished } else { Stage::Waiting },
            left: target.count.unwrap_or(WITHOUT_END),
            ip,
            scope,
            port: target.address.port(),
            group: target.group,
            verdict: Verdict::new(target.initial),
            told: target.initial,
            spoilt: 0,
            failures: 0,
            flags: version,
        };
        watched.set_policy(&target.policy);
        watched.slot = watched.first_slot(now);
        watched
    }

    /// Takes over another policy; the current slot stays.
    pub(crate) fn set_policy(&mut self, policy: &Arc<Policy>) {
        self.policy = policy.clone();
        if policy.damping.is_none() && policy.adaptive.is_none() {
            self.memory = None;
            return;
        }
        let hash = self.hash();
        let memory = self.memory.get_or_insert_default();
        if policy.damping.is_none() {
            (memory.damper, memory.is_damped, memory.is_damping_told) = Default::default();
        }
        match policy.adaptive {
            Some(adaptive) if memory.normalized_ms == 0 => memory.normalized_ms = adaptive.first_ms(hash),
            Some(_) => {}
            None => memory.normalized_ms = 0,
        }
    }

    /// Takes over another check; the current slot stays.
    pub(crate) fn set_check(&mut self, check: &Check) {
        self.check = check.clone();
    }

    /// Whether it has a check, and probes left to make.
    pub(crate) fn is_to_be_probed(&self) -> bool {
        self.check.way().is_some() && self.left > 0
    }

    /// Its next probe is due now, whatever the schedule says; the ones after keep to the schedule.
    pub(crate) fn force(&mut self, now: Instant) {
        (self.stage, self.slot) = (Stage::Due, now);
        self.flags |= FORCED;
    }

    /// Its steady interval.
    pub(crate) fn interval(&self) -> Duration {
        self.policy.interval
    }

    /// How long a probe of it may take, in whole milliseconds.
    pub(crate) fn timeout(&self) -> Duration {
        let ns = self.policy.timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX).as_nanos() as u64;
        Duration::from_millis(ns.div_ceil(1_000_000))
    }

    /// The host it is on.
    pub(crate) fn ip(&self) -> IpAddr {
        match self.ip {
            ip if self.flags & IS_V6 != 0 => Ipv6Addr::from(ip).into(),
            [a, b, c, d, ..] => Ipv4Addr::new(a, b, c, d).into(),
        }
    }

    /// Where its probes go. An IPv6 flow label is not kept.
    pub(crate) fn address(&self) -> SocketAddr {
        let port = self.policy.port.unwrap_or(self.port);
        match self.ip() {
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope).into(),
            ip => (ip, port).into(),
        }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn check(&self) -> &Check {
        &self.check
    }

    /// Which lanes its probes need; `None`: it is not probed.
    pub(crate) fn kind(&self) -> Option<LaneKind> {
        let family = if self.flags & IS_V6 == 0 { Family::V4 } else { Family::V6 };
        Some(LaneKind { way: self.check.way()?, family, source: self.policy.source })
    }

    /// Whether the next probe shall ask the kernel what it measured.
    pub(crate) fn set_look(&mut self, look: bool) {
        self.set(LOOK, look);
    }

    /// Whether this probe shall, and no longer the next.
    pub(crate) fn take_look(&mut self) -> bool {
        self.take(LOOK)
    }

    /// Its network has made room for its next probe.
    pub(crate) fn set_admitted(&mut self) {
        self.flags |= ADMITTED;
    }

    /// Whether that room must be used or given back: now, for it is not asked again.
    pub(crate) fn take_admitted(&mut self) -> bool {
        self.take(ADMITTED)
    }

    // What is believed.

    /// What is believed of it, as it was told.
    pub(crate) fn health(&self) -> Health {
        self.told
    }

    /// Whether it is up and does not want to go down: one of those that a mass fall is counted among.
    pub(crate) fn is_standing(&self) -> bool {
        self.verdict.health() == Health::Up && self.flags & UNCONFIRMED == 0
    }

    /// Whether this outcome is the one after which it wants to go down.
    pub(crate) fn wants_down(&self, code: Code, number: u32) -> bool {
        let mut verdict = self.verdict;
        self.is_standing() && verdict.on_outcome(code, self.thresholds(code, number)) == Some(Health::Down)
    }

    /// Whether the prober has spoilt its last probes for so long that it must be the target's own affair: a source
    /// address that is not ours, a family that we do not have.
    pub(crate) fn is_always_spoilt(&self) -> bool {
        self.spoilt > EXCUSED_MAX
    }

    fn thresholds(&self, code: Code, number: u32) -> Thresholds {
        match self.policy.thresholds {
            all if self.policy.refusal_is_final && self.check.is_final(code, number) => {
                Thresholds { fall: NonZeroU8::MIN, ..all }
            }
            all => all,
        }
    }

    /// A probe came out.
    pub(crate) fn on_outcome(&mut self, now: Instant, news: News, climate: Climate) -> Ruling {
        let (fault, before) = (news.code.fault(), self.verdict);
        let mut held = Held::No;
        let mut changed = None;
        if fault == Fault::Target && climate == Climate::Frozen && before.health() != Health::Down {
            held = Held::Frozen;
        } else if climate == Climate::Hold && self.wants_down(news.code, news.number) {
            self.verdict.hold();
            self.flags |= UNCONFIRMED;
            held = Held::Unconfirmed;
        } else {
            changed = self.verdict.on_outcome(news.code, self.thresholds(news.code, news.number));
            if changed.is_some() || fault == Fault::Nobody {
                self.set(UNCONFIRMED, false);
            }
        }
        self.failures = match (fault, self.verdict.health()) {
            (Fault::Nobody, _) | (_, Health::Up | Health::Unknown) => 0,
            (Fault::Target, Health::Down) if changed.is_none() => self.failures.saturating_add(1),
            (Fault::Target, Health::Down) => 0,
            (Fault::Prober, Health::Down) => self.failures,
        };
        let mut to = self.verdict.health();
        let mut is_news = false;
        if let Some(memory) = &mut self.memory {
            if let Some(adaptive) = self.policy.adaptive {
                memory.normalized_ms = adaptive.next_ms(memory.normalized_ms, news.code, news.number, news.rtt);
            }
            if let Some(damping) = self.policy.damping {
                let flapped = changed.is_some() && before.health() != Health::Unknown;
                memory.is_damped = memory.damper.on_outcome(now, flapped, damping);
                let is_held_down = memory.is_damped && to == Health::Up && self.told != Health::Up;
                if is_held_down {
                    (to, held) = (Health::Down, Held::Damped);
                }
                is_news = is_held_down && !memory.is_damping_told;
                memory.is_damping_told = memory.is_damped && (memory.is_damping_told || is_held_down);
            }
        }
        let from = std::mem::replace(&mut self.told, to);
        let streak = before.against().saturating_add(1);
        Ruling { from, to, held, is_news: is_news || from != to, streak }
    }

    // When it is probed.

    fn tempo(&self) -> Tempo {
        let normalized_ms = self.memory.as_ref().map(|memory| memory.normalized_ms).filter(|ms| *ms > 0);
        Tempo::of(&self.policy, self.verdict, self.failures, normalized_ms)
    }

    fn hash(&self) -> u64 {
        let ip = u128::from_ne_bytes(self.ip);
        let parts = [ip as u64, (ip >> 64) as u64, u64::from(self.port)];
        mix(parts.into_iter().fold(self.key, |sum, part| mix(sum).wrapping_add(part)))
    }

    fn place(&self) -> Place {
        Place { slot: self.slot, hash: self.hash(), jitter_percent: self.policy.jitter_percent }
    }

    /// The first slot at or after `now`, within one interval.
    pub(crate) fn first_slot(&self, now: Instant) -> Instant {
        self.place().first(self.tempo(), now)
    }

    /// The probe for the current slot came out at `now`: counts it, and moves on to the next slot that has not passed.
    /// A probe that the prober spoilt is not counted, [`EXCUSED_MAX`] times in a row at most. Returns how many slots
    /// were skipped, or `None` if that was the last probe.
    pub(crate) fn next_slot(&mut self, now: Instant, fault: Fault) -> Option<u64> {
        self.spoilt = match (fault, self.spoilt) {
            (Fault::Prober, SPOILT_WRAP..) => SPOILT_WRAP - EXCUSED_MAX,
            (Fault::Prober, spoilt) => spoilt + 1,
            _ => 0,
        };
        let is_excused = !self.spoilt.is_multiple_of(EXCUSED_MAX + 1);
        if self.left != WITHOUT_END && !is_excused {
            self.left -= 1;
            if self.left == 0 {
                self.stage = Stage::Finished;
                return None;
            }
        }
        if self.check.way().is_none() {
            self.stage = Stage::Finished;
            return Some(0);
        }
        self.stage = Stage::Waiting;
        if self.take(FORCED) {
            self.slot = self.first_slot(now);
            return Some(0);
        }
        let (slot, missed) = self.place().next(self.tempo(), now);
        self.slot = slot;
        Some(missed)
    }

    fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    fn take(&mut self, flag: u8) -> bool {
        let was = self.flags & flag != 0;
        self.set(flag, false);
        was
    }
}

#[cfg(test)]
mod tests;
