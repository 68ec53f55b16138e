//! What the live table knows of a target beyond its verdict: the last probe, the streak, and the RTTs of late, in 120
//! bytes each. Pure.

use ringspan_engine::check::Detail;
use ringspan_engine::outcome::Code;
use ringspan_engine::target::Sample;

/// Buckets: four to an octave, from 1 µs to 67 s; a value is told to ±12 %.
const BUCKETS: usize = 4 * 26;

/// See the module.
#[derive(Clone)]
pub(super) struct Pulse {
    /// Probes seen.
    pub(super) checks: u32,
    /// Outcomes in a row that were as good, or as bad, as the last.
    pub(super) streak: u32,
    number: u32,
    cert_days: i16,
    /// [`Code`] + 1; 0: none yet.
    code: u8,
    /// Answered probes by RTT; all are halved when one is full, so that the old fade.
    rtts: [u8; BUCKETS],
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse { checks: 0, streak: 0, number: 0, cert_days: i16::MIN, code: 0, rtts: [0; BUCKETS] }
    }
}

impl Pulse {
    /// Another probe.
    pub(super) fn on_sample(&mut self, s: &Sample) {
        let before = self.code();
        self.checks = self.checks.saturating_add(1);
        self.streak =
            if before.is_some_and(|b| b.is_up() == s.code.is_up()) { self.streak.saturating_add(1) } else { 1 };
        self.code = s.code as u8 + 1;
        self.number = s.detail.number;
        self.cert_days = s.detail.cert_days.unwrap_or(i16::MIN);
        if s.code.is_up() {
            let bucket = bucket(s.rtt_ns / 1000);
            if self.rtts[bucket] == u8::MAX {
                self.rtts.iter_mut().for_each(|count| *count /= 2);
            }
            self.rtts[bucket] += 1;
        }
    }

    /// How the last probe came out.
    pub(super) fn code(&self) -> Option<Code> {
        self.code.checked_sub(1).and_then(|n| Code::ALL.get(usize::from(n)).copied())
    }

    /// What the protocol said then.
    pub(super) fn detail(&self) -> Detail {
        Detail { number: self.number, cert_days: (self.cert_days != i16::MIN).then_some(self.cert_days) }
    }

    /// A quantile of the RTTs of late, µs; `None` while none was answered.
    pub(super) fn rtt_us(&self, quantile: f64) -> Option<u64> {
        let total: u32 = self.rtts.iter().map(|n| u32::from(*n)).sum();
        let wanted = (f64::from(total) * quantile).ceil().max(1.0) as u32;
        let mut seen = 0;
        let at = self.rtts.iter().position(|n| {
            seen += u32::from(*n);
            seen >= wanted
        });
        at.map(middle)
    }
}

fn bucket(us: u64) -> usize {
    let us = us.max(1);
    let octave = us.ilog2();
    // The two bits after the highest.
    let quarter = if octave >= 2 { us >> (octave - 2) & 3 } else { (us << (2 - octave)) & 3 };
    (octave as usize * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let low = (1u64 << (bucket / 4)) * (4 + bucket as u64 % 4);
    (low + (1 << (bucket / 4)) / 2) / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value comes back from its bucket to within an eighth, and never out of order.
    #[test]
    fn buckets_are_an_eighth_wide() {
        let mut last = 0;
        for us in (1..5000).chain((5000..67_000_000).step_by(9973)) {
            let got = middle(bucket(us));
            assert!(got.abs_diff(us) * 8 <= us + 8, "{us}: {got}");
            assert!(bucket(us) >= last);
            last = bucket(us);
        }
    }

    /// The old fade, the new count: after a change of pace the quantiles follow.
    #[test]
    fn quantiles_follow() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.rtt_us(0.5), None);
        let mut add = |us: u64, times: usize| {
            let bucket = bucket(us);
            for _ in 0..times {
                if pulse.rtts[bucket] == u8::MAX {
                    pulse.rtts.iter_mut().for_each(|count| *count /= 2);
                }
                pulse.rtts[bucket] += 1;
            }
            (pulse.rtt_us(0.5).expect("some"), pulse.rtt_us(0.99).expect("some"))
        };
        let (p50, p99) = add(1000, 200);
        assert!(p50.abs_diff(1000) < 130 && p99 == p50);
        let (p50, p99) = add(100_000, 20);
        assert!(p50.abs_diff(1000) < 130 && p99.abs_diff(100_000) < 13_000);
        let (p50, _) = add(100_000, 500);
        assert!(p50.abs_diff(100_000) < 13_000);
    }
}
