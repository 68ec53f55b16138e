//! The streams of a carrier by id: `generation << 16 | slot`. Slot 0 is the carrier itself and never a stream.
//! Promise: an id of an earlier use of a slot finds nothing. Both sides index the same slots, so no hashing.

use super::turns::Share;
use super::{Limits, Side, fresh};
use crate::credit::{RecvWindow, SendCredit};
use crate::frame::Violation;

/// One stream as the mux sees it.
#[derive(Debug)]
pub(super) struct Stream<K> {
    /// `None`: announced and not adopted yet, or reset by us.
    pub(super) owner: Option<K>,
    pub(super) credit: SendCredit,
    pub(super) window: RecvWindow,
    /// Our FIN or RST is out.
    pub(super) send_ended: bool,
    /// The peer's FIN or RST is in.
    pub(super) recv_ended: bool,
    /// We reset it; what arrives is discarded.
    pub(super) reset: bool,
    pub(super) source_ready: bool,
    /// Its place in the round, and whether it waits for its turn.
    pub(super) share: Share,
    /// A grant stands in the control queue.
    pub(super) grant_queued: bool,
}

#[derive(Debug)]
struct Slot<K> {
    generation: u16,
    stream: Option<Stream<K>>,
}

#[derive(Debug)]
pub(super) struct Table<K> {
    /// Slot n is at n - 1. Grows as far as it is used.
    slots: Vec<Slot<K>>,
    /// Whether this side chooses slots.
    opens: bool,
    /// The opener's: slots to take again, the warmest last.
    free: Vec<u16>,
    len: usize,
    streams_max: u16,
    window_bytes: u32,
}

impl<K: Copy> Table<K> {
    pub(super) fn new(side: Side, limits: &Limits) -> Table<K> {
        let Limits { streams_max, window_bytes, .. } = *limits;
        Table { slots: Vec::new(), opens: side == Side::Opener, free: Vec::new(), len: 0, streams_max, window_bytes }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn owners(&self) -> Vec<K> {
        self.slots.iter().filter_map(|slot| slot.stream.as_ref()?.owner).collect()
    }

    fn slot(&mut self, id: u32) -> Option<&mut Slot<K>> {
        let slot = self.slots.get_mut(((id & 0xffff) as usize).checked_sub(1)?)?;
        (u32::from(slot.generation) == id >> 16).then_some(slot)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream<K>> {
        self.slot(id)?.stream.as_mut()
    }

    /// Opener: takes a free slot.
    pub(super) fn open(&mut self, owner: K) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.slots.len() < usize::from(self.streams_max) => {
                self.slots.push(Slot { generation: 0, stream: None });
                self.slots.len() as u16
            }
            None => return None,
        };
        let slot = &mut self.slots[usize::from(number) - 1];
        slot.generation = slot.generation.wrapping_add(1);
        slot.stream = Some(fresh(Some(owner), self.window_bytes));
        self.len += 1;
        Some(u32::from(slot.generation) << 16 | u32::from(number))
    }

    /// Accepter: puts a stream where the peer says.
    pub(super) fn place(&mut self, id: u32) -> Result<(), Violation> {
        let number = (id & 0xffff) as usize;
        if number == 0 || number > usize::from(self.streams_max) {
            return Err(Violation::Slot);
        }
        while self.slots.len() < number {
            self.slots.push(Slot { generation: 0, stream: None });
        }
        let slot = &mut self.slots[number - 1];
        if slot.stream.is_some() {
            return Err(Violation::Slot);
        }
        *slot = Slot { generation: (id >> 16) as u16, stream: Some(fresh(None, self.window_bytes)) };
        self.len += 1;
        Ok(())
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream<K>> {
        let stream = self.slot(id)?.stream.take()?;
        if self.opens {
            self.free.push((id & 0xffff) as u16);
        }
        self.len -= 1;
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory follows the most streams there were at once, not how many there ever were, on either side.
    #[test]
    fn slots_are_taken_again() {
        let (mut opener, mut accepter) =
            (Table::new(Side::Opener, &Limits::default()), Table::<()>::new(Side::Accepter, &Limits::default()));
        for _ in 0..100_000 {
            let id = opener.open(()).expect("one at a time");
            accepter.place(id).expect("the slot is free");
            assert!(opener.remove(id).is_some() && accepter.remove(id).is_some());
            assert!(opener.get_mut(id).is_none(), "an old id finds nothing");
        }
        let memory = |t: &Table<()>| t.slots.len() + t.free.len();
        assert!(memory(&opener) <= 2 && memory(&accepter) <= 1, "{} {}", memory(&opener), memory(&accepter));
    }
}
