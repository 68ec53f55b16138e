//! Timers by the million: a hierarchical timing wheel (Varghese and Lauck, 1987) with a tick of 1 ms.
//! Promises: a timer never fires early and never out of tick order; arming, disarming and asking for the next expiry
//! cost a few instructions, whatever the number of timers; one call of [`Wheel::advance`] does bounded work.
//! Pure: `now` comes in, and an hour runs in a microsecond.
//!
//! ```text
//!            cursor              near_end               mid_end
//! ticks ───────┼────────────────────┼──────────────────────┼──────────────────►
//! level          near: 4096 x 1 ms    mid: 1024 x 256 ms     far: 1024 x 65.5 s (18 h; later ones wait in the last)
//! ```
//! As the cursor moves, whole mid slots are moved into the near level one timer at a time, about 3.8 s before they are
//! due: a hundred thousand timers with one interval never move all at once. A timer is named by a number of the
//! caller's, its slab index; the links live here, indexed by it.

use crate::time::Instant;
use std::ops::{Index, IndexMut};

/// One tick. A health check's interval is hundreds of these, so a probe starts at most 1 % late by design.
pub const TICK_NS: u64 = 1_000_000;

const NEAR_SLOTS: u64 = 4096;
const MID_SLOTS: u64 = 1024;
const FAR_SLOTS: u64 = 1024;
/// Ticks in one slot of the mid level: a 256th part of a second of timers moves at a time.
const MID_SHIFT: u32 = 8;
/// Ticks in one slot of the far level.
const FAR_SHIFT: u32 = 16;
const MID_TICKS: u64 = 1 << MID_SHIFT;
const FAR_TICKS: u64 = 1 << FAR_SHIFT;
const MID_BASE: usize = NEAR_SLOTS as usize;
const FAR_BASE: usize = MID_BASE + MID_SLOTS as usize;
const SLOTS: usize = FAR_BASE + FAR_SLOTS as usize;
const NONE: u32 = u32::MAX;
const IDLE: u16 = u16::MAX;
const _: () = assert!(SLOTS < IDLE as usize);

/// The furthest that a timer can be ahead: 49 days.
const AHEAD_MAX: u64 = u32::MAX as u64;
/// Timers per allocation: growing by this many keeps a worker from copying megabytes at once.
const CHUNK: usize = 1024;

#[derive(Clone, Copy)]
struct Node {
    /// The tick's low half: no timer is before the cursor, or so far ahead that it could be another.
    tick: u32,
    previous: u32,
    next: u32,
    /// Which slot it hangs in; `IDLE` when not armed.
    slot: u16,
}

/// A million timers are 16 MB: four to a cache line.
const _: () = assert!(size_of::<Node>() == 16);

impl Node {
    const NEW: Node = Node { tick: 0, previous: NONE, next: NONE, slot: IDLE };
}

/// All timers' nodes, by id. Growing never moves what is there.
struct Nodes {
    chunks: Vec<Box<[Node; CHUNK]>>,
}

impl Nodes {
    fn get(&self, id: u32) -> Option<&Node> {
        Some(&self.chunks.get(id as usize / CHUNK)?[id as usize % CHUNK])
    }

    fn grow_to(&mut self, id: u32) {
        while self.chunks.len() <= id as usize / CHUNK {
            self.chunks.push(Box::new([Node::NEW; CHUNK]));
        }
    }
}

impl Index<u32> for Nodes {
    type Output = Node;
    fn index(&self, id: u32) -> &Node {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }
}

impl IndexMut<u32> for Nodes {
    fn index_mut(&mut self, id: u32) -> &mut Node {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }
}

/// See the module.
pub struct Wheel {
    /// The first tick not yet fired.
    cursor: u64,
    /// The near level holds the ticks from `cursor` to here.
    near_end: u64,
    /// The mid level holds the ticks from `near_end` to here; the far level, all after.
    mid_end: u64,
    heads: Box<[u32; SLOTS]>,
    near: Bits<64>,
    mid: Bits<16>,
    far: Bits<16>,
    nodes: Nodes,
    len: usize,
}

