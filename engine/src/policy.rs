//! How often a target is probed, how long it may take, and how many outcomes change what is believed of it.
//! Owns what can be asked for, its ranges and its defaults. What becomes of it: `probe/rhythm.rs` (when),
//! [`health`](crate::health) (how many), `probe/damping.rs` (flapping).

use crate::health::Thresholds;
use std::net::IpAddr;
use std::time::Duration;

/// How often, how long, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From the start of one probe to the start of the next. 100 ms to 1 h in whole milliseconds (rounded up),
    /// default 1 s (probe) or 5 s (registry).
    pub interval: Duration,
    /// A probe that has not come out by then has failed. 1 ms to 60 s in whole milliseconds (rounded up), default 1 s.
    /// May be longer than the interval:
    /// slots that come due while a probe is in flight are skipped and counted as missed.
    pub timeout: Duration,
    /// Rise and fall.
    pub thresholds: Thresholds,
    /// While outcomes speak against what is believed, and before anything is believed: come back sooner, so that a
    /// change is found or dismissed sooner. Range as `interval`. Default `None`: as `interval`.
    pub interval_fast: Option<Duration>,
    /// While the target is down and nothing speaks against it. Range as `interval`. Default `None`: as `interval`.
    pub interval_down: Option<Duration>,
    /// Each slot is moved by up to so many percent of the interval, either way, 0 to 50, drawn anew each time. Default
    /// 0: the slots of a target keep their distance, and its phase alone (hashed from key and address) spreads targets.
    pub jitter_percent: u8,
    /// Patience of single phases; what is `None` has the whole `timeout`, which ends every probe.
    pub timeouts: Timeouts,
    /// A target that stays down is probed more and more rarely: the interval doubles with each further failure up to
    /// this many times the interval, 1 to 64. Default 1: off.
    pub backoff_max: u8,
    /// Hold a flapping target down. Default `None`.
    pub damping: Option<Damping>,
    /// Nacos' adaptive interval in place of `interval`, `interval_fast` and `interval_down`. Default `None`.
    pub adaptive: Option<Adaptive>,
    /// A refusal turns a target down at once, as Nacos has it (checkFailNow), whatever `fall` says; which outcomes are one
    /// is the check's to say ([`Check::is_final`](crate::check::Check::is_final)). Default false.
    pub refusal_is_final: bool,
    /// Header that goes before everything else on a talking check's connection. Default `None`.
    pub proxy: Option<Proxy>,
    /// Local address to probe from, of the target's family. Default `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Probe this port instead of the target's own. Default `None`.
    pub port: Option<u16>,
}

/// Timeouts of single phases, each within the policy's whole timeout, same range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the start until the connection is made.
    pub connect: Option<Duration>,
    /// From the connection until the TLS handshake is over.
    pub tls: Option<Duration>,
    /// From there until the verdict.
    pub answer: Option<Duration>,
}

/// Flap damping as routers have it (RFC 2439): each transition adds 1000 to a penalty that halves every `half_life`;
/// above `suppress` the target is held down until the penalty is below `reuse`. The penalty is looked at with each
/// outcome, and is never more than four times `suppress`: a target that has flapped for a day is not held for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damping {
    /// Time in which the penalty halves, 1 s to 1 h.
    pub half_life: Duration,
    /// Above it the target is held down, 1000 to 60000.
    pub suppress: u16,
    /// Below it the target is believed again, 1 to `suppress` - 1.
    pub reuse: u16,
}

/// Nacos' interval (`HealthCheckTaskV2`, `SwitchDomain.HealthParams`): a weighted mean of the check's round trips, held
/// between two ends, in whole milliseconds rounded down:
///
/// ```text
/// normalized = clamp(factor x normalized + (1 - factor) x rt, min, max)
/// rt         = the round trip | 2 x normalized after a timeout, HTTP 503 or 302 | failed after any other failure
/// ```
/// It begins at 2000 + random(0..random(0..5000)) ms, drawn for each target. Two things are otherwise than in Nacos: a
/// new interval acts at once (there, one probe late), and first probes are spread over `min` (there, all at once).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// Shortest interval. Range as `interval`.
    pub min: Duration,
    /// Longest interval. `min` to 1 h.
    pub max: Duration,
    /// Weight of the old mean, thousandths, 0 to 1000.
    pub factor_permille: u16,
    /// The round trip that a failure stands for which is not a timeout. Range as `interval`; may be above `max`.
    pub failed: Duration,
}

