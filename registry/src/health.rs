//! What is believed of an instance, and why; and how long an ephemeral one lives without beats.
//! Promise: small values, copied freely; never part of a stored record.
//! Pure: no socket, no clock.

use crate::model::Metadata;
pub use ringspan_engine::health::Health;
use ringspan_engine::outcome::Code;
use ringspan_engine::time::Instant;
use std::fmt;
use std::time::Duration;

/// Why we believe what we believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody has looked yet.
    Unseen,
    /// The instance said so when it registered or beat.
    Beat,
    /// The instance's client says so, and is connected.
    Connected,
    /// No beat for the instance's timeout.
    BeatLate,
    /// A probe came out so.
    Probe {
        /// The outcome that decided.
        code: Code,
        /// The errno behind it, 0 if none.
        errno: i32,
    },
    /// Somebody set it; the cluster's checker is NONE.
    Manual,
    /// The agent that could tell is not connected.
    AgentGone,
    /// Several agents answer to the name that was given.
    AgentTwice,
    /// The agent's configuration does not let it look there.
    Denied,
    /// The agent cannot look: it has enough to look at, is of an older version, or has no such check.
    Unable,
}

impl Reason {
    /// The short name in logs, JSON and metrics: a probe's code, or a word of the registry's own.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Unseen => "UNSEEN",
            Reason::Beat => "BEAT",
            Reason::Connected => "CONNECTED",
            Reason::BeatLate => "BEATLATE",
            Reason::Probe { code, .. } => code.as_str(),
            Reason::Manual => "MANUAL",
            Reason::AgentGone => "AGENTGONE",
            Reason::AgentTwice => "AGENTTWICE",
            Reason::Denied => "DENIED",
            Reason::Unable => "UNABLE",
        }
    }

    /// One sentence for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Reason::Unseen => "Nobody has looked yet.",
            Reason::Beat => "The instance said so itself.",
            Reason::Connected => "Its client says so, and is connected.",
            Reason::BeatLate => "No beat within the instance's timeout.",
            Reason::Probe { code, .. } => code.sentence(),
            Reason::Manual => "It was set by hand; the cluster has no checker.",
            Reason::AgentGone => "The agent that could tell is not connected.",
            Reason::AgentTwice => "Several agents answer to that name; give the digits behind it, too.",
            Reason::Denied => "The agent's configuration does not let it look there: see its [checks] allow.",
            Reason::Unable => "The agent cannot look: it is of an older version, or has as much to look at as it may.",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is believed of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthRecord {
    /// The belief.
    pub health: Health,
    /// Why.
    pub reason: Reason,
    /// Since when `health` is what it is, on the registry's clock.
    pub since: Instant,
    /// How long the deciding probe took, nanoseconds; 0 if none did.
    pub rtt_ns: u64,
    /// When the deciding probe was due, on the registry's clock; `None` if none decided. An agent's is known to the
    /// millisecond, and without the way here.
    pub due: Option<Instant>,
}

impl HealthRecord {
    /// Nobody has looked yet.
    pub const fn unseen(now: Instant) -> HealthRecord {
        HealthRecord { health: Health::Unknown, reason: Reason::Unseen, since: now, rtt_ns: 0, due: None }
    }

    /// The record after hearing this; `since` moves only if the belief does.
    #[must_use]
    pub fn heard(self, now: Instant, health: Health, reason: Reason, rtt_ns: u64) -> HealthRecord {
        let since = if health == self.health { self.since } else { now };
        HealthRecord { health, reason, since, rtt_ns, due: None }
    }
}

/// The word for a belief, in JSON and metrics.
pub const fn health_str(health: Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Up => "up",
        Health::Down => "down",
    }
}

/// Metadata key: milliseconds between beats.
pub const BEAT_INTERVAL_KEY: &str = "preserved.heart.beat.interval";
/// Metadata key: milliseconds without a beat before unhealthy.
pub const BEAT_TIMEOUT_KEY: &str = "preserved.heart.beat.timeout";
/// Metadata key: milliseconds without a beat before removal.
pub const DELETE_TIMEOUT_KEY: &str = "preserved.ip.delete.timeout";
/// The shortest of these times that is honoured: a tenth of a second, so that a typo cannot make every instance flap.
const BEAT_MIN: Duration = Duration::from_millis(100);
/// The longest: a day, so that a typo cannot make a dead instance immortal.
const BEAT_MAX: Duration = Duration::from_secs(24 * 3600);