impl Wheel {
    /// An empty wheel whose time begins at `now`.
    pub fn new(now: Instant) -> Wheel {
        let cursor = now.ns() / TICK_NS;
        let near_end = (cursor + NEAR_SLOTS) & !(MID_TICKS - 1);
        Wheel {
            cursor,
            near_end,
            mid_end: (near_end + (MID_SLOTS << MID_SHIFT)) & !(FAR_TICKS - 1),
            heads: Box::new([NONE; SLOTS]),
            near: Bits::new(),
            mid: Bits::new(),
            far: Bits::new(),
            nodes: Nodes { chunks: Vec::new() },
            len: 0,
        }
    }

    /// Bytes on the heap. They follow the highest id ever armed, a thousand at a time, and are never given back.
    pub fn bytes(&self) -> usize {
        let nodes = self.nodes.chunks.len() * size_of::<[Node; CHUNK]>();
        nodes + self.nodes.chunks.capacity() * size_of::<Box<[Node; CHUNK]>>() + size_of::<[u32; SLOTS]>()
    }

    /// How many timers are armed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Arms timer `id` for the first tick at or after `at`; a time that has passed means the next tick, one
    /// that is more than 49 days ahead is taken for 49 days. If it was armed, it moves.
    pub fn arm(&mut self, id: u32, at: Instant) {
        self.disarm(id);
        self.nodes.grow_to(id);
        let tick = at.ns().div_ceil(TICK_NS).clamp(self.cursor, self.cursor + AHEAD_MAX);
        self.nodes[id].tick = tick as u32;
        self.hang(id);
        self.len += 1;
    }

    /// Disarms timer `id`. Returns whether it was armed.
    pub fn disarm(&mut self, id: u32) -> bool {
        match self.nodes.get(id) {
            Some(node) if node.slot != IDLE => {
                self.unhang(id);
                self.len -= 1;
                true
            }
            _ => false,
        }
    }

    /// When to call [`advance`](Wheel::advance) next: at the first expiry, if it is within about 3.8 s; else at a
    /// time not later than it, when far timers move nearer.
    pub fn next_expiry(&self) -> Option<Instant> {
        // A level's slots past its end are those of a slot half moved: what is still to move comes first.
        let tick = if let Some(ahead) = self.near.distance(self.cursor) {
            (self.cursor + ahead).min(self.near_end)
        } else if let Some(ahead) = self.mid.distance(self.near_end >> MID_SHIFT) {
            (self.near_end + (ahead << MID_SHIFT)).min(self.mid_end)
        } else {
            self.mid_end + (self.far.distance(self.mid_end >> FAR_SHIFT)? << FAR_SHIFT)
        };
        Some(Instant::from_ns(tick.saturating_mul(TICK_NS)))
    }

    /// Moves time to `now` and appends the ids whose timers fired, earliest tick first. Does about `budget` steps (a
    /// timer fired or moved nearer is one); returns whether some are left for `now`.
    pub fn advance(&mut self, now: Instant, budget: usize, fired: &mut Vec<u32>) -> bool {
        let target = now.ns() / TICK_NS;
        let mut steps = 0;
        while self.cursor <= target {
            // Every timer before `near_end` is in the near level, so its first bit there is the next timer.
            let ahead = self.near.distance(self.cursor).unwrap_or(NEAR_SLOTS);
            let next = (self.cursor + ahead).min(self.near_end);
            if next > target {
                self.cursor = target + 1;
                break;
            }
            self.cursor = next;
            if next == self.near_end {
                // A long sleep has used the near level up; its successor must come before time goes on.
                if !self.draw_nearer(budget, &mut steps) {
                    return true;
                }
                continue;
            }
            let slot = (next % NEAR_SLOTS) as usize;
            while self.heads[slot] != NONE {
                if steps >= budget {
                    return true;
                }
                steps += 1;
                let id = self.heads[slot];
                self.unhang(id);
                self.len -= 1;
                fired.push(id);
            }
            self.cursor += 1;
        }
        // Ahead of need: what is left undone here is done on a later turn, long before it is due.
        while self.near_end + MID_TICKS <= self.cursor + NEAR_SLOTS && self.draw_nearer(budget, &mut steps) {}
        let mid_ticks = MID_SLOTS << MID_SHIFT;
        while self.mid_end + FAR_TICKS <= self.near_end + mid_ticks && self.draw_far_nearer(budget, &mut steps) {}
        false
    }

