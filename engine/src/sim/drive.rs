//! Stands in for the worker: one resident on a simulated kernel, turn by turn.

use crate::io::Io;
use crate::resident::{Cx, Next, Resident};
use crate::sim::SimIo;
use crate::time::Instant;

/// Turns without time or events after which a resident is taken to spin: more than any backlog needs at one moment.
pub const IDLE_TURNS_MAX: u32 = 10_000;

/// A resident and its world.
pub struct Sim<R> {
    /// The world.
    pub io: SimIo,
    /// The resident.
    pub resident: R,
    idle_turns: u32,
}

impl<R: Resident> Sim<R> {
    /// Starts the resident.
    pub fn start(io: SimIo, resident: R) -> Sim<R> {
        let mut sim = Sim { io, resident, idle_turns: 0 };
        sim.call(|resident, cx| resident.on_start(cx));
        sim
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.io.now()
    }

    /// Runs until `end`, or past it if the worker stalls then.
    pub fn run_until(&mut self, end: Instant) {
        while self.io.now() < end {
            self.turn(end);
        }
    }

    /// Stops the resident and runs until it is done. Panics if it takes more than `turns_max` turns.
    pub fn stop(&mut self, turns_max: usize) {
        self.call(|resident, cx| resident.on_stop(cx));
        let done = (0..turns_max).any(|_| self.turn(Instant::from_ns(u64::MAX)) == Next::Done);
        assert!(done, "the resident is not done after {turns_max} turns");
    }

    /// One turn, and what it brings about; time goes no further than `end` by itself. Panics if the resident takes
    /// [`IDLE_TURNS_MAX`] turns in which neither time passes nor anything completes: it spins.
    pub fn turn(&mut self, end: Instant) -> Next {
        self.turn_watched(end, |_| {})
    }

    /// As [`turn`](Sim::turn), and tells `watch` the time after each thing that the resident did: what it has said
    /// since was said then.
    pub fn turn_watched(&mut self, end: Instant, mut watch: impl FnMut(Instant)) -> Next {
        let next = self.call(|resident, cx| resident.on_turn(cx));
        watch(self.io.now());
        let deadline = match next {
            Next::Now => Instant::ZERO,
            Next::At(at) => at.min(end),
            Next::Event => end,
            Next::Done => return next,
        };
        let (mut completions, before) = (Vec::new(), self.io.now());
        self.io.wait(Some(deadline), &mut completions);
        let idle = completions.is_empty() && self.io.now() == before && before < end;
        self.idle_turns = if idle { self.idle_turns + 1 } else { 0 };
        assert!(self.idle_turns < IDLE_TURNS_MAX, "the resident spins: its last answer was {next:?} at {before:?}");
        for completion in completions {
            self.call(|resident, cx| resident.on_completion(cx, completion));
            watch(self.io.now());
        }
        next
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut R, &mut Cx<'_>) -> T) -> T {
        let now = self.io.now();
        call(&mut self.resident, &mut Cx { io: &mut self.io, now, resident: 1 })
    }
}
