//! Whether this prober is well enough to be believed. It hears of every outcome and every start, and says when to
//! freeze: the prober's own sickness must not look like everybody's death (Envoy #28699, Nacos #12068).
//! Pure: `now` comes in.
//!
//! ```text
//! well ──one symptom over its limit──► frozen ──after 5 s, every symptom under a quarter of it──► well
//! ```
//! Symptoms, each a share of what happened in the last 5 s and a number that makes it worth a thought; or half of the
//! last 64 outcomes, so that targets with short intervals are not turned down before the share is reached:
//!
//! - **local**: probes that ended in the prober's own trouble (SOCKERR, LATE). A target that has known nothing else for
//!   more than five probes in a row is not counted: that is a source address or a family that we do not have, for ever;
//! - **late**: slots that this worker came to later than half of the target's timeout, by its own doing. The wait for a
//!   cap that somebody has set is none of it;
//! - **no way**: "unreachable" at once, from several networks: that is said by our own routing or by the next router. One
//!   network that cannot be reached is that network's affair, and what is said of a target that is down is not new.

use crate::outcome::{Code, Fault};
use crate::probe::nets::Net;
use crate::time::Instant;
use std::time::Duration;

/// Shares are taken of the last 5 s: long enough for a small prober to have outcomes, and about as long as a dead target
/// waits for its verdict anyway.
const BUCKETS: usize = 10;
const BUCKET_NS: u64 = 500_000_000;
const WINDOW: Duration = Duration::from_nanos(BUCKETS as u64 * BUCKET_NS);
/// Own trouble: one in five. The rest may well be true, but whose failures these are nobody can say.
const LOCAL: Limit = Limit { permille: 200, least: 5 };
/// Lateness: its 99th percentile, over half the timeout.
const LATE: Limit = Limit { permille: 10, least: 5 };
/// Lateness that every worker has now and then, from turns and ticks, is none, however short a timeout is.
const LATENESS_MIN: Duration = Duration::from_millis(5);
/// No way: one in four,
const NO_WAY: Limit = Limit { permille: 250, least: 5 };
/// from so many networks.
const NETS_MIN: usize = 4;
/// How soon "unreachable" is said by somebody near: no host that had to be asked by ARP or ND first has given up by
/// then (1 s a try: arp(7), retrans_time).
const AT_ONCE: Duration = Duration::from_millis(10);
/// To be well again a symptom's share must be so many times lower.
const RELIEF: u32 = 4;

/// Of the last outcomes, one bit each, so many are enough.
const RECENT_MIN: u32 = u64::BITS / 2;

struct Limit {
    permille: u32,
    least: u32,
}

impl Limit {
    fn is_over(&self, part: u32, all: u32) -> bool {
        part >= self.least && u64::from(part) * 1000 >= u64::from(all) * u64::from(self.permille)
    }

    fn is_relieved(&self, part: u32, all: u32) -> bool {
        u64::from(part) * 1000 * u64::from(RELIEF) < u64::from(all) * u64::from(self.permille) || part == 0
    }
}

/// Why the verdicts are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symptom {
    /// Too many probes end in the prober's own trouble.
    Local,
    /// The worker is too late.
    Late,
    /// Several networks cannot be reached at once.
    NoWay,
}

impl std::fmt::Display for Symptom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Symptom::Local => "probes end in the prober's own trouble",
            Symptom::Late => "the worker comes to its slots too late",
            Symptom::NoWay => "several networks cannot be reached at once",
        })
    }
}

/// The prober's state has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// It has fallen sick.
    Frozen(Symptom),
    /// It is well again, and was sick for so long.
    Thawed(Duration),
}

/// A probe's outcome, as far as the prober's own state is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    pub(crate) code: Code,
    /// From the probe's start.
    pub(crate) rtt: Duration,
    pub(crate) net: Net,
    /// The target is down already.
    pub(crate) is_down: bool,
    /// The target has known nothing but the prober's trouble for long.
    pub(crate) is_always_spoilt: bool,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    outcomes: u32,
    local: u32,
    no_way: u32,
    slots: u32,
    late: u32,
}