impl Adaptive {
    /// Nacos' figures for TCP checks.
    pub const NACOS_TCP: Adaptive = Adaptive {
        min: Duration::from_millis(1000),
        max: Duration::from_millis(5000),
        factor_permille: 750,
        failed: Duration::from_millis(5000),
    };
    /// Nacos' figures for HTTP checks.
    pub const NACOS_HTTP: Adaptive = Adaptive {
        min: Duration::from_millis(500),
        max: Duration::from_millis(5000),
        factor_permille: 850,
        failed: Duration::from_millis(5000),
    };
    /// Nacos' figures for MySQL checks. An SQL error stands for the HTTP checks' longest interval there.
    pub const NACOS_MYSQL: Adaptive = Adaptive {
        min: Duration::from_millis(2000),
        max: Duration::from_millis(3000),
        factor_permille: 650,
        failed: Duration::from_millis(5000),
    };
}

/// A PROXY protocol header for a connection that carries nobody's traffic (proxy-protocol.txt, section 2.2: LOCAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proxy {
    /// `PROXY UNKNOWN`.
    V1,
    /// Version 2, command LOCAL.
    V2,
}

/// The shortest interval a policy may ask for: a tenth of a second is 10 probes a second for one target; whoever
/// wants more wants a benchmark.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest interval.
pub const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The shortest timeout: one tick of the wheel.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// The longest timeout.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(TIMEOUT_MAX.as_millis() <= u16::MAX as u128, "a target keeps its timeout in 16 bits");
const _: () = assert!(INTERVAL_MAX.as_millis() <= u32::MAX as u128, "a target keeps its interval in 32 bits");

/// A policy that asks for what the engine does not do: which key, what it says, what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: must be from {low} to {high}")]
pub struct PolicyError {
    /// The field's name; of a part, `damping.half_life`.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// The least it may say.
    pub low: String,
    /// The most.
    pub high: String,
}

/// Longest back-off, in intervals.
pub const BACKOFF_MAX: u8 = 64;
/// Most jitter, percent: more, and slots would change places.
pub const JITTER_PERCENT_MAX: u8 = 50;
/// Shortest half-life of a penalty.
pub const HALF_LIFE_MIN: Duration = Duration::from_secs(1);
/// Longest half-life of a penalty.
pub const HALF_LIFE_MAX: Duration = Duration::from_secs(3600);
/// Least penalty that can suppress: that of one transition.
pub const SUPPRESS_MIN: u16 = 1000;
/// Most penalty that suppression can be made to wait for.
pub const SUPPRESS_MAX: u16 = 60_000;

struct Ms(Duration);

impl std::fmt::Display for Ms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            d if d.subsec_nanos() == 0 => write!(f, "{}s", d.as_secs()),
            d => write!(f, "{:?}", d),
        }
    }
}

impl Policy {
    /// Every second, one second's patience, rise 2, fall 3.
    pub const DEFAULT: Policy = Policy {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        thresholds: Thresholds::DEFAULT,
        interval_fast: None,
        interval_down: None,
        jitter_percent: 0,
        timeouts: Timeouts { connect: None, tls: None, answer: None },
        backoff_max: 1,
        damping: None,
        adaptive: None,
        refusal_is_final: false,
        proxy: None,
        source: None,
        port: None,
    };

    /// Whether the engine will do exactly this. One that fails is done as far as possible: clamped into the range.
    ///
    /// # Errors
    /// [`PolicyError`] naming the key and its range, for whoever wrote the configuration.
    pub fn check(&self) -> Result<(), PolicyError> {
        let interval = |key, value| within(key, value, INTERVAL_MIN, INTERVAL_MAX);
        let timeout = |key, value| within(key, value, TIMEOUT_MIN, TIMEOUT_MAX);
        interval("interval", Some(self.interval))?;
        timeout("timeout", Some(self.timeout))?;
        interval("interval_fast", self.interval_fast)?;
        interval("interval_down", self.interval_down)?;
        numbered("jitter_percent", self.jitter_percent, 0, JITTER_PERCENT_MAX)?;
        timeout("timeouts.connect", self.timeouts.connect)?;
        timeout("timeouts.tls", self.timeouts.tls)?;
        timeout("timeouts.answer", self.timeouts.answer)?;
        numbered("backoff_max", self.backoff_max, 1, BACKOFF_MAX)?;
        if let Some(damping) = self.damping {
            within("damping.half_life", Some(damping.half_life), HALF_LIFE_MIN, HALF_LIFE_MAX)?;
            numbered("damping.suppress", damping.suppress, SUPPRESS_MIN, SUPPRESS_MAX)?;
            numbered("damping.reuse", damping.reuse, 1, damping.suppress - 1)?;
        }
        if let Some(adaptive) = self.adaptive {
            interval("adaptive.min", Some(adaptive.min))?;
            within("adaptive.max", Some(adaptive.max), adaptive.min, INTERVAL_MAX)?;
            numbered("adaptive.factor_permille", adaptive.factor_permille, 0, 1000)?;
            interval("adaptive.failed", Some(adaptive.failed))?;
        }
        numbered("port", self.port.unwrap_or(1), 1, u16::MAX)
    }
}

