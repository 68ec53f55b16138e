//! Bytes on their way through a link: filled at the end, taken from the front, moved only when the end is reached.
//! Pure. Allocates when it is first filled and when it grows, never per byte or record.

use std::ops::Range;

/// Grown in steps of this, so that a small message does not cost 64 KiB: two pages.
const STEP_BYTES: usize = 8 * 1024;

/// A queue of bytes in one allocation.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    filled: Range<usize>,
}

impl Buffer {
    /// What has been filled and not consumed.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    /// As [`filled`](Buffer::filled), to change in place.
    pub(super) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled.clone()]
    }

    /// How much is filled.
    pub(super) fn len(&self) -> usize {
        self.filled.len()
    }

    /// Forgets the first `n` filled bytes.
    pub(super) fn consume(&mut self, n: usize) {
        assert!(n <= self.filled.len(), "consumed {n} of {} bytes", self.filled.len());
        self.filled.start += n;
        if self.filled.is_empty() {
            self.filled = 0..0;
        }
    }

    /// All the room after the filled bytes, at least `room` bytes. Call [`fill`](Buffer::fill) with what was written.
    pub(super) fn spare(&mut self, room: usize) -> &mut [u8] {
        if self.bytes.len() - self.filled.end < room {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            let needed = (self.filled.end + room).next_multiple_of(STEP_BYTES);
            if self.bytes.len() < needed {
                // Exact: the owner's limits are what bounds this buffer, doubling would pass them.
                self.bytes.reserve_exact(needed - self.bytes.len());
                self.bytes.resize(needed, 0);
            }
        }
        &mut self.bytes[self.filled.end..]
    }

    /// The first `n` bytes of the spare room are filled now.
    pub(super) fn fill(&mut self, n: usize) {
        assert!(n <= self.bytes.len() - self.filled.end, "filled past the end of the buffer");
        self.filled.end += n;
    }

    /// Appends a copy.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.spare(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// Takes another's memory, not its bytes, if it has none itself.
    pub(super) fn adopt(&mut self, other: Buffer) {
        if self.bytes.is_empty() {
            *self = Buffer { bytes: other.bytes, filled: 0..0 };
        }
    }

    /// What it takes.
    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives the memory back if nothing is filled.
    pub(super) fn release_if_empty(&mut self) {
        if self.filled.is_empty() {
            *self = Buffer::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Against a `VecDeque`: the same bytes in the same order, whatever is pushed and consumed.
        #[test]
        fn behaves_as_a_queue(ops in proptest::collection::vec((any::<bool>(), 0usize..20_000), 1..60)) {
            let (mut buffer, mut model, mut next) = (Buffer::default(), VecDeque::new(), 0u8);
            for (push, n) in ops {
                if push {
                    let bytes: Vec<u8> = (0..n).map(|_| { next = next.wrapping_add(1); next }).collect();
                    model.extend(&bytes);
                    buffer.push(&bytes);
                } else {
                    let n = n.min(model.len());
                    model.drain(..n);
                    buffer.consume(n);
                }
                prop_assert_eq!(buffer.filled(), model.make_contiguous() as &[u8]);
                prop_assert!(buffer.spare(100).len() >= 100);
            }
        }
    }
}
