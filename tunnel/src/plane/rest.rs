//! Bulk rests while others talk and cores are short.
//!
//! On a machine whose cores are all taken a small message waits for a core at each of its hops, behind threads that move
//! bulk: ours, and those that write and read what we move, which have something to do whenever we do. So when small
//! messages are about, and the worker has to wait for its core, a turn that moved bulk is followed by a rest as long as it
//! took. Bulk is slower by a third to a half then, and the p99 of small requests beside it a third to an eighth (bench/README.md,
//! `bench fairness`).
//!
//! Promise: bulk alone never rests, nor where cores are free; no rest is longer than [`REST_MAX`]; what is no bulk is
//! not held by it: the control lane, head starts, streams without frames that move little.
//!
//! ```text
//! turn that moved bulk ──talk about, core crowded──▶ rest ──its time──▶ turn ...
//! ```

use ringspan_engine::crowding::Crowding;
use ringspan_engine::time::Instant;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The longest rest: a turn that was pushed aside for long has let others go first already.
const REST_MAX: Duration = Duration::from_millis(1);
/// Talk is about for this long after a small message.
const TALK_LASTS: Duration = Duration::from_millis(100);
/// A small piece is talk if its stream has moved nothing large for this many [`STEP`]s, a second: bulk has small pieces,
/// too, and answers that are large come with small questions.
const QUIET_STEPS: u32 = 10;
/// The unit of that: four bytes of it last for 13 years.
const STEP: Duration = Duration::from_millis(100);
/// A piece of at least this is large: half of what speaks for splicing.
pub(super) const LARGE_BYTES: usize = 8 << 10;
/// How old the word of talk may grow before it is said again: it is for all workers, and a cache line.
const SAY_EVERY: Duration = Duration::from_millis(10);

/// When somebody talked last, on any worker of the process, in nanoseconds of the workers' clock.
#[derive(Debug, Default)]
pub(crate) struct Talk(AtomicU64);

impl Talk {
    fn say(&self, now: Instant) {
        self.0.store(now.ns(), Relaxed);
    }

    fn is_about(&self, now: Instant) -> bool {
        let said = self.0.load(Relaxed);
        said > 0 && now.since(Instant::from_ns(said)) < TALK_LASTS
    }
}

/// Of a stream: the [`STEP`] in which it last moved something large. Four bytes, since each idle stream has them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pieces(Option<NonZeroU32>);

impl Pieces {
    fn step(now: Instant) -> u32 {
        (now.ns() / STEP.as_nanos() as u64) as u32
    }

    fn on_large(&mut self, now: Instant) {
        self.0 = NonZeroU32::new(Pieces::step(now));
    }

    fn is_quiet(self, now: Instant) -> bool {
        self.0.is_none_or(|at| Pieces::step(now).wrapping_sub(at.get()) >= QUIET_STEPS)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// When this worker last said that there is talk.
    said: Option<Instant>,
    began: Instant,
    /// In this turn.
    has_moved_bulk: bool,
    until: Option<Instant>,
    gives_way: bool,
    crowding: Crowding,
}

impl Rest {
    /// A turn begins. Returns whether a rest is over with it.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        (self.began, self.has_moved_bulk) = (now, false);
        self.until.take_if(|until| *until <= now).is_some()
    }

    /// Bulk does not move now.
    pub(super) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// When it will.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// `n` bytes of a stream moved, either way.
    pub(super) fn on_piece(&mut self, talk: &Talk, pieces: &mut Pieces, n: usize, now: Instant) {
        if n >= LARGE_BYTES {
            pieces.on_large(now);
            self.has_moved_bulk = true;
        } else if n > 0 && pieces.is_quiet(now) && self.said.is_none_or(|at| now.since(at) >= SAY_EVERY) {
            self.said = Some(now);
            talk.say(now);
        }
    }

    /// Bulk rested after the last turn that had any, and will after the next one.
    pub(super) fn gives_way(&self) -> bool {
        self.gives_way
    }

    /// Whether what moved in this turn is a reason to [`end`](Rest::end) it with a rest.
    pub(super) fn is_due(&mut self, talk: &Talk) -> bool {
        if !self.has_moved_bulk || self.is_on() {
            return false;
        }
        self.gives_way = talk.is_about(self.began) && self.crowding.is_crowded(self.began);
        self.gives_way
    }

    /// The turn is over, and its bulk rests.
    pub(super) fn end(&mut self, now: Instant) {
        self.until = Some(now + now.since(self.began).min(REST_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> Instant {
        Instant::from_ns(1_000_000_000_000 + us * 1000)
    }

    /// A turn, and whether it would end with a rest if the core was crowded.
    fn is_due(rest: &Rest, talk: &Talk) -> bool {
        rest.has_moved_bulk && rest.until.is_none() && talk.is_about(rest.began)
    }

    /// Bulk rests for talk alone: before it, beside it, and for a while after it; what is small on a bulky stream is none.
    #[test]
    fn bulk_rests_for_talk() {
        let (talk, mut rest) = (Talk::default(), Rest::default());
        let (mut bulk, mut small) = (Pieces::default(), Pieces::default());
        let mut turn = |us: u64, pieces: &mut Pieces, n: usize| {
            rest.begin(at(us));
            rest.on_piece(&talk, &mut bulk, 64 << 10, at(us));
            rest.on_piece(&talk, pieces, n, at(us));
            is_due(&rest, &talk)
        };
        let mut bulky = Pieces::default();
        for (us, n, due) in [(0, LARGE_BYTES, false), (100, 64, false), (999_999, 64, false), (1_000_000, 64, true)] {
            assert_eq!(turn(us, &mut bulky, n), due, "{us}");
        }
        for (us, n, due) in [
            (1_099_999, 0, true),
            (1_100_000, 0, false),
            (1_200_000, 64, true),
            // Said again only when it has grown old.
            (1_205_000, 64, true),
            (1_299_999, 0, true),
            (1_300_000, 0, false),
        ] {
            assert_eq!(turn(us, &mut small, n), due, "{us}");
        }
    }

    /// Without bulk there is nothing to rest, and a rest is as long as the turn, or a millisecond.
    #[test]
    fn a_rest_is_as_long_as_the_turn() {
        let (talk, mut rest) = (Talk::default(), Rest::default());
        rest.begin(at(0));
        rest.on_piece(&talk, &mut Pieces::default(), 64, at(0));
        assert!(!is_due(&rest, &talk), "only talk");
        for (took, rests) in [(80, 80), (999, 999), (5000, 1000)] {
            let start = rest.until().map_or(0, |until| until.since(at(0)).as_micros() as u64);
            assert_eq!(rest.begin(at(start)), start > 0);
            assert!(!rest.is_on());
            rest.on_piece(&talk, &mut Pieces::default(), LARGE_BYTES, at(start));
            rest.end(at(start + took));
            assert_eq!(rest.until(), Some(at(start + took + rests)));
            assert!(!rest.begin(at(start + took + rests - 1)) && rest.is_on(), "not yet over");
            assert!(!is_due(&rest, &talk), "it rests");
        }
    }
}
