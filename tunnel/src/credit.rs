//! Credit of one stream: how much may be sent, and when to give some back.
//! Promise: never more than `window_bytes` are granted and not yet written to the far socket, so that a slow receiver
//! stops its own sender and bounds its own memory. Pure: no socket, no clock.
//!
//! ```text
//! window = left (granted, not arrived) + held (arrived, not written) + owed (written, not granted again)
//! ```

use crate::frame::Violation;

/// Default of what every stream may have in flight from the start, before any grant: a request and most answers need no WINDOW
/// frame at all, and 16,384 idle streams cost nothing, since a window is a promise and not a buffer.
pub const WINDOW_BYTES_INITIAL: u32 = 256 << 10;

/// A window grows to this for a stream that uses it up: 4 MiB carry 1 Gbit/s over 32 ms (frp #2987 shows what a fixed
/// small window does to long links).
pub const WINDOW_BYTES_MAX: u32 = 4 << 20;

/// All windows of one carrier together may grow by this much beyond their initial size.
pub const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// The receiving side of one stream.
#[derive(Clone, Copy, Debug)]
pub struct RecvWindow {
    initial: u32,
    window: u32,
    left: u32,
    held: u32,
    /// The sender was close to running dry when the last bytes arrived.
    tight: bool,
}

impl RecvWindow {
    /// A window of that many bytes, all granted.
    pub fn new(initial: u32) -> RecvWindow {
        RecvWindow { initial, window: initial, left: initial, held: 0, tight: false }
    }

    /// Bytes that arrived and have not been written to the far socket.
    pub fn held(&self) -> u32 {
        self.held
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
        self.tight |= self.left < self.window / 2;
        Ok(())
    }

    /// `n` bytes were written to the far socket. The window doubles out of `allowance` (bytes) when the sender ran
    /// it down and the receiver still kept up: then the window is what limits the stream.
    /// Returns whether a grant is worth a frame of its own: a quarter of the window.
    pub fn on_delivered(&mut self, n: u32, allowance: &mut u64) -> bool {
        self.held -= n.min(self.held);
        let growth = self.window.min(WINDOW_BYTES_MAX.saturating_sub(self.window));
        if self.tight && self.held == 0 {
            self.tight = false;
            if u64::from(growth) <= *allowance {
                *allowance -= u64::from(growth);
                self.window += growth;
            }
        }
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

    proptest! {
        /// Whatever arrives and is delivered, granted-and-unwritten bytes never exceed the window, the window never
        /// exceeds its maximum, and once all is delivered and granted the sender has the whole window.
        #[test]
        fn the_window_holds(steps in prop::collection::vec((0u32..300_000, 0u32..300_000), 1..200)) {
            let (mut recv, mut send) = (RecvWindow::new(WINDOW_BYTES_INITIAL), SendCredit::new(WINDOW_BYTES_INITIAL));
            let mut allowance = GROWTH_BYTES_MAX;
            let mut held = 0;
            for (n, delivered) in steps {
                let n = n.min(send.left());
                send.spend(n);
                recv.on_received(n).expect("spent only what was granted");
                held += n;
                let delivered = delivered.min(held);
                held -= delivered;
                let worth = recv.on_delivered(delivered, &mut allowance);
                prop_assert_eq!(recv.held(), held);
                prop_assert!(recv.window <= WINDOW_BYTES_MAX);
                prop_assert!(send.left() + recv.owed() + held <= recv.window, "more promised than the window");
                if worth {
                    send.on_granted(recv.take_grant()).expect("small");
                }
            }
            recv.on_delivered(recv.held(), &mut allowance);
            send.on_granted(recv.take_grant()).expect("small");
            prop_assert_eq!(send.left(), recv.window);
            prop_assert_eq!(u64::from(recv.window - WINDOW_BYTES_INITIAL) + allowance, GROWTH_BYTES_MAX);
        }
    }

    /// A sender that takes more than it was granted is caught at the first byte too many.
    #[test]
    fn overdraft_is_a_violation() {
        let mut recv = RecvWindow::new(WINDOW_BYTES_INITIAL);
        assert_eq!(recv.on_received(WINDOW_BYTES_INITIAL), Ok(()));
        assert_eq!(recv.on_received(1), Err(Violation::Window(1)));
    }
}
