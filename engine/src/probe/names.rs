//! The names of one worker's targets: given out where targets are added, given back where they end, without a lock.
//! Promise: a name in use is never given out again. Names that find no room on their way back are lost, not reused:
//! there are sixteen million, and room for [`FREED_MAX`] on the way.

use crate::slab::Key;
use crate::target::TargetId;
use crossbeam_queue::ArrayQueue;
use std::sync::atomic::{AtomicU32, Ordering};

/// Names on their way back: as many as a mailbox of removals, so that a worker seldom has to keep some for later.
const FREED_MAX: usize = 8192;

/// See the module.
pub(crate) struct Names {
    fresh: AtomicU32,
    freed: ArrayQueue<Key>,
}

impl Names {
    /// All names free.
    pub(crate) fn new() -> Names {
        Names { fresh: AtomicU32::new(0), freed: ArrayQueue::new(FREED_MAX) }
    }

    /// A free name, used ones first so that the worker's slab stays small; `None` when every one is in use.
    pub(crate) fn take(&self) -> Option<Key> {
        self.freed.pop().or_else(|| {
            let index = self.fresh.fetch_add(1, Ordering::Relaxed);
            if index < TargetId::TARGETS_MAX {
                return Some(Key { index, generation: 0 });
            }
            // Held at the limit, so that four billion refusals do not wrap it.
            self.fresh.store(TargetId::TARGETS_MAX, Ordering::Relaxed);
            None
        })
    }

    /// Gives a name back; the generation must be one that was never used. Returns whether there was room.
    pub(crate) fn give_back(&self, key: Key) -> bool {
        self.freed.push(key).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name comes back as it was given, before a fresh one.
    #[test]
    fn names_come_back() {
        let names = Names::new();
        let (a, b) = (names.take().expect("fresh"), names.take().expect("fresh"));
        assert_ne!(a.index, b.index);
        let next = Key { generation: 1, ..a };
        assert!(names.give_back(next));
        assert_eq!(names.take(), Some(next));
        assert_eq!(names.take().map(|key| key.index), Some(2));
    }
}
