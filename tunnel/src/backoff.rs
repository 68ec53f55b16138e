//! When to knock again: exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015), so
//! that a thousand agents that lost one bridge do not come back in the same instant.
//! Pure: the time and the random number come in.

use crate::hello::Refusal;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// Upper bound of the first delay: a bridge that was just restarted is found again at once.
pub const DELAY_FIRST: Duration = Duration::from_millis(200);

/// Upper bound of every delay: after an outage of any length, half of all agents are back within 5 s and all within
/// 10 s; and one agent's knocking costs the bridge one handshake in 5 s on average.
pub const DELAY_MAX: Duration = Duration::from_secs(10);

/// Upper bound while nobody answers at all. No answer costs the bridge nothing, and the first packet after an outage is
/// the one that counts: with a dial given up after 2 s, whose packets go out at 0 and 1 s (RFC 6298 §2.1), the network
/// is never back for more than 1.5 s before it is tried.
pub const DELAY_UNANSWERED_MAX: Duration = Duration::from_millis(500);

/// A link that has lived this long was a good one: the next loss starts from [`DELAY_FIRST`]. Shorter lives count as
/// failures, or a bridge that welcomes and then drops would be knocked at five times a second for ever.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// The same of a link whose bridge says that another process or session is there to be come to: nothing is wrong, and visitors wait. A
/// bridge that says it to everybody at once is a failure like any other.
pub const STABLE_AFTER_CALLED: Duration = Duration::from_secs(2);

/// Lower bound of every delay: full jitter may choose 0, and a loop without any pause is a busy loop.
const DELAY_MIN: Duration = Duration::from_millis(20);

const _: () = assert!(DELAY_FIRST.as_millis() < DELAY_MAX.as_millis());

/// One carrier's patience.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    /// Attempts in a row that did not become stable links.
    failures: u32,
    /// Since when the link is up.
    up_since: Option<Instant>,
    /// The refusal that was last told to the operator.
    told: Option<Refusal>,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Try again after this long.
    pub delay: Duration,
    /// Whether to log it: the loss of a link always, failed attempts the 1st, 2nd, 4th, 8th ... time in a row, and a
    /// refusal that only a person can cure once.
    pub tell: bool,
}

impl Backoff {
    /// The link is up.
    pub fn on_welcome(&mut self, now: Instant) {
        self.up_since = Some(now);
        self.told = None;
    }

    /// The connection failed, or a link that was up is lost. `random` is uniform over all of u64.
    pub fn on_lost(&mut self, now: Instant, random: u64) -> Wait {
        self.on_over(STABLE_AFTER, now, random)
    }

    /// The bridge asks for a new link in place of this one.
    pub fn on_called(&mut self, now: Instant, random: u64) -> Wait {
        self.on_over(STABLE_AFTER_CALLED, now, random)
    }

    fn on_over(&mut self, stable_after: Duration, now: Instant, random: u64) -> Wait {
        let was_up = self.up_since.take();
        if was_up.is_some_and(|since| now.since(since) >= stable_after) {
            self.failures = 0;
        }
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        let tell = was_up.is_some() || self.failures.is_power_of_two();
        Wait { delay: jittered(DELAY_MIN, ceiling, random), tell }
    }

    /// Nothing answered the dial, not even a refusal: the network is out, or the machine.
    pub fn on_unanswered(&mut self, now: Instant, random: u64) -> Wait {
        let wait = self.on_lost(now, random);
        Wait { delay: jittered(DELAY_MIN, DELAY_UNANSWERED_MAX, random), ..wait }
    }

    /// The bridge said no. What only a person can cure goes to [`DELAY_MAX`] at once: an agent goes on knocking, since
    /// the person may do so at the bridge, and half to all of the longest delay keeps that cheap.
    pub fn on_refused(&mut self, refusal: &Refusal, now: Instant, random: u64) -> Wait {
        let mut wait = self.on_lost(now, random);
        if !refusal.retry {
            wait.delay = jittered(DELAY_MAX / 2, DELAY_MAX, random);
        }
        wait.delay = wait.delay.max(refusal.retry_after());
        // Another sentence of the same code is news too: it names another service or version.
        wait.tell = if refusal.retry { wait.tell } else { self.told.as_ref() != Some(refusal) };
        self.told = Some(refusal.clone());
        wait
    }

    /// Attempts in a row that failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn ceiling(&self) -> Duration {
        // 2^6 times the first delay is past the cap already.
        (DELAY_FIRST * (1 << self.failures.min(6))).min(DELAY_MAX)
    }
}