fn within(key: &'static str, value: Option<Duration>, low: Duration, high: Duration) -> Result<(), PolicyError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            let [value, low, high] = [value, low, high].map(|time| Ms(time).to_string());
            Err(PolicyError { key, value, low, high })
        }
        _ => Ok(()),
    }
}

fn numbered<N: Into<u64>>(key: &'static str, value: N, low: N, high: N) -> Result<(), PolicyError> {
    let [value, low, high] = [value.into(), low.into(), high.into()];
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let [value, low, high] = [value, low, high].map(|number| number.to_string());
    Err(PolicyError { key, value, low, high })
}

impl Default for Policy {
    fn default() -> Self {
        Policy::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy out of range is named with its range; both ends of the range are inside.
    #[test]
    fn a_bad_policy_is_named() {
        let policy = |interval, timeout| Policy { interval, timeout, ..Policy::DEFAULT };
        assert_eq!(policy(INTERVAL_MIN, TIMEOUT_MAX).check(), Ok(()));
        assert_eq!(policy(INTERVAL_MAX, TIMEOUT_MIN).check(), Ok(()));
        let says = |policy: Policy| policy.check().expect_err("out of range").to_string();
        assert_eq!(says(policy(Duration::from_millis(5), TIMEOUT_MIN)), "interval = 5ms: must be from 100ms to 3600s");
        assert_eq!(says(policy(INTERVAL_MIN, Duration::from_secs(61))), "timeout = 61s: must be from 1ms to 60s");
    }

    /// Every field has a check of its own, which names it and its range.
    #[test]
    fn every_field_is_checked() {
        let (short, long) = (Some(Duration::from_millis(99)), Some(Duration::from_secs(3601)));
        let damping = Damping { half_life: HALF_LIFE_MIN, suppress: SUPPRESS_MIN, reuse: 999 };
        let adaptive = Adaptive::NACOS_HTTP;
        type Change = Box<dyn Fn(&mut Policy)>;
        let table: Vec<(Change, &str)> = vec![
            (Box::new(move |p| p.interval_fast = short), "interval_fast = 99ms: must be from 100ms to 3600s"),
            (Box::new(move |p| p.interval_down = long), "interval_down = 3601s: must be from 100ms to 3600s"),
            (Box::new(|p| p.jitter_percent = 51), "jitter_percent = 51: must be from 0 to 50"),
            (Box::new(|p| p.timeouts.connect = Some(Duration::ZERO)), "timeouts.connect = 0s: must be from 1ms to 60s"),
            (Box::new(move |p| p.timeouts.tls = long), "timeouts.tls = 3601s: must be from 1ms to 60s"),
            (Box::new(move |p| p.timeouts.answer = long), "timeouts.answer = 3601s: must be from 1ms to 60s"),
            (Box::new(|p| p.backoff_max = 0), "backoff_max = 0: must be from 1 to 64"),
            (Box::new(|p| p.backoff_max = 65), "backoff_max = 65: must be from 1 to 64"),
            (
                Box::new(move |p| p.damping = Some(Damping { half_life: Duration::ZERO, ..damping })),
                "damping.half_life = 0s: must be from 1s to 3600s",
            ),
            (
                Box::new(move |p| p.damping = Some(Damping { suppress: 0, ..damping })),
                "damping.suppress = 0: must be from 1000 to 60000",
            ),
            (
                Box::new(move |p| p.damping = Some(Damping { reuse: 1000, ..damping })),
                "damping.reuse = 1000: must be from 1 to 999",
            ),
            (
                Box::new(move |p| p.adaptive = Some(Adaptive { min: Duration::ZERO, ..adaptive })),
                "adaptive.min = 0s: must be from 100ms to 3600s",
            ),
            (
                Box::new(move |p| p.adaptive = Some(Adaptive { max: Duration::from_millis(400), ..adaptive })),
                "adaptive.max = 400ms: must be from 500ms to 3600s",
            ),
            (
                Box::new(move |p| p.adaptive = Some(Adaptive { factor_permille: 1001, ..adaptive })),
                "adaptive.factor_permille = 1001: must be from 0 to 1000",
            ),
            (
                Box::new(move |p| p.adaptive = Some(Adaptive { failed: Duration::ZERO, ..adaptive })),
                "adaptive.failed = 0s: must be from 100ms to 3600s",
            ),
            (Box::new(|p| p.port = Some(0)), "port = 0: must be from 1 to 65535"),
        ];
        let well = Policy { damping: Some(damping), adaptive: Some(adaptive), port: Some(1), ..Policy::DEFAULT };
        assert_eq!(well.check(), Ok(()));
        for (change, says) in table {
            let mut policy = well;
            change(&mut policy);
            assert_eq!(policy.check().expect_err(says).to_string(), says);
        }
    }
}
