//! In-flight operations other than knocks: a slab whose slots carry a generation, so that a completion of an earlier
//! use of a slot is never taken for the present one's.

use crate::token::Token;
use std::net::SocketAddr;

/// Slots there may be: what fits the index field of the user data.
pub(super) const SLOTS_MAX: usize = 1 << 24;

#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) token: Token,
    pub(super) fd: i32,
    pub(super) work: Work,
    /// The owner has asked for the end: no more re-arming.
    pub(super) cancelled: bool,
    /// Not yet in the submission queue.
    pub(super) waiting: bool,
}

/// What a slot's operation is at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Nothing: the slot is free.
    Free,
    Connect(SocketAddr),
    /// A connect that a kernel thread gave up as in progress; its poll says when it is over.
    ConnectPoll,
    Accept,
    Poll {
        write: bool,
    },
}

#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    /// A slot for a new operation.
    pub(super) fn take(&mut self, token: Token, fd: i32, work: Work) -> u32 {
        let slot = Slot { generation: 0, token, fd, work, cancelled: false, waiting: false };
        match self.free.pop() {
            Some(index) => {
                let generation = self.slots[index as usize].generation;
                self.slots[index as usize] = Slot { generation, ..slot };
                index
            }
            None => {
                assert!(self.slots.len() < SLOTS_MAX, "sixteen million operations in flight");
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        }
    }

    /// The slot, if it is in use.
    pub(super) fn get(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize).filter(|s| !matches!(s.work, Work::Free))
    }

    pub(super) fn free(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        debug_assert!(!matches!(slot.work, Work::Free));
        slot.work = Work::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }

    /// How many are in use.
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Tokens of all that are in use.
    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.slots.iter().filter(|s| !matches!(s.work, Work::Free)).map(|s| s.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot taken again has another generation, and a free one is nobody's.
    #[test]
    fn generations_differ() {
        let mut slots = Slots::default();
        let token = Token::new(1, 0, 0, 0);
        let first = slots.take(token, 3, Work::Accept);
        let generation = slots.get(first).expect("in use").generation;
        slots.free(first);
        assert!(slots.get(first).is_none());
        assert_eq!((slots.in_use(), slots.take(token, 4, Work::Accept)), (0, first));
        assert_ne!(slots.get(first).expect("in use").generation, generation);
        assert_eq!((slots.in_use(), slots.tokens().count()), (1, 1));
    }
}
