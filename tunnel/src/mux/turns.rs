//! Whose turn it is to send: deficit round robin over the streams of a carrier, in bytes, with a head start for those
//! that were quiet.
//! Promise: in each round every stream that has bytes gets [`TURN_BYTES`]; the first [`FRESH_BYTES`] of a stream that
//! wakes up go before everybody's bulk, so a small request waits for one frame and not for a round; and that head start
//! cannot be used to keep bulk waiting: beside bulk, head starts take at most four fifths of the carrier. Pure.
//!
//! ```text
//! wakes ──head start left in this round──▶ fresh ──used up──▶ now ──turn used up──▶ next
//!       ──turn left──────────────────────▶ now                 ▲                     │
//!       ──none left──────────────────────▶ next                └──── a new round ◀───┘
//! ```

use std::collections::VecDeque;

/// What each stream may send in a round: 64 KiB are 5 ms at 100 Mbit/s. A stream that is alone gets whole frames.
pub const TURN_BYTES: u32 = 64 << 10;

/// Of those, what a stream that wakes up may send before others' bulk: a request, a page, one copying read.
pub const FRESH_BYTES: u32 = 16 << 10;

/// So many bytes of head starts in a row, and somebody else has a turn, a byte of which pays for four of theirs: streams
/// that wake again and again, and new ones without end, take at most four fifths of the carrier.
const FRESH_RUN_BYTES: u32 = 4 * TURN_BYTES;

/// No frame is cut shorter than this by a turn that ends: it is overdrawn, and the next one is shorter.
pub(super) const FRAME_BYTES_MIN: u32 = 16 << 10;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lane {
    #[default]
    Idle,
    Fresh,
    Bulk,
}

/// What a stream has left; kept in the stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    round: u32,
    /// Of its turn in that round, in bytes; below zero: overdrawn.
    left: i32,
    lane: Lane,
}

impl Default for Share {
    fn default() -> Share {
        Share { round: 0, left: TURN_BYTES as i32, lane: Lane::Idle }
    }
}

impl Share {
    /// The stream is served and does not queue now.
    pub(super) fn leave(&mut self) {
        self.lane = Lane::Idle;
    }

    fn enter(&mut self, round: u32) {
        if self.round != round {
            // What was overdrawn is owed in the next round only: whoever was quiet for longer starts afresh.
            let owed = if self.round.wrapping_add(1) == round { self.left.min(0) } else { 0 };
            (self.round, self.left) = (round, owed + TURN_BYTES as i32);
        }
    }

    fn head_start(&self) -> i32 {
        self.left - (TURN_BYTES - FRESH_BYTES) as i32
    }
}

/// The streams that have something to send and may. See the module.
#[derive(Debug, Default)]
pub(super) struct Turns {
    fresh: VecDeque<u32>,
    now: VecDeque<u32>,
    next: VecDeque<u32>,
    round: u32,
    /// Head starts that bulk has not paid for yet, in bytes.
    run: u32,
    /// Who was picked last was picked for its head start.
    was_fresh: bool,
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.now.is_empty() && self.next.is_empty()
    }

    /// The stream has something to send.
    pub(super) fn wake(&mut self, id: u32, share: &mut Share) {
        if share.lane != Lane::Idle {
            return;
        }
        share.enter(self.round);
        share.lane = Lane::Bulk;
        if share.head_start() > 0 {
            share.lane = Lane::Fresh;
            self.fresh.push_back(id);
        } else if share.left > 0 {
            self.now.push_back(id);
        } else {
            self.next.push_back(id);
        }
    }

    /// Whether a stream has a head start.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// The next of those that have a head start; nobody else waits for it.
    pub(super) fn pick_fresh(&mut self) -> Option<u32> {
        self.was_fresh = true;
        self.fresh.pop_front()
    }

    /// The next in turn. It is to be asked how much it may send, and to leave or to wake again.
    pub(super) fn pick(&mut self) -> Option<u32> {
        self.was_fresh = false;
        let only_fresh = self.now.is_empty() && self.next.is_empty();
        if (self.run < FRESH_RUN_BYTES || only_fresh)
            && let Some(id) = self.fresh.pop_front()
        {
            self.was_fresh = true;
            return Some(id);
        }
        if self.now.is_empty() && !self.next.is_empty() {
            self.round = self.round.wrapping_add(1);
            std::mem::swap(&mut self.now, &mut self.next);
        }
        self.now.pop_front()
    }

    /// How much the stream that was just picked may send; `whole`, if it is alone.
    pub(super) fn len_max(&self, share: &mut Share, whole: u32) -> u32 {
        if self.is_empty() {
            return whole;
        }
        share.enter(self.round);
        let left = if self.was_fresh { share.head_start() } else { share.left };
        whole.min(left.max(FRAME_BYTES_MIN as i32) as u32)
    }

    /// The stream that was just picked has sent `n` bytes. `more`: it has something left, and may.
    pub(super) fn sent(&mut self, id: u32, share: &mut Share, n: u32, more: bool) {
        share.enter(self.round);
        // Who was alone and sent a whole frame owes nobody more than a turn.
        share.left = (share.left - n.min(TURN_BYTES) as i32).max(-(TURN_BYTES as i32));
        self.run = if self.was_fresh {
            self.run.saturating_add(n.max(1)).min(FRESH_RUN_BYTES)
        } else {
            self.run.saturating_sub(n.saturating_mul(4))
        };
        share.lane = Lane::Idle;
        if !more {
            return;
        }
        share.lane = Lane::Bulk;
        if share.left <= 0 {
            self.next.push_back(id);
        } else if self.was_fresh && share.head_start() > 0 {
            share.lane = Lane::Fresh;
            self.fresh.push_front(id);
        } else if self.was_fresh {
            self.now.push_back(id);
        } else {
            self.now.push_front(id);
        }
    }
}