/// See the module.
pub(crate) struct Guard {
    is_on: bool,
    buckets: [Bucket; BUCKETS],
    sum: Bucket,
    /// The last outcomes, the latest lowest: own trouble, no way.
    recent_local: u64,
    recent_no_way: u64,
    /// The present bucket, counted from the clock's zero.
    present: u64,
    /// Networks that could not be reached, and the bucket in which each said so last: enough to know "several".
    nets: [(Net, u64); 2 * NETS_MIN],
    frozen_since: Option<Instant>,
    frozen_before: Duration,
    freezes: u64,
}

impl Guard {
    /// A well prober; `is_on`: false for one that is believed whatever happens.
    pub(crate) fn new(is_on: bool) -> Guard {
        Guard {
            is_on,
            buckets: Default::default(),
            sum: Bucket::default(),
            recent_local: 0,
            recent_no_way: 0,
            present: 0,
            nets: Default::default(),
            frozen_since: None,
            frozen_before: Duration::ZERO,
            freezes: 0,
        }
    }

    /// A slot's time has come, and the worker came to it so late.
    pub(crate) fn on_slot(&mut self, now: Instant, lateness: Duration, timeout: Duration) {
        self.roll(now);
        let late = u32::from(lateness > (timeout / 2).max(LATENESS_MIN));
        for bucket in [&mut self.buckets[self.present as usize % BUCKETS], &mut self.sum] {
            bucket.slots += 1;
            bucket.late += late;
        }
    }

    /// A probe came out.
    pub(crate) fn on_outcome(&mut self, now: Instant, sign: Sign) -> Option<Shift> {
        self.roll(now);
        let is_local = sign.code.fault() == Fault::Prober;
        if is_local && sign.is_always_spoilt {
            return self.look(now);
        }
        let has_no_way = sign.code == Code::L4Unreachable && sign.rtt < AT_ONCE && !sign.is_down;
        if has_no_way {
            self.on_no_way(sign.net);
        }
        self.recent_local = self.recent_local << 1 | u64::from(is_local);
        self.recent_no_way = self.recent_no_way << 1 | u64::from(has_no_way);
        for bucket in [&mut self.buckets[self.present as usize % BUCKETS], &mut self.sum] {
            bucket.outcomes += 1;
            bucket.local += u32::from(is_local);
            bucket.no_way += u32::from(has_no_way);
        }
        self.look(now)
    }

