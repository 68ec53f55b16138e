//! How far away the peer of a carrier is, from its answers to PING.
//! Promise: the shortest answer of the last 10 to 20 seconds, so that a PING that waited behind bulk does not count
//! while one that did not is remembered, and a route that became longer is noticed. Pure.

use ringspan_engine::time::Instant;
use std::time::Duration;

/// Half of how long a sample is remembered.
const PERIOD: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    /// The latest question; only its answer counts.
    asked: Option<(u32, Instant)>,
    cookie: u32,
    /// The best of the current period and of the one before.
    best: [Option<Duration>; 2],
    /// When the current period began.
    since: Option<Instant>,
}

impl RoundTrip {
    /// Asks now; returns the cookie.
    pub(super) fn on_asked(&mut self, now: Instant) -> u32 {
        self.cookie = self.cookie.wrapping_add(1);
        self.asked = Some((self.cookie, now));
        self.cookie
    }

    /// An answer came. One to an older question, or to none, says nothing.
    pub(super) fn on_answered(&mut self, cookie: u32, now: Instant) {
        let Some((_, at)) = self.asked.take_if(|asked| asked.0 == cookie) else { return };
        let sample = now.since(at);
        if self.since.is_none_or(|since| now.since(since) >= PERIOD) {
            self.since = Some(now);
            self.best = [None, self.best[0]];
        }
        self.best[0] = Some(self.best[0].map_or(sample, |best| best.min(sample)));
    }

    /// The round trip; 0 before the first answer.
    pub(super) fn get(&self) -> Duration {
        self.best.into_iter().flatten().min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    /// The shortest answer counts until it is 10 to 20 s old; late, old and invented answers count for nothing.
    #[test]
    fn the_shortest_recent_answer_counts() {
        let mut trip = RoundTrip::default();
        assert_eq!(trip.get(), Duration::ZERO);
        let mut sample = |asked: u64, took: u64| {
            let cookie = trip.on_asked(at(asked));
            trip.on_answered(cookie.wrapping_add(1), at(asked + 1));
            trip.on_answered(cookie, at(asked + took));
            trip.on_answered(cookie, at(asked + took + 500));
            trip.get().as_millis()
        };
        let rows = [(0, 200, 200), (1000, 900, 200), (9_000, 300, 200), (11_000, 400, 200), (22_000, 500, 400)];
        for (asked, took, want) in rows {
            assert_eq!(sample(asked, took), want, "asked at {asked}");
        }
        let old = trip.on_asked(at(30_000));
        let new = trip.on_asked(at(30_100));
        trip.on_answered(old, at(30_101));
        assert_eq!(trip.get().as_millis(), 400);
        trip.on_answered(new, at(30_110));
        assert_eq!(trip.get().as_millis(), 10);
    }
}
