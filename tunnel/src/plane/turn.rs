//! One turn of the data path: whose bytes move, in which order, and how many before the ring is looked at again.
//! Promise: a turn is bounded, however much bulk there is; framed carriers, where small messages are, have a share of each;
//! those without frames come in order, and nobody twice before all others.

use super::Plane;
use super::carrier::Carrier;
use super::rest::LARGE_BYTES;
use crate::slots::Key;
use ringspan_engine::resident::Cx;

/// Bytes read from framed carriers in one turn, and written, over all of them: at 2 to 4 GB/s 130 to 260 us each, which is what a
/// request on a quiet stream waits for behind everybody's bulk. With half of it 99 busy streams on one carrier have an eighth
/// less (`bench fairness`; 2 cores, Linux 6.18, 2026-11).
pub(super) const TURN_BYTES: usize = 512 << 10;
/// Bytes moved in one turn by carriers without frames, both ways and all of them together. Without it the median of small
/// requests beside four of them was 1.8 to 2.6 ms, with it 0.7 to 2.3 (the same).
const BULK_BYTES: usize = 256 << 10;
/// Where each turn is followed by a rest it is this part of both. With whole ones the p99 of small requests was 1.2 ms beside framed
/// bulk, where it is 1.0 now, and 1.9 to 3.4 beside the other, where it is 1.4; bulk had a twentieth more at most, and no less with a quarter (the same).
const PART_BETWEEN_RESTS: usize = 2;
/// Each busy framed carrier has an even share of it, but no less than this: a wake-up has to be worth its while.
const SHARE_BYTES_MIN: usize = 64 << 10;

impl Plane {
    /// Reads and writes what is ready. Returns whether work is left.
    pub(crate) fn turn(&mut self, cx: &mut Cx<'_>) -> bool {
        if cx.now >= self.tick_at {
            self.take_ring();
            self.tick_at = cx.now + super::TICK;
            self.on_tick(cx);
        }
        if self.rest.begin(cx.now) {
            for key in std::mem::take(&mut self.rested) {
                if let Some(c) = self.carriers.get_mut(key) {
                    c.rests = false;
                }
                self.queue(key);
            }
        }
        self.look(cx);
        self.end_naps(cx);
        let mut framed = std::mem::take(&mut self.work);
        framed.retain(|&key| {
            let is_bulk = self.carriers.get(key).is_some_and(|c| c.is_raw());
            if is_bulk {
                self.bulk.push_back(key);
            }
            !is_bulk
        });
        self.turn_framed(cx, &framed);
        if self.work.is_empty() {
            // For its memory.
            framed.clear();
            self.work = framed;
        }
        self.turn_bulk(cx);
        if self.options.bulk_rests && self.rest.is_due(&self.shares.talk) {
            self.stats.bulk_rests.add(1);
            let now = cx.io.now();
            self.rest.end(now);
        }
        self.stats.pipes.set(self.pipes.made() as u64);
        self.stats.bytes_held.set(self.held_bytes as u64);
        self.has_work()
    }

    /// Of these bytes, what this turn may move.
    fn most(&self, bytes: usize) -> usize {
        if self.rest.gives_way() { bytes / PART_BETWEEN_RESTS } else { bytes }
    }

    /// Small messages are in frames: these go first, and all of them.
    fn turn_framed(&mut self, cx: &mut Cx<'_>, work: &[Key]) {
        self.turn_bytes = (self.most(TURN_BYTES) / work.len().max(1)).max(SHARE_BYTES_MIN);
        // Marked as queued while all are read: what that gives them to write is written in the second pass.
        for &key in work {
            self.rx(cx, key);
        }
        for &key in work {
            self.write_and_queue(cx, key);
        }
    }

    /// The others one by one, until the turn is over: who was not reached is first in the next one. While bulk rests, only
    /// those that carry none.
    fn turn_bulk(&mut self, cx: &mut Cx<'_>) {
        let most = self.most(BULK_BYTES);
        (self.turn_bytes, self.bulk_bytes) = (most, 0);
        for _ in 0..self.bulk.len() {
            if self.bulk_bytes >= most {
                break;
            }
            let Some(key) = self.bulk.pop_front() else { break };
            if self.rest.is_on() && self.carriers.get(key).is_some_and(Carrier::is_heavy) {
                self.bulk.push_back(key);
                continue;
            }
            let before = self.bulk_bytes;
            self.rx(cx, key);
            self.write_and_queue(cx, key);
            let moved = self.bulk_bytes - before;
            if let Some(raw) = self.carriers.get_mut(key).and_then(Carrier::raw).filter(|_| moved > 0) {
                raw.is_light = moved < LARGE_BYTES;
            }
        }
    }

    fn write_and_queue(&mut self, cx: &mut Cx<'_>, key: Key) {
        if let Some(c) = self.carriers.get_mut(key) {
            c.queued = false;
        }
        self.tx(cx, key);
        let is_resting = self.rest.is_on();
        let Some(c) = self.carriers.get_mut(key) else { return };
        if c.wants_rx() || if is_resting { c.wants_urgent_tx() } else { c.wants_tx() } {
            self.queue(key);
        } else if c.wants_tx() && !std::mem::replace(&mut c.rests, true) {
            self.rested.push(key);
        }
    }

    /// Once, on the worker's own thread: its pipes splice by a ring, if that is wanted.
    fn take_ring(&mut self) {
        if std::mem::take(&mut self.options.by_ring)
            && let Err(error) = ringspan_engine::kernel::splice_by_ring()
        {
            tracing::warn!(%error, "no IORING_OP_SPLICE here: splice(2) it is");
        }
    }
}
