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
    /// A refusal turns a target down at once, as Nacos has it (checkFailNow), whatever `fall` says. Default false.
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
/// above `suppress` the target is held down until the penalty is below `reuse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damping {
    /// Time in which the penalty halves, 1 s to 1 h.
    pub half_life: Duration,
    /// Above it the target is held down, 1000 to 60000.
    pub suppress: u16,
    /// Below it the target is believed again, 1 to `suppress` - 1.
    pub reuse: u16,
}

/// Nacos' interval: an exponentially weighted mean of the check's round trips, clamped, plus a random part
/// (`HealthCheckTaskV2`, `SwitchDomain.HealthParams`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// Shortest normalised interval.
    pub min: Duration,
    /// Longest normalised interval.
    pub max: Duration,
    /// Weight of the old mean, thousandths, 0 to 1000.
    pub factor_permille: u16,
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

/// A policy that asks for what the engine does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The interval is out of range.
    #[error("interval = {}: must be from {} to {}", Ms(*.0), Ms(INTERVAL_MIN), Ms(INTERVAL_MAX))]
    Interval(Duration),
    /// The timeout is out of range.
    #[error("timeout = {}: must be from {} to {}", Ms(*.0), Ms(TIMEOUT_MIN), Ms(TIMEOUT_MAX))]
    Timeout(Duration),
}

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
        match (self.interval, self.timeout) {
            (interval, _) if interval != interval.clamp(INTERVAL_MIN, INTERVAL_MAX) => {
                Err(PolicyError::Interval(interval))
            }
            (_, timeout) if timeout != timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX) => Err(PolicyError::Timeout(timeout)),
            _ => Ok(()),
        }
    }
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
        let short = policy(Duration::from_millis(5), TIMEOUT_MIN).check().expect_err("too short");
        assert_eq!(short.to_string(), "interval = 5ms: must be from 100ms to 3600s");
        let long = policy(INTERVAL_MIN, Duration::from_secs(61)).check().expect_err("too long");
        assert_eq!(long.to_string(), "timeout = 61s: must be from 1ms to 60s");
    }
}
