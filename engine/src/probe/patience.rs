//! How long a probe may take: the whole of it, and each phase of a conversation.
//! Pure: when things happened comes in, when the time is up goes out.
//!
//! ```text
//! started ───────────────────────── whole ─────────────────────────────► always
//! called ── connect ──► connected ── tls ──► handshake over ── answer ──► each only where the policy has it
//! ```

use crate::probe::talk::Phase;
use crate::target::{TIMEOUT_MAX, TIMEOUT_MIN, Timeouts};
use crate::time::Instant;
use std::time::Duration;

/// Milliseconds; a minute is the most, so it fits.
type Ms = u16;
/// No patience of its own: the whole's.
const NONE: Ms = u16::MAX;
const _: () = assert!(TIMEOUT_MAX.as_millis() < NONE as u128);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    whole: Ms,
    connect: Ms,
    tls: Ms,
    answer: Ms,
}

/// How far a probe has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// The probe's start.
    pub(crate) started: Instant,
    /// The present connection's start.
    pub(crate) called: Instant,
    /// When that connection was made.
    pub(crate) connected: Option<Instant>,
    /// When its TLS handshake was over.
    pub(crate) tls: Option<Instant>,
    /// What it waits for once it is connected.
    pub(crate) phase: Phase,
}

impl Patience {
    /// `whole` and the phases, clamped into their range.
    pub(crate) fn new(whole: Duration, phases: &Timeouts) -> Patience {
        let ms = |time: Duration| time.clamp(TIMEOUT_MIN, TIMEOUT_MAX).as_nanos().div_ceil(1_000_000) as Ms;
        let phase = |time: Option<Duration>| time.map_or(NONE, ms);
        let (connect, tls, answer) = (phase(phases.connect), phase(phases.tls), phase(phases.answer));
        Patience { whole: ms(whole), connect, tls, answer }
    }

    /// Whether a phase has a patience of its own, so that the deadline moves as the probe comes along.
    pub(crate) fn has_phases(&self) -> bool {
        self.connect.min(self.tls).min(self.answer) < self.whole
    }

    /// The first time at which any patience may be at its end: how far the probe has come must be looked at then.
    pub(crate) fn first(&self, started: Instant, called: Instant) -> Instant {
        let phase = self.connect.min(self.tls).min(self.answer);
        (called + time(phase)).min(started + time(self.whole))
    }

    /// When the time is up, as far as the probe has come, and how long that patience was.
    pub(crate) fn deadline(&self, at: &Progress) -> (Instant, Duration) {
        let (since, ms) = match (at.connected, at.phase) {
            (None, _) => (at.called, self.connect),
            (Some(connected), Phase::Tls) => (connected, self.tls),
            (Some(connected), Phase::Answer) => (at.tls.unwrap_or(connected), self.answer),
        };
        let whole = (at.started + time(self.whole), time(self.whole));
        if ms == NONE { whole } else { whole.min((since + time(ms), time(ms))) }
    }
}

fn time(ms: Ms) -> Duration {
    Duration::from_millis(u64::from(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each phase has its own patience from where the last one ended, and the whole ends them all.
    #[test]
    fn each_phase_has_its_patience() {
        let ms = Duration::from_millis;
        let phases = Timeouts { connect: Some(ms(100)), tls: Some(ms(200)), answer: Some(ms(300)) };
        let (start, patience) = (Instant::from_ns(1 << 40), Patience::new(ms(450), &phases));
        assert!(patience.has_phases());
        assert_eq!(patience.first(start, start), start + ms(100));
        let at = Progress { started: start, called: start, connected: None, tls: None, phase: Phase::Tls };
        assert_eq!(patience.deadline(&at), (start + ms(100), ms(100)));
        let at = Progress { connected: Some(start + ms(50)), ..at };
        assert_eq!(patience.deadline(&at), (start + ms(250), ms(200)));
        let at = Progress { tls: Some(start + ms(120)), phase: Phase::Answer, ..at };
        assert_eq!(patience.deadline(&at), (start + ms(420), ms(300)));
        let at = Progress { tls: Some(start + ms(200)), ..at };
        assert_eq!(patience.deadline(&at), (start + ms(450), ms(450)), "the whole ends it");
        let at = Progress { tls: None, ..at };
        assert_eq!(patience.deadline(&at), (start + ms(350), ms(300)), "without TLS the answer follows the connection");
    }

    /// Without phases there is one deadline; out of range is clamped.
    #[test]
    fn without_phases_the_whole_counts() {
        let (start, none) = (Instant::from_ns(1 << 40), Timeouts::default());
        let patience = Patience::new(Duration::ZERO, &none);
        assert!(!patience.has_phases());
        let mut at = Progress { started: start, called: start, connected: None, tls: None, phase: Phase::Answer };
        for connected in [None, Some(start)] {
            at.connected = connected;
            assert_eq!(patience.deadline(&at), (start + TIMEOUT_MIN, TIMEOUT_MIN));
        }
        assert_eq!(patience.first(start, start), start + TIMEOUT_MIN);
        let patience = Patience::new(Duration::MAX, &none);
        assert_eq!(patience.first(start, start), start + TIMEOUT_MAX);
    }
}
