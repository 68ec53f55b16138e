//! Credit of one stream: how much may be sent, and when to give some back.
//! Promise: never more than `window_bytes` are granted and not yet written to the far socket, so that a slow receiver
//! stops its own sender and bounds its own memory; what was granted is never taken back. Pure: no socket, no clock.
//!
//! ```text
//! window = left (granted, not arrived) + held (arrived, not written) + owed (written, not granted again)
//! ```
//! A window follows bandwidth x round trip: when half of it was written within one round trip, twice as much in flight
//! would have been sent, so it doubles; when it took less than a quarter of one, it doubles twice. So it is at least
//! twice what a round trip carries, and TCP's own slow start, which doubles once a round trip, never waits for it. It does
//! not grow while the far socket is what limits: then more in flight would only be more in memory.

use crate::frame::Violation;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// Default of what every stream may have in flight from the start, before any grant: a request and most answers need no WINDOW
/// frame at all, and 16,384 idle streams cost nothing, since a window is a promise and not a buffer.
pub const WINDOW_BYTES_INITIAL: u32 = 256 << 10;

/// A window that the handshake agrees on is at most this.
pub const WINDOW_BYTES_INITIAL_MAX: u32 = 4 << 20;

/// A round trip counts as at least this long: nearer than this, the two ends' turns and the scheduler between them are
/// what a window has to bridge (a slice of two processes that share a core is 3 ms).
pub const ROUND_TRIP_MIN: Duration = Duration::from_millis(10);

/// On a link without length a window stops here: on loopback 256 KiB and 4 MiB carried the same 650 MB/s in four
/// streams, and the median request beside them took 1 and 6 ms: what is granted beyond need queues up in the sockets.
pub const WINDOW_BYTES_NEAR: u32 = 1 << 20;

/// Beyond that, what a round trip carries at 10 Gbit/s, in bytes per millisecond.
const BYTES_PER_MS_MAX: u64 = 1_250_000;

/// What a window may be over a link of that length, whatever it seems to carry.
fn window_max(round_trip: Duration) -> u32 {
    let length = round_trip.as_micros() as u64 * BYTES_PER_MS_MAX / 1000;
    u32::try_from(length.saturating_add(WINDOW_BYTES_NEAR.into())).unwrap_or(u32::MAX)
}

/// What a delivery means for the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// It limits the stream: [`grow`](RecvWindow::grow) it by so many bytes, if they are to be had.
    Grow(u32),
    /// It is larger than the stream needs: [`shrink`](RecvWindow::shrink) it if memory is short.
    Ample,
}

/// The receiving side of one stream.
#[derive(Clone, Copy, Debug)]
pub struct RecvWindow {
    initial: u32,
    window: u32,
    left: u32,
    held: u32,
    /// Bytes written since `since`: this round's.
    bytes: u32,
    since: Instant,
    /// More than half of the window has waited for the far socket, and not all of it is gone yet.
    slow: bool,
}

impl RecvWindow {
    /// A window of that many bytes, all granted.
    pub fn new(initial: u32) -> RecvWindow {
        RecvWindow { initial, window: initial, left: initial, held: 0, bytes: 0, since: Instant::ZERO, slow: false }
    }

    /// Bytes that arrived, or were announced, and have not been written to the far socket.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// The whole window.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Bytes this window has grown beyond its initial size.
    pub fn growth(&self) -> u64 {
        u64::from(self.window - self.initial)
    }

    /// `n` bytes are announced.
    ///
    /// # Errors
    /// [`Violation::Window`] if they were not granted.
    pub fn on_received(&mut self, n: u32) -> Result<(), Violation> {
        self.left = self.left.checked_sub(n).ok_or_else(|| Violation::Window(n - self.left))?;
        self.held += n;
        Ok(())
    }

    /// `n` bytes were written to the far socket, for which `waiting` are still there; `max` is what the window may be.
    pub fn on_delivered(&mut self, n: u32, waiting: u32, max: u32, round_trip: Duration, now: Instant) -> Step {
        self.held -= n.min(self.held);
        if self.slow || waiting > self.window / 2 {
            self.slow = waiting > 0;
            (self.since, self.bytes) = (now, 0);
            return Step::Ample;
        }
        let (max, round_trip) = (max.min(window_max(round_trip)), round_trip.max(ROUND_TRIP_MIN));
        let (took, bytes) = (now.since(self.since), self.bytes.saturating_add(n));
        if took > round_trip {
            let idle = self.bytes < self.window / 8;
            (self.since, self.bytes) = (now, n);
            return if idle { Step::Ample } else { Step::Keep };
        }
        self.bytes = bytes;
        if bytes < self.window / 2 {
            return Step::Keep;
        }
        (self.since, self.bytes) = (now, 0);
        let times = if took * 4 <= round_trip { 4 } else { 2 };
        match self.window.saturating_mul(times).min(max).saturating_sub(self.window) {
            0 => Step::Keep,
            by => Step::Grow(by),
        }
    }