/// An ephemeral instance's patience, from its metadata; Nacos' defaults otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeatTimes {
    /// From beat to beat. Default 5 s; the client is told in the answer to each beat.
    pub interval: Duration,
    /// Without a beat for this long it is unhealthy. Default 15 s.
    pub timeout: Duration,
    /// Without a beat for this long it is removed. Default 30 s; never before `timeout`.
    pub delete: Duration,
}

impl Default for BeatTimes {
    fn default() -> Self {
        BeatTimes {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            delete: Duration::from_secs(30),
        }
    }
}

impl BeatTimes {
    /// What an instance's metadata asks for, held within 100 ms and a day. What is no number is not asked for.
    pub fn of(metadata: &Metadata) -> BeatTimes {
        let default = BeatTimes::default();
        let read = |key, or| {
            let ms = metadata.get(key).and_then(|text| text.trim().parse().ok());
            ms.map_or(or, |ms| Duration::from_millis(ms).clamp(BEAT_MIN, BEAT_MAX))
        };
        let timeout = read(BEAT_TIMEOUT_KEY, default.timeout);
        BeatTimes {
            interval: read(BEAT_INTERVAL_KEY, default.interval),
            timeout,
            delete: read(DELETE_TIMEOUT_KEY, default.delete).max(timeout),
        }
    }

    /// What has become at `now` of an instance whose last beat came at `beat`.
    pub fn fate(self, beat: Instant, now: Instant) -> Fate {
        let silence = now.since(beat);
        if silence >= self.delete {
            Fate::Gone
        } else if silence >= self.timeout {
            Fate::Late { look_again: beat + self.delete }
        } else {
            Fate::Well { look_again: beat + self.timeout }
        }
    }
}

/// What silence has made of an ephemeral instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It beats.
    Well {
        /// When that may have changed.
        look_again: Instant,
    },
    /// It is unhealthy.
    Late {
        /// When it may have to be removed.
        look_again: Instant,
    },
    /// It is to be removed.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_ns(ms * 1_000_000)
    }

    /// Fifteen seconds to unhealthy, thirty to removal, to the millisecond.
    #[test]
    fn fates() {
        let times = BeatTimes::default();
        let beat = at(1_000);
        let well = Fate::Well { look_again: at(16_000) };
        let late = Fate::Late { look_again: at(31_000) };
        let cases =
            [(1_000, well), (15_999, well), (16_000, late), (30_999, late), (31_000, Fate::Gone), (99_999, Fate::Gone)];
        for (now, want) in cases {
            assert_eq!(times.fate(beat, at(now)), want, "at {now} ms");
        }
        assert_eq!(times.fate(beat, at(0)), well, "a clock behind the beat is no silence");
    }

    /// Metadata sets the times, within bounds, and removal never comes before unhealth.
    #[test]
    fn preserved_times() {
        let of = |pairs: &[(&str, &str)]| {
            let times = BeatTimes::of(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
            (times.interval.as_millis(), times.timeout.as_millis(), times.delete.as_millis())
        };
        assert_eq!(of(&[]), (5_000, 15_000, 30_000));
        assert_eq!(
            of(&[(BEAT_INTERVAL_KEY, "1000"), (BEAT_TIMEOUT_KEY, "3000"), (DELETE_TIMEOUT_KEY, "6000")]),
            (1_000, 3_000, 6_000)
        );
        assert_eq!(of(&[(BEAT_TIMEOUT_KEY, "60000")]), (5_000, 60_000, 60_000));
        assert_eq!(of(&[(BEAT_TIMEOUT_KEY, "soon"), (DELETE_TIMEOUT_KEY, "-1")]), (5_000, 15_000, 30_000));
        assert_eq!(of(&[(BEAT_INTERVAL_KEY, "0"), (BEAT_TIMEOUT_KEY, "1")]), (100, 100, 30_000));
    }
}