/// Uniform over `low..=high`.
fn jittered(low: Duration, high: Duration, random: u64) -> Duration {
    let span = high.saturating_sub(low).as_nanos() + 1;
    let offset = (u128::from(random) * span) >> 64;
    low + Duration::from_nanos(u64::try_from(offset).expect("spans here are seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::RefusalCode;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    /// The ceilings double from 0.2 s to 10 s and stay there.
    #[test]
    fn ceilings() {
        let mut backoff = Backoff::default();
        let longest: Vec<u128> = (0..9).map(|_| backoff.on_lost(at(1), u64::MAX).delay.as_millis()).collect();
        assert_eq!(longest, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.on_lost(at(1), 0).delay, DELAY_MIN);
    }

    /// One who is called to another process comes at once, as often as that happens; unless he is called as soon as he is there.
    #[test]
    fn calls_are_no_failures() {
        let mut backoff = Backoff::default();
        for round in 1..10 {
            backoff.on_welcome(at(10 * round));
            let wait = backoff.on_called(at(10 * round + 2), u64::MAX);
            assert_eq!((wait.delay, wait.tell), (DELAY_FIRST, true), "round {round}");
        }
        let longest = (0..9).map(|_| {
            backoff.on_welcome(at(200));
            backoff.on_called(at(201), u64::MAX).delay
        });
        assert_eq!(longest.last(), Some(DELAY_MAX));
    }

    /// An outage of any length is tried again soon, and told as often as any other failure; a refusal after it is not.
    #[test]
    fn outages_do_not_try_patience() {
        let mut backoff = Backoff::default();
        let told = (0..64).filter(|_| {
            let wait = backoff.on_unanswered(at(1), u64::MAX);
            assert_eq!(wait.delay, DELAY_UNANSWERED_MAX);
            wait.tell
        });
        assert_eq!(told.count(), 7, "the 1st, 2nd, 4th, ... 64th");
        assert_eq!(backoff.on_unanswered(at(1), 0).delay, DELAY_MIN);
        assert_eq!(backoff.on_lost(at(1), u64::MAX).delay, DELAY_MAX);
    }

    /// A stable minute forgives everything; a second less does not.
    #[test]
    fn a_stable_link_forgives() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.on_lost(at(1), 7);
        }
        backoff.on_welcome(at(100));
        assert_eq!(backoff.on_lost(at(159), u64::MAX).delay, DELAY_MAX);
        backoff.on_welcome(at(200));
        assert_eq!(backoff.on_lost(at(260), u64::MAX).delay, DELAY_FIRST);
        // And it is forgiven once: the next failure counts.
        assert_eq!(backoff.on_lost(at(400), u64::MAX).delay, DELAY_FIRST * 2);
    }

    /// What only a person can cure is told once and waits long from the first time; a new reason is told again.
    #[test]
    fn permanent_refusals_are_told_once() {
        let (revoked, busy) = (Refusal::of(RefusalCode::AgentRevoked), Refusal::of(RefusalCode::TooBusy));
        let mut backoff = Backoff::default();
        let first = backoff.on_refused(&revoked, at(1), 0);
        assert_eq!(first, Wait { delay: DELAY_MAX / 2, tell: true });
        assert!(!backoff.on_refused(&revoked, at(10), u64::MAX).tell);
        assert!(backoff.on_refused(&Refusal::of(RefusalCode::UnknownAgent), at(20), 3).tell);
        let mut told = (4..40).map(|_| backoff.on_refused(&busy, at(30), 3).tell);
        assert_eq!(told.by_ref().filter(|tell| *tell).count(), 4, "the 4th, 8th, 16th and 32nd");
        backoff.on_welcome(at(40));
        assert!(backoff.on_refused(&revoked, at(50), 3).tell);
        backoff.on_welcome(at(51));
        assert!(backoff.on_lost(at(52), 3).tell, "a link was lost");
        let later = Refusal { retry_after_ms: 30_000, ..busy };
        assert_eq!(backoff.on_refused(&later, at(60), 3).delay, Duration::from_secs(30));
    }

    proptest! {
        /// Every delay is within its bounds, and the whole range is used.
        #[test]
        fn delays_are_bounded(failures in 0u32..100, random: u64) {
            let mut backoff = Backoff { failures, ..Backoff::default() };
            let ceiling = backoff.ceiling();
            let delay = backoff.on_lost(at(1), random).delay;
            prop_assert!(delay >= DELAY_MIN && delay <= ceiling && ceiling <= DELAY_MAX);
        }
    }
}