    /// Moves the first mid slot into the near level. Returns whether it is through.
    fn draw_nearer(&mut self, budget: usize, steps: &mut usize) -> bool {
        if self.near_end == self.mid_end && !self.draw_far_nearer(budget, steps) {
            return false;
        }
        let slot = MID_BASE + ((self.near_end >> MID_SHIFT) % MID_SLOTS) as usize;
        while self.heads[slot] != NONE {
            if *steps >= budget {
                return false;
            }
            *steps += 1;
            let id = self.heads[slot];
            self.unhang(id);
            self.hang_at(id, Level::Near);
        }
        self.near_end += MID_TICKS;
        true
    }

    /// Moves the first far slot into the mid level; timers of a later round go round once more.
    fn draw_far_nearer(&mut self, budget: usize, steps: &mut usize) -> bool {
        let end = self.mid_end + FAR_TICKS;
        let slot = FAR_BASE + ((self.mid_end >> FAR_SHIFT) % FAR_SLOTS) as usize;
        while self.heads[slot] != NONE {
            if *steps >= budget {
                return false;
            }
            *steps += 1;
            let id = self.heads[slot];
            self.unhang(id);
            // A timer that was beyond the far level's reach waits in the last slot again, which is never this one.
            let level = if self.tick(id) < end { Level::Mid } else { Level::Far };
            self.hang_at(id, level);
        }
        self.mid_end = end;
        true
    }

    /// When an armed timer fires.
    fn tick(&self, id: u32) -> u64 {
        self.cursor + u64::from(self.nodes[id].tick.wrapping_sub(self.cursor as u32))
    }

    fn hang(&mut self, id: u32) {
        let tick = self.tick(id);
        let level = if tick < self.near_end {
            Level::Near
        } else if tick < self.mid_end {
            Level::Mid
        } else {
            Level::Far
        };
        self.hang_at(id, level);
    }

    fn hang_at(&mut self, id: u32, level: Level) {
        let tick = self.tick(id);
        let slot = match level {
            Level::Near => {
                self.near.set(tick % NEAR_SLOTS);
                (tick % NEAR_SLOTS) as usize
            }
            Level::Mid => {
                let slot = (tick >> MID_SHIFT) % MID_SLOTS;
                self.mid.set(slot);
                MID_BASE + slot as usize
            }
            Level::Far => {
                let slot = (tick >> FAR_SHIFT).min((self.mid_end >> FAR_SHIFT) + FAR_SLOTS - 1) % FAR_SLOTS;
                self.far.set(slot);
                FAR_BASE + slot as usize
            }
        };
        let head = self.heads[slot];
        if head != NONE {
            self.nodes[head].previous = id;
        }
        let node = &mut self.nodes[id];
        (node.previous, node.next, node.slot) = (NONE, head, slot as u16);
        self.heads[slot] = id;
    }

