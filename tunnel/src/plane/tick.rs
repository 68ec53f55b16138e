//! What is looked at once a second: handshakes and dials that take too long, far ends that are silent, carriers that are
//! drained, keys that wear out, memory that idle carriers need not hold.

use super::Plane;
use super::carrier::{Lost, Phase};
use super::ends::DRAINED;
use super::signs::{Sign, silence};
use crate::frame::{Kind, Reason};
use crate::mux::Side;
use crate::slots::Key;
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// A handshake, TLS and HELLO together, takes at most this long.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A drained carrier is closed by the peer that was told so; one that does not, after this long.
const PARTING_MAX: Duration = Duration::from_secs(3);

impl Plane {
    /// Looks at every carrier, and at dials.
    pub(super) fn on_tick(&mut self, cx: &mut Cx<'_>) {
        self.ask_for_signs(cx.now);
        // A stream that has moved off waits for its link's signs of life all the same, and a link stays for it.
        let mut streaming: Vec<Key> = self.carriers.iter().filter_map(|(_, c)| c.link_of_stream()).collect();
        streaming.sort_unstable();
        for key in self.carriers.keys() {
            self.look_at_wear(key);
            let Some(c) = self.carriers.get_mut(key) else { continue };
            let busy = c.on_second();
            let awaited = c.mux.streams() > 0 || streaming.binary_search(&key).is_ok();
            match c.phase {
                Phase::Hello if cx.now.since(c.since) >= HANDSHAKE_MAX => {
                    let detail = format!("not done after {} s", HANDSHAKE_MAX.as_secs());
                    self.lose(cx, key, Lost { reason: Reason::HandshakeSlow, detail });
                }
                Phase::Up if c.parted.is_some_and(|at| cx.now.since(at) >= PARTING_MAX) => {
                    self.lose(cx, key, Lost::drained());
                }
                Phase::Up if c.parted.is_none() && c.draining && !awaited => {
                    // Read on until the peer closes: a socket that is closed with bytes unread is reset, and a reset
                    // may overtake the goodbye.
                    c.parted = Some(cx.now);
                    self.send(key, Kind::Goaway, Reason::Disconnected as u16, DRAINED.into());
                }
                Phase::Up if c.is_framed() => match c.signs.look(cx.now, awaited) {
                    Sign::Dead => self.lose(cx, key, Lost { reason: Reason::Silent, detail: silence() }),
                    Sign::Ask => self.ask(cx.now, key),
                    Sign::Enough if busy => self.ask(cx.now, key),
                    Sign::Enough => {}
                },
                Phase::Up => self.look_at_orphan(cx, key),
                Phase::Hello | Phase::Closing | Phase::Moving => {}
            }
            if self.side == Side::Opener {
                self.tick_spares(cx, key);
                if self.is_unanswered(key, cx.now) {
                    let detail = "the agent does not answer on a direct carrier".to_owned();
                    self.lose(cx, key, Lost { reason: Reason::DialTimeout, detail });
                }
            }
        }
        if self.side == Side::Accepter {
            let late: Vec<Key> = self.endpoints.iter().filter(|(_, e)| e.is_late(cx.now)).map(|(key, _)| key).collect();
            for key in late {
                self.dial_failed(cx, key, Reason::DialTimeout);
            }
        }
    }

    /// Asks for a sign of life, and for the round trip.
    fn ask(&mut self, now: Instant, key: Key) {
        if let Some(c) = self.carriers.get_mut(key) {
            c.signs.on_asked(now);
            c.mux.ping(now);
            self.queue(key);
        }
    }

    /// What answers on the carrier's connection is a proxy on the way: only the far end's own words are signs of life.
    pub(crate) fn is_relayed(&mut self, key: Key) {
        if let Some(c) = self.carriers.get_mut(key) {
            c.signs.on_relayed();
        }
    }
}
