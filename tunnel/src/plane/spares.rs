//! How many direct carriers a carrier wants to have waiting.
//! Promise: as many as streams have lately taken within a second, so that the next ones need not wait for handshakes;
//! at most [`SPARES_MAX`]; none when nobody has wanted one for a while. Pure: ticks and wants come in.

/// Direct carriers that wait for streams of one carrier, at most: each is a connection with a cipher of its own, about
/// 20 KiB on either side.
pub(crate) const SPARES_MAX: u16 = 64;

/// Ticks of a second each, after which half of those that nobody took are let go.
const QUIET_TICKS: u32 = 30;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Demand {
    wish: u16,
    /// Streams that took one, or would have, since the last tick.
    recent: u16,
    quiet: u32,
}

impl Demand {
    /// A stream takes one, or finds none. Returns the new wish, if it is another.
    pub(super) fn on_want(&mut self) -> Option<u16> {
        self.recent = self.recent.saturating_add(1);
        let wish = self.recent.checked_next_power_of_two().unwrap_or(SPARES_MAX).min(SPARES_MAX);
        if wish <= self.wish {
            return None;
        }
        self.wish = wish;
        Some(wish)
    }

    /// A second has passed. Returns the new wish, if it is another.
    pub(super) fn on_tick(&mut self) -> Option<u16> {
        let recent = std::mem::take(&mut self.recent);
        if self.wish == 0 || recent > self.wish / 2 {
            self.quiet = 0;
            return None;
        }
        self.quiet += 1;
        if self.quiet < QUIET_TICKS {
            return None;
        }
        self.quiet = 0;
        self.wish /= 2;
        Some(self.wish)
    }

    /// How many are wanted now.
    pub(super) fn wish(&self) -> u16 {
        self.wish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wish follows a burst at once, stays while bursts come back, and is gone some minutes after the last.
    #[test]
    fn the_wish_follows_demand() {
        let mut demand = Demand::default();
        assert_eq!((demand.on_tick(), demand.wish()), (None, 0));
        assert_eq!((demand.on_want(), demand.on_want(), demand.on_want()), (Some(1), Some(2), Some(4)));
        for _ in 0..1000 {
            demand.on_want();
        }
        assert_eq!(demand.wish(), SPARES_MAX);
        for _ in 0..100 {
            (0..40).for_each(|_| assert_eq!(demand.on_want(), None));
            assert_eq!(demand.on_tick(), None);
        }
        let ticks = (1..1000).find(|_| demand.on_tick() == Some(0)).expect("it ends");
        assert_eq!((ticks, demand.wish()), (7 * QUIET_TICKS, 0));
    }
}
