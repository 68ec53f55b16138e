//! Backends that visitors could not reach: for how long each gets none (passive health, outlier ejection).
//! The agents' checks decide whether a backend is up; this bridges the time until they have noticed, and catches what
//! they cannot see. Pure: events and time in, a length out.
//!
//! ```text
//! good ──failure(s)──▶ ejected (2 s) ──time──▶ on trial ──failure──▶ ejected (twice as long, 60 s at most)
//!                                                  └──success──▶ good
//! ```
//! A dial that fails ejects at once; a reset before the first byte may be the visitor's fault as well, so it takes
//! several in a row. Never are more than a share of a service's backends ejected, and if nobody else is left the
//! ejected ones are used: many failures at once say more about the way there than about the backends.

use crate::frame::Reason;
use crate::identity::AgentId;
use ringspan_engine::time::Instant;
use std::collections::HashMap;
use std::time::Duration;

/// When and for how long backends are ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectPolicy {
    /// Dials in a row that fail before a backend is ejected, 1 to 255. Default 1. 0: never.
    pub dials: u8,
    /// Resets before the first byte, in a row, before a backend is ejected. Default 5. 0: never.
    pub resets: u8,
    /// The first ejection; each further one without a success between is twice as long. Default 2 s: an agent's check
    /// finds a dead backend in 3 s.
    pub length: Duration,
    /// The longest ejection. Default 60 s.
    pub length_max: Duration,
    /// Most of a service's healthy backends that are ejected at once, in percent; one always may be. Default 50.
    pub percent_max: u8,
}