    /// Whether the state has changed by now.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Shift> {
        self.roll(now);
        let Bucket { outcomes, local, no_way, slots, late } = self.sum;
        match self.frozen_since {
            None if !self.is_on => None,
            None => {
                let is_recent = |bits: u64| bits.count_ones() >= RECENT_MIN;
                let has_no_way = NO_WAY.is_over(no_way, outcomes) || is_recent(self.recent_no_way);
                let symptom = if LOCAL.is_over(local, outcomes) || is_recent(self.recent_local) {
                    Symptom::Local
                } else if LATE.is_over(late, slots) {
                    Symptom::Late
                } else if has_no_way && self.nets_without_way() >= NETS_MIN {
                    Symptom::NoWay
                } else {
                    return None;
                };
                self.frozen_since = Some(now);
                self.freezes += 1;
                Some(Shift::Frozen(symptom))
            }
            Some(since) => {
                let is_well = now.since(since) >= WINDOW
                    && LOCAL.is_relieved(local, outcomes)
                    && LATE.is_relieved(late, slots)
                    && NO_WAY.is_relieved(no_way, outcomes);
                is_well.then(|| {
                    let lasted = now.since(since);
                    (self.frozen_since, self.frozen_before) = (None, self.frozen_before + lasted);
                    (self.recent_local, self.recent_no_way) = (0, 0);
                    Shift::Thawed(lasted)
                })
            }
        }
    }

    /// When to [`look`](Guard::look) again if nothing happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.frozen_since.map(|_| Instant::from_ns((self.present + 1) * BUCKET_NS))
    }

    /// Whether outcomes against targets must not count now.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen_since.is_some()
    }

    /// How often, and how long in all, up to `now`.
    pub(crate) fn freezes(&self, now: Instant) -> (u64, Duration) {
        let present = self.frozen_since.map_or(Duration::ZERO, |since| now.since(since));
        (self.freezes, self.frozen_before + present)
    }

    fn on_no_way(&mut self, net: Net) {
        let known = self.nets.iter().position(|(known, _)| *known == net);
        let oldest = || (0..self.nets.len()).min_by_key(|place| self.nets[*place].1).expect("there are some");
        self.nets[known.unwrap_or_else(oldest)] = (net, self.present);
    }

    fn nets_without_way(&self) -> usize {
        let begin = (self.present + 1).saturating_sub(BUCKETS as u64);
        self.nets.iter().filter(|(net, at)| *net != Net::default() && *at >= begin).count()
    }

    /// Drops what is older than the window.
    fn roll(&mut self, now: Instant) {
        let present = now.ns() / BUCKET_NS;
        let steps = present.saturating_sub(self.present).min(BUCKETS as u64);
        for step in 1..=steps {
            let place = (self.present + step) as usize % BUCKETS;
            let Bucket { outcomes, local, no_way, slots, late } = std::mem::take(&mut self.buckets[place]);
            self.sum.outcomes -= outcomes;
            self.sum.local -= local;
            self.sum.no_way -= no_way;
            self.sum.slots -= slots;
            self.sum.late -= late;
        }
        self.present = self.present.max(present);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Instant {
        Instant::from_ns((1 << 40) + ms * 1_000_000)
    }

    fn sign(code: Code, net: u8) -> Sign {
        Sign {
            code,
            rtt: Duration::from_micros(50),
            net: Net::of([10, 0, net, 1].into()),
            is_down: false,
            is_always_spoilt: false,
        }
    }

    /// Outcomes 10 ms apart, and each change of state with the number of the outcome that made it.
    fn shifts(signs: &[Sign]) -> Vec<(usize, Shift)> {
        let mut guard = Guard::new(true);
        let shift = |(n, sign): (usize, &Sign)| Some((n, guard.on_outcome(at(n as u64 * 10), *sign)?));
        signs.iter().enumerate().filter_map(shift).collect()
    }

    /// One in five of its own, and five at least; well again when fewer than one in twenty are left in the window.
    #[test]
    fn own_trouble_freezes() {
        let (well, sick) = (sign(Code::L4Ok, 0), sign(Code::SockErr, 0));
        assert_eq!(shifts(&[sick; 4]), [], "four are nothing");
        let frozen = Shift::Frozen(Symptom::Local);
        let sudden: Vec<_> = [vec![well; 600], vec![sick; 100]].concat();
        assert_eq!(shifts(&sudden), [(631, frozen)], "half of the last 64, long before a fifth of the last 5 s");
        assert_eq!(shifts(&[sick; 5]), [(4, frozen)]);
        let few: Vec<_> = (0..2000).map(|n| if n % 6 == 5 { sick } else { well }).collect();
        assert_eq!(shifts(&few), [], "one in six is nothing");
        let many: Vec<_> = (0..2000).map(|n| if n % 4 == 0 { sick } else { well }).collect();
        assert_eq!(shifts(&many), [(16, frozen)]);
        let over: Vec<_> = [vec![sick; 100], vec![well; 2000]].concat();
        let seen = shifts(&over);
        assert!(matches!(seen[..], [(4, Shift::Frozen(_)), (500..=600, Shift::Thawed(_))]), "{seen:?}");
        let timeouts = [sign(Code::L4Timeout, 0); 1000];
        assert_eq!(shifts(&timeouts), [], "targets that fail are no symptom");
    }

    /// Targets that can never be probed from here do not freeze the others for ever.
    #[test]
    fn what_never_works_is_no_symptom() {
        let never = Sign { is_always_spoilt: true, ..sign(Code::SockErr, 0) };
        let mixed: Vec<_> = (0..1000).map(|n| if n % 2 == 0 { never } else { sign(Code::L4Ok, 0) }).collect();
        assert_eq!(shifts(&mixed), []);
    }

    /// A network, or three, that cannot be reached is theirs; four at once are ours; and only when it is said at once.
    #[test]
    fn no_way_at_once_from_several_networks() {
        let from = |nets: u8| -> Vec<_> { (0..200).map(|n| sign(Code::L4Unreachable, n % nets)).collect() };
        assert_eq!(shifts(&from(1)), []);
        assert_eq!(shifts(&from(3)), []);
        assert_eq!(shifts(&from(4)), [(4, Shift::Frozen(Symptom::NoWay))]);
        assert!(matches!(shifts(&from(100))[..], [(4, Shift::Frozen(Symptom::NoWay))]));
        let slow: Vec<_> = from(100).into_iter().map(|sign| Sign { rtt: Duration::from_secs(3), ..sign }).collect();
        assert_eq!(shifts(&slow), []);
        let known: Vec<_> = from(100).into_iter().map(|sign| Sign { is_down: true, ..sign }).collect();
        assert_eq!(shifts(&known), [], "of those that are down it is not new");
        let few: Vec<_> =
            (0..=255).map(|n| sign(if n % 5 == 0 { Code::L4Unreachable } else { Code::L4Ok }, n)).collect();
        assert_eq!(shifts(&few), [], "one in five is theirs");
    }

    /// Late by more than half of the timeout, one slot in a hundred and five at least.
    #[test]
    fn lateness_freezes() {
        for (late_ms, share, frozen) in [(499, 1, false), (501, 200, false), (501, 50, true)] {
            let mut guard = Guard::new(true);
            for n in 0..1000 {
                let lateness = if n % share == 0 { late_ms } else { 0 };
                guard.on_slot(at(n * 5), Duration::from_millis(lateness), TIMEOUT);
                guard.look(at(n * 5));
            }
            assert_eq!(guard.is_frozen(), frozen, "{late_ms} ms, one in {share}");
        }
    }

    /// Nobody is frozen who asked not to be; and time alone thaws.
    #[test]
    fn off_is_off_and_time_thaws() {
        for on in [true, false] {
            let mut guard = Guard::new(on);
            assert_eq!((0..10).filter_map(|_| guard.on_outcome(at(0), sign(Code::Late, 0))).count(), usize::from(on));
            assert_eq!((guard.is_frozen(), guard.next().is_some()), (on, on));
            assert_eq!(guard.look(at(6000)), on.then(|| Shift::Thawed(Duration::from_secs(6))));
            assert_eq!(guard.freezes(at(9000)), (u64::from(on), Duration::from_secs(if on { 6 } else { 0 })));
        }
    }

    proptest! {
        /// The sums are those of the window, whatever gaps there are; and whoever follows `next` is thawed at last.
        #[test]
        fn sums_are_of_the_window(steps in prop::collection::vec((0..3000u64, any::<bool>()), 1..200)) {
            let (mut guard, mut ms, mut seen) = (Guard::new(true), 0, Vec::new());
            for (wait, sick) in steps {
                ms += wait;
                guard.on_outcome(at(ms), sign(if sick { Code::SockErr } else { Code::L4Ok }, 0));
                seen.push((at(ms).ns() / BUCKET_NS, sick));
                let present = at(ms).ns() / BUCKET_NS;
                let within: Vec<_> = seen.iter().filter(|(bucket, _)| bucket + BUCKETS as u64 > present).collect();
                prop_assert_eq!(guard.sum.outcomes as usize, within.len());
                prop_assert_eq!(guard.sum.local as usize, within.iter().filter(|(_, sick)| *sick).count());
            }
            for _ in 0..=BUCKETS {
                let Some(next) = guard.next() else { break };
                guard.look(next);
            }
            prop_assert!(!guard.is_frozen());
        }
    }
}