    /// The window becomes larger.
    pub fn grow(&mut self, by: u32) {
        self.window += by;
    }

    /// What is owed is kept, as far as the window has grown. Returns how much that was.
    pub fn shrink(&mut self) -> u32 {
        let by = self.owed().min(self.window - self.initial);
        self.window -= by;
        by
    }

    /// Whether a grant is worth a frame of its own: a quarter of the window. The sender then still has as much as a
    /// round trip carries, since the window is at least twice that.
    pub fn is_grant_due(&self) -> bool {
        self.owed() >= self.window / 4
    }

    /// What could be granted now.
    pub fn owed(&self) -> u32 {
        self.window - self.left - self.held
    }

    /// Grants it.
    pub fn take_grant(&mut self) -> u32 {
        let owed = self.owed();
        self.left += owed;
        owed
    }
}

/// The sending side of one stream.
#[derive(Clone, Copy, Debug)]
pub struct SendCredit(u32);

impl SendCredit {
    /// What the peer grants from the start.
    pub fn new(initial: u32) -> SendCredit {
        SendCredit(initial)
    }

    /// Bytes that may be sent.
    pub fn left(self) -> u32 {
        self.0
    }

    /// `n` bytes go out. Panics if they were not there: the mover asked and was told.
    pub fn spend(&mut self, n: u32) {
        self.0 = self.0.checked_sub(n).expect("a mover sends no more than it was allowed");
    }

