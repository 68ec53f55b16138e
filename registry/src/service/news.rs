//! What the log says of instances' health: each change at debug; at info the first one after a quiet second, in full, and
//! for all that follow it one line a second with their number and an example. A start with 80,000 instances is a few lines.
//! Pure: `now` comes in.

use crate::health::health_str;
use crate::table::Change;
use ringspan_engine::health::Health;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// At most one line in this time.
const EVERY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HealthNews {
    /// When the last line was written.
    told: Option<Instant>,
    untold: Burst,
}

/// Changes without a line of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Burst {
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) unknown: u64,
    /// The first one that is worst: service, instance and reason.
    example: Option<(Health, String)>,
}

impl HealthNews {
    /// One more change is written down, or counted.
    pub(super) fn tell(&mut self, now: Instant, change: &Change) {
        let Change::Health { service, id, before, after } = change else { return };
        if before.health == after.health {
            return;
        }
        let (was, is, rtt_us) = (health_str(before.health), health_str(after.health), after.rtt_ns / 1_000);
        let reason = &after.reason;
        tracing::debug!(%service, instance = %id, was, is, %reason, rtt_us, "health");
        if self.is_alone(now, after.health, || format!("{service} {id} {is}: {reason}")) {
            tracing::info!(%service, instance = %id, was, is, %reason, rtt_us, "health");
        }
    }

    /// Whether this change has a line of its own.
    fn is_alone(&mut self, now: Instant, is: Health, example: impl FnOnce() -> String) -> bool {
        let is_quiet = self.told.is_none_or(|told| now >= told + EVERY);
        if is_quiet && !self.is_owing() {
            self.told = Some(now);
            return true;
        }
        let Burst { up, down, unknown, example: kept } = &mut self.untold;
        *match is {
            Health::Up => up,
            Health::Down => down,
            Health::Unknown => unknown,
        } += 1;
        let is_worse = |(kept, _): &(Health, String)| is == Health::Down && *kept != Health::Down;
        if kept.as_ref().is_none_or(is_worse) {
            *kept = Some((is, example()));
        }
        false
    }

    /// Whether there are changes that nobody has been told of.
    pub(super) fn is_owing(&self) -> bool {
        self.untold != Burst::default()
    }

    /// What is owed, if it is time.
    pub(super) fn take(&mut self, now: Instant) -> Option<Burst> {
        let is_due = self.is_owing() && self.told.is_none_or(|told| now >= told + EVERY);
        is_due.then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.untold)
        })
    }

    /// Writes down what is owed, if it is time.
    pub(super) fn tell_rest(&mut self, now: Instant) {
        if let Some(Burst { up, down, unknown, example }) = self.take(now) {
            let example = example.map(|(_, text)| text);
            tracing::info!(up, down, unknown, example, "health of more instances");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many change, and for however long: the first is told, then one line a second, and every change is in one.
    #[test]
    fn a_burst_is_a_few_lines() {
        let (mut news, mut lines, mut counted) = (HealthNews::default(), 0, 0u64);
        for n in 0..80_000u64 {
            let now = Instant::ZERO + Duration::from_micros(n * 50);
            let is = if n == 7_000 { Health::Down } else { Health::Up };
            if news.is_alone(now, is, || n.to_string()) {
                (lines, counted) = (lines + 1, counted + 1);
            }
            if let Some(burst) = news.take(now) {
                (lines, counted) = (lines + 1, counted + burst.up + burst.down);
                assert!(burst.down == 0 || burst.example == Some((Health::Down, "7000".into())));
            }
        }
        let end = Instant::ZERO + Duration::from_secs(5);
        let rest = news.take(end).expect("the last ones");
        assert_eq!((lines, counted + rest.up), (4, 80_000), "four seconds, and what came in the last of them");
        assert!(!news.is_owing() && news.take(end + EVERY).is_none());
        assert!(!news.is_alone(end, Health::Down, String::new), "a line was just written");
        assert_eq!(news.take(end + EVERY).expect("it is owed").down, 1);
        assert!(news.is_alone(end + EVERY * 3, Health::Down, String::new), "quiet again");
    }
}
