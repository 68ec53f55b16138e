//! When a dead target must be found: the schedule's own arithmetic, to hold the product against.
//! Pure. A verdict is due when the `fall`th failing probe in a row comes out:
//!
//! ```text
//! last call before the death ──interval──► 1st failing slot ──step──► 2nd ──step──► 3rd: refused at once, or silent
//! (was still open: is the 1st itself)                                                  for the whole timeout
//! ```
//! A call may come late, never early: of the last few, the one that was earliest for its slot tells where the slots are.
//! `step` is the policy's fast interval, or its interval. Each slot counts from the start of the one before.

use crate::world::{Death, Obituary};
use std::time::Duration;

/// What a policy says about time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    pub(super) interval: Duration,
    pub(super) interval_fast: Option<Duration>,
    pub(super) timeout: Duration,
    pub(super) fall: u32,
}

impl Rhythm {
    /// When the verdict on this one is due, on the clock of the obituary.
    pub(super) fn due_ns(&self, who: &Obituary, died_ns: u64) -> u64 {
        let ns = |d: Duration| d.as_nanos() as u64;
        let slot = self.last_slot_ns(&who.calls_ns);
        let first = if who.last_call_open { slot } else { slot + ns(self.interval) };
        let last = first + ns(self.interval_fast.unwrap_or(self.interval)) * u64::from(self.fall - 1);
        match who.death {
            Death::Refused => last.max(died_ns),
            Death::Silent => last + ns(self.timeout),
        }
    }

    /// The slot of the last call.
    fn last_slot_ns(&self, calls_ns: &[u64]) -> u64 {
        let (interval, last) = (self.interval.as_nanos() as u64, calls_ns.last().copied().unwrap_or_default());
        let slots = calls_ns.iter().map(|call| call + (last - call + interval / 2) / interval * interval);
        slots.min().unwrap_or_default()
    }

    /// The shortest and the longest that a death may take to be found, whenever in the schedule it comes.
    pub(super) fn bounds(&self, death: Death) -> (Duration, Duration) {
        let steps = self.interval_fast.unwrap_or(self.interval) * (self.fall - 1);
        match death {
            // A probe that is open at the death fails then and there: up to a timeout of the first interval is over.
            Death::Refused => (steps.saturating_sub(self.timeout), self.interval + steps),
            // The probe that is open may have all its patience behind it.
            Death::Silent => (steps, self.interval + steps + self.timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RHYTHM: Rhythm =
        Rhythm { interval: Duration::from_secs(5), interval_fast: None, timeout: Duration::from_millis(500), fall: 3 };

    fn who(death: Death, calls_ns: &[u64], last_call_open: bool) -> Obituary {
        Obituary { address: ([127, 0, 0, 1], 1).into(), death, calls_ns: calls_ns.to_vec(), last_call_open }
    }

    /// Each arm of the picture, in numbers; and none is out of the bounds.
    #[test]
    fn verdicts_are_due_by_the_schedule() {
        const S: u64 = 1_000_000_000;
        let fast = Rhythm { interval_fast: Some(Duration::from_secs(1)), ..RHYTHM };
        let once = Rhythm { fall: 1, ..RHYTHM };
        let table = [
            (RHYTHM, Death::Refused, false, 100 * S + 15 * S),
            (RHYTHM, Death::Refused, true, 100 * S + 10 * S),
            (RHYTHM, Death::Silent, false, 100 * S + 15 * S + S / 2),
            (RHYTHM, Death::Silent, true, 100 * S + 10 * S + S / 2),
            (fast, Death::Refused, false, 100 * S + 7 * S),
            (fast, Death::Silent, true, 100 * S + 2 * S + S / 2),
            (once, Death::Refused, true, 100 * S + S / 10),
        ];
        for (rhythm, death, open, due) in table {
            let died = if open { 100 * S + S / 10 } else { 103 * S };
            assert_eq!(
                rhythm.due_ns(&who(death, &[95 * S + S / 3, 100 * S], open), died),
                due,
                "{death:?} {open} {rhythm:?}"
            );
            let (low, high) = rhythm.bounds(death);
            let took = Duration::from_nanos(due - died);
            assert!(low <= took && took <= high, "{death:?}: {took:?} is not within {low:?} to {high:?}");
        }
    }

    /// Late calls do not move the slots, however many there are, as long as one was on time; and missed ones do not.
    #[test]
    fn late_calls_do_not_move_the_schedule() {
        const MS: u64 = 1_000_000;
        for calls in
            [[10_000, 15_000, 20_000], [10_000, 15_700, 21_400], [11_300, 15_000, 21_400], [1_900, 5_000, 20_040]]
        {
            let calls = calls.map(|ms| ms * MS);
            assert_eq!(RHYTHM.last_slot_ns(&calls), 20_000 * MS, "{calls:?}");
        }
        assert_eq!(RHYTHM.last_slot_ns(&[]), 0);
    }
}