    /// The peer granted `n` more bytes.
    ///
    /// # Errors
    /// [`Violation::Credit`] if that overflows: no honest peer grants four gigabytes.
    pub fn on_granted(&mut self, n: u32) -> Result<(), Violation> {
        self.0 = self.0.checked_add(n).ok_or(Violation::Credit)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u32 = 16 << 20;
    const RTT: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    proptest! {
        /// Whatever arrives, is delivered, grows and shrinks: granted-and-unwritten bytes never exceed the window, the
        /// window stays between what it started with and its maximum, credit that was granted is always honoured, and
        /// once all is delivered and granted the sender has the whole window.
        #[test]
        fn the_window_holds(steps in prop::collection::vec((0u32..300_000, 0u32..300_000, 0u64..60, any::<bool>()), 1..300)) {
            let (mut recv, mut send) = (RecvWindow::new(WINDOW_BYTES_INITIAL), SendCredit::new(WINDOW_BYTES_INITIAL));
            let (mut held, mut now) = (0, 0);
            for (n, delivered, ms, stingy) in steps {
                now += ms;
                let n = n.min(send.left());
                send.spend(n);
                recv.on_received(n).expect("spent only what was granted");
                held += n;
                let delivered = delivered.min(held);
                held -= delivered;
                match recv.on_delivered(delivered, held, MAX, RTT, at(now)) {
                    Step::Grow(by) if !stingy => recv.grow(by),
                    Step::Ample if stingy => drop(recv.shrink()),
                    _ => {}
                }
                prop_assert_eq!(recv.held(), held);
                prop_assert!((WINDOW_BYTES_INITIAL..=MAX).contains(&recv.window));
                prop_assert_eq!(send.left() + recv.owed() + held, recv.window);
                if recv.is_grant_due() {
                    send.on_granted(recv.take_grant()).expect("small");
                }
            }
            recv.on_delivered(recv.held(), 0, MAX, RTT, at(now));
            send.on_granted(recv.take_grant()).expect("small");
            prop_assert_eq!(send.left(), recv.window);
        }
    }

    /// Each row: bytes written in pieces at those times (ms), with so many waiting, in a round trip of 100 ms and a
    /// window of 256 KiB: what the last of them means.
    #[test]
    fn steps_of_a_window() {
        const W: u32 = 256 << 10;
        type Row = (&'static [(u64, u32, u32)], Step);
        let rows: [Row; 9] = [
            (&[(1000, W / 4, 0)], Step::Ample),
            (&[(1000, W / 4, 0), (1020, W / 4, 0)], Step::Grow(3 * W)),
            (&[(1000, W / 4, 0), (1025, W / 4, 0)], Step::Grow(3 * W)),
            (&[(1000, W / 4, 0), (1026, W / 4, 0)], Step::Grow(W)),
            (&[(1000, W / 4, 0), (1100, W / 4, 0)], Step::Grow(W)),
            (&[(1000, W / 4, 0), (1101, W / 4, 0)], Step::Keep),
            (&[(1000, W / 4, 0), (1050, W / 4 - 1, 0)], Step::Keep),
            (&[(1000, 1, 0), (1101, W / 4, 0)], Step::Ample),
            // Half of the window waited: nothing counts until all of that is gone.
            (&[(1000, W / 8, W / 2 + 1), (1010, W / 2, 1), (1011, 1, 0), (1012, W / 2 - 1, 0)], Step::Keep),
        ];
        for (pieces, want) in rows {
            let mut window = RecvWindow::new(W);
            let mut last = Step::Keep;
            for &(ms, n, waiting) in pieces {
                window.on_received(n).expect("granted");
                last = window.on_delivered(n, waiting, MAX, RTT, at(ms));
                window.take_grant();
            }
            assert_eq!(last, want, "{pieces:?}");
        }
    }

    /// Near links count as 10 ms long and have a maximum of their own; nothing grows beyond its maximum.
    #[test]
    fn growth_has_bounds() {
        let mut window = RecvWindow::new(WINDOW_BYTES_INITIAL);
        let deliver = |window: &mut RecvWindow, ms, max| {
            window.on_received(WINDOW_BYTES_INITIAL / 4).expect("granted");
            window.on_delivered(WINDOW_BYTES_INITIAL / 4, 0, max, Duration::from_micros(50), at(ms))
        };
        assert_eq!(deliver(&mut window, 1000, MAX), Step::Ample);
        assert_eq!(deliver(&mut window, 1010, WINDOW_BYTES_INITIAL + 5), Step::Grow(5));
        window.grow(5);
        deliver(&mut window, 1011, WINDOW_BYTES_INITIAL + 5);
        assert_eq!(deliver(&mut window, 1012, WINDOW_BYTES_INITIAL + 5), Step::Keep);
        let mut window = RecvWindow::new(WINDOW_BYTES_NEAR);
        for (round_trip, want) in [(0, Step::Keep), (1, Step::Grow(1_250_000)), (10, Step::Grow(3 * WINDOW_BYTES_NEAR))]
        {
            window.on_received(WINDOW_BYTES_NEAR / 2).expect("granted");
            let first = window.on_delivered(1, 0, MAX, Duration::from_millis(round_trip), at(2000));
            assert!(matches!(first, Step::Keep | Step::Ample));
            let n = WINDOW_BYTES_NEAR / 2 - 1;
            assert_eq!(window.on_delivered(n, 0, MAX, Duration::from_millis(round_trip), at(2001)), want);
            window.take_grant();
            window.since = Instant::ZERO;
        }
    }

    /// A grant goes out when a quarter of the window has been written, not a byte before, and grants all of it.
    #[test]
    fn grants_come_by_quarters() {
        const QUARTER: u32 = WINDOW_BYTES_INITIAL / 4;
        let mut window = RecvWindow::new(WINDOW_BYTES_INITIAL);
        window.on_received(2 * QUARTER).expect("granted");
        assert!(!window.is_grant_due(), "what waits is not owed");
        window.on_delivered(QUARTER - 1, QUARTER + 1, MAX, RTT, at(1000));
        assert!(!window.is_grant_due());
        window.on_delivered(1, QUARTER, MAX, RTT, at(1000));
        assert!(window.is_grant_due());
        assert_eq!((window.take_grant(), window.owed(), window.is_grant_due()), (QUARTER, 0, false));
    }

    /// Shrinking takes what is owed, never what was granted, and never below what the stream started with.
    #[test]
    fn shrinking_takes_only_what_is_owed() {
        let mut window = RecvWindow::new(WINDOW_BYTES_INITIAL);
        window.grow(WINDOW_BYTES_INITIAL);
        assert_eq!(window.take_grant(), WINDOW_BYTES_INITIAL);
        assert_eq!(window.shrink(), 0);
        window.on_received(1000).expect("granted");
        assert_eq!(window.shrink(), 0, "what waits is not owed");
        window.on_delivered(1000, 0, MAX, RTT, at(1000));
        assert_eq!((window.shrink(), window.window()), (1000, 2 * WINDOW_BYTES_INITIAL - 1000));
        window.on_received(2 * WINDOW_BYTES_INITIAL - 1000).expect("granted before");
        window.on_delivered(2 * WINDOW_BYTES_INITIAL - 1000, 0, MAX, RTT, at(2000));
        assert_eq!((window.shrink(), window.window()), (WINDOW_BYTES_INITIAL - 1000, WINDOW_BYTES_INITIAL));
    }

    /// A sender that takes more than it was granted is caught at the first byte too many.
    #[test]
    fn overdraft_is_a_violation() {
        let mut recv = RecvWindow::new(WINDOW_BYTES_INITIAL);
        assert_eq!(recv.on_received(WINDOW_BYTES_INITIAL), Ok(()));
        assert_eq!(recv.on_received(1), Err(Violation::Window(1)));
    }
}