impl Default for EjectPolicy {
    fn default() -> Self {
        EjectPolicy {
            dials: 1,
            resets: 5,
            length: Duration::from_secs(2),
            length_max: Duration::from_secs(60),
            percent_max: 50,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    dials: u8,
    resets: u8,
    /// Ejections without a success between.
    ejections: u8,
    until: Option<Instant>,
}

/// Which backend: the session of the agent that has it, and its number there.
pub type Place = ((AgentId, u64), u16);

/// See the module. Small: only backends with trouble are in it.
#[derive(Clone, Debug, Default)]
pub struct Outliers {
    records: HashMap<Place, Record>,
}

impl Outliers {
    /// Whether there is no trouble anywhere.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether there is anything against this backend.
    pub fn knows(&self, place: &Place) -> bool {
        !self.is_empty() && self.records.contains_key(place)
    }

    /// Whether it is to get no visitors now, unless there is nobody else.
    pub fn is_ejected(&self, place: &Place, now: Instant) -> bool {
        !self.is_empty() && self.records.get(place).and_then(|record| record.until).is_some_and(|until| now < until)
    }

    /// A visitor did not reach it. `peers`: the service's healthy backends, this one among them. Returns how long it is
    /// ejected, if it is now.
    pub fn on_failure(
        &mut self,
        now: Instant,
        place: Place,
        reason: Reason,
        policy: &EjectPolicy,
        peers: &[Place],
    ) -> Option<Duration> {
        let ejected = peers.iter().filter(|peer| self.is_ejected(peer, now)).count();
        if !self.records.contains_key(&place) {
            // The agent has come anew: its older sessions' backends get no visitors any more.
            let (agent, session) = place.0;
            self.records.retain(|((of, older), _), _| *of != agent || *older >= session);
        }
        let record = self.records.entry(place).or_default();
        let (count, limit) =
            if reason.is_dial() { (&mut record.dials, policy.dials) } else { (&mut record.resets, policy.resets) };
        *count = count.saturating_add(1);
        let is_full = ejected > 0 && (ejected + 1) * 100 > peers.len() * usize::from(policy.percent_max);
        // Failures of visitors that were sent before it was ejected say nothing new.
        let is_old = record.until.is_some_and(|until| now < until);
        if limit == 0 || *count < limit || is_full || is_old {
            return None;
        }
        let length = policy.length.saturating_mul(1 << record.ejections.min(16)).min(policy.length_max);
        (record.dials, record.resets) = (0, 0);
        record.ejections = record.ejections.saturating_add(1);
        record.until = Some(now + length);
        Some(length)
    }

    /// A visitor reached it: its failures were not in a row, and its trial is over.
    pub fn on_success(&mut self, now: Instant, place: &Place) {
        // While it is ejected it may have been reached by a visitor of before.
        if self.records.get(place).is_some_and(|record| record.until.is_none_or(|until| until <= now)) {
            self.records.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PublicKey;

    fn agent() -> AgentId {
        AgentId::of(&PublicKey::from_bytes([7; 32]))
    }

    fn place(backend: u16) -> Place {
        ((agent(), 1), backend)
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn peers(n: u16) -> Vec<Place> {
        (0..n).map(place).collect()
    }

    /// A failed dial ejects at once, each time twice as long up to the maximum; a success after the trial forgives all.
    #[test]
    fn ejections_grow_and_are_forgiven() {
        let (mut outliers, policy, peers) = (Outliers::default(), EjectPolicy::default(), peers(4));
        let mut now = at(1);
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            assert!(!outliers.is_ejected(&place(0), now));
            let length = outliers.on_failure(now, place(0), Reason::DialRefused, &policy, &peers);
            assert_eq!(length, Some(Duration::from_secs(seconds)));
            // Those that were on their way say nothing new, in good or bad.
            assert_eq!(outliers.on_failure(now, place(0), Reason::DialRefused, &policy, &peers), None);
            outliers.on_success(now, &place(0));
            now = now + Duration::from_secs(seconds - 1);
            assert!(outliers.is_ejected(&place(0), now) && !outliers.is_ejected(&place(1), now));
            now = now + Duration::from_secs(1);
        }
        outliers.on_success(now, &place(0));
        assert!(outliers.is_empty());
        let length = outliers.on_failure(now, place(0), Reason::DialTimeout, &policy, &peers);
        assert_eq!(length, Some(policy.length));
        // A new session begins without a past.
        outliers.on_failure(now, ((agent(), 2), 0), Reason::DialTimeout, &policy, &peers);
        assert!(!outliers.knows(&place(0)) && outliers.knows(&((agent(), 2), 0)));
    }

    /// Resets count only in a row; a limit of 0 never ejects.
    #[test]
    fn resets_count_in_a_row() {
        let (mut outliers, policy, peers) = (Outliers::default(), EjectPolicy::default(), peers(4));
        let reset = |outliers: &mut Outliers, policy: &EjectPolicy| {
            outliers.on_failure(at(1), place(2), Reason::SocketReset, policy, &peers)
        };
        for _ in 0..3 {
            for _ in 0..4 {
                assert_eq!(reset(&mut outliers, &policy), None);
            }
            outliers.on_success(at(1), &place(2));
        }
        for _ in 0..4 {
            assert_eq!(reset(&mut outliers, &policy), None);
        }
        assert_eq!(reset(&mut outliers, &policy), Some(policy.length));
        let never = EjectPolicy { dials: 0, resets: 0, ..policy };
        let mut outliers = Outliers::default();
        for _ in 0..300 {
            assert_eq!(reset(&mut outliers, &never), None);
            assert_eq!(outliers.on_failure(at(1), place(2), Reason::DialRefused, &never, &peers), None);
        }
    }

    /// No more than the share is ejected at once, but one always may be.
    #[test]
    fn the_share_is_kept() {
        for (n, percent, expected) in [(1u16, 50, 1), (2, 50, 1), (4, 50, 2), (10, 10, 1), (10, 100, 10), (3, 0, 1)] {
            let (mut outliers, peers) = (Outliers::default(), peers(n));
            let policy = EjectPolicy { percent_max: percent, ..EjectPolicy::default() };
            for backend in 0..n {
                outliers.on_failure(at(1), place(backend), Reason::DialRefused, &policy, &peers);
            }
            let ejected = (0..n).filter(|b| outliers.is_ejected(&place(*b), at(2))).count();
            assert_eq!(ejected, expected, "{n} backends, {percent} %");
        }
    }
}
