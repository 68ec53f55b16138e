//! Answers that are due later: one slot a millisecond, as many slots as the longest delay.
//! Promise: what is put in comes out once, at the first turn at or after its time, in order of slots. Pure: no clock.

/// Entries by the millisecond they are due in.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    slots: Vec<Vec<T>>,
    /// The millisecond that the next turn begins with.
    next_ms: u64,
    len: usize,
}

impl<T> Wheel<T> {
    /// An empty wheel for delays up to `delay_max_ms`, at time `now_ms`.
    pub(super) fn new(delay_max_ms: u16, now_ms: u64) -> Wheel<T> {
        let slots = (0..usize::from(delay_max_ms) + 2).map(|_| Vec::new()).collect();
        Wheel { slots, next_ms: now_ms, len: 0 }
    }

    /// Puts one in, due at `due_ms`; what is beyond the wheel's reach comes out at the reach.
    pub(super) fn put(&mut self, due_ms: u64, entry: T) {
        let reach = self.slots.len() as u64 - 1;
        let due_ms = due_ms.clamp(self.next_ms, self.next_ms + reach);
        let slot = (due_ms % self.slots.len() as u64) as usize;
        self.slots[slot].push(entry);
        self.len += 1;
    }

    /// Takes out all that is due at `now_ms`.
    pub(super) fn turn(&mut self, now_ms: u64, due: &mut Vec<T>) {
        let count = self.slots.len() as u64;
        // After a long sleep once round is enough: every slot is due.
        let first = self.next_ms.max((now_ms + 1).saturating_sub(count));
        for ms in first..=now_ms {
            let slot = &mut self.slots[(ms % count) as usize];
            self.len -= slot.len();
            due.append(slot);
        }
        self.next_ms = self.next_ms.max(now_ms + 1);
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random delays and random turns against a list: everything comes out once, never early, and at the first turn
    /// after its time.
    #[test]
    fn a_wheel_keeps_its_times() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut now, mut list, mut due) = (1000, Vec::new(), Vec::new());
        let mut wheel = Wheel::new(200, now);
        for entry in 0..20_000 {
            let at = now + rng.u64(1..=200);
            wheel.put(at, entry);
            list.push((at, entry));
            if rng.u8(..4) == 0 {
                let step = if rng.u8(..50) == 0 { 1000 } else { 4 };
                now += rng.u64(..step);
                wheel.turn(now, &mut due);
                due.sort_unstable();
                let (mut expected, rest): (Vec<_>, Vec<_>) = list.into_iter().partition(|(at, _)| *at <= now);
                list = rest;
                expected.sort_unstable_by_key(|(_, entry)| *entry);
                assert!(due.drain(..).eq(expected.iter().map(|e| e.1)));
                assert_eq!(wheel.is_empty(), list.is_empty());
            }
        }
    }
}