    fn unhang(&mut self, id: u32) {
        let Node { previous, next, slot, .. } = self.nodes[id];
        self.nodes[id].slot = IDLE;
        if next != NONE {
            self.nodes[next].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous].next = next;
            return;
        }
        let slot = slot as usize;
        self.heads[slot] = next;
        if next == NONE {
            match slot {
                FAR_BASE.. => self.far.clear((slot - FAR_BASE) as u64),
                MID_BASE.. => self.mid.clear((slot - MID_BASE) as u64),
                _ => self.near.clear(slot as u64),
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Level {
    Near,
    Mid,
    Far,
}

/// Which slots of a level hold something: one bit a slot, and one bit a word of them.
struct Bits<const WORDS: usize> {
    words: [u64; WORDS],
    summary: u64,
}

impl<const WORDS: usize> Bits<WORDS> {
    const LEN: u64 = WORDS as u64 * 64;

    fn new() -> Self {
        const { assert!(WORDS <= 64 && WORDS.is_power_of_two()) };
        Bits { words: [0; WORDS], summary: 0 }
    }

    fn set(&mut self, bit: u64) {
        self.words[(bit / 64) as usize] |= 1 << (bit % 64);
        self.summary |= 1 << (bit / 64);
    }

    fn clear(&mut self, bit: u64) {
        let word = &mut self.words[(bit / 64) as usize];
        *word &= !(1 << (bit % 64));
        if *word == 0 {
            self.summary &= !(1 << (bit / 64));
        }
    }

    /// From position `from` (any number: it wraps), how far it is to the first set bit, going round once.
    fn distance(&self, from: u64) -> Option<u64> {
        if self.summary == 0 {
            return None;
        }
        let from = from % Self::LEN;
        let (word, shift) = ((from / 64) as usize, from % 64);
        let rest = self.words[word] >> shift;
        if rest != 0 {
            return Some(u64::from(rest.trailing_zeros()));
        }
        let later = self.summary & (u64::MAX << word << 1);
        // Going round, the word we began in may be the last one looked at.
        let found = if later != 0 { later.trailing_zeros() } else { self.summary.trailing_zeros() } as usize;
        let bit = found as u64 * 64 + u64::from(self.words[found].trailing_zeros());
        Some((bit + Self::LEN - from) % Self::LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn at_ms(ms: u64) -> Instant {
        Instant::from_ns(ms * TICK_NS)
    }

    fn fired_at(wheel: &mut Wheel, now: Instant) -> Vec<u32> {
        let mut fired = Vec::new();
        while wheel.advance(now, usize::MAX, &mut fired) {}
        fired
    }

    /// A timer fires on the first tick at or after its time, on every level, and not a tick earlier.
    #[test]
    fn fires_on_its_tick_and_not_before() {
        for start in [0, 1, 255, 256, 4095, 4096, 1 << 30] {
            for ahead in [0, 1, 255, 3839, 3840, 4095, 4096, 5000, 262_143, 262_144, 70_000_000, 200_000_000] {
                let mut wheel = Wheel::new(at_ms(start));
                wheel.arm(3, at_ms(start + ahead));
                if ahead > 0 {
                    assert_eq!(
                        fired_at(&mut wheel, at_ms(start + ahead - 1)),
                        [0u32; 0],
                        "{start} + {ahead}, a tick before"
                    );
                }
                assert_eq!(fired_at(&mut wheel, at_ms(start + ahead)), [3], "{start} + {ahead}");
                assert!(wheel.is_empty());
            }
        }
    }

    /// A time between two ticks means the later one: never early.
    #[test]
    fn rounds_up() {
        let mut wheel = Wheel::new(Instant::ZERO);
        wheel.arm(0, at_ms(5) + Duration::from_nanos(1));
        assert_eq!(wheel.next_expiry(), Some(at_ms(6)));
        assert_eq!(fired_at(&mut wheel, at_ms(6) - Duration::from_nanos(1)), [0u32; 0]);
        assert_eq!(fired_at(&mut wheel, at_ms(6)), [0]);
    }

    /// A turn does no more than its budget, and says that more is left.
    #[test]
    fn a_turn_is_bounded() {
        for ahead in [10, 5000, 300_000] {
            let mut wheel = Wheel::new(Instant::ZERO);
            (0..100).for_each(|id| wheel.arm(id, at_ms(ahead)));
            let (mut fired, mut turns) = (Vec::new(), 0);
            loop {
                let before = fired.len();
                let more = wheel.advance(at_ms(ahead), 7, &mut fired);
                assert!(fired.len() - before <= 7);
                turns += 1;
                if !more {
                    break;
                }
            }
            assert_eq!((fired.len(), wheel.len()), (100, 0));
            assert!(turns >= 100 / 7);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm {
            id: u32,
            ahead_us: u64,
        },
        Disarm {
            id: u32,
        },
        Advance {
            ahead_us: u64,
            budget: usize,
        },
        /// To where `next_expiry` says.
        Leap,
    }

    fn any_ahead() -> impl Strategy<Value = u64> {
        prop_oneof![0..5_000u64, 0..5_000_000u64, 3_800_000..4_200_000u64, 0..400_000_000u64, 0..200_000_000_000u64]
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..60u32, any_ahead()).prop_map(|(id, ahead_us)| Step::Arm { id, ahead_us }),
            1 => (0..60u32).prop_map(|id| Step::Disarm { id }),
            2 => (any_ahead(), prop_oneof![Just(1usize), Just(5), Just(1000)])
                .prop_map(|(ahead_us, budget)| Step::Advance { ahead_us, budget }),
            3 => Just(Step::Leap),
        ]
    }

    proptest! {
        /// Any mix of operations agrees with a sorted map of ticks: the same timers fire at the same calls, in tick
        /// order, and the next expiry is never after the first timer, and exact when that is near.
        #[test]
        fn agrees_with_a_sorted_map(start in 0..1u64 << 40, steps in prop::collection::vec(any_step(), 1..200)) {
            let mut now = Instant::from_ns(start);
            let mut wheel = Wheel::new(now);
            let mut oracle: BTreeMap<(u64, u32), ()> = BTreeMap::new();
            let mut next_tick = start / TICK_NS;
            for step in steps {
                match step {
                    Step::Arm { id, ahead_us } => {
                        let at = now + Duration::from_micros(ahead_us);
                        oracle.retain(|(_, other), ()| *other != id);
                        oracle.insert((at.ns().div_ceil(TICK_NS).max(next_tick), id), ());
                        wheel.arm(id, at);
                    }
                    Step::Disarm { id } => {
                        let before = oracle.len();
                        oracle.retain(|(_, other), ()| *other != id);
                        prop_assert_eq!(wheel.disarm(id), oracle.len() < before);
                    }
                    Step::Advance { .. } | Step::Leap => {
                        let budget = match step {
                            Step::Advance { ahead_us, budget } => {
                                now = now + Duration::from_micros(ahead_us);
                                budget
                            }
                            _ => {
                                now = wheel.next_expiry().map_or(now, |next| next.max(now));
                                1000
                            }
                        };
                        let mut fired = Vec::new();
                        while wheel.advance(now, budget, &mut fired) {}
                        next_tick = now.ns() / TICK_NS + 1;
                        let due: Vec<_> =
                            oracle.keys().copied().take_while(|(tick, _)| *tick <= now.ns() / TICK_NS).collect();
                        let tick_of: BTreeMap<u32, u64> = due.iter().map(|(tick, id)| (*id, *tick)).collect();
                        let ticks: Vec<_> = fired.iter().map(|id| tick_of.get(id).copied()).collect();
                        prop_assert!(ticks.iter().all(Option::is_some), "fired early: {:?}", fired);
                        prop_assert!(ticks.is_sorted());
                        prop_assert_eq!(fired.len(), due.len());
                        due.iter().for_each(|key| { oracle.remove(key); });
                    }
                }
                prop_assert_eq!(wheel.len(), oracle.len());
                let first = oracle.keys().next().map(|(tick, _)| *tick);
                let next = wheel.next_expiry().map(|next| next.ns() / TICK_NS);
                prop_assert_eq!(next.is_some(), first.is_some());
                if let (Some(next), Some(first)) = (next, first) {
                    prop_assert!(next <= first, "next {} is after the first timer {}", next, first);
                    if first < wheel.near_end {
                        prop_assert_eq!(next, first);
                    }
                }
            }
        }

        /// The bitmap agrees with a walk over its bits.
        #[test]
        fn bits_agree_with_a_walk(set in prop::collection::btree_set(0..1024u64, 0..20), from in 0..5000u64) {
            let mut bits = Bits::<16>::new();
            set.iter().for_each(|bit| bits.set(*bit));
            let walked = (0..1024).find(|ahead| set.contains(&((from + ahead) % 1024)));
            prop_assert_eq!(bits.distance(from), walked);
            set.iter().for_each(|bit| bits.clear(*bit));
            prop_assert_eq!(bits.distance(from), None);
        }
    }
}
